"""Progress in a notebook: one line that is written anew and goes when the work is done."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from laue_dask.runtime.progress import Advance, Progress
from laue_dask.runtime.safe_text import printable

REDRAW_INTERVAL_S = 0.5
"""Time between two looks of the line."""


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook; nothing is imported to tell."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def usual_progress() -> Progress:
    """Return progress that fits this process: a line in a notebook, a bar on a terminal, lines in a log."""
    if in_notebook():
        return NotebookProgress()
    from laue_dask.runtime.bars import RichProgress

    return RichProgress()


class NotebookProgress:
    """One line below a notebook's cell, which says what is being done and goes when it is done.

    Parameters
    ----------
    show
        Takes a handle of the line, None for a new one, and its text; gives the handle.
    """

    def __init__(self, show: Callable[[Any, str], Any] | None = None) -> None:
        self._show = show or _display
        self._handle: Any = None
        self._lock = threading.Lock()
        self._lines: dict[int, str] = {}
        self._shown = 0.0

    @contextmanager
    def stage(self, name: str, *, total: int, unit: str = "patterns", done: int = 0) -> Iterator[Advance]:
        """Open a stage; see `progress.Progress.stage`."""
        counted, begun = done, time.monotonic()
        number = max(self._lines, default=0) + 1

        def said() -> str:
            elapsed = time.monotonic() - begun
            rate = f", {(counted - done) / elapsed:,.0f} {unit}/s" if counted > done and elapsed > 1 else ""
            return f"{name}: {counted:,} of {total:,} {unit}{rate}"

        def advance(count: int) -> None:
            nonlocal counted
            with self._lock:
                counted += count
                self._lines[number] = said()
            self._draw()

        self._lines[number] = said()
        self._draw(now=True)
        try:
            yield advance
        finally:
            with self._lock:
                del self._lines[number]
            self._draw(now=True)

    def _draw(self, *, now: bool = False) -> None:
        with self._lock:
            if not now and time.monotonic() - self._shown < REDRAW_INTERVAL_S:
                return
            self._shown = time.monotonic()
            text = printable(" · ".join(self._lines.values()))
            with suppress(Exception):  # a notebook that is gone is no reason to stop
                self._handle = self._show(self._handle, text)


def _display(handle: Any, text: str) -> Any:
    shown = {"text/plain": text}
    if handle is None:
        return import_module("IPython.display").display(shown, raw=True, display_id=True)
    handle.update(shown, raw=True)
    return handle
