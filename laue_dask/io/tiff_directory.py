"""The directories of a TIFF, in either byte order and of either size: bounded work whatever a file says of itself.

A directory is read in one piece and its values only when they are asked for. Directories that do not overlap cannot be
more than the file has room for, so that a walk along them ends.
"""

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from laue_dask.errors import FrameError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HEAD_BYTES = 4096
"""The beginning of a file that is read at once; a MarCCD header is as long."""

MAX_DIRECTORIES = 2**16
MAX_TAGS_PER_DIRECTORY = 4096
"""Tags of one directory."""

MAX_TEXT_BYTES = 2**20
"""Of a description; the rest is not looked at."""

_STRUCT_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_COMMON_TYPE_BYTES = {3: 2, 4: 4}
"""Bytes of nearly all numbers, by their type."""

_TEXT_TYPES = (1, 2, 7)


def truncated(what: str, end: int, size: int) -> FrameError:
    """Return the reason for a file that is shorter than it says."""
    return FrameError(f"truncated TIFF: {what} would end at byte {end}, the file ends at {size}")


def damaged(what: str) -> FrameError:
    """Return the reason for a file that contradicts itself."""
    return FrameError(f"damaged TIFF: {what}")


class Container:
    """An open TIFF.

    Attributes
    ----------
    file, size
        The file and its bytes.
    head
        Its first bytes.
    identity
        What tells whether it is the file that was read before; None of one that is in memory.
    order
        `<` or `>`.
    big
        Whether it is a BigTIFF.
    first
        Byte at which the first directory begins.

    Raises
    ------
    FrameError
        It is empty, too short to be a TIFF, or none.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.identity: tuple[int, ...] | None = None
        if isinstance(file, io.FileIO):
            status = os.fstat(file.fileno())
            self.size = status.st_size
            self.identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        else:
            self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self.head = head = file.read(HEAD_BYTES)
        if not head:
            raise FrameError("is empty")
        if len(head) < 16 and MAGIC[0].startswith(head[:2]) | MAGIC[1].startswith(head[:2]):
            raise truncated("its first directory", 16, self.size)
        if head[:4] not in MAGIC:
            raise FrameError("is not a TIFF file")
        self.order = "<" if head[:2] == b"II" else ">"
        self.big = b"+" in head[:4]
        self.first = int(struct.unpack_from(self.order + ("Q" if self.big else "I"), head, 8 if self.big else 4)[0])
        self._entry = struct.Struct(self.order + ("HHQ8s" if self.big else "HHI4s"))
        self._link = struct.Struct(self.order + ("Q" if self.big else "I"))
        self._last: Directory | None = None
        self._count = struct.Struct(self.order + ("Q" if self.big else "H"))

    def at(self, offset: int, length: int, what: str) -> bytes:
        """Return `length` bytes of the file; raises `FrameError` where it ends before them."""
        end = offset + length
        if end > self.size:
            raise truncated(what, end, self.size)
        if end <= len(self.head):
            return self.head[offset:end]
        self.file.seek(offset)
        content = self.file.read(length)
        if len(content) != length:
            raise truncated(what, end, offset + len(content))
        return content

    def directory(self, offset: int) -> "Directory":
        """Return the directory at a byte of the file."""
        if self._last is not None and self._last.start == offset:
            return self._last
        if offset < 8:
            raise damaged(f"a directory at byte {offset}")
        count = self._count.unpack(self.at(offset, self._count.size, "a directory"))[0]
        if not 0 < count <= MAX_TAGS_PER_DIRECTORY:
            raise damaged(f"a directory of {count} tags")
        start, length = offset + self._count.size, count * self._entry.size
        block = self.at(start, length + self._link.size, "a directory")
        entries = {
            tag: (kind, values, inline)
            for tag, kind, values, inline in self._entry.iter_unpack(memoryview(block)[:length])
        }
        link = self._link.unpack(block[length:])[0]
        self._last = Directory(self, offset, start + length + self._link.size, entries, link)
        return self._last

    def directories(self) -> Iterator["Directory"]:
        """Return all directories that are linked to, in order.

        Raises
        ------
        FrameError
            They overlap or link to each other in a circle, or there are more than `MAX_DIRECTORIES`.
        """
        spans: list[tuple[int, int]] = []
        offset, total = self.first, 0
        while offset or not spans:
            found = self.directory(offset)
            spans.append((found.start, found.end))
            offset = found.link
            total += found.end - found.start
            if total > self.size:
                raise damaged("its directories overlap")
            if len(spans) > MAX_DIRECTORIES:
                raise FrameError(f"TIFF files of more than {MAX_DIRECTORIES} pages are not read")
            yield found
        spans.sort()
        if any(before[1] > after[0] for before, after in pairwise(spans)):
            raise damaged("its directories overlap")


@dataclass(frozen=True, slots=True)
class Directory:
    """One directory.

    Attributes
    ----------
    start, end
        Its bytes in the file.
    entries
        Type, number of values, and values or their place, by tag.
    link
        Byte at which the next directory begins; 0 where there is none.
    """

    container: Container
    start: int
    end: int
    entries: dict[int, tuple[int, int, bytes]]
    link: int

    def __contains__(self, tag: int) -> bool:
        return tag in self.entries

    def length(self, tag: int) -> int:
        """Return the number of values of a tag, as claimed."""
        return self.entries[tag][1] if tag in self.entries else 0

    def number(self, tag: int, default: int) -> int:
        """Return the first value of a tag, which must be a whole number."""
        if tag not in self.entries:
            return default
        kind, values, inline = self.entries[tag]
        if values == 1 and kind in _COMMON_TYPE_BYTES:
            return int.from_bytes(
                inline[: _COMMON_TYPE_BYTES[kind]], "little" if self.container.order == "<" else "big"
            )
        layout = _STRUCT_FORMATS.get(kind, "")
        if layout in "fd" or values < 1:
            raise damaged(f"tag {tag} is not a number")
        width = struct.calcsize(layout)
        if values * width > len(inline):
            inline = self.container.at(self._place(inline), width, f"tag {tag}")
        return int(struct.unpack_from(self.container.order + layout, inline)[0])

    def numbers(self, tag: int, count: int) -> tuple[int, ...]:
        """Return the values of a tag, which must be `count` whole numbers."""
        if tag not in self.entries:
            raise damaged(f"tag {tag} is missing")
        if count == 1 == self.entries[tag][1]:
            return (self.number(tag, 0),)
        kind, values, inline = self.entries[tag]
        layout = _STRUCT_FORMATS.get(kind, "")
        if layout in "fd" or values != count:
            raise damaged(f"tag {tag} has {values} values, {count} are needed")
        width = values * struct.calcsize(layout)
        if width > len(inline):
            inline = self.container.at(self._place(inline), width, f"tag {tag}")
        return struct.unpack_from(f"{self.container.order}{values}{layout}", inline)

    def content(self, tag: int, limit: int = MAX_TEXT_BYTES) -> bytes:
        """Return the bytes of a tag, no more than `limit` of them; none where it is missing or has values of another
        kind.
        """
        kind, values, inline = self.entries.get(tag, (0, 0, b""))
        if kind not in _TEXT_TYPES:
            return b""
        length = min(values, limit)
        if values > len(inline):
            return self.container.at(self._place(inline), length, f"tag {tag}")
        return inline[:length]

    def text(self, tag: int, limit: int = MAX_TEXT_BYTES) -> str:
        """Return the text of a tag; empty where there is none."""
        return self.content(tag, limit).split(b"\0", 1)[0].decode("utf-8", errors="replace")

    def _place(self, inline: bytes) -> int:
        return int(struct.unpack(self.container.order + ("Q" if len(inline) == 8 else "I"), inline)[0])
