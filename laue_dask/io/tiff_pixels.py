"""Pixels of one page of a TIFF: read as they lie, or decoded strip by strip and tile by tile, each of a known size."""

import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import FrameError
from laue_dask.io import limits
from laue_dask.io.tiff_directory import damaged, truncated
from laue_dask.io.tiff_pages import (
    DEFLATE,
    LZMA,
    LZW,
    OLD_DEFLATE,
    PACKBITS,
    PREDICTOR,
    ROWS_PER_STRIP,
    STRIP_BYTES,
    STRIP_OFFSETS,
    TILE_BYTES,
    TILE_COLUMNS,
    TILE_OFFSETS,
    TILE_ROWS,
    UNCOMPRESSED,
    ZSTD,
    Page,
)
from laue_dask.io.unpack import fill

MAX_SEGMENTS = 2**20
"""Strips or tiles of one page."""

MAX_TILE_PIXELS = 2**24

_HORIZONTAL_PREDICTOR, _FLOATING_PREDICTOR = 2, 3
_MIN_PIXEL_OFFSET = 8
"""Byte of a file before which no pixel can lie: software that has reserved a strip without writing it leaves 0."""


def check_extent(page: Page) -> None:
    """Refuse a page whose pixels would not fit into the file; of what is not compressed, the shape alone counts.

    Raises
    ------
    FrameError
        The file is truncated or damaged.
    """
    for _ in _segments(page):
        pass


