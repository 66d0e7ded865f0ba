import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.encoder import learning, weights
from laue_dask.encoder.architecture import Architecture
from laue_dask.encoder.finetuning import LEAST_GROUP, UNLIKE, Groups, Unlabelled, _jittered, _perturbed, find_groups
from laue_dask.encoder.fitting import fit
from laue_dask.encoder.losses import weighted
from laue_dask.encoder.network import build
from laue_dask.encoder.training import scaled
from laue_dask.encoder.training_config import FineTuningConfig
from laue_dask.errors import InputError, StoreError
from laue_dask.io.scan_store import ScanStore
from laue_dask.progress import QuietProgress

TINY = Architecture(name="tiny", channels=(4, 8, 8, 8, 8), latent=16, dropout=0.0, batch_norm=True, smoothing=1.0)
SHAPE = (12, 10)
CONFIG = FineTuningConfig(epochs=2, patterns_per_batch=16, learning_rate=1e-3, mixed_precision=False)


@pytest.fixture(scope="module")
def two_grains():
    """Reduced patterns of two grains side by side, each bent: its spots move by a third of a pixel per point."""
    rng = np.random.default_rng(0)
    spots = rng.uniform(10, 110, size=(2, 20, 2))
    domain = np.repeat([[0] * 5 + [1] * 5], SHAPE[0], axis=0)
    axis = np.arange(128)
    patterns = np.zeros((domain.size, 128, 128))
    for i, (row, column) in enumerate(np.ndindex(*SHAPE)):
        place = (spots[domain[row, column]] + row / 3)[:, :, None]
        down, across = np.moveaxis(np.exp(-0.5 * ((axis - place) / 0.8) ** 2), 1, 0)
        patterns[i] = np.einsum("sy,sx->yx", down, across) + 0.02 * rng.random((128, 128))
    reduced = zarr.create_array({}, shape=patterns.shape, chunks=(32, 128, 128), dtype="u1")
    reduced[:] = (255 * patterns.clip(0, 1)).astype(np.uint8)
    return reduced, domain


@torch.no_grad()
def centred(reduced, seed=0):
    """Random weights, which give all patterns nearly the same features, less those features."""
    model = build(TINY, seed=seed).eval()
    model.encoder[-1].bias -= model.encode(scaled(torch.from_numpy(reduced[:]))).mean(dim=0)
    return model


def objective(two_grains, config=CONFIG, model=None):
    reduced, domain = two_grains
    return Unlabelled(config, model or centred(reduced), reduced, np.ones(domain.size, bool), SHAPE)


def blobs(seed, groups, each, dim=8):
    """Unit features of groups whose centres are orthogonal."""
    rng = np.random.default_rng(seed)
    features = np.repeat(np.eye(dim)[:groups], each, axis=0) + 0.01 * rng.normal(size=(groups * each, dim))
    return features.astype(np.float32), np.repeat(np.arange(groups), each)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), groups=st.integers(2, 6), each=st.integers(LEAST_GROUP + 5, 40))
def test_groups_that_stand_apart_are_found_and_are_unlike(seed, groups, each):
    features, truth = blobs(seed, groups, each)
    found = find_groups(features)
    kept = found.group >= 0
    assert kept.mean() > 0.8
    for group in np.unique(found.group[kept]):
        assert len(np.unique(truth[found.group == group])) == 1
    together, apart = found.pairs(np.arange(len(truth)))
    same = truth[:, None] == truth
    assert not (together & ~same).any()
    assert not (apart & same).any()
    assert (apart == apart.T).all()
    assert (apart | same)[kept][:, kept].all()


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), cosine=st.floats(UNLIKE + 0.05, 0.95))
def test_alike_groups_and_patterns_of_no_group_are_not_pushed_apart(seed, cosine):
    features, truth = blobs(seed, 3, 30)
    features[truth == 1] = cosine * features[truth == 0] + np.sqrt(1 - cosine**2) * features[truth == 1]
    found = find_groups(features)
    apart = found.pairs(np.arange(len(truth)))[1]
    assert not apart[truth == 0][:, truth == 1].any()
    assert not apart[found.group < 0].any()
    assert apart[truth == 0][:, truth == 2].mean() > 0.6


