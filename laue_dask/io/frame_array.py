"""The frames of a scan store on disk: written by whole shards, read by chunks, and never silently lost."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray

from laue_dask.errors import ComputeError, StoreError
from laue_dask.io.block_files import BlockFiles
from laue_dask.io.blocks import block_size
from laue_dask.io.output_paths import disk_full_error, is_disk_full
from laue_dask.io.shard_file import ShardFiles

TARGET_SHARD_BYTES = 128 * 2**20
TARGET_CHUNK_BYTES = 256 * 2**10


class Layout(NamedTuple):
    """Frames per chunk and per shard, and one sentence that says why."""

    chunk_frames: int
    shard_frames: int
    why: str


def frame_layout(frame_shape: tuple[int, int], dtype: DTypeLike, n: int) -> Layout:
    """Return how `n` frames are cut into chunks and shards.

    A chunk is one frame, so that looking at a delegate reads nothing else; where frames are tiny it is as many (a power
    of two) as fit into 256 KiB. A shard is the largest power of two of frames whose raw size is at most 128 MiB and
    that a block of work holds: a block is whole shards, which one task writes.
    """
    size = max(1, int(np.prod(frame_shape)) * np.dtype(dtype).itemsize)
    shard = min(_power_of_two(TARGET_SHARD_BYTES // size), block_size(n))
    chunk = min(shard, _power_of_two(TARGET_CHUNK_BYTES // size))
    why = (
        f"{n} frames of {size / 2**20:.3g} MiB: {chunk} per chunk, {shard} per shard "
        f"of {shard * size / 2**20:.3g} MiB, {-(-n // shard)} shards"
    )
    return Layout(chunk, shard, why)


class FrameArray:
    """Array `frames` (pattern, row, column) of a scan store.

    Parameters
    ----------
    folder
        The store, for messages and to see whether a shard is there.
    array
        Its array `frames`.
    seals
        Of its shards, each of which is held against its own before it is read; None while they are written.
    """

    def __init__(self, folder: Path, array: zarr.Array[Any], seals: Mapping[int, int] | None = None) -> None:
        self.folder = folder
        self.array = array
        self.shard_frames = int((array.shards or array.chunks)[0])
        self.chunk_frames = int(array.chunks[0])
        self.files = BlockFiles(array)
        self._seals = seals
        self._sealed: dict[int, tuple[int, ...]] = {}
        self._shards = ShardFiles.of(array)

    @contextmanager
    def writing(self, start: int, count: int) -> Iterator[Callable[[NDArray[Any]], None]]:
        """Write exactly one shard; see `ScanStore.writing_frames`."""
        unit, n = self.shard_frames, self.array.shape[0]
        if start % unit or not 0 <= start < n or count != min(unit, n - start):
            raise ValueError(f"frames {start} to {start + count} are not one shard of {unit} among {n}")
        shape, dtype, added = self.array.shape[1:], self.array.dtype, 0
        try:
            with self._writing_shard(start, count) as write:

                def add(stack: NDArray[Any]) -> None:
                    nonlocal added
                    if stack.shape[1:] != shape or stack.dtype != dtype:
                        raise ValueError(f"{stack.shape[1:]} {stack.dtype} frames in a store of {shape} {dtype}")
                    if len(stack) != min(self.chunk_frames, count - added):
                        raise ValueError(f"{len(stack)} frames after {added} of {count} are not a chunk")
                    write(np.ascontiguousarray(stack))
                    added += len(stack)

                yield add
                if added != count:
                    raise ValueError(f"{added} of the {count} frames of a shard were written")
        except OSError as error:
            if is_disk_full(error):
                raise disk_full_error(error, self.folder) from error
            raise ComputeError(f"{self.folder}: frames cannot be written: {error.strerror or error}") from error

    @contextmanager
    def _writing_shard(self, start: int, count: int) -> Iterator[Callable[[NDArray[Any]], None]]:
        if self._shards is not None:
            with self._shards.writing(self._key(start // self.shard_frames)) as write:
                yield write
        else:
            parts: list[NDArray[Any]] = []
            yield lambda stack: parts.append(stack.copy())
            # A shard of zeros is written as well: one that is not there is one that was lost.
            self.array.with_config({"write_empty_chunks": True})[start : start + count] = np.concatenate(parts)

    def read(self, start: int, stop: int, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read frames chunk by chunk, so that no more than a chunk is in memory twice; see `ScanStore.read_frames`."""
        if out is None:
            out = np.empty((stop - start, *self.array.shape[1:]), dtype=self.array.dtype)
        for shard in range(start - start % self.shard_frames, stop, self.shard_frames):
            self._check_shard(shard)
            end = min(shard + self.shard_frames, self.array.shape[0])
            for first, last in self._runs(max(start, shard), min(stop, end)):
                self._read(first, last, out[first - start : last - start])
        return out[: stop - start]

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Parts of a shard: runs of whole chunks, and parts of one chunk."""
        unit = self.chunk_frames
        while start < stop:
            in_chunk = start % unit or stop - start < unit
            last = min(stop, start - start % unit + unit) if in_chunk else stop - stop % unit
            yield start, last
            start = last

    def _read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        whole = start % self.chunk_frames == 0 and (stop - start) % self.chunk_frames == 0
        try:
            if self._shards is not None and whole and out.flags.c_contiguous:
                place = start % self.shard_frames // self.chunk_frames
                self._shards.read(self._key(start // self.shard_frames), place, out)
            else:
                out[...] = self.array[start:stop]
        except MemoryError:
            raise
        except Exception as error:
            reason, frames = " ".join(str(error).split()), f"frames {start} to {stop - 1}"
            raise StoreError(f"{self.folder}: {frames} are damaged ({reason}): ingest again") from error

    def check_whole(self) -> None:
        """Raise `StoreError` unless every shard is there."""
        for start in range(0, self.array.shape[0], self.shard_frames):
            self._check_shard(start)

    def _key(self, block: int) -> str:
        return self.array.metadata.encode_chunk_key((block, 0, 0))

    def _check_shard(self, start: int) -> None:
        """A shard that is gone would be read as zeros without a word, one in another's place as that one."""
        block = start // self.shard_frames
        try:
            found = self.files.path(block).stat()
        except OSError as error:
            key = self._key(block)
            raise StoreError(
                f"{self.folder}: the shard of frames {start}, … is missing ({key}): ingest again"
            ) from error
        state = (found.st_ino, found.st_size, found.st_mtime_ns)
        if self._seals is None or self._sealed.get(block) == state:
            return
        seal = self._seals.get(block)
        fault = "has no receipt" if seal is None else self.files.fault(block, seal)
        if fault:
            where = f"frames {start} to {min(start + self.shard_frames, self.array.shape[0]) - 1} are damaged"
            raise StoreError(f"{self.folder}: {where}: {self._key(block)} {fault}: ingest again")
        self._sealed[block] = state


def _power_of_two(limit: int) -> int:
    return 1 << max(1, limit).bit_length() - 1
