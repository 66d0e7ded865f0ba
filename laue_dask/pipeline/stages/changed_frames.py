"""Frames that have changed since they were read: size and time of files raise doubt, their pixels decide.

One rule for a run that goes on, for one that is finished, and for all that reads frames later.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laue_dask.io.frames import FrameRef
from laue_dask.io.scan_store import ScanStore
from laue_dask.io.source_identity import UNKNOWN_SIZE_OR_TIME, Stamp, difference, stamps_of

N_PROBED_FRAMES = 8
"""Frames whose pixels tell what most likely became of all whose files are others."""

logger = logging.getLogger(__name__)


class ReadFrame(NamedTuple):
    """A frame as it was read.

    Attributes
    ----------
    place
        Number of its pattern, or of its block.
    ref
        Where it is.
    stamp
        Of its file before it was read.
    checksum
        CRC-32C of its pixels.
    usable
        Whether it could be used, or was set aside.
    """

    place: int
    ref: FrameRef
    stamp: Stamp
    checksum: int
    usable: bool


class ChangedFrame(NamedTuple):
    """A frame whose file is another `now`, and what is known to be different; empty while its pixels are not known."""

    read: ReadFrame
    now: Stamp
    why: str = ""

    def __str__(self) -> str:
        return f"{self.read.ref} ({self.values if self.now.known else 'is gone'})"

    @property
    def values(self) -> str:
        """What it was, and what it is now."""
        return f"{self.read.stamp}, now {self.now}" + (f", {self.why}" if self.why else "")


def suspects(frames: Sequence[ReadFrame]) -> list[ChangedFrame]:
    """Return the frames whose files have another size or time than when they were read, in their order; others are the
    same.
    """
    now = stamps_of(one.ref for one in frames)
    return [ChangedFrame(one, stamp) for one, stamp in zip(frames, now, strict=True) if stamp != one.stamp]


def frames_to_compare(store: ScanStore) -> list[ChangedFrame]:
    """Return the frames of a finished store with what their files are now, to be compared whether these have changed or
    not.
    """
    frames = sources_of(store)
    return [ChangedFrame(one, now) for one, now in zip(frames, stamps_of(one.ref for one in frames), strict=True)]


def read_again(some: Iterable[ChangedFrame], mask: NDArray[np.bool_], dtype: np.dtype[Any]) -> list[ChangedFrame]:
    """Return the frames among them whose pixels are others, and why; `mask` and `dtype` are the scan's."""
    found = []
    for one in some:
        read = one.read
        if why := difference(read.ref, read.checksum, mask, dtype, usable=read.usable):
            found.append(one._replace(why=why))
    return found


def sources_of(store: ScanStore, now: Mapping[str, FrameRef] | None = None) -> list[ReadFrame]:
    """Return the frames of a finished store as they were read, in the order of the patterns; none where the store does
    not know.

    Parameters
    ----------
    now
        Where each is now, by its name in the store; where the store finds it, by default.
    """
    identity = store.identity
    if identity is None:
        return []
    columns = (identity.size, identity.time, identity.checksum, store.valid)
    rows = zip(store.source, *(column.tolist() for column in columns), strict=True)
    return [
        ReadFrame(pattern, store.located(name) if now is None else now[name], Stamp(size, time), crc, usable)
        for pattern, (name, size, time, crc, usable) in enumerate(rows)
        # Those of blocks that an earlier version began to ingest are not known.
        if name and (size != UNKNOWN_SIZE_OR_TIME or not usable)
    ]


def describe_changes(changed: Sequence[ChangedFrame], total: int) -> str:
    """Return the frames that changed in a line: how many, and the first one with both values."""
    gone = sum(not one.now.known for one in changed)
    what = "are gone" if gone == len(changed) else "have changed or are gone" if gone else "changed"
    return f"{len(changed)} of {total} frames {what} since they were read, first {changed[0]}"


def warn_of_changes(store: ScanStore) -> None:
    """Say in a line if frames are not those that a store was made of, as far as a few of them tell.

    Files that are gone were archived: nothing is said of them.
    """
    frames = sources_of(store)
    found = [one for one in suspects(frames) if one.now.known]
    changed, exact = probe(found, store.detector_mask, store.dtype)
    if changed:
        few = "" if exact else "at least "
        logger.warning(
            "%s: %s%s: the results are those of the earlier frames",
            store.path,
            few,
            describe_changes(changed, len(frames)),
        )
    elif not exact:
        logger.info(
            "%s: %d files have other times than when they were read; the frames of those that were compared are the "
            "same (`laue-dask verify %s --sources` compares all)",
            store.path,
            len(found),
            store.path,
        )


def probe(
    found: Sequence[ChangedFrame], mask: NDArray[np.bool_], dtype: np.dtype[Any]
) -> tuple[list[ChangedFrame], bool]:
    """Return the frames whose pixels are others, as far as a few of them tell, and whether these are all.

    Where none of the few is what it was, all are taken for changed.
    """
    few = found[:: max(1, -(-len(found) // N_PROBED_FRAMES))]
    changed = read_again(few, mask, dtype)
    if changed and len(changed) == len(few):
        return [changed[0], *found[1:]], True
    return changed, len(few) == len(found)


def changed_while_read(
    frames: Sequence[ReadFrame], mask: NDArray[np.bool_], dtype: np.dtype[Any]
) -> list[ChangedFrame]:
    """Return the frames that were changed while the scan was read, and have to be read again.

    Files that are gone were read whole. A stack to which frames were added is still what it was, if a few of its frames
    say so; that is told.
    """
    found = [one for one in suspects(frames) if one.now.known]
    stacked = [one for one in found if one.read.ref.index is not None]
    if not stacked or probe(stacked, mask, dtype)[0]:
        return found
    if written := [one for one in stacked if one.now.size != one.read.stamp.size]:
        logger.warning(
            "%s was written to while it was read (%s, then %s): frames that were added are not in this scan",
            written[0].read.ref.path,
            written[0].read.stamp,
            written[0].now,
        )
    return [one for one in found if one.read.ref.index is None]
