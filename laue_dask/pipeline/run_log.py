"""`run.log`: what was announced while a run was made, segmented and evaluated, with time and level, in its folder.

A command appends to it, once the folder holds something of a run, and where it holds a finished one, once the command
changes that: what is refused leaves nothing, and a finished run as it was to the byte.
Nothing depends on it: where it cannot be written, as on a full disk, the work goes on without it.
"""

import logging
import os
import platform
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from laue_dask import __version__
from laue_dask.io.output_paths import write_atomically
from laue_dask.pipeline.record import LOG_FILE, RECORD_FILE, STAGE_LOGGER
from laue_dask.runtime import interruption
from laue_dask.runtime.progress import LINE_INTERVAL_S, Advance, Progress, Tally
from laue_dask.runtime.safe_text import printable
from laue_dask.runtime.terminal import timestamp

MAX_FILE_BYTES = 2**20
"""Size at which the older half of the log is dropped, and of what one command may add to it."""

MAX_LINE_CHARACTERS = 4_000
"""More of a message is cut off."""


class RunLog(logging.Handler):
    """The log of one folder; see `logged`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(logging.DEBUG)
        self._path = folder / LOG_FILE
        self._waiting: list[str] = []
        self._left = MAX_FILE_BYTES
        self._begun = False
        self._finished = _state(folder)
        self._writing = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the message of a record."""
        self.write(record.levelname.lower(), record.getMessage())

    def write(self, level: str, message: str) -> None:
        """Write a line, now or when the folder has become that of a run."""
        text = printable(message)
        text = text if len(text) <= MAX_LINE_CHARACTERS else f"{text[:MAX_LINE_CHARACTERS]} …"
        with self._writing, suppress(OSError):
            self._put(f"{timestamp()}  {level:7s}  {text}\n")

    def finish(self, *, failed: bool) -> None:
        """Write what waits, if there is a run by now.

        Of a command that failed, a finished run that it left as it was keeps nothing, and neither does a folder in
        which it has left nothing else.
        """
        with self._writing, suppress(OSError):
            if not failed:
                self._finished = None
            self._put("")
            if failed and self._begun and not _holds_a_run(self._path.parent):
                self._path.unlink()

    def _put(self, line: str) -> None:
        self._left -= len(line.encode())
        if self._left >= 0:
            self._waiting.append(line)
        elif self._left + len(line.encode()) >= 0:
            self._waiting.append(f"{timestamp()}  warning  more than {MAX_FILE_BYTES:,} bytes: the rest is left out\n")
        if not self._begun:
            if self._finished is not None and _state(self._path.parent) == self._finished:
                return
            if not _holds_a_run(self._path.parent):
                return
            _halve(self._path)
            self._begun = True
        if self._waiting:
            _append(self._path, "".join(self._waiting))
            self._waiting.clear()


class NotedProgress:
    """Progress whose stages are written into logs as well."""

    def __init__(self, progress: Progress, logs: list[RunLog]) -> None:
        self._progress, self._logs = progress, logs

    def note(self, line: object, level: str = "info") -> None:
        """Write a line into the logs alone."""
        for log in self._logs:
            log.write(level, str(line))

    @contextmanager
    def stage(self, name: str, *, total: int, unit: str = "patterns", done: int = 0) -> Iterator[Advance]:
        """Open a stage; see `progress.Progress.stage`."""
        tally = Tally(name=name, total=total, unit=unit, done=done, clock=time.monotonic)
        said = tally.started
        self.note(tally.heading())

        def advance(count: int) -> None:
            nonlocal said
            further(count)
            tally.add(count)
            if time.monotonic() - said >= LINE_INTERVAL_S:
                said = time.monotonic()
                self.note(tally.line())

        try:
            with self._progress.stage(name, total=total, unit=unit, done=done) as further:
                yield advance
        except BaseException:
            self.note(tally.stopped())
            raise
        self.note(tally.summary())


@contextmanager
def logged(command: str, progress: Progress, *folders: Path) -> Iterator[NotedProgress]:
    """Write into the logs of these folders, which are this process's own, what is announced in here and how it ends.

    Parameters
    ----------
    command
        As it was typed.

    Yields
    ------
    NotedProgress
        To be used in the place of `progress`: its stages are written, too.
    """
    logs = [RunLog(folder) for folder in folders]
    loggers = [logging.getLogger("laue_dask"), logging.getLogger(STAGE_LOGGER)]
    for log in logs:
        log.write(
            "info", f"{command or 'laue_dask'} (laue_dask {__version__}, {platform.node()}, process {os.getpid()})"
        )
        for logger in loggers:
            logger.addHandler(log)
    ending, failed = ("info", "done"), False
    try:
        yield NotedProgress(progress, logs)
    except BaseException as error:
        told = (
            interruption.INTERRUPTED_MESSAGE
            if interruption.is_interruption(error)
            else str(error) or type(error).__name__
        )
        ending, failed = ("error", told), True
        raise
    finally:
        for log in logs:
            for logger in loggers:
                logger.removeHandler(log)
            log.write(*ending)
            log.finish(failed=failed)


def _state(folder: Path) -> tuple[int, int] | None:
    """What tells the record of a finished run from the one that takes its place; None where there is no such run."""
    try:
        found = (folder / RECORD_FILE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _append(path: Path, text: str) -> None:
    """Append to a file; a link is not followed, and a pipe, which nobody may read, is left alone."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.write(text)


def _holds_a_run(folder: Path) -> bool:
    """Whether anything that a command left is in a folder, but for its log and hidden files."""
    with os.scandir(folder) as found:
        return any(one.name != LOG_FILE and not one.name.startswith(".") for one in found)


def _halve(path: Path) -> None:
    """Drop the older half of a log that has become long."""
    if path.exists() and path.stat().st_size > MAX_FILE_BYTES:
        kept = path.read_bytes()[-MAX_FILE_BYTES // 2 :].partition(b"\n")[2]
        write_atomically(path, kept)
