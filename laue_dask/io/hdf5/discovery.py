"""Which datasets of an HDF5 file hold the frames of a scan, and how many; nothing is guessed where several may."""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import h5py
import numpy as np

from laue_dask.errors import FrameError, InputError
from laue_dask.io.hdf5.axes import IMAGE_AXIS_NAMES, Axes, AxesError, ask, choice, interpret, question, split, written
from laue_dask.io.hdf5.extent import check_filters, check_size, check_written, kind_fault
from laue_dask.io.hdf5.files import SERIES_NAME, locate, open_file, reading, resolve
from laue_dask.io.headers import STAGE_MOTORS

MAX_SEARCHED_OBJECTS = 20_000
"""Groups and datasets of a file that are looked at where frames are in none of the usual places."""

MAX_NAMED_CANDIDATES = 6
"""Candidates that a message names."""

MAX_AXIS_VALUES = 100_000
"""Values along an axis that are read to see whether they grow."""

MAX_FOLLOWED_VIRTUAL_LEVELS = 3
"""Virtual datasets of virtual datasets whose files are looked for."""

_PATHS_IN_ENTRY = ("data/*", "measurement/*", "instrument/*/data", "measurement/*/data")
"""Where ESRF (BLISS, LIMA), DECTRIS EIGER and APS files keep frames within an entry."""

_PATHS_IN_GROUP = (*_PATHS_IN_ENTRY, "*/data", "*")
"""Where they are below a group that the user names."""


@dataclass(frozen=True)
class Stack:
    """Frames in one dataset.

    Attributes
    ----------
    dataset
        Its path in the file, with what was chosen of its axes; see `hdf5.axes`.
    frames
        How many; None where it has no axis that counts them.
    """

    dataset: str
    frames: int | None


@dataclass(frozen=True)
class _Candidate:
    name: str
    node: h5py.Dataset
    axes: Axes

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.node.shape))})"


def find_frames(path: str, dataset: str | None, *, closed: bool = False) -> list[Stack]:
    """Return the datasets of frames, in order.

    Parameters
    ----------
    dataset
        Dataset or group within the file, with what is chosen of its axes; ``None`` to look in the places where
        beamlines put frames.
    closed
        Refuse a file that is still written.

    Raises
    ------
    UnreadableError
        The file cannot be read.
    InputError
        It holds no such dataset, or more than one stack, or one whose axes may be images of one point; the candidates
        are named. Or hardly any of its frames can be there.
    """
    with reading(path, closed=closed) as file:
        name, chosen = _named(file, dataset or "/")
        try:
            node = resolve(file, name)
        except FrameError as error:
            raise InputError(f"{path}: {error}; {_candidates(file)}") from error
        if isinstance(node, h5py.Dataset):
            return [_stack(path, name, chosen, node)]
        if dataset and (series := _in_series(node, path, chosen)):
            return series
        found = _found(node, path)
        if isinstance(found, _Candidate):
            return [_stack(path, found.name, chosen, found.node)]
        return found


def grid_of(path: str, dataset: str, scan_shape: tuple[int, int] | None = None) -> tuple[int, int] | None:
    """Return (ny, nx) of a dataset that has two axes of points; None of any other.

    Parameters
    ----------
    scan_shape
        (ny, nx) that the user gave, which may answer what the axes leave open.

    Raises
    ------
    InputError
        An axis may count images of each point, of which one is to be chosen; or the file cannot be read.
    """
    with reading(path) as file:
        name, chosen = _named(file, dataset)
        node = resolve(file, name)
        axes = _axes(path, name, chosen, node)
        named = _named_axes(node, axes)
        asked = question(axes, explicit=bool(chosen), scan_shape=scan_shape, named=named, moved=_moved(file, name))
        if asked is not None:
            raise InputError(ask(f"{path}::{name}", axes, asked, named.get(axes.shape[asked], "")))
        return axes.grid


