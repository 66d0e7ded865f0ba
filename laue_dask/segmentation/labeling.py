"""Labelers: what a segmentation looks like on the specimen (sections 2 and 4 of the paper).

The natural labeler is `label_map`, the PCA labeler `pca_rgb`, direct colouring `direct_rgb` and the indexing labeler
`indexing_labels`; `delegates` picks the one pattern per cluster that is worth indexing.
"""

from typing import Any

import numpy as np

from laue_dask.errors import InputError
from laue_dask.segmentation.clustering import cluster_moments, squared_distances
from laue_dask.segmentation.pca import Array, IncrementalPCA, each_block

NEUTRAL_GREY = 128
"""Value of a colour channel along which nothing varies."""


def label_map(labels: Array, valid: Array, shape: tuple[int, int]) -> Array:
    """Return the natural label of every scan point.

    Parameters
    ----------
    labels
        (n,) labels of the valid patterns, in order.
    valid
        (N,) bool, True where the pattern is usable.
    shape
        (ny, nx) of the scan, N = ny · nx.

    Returns
    -------
    ndarray
        (ny, nx) int32, −1 without a valid pattern.

    Raises
    ------
    InputError
        The numbers of labels, valid patterns and scan points do not fit.
    """
    usable = int(np.count_nonzero(valid))
    if usable != len(labels):
        raise InputError(f"{len(labels)} labels for {usable} valid patterns: label each valid pattern once")
    if len(valid) != shape[0] * shape[1]:
        raise InputError(f"{len(valid)} patterns do not fill a scan of {shape[0]} × {shape[1]} points")
    result = np.full(len(valid), -1, np.int32)
    result[valid] = labels
    return result.reshape(shape)


def by_size(labels: Array) -> Array:
    """Return the natural labels that count from the largest cluster, the first of equals, without gaps: (n,) int32; −1
    stays.
    """
    kept = labels >= 0
    kinds, first, codes, size = np.unique(labels[kept], return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(kinds), np.int32)
    rank[np.lexsort((first, -size))] = np.arange(len(kinds), dtype=np.int32)
    result = np.full(len(labels), -1, np.int32)
    result[kept] = rank[codes]
    return result


def centroids(X: Any, labels: Array, n_clusters: int) -> Array:
    """Return the mean of each cluster's members (eq. 9), (K, M) float32; NaN for a cluster without members.

    Parameters
    ----------
    X
        (n, M) NumPy or dask array.
    labels
        (n,) int32, 0 to n_clusters − 1.
    """
    clusters = cluster_moments(X, labels, n_clusters)
    result: Array = clusters.mean.astype(np.float32)
    result[clusters.n == 0] = np.nan
    return result


def distances(X: Any, labels: Array, centroids: Array) -> Array:
    """Return each pattern's distance to its cluster's centroid, (n,) float32: how well the delegate stands for it."""
    return np.asarray(np.sqrt(_squares(X, labels, centroids)), dtype=np.float32)


def delegates(X: Any, labels: Array, centroids: Array, *, indexable: Array | None = None) -> Array:
    """Return the row of the member nearest to each centroid (Definition 11, eq. 12).

    The delegates of a run are the nearest of the members that lie in one domain: `laue_dask.pipeline.stages.delegates`.

    Parameters
    ----------
    X
        (n, M) NumPy or dask array.
    labels
        (n,) int32, 0 to K − 1.
    centroids
        (K, M).
    indexable
        (n,) bool, False where a pattern is known not to be indexable; all by default.

    Returns
    -------
    ndarray
        (K,) int64 row numbers; the first of equally near members; −1 where no member is indexable.
    """
    return ranked_delegates(X, labels, centroids, indexable=indexable, count=1)[:, 0]


