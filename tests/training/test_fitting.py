import itertools
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from laue_dask.errors import ConfigError, StoreError
from laue_dask.features.architecture import Architecture
from laue_dask.features.network import build
from laue_dask.runtime.progress import QuietProgress
from laue_dask.training import checkpoint, fitting
from laue_dask.training.checkpoint import Epoch
from laue_dask.training.fitting import Check, Checkpointing, best_epoch, choose_device, fit
from laue_dask.training.training import SupervisedObjective, train
from laue_dask.training.training_config import TrainingConfig

TINY = Architecture(name="tiny", channels=(4, 8, 8, 8, 8), latent=16, dropout=0.2, batch_norm=True, smoothing=1.0)
SHORT = TrainingConfig(
    architecture=TINY, epochs=3, experiments_per_batch=1, max_shift=4, learning_rate=5e-3, checkpoint_minutes=0
)
STEPS = 4
"""Of an epoch."""


class Killed(BaseException):
    pass


class KilledAt:
    """Progress that ends the training, as a kill would, when so many steps are done."""

    def __init__(self, steps):
        self.left = steps
        self.names = []

    @contextmanager
    def stage(self, name, *, total, unit="patterns", done=0):
        self.names.append(name)

        def advance(count):
            self.left -= 1
            if self.left < 0:
                raise Killed

        yield advance


def losses(epochs):
    """History without what depends on the clock."""
    return [replace(epoch, seconds=0, patterns_per_second=0) for epoch in epochs]


@pytest.fixture(scope="module")
def calm(sets):
    model, epochs = train(SHORT, *sets, progress=QuietProgress())
    return model.state_dict(), losses(epochs)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("every", [0, 1e9], ids=["each step", "each epoch"])
@pytest.mark.parametrize("steps", [0, 1, STEPS - 1, STEPS, STEPS + 2, 3 * STEPS - 1])
def test_a_training_killed_anywhere_ends_with_the_same_bits(sets, calm, tmp_path, steps, every):
    config = SHORT.model_copy(update={"checkpoint_minutes": every})
    kept = Checkpointing(tmp_path / "c.safetensors", {"data": "x"})
    with pytest.raises(Killed):
        train(config, *sets, progress=KilledAt(steps), checkpointing=kept)
    torch.manual_seed(steps)  # whatever the process did before
    model, epochs = train(config, *sets, progress=QuietProgress(), checkpointing=kept)
    assert same(model.state_dict(), calm[0])
    assert losses(epochs) == calm[1]


def test_a_training_killed_again_and_again_ends_with_the_same_bits_and_repeats_no_step(sets, calm, tmp_path):
    kept = Checkpointing(tmp_path / "c.safetensors", {})
    for _ in range(3):
        with pytest.raises(Killed):
            train(SHORT, *sets, progress=KilledAt(3), checkpointing=kept)
    model, epochs = train(SHORT, *sets, progress=KilledAt(3), checkpointing=kept)  # would be killed at a fourth
    assert same(model.state_dict(), calm[0])
    assert losses(epochs) == calm[1]


def test_a_finished_training_has_nothing_left_to_do(sets, calm, tmp_path):
    kept = Checkpointing(tmp_path / "c.safetensors", {})
    train(SHORT, *sets, progress=QuietProgress(), checkpointing=kept)
    model, epochs = train(SHORT, *sets, progress=KilledAt(0), checkpointing=kept)
    assert same(model.state_dict(), calm[0])
    assert losses(epochs) == calm[1]


def test_a_training_limited_by_time_goes_on_with_the_time_that_is_left(sets, tmp_path):
    kept = Checkpointing(tmp_path / "c.safetensors", {})
    with pytest.raises(Killed):
        train(SHORT, *sets, progress=KilledAt(2), checkpointing=kept, minutes=60)
    model = build(TINY, seed=0)
    optimizer = torch.optim.AdamW(model.parameters())
    position, best = checkpoint.read(kept.path, model, optimizer, {})
    assert (position.step, best) == (2, {})
    assert 0 < position.seconds < 600
    checkpoint.write(kept.path, replace(position, seconds=3600.0), model, optimizer, best, {})
    progress = KilledAt(1)  # time is over: one step more at the most
    _, [epoch] = train(SHORT, *sets, progress=progress, checkpointing=kept, minutes=60)
    assert progress.left == 0
    assert epoch.seconds > 3600


def test_the_checkpoint_of_another_training_is_refused_with_the_first_difference(sets, tmp_path):
    kept = Checkpointing(tmp_path / "c.safetensors", {"configuration": {"epochs": 3, "seed": 0}, "data": "x"})
    with pytest.raises(Killed):
        train(SHORT, *sets, progress=KilledAt(1), checkpointing=kept)
    other = Checkpointing(kept.path, {"configuration": {"epochs": 4, "seed": 0}, "data": "x"})
    before = kept.path.read_bytes()
    with pytest.raises(StoreError) as caught:
        train(SHORT, *sets, progress=QuietProgress(), checkpointing=other)
    assert str(caught.value) == (
        f"{kept.path}: this is the checkpoint of another training (configuration.epochs: 3 there, 4 here): "
        "remove it or choose another --out"
    )
    assert kept.path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"garbage", "truncated"], ids=["empty", "garbage", "truncated"])
