import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from laue_dask.errors import StoreError
from laue_dask.features.pixels import Pixels, principal_components


def patterns(seed, n, rank):
    """Patterns (n, 128, 128) uint8 near a few kinds."""
    rng = np.random.default_rng(seed)
    kinds = rng.uniform(0, 200, (rank, 128, 128)) * (rng.random((rank, 128, 128)) < 0.05)
    noise = rng.uniform(0, 20, (n, 128, 128)) * (rng.random((n, 128, 128)) < 0.01)
    return (kinds[rng.integers(0, rank, n)] + noise).astype(np.uint8)


def fitted(sample, file, n_features=16):
    return Pixels(n_features=n_features).fit(lambda size: sample[:size], file)


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1), st.integers(3, 60), st.integers(1, 8))
def test_components_are_those_of_a_singular_value_decomposition(seed, n, count):
    sample = patterns(seed, n, 4)
    components, offset = principal_components(sample, count)
    flat = sample.reshape(n, -1) / 255
    _, scale, v = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    projected = flat @ components.T.astype(np.float64) - offset
    found = np.sort(np.linalg.norm(projected, axis=0))[::-1]
    wanted = np.zeros(count)
    wanted[: min(count, n - 1)] = scale[: min(count, n - 1)]
    np.testing.assert_allclose(found, wanted, atol=1e-4 * scale[0])
    leading = abs(components[0].astype(np.float64) @ v[0])
    assert scale[0] < 1.01 * scale[1] or leading == pytest.approx(1, abs=1e-4)


def test_what_the_sample_does_not_span_is_zero():
    components, offset = principal_components(patterns(0, 5, 5), 16)
    assert np.count_nonzero(np.abs(components).sum(axis=1)) == 4
    np.testing.assert_allclose(components[:4] @ components[:4].T, np.eye(4), atol=1e-5)
    np.testing.assert_array_equal(offset[4:], 0)
    alike = np.repeat(patterns(1, 1, 1), 6, axis=0)
    np.testing.assert_array_equal(principal_components(alike, 4)[0], 0)


def test_components_are_the_same_bits_for_any_number_of_threads():
    sample = patterns(3, 70, 6)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(principal_components(sample, 12))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_features_keep_the_distances_of_the_patterns(tmp_path):
    sample = patterns(4, 40, 5)
    features = fitted(sample, tmp_path / "p.safetensors", 40).extract(sample, np.ones(40, dtype=bool))
    flat = sample.reshape(40, -1) / 255
    wanted = np.sqrt(((flat[0] - flat) ** 2).sum(axis=1))
    np.testing.assert_allclose(np.linalg.norm(features[0] - features, axis=1), wanted, atol=1e-3)


def test_what_was_learnt_is_a_file_that_may_not_change_in_use(tmp_path):
    file = tmp_path / "p.safetensors"
    first = fitted(patterns(5, 20, 3), file)
    assert len(repr(first)) < 300
    other = fitted(patterns(6, 20, 3), file)
    assert first.learnt != other.learnt
    with pytest.raises(StoreError, match="changed while it was in use"):
        first.extract(patterns(5, 2, 3), np.ones(2, dtype=bool))
    again = fitted(patterns(5, 20, 3), file)
    assert again == first


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70))
def test_features_are_exact_and_the_same_bits_wherever_a_pattern_stands(tmp_path_factory, seed, n):
    file = tmp_path_factory.mktemp("p") / "p.safetensors"
    sample = patterns(seed, 30, 5)
    extractor = fitted(sample, file, 8)
    components, offset = principal_components(sample, 8)
    whole = components.astype(np.float64) * 2**30
    np.testing.assert_array_equal(whole, np.round(whole))
    one = sample[seed % 30]
    found = extractor.extract(np.repeat(one[None], n, axis=0), np.ones(n, dtype=bool))
    sums = [sum(map(int.__mul__, one.ravel().tolist(), row)) / 2**30 for row in whole.astype(np.int64).tolist()]
    np.testing.assert_array_equal(found, np.tile((np.array(sums) / 255 - offset).astype(np.float32), (n, 1)))
