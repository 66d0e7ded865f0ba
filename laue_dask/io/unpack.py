"""Packed files (.gz, .bz2) as files of bounded size: a few bytes may unpack to any number of them."""

import bz2
import gzip
import io
import os
from typing import BinaryIO, cast

from laue_dask.errors import FrameError

PACKED_SUFFIXES = (".gz", ".bz2")
_STEP_BYTES = 2**20
_MIN_PACKED_BYTES = 18
"""Of a packed file: what is shorter was cut."""


def is_packed(path: str) -> bool:
    """Return whether a file is packed, by its name."""
    return path.lower().endswith(PACKED_SUFFIXES)


def unpacked(path: str, limit: int) -> BinaryIO:
    """Return the content of a packed file, in memory.

    Raises
    ------
    FrameError
        It is damaged, or holds more than `limit` bytes.
    """
    content = io.BytesIO()
    with _opened(path) as stream:
        try:
            while part := stream.read(_STEP_BYTES):
                content.write(part)
                if content.tell() > limit:
                    raise _too_large(limit)
        except FrameError:
            raise
        except EOFError as error:
            raise FrameError("truncated packed file: it ends before its content does") from error
        except (OSError, ValueError, IndexError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            if os.stat(path).st_size < _MIN_PACKED_BYTES:  # noqa: PTH116
                raise FrameError("truncated packed file: it ends before its content does") from error
            raise FrameError("damaged packed file: it cannot be unpacked") from error
        except Exception as error:  # zlib's own
            raise FrameError("damaged packed file: it cannot be unpacked") from error
    content.seek(0)
    return content


def fill(file: BinaryIO, view: memoryview) -> int:
    """Read bytes of an unbuffered file until `view` is full; how many there were."""
    got = 0
    while got < len(view) and (more := file.readinto(view[got:])):  # type: ignore[attr-defined]
        got += more
    return got


class Beginning(io.RawIOBase):
    """A packed file that is unpacked as far as it is read, for what is at its beginning; it takes no memory.

    Its end is not known: it seems to be at `limit`.
    """

    def __init__(self, path: str, limit: int) -> None:
        self._stream = _opened(path)
        self._limit = limit

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True: going back means to begin again."""
        return True

    def tell(self) -> int:
        """Return the position in the content, in bytes."""
        return int(self._stream.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a byte of the content; raises `FrameError` behind the limit."""
        if whence == os.SEEK_END:
            return self._limit
        if offset > self._limit:
            raise _too_large(self._limit)
        return int(self._stream.seek(offset, whence))

    def read(self, size: int = -1, /) -> bytes:
        """Read no further than to the limit."""
        left = self._limit - self.tell()
        return bytes(self._stream.read(left if size < 0 else min(size, left)))

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        super().close()


def _opened(path: str) -> BinaryIO:
    return cast(BinaryIO, (bz2.open if path.lower().endswith(".bz2") else gzip.open)(path, "rb"))


def _too_large(limit: int) -> FrameError:
    return FrameError(f"unpacks to more than {limit // 2**20} MiB: unpack it, if that is meant")