def test_a_damaged_checkpoint_is_refused_in_one_line(sets, tmp_path, content):
    kept = Checkpointing(tmp_path / "c.safetensors", {})
    if content == "truncated":
        with pytest.raises(Killed):
            train(SHORT, *sets, progress=KilledAt(1), checkpointing=kept)
        content = kept.path.read_bytes()[:-100]
    kept.path.write_bytes(content)
    with pytest.raises(StoreError, match="not a checkpoint that this laue-dask can read") as caught:
        train(SHORT, *sets, progress=QuietProgress(), checkpointing=kept)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_replaced_whole(sets, tmp_path, monkeypatch):
    kept = Checkpointing(tmp_path / "c.safetensors", {})
    with pytest.raises(Killed):
        train(SHORT, *sets, progress=KilledAt(1), checkpointing=kept)
    before = kept.path.read_bytes()

    def half(target, content):
        with target.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(type(kept.path), "write_bytes", half)
    with pytest.raises(OSError, match="disk full"):
        train(SHORT, *sets, progress=QuietProgress(), checkpointing=kept)
    assert kept.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [kept.path.name]


class Judged(SupervisedObjective):
    """A training whose validation loss is given."""

    def __init__(self, sets, checks):
        super().__init__(SHORT, *sets)
        self.checks = iter(checks)
        self.seen = []

    def check(self, model):
        assert not model.training
        self.seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return Check(next(self.checks), 0.1, 0.1, 0.5)


@pytest.mark.parametrize(
    ("checks", "patience", "epochs", "best"),
    [
        ([3, 2, 1, 4, 5, 6, 7], 2, 5, 3),
        ([3, 2, 2, 2], 2, 4, 2),
        ([1, 2], 1, 2, 1),
        ([5, 4, 3, 2, 1, 6], 3, 6, 5),
        ([math.nan, math.nan, 2, 3, 4, 1], None, 6, 6),
        ([math.nan, 2, math.nan, math.nan], 2, 4, 2),
    ],
)
def test_patience_ends_a_training_and_the_best_weights_are_kept(sets, checks, patience, epochs, best):
    config = SHORT.model_copy(update={"epochs": 6, "patience": patience})
    objective = Judged(sets, checks)
    model, history = fit(build(TINY, seed=0), objective, config, progress=QuietProgress())
    assert len(history) == epochs
    assert best_epoch(history).epoch == best
    assert same(model.state_dict(), objective.seen[best - 1])
    assert not model.training


def test_patience_and_the_best_weights_survive_a_kill(sets, tmp_path):
    checks = [3.0, 1.0, 2.0, 4.0, 5.0]
    config = SHORT.model_copy(update={"epochs": 6, "patience": 3})
    calm, _ = fit(build(TINY, seed=0), Judged(sets, checks), config, progress=QuietProgress())
    kept = Checkpointing(tmp_path / "c.safetensors", {})
    with pytest.raises(Killed):
        fit(build(TINY, seed=0), Judged(sets, checks), config, progress=KilledAt(3 * STEPS + 1), checkpointing=kept)
    model, history = fit(
        build(TINY, seed=5), Judged(sets, checks[3:]), config, progress=QuietProgress(), checkpointing=kept
    )
    assert [epoch.validation_loss for epoch in history] == checks
    assert same(model.state_dict(), calm.state_dict())


def test_each_epoch_is_told_once_with_the_history_so_far(sets):
    told = []
    train(SHORT, *sets, progress=QuietProgress(), on_epoch=lambda history: told.append(len(history)))
    assert told == [1, 2, 3]


def test_progress_names_the_epoch_and_from_the_second_on_the_time_left(sets):
    progress = KilledAt(100)
    train(SHORT, *sets, progress=progress)
    assert [name.split(",")[0] for name in progress.names] == [f"epoch {i} of 3" for i in (1, 2, 3)]
    assert ["left in all" in name for name in progress.names] == [False, True, True]


def test_reading_ahead_gives_every_step_once_in_order(sets):
    objective = SupervisedObjective(SHORT, *sets)
    direct = [objective.read(2, step) for step in range(STEPS)]
    ahead = list(fitting._prefetched_batches(objective, 2, 1, pin=False))
    assert len(ahead) == STEPS - 1
    for found, wanted in zip(ahead, direct[1:], strict=True):
        assert torch.equal(found.patterns, wanted.patterns)
        assert torch.equal(found.relation, wanted.relation)
    experiments = [batch.patterns.float().sum().item() for batch in direct]
    assert sorted(experiments) == sorted(sets[0].load(i)[0].float().sum().item() for i in range(STEPS))
    again = [objective.read(3, step).patterns.float().sum().item() for step in range(STEPS)]
    assert sorted(again) == sorted(experiments)


def test_random_numbers_of_every_step_and_of_every_order_are_their_own():
    drawn = {
        float(fitting.random_numbers(seed, epoch, step).random())
        for seed, epoch, step in itertools.product(range(3), range(4), range(-1, 5))
    }
    assert len(drawn) == 3 * 4 * 6


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="torch finds no CUDA GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == choose_device("cuda").type == "cuda"
    assert choose_device("cpu").type == "cpu"


def test_the_learning_rate_rises_and_falls_without_ever_reaching_zero():
    shares = [fitting._schedule(done / 1000) for done in range(1001)]
    top = shares.index(max(shares))
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert (shares[0], max(shares), shares[-1]) == (0.1, 1.0, pytest.approx(0.01))
    assert fitting._schedule(7.0) == pytest.approx(0.01)


def test_the_best_epoch_is_the_first_of_the_lowest_loss():
    def history(*values):
        return [Epoch(i + 1, 1.0, 1.0, 0.0, 0.0, 0.0, value, 0.0, 0.0, 0.0) for i, value in enumerate(values)]

    assert best_epoch(history(2.0, 1.0, 1.0)).epoch == 2
    assert best_epoch(history(math.nan, 1.0)).epoch == 2
    assert best_epoch(history(math.nan, math.nan)).epoch == 1