def read_pixels(page: Page, memory: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return the pixels (row, column) of a page, in the file's byte order.

    Parameters
    ----------
    memory : (row, column)
        Is used for the pixels, and returned, if it is of the page's shape and dtype, and the pixels are plain.

    Raises
    ------
    FrameError
        The file is truncated or damaged.
    """
    segments = list(_segments(page))
    if page.plain:
        limits.require_on_disk(page.directory.container.file, page.nbytes)
        usable = memory is not None and memory.flags.c_contiguous
        fits = usable and memory is not None and (memory.shape, memory.dtype) == (page.shape, page.dtype)
        frame = memory if fits and memory is not None else np.empty(page.shape, dtype=page.dtype)
        _read_plain(page, segments, frame)
        return frame
    return _decoded(page, segments)


class _Segment(NamedTuple):
    """A strip or a tile: its bytes in the file, where it begins in the frame, and the shape that it decodes to."""

    offset: int
    length: int
    row: int
    column: int
    shape: tuple[int, int]


def _segments(page: Page) -> Iterator[_Segment]:
    directory, size, width = page.directory, page.directory.container.size, page.dtype.itemsize
    rows, columns = page.shape
    tiled = TILE_OFFSETS in directory
    if tiled:
        high, wide = directory.number(TILE_ROWS, 0), directory.number(TILE_COLUMNS, 0)
        if not (0 < high * wide <= MAX_TILE_PIXELS):
            raise damaged(f"its tiles are of {high} × {wide} pixels")
    else:
        # None, or more rows than there are: one strip.
        high, wide = min(rows, directory.number(ROWS_PER_STRIP, rows) or rows), columns
    across = -(-columns // wide)
    count = -(-rows // high) * across
    if count > MAX_SEGMENTS:
        raise damaged(f"its pixels are in {count} parts")
    offsets = directory.numbers(TILE_OFFSETS if tiled else STRIP_OFFSETS, count)
    plain = page.plain
    if plain and page.image:
        offsets = tuple(offset + page.image * page.nbytes for offset in offsets)
    # Some detectors' software writes wrong byte counts: without compression the shape tells.
    lengths = () if page.compression == UNCOMPRESSED else directory.numbers(TILE_BYTES if tiled else STRIP_BYTES, count)
    what = "tile" if tiled else "strip"
    for i, offset in enumerate(offsets):
        row, column = i // across * high, i % across * wide
        shape = (high if tiled else min(high, rows - row), wide)
        length = lengths[i] if lengths else shape[0] * shape[1] * width
        if offset < _MIN_PIXEL_OFFSET or length < 1:
            raise FrameError(f"truncated TIFF: {what} {i + 1} of {count} was not written")
        if offset + length > size:
            raise truncated(f"{what} {i + 1} of {count}", offset + length, size)
        yield _Segment(offset, length, row, column, shape)


def _read_plain(page: Page, segments: list[_Segment], frame: NDArray[Any]) -> None:
    """Read strips that lie in the file as they are; those that lie behind one another at once."""
    file, content = page.directory.container.file, frame.data.cast("B")
    begin, end, place = segments[0].offset, segments[0].offset, 0
    for segment in [*segments, None]:
        if segment is not None and segment.offset == end:
            end += segment.length
            continue
        file.seek(begin)
        part = content[place : place + end - begin]
        if (got := fill(file, part)) != len(part):
            raise truncated("its pixels", end, begin + got)
        if segment is not None:
            place += end - begin
            begin, end = segment.offset, segment.offset + segment.length


def _decoded(page: Page, segments: list[_Segment]) -> NDArray[Any]:
    container, native = page.directory.container, page.dtype.newbyteorder("=")
    predictor = page.directory.number(PREDICTOR, 1) if page.compression != UNCOMPRESSED else 1
    if predictor not in (1, _HORIZONTAL_PREDICTOR, _FLOATING_PREDICTOR) or (
        predictor == _FLOATING_PREDICTOR and page.dtype.kind != "f"
    ):
        raise FrameError(f"TIFF of {page.dtype.newbyteorder('=')} with predictor {predictor} is not supported")
    decode = _decoder(page.compression)
    frame = np.empty(page.shape, dtype=native)
    for i, segment in enumerate(segments):
        need = segment.shape[0] * segment.shape[1] * page.dtype.itemsize
        packed = container.at(segment.offset, segment.length, f"part {i + 1}")
        try:
            content = decode(packed, need)
        except (ValueError, RuntimeError, zlib.error, lzma.LZMAError) as error:
            raise damaged(f"part {i + 1} of {len(segments)} of its pixels cannot be decoded") from error
        if len(content) != need:
            raise damaged(f"part {i + 1} of {len(segments)} of its pixels decodes to {len(content)} of {need} bytes")
        pixels = _unpredicted(content, segment.shape, page.dtype, predictor)
        target = frame[segment.row :, segment.column :][: segment.shape[0], : segment.shape[1]]
        target[...] = pixels[: target.shape[0], : target.shape[1]]
    return frame


def _unpredicted(content: bytes, shape: tuple[int, int], dtype: np.dtype[Any], predictor: int) -> NDArray[Any]:
    """Pixels (row, column) in the native byte order."""
    native = dtype.newbyteorder("=")
    if predictor == _FLOATING_PREDICTOR:
        # Differences of the bytes of a row, the most significant bytes of all pixels first.
        rows = np.frombuffer(content, np.uint8).reshape(shape[0], -1)
        planes = np.cumsum(rows, axis=1, dtype=np.uint8).reshape(shape[0], dtype.itemsize, shape[1])
        return np.ascontiguousarray(planes.transpose(0, 2, 1)).view(dtype.newbyteorder(">"))[..., 0].astype(native)
    pixels = np.frombuffer(content, dtype).reshape(shape)
    if predictor == _HORIZONTAL_PREDICTOR:
        whole = np.dtype(f"u{dtype.itemsize}")
        unsigned = pixels.view(whole.newbyteorder(dtype.byteorder)).astype(whole)
        return np.cumsum(unsigned, axis=1, dtype=whole).view(native)
    return pixels.astype(native, copy=False)


def _decoder(compression: int) -> Callable[[bytes, int], bytes]:
    """What unpacks one part of a page into a number of bytes, and no more."""
    if compression == UNCOMPRESSED:
        return lambda packed, need: packed[:need]
    if compression in (DEFLATE, OLD_DEFLATE):
        return _inflated
    if compression == LZMA:
        return _from_lzma
    import imagecodecs  # late: few frames need it

    return {LZW: _limited(imagecodecs.lzw_decode), PACKBITS: _packbits, ZSTD: _limited(imagecodecs.zstd_decode)}[
        compression
    ]


def _limited(decode: Callable[..., Any]) -> Callable[[bytes, int], bytes]:
    return lambda packed, need: bytes(decode(packed, out=need))


def _inflated(packed: bytes, need: int) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(packed, need)
    # To the end, where the checksum is.
    stream.decompress(stream.unconsumed_tail, 1)
    return content


def _from_lzma(packed: bytes, need: int) -> bytes:
    return lzma.LZMADecompressor(memlimit=limits.MAX_UNPACKED_BYTES).decompress(packed, need)


def _packbits(packed: bytes, need: int) -> bytes:
    import imagecodecs

    # A last strip may have been filled up.
    return bytes(imagecodecs.packbits_decode(packed, out=2 * need))[:need]
