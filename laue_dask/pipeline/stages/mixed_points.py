"""Points where the beam straddles two domains get the label of the one with the larger share.

`laue_dask.segmentation.beam_shares` finds the shares.

Patterns that are nearly as near to the centroid of another domain are read again, once for all K, and a few of each
cluster: some per cent of a scan of plain grains, up to half of one whose crystals bend. Where K is larger than the
number of domains more are near another centroid, but then two clusters of one domain are not told apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from distributed import Client
from numpy.typing import NDArray

from laue_dask.compute.run import map_tasks
from laue_dask.config import Recipe
from laue_dask.io import block_reader
from laue_dask.io.block_files import location
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.runtime.progress import Progress
from laue_dask.schema import PATTERN_SIZE
from laue_dask.segmentation import beam_shares, labeling
from laue_dask.segmentation.pca import each_block

PATTERNS_PER_TASK = 512
"""Patterns of a task, which takes some tenths of a second."""

NOT_RELABELLED_WARNING = "points between two domains keep the estimator's labels"
"""How warnings end about segmentations that are not shared out."""

Places = list[tuple[str, str, NDArray[np.int64]]]
"""Arrays on disk, and which of their patterns."""


@dataclass(frozen=True)
class Patterns:
    """The reduced patterns of what is clustered: the valid ones of a scan, or of several, one after the other."""

    recipe: Recipe
    scans: Sequence[tuple[zarr.Array[Any], SpecimenMap]]

    def locate(self, rows: NDArray[np.int64]) -> Places:
        """Return where the patterns of some rows, ascending, are."""
        found, before = [], 0
        for (root, member), own in self._arrays:
            here = rows[slice(*np.searchsorted(rows, (before, before + len(own))))] - before
            before += len(own)
            if len(here):
                found.append((root, member, own[here]))
        return found

    @cached_property
    def _arrays(self) -> list[tuple[tuple[str, str], NDArray[np.int64]]]:
        """Of each scan, where its array is and which of its patterns are valid."""
        return [(location(array), where.patterns) for array, where in self.scans]


@dataclass(frozen=True)
class Labels:
    """Labels of the valid patterns, (n,) int32, in n_clusters clusters."""

    labels: NDArray[np.int32]
    n_clusters: int


def relabel_mixed_points(
    X: Any, found: Sequence[Labels], patterns: Patterns, *, client: Client | None, progress: Progress
) -> list[Labels]:
    """Return the segmentations of the same components, each with the labels of points between two domains by their
    shares.

    Clusters are named by their sizes again. What stands for a cluster stays in it, so that none is lost. Segmentations
    of which `not_relabelled_warnings` tells stay as they are.

    Parameters
    ----------
    X
        (n, M_PCA) NumPy or dask array.
    client
        None for threads of this process.

    Raises
    ------
    StoreError
        Patterns are damaged.
    """
    asked = [i for i, one in enumerate(found) if 2 <= one.n_clusters <= beam_shares.MAX_CLUSTERS]
    if not asked or not beam_shares.invertible(patterns.recipe):
        return list(found)
    doubtful = [_Doubtful.of(X, found[i]) for i in asked]
    members = [patterns.locate(rows) for one in doubtful for rows in one.members]
    domains = np.stack(map_tasks(_own_pattern, members, (patterns.recipe,), client=client))
    first = np.cumsum([0, *(len(one.members) for one in doubtful)])
    doubtful = [one.between(domains[start:]) for one, start in zip(doubtful, first, strict=False)]
    rows = np.unique(np.concatenate([one.rows for one in doubtful]))
    if not len(rows):
        return list(found)
    own, other = np.full((2, len(rows), len(doubtful)), -1, np.int32)
    for p, (one, start) in enumerate(zip(doubtful, first, strict=False)):
        at = np.searchsorted(rows, one.rows)
        own[at, p], other[at, p] = one.own + start, one.other + start
    parts = [slice(start, start + PATTERNS_PER_TASK) for start in range(0, len(rows), PATTERNS_PER_TASK)]
    items = [(patterns.locate(rows[part]), own[part], other[part]) for part in parts]
    with progress.stage("mixed points", total=len(rows)) as advance:
        moved = map_tasks(
            _moved, items, (domains, patterns.recipe), client=client, on_done=lambda item: advance(len(item[1]))
        )
    result = list(found)
    for i, start, one, theirs in zip(asked, first, other.T, np.concatenate(moved).T, strict=False):
        labels = found[i].labels.copy()
        labels[rows[theirs]] = one[theirs] - start
        result[i] = Labels(labeling.by_size(labels), found[i].n_clusters)
    return result


def not_relabelled_warnings(found: Sequence[tuple[int, int]], recipe: Recipe) -> list[str]:
    """Say for each segmentation, (K, clusters), whose labels `relabel_mixed_points` leaves as they are, why."""
    if not beam_shares.invertible(recipe):
        given = f"recipe.clip_sigma = {recipe.clip_sigma:g} with recipe.softening_sigma = {recipe.softening_sigma:g}"
        return [f"{given}: intensities cannot be recovered from so few grey levels, {NOT_RELABELLED_WARNING}"]
    most = beam_shares.MAX_CLUSTERS
    return [
        f"K = {k}: {clusters} clusters, more than {most}: {NOT_RELABELLED_WARNING}"
        for k, clusters in found
        if clusters > most
    ]


@dataclass(frozen=True)
class _Doubtful:
    """Rows that are nearly as near to another centroid, the clusters of both, and the rows that stand for each."""

    rows: NDArray[np.int64]
    own: NDArray[np.int32]
    other: NDArray[np.int32]
    members: list[NDArray[np.int64]]

    @classmethod
    def of(cls, X: Any, one: Labels) -> "_Doubtful":
        centres = labeling.centroids(X, one.labels, one.n_clusters)
        near = each_block(beam_shares.nearest_other_cluster, X, one.labels, centers=centres)
        other, margin = (np.concatenate(parts) for parts in zip(*near, strict=True))
        members = beam_shares.representatives(one.labels, margin, one.n_clusters)
        between = margin < beam_shares.MAX_RELATIVE_MARGIN
        between[np.concatenate(members)] = False
        rows = np.flatnonzero(between)
        return cls(rows, one.labels[rows], other[rows], members)

    def between(self, domains: NDArray[np.float32]) -> "_Doubtful":
        """Those between two domains and not between two clusters of one."""
        kept = beam_shares.distinguishable(domains, self.own, self.other)
        return _Doubtful(self.rows[kept], self.own[kept], self.other[kept], self.members)


def _own_pattern(members: Places, recipe: Recipe) -> NDArray[np.float32]:
    if not members:  # a cluster that does not exist
        return np.zeros((PATTERN_SIZE, PATTERN_SIZE), np.float32)
    return beam_shares.domain_pattern(beam_shares.intensities(read_patterns(members), recipe))


def _moved(
    item: tuple[Places, NDArray[np.int32], NDArray[np.int32]], domains: NDArray[np.float32], recipe: Recipe
) -> NDArray[np.bool_]:
    places, own, other = item
    return beam_shares.other_is_larger(beam_shares.beam_shares(read_patterns(places), own, other, domains, recipe))


def read_patterns(places: Places) -> NDArray[np.uint8]:
    """Return the patterns (n, 128, 128) of `Patterns.locate`."""
    parts = [block_reader.read_rows(zarr.open_array(root, path=name, mode="r"), rows) for root, name, rows in places]
    return np.concatenate(parts)