def parts(path: str, dataset: str) -> list[tuple[int, int, str]]:
    """Return the first and last frame, and path, of each file that holds pixels of a dataset, be it linked or virtual.

    Raises whatever h5py raises.
    """
    with open_file(path) as file:
        name, chosen = _named(file, dataset)
        node = file[name]
        return _parts(
            node, interpret(tuple(node.shape), choice(chosen, node.ndim)).frames - 1, MAX_FOLLOWED_VIRTUAL_LEVELS
        )


def _parts(node: h5py.Dataset, last: int, deep: int) -> list[tuple[int, int, str]]:
    here = str(node.file.filename)
    beside = [name for raw, _, _ in node.external or () if (name := locate(raw, here)) is not None]
    if not node.is_virtual or not deep:
        return [(0, last, one) for one in (here, *beside)]
    found: list[tuple[int, int, str]] = []
    for source in node.virtual_sources():
        first, end = 0, last
        try:
            start, stop = source.vspace.get_select_bounds()
            if node.ndim == 3 and last == node.shape[0] - 1:
                first, end = int(start[0]), int(stop[0])
        except (ValueError, RuntimeError):
            pass  # it has no end
        file = here if source.file_name == "." else locate(source.file_name, here)
        if file is None:
            continue  # it is missing: its frames are set aside
        files = [file]
        try:
            with open_file(file) as other:
                inner = other[source.dset_name]
                files = [name for _, _, name in _parts(inner, inner.shape[0] - 1, deep - 1)]
        except (OSError, KeyError):
            pass  # which is seen where it is read
        found += [(first, end, name) for name in dict.fromkeys(files)]
    return found


def _named(file: h5py.File, dataset: str) -> tuple[str, str]:
    """Name and choice; a name that is there with its brackets is a name."""
    return (dataset, "") if dataset in file else split(dataset)


def _axes(path: str, name: str, chosen: str, node: Any) -> Axes:
    try:
        if not isinstance(node, h5py.Dataset) or node.shape is None:
            raise AxesError("is not a dataset of frames")
        if fault := kind_fault(node):
            raise AxesError(f"holds {fault}, which are no counts")
        return interpret(tuple(node.shape), choice(chosen, node.ndim))
    except AxesError as error:
        held = "" if not isinstance(node, h5py.Dataset) else f"; {_candidates(node.file)}"
        raise InputError(f"{path}::{name}: {error}{held}") from error


def _stack(path: str, name: str, chosen: str, node: h5py.Dataset) -> Stack:
    axes = _axes(path, name, chosen, node)
    try:
        check_size(node, axes)
        check_filters(node)
        check_written(node, axes)
    except FrameError as error:
        raise InputError(f"{path}::{name}: {error}") from error
    named = _named_axes(node, axes)
    asked = question(axes, explicit=bool(chosen), scan_shape=axes.grid, named=named)
    if asked is not None:
        raise InputError(ask(f"{path}::{name}", axes, asked, named.get(axes.shape[asked], "")))
    return Stack(name + written(choice(chosen, node.ndim), axes), axes.frames if axes.points else None)


def _named_axes(node: h5py.Dataset, axes: Axes) -> dict[int, str]:
    """Length and name of the lists of depths, energies, … beside a dataset, which grow along an axis of it."""
    lengths = {axes.shape[axis] for axis in axes.points}
    named: dict[int, str] = {}
    entry = node.parent.parent if node.parent.name != "/" else node.parent
    for group in (node.parent, entry):
        for name in islice(group, MAX_NAMED_CANDIDATES * 10) if len(group) > MAX_NAMED_CANDIDATES * 10 else group:
            if name.lower() in IMAGE_AXIS_NAMES:
                values = group.get(name)
                if isinstance(values, h5py.Dataset) and values.ndim == 1 and values.shape[0] in lengths:
                    length = int(values.shape[0])
                    if values.dtype.kind in "iuf" and length <= MAX_AXIS_VALUES and _grows(values[()]):
                        named[length] = name
    return named


def _grows(values: Any) -> bool:
    steps = np.diff(values.astype(np.float64))
    return bool(len(steps)) and bool((steps > 0).all() or (steps < 0).all())


