"""How far a stage has come: what long work reports to, wherever that is shown."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

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
    """Text as one line that every terminal and log takes.

    Names of files may hold anything: line breaks, control characters and bytes that are no UTF-8 are escaped.
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def duration(seconds: float) -> str:
    """Seconds as a person would say them: `12.3 s`, `4 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
