"""A scan store in a notebook: its frames as a lazy array, and what is known of each of its points."""

from functools import cached_property
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from laue_dask.api.averages import mean_frame
from laue_dask.api.options import AnyPath, path_of
from laue_dask.errors import InputError, StoreError
from laue_dask.io.scan_store import ScanStore
from laue_dask.runtime.summary import Summary

MAX_CHUNK_BYTES = 2**26
"""Most bytes of frames in a chunk of the lazy array, unless a single frame has more."""


def open_scan(path: AnyPath) -> "Scan":
    """Open a scan store, such as ``RUN/scan.zarr``; nothing but its tables is read.

    Raises
    ------
    StoreError
        It is missing, unfinished, damaged, or something else.

    Examples
    --------
    >>> import laue_dask as ld
    >>> scan = ld.open_scan("runs/scan0001/scan.zarr")  # doctest: +SKIP
    >>> scan.frames[12, 30].compute()  # doctest: +SKIP
    """
    return Scan(path)


class Scan:
    """A finished scan store; see `open_scan`.

    Parameters
    ----------
    path
        Of the store.

    Attributes
    ----------
    path : Path
        Where it is.

    Examples
    --------
    >>> import laue_dask as ld
    >>> scan = ld.open_scan("runs/scan0001/scan.zarr")  # doctest: +SKIP
    >>> brightest = scan.frames.max(axis=(2, 3)).compute()  # doctest: +SKIP
    """

    def __init__(self, path: AnyPath) -> None:
        self.path: Path = path_of(path).absolute()
        if (self.path / "run.json").is_file():
            raise StoreError(f"{path}: is the folder of a run: give its scan store, or use open_run(…).scan")
        self.store = ScanStore.open(self.path)

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx): number of points along the slow and the fast axis."""
        return self.store.scan_shape

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(rows, columns) of a frame."""
        return self.store.frame_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The detector's own dtype."""
        return self.store.dtype

    @property
    def order(self) -> str:
        """`raster` or `snake`: how the points were recorded. Arrays are always in the order of the specimen."""
        return self.store.order

    @cached_property
    def frames(self) -> da.Array:
        """Frames as a lazy Dask array (y, x, row, column) in the detector's own dtype, in counts.

        Points without a usable pattern, which `valid` tells, are zeros. Where the frames are not in the store they are
        read from the detector's files; one that is gone or was changed since raises `StoreError` when it is read.
        """
        ny, nx = self.shape
        lines, points = _chunk(self.shape, int(np.prod(self.frame_shape)) * self.dtype.itemsize)
        chunks = (_cut(ny, lines), _cut(nx, points), *((side,) for side in self.frame_shape))
        lazy: da.Array = da.map_blocks(
            _read_block,
            path=str(self.path),
            key=self.store.key(),
            lines=lines,
            points=points,
            dtype=self.dtype,
            chunks=chunks,
            meta=np.empty((0, 0, 0, 0), dtype=self.dtype),
        )
        return lazy

    @cached_property
    def valid(self) -> xr.DataArray:
        """(y, x) bool: whether a point has a usable pattern."""
        return self._map(self.store.valid, "the pattern was recorded and is usable")

    @cached_property
    def positions(self) -> xr.DataArray:
        """(y, x, axis) float64: stage coordinates y and x of each point, NaN where unknown."""
        values = self.store.position.reshape(*self.shape, 2)
        return xr.DataArray(values, dims=("y", "x", "axis"), coords={"axis": ["y", "x"]}, name="position")

    @cached_property
    def source(self) -> xr.DataArray:
        """(y, x) str: file (and dataset, frame) of each point; empty where nothing was recorded."""
        return self._map(np.array(self.store.source, dtype=object), "file that the pattern came from")

    @property
    def detector_mask(self) -> NDArray[np.bool_]:
        """(row, column) bool: True where the pixel is unusable."""
        return self.store.detector_mask

    @property
    def set_aside(self) -> list[dict[str, Any]]:
        """Frames that could not be used: `pattern` (None for one without a place), `source` and `reason` of each."""
        return self.store.set_aside

    def frame(self, y: int, x: int) -> xr.DataArray:
        """Return the frame of one point (row, column), as it was recorded, in counts.

        Parameters
        ----------
        y, x
            Point of the scan, from 0: along the slow and the fast axis.

        Raises
        ------
        InputError
            There is no such point, or it has no usable pattern.
        StoreError
            The frame is damaged, or it is not in the store and its file is gone or was changed.
        """
        pattern = self.pattern_at(y, x)
        values = self.store.read_frames(pattern, pattern + 1)[0]
        attributes = {"long_name": "intensity", "units": "counts", "source": str(self.source.values[y, x])}
        return xr.DataArray(values, dims=("row", "column"), coords={"y": y, "x": x}, name="frame", attrs=attributes)

    def mean_frame(self, where: Any) -> xr.DataArray:
        """Return the mean of the frames at some points, lazily: nothing is read before it is computed or drawn.

        Frames are read chunk by chunk, a few at a time in memory however many there are.

        Parameters
        ----------
        where
            (y, x) bool, such as ``run.labels(6) == 2``. Points without a usable pattern do not count.

        Returns
        -------
        DataArray
            (row, column) float64 in counts, NaN where the detector has no usable pixel; `frames` of its attributes
            says of how many it is.

        Raises
        ------
        InputError
            `where` is no such map, or it has no point with a usable pattern.
        """
        return mean_frame(self.store, where)

    def pattern_at(self, y: int, x: int) -> int:
        """Return the number of the pattern at a point, which counts row by row from 0.

        Raises
        ------
        InputError
            There is no such point, or it has no usable pattern.
        """
        pattern = number_of(y, x, self.shape)
        if not bool(self.valid.values[y, x]):
            reasons = [one["reason"] for one in self.set_aside if one["pattern"] == pattern]
            raise InputError(
                f"point y = {y}, x = {x} has no usable pattern: {(reasons or ['nothing was recorded'])[0]}"
            )
        return pattern

    def __repr__(self) -> str:
        return str(self._summary())

    def _repr_html_(self) -> str:
        return self._summary().html()

    def _summary(self) -> Summary:
        store = self.store
        ny, nx = self.shape
        rows, columns = self.frame_shape
        usable, attributes = int(self.valid.sum()), store.root.attrs
        size = attributes.get("pixel_size_um")
        pixels = f"{rows} × {columns}, {self.dtype}" + (f", pixels of {size:g} µm" if size else "")
        facts = {
            "points": f"{ny} × {nx}, {self.order}",
            "usable": f"{usable:,} of {ny * nx:,}" + (f", {len(self.set_aside):,} set aside" if self.set_aside else ""),
            "frames": pixels + ("" if store.has_frames else ", in the detector's files"),
            "detector": str(attributes.get("detector") or "not known"),
            "source": str(store.provenance.get("source", "not known")),
        }
        return Summary("Scan", str(self.path), facts)

    def _map(self, values: NDArray[Any], meaning: str) -> xr.DataArray:
        return xr.DataArray(values.reshape(self.shape), dims=("y", "x"), attrs={"long_name": meaning})


