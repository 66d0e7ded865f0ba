import logging
from collections.abc import Iterator
from functools import reduce
from unittest import mock

import dask.array as da
import numpy as np
import pytest
import sklearn.cluster
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.segmentation import clustering, pca
from laue_dask.segmentation.clustering import ClusterMoments, KMeans, cluster_moments, nearest
from laue_dask.segmentation.seeding import distinct_rows, sample_rows


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 50 rows and no room for a whole table, so that small tables go the way of the large."""
    monkeypatch.setattr(clustering, "MAX_IN_MEMORY_VALUES", 0)
    for module in (pca, clustering):
        monkeypatch.setattr(module, "block_rows", lambda columns: 50)


@pytest.fixture(scope="module")
def client() -> Iterator[object]:
    """A Dask client of two workers, as threads of this process."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as connected,
    ):
        yield connected


def blobs(n: int, m: int, k: int, *, apart: float = 4.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(k, m)) * apart
    return (centers[rng.integers(k, size=n)] + rng.normal(size=(n, m))).astype(np.float32)


@st.composite
def tables(draw, min_rows: int = 30, max_rows: int = 200) -> np.ndarray:
    """Diffuse and separated clusters, and coarse grids with many equal rows and equal distances."""
    n, m, seed = draw(st.integers(min_rows, max_rows)), draw(st.integers(1, 6)), draw(st.integers(0, 2**32))
    if draw(st.booleans()):
        return np.random.default_rng(seed).integers(0, 4, size=(n, m)).astype(np.float32)
    return blobs(n, m, draw(st.integers(1, 8)), apart=draw(st.sampled_from([0.5, 2, 8])), seed=seed)


def brute_inertia(X: np.ndarray, centers: np.ndarray) -> float:
    return float(((X.astype(np.float64)[:, None] - centers) ** 2).sum(axis=2).min(axis=1).sum())


@given(tables(), st.integers(1, 6), st.integers(5, 200))
@settings(max_examples=40, deadline=None)
def test_fit_is_consistent_and_as_good_as_scikit_learns(X, k, sample):
    k = min(k, len(distinct_rows(X)))
    fitted = KMeans(k, sample=sample).fit(X)
    sizes = np.bincount(fitted.labels_, minlength=k)
    assert fitted.labels_.dtype == np.int32
    assert sizes.min() > 0
    first = [np.flatnonzero(fitted.labels_ == i)[0] for i in range(k)]
    assert sorted(range(k), key=lambda i: (-sizes[i], first[i])) == list(range(k))
    assert np.array_equal(fitted.predict(X), fitted.labels_)
    assert fitted.inertia_ == pytest.approx(brute_inertia(X, fitted.cluster_centers_), rel=1e-6, abs=1e-9)
    means = np.array([X[fitted.labels_ == i].mean(axis=0, dtype=np.float64) for i in range(k)])
    assert np.allclose(fitted.cluster_centers_, means, rtol=1e-12, atol=1e-12)
    if sample >= len(X):
        reference = sklearn.cluster.KMeans(k, n_init=10, random_state=0).fit(X)
        assert fitted.inertia_ <= 1.01 * reference.inertia_ + 1e-9


