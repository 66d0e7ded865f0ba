"""The figures and the page of a run. Local workers draw those of small results, while this process writes tables.

Matplotlib is imported where something is drawn: it takes as long as several figures.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from dask import config as dask_config
from numpy.typing import NDArray

from laue_dask.compute.cluster import Workers
from laue_dask.compute.run import Begun, begin_tasks
from laue_dask.io import block_reader
from laue_dask.io import results as io_results
from laue_dask.io.block_files import location
from laue_dask.report.html import MAX_GALLERY_DELEGATES
from laue_dask.report.page import write_page

MAX_IN_MEMORY_BYTES = 2**28
"""Bytes of results up to which all of them are read at once: figures look at the same variables again and again."""

MAX_PARALLEL_DRAWING_BYTES = 2**26
"""Bytes of results up to which workers draw: each of them reads all."""

MAX_DRAWING_WORKERS = 8
"""Workers that draw, at most: there are some twenty figures."""

PLOTS_FOLDER, REPORT_FILE = "plots", "report.html"


@dataclass(frozen=True)
class FigureData:
    """What figures and page are made of.

    Attributes
    ----------
    results
        All but the features; in memory where they are small.
    patterns
        Reduced patterns of the delegates, by pattern.
    """

    results: xr.Dataset
    patterns: Mapping[int, NDArray[np.uint8]]

    @classmethod
    def of(cls, folder: Path, reduced: zarr.Array[Any]) -> "FigureData":
        """Gather the material of a run whose results are in their place."""
        results = io_results.read(folder).drop_vars("features")
        if results.nbytes <= MAX_IN_MEMORY_BYTES:
            results = results.load()
        shown = np.unique(
            results["delegate"].values[:, :MAX_GALLERY_DELEGATES]
        )  # labels count from the largest cluster
        shown = shown[shown >= 0]
        return cls(results, dict(zip(shown.tolist(), block_reader.read_rows(reduced, shown), strict=True)))


def begin(folder: Path, reduced: zarr.Array[Any], material: FigureData, *, workers: Workers) -> Begun:
    """Have workers draw the figures of small results, a part each."""
    if material.results.nbytes > MAX_PARALLEL_DRAWING_BYTES:
        return {}
    parts = min(workers.count, MAX_DRAWING_WORKERS)
    shared = (parts, str(folder), *location(reduced))
    return begin_tasks(_draw, range(parts), shared, client=workers.client)


def _draw(part: int, parts: int, folder: str, root: str, member: str) -> list[str]:
    from laue_dask.report import plots

    with dask_config.set(scheduler="synchronous"):  # or what is read here would be asked of the workers, this one too
        material = FigureData.of(Path(folder), zarr.open_array(root, path=member, mode="r"))
        names = plots.names(material.results, material.patterns)[part::parts]
        plots.draw_some(material.results, Path(folder) / PLOTS_FOLDER, names, material.patterns)
    return names


def drawn(begun: Begun) -> list[str]:
    """Return the names of the figures that workers have drawn; what failed is left to `draw`."""
    names: list[str] = []
    for future in begun.values():
        with suppress(Exception):
            names += future.result()
    return names


def draw(
    folder: Path,
    record: dict[str, Any],
    material: FigureData,
    *,
    unchanged: Collection[int] = (),
    changed: Collection[str] = ("scores",),
    drawn: Collection[str] = (),
) -> None:
    """Draw the plots and the page of a finished run.

    Parameters
    ----------
    record
        Content of `run.json`.
    unchanged, changed
        K whose figures are there already, and names of figures of the whole scan that are nevertheless to be drawn;
        see `report.plots.write_plots`.
    drawn
        Names of figures that workers have drawn.
    """
    from laue_dask.report import plots

    errors: Sequence[Mapping[str, float | int]] = record.get("approximation", ())
    written = plots.write_plots(
        material.results,
        folder / PLOTS_FOLDER,
        patterns=material.patterns,
        unchanged=unchanged,
        changed=changed,
        errors=errors,
        drawn=drawn,
    )
    write_page(material.results, written, record, folder / REPORT_FILE)
