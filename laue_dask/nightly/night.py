"""One night: it finds scans, decides, runs one after another, and says what became of all of them."""

import json
import logging
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import psutil

from laue_dask import __version__
from laue_dask.config import Config, merged
from laue_dask.errors import BusyError, ComputeError, ConfigError, ExitCode, InputError
from laue_dask.io.lock import locked_folder
from laue_dask.io.output_paths import free_space, require_writable, write_atomically
from laue_dask.nightly.config import KeepConfig, NightlyConfig, ends_at, require_out
from laue_dask.nightly.decisions import Decision, decide, pending_in_order
from laue_dask.nightly.ledger import Ledger, State
from laue_dask.nightly.notify import notify
from laue_dask.nightly.runs import NIGHTLY_COMMAND, Key, NightRun, facts, remove_trash, settings_key
from laue_dask.nightly.scan_process import ProcessDiedError, ScanProcess, ScanStoppedError
from laue_dask.nightly.scans import FoundScan, find_scans, matches
from laue_dask.report.nights import write_index
from laue_dask.runtime.progress import duration, one_line
from laue_dask.runtime.safe_text import printable

REDUCED_BYTES_PER_PATTERN = 20_000
"""Of a pattern that are written beside its frame: reduced, features, components."""

PAGE_INTERVAL_S = 10.0
"""Seconds, at least, between two states of the page and the summary while a night lasts."""

Say = Callable[[str], None]


class _NightOverError(Exception):
    """The night ends here; the message is the reason."""


@dataclass
class _Night:
    """What a night knows while it lasts."""

    root: Path
    out: Path
    config: NightlyConfig
    ledger: Ledger
    say: Say
    ends: float | None
    began: datetime = field(default_factory=lambda: datetime.now().astimezone())
    tried: Counter[str] = field(default_factory=Counter)
    busy: set[str] = field(default_factory=set)
    memory: list[int] = field(default_factory=list)
    stopped: str = ""
    found: list[FoundScan] = field(default_factory=list)
    _known: dict[int | None, tuple[Config, str]] = field(default_factory=dict)
    written: float = 0.0

    def look(self) -> list[Decision]:
        """Every scan that is there, and what is to be done with it."""
        self.found = find_scans(self.root, self.config.find, leave_out=self.out)
        return self.decisions()

    def decisions(self) -> list[Decision]:
        """What is to be done with every scan that was there when it was last looked."""
        return [self._decide(scan) for scan in self.found]

    def _decide(self, scan: FoundScan) -> Decision:
        return decide(
            scan,
            self.ledger.states.get(scan.name),
            Key.of(scan, *self._settings(scan.name)),
            there=self.place(scan.name).there,
            attempts=self.config.retry.attempts,
            rules=self.config.find,
            now=time.time(),
        )

    def place(self, scan: str) -> NightRun:
        return NightRun(self.out, scan)

    def config_of(self, scan: str) -> Config:
        """Configuration of a scan's run."""
        return self._settings(scan)[0]

    def _settings(self, scan: str) -> tuple[Config, str]:
        """Configuration of a scan's run, and its part of the key."""
        parts = scan.split("/")
        fits = (i for i, one in enumerate(self.config.special) if matches(parts, one.pattern.split("/")))
        place = next(fits, None)
        if place not in self._known:
            special = {} if place is None else self.config.special[place].run
            config = Config.model_validate(merged(self.config.run.model_dump(mode="json"), special))
            self._known[place] = config, settings_key(config)
        return self._known[place]

    def over(self) -> str:
        """Why the night is over; empty where it is not."""
        if self.ends is not None and time.time() >= self.ends:
            return "the time is up"
        free = free_space(self.out)
        if free < self.config.limits.min_free:
            return self._no_room(0, free)
        return ""

    def needed(self, scan: FoundScan) -> int:
        """Bytes that a run of the scan writes at most, for all that its files tell."""
        frames = scan.size if self.config_of(scan.name).scan.store_frames else 0
        return frames + REDUCED_BYTES_PER_PATTERN * scan.frames

    def require_room(self, scan: FoundScan) -> None:
        """Raise `_NightOverError` where the disk would become too full."""
        needed, free = self.needed(scan), free_space(self.out)
        folder = self.place(scan.name).folder
        there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
        if free - max(0, needed - there) < self.config.limits.min_free:
            raise _NightOverError(self._no_room(needed - there, free, scan.name))

    def _no_room(self, needed: int, free: int, scan: str = "") -> str:
        what = f"{scan} needs {needed / 1e9:.2f} GB and " if scan else ""
        reserve = f"{self.config.limits.min_free / 1e9:.2f} GB are to stay free (limits.min_free)"
        return f"disk: {what}{reserve}, {free / 1e9:.2f} GB are free: make room at {self.out}, or set `keep`"