@pytest.mark.parametrize(("n", "m", "k", "apart"), [(3000, 8, 6, 3.0), (3000, 16, 12, 1.0), (4000, 4, 6, 0.0)])
def test_inertia_from_a_sample_is_within_one_percent_of_scikit_learns(small_blocks, n, m, k, apart):
    X = blobs(n, m, k, apart=apart, seed=n)
    reference = sklearn.cluster.KMeans(k, n_init=10, random_state=0).fit(X)
    assert KMeans(k, sample=n // 2).fit(X).inertia_ <= 1.01 * reference.inertia_


@pytest.mark.parametrize("seed", range(4))
def test_few_rows_in_the_sample_do_not_decide(small_blocks, seed):
    X = blobs(300, 2, 14, apart=2.0, seed=seed)
    reference = sklearn.cluster.KMeans(12, n_init=10, random_state=0).fit(X)
    fitted = KMeans(12, sample=150).fit(X)
    assert fitted.inertia_ <= 1.01 * reference.inertia_
    assert fitted.inertia_ == pytest.approx(brute_inertia(X, fitted.cluster_centers_), rel=1e-6)


def test_moves_on_all_rows_leave_a_local_optimum(small_blocks):
    # two centres in the left clump and one for the two clumps on the right
    at = np.array([[0.0, 0.0], [100.0, 0.0], [103.0, 0.0]])
    X = (at[np.repeat([0, 1, 2], 60)] + np.random.default_rng(0).normal(size=(180, 2)) * 0.1).astype(np.float32)
    stuck = np.array([[0.0, 0.05], [0.0, -0.05], [101.5, 0.0]])
    assert sorted(np.bincount(KMeans(3, init=stuck, sample=60).fit(X).labels_)) == [60, 60, 60]


def test_several_sets_of_seeds_are_judged_on_all_rows(small_blocks, monkeypatch):
    monkeypatch.setattr(clustering, "moves", lambda *state: [])
    X = blobs(400, 3, 4, apart=20.0)
    good = sklearn.cluster.KMeans(4, n_init=10, random_state=0).fit(X).cluster_centers_.astype(np.float64)
    bad = np.vstack([good[:2], good[:2] + 0.1])
    for init in (np.stack([bad, good]), good):
        assert KMeans(4, init=init, sample=100).fit(X).inertia_ == pytest.approx(brute_inertia(X, good), rel=1e-6)
    assert KMeans(4, init=bad, sample=100).fit(X).inertia_ > 2 * brute_inertia(X, good)


def test_what_dissolving_a_cluster_costs_is_its_members_way_to_other_centres():
    X = blobs(80, 3, 4)
    centers = X[:5].astype(np.float64)
    labels = nearest(X, centers)
    first, second = (brute_inertia(X, centers), [brute_inertia(X, np.delete(centers, i, axis=0)) for i in range(5)])
    assert np.allclose(clustering._dissolved(X, labels, centers=centers), np.subtract(second, first), rtol=1e-6)


@given(st.data())
@settings(max_examples=10, deadline=None)
def test_chunking_does_not_change_the_partition(data):
    X = data.draw(tables())
    k = min(3, len(distinct_rows(X)))
    whole = KMeans(k, sample=50).fit(X)
    chunks = tuple(data.draw(st.integers(1, size)) for size in X.shape)
    chunked = KMeans(k, sample=50).fit(da.from_array(X, chunks=chunks))
    assert np.array_equal(whole.labels_, chunked.labels_)
    assert np.array_equal(whole.cluster_centers_, chunked.cluster_centers_)
    assert whole.inertia_ == chunked.inertia_
    lazy = chunked.predict(da.from_array(X, chunks=chunks))
    assert isinstance(lazy, da.Array)
    assert lazy.shape == (len(X),)
    assert lazy.dtype == np.int32
    assert np.array_equal(lazy.compute(), whole.labels_)


def test_partition_of_many_blocks_is_the_same_for_every_chunking(small_blocks):
    X = blobs(730, 5, 4, apart=1.0)
    fits = [KMeans(6, sample=200).fit(da.from_array(X, chunks=chunks)) for chunks in [(730, 5), (97, 2), (13, 5)]]
    for other in fits[1:]:
        assert np.array_equal(fits[0].labels_, other.labels_)
        assert fits[0].inertia_ == other.inertia_


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_scale_of_the_data_does_not_change_the_partition(small_blocks, factor):
    X = blobs(600, 4, 5, apart=1.0)
    plain, scaled = KMeans(5, sample=200).fit(X), KMeans(5, sample=200).fit(X * np.float32(factor))
    assert np.array_equal(plain.labels_, scaled.labels_)


def test_clusters_missed_by_the_sample_are_found_by_reseeding(small_blocks):
    X = np.zeros((500, 3), np.float32)
    a, b, c, d = np.setdiff1d(np.arange(500), sample_rows(500, 40, 0))[[3, 90, 91, 400]]
    X[[a, b, c, d]] = [[50, 0, 0], [0, 60, 0], [0, 60, 0], [0, 0, 70]]
    fitted = KMeans(4, sample=10).fit(X)
    assert np.bincount(fitted.labels_).tolist() == [496, 2, 1, 1]
    assert fitted.labels_[[b, c, a, d]].tolist() == [1, 1, 2, 3]
    assert fitted.inertia_ == 0


def test_a_cluster_that_runs_empty_in_the_engine_is_reseeded(small_blocks):
    X = blobs(400, 3, 3)
    blocks = da.from_array(X, chunks=(50, 3))
    seeds = np.vstack([X[:3], [[1e6, 1e6, 1e6]]]).astype(np.float64)
    estimator = KMeans(4)
    estimator.n_iter_ = 0
    _, labels, members = estimator._converge(blocks, seeds, 1e-6)
    assert members.n.min() > 0
    assert np.array_equal(np.bincount(labels), members.n)


@given(st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=10, deadline=None)
def test_more_clusters_than_distinct_rows_are_refused_with_both_numbers(kinds, surplus):
    X = np.tile(np.arange(kinds, dtype=np.float32)[:, None] * [1.7, -0.3], (4 * surplus + 2, 1)).astype(np.float32)
    with pytest.raises(InputError, match=rf"^{kinds + surplus} clusters .* {kinds} distinct .* at most {kinds}$"):
        KMeans(kinds + surplus).fit(X)
    assert KMeans(kinds).fit(X).inertia_ == 0


@pytest.mark.parametrize("k", [0, 11])
def test_impossible_numbers_of_clusters_are_refused(k):
    with pytest.raises(InputError, match=f"{k} clusters of 10 patterns"):
        KMeans(k).fit(np.eye(10))


def test_rows_that_are_not_finite_are_refused_with_their_number():
    X = blobs(100, 3, 2)
    fitted = KMeans(2).fit(X)
    X[[4, 50]] = np.nan
    for table in (X, da.from_array(X, chunks=30)):
        with pytest.raises(InputError, match="2 of 100 rows have values that are not finite"):
            KMeans(2).fit(table)
    with pytest.raises(InputError, match="2 of 100 rows"):
        fitted.predict(X)


def test_identical_rows_make_one_cluster():
    fitted = KMeans(1).fit(np.full((40, 3), 0.1, np.float32))
    assert fitted.inertia_ == 0
    assert not fitted.labels_.any()


def test_a_dask_client_gives_the_same_partition_with_unique_task_names(client, small_blocks, tmp_path, caplog):
    X = blobs(700, 4, 5, apart=1.0)
    stored = zarr.create_array(tmp_path / "x.zarr", data=X, chunks=(60, 4))
    here = KMeans(5, sample=200).fit(X)
    scheduler = logging.getLogger("distributed.scheduler")  # does not propagate to the root logger
    scheduler.addHandler(caplog.handler)
    try:
        there = KMeans(5, sample=200).fit(da.from_zarr(stored))
        labels = there.predict(da.from_zarr(stored)).compute()
    finally:
        scheduler.removeHandler(caplog.handler)
    assert not [message for message in caplog.messages if "run_spec" in message]
    assert np.array_equal(here.labels_, there.labels_)
    assert np.array_equal(here.cluster_centers_, there.cluster_centers_)
    assert np.array_equal(labels, here.labels_)


@given(st.data())
def test_nearest_does_not_depend_on_the_order_of_the_centres(data):
    X = data.draw(tables(max_rows=60)).astype(np.float64)
    centers = np.unique(np.round(X[: data.draw(st.integers(1, 20))]), axis=0)
    order = np.array(data.draw(st.permutations(range(len(centers)))))
    labels = nearest(X, centers)
    squares = ((X[:, None] - centers) ** 2).sum(axis=2)
    assert np.allclose(squares[np.arange(len(X)), labels], squares.min(axis=1), rtol=1e-12, atol=0)
    assert np.array_equal(order[nearest(X, centers[order])], labels)


@given(tables(min_rows=1), st.integers(1, 9), st.data())
def test_cluster_moments_of_parts_merge_to_those_of_the_whole(X, k, data):
    labels = np.random.default_rng(len(X)).integers(0, k, size=len(X)).astype(np.int32)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(X)), max_size=5)))
    parts = [
        ClusterMoments.from_block(rows, own, n_clusters=k)
        for rows, own in zip(np.split(X, cuts), np.split(labels, cuts), strict=True)
    ]
    merged = reduce(ClusterMoments.merge, parts)
    for i in range(k):
        rows = X[labels == i].astype(np.float64)
        assert merged.n[i] == len(rows)
        mean = rows.mean(axis=0) if len(rows) else np.zeros(X.shape[1])
        assert np.allclose(merged.mean[i], mean, rtol=1e-12, atol=1e-12)
        assert merged.ssd[i] == pytest.approx(((rows - mean) ** 2).sum(), rel=1e-10, abs=1e-10)


