"""CBF frames as PILATUS and EIGER write them. A header's claims are checked against the file, pixels against both."""

import base64
import hashlib
import os
import re
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import FrameError
from laue_dask.io import headers
from laue_dask.io.headers import Header
from laue_dask.io.limits import Expected, require_frame

MAGIC = b"###CBF"
MAX_HEADER_BYTES = 2**20
"""In which the pixels must begin."""

_TYPICAL_HEADER_BYTES = 16384

_BINARY_MARKER = b"\x0c\x1a\x04\xd5"
_SECTION_MARKER = b"--CIF-BINARY-FORMAT-SECTION--"
_DTYPES = {
    f"{sign} {bits}-bit integer": f"{kind}{bits // 8}"
    for sign, kind in (("signed", "i"), ("unsigned", "u"))
    for bits in (8, 16, 32, 64)
}
_BYTE_OFFSET_CONVERSION = "x-cbf_byte_offset"


class _Section:
    """The header of a CBF's binary section."""

    def __init__(self, file: BinaryIO) -> None:
        file.seek(0)
        content = file.read(_TYPICAL_HEADER_BYTES)
        if _BINARY_MARKER not in content:
            content += file.read(MAX_HEADER_BYTES - len(content))
        head, marker, _ = content.partition(_BINARY_MARKER)
        if not head:
            raise FrameError("is empty")
        if not head.startswith(MAGIC[: len(head)]):
            raise FrameError("is not a CBF file")
        begun = head.find(_SECTION_MARKER)
        if not marker or begun < 0:
            raise FrameError("truncated or damaged CBF: its binary section is not there")
        self.start = len(head) + len(_BINARY_MARKER)
        self.text = head.decode("utf-8", errors="replace")
        self._section = head[begun:].decode("ascii", errors="replace")
        self.bytes = self._number("X-Binary-Size")
        rows, columns = self._number("X-Binary-Size-Second-Dimension"), self._number("X-Binary-Size-Fastest-Dimension")
        for name, allowed in (
            ("conversions", _BYTE_OFFSET_CONVERSION),
            ("Content-Transfer-Encoding", "binary"),
            ("X-Binary-Element-Byte-Order", "little_endian"),
            ("X-Binary-Size-Third-Dimension", "1"),
        ):
            if (value := self._value(name, allowed)).lower() != allowed:
                raise FrameError(f"CBF of {name} {value!r} is not supported")
        kind = self._value("X-Binary-Element-Type", "")
        if kind.lower() not in _DTYPES:
            raise FrameError(f"CBF of {kind or 'unnamed'!r} pixels is not supported")
        self.shape, self.dtype = (rows, columns), np.dtype(_DTYPES[kind.lower()])
        elements = self._number("X-Binary-Number-of-Elements", rows * columns)
        if elements != rows * columns:
            raise FrameError(f"damaged CBF: its header claims {elements} pixels, and {rows} × {columns} of them")
        require_frame(self.shape, self.dtype)
        # A pixel takes a byte or more.
        if elements > self.bytes:
            raise FrameError(f"damaged CBF: its header claims {rows} × {columns} pixels in {self.bytes} bytes")
        self.digest = self._value("Content-MD5", "")

    def _value(self, name: str, default: str) -> str:
        found = re.search(rf'{name}\s*[:=]\s*"?([^"\r\n;]*)', self._section)
        return found[1].strip() if found else default

    def _number(self, name: str, default: int | None = None) -> int:
        text = self._value(name, "" if default is None else str(default))
        if not re.fullmatch(r"\d{1,18}", text):
            raise FrameError(f"damaged CBF: its header has no {name}")
        return int(text)


def read_info(file: BinaryIO) -> tuple[tuple[int, int], np.dtype[Any], Header]:
    """Return the shape, dtype and header of an open CBF, whose pixels are not read.

    Raises
    ------
    FrameError
        It is damaged, or of a kind that is not read.
    """
    section = _Section(file)
    return section.shape, section.dtype, headers.from_text(section.text)


def read_frame(file: BinaryIO, index: int | None, *, expected: Expected | None = None) -> tuple[NDArray[Any], Header]:
    """Return the frame of an open CBF and its header.

    Parameters
    ----------
    expected
        Nothing is allocated for a frame that is not like this.

    Raises
    ------
    FrameError
        It is truncated or damaged, of a kind that is not read, or not the expected one.
    """
    if index:
        raise FrameError(f"frame {index} is not in the file, which ends at 0")
    section = _Section(file)
    require_frame(section.shape, section.dtype, expected)
    size = file.seek(0, os.SEEK_END)
    if section.start + section.bytes > size:
        raise FrameError(
            f"truncated CBF: its pixels would end at byte {section.start + section.bytes}, the file ends at {size}"
        )
    file.seek(section.start)
    binary = file.read(section.bytes)
    if section.digest:
        found = base64.b64encode(hashlib.md5(binary, usedforsecurity=False).digest()).decode()
        if found != section.digest:
            raise FrameError("damaged CBF: its checksum is not the one in its header")
    from laue_dask.io.byte_offset import unpack  # late: it is compiled

    frame = np.empty(section.shape, section.dtype)
    used = unpack(np.frombuffer(binary, np.uint8), frame.reshape(-1))
    if used < 0 or binary[used:].strip(b"\0"):
        raise FrameError(
            f"damaged CBF: its {section.bytes} bytes hold {'fewer' if used < 0 else 'more'} than "
            f"{section.shape[0]} × {section.shape[1]} pixels"
        )
    return frame, headers.from_text(section.text)
