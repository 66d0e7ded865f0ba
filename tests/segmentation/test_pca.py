from collections.abc import Iterator
from functools import reduce

import dask.array as da
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.segmentation import pca as module
from laue_dask.segmentation.pca import IncrementalPCA, Moments, block_rows, choose_components, each_block


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """Blocks of seven rows, so that small tables have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "block_rows", lambda columns: 7)
        yield


@st.composite
def tables(draw, min_rows: int = 2, max_columns: int = 9) -> np.ndarray:
    n, m = draw(st.integers(min_rows, 60)), draw(st.integers(1, max_columns))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = 10.0 ** rng.uniform(-3, 3, size=m)
    table = rng.normal(size=(n, m)) @ rng.normal(size=(m, m)) * scale + draw(st.sampled_from([0, 10, -1000])) * scale
    return table.astype(draw(st.sampled_from(["float32", "float64"])))


def cut(draw, n: int) -> tuple[int, ...]:
    """A random chunking of n rows."""
    edges = sorted(draw(st.sets(st.integers(1, n - 1), max_size=6))) if n > 1 else []
    return tuple(int(size) for size in np.diff([0, *edges, n]))


def full_svd(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances (M,) and components (min(n, M), M) in float64."""
    X = X.astype(np.float64)
    _, singular, rows = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    variance = np.zeros(X.shape[1])
    variance[: len(singular)] = singular**2 / (len(X) - 1)
    return variance, rows


@given(st.data())
def test_spectrum_and_components_equal_a_full_svd_for_any_chunking(data):
    X = data.draw(tables())
    fitted = IncrementalPCA().fit(da.from_array(X, chunks=(cut(data.draw, len(X)), -1)))
    variance, components = full_svd(X)
    assert np.allclose(fitted.explained_variance_, variance, rtol=0, atol=1e-10 * variance[0])
    assert np.allclose(fitted.explained_variance_ratio_, variance / variance.sum(), rtol=0, atol=1e-10)
    gaps = np.abs(np.diff(variance, append=0, prepend=np.inf)) / variance[0]
    for i in range(len(components)):
        if min(gaps[i], gaps[i + 1]) > 1e-4:
            assert abs(fitted.components_[i] @ components[i]) == pytest.approx(1, abs=1e-10)


@given(st.data())
def test_chunking_does_not_change_a_bit(data):
    X = data.draw(tables())
    whole = IncrementalPCA().fit(X)
    chunks = (cut(data.draw, X.shape[0]), cut(data.draw, X.shape[1]))
    chunked = IncrementalPCA().fit(da.from_array(X, chunks=chunks))
    assert np.array_equal(whole.components_, chunked.components_)
    assert np.array_equal(whole.explained_variance_, chunked.explained_variance_)
    assert np.array_equal(whole.mean_, chunked.mean_)


@given(st.data())
def test_moments_merged_in_any_order_and_grouping_are_those_of_the_whole(data):
    X = data.draw(tables(min_rows=1))
    parts = [Moments.from_block(part) for part in np.split(X, np.cumsum(cut(data.draw, len(X)))[:-1])]
    merged = reduce(Moments.merge, data.draw(st.permutations(parts)))
    rows = X.astype(np.float64)
    centred = rows - rows.mean(axis=0)
    size = np.abs(rows).max(axis=0)
    assert merged.n == len(X)
    assert np.all(np.abs(merged.mean - rows.mean(axis=0)) <= 1e-13 * size)
    assert np.all(np.abs(merged.scatter - centred.T @ centred) <= 1e-12 * len(X) * np.outer(size, size))