def ranked_delegates(
    X: Any,
    labels: Array,
    centroids: Array,
    *,
    indexable: Array | None = None,
    after: Array | None = None,
    count: int,
) -> Array:
    """Return the rows of the members nearest to each centroid, nearest first: the delegate, and those that stand in for
    it.

    Parameters
    ----------
    X, labels, centroids, indexable
        As `delegates` takes them.
    after
        (n,) whole numbers: a member with a smaller one comes first, however near others are; all the same by default.
    count
        Members of each cluster, at most.

    Returns
    -------
    ndarray
        (K, count) int64 row numbers; −1 where a cluster has no more indexable members.
    """
    squares = _squares(X, labels, centroids)
    rows = np.arange(len(labels)) if indexable is None else np.flatnonzero(indexable)
    order = np.zeros(len(labels), np.int8) if after is None else after
    rows = rows[np.lexsort((squares[rows], order[rows], labels[rows]))]
    _, first, members = np.unique(labels[rows], return_index=True, return_counts=True)
    rank = np.arange(len(rows)) - np.repeat(first, members)
    result = np.full((len(centroids), count), -1, np.int64)
    ranked = rank < count
    result[labels[rows[ranked]], rank[ranked]] = rows[ranked]
    return result


def pca_rgb(centroids: Array) -> Array:
    """Return the colour of each cluster by the PCA labeler (section 4.2): similar clusters get similar colours.

    The first three principal components of the centroids become red, green and blue, each scaled to [0, 255].

    Parameters
    ----------
    centroids
        (K, M); rows of NaN stand for clusters that do not exist.

    Returns
    -------
    ndarray
        (K, 3) uint8; black where there is no cluster. A channel along which nothing varies, as blue for K = 3, is
        mid-grey.
    """
    if np.count_nonzero(np.isfinite(centroids).all(axis=1)) < 2:
        return direct_rgb(centroids)
    return direct_rgb(IncrementalPCA().fit(centroids).transform(centroids), quantiles=(0, 1))


def direct_rgb(components: Array, *, quantiles: tuple[float, float] = (0.005, 0.995)) -> Array:
    """Return the direct colouring (Definition 12): the first three components of each pattern become red, green and
    blue.

    Parameters
    ----------
    components
        (n, M), of which the first three columns are used; rows of NaN stand for patterns that are not valid.
    quantiles
        What is scaled to 0 and to 255; values beyond are clipped, so that one odd pattern cannot flatten the map.
        ``(0, 1)`` is the paper's full range, which is also used for a channel whose quantiles are equal.

    Returns
    -------
    ndarray
        (n, 3) uint8; black where there is no pattern. A channel along which nothing varies is mid-grey.
    """
    exist = np.isfinite(components).all(axis=1)
    result = np.zeros((len(components), 3), np.uint8)
    if not exist.any():
        return result
    result[exist] = NEUTRAL_GREY
    values = components[exist, :3].astype(np.float64)
    low, high = np.quantile(values, quantiles, axis=0)
    full = high <= low
    low[full], high[full] = values[:, full].min(axis=0), values[:, full].max(axis=0)
    # a range this far below the widest is rounding, not signal
    for channel in np.flatnonzero(high - low > 1e-6 * (high - low).max()):
        scaled = (values[:, channel] - low[channel]) / (high[channel] - low[channel])
        result[exist, channel] = np.rint(255 * scaled.clip(0, 1))
    return result


def indexing_labels(property_map: Array, delegate: Array, labels: Array) -> Array:
    """Return the indexing labeler (Definition 13, eq. 17): every point takes the property of its cluster's delegate.

    Parameters
    ----------
    property_map
        (ny, nx) or (ny, nx, c); only its values at the delegates are used.
    delegate
        (K,) pattern index ``y * nx + x``, −1 where a cluster has none.
    labels
        (ny, nx) label map, −1 without a pattern.

    Returns
    -------
    ndarray
        As `property_map`, float64; NaN where a point has no label or its cluster no delegate.

    Raises
    ------
    InputError
        The maps differ in shape.
    """
    if property_map.shape[:2] != labels.shape:
        raise InputError(f"property map of {property_map.shape[:2]} points, label map of {labels.shape}")
    values = property_map.reshape(labels.size, -1)[delegate].astype(np.float64)
    values[delegate < 0] = np.nan
    result = np.full((labels.size, values.shape[1]), np.nan)
    flat = labels.ravel()
    result[flat >= 0] = values[flat[flat >= 0]]
    return result.reshape(property_map.shape)


def _squares(X: Any, labels: Array, centroids: Array) -> Array:
    return np.concatenate(each_block(squared_distances, X, labels, centers=centroids))
