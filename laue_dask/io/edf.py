"""EDF frames of the ESRF, one or several in a file. A header that does not say how to read its pixels is refused.

Libraries fill what is missing with zeros, and take numbers of unknown type or byte order for what is usual.
"""

import bz2
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import FrameError
from laue_dask.io import headers
from laue_dask.io.headers import Header
from laue_dask.io.limits import Expected, require_frame, require_on_disk
from laue_dask.io.unpack import fill

MAX_HEADER_BYTES = 2**20
"""Of one frame."""

MAX_FRAMES_PER_FILE = 2**16

_DTYPES = {
    **dict.fromkeys(("signedbyte", "signed8"), "i1"),
    **dict.fromkeys(("unsignedbyte", "unsigned8"), "u1"),
    **dict.fromkeys(("signedshort", "signed16"), "i2"),
    **dict.fromkeys(("unsignedshort", "unsigned16", "unsignedshortinteger"), "u2"),
    **dict.fromkeys(("signedinteger", "signed32", "signedlong"), "i4"),
    **dict.fromkeys(("unsignedinteger", "unsigned32", "unsignedlong"), "u4"),
    "signed64": "i8",
    "unsigned64": "u8",
    **dict.fromkeys(("floatvalue", "float", "floatieee32", "float32"), "f4"),
    **dict.fromkeys(("double", "doublevalue", "floatieee64", "doubleieee64"), "f8"),
}
_BYTE_ORDERS = {"lowbytefirst": "<", "highbytefirst": ">"}
_HEADER_BLOCK_BYTES = 512
_HEADER_END = re.compile(rb"}\r?\n")


@dataclass(frozen=True)
class Block:
    """One frame in a file: its header, and where its pixels begin and how many bytes they take."""

    header: dict[str, str]
    start: int
    bytes: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    packed: str

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels when they are unpacked."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def count(file: BinaryIO) -> int:
    """Return the number of frames in an open EDF."""
    return sum(1 for _ in _blocks(file))


def read_info(file: BinaryIO, index: int | None) -> tuple[tuple[int, int], np.dtype[Any], Header]:
    """Return the shape, native dtype and header of frame `index` of an open EDF (the first if ``None``).

    Raises
    ------
    FrameError
        As `read_frame`.
    """
    block = _block(file, index, alone=False)
    require_frame(block.shape, block.dtype)
    rows, columns = block.shape
    return (rows, columns), block.dtype.newbyteorder("="), headers.from_edf(block.header)


def read_frame(
    file: BinaryIO, index: int | None, *, memory: NDArray[Any] | None = None, expected: Expected | None = None
) -> tuple[NDArray[Any], Header]:
    """Return frame `index` of an open EDF (the only one if ``None``) and its header; dtype in the native byte
    order.

    Parameters
    ----------
    memory : (row, column)
        May be used for the pixels, and is what is returned if it was.
    expected
        Nothing is allocated for a frame that is not like this.

    Raises
    ------
    FrameError
        It is truncated or damaged, of a kind that is not read, not the expected one, or not there.
    """
    block = _block(file, index, alone=index is None)
    require_frame(block.shape, block.dtype, expected)
    size = file.seek(0, os.SEEK_END)
    if block.start + block.bytes > size:
        raise FrameError(
            f"truncated EDF: its pixels would end at byte {block.start + block.bytes}, the file ends at {size}"
        )
    file.seek(block.start)
    if block.packed:
        content = _unpacked(file.read(block.bytes), block.packed, block.nbytes)
        frame: NDArray[Any] = np.frombuffer(content, block.dtype).reshape(block.shape)
    else:
        require_on_disk(file, block.nbytes)
        fits = memory is not None and (memory.shape, memory.dtype) == (block.shape, block.dtype)
        frame = (
            memory if fits and memory is not None and memory.flags.c_contiguous else np.empty(block.shape, block.dtype)
        )
        if fill(file, frame.data.cast("B")) != block.nbytes:
            raise FrameError(f"truncated EDF: the file ends before byte {block.start + block.nbytes}")
    return frame.astype(block.dtype.newbyteorder("="), copy=False), headers.from_edf(block.header)


def _block(file: BinaryIO, index: int | None, *, alone: bool) -> Block:
    found, number = None, 0
    for number, block in enumerate(_blocks(file)):
        if number == (index or 0):
            found = block
            if not alone:
                return block
    if found is None:
        raise FrameError(f"frame {index} is not in the file, which ends at {number}")
    if number:
        raise FrameError(f"holds {number + 1} frames, one was expected")
    return found


def _blocks(file: BinaryIO) -> Iterator[Block]:
    """Every frame of a file, in order; damage behind the first of them ends the walk."""
    general: dict[str, str] = {}
    place, found = 0, 0
    while found < MAX_FRAMES_PER_FILE:
        file.seek(place)
        try:
            known = _header(file, first=not place)
            if known is None:
                return
            header, length = known
            start = place + length
            if "EDF_DataFormatVersion" in header:
                general = {key: value for key, value in header.items() if not key.startswith("EDF_")}
                general = {
                    key: value for key, value in general.items() if key.upper() not in ("SIZE", "IMAGE", "HEADERID")
                }
                place = start + _number(header, "EDF_BinarySize", 0)
                continue
            block = _described({**general, **header}, start)
        except FrameError:
            if found:
                return
            raise
        yield block
        found += 1
        place = block.start + block.bytes
    raise FrameError(f"EDF files of more than {MAX_FRAMES_PER_FILE} frames are not read")


