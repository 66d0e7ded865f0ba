"""Features → grains by neighbourhood, and the tables that people take away: grains, delegates, regions.

The tables are plain CSV in the run's folder, with the file of every pattern that they name.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from laue_dask.grains import regions
from laue_dask.grains.neighbourhood import NeighbourhoodGrains
from laue_dask.io import block_reader
from laue_dask.io.coordinates import MapScale
from laue_dask.io.output_paths import write_atomically
from laue_dask.io.results import ResultsWriter
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.stages.delegates import DOMAINS_UNKNOWN, N_RANKS
from laue_dask.pipeline.stages.specimen import SpecimenMap, usable
from laue_dask.runtime.safe_text import spreadsheet_cells
from laue_dask.segmentation import labeling

GRAINS_FILE, DELEGATES_FILE, REGIONS_FILE = "grains.csv", "delegates.csv", "regions.csv"

Row = dict[str, Any]


def find(
    components: da.Array, m_pca: int, where: SpecimenMap, reduced: zarr.Array[Any], results: ResultsWriter
) -> list[Row]:
    """Find the grains of a scan and write their map and how strong the boundaries are.

    Parameters
    ----------
    components : (pattern, M_AE)
        Of which the first `m_pca` are used.
    reduced : (pattern, 128, 128) uint8
        Their peaks decide where features leave doubts.

    Returns
    -------
    rows
        Of `grains.csv`, largest grain first; patterns are counted in the scan.
    """
    samples = usable(components, where)[:, :m_pca]
    found = NeighbourhoodGrains().fit(
        samples, shape=where.shape, valid=where.valid, patterns=lambda rows: block_reader.read_rows(reduced, rows)
    )
    attributes: dict[str, Any] = {"threshold": found.threshold_, "by_peaks": found.by_peaks_}
    if found.gap_ is not None:
        attributes["gap"] = list(found.gap_)
    results.put("grain", where.paint(found.labels_, fill=np.int32(-1)), attributes=attributes)
    results.put("boundary_strength", where.paint(found.boundary_, fill=np.float32(np.nan)))
    patterns = where.patterns
    return [{**row, "delegate": int(patterns[int(row["delegate"])])} for row in found.grains_]


def ranked(
    components: da.Array,
    m_pca: int,
    where: SpecimenMap,
    dataset: xr.Dataset,
    *,
    indexable: NDArray[np.bool_] | None = None,
) -> list[Row]:
    """Return the delegate of each cluster, for every K, and those that stand in for it: as `stages.delegates` chose
    them.

    Of segmentations that are older than that, and where some are not `indexable`, the members nearest to each centroid
    (Definition 11).

    Parameters
    ----------
    indexable : (pattern,) bool
        False where a pattern is known not to be indexable; all by default.

    Returns
    -------
    rows
        Of `delegates.csv`, without files.
    """
    samples, patterns = usable(components, where)[:, :m_pca], where.patterns
    rows: list[Row] = []
    for k in (int(value) for value in dataset["k"].values):
        one = dataset.sel(k=k)
        labels = one["labels"].values.ravel()[patterns]
        centres = one["centroids"].values[:, :m_pca]
        centres = centres[np.isfinite(centres).all(axis=1)]
        distance = one["distance_to_centroid"].values.ravel()
        size = np.bincount(labels, minlength=len(centres))
        chosen, mixed = np.full((2, len(centres), N_RANKS), DOMAINS_UNKNOWN)
        if "delegates" in one and "delegates_mixed" in one and indexable is None:
            chosen, mixed = (one[name].values[: len(centres)] for name in ("delegates", "delegates_mixed"))
        if (chosen < 0).all():
            usable_rows = None if indexable is None else indexable[patterns]
            found = labeling.ranked_delegates(samples, labels, centres, indexable=usable_rows, count=N_RANKS)
            chosen = np.where(found >= 0, patterns[found], -1)
        for cluster, members in enumerate(chosen):
            for rank, pattern in enumerate(members[members >= 0].tolist(), start=1):
                y, x = divmod(pattern, where.shape[1])
                two = int(mixed[cluster, rank - 1])
                rows.append(
                    {
                        "k": k,
                        "cluster": cluster,
                        "size": int(size[cluster]),
                        "rank": rank,
                        "pattern": pattern,
                        "y": y,
                        "x": x,
                        **_stage(dataset, y, x),
                        "distance": float(distance[pattern]),
                        "domains": "" if two == DOMAINS_UNKNOWN else 1 + two,
                    }
                )
    return rows


def proposed(dataset: xr.Dataset) -> list[Row]:
    """Return the regions worth a dense scan (section 4.4, step 8): rows of `regions.csv`, in points and micrometres."""
    grain = dataset["grain"].values
    rows = []
    for number, region in enumerate(
        regions.propose(dataset["boundary_strength"].values, grain, size=regions.quarter(grain.shape)), start=1
    ):
        rows.append(
            {
                "region": number,
                **{name: getattr(region, name) for name in ("x0", "x1", "y0", "y1")},
                **_stage_box(dataset, region),
                "score": region.score,
                "reason": region.reason,
            }
        )
    return rows


def write_tables(
    folder: Path, dataset: xr.Dataset, store: ScanStore, *, grains: Sequence[Row] | None, where: SpecimenMap
) -> None:
    """Write the tables of a finished run.

    Parameters
    ----------
    grains
        Rows as `find` gives them; None leaves `grains.csv` as it is.

    All of them give places in points, counted from 0, and in micrometres of the stage (columns `…_um`), which are empty
    where the stage's positions are not known.
    """
    components = dataset["components"]
    sources = store.source
    delegates = ranked(da.asarray(components.data), int(components.attrs["m_pca"]), where, dataset)
    _write(folder / DELEGATES_FILE, [{**row, "file": str(sources[row["pattern"]])} for row in delegates])
    if grains is not None:
        located = [{**row, **_stage(dataset, row["y"], row["x"])} for row in grains]
        _write(folder / GRAINS_FILE, [{**row, "file": str(sources[row["delegate"]])} for row in located])
    if "grain" in dataset:
        _write(folder / REGIONS_FILE, proposed(dataset))


def _stage(dataset: xr.Dataset, y: float, x: float) -> Row:
    """Stage coordinates of a place on the map, which may lie between points; empty where they are not known."""
    scale = MapScale.of(dataset)
    at = scale.at(y, x) if scale.units else ("", "")
    return {"stage_y_um": at[0], "stage_x_um": at[1]}


def _stage_box(dataset: xr.Dataset, region: regions.Region) -> Row:
    """Stage coordinates of the first and the last points of a region, the smaller first."""
    first, last = _stage(dataset, region.y0, region.x0), _stage(dataset, region.y1, region.x1)
    found: Row = {}
    for name in ("y", "x"):
        ends = sorted((first[f"stage_{name}_um"], last[f"stage_{name}_um"]))
        found |= {f"stage_{name}0_um": ends[0], f"stage_{name}1_um": ends[1]}
    return found


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    if rows:
        table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows({name: _cell(value) for name, value in spreadsheet_cells(row).items()} for row in rows)
    write_atomically(path, text.getvalue().encode())


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
