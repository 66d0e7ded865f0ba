"""Which patterns stand for a cluster: the members nearest to its centroid among those that lie in one domain.

Definition 11 of the paper takes the nearest member of all. Where a cluster holds both variants of a twin, that is often
a point on the boundary between them, which shows both and cannot be indexed. So members that are unlike both neighbours
on a line through them come last (`laue_dask.grains.purity`); where a cluster has too few others, the patterns decide
which of the nearest of them are sums of two neighbours'. A cluster of such points alone keeps the nearest, and is told.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client
from numpy.typing import NDArray

from laue_dask.compute.run import map_tasks
from laue_dask.config import Recipe
from laue_dask.grains import purity
from laue_dask.grains.neighbourhood import neighbours
from laue_dask.pipeline.stages.label_maps import Segmentation
from laue_dask.pipeline.stages.mixed_points import Patterns, Places, read_patterns
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.segmentation import beam_shares, labeling

N_RANKS = 4
"""The delegate of a cluster and three members that stand in for it."""

MAX_CHECKED_MEMBERS = 32
"""Members of a cluster, at most, whose patterns are looked at where too few are like their neighbours."""

ONE_DOMAIN, TWO_DOMAINS, DOMAINS_UNKNOWN = 0, 1, -1
"""Whether the beam lies on one domain or on two, as `delegates_mixed` has it; −1 also where there is no delegate."""

TWO_DOMAINS_WARNING = "their delegates show two domains"
"""How warnings end about clusters without a member that lies in one domain."""


class DelegateChooser:
    """Chooses delegates for segmentations of the same components of one scan.

    Parameters
    ----------
    samples : (n, M_PCA)
        Components of the valid patterns.
    where
        They lie.
    patterns
        The same ones, reduced; without, features alone decide.
    client
        Of workers that read these; None for threads of this process.
    """

    def __init__(
        self, samples: da.Array, where: SpecimenMap, patterns: Patterns | None, *, client: Client | None
    ) -> None:
        self._samples, self._where, self._client = samples, where, client
        self._patterns = patterns if patterns is not None and beam_shares.invertible(patterns.recipe) else None
        pairs = neighbours(samples, where.valid, where.shape, connectivity=8)
        self._beside, self._unlike = purity.opposite_neighbours(samples, pairs, where.patterns, where.shape[1])

    def choose(self, labels: NDArray[np.int32], centres: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the delegates of labels, (n,) int32, of clusters with centroids (K, M_PCA).

        Returns
        -------
        delegates
            (K, RANKS) int64 pattern indices, the delegate first; −1 where a cluster has no more members.
        mixed
            (K, RANKS) int8: `ONE_DOMAIN`, `TWO_DOMAINS` or `DOMAINS_UNKNOWN` of each.
        """
        doubtful: NDArray[np.bool_] = np.asarray(self._unlike.any(axis=1))
        order: NDArray[np.int8] = doubtful.astype(np.int8)
        nearest = labeling.ranked_delegates(self._samples, labels, centres, count=MAX_CHECKED_MEMBERS, after=order)
        asked = self._asked(nearest, doubtful)
        if self._patterns is not None and asked:
            items = [self._item(rows, self._patterns) for rows in asked]
            for rows, both in zip(
                asked, map_tasks(_mixed, items, (self._patterns.recipe,), client=self._client), strict=True
            ):
                order[rows] = np.where(both, 2, 1)
            order[doubtful & ~np.isin(np.arange(len(order)), np.concatenate(asked))] = 3  # too far away to be asked
            nearest = labeling.ranked_delegates(self._samples, labels, centres, count=N_RANKS, after=order)
        chosen = nearest[:, :N_RANKS]
        seen = np.array(
            [ONE_DOMAIN, ONE_DOMAIN, TWO_DOMAINS, DOMAINS_UNKNOWN]
            if self._patterns is not None
            else [ONE_DOMAIN, DOMAINS_UNKNOWN]
        )[order]
        there = chosen >= 0
        patterns = np.where(there, self._where.patterns[chosen], -1)
        return patterns, np.where(there, seen[chosen], DOMAINS_UNKNOWN).astype(np.int8)

    def _asked(self, nearest: NDArray[np.int64], doubtful: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
        """Doubtful rows of each cluster that has fewer than `N_RANKS` others."""
        found = []
        for members in nearest:
            rows = members[members >= 0]
            if np.count_nonzero(~doubtful[rows]) < N_RANKS and doubtful[rows].any():
                found.append(np.sort(rows[doubtful[rows]]))
        return found

    def _item(
        self, rows: NDArray[np.int64], patterns: Patterns
    ) -> tuple[Places, Places, NDArray[np.int64], NDArray[np.int64]]:
        """Where rows' patterns and their neighbours' are, and which neighbours are asked about."""
        beside = np.where(self._unlike[rows][:, :, None], self._beside[rows], -1)
        needed = np.unique(beside[beside >= 0])
        place = np.where(beside >= 0, np.searchsorted(needed, beside), -1)
        return patterns.locate(rows), patterns.locate(needed), place[:, :, 0], place[:, :, 1]


def with_delegates(one: Segmentation, chooser: DelegateChooser, where: SpecimenMap, m_pca: int) -> Segmentation:
    """Return a segmentation with the delegates of `DelegateChooser.choose`."""
    labels = one.labels.ravel()[where.patterns]
    delegates, mixed = chooser.choose(labels, one.centroids[:, :m_pca])
    return replace(one, delegate=delegates[:, 0], delegates=delegates, delegates_mixed=mixed)


def two_domain_warnings(found: Sequence[Segmentation]) -> list[str]:
    """Return a line for each segmentation with clusters none of whose members lies in one domain."""
    lines = []
    for one in found:
        if one.delegates_mixed is None:
            continue
        which = np.flatnonzero(one.delegates_mixed[:, 0] == TWO_DOMAINS).tolist()
        if which:
            named = ", ".join(map(str, which[:MAX_NAMED_CLUSTERS])) + (
                f" and {len(which) - MAX_NAMED_CLUSTERS} more" if which[MAX_NAMED_CLUSTERS:] else ""
            )
            points = "points where the beam lies between domains"
            lines.append(f"K = {one.k}: cluster{'s' * (len(which) > 1)} {named} of {points}: {TWO_DOMAINS_WARNING}")
    return lines


MAX_NAMED_CLUSTERS = 8
"""Clusters that a line names, at most."""


def _mixed(item: tuple[Places, Places, NDArray[np.int64], NDArray[np.int64]], recipe: Recipe) -> NDArray[np.bool_]:
    places, beside, first, second = item
    return purity.is_mixed(read_patterns(places), first, second, read_patterns(beside), recipe)
