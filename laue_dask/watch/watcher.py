"""The loop of a watch: it looks at the folder, takes frames in, draws maps, writes ahead, and calls `single_scan.run`.

Three things go on at once. This thread lists the folder, reads frames, reduces and encodes them; a second draws the
maps; a third does what takes seconds: it finds the unusable pixels, writes blocks of the scan store, scores K. All of
it is bounded: frames are held a few at a time, and a map is drawn when the last one is done.
"""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from laue_dask.config import Config, ScanConfig
from laue_dask.errors import ComputeError, InputError, LaueDaskError, StoreError
from laue_dask.features import weights
from laue_dask.features.drift import Drift
from laue_dask.features.encode import Network
from laue_dask.features.extractors import Extractor
from laue_dask.io import deadline
from laue_dask.io.coordinates import COUNTED, MapScale, coordinates_of
from laue_dask.io.deadline import Call
from laue_dask.io.file_kinds import is_frame
from laue_dask.io.frames import FrameRef
from laue_dask.io.lock import locked_folder
from laue_dask.io.output_paths import free_space, is_disk_full, write_atomically
from laue_dask.io.path_patterns import is_pattern
from laue_dask.io.placement import Placement
from laue_dask.io.receipts import drop_receipts
from laue_dask.io.source_identity import State
from laue_dask.pipeline import record as records
from laue_dask.pipeline import single_scan
from laue_dask.pipeline.folders import check_folder
from laue_dask.pipeline.record import Record
from laue_dask.pipeline.run_log import logged
from laue_dask.pipeline.stages import extraction, frame_placement, ingest
from laue_dask.pipeline.stages.scan_source import require_growing
from laue_dask.report import canvas
from laue_dask.report.maps import label_figure, rgb_figure
from laue_dask.runtime import interruption
from laue_dask.runtime.progress import Progress
from laue_dask.runtime.suggestions import did_you_mean
from laue_dask.watch.advice import GROWTH_FACTOR, Advice, advise
from laue_dask.watch.advice import MIN_PATTERNS as ENOUGH_FOR_ADVICE
from laue_dask.watch.alarms import Alarms
from laue_dask.watch.early_ingest import MIN_MASK_FRAMES, EarlyIngest
from laue_dask.watch.folder import WatchedFolder
from laue_dask.watch.intake import Intake
from laue_dask.watch.log import Log
from laue_dask.watch.page import write_page
from laue_dask.watch.preview import Maps, Preview

STATE_FILE, PAGE_FILE, WATCH_FOLDER = "watch.json", "watch.html", "watch"
"""In the run's folder: the state, the page, and what belongs to them."""

MAP_FILES = {"Direct colouring": "direct_colouring.png", "Labels": "labels.png"}
"""Caption and file of each map, in `WATCH_FOLDER`."""

MISSING_LABEL = "there is no pattern yet"
"""What is said of the points of a map that have none."""

POLL_INTERVAL_S = 0.25
"""Seconds between two looks at the folder, at least; looking takes half of the time at most."""

FRAMES_PER_INTAKE = 16
"""Frames that are taken in before the folder is looked at again."""

REFRESH_INTERVAL_S = 1.0
"""Seconds between the beginnings of two refreshes of the maps, at least; they take half of a core at most."""

STATUS_INTERVAL_S = 10.0
"""Seconds between two lines on the console."""

LAST_FRAMES_WAIT_S = 60.0
"""Seconds for which a scan whose frames are all there waits for those that cannot be read."""

INITIAL_K = 6
"""Clusters before there is a suggestion."""

RATE_WINDOW_S = 60.0
"""Seconds over which frames/s are counted."""

RESERVED_BYTES = 50_000_000
"""Bytes of the disk that the scan store leaves free while the scan goes on: the maps come first."""

RESERVED_BYTES_PER_POINT = 3_000
"""The same, for each point of the scan."""

DISK_FULL_RETRY_S = 10.0
"""Seconds after which is written again what a full disk did not take."""

MAX_LATENCIES = 10_000
"""Frames over which the time from file to map is summed up."""


@dataclass(frozen=True)
class _Refreshed:
    """What came of a refresh: maps, the rows of the log that they show, and when they were on disk."""

    maps: Maps | None
    rows: int
    drift: Drift | None
    trouble: str
    shown: float


