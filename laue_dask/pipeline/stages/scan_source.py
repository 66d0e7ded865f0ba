"""Where the patterns of a run come from: a scan store, or frames that are ingested into one of the run's own."""

import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from laue_dask.compute.cluster import Workers
from laue_dask.config import Config, ScanConfig
from laue_dask.errors import ChangedError, InputError
from laue_dask.io.frames import discover
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import record
from laue_dask.pipeline.stages import changed_frames, earlier_scan, specimen
from laue_dask.pipeline.stages.early_encoding import EarlyEncoder, remove_early_features
from laue_dask.pipeline.stages.frame_placement import announce_stored_grid, refuse_part
from laue_dask.pipeline.stages.ingest import Inspection, ingest, inspect_source
from laue_dask.runtime.progress import Progress

logger = logging.getLogger(__name__)


def _is_store(source: str) -> bool:
    """Whether `source` means a scan store, be it one that is missing or was not finished."""
    return ScanStore.is_store(source) or Path(source).suffix == ".zarr"


def is_ingested(source: str, folder: Path) -> bool:
    """Return whether the frames of a run are in a scan store already."""
    return _is_store(source) or (folder / "scan.zarr").exists()


def count(source: str) -> int:
    """Return the number of patterns that a source may have; one that is missing is refused before any worker is
    started.
    """
    return int(ScanStore.open(source).valid.sum()) if _is_store(source) else len(discover(source))


def store_of(source: str, folder: Path) -> Path:
    """Return the scan store of a run, be it there yet or not."""
    return Path(source).absolute() if _is_store(source) else folder / "scan.zarr"


def require_same(source: str, folder: Path, config: Config, *, again: bool = False) -> None:
    """Refuse a source that is not the scan that `folder` or its own store holds, before any worker is started.

    Raises
    ------
    InputError
        See `open_scan`.
    """
    own = folder / "scan.zarr"
    if _is_store(source):
        refuse_part(source, config.scan)
        _check_shape(ScanStore.open(source), source, config.scan)
    elif own.exists() and not again:
        store = ScanStore.open(own)
        earlier_scan.require_same(store, source, config.scan)
        specimen.require_enough_patterns(int(store.valid.sum()), config.clustering.k, store.set_aside)


def require_growing(source: str, folder: Path, scan: ScanConfig) -> None:
    """Refuse to watch a source where a run's folder has the store of another scan.

    Raises
    ------
    InputError
        It has.
    """
    own = folder / "scan.zarr"
    if own.exists():
        earlier_scan.require_source(ScanStore.open(own), source, scan)


def inspect(source: str, folder: Path, scan: ScanConfig, *, label: str = "") -> Inspection | None:
    """Return what the frames of a run are like, before any worker is started; None where they are in a scan store
    already.

    Raises
    ------
    InputError
        See `ingest.inspect_source`.
    """
    if _is_store(source):
        refuse_part(source, scan)
    return None if is_ingested(source, folder) else inspect_source(source, scan, label=label)


def open_scan(
    source: str,
    folder: Path,
    config: Config,
    *,
    k: Sequence[int],
    ahead: EarlyEncoder | None = None,
    look: Inspection | None = None,
    again: bool = False,
    label: str = "",
    workers: Workers,
    progress: Progress,
) -> ScanStore:
    """Open the scan store of a run, after ingesting the frames into `folder` where `source` is no store.

    Parameters
    ----------
    k
        Numbers of clusters for which there have to be enough patterns.
    ahead
        Encodes the frames as soon as they are reduced, where they are ingested.
    look
        At the frames, where somebody has looked already.
    again
        Whether frames that are not those of the store that is there are read again, in its place.
    label
        What the line about the grid begins with, of one of several scans.

    Raises
    ------
    InputError
        The store that an earlier run left in `folder` holds something else, or too few patterns are usable.
    """
    own, scan = folder / "scan.zarr", config.scan
    if _is_store(source):
        refuse_part(source, scan)
        store = ScanStore.open(Path(source).absolute())
        _check_shape(store, source, scan)
        changed_frames.warn_of_changes(store)
        announce_stored_grid(store, label)
        return store
    make_way = None
    if own.exists():
        store = ScanStore.open(own)
        try:
            found = earlier_scan.require_same(store, source, scan, again=again)
            earlier_scan.compare(store, found, workers=workers, progress=progress)
        except ChangedError as error:
            if not again:
                raise
            logger.info(
                "ingest: again, %s", str(error).removeprefix(f"{own}: ").removesuffix(f": {earlier_scan.CHOICE_HINT}")
            )
            make_way = partial(_remove_finished_scan, folder)
        else:
            announce_stored_grid(store, label)
            specimen.require_enough_patterns(int(store.valid.sum()), k, store.set_aside)
            return store
    folder.mkdir(parents=True, exist_ok=True)
    part = own.with_name(own.name + ".part")
    begun = part.exists()
    shutil.rmtree(folder / "scan.zarr.old", ignore_errors=True)  # of a run that was killed while it made way
    try:
        # A substrate is what the frames have in common: those are all read before it can be removed.
        recipe = config.recipe if config.recipe.substrate == "keep" else None
        store = ingest(
            source,
            own,
            scan,
            recipe=recipe,
            ahead=ahead,
            inspection=look,
            label=label,
            remove_earlier=make_way,
            workers=workers,
            progress=progress,
        )
        specimen.require_enough_patterns(int(store.valid.sum()), k, store.set_aside)
    except InputError:
        # A run that never started leaves nothing behind; what a killed one did is kept for the right command.
        if own.exists() or not begun:
            remove_early_features(folder)
        for left in (own,) if begun else (own, part):
            shutil.rmtree(left, ignore_errors=True)
        raise
    return store


def _remove_finished_scan(folder: Path) -> None:
    """Take the scan store of a finished run away, and with it the run's record."""
    record.remove(folder)
    own, aside = folder / "scan.zarr", folder / "scan.zarr.old"
    own.rename(aside)  # a kill leaves no half of it in its place
    shutil.rmtree(aside)


def _check_shape(store: ScanStore, source: str, scan: ScanConfig) -> None:
    """Refuse a scan store as source where it is not of the shape that is asked for."""
    if scan.shape and tuple(scan.shape) != tuple(store.scan_shape):
        raise InputError(
            f"{source}: its scan is {store.scan_shape[0]} × {store.scan_shape[1]}, "
            f"--shape says {scan.shape[0]} × {scan.shape[1]}: leave --shape out, or ingest the frames again"
        )
