"""K-means of rows that fit into memory; it gives the start of the iteration over all patterns.

The best of several k-means++ starts is improved by split-and-merge moves (Kaukoranta, Fränti and Nevalainen 1998): one
cluster is dissolved, another split in two, and Lloyd goes on from there. A local optimum whose centres are distributed
wrongly among the clumps of the data, which more starts seldom cure, is left that way.
"""

import warnings
from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from laue_dask.runtime.threads import one_thread
from laue_dask.segmentation.lloyd import lloyd, plus_plus
from laue_dask.segmentation.pca import Array

N_START_STEPS = 10
"""Lloyd steps after which the starts are compared."""

N_FINALISTS = 2
"""Starts from which moves go on."""

MAX_SMALL_TABLE_VALUES = 2**16
"""Rows times clusters up to which starts take all their steps, scikit-learn's own are among them, all that differ go
on, and more moves are tried: a few rows decide there. Most steps are cheap; where columns are many, the better
partition is paid for with time."""

MAX_FAILED_MOVES = 4
"""Moves tried before the partition is taken as it is."""

MAX_FAILED_MOVES_SMALL_TABLE = 16
"""Moves tried in a small table before the best partitions are taken as they are."""

N_FINALISTS_SMALL_TABLE = 2
"""Partitions from which that many moves are tried."""

N_TRIAL_STEPS = 20
"""Lloyd steps after which a move must have paid."""

DEFAULT_TOLERANCE = 1e-4
"""Tolerance of Lloyd where none is given, as scikit-learn's."""

MIN_INERTIA_GAIN = 1e-4
"""Share of the inertia that a move must save."""

N_SPLIT_CANDIDATES = 16
"""Clusters that may be split in one round: those with the largest spread."""

N_DISSOLVE_CANDIDATES = 8
"""Clusters that may be dissolved in one round: those that cost least."""

MAX_COMPILED_OPERATIONS = 2**19
"""Rows times columns times clusters up to which a fit of `laue_dask.segmentation.lloyd` is faster than one of
scikit-learn's, whose products of matrices win in larger tables."""

DISTANCES_PER_BLOCK = 2**22
"""Distances held at a time: 32 MiB of float64."""


def sample_rows(n: int, size: int, seed: int) -> Array:
    """Return the indices of `size` of n rows (all, where n is not larger), one of each of as many equal runs; sorted
    int64.

    Rows follow the scan, so the sample is stratified over the specimen: every region has its share, and nothing that
    repeats along the scan is hit or missed as a whole.
    """
    if size >= n:
        return np.arange(n)
    edges = np.arange(size + 1) * n // max(size, 1)
    return np.asarray(np.random.default_rng(seed).integers(edges[:-1], edges[1:]))


def distinct_rows(X: Array) -> Array:
    """Return the index of one row of each kind in X, (n, M)."""
    rows = np.ascontiguousarray(X) + 0.0  # -0.0 becomes 0.0, and nothing else changes
    return np.unique(rows.view(f"V{rows.itemsize * rows.shape[1]}").ravel(), return_index=True)[1]


def sample_kmeans(
    X: Array,
    n_clusters: int,
    *,
    n_init: int,
    seed: int,
    init: Any = "k-means++",
    max_iter: int = 300,
    tol: float = DEFAULT_TOLERANCE,
) -> Any:
    """Return scikit-learn's k-means, fitted to the rows of X in memory; the same on any number of cores.

    One thread, because scikit-learn adds up its threads' partial sums in the order in which they finish.
    """
    with one_thread():
        return _fit(X, n_clusters, init=init, n_init=n_init, max_iter=max_iter, tol=tol, random_state=seed)


def search(
    X: Array,
    n_clusters: int,
    *,
    n_init: int,
    seed: int,
    max_iter: int = 300,
    tol: float = DEFAULT_TOLERANCE,
    thorough: bool = True,
) -> Array:
    """Return the centres of the best partition of the rows of X, (n, M), that starts and moves find; (K, M) float64.

    X needs at least K distinct rows. Each of `n_init` starts takes a few Lloyd steps; from the `N_FINALISTS` that are
    best by then, moves go on, because two local optima may be moves apart of which none pays. `thorough` is for small
    tables (`MAX_SMALL_TABLE_VALUES`), where more is tried.
    """
    return finalists(X, n_clusters, n_init=n_init, seed=seed, max_iter=max_iter, tol=tol, thorough=thorough)[0]


def finalists(
    X: Array,
    n_clusters: int,
    *,
    n_init: int,
    seed: int,
    max_iter: int = 300,
    tol: float = DEFAULT_TOLERANCE,
    thorough: bool = True,
) -> list[Array]:
    """Return the centres of all partitions in which the moves of `search` end, the best first."""
    small = thorough and len(X) * n_clusters <= MAX_SMALL_TABLE_VALUES
    steps, going_on = (max_iter, n_init) if small else (N_START_STEPS, N_FINALISTS)
    with one_thread():
        fits = [_started(X, n_clusters, seed + i, steps) for i in range(n_init)]
        if small:
            fits.append(_fit(X, n_clusters, n_init=n_init, max_iter=max_iter, tol=tol, random_state=seed))
        ends = [_improved(X, start.cluster_centers_, max_iter, tol) for start in _different(fits)[:going_on]]
        if small:
            best, others = _different(ends)[:N_FINALISTS_SMALL_TABLE], _different(ends)[N_FINALISTS_SMALL_TABLE:]
            better = [_improved(X, end.cluster_centers_, max_iter, tol, MAX_FAILED_MOVES_SMALL_TABLE) for end in best]
            ends = [*better, *others]
    return [np.asarray(end.cluster_centers_, dtype=np.float64) for end in _different(ends)]


