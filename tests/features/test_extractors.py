import itertools

import cloudpickle
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.config import EncoderConfig
from laue_dask.features.encode import Network
from laue_dask.features.extractors import features
from laue_dask.features.peaks import Peaks
from laue_dask.features.pixels import Pixels

N = 70


@pytest.fixture(scope="module")
def reduced():
    rng = np.random.default_rng(0)
    kinds = rng.uniform(30, 255, (5, 128, 128)) * (rng.random((5, 128, 128)) < 0.01)
    found = kinds[rng.integers(0, 5, N)] * rng.uniform(0.5, 1, (N, 1, 1))
    found[1] = 0
    return found.astype(np.uint8)


@pytest.fixture(scope="module")
def valid():
    keep = np.ones(N, dtype=bool)
    keep[[0, 9, 40, 69]] = False
    return keep


@pytest.fixture(scope="module", params=["network", "pixels", "peaks"])
def extractor(request, reduced, tmp_path_factory):
    made = {
        "network": lambda: Network.load(EncoderConfig(weights="untrained", batch_size=8)),
        "pixels": lambda: Pixels(n_features=24),
        "peaks": lambda: Peaks(),
    }[request.param]()
    assert made.name == request.param
    return made.fit(lambda size: reduced[:size], tmp_path_factory.mktemp("learnt") / "file.safetensors")


@pytest.fixture(scope="module")
def whole(extractor, reduced, valid):
    return extractor.extract(reduced, valid)


def test_features_are_finite_where_valid_and_nan_elsewhere(extractor, whole, valid):
    assert whole.shape == (N, extractor.n_features)
    assert whole.dtype == np.float32
    assert np.isfinite(whole[valid]).all()
    assert np.isnan(whole[~valid]).all()


@settings(max_examples=4)
@given(cuts=st.sets(st.integers(1, N - 1), max_size=6))
def test_features_are_the_same_bits_for_any_chunking(cuts, extractor, reduced, valid, whole):
    chunks = tuple(b - a for a, b in itertools.pairwise([0, *sorted(cuts), N]))
    lazy = features(extractor, da.from_array(reduced, chunks=(chunks, -1, -1)), valid)
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), whole)


def test_features_are_the_same_bits_in_any_order(extractor, reduced, valid, whole):
    order = np.random.default_rng(1).permutation(N)
    np.testing.assert_array_equal(extractor.extract(reduced[order], valid[order]), whole[order])


def test_a_block_without_a_valid_pattern_is_nan(extractor, reduced):
    assert np.isnan(extractor.extract(reduced[:3], np.zeros(3, dtype=bool))).all()


def test_what_travels_with_a_task_is_small(extractor, valid):
    patterns = da.zeros((N, 128, 128), chunks=(N, -1, -1), dtype=np.uint8)
    assert len(cloudpickle.dumps(features(extractor, patterns, valid).dask)) < 20_000


def test_patterns_of_one_kind_are_nearer_than_those_of_two(extractor):
    rng = np.random.default_rng(7)
    kinds = rng.uniform(60, 255, (6, 128, 128)) * (rng.random((6, 128, 128)) < 0.004)
    kind = np.repeat(np.arange(6), 5)
    patterns = (kinds[kind] * rng.uniform(0.8, 1, (30, 1, 1))).astype(np.uint8)
    found = extractor.extract(patterns, np.ones(30, dtype=bool))
    distance = np.linalg.norm(found[:, None] - found[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (kind[distance.argmin(axis=1)] == kind).mean() > 0.9


def test_digests_tell_extractors_apart():
    made = [Network.load(EncoderConfig(weights="untrained")), Pixels(), Pixels(n_features=32), Peaks()]
    assert len({one.digest for one in made}) == len(made)
