"""Which frames of a folder that is still written to are complete."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from laue_dask.errors import InputError
from laue_dask.io.frames import FrameRef, discover

SETTLED = 0.5
"""Seconds for which size and time of change of a file must stay as they are before it is read."""

RETRY = (2.0, 60.0)
"""Seconds after which a file that could not be read is read again, though it did not change: the first and the longest
wait, which doubles each time. What is readable is told by the file itself, not by its size alone."""

SKEW = 60.0
"""Seconds by which a file's own time may lie before its first sight and be believed."""

AGAIN = 120.0
"""Seconds for which a frame that was read is looked at: a detector may make a file in its full size and fill it."""


@dataclass(frozen=True)
class State:
    """What tells a file that changed: its size in bytes and its time of change in ns."""

    size: int
    changed: int

    @classmethod
    def of(cls, path: str) -> "State | None":
        """The file's now, None where there is none."""
        try:
            found = Path(path).stat()
        except OSError:
            return None
        return cls(found.st_size, found.st_mtime_ns)


@dataclass
class _Pending:
    state: State
    since: float
    """When this state was seen first."""
    fresh: bool
    """Whether it came after the first look."""
    retry: float = 0.0
    """Not to be read before."""
    wait: float = RETRY[0]
    reason: str = ""


class Folder:
    """Frames of a folder, or of a glob, in the order in which `laue-dask run` takes them.

    Parameters
    ----------
    source
        Folder or glob of frames, one per file; see `io.frames.discover`.
    read
        Frames that were read before, by file: they are not given again unless they changed since.
    clock
        Seconds that never run backwards.

    Attributes
    ----------
    refs
        All frames, complete or not, in order of their names.
    problem
        Why the folder could not be listed the last time; empty where it could.
    news
        When something was new the last time, by the clock.
    """

    def __init__(
        self, source: str, read: Mapping[str, State] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.source = source
        self.refs: list[FrameRef] = []
        self.problem = ""
        self.news = clock()
        self._clock = clock
        self._looked = False
        self._read = dict(read or {})
        self._recent: dict[str, float] = dict.fromkeys(self._read, clock())
        self._pending: dict[str, _Pending] = {}

    def look(self) -> list[tuple[FrameRef, State]]:
        """List the folder; frames that look complete and were not read, in order.

        Raises
        ------
        InputError
            A file holds several frames: it grows, and nothing tells which of them are complete.
        """
        try:
            refs = discover(self.source)
        except InputError as error:
            self.problem = str(error)
            return []
        self.problem = ""
        several = next((ref for ref in refs if ref.index is not None), None)
        if several is not None:
            raise InputError(
                f"{several.path}: holds several frames: `watch` needs a file per frame; use `laue-dask run` when the "
                "scan is finished"
            )
        self.refs, now = refs, self._clock()
        self._look_again(now)
        there = {ref.path for ref in refs}
        for path in self._pending.keys() - there:
            del self._pending[path]
        complete = [(ref, state) for ref in refs if (state := self._complete(ref.path, now)) is not None]
        self._looked = True
        return complete

    def _complete(self, path: str, now: float) -> State | None:
        if path in self._read:
            return None
        state, known = State.of(path), self._pending.get(path)
        if state is None:
            return None
        if known is None:
            self._pending[path], self.news = _Pending(state, now, fresh=self._looked), now
        elif known.state != state:
            self._pending[path], self.news = _Pending(state, now, fresh=True), now
        elif state.size and now - known.since >= SETTLED and now >= known.retry:
            return state
        return None

    def _look_again(self, now: float) -> None:
        for path, since in list(self._recent.items()):
            if State.of(path) not in (None, self._read[path]):
                del self._read[path]
            elif now - since < AGAIN:
                continue
            del self._recent[path]

    def was_read(self, ref: FrameRef, state: State) -> None:
        """Take down that a frame was read while its file was in this state."""
        self._pending.pop(ref.path, None)
        self._read[ref.path] = state
        self._recent[ref.path] = self._clock()

    def cannot_be_read(self, ref: FrameRef, reason: str) -> None:
        """Take down that a frame could not be read: it is not complete yet, or will be set aside in the end."""
        one = self._pending[ref.path]
        one.reason, one.retry = reason, self._clock() + one.wait
        one.wait = min(2 * one.wait, RETRY[1])

    def since(self, ref: FrameRef, state: State) -> float | None:
        """When a frame that is to be read was complete, in seconds since 1970; None where that was before the watch.

        That is the file's own time, where its clock can be believed, or else when it was first seen as it is.
        """
        one = self._pending[ref.path]
        if not one.fresh:
            return None
        now, told = time.time(), state.changed / 1e9
        seen = now - (self._clock() - one.since)
        return told if seen - SKEW < told <= seen else seen

    @property
    def unread(self) -> int:
        """Frames that are there and were not read yet, complete or not."""
        return len(self._pending)

    @property
    def unreadable(self) -> dict[str, str]:
        """File and reason of the frames that could not be read so far."""
        return {path: one.reason for path, one in self._pending.items() if one.reason}

    def quiet(self, seconds: float) -> bool:
        """Whether all files that were not read are unreadable and unchanged for that long."""
        now = self._clock()
        return all(one.reason and now - one.since >= seconds for one in self._pending.values())
