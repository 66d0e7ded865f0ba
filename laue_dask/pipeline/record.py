"""The record of a run, `run.json`: what was done to what, with which versions and seeds, and how long it took."""

import json
import logging
import platform
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from laue_dask import __version__
from laue_dask.config import Config, validate
from laue_dask.errors import InputError, StoreError
from laue_dask.features.drift import Drift
from laue_dask.features.weights import UNTRAINED_SEED
from laue_dask.io import placement
from laue_dask.io.block_files import checksum_of_text
from laue_dask.io.output_paths import write_atomically
from laue_dask.io.receipts import RUN_RECEIPTS_FILE, Receipts
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import notices
from laue_dask.pipeline.notices import Notice, Subject
from laue_dask.pipeline.versions import FIRST_RELEASE, version_of_code
from laue_dask.runtime import activity
from laue_dask.runtime.progress import Advance, Progress
from laue_dask.runtime.suggestions import did_you_mean

RECORD_FILE, SERIES_FILE = "run.json", "series.json"
"""Of a run, and of a folder that holds the runs of a series."""

WITHDRAWN_RECORD_FILE = "run.json.withdrawn"
"""The record of a run while `laue-dask segment` puts other results into its place."""

PARTIAL_RECORD_FILE = "run.json.part"
"""There while the receipts of a run's files may be there before its record, which is then not lost but yet to come."""

CHECKSUM_ENTRY = "crc32c"
"""Last entry of a record: of all the others."""

LOG_FILE = "run.log"
"""What was announced while the run was made, segmented and evaluated; it goes on when the record is written."""

RUN_FILES = (
    "config.yaml",
    "report.html",
    "dask-report.html",
    "delegates.csv",
    "grains.csv",
    "regions.csv",
    "pixels.safetensors",
    "plots/*",
    "watch.html",
    "watch.json",
    "watch/*",
    "cluster/state.json",
)
"""What a run leaves beside its record and its results; other files in its folder are none of ours."""

WATCH_FILES = ("watch.html", "watch.json", "watch")
"""What `laue-dask watch` leaves, and changes as long as it watches."""

FILES_WITHOUT_RECEIPT = (
    *(name for name in RUN_FILES if name != "plots/*"),
    "plots/approximation.png",
    "cluster/*",
    ".nightly",
    LOG_FILE,
)
"""What is ours by its name alone where no receipt knows it: it may be written while there are receipts of the rest."""

RUN_AGAIN_HINT = "run the same `laue-dask run` command again"

RECORDED_PACKAGES = ("dask", "distributed", "dask-ml", "fabio", "numpy", "scikit-learn", "torch", "zarr")

_STAGES_PER_PATTERN = ("ingest", "reduce", "encode")


STAGES = ("ingest", "reduce", "encode", "components", "scores", "segment", "grains", "quality", "report")
"""Of a run, in their order; `look`, with which some runs begin, is the beginning of the first."""

STAGES_OF_SEGMENTING = ("scores", "segment", "report")
"""Of a finished run that is segmented again."""

STAGE_LOGGER = "laue_dask.stages"
"""Name of the logger that is told, at the level of details, when a stage begins and how long it took."""

logging.getLogger(STAGE_LOGGER).setLevel(logging.DEBUG)
logging.getLogger(STAGE_LOGGER).propagate = False  # it is for those who ask for it


class _WarningCollector(logging.Handler):
    """Adds each warning to a list, once."""

    def __init__(self, warnings: list[Notice]) -> None:
        super().__init__(logging.WARNING)
        self._warnings = warnings

    def emit(self, record: logging.LogRecord) -> None:
        if (notice := Notice("workers", record.getMessage())) not in self._warnings:
            self._warnings.append(notice)


class _CountingProgress:
    """Progress that tells a run how many patterns a stage has worked on."""

    def __init__(self, progress: Progress, run: "Record") -> None:
        self._progress, self._run = progress, run

    @contextmanager
    def stage(self, name: str, *, total: int, unit: str = "patterns", done: int = 0) -> Iterator[Advance]:
        with self._progress.stage(name, total=total, unit=unit, done=done) as advance:

            def tell(count: int) -> None:
                if unit == "patterns":
                    self._run.count(count)
                advance(count)

            yield tell


_STAGE_IN_WORDS = {"look": "looking at the frames", "report": "drawing the figures and the report"}
"""Stages whose names do not say what is being done."""


def _order_of_set_aside(aside: Mapping[str, Any]) -> tuple[bool, int]:
    """Order of what is set aside: by pattern, and behind them what has no place in the scan."""
    return aside["pattern"] is None, aside["pattern"] or 0


