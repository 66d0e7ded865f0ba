"""From the source of a run to the features of its patterns."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import zarr
from dask import config as dask_config

from laue_dask.compute.cluster import Workers
from laue_dask.config import Recipe
from laue_dask.features.extractors import Extractor
from laue_dask.former_names import modern
from laue_dask.io.results import ResultsWriter
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import keys
from laue_dask.pipeline import record as records
from laue_dask.pipeline.record import Record
from laue_dask.pipeline.reuse import Reuse, Stage, differences
from laue_dask.pipeline.stages import extraction, grains, scan_source, specimen
from laue_dask.pipeline.stages.early_encoding import EarlyEncoder
from laue_dask.pipeline.stages.ingest import Inspection
from laue_dask.pipeline.stages.reduction import reduce_scan
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.runtime.progress import Progress

MAX_LOCAL_BYTES = 2**26
"""Bytes of features up to which a run works on them in this process: workers are asked for longer than that."""


@dataclass(frozen=True)
class EncodedScan:
    """A scan on its way, from its features on.

    Attributes
    ----------
    folder
        Of its run.
    features : (pattern, latent) float32
        On disk, lazy.
    reuse
        What of an earlier run holds.
    table_of_grains
        Whether that one's `grains.csv` is there as it was written.
    where
        Its patterns lie.
    """

    folder: Path
    record: Record
    store: ScanStore
    reduced: zarr.Array[Any]
    extractor: Extractor
    results: ResultsWriter
    features: da.Array
    reuse: Reuse
    table_of_grains: bool
    where: SpecimenMap


def encode_scan(
    folder: Path,
    record: Record,
    extractor: Extractor,
    *,
    look: Inspection | None = None,
    again: bool = False,
    workers: Workers,
    progress: Progress,
) -> EncodedScan:
    """Encode a scan: the whole way from the source of a run, which may have been inspected, to its features.

    A run that is finished in the same folder stays as it is until `settle` puts others in the place of its results.
    """
    config, progress = record.config, record.counted(progress)
    record.workers = workers.described
    label = f"{folder.name}, " if record.series else ""
    reuse = Reuse.of(folder, label=label)
    with (
        record.warned_by("laue_dask.features"),
        record.warned_by("laue_dask.pipeline.stages"),
        EarlyEncoder(folder, extractor, workers) as ahead,
    ):
        with record.timed("ingest"):
            there = scan_source.is_ingested(record.source, folder)
            store = scan_source.open_scan(
                record.source,
                folder,
                config,
                k=() if record.series else config.clustering.k,
                ahead=ahead.unless(),
                look=look,
                again=again,
                label=label,
                workers=workers,
                progress=progress,
            )
        record.describe_scan(store)
        ingested = keys.ingested(record.keys["scan"])
        there &= reuse.same(ingested)
        reuse.announce(ingested, kept=there)
        folder.mkdir(parents=True, exist_ok=True)
        table_of_grains = records.has_receipt(folder, grains.GRAINS_FILE)
        recipe = config.recipe.for_frames(store.frame_shape)
        record.warn("recipe", *left_out(config.recipe, store.frame_shape))
        stage = keys.reduced(record.keys["scan"], recipe)
        made = keys.features(record.keys["scan"], recipe, config.encoder, extractor)
        record.keys["features"] = made.key
        store.repair_groups()
        _compare_recipes(reuse, stage, store, recipe)
        output = reuse.output(stage, possible=there)
        with record.timed("reduce"):
            reduced = reduce_scan(
                store,
                recipe,
                ahead=ahead.unless(made.key),
                workers=workers,
                progress=progress,
                output=output,
            )
            if there and output.found:
                record.warn_of_frames(store)
        pixels = list(config.recipe.window(store.frame_shape))
        described = {"scan": str(store.path), "scan_shape": list(store.scan_shape), "pattern_pixels": pixels}
        results = ResultsWriter(folder, described)
        where = SpecimenMap(store.valid, store.scan_shape)
        with record.timed("encode"):
            output = reuse.output(made, results=results)
            features = extraction.extract(
                reduced, where, extractor, results, output, workers=workers, progress=progress
            )
    with computed_locally(features.nbytes):
        where = SpecimenMap(where.valid & extraction.finite(features), where.shape)
    record.set_more_aside(store, where.valid, "its features are not finite numbers")
    specimen.require_enough_patterns(record.n_patterns, ())
    return EncodedScan(folder, record, store, reduced, extractor, results, features, reuse, table_of_grains, where)


def left_out(recipe: Recipe, shape: tuple[int, ...]) -> list[str]:
    """Return a line where a recipe does not take in the whole of frames of (rows, columns)."""
    rows, columns = recipe.window(shape)
    if (rows, columns) == tuple(shape):
        return []
    share = 1 - rows * columns / (shape[0] * shape[1])
    seen = f"the middle {rows} × {columns} of {shape[0]} × {shape[1]} pixels"
    line = f"recipe.version = {recipe.version} looks at {seen}, {share:.0%} of each frame are not seen"
    return [f"{line}: leave recipe.version out to take in all of it"]


def _compare_recipes(reuse: Reuse, stage: Stage, store: ScanStore, recipe: Recipe) -> None:
    """Have it said how a new recipe differs from the nearest by which the scan was reduced before."""
    others = {digest: modern({"recipe": one})[0]["recipe"] for digest, one in store.recipes().items()}
    if others and recipe.digest() not in others:
        wanted = recipe.model_dump(mode="json")
        nearest = min(others.values(), key=lambda other: len(differences(other, wanted)))
        reuse.compare(stage.name, keys.of_recipe(nearest))


def computed_locally(nbytes: float) -> AbstractContextManager[Any]:
    """Have threads of this process compute what concerns small tables, of so many bytes."""
    return dask_config.set(scheduler="threads") if nbytes <= MAX_LOCAL_BYTES else nullcontext()
