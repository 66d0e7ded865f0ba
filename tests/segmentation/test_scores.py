import dask.array as da
import numpy as np
import pytest
import sklearn.cluster
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from laue_dask.errors import InputError
from laue_dask.segmentation import scores
from laue_dask.segmentation.clustering import nearest
from laue_dask.segmentation.scores import (
    adjusted_rand,
    calinski_harabasz,
    homogeneity,
    kolmogorov_smirnov,
    mean_squared_error,
    score_one,
    score_sweep,
    silhouette,
    silhouette_samples,
    suggest_k,
)
from laue_dask.segmentation.seeding import search


def blobs(n: int, m: int, k: int, *, apart: float = 4.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(k, m)) * apart
    return (centers[rng.integers(k, size=n)] + rng.normal(size=(n, m))).astype(np.float32)


@st.composite
def labelled(draw) -> tuple[np.ndarray, np.ndarray]:
    """A table of patterns, some equal, far from the origin or not, with at least two labels and gaps between them."""
    n, m, seed = draw(st.integers(4, 80)), draw(st.integers(1, 5)), draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, m)) if draw(st.booleans()) else rng.integers(0, 3, size=(n, m))
    labels = 3 * rng.integers(0, draw(st.integers(2, 6)), size=n)
    labels[:3] = [0, 3, 3]
    return (X + draw(st.sampled_from([0, 100]))).astype(np.float64), labels


@given(labelled(), st.integers(1, 80))
def test_calinski_harabasz_is_scikit_learns(table, rows):
    X, labels = table
    expected = sklearn.metrics.calinski_harabasz_score(X, labels)
    assert calinski_harabasz(X, labels) == pytest.approx(expected, rel=1e-9)
    assert calinski_harabasz(da.from_array(X, chunks=(rows, -1)), labels) == calinski_harabasz(X, labels)


def test_calinski_harabasz_is_nan_where_it_is_not_defined():
    X = np.eye(5)
    assert np.isnan(calinski_harabasz(X, np.zeros(5, int)))
    assert np.isnan(calinski_harabasz(X, np.arange(5)))


@given(labelled(), st.integers(1, 50))
def test_silhouette_of_all_patterns_is_scikit_learns(table, rows):
    X, labels = table
    expected = sklearn.metrics.silhouette_score(X, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "DISTANCES_PER_BLOCK", rows * len(X))
        assert silhouette(X, labels, size=len(X)) == pytest.approx(expected, abs=1e-6)
        lazy = da.from_array(X, chunks=(rows, -1))
        assert silhouette(lazy, labels, size=len(X)) == silhouette(X, labels, size=len(X))


@pytest.mark.parametrize("k", [2, 7])
def test_silhouette_of_a_sample_estimates_that_of_all_patterns(k):
    X = blobs(6000, 5, k, apart=1.5)
    labels = sklearn.cluster.KMeans(k, n_init=1, random_state=0).fit(X).labels_
    expected = sklearn.metrics.silhouette_score(X, labels)
    estimates = [silhouette(X, labels, size=1500, seed=seed) for seed in range(8)]
    assert np.mean(estimates) == pytest.approx(expected, abs=0.01)
    assert np.std(estimates) < 0.01
    assert estimates[0] == silhouette(da.from_array(X, chunks=(700, 2)), labels, size=1500, seed=0)


def test_a_small_cluster_is_never_missed_by_the_sample():
    X = np.vstack([np.zeros((5000, 2)), np.full((3, 2), 9.0), [[50, 50]]])
    labels = np.repeat([0, 1, 2], [5000, 3, 1])
    for seed in range(5):
        # all are perfect but the one that is alone in its cluster, which counts as 0
        assert silhouette(X, labels, size=100, seed=seed) == pytest.approx(5003 / 5004, abs=1e-12)


def test_silhouette_of_one_cluster_is_nan_and_of_single_patterns_zero():
    assert np.isnan(silhouette(np.eye(4), np.zeros(4, int)))
    assert silhouette(np.eye(4), np.arange(4)) == 0


