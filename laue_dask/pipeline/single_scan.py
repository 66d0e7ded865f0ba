"""One scan from its source to maps and report: the stages in order.

frames → scan store → reduced → features → components → segmentations → report. A run that was killed goes on at the
first missing block; a run with other parameters redoes the stages that depend on them.
"""

from contextlib import nullcontext
from pathlib import Path

import numpy as np

from laue_dask.compute import cluster
from laue_dask.compute.cluster import Workers
from laue_dask.compute.local import local_scratch
from laue_dask.config import Config, LocalWorkersConfig
from laue_dask.features.extractors import Extractor
from laue_dask.io import deadline
from laue_dask.io.lock import locked_folder
from laue_dask.io.output_paths import naming_full_disk
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import disk_space
from laue_dask.pipeline.analysis import analyse
from laue_dask.pipeline.encoding import encode_scan
from laue_dask.pipeline.finishing import finish_run, publish_results
from laue_dask.pipeline.folders import check_folder, removing_partial_results, with_absolute_weights
from laue_dask.pipeline.record import Record
from laue_dask.pipeline.run_log import logged
from laue_dask.pipeline.stages import extraction, scan_source, specimen
from laue_dask.runtime.progress import NO_PROGRESS, Progress
from laue_dask.segmentation.pca import choose_components


def run(
    origin: str,
    folder: Path,
    config: Config,
    *,
    command: str = "",
    progress: Progress = NO_PROGRESS,
    again: bool = False,
    workers: Workers | None = None,
) -> Record:
    """Segment a scan: the whole way from frames or a scan store to maps and report.

    Parameters
    ----------
    origin
        Frames, as `io.frames.discover` takes them, or a scan store.
    folder
        The run's folder, made if need be. An earlier run there is kept where its keys still hold.
    command
        The command as typed, for the record.
    progress
        Told how far the work is.
    again
        Whether frames that changed since an earlier run in the folder are read again; by default they are refused.
    workers
        That are there already and go on; by default the configured ones are started for this run alone.

    Returns
    -------
    Record
        As written to `run.json`.

    Raises
    ------
    LaueDaskError
        See the stages.
    """
    # Refused before anything is started or made: no place, no patterns, weights that are missing or of another recipe.
    check_folder(folder)
    deadline.set_deadline(config.workers.read_deadline)
    specimen.require_enough_patterns(scan_source.count(origin), config.clustering.k)
    scan_source.require_same(origin, folder, config, again=again)
    # Workers may have another working directory.
    folder, config = folder.absolute(), with_absolute_weights(config)
    extractor = extraction.extractor_of(config.encoder, config.recipe)
    choose_components(np.full(extractor.n_features, 1 / extractor.n_features), config.pca.components)
    with locked_folder(folder, command), logged(command, progress, folder) as noted:
        record = _run(origin, folder, config, extractor, command=command, progress=noted, again=again, given=workers)
        for warning in record.warnings:
            noted.note(warning, "warning")
        return record


def _run(
    origin: str,
    folder: Path,
    config: Config,
    extractor: Extractor,
    *,
    command: str,
    progress: Progress,
    again: bool,
    given: Workers | None,
) -> Record:
    """`run` of a folder that is this process's own, with everything checked that can be before."""
    record = Record(command=command, source=origin, config=config)
    local = isinstance(config.workers, LocalWorkersConfig)
    with record.timed("look"):
        # Local workers are still importing; jobs may wait for hours, in which frames arrive.
        look = scan_source.inspect(origin, folder, config.scan) if local else None
    store = scan_source.store_of(origin, folder)
    frames = 0.0 if look is None else len(look.refs) * look.stored_bytes
    n = len(look.refs) if look else ScanStore(store).n_patterns if store.exists() else 0
    disk_space.require_disk_space(folder, n, extractor.n_features, frames_bytes=frames)

    def needed() -> int:
        return disk_space.bytes_still_needed(folder, store, n, extractor.n_features, frames_bytes=frames)

    with (
        removing_partial_results(folder),
        naming_full_disk(folder, store, local_scratch(config.workers), needed=needed),
    ):
        with nullcontext(given) if given else cluster.start(config.workers, folder=folder, report=True) as workers:
            scan = encode_scan(folder, record, extractor, look=look, again=again, workers=workers, progress=progress)
            del look  # it may list a million frames
            [rows] = analyse([scan], workers=workers, progress=progress)
            settled = publish_results(scan, rows, workers) if local else None
        settled = settled or publish_results(scan, rows)  # jobs are not held while this process works alone
        if not given:
            cluster.publish_report(folder)
        finish_run(scan, settled)
    return record
