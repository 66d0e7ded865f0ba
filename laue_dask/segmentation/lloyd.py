"""The compiled loops of k-means of a small table, of which a search for seeds makes thousands.

scikit-learn's `KMeans` spends a millisecond on every fit before its first step, ten times what a step of such a table
takes. The steps here are its own (greedy k-means++, Lloyd, an empty cluster moves to the farthest row), with sums in
float64 in the order of the rows.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from laue_dask.runtime.compiled_loops import compiled

Table = NDArray[np.float64]
Numbers = NDArray[np.intp]

BLOCK_ROWS = 512
"""Rows whose distances are held at a time."""


class Fitted(NamedTuple):
    """The end of Lloyd's iteration, under the names of scikit-learn's `KMeans`.

    Attributes
    ----------
    cluster_centers_
        (K, M) float64.
    labels_
        (n,), the nearest centre of each row; of centres equally near, the first.
    inertia_
        Sum of the squared distances of the rows to their centres.
    n_iter_
        Number of Lloyd steps.
    """

    cluster_centers_: Table
    labels_: Numbers
    inertia_: float
    n_iter_: int


def plus_plus(X: NDArray[np.floating], n_clusters: int, seed: int) -> Table:
    """Return the centres (K, M) by greedy k-means++ (Arthur and Vassilvitskii 2007): rows of X, (n, M).

    Each centre is the best of 2 + ln K rows, drawn with a probability that grows with the squared distance to the
    centres before. As in scikit-learn rows may come twice where fewer than K are distinct.
    """
    trials = 2 + int(math.log(n_clusters))
    chance = np.random.default_rng(seed).random((n_clusters, trials))
    return np.asarray(X[_drawn(_columns(X), chance)], dtype=np.float64)


def lloyd(X: NDArray[np.floating], centers: NDArray[np.floating], *, max_iter: int, tol: float) -> Fitted:
    """Run Lloyd's iteration on X, (n, M), from `centers`, (K, M).

    It ends when no label changes, when the squared shift of the centres is at most `tol` times the mean variance of
    the columns (as in scikit-learn), or after `max_iter` steps. Labels are those of the centres that it returns.
    """
    return Fitted(*_lloyd(_columns(X), np.array(centers, np.float64, order="C"), max_iter, tol))


def _columns(X: NDArray[np.floating]) -> Table:
    """Columns of X one after another, so that a processor takes several rows at a time.

    Always of one dtype and order, for each of which the loops would be compiled anew.
    """
    return np.ascontiguousarray(X.T, dtype=np.float64)


@compiled
def _squares(columns: Table, center: Table, first: int, away: Table) -> None:
    """Squared distance to a centre, (M,), of the rows from `first` on, as many as `away` has."""
    away[:] = 0.0
    for m in range(len(columns)):
        column, value = columns[m, first : first + len(away)], center[m]
        for i in range(len(away)):
            step = column[i] - value
            away[i] += step * step


@compiled
def _drawn(columns: Table, chance: Table) -> Numbers:
    """Rows that are the centres; `chance`, (K, trials) in [0, 1), draws the candidates of each."""
    n, (n_clusters, trials) = columns.shape[1], chance.shape
    chosen = np.empty(n_clusters, np.intp)
    chosen[0] = min(n - 1, int(chance[0, 0] * n))
    closest, kept, trial, running = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    _squares(columns, columns[:, chosen[0]].copy(), 0, closest)
    for k in range(1, n_clusters):
        total = 0.0
        for i in range(n):
            total += closest[i]
            running[i] = total
        best = np.inf
        for t in range(trials):
            candidate = min(n - 1, np.searchsorted(running, chance[k, t] * total, side="right"))
            _squares(columns, columns[:, candidate].copy(), 0, trial)
            left = 0.0
            for i in range(n):
                trial[i] = min(closest[i], trial[i])
                left += trial[i]
            if t == 0 or left < best:
                best, chosen[k] = left, candidate
                kept, trial = trial, kept
        closest, kept = kept, closest
    return chosen


@compiled
def _assign(columns: Table, centers: Table, labels: Numbers, distance: Table) -> bool:
    """Set the nearest centre of each row and its squared distance; whether a label changed."""
    n, changed = columns.shape[1], False
    away, nearest = np.empty(BLOCK_ROWS), np.empty(BLOCK_ROWS, np.intp)
    for first in range(0, n, BLOCK_ROWS):
        length = min(BLOCK_ROWS, n - first)
        least = distance[first : first + length]
        _squares(columns, centers[0], first, least)
        nearest[:length] = 0
        for k in range(1, len(centers)):
            _squares(columns, centers[k], first, away[:length])
            for i in range(length):
                nearer = away[i] < least[i]
                nearest[i] = k if nearer else nearest[i]
                least[i] = away[i] if nearer else least[i]
        for i in range(length):
            changed |= labels[first + i] != nearest[i]
            labels[first + i] = nearest[i]
    return changed


@compiled
def _variance(columns: Table) -> float:
    """Mean variance of the columns."""
    total = 0.0
    for m in range(len(columns)):
        column, mean, square = columns[m], 0.0, 0.0
        for value in column:
            mean += value
        mean /= len(column)
        for value in column:
            square += (value - mean) ** 2
        total += square / len(column)
    return total / len(columns)


@compiled
def _lloyd(columns: Table, centers: Table, max_iter: int, tol: float) -> tuple[Table, Numbers, float, int]:
    n_columns, n = columns.shape
    n_clusters = len(centers)
    labels, distance = np.full(n, -1, np.intp), np.empty(n)
    limit, settled, steps = tol * _variance(columns), False, 0
    while steps < max_iter:
        steps += 1
        if not _assign(columns, centers, labels, distance):
            settled = True
            break
        moved, count = np.zeros_like(centers), np.zeros(n_clusters, np.intp)
        for i in range(n):
            count[labels[i]] += 1
        for m in range(n_columns):
            for i in range(n):
                moved[labels[i], m] += columns[m, i]
        for k in range(n_clusters):
            if count[k] == 0:
                # The farthest row leaves its cluster and is one of its own.
                far = np.argmax(distance)
                if distance[far] > 0:
                    count[labels[far]] -= 1
                    for m in range(n_columns):
                        moved[labels[far], m] -= columns[m, far]
                        moved[k, m] = columns[m, far]
                    count[k], distance[far] = 1, 0.0
        shift = 0.0
        for k in range(n_clusters):
            for m in range(n_columns):
                mean = moved[k, m] / count[k] if count[k] else centers[k, m]
                shift += (mean - centers[k, m]) ** 2
                centers[k, m] = mean
        if shift <= limit:
            break
    if not settled:
        _assign(columns, centers, labels, distance)
    inertia = 0.0
    for i in range(n):
        inertia += distance[i]
    return centers, labels, inertia, steps
