import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.config import ScanConfig
from laue_dask.errors import InputError, StoreError
from laue_dask.features import weights
from laue_dask.features.architecture import Architecture
from laue_dask.features.losses import weighted
from laue_dask.features.network import build
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import learning
from laue_dask.pipeline.stages.ingest import ingest
from laue_dask.runtime.progress import QuietProgress
from laue_dask.simulate.detector import DETECTORS
from laue_dask.simulate.scan import write_scan
from laue_dask.simulate.specimens import specimen
from laue_dask.training import finetuning
from laue_dask.training.finetuning import FINETUNED_SKETCH_LENGTH, UnlabelledObjective, _jittered, _perturbed
from laue_dask.training.fitting import Checkpointing, fit
from laue_dask.training.relations import Relations
from laue_dask.training.training import as_network_input
from laue_dask.training.training_config import FineTuningConfig

TINY = Architecture(name="tiny", channels=(4, 8, 8, 8, 8), latent=16, dropout=0.0, batch_norm=True, smoothing=1.0)
SKETCHED = TINY.model_copy(
    update={"name": "sketched", "latent": 24, "sketch": 4, "sketch_power": 3, "unit_latent": True}
)
SHAPE = (12, 10)
CONFIG = FineTuningConfig(epochs=2, patterns_per_batch=16, mixed_precision=False)


def grains(domain, spots, *, bend):
    """Reduced patterns of a map of grains whose spots move by `bend` pixels from row to row."""
    rng, axis = np.random.default_rng(0), np.arange(128)
    patterns = np.zeros((domain.size, 128, 128))
    for i, (row, column) in enumerate(np.ndindex(*domain.shape)):
        place = (spots[domain[row, column]] + row * bend)[:, :, None]
        down, across = np.moveaxis(np.exp(-0.5 * ((axis - place) / 0.8) ** 2), 1, 0)
        patterns[i] = np.einsum("sy,sx->yx", down, across) + 0.02 * rng.random((128, 128))
    reduced = zarr.create_array({}, shape=patterns.shape, chunks=(32, 128, 128), dtype="u1")
    reduced[:] = (255 * patterns.clip(0, 1)).astype(np.uint8)
    return reduced, domain


SPOTS = np.random.default_rng(0).uniform(10, 110, size=(2, 20, 2))
HALVES = np.repeat([[0] * 5 + [1] * 5], SHAPE[0], axis=0)


@pytest.fixture(scope="module")
def two_grains():
    """Two grains side by side, each bent."""
    return grains(HALVES, SPOTS, bend=1 / 3)


@torch.no_grad()
def centred(reduced, seed=0, architecture=TINY, share=1.0):
    """Random weights, which give all patterns nearly the same features, less those features or a share of them."""
    model = build(architecture, seed=seed).eval()
    common = model.encoder(model.smooth(as_network_input(torch.from_numpy(reduced[:])))).flatten(1).mean(dim=0)
    model.encoder[-1].bias -= share * common
    return model


def objective(two_grains, config=CONFIG, model=None):
    reduced, domain = two_grains
    return UnlabelledObjective(config, model or centred(reduced), reduced, np.ones(domain.size, bool), SHAPE)


def test_a_batch_holds_every_pattern_twice_and_an_epoch_all_that_lie_inside_grains(two_grains):
    reduced, domain = two_grains
    valid = np.ones(domain.shape, bool)
    valid[::5, 1:3] = False
    inside = valid.copy()
    inside[:, 4:6] = False  # on either side of the boundary
    valid = valid.ravel()
    made = UnlabelledObjective(CONFIG, centred(reduced), reduced, valid, SHAPE)
    shown = set()
    for step in range(made.n_steps):
        batch = made.read(1, step)
        assert batch.patterns.shape == (2 * CONFIG.patterns_per_batch, 128, 128)
        first, second = batch.relation.reshape(2, -1).tolist()
        assert first == second
        shown |= set(first)
        for place, pattern in zip(batch.relation.tolist(), batch.patterns, strict=True):
            np.testing.assert_array_equal(pattern.numpy(), reduced[np.flatnonzero(inside)[place]])
    assert shown == set(range(int(inside.sum())))
    assert made.used == len(shown)


