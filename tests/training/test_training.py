import csv
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from laue_dask.config import Recipe
from laue_dask.errors import ConfigError, InputError, StoreError
from laue_dask.features import weights
from laue_dask.features.architecture import Architecture
from laue_dask.features.losses import contrastive_loss
from laue_dask.features.network import build
from laue_dask.pipeline import learning
from laue_dask.runtime.progress import QuietProgress
from laue_dask.training.checkpoint import Epoch
from laue_dask.training.training import TrainingSet, plateau, train, validate, write_history
from laue_dask.training.training import _augment as augment
from laue_dask.training.training_config import TrainingConfig

REPOSITORY = Path(__file__).parent.parent.parent
PATTERNS = 16
VIEWS = 4
TINY = Architecture(name="tiny", channels=(4, 8, 8, 8, 8), latent=16, dropout=0.0, batch_norm=True, smoothing=1.0)
SHORT = TrainingConfig(architecture=TINY, epochs=3, experiments_per_batch=1, max_shift=4, learning_rate=5e-3)


@pytest.fixture(scope="module")
def trained(sets, tmp_path_factory):
    history = tmp_path_factory.mktemp("history") / "history.csv"
    model, epochs = train(SHORT, *sets, progress=QuietProgress())
    write_history(epochs, history)
    return model, epochs, history


def double_loop(latent, configuration, temperature):
    """Equation 2 of Khosla et al. (2020), term by term."""
    n, terms = len(latent), []
    for i in range(n):
        partners = [j for j in range(n) if j != i and configuration[j] == configuration[i]]
        if partners:
            others = sum(math.exp(latent[i] @ latent[j] / temperature) for j in range(n) if j != i)
            shares = [math.exp(latent[i] @ latent[j] / temperature) / others for j in partners]
            terms.append(-sum(math.log(share) for share in shares) / len(partners))
    return sum(terms) / len(terms)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    configuration=st.lists(st.integers(0, 4), min_size=2, max_size=14).filter(lambda c: len(set(c)) < len(c)),
    temperature=st.floats(0.05, 2),
)
def test_the_contrastive_loss_is_the_double_loop_of_its_equation(seed, configuration, temperature):
    latent = np.random.default_rng(seed).normal(size=(len(configuration), 5))
    latent /= np.linalg.norm(latent, axis=1, keepdims=True)
    found = contrastive_loss(torch.from_numpy(latent), torch.tensor(configuration), temperature=temperature)
    assert float(found) == pytest.approx(double_loop(latent, configuration, temperature), rel=1e-9)


def test_the_contrastive_loss_is_least_where_views_coincide_and_configurations_are_opposed():
    configuration = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    together = torch.tensor([[1.0, 0.0]] * 4)
    assert contrastive_loss(apart, configuration, temperature=0.1) < 1e-6
    assert float(contrastive_loss(together, configuration, temperature=0.1)) == pytest.approx(math.log(3))


def test_the_contrastive_loss_of_views_without_partner_is_zero():
    latent = torch.eye(3, requires_grad=True)
    loss = contrastive_loss(latent, torch.arange(3), temperature=0.1)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.isfinite(latent.grad).all()


def test_a_training_set_over_several_stores_reads_their_patterns_in_order(stores):
    found = TrainingSet(*stores)
    assert len(found) == 12
    assert found.n_patterns == 12 * PATTERNS
    assert [a["seed"] for a in found.attributes] == [1, 2, 3]
    for number in range(12):
        store, experiment = divmod(number, 4)
        place = slice(experiment * PATTERNS, (experiment + 1) * PATTERNS)
        root = zarr.open_group(str(stores[store]), mode="r")
        patterns, configuration = found.read(number)
        assert patterns.shape == (PATTERNS, 1, 128, 128)
        assert patterns.dtype == torch.float32
        np.testing.assert_array_equal(patterns[:, 0].numpy(), root["patterns"][place].astype(np.float32) / 255)
        np.testing.assert_array_equal(configuration.numpy(), root["configuration"][place])