@dataclass
class Record:
    """What `run.json` holds: taken down while a run is made, and read back by `load`."""

    command: str
    source: str
    config: Config
    scan: str = ""
    scan_shape: tuple[int, int] = (0, 0)
    grid: dict[str, Any] = field(default_factory=dict)
    """What the grid is, how that is known, and which files are none of the scan; see `io.placement.Placement`."""
    n_patterns: int = 0
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    k: list[int] = field(default_factory=list)
    suggested_k: list[int] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    m_pca: int = 0
    delegate_sources: dict[str, str] = field(default_factory=dict)
    workers: str = ""
    warnings: list[Notice] = field(default_factory=list)
    drift: dict[str, float | str] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    """What became of each: `made`, `kept`, or why it was made again; see `laue_dask.pipeline.reuse`."""
    series: list[str] = field(default_factory=list)
    """Names of the scans that share components and clusters with this one, itself included
    (`laue_dask.pipeline.series`)."""

    patterns: dict[str, int] = field(default_factory=dict)
    """How many each stage has worked on itself: what is there already, or was done by another one, does not count. Runs
    of earlier versions do not say."""
    patterns_per_second: dict[str, float] = field(default_factory=dict)
    n_clusters: list[int] = field(default_factory=list)
    """Clusters that own patterns, of each K, as far as `segment` has said so."""
    segmented_by: list[str] = field(default_factory=list)
    """Commands that clustered the finished run again."""
    evaluation: list[dict[str, Any]] = field(default_factory=list)
    """How the segmentations compare with a true map; see `laue_dask.pipeline.stages.evaluation.evaluate`."""
    approximation: list[dict[str, Any]] = field(default_factory=list)
    seeds: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: _versions())
    laue_dask: str = field(default_factory=lambda: __version__)
    code: str = field(default_factory=version_of_code)
    """Which versions of the stages it was made with; see `laue_dask.pipeline.versions.version_of_code`."""
    _stage: str = field(default="", compare=False, repr=False)
    _course: tuple[str, ...] = field(default=STAGES, compare=False, repr=False)
    """Stages of the work that is being recorded, in their order."""

    def __post_init__(self) -> None:
        if not self.seeds:
            self.seeds = {"clustering": self.config.clustering.seed, "untrained": UNTRAINED_SEED}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> Self:
        """Return a record of the plain values that `as_json` gave, of this version or an earlier one.

        Parameters
        ----------
        where
            They come from, for messages.

        Raises
        ------
        InputError
            They are not those of a record.
        """
        known = {one.name for one in fields(cls) if not one.name.startswith("_")}
        given = {name: value for name, value in values.items() if name in known}
        try:
            given = {"code": FIRST_RELEASE, "versions": {}, **given}
            given["config"] = validate(given["config"], where)
            ny, nx = given["scan_shape"]
            given["scan_shape"] = int(ny), int(nx)
            given["warnings"] = notices.read(values)
            return cls(**given)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where}: is not the record of a run of this laue-dask: {RUN_AGAIN_HINT}") from error

    def counted(self, progress: Progress) -> Progress:
        """Return the same progress, of which the patterns are counted for the stage that is being timed."""
        return _CountingProgress(progress, self)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds that a stage takes."""
        begun, self._stage = time.monotonic(), stage
        number = self._course.index(stage) + 1 if stage in self._course else 1
        words, place = _STAGE_IN_WORDS.get(stage, stage), activity.Stage(stage, number, len(self._course))
        logger = logging.getLogger(STAGE_LOGGER)
        with activity.note_activity(words, place):
            logger.debug("%s: %s", place, words)
            yield
            took = time.monotonic() - begun
            logger.debug("%s: %s took %.1f s", place, words, took)
        self.seconds[stage] = round(self.seconds.get(stage, 0) + took, 3)

    def count(self, patterns: int) -> None:
        """Add patterns to those of the stage that is being timed."""
        self.patterns[self._stage] = self.patterns.get(self._stage, 0) + patterns

    def describe_scan(self, store: ScanStore) -> None:
        """Take over what the scan store says."""
        self.scan, self.scan_shape = str(store.path), store.scan_shape
        self.keys["scan"], self.grid = store.key(), placement.recorded_placement(store)
        self.n_patterns, self.set_aside = int(store.valid.sum()), store.set_aside

    def set_more_aside(self, store: ScanStore, valid: NDArray[np.bool_], reason: str) -> None:
        """Set the patterns of the store aside that are not `valid` any more, (pattern,)."""
        lost, source = np.flatnonzero(store.valid & ~valid).tolist(), store.source
        added = [{"pattern": i, "source": source[i], "reason": reason} for i in lost]
        self.set_aside = sorted([*self.set_aside, *added], key=_order_of_set_aside)
        self.n_patterns = int(valid.sum())

    def warn(self, subject: Subject, *lines: str) -> None:
        """Add a warning for each line."""
        self.warnings += [Notice(subject, line) for line in lines]

    @contextmanager
    def warned_by(self, name: str) -> Iterator[None]:
        """Take over, once each, the warnings of a logger, to which those of the workers are forwarded."""
        handler, logger = _WarningCollector(self.warnings), logging.getLogger(name)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def warn_of_frames(self, store: ScanStore) -> None:
        """Say which frames of a store, of which nothing is read any more, are damaged."""
        damaged = store.damaged_shards() if store.has_frames else {}
        if damaged:
            first, fault = next(iter(damaged.items()))
            start, unit = first * store.shard_frames, store.shard_frames
            shards, stop = -(-store.n_patterns // unit), min(start + unit, store.n_patterns)
            self.warn(
                "frames",
                f"{store.path}: {len(damaged)} of its {shards} shards of frames are damaged, that of frames {start} to "
                f"{stop - 1} {fault}. The maps were made of the reduced patterns, which are whole; to have the "
                f"frames again, "
                "remove the store while their files are there, and give the same command",
            )

    def compare_with_training(self, drift: Drift | str) -> None:
        """Take over how the patterns compare with the encoder's training, or why that is not known."""
        self.drift = {"not_known": drift} if isinstance(drift, str) else asdict(drift)
        if isinstance(drift, Drift) and drift.warning:
            self.warn("training", drift.warning)

    def as_json(self) -> dict[str, Any]:
        """Return the plain values, with versions and seeds."""
        self.patterns_per_second |= {
            stage: round(self.patterns[stage] / self.seconds[stage], 1)
            for stage in _STAGES_PER_PATTERN
            if self.patterns.get(stage) and self.seconds.get(stage)
        }
        later = {name: getattr(self, name) for name in _ENTRIES_ADDED_LATER}
        return {
            "laue_dask": self.laue_dask,
            "code": self.code,
            "command": self.command,
            "source": self.source,
            "scan": self.scan,
            "scan_shape": list(self.scan_shape),
            "grid": self.grid,
            "n_patterns": self.n_patterns,
            "n_set_aside": len(self.set_aside),
            "set_aside": self.set_aside,
            "k": self.k,
            "suggested_k": self.suggested_k,
            "advice": self.advice,
            "m_pca": self.m_pca,
            "delegate_sources": self.delegate_sources,
            **notices.recorded(self.warnings),
            "drift": self.drift,
            "series": self.series,
            "stages": self.stages,
            "seconds": self.seconds,
            "patterns": self.patterns,
            "patterns_per_second": self.patterns_per_second,
            "workers": self.workers,
            "keys": self.keys,
            "seeds": self.seeds,
            "versions": self.versions,
            "config": self.config.model_dump(mode="json"),
            **{name: values for name, values in later.items() if values},
        }


