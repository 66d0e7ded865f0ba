"""The stages in order, and their keys: frames → scan store → reduced → features → components → segmentations → report.

A stage's output is valid exactly when the hash of its inputs' keys, its parameters and its code version matches. A run
that was killed goes on at the first missing block; a run with other parameters redoes the stages that depend on them.
"""

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray

from laue_dask import __version__
from laue_dask.compute import cluster
from laue_dask.compute.cluster import Workers
from laue_dask.compute.run import location, map_tasks, write_array
from laue_dask.config import Config, ScanConfig, dump, validate
from laue_dask.encoder import weights
from laue_dask.encoder.encode import encode, reconstruction_error
from laue_dask.errors import InputError
from laue_dask.io import results as io_results
from laue_dask.io.frames import discover
from laue_dask.io.places import require_writable
from laue_dask.io.results import ResultsWriter
from laue_dask.io.scan_store import ScanStore
from laue_dask.progress import Progress
from laue_dask.report.canvas import replace_file
from laue_dask.report.page import write_page
from laue_dask.report.plots import GALLERY_UP_TO, write_plots
from laue_dask.stages import evaluation, segmentation
from laue_dask.stages.ingest import absolute, ingest
from laue_dask.stages.reduction import reduce_scan
from laue_dask.stages.segmentation import Map

STAGE_VERSIONS = {"features": 1, "components": 1}
"""Raised when a stage's code changes what it computes, so that older outputs are not taken for its own."""

QUALITY_SAMPLE = 1000
"""Patterns, at least, whose reconstruction error is computed with `quality: sample`; all of a smaller scan."""

PACKAGES = ("dask", "distributed", "dask-ml", "fabio", "numpy", "scikit-learn", "torch", "zarr")