def test_pairs_of_a_batch_are_those_of_its_places():
    found = Groups(np.array([0, 0, 1, -1]), np.array([[False, True], [True, False]]))
    together, apart = found.pairs(np.array([3, 0, 2, 1, 3]))
    np.testing.assert_array_equal(
        together,
        [[1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1]],
    )
    np.testing.assert_array_equal(
        apart,
        [[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]],
    )


def test_a_batch_holds_every_pattern_twice_and_an_epoch_every_usable_pattern(two_grains):
    reduced, domain = two_grains
    valid = np.ones(domain.size, bool)
    valid[::7] = False
    made = Unlabelled(CONFIG, centred(reduced), reduced, valid, SHAPE)
    shown = set()
    for step in range(made.n_steps):
        batch = made.read(1, step)
        assert batch.patterns.shape == (2 * CONFIG.patterns_per_batch, 128, 128)
        first, second = batch.relation.reshape(2, -1).tolist()
        assert first == second
        shown |= set(first)
        for place, pattern in zip(batch.relation.tolist(), batch.patterns, strict=True):
            np.testing.assert_array_equal(pattern.numpy(), reduced[np.flatnonzero(valid)[place]])
    assert shown == set(range(int(valid.sum())))


def test_only_the_last_layer_of_the_encoder_and_the_decoder_learn(two_grains):
    model = centred(two_grains[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = objective(two_grains, model=model)
    made.begin(model.eval())
    model.train()
    terms = made.losses(model, made.read(1, 0), np.random.default_rng(0))
    weighted(terms, CONFIG.weights).backward()
    assert set(terms) == {"contrastive", "anchor", "bce", "mse"}
    learning_now = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    last = f"encoder.{len(model.encoder) - 1}."
    assert {name for name in learning_now if name.startswith("encoder.")} == {f"{last}weight", f"{last}bias"}
    assert any(name.startswith("decoder.") for name in learning_now)
    # batch-norm statistics are among them
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_the_scan_says_nothing_about_keeps_its_similarity(two_grains):
    made = objective(two_grains)
    ungrouped = Groups(np.full_like(made._start.group, -1), np.zeros((0, 0), bool))
    places = torch.arange(20)
    latent = made._before[:20]
    assert float(made._relations(latent, places, ungrouped)["anchor"]) == pytest.approx(0, abs=1e-10)
    turned = torch.randn(20, latent.shape[1], generator=torch.Generator().manual_seed(0))
    assert float(made._relations(turned, places, ungrouped)["anchor"]) > 0.01
    whole = made._relations(latent, places, made._start)["contrastive"]
    assert torch.isfinite(whole)


def test_fine_tuning_lowers_the_contrastive_loss_of_the_groups_it_began_with(two_grains):
    config = CONFIG.model_copy(update={"reconstruction_weight": 0.0, "learning_rate": 1e-4})
    model = centred(two_grains[0])
    made = objective(two_grains, config, model)
    before = made.check(model).loss
    model, history = fit(model, made, config, progress=QuietProgress())
    assert made.check(model).loss < before
    assert min(epoch.validation_loss for epoch in history) < before


def test_a_scan_of_one_grain_is_nothing_to_learn_from(two_grains):
    reduced, domain = two_grains
    with pytest.raises(InputError, match="nothing to learn from"):
        Unlabelled(CONFIG, centred(reduced), reduced, domain.ravel() == 0, SHAPE)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_views_stay_patterns_and_spots_move_by_a_pixel_at_most(seed):
    torch.manual_seed(seed)
    patterns = torch.zeros(4, 1, 128, 128)
    patterns[:, 0, 40:43, 60:63] = 0.8
    moved = _jittered(patterns)
    axis = torch.arange(128.0)
    for dim in (1, 2):
        centre = (moved[:, 0].sum(dim=dim) * axis).sum(dim=1) / moved[:, 0].sum(dim=(1, 2))
        assert (centre - (61.0 if dim == 1 else 41.0)).abs().max() <= 1.01
    assert moved.sum(dim=(1, 2, 3)) == pytest.approx(patterns.sum(dim=(1, 2, 3)), rel=1e-3)
    seen = _perturbed(patterns.repeat(8, 1, 1, 1))
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert seen.shape == (32, 1, 128, 128)
    faint = seen.clone()
    faint[:, :, 40:43, 60:63] = 0
    assert faint.max() <= 0.2 * 1.35 + 1e-6
    assert (faint > 0).float().mean() < 0.01


@pytest.fixture(scope="module")
def begun(small_run):
    store = ScanStore.open(small_run / "scan.zarr")
    return centred(store.reduced(weights.Recipe().digest()), seed=4)


@pytest.fixture(scope="module")
def start(tmp_path_factory, begun):
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    card = weights.Card(architecture=TINY, recipe=weights.Recipe(), training={"epochs": 7}, seeds={"weights": [4]})
    weights.save(begun, path, card)
    return path


@pytest.fixture
def quick_config(tmp_path):
    path = tmp_path / "quick.yaml"
    path.write_text("epochs: 1\npatterns_per_batch: 8\n")
    return path


def test_weights_are_fine_tuned_on_a_scan_and_their_card_says_so(small_run, begun, start, quick_config, tmp_path):
    out = tmp_path / "mine.safetensors"
    options = {"minutes": None, "progress": QuietProgress()}
    card = learning.fine_tune(small_run / "scan.zarr", str(start), out, quick_config, **options)
    model, read = weights.load(str(out), recipe=weights.Recipe())
    assert read == card
    assert (card.training["from"], card.training["before"]) == (start.name, {"epochs": 7})
    assert card.training["patterns"] == 72
    assert card.seeds == {"weights": [4], "fine_tuning": [0]}
    assert card.data
    assert 0 < card.reference["error_q50"] <= card.reference["error_q99"]
    last = f"encoder.{len(model.encoder) - 1}.weight"
    for name, value in model.state_dict().items():
        if name == last:
            assert not torch.equal(value, begun.state_dict()[name])
        elif name.startswith("encoder.") and name != f"encoder.{len(model.encoder) - 1}.bias":
            assert torch.equal(value, begun.state_dict()[name]), name
    assert len(learning.history_path(out).read_text().splitlines()) == 2
    assert learning.losses_path(out).exists()
    assert not learning.checkpoint_path(out).exists()


def test_what_cannot_be_fine_tuned_on_is_refused(small_run, start, quick_config, tmp_path):
    options = {"minutes": None, "progress": QuietProgress()}
    with pytest.raises(StoreError, match="no such scan store"):
        learning.fine_tune(tmp_path / "none.zarr", str(start), tmp_path / "o.safetensors", quick_config, **options)
    with pytest.raises(StoreError, match="no such weights file"):
        learning.fine_tune(small_run / "scan.zarr", "none", tmp_path / "o.safetensors", quick_config, **options)
    bad = tmp_path / "bad.yaml"
    bad.write_text("architecture: paper\n")
    with pytest.raises(InputError, match=r"unknown key 'architecture': configs/finetune\.yaml"):
        learning.fine_tune(small_run / "scan.zarr", str(start), tmp_path / "o.safetensors", bad, **options)
    same = tmp_path / "same.safetensors"
    weights.save(build(TINY, seed=4), same, weights.Card(architecture=TINY, recipe=weights.Recipe()))
    with pytest.raises(InputError, match="nothing to learn from"):
        learning.fine_tune(small_run / "scan.zarr", str(same), tmp_path / "o.safetensors", quick_config, **options)
    assert not list(tmp_path.glob("o.*"))


def test_command_fine_tunes_on_a_scan_and_names_what_it_wrote(command, small_run, start, quick_config, tmp_path):
    out = tmp_path / "mine.safetensors"
    asked = ("train", "--from", start, "--scan", small_run / "scan.zarr", "--config", quick_config, "--out", out)
    done = command(*asked)
    assert done.code == 0, done.err
    assert "scan_neighbour" in done.out
    assert f"weights: {out}" in done.out
    assert weights.load(str(out))[1].training["from"] == start.name
    again = command(*asked)
    assert again.code == 2
    assert again.complaints == [f"laue-dask: {out}: exists already: choose another path or remove it"]