def _moved(file: h5py.File, name: str) -> set[int]:
    """Lengths of the lists of stage positions beside a dataset."""
    entry = "/" + name.strip("/").split("/", 1)[0]
    nodes = (
        file.get(f"{entry}/{group}/{motor}")
        for pair in STAGE_MOTORS
        for motor in pair
        for group in ("sample", "measurement", "instrument/positioners")
    )
    return {int(node.size) for node in nodes if isinstance(node, h5py.Dataset) and node.shape}


def _found(group: h5py.Group, path: str) -> _Candidate | list[Stack]:
    root = group.name == "/"
    entries = (
        [node for name in islice(group, MAX_SEARCHED_OBJECTS) if _is_group(node := _get(group, name))]
        if root
        else [group]
    )
    if series := _all_series(entries, path):
        return series
    patterns = [f"*/{pattern}" for pattern in _PATHS_IN_ENTRY] if root else list(_PATHS_IN_GROUP)
    known = [name for pattern in patterns for name in _expand(group, pattern)]
    found, more = _distinct(group, known), False
    if not found:
        names, more = _every(group)
        found = _distinct(group, names)
    stacks = [one for one in found if one.axes.points] or found
    where = path if root else f"{path}::{group.name}"
    if more:
        raise InputError(
            f"{where}: it has more than {MAX_SEARCHED_OBJECTS} groups and datasets, and no frames in the usual "
            f"places: name their dataset, as {path}::/PATH"
        )
    if not stacks:
        raise InputError(f"{where}: it has no dataset of frames{_refused(group, known)}")
    if len(stacks) > 1:
        raise InputError(f"{where}: {_which(path, stacks)}")
    return stacks[0]


def _which(path: str, stacks: Sequence[_Candidate]) -> str:
    """The question which of several stacks is meant."""
    stacks = sorted(
        stacks, key=lambda one: [(part.isdecimal(), part.zfill(12)) for part in re.split(r"(\d+)", one.name)]
    )
    entries = list(dict.fromkeys(one.name.strip("/").split("/", 1)[0] for one in stacks))
    more = ", …" if len(stacks) > MAX_NAMED_CANDIDATES else ""
    if len(entries) == len(stacks) > 1:
        listed = ", ".join(
            f"/{entry} ({one.axes.frames} frames of {one.axes.frame_shape[0]} × {one.axes.frame_shape[1]})"
            for entry, one in zip(entries[:MAX_NAMED_CANDIDATES], stacks, strict=False)
        )
        return f"holds {len(entries)} scans, {listed}{more}: which one? give {path}::/{entries[0]}"
    listed = ", ".join(map(str, stacks[:MAX_NAMED_CANDIDATES]))
    return f"which dataset? give {path}::PATH; it holds {listed}{more}"


def _refused(group: h5py.Group, names: Iterable[str]) -> str:
    """What was found and is no stack of frames, for the message."""
    for name in islice(names, 100):
        node = _get(group, name)
        if isinstance(node, h5py.Dataset) and node.shape and len(node.shape) > 2:
            fault = kind_fault(node) or f"values of shape ({', '.join(map(str, node.shape))})"
            return f": {name} holds {fault}"
    return ""


def _all_series(entries: Sequence[h5py.Group], path: str) -> list[Stack] | None:
    """The data files that an EIGER master links, where one threshold was measured."""
    groups = [node for entry in entries if _is_group(node := _get(entry, "data"))]
    thresholds = [
        node
        for group in groups
        for name in islice(group, MAX_NAMED_CANDIDATES * 10)
        if not SERIES_NAME.match(name) and _is_group(node := _get(group, name))
    ]
    found = [group for group in (*groups, *thresholds) if any(SERIES_NAME.match(name) for name in group)]
    if len(found) > 1:
        names = ", ".join(f"{path}::{group.name}" for group in found[:MAX_NAMED_CANDIDATES])
        raise InputError(f"{path}: holds the images of {len(found)} thresholds: which one? give one of {names}")
    return _in_series(found[0], path, "") if found else None


