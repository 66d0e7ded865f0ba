"""Frames of the less usual formats, read by fabio once the size that their header claims is known to be a frame's."""

import io
import logging
import re
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import fabio
import numpy as np
from fabio.openimage import MAGIC_NUMBERS
from numpy.typing import NDArray

from laue_dask.errors import FrameError
from laue_dask.io import headers
from laue_dask.io.headers import Header
from laue_dask.io.limits import MAX_UNPACKED_BYTES, Expected, require_frame

# What fabio has to say about a damaged file is in the FrameError.
logging.getLogger("fabio").setLevel(logging.CRITICAL + 1)

HEAD_BYTES = 16384
"""In which a header tells the size of its frame."""

_REFUSED_FORMATS = {
    "jpeg": "JPEG", "jpeg2k": "JPEG-2000", "numpy": "NumPy", "xsd": "XML", "dm3": "Digital Micrograph",
    "fit2dmask": "Fit2D mask", "tif": "TIFF", "marccd/tif": "TIFF", "pilatus": "TIFF",
    "eiger/lima/sparse/hdf5/lambda": "HDF5",
}  # fmt: skip


def _sides(pattern: bytes) -> Callable[[bytes], tuple[int, int] | None]:
    compiled = re.compile(pattern, re.DOTALL)

    def look(head: bytes) -> tuple[int, int] | None:
        found = compiled.search(head)
        return (int(found["rows"]), int(found["columns"])) if found else None

    return look


def _mar345(head: bytes) -> tuple[int, int] | None:
    if len(head) < 8:
        return None
    order = "<" if struct.unpack_from("<i", head)[0] == 1234 else ">"
    side = int(struct.unpack_from(order + "i", head, 4)[0])
    return side, side


_CLAIMED_SHAPE_OF_FORMAT: dict[str, Callable[[bytes], tuple[int, int] | None]] = {
    "dtrek": _sides(rb"(?=.*?\bSIZE1\s*=\s*(?P<columns>\d{1,12}))(?=.*?\bSIZE2\s*=\s*(?P<rows>\d{1,12}))"),
    "bruker": _sides(rb"(?=.*?NROWS\s*:\s*(?P<rows>\d{1,12}))(?=.*?NCOLS\s*:\s*(?P<columns>\d{1,12}))"),
    "esperanto": _sides(rb"\bIMAGE\s+(?P<columns>\d{1,12})\s+(?P<rows>\d{1,12})"),
    "OXD": _sides(rb"NX=\s*(?P<columns>\d{1,12})\s+NY=\s*(?P<rows>\d{1,12})"),
    "mar345": _mar345,
}


def read_frame(
    file: BinaryIO, path: str, index: int | None, *, packed: bool, expected: Expected | None = None
) -> tuple[NDArray[Any], Header]:
    """Return frame `index` of an open file (the only one if ``None``) and its header.

    Parameters
    ----------
    path, packed
        Of the file, and whether `file` is its unpacked content.
    expected
        Nothing is allocated for a frame whose header tells another shape.

    Raises
    ------
    FrameError
        It is of a format that is not read, holds another number of frames, or is not the expected one.
    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if not head:
        raise FrameError("is empty")
    kind = next((name for magic, name in MAGIC_NUMBERS if head.startswith(magic)), "")
    if kind in _REFUSED_FORMATS:
        raise FrameError(f"is a {_REFUSED_FORMATS[kind]} file by its content: give it the suffix of one")
    size = file.seek(0, io.SEEK_END)
    if size > MAX_UNPACKED_BYTES:
        raise FrameError(f"is larger than the {MAX_UNPACKED_BYTES // 2**20} MiB that a file of one frame may have")
    shape = _CLAIMED_SHAPE_OF_FORMAT[kind](head) if kind in _CLAIMED_SHAPE_OF_FORMAT else None
    if shape is not None:
        require_frame(shape, expected.dtype if expected else np.uint8, expected)
    with fabio.open(file if packed else path) as image:
        if index is None and image.nframes != 1:
            raise FrameError(f"holds {image.nframes} frames, one was expected")
        if (index or 0) >= image.nframes:
            raise FrameError(f"frame {index} is not in the file, which ends at {image.nframes - 1}")
        frame = image.getframe(index) if index else image
        if frame.data is None:
            raise FrameError("holds no pixels that fabio can read")
        return np.array(frame.data), headers.from_edf(dict(frame.header))
