"""Frames in HDF5 files: which dataset holds them, one frame of it, and the stage positions beside it.

Strings of variable length are never read here: h5py can crash on them when several threads do. Files are opened
without HDF5's file lock, so that a folder which may only be read, or a file still being written, can be used.
"""

import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters of EIGER files
import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import FrameError, InputError
from laue_dask.io.deadline import touch
from laue_dask.io.headers import STAGE_MOTORS, Header

SUFFIXES = (".h5", ".hdf5", ".hdf", ".nxs")
SMALLEST_FRAME = 16
"""Datasets with fewer rows or columns are tables, not frames."""

_PATTERNS = ("*/data/*", "*/measurement/*", "*/instrument/*/data", "*/measurement/*/data")
"""Where ESRF (BLISS, LIMA), DECTRIS EIGER and APS files keep frames."""

_WRITING = "already open for write"
"""What HDF5 says of a file that is marked as being written, such as every file for SWMR."""

_SERIES = re.compile(r"data_\d{6}$")


LONGEST_SIDE = 2**16
"""Pixels along a side beyond which a dataset's shape is damaged, or made up to fill the memory."""


DEEPEST = 3
"""Virtual datasets of virtual datasets that are looked through."""


class UnreadableError(InputError):
    """The file is missing or damaged."""


def find_frames(path: str, dataset: str | None) -> list[tuple[str, int | None]]:
    """Datasets of frames, in order, each with its number of frames (``None``: the dataset is one frame).

    Parameters
    ----------
    dataset
        Dataset or group within the file; ``None`` to look in the places where beamlines put frames.

    Raises
    ------
    UnreadableError
        The file cannot be read.
    InputError
        It holds no such dataset, or more than one stack; the candidates are named.
    """
    try:
        with _open(path) as file:
            if dataset is None:
                return _found(file, path)
            node = file.get(dataset)
            if isinstance(node, h5py.Dataset):
                if not _is_frames(node):
                    raise InputError(
                        f"{path}::{dataset}: shape {node.shape} of {node.dtype} is not a stack of frames; "
                        f"{_candidates(file)}"
                    )
                return [(dataset, _length(node))]
            if isinstance(node, h5py.Group) and (series := _series(node, path)):
                return series
            raise InputError(f"{path}: no dataset '{dataset}'; {_candidates(file)}")
    except InputError:
        raise
    except FileNotFoundError as error:
        raise UnreadableError(f"{path}: no such file") from error
    except Exception as error:
        if _WRITING in str(error):
            raise InputError(
                f"{path}: is still open for writing: its frames can be read when it is closed (`h5clear -s` closes one "
                "whose writer was killed)"
            ) from error
        raise UnreadableError(f"{path}: truncated or unreadable HDF5: {_line(error)}") from error


def holder(path: str, dataset: str) -> str:
    """The file that holds a dataset which `path` may only link to.

    Raises
    ------
    InputError
        It is not there any more.
    """
    try:
        with _open(path) as file:
            return str(file[dataset].file.filename)
    except Exception as error:
        raise InputError(f"{path}::{dataset}: {_line(error)}") from error


def parts(path: str, dataset: str) -> list[tuple[int, int, str]]:
    """First and last frame, and path, of each file that holds pixels of a dataset, be it linked or virtual.

    Raises whatever h5py raises.
    """
    with _open(path) as file:
        return _parts(file[dataset], DEEPEST)


def _parts(node: h5py.Dataset, deep: int) -> list[tuple[int, int, str]]:
    here, last = str(node.file.filename), (node.shape[0] if node.ndim == 3 else 1) - 1
    if not node.is_virtual or not deep:
        return [(0, last, here)]
    found = []
    for source in node.virtual_sources():
        start, stop = source.vspace.get_select_bounds()
        first, end = (start[0], stop[0]) if node.ndim == 3 else (0, last)
        file = here if source.file_name == "." else str(Path(here).parent / source.file_name)
        files = [file]
        try:
            with _open(file) as other:
                files = [name for _, _, name in _parts(other[source.dset_name], deep - 1)]
        except (OSError, KeyError):
            pass  # it is missing, which is seen where its state is asked for
        found += [(int(first), int(end), name) for name in dict.fromkeys(files)]
    return found


def linked_files(path: str) -> list[str]:
    """Files that an EIGER master links to, whether they are there or not.

    Raises
    ------
    InputError
        The master cannot be read.
    """
    try:
        with _open(path) as file:
            groups = [group for name in file if isinstance(group := file.get(f"{name}/data"), h5py.Group)]
            links = [group.get(name, getlink=True) for group in groups for name in group if _SERIES.match(name)]
            names = [link.filename for link in links if isinstance(link, h5py.ExternalLink)]
    except Exception as error:
        raise InputError(f"{path}: truncated or unreadable HDF5: {_line(error)}") from error
    return [str(Path(path).parent / name) for name in dict.fromkeys(names)]


def read_frame(path: str, dataset: str, index: int | None) -> tuple[NDArray[Any], Header]:
    """One frame and what lies beside it; raises whatever h5py raises, and `FrameError` for what it does not notice."""
    with _open(path) as file:
        node = file.get(dataset)
        if not isinstance(node, h5py.Dataset):
            raise FrameError(f"no dataset '{dataset}', or the file it links to is missing")
        index = _checked(node, index)
        frame = node[()] if index is None else node[index]
        return np.asarray(frame), _header(file, dataset, index, _length(node))


