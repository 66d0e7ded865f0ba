"""The size of an array on the disk, found by packing a part of it in memory exactly as it will be written."""

import time
from typing import Any

import zarr
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from laue_dask import schema


def pack(values: NDArray[Any], spec: schema.ArraySpec) -> tuple[float, float]:
    """Pack an array as its spec says, and tell its size and the time that it took.

    Parameters
    ----------
    values : (n, …)
        A chunk is one frame, or all rows of anything that is smaller.

    Returns
    -------
    share
        Packed size as a share of the array's own.
    seconds
        On one core, of which Zarr may have used several.
    """
    files: dict[str, Any] = {}
    group = zarr.open_group(MemoryStore(files), zarr_format=3)
    rows = 1 if spec is schema.SCAN["frames"] else len(values)
    array = schema.create(
        group, "packed", spec, values.shape, chunks=(rows, *values.shape[1:]), shards=values.shape, dtype=values.dtype
    )
    # As a block of the store is: zeros are written as well.
    array = array.with_config({"write_empty_chunks": True})
    wall, busy = time.perf_counter(), time.process_time()
    array[...] = values
    seconds = max(time.perf_counter() - wall, time.process_time() - busy)
    packed = sum(len(content) for name, content in files.items() if not name.endswith("zarr.json"))
    return packed / values.nbytes, seconds
