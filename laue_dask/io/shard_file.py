"""Zarr v3 shards, decoded straight into the caller's memory and written straight from it.

Zarr's own codec pipeline allocates and copies every chunk several times, which costs as much as the compression. Frames
are nearly all that is ever read and written, so the one layout that `schema.create` makes (Blosc, CRC-32C, an index at
the end of the shard) is dealt with here without copies; what is written is what Zarr would have written, byte by byte,
and an array of any other layout is left to Zarr.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Self, cast

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BloscShuffle, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.codecs.bytes import Endian
from zarr.codecs.sharding import ShardingCodecIndexLocation
from zarr.storage import LocalStore

CRC_BYTES = 4
"""Of the CRC-32C behind a chunk and behind an index."""

_MISSING_CHUNK = np.iinfo(np.uint64).max

_BLOSC_SHUFFLES = {
    BloscShuffle.noshuffle: blosc.NOSHUFFLE,
    BloscShuffle.shuffle: blosc.SHUFFLE,
    BloscShuffle.bitshuffle: blosc.BITSHUFFLE,
}


class ShardFiles:
    """Shards, along the first axis alone, of an array on a local disk.

    Parameters
    ----------
    folder
        Of the array.
    chunk, chunks
        Rows of a chunk, and chunks of a shard.
    row
        Shape of a row.
    packing
        The array's own.
    """

    def __init__(
        self, folder: Path, dtype: np.dtype[Any], chunk: int, chunks: int, row: tuple[int, ...], packing: BloscCodec
    ) -> None:
        self.folder, self.dtype, self.chunk, self.chunks, self.row = folder, dtype, chunk, chunks, row
        self.packing = packing

    @classmethod
    def of(cls, array: zarr.Array[Any]) -> Self | None:
        """Return the shards of an array, or None where their layout is not the one that can be read here."""
        # The public `Array` says all of this only through its asynchronous twin's metadata.
        codecs = tuple(getattr(array.metadata, "codecs", ()))
        store = array.store_path.store
        if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec) or not isinstance(store, LocalStore):
            return None
        shard = codecs[0]
        inner = tuple(type(codec) for codec in shard.codecs)
        index = tuple(type(codec) for codec in shard.index_codecs)
        ordered = [codec for codec in (*shard.codecs, *shard.index_codecs) if isinstance(codec, BytesCodec)]
        plain = (
            inner == (BytesCodec, BloscCodec, Crc32cCodec)
            and index == (BytesCodec, Crc32cCodec)
            and all(codec.endian in (Endian.little, None) for codec in ordered)
            and shard.index_location is ShardingCodecIndexLocation.end
            and array.dtype.newbyteorder("<") == array.dtype
            and array.shards is not None
            and array.shards[1:] == array.chunks[1:] == array.shape[1:]
        )
        if not plain:
            return None
        chunk, unit = array.chunks[0], cast(tuple[int, ...], array.shards)[0]
        packing = cast(BloscCodec, shard.codecs[1])
        if packing.typesize != array.dtype.itemsize:
            return None
        return cls(Path(store.root) / array.path, array.dtype, chunk, unit // chunk, array.shape[1:], packing)

    @contextmanager
    def writing(self, key: str) -> Iterator[Callable[[NDArray[Any]], None]]:
        """Write a shard chunk by chunk; it is there at the end of the block, whole, or else nothing of it.

        Parameters
        ----------
        key
            Of the shard, below the array's folder.

        Yields
        ------
        add
            Takes the rows of the next chunk, contiguous and of the array's dtype; of the last one those that there are.

        Raises
        ------
        OSError
            The shard cannot be written.
        """
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        index: list[tuple[int, int]] = []
        try:
            with partial.open("wb", buffering=0) as file:

                def add(rows: NDArray[Any]) -> None:
                    packed = self._packed(rows)
                    index.append((file.tell(), len(packed) + CRC_BYTES))
                    _write(file, packed, _crc(packed))

                yield add
                missing = [(_MISSING_CHUNK, _MISSING_CHUNK)] * (self.chunks - len(index))
                table = np.array(index + missing, dtype="<u8").tobytes()
                _write(file, table, _crc(table))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _packed(self, rows: NDArray[Any]) -> bytes:
        if len(rows) < self.chunk:  # the rest of the array's last chunk is fill
            rows = np.concatenate([rows, np.zeros((self.chunk - len(rows), *self.row), dtype=self.dtype)])
        how = self.packing
        flat = rows.reshape(-1)
        shuffle = _BLOSC_SHUFFLES[how.shuffle]
        packed: bytes = blosc.compress(flat, how.cname.value.encode(), how.clevel, shuffle, how.blocksize)
        return packed

    def read(self, key: str, first: int, out: NDArray[Any]) -> None:
        """Decode consecutive chunks of one shard.

        Parameters
        ----------
        key
            Of the shard, below the array's folder.
        first
            First chunk.
        out : (rows, ...)
            Contiguous, of the array's dtype, as many whole chunks as it holds.

        Raises
        ------
        OSError
            The shard cannot be read.
        ValueError
            It is cut, or a chunk is missing or damaged.
        """
        size = self.chunk * int(np.prod(self.row)) * self.dtype.itemsize
        with (self.folder / key).open("rb", buffering=0) as file:
            descriptor = file.fileno()
            index = self._index(descriptor)
            into = out.reshape(-1).view(np.uint8)
            for place in range(len(out) // self.chunk):
                offset, length = (int(value) for value in index[first + place])
                if offset == _MISSING_CHUNK:
                    raise ValueError(f"chunk {first + place} is missing")
                packed = memoryview(os.pread(descriptor, length, offset))
                _check(packed, length, f"chunk {first + place}")
                if int.from_bytes(packed[4:8], "little") != size:  # of the Blosc header; less would leave old bytes
                    raise ValueError(f"chunk {first + place} does not hold {size} bytes")
                blosc.decompress(packed[:-CRC_BYTES], into[place * size : (place + 1) * size])

    def checksums(self, descriptor: int) -> bytes:
        """Return the index of an open shard and the checksum behind each of its chunks, without reading the chunks.

        Raises
        ------
        OSError, ValueError
            The shard cannot be read, or its index is cut or damaged.
        """
        index = self._index(descriptor)
        closing = [
            os.pread(descriptor, CRC_BYTES, int(offset + length) - CRC_BYTES)
            for offset, length in index
            if offset != _MISSING_CHUNK and CRC_BYTES < length < _MISSING_CHUNK - offset
        ]
        return b"".join([index.tobytes(), *closing])

    def check(self, path: Path) -> None:
        """Read a whole shard: every byte belongs to a chunk or to the index, and has its checksum.

        Raises
        ------
        OSError, ValueError
            That is not so.
        """
        with path.open("rb", buffering=0) as file:
            descriptor = file.fileno()
            index, end = self._index(descriptor), 0
            for offset, length in sorted((int(a), int(b)) for a, b in index if a != _MISSING_CHUNK):
                if offset != end:
                    raise ValueError(f"bytes {min(offset, end)} to {max(offset, end)} belong to no chunk, or to two")
                _check(memoryview(os.pread(descriptor, length, offset)), length, f"the chunk at byte {offset}")
                end = offset + length
            if end + 16 * self.chunks + CRC_BYTES != os.fstat(descriptor).st_size:
                raise ValueError(f"bytes after {end} belong to no chunk")

    def _index(self, descriptor: int) -> NDArray[np.uint64]:
        """Offset and length of every chunk."""
        length = 16 * self.chunks + CRC_BYTES
        end = os.fstat(descriptor).st_size
        packed = memoryview(os.pread(descriptor, length, max(0, end - length)))
        _check(packed, length, "the index")
        return np.frombuffer(packed[:-CRC_BYTES], dtype="<u8").reshape(-1, 2)


def _write(file: FileIO, *parts: bytes) -> None:
    """Write all of it: the system may take less at once."""
    for part in parts:
        view, done = memoryview(part), 0
        while done < len(view):
            done += file.write(view[done:])


def _crc(content: bytes) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(CRC_BYTES, "little")


def _check(packed: memoryview, length: int, what: str) -> None:
    """Raise `ValueError` unless the CRC-32C that closes what was read is right."""
    if len(packed) != length or length <= CRC_BYTES:
        raise ValueError(f"{what} is cut")
    stored = int.from_bytes(packed[-CRC_BYTES:], "little")
    computed = int(google_crc32c.value(np.frombuffer(packed[:-CRC_BYTES], np.uint8)))
    if computed != stored:
        raise ValueError(f"checksum of {what} is {computed:08x}, {stored:08x} is stored")