def read_header(path: str, dataset: str, index: int | None) -> tuple[tuple[int, ...], np.dtype[Any], Header]:
    """Shape and dtype of one frame and what lies beside it, without reading the frame."""
    with _open(path) as file:
        node = file.get(dataset)
        if not isinstance(node, h5py.Dataset):
            raise FrameError(f"no dataset '{dataset}', or the file it links to is missing")
        index = _checked(node, index)
        shape = node.shape if index is None else node.shape[1:]
        return shape, node.dtype, _header(file, dataset, index, _length(node))


def _open(path: str) -> h5py.File:
    with suppress(OSError):  # which HDF5 has its own words for
        touch(path)
    return h5py.File(path, "r", locking=False)


def _checked(node: h5py.Dataset, index: int | None) -> int | None:
    """The index to read; a stack of one frame needs none."""
    if any(side > LONGEST_SIDE for side in node.shape[-2:]):
        raise FrameError(f"shape {node.shape} is no detector's")
    if node.ndim == 2 and index in (None, 0):
        return None
    if node.ndim != 3:
        raise FrameError(f"is not 2-D: shape {node.shape}")
    if index is None and node.shape[0] != 1:
        raise FrameError(f"holds {node.shape[0]} frames, one was expected")
    index = index or 0
    if index >= node.shape[0]:
        raise FrameError(f"frame {index} is not in the dataset, which ends at {node.shape[0] - 1}")
    return index


def _is_frames(node: Any) -> bool:
    return (
        isinstance(node, h5py.Dataset)
        and node.ndim in (2, 3)
        and node.dtype.kind in "iuf"
        and min(node.shape[-2:]) >= SMALLEST_FRAME
        and node.shape[0] > 0
    )


def _length(node: h5py.Dataset) -> int | None:
    return int(node.shape[0]) if node.ndim == 3 else None


def _found(file: h5py.File, path: str) -> list[tuple[str, int | None]]:
    for name in file:
        group = file.get(f"{name}/data")
        if isinstance(group, h5py.Group) and (series := _series(group, path)):
            return series
    known = [name for pattern in _PATTERNS for name in _expand(file, pattern)]
    found = _distinct(file, known) or _distinct(file, _every(file))
    stacks = [name for name in found if file[name].ndim == 3] or found
    if not stacks:
        raise InputError(f"{path}: no dataset of frames in it")
    if len(stacks) > 1:
        raise InputError(f"{path}: which dataset? give {path}::PATH; {_candidates(file)}")
    return [(stacks[0], _length(file[stacks[0]]))]


def _series(group: h5py.Group, path: str) -> list[tuple[str, int | None]]:
    """The `data_000001`, `data_000002`, … of an EIGER master file, which links more of them than were written."""
    names = sorted(name for name in group if _SERIES.match(name))
    written = [name for name in names if isinstance(group.get(name), h5py.Dataset)]
    if names and not written:
        raise InputError(f"{path}: none of the data files it links to ({names[0]}, …) is there")
    if written != names[: len(written)]:
        missing = next(name for name in names if name not in written)
        raise InputError(f"{path}: the data file of {missing} is missing, later ones are there: put it back")
    return [(f"{group.name}/{name}", _length(group[name])) for name in written]


def _expand(file: h5py.File, pattern: str) -> list[str]:
    names = [""]
    for part in pattern.split("/"):
        groups = [(name, file.get(name or "/")) for name in names]
        names = [
            f"{name}/{key}"
            for name, group in groups
            if isinstance(group, h5py.Group)
            for key in (group if part == "*" else [part] if part in group else [])
        ]
    return names


def _every(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, node: names.append(f"/{name}") if isinstance(node, h5py.Dataset) else None)
    return names


def _distinct(file: h5py.File, names: list[str]) -> list[str]:
    """Datasets of frames among `names`, each once however many links lead to it."""
    kept: list[str] = []
    for name in names:
        node = file.get(name)
        if _is_frames(node) and not any(file[other] == node for other in kept):
            kept.append(name)
    return kept


def _candidates(file: h5py.File) -> str:
    known = [name for pattern in _PATTERNS for name in _expand(file, pattern)]
    found = _distinct(file, known + _every(file))
    listed = ", ".join(f"{name} {file[name].shape}" for name in found[:6])
    return f"it holds {listed}{', …' if len(found) > 6 else ''}" if found else "it holds no frames"


def _header(file: h5py.File, dataset: str, index: int | None, length: int | None) -> Header:
    entry = "/" + dataset.strip("/").split("/", 1)[0]
    place, count = index or 0, length or 1
    position = None
    for y, x in STAGE_MOTORS:
        for group in ("sample", "measurement", "instrument/positioners"):
            pair = tuple(_value(file.get(f"{entry}/{group}/{motor}"), place, count) for motor in (y, x))
            if position is None and all(map(math.isfinite, pair)):
                position = (pair[0], pair[1])
    pixel = _value(file.get(f"{entry}/instrument/detector/x_pixel_size"), 0, 1)
    exposure = _value(file.get(f"{entry}/instrument/detector/count_time"), 0, 1)
    return Header(
        position=position,
        pixel_size_um=round(pixel * 1e6, 6) if math.isfinite(pixel) and pixel > 0 else None,
        exposure_s=exposure if math.isfinite(exposure) else None,
    )


def _value(node: Any, place: int, count: int) -> float:
    """Number of frame `place`: a motor that stood still is a scalar, one that moved has a value per frame."""
    if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "iuf" or node.ndim > 1:
        return math.nan
    if node.ndim == 0:
        return float(node[()])
    if node.shape[0] == 1:
        return float(node[0])
    return float(node[place]) if node.shape[0] == count else math.nan


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