@pytest.fixture(params=["missing", "empty", "file", "array", "other"])
def no_store(request, tmp_path):
    path = tmp_path / request.param
    if request.param == "empty":
        path.mkdir()
    elif request.param == "file":
        path.write_text("not a store")
    elif request.param == "array":
        zarr.create_array(str(path), shape=(3,), dtype="i4")
    elif request.param == "other":
        zarr.open_group(str(path), mode="w", zarr_format=3).create_array("frames", shape=(3,), dtype="i4")
    return path


def test_what_is_not_a_training_store_is_refused(no_store, stores):
    with pytest.raises(InputError, match=f"{no_store.name}: this is not a training store") as caught:
        TrainingSet(stores[0], no_store)
    assert "\n" not in str(caught.value)


def test_a_training_store_without_patterns_is_refused(tmp_path, write_store):
    with pytest.raises(InputError, match="no patterns"):
        TrainingSet(write_store(tmp_path / "none.zarr", seed=0, experiments=0))


def test_training_lowers_the_loss_and_leaves_the_untrained_network_behind(trained, sets):
    model, epochs, _ = trained
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
    assert epochs[-1].loss < epochs[0].loss
    assert epochs[-1].train_bce < epochs[0].train_bce
    assert epochs[-1].validation_bce < validate(build(TINY, seed=0).eval(), sets[1], SHORT).bce
    assert not model.training


def test_the_history_holds_every_epoch_in_finite_numbers(trained):
    _, epochs, path = trained
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(Epoch.__dataclass_fields__)
    assert [int(row["epoch"]) for row in rows] == [epoch.epoch for epoch in epochs]
    for row, epoch in zip(rows, epochs, strict=True):
        for name, text in row.items():
            assert math.isfinite(float(text))
            assert float(text) == getattr(epoch, name)


def quickly(architecture, sets, *, seed=0, **values):
    config = SHORT.model_copy(update={"architecture": architecture, "epochs": 1, "seed": seed, **values})
    return train(config, *sets, progress=QuietProgress())[0].state_dict()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_depends_on_its_seed_alone(sets, dropout):
    architecture = TINY.model_copy(update={"dropout": dropout})
    torch.manual_seed(1)
    one = quickly(architecture, sets)
    torch.manual_seed(2)
    same, other = quickly(architecture, sets), quickly(architecture, sets, seed=1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("0.weight"))


def test_training_leaves_torch_s_random_numbers_alone(sets):
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    quickly(TINY.model_copy(update={"dropout": 0.3}), sets)
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize("values", [{"contrastive_weight": 0.0}, {"reconstruction_weight": 0.0}])
def test_either_loss_trains_alone(sets, values):
    before = build(TINY, seed=0).state_dict()
    after = quickly(TINY, sets, **values)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert not torch.equal(before["encoder.0.weight"], after["encoder.0.weight"])
    if values == {"reconstruction_weight": 0.0}:
        assert torch.equal(before["decoder.0.weight"], after["decoder.0.weight"])


def test_a_training_goes_on_from_given_weights(trained, sets):
    start = build(TINY, seed=0)
    start.load_state_dict(trained[0].state_dict())
    config = SHORT.model_copy(update={"epochs": 1, "learning_rate": 1e-4})
    _, [epoch] = train(config, *sets, progress=QuietProgress(), start=start)
    assert epoch.loss < trained[1][0].loss


def test_a_training_without_time_stops_after_one_batch(sets):
    _, [epoch] = train(SHORT, *sets, progress=QuietProgress(), minutes=1e-9)
    assert round(epoch.seconds * epoch.patterns_per_second) == PATTERNS


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), shift=st.integers(0, 64))
def test_augmentation_moves_a_whole_experiment_alike(seed, shift):
    patterns = torch.zeros(3, 1, 128, 128)
    patterns[:, 0, 20, 50] = 0.5
    patterns[:, 0, 90, 10] = 0.25
    moved = augment(patterns, shift, np.random.default_rng(seed))
    places = [torch.nonzero(pattern).tolist() for pattern in moved[:, 0]]
    assert len(places[0]) == 2
    assert places[0] == places[1] == places[2]
    (r, c), (s, d) = places[0]
    assert sorted(((r - s) % 128, (d - c) % 128)) in (sorted(p) for p in [(58, 88), (70, 88), (58, 40), (70, 40)])
    np.testing.assert_allclose(sorted(moved[0].unique()[1:] / moved[0].max()), [0.5, 1], rtol=1e-5)


