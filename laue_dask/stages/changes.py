"""Frames that are not those that were read: noticed by size and time of their files, decided by their pixels.

One rule for a run that goes on, for one that is finished, and for all that reads frames later.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laue_dask.io.frames import FrameRef
from laue_dask.io.identity import Stamp, difference, stamps_of

PROBED = 8
"""Frames whose pixels tell what most likely became of all whose files are others."""

logger = logging.getLogger(__name__)


class Read(NamedTuple):
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


class Changed(NamedTuple):
    """A frame whose file is another `now`, and what is known to be different; empty while its pixels are not known."""

    read: Read
    now: Stamp
    why: str = ""

    def __str__(self) -> str:
        if not self.now.known:
            return f"{self.read.ref} (is gone)"
        why = f", {self.why}" if self.why else ""
        return f"{self.read.ref} ({self.read.stamp}, now {self.now}{why})"


def suspects(frames: Sequence[Read]) -> list[Changed]:
    """Frames whose files have another size or time than when they were read, in their order; others are the same."""
    now = stamps_of(one.ref for one in frames)
    return [Changed(one, stamp) for one, stamp in zip(frames, now, strict=True) if stamp != one.stamp]


def read_again(some: Iterable[Changed], mask: NDArray[np.bool_], dtype: np.dtype[Any]) -> list[Changed]:
    """Frames among them whose pixels are others, and why; `mask` and `dtype` are the scan's."""
    found = []
    for one in some:
        read = one.read
        if why := difference(read.ref, read.checksum, mask, dtype, usable=read.usable):
            found.append(one._replace(why=why))
    return found


def spread(some: Sequence[Changed]) -> Sequence[Changed]:
    """A few of them, the first one among them."""
    return some[:: max(1, -(-len(some) // PROBED))]


def while_read(frames: Sequence[Read], mask: NDArray[np.bool_], dtype: np.dtype[Any]) -> list[Changed]:
    """Frames that were changed while the scan was read, and have to be read again.

    Files that are gone were read whole. A stack to which frames were added is still what it was, if a few of its frames
    say so; that is told.
    """
    found = [one for one in suspects(frames) if one.now.known]
    stacked = [one for one in found if one.read.ref.index is not None]
    if not stacked or read_again(spread(stacked), mask, dtype):
        return found
    if written := [one for one in stacked if one.now.size != one.read.stamp.size]:
        logger.warning(
            "%s was written to while it was read (%s, then %s): what was added is not in this scan",
            written[0].read.ref.path,
            written[0].read.stamp,
            written[0].now,
        )
    return [one for one in found if one.read.ref.index is None]
