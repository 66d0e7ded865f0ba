import itertools
from pathlib import Path

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_expit
from torch import nn

from laue_dask.config import EncoderConfig, Recipe
from laue_dask.errors import StoreError
from laue_dask.features import inference as module
from laue_dask.features import weights
from laue_dask.features.architecture import Architecture
from laue_dask.features.encode import Network
from laue_dask.features.extractors import features
from laue_dask.features.inference import encode_block
from laue_dask.features.losses import unexplained
from laue_dask.features.network import build

N = 37
BATCH = 8


def spots(seed, n):
    rng = np.random.default_rng(seed)
    patterns = np.zeros((n, 128, 128), dtype=np.uint8)
    for pattern in patterns:
        count = int(rng.integers(5, 500))
        rows, columns = rng.integers(0, 128, (2, count))
        pattern[rows, columns] = rng.integers(30, 256, count)
    return patterns


@pytest.fixture(scope="module")
def model():
    """A tiny network of the shipped kind, whose outputs differ as a trained one's do."""
    architecture = Architecture(
        channels=(4, 8, 8, 8), unshuffle=2, latent=16, dropout=0.0, batch_norm=True, smoothing=1.0, unit_latent=True
    )
    made = build(architecture, seed=3).train()
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # statistics of all that was seen, not of what was seen last
    with torch.no_grad():
        for seed in range(3):
            made(torch.from_numpy(spots(seed, 8)[:, None]).float() / 255)
        made.decoder[-2].weight *= 10
    return made.eval()


@pytest.fixture(scope="module")
def name(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights.save(model, path, weights.Card(architecture=model.architecture, recipe=Recipe()))
    return str(path)


@pytest.fixture(scope="module")
def reduced():
    patterns = spots(7, N)
    patterns[1] = 0
    return patterns


@pytest.fixture(scope="module")
def valid():
    keep = np.ones(N, dtype=bool)
    keep[[0, 5, 20, 36]] = False
    return keep


def features_of(reduced, valid, name, chunks, *, precision="float32", batch_size=BATCH):
    network = Network.load(EncoderConfig(weights=name, batch_size=batch_size, precision=precision))
    lazy = features(network, da.from_array(reduced, chunks=(chunks, -1, -1)), valid)
    with dask.config.set(scheduler="threads", num_workers=2):
        return lazy.compute()


@pytest.fixture(scope="module")
def whole(reduced, valid, name):
    return features_of(reduced, valid, name, N)


@settings(max_examples=8)
@given(cuts=st.sets(st.integers(1, N - 1), max_size=8))
def test_features_are_the_same_bits_for_any_chunking(cuts, reduced, valid, name, whole):
    chunks = tuple(b - a for a, b in itertools.pairwise([0, *sorted(cuts), N]))
    np.testing.assert_array_equal(features_of(reduced, valid, name, chunks), whole)


def test_features_are_the_same_bits_in_any_order(reduced, valid, name, whole):
    order = np.random.default_rng(1).permutation(N)
    np.testing.assert_array_equal(features_of(reduced[order], valid[order], name, 10), whole[order])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_features_are_the_same_bits_for_any_number_of_torch_s_threads(threads, reduced, valid, name, whole):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        np.testing.assert_array_equal(features_of(reduced, valid, name, 10), whole)
    finally:
        torch.set_num_threads(before)


def test_invalid_patterns_are_nan_and_all_others_finite(valid, whole):
    assert whole.shape == (N, 16)
    assert whole.dtype == np.float32
    assert np.isnan(whole[~valid]).all()
    assert np.isfinite(whole[valid]).all()
    assert len(np.unique(whole[valid], axis=0)) == valid.sum()


def test_a_block_without_valid_patterns_is_nan(reduced, name):
    found = features_of(reduced[:4], np.zeros(4, dtype=bool), name, 2)
    assert np.isnan(found).all()


def test_features_are_those_of_the_network_as_it_was_saved(model, reduced, valid, whole):
    with torch.inference_mode():
        wanted = model.encode(torch.from_numpy(reduced[:, None]).float() / 255).numpy()
    np.testing.assert_allclose(whole[valid], wanted[valid], atol=1e-5)


def test_folding_removes_every_batch_normalisation_and_keeps_the_function(model, reduced):
    folded = module._folded(model.encoder)
    patterns = torch.from_numpy(reduced[:8, None]).float() / 255
    with torch.inference_mode():
        found, wanted = folded(patterns), model.encoder(patterns)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in model.encoder)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded)
    scale = float(wanted.abs().max())
    assert scale > 0
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), atol=1e-5 * scale)


@pytest.mark.parametrize("n", [1, 5])
def test_unshuffling_is_torch_s_own_in_another_order_of_memory(n):
    patterns = torch.rand(n, 1, 16, 12, generator=torch.Generator().manual_seed(n))
    found = module._Unshuffle()(patterns)
    assert torch.equal(found, nn.PixelUnshuffle(2)(patterns))
    assert found.is_contiguous(memory_format=torch.channels_last)
    half = module._Unshuffle()(patterns.bfloat16())  # as it comes under a GPU's autocast
    assert torch.equal(half, nn.PixelUnshuffle(2)(patterns.bfloat16()).float())


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 2**32 - 1),
    order=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_max_pooling_is_torch_s_own_in_the_same_order_of_memory(shape, seed, order):
    n, channels, rows, columns = shape
    maps = torch.randn(n, channels, 2 * rows, 2 * columns, generator=torch.Generator().manual_seed(seed))
    found = module._MaxPool(2)(maps.contiguous(memory_format=order))
    assert torch.equal(found, nn.functional.max_pool2d(maps, 2))
    assert found.is_contiguous(memory_format=order)