def run_night(
    root: Path,
    config: NightlyConfig,
    *,
    again: Sequence[str] = (),
    where: str = "options",
    say: Say = print,
    scan_process: ScanProcess | None = None,
) -> ExitCode:
    """Run what is new or changed below a beamtime's folder.

    Parameters
    ----------
    root
        The beamtime's folder.
    again
        Names of scans that were set aside, or are done, and are to be done again.
    where
        Origin of the configuration, for messages.
    say
        Takes one line for each scan.
    scan_process
        Runs the scans, and goes on to the next night; by default one is started for this night alone.

    Returns
    -------
    ExitCode
        0 all that is complete is done or left for the next night by a limit of time, 3 some scans are set aside, 1 the
        night had to end early.

    Raises
    ------
    LaueDaskError
        The configuration, the folder or the weights cannot be used, or another night is at work.
    """
    out, root = require_out(config, where), root.absolute()
    require_writable(out)
    asked = _Night(root, out, config, Ledger(out, root, read_only=True), print, None)
    asked.look()
    _request_again(asked, again)  # refused before anything is made
    with locked_folder(out, f"{NIGHTLY_COMMAND} {root}"), closing(_Log(out, config, say)) as log:
        ledger = Ledger(out, root)
        began = datetime.now().astimezone()
        end = ends_at(config.limits, began)
        night = _Night(root, out, config, ledger, log.say, None if end is None else end.timestamp(), began)
        night.found = asked.found
        _request_again(night, again)
        remove_trash(out)
        for text in remove_old(night, datetime.now().timestamp()):
            log.say(text)
        try:
            with (
                nullcontext(scan_process) if scan_process else ScanProcess(config.limits, out / "worker.log") as at_work
            ):
                _run_scans(night, at_work)
        except _NightOverError as error:
            night.stopped = str(error)
        except BaseException as error:
            night.stopped = f"interrupted ({type(error).__name__})"
            _write_summary(night, ExitCode.FAILED)
            raise
        return _finish(night, log)


def plan_night(
    root: Path, config: NightlyConfig, *, again: Sequence[str] = (), where: str = "options"
) -> Iterator[str]:
    """Say what a night would do, one line for each scan; nothing is written. See `run_night`."""
    return map(one_line, _plan(root, config, again, where))


def _plan(root: Path, config: NightlyConfig, again: Sequence[str], where: str) -> Iterator[str]:
    out, root = require_out(config, where), root.absolute()
    night = _Night(root, out, config, Ledger(out, root, read_only=True), print, None)
    night.look()
    _request_again(night, again)
    decisions = night.decisions()
    todo = pending_in_order(decisions)
    for one in todo:
        yield f"run      {one.scan.name}: {_size(one.scan)}, {one.reason}"
    for status in ("waiting", "aside", "done"):
        for one in decisions:
            if one.status == status:
                yield f"{status:8s} {one.scan.name}: {_size(one.scan)}" + (f", {one.reason}" if one.reason else "")
    for name, part, days in _old(night, datetime.now().timestamp()):
        yield f"remove   {night.place(name).folder / part}: {days:.0f} days old"
    needed, free = sum(night.needed(one.scan) for one in todo), free_space(out)
    limits = f"; {config.limits.min_free / 1e9:.2f} GB are to stay free"
    yield f"{len(todo)} to run, at most {needed / 1e9:.2f} GB on {out}, {free / 1e9:.2f} GB are free{limits}"


def _size(scan: FoundScan) -> str:
    return f"{scan.frames} file{'' if scan.frames == 1 else 's'}, {scan.size / 1e6:.1f} MB"


def _request_again(night: _Night, names: Sequence[str]) -> None:
    known = {scan.name for scan in night.found}
    for name in names:
        if name not in known:
            raise InputError(f"--again {name}: there is no such scan below {night.root}: `--dry-run` lists the scans")
        night.ledger.add(name, "again")


