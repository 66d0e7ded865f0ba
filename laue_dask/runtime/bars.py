"""Progress on stderr: a bar on a terminal, plain lines in a log."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from laue_dask.runtime import activity
from laue_dask.runtime.progress import LINE_INTERVAL_S, Advance, Tally, rate_of
from laue_dask.runtime.safe_text import printable


class RichProgress:
    """A bar with rate and time left on a terminal; elsewhere a line at the start, at the end and every 30 s.

    Parameters
    ----------
    console
        Where to write; stderr by default.
    clock
        Seconds that never run backwards.
    """

    def __init__(self, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._lock = threading.Lock()
        self._open = 0
        # stdout stays free for what a command answers; what others log goes above the bar
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} {task.fields[unit]}", markup=False),
            _RateColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            # blocks of patterns arrive in bursts: a short window would make the rate jump
            speed_estimate_period=120,
            get_time=clock,
            expand=True,
        )

    @contextmanager
    def stage(self, name: str, *, total: int, unit: str = "patterns", done: int = 0) -> Iterator[Advance]:
        """Open a stage; see `Progress.stage`."""
        tally = Tally(name=name, total=total, unit=unit, done=done, clock=self._clock)
        show = self._bar(tally) if self._console.is_terminal else self._lines(tally)
        try:
            with activity.note_activity(name), show as advance:
                yield advance
        except BaseException:
            self._say(tally.stopped())
            raise
        self._say(tally.summary())

    @contextmanager
    def _bar(self, tally: "Tally") -> Iterator[Advance]:
        with self._lock:
            if self._open == 0:
                self._bars.start()
            self._open += 1
        place = f"{tally.stage}, " if tally.stage else ""
        task = self._bars.add_task(
            printable(f"{place}{tally.name}"), total=tally.total, completed=tally.done, unit=tally.unit
        )

        def advance(count: int) -> None:
            tally.add(count)
            self._bars.advance(task, count)

        try:
            with activity.while_animated():
                yield advance
        finally:
            self._bars.remove_task(task)
            with self._lock:
                self._open -= 1
                if self._open == 0:
                    self._bars.stop()

    @contextmanager
    def _lines(self, tally: "Tally") -> Iterator[Advance]:
        said = tally.started
        self._say(tally.heading())

        def advance(count: int) -> None:
            nonlocal said
            tally.add(count)
            with self._lock:
                now = self._clock()
                due = now - said >= LINE_INTERVAL_S
                if due:
                    said = now
            if due:
                self._say(tally.line())

        yield advance

    def _say(self, line: str) -> None:
        self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
        activity.note_output()


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else rate_of(speed, task.fields["unit"]))