def test_the_neighbour_score_is_1_for_perfect_views_and_lower_where_they_are_swapped(tmp_path, write_store):
    model = build(TINY, seed=0).eval()
    root = zarr.open_group(str(write_store(tmp_path / "same.zarr", seed=9)), mode="r+")
    patterns = root["patterns"][...]
    root["patterns"][...] = np.repeat(patterns[::VIEWS], VIEWS, axis=0)
    assert validate(model, TrainingSet(tmp_path / "same.zarr"), SHORT).neighbour == 1
    root["patterns"][...] = np.roll(np.repeat(patterns[::VIEWS], VIEWS, axis=0), 1, axis=0)
    assert validate(model, TrainingSet(tmp_path / "same.zarr"), SHORT).neighbour < 1


def test_the_plateau_is_the_entropy_of_the_mean_and_no_reconstruction_beats_the_perfect_one(trained, sets):
    model, epochs, _ = trained
    constant, perfect, mse = plateau(model, sets[1])
    with torch.inference_mode():
        smoothed = torch.cat([model.smooth(sets[1].read(i)[0]) for i in range(4)]).double().numpy()
    mean = smoothed.mean()
    assert constant == pytest.approx(-(mean * np.log(mean) + (1 - mean) * np.log(1 - mean)), rel=1e-4)
    inside = smoothed[(smoothed > 0) & (smoothed < 1)]
    entropy = -(inside * np.log(inside) + (1 - inside) * np.log(1 - inside)).sum() / smoothed.size
    assert perfect == pytest.approx(entropy, rel=1e-3)
    assert mse == pytest.approx(smoothed.var(), rel=1e-5)
    assert perfect < constant
    assert perfect < epochs[-1].validation_bce


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "resnet"}, "'resnet' is not one of paper, contrastive"),
        ({"contrastive_weight": 0, "reconstruction_weight": 0}, "nothing would be learnt"),
        ({"architecture": {"channels": [4] * 8}}, "8 poolings leave nothing"),
        ({"epochs": 0}, "epochs"),
        ({"momentum": 0.9}, "momentum"),
    ],
)
def test_an_impossible_training_is_refused(values, message, tmp_path):
    with pytest.raises(ValidationError, match=message):
        TrainingConfig.model_validate(values)
    path = tmp_path / "training.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as caught:
        learning.read_config(path, TrainingConfig)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epochs: [", "not valid YAML"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"- 3", "training.yaml: "),
        (b"0", "training.yaml: "),
    ],
)
def test_a_training_file_that_cannot_be_read_is_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "training.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        learning.read_config(path, TrainingConfig)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"absent\.yaml: configuration cannot be read"):
        learning.read_config(tmp_path / "absent.yaml", TrainingConfig)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "training.yaml"
    path.write_text(yaml.safe_dump(SHORT.model_copy(update={"epochs": 1}).model_dump(mode="json")))
    return path


def learn(stores, validation, out, config_file, **options):
    options = {"minutes": None, "start": None, **options}
    return learning.train(stores, validation, out, config_file, progress=QuietProgress(), **options)


def test_a_whole_training_writes_weights_with_their_card_and_the_history(stores, tmp_path, config_file):
    out = tmp_path / "new" / "mine.safetensors"
    card = learn(stores[:2], stores[2], out, config_file)
    model, read = weights.load(str(out), recipe=Recipe())
    assert read == card
    assert model.architecture == TINY
    assert card.training["patterns"] == 8 * PATTERNS
    assert card.training["patterns_seen"] == 8 * PATTERNS
    assert [store["seed"] for store in card.training["stores"]] == [1, 2]
    assert card.seeds == {"weights": [0], "training": [1, 2], "validation": [3]}
    assert card.data == TrainingSet(*stores[:2]).digest()
    quantiles = [card.reference[f"error_q{q}"] for q in (50, 95, 99)]
    assert 0 < quantiles[0] < quantiles[1] < quantiles[2]
    assert len(learning.history_path(out).read_text().splitlines()) == 2
    for figure in (learning.losses_path(out), learning.encodings_path(out)):
        assert figure.read_bytes().startswith(b"\x89PNG")
    further = learn(stores[:1], stores[2], tmp_path / "further.safetensors", config_file, start=str(out))
    assert further.training["from"] == out.name
    assert str(tmp_path) not in further.model_dump_json()  # weights travel; where they were made does not matter


