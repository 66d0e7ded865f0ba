"""The components of one scan, or of several that are analysed together, and what they have in common.

Several scans are as one whose patterns are those of the first, then those of the second, and so on: estimators see all
of them at once, and each scan is given back its own part.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
import zarr
from distributed import Client

from laue_dask.config import Recipe
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline.stages.delegates import DelegateChooser, with_delegates
from laue_dask.pipeline.stages.label_maps import Segmentation
from laue_dask.pipeline.stages.mixed_points import Patterns
from laue_dask.pipeline.stages.specimen import SpecimenMap, usable
from laue_dask.segmentation import labeling


@dataclass(frozen=True)
class Table:
    """The components of a scan's patterns.

    Attributes
    ----------
    components : (pattern, M_AE) float32
        NaN where there are no features.
    where
        The patterns lie.
    results
        Where what comes of the components is written.
    reduced : (pattern, 128, 128) uint8
        The patterns themselves, on disk; without them features alone decide on points between two domains.
    """

    components: da.Array
    where: SpecimenMap
    results: ResultsWriter
    reduced: zarr.Array[Any] | None = None


def joined(arrays: Sequence[da.Array]) -> da.Array:
    """Return the rows of all arrays, in their order."""
    if len(arrays) == 1:
        return arrays[0]
    rows: da.Array = da.concatenate(list(arrays))
    return rows


def samples_of(tables: Sequence[Table], columns: int | None = None) -> da.Array:
    """Return the components of the valid patterns of all scans, (n, M_AE), or their first `columns`."""
    return joined([usable(one.components, one.where)[:, :columns] for one in tables])


def together(tables: Sequence[Table]) -> SpecimenMap:
    """Return where the patterns of all scans lie: those of several below one another, in a column of one point each."""
    if len(tables) == 1:
        return tables[0].where
    valid = np.concatenate([one.where.valid for one in tables])
    return SpecimenMap(valid, (len(valid), 1))


def patterns_of(tables: Sequence[Table], recipe: Recipe) -> Patterns | None:
    """Return the reduced patterns of all scans; None where those of one are not at hand."""
    scans = [(one.reduced, one.where) for one in tables if one.reduced is not None]
    return Patterns(recipe, scans) if len(scans) == len(tables) else None


def write_direct_colouring(tables: Sequence[Table]) -> None:
    """Write the direct colouring (Definition 12) of each scan: the first three components as red, green and blue.

    The range of colours is that of all scans.
    """
    leading = np.asarray(samples_of(tables, 3).compute())
    ends = np.cumsum([len(one.where.patterns) for one in tables])[:-1]
    for one, colours in zip(tables, np.split(labeling.direct_rgb(leading), ends), strict=True):
        one.results.put("direct_rgb", one.where.paint(colours, fill=np.uint8(0)))


def choosers(tables: Sequence[Table], m_pca: int, recipe: Recipe, *, client: Client | None) -> list[DelegateChooser]:
    """Return what chooses the delegates of each scan."""
    return [
        DelegateChooser(
            usable(one.components, one.where)[:, :m_pca], one.where, patterns_of([one], recipe), client=client
        )
        for one in tables
    ]


def divide(
    found: Segmentation, m_pca: int, tables: Sequence[Table], choosers: Sequence[DelegateChooser]
) -> list[Segmentation]:
    """Divide a segmentation of all scans into that of each.

    Labels, colours and centroids are those of all: a cluster has the same number, colour and place in component space
    in every scan. Delegates are each scan's own; −1 where none of its patterns is in a cluster.
    """
    ends = np.cumsum([len(one.where.valid) for one in tables])[:-1]  # none of a single scan, whose maps are whole
    maps = {name: np.split(getattr(found, name), ends) for name in ("labels", "distance_to_centroid", "pca_rgb")}
    parts = []
    for i, (one, chooser) in enumerate(zip(tables, choosers, strict=True)):
        own: dict[str, Any] = {
            name: values[i].reshape(*one.where.shape, *values[i].shape[2:]) for name, values in maps.items()
        }
        parts.append(with_delegates(replace(found, **own), chooser, one.where, m_pca))
    return parts
