"""The identity of a frame's source: size and time of the file that holds its pixels, and their checksum.

Size and time cost nothing to compare. Where they differ, the checksum of the pixels decides: a copy of a scan has other
times, and the frames of a stack that has grown are still those that they were.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import FrameError
from laue_dask.io import hdf5
from laue_dask.io.block_files import checksum
from laue_dask.io.deadline import DEADLINES_PER_LISTING, ReadTimeoutError, call_with_deadline
from laue_dask.io.frames import FrameRef, load
from laue_dask.io.limits import Expected
from laue_dask.io.shards import check_frame

UNKNOWN_SIZE_OR_TIME = -1
"""Size and time of a file that was not there, or that nobody looked at."""

_MAX_SHIFT_BYTES = 1024
"""Bytes up to which `_shifts` takes them as they are."""

_MAX_CACHED_DATASETS = 64
"""HDF5 datasets whose files are remembered."""


@dataclass(frozen=True)
class State:
    """What tells a file that changed: its size in bytes and its time of change in ns."""

    path: str
    size: int
    changed: int

    @classmethod
    def of(cls, path: str) -> "State | None":
        """Return the state of a file as it is now; None where there is no file."""
        try:
            found = os.stat(path)  # noqa: PTH116  of thousands of files at a look
        except OSError:
            return None
        return cls(path, found.st_size, found.st_mtime_ns)

    @property
    def lasts(self) -> bool:
        """Whether the file still is as it was."""
        return State.of(self.path) == self


class Stamp(NamedTuple):
    """Size in bytes and time of change, in ns since 1970, of what holds a frame; of several files the sum and the last.

    Both are `UNKNOWN_SIZE_OR_TIME` where a file is missing.
    """

    size: int
    time: int

    @property
    def known(self) -> bool:
        """Whether there was a file that somebody looked at."""
        return self.size != UNKNOWN_SIZE_OR_TIME

    def __str__(self) -> str:
        if not self.known:
            return "no file"
        when = datetime.fromtimestamp(self.time / 1e9).isoformat(sep=" ", timespec="milliseconds")
        return f"{self.size:,} bytes of {when}"


UNKNOWN_STAMP = Stamp(UNKNOWN_SIZE_OR_TIME, UNKNOWN_SIZE_OR_TIME)


@dataclass(frozen=True)
class Identity:
    """What is known of the source of each pattern.

    Attributes
    ----------
    size, time : (pattern,) int64
        See `Stamp`.
    checksum : (pattern,) uint32
        CRC-32C of the frame's pixels as they were read; of zeros where nothing was recorded or the frame was set aside.
    """

    size: NDArray[np.int64]
    time: NDArray[np.int64]
    checksum: NDArray[np.uint32]

    def stamp(self, pattern: int) -> Stamp:
        """Return the size and time of one pattern's source."""
        return Stamp(int(self.size[pattern]), int(self.time[pattern]))


FILES_PER_DEADLINE = 1000
"""Files that are asked in the time for one."""


def stamps_of(refs: Iterable[FrameRef | None]) -> list[Stamp]:
    """Return the size and time of the files that hold frames as they are now; each file is asked once.

    Of a file system that does not answer nothing is known, as of files that are gone.
    """
    refs = list(refs)
    asked: dict[str, Stamp] = {}
    first = next((ref.path for ref in refs if ref is not None), "")
    try:
        return call_with_deadline(
            lambda: [UNKNOWN_STAMP if ref is None else _stamp(ref, asked) for ref in refs],
            first,
            deadlines=DEADLINES_PER_LISTING if len(refs) > FILES_PER_DEADLINE else 1,
        )
    except ReadTimeoutError:
        return [UNKNOWN_STAMP] * len(refs)


def _stamp(ref: FrameRef, asked: dict[str, Stamp]) -> Stamp:
    path = _file(ref.path, asked)
    if ref.dataset is None or not path.known:
        return path
    held = _held(ref.path, ref.dataset, *path)
    files = [_file(one, asked) for one in held.of(ref.index or 0)]
    if not all(one.known for one in files):
        return UNKNOWN_STAMP
    return Stamp(sum(one.size for one in files), max(one.time for one in files))


def _file(path: str, asked: dict[str, Stamp]) -> Stamp:
    if path not in asked:
        state = State.of(path)
        asked[path] = UNKNOWN_STAMP if state is None else Stamp(state.size, state.changed)
    return asked[path]


class _Held:
    """Files that hold the frames of a dataset."""

    def __init__(self, path: str, parts: Sequence[tuple[int, int, str]]) -> None:
        self._path = path
        self._first = np.array([first for first, _, _ in parts], dtype=np.int64)
        self._last = np.array([last for _, last, _ in parts], dtype=np.int64)
        self._files = [file for _, _, file in parts]

    def of(self, frame: int) -> list[str]:
        places = np.flatnonzero((self._first <= frame) & (frame <= self._last))
        return list(dict.fromkeys(self._files[place] for place in places)) or [self._path]


@lru_cache(maxsize=_MAX_CACHED_DATASETS)
def _held(path: str, dataset: str, size: int, time: int) -> _Held:
    """Files of a dataset, as long as the file that links to them is the same."""
    try:
        return _Held(path, hdf5.parts(path, dataset))
    except Exception:
        return _Held(path, [])  # what is wrong with it is said by whoever reads it


# Pixels


def joined(before: int, added: int, length: int) -> int:
    """Return the CRC-32C of some bytes with `length` more behind them, from the CRC-32C of each."""
    return added ^ _shifted(before, _shifts(length))


def _shifted(crc: int, columns: Sequence[int]) -> int:
    found = place = 0
    while crc:
        if crc & 1:
            found ^= columns[place]
        crc >>= 1
        place += 1
    return found


@lru_cache(maxsize=256)
def _shifts(length: int) -> tuple[int, ...]:
    """What becomes of each bit of a CRC-32C when `length` bytes follow, which is linear in them."""
    if length > _MAX_SHIFT_BYTES:
        half, one = _shifts(length // 2), _shifts(length % 2)
        return tuple(_shifted(_shifted(column, half), one) for column in half)
    zeros = bytes(length)
    constant = google_crc32c.value(zeros)
    return tuple(google_crc32c.extend(1 << bit, zeros) ^ constant for bit in range(32))


def difference(
    ref: FrameRef, expected: int, mask: NDArray[np.bool_], dtype: np.dtype[Any], *, usable: bool = True
) -> str:
    """Read a frame again: why it is not the one that was read before, empty where it is.

    Parameters
    ----------
    expected
        CRC-32C of its pixels.
    mask, dtype
        Of the scan; see `io.shards.check_frame`.
    usable
        Whether it could be used before.
    """
    try:
        frame = load(ref, expected=Expected(mask.shape, dtype))[0]
        check_frame(frame, mask, dtype)
    except FrameError as error:
        return str(error) if usable else ""
    if not usable:
        return "can be used now"
    return "" if checksum(frame) == expected else "other pixels"
