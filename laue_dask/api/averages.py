"""Means of many frames or patterns in little memory: sums of chunks, added up in a tree."""

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask.delayed import delayed
from numpy.typing import NDArray

from laue_dask.errors import InputError, StoreError
from laue_dask.io import block_reader
from laue_dask.io.scan_store import ScanStore

FRAMES_PER_TASK = 64
"""Frames that one task adds up, one chunk of them in memory at a time."""

SUMS_PER_TASK = 8
"""Sums of frames that one task adds up."""


def chosen_patterns(where: Any, shape: tuple[int, int], valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the numbers of the usable patterns where a map is True.

    Parameters
    ----------
    where
        (y, x) bool.
    shape
        (ny, nx).
    valid
        (pattern,) bool.

    Raises
    ------
    InputError
        It is no such map, or it has no point with a usable pattern.
    """
    chosen = np.asarray(where)
    if chosen.dtype != np.bool_ or chosen.shape != shape:
        wanted = f"a map of True and False of shape {shape} was expected, as `run.labels(6) == 2` gives it"
        raise InputError(f"where has shape {chosen.shape} and dtype {chosen.dtype}: {wanted}")
    patterns = np.flatnonzero(chosen.ravel() & valid)
    if not len(patterns):
        raise InputError(f"where is True at {int(chosen.sum())} points, none of which has a usable pattern")
    return patterns


def mean_frame(store: ScanStore, where: Any) -> xr.DataArray:
    """Return the mean of the frames at some points; see `laue_dask.api.scan.Scan.mean_frame`."""
    patterns = chosen_patterns(where, store.scan_shape, store.valid)
    parts = np.split(patterns, range(FRAMES_PER_TASK, len(patterns), FRAMES_PER_TASK))
    add_up = delayed(_sum_of_frames)
    sums = [add_up(str(store.path), store.key(), part) for part in parts]
    while len(sums) > 1:
        sums = [delayed(_total)(sums[i : i + SUMS_PER_TASK]) for i in range(0, len(sums), SUMS_PER_TASK)]
    total = da.from_delayed(sums[0], store.frame_shape, dtype=np.float64)
    mean = da.where(da.from_array(store.detector_mask, chunks=-1), np.nan, total / len(patterns))
    attributes = {"long_name": "mean intensity", "units": "counts", "frames": len(patterns)}
    return xr.DataArray(mean, dims=("row", "column"), name="mean_frame", attrs=attributes)


def mean_pattern(
    reduced: zarr.Array[Any], where: Any, shape: tuple[int, int], valid: NDArray[np.bool_]
) -> xr.DataArray:
    """Return the mean of the reduced patterns at some points, (v, u) float64 in [0, 1]; see `Run.mean_pattern`."""
    patterns = chosen_patterns(where, shape, valid)
    total = np.zeros(reduced.shape[1:], np.int64)
    for start in range(0, len(patterns), 1024):
        total += block_reader.read_rows(reduced, patterns[start : start + 1024]).sum(axis=0, dtype=np.int64)
    attributes = {"long_name": "mean intensity", "patterns": len(patterns)}
    return xr.DataArray(total / (255 * len(patterns)), dims=("v", "u"), name="mean_pattern", attrs=attributes)


def _sum_of_frames(path: str, key: str, patterns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of some frames, of ascending numbers, (row, column)."""
    store = ScanStore.open(path)
    if store.key() != key:
        raise StoreError(f"{path}: holds another scan now than when it was opened: open it again")
    total = np.zeros(store.frame_shape)
    memory = np.empty((store.read_length, *store.frame_shape), store.dtype)
    for chunk in np.unique(patterns // store.read_length):
        start = int(chunk) * store.read_length
        some = patterns[patterns // store.read_length == chunk] - start
        frames = store.read_frames(start + int(some[0]), start + int(some[-1]) + 1, out=memory)
        for i in some - some[0]:
            total += frames[i]
    return total


def _total(sums: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.asarray(np.sum(sums, axis=0))