def _in_series(group: h5py.Group, path: str, chosen: str) -> list[Stack] | None:
    """The `data_000001`, `data_000002`, … of an EIGER master file; None where there are none.

    It links more of them than were written. One that is missing between others leaves its frames' places free.
    """
    names = sorted(name for name in group if SERIES_NAME.match(name))
    if not names:
        return None
    stacks = {
        name: _stack(path, f"{group.name}/{name}", chosen, node)
        for name in names
        if isinstance(node := _get(group, name), h5py.Dataset)
    }
    if not stacks:
        raise InputError(f"{path}: none of the data files it links to ({names[0]}, …) is there")
    numbers = [int(name[-6:]) for name in stacks]
    every = [f"data_{number:06d}" for number in range(int(names[0][-6:]), max(numbers) + 1)]
    usual = {stacks[name].frames for name in stacks if int(name[-6:]) != max(numbers)}
    missing = [name for name in every if name not in stacks]
    if missing and len(usual) != 1:
        raise InputError(f"{path}: the data file of {missing[0]} is missing, later ones are there: put it back")
    return [stacks.get(name) or Stack(f"{group.name}/{name}", next(iter(usual))) for name in every]


def _is_group(node: Any) -> bool:
    return isinstance(node, h5py.Group)


def _get(group: h5py.Group, name: str) -> Any:
    """The node of that name; None where the link leads nowhere."""
    try:
        return group.get(name or "/")
    except (OSError, RuntimeError, ValueError, KeyError):
        return None


def _expand(group: h5py.Group, pattern: str) -> list[str]:
    names = [""]
    for part in pattern.split("/"):
        groups = [(name, _get(group, name) if name else group) for name in names]
        names = [
            f"{name}/{key}" if name or group.name == "/" else key
            for name, node in groups
            if isinstance(node, h5py.Group)
            for key in (islice(node, MAX_SEARCHED_OBJECTS) if part == "*" else [part] if part in node else [])
        ]
    return names


def _every(group: h5py.Group) -> tuple[list[str], bool]:
    """Paths of all datasets below a group, each once, and whether there are more objects than are looked at."""
    names: list[str] = []
    seen = {_address(group)}
    left = deque([group])
    count = 0
    while left:
        here = left.popleft()
        for node in _members(here):
            count += 1
            if count > MAX_SEARCHED_OBJECTS:
                return names, True
            if _address(node) in seen:
                continue
            seen.add(_address(node))
            if isinstance(node, h5py.Dataset):
                names.append(node.name)
            else:
                left.append(node)
    return names, False


def _members(group: h5py.Group) -> Iterator[Any]:
    """What is in a group itself: links to other places and files are not followed."""
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            node = _get(group, name)
            if isinstance(node, h5py.Group | h5py.Dataset):
                yield node


def _address(node: Any) -> Any:
    found = h5py.h5o.get_info(node.id)
    return found.fileno, found.addr


def _distinct(group: h5py.Group, names: Iterable[str]) -> list[_Candidate]:
    """Datasets of frames among `names`, each once however many links lead to it."""
    kept: list[_Candidate] = []
    for name in names:
        node = _get(group, name)
        if not isinstance(node, h5py.Dataset) or not node.shape or len(node.shape) < 2 or kind_fault(node):
            continue
        try:
            axes = interpret(tuple(node.shape))
        except AxesError:
            continue
        if not any(one.node == node for one in kept):
            full = name if name.startswith("/") else f"{group.name.rstrip('/')}/{name}"
            kept.append(_Candidate(full, node, axes))
    return kept


def _candidates(file: h5py.File) -> str:
    known = [name for pattern in _PATHS_IN_ENTRY for name in _expand(file["/"], f"*/{pattern}")]
    found = _distinct(file["/"], known) or _distinct(file["/"], _every(file["/"])[0])
    listed = ", ".join(map(str, found[:MAX_NAMED_CANDIDATES]))
    return f"it holds {listed}{', …' if len(found) > MAX_NAMED_CANDIDATES else ''}" if found else "it holds no frames"
