"""The stages in order, and their keys: frames → scan store → reduced → features → components → segmentations → report.

A stage's output is valid exactly when the hash of its inputs' keys, its parameters and its code version matches. A run
that was killed goes on at the first missing block; a run with other parameters redoes the stages that depend on them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from laue_dask import record as records
from laue_dask.compute import cluster
from laue_dask.compute.cluster import Workers
from laue_dask.config import ClusterConfig, Config, dump, validate
from laue_dask.encoder import weights
from laue_dask.errors import InputError
from laue_dask.io import results as io_results
from laue_dask.io.places import require_writable
from laue_dask.io.results import ResultsWriter
from laue_dask.io.scan_store import ScanStore
from laue_dask.pca import choose_components
from laue_dask.progress import Progress
from laue_dask.record import Run, stage_key
from laue_dask.report.page import write_page
from laue_dask.report.plots import GALLERY_UP_TO, write_plots
from laue_dask.stages import evaluation, extraction, segmentation, source, specimen
from laue_dask.stages.reduction import reduce_scan
from laue_dask.stages.specimen import Map


def run(origin: str, folder: Path, config: Config, *, command: str, progress: Progress) -> Run:
    """Segment a scan: the whole way from frames or a scan store to maps and report.

    Parameters
    ----------
    origin
        Frames, as `io.frames.discover` takes them, or a scan store.
    folder
        The run's folder, made if need be. An earlier run there is kept where its keys still hold.
    command
        The command as typed, for the record.

    Returns
    -------
    Run
        As written to `run.json`.

    Raises
    ------
    LaueDaskError
        See the stages.
    """
    # Refused before anything is started or made: no place, no patterns, weights that are missing or of another recipe.
    _check_folder(folder)
    source.check(origin, config)
    # Workers may have another working directory.
    folder, config = folder.absolute(), _with_absolute_weights(config)
    latent = weights.load(config.encoder.weights, recipe=config.recipe)[0].architecture.latent
    choose_components(np.full(latent, 1 / latent), config.pca.components)
    record = Run(command=command, source=origin, config=config)
    with cluster.start(config.cluster) as workers:
        record.workers = workers.described
        with record.timed("ingest"):
            store = source.open_scan(origin, folder, config, workers=workers, progress=progress)
        record.describe_scan(store)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / records.NAME).unlink(missing_ok=True)
        (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
        with record.timed("reduce"):
            reduced = reduce_scan(store, config.recipe, workers=workers, progress=progress)
        results = ResultsWriter(folder, {"scan": str(store.path), "scan_shape": list(store.scan_shape)})
        _analyse(store, reduced, latent, results, record, workers=workers, progress=progress)
    results.group.attrs.update({"suggested_k": record.suggested_k, "keys": record.keys})
    results.finish()
    with record.timed("report"):
        report(folder, record.as_json(), reduced=reduced)
    records.write(folder, record.as_json())
    return record


def _analyse(
    store: ScanStore,
    reduced: zarr.Array[Any],
    latent: int,
    results: ResultsWriter,
    record: Run,
    *,
    workers: Workers,
    progress: Progress,
) -> None:
    """Everything from the reduced patterns to the label maps, into `results`."""
    config, where = record.config, Map(store.valid, store.scan_shape)
    with record.timed("encode"):
        key = record.keys["features"] = stage_key(
            "features",
            record.keys["scan"],
            config.recipe.digest(),
            weights.digest(config.encoder.weights),
            config.encoder.precision,
            config.encoder.batch_size,
        )
        features = extraction.extract(
            reduced, store.valid, latent, config.encoder, results, key=key, workers=workers, progress=progress
        )
    with record.timed("components"):
        key = record.keys["components"] = stage_key("components", key)
        components, pca = segmentation.transform(
            features, config.pca, results, key=key, workers=workers, progress=progress
        )
    record.m_pca = int(pca.n_components_)
    segmentation.write_direct_colouring(components, where, results)
    with record.timed("scores"):
        samples = specimen.usable(components, where)[:, : record.m_pca]
        found = segmentation.score(samples, config.clustering, results, workers=workers, progress=progress)
    record.suggested_k = list(found.suggested)
    record.k = sorted({*found.suggested, *config.clustering.k}) or [2]
    with record.timed("segment"):
        segmentation.segment(components, record.m_pca, where, record.k, config.clustering, results, progress=progress)
    with record.timed("quality"):
        error = extraction.reconstruction_errors(reduced, where, config, workers=workers, progress=progress)
        results.put("reconstruction_error", error)
    delegates = np.unique(np.asarray(results.group["delegate"]))
    sources = store.source
    record.delegate_sources = {str(i): sources[i] for i in delegates[delegates >= 0].tolist()}


def report(folder: Path, record: dict[str, Any], *, reduced: zarr.Array[Any]) -> None:
    """Draw the plots and the page of a finished run, from its results and its delegates' patterns."""
    dataset = io_results.read(folder)
    shown = np.unique(dataset["delegate"].values[:, :GALLERY_UP_TO])  # labels count from the largest cluster
    patterns = {int(i): np.asarray(reduced[int(i)]) for i in shown[shown >= 0]}
    plots = write_plots(dataset, folder / "plots", patterns=patterns)
    write_page(dataset, plots, record, folder / "report.html")


def evaluate(
    folder: Path, truth: Path, *, workers: int | None, progress: Progress
) -> list[dict[str, float | int | str]]:
    """Compare a finished run with a true map; the figures are printed, kept in `run.json` and shown in the report.

    Returns
    -------
    rows
        See `stages.evaluation.evaluate`.

    Raises
    ------
    InputError
        There is no finished run, its scan is gone, or the truth does not fit.
    """
    record = records.read(folder)
    dataset = io_results.read(folder)
    config = validate(record["config"], str(folder / records.NAME))
    known = evaluation.read_truth(truth, tuple(record["scan_shape"]))
    scan = _scan_of(folder, record)
    reduced = scan.reduced(config.recipe.digest())
    if reduced is None:
        raise InputError(f"{scan.path}: its reduced patterns are gone: run `laue-dask run` again")
    with cluster.start(ClusterConfig(workers=workers)):
        rows = evaluation.evaluate(dataset, reduced, config, known, progress=progress)
    record["evaluation"] = rows
    report(folder, record, reduced=reduced)
    records.write(folder, record)
    return rows


def _scan_of(folder: Path, record: dict[str, Any]) -> ScanStore:
    """The scan that a run was made of, where it was or, if the run was moved, inside the run's folder."""
    found = []
    for path in (Path(record["scan"]), folder.absolute() / "scan.zarr"):
        if path.exists():
            found.append(path)
            store = ScanStore.open(path)
            if store.key() == record["keys"]["scan"]:
                return store
    if found:
        raise InputError(f"{found[0]}: is not the scan that {folder} was made of: run `laue-dask run` again")
    raise InputError(f"{record['scan']}: the scan of {folder} is gone: run `laue-dask run` again")


def _with_absolute_weights(config: Config) -> Config:
    path = weights.locate(config.encoder.weights)
    if path is None or config.encoder.weights == "default":
        return config
    return config.model_copy(update={"encoder": config.encoder.model_copy(update={"weights": str(path.absolute())})})


def _check_folder(folder: Path) -> None:
    require_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; --out names the folder of the run")
    ours = ("config.yaml", records.NAME, "scan.zarr", "scan.zarr.part", io_results.NAME)
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in ours):
        raise InputError(f"{folder}: holds other files and no run: choose an empty or a new folder for --out")