def _run_scans(night: _Night, scan_process: ScanProcess) -> None:
    """Run all that is left, and look again until nothing is."""
    most = max(2, night.config.retry.attempts)
    while True:
        todo = pending_in_order(
            one for one in night.look() if one.scan.name not in night.busy and night.tried[one.scan.name] < most
        )
        if not todo:
            return
        if all(night.tried[one.scan.name] for one in todo):
            _pause(night)
        for one in todo:
            if reason := night.over():
                raise _NightOverError(reason)
            _run_scan(night, scan_process, one)
            if time.monotonic() - night.written > PAGE_INTERVAL_S:
                _write_summary(night, ExitCode.DONE)
                night.written = time.monotonic()


def _pause(night: _Night) -> None:
    until = time.time() + night.config.retry.pause_seconds
    while (left := until - time.time()) > 0:
        if reason := night.over():
            raise _NightOverError(reason)
        time.sleep(min(1.0, left))


def _run_scan(night: _Night, scan_process: ScanProcess, one: Decision) -> None:
    """Run one scan and write down what became of it."""
    scan, place, ledger, key = one.scan, night.place(one.scan.name), night.ledger, str(one.key)
    config = night.config_of(scan.name)
    known = ledger.states.get(scan.name)
    night.tried[scan.name] += 1
    try:
        if not place.free(ledger.token):
            state = ledger.add(
                scan.name, "aside", key=key, reason=f"{place.folder} was changed by somebody else: move it away"
            )
            night.say(_line(scan.name, state))
            return
        if known is None or Key.parse(known.key).frames != one.key.frames:
            place.withdraw()  # before the event, or a kill in between would leave it for that of these frames
    except BusyError as error:
        night.busy.add(scan.name)
        night.say(f"waiting {scan.name}: {error}")
        return
    if known is not None and known.key == key and known.event != "again" and (record := place.finished(config)):
        # Killed between the end of the run and the line that says so.
        night.say(_line(scan.name, ledger.add(scan.name, "done", key=key, **facts(record))))
        return
    night.require_room(scan)
    place.mark(ledger.token)
    ledger.add(scan.name, "begun", key=key)
    job = {
        "source": str(scan.path),
        "out": str(place.folder),
        "config": config.model_dump(mode="json"),
        "command": f"{NIGHTLY_COMMAND} {night.root}",
        "log": str(place.log),
        "thumbnails": str(place.thumbnails),
    }
    try:
        answer = scan_process.run(job, stop=night.over)
    except ScanStoppedError as error:
        ledger.add(scan.name, "stopped", reason=f"{error}: it goes on the next night")
        raise _NightOverError(str(error)) from error
    except ProcessDiedError as error:
        answer = {"failed": "compute", "reason": str(error)}
    except BaseException:
        ledger.add(scan.name, "stopped", reason="the night was interrupted: it goes on the next night")
        raise
    night.memory.append(answer.pop("memory", 0))
    night.say(_line(scan.name, _record_answer(night, scan.name, answer)))


def _record_answer(night: _Night, name: str, answer: dict[str, Any]) -> State:
    """Write down an answer of the worker."""
    ledger, reason = night.ledger, str(answer.get("reason", ""))
    match answer.get("failed"):
        case None:
            return ledger.add(name, "done", **answer)
        case "configuration":
            ledger.add(name, "stopped", reason=reason)
            raise ConfigError(reason)
        case "space":
            ledger.add(name, "stopped", reason=reason)
            raise _NightOverError(f"disk: {reason}")
        case "busy":
            night.busy.add(name)
            return ledger.add(name, "stopped", reason=reason)
        case "input":
            return ledger.add(name, "aside", reason=reason)
    state = ledger.add(name, "failed", reason=reason)
    if state.failures >= night.config.retry.attempts:
        times = f"failed {state.failures} time{'s' if state.failures > 1 else ''}, at last: "
        return ledger.add(name, "aside", reason=times + reason)
    return state


def _line(name: str, state: State) -> str:
    """What became of a scan, in one line."""
    if state.event != "done":
        return f"{state.event:7s} {name}: {state.reason}"
    found = state.facts
    aside = f" ({found['n_set_aside']} set aside)" if found["n_set_aside"] else ""
    k = ", ".join(map(str, found["k"]))
    grid = f"; {found['grid']}" if found.get("grid") else ""
    return f"done    {name}: {found['n_patterns']:,} patterns{aside}, K = {k}, {duration(found['seconds'])}{grid}"


# The end of a night


def remove_old(night: _Night, now: float) -> Iterator[str]:
    """Remove what `keep` says is old; a line about each."""
    for name, part, days in list(_old(night, now)):
        place = night.place(name)
        try:
            place.remove(part)
        except (BusyError, ComputeError) as error:
            yield f"kept    {name}: {error}"
            continue
        if not part:
            night.ledger.add(name, "removed", reason=f"done; its run was removed after {days:.0f} days")
        yield f"removed {place.folder / part}: {days:.0f} days old"


