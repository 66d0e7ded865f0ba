"""What a finished store or run consists of: size and CRC-32 of each of its files, but for those of blocks.

Blocks are too many and too large to be read for this: each has a seal in its array's journal (`io.journal`), and the
journals are among the files that are listed here. So one small file vouches for everything.

The CRC is zlib's, of another polynomial than the one which the codecs put behind every chunk: the CRC-32C of anything
with its own CRC-32C behind it is always the same number, which tells no chunk from another of its size.
"""

import json
import os
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from laue_dask.errors import StoreError
from laue_dask.io import journal
from laue_dask.io.block_files import checksum_of_text
from laue_dask.io.output_paths import write_atomically

STORE_RECEIPTS_FILE = "receipts/zarr.json"
"""Inside a Zarr store it is the attributes of a group, so that no Zarr library stumbles over it."""

RUN_RECEIPTS_FILE = "receipts.json"

_READ_BYTES = 2**22


@dataclass(frozen=True)
class Receipts:
    """Size and CRC-32 of files, by their paths within a folder.

    Attributes
    ----------
    folder
        What they are of.
    files
        Path with slashes → size in bytes, CRC-32.
    """

    folder: Path
    files: Mapping[str, tuple[int, int]]

    @classmethod
    def read(cls, folder: Path, name: str = STORE_RECEIPTS_FILE) -> Self:
        """Read the receipts of a folder.

        Raises
        ------
        StoreError
            There are none, or they are damaged.
        """
        path = folder / name
        try:
            attributes: Any = json.loads(path.read_text(encoding="utf-8"))["attributes"]
            if "crc32" not in attributes and "crc32c" in attributes:
                raise StoreError(
                    f"{path}: this file is of an earlier version, which could not find all damage: make {folder} again"
                )
            files = {str(name): (int(size), int(crc)) for name, (size, crc) in attributes["files"].items()}
            whole = attributes["crc32"] == _checksum(files)
        except StoreError:
            raise
        except FileNotFoundError as error:
            raise StoreError(f"{path}: is missing, so that {folder} cannot be checked: make it again") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(f"{path}: is damaged, so that {folder} cannot be checked: make it again") from error
        if not whole:
            raise StoreError(f"{path}: is damaged, for its checksum differs: make {folder} again")
        for outside in (name for name in files if name.startswith("/") or ".." in name.split("/")):
            raise StoreError(f"{path}: names {outside!a}, which is not in {folder}: make it again")
        return cls(folder, files)

    @classmethod
    def of(cls, folder: Path, paths: Collection[str]) -> Self:
        """Read the files of a folder, and of its folders, that `paths` name, and make their receipts."""
        return cls(folder, {name: of_file(folder / name) for path in paths for name in _below(folder, path)})

    def write(self, name: str = STORE_RECEIPTS_FILE) -> None:
        """Write them into their folder."""
        attributes = {"crc32": _checksum(self.files), "files": self.files}
        content = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (self.folder / name).parent.mkdir(exist_ok=True)
        write_atomically(self.folder / name, json.dumps(content, ensure_ascii=False).encode())

    def without(self, paths: Collection[str]) -> "Receipts":
        """Return the receipts of files that are neither `paths` nor below them."""
        kept = {name: found for name, found in self.files.items() if not any(_within(name, path) for path in paths)}
        return Receipts(self.folder, kept)

    def joined(self, others: "Receipts") -> "Receipts":
        """Return both together; `others` count where both know a file."""
        return Receipts(self.folder, {**self.files, **others.files})

    def faults(self, paths: Collection[str] = ("",)) -> Iterator[tuple[str, str | None]]:
        """Return every file of `paths` and below, and what is wrong with it; None where nothing is."""
        for name, expected in self.files.items():
            if any(_within(name, path) for path in paths):
                yield name, _fault(self.folder / name, expected)

    def check(self, paths: Collection[str] = ("",), *, remedy: str) -> None:
        """Raise `StoreError` for the first file of `paths` and below that is not what it was."""
        for name, fault in self.faults(paths):
            if fault:
                raise StoreError(f"{self.folder / name}: {fault}: {remedy}")


def drop_receipts(folder: Path, names: Collection[str]) -> None:
    """Drop the receipts of files of a finished run, which may change then without seeming damaged after a kill."""
    receipts = Receipts.read(folder, RUN_RECEIPTS_FILE)
    left = receipts.without(names)
    if left != receipts:
        left.write(RUN_RECEIPTS_FILE)


def of_file(path: Path) -> tuple[int, int]:
    """Return the size and CRC-32 of a file."""
    crc = size = 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            crc = zlib.crc32(piece, crc)
            size += len(piece)
    return size, crc


def _fault(path: Path, expected: tuple[int, int]) -> str | None:
    try:
        size, crc = of_file(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if size != expected[0]:
        return f"has {size} bytes, {expected[0]} were written"
    return None if crc == expected[1] else f"damaged: its checksum is {crc:08x}, {expected[1]:08x} was written"


def _below(folder: Path, path: str) -> Iterator[str]:
    """Files of a folder and below, without those that the journal of an array vouches for."""
    top = folder / path
    if top.is_file():
        yield path
    for where, folders, names in os.walk(top):
        if journal.JOURNAL_FILE in names:
            folders[:] = [name for name in folders if name != "c"]
        for name in names:
            yield (Path(where) / name).relative_to(folder).as_posix()


def _within(name: str, path: str) -> bool:
    return path in ("", name) or name.startswith(f"{path}/")


def _checksum(files: Mapping[str, tuple[int, int]]) -> str:
    return checksum_of_text(json.dumps([[name, *files[name]] for name in sorted(files)]))
