"""K-means of all patterns, out of core and reproducible (section 4 of the paper).

dask-ml's Lloyd iteration does the work on blocks, scikit-learn's on a table that one process can hold; what they leave
open is settled here. Seeds are searched for on a sample (`laue_dask.segmentation.seeding`) and, where it has few rows
for each cluster, compared on all rows, the tolerance is relative to the variance, a cluster that runs empty is
reseeded, inertia is summed in float64, and labels count from the largest cluster. Blocks, and who does the work, depend
on the table's shape alone, so that every chunking, scheduler and number of workers gives the same partition.
"""

from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Self

import dask.array as da
import numpy as np
import psutil
from dask import config as dask_config
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted

from laue_dask.errors import InputError
from laue_dask.segmentation.pca import Array, block_rows, each_block, slabs
from laue_dask.segmentation.seeding import (
    MIN_INERTIA_GAIN,
    distinct_rows,
    finalists,
    improve,
    moves,
    sample_kmeans,
    sample_rows,
    two_distances,
)
from laue_dask.segmentation.validation import table_of

MAX_SETTLING_STEPS = 20
"""Steps to a partition that does not change any more, at most, after the tolerance is reached (8 to 22 were seen)."""

MAX_IN_MEMORY_VALUES = 2**23
"""Values of a table that one process takes whole (32 MiB of float32): a step costs a hundredth of one on workers."""

MIN_SAMPLE_ROWS_PER_CLUSTER = 200
"""Rows of the sample for each cluster below which what is best on it is often not best on all rows: out of core, the
best partitions of the sample and moves from them are then compared on all rows."""

MAX_MOVES = 10
"""Moves made out of core, at most."""

MAX_TRIED_MOVES = 24
"""Moves tried out of core before the partition is taken as it is."""

N_PARTITIONS_TOGETHER = 8
"""Partitions compared in the same passes over all rows."""

N_TOGETHER_STEPS = 4
"""Lloyd steps after which they are compared, a pass each."""

MAX_HELD_MEMORY_SHARE = 0.5
"""Share of what workers have free that a table may take between the steps; a larger one is read again for each step."""

SPILL_MEMORY_SHARE = 0.6
"""Share of its memory limit from which on a worker of Dask puts data on the disk."""


@dataclass(frozen=True)
class ClusterMoments:
    """Size, mean and spread of every cluster; they merge like `laue_dask.segmentation.pca.Moments`.

    Attributes
    ----------
    n
        (K,) int64, number of members.
    mean
        (K, M) float64, zero where a cluster has no members.
    ssd
        (K,) float64, sum of the squared distances of the members to their mean.
    """

    n: Array
    mean: Array
    ssd: Array

    @classmethod
    def from_block(cls, X: Array, labels: Array, *, n_clusters: int) -> Self:
        """Return the moments of rows X, (n, M), with labels 0 to n_clusters − 1."""
        n, mean = np.bincount(labels, minlength=n_clusters), np.zeros((n_clusters, X.shape[1]))
        for rows in slabs(X):
            own = labels[rows]
            members = csr_array((np.ones(len(own)), own, np.arange(len(own) + 1)), shape=(len(own), n_clusters))
            mean += members.T @ X[rows].astype(np.float64)
        mean /= np.maximum(n, 1)[:, None]
        ssd = np.bincount(labels, weights=squared_distances(X, labels, centers=mean), minlength=n_clusters)
        return cls(n, mean, ssd)

    def merge(self, other: Self) -> Self:
        """Return the moments of the clusters with the members of both."""
        n = self.n + other.n
        step = other.mean - self.mean
        share = other.n / np.maximum(n, 1)
        ssd = self.ssd + other.ssd + self.n * share * _square(step)
        return type(self)(n, self.mean + step * share[:, None], ssd)


def cluster_moments(X: Any, labels: Array, n_clusters: int) -> ClusterMoments:
    """Return the moments of the clusters of X, (n, M) NumPy or dask array, in one pass."""
    parts: list[ClusterMoments] = each_block(ClusterMoments.from_block, X, labels, n_clusters=n_clusters)
    return reduce(ClusterMoments.merge, parts)


def nearest(X: Array, centers: Array) -> Array:
    """Return the index of the centre nearest to each row of X, (n, M), as int32 (n,).

    Distances are sums of squared differences in float64. At equal distances the lexicographically first centre wins,
    so neither the order of the centres nor the position of a row in its block has a say.

    Raises
    ------
    InputError
        A row has a value that is not finite.
    """
    bad = count_unusable_rows(X)
    if bad:
        raise InputError(
            f"{bad} of {len(X)} rows have values that are not finite (NaN or inf): leave those patterns out"
        )
    order = np.lexsort(centers.T[::-1])
    first = np.empty(len(X), dtype=np.intp)
    for rows in slabs(X, len(centers)):
        first[rows] = cdist(X[rows], centers[order], "sqeuclidean").argmin(axis=1)
    return np.asarray(order[first], dtype=np.int32)


