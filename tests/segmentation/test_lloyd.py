import itertools

import numpy as np
import pytest
import sklearn.cluster
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from laue_dask.segmentation.lloyd import BLOCK_ROWS, lloyd, plus_plus

seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([1, 2, 3, 40, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 2 * BLOCK_ROWS + 3])


def table(n, m, seed, kinds=None):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, m))
    return X if kinds is None else X[rng.integers(min(kinds, n), size=n)]


def step(X, centers):
    """One Lloyd step in NumPy; clusters without rows stay where they are."""
    labels = cdist(X, centers, "sqeuclidean").argmin(axis=1)
    return labels, np.array([X[labels == k].mean(axis=0) if (labels == k).any() else c for k, c in enumerate(centers)])


@given(seeds, sizes, st.integers(1, 6), st.integers(1, 9), st.integers(1, 12))
def test_steps_are_those_of_numpy(seed, n, m, k, steps):
    X = table(n, m, seed)
    centers = plus_plus(X, min(k, n), seed)  # rows, all different: no cluster starts empty
    found = lloyd(X, centers, max_iter=steps, tol=0.0)
    expected, before = centers, None
    for _ in range(steps):
        labels, after = step(X, expected)
        if before is not None and np.array_equal(labels, before):
            break
        assume(len(np.unique(labels)) == len(centers))  # what becomes of an empty cluster is seen below
        expected, before = after, labels
    assert found.n_iter_ <= steps
    assert np.allclose(found.cluster_centers_, expected)
    distance = cdist(X, found.cluster_centers_, "sqeuclidean")
    assert np.allclose(distance[np.arange(n), found.labels_], distance.min(axis=1))
    assert found.inertia_ == pytest.approx(distance.min(axis=1).sum(), rel=1e-9, abs=1e-12)


@given(seeds, st.integers(2, 5), st.integers(2, 7))
@settings(max_examples=25)
def test_ends_where_scikit_learn_ends(seed, m, k):
    X = table(300, m, seed) + 5 * table(k, m, seed + 1)[np.arange(300) % k]
    centers = plus_plus(X, k, 0)
    ours = lloyd(X, centers, max_iter=300, tol=1e-4)
    theirs = sklearn.cluster.KMeans(k, init=centers, n_init=1, max_iter=300, tol=1e-4).fit(X)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-9)
    assert np.array_equal(ours.labels_, theirs.labels_)
    assert ours.n_iter_ == theirs.n_iter_


@given(seeds, st.integers(1, 60), st.integers(1, 4), st.integers(1, 8), st.integers(1, 60))
def test_no_step_raises_the_inertia(seed, n, m, k, kinds):
    X = table(n, m, seed, kinds)
    start = np.random.default_rng(seed).normal(size=(k, m)) * 3
    values = [lloyd(X, start, max_iter=steps, tol=0.0).inertia_ for steps in range(6)]
    assert all(after <= before * (1 + 1e-12) + 1e-12 for before, after in itertools.pairwise(values))


def test_an_empty_cluster_gets_the_farthest_row():
    X = np.array([[0.0], [1.0], [2.0], [30.0]])
    found = lloyd(X, np.array([[1.0], [1000.0]]), max_iter=5, tol=0.0)
    assert sorted(found.cluster_centers_.ravel()) == [1.0, 30.0]


def test_more_clusters_than_distinct_rows_end_at_no_inertia():
    X = np.repeat([[1.0, 2.0], [3.0, 4.0]], 5, axis=0)
    found = lloyd(X, plus_plus(X, 4, 0), max_iter=10, tol=1e-4)
    assert found.inertia_ == 0
    assert np.isfinite(found.cluster_centers_).all()


def test_without_steps_labels_are_those_of_the_centres():
    X = table(50, 3, 0)
    found = lloyd(X, X[:4], max_iter=0, tol=1e-4)
    assert np.array_equal(found.cluster_centers_, X[:4])
    assert np.array_equal(found.labels_, cdist(X, X[:4]).argmin(axis=1))


def test_the_centres_that_it_is_given_stay_as_they_are():
    X, centers = table(50, 3, 0), table(4, 3, 1)
    before = centers.copy()
    lloyd(X, centers, max_iter=5, tol=0.0)
    assert np.array_equal(centers, before)


@given(seeds, st.integers(1, 80), st.integers(1, 4), st.integers(1, 10))
def test_starts_are_rows_and_different_while_there_are_any(seed, n, m, k):
    X = table(n, m, seed)
    centers = plus_plus(X, k, seed)
    assert np.array_equal(centers, plus_plus(X, k, seed))
    place = [np.flatnonzero((center == X).all(axis=1))[0] for center in centers]
    assert len(set(place)) == min(k, n)


def test_starts_find_clumps_far_apart():
    X = 1000 * table(12, 4, 0)[np.arange(600) % 12] + table(600, 4, 1)
    for seed in range(20):
        nearest = cdist(plus_plus(X, 12, seed), X).argmin(axis=1)
        assert len(set(nearest % 12)) == 12


def test_first_row_of_a_start_is_any_row():
    X = table(5, 2, 0)
    first = {plus_plus(X, 1, seed).tobytes() for seed in range(100)}
    assert len(first) == 5


def test_any_order_and_dtype_of_the_table_will_do():
    X = table(90, 4, 0).astype(np.float32)
    wide = np.zeros((180, 8), np.float32)
    wide[::2, ::2] = X
    fixed = X.copy()
    fixed.setflags(write=False)
    expected = lloyd(X.astype(np.float64), plus_plus(X.astype(np.float64), 5, 0), max_iter=9, tol=1e-4)
    for given_as in (X, np.asfortranarray(X), wide[::2, ::2], fixed):
        centers = plus_plus(given_as, 5, 0)
        assert centers.dtype == np.float64
        found = lloyd(given_as, np.asfortranarray(centers), max_iter=9, tol=1e-4)
        assert np.array_equal(found.cluster_centers_, expected.cluster_centers_)
        assert np.array_equal(found.labels_, expected.labels_)
        assert found.inertia_ == expected.inertia_


def test_values_whose_squares_overflow_give_rows_all_the_same():
    X = 1e200 * table(20, 2, 0)
    assert (plus_plus(X, 4, 0)[:, None] == X).all(axis=2).any(axis=1).all()
