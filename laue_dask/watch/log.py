"""The log of a watch: what is known of every frame that was read; it survives a kill at any instant.

A line per frame in `frames.jsonl`, its features at the same row of `features.f32`. Features are written first, so that
a frame whose line is there has them.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laue_dask.io.coordinates import UM
from laue_dask.io.output_paths import write_atomically
from laue_dask.io.source_identity import State

ENTRIES_FILE, FEATURES_FILE = "frames.jsonl", "features.f32"


@dataclass(frozen=True)
class Entry:
    """One frame.

    Attributes
    ----------
    file
        Its name: that of its file, and where in the file it is; see `io.frames.FrameRef`.
    holder, size, changed
        State of the file that holds its pixels when it was read; see `io.source_identity.State`.
    signal
        Mean of the usable pixels above their first percentile, in counts.
    saturated
        Share of the usable pixels that are saturated.
    unexplained
        See `features.losses.unexplained`; None where it was not computed.
    position
        Stage coordinates (y, x) in micrometres of the frame's header; None where there are none.
    """

    file: str
    holder: str
    size: int
    changed: int
    signal: float
    saturated: float
    unexplained: float | None
    position: tuple[float, float] | None = None

    @property
    def state(self) -> State:
        """Of the file when it was read."""
        return State(self.holder, self.size, self.changed)


class Log:
    """Frames that were read, in the order in which they were.

    Parameters
    ----------
    folder
        Where the two files are; made if need be.
    width
        Features of a pattern.
    key
        Of what the features depend on: what an earlier log holds under another key is thrown away.

    Attributes
    ----------
    entries
        A frame that was read again has several; the last one counts.
    """

    def __init__(self, folder: Path, *, width: int, key: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines, self._features, self._width = folder / ENTRIES_FILE, folder / FEATURES_FILE, width
        header = {"key": key, "width": width, "position_units": UM}
        found, whole = _read(self._lines, header)
        row = 4 * width
        there = self._features.stat().st_size // row if self._features.is_file() else 0
        self.entries = found[:there]
        if not whole or len(self.entries) < len(found):
            lines = [json.dumps(header), *(json.dumps(asdict(entry)) for entry in self.entries)]
            write_atomically(self._lines, "".join(f"{line}\n" for line in lines).encode())
        with self._features.open("ab") as file:
            file.truncate(len(self.entries) * row)
        self._row = {entry.file: i for i, entry in enumerate(self.entries)}

    def add(self, entries: Sequence[Entry], features: NDArray[np.float32]) -> None:
        """Append frames and their features (n, width): all of them, or none where that fails, as on a full disk."""
        before = self._lines.stat().st_size
        try:
            with self._features.open("ab") as values:
                values.write(np.ascontiguousarray(features, dtype="<f4").tobytes())
            with self._lines.open("a", encoding="utf-8") as file:
                file.write("".join(f"{json.dumps(asdict(entry))}\n" for entry in entries))
        except OSError:
            os.truncate(self._features, len(self.entries) * 4 * self._width)
            os.truncate(self._lines, before)
            raise
        for entry in entries:
            self.entries.append(entry)
            self._row[entry.file] = len(self.entries) - 1  # last: another thread may look the entry up

    def features(self) -> NDArray[np.float32]:
        """Return the features (n, width) of all entries, on disk."""
        if not self.entries:
            return np.empty((0, self._width), dtype=np.float32)
        shape = (len(self.entries), self._width)
        return np.memmap(self._features, dtype="<f4", mode="r", shape=shape)

    def rows(self, files: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of the last entry of each frame, −1 for one that was not read."""
        return np.array([self._row.get(file, -1) for file in files], dtype=np.int64)

    def positions(self, files: Sequence[str]) -> list[tuple[float, float] | None]:
        """Return the stage coordinates (y, x) of frames; None of one that was not read, or whose header tells none."""
        rows = self.rows(files).tolist()
        return [None if row < 0 else self.entries[row].position for row in rows]

    @property
    def states(self) -> dict[str, State]:
        """State of the file of each frame when that was read the last time."""
        return {file: self.entries[row].state for file, row in dict(self._row).items()}  # another thread adds to it


def _read(path: Path, header: dict[str, Any]) -> tuple[list[Entry], bool]:
    """Entries of an earlier log, up to a line that a kill cut off, and whether all of it could be used."""
    entries: list[Entry] = []
    if not path.is_file():
        return entries, False
    first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    try:
        if json.loads(first) != header:
            return entries, False
        for line in lines[:-1]:
            values = json.loads(line)
            if values.get("position") is not None:
                values["position"] = tuple(values["position"])
            entries.append(Entry(**values))
    except (ValueError, TypeError):
        return entries, False
    return entries, lines[-1:] == [""]