def test_spread_is_exact_far_from_the_origin():
    X = np.random.default_rng(0).normal(size=(1000, 3))
    labels = np.arange(1000) % 4
    near, far = cluster_moments(X, labels, 4), cluster_moments(X + 1e6, labels, 4)
    assert np.allclose(near.ssd, far.ssd, rtol=1e-8)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 9))
def test_sample_is_sorted_without_repetition_and_reproducible(n, size, seed):
    rows = sample_rows(n, size, seed)
    assert len(rows) == min(n, size)
    assert (np.diff(rows) > 0).all()
    assert not len(rows) or (rows[0] >= 0 and rows[-1] < n)
    assert np.array_equal(rows, sample_rows(n, size, seed))


@given(tables(min_rows=1))
def test_distinct_rows_are_those_of_numpy(X):
    X = np.where(X == 0, np.random.default_rng(0).choice([0.0, -0.0], size=X.shape), X).astype(np.float32)
    kinds = X[distinct_rows(X)]
    assert np.array_equal(np.unique(kinds, axis=0), np.unique(X, axis=0))
    assert len(kinds) == len(np.unique(X, axis=0))


def test_what_workers_hold_already_is_not_free(monkeypatch):
    def info(**workers):
        described = {
            name: {"memory_limit": limit, "metrics": {"memory": held}} for name, (limit, held) in workers.items()
        }
        return mock.Mock(scheduler_info=lambda n_workers: {"workers": described})

    monkeypatch.setattr("distributed.get_client", lambda: info(a=(1000, 100), b=(1000, 550), c=(1000, 900)))
    assert clustering._workers_memory() == pytest.approx(500 + 50 + 0)
    monkeypatch.setattr("distributed.get_client", lambda: info(a=(0, 100)))
    assert clustering._workers_memory() > 2**27
