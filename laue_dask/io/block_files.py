"""The files of an array on disk that is cut along its first axis alone: a shard each, or a chunk where there are none.

A codec's checksum tells that a chunk is what was written, but not where it was written, nor whether there was one:
Zarr reads a chunk that is gone as fill values, and one that was put in another's place as that one. So every block has
a *seal*, kept in its receipt, which is cheap to compare whenever the block is read.
"""

from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from laue_dask.io.shard_file import CRC_BYTES, ShardFiles


class BlockFiles:
    """The files of an array's blocks.

    Parameters
    ----------
    array
        On a local disk.
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        root, name = location(array)
        self.folder = Path(root) / name
        self.rows = int((array.shards or array.chunks)[0])
        self.count = -(-array.shape[0] // self.rows)
        self._array = array
        self._shards = ShardFiles.of(array)
        codecs = tuple(getattr(array.metadata, "codecs", ()))
        self._closed = array.shards is None and bool(codecs) and isinstance(codecs[-1], Crc32cCodec)

    def path(self, block: int) -> Path:
        """Return the file of a block."""
        return self.folder / self._array.metadata.encode_chunk_key((block, *([0] * (self._array.ndim - 1))))

    def seal(self, block: int) -> int:
        """Return the CRC-32C of what tells a block's file from any other: its size, and the checksums that are inside
        it.

        Where there are none inside it is the CRC-32C of the whole. Together with the codecs' own checks of what they
        decode, an equal seal means an equal file.

        Raises
        ------
        OSError, ValueError
            There is no such file, or it is cut.
        """
        path = self.path(block)
        with path.open("rb", buffering=0) as file:
            size = path.stat().st_size
            if self._shards is not None:
                inside = self._shards.checksums(file.fileno())
            elif self._closed:
                file.seek(max(0, size - CRC_BYTES))
                inside = file.read()
            else:
                inside = file.readall()
        return int(google_crc32c.extend(google_crc32c.value(size.to_bytes(8, "little")), inside))

    def fault(self, block: int, seal: int, *, whole: bool = False) -> str | None:
        """Return what is wrong with a block's file, None where nothing is.

        Parameters
        ----------
        seal
            Of its receipt.
        whole
            Whether to read all of it; otherwise what is decoded later is left to the codecs.
        """
        path = self.path(block)
        try:
            if (found := self.seal(block)) != seal:
                return f"is not the file that was written: its seal is {found:08x}, {seal:08x} was recorded"
            if whole and self._shards is not None:
                self._shards.check(path)
            elif whole and self._closed:
                content = path.read_bytes()
                if google_crc32c.value(content[:-CRC_BYTES]) != int.from_bytes(content[-CRC_BYTES:], "little"):
                    return "does not have its checksum"
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        except ValueError as error:
            return str(error)
        return None

    def sweep(self) -> None:
        """Remove what writers that were killed have left half-written."""
        for left in self.folder.rglob("*.partial"):
            left.unlink(missing_ok=True)


def location(array: zarr.Array[Any]) -> tuple[str, str]:
    """Return the path of an array's store, and the array's name in it: what a task needs to open it again."""
    return str(array.store_path.store.root), array.path  # type: ignore[attr-defined]


def checksum(values: NDArray[Any], before: int = 0) -> int:
    """Return the CRC-32C of an array's bytes, behind others of checksum `before`: processors have an instruction for
    it.
    """
    return int(google_crc32c.extend(before, np.ascontiguousarray(values).reshape(-1).view(np.uint8)))


def checksum_of_text(text: str) -> str:
    """Return the CRC-32C of a text, 8 hexadecimal digits."""
    return f"{google_crc32c.value(text.encode(errors='replace')):08x}"
