"""Pixels that a file says are unusable: the masks of NXmx and EIGER files, and gaps of virtual datasets."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import FrameError
from laue_dask.io.hdf5.axes import Axes, AxesError, choice, interpret, split
from laue_dask.io.hdf5.extent import check_size, unmapped
from laue_dask.io.hdf5.files import open_file, resolve

UNUSABLE_BITS = 0xFFFF
"""NeXus: gap, dead, too weak, too strong, noisy, …, of the user. The upper bits tell of pixels that are data all the
same, such as those whose value is shared out between two chips."""

MAX_MASKED_SHARE = 0.95
"""A mask of more than this share of the pixels says the opposite of what it should, or nothing."""

MAX_DETECTORS = 32
"""Groups of an instrument in which a mask is looked for."""


@dataclass(frozen=True)
class PixelMask:
    """Unusable pixels by what the file says.

    Attributes
    ----------
    mask : (row, column) bool
        True where a pixel is unusable; None where the file's mask is not used.
    text
        One line for people: where it is from and how many pixels it has, or why it is not used.
    """

    mask: NDArray[np.bool_] | None
    text: str


def pixel_mask(path: str, dataset: str) -> PixelMask | None:
    """Return the file's own mask for the frames of a dataset; None where it has none, or cannot be read at all."""
    try:
        with open_file(path) as file:
            name, chosen = (dataset, "") if dataset in file else split(dataset)
            node = resolve(file, name)
            axes = interpret(tuple(node.shape), choice(chosen, node.ndim))
            check_size(node, axes)
            return _join(_of_detector(file, name, axes), unmapped(node, axes))
    except (FrameError, AxesError, OSError, RuntimeError, AttributeError):
        return None  # the frames' own faults are told where they are read


def _join(found: PixelMask | None, gaps: NDArray[np.bool_] | None) -> PixelMask | None:
    if gaps is None:
        return found
    text = f"{int(gaps.sum())} pixels have no source in the virtual dataset"
    if found is None:
        return PixelMask(gaps, text)
    return PixelMask(gaps if found.mask is None else found.mask | gaps, f"{found.text}; {text}")


def _of_detector(file: h5py.File, dataset: str, axes: Axes) -> PixelMask | None:
    for name in _places(file, dataset):
        if file.get(name, getlink=True) is None:
            continue
        try:
            return _mask(name, resolve(file, name), axes)
        except FrameError as error:
            return PixelMask(None, f"{name} is not used: {error}")
        except (OSError, RuntimeError) as error:
            return PixelMask(None, f"{name} is not used: it cannot be read: {' '.join(str(error).split())}")
    return None


def _places(file: h5py.File, dataset: str) -> list[str]:
    """Where masks are kept; that of the detector whose frames they are comes first."""
    parts = dataset.strip("/").split("/")
    entry = f"/{parts[0]}"
    groups = [f"/{'/'.join(parts[:-1])}"] if len(parts) > 2 and parts[1] == "instrument" else []
    groups.append(f"{entry}/instrument/detector")
    instrument = file.get(f"{entry}/instrument")
    if isinstance(instrument, h5py.Group):
        detectors = [f"{entry}/instrument/{name}" for name in islice(instrument, MAX_DETECTORS)]
        own = [one for one in detectors if f"{one}/pixel_mask" in file or f"{one}/detectorSpecific/pixel_mask" in file]
        groups += own if len(own) == 1 else []  # of several detectors nobody knows whose mask it is
    names = [f"{group}/{name}" for group in groups for name in ("pixel_mask", "detectorSpecific/pixel_mask")]
    return list(dict.fromkeys(names))


def _mask(name: str, node: Any, axes: Axes) -> PixelMask:
    if not isinstance(node, h5py.Dataset) or not node.shape or node.dtype.kind not in "biuf":
        raise FrameError("it is not a dataset of numbers")
    shape, long = axes.frame_shape, tuple(length for length in node.shape if length != 1)
    select: Any = ()
    if len(long) == 3 and long[1:] == shape and node.ndim == 3:
        chosen = [index for axis, index in axes.chosen if axes.shape[axis] == long[0]]
        if len(chosen) != 1:
            raise FrameError(f"it has {long[0]} masks, and none of them is said to be that of these frames")
        select = chosen[0]
    elif long != shape:
        told = " × ".join(map(str, node.shape))
        raise FrameError(f"it has {told} pixels, the frames have {shape[0]} × {shape[1]}")
    values = np.asarray(node[select]).reshape(shape)
    mask = _unusable(values)
    count = int(mask.sum())
    if count > MAX_MASKED_SHARE * mask.size:
        raise FrameError(f"it marks {count} of {mask.size} pixels")
    return PixelMask(mask, f"{name}: {count} of {mask.size} pixels")


def _unusable(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind == "b":
        return np.asarray(values, dtype=np.bool_)
    if values.dtype.kind == "f":
        whole = np.where(np.isfinite(values), values, 1.0)
        # Bits of a whole number; any fraction is a weight of something that is not usable as it is.
        bits = np.clip(np.abs(whole), 0, 2.0**62).astype(np.uint64) & np.uint64(UNUSABLE_BITS)
        return np.asarray((bits != 0) | (whole != np.trunc(whole)))
    return np.asarray(values.astype(np.int64, copy=False) & UNUSABLE_BITS != 0)