def test_validation_on_the_training_s_own_experiments_is_refused(stores, tmp_path, config_file):
    with pytest.raises(InputError, match="validation needs other experiments"):
        learn(stores[:2], stores[1], tmp_path / "w.safetensors", config_file)


def test_stores_of_different_recipes_are_refused(stores, tmp_path, config_file, write_store):
    other = write_store(tmp_path / "other.zarr", seed=8, experiments=1, recipe=Recipe(clip_sigma=5))
    with pytest.raises(InputError, match=rf"other\.zarr: reduced by recipe {Recipe(clip_sigma=5).digest()}"):
        learn(stores[:1], other, tmp_path / "w.safetensors", config_file)


def test_a_whole_training_that_was_killed_goes_on_and_leaves_no_checkpoint(stores, tmp_path, config_file, monkeypatch):
    calm, killed = tmp_path / "calm.safetensors", tmp_path / "killed.safetensors"
    wanted = learn(stores[:1], stores[2], calm, config_file)

    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(learning, "_encodings", fail)
        with pytest.raises(KeyboardInterrupt):
            learn(stores[:1], stores[2], killed, config_file)
    assert learning.checkpoint_path(killed).exists()
    assert not killed.exists()
    with pytest.raises(StoreError, match="checkpoint of another training"):
        learn(stores[:2], stores[2], killed, config_file)
    card = learn(stores[:1], stores[2], killed, config_file)
    assert card.metrics == wanted.metrics
    ours, theirs = (weights.load(str(path))[0].state_dict() for path in (killed, calm))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not learning.checkpoint_path(killed).exists()


def test_weights_that_exist_are_not_overwritten(stores, tmp_path, config_file):
    out = tmp_path / "mine.safetensors"
    out.write_text("hours of work")
    with pytest.raises(InputError, match=r"mine\.safetensors: exists already"):
        learn(stores[:1], stores[2], out, config_file)
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        learn(stores[:1], stores[2], tmp_path / "mine.pt", config_file)
    assert out.read_text() == "hours of work"


def test_the_digest_of_a_training_set_follows_its_content_and_nothing_else(stores, tmp_path):
    wanted = TrainingSet(stores[0]).digest()
    moved = shutil.copytree(stores[0], tmp_path / "elsewhere.zarr")
    assert TrainingSet(moved).digest() == wanted
    assert len({wanted, TrainingSet(stores[1]).digest(), TrainingSet(*stores[:2]).digest()}) == 3
    root = zarr.open_group(str(moved), mode="r+")
    root["patterns"][5, 64, 64] ^= 1
    assert TrainingSet(moved).digest() != wanted
    root["patterns"][5, 64, 64] ^= 1
    assert TrainingSet(moved).digest() == wanted
    root.attrs["seed"] = 77
    assert TrainingSet(moved).digest() != wanted


def test_a_damaged_experiment_is_named(stores, tmp_path):
    broken = shutil.copytree(stores[0], tmp_path / "broken.zarr")
    chunk = broken / "patterns" / "c" / "1" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    found = TrainingSet(broken)
    found.load(0)
    with pytest.raises(StoreError, match=r"broken\.zarr.*patterns 16 to 32 are damaged") as caught:
        found.load(1)
    assert "\n" not in str(caught.value)


def test_the_configuration_beside_the_program_is_the_whole_of_it():
    path = REPOSITORY / "configs" / "train.yaml"
    assert set(yaml.safe_load(path.read_text())) == set(TrainingConfig.model_fields)
    learning.read_config(path, TrainingConfig)
