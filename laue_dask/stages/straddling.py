"""Points where the beam straddles two domains get the label of the one with the larger share (`laue_dask.shares`).

Only patterns that are nearly as near to another centroid are read again, and a few of each cluster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from distributed import Client
from numpy.typing import NDArray

from laue_dask import labeling, shares
from laue_dask.compute.run import map_tasks
from laue_dask.config import Recipe
from laue_dask.io import stored
from laue_dask.io.block_files import location
from laue_dask.pca import each_block
from laue_dask.progress import Progress
from laue_dask.schema import PATTERN_SIZE
from laue_dask.stages.specimen import Map

PER_TASK = 512
"""Patterns of a task: a tenth of a second."""

Places = list[tuple[str, str, NDArray[np.int64]]]
"""Arrays on disk, and which of their patterns."""


@dataclass(frozen=True)
class Patterns:
    """The reduced patterns of what is clustered: the valid ones of a scan, or of several, one after the other."""

    recipe: Recipe
    scans: Sequence[tuple[zarr.Array[Any], Map]]

    def places(self, rows: NDArray[np.int64]) -> Places:
        """Where the patterns of some rows, ascending, are."""
        found, before = [], 0
        for array, where in self.scans:
            own = where.patterns
            here = rows[slice(*np.searchsorted(rows, (before, before + len(own))))] - before
            before += len(own)
            if len(here):
                found.append((*location(array), own[here]))
        return found


@dataclass(frozen=True)
class Labels:
    """Labels of the valid patterns, (n,) int32, in n_clusters clusters."""

    labels: NDArray[np.int32]
    n_clusters: int


def share_out(
    X: Any, found: Sequence[Labels], patterns: Patterns, *, client: Client | None, progress: Progress
) -> list[Labels]:
    """Segmentations of the same components, each with the labels of points between two domains by their shares.

    Clusters are named by their sizes again. What stands for a cluster stays in it, so that none is lost.

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
    doubtful = [_Doubtful.of(X, one) if shares.applicable(patterns.recipe, one.n_clusters) else None for one in found]
    total = sum(len(one.rows) for one in doubtful if one)
    if not total:
        return list(found)
    with progress.stage("straddling", total=total) as advance:
        result = []
        for before, one in zip(found, doubtful, strict=True):
            if one is None or not len(one.rows):
                result.append(before)
                continue
            members = [patterns.places(rows) for rows in one.members]
            domains = np.stack(map_tasks(_own_pattern, members, (patterns.recipe,), client=client))
            starts = range(0, len(one.rows), PER_TASK)
            parts = [one.rows[start : start + PER_TASK] for start in starts]
            items = [(patterns.places(rows), before.labels[rows], one.other[rows]) for rows in parts]
            fits = map_tasks(
                _shares,
                items,
                (domains, patterns.recipe),
                client=client,
                on_done=lambda item: advance(len(item[1])),
            )
            moved = one.rows[shares.larger(np.concatenate(fits))]
            labels = before.labels.copy()
            labels[moved] = one.other[moved]
            result.append(Labels(labeling.by_size(labels), before.n_clusters))
    return result


@dataclass(frozen=True)
class _Doubtful:
    """Rows that are nearly as near to another centroid, the cluster it is of, and the rows that stand for each."""

    rows: NDArray[np.int64]
    other: NDArray[np.int32]
    members: list[NDArray[np.int64]]

    @classmethod
    def of(cls, X: Any, one: Labels) -> "_Doubtful":
        centres = labeling.centroids(X, one.labels, one.n_clusters)
        near = each_block(shares.neighbour, X, one.labels, centers=centres)
        other, margin = (np.concatenate(parts) for parts in zip(*near, strict=True))
        members = shares.representatives(one.labels, margin, one.n_clusters)
        between = margin < shares.BETWEEN
        between[np.concatenate(members)] = False
        return cls(np.flatnonzero(between), other, members)


def _own_pattern(members: Places, recipe: Recipe) -> NDArray[np.float32]:
    if not members:  # a cluster that does not exist
        return np.zeros((PATTERN_SIZE, PATTERN_SIZE), np.float32)
    return shares.own_pattern(shares.intensities(_read(members), recipe))


def _shares(
    item: tuple[Places, NDArray[np.int32], NDArray[np.int32]], domains: NDArray[np.float32], recipe: Recipe
) -> NDArray[np.float64]:
    places, own, other = item
    return shares.shares(_read(places), own, other, domains, recipe)


def _read(places: Places) -> NDArray[np.uint8]:
    parts = [stored.read_rows(zarr.open_array(root, path=name, mode="r"), rows) for root, name, rows in places]
    return np.concatenate(parts)