def _old(night: _Night, now: float) -> Iterator[tuple[str, str, float]]:
    """Scan, part of its run ('' for all of it) and age in days of what is to be removed."""
    keep: KeepConfig = night.config.keep
    for name, state in night.ledger.states.items():
        place = night.place(name)
        if state.event != "done" or not place.there or not place.free(night.ledger.token):
            continue
        days = (now - state.when) / 86400
        if keep.runs_days is not None and days >= keep.runs_days:
            yield name, "", days
        elif keep.stores_days is not None and days >= keep.stores_days and (place.folder / "scan.zarr").exists():
            yield name, "scan.zarr", days


def _finish(night: _Night, log: "_Log") -> ExitCode:
    rows = _rows(night)
    statuses = Counter(row["status"] for row in rows)
    code = ExitCode.SET_ASIDE if statuses["aside"] else ExitCode.DONE
    if night.stopped.startswith("disk"):
        code = ExitCode.FAILED
    summary = _write_summary(night, code)
    for problem in notify(night.config.notify, summary):
        log.say(f"notify  {problem}")
    counts = ", ".join(f"{number} {status}" for status, number in summary["counts"].items() if number)
    log.say(f"night   {counts or 'no scans'}" + (f"; {night.stopped}" if night.stopped else ""))
    return code


def _rows(night: _Night) -> list[dict[str, Any]]:
    """Every scan that is there or is known, and what became of it."""
    rows = []
    decisions = {one.scan.name: one for one in night.decisions()}
    for name in [*decisions, *(name for name in night.ledger.states if name not in decisions)]:
        one, state = decisions.get(name), night.ledger.states.get(name)
        row: dict[str, Any] = {"scan": name}
        if one is not None:
            row |= {"status": one.status, "reason": one.reason, "frames": one.scan.frames, "bytes": one.scan.size}
        elif state is not None and state.event in ("done", "removed"):
            row |= {"status": "done", "reason": "its files are gone"}
        else:
            row |= {"status": "gone", "reason": "its files are gone"}
        if row["status"] == "aside":
            asked = shlex.join([*NIGHTLY_COMMAND.split(), str(night.root), "--again", name])
            row["again"] = f"comes back when its files or the configuration change, or with `{asked} …`"
        if state is not None:
            row |= {"failures": state.failures, "at": state.at}
            if state.facts:
                row["facts"] = state.facts
        place = night.place(name)
        row |= {kind: str(path.relative_to(night.out)) for kind, path in _links(place) if path.exists()}
        rows.append(row)
    return rows


def _links(place: NightRun) -> list[tuple[str, Path]]:
    return [("run", place.folder), ("report", place.folder / "report.html"), ("log", place.log)]


def _write_summary(night: _Night, code: ExitCode) -> dict[str, Any]:
    """Write `summary.json` and `index.html` as of now."""
    rows = _rows(night)
    counts = Counter(row["status"] for row in rows)
    now = datetime.now().astimezone()
    summary = {
        "laue_dask": __version__,
        "root": str(night.root),
        "out": str(night.out),
        "began": night.began.isoformat(timespec="seconds"),
        "ended": now.isoformat(timespec="seconds"),
        "seconds": round((now - night.began).total_seconds(), 1),
        "exit_code": int(code),
        "stopped": night.stopped,
        "counts": {status: counts[status] for status in ("done", "aside", "waiting", "left", "gone")},
        "run_this_night": sorted(night.tried),
        "memory": {"night": psutil.Process().memory_info().rss, "worker": night.memory},
        "scans": rows,
    }
    write_atomically(night.out / "summary.json", json.JSONEncoder(indent=1, ensure_ascii=False).iterencode(summary))
    write_index(summary, night.out)
    return summary


class _Log:
    """One line for each event, to the log that is rotated and to whoever listens."""

    def __init__(self, out: Path, config: NightlyConfig, say: Say) -> None:
        self._say = say
        self._handler = RotatingFileHandler(
            out / "nightly.log", maxBytes=config.log.max_size, backupCount=config.log.files, encoding="utf-8"
        )
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def say(self, text: str) -> None:
        text = printable(one_line(text))
        self._handler.handle(logging.makeLogRecord({"msg": text}))
        self._say(text)

    def close(self) -> None:
        self._handler.close()