def watch(
    origin: str,
    folder: Path,
    config: Config,
    *,
    command: str,
    progress: Progress,
    timeout: float,
    stop: Event,
    say: Callable[[str], Any],
) -> Record:
    """Segment a scan while it is measured, and as a whole when it is over.

    Parameters
    ----------
    origin
        Folder or glob, with or without `::/path` of an HDF5 dataset, of files that are added. It may be empty, or not
        there yet.
    folder
        The run's. What an earlier watch of the same scan left there is taken over.
    config
        With the shape of the scan.
    timeout
        Seconds without anything new after which the scan is over, counted from the first frame on.
    stop
        Set to end the scan with what there is.
    say
        Told one line at a time: how far the scan is, suggestions, alarms.

    Returns
    -------
    Record
        Of `single_scan.run` on the finished scan.

    Raises
    ------
    LaueDaskError
        See `single_scan.run`.
    """
    if config.scan.shape is None:
        raise InputError("`watch` needs the scan's shape before the scan is measured: give --shape NY NX")
    if not (part := frame_placement.part_of(config.scan)).is_whole:
        raise InputError(f"scan: {part}: `watch` follows the whole scan: leave this out of --config")
    _check_origin(origin)
    check_folder(folder)
    deadline.set_deadline(config.workers.read_deadline)
    folder, source = folder.absolute(), ingest.absolute(origin)
    require_growing(source, folder, config.scan)
    if (folder / records.RECORD_FILE).exists() and ingest.absolute(held := records.read(folder)["source"]) != source:
        raise InputError(f"{folder}: holds a run of {held}, not of {origin}: choose another --out")
    extractor = extraction.extractor_of(config.encoder, config.recipe)
    with locked_folder(folder, command), logged(command, progress, folder) as noted:

        def announce(line: str) -> None:
            noted.note(line)
            say(line)

        with suppress(StoreError):  # of a run that is not finished there are none
            drop_receipts(folder, records.WATCH_FILES)
        watcher = Watcher(source, folder, config, extractor, say=announce)
        try:
            watcher.follow(timeout, stop)
        except BaseException as error:
            watcher.failed(error)
            raise
        final = watcher.finish()
    try:
        record = single_scan.run(origin, folder, final, command=command, progress=progress)
    except BaseException as error:
        watcher.failed(error)
        raise
    drop_receipts(folder, records.WATCH_FILES)
    watcher.write("finished")
    records.write_receipts(folder, records.WATCH_FILES)
    return record


def _check_origin(origin: str) -> None:
    path = Path(origin.partition("::")[0])
    glob = is_pattern(str(path))
    try:
        origin.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{origin!a}: the name is not UTF-8: rename it") from error
    if path.is_file() or (is_frame(path.name) and not glob and not path.is_dir()):
        raise InputError(
            f"{origin}: watch takes a folder, or a glob, to which files of one or more frames are added: one file that "
            "grows cannot be followed. Have the detector begin a new file every so many frames, or use `laue-dask run` "
            "when the file is closed"
        )
    if path.suffix == ".zarr":
        raise InputError(f"{origin}: is a scan store, and its scan is over: use `laue-dask run`")
    if not glob and not path.absolute().parent.is_dir():
        raise InputError(f"{origin}: there is no such folder, and none in which it could appear")


def _missing_folder(source: str) -> Path | None:
    """The folder that is watched where it is not there, of a glob the last folder before its first sign."""
    path = Path(source.partition("::")[0])
    while is_pattern(str(path)):
        path = path.parent
    return None if path.exists() else path