def _different(fits: list[Any]) -> list[Any]:
    """The best of the fits that end in each place, which many do, in the order of their inertia."""
    places = {f"{fitted.inertia_:.5e}": fitted for fitted in sorted(fits, key=_inertia, reverse=True)}
    return sorted(places.values(), key=_inertia)


def improve(X: Array, centers: Array, *, max_iter: int = 300, tol: float = DEFAULT_TOLERANCE) -> Array:
    """Return the centres, (K, M) float64, in which Lloyd and moves on the rows of X end, from given centres."""
    with one_thread():
        return np.asarray(_improved(X, centers, max_iter, tol).cluster_centers_, dtype=np.float64)


def _started(X: Array, n_clusters: int, seed: int, max_iter: int) -> Any:
    """The fitted k-means in which Lloyd ends from a k-means++ start."""
    return _continued(X, plus_plus(X, n_clusters, seed), max_iter)


def _continued(X: Array, centers: Array, max_iter: int, tol: float = DEFAULT_TOLERANCE) -> Any:
    """The fitted k-means in which Lloyd from `centers` ends."""
    if X.size * len(centers) <= MAX_COMPILED_OPERATIONS:
        return lloyd(X, centers, max_iter=max_iter, tol=tol)
    return _fit(X, len(centers), init=centers, max_iter=max_iter, tol=tol)


def _fit(X: Array, n_clusters: int, **settings: Any) -> Any:
    # The table was looked at before.
    with warnings.catch_warnings(), config_context(assume_finite=True, skip_parameter_validation=True):
        # Fewer distinct rows than clusters, but for rounding: what is left empty is seen and dealt with by `KMeans`.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(n_clusters, **{"n_init": 1, "random_state": 0, **settings}).fit(X)


def _inertia(fitted: Any) -> float:
    return float(fitted.inertia_)


def _improved(X: Array, centers: Array, max_iter: int, tol: float, tried: int = MAX_FAILED_MOVES) -> Any:
    """The fitted k-means in which Lloyd from `centers` and then moves end, after `tried` of which none paid."""
    while True:
        fitted = _continued(X, centers, max_iter, tol)
        moved = _moved(X, fitted, tried)
        if moved is None:
            return fitted
        centers = moved


def _moved(X: Array, fitted: Any, tried: int) -> Array | None:
    """Centres after the first of the most promising moves that pays, or None."""
    centers, labels = fitted.cluster_centers_, fitted.labels_
    if len(centers) < 2 or fitted.inertia_ <= 0:
        return None
    nearest, second = two_distances(X, centers)
    spread = np.bincount(labels, weights=nearest, minlength=len(centers))
    loss = np.bincount(labels, weights=second - nearest, minlength=len(centers))
    for trial in moves(X, labels, centers, spread, loss)[:tried]:
        moved = _continued(X, trial, N_TRIAL_STEPS)
        if moved.inertia_ < (1 - MIN_INERTIA_GAIN) * fitted.inertia_:
            return np.asarray(moved.cluster_centers_)
    return None


def moves(rows: Array, labels: Array, centers: Array, spread: Array, loss: Array) -> list[Array]:
    """Return the centres, (K, M) each, after moves that may lower the inertia, the most promising first.

    Parameters
    ----------
    rows, labels
        (n, M) and (n,): members of the clusters, all or a sample, in which the halves of a cluster are sought.
    centers
        (K, M).
    spread
        (K,) sum of the squared distances of a cluster's members to its centre.
    loss
        (K,) what the inertia gains when a cluster is dissolved and its members go to the second nearest centres.
    """
    n_clusters = len(centers)
    order = np.argsort(labels, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(labels, minlength=n_clusters))[:-1])
    halves: dict[int, Array] = {}
    found: list[tuple[float, int, int]] = []
    cheapest = np.argsort(loss, kind="stable")[: N_DISSOLVE_CANDIDATES + 1]
    with one_thread():
        for split in map(int, np.argsort(-spread, kind="stable")[:N_SPLIT_CANDIDATES]):
            own = rows[members[split]]
            if len(own) < 2 or (own == own[0]).all():
                continue
            two = _started(own, 2, 0, N_TRIAL_STEPS)
            halves[split] = two.cluster_centers_
            gain = spread[split] * (1 - two.inertia_ / (own.var(axis=0, dtype=np.float64).sum() * len(own)))
            found += [(float(loss[gone] - gain), split, int(gone)) for gone in cheapest if gone != split]
    trials = []
    for _, split, gone in sorted(found):
        trial = np.array(centers, dtype=np.float64)
        trial[[split, gone]] = halves[split]
        trials.append(trial)
    return trials


def two_distances(X: Array, centers: Array) -> tuple[Array, Array]:
    """Return the squared distances of each row of X to its nearest and its second nearest centre, (n,) each."""
    origin = centers.mean(axis=0)  # or the squares would cancel far from the origin
    away = centers - origin
    squares = np.einsum("ij,ij->i", away, away)
    doubled = -2 * away.T
    first, second = np.empty(len(X)), np.empty(len(X))
    height = max(1, DISTANCES_PER_BLOCK // len(centers))
    for start in range(0, len(X), height):
        block = slice(start, start + height)
        rows = X[block] - origin
        distance = rows @ doubled
        distance += squares
        distance.partition(1, axis=1)
        own = np.einsum("ij,ij->i", rows, rows)
        first[block], second[block] = distance[:, 0] + own, distance[:, 1] + own
    return first, second
