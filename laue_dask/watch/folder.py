"""Tell which frames of a folder that is still written to are complete."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from laue_dask.errors import InputError
from laue_dask.io import hdf5
from laue_dask.io.file_kinds import suffix_of
from laue_dask.io.folder_contents import MASTER_SUFFIX, EmptyError, add_in_order
from laue_dask.io.frames import FrameRef, frames_of
from laue_dask.io.listing import Listing
from laue_dask.io.source_identity import State

SETTLE_TIME_S = 0.5
"""Seconds for which size and time of change of a file must stay as they are before it is read."""

STACK_SETTLE_TIME_S = 2.0
"""The same for a file that may hold several frames, which a detector may leave alone between two of them. If it changes
after that all the same, the wait doubles."""

RETRY_WAITS_S = (2.0, 60.0)
"""Seconds after which a file that could not be read is read again, though it did not change: the first and the longest
wait, which doubles each time. What is readable is told by the file itself, not by its size alone."""

MAX_CLOCK_SKEW_S = 60.0
"""Seconds by which a file's own time may lie before its first sight and be believed."""

RECHECK_TIME_S = 120.0
"""Seconds for which a frame that was read is looked at: a detector may make a file in its full size and fill it."""

MAX_FILES_PER_LOOK = 1_000
"""Files that are not read yet whose states are asked for at a look, at most, and as many of those that were."""

MAX_FRAMES_PER_LOOK = 256
"""Frames that a look gives, about, at most."""


@dataclass
class _Failure:
    """Why something could not be read, and when that is tried again."""

    reason: str
    state: State
    retry: float
    wait: float


@dataclass
class _File:
    """A file that is not read yet, or not all of it."""

    state: State
    since: float
    """When this state was seen first."""
    fresh: bool
    """Whether it came after the first look."""


@dataclass
class _Source:
    """A file of the listing.

    Attributes
    ----------
    frames
        All that it holds or links to, as far as that is known; None before it was opened.
    holders
        File that the pixels of each are in: the file itself, or one that an EIGER master links to.
    told
        State of the file and of each that it links to, from before frames were counted; None of one that had not
        settled.
    left
        Frames that were not read, and their holders, by name.
    listings
        Changes of the listing before it was opened the last time.
    """

    frames: list[FrameRef] | None = None
    holders: list[str] = field(default_factory=list)
    told: dict[str, State | None] = field(default_factory=dict)
    left: dict[str, tuple[FrameRef, str]] = field(default_factory=dict)
    listings: int = 0


