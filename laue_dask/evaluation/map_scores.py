"""Scores of a label map as a map: whether its labels hang together in space, and how well it stands for a true one.

A clustering of patterns knows nothing of where they were recorded. That its labels are contiguous on the specimen is
therefore evidence that it found something there.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from laue_dask.errors import InputError
from laue_dask.segmentation.labeling import indexing_labels
from laue_dask.segmentation.pca import Array
from laue_dask.segmentation.scores import kolmogorov_smirnov, mean_squared_error


@dataclass(frozen=True)
class Contiguity:
    """How often neighbours have the same label.

    Attributes
    ----------
    share
        Of the pairs of neighbours (4 of a point) those with equal labels; NaN without any pair.
    expected
        The same if the labels were shuffled over the points.
    score
        0 where it is as expected, 1 where all neighbours are equal; NaN where nothing else is possible.
    """

    share: float
    expected: float
    score: float


def contiguity(labels: Array) -> Contiguity:
    """Return the spatial contiguity of a label map (ny, nx), −1 without a pattern."""
    first, second = _pairs(labels)
    n = np.bincount(labels[labels >= 0], minlength=1).astype(np.float64)
    total = n.sum()
    if not len(first):
        return Contiguity(np.nan, np.nan, np.nan)
    share = float(np.mean(first == second))
    expected = float((n * (n - 1)).sum() / (total * (total - 1)))
    return Contiguity(share, expected, (share - expected) / (1 - expected) if expected < 1 else np.nan)


def shuffled(labels: Array, *, draws: int = 20, seed: int = 0) -> Array:
    """Return the null: shares of equal neighbours after the labels were shuffled over the points with a pattern,
    (draws,).
    """
    rng = np.random.default_rng(seed)
    null = labels.copy()
    there = labels >= 0
    result = np.empty(draws)
    for draw in range(draws):
        null[there] = rng.permutation(labels[there])
        result[draw] = contiguity(null).share
    return result


def domains(labels: Array) -> Array:
    """Return the connected regions of equal labels, (ny, nx) int32, 0 the largest (the first of equals), −1 without a
    pattern.
    """
    flat = labels.ravel()
    index = np.arange(flat.size).reshape(labels.shape)
    ends = [(index[:, :-1], index[:, 1:]), (index[:-1], index[1:])]
    first, second = (np.concatenate([pair[side].ravel() for pair in ends]) for side in (0, 1))
    joined = (flat[first] == flat[second]) & (flat[first] >= 0)
    graph = csr_array(
        (np.ones(np.count_nonzero(joined), bool), (first[joined], second[joined])), shape=2 * (flat.size,)
    )
    region = connected_components(graph, directed=False)[1][flat >= 0]
    kinds, at, codes, size = np.unique(region, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(kinds), np.int32)
    rank[np.lexsort((at, -size))] = np.arange(len(kinds), dtype=np.int32)
    result = np.full(flat.size, -1, np.int32)
    result[flat >= 0] = rank[codes]
    return result.reshape(labels.shape)


def domain_statistics(labels: Array, *, small: int = 5) -> dict[str, float | int]:
    """Return the sizes of the connected regions of a label map (ny, nx).

    Returns
    -------
    dict
        `domains`, their number; `median_size` and `largest_size` in points; `in_small`, the share of the patterns in
        regions of fewer than `small` points: speckle.
    """
    found = domains(labels)
    size = np.bincount(found[found >= 0])
    if not len(size):
        return {"domains": 0, "median_size": np.nan, "largest_size": 0, "in_small": np.nan}
    return {
        "domains": len(size),
        "median_size": float(np.median(size)),
        "largest_size": int(size.max()),
        "in_small": float(size[size < small].sum() / size.sum()),
    }


def approximation_errors(
    property_map: Array, segmentations: Iterable[tuple[Array, Array]], where: Array | None = None
) -> list[dict[str, float | int]]:
    """Return how well the delegates' property stands for the map (section 4.3, Figure 19), for each of many K.

    Parameters
    ----------
    property_map
        (ny, nx) true map o(x, y), NaN where unknown.
    segmentations
        Label map (ny, nx) and delegates (K,), pattern indices, of each segmentation.
    where
        (ny, nx), True at the points that are compared; all by default.

    Returns
    -------
    list
        `k`, `mse` and `ks` of each.

    Raises
    ------
    InputError
        The maps differ in shape, or hold more than one number per point.
    """
    if property_map.ndim != 2:
        raise InputError(f"property map of {property_map.ndim} dimensions: give one number per point")
    rows: list[dict[str, float | int]] = []
    for labels, delegate in segmentations:
        found = indexing_labels(property_map, delegate, labels)
        rows.append(
            {
                "k": len(delegate),
                "mse": mean_squared_error(property_map, found, where),
                "ks": kolmogorov_smirnov(property_map, found, where),
            }
        )
    return rows


def _pairs(labels: Array) -> tuple[Array, Array]:
    """Labels of all pairs of neighbours that both have one."""
    first = np.concatenate([labels[:, :-1].ravel(), labels[:-1].ravel()])
    second = np.concatenate([labels[:, 1:].ravel(), labels[1:].ravel()])
    both = (first >= 0) & (second >= 0)
    return first[both], second[both]