def test_sweep_finds_the_number_of_separated_clusters():
    X = blobs(400, 6, 5, apart=8, seed=3)
    swept = score_sweep(X, range(2, 9), n_init=3, silhouette_size=400)
    assert [row["k"] for row in swept] == list(range(2, 9))
    assert swept[2] == score_one(X, 4, n_init=3, silhouette_size=400)
    silhouettes = [row["silhouette"] for row in swept]
    assert suggest_k(range(2, 9), silhouettes, [row["calinski_harabasz"] for row in swept]) == (5,)
    inertias = [row["inertia"] for row in swept]
    assert inertias == sorted(inertias, reverse=True)


def test_scores_of_one_k_are_those_of_its_own_k_means():
    X = blobs(300, 3, 4)
    fitted = sklearn.cluster.KMeans(4, n_init=10, random_state=0).fit(X)
    labels = nearest(X, search(X, 4, n_init=10, seed=0))
    found = score_one(X, 4)
    assert 0.99 * fitted.inertia_ < found["inertia"] <= fitted.inertia_ * (1 + 1e-5)
    assert found["silhouette"] == pytest.approx(sklearn.metrics.silhouette_score(X, labels), abs=1e-6)
    expected = sklearn.metrics.calinski_harabasz_score(X.astype(np.float64), labels)
    assert found["calinski_harabasz"] == pytest.approx(expected)


def test_more_clusters_than_distinct_patterns_have_no_scores():
    found = score_one(np.tile(np.eye(3, dtype=np.float32), (10, 1)), 4)
    assert found["k"] == 4
    assert np.isnan([found["silhouette"], found["calinski_harabasz"], found["inertia"]]).all()


nan = float("nan")


@pytest.mark.parametrize(
    ("silhouettes", "calinski", "suggested"),
    [
        # K =  2    3    4    5    6    7    8
        ([0.3, 0.4, 0.5, 0.6, 0.9, 0.5, 0.4], [10, 20, 30, 40, 50, 40, 30], (6,)),
        ([0.9, 0.4, 0.5, 0.6, 0.5, 0.4, 0.3], [10, 20, 30, 40, 50, 60, 70], (2, 5)),
        ([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], [10, 20, 30, 40, 50, 60, 70], (8,)),
        ([0.9, 0.4, 0.5, 0.4, 0.7, 0.4, 0.3], [70, 20, 30, 20, 10, 9, 8], (2, 4, 6)),
        ([0.9, 0.4, 0.41, 0.4, 0.3, 0.2, 0.1], [70, 60, 50, 40, 30, 20, 10], (2,)),
        ([0.5] * 7, [1.0] * 7, (2,)),
        ([nan, 0.4, nan, 0.8, 0.7, nan, nan], [nan] * 7, (5,)),
        ([nan] * 7, [nan] * 7, ()),
    ],
)
def test_suggested_k_are_the_peaks_of_the_scores(silhouettes, calinski, suggested):
    assert suggest_k(range(2, 9), silhouettes, calinski) == suggested
    backwards = suggest_k(range(8, 1, -1), silhouettes[::-1], calinski[::-1])
    assert backwards == suggested


