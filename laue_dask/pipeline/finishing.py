"""Finish a run: put all arrays in their place, and write tables and figures."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr
from dask import config as dask_config

from laue_dask.compute.cluster import Workers
from laue_dask.config import dump
from laue_dask.io.output_paths import write_atomically
from laue_dask.pipeline import record as records
from laue_dask.pipeline.encoding import EncodedScan
from laue_dask.pipeline.folders import CONFIG_FILE
from laue_dask.pipeline.stages import drawing, extraction, grains
from laue_dask.pipeline.stages.drawing import FigureData


@dataclass(frozen=True)
class PublishedResults:
    """What is left to be drawn of results that are in their place, and the names of the figures that are there."""

    material: FigureData
    drawn: Sequence[str]


def publish_results(
    scan: EncodedScan, rows: list[grains.Row] | None, workers: Workers | None = None
) -> PublishedResults:
    """Put the results in their place and write the tables, while workers of this machine, if there are any, draw."""
    folder, record, results = scan.folder, scan.record, scan.results
    results.group.attrs.update({"suggested_k": record.suggested_k, "keys": record.keys})
    results.put_coordinates(scan.store.coordinates)
    scan.reuse.write(results)
    record.stages = scan.reuse.announced

    def replacing() -> None:
        records.remove(folder)
        extraction.keep_learnt(folder, scan.extractor)

    results.finish(replacing=replacing)
    write_atomically(folder / CONFIG_FILE, dump(record.config).encode())
    with dask_config.set(scheduler="threads"):  # workers that go on are not asked for what is small
        material = FigureData.of(folder, scan.reduced)
        begun = drawing.begin(folder, scan.reduced, material, workers=workers) if workers else {}
        grains.write_tables(folder, material.results, scan.store, grains=rows, where=scan.where)
        if workers:
            workers.write_report()
        with record.timed("report"):
            return PublishedResults(material, drawing.drawn(begun))


def finish_run(scan: EncodedScan, published: PublishedResults) -> None:
    """Draw and write what is missing, and write the record last."""
    record = scan.record
    with dask_config.set(scheduler="threads"), record.timed("report"):
        drawing.draw(scan.folder, record.as_json(), published.material, drawn=published.drawn)
    records.write(scan.folder, record.as_json())


def report(
    folder: Path,
    record: dict[str, Any],
    *,
    reduced: zarr.Array[Any],
    unchanged: Collection[int] = (),
    changed: Collection[str] = ("scores",),
) -> None:
    """Draw the plots and the page of a run that was there before; see `drawing.draw`."""
    drawing.draw(folder, record, FigureData.of(folder, reduced), unchanged=unchanged, changed=changed)
