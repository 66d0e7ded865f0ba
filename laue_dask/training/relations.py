"""Relations between a scan's own patterns, without any label: which of them show one grain, and which show two.

Grains by neighbourhood (`laue_dask.grains.neighbourhood`) follow a bent grain from one end to the other, over those
buried below it, where the distance of its two ends in feature space is that of any two grains. Where two of their
regions touch, there is a boundary: they are different, however alike. Regions that do not touch may be one crystal met
twice, unless their features are unlike. A pattern beside a boundary may be a mixture, and belongs to none.

Features have something to learn from that where they wander inside grains, from one end to the other. Where they
scatter about each grain's mean instead, k-means has no difficulty with long grains, and regions of neighbours may well
be coarser than what it finds: lamellae that are narrower than the beam.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laue_dask.grains.neighbourhood import NeighbourhoodGrains, neighbours
from laue_dask.segmentation import labeling

MAX_UNLIKE_COSINE = 0.4
"""Cosine of mean features below which regions that do not touch are different grains."""

MIN_INNER_PATTERNS = 3
"""Patterns away from its boundary, without which all of a region's patterns stand for it."""


@dataclass(frozen=True)
class Relations:
    """Which patterns belong together, and which do not.

    Attributes
    ----------
    grain : (n,) int64
        Of each pattern; -1 where nothing is known of it.
    apart : (grains, grains) bool
        Which of them are different crystals.
    """

    grain: NDArray[np.int64]
    apart: NDArray[np.bool_]

    def pairs(self, places: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which pairs (m, m) of patterns (m,) of grains are together, and which are apart.

        Of the others nothing is known: they may be one crystal or two.
        """
        grain = self.grain[places]
        return grain[:, None] == grain, self.apart[np.ix_(grain, grain)]


def find_relations(
    features: NDArray[np.float32],
    valid: NDArray[np.bool_],
    shape: tuple[int, int],
    patterns: Callable[[NDArray[np.int64]], NDArray[np.uint8]],
) -> Relations:
    """Return what the neighbourhood of a scan's patterns says of them.

    Parameters
    ----------
    features : (n, M_AE)
        Of the valid patterns, in order.
    valid : (ny · nx,) bool
    shape
        (ny, nx) of the scan.
    patterns
        See `NeighbourhoodGrains.fit`.
    """
    region = NeighbourhoodGrains().fit(features, shape=shape, valid=valid, patterns=patterns).labels_.astype(np.int64)
    count = int(region.max(initial=-1)) + 1
    pairs = neighbours(features, valid, shape)
    crossed = region[pairs.first] != region[pairs.second]
    ends = pairs.first[crossed], pairs.second[crossed]
    apart = np.zeros((count, count), bool)
    apart[region[ends[0]], region[ends[1]]] = True
    inner = region.copy()
    inner[np.concatenate(ends)] = -1
    thin = np.bincount(inner[inner >= 0], minlength=count) < MIN_INNER_PATTERNS
    grain = np.where(thin[region], region, inner)
    means = _means(features, grain, count)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    apart |= apart.T | (means @ means.T < MAX_UNLIKE_COSINE)
    np.fill_diagonal(apart, False)
    return Relations(grain, apart)


def feature_drift(
    features: NDArray[np.float32], relations: Relations, valid: NDArray[np.bool_], shape: tuple[int, int]
) -> float:
    """Return how much of the features' scatter is steady change inside grains, from neighbour to neighbour.

    The variance about the grains' means, less what neighbours of a grain scatter (von Neumann's estimate of a variance
    that a trend does not raise, 1941), as a share of the variance over the scan. At most 1; about 0, and possibly
    negative, where features scatter at random about the mean of their grain.

    Parameters
    ----------
    features : (n, M_AE)
        Of the valid patterns, in order.
    """
    grain, count = relations.grain, len(relations.apart)
    known = grain >= 0
    if not known.any():
        return 0.0
    whole = float(features[known].var(axis=0).sum()) * np.count_nonzero(known)
    if whole <= 0:
        return 0.0
    own = grain[known]
    off = np.square(features[known] - _means(features, grain, count)[own]).sum(axis=1)
    scatter = np.bincount(own, weights=off, minlength=count)
    pairs = neighbours(features, valid, shape)
    inside = (grain[pairs.first] == grain[pairs.second]) & (grain[pairs.first] >= 0)
    beside = grain[pairs.first[inside]]
    steps = np.bincount(beside, minlength=count)
    step = np.bincount(beside, weights=pairs.distance[inside] ** 2, minlength=count) / np.maximum(steps, 1) / 2
    steady = scatter - np.bincount(own, minlength=count) * step
    return float(steady[steps > 0].sum() / whole)


def _means(features: NDArray[np.float32], grain: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Mean features (count, M_AE) of the patterns of each grain."""
    return np.asarray(labeling.centroids(features[grain >= 0], grain[grain >= 0], count))
