"""Density of each component in each cluster (Figure 11 of the paper)."""

from typing import Any

import numpy as np

from laue_dask.segmentation.pca import Array, each_block


def component_ranges(X: Any, *, count: int = 8) -> Array:
    """Return the lowest and highest value of the first `count` components of X, (n, M) NumPy or dask array: (count, 2)
    float64.
    """
    count = min(count, X.shape[1])
    lows, highs = zip(*each_block(_range, X[:, :count]), strict=True)
    return np.column_stack([np.min(lows, axis=0), np.max(highs, axis=0)])


def cluster_densities(X: Any, labels: Array, n_clusters: int, *, ranges: Array, bins: int = 60) -> Array:
    """Return the histograms of the leading components of each cluster's members.

    Parameters
    ----------
    X
        (n, M) NumPy or dask array, read once.
    labels
        (n,), 0 to n_clusters − 1.
    ranges
        (m, 2) as `component_ranges` gives it.
    bins
        Of equal width, between the ends of each range.

    Returns
    -------
    ndarray
        (n_clusters, m, bins) float64; each histogram integrates to 1, to 0 without members. A component without any
        range has all of its density in a bin of width 1.
    """
    counts = sum(each_block(_count, X[:, : len(ranges)], labels, n_clusters=n_clusters, ranges=ranges, bins=bins))
    widths = _widths(ranges) / bins
    members = np.bincount(labels, minlength=n_clusters)
    return np.asarray(counts / np.maximum(members, 1)[:, None, None] / widths[:, None])


def _range(X: Array) -> tuple[Array, Array]:
    return X.min(axis=0).astype(np.float64), X.max(axis=0).astype(np.float64)


def _widths(ranges: Array) -> Array:
    width = ranges[:, 1] - ranges[:, 0]
    return np.where(width > 0, width, 1.0)


def _count(X: Array, labels: Array, *, n_clusters: int, ranges: Array, bins: int) -> Array:
    place = ((X - ranges[:, 0]) / _widths(ranges) * bins).astype(np.int64).clip(0, bins - 1)
    m = len(ranges)
    key = (labels[:, None].astype(np.int64) * m + np.arange(m)) * bins + place
    return np.bincount(key.ravel(), minlength=n_clusters * m * bins).reshape(n_clusters, m, bins)