def number_of(y: int, x: int, shape: tuple[int, int]) -> int:
    """Return the number of the pattern at point (y, x) of a scan of (ny, nx), row by row from 0.

    Raises
    ------
    InputError
        There is no such point.

    Examples
    --------
    >>> number_of(1, 2, (4, 6))
    8
    """
    ny, nx = shape
    if not (isinstance(y, int | np.integer) and isinstance(x, int | np.integer)):
        raise InputError(f"point y = {y!r}, x = {x!r}: whole numbers were expected, counted from 0")
    if not (0 <= y < ny and 0 <= x < nx):
        raise InputError(f"point y = {y}, x = {x}: the scan has {ny} × {nx} points, 0 to {ny - 1} and 0 to {nx - 1}")
    return int(y) * nx + int(x)


def _chunk(shape: tuple[int, int], frame_bytes: int) -> tuple[int, int]:
    """Lines and points along a line of a chunk of frames."""
    frames = max(1, MAX_CHUNK_BYTES // max(1, frame_bytes))
    ny, nx = shape
    return (max(1, min(ny, frames // nx)), nx) if frames >= nx else (1, frames)


def _cut(length: int, size: int) -> tuple[int, ...]:
    return (size,) * (length // size) + ((length % size,) if length % size else ())


def _read_block(
    *, path: str, key: str, lines: int, points: int, block_info: dict[Any, Any] | None = None
) -> NDArray[Any]:
    """Frames of some points, (lines, points, row, column)."""
    if not block_info:
        raise ValueError("block_info is needed to know which frames to read")
    store = ScanStore.open(path)
    if store.key() != key:
        raise StoreError(f"{path}: holds another scan now than when it was opened: open it again")
    (y0, y1), (x0, x1) = block_info[None]["array-location"][:2]
    nx = store.scan_shape[1]
    block = np.empty((y1 - y0, x1 - x0, *store.frame_shape), store.dtype)
    if x1 - x0 == nx:
        store.read_frames(y0 * nx, y1 * nx, out=block.reshape(-1, *store.frame_shape))
    else:
        for i, y in enumerate(range(y0, y1)):
            store.read_frames(y * nx + x0, y * nx + x1, out=block[i])
    return block