class KMeans(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """K-means of a table of any size: the estimator g_KM of the paper.

    Parameters
    ----------
    n_clusters
        K.
    n_init
        Number of k-means++ starts on the sample.
    init
        (K, M) centres to start from, or (F, K, M) several sets of them, the best first, as
        `laue_dask.segmentation.seeding.finalists` finds them on the sample; found here by default.
    sample
        Rows in the sample from which the seeds come; 10 K where that is more, all rows where there are no more.
    max_iter, tol
        Lloyd stops after that many steps, or when the squared shift of the centres is below `tol` times the mean
        variance of the columns (as scikit-learn's).
    random_state
        Seed.

    Attributes
    ----------
    cluster_centers_
        (K, M) float64, the means of the members (see Notes).
    labels_
        (n,) int32, the nearest centre of every row; 0 is the largest cluster, of equals the one whose first row comes
        first. No cluster is empty.
    inertia_
        Sum of the squared distances of the rows to their centres, summed in float64.
    n_clusters_
        K.
    n_iter_
        Number of Lloyd steps on all rows, without those of the search for seeds.

    Notes
    -----
    After Lloyd has reached the tolerance, assignment and means are repeated until the assignment stays the same, then
    `labels_` are exactly the nearest centres and `cluster_centers_` exactly the members' means. Where that takes more
    than `MAX_SETTLING_STEPS`, the assignment has the last word: ``predict(X)`` equals `labels_` and the centres are the
    means of the assignment before.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.repeat([[0.0, 0.0], [9.0, 9.0]], [10, 20], axis=0)
    >>> KMeans(2).fit(X).cluster_centers_
    array([[9., 9.],
           [0., 0.]])
    """

    def __init__(
        self,
        n_clusters: int,
        *,
        n_init: int = 10,
        init: Array | None = None,
        sample: int = 20_000,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: int = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_init = n_init
        self.init = init
        self.sample = sample
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: None = None) -> Self:
        """Find the clusters of X, (n, M) NumPy or dask array of finite values.

        A table of up to `MAX_IN_MEMORY_VALUES` values is taken into this process whole. A larger dask array is read
        once and then held by the scheduler's workers where it takes less than `MAX_HELD_MEMORY_SHARE` of what they have
        free, or else read for each step; a larger NumPy array is worked on by threads of this process, whatever Dask
        client exists.

        Raises
        ------
        InputError
            A row has a value that is not finite, or there are fewer distinct rows than clusters.
        """
        X = table_of(self, X, reset=True)
        if not 1 <= self.n_clusters <= len(X):
            raise InputError(f"{self.n_clusters} clusters of {len(X)} patterns: K must be 1 to the number of patterns")
        if X.shape[0] * X.shape[1] <= MAX_IN_MEMORY_VALUES:
            return self._fit(np.asarray(X.compute() if isinstance(X, da.Array) else X))
        chunks = (block_rows(X.shape[1]), X.shape[1])
        if isinstance(X, da.Array):
            X = X.rechunk(chunks)
            return self._fit(X.persist() if X.nbytes <= MAX_HELD_MEMORY_SHARE * _workers_memory() else X)
        with dask_config.set(scheduler="threads"):
            return self._fit(da.from_array(np.asarray(X), chunks=chunks, name=False))

    def predict(self, X: Any) -> Any:
        """Return the label of every row of X, (n, M), as int32 (n,); of a dask array lazily, block by block."""
        check_is_fitted(self)
        X = table_of(self, X, reset=False)
        assign = partial(nearest, centers=self.cluster_centers_)
        if isinstance(X, da.Array):
            return X.rechunk({1: -1}).map_blocks(assign, drop_axis=1, meta=np.empty(0, np.int32))
        return assign(X)

    def _fit(self, X: Any) -> Self:
        bad = sum(each_block(count_unusable_rows, X))
        if bad:
            raise InputError(
                f"{bad} of {len(X)} rows have values that are not finite (NaN or inf): leave those patterns out"
            )
        spread = cluster_moments(X, np.zeros(len(X), np.int32), 1).ssd[0] / X.size
        # never 0, or dask-ml would go on after the centres have come to rest
        tol = max(self.tol * spread, np.finfo(np.float64).tiny)
        self.n_iter_ = 0
        seeds = self._seeds(X)
        scant = (
            isinstance(X, da.Array)
            and self.n_clusters > 1
            and self._sampled(X) < MIN_SAMPLE_ROWS_PER_CLUSTER * self.n_clusters
        )
        if scant and len(seeds) > 1:
            seeds, inertia = self._together(X, seeds)
            seeds = seeds[[np.argmin(inertia)]]
        found = self._converge(X, seeds[0], tol)
        centers, labels, members = self._moved(X, *found, tol) if scant else found

        self.labels_, order = numbered_by_size(labels)
        self.cluster_centers_ = centers[order]
        self.n_clusters_ = self.n_clusters
        self.inertia_ = float(members.ssd.sum() + members.n @ _square(members.mean - centers))
        return self

    def _seeds(self, X: Any) -> Array:
        """Centres from which Lloyd may start on all rows, (F, K, M) float64, the best first."""
        settings: dict[str, Any] = {"max_iter": self.max_iter, "tol": self.tol}
        size = seed_sample(self.sample, self.n_clusters)
        if self.init is None:
            rows = _rows(X, sample_rows(len(X), size, self.random_state))
            distinct = distinct_rows(rows)
            if len(distinct) < self.n_clusters:  # the surplus seeds stay empty and are placed by the repair
                return np.asarray(rows[np.resize(distinct, self.n_clusters)], dtype=np.float64)[None]
            found = finalists(rows, self.n_clusters, n_init=self.n_init, seed=self.random_state, **settings)
            centers = np.array(found[:N_PARTITIONS_TOGETHER])
        else:
            centers = np.asarray(self.init, dtype=np.float64).reshape(-1, self.n_clusters, X.shape[1])[
                :N_PARTITIONS_TOGETHER
            ]
        # what is best on the sample need not be so on all rows
        return centers if len(X) <= size or isinstance(X, da.Array) else improve(X, centers[0], **settings)[None]

    def _sampled(self, X: Any) -> int:
        """Rows in the sample."""
        return min(len(X), seed_sample(self.sample, self.n_clusters))

    def _moved(
        self, X: Any, centers: Array, labels: Array, members: ClusterMoments, tol: float
    ) -> tuple[Array, Array, ClusterMoments]:
        """The partition in which split-and-merge moves end that pay on all rows, as `_converge` returns it.

        Only the halves of the clusters are sought in the sample; what a move costs and saves is seen on all rows.
        """
        rows = _rows(X, sample_rows(len(X), self._sampled(X), self.random_state))
        for _ in range(MAX_MOVES):
            loss = np.sum(each_block(_dissolved, X, labels, centers=centers), axis=0)
            promising = moves(rows, nearest(rows, centers), centers, members.ssd, loss)[:MAX_TRIED_MOVES]
            for start in range(0, len(promising), N_PARTITIONS_TOGETHER):
                trials, inertia = self._together(X, np.array(promising[start : start + N_PARTITIONS_TOGETHER]))
                best = np.argmin(inertia)
                if inertia[best] < (1 - MIN_INERTIA_GAIN) * members.ssd.sum():
                    centers, labels, members = self._converge(X, trials[best], tol)
                    break
            else:
                break
        return centers, labels, members

    def _together(self, X: Any, trials: Array) -> tuple[Array, Array]:
        """Several sets of centres, (T, K, M), after some Lloyd steps, and the inertia of each, (T,)."""
        for _ in range(N_TOGETHER_STEPS):
            self.n_iter_ += 1
            parts = zip(*each_block(_assign_all, X, trials=trials), strict=True)
            found = [reduce(ClusterMoments.merge, part) for part in parts]
            trials = np.array(
                [np.where(one.n[:, None] > 0, one.mean, trial) for one, trial in zip(found, trials, strict=True)]
            )
        return trials, np.array([one.ssd.sum() for one in found])

    def _converge(self, X: Any, centers: Array, tol: float) -> tuple[Array, Array, ClusterMoments]:
        """Lloyd from `centers` to a partition without empty clusters: final centres, labels and their moments."""
        for _ in range(self.n_clusters):  # each repair fills one cluster or more, and none of it raises the inertia
            centers, labels, members = self._settle(X, self._lloyd(X, centers, tol))
            empty = np.flatnonzero(members.n == 0)
            if not empty.size:
                return centers, labels, members
            distance = np.concatenate(each_block(squared_distances, X, labels, centers=centers))
            farthest = np.argsort(-distance, kind="stable")[: empty.size]
            if distance[farthest[0]] == 0:
                break
            centers[empty[: farthest.size]] = _rows(X, np.sort(farthest))
        found = np.count_nonzero(members.n)
        raise InputError(
            f"{self.n_clusters} clusters were asked for, but the {len(X)} rows fall into {found} distinct ones only: "
            f"ask for at most {found}"
        )

    def _lloyd(self, X: Any, centers: Array, tol: float) -> Array:
        if isinstance(X, da.Array):
            from dask_ml.cluster import KMeans as BlockKMeans  # 2 s to import

            engine = BlockKMeans(self.n_clusters, init=centers, max_iter=self.max_iter, tol=tol).fit(X)
        else:
            settings: dict[str, Any] = {"max_iter": self.max_iter, "tol": self.tol}
            engine = sample_kmeans(X, self.n_clusters, n_init=1, seed=0, init=centers, **settings)
        self.n_iter_ += engine.n_iter_
        return np.asarray(engine.cluster_centers_, dtype=np.float64).copy()

    def _settle(self, X: Any, centers: Array) -> tuple[Array, Array, ClusterMoments]:
        labels, members = _assign(X, centers)
        for _ in range(MAX_SETTLING_STEPS):
            if not members.n.all() or np.array_equal(members.mean, centers):
                break
            self.n_iter_ += 1
            centers = members.mean
            labels, members = _assign(X, centers)
        return centers, labels, members


def seed_sample(size: int, n_clusters: int) -> int:
    """Return the rows in the sample from which K seeds come, where `size` is configured."""
    return max(size, 10 * n_clusters)


def numbered_by_size(labels: Array) -> tuple[Array, Array]:
    """Number clusters from the largest; of equals, from the one whose first row comes first.

    Parameters
    ----------
    labels
        (n,) numbers of any clusters, some of which may be unused.

    Returns
    -------
    labels : (n,) int32
        0 to K − 1, all used.
    order : (K,)
        The number that each cluster had.
    """
    kinds, first, codes, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    return np.argsort(order).astype(np.int32)[codes], kinds[order]


def squared_distances(X: Array, labels: Array, *, centers: Array) -> Array:
    """Return the squared distance of each row of X, (n, M), to the centre of its cluster, float64 (n,)."""
    distances = np.empty(len(X))
    for rows in slabs(X):
        distances[rows] = _square(X[rows] - centers[labels[rows]].astype(np.float64))
    return distances


def _square(rows: Array) -> Array:
    """Squared length of each row, (n,)."""
    return np.asarray(np.einsum("ij,ij->i", rows, rows))


def _rows(X: Any, rows: Array) -> Array:
    """Some rows of a NumPy or dask array, in memory."""
    return np.asarray(X[rows].compute() if isinstance(X, da.Array) else X[rows])


def _workers_memory() -> float:
    """Bytes that all workers of the Dask client in use have free before they spill; without workers, what is free."""
    from distributed import get_client

    free = float(psutil.virtual_memory().available)
    try:
        workers = get_client().scheduler_info(n_workers=-1)["workers"].values()
    except ValueError:
        return free
    # 0 stands for no limit; what a worker has imported, PyTorch above all, takes its part of it
    limits = [SPILL_MEMORY_SHARE * worker["memory_limit"] - worker["metrics"]["memory"] for worker in workers]
    return sum(max(0.0, left) if worker["memory_limit"] else free for left, worker in zip(limits, workers, strict=True))


def count_unusable_rows(X: Array) -> int:
    """Return the number of rows of X, (n, M), with a value that is not finite."""
    return int((~np.isfinite(X).all(axis=1)).sum())


def _assign(X: Any, centers: Array) -> tuple[Array, ClusterMoments]:
    """Labels of all rows and the moments of the clusters that they make."""
    labels, members = zip(*each_block(_assign_block, X, centers=centers), strict=True)
    return np.concatenate(labels), reduce(ClusterMoments.merge, members)


def _assign_block(X: Array, *, centers: Array) -> tuple[Array, ClusterMoments]:
    labels = nearest(X, centers)
    return labels, ClusterMoments.from_block(X, labels, n_clusters=len(centers))


def _assign_all(X: Array, *, trials: Array) -> list[ClusterMoments]:
    """Moments of the clusters that each of several sets of centres, (T, K, M), makes of the rows of X."""
    return [_assign_block(X, centers=centers)[1] for centers in trials]


def _dissolved(X: Array, labels: Array, *, centers: Array) -> Array:
    """What the inertia of the rows of X gains when a cluster's members go to the second nearest centres; (K,)."""
    first, second = two_distances(X, centers)
    return np.bincount(labels, weights=second - first, minlength=len(centers))