_ENTRIES_ADDED_LATER = ("n_clusters", "segmented_by", "evaluation", "approximation")
"""What a record has only after what was done with the finished run."""


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in RECORDED_PACKAGES}}


def write(folder: Path, values: dict[str, Any]) -> None:
    """Write the record of a run; it appears only when complete, and last of all: a run without it is not finished.

    Just before it, the receipts of the run's other files are taken down.
    """
    for left in folder.glob(".*.partial"):  # of commands that were killed
        left.unlink()
    (folder / PARTIAL_RECORD_FILE).touch()
    Receipts.of(
        folder, [path.relative_to(folder).as_posix() for pattern in RUN_FILES for path in folder.glob(pattern)]
    ).write(RUN_RECEIPTS_FILE)
    text = json.dumps({**values, CHECKSUM_ENTRY: _checksum(values)}, indent=1, ensure_ascii=False)
    write_atomically(folder / RECORD_FILE, text.encode(errors="surrogatepass"))
    for name in (WITHDRAWN_RECORD_FILE, PARTIAL_RECORD_FILE):
        (folder / name).unlink(missing_ok=True)


def copy(folder: Path, to: Path, values: dict[str, Any]) -> None:
    """Copy the files of a finished run to another folder, whose record holds `values`."""
    for pattern in RUN_FILES:
        for path in folder.glob(pattern):
            target = to / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copy2(path, target)
    write(to, values)


