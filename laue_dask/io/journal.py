"""Receipts of finished blocks on disk; a kill at any instant costs none of those that were written."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import zarr

from laue_dask.io.block_files import checksum_of_text, location
from laue_dask.io.lock import require_lock
from laue_dask.io.output_paths import write_atomically

JOURNAL_FILE = "journal.jsonl"

Receipt = dict[str, Any]
"""What is known of a finished block: `block`, `start`, `stop`, `crc32c` of its values, `seal` of its file (see
`block_files.BlockFiles.seal`), and what its stage adds."""


class Journal:
    """Receipts of finished blocks, one JSON line each, with a checksum behind it.

    Parameters
    ----------
    path
        File; its folder is made when the first receipt is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[int, Receipt]:
        """Return the receipts by block; a line that was cut off by a kill, or damaged, is ignored: its block is done
        again.
        """
        receipts: dict[int, Receipt] = {}
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                text, _, crc = line.rpartition("\t")
                try:
                    if checksum_of_text(text) == crc:
                        receipt = json.loads(text)
                        receipts[int(receipt["block"])] = receipt
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue
        return receipts

    def add(self, receipt: Receipt) -> None:
        """Append a receipt; it is on disk when this returns. Not where another process owns the folder by now."""
        require_lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            # A torn line of an earlier kill must not swallow this one.
            file.write("\n" + _line(receipt))
            file.flush()
            os.fsync(file.fileno())

    def keep(self, wanted: Callable[[Receipt], bool]) -> None:
        """Forget the receipts that are not wanted, such as those of blocks that are gone."""
        receipts = self.read()
        kept = [receipt for receipt in receipts.values() if wanted(receipt)]
        if len(kept) < len(receipts):
            write_atomically(self.path, "".join(f"\n{_line(receipt)}" for receipt in kept).encode())

    @classmethod
    def of(cls, array: zarr.Array[Any]) -> Self:
        """Return the journal of an array on disk, which lies in the array's own folder and goes when the array goes."""
        root, name = location(array)
        return cls(Path(root) / name / JOURNAL_FILE)


def _line(receipt: Receipt) -> str:
    text = json.dumps(receipt, separators=(",", ":"))
    return f"{text}\t{checksum_of_text(text)}"
