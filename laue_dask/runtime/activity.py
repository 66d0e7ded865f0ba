"""A command that has printed nothing for some seconds says what it is doing, so that nobody takes it for dead.

Whatever prints tells it so (`note_output`); the stages of a run say what is being done (`note_activity`). A bar that
moves on a terminal is no silence (`while_animated`). Nothing is said unless a command line has begun to `start`.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from laue_dask.runtime.safe_text import printable

FIRST_LINE_S = 1.0
"""Seconds after its start at which a command that has said nothing yet says that it was understood."""

MAX_SILENCE_S = 4.0
"""Seconds without a line after which the next one tells what the command is at."""


LOADING_ACTIVITY = "loading libraries"
"""What every command does first."""


@dataclass(frozen=True)
class Stage:
    """A stage of the work, which is the `number`-th, from 1, `of` so many."""

    name: str
    number: int
    of: int

    def __str__(self) -> str:
        return f"stage {self.number} of {self.of}"


def _write(line: str) -> None:
    with suppress(OSError, ValueError, AttributeError):  # nobody listens
        sys.stderr.write(f"{printable(line)}\n")
        sys.stderr.flush()


class _Activity:
    """Who has been heard last, and what is being done."""

    def __init__(self) -> None:
        self.last = 0.0
        self.limit = FIRST_LINE_S
        self.activity = ""
        self.stage: Stage | None = None
        self.bars = 0
        self.ended = threading.Event()
        self.ended.set()


_now = _Activity()


def start(command: str, say: Callable[[str], object] = _write) -> None:
    """Break every silence of this process with a line on stderr, from now on until `stop`.

    Parameters
    ----------
    command
        Name of the command, with which the lines begin.
    say
        Prints a line.
    """
    _now.last, _now.limit, _now.activity = time.monotonic(), FIRST_LINE_S, LOADING_ACTIVITY
    _now.ended.clear()
    arguments = command, say, time.monotonic()
    threading.Thread(target=_break_silences, args=arguments, name="silence", daemon=True).start()


def imports_done() -> None:
    """Note that all is imported; what is being done from now on is said by `note_activity`, or is just work."""
    if _now.activity == LOADING_ACTIVITY:
        _now.activity = "working"


def stop() -> None:
    """Say nothing from now on."""
    _now.ended.set()


def note_output() -> None:
    """Note that something was printed."""
    _now.last, _now.limit = time.monotonic(), MAX_SILENCE_S


@contextmanager
def note_activity(what: str, stage: Stage | None = None) -> Iterator[None]:
    """Note what is being done, in the words of the line that a silence is broken with, and which stage it begins."""
    before = _now.activity, _now.stage
    _now.activity, _now.stage = what, stage or _now.stage
    try:
        yield
    finally:
        _now.activity, _now.stage = before


def stage() -> Stage | None:
    """The stage that is being worked on; None where there are none."""
    return _now.stage


@contextmanager
def while_animated() -> Iterator[None]:
    """Keep silent while something moves on the terminal, which a line would disturb."""
    _now.bars += 1
    try:
        yield
    finally:
        _now.bars -= 1
        note_output()


def _break_silences(command: str, say: Callable[[str], object], begun: float) -> None:
    while not _now.ended.wait(max(0.05, _now.last + _now.limit - time.monotonic())):
        if _now.bars or time.monotonic() - _now.last < _now.limit:
            if _now.bars:
                note_output()
            continue
        place = f", {_now.stage}" if _now.stage else ""
        with suppress(OSError, ValueError, AttributeError):  # nobody listens
            say(f"{command}: {_now.activity} ({time.monotonic() - begun:.0f} s{place})")
        note_output()