@dataclass
class Run:
    """What `run.json` holds."""

    command: str
    source: str
    config: Config
    scan: str = ""
    scan_shape: tuple[int, int] = (0, 0)
    n_patterns: int = 0
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    k: list[int] = field(default_factory=list)
    suggested_k: list[int] = field(default_factory=list)
    m_pca: int = 0
    delegate_sources: dict[str, str] = field(default_factory=dict)
    workers: str = ""

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds that a stage takes."""
        begun = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - begun, 3)

    def as_json(self) -> dict[str, Any]:
        """Plain values, with versions and seeds."""
        rates = {s: round(self.n_patterns / t, 1) for s, t in self.seconds.items() if t > 0 and s in _PER_PATTERN}
        return {
            "laue_dask": __version__,
            "command": self.command,
            "source": self.source,
            "scan": self.scan,
            "scan_shape": list(self.scan_shape),
            "n_patterns": self.n_patterns,
            "n_set_aside": len(self.set_aside),
            "set_aside": self.set_aside,
            "k": self.k,
            "suggested_k": self.suggested_k,
            "m_pca": self.m_pca,
            "delegate_sources": self.delegate_sources,
            "seconds": self.seconds,
            "patterns_per_second": rates,
            "workers": self.workers,
            "keys": self.keys,
            "seeds": {"clustering": self.config.clustering.seed, "untrained": weights.UNTRAINED_SEED},
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "config": self.config.model_dump(mode="json"),
        }


_PER_PATTERN = ("ingest", "reduce", "encode")


def run(source: str, folder: Path, config: Config, *, command: str, progress: Progress) -> Run:
    """Segment a scan: the whole way from frames or a scan store to maps and report.

    Parameters
    ----------
    source
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
    _check_source(source, config)
    # Workers may have another working directory.
    folder, config = folder.absolute(), _with_absolute_weights(config)
    latent = weights.load(config.encoder.weights, recipe=config.recipe)[0].architecture.latent
    record = Run(command=command, source=source, config=config)
    with cluster.start(config.cluster) as workers:
        record.workers = workers.described
        with record.timed("ingest"):
            store = _scan(source, folder, config, workers, progress)
        record.scan, record.scan_shape = str(store.path), store.scan_shape
        record.n_patterns, record.set_aside = int(store.valid.sum()), store.set_aside
        where = Map(store.valid, store.scan_shape)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").unlink(missing_ok=True)
        (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
        with record.timed("reduce"):
            reduced = reduce_scan(store, config.recipe, workers=workers, progress=progress)
        results = ResultsWriter(folder, {"scan": str(store.path), "scan_shape": list(store.scan_shape)})
        with record.timed("encode"):
            features = _features(store, reduced, latent, results, record, workers, progress)
        with record.timed("components"):
            key = record.keys["components"] = _key("components", record.keys["features"])
            components, pca = segmentation.transform(
                features, config.pca, results, key=key, workers=workers, progress=progress
            )
        record.m_pca = int(pca.n_components_)
        segmentation.write_direct_colouring(components, where, results)
        samples = segmentation.usable(components, where)[:, : record.m_pca]
        with record.timed("scores"):
            found = segmentation.score(samples, config.clustering, workers=workers, progress=progress)
        results.put("score_k", np.asarray(found.k, dtype=np.int32))
        results.put("silhouette", np.asarray(found.silhouette))
        results.put("calinski_harabasz", np.asarray(found.calinski_harabasz))
        record.suggested_k = list(found.suggested)
        record.k = sorted({*found.suggested, *config.clustering.k}) or [2]
        with record.timed("segment"):
            segmentation.segment(
                components, record.m_pca, where, record.k, config.clustering, results, progress=progress
            )
        with record.timed("quality"):
            results.put("reconstruction_error", _quality(reduced, where, config, workers, progress))
    delegates = np.unique(np.asarray(results.group["delegate"]))
    source_of = store.source
    record.delegate_sources = {str(i): source_of[i] for i in delegates[delegates >= 0].tolist()}
    results.group.attrs.update({"suggested_k": record.suggested_k, "keys": record.keys})
    results.finish()
    with record.timed("report"):
        report(folder, record.as_json(), reduced=reduced)
    write_json(folder / "run.json", record.as_json())
    return record


def report(folder: Path, record: dict[str, Any], *, reduced: zarr.Array[Any]) -> None:
    """Draw the plots and the page of a finished run, from its results and its delegates' patterns."""
    dataset = io_results.read(folder)
    shown = np.unique(dataset["delegate"].values[:, :GALLERY_UP_TO])  # labels count from the largest cluster
    patterns = {int(i): np.asarray(reduced[int(i)]) for i in shown[shown >= 0]}
    plots = write_plots(dataset, folder / "plots", patterns=patterns)
    write_page(dataset, plots, record, folder / "report.html")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON under a temporary name, then rename."""
    replace_file(path, json.dumps(values, indent=1, ensure_ascii=False).encode())


def read_json(folder: Path) -> dict[str, Any]:
    """Read `run.json` of a finished run.

    Raises
    ------
    InputError
        There is none, or it cannot be read.
    """
    path = folder / "run.json"
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder}: no finished run (run.json is missing): start it with `laue-dask run`") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is damaged ({error}): run `laue-dask run` again") from error
    if not isinstance(record, dict) or "laue_dask" not in record:
        raise InputError(f"{path}: is not the record of a run: run `laue-dask run` again")
    return record


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
    record = read_json(folder)
    dataset = io_results.read(folder)
    config = validate(record["config"], str(folder / "run.json"))
    known = evaluation.read_truth(truth, tuple(record["scan_shape"]))
    # A run that was moved takes the scan inside it along.
    own = folder.absolute() / "scan.zarr"
    scan = ScanStore.open(own if own.exists() else record["scan"])
    reduced = scan.reduced(config.recipe.digest())
    if reduced is None:
        raise InputError(f"{scan.path}: its reduced patterns are gone: run `laue-dask run` again")
    chosen = config.cluster.model_copy(update={"workers": workers} if workers else {})
    with cluster.start(chosen):
        rows = evaluation.evaluate(dataset, reduced, config, known, progress=progress)
    record["evaluation"] = rows
    report(folder, record, reduced=reduced)
    write_json(folder / "run.json", record)
    return rows


def evaluation_table(rows: list[dict[str, float | int | str]]) -> str:
    """Plain text table of the rows of `evaluate`."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_cell(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def _cell(value: float | int | str) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _with_absolute_weights(config: Config) -> Config:
    path = weights.locate(config.encoder.weights)
    if path is None or config.encoder.weights == "default":
        return config
    return config.model_copy(update={"encoder": config.encoder.model_copy(update={"weights": str(path.absolute())})})


def _check_folder(folder: Path) -> None:
    require_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; --out names the folder of the run")
    ours = ("config.yaml", "run.json", "scan.zarr", "scan.zarr.part", io_results.NAME)
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in ours):
        raise InputError(f"{folder}: holds other files and no run: choose an empty or a new folder for --out")


def _is_store(source: str) -> bool:
    """Whether `source` means a scan store, be it one that is missing or was not finished."""
    return ScanStore.is_store(source) or Path(source).suffix == ".zarr"


def _check_source(source: str, config: Config) -> None:
    """Refuse a source that is missing or too small, before any worker is started."""
    count = int(ScanStore.open(source).valid.sum()) if _is_store(source) else len(discover(source))
    segmentation.require_enough(count, config.clustering.k)