def test_every_layer_learns_and_no_statistics_of_the_normalisation(two_grains):
    model = centred(two_grains[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = objective(two_grains, model=model)
    model.train()
    terms = made.losses(model, made.read(1, 0), np.random.default_rng(0))
    weighted(terms, CONFIG.weights).backward()
    assert set(terms) == {"contrastive", "anchor", "bce", "mse"}
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert value.grad.any(), name
    # batch-norm statistics are among them
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_may_be_the_same_crystal_keeps_its_similarity(two_grains):
    made = objective(two_grains)
    made._relations = Relations(made._relations.grain, np.zeros_like(made._relations.apart))
    first, second = (np.flatnonzero(made._relations.grain == grain)[:10] for grain in (0, 1))
    places = torch.from_numpy(np.concatenate([first, second]))
    latent = made._before[places]
    assert float(made._related(latent, places)["anchor"]) == pytest.approx(0, abs=1e-10)
    turned = torch.randn(20, latent.shape[1], generator=torch.Generator().manual_seed(0))
    assert float(made._related(turned, places)["anchor"]) > 0.01


def similarity(model, reduced, first, second):
    """Mean cosine of the learned features of two sets of patterns."""
    with torch.no_grad():
        features = model.encode(as_network_input(torch.from_numpy(reduced[:])))[:, : model.architecture.learned]
    unit = torch.nn.functional.normalize(features, dim=1)
    return float((unit[first.ravel()] @ unit[second.ravel()].T).mean())


@pytest.fixture(scope="module")
def twins():
    """Two bent grains whose spots lie 6 pixels apart, across the way that bending moves them."""
    return grains(HALVES, np.stack([SPOTS[0], SPOTS[0] + [4.0, -4.0]]), bend=1 / 3)


LONGER = CONFIG.model_copy(update={"epochs": 4, "patterns_per_batch": 32, "learning_rate": 3e-3})


def test_the_ends_of_a_bent_grain_are_drawn_together(twins):
    reduced, domain = twins
    model = centred(reduced)
    row = np.indices(SHAPE)[0]
    ends = (domain == 0) & (row < 3), (domain == 0) & (row > 8)
    before = similarity(model, reduced, *ends)
    tuned, _ = fit(model, objective(twins, LONGER, model), LONGER, progress=QuietProgress())
    assert before < 0.3
    assert similarity(tuned, reduced, *ends) > 0.9


def test_twins_that_touch_are_pushed_apart_however_alike(twins):
    reduced, domain = twins
    model = centred(reduced, share=0.8)
    both = domain == 0, domain == 1
    before = similarity(model, reduced, *both)
    tuned, _ = fit(model, objective(twins, LONGER, model), LONGER, progress=QuietProgress())
    assert before > 0.9
    assert similarity(tuned, reduced, *both) < 0.5


def test_a_fine_tuning_that_was_killed_ends_with_the_bits_of_one_that_was_not(two_grains, tmp_path):
    def tuned(checkpointing=None, on_epoch=None):
        model = centred(two_grains[0], architecture=SKETCHED)
        made = objective(two_grains, model=model)
        options = {"progress": QuietProgress(), "checkpointing": checkpointing, "on_epoch": on_epoch}
        return fit(model, made, CONFIG, **options)[0]

    def killed(history):
        raise KeyboardInterrupt

    kept = Checkpointing(tmp_path / "kept.safetensors", {"scan": "two grains"})
    with pytest.raises(KeyboardInterrupt):
        tuned(kept, killed)
    whole, resumed = tuned(), tuned(kept)
    assert resumed.architecture == whole.architecture
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_sketches_are_shortened_once_the_relations_are_found(two_grains):
    model = centred(two_grains[0], architecture=SKETCHED)
    patterns = as_network_input(torch.from_numpy(two_grains[0][:8]))
    with torch.no_grad():
        before = model.encode(patterns)
        objective(two_grains, model=model)
        after = model.encode(patterns)
    assert model.architecture.sketch_length == FINETUNED_SKETCH_LENGTH
    assert torch.equal(before[:, :16], after[:, :16])
    torch.testing.assert_close(before[:, 16:] * FINETUNED_SKETCH_LENGTH / SKETCHED.sketch_length, after[:, 16:])
    model.shorten_sketches(1.0)
    assert model.architecture.sketch_length == FINETUNED_SKETCH_LENGTH


def test_of_a_large_scan_some_patterns_are_learnt_from_and_all_are_neighbours(two_grains, monkeypatch):
    whole = objective(two_grains)
    monkeypatch.setattr(finetuning, "MAX_PATTERNS", 50)
    some = objective(two_grains)
    assert (whole.used, some.used) == (96, 48)
    np.testing.assert_array_equal(some._relations.grain, whole._relations.grain[::2])
    np.testing.assert_array_equal(some._patterns, whole._patterns[::2])
    assert torch.equal(some._before, whole._before[::2])


def test_a_scan_of_one_grain_is_nothing_to_learn_from(two_grains):
    reduced, domain = two_grains
    with pytest.raises(InputError, match="one grain alone"):
        UnlabelledObjective(CONFIG, centred(reduced), reduced, domain.ravel() == 0, SHAPE)


def test_grains_that_are_not_bent_have_nothing_to_gain():
    flat = grains(HALVES, SPOTS, bend=0.0)
    with pytest.raises(InputError, match=r"hardly change from one end to the other .*keep the weights"):
        objective(flat)


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
def bent_scan(tmp_path_factory, workers):
    """Store of 8 × 9 frames of bent grains, reduced."""
    folder = tmp_path_factory.mktemp("bent")
    write_scan(specimen("bent", (8, 9), 3), DETECTORS["pilatus1m"].binned(4), folder / "frames", seed=1)
    options = {"recipe": weights.Recipe(), "workers": workers, "progress": QuietProgress()}
    ingest(str(folder / "frames"), folder / "scan.zarr", ScanConfig(shape=(8, 9)), **options)
    return folder / "scan.zarr"


@pytest.fixture(scope="module")
def begun(bent_scan):
    store = ScanStore.open(bent_scan)
    return centred(store.reduced(weights.Recipe().for_frames(store.frame_shape).digest()), seed=4)


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


def test_weights_are_fine_tuned_on_a_scan_and_their_card_says_so(bent_scan, begun, start, quick_config, tmp_path):
    out = tmp_path / "mine.safetensors"
    options = {"minutes": None, "progress": QuietProgress()}
    card = learning.fine_tune(bent_scan, str(start), out, quick_config, **options)
    model, read = weights.load(str(out), recipe=weights.Recipe())
    assert read == card
    assert (card.training["from"], card.training["before"]) == (start.name, {"epochs": 7})
    assert 32 < card.training["patterns"] < 72
    assert card.seeds == {"weights": [4], "fine_tuning": [0]}
    assert card.data
    assert 0 < card.reference["error_q50"] <= card.reference["error_q99"]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, begun.state_dict()[name])}
    assert changed == {name for name, _ in begun.named_parameters()}
    assert len(learning.history_path(out).read_text().splitlines()) == 2
    assert learning.losses_path(out).exists()
    assert not learning.checkpoint_path(out).exists()