@given(st.data())
def test_partial_fits_add_up_to_one_fit(data):
    X = data.draw(tables(min_rows=8))
    first = data.draw(st.integers(2, len(X) - 1))
    parts = IncrementalPCA().partial_fit(X[:first]).partial_fit(X[first:])
    whole = IncrementalPCA().fit(X)
    spread = np.sqrt(whole.explained_variance_[0])
    assert parts.n_samples_seen_ == len(X)
    # the means are rounded to their own last bit, however small the spread about them is
    tolerance = 1e-12 * spread**2 + 1e-14 * spread * np.abs(X).max()
    assert np.allclose(parts.explained_variance_, whole.explained_variance_, rtol=0, atol=tolerance)


def test_fit_forgets_what_was_fitted_before():
    X = np.random.default_rng(0).normal(size=(20, 3))
    again = IncrementalPCA().fit(X + 100).fit(X)
    assert again.n_samples_seen_ == 20
    assert np.allclose(again.mean_, X.mean(axis=0))


@given(st.data())
def test_transform_has_uncorrelated_columns_and_inverse_transform_restores_the_features(data):
    X = data.draw(tables())
    fitted = IncrementalPCA().fit(X)
    Y = fitted.transform(X)
    size = np.abs(X).max()
    assert Y.shape == X.shape
    assert np.allclose(fitted.inverse_transform(Y), X, rtol=0, atol=1e-12 * size * X.shape[1])
    covariance = Y.T @ Y / (len(X) - 1)
    assert np.allclose(
        covariance, np.diag(fitted.explained_variance_), rtol=0, atol=1e-9 * fitted.explained_variance_[0]
    )


def test_inverse_transform_takes_the_first_components_alone():
    X = np.random.default_rng(0).normal(size=(30, 2)) @ np.random.default_rng(1).normal(size=(2, 5))
    fitted = IncrementalPCA().fit(X)
    assert np.allclose(fitted.inverse_transform(fitted.transform(X)[:, :2]), X)