def _checksum(values: dict[str, Any]) -> str:
    """CRC-32C of a record's values, however they are laid out in the file."""
    text = json.dumps({name: value for name, value in values.items() if name != CHECKSUM_ENTRY}, sort_keys=True)
    return checksum_of_text(text)


def check(folder: Path) -> None:
    """Raise `StoreError` unless all that a finished run's receipts list, such as its figures, is as it was written."""
    if (folder / RECORD_FILE).exists():
        Receipts.read(folder, RUN_RECEIPTS_FILE).check(remedy=RUN_AGAIN_HINT)


def write_receipts(folder: Path, names: Collection[str]) -> None:
    """Write receipts of these files of a finished run, and of what is in these folders."""
    receipts = Receipts.read(folder, RUN_RECEIPTS_FILE)
    receipts.without(names).joined(Receipts.of(folder, names)).write(RUN_RECEIPTS_FILE)


def has_receipt(folder: Path, name: str) -> bool:
    """Return whether a file of a finished run is there as it was written."""
    try:
        receipts = Receipts.read(folder, RUN_RECEIPTS_FILE)
    except StoreError:
        return False
    return name in receipts.files and not any(fault for _, fault in receipts.faults([name]))


def remove(folder: Path) -> None:
    """Remove the record: from here on there is no finished run, nor one that seems damaged after a kill."""
    withdraw(folder)
    for name in (RUN_RECEIPTS_FILE, WITHDRAWN_RECORD_FILE, PARTIAL_RECORD_FILE):
        (folder / name).unlink(missing_ok=True)


def withdraw(folder: Path) -> None:
    """Withdraw the record: the run is not finished any more, but `read` can still tell what it was."""
    if (folder / RECORD_FILE).exists():
        (folder / RECORD_FILE).replace(folder / WITHDRAWN_RECORD_FILE)


def members_of(folder: Path) -> list[Path]:
    """Return the folders of the runs of a series, none where the folder holds no series."""
    try:
        scans = json.loads((folder / SERIES_FILE).read_text(encoding="utf-8"))["scans"]
        names = [str(one["name"]) for one in scans]
        if any(name in ("", ".", "..") or Path(name).name != name for name in names):
            raise ValueError("a name in it is not that of a folder")
        return [folder / name for name in names]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{folder / SERIES_FILE}: cannot be read, or does not belong to a series: run the series again"
        ) from error


def load(folder: Path) -> Record:
    """Read the record of a finished run.

    Returns
    -------
    Record
        Equal to the one that was written.

    Raises
    ------
    InputError
        There is none, or it cannot be read.
    """
    return Record.from_json(read(folder), str(folder / RECORD_FILE))


def scan_of(folder: Path, scan: str, key: str) -> ScanStore:
    """Return the scan that a run was made of, where it was or, if the run was moved, inside the run's folder.

    Parameters
    ----------
    scan, key
        Path and key of the scan, as the record of the run has them.

    Raises
    ------
    InputError
        It is gone, or another one is in its place.
    """
    found = []
    for path in (Path(scan), folder.absolute() / "scan.zarr"):
        if path.exists():
            found.append(path)
            store = ScanStore.open(path)
            if store.key() == key:
                return store
    if found:
        raise InputError(f"{found[0]}: is not the scan that {folder} was made of: run `laue-dask run` again")
    raise InputError(f"{scan}: the scan of {folder} has gone: run `laue-dask run` again")


def read(folder: Path, *, withdrawn: bool = False) -> dict[str, Any]:
    """Read `run.json` of a finished run, or the one that was withdrawn by a command that was killed.

    Raises
    ------
    InputError
        There is none, or it cannot be read.
    """
    path = folder / RECORD_FILE
    if withdrawn and not path.exists() and (folder / WITHDRAWN_RECORD_FILE).exists():
        path = folder / WITHDRAWN_RECORD_FILE
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        if members := members_of(folder):
            raise InputError(f"{folder}: holds a series: give the folder of one of its scans, {members[0]}") from error
        missing = "there is no finished run (run.json is missing): start one with `laue-dask run`"
        if not folder.exists():
            missing = f"there is no such folder of a run{did_you_mean(folder)}"
        raise InputError(f"{folder}: {missing}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is damaged ({error}): run `laue-dask run` again") from error
    if not isinstance(record, dict) or "laue_dask" not in record:
        raise InputError(f"{path}: is not the record of a run: run `laue-dask run` again")
    if record.pop(CHECKSUM_ENTRY, None) != _checksum(record):
        raise InputError(f"{path}: is damaged or was changed, for its checksum differs: {RUN_AGAIN_HINT}")
    return record