def test_what_cannot_be_fine_tuned_on_is_refused(bent_scan, small_run, start, quick_config, tmp_path):
    options = {"minutes": None, "progress": QuietProgress()}
    with pytest.raises(StoreError, match="there is no such scan store"):
        learning.fine_tune(tmp_path / "none.zarr", str(start), tmp_path / "o.safetensors", quick_config, **options)
    with pytest.raises(StoreError, match="there is no such weights file"):
        learning.fine_tune(bent_scan, "none", tmp_path / "o.safetensors", quick_config, **options)
    bad = tmp_path / "bad.yaml"
    bad.write_text("architecture: paper\n")
    with pytest.raises(InputError, match=r"unknown key 'architecture': configs/finetune\.yaml"):
        learning.fine_tune(bent_scan, str(start), tmp_path / "o.safetensors", bad, **options)
    with pytest.raises(InputError, match="nothing to gain: keep the weights"):
        learning.fine_tune(small_run / "scan.zarr", str(start), tmp_path / "o.safetensors", quick_config, **options)
    assert not list(tmp_path.glob("o.*"))


def test_command_fine_tunes_on_a_scan_and_names_what_it_wrote(command, bent_scan, start, quick_config, tmp_path):
    out = tmp_path / "mine.safetensors"
    asked = ("train", "--from", start, "--scan", bent_scan, "--config", quick_config, "--out", out)
    done = command(*asked)
    assert done.code == 0, done.err
    assert "scan_neighbour" in done.out
    assert f"weights: {out}" in done.out
    assert weights.load(str(out))[1].training["from"] == start.name
    again = command(*asked)
    assert again.code == 2
    assert again.complaints == [f"laue-dask: {out}: exists already: choose another path, or remove it"]
