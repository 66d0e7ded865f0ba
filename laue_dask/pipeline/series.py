"""Many scans together (a series in temperature or load): one PCA and one clustering, so that maps can be compared.

Each scan is read, reduced and encoded as in a run of its own, which its folder also is. The moments of all features are
merged exactly, and all patterns are clustered at once: label 3 is the same cluster, in the same colour, in every scan.
"""

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from laue_dask import __version__
from laue_dask.compute import cluster
from laue_dask.compute.local import local_scratch
from laue_dask.config import Config, LocalWorkersConfig
from laue_dask.errors import ConfigError, InputError
from laue_dask.io import deadline
from laue_dask.io import results as io_results
from laue_dask.io.lock import locked_folder
from laue_dask.io.output_paths import naming_full_disk, require_writable, write_atomically
from laue_dask.io.receipts import RUN_RECEIPTS_FILE, Receipts
from laue_dask.pipeline.analysis import analyse
from laue_dask.pipeline.encoding import encode_scan
from laue_dask.pipeline.finishing import finish_run, publish_results
from laue_dask.pipeline.folders import check_folder, removing_partial_results, with_absolute_weights
from laue_dask.pipeline.record import SERIES_FILE, Record
from laue_dask.pipeline.run_log import logged
from laue_dask.pipeline.stages import extraction, scan_source, specimen
from laue_dask.pipeline.stages.ingest import Inspection
from laue_dask.report.series import Member, write_series_page
from laue_dask.runtime.progress import NO_PROGRESS, Progress

SERIES_PAGE_FILE = "series.html"


def run(
    sources: Sequence[str],
    folder: Path,
    config: Config,
    *,
    command: str = "",
    progress: Progress = NO_PROGRESS,
    again: bool = False,
) -> list[Record]:
    """Segment several scans with components and clusters in common.

    Parameters
    ----------
    sources
        As `single_scan.run` takes them.
    folder
        Of the series; the run of each scan is a folder in it, named after its source.
    config
        Of every scan.
    command
        The command as typed, for the records.
    again
        As `single_scan.run` takes it.

    Returns
    -------
    records
        One per scan, as written to its `run.json`.

    Raises
    ------
    LaueDaskError
        As `single_scan.run`, or the configuration does not make sense for several scans.
    """
    names = names_of(sources)
    _check(folder, config)
    folder, config = folder.absolute(), with_absolute_weights(config)
    for name in names:
        check_folder(folder / name)
    deadline.set_deadline(config.workers.read_deadline)
    counts = [scan_source.count(origin) for origin in sources]
    specimen.require_enough_patterns(min(counts), ())
    specimen.require_enough_patterns(sum(counts), config.clustering.k)
    alone = config.model_copy(update={"clustering": config.clustering.model_copy(update={"k": ()})})
    for origin, name in zip(sources, names, strict=True):
        scan_source.require_same(origin, folder / name, alone, again=again)
    extractor = extraction.extractor_of(config.encoder, config.recipe)
    looks: list[Inspection | None] = [None] * len(sources)
    if isinstance(config.workers, LocalWorkersConfig):  # jobs may wait for hours, in which frames arrive
        looks = [
            scan_source.inspect(origin, folder / name, config.scan, label=f"{name}, ")
            for origin, name in zip(sources, names, strict=True)
        ]
    records = [Record(command=command, source=origin, config=config, series=list(names)) for origin in sources]
    with ExitStack() as owned:
        for place in (folder, *(folder / name for name in names)):
            owned.enter_context(locked_folder(place, command))
        progress = owned.enter_context(logged(command, progress, folder, *(folder / name for name in names)))
        owned.enter_context(naming_full_disk(folder, local_scratch(config.workers)))
        owned.enter_context(removing_partial_results(*(folder / name for name in names)))
        with cluster.start(config.workers, folder=folder, report=True) as workers:
            if not (folder / SERIES_FILE).exists():
                _write(folder, names, records, finished=False)
            scans = [
                encode_scan(
                    folder / name, record, extractor, look=look, again=again, workers=workers, progress=progress
                )
                for name, record, look in zip(names, records, looks, strict=True)
            ]
            tables = analyse(scans, workers=workers, progress=progress)
        (folder / RUN_RECEIPTS_FILE).unlink(missing_ok=True)
        _write(folder, names, records, finished=False)
        cluster.publish_report(folder)
        for scan, rows in zip(scans, tables, strict=True):
            finish_run(scan, publish_results(scan, rows))
        datasets = [io_results.read(folder / name) for name in names]
        members = [Member(name, one.source, data) for name, one, data in zip(names, records, datasets, strict=True)]
        write_series_page(members, folder / SERIES_PAGE_FILE, command=command)
        _write(folder, names, records, finished=True)
        Receipts.of(folder, [SERIES_FILE, SERIES_PAGE_FILE, cluster.DASK_REPORT_FILE]).write(RUN_RECEIPTS_FILE)
    return records


def names_of(sources: Sequence[str]) -> list[str]:
    """Return the short names of sources that tell them apart, fit for folders.

    Examples
    --------
    >>> names_of(["/data/cold/scan1", "/data/warm/scan1", "runs/hot/scan.zarr"])
    ['cold-scan1', 'warm-scan1', 'runs-hot']

    Raises
    ------
    InputError
        One is given twice.
    """
    parts = [_parts(text) for text in sources]
    for i, one in enumerate(parts):
        if one in parts[:i]:
            raise InputError(f"{sources[i]}: is given twice, but a series is made of different scans")
    for count in range(1, 1 + max(map(len, parts))):
        names = ["-".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"{', '.join(sources)}: these names do not tell the scans apart: rename one of them")


def _parts(text: str) -> tuple[str, ...]:
    name, _, dataset = text.partition("::")
    path = Path(name).absolute()
    parts = [*path.parts[1:-1], path.stem if path.suffix else path.name, *dataset.split("/")]
    if path.name == "scan.zarr" and len(parts) > 1:  # a run's own, which is named after the run
        parts = [*path.parts[1:-1]]
    return tuple(clean for part in parts if (clean := re.sub(r"[^\w.]+", "_", part).strip("_.")))


def _check(folder: Path, config: Config) -> None:
    """Refuse what makes no sense for several scans, before anything is made."""
    require_writable(folder)
    if config.encoder.extractor == "pixels":
        raise ConfigError(
            "encoder.extractor = pixels learns from each scan alone, so that features of several cannot be compared: "
            "use network or peaks"
        )
    if config.clustering.smoothing:
        raise ConfigError("clustering.smoothing: works for a single scan only: leave it out for several")
    if folder.is_file():
        raise InputError(f"{folder}: is a file, but --out names the folder of the series")
    if (
        folder.is_dir()
        and not (folder / SERIES_FILE).exists()
        and any(not path.name.startswith(".") for path in folder.iterdir())
    ):
        raise InputError(f"{folder}: holds files that are not a series': choose an empty or a new folder for --out")


def _write(folder: Path, names: Sequence[str], records: Sequence[Record], *, finished: bool) -> None:
    """Write what the series is; first of all, and again when it is finished."""
    one = records[0]
    values = {
        "laue_dask": __version__,
        "command": one.command,
        "finished": finished,
        "scans": [{"name": name, "source": record.source} for name, record in zip(names, records, strict=True)],
        "k": one.k,
        "suggested_k": one.suggested_k,
        "m_pca": one.m_pca,
    }
    write_atomically(folder / SERIES_FILE, json.dumps(values, indent=1, ensure_ascii=False).encode())
