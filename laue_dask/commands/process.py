"""The process of a command: when its work begins, where it reports, and how a signal stops it."""

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from laue_dask.api.options import prepare_workers
from laue_dask.config import Config
from laue_dask.io import deadline
from laue_dask.runtime import activity, interruption, terminal

if TYPE_CHECKING:
    from laue_dask.runtime.progress import Progress

PROGRAM_NAME = "laue-dask"


def typed() -> str:
    """Return the command as it was typed, for the record."""
    return shlex.join([PROGRAM_NAME, *sys.argv[1:]])


def begin_imports(config: Config) -> None:
    """Import what workers need beside this process, while it imports what it needs itself."""
    prepare_workers(config)


def begin_work() -> None:
    """Note that all is imported: from now on an interruption cleans up before the command ends."""
    interruption.raise_on_interrupt()
    activity.imports_done()


def begin_progress() -> "Progress":
    """Begin the work of a command, and give what it reports to."""
    begin_work()
    if terminal.minimum() in ("warning", "error"):
        from laue_dask.runtime.progress import QuietProgress

        return QuietProgress()
    if terminal.is_json():
        from laue_dask.runtime.line_progress import AnnouncedProgress

        return AnnouncedProgress()
    from laue_dask.runtime.bars import RichProgress

    return RichProgress()


@contextmanager
def stopped_by_signal() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C or SIGTERM sets; a second Ctrl-C ends the process as usual, a second SIGTERM
    nothing.
    """
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(*_: object) -> None:
        interruption.acknowledge()
        deadline.shorten_reads()
        stop.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, end)
    try:
        yield stop
    finally:
        deadline.restore_reads()
        for number, handler in before.items():
            signal.signal(number, handler)
