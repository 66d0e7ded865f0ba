"""Progress as lines that are announced: JSON objects with the numbers, for programs that follow a command."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from laue_dask.runtime import activity
from laue_dask.runtime.progress import LINE_INTERVAL_S, Advance, Tally
from laue_dask.runtime.terminal import announce


class AnnouncedProgress:
    """A line at the start of a stage, at its end and every 30 s."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str, *, total: int, unit: str = "patterns", done: int = 0) -> Iterator[Advance]:
        """Open a stage; see `progress.Progress.stage`."""
        tally = Tally(name=name, total=total, unit=unit, done=done, clock=time.monotonic)
        said = tally.started

        def say(line: str) -> None:
            announce(line, activity=name, done=tally.count, total=total, unit=unit)

        def advance(count: int) -> None:
            nonlocal said
            tally.add(count)
            with self._lock:
                due = time.monotonic() - said >= LINE_INTERVAL_S
                said = time.monotonic() if due else said
            if due:
                say(tally.line())

        say(tally.heading())
        try:
            with activity.note_activity(name):
                yield advance
        except BaseException:
            say(tally.stopped())
            raise
        say(tally.summary())
