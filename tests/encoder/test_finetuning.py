import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.encoder import learning, weights
from laue_dask.encoder.finetuning import NEAREST, RUN, Unlabelled, _jittered, _perturbed, find_links
from laue_dask.encoder.network import Architecture, build
from laue_dask.encoder.training_config import FineTuningConfig
from laue_dask.errors import InputError, StoreError
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


def objective(two_grains, config=CONFIG, model=None):
    reduced, domain = two_grains
    return Unlabelled(config, model or build(TINY, seed=0).eval(), reduced, np.ones(domain.size, bool), SHAPE)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), ny=st.integers(2, 9), nx=st.integers(2, 9))
def test_links_are_between_neighbours_that_are_mutual_nearest(seed, ny, nx):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(ny * nx, 4)).astype(np.float32)
    position = np.stack(np.divmod(np.arange(ny * nx), nx), axis=1)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = (unit @ unit.T).astype(np.float64)
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1)[:, : min(NEAREST, ny * nx - 1)]
    wanted = {
        (i, int(j))
        for i in range(ny * nx)
        for j in nearest[i]
        if i < j and i in nearest[j] and np.abs(position[i] - position[j]).max() == 1
    }
    found = find_links(features, position)
    assert {tuple(pair) for pair in found.pairs.tolist()} == wanted
    assert all(found.component[i] == found.component[j] for i, j in wanted)
    assert len(np.unique(found.component)) >= ny * nx - len(wanted)


def test_links_stay_inside_the_grains_and_join_most_of_each(two_grains):
    found = objective(two_grains)._links
    domain = two_grains[1].ravel()
    assert (domain[found.pairs[:, 0]] == domain[found.pairs[:, 1]]).mean() > 0.95
    assert len(found.pairs) > domain.size / 2
    assert -1 <= found.alike <= 1


def test_a_batch_holds_patterns_and_then_a_view_or_a_linked_neighbour_of_each(two_grains):
    made = objective(two_grains)
    linked = {tuple(pair) for pair in made._links.pairs.tolist()}
    kinds = set()
    for step in range(made.n_steps):
        batch = made.read(1, step)
        assert batch.patterns.shape == (2 * CONFIG.patterns_per_batch, 128, 128)
        first, second = batch.relation.reshape(2, -1).tolist()
        for one, other in zip(first, second, strict=True):
            assert one == other or (min(one, other), max(one, other)) in linked
            kinds.add(one == other)
        for place, pattern in zip(batch.relation.tolist(), batch.patterns, strict=True):
            np.testing.assert_array_equal(pattern.numpy(), two_grains[0][place])
        assert len({place // RUN for place in first}) < len(first)
    assert kinds == {True, False}


def test_an_epoch_shows_every_usable_pattern_and_no_other(two_grains):
    reduced, domain = two_grains
    valid = np.ones(domain.size, bool)
    valid[::7] = False
    made = Unlabelled(CONFIG, build(TINY, seed=0).eval(), reduced, valid, SHAPE)
    shown = np.concatenate([made.read(1, step).relation.numpy() for step in range(made.n_steps)])
    assert set(shown.tolist()) == set(range(int(valid.sum())))
    batch = made.read(2, 0)
    np.testing.assert_array_equal(batch.patterns[3].numpy(), reduced[np.flatnonzero(valid)[int(batch.relation[3])]])


def test_nothing_pushes_neighbours_or_linked_patterns_apart(two_grains):
    made = objective(two_grains)
    linked = np.flatnonzero(made._links.component == np.bincount(made._links.component).argmax())[:8]
    places = torch.from_numpy(np.concatenate([linked, linked]))
    latent = torch.randn(16, 16, requires_grad=True)
    made._contrastive(latent, places).backward()
    # views of one pattern are partners; between the patterns of one component nothing is known, so nothing is learnt
    assert latent.grad.abs().max() < 1e-6


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
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    card = weights.Card(architecture=TINY, recipe=weights.Recipe(), training={"epochs": 7}, seeds={"weights": [4]})
    weights.save(build(TINY, seed=4), path, card)
    return path


@pytest.fixture
def quick_config(tmp_path):
    path = tmp_path / "quick.yaml"
    path.write_text("epochs: 1\npatterns_per_batch: 8\n")
    return path


def test_weights_are_fine_tuned_on_a_scan_and_their_card_says_so(small_run, start, quick_config, tmp_path):
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
    begun = build(TINY, seed=4).state_dict()
    assert not torch.equal(model.state_dict()["encoder.0.weight"], begun["encoder.0.weight"])
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