class WatchedFolder:
    """Frames of a folder, or of a glob, in the order in which `laue-dask run` takes them.

    A file of several frames is waited for until it is complete: it has settled, and HDF5 does not say that it is open
    for writing.

    Parameters
    ----------
    source
        Folder, or glob with or without `::/path` of an HDF5 dataset; see `io.frames.discover`.
    read
        Frames that were read before, by name: they are not given again unless their file changed since.
    clock
        Seconds that never run backwards.

    Attributes
    ----------
    refs
        All frames that are known, complete or not, in order.
    assumed
        How many of them are in files of several frames that could not be opened yet, and may be others.
    problem
        What is wrong with the folder; empty where nothing is.
    empty
        Whether there are no frames, which is no fault before the first one.
    news
        When something was new the last time, by the clock.
    """

    def __init__(
        self, source: str, read: Mapping[str, State] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.refs: list[FrameRef] = []
        self.assumed = 0
        self.problem, self.empty = "", True
        self.news = clock()
        self._clock = clock
        name, _, dataset = source.partition("::")
        self._listing, self._dataset = Listing(name), dataset or None
        self._looked = False
        self._listings = 0
        self._read = dict(read or {})
        self._recent = {state.path: (state, self._remembered(state)) for state in self._read.values()}
        self._sources: dict[str, _Source] = {}
        self._open: list[str] = []
        """Files of the listing with frames that were not read, in order."""
        self._files: dict[str, _File] = {}
        self._owner: dict[str, str] = {}
        """Of a file that a master links to: the master."""
        self._failures: dict[str, _Failure] = {}
        """Of files and frames."""
        self._reopened: dict[str, int] = {}
        """How often a file of several frames changed after it was taken for complete."""
        self._opened: list[FrameRef] = []
        """First frame of each of the first files, if they hold one each."""

    def look(self) -> list[tuple[FrameRef, State]]:
        """List the folder; frames that look complete and were not read, the first ones, in order."""
        try:
            changed = self._listing.look()
        except InputError as error:
            self.problem, self.empty = str(error), isinstance(error, EmptyError)
            return []
        self.empty = False
        self.problem = self._listing.odd
        now = self._clock()
        self._listings += changed
        if changed or not self._looked:
            self._take_over_listing()
        self._look_again(now)
        ready: list[tuple[FrameRef, State]] = []
        asked = 0
        for path in self._open:
            if asked >= MAX_FILES_PER_LOOK or len(ready) >= MAX_FRAMES_PER_LOOK:
                break
            asked += path not in self._failures
            ready += self._complete(path, now)
        closed = {path for path in self._open[: asked + len(self._failures)] if self._is_done(path)}
        if closed:
            self._open = [path for path in self._open if path not in closed]
        self._looked = True
        return ready

    def _remembered(self, state: State) -> float:
        """Since when a frame of an earlier watch is looked at: that which is older is looked at once."""
        old = time.time() - state.changed / 1e9 > RECHECK_TIME_S
        return self._clock() - (RECHECK_TIME_S if old else 0.0)

    # Files

    def _take_over_listing(self) -> None:
        files = self._listing.files
        new: list[str] = []
        if self._listing.added is None:
            new = [path for path in files if path not in self._sources]
        else:
            add_in_order(new, self._listing.added)
        gone = set(self._sources) - set(files) if len(self._sources) + len(new) > len(files) else set()
        for path in gone:
            source = self._sources.pop(path)
            for name in (path, *source.told, *source.left):
                self._files.pop(name, None)
                self._failures.pop(name, None)
        if gone:
            self._open = [path for path in self._open if path not in gone]
        unread = []
        for path in new:
            source = self._sources[path] = _Source()
            if path in self._read:
                source.frames, source.holders = [FrameRef(path)], [path]
            else:
                unread.append(path)
        add_in_order(self._open, unread)
        if gone or self._dataset or any(map(self._may_be_stack, new)) or new != files[len(files) - len(new) :]:
            self._place()
        else:
            self.refs += [FrameRef(path) for path in new]

    def _place(self) -> None:
        """Put the frames of all files in order; those of files that were not opened are taken to be like the others."""
        refs: list[FrameRef] = []
        self.assumed = 0
        known = [place for place, path in enumerate(self._listing.files) if self._sources[path].frames]
        last = known[-1] if known else -1
        like = self._sources[self._listing.files[known[0]]].frames or [] if known else []
        for place, path in enumerate(self._listing.files):
            frames = self._sources[path].frames
            if frames is not None:
                refs += frames
            elif not self._may_be_stack(path):
                refs.append(FrameRef(path))
            elif len(like) == 1 or place < last:
                refs += [FrameRef(path, one.dataset, one.index) for one in like]
                self.assumed += len(like) if len(like) > 1 else 0
        self.refs = refs

    def _may_be_stack(self, path: str) -> bool:
        return self._dataset is not None or suffix_of(path) in hdf5.SUFFIXES

    @property
    def _single(self) -> FrameRef | None:
        """A frame of which the others are like, where each file holds one; None while that is not known."""
        first = self._opened[0] if len(self._opened) == 2 else None
        return first if first and first.index is None and first.dataset == self._opened[1].dataset else None

    def _settled(self, path: str, now: float) -> State | None:
        """State of a file that has not changed for long enough; None of any other."""
        state, known = State.of(path), self._files.get(path)
        if state is None:
            return None
        if known is None or known.state != state:
            self._files[path], self.news = _File(state, now, fresh=known is not None or self._looked), now
            return None
        wait = SETTLE_TIME_S
        if self._may_be_stack(path) and self._single is None:
            wait = min(STACK_SETTLE_TIME_S * 2 ** self._reopened.get(path, 0), RETRY_WAITS_S[1])
        return state if state.size and now - known.since >= wait else None

    def _complete(self, path: str, now: float) -> list[tuple[FrameRef, State]]:
        """Frames of a file that can be read."""
        source, state = self._sources[path], self._settled(path, now)
        if state is None:
            return []
        holders = {holder: state if holder == path else self._settled(holder, now) for holder in source.told or [path]}
        new = any(one is not None and one != source.told.get(holder) for holder, one in holders.items())
        due = self._due(path, state, now)
        if path.endswith(MASTER_SUFFIX):
            # It links to files before they are there.
            new |= source.listings != self._listings or (due and path in self._failures)
        else:
            new &= due
        if new:
            source.listings = self._listings
            try:
                self._open_source(path, source, holders)
            except InputError as error:
                self._fail(path, str(error).removeprefix(f"{path}: "), state)
                return []
        found = []
        for name, (ref, holder) in source.left.items():
            told = source.told[holder]
            if told is not None and told == holders.get(holder) and self._due(name, told, now):
                found.append((ref, told))
        return found

    def _open_source(self, path: str, source: _Source, holders: Mapping[str, State | None]) -> None:
        """Find out which frames a file holds, while its holders are in these states."""
        single, before = self._single, source.frames
        linked = hdf5.linked_files(path) if path.endswith(MASTER_SUFFIX) else []
        source.told |= {holder: holders.get(holder) for holder in linked}
        frames = [FrameRef(path, single.dataset)] if single else frames_of(path, self._dataset, closed=True)
        self._failures.pop(path, None)
        if path.endswith(MASTER_SUFFIX):
            files = {name: hdf5.holder(path, name) for name in {ref.dataset for ref in frames} if name is not None}
            source.holders = [files.get(ref.dataset or "", path) for ref in frames]
            self._owner.update(dict.fromkeys(files.values(), path))
        else:
            source.holders = [path] * len(frames)
        source.frames = frames
        source.told = {holder: holders.get(holder) for holder in dict.fromkeys((path, *source.holders, *linked))}
        source.left = {
            str(ref): (ref, holder)
            for ref, holder in zip(frames, source.holders, strict=True)
            if self._read.get(str(ref)) != source.told[holder] or source.told[holder] is None
        }
        if len(self._opened) < 2:
            self._opened.append(frames[0] if len(frames) == 1 else FrameRef(path, index=0))
        # Files that were not opened have places already, where each holds one frame.
        if frames != before and (before is not None or not (single or frames == [FrameRef(path)])):
            self._place()

    def _is_done(self, path: str) -> bool:
        source = self._sources[path]
        if source.frames is None or source.left or path.endswith(MASTER_SUFFIX):
            return False
        self._files.pop(path, None)
        return True

    def _look_again(self, now: float) -> None:
        for holder in list(islice(self._recent, MAX_FILES_PER_LOOK)):
            state, since = self._recent.pop(holder)
            if State.of(holder) not in (None, state):
                self._read_again(self._owner.get(holder, holder), holder)
            elif now - since < RECHECK_TIME_S:
                self._recent[holder] = state, since  # behind the others, whose turn is next

    def _read_again(self, path: str, holder: str) -> None:
        source = self._sources.get(path)
        if source is None or source.frames is None:
            return  # it is not there, or will be opened
        for ref, one in zip(source.frames, source.holders, strict=True):
            if one == holder:
                self._read.pop(str(ref), None)
                source.left[str(ref)] = (ref, holder)
        source.told[holder] = None
        self._reopened[holder] = self._reopened.get(holder, 0) + 1
        if path not in self._open:
            add_in_order(self._open, [path])

    # Frames

    def _due(self, name: str, state: State, now: float) -> bool:
        """Whether a file or frame is to be read: it could not be the last time, long enough ago or in another state."""
        failure = self._failures.get(name)
        return failure is None or failure.state != state or now >= failure.retry

    def _fail(self, name: str, reason: str, state: State) -> None:
        before = self._failures.get(name)
        wait = (
            min(2 * before.wait, RETRY_WAITS_S[1]) if before is not None and before.state == state else RETRY_WAITS_S[0]
        )
        self._failures[name] = _Failure(reason, state, self._clock() + wait, wait)

    def mark_read(self, ref: FrameRef, state: State) -> None:
        """Note that a frame was read while its file was in this state."""
        name = str(ref)
        self._sources[ref.path].left.pop(name, None)
        self._failures.pop(name, None)
        self._read[name] = state
        self._recent[state.path] = (state, self._clock())

    def mark_unreadable(self, ref: FrameRef, reason: str, state: State) -> None:
        """Note that a frame could not be read: it is not complete yet, or will be set aside in the end."""
        self._fail(str(ref), reason, state)

    def since(self, state: State) -> float | None:
        """Return when a file that is to be read was complete, in seconds since 1970; None where that was before the
        watch.

        That is the file's own time, where its clock can be believed, or else when it was first seen as it is.
        """
        one = self._files[state.path]
        if not one.fresh:
            return None
        now, told = time.time(), state.changed / 1e9
        seen = now - (self._clock() - one.since)
        return told if seen - MAX_CLOCK_SKEW_S < told <= seen else seen

    @property
    def unread(self) -> int:
        """Frames that are there and were not read yet, complete or not; a file that was not opened counts as one."""
        sources = (self._sources[path] for path in self._open)
        return sum(1 if source.frames is None else len(source.left) for source in sources)

    @property
    def unreadable(self) -> dict[str, str]:
        """Name and reason of the files and frames that could not be read so far."""
        return {name: one.reason for name, one in self._failures.items()}

    def quiet(self, seconds: float) -> bool:
        """Return whether all frames that were not read are unreadable, and their files unchanged for that long."""
        now = self._clock()

        def silent(name: str, holder: str) -> bool:
            file = self._files.get(holder)
            return name in self._failures and file is not None and now - file.since >= seconds

        for path in self._open:
            source = self._sources[path]
            if source.frames is None and not silent(path, path):
                return False
            if not all(silent(name, holder) for name, (_, holder) in source.left.items()):
                return False
        return True
