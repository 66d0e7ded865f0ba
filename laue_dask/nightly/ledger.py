"""What became of every scan: a journal on disk that survives a kill at any instant, and the states that follow from it.

Each event is one line, on the disk before anything else happens. The state of a scan is what its events say in order.
"""

import json
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from laue_dask.errors import InputError
from laue_dask.io.output_paths import write_atomically

LEDGER_FILE = "journal.jsonl"

Event = Literal["begun", "done", "failed", "aside", "stopped", "again", "removed"]
"""`stopped`: by the end of the night, a full disk or a signal, which is no fault of the scan's. `again`: a person asked
for it. `removed`: its run, by the rules of `KeepConfig`."""


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a scan.

    Attributes
    ----------
    event
        The last one.
    key
        Of what was, or is to be, done: the scan's files, the run's configuration and the version of this package.
    failures
        Of that key.
    reason
        Of a failure, a stop or a setting aside.
    at
        Time of the last event, ISO 8601.
    facts
        What a finished run is: patterns, K, seconds and so on.
    """

    event: Event
    key: str = ""
    failures: int = 0
    reason: str = ""
    at: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def when(self) -> float:
        """Time of the last event, in seconds since 1970."""
        return datetime.fromisoformat(self.at).timestamp()


class Ledger:
    """The journal of one beamtime.

    Parameters
    ----------
    folder
        Where it lies; made if need be.
    root
        The beamtime's folder, which the journal is of.

    Attributes
    ----------
    token
        Of this journal: marks the runs that were made for it.
    states
        By scan.

    Raises
    ------
    InputError
        The journal is of another beamtime.
    """

    def __init__(self, folder: Path, root: Path, *, read_only: bool = False) -> None:
        self.path = folder / LEDGER_FILE
        self._read_only = read_only
        self.token = uuid.uuid4().hex
        self.states: dict[str, State] = {}
        for line in self._lines():
            if "root" in line:
                if line["root"] != str(root):
                    raise InputError(f"{folder}: holds the runs of {line['root']}, not of {root}: choose another `out`")
                self.token = line["token"]
            else:
                self._apply(line)
        if not read_only:
            folder.mkdir(parents=True, exist_ok=True)
            head = {"root": str(root), "token": self.token}
            states = ({"scan": name, **asdict(state)} for name, state in self.states.items())
            # What every scan has come to is all that is needed of earlier nights.
            write_atomically(self.path, map(_line, chain([head], states)))

    def add(self, scan: str, event: Event, *, key: str = "", reason: str = "", **facts: Any) -> State:
        """Append an event; it is on the disk when this returns, unless the journal is only read."""
        line = {"scan": scan, "event": event, "key": key, "reason": reason, "at": _now(), "facts": facts}
        if not self._read_only:
            with self.path.open("ab") as file:
                file.write(_line(line).encode(errors="backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
        return self._apply(line)

    def _apply(self, line: dict[str, Any]) -> State:
        before = self.states.get(line["scan"], State("again"))
        key = line["key"] or before.key
        state = State(line["event"], key, line.get("failures", 0), line["reason"], line["at"], line["facts"])
        if "failures" not in line:
            known = before.failures if key == before.key and state.event not in ("done", "again") else 0
            state = replace(state, failures=known + (state.event in ("failed", "aside")))
            if state.event == "removed":
                state = replace(state, facts={**before.facts, **state.facts})
        self.states[line["scan"]] = state
        return state

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Whole lines; one that a kill cut off says nothing."""
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text, object_pairs_hook=_interned)
                except ValueError:
                    continue
                if isinstance(line, dict) and ("root" in line or {"scan", "event", "key", "at"} <= set(line)):
                    yield line


def _interned(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Thousands of scans have the same few names in their facts.
    return {sys.intern(name): value for name, value in pairs}


def _line(values: dict[str, Any]) -> str:
    # A line that was cut off must not swallow this one.
    return "\n" + json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
