#!/usr/bin/env python3
"""Hold every kind of HDF5 stack against h5py: dtype × byte order × layout × filter × axes, every pixel of every frame.

scripts/pixel_matrix_hdf5.py [--cells N] [--seed S]
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from laue_dask.io.frames import discover, read_frame

DTYPES = ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")
SHAPES = ((6, 20, 30), (2, 3, 20, 30), (6, 1, 20, 30), (1, 6, 20, 30), (6, 20, 30, 1))
PACKED = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "gzip, shuffled, checked": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "LZF": {"compression": "lzf"},
    "bitshuffle, LZ4": dict(hdf5plugin.Bitshuffle()),
    "LZ4": dict(hdf5plugin.LZ4()),
    "Zstandard": dict(hdf5plugin.Zstd()),
    "Blosc": dict(hdf5plugin.Blosc()),
}
LAYOUTS = ("contiguous", "external", "virtual", *(f"chunked by {n}: {name}" for n in ("1", "all") for name in PACKED))

Cell = tuple[str, str, tuple[int, ...], str]


def cells() -> Iterator[Cell]:
    """Every combination: dtype, byte order, shape, layout."""
    orders = (
        (dtype, order) for dtype in DTYPES for order in ("<", ">") if order == "<" or np.dtype(dtype).itemsize > 1
    )
    for (dtype, order), shape, layout in itertools.product(orders, SHAPES, LAYOUTS):
        yield dtype, order, shape, layout


def fault(cell: Cell, folder: Path) -> str:
    """What differs from h5py in a cell; empty where nothing does."""
    dtype, order, shape, layout = cell
    values = _values(np.dtype(dtype).newbyteorder(order), shape)
    path = folder / "a.h5"
    _write(path, values, layout, folder)
    with h5py.File(path) as file:
        truth = file["entry/data/data"][()].reshape(6, 20, 30)
    found = [read_frame(ref) for ref in discover(path)]
    if len(found) != len(truth):
        return f"{len(found)} frames"
    for i, (frame, expected) in enumerate(zip(found, truth, strict=True)):
        if frame.dtype != np.dtype(dtype) or not frame.dtype.isnative:
            return f"dtype {frame.dtype}"
        if frame.tobytes() != np.ascontiguousarray(expected, dtype=dtype).tobytes():
            return f"frame {i} differs"
    return ""


def _values(dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(list(dtype.str.encode()) + list(shape))
    if dtype.kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype.newbyteorder("="), endpoint=True).astype(dtype)


def _write(path: Path, values: np.ndarray[Any, Any], layout: str, folder: Path) -> None:
    name = "entry/data/data"
    with h5py.File(path, "w") as file:
        if layout == "virtual":
            with h5py.File(folder / "source.h5", "w") as source:
                source["d"] = values
            made = h5py.VirtualLayout(values.shape, values.dtype)
            made[:] = h5py.VirtualSource(folder / "source.h5", "d", values.shape)
            file.create_virtual_dataset(name, made)
        elif layout == "external":
            raw = [(str(folder / "raw.bin"), 0, values.nbytes)]
            file.create_dataset(name, values.shape, values.dtype, external=raw)[...] = values
        elif layout == "contiguous":
            file[name] = values
        else:
            by, packing = layout.removeprefix("chunked by ").split(": ")
            long = [axis for axis, length in enumerate(values.shape) if length >= 20]
            one = tuple(length if axis in long else 1 for axis, length in enumerate(values.shape))
            chunks = one if by == "1" else values.shape
            file.create_dataset(name, data=values, chunks=chunks, **PACKED[packing])


def main() -> int:
    """Print each cell that differs, and how many there are; 1 where any does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cells", type=int, metavar="N", help="so many of them [all]")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chosen = list(cells())
    if given.cells:
        rng = np.random.default_rng(given.seed)
        chosen = [chosen[i] for i in rng.permutation(len(chosen))[: given.cells]]
    wrong = 0
    for cell in chosen:
        with tempfile.TemporaryDirectory() as folder:
            try:
                told = fault(cell, Path(folder))
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
        if told:
            wrong += 1
            print(*cell, told, sep="; ")
    print(f"{len(chosen)} cells, {wrong} differ from h5py")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
