"""Frames of a scan grouped by shape and dtype, so that one that claims to be a giant is never read."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from laue_dask.errors import FrameError
from laue_dask.io.frames import FrameInfo, FrameRef, frame_info
from laue_dask.io.limits import Expected


class FrameGroup(NamedTuple):
    """Frames of one kind.

    Attributes
    ----------
    kind
        Their shape and dtype.
    refs, infos
        The frames and their headers.
    """

    kind: Expected
    refs: list[FrameRef]
    infos: list[FrameInfo]


def group_frames(refs: Sequence[FrameRef]) -> tuple[list[FrameGroup], list[str]]:
    """Return the frames by shape and dtype, those of the most frequent first; and why the others cannot be read.

    Pixels are read only of the less usual formats, which tell nothing without them, within the limits of any frame.
    """
    known: list[tuple[FrameRef, FrameInfo]] = []
    reasons: list[str] = []
    for ref in refs:
        try:
            known.append((ref, frame_info(ref)))
        except FrameError as error:
            reasons.append(f"{ref}: {error}")
    kinds = Counter(Expected(info.shape, info.dtype) for _, info in known)
    groups = []
    for kind, _ in kinds.most_common():
        alike = [(ref, info) for ref, info in known if (info.shape, info.dtype) == kind]
        groups.append(FrameGroup(kind, [ref for ref, _ in alike], [info for _, info in alike]))
    return groups, reasons
