"""One frame of an HDF5 file, and what lies beside it."""

import math
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import FrameError
from laue_dask.io.hdf5.axes import Axes, AxesError, choice, interpret, split
from laue_dask.io.hdf5.extent import check_frame, check_kind, check_size
from laue_dask.io.hdf5.files import open_file, resolve
from laue_dask.io.headers import STAGE_MOTORS, UM_PER_UNIT, UM_PER_UNIT_OF_MOTORS, Header, in_um


def read_frame(path: str, dataset: str, index: int | None) -> tuple[NDArray[Any], Header]:
    """Return one frame and what lies beside it; raises whatever h5py raises, and `FrameError` for what it does not
    notice.

    What HDF5 would fill in for bytes that are not there is never taken for pixels.
    """
    with open_file(path) as file:
        name, node, axes = _opened(file, dataset)
        number = _checked(axes, index)
        place = axes.place(number)
        check_frame(node, axes, place)
        frame = node[tuple(slice(None) if one is None else one for one in place)]
        return np.asarray(frame), _header(file, name, number, axes.frames)


def read_header(path: str, dataset: str, index: int | None) -> tuple[tuple[int, ...], np.dtype[Any], Header]:
    """Return the shape and dtype of one frame and what lies beside it, without reading the frame."""
    with open_file(path) as file:
        name, node, axes = _opened(file, dataset)
        number = _checked(axes, index)
        check_size(node, axes)
        return axes.frame_shape, node.dtype.newbyteorder("="), _header(file, name, number, axes.frames)


def _opened(file: h5py.File, dataset: str) -> tuple[str, h5py.Dataset, Axes]:
    name, chosen = (dataset, "") if dataset in file else split(dataset)
    node = resolve(file, name)
    if not isinstance(node, h5py.Dataset) or node.shape is None:
        raise FrameError(f"'{name}' is not a dataset of frames")
    check_kind(node)
    try:
        return name, node, interpret(tuple(node.shape), choice(chosen, node.ndim))
    except AxesError as error:
        raise FrameError(str(error)) from error


def _checked(axes: Axes, index: int | None) -> int:
    """The number of the frame; a stack of one needs none."""
    if index is None and axes.frames != 1:
        raise FrameError(f"holds {axes.frames} frames, one was expected")
    index = index or 0
    if index >= axes.frames:
        raise FrameError(f"frame {index} is not in the dataset, which ends at {axes.frames - 1}")
    return index


def _header(file: h5py.File, dataset: str, place: int, count: int) -> Header:
    entry = "/" + dataset.strip("/").split("/", 1)[0]
    position = None
    for y, x in STAGE_MOTORS:
        for group in ("sample", "measurement", "instrument/positioners"):
            nodes = [file.get(f"{entry}/{group}/{motor}") for motor in (y, x)]
            pair = [_value(node, place, count) for node in nodes]
            if position is None and all(map(math.isfinite, pair)):
                scale = [_um_per_unit(node, UM_PER_UNIT_OF_MOTORS[y, x]) for node in nodes]
                position = in_um(pair[0], 0.0, scale[0])[0], in_um(0.0, pair[1], scale[1])[1]
    pixel = _value(file.get(f"{entry}/instrument/detector/x_pixel_size"), 0, 1)
    exposure = _value(file.get(f"{entry}/instrument/detector/count_time"), 0, 1)
    return Header(
        position=position,
        pixel_size_um=round(pixel * 1e6, 6) if math.isfinite(pixel) and pixel > 0 else None,
        exposure_s=exposure if math.isfinite(exposure) else None,
    )


def _um_per_unit(node: Any, usual: float) -> float:
    """What a motor counts in, by the units that its dataset names, or as is usual."""
    units = node.attrs.get("units", node.attrs.get("unit", ""))
    if isinstance(units, bytes):
        units = units.decode(errors="replace")
    return UM_PER_UNIT.get(str(units).strip().lower(), usual)


def _value(node: Any, place: int, count: int) -> float:
    """Number of frame `place`: a motor that stood still is a scalar, one that moved has a value per frame."""
    if not isinstance(node, h5py.Dataset) or node.shape is None or node.dtype.kind not in "iuf":
        return math.nan
    if node.size == 1:
        return float(node[(0,) * node.ndim] if node.ndim else node[()])
    if node.size != count:
        return math.nan
    return float(node[tuple(int(one) for one in np.unravel_index(place, node.shape))])
