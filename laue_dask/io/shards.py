"""Read and check the frames of a shard, or of a part of one; bad ones are set aside with a reason."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import FrameError
from laue_dask.io.deadline import ReadTimeoutError
from laue_dask.io.frames import FrameRef, load
from laue_dask.io.limits import Expected, require_frame
from laue_dask.reduction.detector_mask import frame_fault


class Shard(NamedTuple):
    """Frames of a shard or of a part of one.

    Attributes
    ----------
    stack : (frame, row, column)
        Zeros where nothing was recorded or the frame was set aside.
    positions
        Stage coordinates [y, x] of each frame, ``None`` where unknown.
    set_aside
        Place among them and reason of each frame that cannot be used.
    """

    stack: NDArray[Any]
    positions: list[list[float] | None]
    set_aside: list[tuple[int, str]]


def read_shard(
    refs: Sequence[FrameRef | None],
    mask: NDArray[np.bool_],
    dtype: np.dtype[Any],
    *,
    memory: NDArray[Any] | None = None,
) -> Shard:
    """Read the frames of `refs`, of which ``None`` was not recorded, into one stack of the shape of `mask` and `dtype`.

    No more than the stack and one frame is in memory; `memory` (frame, row, column), of as many frames or more, is used
    for the stack if given, which is quicker than to ask the system for some. Where the stack then does not lie in it, a
    read that hangs may still write into it: it must be given up.
    """
    stack = np.empty((len(refs), *mask.shape), dtype=dtype) if memory is None else memory[: len(refs)]
    positions: list[list[float] | None] = [None] * len(refs)
    set_aside: list[tuple[int, str]] = []
    expected = Expected(mask.shape, dtype)
    for i, ref in enumerate(refs):
        if ref is None:
            stack[i] = 0
            continue
        try:
            frame, info = load(ref, memory=stack[i], expected=expected)
            positions[i] = None if info.position is None else list(info.position)
            check_frame(frame, mask, dtype)
            if not np.may_share_memory(frame, stack):
                stack[i] = frame
        except ReadTimeoutError as error:
            # The reader may still come to write into this memory, which must not be anybody's any more.
            stack = stack.copy()
            stack[i] = 0
            set_aside.append((i, str(error)))
        except FrameError as error:
            stack[i] = 0
            set_aside.append((i, str(error)))
    return Shard(stack, positions, set_aside)


def check_frame(frame: NDArray[Any], mask: NDArray[np.bool_], dtype: np.dtype[Any]) -> None:
    """Raise `FrameError` for a frame of another shape or dtype than the scan's, or one that shows nothing.

    Parameters
    ----------
    mask : (row, column) bool
        Unusable pixels, which tell nothing: a detector may mark its gaps in a frame without a single photon.
    """
    require_frame(frame.shape, frame.dtype, Expected(mask.shape, dtype))
    # Nearly every frame shows something in these few pixels, and need not be read again.
    few = (slice(None, None, 61), slice(None, None, 67))
    if frame_fault(frame[few], mask[few]) is not None:
        # Where no pixel is usable, the frame itself says more than that.
        fault = (frame_fault(frame) if mask.all() else None) or frame_fault(frame, mask)
        if fault is not None:
            raise FrameError(fault)