def _header(file: BinaryIO, *, first: bool) -> tuple[dict[str, str], int] | None:
    """Keys of the header that begins here, and its bytes; None at the end of the file."""
    content = bytearray(file.read(_HEADER_BLOCK_BYTES))
    begin = content.lstrip(b" \t\r\n\0")[:1]
    if begin != b"{":
        if first:
            raise FrameError("is not an EDF file" if content else "is empty")
        return None
    looked = 0
    while (end := _HEADER_END.search(content, looked)) is None:
        looked = max(0, len(content) - 2)
        more = file.read(_HEADER_BLOCK_BYTES if len(content) < 8 * _HEADER_BLOCK_BYTES else MAX_HEADER_BYTES // 8)
        if not more:
            raise FrameError("truncated EDF: its header does not end")
        content += more
        if len(content) > MAX_HEADER_BYTES:
            raise FrameError(f"damaged EDF: its header does not end within {MAX_HEADER_BYTES} bytes")
    text = bytes(content[content.index(b"{") + 1 : end.start()]).decode("latin-1")
    pairs = (line.split("=", 1) for line in text.split(";") if "=" in line)
    blank = " \t\r\n\v\f\0"
    return {key.strip(blank): value.strip(blank) for key, value in pairs}, end.end()


def _described(header: dict[str, str], start: int) -> Block:
    """What a header says of its pixels."""
    upper = {key.upper(): value for key, value in header.items()}
    if "EDF_BinaryFileName" in header:
        raise FrameError("EDF whose pixels are in another file is not supported")
    dims = {int(key[4:]): key for key in upper if re.fullmatch(r"DIM_\d{1,18}", key)}
    sides = [_number(upper, f"DIM_{i}", None) for i in (2, 1)]
    beyond = [i for i in dims if i > 2 and _number(upper, dims[i], None) != 1]
    if beyond:
        raise FrameError(f"is not 2-D: its EDF header tells Dim_{beyond[0]} = {upper[dims[beyond[0]]]}")
    shape = (sides[0], sides[1])
    kind, order = upper.get("DATATYPE", ""), upper.get("BYTEORDER", "")
    code = _DTYPES.get(kind.lower(), "")
    if not code:
        raise FrameError(f"EDF of DataType {kind!r} is not supported" if kind else "damaged EDF: it has no DataType")
    if order.lower() not in _BYTE_ORDERS and code[1] != "1":
        raise FrameError(f"damaged EDF: its ByteOrder is {order!r}, not LowByteFirst or HighByteFirst")
    if upper.get("RASTERCONFIGURATION", "1") != "1":
        raise FrameError(
            f"EDF of RasterConfiguration {upper['RASTERCONFIGURATION']} is not supported: programs differ on whether "
            "to turn it; write it with RasterConfiguration 1"
        )
    dtype = np.dtype(_BYTE_ORDERS.get(order.lower(), "<") + code)
    packed = _packing(upper.get("COMPRESSION", "none"))
    need = shape[0] * shape[1] * dtype.itemsize
    held = _number(upper, "EDF_BINARYSIZE", _number(upper, "SIZE", 0 if packed else need))
    if not packed and held < need:
        raise FrameError(
            f"damaged EDF: its header claims {shape[0]} × {shape[1]} pixels of {8 * dtype.itemsize} bits "
            f"in {held} bytes"
        )
    return Block(header, start, held, shape, dtype, packed)


def _packing(name: str) -> str:
    lower = name.lower()
    if lower.startswith("no"):
        return ""
    if lower.startswith(("gz", "z")):
        return "zlib"
    if lower.startswith("bz"):
        return "bzip2"
    raise FrameError(f"{name}-compressed EDF is not supported")


def _unpacked(content: bytes, packing: str, need: int) -> bytes:
    """`need` bytes, and no more."""
    try:
        if packing == "bzip2":
            unpacked = bz2.BZ2Decompressor().decompress(content, need)
        else:
            stream = zlib.decompressobj(47)  # gzip or zlib
            unpacked = stream.decompress(content, need)
            # To the end, where the checksum is.
            stream.decompress(stream.unconsumed_tail, 1)
    except (OSError, zlib.error) as error:
        raise FrameError("damaged EDF: its pixels cannot be unpacked") from error
    if len(unpacked) != need:
        raise FrameError(f"damaged EDF: its pixels unpack to {len(unpacked)} of {need} bytes")
    return unpacked


def _number(header: dict[str, str], name: str, default: int | None) -> int:
    text = header.get(name, "" if default is None else str(default))
    if not re.fullmatch(r"\d{1,12}", text):
        raise FrameError(
            f"damaged EDF: its header tells {name} = {text!r}" if text else f"damaged EDF: it has no {name}"
        )
    return int(text)
