"""What a file may claim: a header is held against limits, the scan and the file before anything is allocated for it."""

import math
import os
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from laue_dask.errors import FrameError

MAX_FRAME_PIXELS = 2**27
"""Pixels of a frame: seven times those of the largest detector that is known to scan, in at most 1 GiB."""

MAX_FRAME_SIDE_PX = 2**16
"""Pixels along a side of a frame."""

MAX_UNPACKED_BYTES = 2**30
"""Bytes that a packed file (.gz, .bz2) may unpack to where the scan's own frames are not known yet."""

UNPACKED_MARGIN_BYTES = 64 * 2**20
"""Bytes that headers, thumbnails and the like may take beside a frame in a packed file."""

MIN_SPARSE_BYTES = 64 * 2**20
SPARSE_DIVISOR = 256
"""A frame of so many bytes is refused if its file takes less than the like part of them on the disk."""


class Expected(NamedTuple):
    """Shape (rows, columns) and native dtype of the scan's frames."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


def require_frame(shape: tuple[int, ...], dtype: DTypeLike, expected: Expected | None = None) -> None:
    """Refuse a frame that is no image, too large to be one, or not like the scan's.

    Parameters
    ----------
    shape
        Rows and columns as a header claims them.
    dtype
        Of a pixel, in any byte order.

    Raises
    ------
    FrameError
        What is claimed, and what is allowed or expected.
    """
    if expected is not None and shape == expected.shape and dtype == expected.dtype:
        return  # as nearly all frames are
    dtype = np.dtype(dtype)
    if len(shape) != 2:
        raise FrameError(f"is not 2-D: shape {shape}")
    if min(shape) < 1:
        raise FrameError(f"its header claims {shape[0]} × {shape[1]} pixels")
    if expected is not None and shape != expected.shape:
        raise FrameError(f"shape {shape}, the scan's is {expected.shape}")
    if max(shape) > MAX_FRAME_SIDE_PX or math.prod(shape) > MAX_FRAME_PIXELS:
        raise FrameError(
            f"its header claims {shape[0]} × {shape[1]} pixels: frames of more than "
            f"{MAX_FRAME_PIXELS // 10**6} million pixels, or of more than {MAX_FRAME_SIDE_PX} along a side, are "
            "not read"
        )
    if expected is not None and dtype.newbyteorder("=") != expected.dtype:
        raise FrameError(f"dtype {dtype.newbyteorder('=')}, the scan's is {expected.dtype}")


def require_on_disk(file: BinaryIO, claimed: int) -> None:
    """Refuse a file that claims `claimed` bytes of pixels and takes next to nothing on the disk: its size is a claim.

    Raises
    ------
    FrameError
        Both numbers.
    """
    if claimed < MIN_SPARSE_BYTES:
        return
    try:
        taken = getattr(os.fstat(file.fileno()), "st_blocks", 0) * 512
    except OSError:  # it is in memory
        return
    # A file on tape takes no block or one: it is brought back by being read.
    if 512 < taken < claimed // SPARSE_DIVISOR:
        raise FrameError(
            f"its header claims {claimed // 2**20} MiB of pixels, and its file takes {taken // 1024} KiB on the disk"
        )


def unpacked_limit(expected: Expected | None) -> int:
    """Return the bytes that a packed file with one frame of the scan, or with frames that are not known yet, may unpack
    to.
    """
    if expected is None:
        return MAX_UNPACKED_BYTES
    return 2 * math.prod(expected.shape) * expected.dtype.itemsize + UNPACKED_MARGIN_BYTES