@given(st.data())
def test_dask_arrays_are_transformed_lazily_and_alike(data):
    X = data.draw(tables())
    fitted = IncrementalPCA().fit(X)
    lazy = fitted.transform(da.from_array(X, chunks=(cut(data.draw, X.shape[0]), -1)), dtype=np.float32)
    assert isinstance(lazy, da.Array)
    assert lazy.dtype == np.float32
    assert lazy.shape == X.shape
    expected = fitted.transform(X)
    assert np.allclose(lazy.compute(), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    back = fitted.inverse_transform(lazy[:, :1], dtype=np.float32)
    assert back.shape == X.shape
    assert back.compute().dtype == np.float32


@given(tables(), st.floats(0.25, 4))
def test_signs_survive_noise_in_the_last_bits(X, factor):
    fitted = IncrementalPCA().fit(X)
    other = IncrementalPCA().fit(X.astype(np.float64) * factor)
    variance = fitted.explained_variance_
    gaps = np.abs(np.diff(variance, append=0, prepend=np.inf)) / variance[0]
    distinct = np.minimum(gaps[:-1], gaps[1:]) > 1e-4
    assert np.allclose(fitted.components_[distinct], other.components_[distinct], atol=1e-6)


def test_first_of_equally_large_loadings_is_positive():
    along, across = np.array([[1.0, -1.0]]), np.array([[1.0, 1.0]])
    steps = np.random.default_rng(0).normal(size=(50, 1))
    for noise in np.random.default_rng(1).normal(scale=1e-12, size=(20, 50, 2)):
        fitted = IncrementalPCA().fit(steps * along + 0.01 * steps[::-1] * across + noise)
        assert (fitted.components_[:, 0] > 0).all()


def test_constant_features_and_fewer_patterns_than_features_give_finite_results():
    X = np.random.default_rng(0).normal(size=(4, 10))
    X[:, 3] = 7
    fitted = IncrementalPCA(0.99).fit(X)
    assert np.isfinite(fitted.components_).all()
    assert np.allclose(fitted.components_ @ fitted.components_.T, np.eye(10))
    assert fitted.explained_variance_ratio_.sum() == pytest.approx(1)
    assert np.count_nonzero(fitted.explained_variance_) == 3


@pytest.mark.parametrize(("spec", "chosen"), [(None, 5), (0.9, 1), (2, 2)])
def test_identical_patterns_have_zero_ratios(spec, chosen):
    fitted = IncrementalPCA(spec).fit(np.full((6, 5), 0.1, np.float32))
    assert not fitted.explained_variance_ratio_.any()
    assert fitted.n_components_ == chosen
    assert np.abs(fitted.transform(np.full((6, 5), 0.1, np.float32))).max() < 1e-15


def test_patterns_that_are_not_finite_are_left_out_of_the_fit_and_stay_without_components():
    X = np.random.default_rng(0).normal(size=(30, 4))
    holed = np.insert(X, [3, 17], [[np.nan] * 4, [1, 2, np.inf, 4]], axis=0)
    fitted = IncrementalPCA().fit(holed)
    assert fitted.n_samples_seen_ == 30
    assert np.allclose(fitted.components_, IncrementalPCA().fit(X).components_)
    finite = np.isfinite(fitted.transform(holed)).all(axis=1)
    assert np.flatnonzero(~finite).tolist() == [3, 18]


@pytest.mark.parametrize("X", [np.empty((0, 3)), np.ones((1, 3)), np.array([[1.0, 2.0], [np.nan, 1.0]])])
def test_fewer_than_two_usable_patterns_are_refused(X):
    with pytest.raises(InputError, match=rf"PCA of {int(np.isfinite(X).all(axis=1).sum())} usable pattern"):
        IncrementalPCA().fit(X)


def test_another_number_of_features_is_refused():
    fitted = IncrementalPCA().fit(np.eye(4))
    with pytest.raises(InputError, match=r"3 features.* expecting 4 features"):
        fitted.partial_fit(np.eye(3))
    with pytest.raises(InputError, match=r"3 features.* expecting 4 features"):
        fitted.transform(np.eye(3))
    with pytest.raises(InputError, match=r"3 features.* expecting 4 features"):
        fitted.transform(da.ones((8, 3)))
    with pytest.raises(InputError, match=r"4 components.* 5"):
        fitted.inverse_transform(np.eye(5))


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20), st.floats(0.001, 0.999))
def test_share_of_variance_gives_the_smallest_sufficient_number(values, share):
    ratio = np.sort(values)[::-1] / np.sum(values)
    chosen = choose_components(ratio, share)
    explained = np.cumsum(ratio)
    assume(np.abs(explained - share).min() > 1e-12)
    assert explained[chosen - 1] >= share
    assert chosen == 1 or explained[chosen - 2] < share


@pytest.mark.parametrize("spec", [0, 4, -1, 0.0, 1.0, 1.5, float("nan")])
def test_impossible_numbers_of_components_are_refused(spec):
    with pytest.raises(InputError, match=r"give 1 to 3 or a share"):
        choose_components(np.array([0.5, 0.3, 0.2]), spec)


@given(st.data())
@settings(max_examples=30)
def test_each_block_cuts_numpy_and_dask_arrays_at_the_same_rows(data):
    X = data.draw(tables(min_rows=1))
    ids = np.arange(len(X))
    local = each_block(lambda x, i, base: (x.sum() + base, i), X, ids, base=1.0)
    remote = each_block(lambda x, i, base: (x.sum() + base, i), da.from_array(X, chunks=5), ids, base=1.0)
    assert np.array_equal(np.concatenate([i for _, i in local]), ids)
    for (here, rows), (there, same) in zip(local, remote, strict=True):
        assert here == there
        assert np.array_equal(rows, same)


def test_a_table_without_rows_is_one_empty_block():
    for X in (np.empty((0, 3)), da.from_array(np.empty((0, 3)))):
        assert each_block(np.shape, X) == [(0, 3)]


def test_blocks_hold_16_mib_at_most_unless_the_table_is_very_wide():
    assert block_rows(256) * 256 * 4 == 2**24
    assert block_rows(2) == 65_536
    assert block_rows(128 * 128) == 1_024