class Watcher:
    """A scan that goes on.

    Parameters
    ----------
    source
        Folder or glob of frames, absolute.
    folder
        Of the run; this process owns it.
    config
        With the shape of the scan.
    extractor
        As configured, not fitted.
    say
        Told one line at a time.
    """

    def __init__(
        self, source: str, folder: Path, config: Config, extractor: Extractor, *, say: Callable[[str], Any]
    ) -> None:
        self._shape = config.scan.shape or (1, 1)
        self._source, self._run, self._config, self._say = source, folder, config, say
        self._folder = folder / WATCH_FOLDER
        key = f"{source} {config.recipe.digest()} {extractor.digest}"
        self._log = Log(self._folder, width=extractor.n_features, key=key)
        self._files = WatchedFolder(source, self._log.states)
        self._alarms = Alarms(say)
        self._intake = Intake(
            self._files,
            self._log,
            config.recipe,
            extractor,
            self._folder,
            self._alarms,
            quality=config.quality != "none",
        )
        # So few frames are no sign of a wrong shape yet.
        self._scan = config.scan.model_copy(update={"aborted": True})
        self._ahead = EarlyIngest(source, folder, config.model_copy(update={"scan": self._scan}), self._locate)
        self._counted = (0, 0)
        """Frames that were known when those of the scan were counted, and how many these were."""
        self._first: int | None = None
        """Number of the file that is taken for the first point's."""
        self._preview = Preview(config.pca, seed=config.clustering.seed)
        self._reference = _reference(extractor)
        self._shown: _Refreshed | None = None
        self._advice: Advice | None = None
        self._scale = COUNTED
        self._latency: deque[float] = deque(maxlen=MAX_LATENCIES)
        self._taken: deque[tuple[float, int]] = deque()
        self._kept = len(self._log.entries)
        self._refused = -DISK_FULL_RETRY_S
        """When the disk was full the last time."""

    @property
    def _points(self) -> int:
        return self._shape[0] * self._shape[1]

    @property
    def _k(self) -> int:
        if self._config.clustering.k:
            return self._config.clustering.k[0]
        return self._advice.suggested_k[0] if self._advice and self._advice.suggested_k else INITIAL_K

    def follow(self, timeout: float, stop: Event) -> None:
        """Take in frames until the scan is over; see `watch`."""
        found = f"{self._kept:,} frames were read earlier" if self._kept else "no frame has been read yet"
        self._say(f"watch: {self._source}, {self._shape[0]} × {self._shape[1]} points; {found}")
        self._say(f"watch: the live map is {self._run / PAGE_FILE}")
        missing = _missing_folder(self._source)
        if missing:
            meant = did_you_mean(missing, other_than=self._run)
            self._say(f"watch: {missing}: no such folder yet{meant}; waiting {timeout:.0f} s for it")
        given_up = time.monotonic() + timeout
        with self._tolerating_full_disk():
            self.write("waiting")
        drawing: Future[_Refreshed] | None = None
        aside: Future[Any] | None = None
        drawn = told = written = looked = 0.0
        looking, asked = Call(self._files.look), time.monotonic()
        with ThreadPoolExecutor(1, "maps") as maps, ThreadPoolExecutor(1, "aside") as slow:
            while True:
                begun = time.monotonic()
                ready: list[tuple[FrameRef, State]] = []
                if listed := looking.ended(POLL_INTERVAL_S):
                    looked, ready = time.monotonic() - asked, looking.result()
                else:
                    self._end_hung_listing(begun - asked, timeout, stop)
                new = self._take(ready[:FRAMES_PER_INTAKE])
                now = time.monotonic()
                if new:
                    self._taken.append((now, new))
                self._update_alarms()
                if drawing is not None and drawing.done():
                    with self._tolerating_full_disk():
                        self._take_over(drawing.result())
                    drawing, written = None, 0.0
                behind = len(self._log.entries) > (self._shown.rows if self._shown else 0)
                if drawing is None and behind and now - drawn >= REFRESH_INTERVAL_S:
                    drawing, drawn = maps.submit(self._refresh, tuple(self._files.refs), self._k), now
                if aside is None or aside.done():
                    if aside is not None:
                        with self._tolerating_full_disk():
                            aside.result()
                    work = self._next_background_task()
                    aside = slow.submit(work) if work else None
                if now - told >= (STATUS_INTERVAL_S if told else 0.0) and self._files.refs:
                    told = now
                    self._say(self._line())
                if now - written >= REFRESH_INTERVAL_S:
                    written = now
                    with self._tolerating_full_disk():
                        self.write("scanning" if self._files.refs else "waiting")
                why = self._over(timeout, stop)
                if why:
                    break
                if now > given_up and missing and not self._files.refs and _missing_folder(self._source):
                    raise InputError(f"{missing}: no such folder came within {timeout:.0f} s: check its name")
                # At once where there is more to take in.
                if not new or len(ready) <= FRAMES_PER_INTAKE:
                    stop.wait(max(0.0, begun + max(POLL_INTERVAL_S, 2 * looked) - time.monotonic()))
                if listed:
                    looking, asked = Call(self._files.look), time.monotonic()
        if self._log.entries:
            with self._tolerating_full_disk():
                self._take_over(self._refresh(tuple(self._files.refs), self._k))
                self._update_alarms()
        elif stop.is_set() and not self._files.refs:
            raise KeyboardInterrupt  # nothing has come that could be segmented
        self._say(self._line())
        self._say(f"watch: {why}; the scan is segmented as a whole now")

    def _end_hung_listing(self, seconds: float, timeout: float, stop: Event) -> None:
        """See to it that a listing that hangs, of so many seconds, holds nobody up.

        Raises
        ------
        ComputeError
            It never ends, and no frame is known that could be segmented.
        KeyboardInterrupt
            The watch is told to end: what lies on a file system that does not answer cannot be segmented.
        """
        if stop.is_set() and seconds > deadline.LAST_WAIT_S:
            interruption.expect_exit(deadline.LAST_WAIT_S)
            raise KeyboardInterrupt
        if seconds < min(timeout, deadline.deadline_s()):
            return
        self._files.problem = f"{self._source} has not answered for {seconds:.0f} s: is its file system there?"
        if not self._files.refs and seconds >= timeout:
            raise ComputeError(self._files.problem)

    def finish(self) -> Config:
        """Leave the folder to `single_scan.run`; the configuration for it."""
        self._ahead.finish()
        with self._tolerating_full_disk():
            self.write("finishing")
        few = self._of_scan() < 0.5 * self._points
        scan = self._scan if few else self._config.scan
        if self._first is not None and self._needs_first(scan):
            scan = scan.model_copy(update={"first_number": self._first})
        return self._config.model_copy(update={"scan": scan})

    def _needs_first(self, scan: ScanConfig) -> bool:
        """Whether a run would not know which file is the first."""
        refs = self._files.refs
        positions = self._log.positions([str(ref) for ref in refs])
        try:
            frame_placement.locate(self._source, refs, scan, positions)
        except InputError:
            return True
        return False

    def _locate(self, refs: Sequence[FrameRef]) -> Placement:
        """Where frames belong by now: the first that is there is the first point's."""
        positions = self._log.positions([str(ref) for ref in refs])
        found = frame_placement.locate(self._source, refs, self._scan, positions, from_first=True)
        if found.assumed is not None and found.assumed != self._first:
            self._say(f"watch: the first point is that of the file with number {found.assumed} (--first-number)")
        self._first = found.assumed
        return found

    def _of_scan(self) -> int:
        """Frames of the scan that are known: without files that are none of it."""
        refs = self._files.refs
        if len(refs) - self._files.assumed < self._points:
            return len(refs)
        if self._counted[0] != len(refs):
            try:
                left_out = len(self._locate(refs).left_out)
            except InputError:
                left_out = 0
            self._counted = (len(refs), len(refs) - left_out)
        return self._counted[1]

    def failed(self, error: BaseException) -> None:
        """Say on the page that there is no result, and why."""
        with suppress(OSError):  # a full disk, perhaps, which is the error that is to be told
            self.write("failed", str(error) or "interrupted: the same command goes on")

    @contextmanager
    def _tolerating_full_disk(self) -> Iterator[None]:
        """What a full disk refuses is no end of the scan: it is tried again; see `_hear`."""
        try:
            yield
        except (OSError, LaueDaskError) as error:
            if not is_disk_full(error):
                raise
            self._refused = time.monotonic()

    def _take(self, ready: Sequence[tuple[FrameRef, State]]) -> int:
        """Take frames in, as far as the disk has room for what is known of them; how many were."""
        before = len(self._log.entries)
        if time.monotonic() - self._refused >= DISK_FULL_RETRY_S or self._free() > 0:
            with self._tolerating_full_disk():
                self._intake.take(ready)
        return len(self._log.entries) - before

    def _free(self) -> int:
        """Bytes that the scan store may take now."""
        return free_space(self._run) - self._reserve

    @property
    def _reserve(self) -> int:
        return RESERVED_BYTES + RESERVED_BYTES_PER_POINT * self._points

    def _over(self, timeout: float, stop: Event) -> str:
        """Why the scan is over; empty while it is not."""
        files = self._files
        quiet = time.monotonic() - files.news
        if stop.is_set():
            return f"ended after {len(files.refs):,} of {self._points:,} frames"
        if self._of_scan() - files.assumed >= self._points and (not files.unread or files.quiet(LAST_FRAMES_WAIT_S)):
            return f"all {self._points:,} frames are there"
        if files.refs and quiet >= timeout:
            return f"nothing new for {quiet:.0f} s, after {len(files.refs):,} of {self._points:,} frames"
        return ""

    def _update_alarms(self) -> None:
        """Raise and end the alarms that are not about single frames."""
        if self._files.problem and (self._files.refs or not self._files.empty):
            self._alarms.begin("files", self._files.problem)
        elif self._shown is not None and self._shown.trouble:
            self._alarms.begin("files", self._shown.trouble)
        else:
            self._alarms.end("files", "the frames can be placed again")
        missing, free = self._ahead.missing, self._free()
        if missing > free or time.monotonic() - self._refused < DISK_FULL_RETRY_S:
            self._alarms.begin("disk", self._no_room(missing, free + self._reserve))
        else:
            self._alarms.end("disk", f"the disk of {self._run} has room again")

    def _no_room(self, missing: int, free: int) -> str:
        needed = f"the frames need {missing / 1e9:.2f} GB more and the maps {self._reserve / 1e9:.2f} GB"
        waits = "what cannot be written waits for room"
        return f"the disk is too full: {needed}, {self._run} has {free / 1e9:.2f} GB free: make room; {waits}"

    def _next_background_task(self) -> Callable[[], None] | None:
        """What takes seconds and is due."""
        refs, known = self._files.refs, len(self._log.entries)
        room = time.monotonic() - self._refused >= DISK_FULL_RETRY_S and self._free() > 0
        enough = known >= min(MIN_MASK_FRAMES, max(1, self._points // 2))
        if room and enough and not self._ahead.begun and self._files.unread < FRAMES_PER_INTAKE:
            return partial(self._begin, tuple(refs))
        maps = self._shown.maps if self._shown else None
        if maps is not None:
            due = GROWTH_FACTOR * self._advice.patterns if self._advice else ENOUGH_FOR_ADVICE
            if len(maps.patterns) >= due:
                return partial(self._advise, maps)
        return partial(self._write, tuple(refs)) if room and self._ahead.begun else None

    def _begin(self, refs: Sequence[FrameRef]) -> None:
        read = self._log.states
        if not self._fits(refs):
            return
        detector = self._ahead.begin(refs, [ref for ref in refs if str(ref) in read])
        if detector is not None:
            self._intake.detector = detector

    def _write(self, refs: Sequence[FrameRef]) -> None:
        if not self._fits(refs) or not self._ahead.write(refs, self._log.states):
            time.sleep(REFRESH_INTERVAL_S)  # nothing is due: not to be asked for again at once

    def _fits(self, refs: Sequence[FrameRef]) -> bool:
        """Whether the frames can be placed; they may be too many for a while, and an alarm says so meanwhile."""
        try:
            self._locate(refs)
        except InputError:
            return False
        return True

    def _advise(self, maps: Maps) -> None:
        # What is said again is what is suggested, not how strongly.
        before = [line.partition(":")[0] for line in self._advice.lines] if self._advice else []
        self._advice = advise(maps, self._shape, self._config.clustering, self._scale)
        for line in self._advice.lines:
            if line.partition(":")[0] not in before:
                self._say(f"suggestion: {line}")

    def _refresh(self, refs: Sequence[FrameRef], k: int) -> _Refreshed:
        """Place, map and draw all frames that are known."""
        rows = len(self._log.entries)
        errors = np.array([entry.unexplained for entry in self._log.entries[:rows]], dtype=np.float32)
        drift = Drift.between(errors, self._reference)
        try:
            placement = self._locate(refs)
        except InputError as error:
            return _Refreshed(self._shown.maps if self._shown else None, rows, drift, str(error), time.time())
        placed, row = placement.pattern, self._log.rows([str(ref) for ref in refs])
        known = np.flatnonzero((row >= 0) & (row < rows) & (placed >= 0))
        known = known[np.argsort(placed[known])]
        self._scale = MapScale.of_coordinates(*coordinates_of(self._shape, placement.position, min_known=0.0))
        maps = self._preview.update(self._log.features()[:rows], row[known], placed[known], k)
        if maps is not None:
            self._draw(maps)
        return _Refreshed(maps, rows, drift, "", time.time())

    def _draw(self, maps: Maps) -> None:
        where = maps.where(self._shape)
        labels = where.paint(maps.labels, fill=np.int32(-1))
        facts = f"{len(maps.patterns):,} of {self._points:,} patterns, preliminary"
        figures = (
            rgb_figure(
                where.paint(maps.rgb, fill=np.uint8(0)),
                where.valid.reshape(self._shape),
                title="Direct colouring so far",
                facts=facts,
                over="its middle 99 %",
                absent=MISSING_LABEL,
                scale=self._scale,
            ),
            label_figure(
                labels,
                maps.k,
                delegates=None,
                title=f"K = {maps.k} so far",
                facts=facts,
                absent=MISSING_LABEL,
                scale=self._scale,
            ),
        )
        for figure, name in zip(figures, MAP_FILES.values(), strict=True):
            write_atomically(self._folder / name, canvas.png(figure))

    def _take_over(self, found: _Refreshed) -> None:
        self._shown = found
        for row in [row for row in self._intake.since if row < found.rows]:
            self._latency.append(found.shown - self._intake.since.pop(row))
        self._alarms.compare(found.drift)

    def write(self, state: str, reason: str = "") -> None:
        """Write the state and the page."""
        content = self._state(state, reason)
        write_page(
            content, {caption: self._folder / name for caption, name in MAP_FILES.items()}, self._run / PAGE_FILE
        )
        text = json.dumps(content, indent=1, ensure_ascii=False)
        write_atomically(self._run / STATE_FILE, text.encode(errors="backslashreplace"))  # the last of all

    def _state(self, state: str, reason: str) -> dict[str, Any]:
        maps, now = self._shown.maps if self._shown else None, time.monotonic()
        latency = np.array(self._latency) if self._latency else np.zeros(1)
        return {
            "state": state,
            "reason": reason,
            "pid": os.getpid(),
            "source": self._source,
            "scan_shape": list(self._shape),
            "order": self._config.scan.order,
            "points": self._points,
            "frames": len(self._log.entries),
            "mapped": 0 if maps is None else len(maps.patterns),
            "backlog": self._files.unread,
            "skipped": 0 if maps is None else int(maps.patterns.max()) + 1 - len(maps.patterns),
            "unreadable": [{"file": path, "reason": why} for path, why in self._files.unreadable.items()],
            "frames_per_s": round(self._rate(now), 2),
            "latency_s": {
                "frames": len(self._latency),
                **{f"p{q}": round(float(np.percentile(latency, q)), 2) for q in (50, 95)},
                "max": round(float(latency.max()), 2),
            },
            "quiet_s": round(now - self._files.news, 1),
            "k": None if maps is None else maps.k,
            "suggested_k": list(self._advice.suggested_k) if self._advice else [],
            "suggestions": self._advice.lines if self._advice else [],
            "alarms": [
                {
                    "kind": alarm.kind,
                    "message": alarm.message,
                    "since": _clock(alarm.since),
                    "until": None if alarm.until is None else _clock(alarm.until),
                }
                for alarm in self._alarms.raised
            ],
            "store": {"patterns": self._ahead.patterns},
            "updated": _clock(time.time()),
        }

    def _rate(self, now: float) -> float:
        while self._taken and now - self._taken[0][0] > RATE_WINDOW_S:
            self._taken.popleft()
        if len(self._taken) < 2:
            return 0.0
        # The first batch came before the time that is counted.
        return sum(count for _, count in list(self._taken)[1:]) / max(now - self._taken[0][0], 1e-9)

    def _line(self) -> str:
        state = self._state("scanning", "")
        behind = f"{state['latency_s']['p95']:.1f} s from file to map (95 %)" if self._latency else "no map yet"
        unreadable = f", {len(state['unreadable'])} unreadable" if state["unreadable"] else ""
        return (
            f"watch: {state['frames']:,} of {self._points:,} frames, {state['frames_per_s']:.1f} frames/s, "
            f"backlog {state['backlog']}, {behind}{unreadable}"
        )


def _reference(extractor: Extractor) -> dict[str, float]:
    path = weights.locate(extractor.weights_name) if isinstance(extractor, Network) else None
    return {} if path is None else dict(weights.read_card(path).reference)


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