def test_nothing_is_computed_before_it_is_asked_for(name):
    def forbidden(block):
        raise AssertionError("computed too early")

    patterns = da.zeros((10, 128, 128), chunks=(4, -1, -1), dtype=np.uint8).map_blocks(
        forbidden, dtype=np.uint8, meta=np.empty((0, 0, 0), dtype=np.uint8)
    )
    lazy = features(Network.load(EncoderConfig(weights=name)), patterns, np.ones(10, dtype=bool))
    assert lazy.chunks == ((4, 4, 2), (16,))
    assert lazy.dtype == np.float32
    with pytest.raises(AssertionError, match="too early"):
        lazy.compute(scheduler="synchronous")


def test_the_graph_holds_no_weights(valid, name):
    network = Network.load(EncoderConfig(weights=name))
    lazy = features(network, da.zeros((N, 128, 128), chunks=(N, -1, -1), dtype=np.uint8), valid)
    assert len(cloudpickle.dumps(lazy.dask)) < 0.5 * Path(name).stat().st_size


def test_bfloat16_is_close_to_float32(reduced, valid, name, whole):
    found = features_of(reduced, valid, name, 10, precision="bfloat16")
    assert found.dtype == np.float32
    cosine = np.einsum("ij,ij->i", found[valid], whole[valid])
    assert not np.array_equal(found[valid], whole[valid])
    assert cosine.min() > 0.99


def test_the_batch_size_changes_features_by_rounding_alone(reduced, valid, name, whole):
    np.testing.assert_allclose(features_of(reduced, valid, name, 10, batch_size=64), whole, atol=1e-5)


def test_a_size_that_is_found_is_one_of_those_that_are_tried_and_is_looked_for_once(monkeypatch, reduced, valid, name):
    tried = []

    def fastest(function, shape, device, precision, sizes):
        tried.append((shape, sizes))
        return 16

    monkeypatch.setattr(module, "fastest_size", fastest)
    module._found_size.cache_clear()
    wanted = features_of(reduced, valid, name, 10, batch_size=16)
    found = [features_of(reduced, valid, name, 10, batch_size="auto") for _ in range(2)]
    errors = Network.load(EncoderConfig(weights=name, batch_size="auto")).errors(reduced[:5])
    module._found_size.cache_clear()
    np.testing.assert_array_equal(found, [wanted, wanted])
    np.testing.assert_array_equal(errors, Network.load(EncoderConfig(weights=name, batch_size=16)).errors(reduced[:5]))
    assert [sizes for _, sizes in tried] == [(16, 32, 64)]


def test_the_digest_follows_the_weights_and_the_arithmetic(name):
    settings = [{}, {"precision": "bfloat16"}, {"batch_size": 7}, {"batch_size": "auto"}, {"weights": "untrained"}]
    digests = [Network.load(EncoderConfig(**{"weights": name, **changed})).digest for changed in settings]
    assert len(set(digests)) == len(settings)
    assert Network.load(EncoderConfig(weights=name)).digest == digests[0]


def test_weights_trained_again_under_one_name_are_loaded_again(model, reduced, tmp_path):
    path = tmp_path / "again.safetensors"
    card = weights.Card(architecture=model.architecture, recipe=Recipe())
    weights.save(model, path, card)
    keep = np.ones(4, dtype=bool)
    options = {"batch_size": 4, "precision": "float32", "weights_name": str(path)}
    before = encode_block(reduced[1:5], keep, digest=weights.digest(str(path)), **options)
    weights.save(build(model.architecture, seed=99).eval(), path, card)
    after = encode_block(reduced[1:5], keep, digest=weights.digest(str(path)), **options)
    assert not np.allclose(before, after, atol=1e-3)


def test_the_reconstruction_errors_are_the_cross_entropy_per_pixel_and_what_is_left_unexplained(model, reduced, name):
    both = Network.load(EncoderConfig(weights=name, batch_size=BATCH)).errors(reduced)
    assert both.shape == (N, 2)
    found = both[:, 0]
    with torch.inference_mode():
        patterns = torch.from_numpy(reduced[:, None]).float() / 255
        target = model.smooth(patterns)
        logits = model.decode(model.encode(patterns))
        left = unexplained(logits, target).numpy()
    assert np.isnan(left[1])
    np.testing.assert_allclose(both[:, 1], left, rtol=1e-3)
    logits, target = logits.numpy().astype(np.float64), target.numpy().astype(np.float64)
    wanted = -(target * log_expit(logits) + (1 - target) * log_expit(-logits)).mean(axis=(1, 2, 3))
    assert found.shape == (N,)
    assert found.dtype == np.float32
    assert np.ptp(wanted) > 1e-3
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_weights_that_change_under_their_name_are_not_mixed(tmp_path):
    path, tiny = tmp_path / "w.safetensors", Architecture(channels=(4, 8, 8, 8, 8), latent=16)
    weights.save(
        build(tiny, seed=1),
        path,
        weights.Card(architecture=tiny, recipe=Recipe()),
    )
    digest = weights.digest(str(path))
    weights.save(
        build(tiny, seed=2),
        path,
        weights.Card(architecture=tiny, recipe=Recipe()),
    )
    with pytest.raises(StoreError, match="changed while they were in use"):
        encode_block(
            np.zeros((1, 128, 128), np.uint8),
            np.ones(1, bool),
            weights_name=str(path),
            digest=digest,
            batch_size=1,
            precision="float32",
        )