def _scan(source: str, folder: Path, config: Config, workers: Workers, progress: Progress) -> ScanStore:
    own, scan = folder / "scan.zarr", config.scan
    if _is_store(source):
        store = ScanStore.open(Path(source).absolute())
        if scan.shape and tuple(scan.shape) != tuple(store.scan_shape):
            raise InputError(
                f"{source}: its scan is {store.scan_shape[0]} × {store.scan_shape[1]}, "
                f"--shape says {scan.shape[0]} × {scan.shape[1]}: leave --shape out, or ingest the frames again"
            )
        return store
    if own.exists():
        store = ScanStore.open(own)
        _check_ingested(store, source, scan)
        segmentation.require_enough(int(store.valid.sum()), config.clustering.k)
        return store
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        store = ingest(source, own, scan, workers=workers, progress=progress)
        segmentation.require_enough(int(store.valid.sum()), config.clustering.k)
    except InputError:
        # A run that never started leaves nothing behind.
        shutil.rmtree(folder if made else own, ignore_errors=True)
        raise
    return store


def _check_ingested(store: ScanStore, source: str, scan: ScanConfig) -> None:
    """Refuse the scan store of an earlier run of the same folder where it is not what is asked for now."""
    held = store.provenance
    asked = held.get("asked", {})
    frames, now = sum(name != "" for name in store.source), len(discover(source))
    if held.get("source") != absolute(source):
        differs = f"holds {held.get('source')}, not {source}"
    elif scan.shape and store.scan_shape != tuple(scan.shape):
        differs = f"holds {store.scan_shape[0]} × {store.scan_shape[1]}, --shape says {scan.shape[0]} × {scan.shape[1]}"
    elif scan.shape and asked.get("order") != scan.order:
        differs = f"was ingested with --order {asked.get('order')}, now it is {scan.order}"
    elif frames != now:
        differs = f"holds {frames} frames, {source} has {now} now"
    else:
        return
    raise InputError(f"{store.path}: {differs}: choose another --out, or remove this store")


def _features(
    store: ScanStore,
    reduced: zarr.Array[Any],
    latent: int,
    results: ResultsWriter,
    record: Run,
    workers: Workers,
    progress: Progress,
) -> da.Array:
    config = record.config.encoder
    key = record.keys["features"] = _key(
        "features",
        store.key(),
        record.config.recipe.digest(),
        weights.digest(config.weights),
        config.precision,
        config.batch_size,
    )
    block = reduced.chunks[0] if reduced.shards is None else reduced.shards[0]
    array = results.blocks("features", (store.n_patterns, latent), block=block, key=key)
    features = encode(
        da.from_zarr(reduced, chunks=(block, *reduced.shape[1:])),
        store.valid,
        name=config.weights,
        latent=latent,
        batch_size=config.batch_size,
        precision=config.precision,
    )
    write_array(features, array, stage="encode", client=workers.client, progress=progress, resources=workers.gpu)
    stored: da.Array = da.from_zarr(array, chunks=(block, latent))
    return stored


def _quality(
    reduced: zarr.Array[Any], where: Map, config: Config, workers: Workers, progress: Progress
) -> NDArray[np.float32]:
    """Reconstruction error (ny, nx) of all patterns, of some spread over the scan, or of none."""
    error = np.full(len(where.valid), np.nan, dtype=np.float32)
    chosen = where.patterns
    if config.quality == "none" or not len(chosen):
        return error.reshape(where.shape)
    if config.quality == "sample":
        chosen = chosen[:: max(1, len(chosen) // QUALITY_SAMPLE)]
    parts = [chosen[i : i + 128] for i in range(0, len(chosen), 128)]
    root, name = location(reduced)
    with progress.stage("quality", total=len(chosen)) as advance:
        found = map_tasks(_errors, parts, (root, name, config.encoder), client=workers.client, resources=workers.gpu)
        advance(len(chosen))
    error[chosen] = np.concatenate(found)
    return error.reshape(where.shape)


def _errors(patterns: NDArray[np.int64], root: str, name: str, config: Any) -> NDArray[np.float32]:
    reduced = zarr.open_array(root, path=name, mode="r")
    return reconstruction_error(
        np.asarray(reduced.oindex[patterns]),
        name=config.weights,
        digest=weights.digest(config.weights),
        batch_size=config.batch_size,
        precision=config.precision,
    )


def _key(stage: str, *parts: object) -> str:
    text = json.dumps([stage, STAGE_VERSIONS[stage], *map(str, parts)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
