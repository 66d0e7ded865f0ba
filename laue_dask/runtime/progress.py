"""How far a stage has come: what long work reports to, wherever that is shown."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from laue_dask.runtime import activity

LINE_INTERVAL_S = 30.0
"""Seconds between two lines of a stage where there is no bar."""

Advance = Callable[[int], None]
"""Says that so many more units are done; may be called from any thread."""


class Progress(Protocol):
    """What a long stage reports to.

    Examples
    --------
    >>> progress = QuietProgress()
    >>> with progress.stage("encode", total=6000, unit="patterns") as advance:
    ...     advance(512)
    """

    def stage(self, name: str, *, total: int, unit: str = "patterns", done: int = 0) -> AbstractContextManager[Advance]:
        """Open a stage of `total` units, of which an earlier run left `done`; those do not count in the rate."""
        ...


class QuietProgress:
    """Reports nothing."""

    @contextmanager
    def stage(self, name: str, *, total: int, unit: str = "patterns", done: int = 0) -> Iterator[Advance]:
        """Open a stage; see `Progress.stage`."""
        yield lambda count: None


NO_PROGRESS: Progress = QuietProgress()
"""For whoever does not want to know."""


def one_line(text: str) -> str:
    """Return the text as one line that every terminal and log takes.

    Names of files may hold anything: line breaks, control characters and bytes that are no UTF-8 are escaped.
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class Tally:
    """Counts what a stage has done, and says so in lines."""

    def __init__(self, *, name: str, total: int, unit: str, done: int, clock: Callable[[], float]) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self.count = done
        self.stage = activity.stage()
        self.started = clock()
        self._clock = clock
        self._lock = threading.Lock()

    def heading(self) -> str:
        """What is to be done."""
        already = f", {self.done:,} of them already done" if self.done else ""
        place = f" ({self.stage})" if self.stage else ""
        return f"{self.name}: {self.total:,} {self.unit}{already}{place}"

    def stopped(self) -> str:
        """Where the work ended before its time."""
        return f"{self.name}: stopped after {self.count:,} of {self.total:,} {self.unit}"

    def add(self, count: int) -> None:
        """Count so many more units, from any thread."""
        with self._lock:
            self.count += count

    def line(self) -> str:
        """How far the work is."""
        rate = self._rate()
        left = f", {duration((self.total - self.count) / rate)} left" if rate and self.count < self.total else ""
        return f"{self.name}: {self.count:,} of {self.total:,} {self.unit}, {rate_of(rate, self.unit)}{left}"

    def summary(self) -> str:
        """What was done."""
        elapsed = self._clock() - self.started
        rate = f", {rate_of(self._rate(), self.unit)}" if self.count > self.done else ""
        return f"{self.name}: {self.count:,} {self.unit} in {duration(elapsed)}{rate}"

    def _rate(self) -> float:
        elapsed = self._clock() - self.started
        return (self.count - self.done) / elapsed if elapsed > 0 else 0.0


def rate_of(per_second: float, unit: str) -> str:
    """Units per second, as a person would say them."""
    return f"{per_second:,.0f} {unit}/s" if per_second >= 10 else f"{per_second:.2g} {unit}/s"


def duration(seconds: float) -> str:
    """Return the seconds as a person would say them: `12.3 s`, `4 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