@given(st.data())
@settings(max_examples=50)
def test_comparison_with_true_domains_is_scikit_learns_at_the_points_that_count(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shape = (data.draw(st.integers(1, 9)), data.draw(st.integers(2, 9)))
    truth = rng.integers(-1, 4, size=shape).astype(float)
    truth[rng.random(shape) < 0.1] = np.nan
    labels = rng.integers(-1, 5, size=shape)
    inside = rng.random(shape) < 0.8
    used = inside & (truth >= 0) & (labels >= 0)
    for ours, reference in [
        (adjusted_rand, sklearn.metrics.adjusted_rand_score),
        (homogeneity, sklearn.metrics.homogeneity_score),
    ]:
        found = ours(truth, labels, where=inside)
        if used.any():
            assert found == pytest.approx(reference(truth[used].astype(int), labels[used]))
        else:
            assert np.isnan(found)


@given(st.data())
@settings(max_examples=50)
def test_comparison_with_a_true_property_map_uses_the_points_that_count(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shape = (data.draw(st.integers(1, 9)), data.draw(st.integers(2, 9)))
    true, found = rng.normal(size=shape), rng.normal(size=shape).round(1)
    true[rng.random(shape) < 0.1] = np.nan
    found[rng.random(shape) < 0.1] = np.nan
    inside = rng.random(shape) < 0.8
    used = inside & np.isfinite(true) & np.isfinite(found)
    if not used.any():
        assert np.isnan(mean_squared_error(true, found, where=inside))
        assert np.isnan(kolmogorov_smirnov(true, found, where=inside))
        return
    assert mean_squared_error(true, found, where=inside) == pytest.approx(((true - found)[used] ** 2).mean())
    # scipy's ks_2samp gives the same distance, but warns of the p-value of few points, which nobody asked for.
    expected = max(abs((true[used] <= x).mean() - (found[used] <= x).mean()) for x in [*true[used], *found[used]])
    assert kolmogorov_smirnov(true, found, where=inside) == pytest.approx(expected)


def test_a_point_with_one_missing_channel_does_not_count():
    true = np.zeros((2, 2, 3))
    found = np.ones((2, 2, 3))
    found[0, 0] = [np.nan, 100, 100]
    assert mean_squared_error(true, found) == 1
    with pytest.raises(InputError, match="3 channels"):
        kolmogorov_smirnov(true, found)


def test_a_map_compared_with_itself_has_no_error():
    truth = np.arange(12).reshape(3, 4) % 3
    assert adjusted_rand(truth, 2 - truth) == 1
    assert homogeneity(truth, np.arange(12).reshape(3, 4)) == 1
    assert mean_squared_error(truth, truth) == 0
    assert kolmogorov_smirnov(truth, truth) == 0


@pytest.mark.parametrize("score", [adjusted_rand, homogeneity, mean_squared_error, kolmogorov_smirnov])
def test_maps_and_masks_of_different_shapes_are_refused(score):
    with pytest.raises(InputError, match=r"\(3, 4\).*\(4, 3\)"):
        score(np.zeros((3, 4)), np.zeros((4, 3)))
    with pytest.raises(InputError, match=r"\(3, 4\).*\(3,\)"):
        score(np.zeros((3, 4)), np.zeros((3, 4)), where=np.ones(3, bool))


@pytest.mark.parametrize(("n", "m"), [(720, 16), (2892, 33)])
def test_silhouettes_have_the_same_bits_for_any_number_of_threads(n, m):
    X = blobs(n, m, 3, apart=1.0)
    labelings = [np.random.default_rng(k).integers(0, k, n) for k in (2, 5, 70)]
    found = []
    for threads in (1, 2, 4):
        with threadpool_limits(threads):
            found.append(silhouette_samples(X, labelings).tobytes())
    assert len(set(found)) == 1


@given(labelled(), st.integers(1, 40), st.integers(1, 30), st.data())
def test_silhouettes_of_several_segmentations_are_those_of_each(table, first, columns, data):
    X, labels = table
    n, seed = len(X), data.draw(st.integers(0, 99))
    others = [np.random.default_rng([seed, k]).integers(0, k, n) - 1 for k in (1, 2, 5)]
    others.append(np.arange(n))
    rows = slice(min(first, n), min(first, n) + data.draw(st.integers(0, 60)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "MAX_TABLE_CLUSTERS", data.draw(st.integers(1, 6)))
        patch.setattr(scores, "TABLE_COLUMNS", columns)
        patch.setattr(scores, "DISTANCES_PER_BLOCK", data.draw(st.integers(1, 3 * n)))
        found = silhouette_samples(X, [labels, *others], rows)
    assert found.shape == (5, len(X[rows]))
    for row, own in zip(found, [labels, *others], strict=True):
        if len(np.unique(own)) == 1:
            assert np.isnan(row).all()
        elif len(np.unique(own)) == n:
            assert (row == 0).all()
        else:
            np.testing.assert_allclose(row, sklearn.metrics.silhouette_samples(X, own)[rows], atol=1e-6)
