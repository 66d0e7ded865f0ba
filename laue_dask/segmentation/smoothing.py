"""Smooth label maps: the Markov random field that the paper asks for in its outlook.

The energy of a label map is the sum over the patterns of the squared distance to their centroid, in units of the mean
squared distance to the nearest one, plus a weight for each pair of neighbours with different labels (Potts model).
Iterated conditional modes lower it: the points of one colour of a checkerboard have no neighbours among themselves, so
each takes the label that suits it best, all at once and the same on every machine.
"""

from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from laue_dask.errors import InputError
from laue_dask.segmentation.labeling import label_map
from laue_dask.segmentation.pca import Array, each_block

MAX_SWEEPS = 100


def potts(X: Any, labels: Array, centroids: Array, *, valid: Array, shape: tuple[int, int], weight: float) -> Array:
    """Return the labels of a smoother map.

    Parameters
    ----------
    X
        (n, M) NumPy or dask array: components of the valid patterns, in order.
    labels
        (n,) natural labels, 0 to K − 1.
    centroids
        (K, M).
    valid
        (ny · nx,) bool; a point without a pattern has no say.
    shape
        (ny, nx).
    weight
        Of a pair of neighbours with different labels; 0 leaves the labels as they are.

    Returns
    -------
    ndarray
        (n,) int32. No label map that differs in the points of one colour alone has less energy.

    Raises
    ------
    InputError
        The weight is negative or the lengths do not fit.
    """
    if not weight >= 0:
        raise InputError(f"smoothing weight {weight}: give 0 or more")
    painted = label_map(labels, valid, shape)
    if weight == 0 or not len(labels):
        return labels.astype(np.int32)
    cost = costs(X, centroids)
    row = label_map(np.arange(len(labels)), valid, shape)
    y, x = np.indices(shape)
    colours = [row[((y + x) % 2 == colour) & (row >= 0)] for colour in (0, 1)]
    flat = np.flatnonzero(valid)
    for _ in range(MAX_SWEEPS):
        changed = False
        for rows in colours:
            total = cost[rows] - weight * _agreeing(painted, len(centroids), flat[rows])
            own = painted.ravel()[flat[rows]]
            best = total.argmin(axis=1)
            at = np.arange(len(rows))
            # equally good labels are no reason to change, or a sweep might never end
            better = total[at, best] < total[at, own]
            painted.ravel()[flat[rows[better]]] = best[better]
            changed |= bool(better.any())
        if not changed:
            break
    return np.asarray(painted.ravel()[flat], dtype=np.int32)


def costs(X: Any, centroids: Array) -> Array:
    """Return the squared distance of each pattern to each centroid, (n, K) float32, in units of the mean one to the
    nearest.
    """
    squares = np.concatenate(each_block(_squares, X, centroids=centroids))
    scale = float(squares.min(axis=1).mean(dtype=np.float64)) if len(squares) else 0.0
    return np.asarray(squares / (scale if scale > 0 else 1.0), dtype=np.float32)


def energy(cost: Array, painted: Array, valid: Array, weight: float) -> float:
    """Return the energy of a label map (ny, nx) whose patterns have `cost` (n, K)."""
    labels = painted.ravel()[valid]
    unlike = sum(
        np.count_nonzero((one != two) & (one >= 0) & (two >= 0))
        for one, two in ((painted[:, :-1], painted[:, 1:]), (painted[:-1], painted[1:]))
    )
    return float(cost[np.arange(len(labels)), labels].sum(dtype=np.float64) + weight * unlike)


def _squares(X: Array, *, centroids: Array) -> Array:
    return cdist(X, centroids, "sqeuclidean").astype(np.float32)


def _agreeing(painted: Array, k: int, points: Array) -> Array:
    """Number of neighbours with each label, (len(points), K), of points of the map (ny, nx)."""
    y, x = np.divmod(points, painted.shape[1])
    framed = np.pad(painted, 1, constant_values=-1)
    count = np.zeros((len(points), k), np.int8)
    at = np.arange(len(points))
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        label = framed[y + dy, x + dx]
        there = label >= 0
        count[at[there], label[there]] += 1
    return count
