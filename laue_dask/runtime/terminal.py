"""Lines of a command on stderr: how many of them, and whether for people or, as JSON, for programs."""

import json
import threading
from datetime import UTC, datetime
from typing import Literal

import click

from laue_dask.runtime import activity
from laue_dask.runtime.safe_text import printable

Level = Literal["debug", "info", "warning", "error"]

LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")
"""The least important first."""

_LABELS = {"warning": "warning: ", "error": "laue-dask: "}


class _Settings:
    """What the command line asked for."""

    def __init__(self) -> None:
        self.minimum: Level = "info"
        self.json = False
        self.lock = threading.Lock()


_now = _Settings()


def configure(*, minimum: Level = "info", as_json: bool = False) -> None:
    """Print lines of this level or a more important one, from now on, as text or as JSON."""
    _now.minimum, _now.json = minimum, as_json


def minimum() -> Level:
    """Least important level that is printed."""
    return _now.minimum


def is_json() -> bool:
    """Whether lines are JSON objects."""
    return _now.json


def announce(message: object, *, level: Level = "info", label: str | None = None, **facts: object) -> None:
    """Print a line about the work on stderr.

    Parameters
    ----------
    message
        Whatever it holds, one line of visible characters is printed.
    label
        What stands before the message in text; by default what the level says.
    **facts
        Further keys of the JSON object, such as `done`, `total` and `unit`.
    """
    if LEVELS.index(level) < LEVELS.index(_now.minimum):
        return
    line = as_line(message, level=level, label=label, **facts)
    with _now.lock:
        click.echo(line, err=True)
    activity.note_output()


def as_line(message: object, *, level: Level, label: str | None = None, **facts: object) -> str:
    """The line that `announce` prints."""
    text = printable(message)
    if _now.json:
        return json.dumps({"time": timestamp(), "level": level, **_place(), "message": text, **facts})
    return (_LABELS.get(level, "") if label is None else label) + text


def timestamp() -> str:
    """The time, as it is written into logs: UTC, to a thousandth of a second."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _place() -> dict[str, object]:
    """Stage of a run that is being worked on; empty between stages."""
    stage = activity.stage()
    return {} if stage is None else {"stage": stage.name, "stage_number": stage.number, "stages": stage.of}
