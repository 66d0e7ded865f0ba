"""TIFF frames (also PILATUS and MarCCD), read so that a damaged file is always noticed.

fabio falls back on Pillow for a TIFF that it cannot read, and Pillow fills what is missing with zeros. Here every
offset of the file's directory is held against the file's size before a pixel is read. Compressed and tiled pixels are
decoded by Pillow; everything else is one read.
"""

import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from laue_dask.errors import FrameError
from laue_dask.io import headers
from laue_dask.io.headers import Header

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_COLUMNS, _ROWS, _BITS, _COMPRESSION, _DESCRIPTION, _MODEL = 256, 257, 258, 259, 270, 272
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_COUNTS = 273, 277, 278, 279
_TILE_OFFSETS, _TILE_COUNTS, _SAMPLE_FORMAT = 324, 325, 339
_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
_TRUNCATED = "truncated or unreadable TIFF"
MOST_PAGES = 10_000_000

Tags = dict[int, tuple[Any, ...]]


@dataclass(frozen=True)
class Page:
    """One frame's directory: its `shape`, its `dtype` in the file's byte order, and its tags."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    tags: Tags

    @property
    def plain(self) -> bool:
        """Whether the pixels lie in the file as they are."""
        return self.tags.get(_COMPRESSION, (1,))[0] == 1 and _STRIP_OFFSETS in self.tags


def count(file: BinaryIO) -> int:
    """Number of frames in an open TIFF."""
    return len(_directories(file, _size(file)))


def read_frame(file: BinaryIO, index: int | None, *, memory: NDArray[Any] | None = None) -> tuple[NDArray[Any], Header]:
    """Frame `index` of an open TIFF (the only one if ``None``) and its header; dtype in the native byte order.

    It is read into `memory` (rows, columns) and that is returned, if it is of the frame's shape and dtype.
    """
    page = read_page(file, index)
    if not page.plain:
        return _decode(file, page, index or 0), read_header(file, page)
    rows = page.shape[0]
    fits = memory is not None and (memory.shape, memory.dtype) == (page.shape, page.dtype) and memory.flags.c_contiguous
    frame = memory if memory is not None and fits else np.empty(page.shape, dtype=page.dtype)
    step = min(rows, int(page.tags.get(_ROWS_PER_STRIP, (rows,))[0]))
    offsets = page.tags[_STRIP_OFFSETS]
    if step < 1 or len(offsets) != -(-rows // step):
        raise FrameError(f"{_TRUNCATED}: {len(offsets)} strips of {step} rows for {rows} rows")
    for offset, first in zip(offsets, range(0, rows, step), strict=True):
        part = frame[first : first + step]
        file.seek(offset)
        if file.readinto(part.data.cast("B")) != part.nbytes:  # type: ignore[attr-defined]
            raise FrameError(_TRUNCATED)
    return frame.astype(page.dtype.newbyteorder("="), copy=False), read_header(file, page)


def read_page(file: BinaryIO, index: int | None) -> Page:
    """Directory of frame `index` of an open TIFF, held against the file's size.

    Raises
    ------
    FrameError
        The file ends before its pixels do, has no such frame or more than the one expected, or is not grey.
    """
    size = _size(file)
    directories = _directories(file, size)
    if index is None and len(directories) != 1:
        raise FrameError(f"holds {len(directories)} frames, one was expected")
    if (index or 0) >= len(directories):
        raise FrameError(f"frame {index} is not in the file, which ends at {len(directories) - 1}")
    tags = directories[index or 0]
    order = _order(file)
    try:
        rows, columns = int(tags[_ROWS][0]), int(tags[_COLUMNS][0])
        samples = int(tags.get(_SAMPLES, (1,))[0])
        bits, kind = int(tags.get(_BITS, (1,))[0]), _KINDS[tags.get(_SAMPLE_FORMAT, (1,))[0]]
    except (KeyError, ValueError) as error:
        raise FrameError(_TRUNCATED) from error
    if samples != 1:
        raise FrameError(f"is not 2-D: {samples} samples per pixel")
    if bits not in (8, 16, 32, 64) or (kind == "f" and bits < 16):
        raise FrameError(f"{bits} bits per pixel are not supported")
    page = Page((rows, columns), np.dtype(f"{order}{kind}{bits // 8}"), tags)
    _check_extents(page, size)
    return page


def read_header(file: BinaryIO, page: Page) -> Header:
    """What the directory, and the MarCCD header behind it, tell."""
    file.seek(0)
    marccd = headers.from_marccd(file.read(headers.MARCCD_SIZE))
    return marccd or headers.from_text(_text(page.tags, _DESCRIPTION), model=_text(page.tags, _MODEL))


def _check_extents(page: Page, size: int) -> None:
    tiled = _TILE_OFFSETS in page.tags
    offsets = page.tags.get(_TILE_OFFSETS if tiled else _STRIP_OFFSETS, ())
    lengths = page.tags.get(_TILE_COUNTS if tiled else _STRIP_COUNTS, ())
    rows, columns = page.shape
    ends = [offset + length for offset, length in zip(offsets, lengths, strict=False)]
    if page.plain:
        # Some detectors' software writes wrong byte counts: without compression the shape tells.
        ends = [max(offsets, default=size), min(offsets, default=size) + rows * columns * page.dtype.itemsize]
    if not offsets or rows < 1 or columns < 1 or not ends or max(ends) > size:
        raise FrameError(_TRUNCATED)


def _decode(file: BinaryIO, page: Page, index: int) -> NDArray[Any]:
    file.seek(0)
    with Image.open(file) as image:
        image.seek(index)
        frame = np.asarray(image)
    if frame.shape != page.shape:
        raise FrameError(f"is not 2-D: shape {frame.shape}")
    return frame.astype(page.dtype.newbyteorder("="))


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _order(file: BinaryIO) -> str:
    file.seek(0)
    return "<" if file.read(2) == b"II" else ">"


def _directories(file: BinaryIO, size: int) -> list[Tags]:
    file.seek(0)
    head = file.read(16)
    if head[:4] not in MAGIC:
        raise FrameError("is empty" if not head else _TRUNCATED)
    order = "<" if head[:2] == b"II" else ">"
    big = b"+" in head[:4]
    found: list[Tags] = []
    seen: set[int] = set()
    try:
        offset = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0]
        while offset and len(found) < MOST_PAGES:
            # A damaged file may link a directory to itself.
            if offset in seen or offset >= size:
                raise FrameError(_TRUNCATED)
            seen.add(offset)
            tags, offset = _directory(file, size, offset, order, big=big)
            found.append(tags)
    except struct.error as error:
        raise FrameError(_TRUNCATED) from error
    if not found:
        raise FrameError(_TRUNCATED)
    return found


def _directory(file: BinaryIO, size: int, offset: int, order: str, *, big: bool) -> tuple[Tags, int]:
    count_format, entry_format, link_format = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    file.seek(offset)
    length = struct.unpack(order + count_format, file.read(struct.calcsize(order + count_format)))[0]
    width = struct.calcsize(order + entry_format)
    if length * width > size:
        raise FrameError(_TRUNCATED)
    block = file.read(length * width + struct.calcsize(order + link_format))
    tags: Tags = {}
    for i in range(length):
        tag, kind, values, inline = struct.unpack_from(order + entry_format, block, i * width)
        code = _TYPES.get(kind)
        if code is None:
            continue
        layout = f"{order}{values}{code}"
        need = struct.calcsize(layout)
        if need > len(inline):
            where = struct.unpack(order + link_format, inline)[0]
            if where + need > size:
                raise FrameError(_TRUNCATED)
            file.seek(where)
            inline = file.read(need)
        tags[tag] = struct.unpack(layout, inline[:need])
    return tags, int(struct.unpack_from(order + link_format, block, length * width)[0])


def _text(tags: Tags, tag: int) -> str:
    value = tags.get(tag, (b"",))[0]
    return value.split(b"\0", 1)[0].decode("utf-8", errors="replace") if isinstance(value, bytes) else ""
