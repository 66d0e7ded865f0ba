"""Reads with a deadline: a file system that does not answer costs a read its deadline, and no more.

A thread that waits for a dead mount cannot be interrupted. So what may wait is called in a reader, a thread that is
used again for the next call; whoever asked waits for its answer as long as the deadline says, and can be interrupted. A
reader that hangs is left behind. Once several hang in a row, or too many hang at all, the file system is taken for
dead, and the work ends.

Libraries that hold Python's lock while they read, as h5py does, stop the whole process where the system does. Whoever
uses one has a byte of the file read first (`read_byte`).
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, TypeVar

from laue_dask.errors import ComputeError, FrameError
from laue_dask.runtime import interruption

READ_DEADLINE_VARIABLE = "LAUE_DASK_READ_DEADLINE_S"
"""In which worker processes find the deadline."""

READ_DEADLINE_S = 120.0
"""Default time that a frame may take, generous for tapes and file systems under load."""

DEADLINES_PER_LISTING = 10
"""A listing, which looks at many files, may take so many deadlines."""

MAX_HUNG_IN_A_ROW = 4
"""Reads that may hang, one after the other, before the file system is taken for dead."""

MAX_HUNG_READERS = 16
"""Readers that hang at the same time, in one process; each keeps a frame in memory."""

LAST_WAIT_S = 1.0
"""Time that a read may still take when the command is told to end."""

LAST_READ_S = 3.0
"""Time for a read that begins when the command was told to end: a watch still segments what it has."""

POLL_INTERVAL_S = 0.25
"""Time between two looks whether the command is told to end."""

_T = TypeVar("_T")


class ReadTimeoutError(FrameError):
    """A frame was not read in time; the memory for it may still be written to."""


class Call:
    """A call in a reader.

    Parameters
    ----------
    call
        What may wait for ever.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self._reader = _take_reader()
        self._answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._answer: tuple[Any, BaseException | None] | None = None
        self._reader.calls.put((call, self._answers))

    def ended(self, seconds: float) -> bool:
        """Return whether the call has ended, after so many seconds at most."""
        if self._answer is None:
            with suppress(Empty):
                self._answer = self._answers.get(timeout=max(0.0, seconds))
                _idle.append(self._reader)
        return self._answer is not None

    def result(self) -> Any:
        """Return what the call returned, or raise what it raised; the call must have ended."""
        if self._answer is None:
            raise ValueError("the call has not ended")
        value, error = self._answer
        try:
            if error is not None:
                raise error
            return value
        finally:
            del error  # which holds this frame

    def abandon(self) -> int:
        """Leave it to itself; how many such hang now."""
        self._reader.calls.put(None)
        _hung[:] = [*(one for one in _hung if one.is_alive()), self._reader]
        return len(_hung)


class _Reader(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="reader", daemon=True)
        self.calls: SimpleQueue[tuple[Callable[[], Any], SimpleQueue[Any]] | None] = SimpleQueue()
        self.start()

    def run(self) -> None:
        while (asked := self.calls.get()) is not None:
            call, answers = asked
            try:
                answer: tuple[Any, BaseException | None] = call(), None
            except BaseException as error:
                answer = None, error
            answers.put(answer)
            del asked, call, answers, answer


_idle: list[_Reader] = []
_hung: list[_Reader] = []
_in_a_row = 0
_told_at = float("inf")
_deadline_s: float | None = None


def _forget() -> None:
    """In a process that was forked there are no readers."""
    _idle.clear()
    _hung.clear()


os.register_at_fork(after_in_child=_forget)


def _take_reader() -> _Reader:
    with suppress(IndexError):
        return _idle.pop()
    return _Reader()


def set_deadline(seconds: float) -> None:
    """Set the deadline of this process."""
    global _deadline_s
    _deadline_s = float(seconds)


def deadline_s() -> float:
    """Return the deadline of this process in seconds."""
    if _deadline_s is None:
        given = 0.0
        with suppress(ValueError):
            given = float(os.environ.get(READ_DEADLINE_VARIABLE, ""))
        set_deadline(given if 0 < given < float("inf") else READ_DEADLINE_S)
    return _deadline_s or READ_DEADLINE_S


def shorten_reads() -> None:
    """Make reads that do not end soon raise KeyboardInterrupt, because the command has been told to end."""
    global _told_at
    _told_at = monotonic()


def restore_reads() -> None:
    """Let reads take as long as before."""
    global _told_at
    _told_at = float("inf")


def _hurried(begun: float) -> float:
    """When a read that began then has taken too long for a command that is told to end."""
    return max(_told_at + LAST_WAIT_S, begun + LAST_READ_S if begun >= _told_at else 0.0)


def call_with_deadline(call: Callable[[], _T], path: str | Path, *, deadlines: int = 1) -> _T:
    """Call something that may never return.

    Parameters
    ----------
    path
        What it reads.
    deadlines
        How many it may take.

    Raises
    ------
    ReadTimeoutError
        It did not end in time.
    ComputeError
        Nor did several before: the file system does not answer.
    KeyboardInterrupt
        The command was told to end, and it did not end soon; see `shorten_reads`.
    """
    global _in_a_row
    limit = deadline_s() * deadlines
    running, begun = Call(call), monotonic()
    end = begun + limit
    try:
        while not running.ended(min(POLL_INTERVAL_S, end - monotonic())):
            if monotonic() >= min(end, _hurried(begun)):
                break
        else:
            _in_a_row = 0
            return running.result()  # type: ignore[no-any-return]
    except KeyboardInterrupt:
        running.abandon()
        raise
    hung = running.abandon()
    if monotonic() >= _hurried(begun):
        interruption.expect_exit(monotonic() - max(begun, _told_at))
        raise KeyboardInterrupt
    _in_a_row += 1
    late = f"was not read within {limit:g} s (workers.read_deadline)"
    if _in_a_row >= MAX_HUNG_IN_A_ROW or hung >= MAX_HUNG_READERS:
        raise ComputeError(
            f"{path}: {late}, nor were {hung - 1} others: {_mount_of(path)} does not answer: "
            "when it does, the same command goes on where it stopped"
        )
    raise ReadTimeoutError(late)


def read_byte(path: str) -> None:
    """Read a byte of a file without any library: a file system that does not answer is waited for here.

    Raises
    ------
    OSError
        It cannot be read.
    """
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe without a writer is not waited for
    try:
        os.read(opened, 1)
    finally:
        os.close(opened)


def _mount_of(path: str | Path) -> str:
    """The file system that a path lies on, by its name alone: it must not be asked."""
    import psutil

    place = Path(os.path.abspath(path))  # noqa: PTH100  `resolve` would follow links
    with suppress(OSError):
        holding = [one for one in psutil.disk_partitions(all=True) if place.is_relative_to(one.mountpoint)]
        if holding:
            nearest = max(holding, key=lambda one: len(one.mountpoint))
            return f"{nearest.mountpoint} ({nearest.fstype})"
    return "its file system"
