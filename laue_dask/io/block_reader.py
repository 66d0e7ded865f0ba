"""Read arrays that were written block by block, and check each block against its receipt first."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray

from laue_dask.errors import StoreError
from laue_dask.io.block_files import BlockFiles, location
from laue_dask.io.journal import Journal

MIN_SEPARATE_READ_ROWS = 64
"""Rows between two that are wanted, from which on these are read each for itself; never more than a block at once."""


def read_rows(array: zarr.Array[Any], rows: slice | NDArray[np.int64]) -> NDArray[Any]:
    """Return the rows of an array on disk.

    Parameters
    ----------
    array
        One without a journal was written at once, and has none but its codecs' checks.
    rows
        Without a step, or numbers of rows.

    Raises
    ------
    StoreError
        A block is damaged, missing or another's.
    IndexError
        There are no such rows.
    """
    files = BlockFiles(array)
    n = array.shape[0]
    chosen = np.arange(*rows.indices(n)) if isinstance(rows, slice) else rows
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < n:
        raise IndexError(f"rows {chosen.min()} to {chosen.max()} of {n}")
    if array.attrs.get("finished"):
        seals = _seals(Journal.of(array).path)
        for block in np.unique(chosen // files.rows).tolist():
            if block not in seals:
                raise _damaged(files, block, "has no receipt")
            fault = files.fault(block, seals[block])
            if fault:
                raise _damaged(files, block, fault)
    try:
        return np.asarray(array[rows]) if isinstance(rows, slice) else _read_stretches(array, rows, files.rows)
    except MemoryError:
        raise
    except Exception as error:
        block = int(chosen[0]) // files.rows if len(chosen) else 0
        raise _damaged(files, block, " ".join(str(error).split())) from error


def _read_stretches(array: zarr.Array[Any], rows: NDArray[np.int64], unit: int) -> NDArray[Any]:
    """Rows in any order, read in stretches: zarr takes several times as long to find them one by one."""
    found = np.empty((len(rows), *array.shape[1:]), array.dtype)
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    cuts = np.flatnonzero((np.diff(ascending) >= MIN_SEPARATE_READ_ROWS) | (np.diff(ascending // unit) > 0)) + 1
    for part in np.split(order, cuts) if len(rows) else ():
        first, last = int(rows[part[0]]), int(rows[part[-1]])
        found[part] = np.asarray(array[first : last + 1])[rows[part] - first]
    return found


def lazy_array(array: zarr.Array[Any]) -> da.Array:
    """Return an array on disk, lazy: its blocks are the chunks, and each is read by `read_rows`."""
    root, member = location(array)
    unit, n = (array.shards or array.chunks)[0], array.shape[0]
    rows = (unit,) * (n // unit) + ((n % unit,) if n % unit else ())
    found: da.Array = da.map_blocks(
        _block,
        root=root,
        member=member,
        unit=unit,
        dtype=array.dtype,
        chunks=(rows, *((size,) for size in array.shape[1:])),
        meta=np.empty((0,) * array.ndim, dtype=array.dtype),
    )
    return found


def _block(*, root: str, member: str, unit: int, block_id: tuple[int, ...] | None = None) -> NDArray[Any]:
    if block_id is None:
        raise ValueError("block_id is needed to know which rows to read")
    start = block_id[0] * unit
    return read_rows(zarr.open_array(root, path=member, mode="r"), slice(start, start + unit))


def _seals(path: Path) -> dict[int, int]:
    try:
        state = path.stat()
    except OSError:
        return {}
    return _seals_of(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _seals_of(path: Path, changed: int, size: int) -> dict[int, int]:
    return {block: receipt["seal"] for block, receipt in Journal(path).read().items() if "seal" in receipt}


def _damaged(files: BlockFiles, block: int, fault: str) -> StoreError:
    return StoreError(
        f"{files.folder}: block {block} ({files.path(block).relative_to(files.folder)}) {fault}: "
        "the same `laue-dask run` command makes it again"
    )
