import numpy as np
import pytest
import sklearn.cluster
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from laue_dask.segmentation import seeding
from laue_dask.segmentation.seeding import distinct_rows, finalists, improve, moves, sample_kmeans, sample_rows, search


def inertia(X, centers):
    return float(cdist(X.astype(np.float64), centers, "sqeuclidean").min(axis=1).sum())


def clumps(n, m, k, *, apart, seed):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(k, m))[rng.integers(k, size=n)] * apart + rng.normal(size=(n, m))).astype(np.float32)


@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 9))
def test_sample_has_one_row_of_each_of_equal_runs(n, size, seed):
    rows = sample_rows(n, size, seed)
    assert np.array_equal(rows, sample_rows(n, size, seed))
    assert len(rows) == min(n, size)
    runs = rows * len(rows) // max(n, 1)
    # a run that ends between two rows may hold the row before
    assert np.all(np.abs(runs - np.arange(len(rows))) <= 1)
    assert np.all(np.diff(rows) > 0)


def test_every_row_can_be_drawn():
    assert set(np.concatenate([sample_rows(11, 4, seed) for seed in range(60)])) == set(range(11))


@given(st.integers(0, 2**32), st.integers(2, 5), st.sampled_from([0.5, 3.0]))
@settings(max_examples=10)
def test_search_is_as_good_as_other_starts(seed, k, apart):
    X = clumps(150, 3, 4, apart=apart, seed=seed)
    reference = sklearn.cluster.KMeans(k, n_init=10, random_state=77).fit(X)
    centers = search(X, k, n_init=10, seed=0)
    assert centers.dtype == np.float64
    assert inertia(X, centers) <= 1.01 * inertia(X, reference.cluster_centers_)


@given(st.integers(0, 2**32), st.integers(2, 6))
@settings(max_examples=10)
def test_finalists_are_different_and_the_best_comes_first(seed, k):
    X = clumps(150, 3, 6, apart=1.0, seed=seed)
    found = finalists(X, k, n_init=5, seed=0)
    values = [inertia(X, centers) for centers in found]
    assert np.array_equal(found[0], search(X, k, n_init=5, seed=0))
    assert values[0] <= min(values) * (1 + 1e-5)
    assert len({f"{value:.4e}" for value in values}) <= len(values) == len({centers.tobytes() for centers in found})


def test_moves_replace_two_centres_and_the_most_promising_comes_first():
    at = np.array([[0.0, 0.0], [100.0, 0.0], [103.0, 0.0]])
    X = at[np.repeat([0, 1, 2], 40)] + np.random.default_rng(0).normal(size=(120, 2)) * 0.1
    stuck = np.array([[0.0, 0.05], [0.0, -0.05], [101.5, 0.0]])
    distance = cdist(X, stuck, "sqeuclidean")
    labels, (first, second) = distance.argmin(axis=1), np.sort(distance, axis=1)[:, :2].T
    spread, loss = (np.bincount(labels, weights=values, minlength=3) for values in (first, second - first))
    found = moves(X, labels, stuck, spread, loss)
    assert all((trial == stuck).all(axis=1).sum() == 1 for trial in found)
    assert inertia(X, found[0]) < 0.1 * inertia(X, stuck)


@given(st.integers(0, 2**32), st.integers(1, 6))
@settings(max_examples=10)
def test_moves_never_raise_the_inertia(seed, k):
    X = clumps(120, 2, 6, apart=3.0, seed=seed)
    centers = X[np.random.default_rng(seed).choice(len(X), k, replace=False)].astype(np.float64)
    plain = sample_kmeans(X, k, n_init=1, seed=0, init=centers)
    assert inertia(X, improve(X, centers)) <= inertia(X, plain.cluster_centers_) * (1 + 1e-6)


def test_a_move_leaves_the_local_optimum_that_lloyd_cannot():
    # two centres in the left clump and one for the two clumps on the right
    at = np.array([[0.0, 0.0], [100.0, 0.0], [103.0, 0.0]])
    X = (at[np.repeat([0, 1, 2], 40)] + np.random.default_rng(0).normal(size=(120, 2)) * 0.1).astype(np.float32)
    stuck = np.array([[0.0, 0.05], [0.0, -0.05], [101.5, 0.0]])
    lloyd = sample_kmeans(X, 3, n_init=1, seed=0, init=stuck).cluster_centers_
    assert inertia(X, lloyd) > 50 * inertia(X, improve(X, stuck))


@pytest.mark.parametrize("k", [2, 7])
def test_compiled_and_scikit_learns_steps_end_alike(k, monkeypatch):
    X = clumps(400, 4, 9, apart=3.0, seed=k)
    found = []
    for limit in (0, seeding.MAX_COMPILED_OPERATIONS):
        monkeypatch.setattr(seeding, "MAX_COMPILED_OPERATIONS", limit)
        found.append(inertia(X, search(X, k, n_init=5, seed=0)))
    assert found[0] == pytest.approx(found[1], rel=2e-3)


@given(st.integers(0, 2**32), st.floats(-1e4, 1e4))
@settings(max_examples=20)
def test_two_nearest_distances_are_those_of_scipy(seed, offset):
    rng = np.random.default_rng(seed)
    X, centers = rng.normal(size=(30, 4)) + offset, rng.normal(size=(5, 4)) + offset
    expected = np.sort(cdist(X, centers, "sqeuclidean"), axis=1)[:, :2]
    assert np.allclose(np.column_stack(seeding.two_distances(X, centers)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2])
def test_identical_rows_need_no_move(k):
    X = np.repeat(np.arange(k, dtype=np.float32), 9)[:, None]
    assert len(distinct_rows(X)) == k
    assert inertia(X, search(X, k, n_init=2, seed=0)) == 0
