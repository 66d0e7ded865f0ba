"""Several scans as one: the components, scores and clusters of all their patterns, given back to each scan."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client
from numpy.typing import NDArray

from laue_dask.pipeline.stages.delegates import Chooser, with_delegates
from laue_dask.pipeline.stages.segmentation import Segmentation
from laue_dask.pipeline.stages.specimen import Map, usable
from laue_dask.pipeline.stages.straddling import Patterns
from laue_dask.segmentation import labeling


def together(wheres: Sequence[Map]) -> Map:
    """The patterns of all scans below one another, a column of one point each."""
    valid = np.concatenate([where.valid for where in wheres])
    return Map(valid, (len(valid), 1))


def samples_of(components: Sequence[da.Array], wheres: Sequence[Map]) -> da.Array:
    """Rows of the valid patterns of all scans, in their order."""
    parts = [usable(table, where) for table, where in zip(components, wheres, strict=True)]
    samples: da.Array = da.concatenate(parts)
    return samples


def direct_colours(components: Sequence[da.Array], wheres: Sequence[Map]) -> list[NDArray[np.uint8]]:
    """Direct colouring (Definition 12) of each scan, (ny, nx, 3), with the range of colours of all of them."""
    leading = np.asarray(samples_of([table[:, :3] for table in components], wheres).compute())
    ends = np.cumsum([len(where.patterns) for where in wheres])[:-1]
    parts = np.split(labeling.direct_rgb(leading), ends)
    return [where.paint(part, fill=np.uint8(0)) for where, part in zip(wheres, parts, strict=True)]


def choosers(components: Sequence[da.Array], m_pca: int, patterns: Patterns, *, client: Client | None) -> list[Chooser]:
    """What chooses the delegates of each scan."""
    return [
        Chooser(usable(table, where)[:, :m_pca], where, Patterns(patterns.recipe, [(array, where)]), client=client)
        for table, (array, where) in zip(components, patterns.scans, strict=True)
    ]


def divide(found: Segmentation, m_pca: int, wheres: Sequence[Map], choosers: Sequence[Chooser]) -> list[Segmentation]:
    """The share of each scan in a segmentation of all of them.

    Labels, colours and centroids are those of the series: a cluster has the same number, colour and place in component
    space in every scan. Delegates are each scan's own; −1 where none of its patterns is in a cluster.
    """
    ends = np.cumsum([len(where.valid) for where in wheres])[:-1]
    maps = {name: np.split(getattr(found, name), ends) for name in ("labels", "distance_to_centroid", "pca_rgb")}
    shares = []
    for i, (where, chooser) in enumerate(zip(wheres, choosers, strict=True)):
        own: dict[str, Any] = {
            name: parts[i].reshape(*where.shape, *parts[i].shape[2:]) for name, parts in maps.items()
        }
        shares.append(with_delegates(replace(found, **own), chooser, where, m_pca))
    return shares


def sizes(shares: Sequence[Segmentation]) -> NDArray[np.int64]:
    """Patterns of each cluster in each scan, (scan, cluster)."""
    counted = [np.bincount(one.labels[one.labels >= 0], minlength=one.n_clusters) for one in shares]
    return np.array(counted, dtype=np.int64)
