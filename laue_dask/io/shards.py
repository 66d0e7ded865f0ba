"""The frames of one shard: read, checked, and the bad ones put aside with a reason."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import FrameError
from laue_dask.io.frames import FrameRef, load


class Shard(NamedTuple):
    """Frames of one shard.

    Attributes
    ----------
    stack : (frame, row, column)
        Zeros where nothing was recorded or the frame was set aside.
    positions
        Stage coordinates [y, x] of each frame, ``None`` where unknown.
    set_aside
        Place in the shard and reason of each frame that cannot be used.
    non_finite
        Number of NaN and infinite pixels among the others.
    """

    stack: NDArray[Any]
    positions: list[list[float] | None]
    set_aside: list[tuple[int, str]]
    non_finite: int


def read_shard(refs: Sequence[FrameRef | None], shape: tuple[int, int], dtype: np.dtype[Any]) -> Shard:
    """Read the frames of `refs`, of which ``None`` was not recorded, into one stack of `shape` and `dtype`.

    No more than the stack and one frame is in memory.
    """
    stack = np.zeros((len(refs), *shape), dtype=dtype)
    positions: list[list[float] | None] = [None] * len(refs)
    set_aside: list[tuple[int, str]] = []
    non_finite = 0
    for i, ref in enumerate(refs):
        if ref is None:
            continue
        try:
            frame, info = load(ref)
            positions[i] = None if info.position is None else list(info.position)
            non_finite += check_frame(frame, shape, dtype)
            stack[i] = frame
        except FrameError as error:
            set_aside.append((i, str(error)))
    return Shard(stack, positions, set_aside, non_finite)


def check_frame(frame: NDArray[Any], shape: tuple[int, int], dtype: np.dtype[Any]) -> int:
    """Number of pixels of a frame that are not finite.

    Raises
    ------
    FrameError
        Another shape or dtype than the scan's, no finite pixel, or every pixel the same.
    """
    if frame.shape != shape:
        raise FrameError(f"shape {frame.shape}, the scan's is {shape}")
    if frame.dtype != dtype:
        raise FrameError(f"dtype {frame.dtype}, the scan's is {dtype}")
    non_finite = 0
    if dtype.kind == "f":
        non_finite = int(frame.size - np.count_nonzero(np.isfinite(frame)))
        if non_finite == frame.size:
            raise FrameError("no finite pixel")
    value = frame[0, 0]
    # Nearly every frame differs somewhere in these few pixels, and need not be read again.
    if (frame[::61, ::67] == value).all() and (frame == value).all():
        raise FrameError("all pixels are zero" if value == 0 else f"all pixels have the same value {value}")
    return non_finite
