"""Virtual datasets: which part of a frame comes from which place in which file. HDF5 fills in for what is not there."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import h5py
import numpy as np
from numpy.typing import NDArray

from laue_dask.io.hdf5.axes import Axes

MAX_SELECTION_PIECES = 4_096
"""Pieces of a selection that is no regular one, at most."""

_Slab = tuple[int, int, int, int]
"""Start, stride, count and block along an axis."""

_UNLIMITED_LENGTH = 2**62


@dataclass(frozen=True)
class Piece:
    """A part of one frame.

    Attributes
    ----------
    file, dataset
        Where it lies; `.` is the file itself.
    place
        Index along each axis of that dataset, None for rows and columns; None where the file is laid out in another
        way, of which no more can be told than whether it reaches `extent`.
    extent
        Length of each axis of that dataset, at least.
    rows, columns
        First and last of the frame, each row and column of the piece between them.
    """

    file: str
    dataset: str
    place: tuple[int | None, ...] | None
    extent: tuple[int, ...]
    rows: tuple[int, int]
    columns: tuple[int, int]


@dataclass(frozen=True)
class _Mapping:
    """One source of a virtual dataset: slabs of the virtual one and of the source; of an irregular one its bounds."""

    file: str
    dataset: str
    target: tuple[_Slab, ...]
    source: tuple[_Slab, ...] | None
    extent: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """All sources of a virtual dataset, looked up by frame."""

    mappings: tuple[_Mapping, ...]
    axes: Axes

    def pieces(self, place: Sequence[int | None]) -> list[Piece]:
        """Return the parts of the frame at this place."""
        pieces = []
        for mapping in self.mappings:
            found = self._piece(mapping, place)
            if found is not None:
                pieces.append(found)
        return pieces

    def files(self) -> dict[tuple[str, str], int]:
        """Return the frames that each source is said to hold, about: a part of one counts as one."""
        counts: dict[tuple[str, str], int] = {}
        for mapping in self.mappings:
            key = mapping.file, mapping.dataset
            counts[key] = counts.get(key, 0) + self._frames(mapping)
        return counts

    @property
    def written(self) -> int:
        """Frames that any source is said to hold: those of a detector of several modules count once."""
        parts: dict[tuple[int, int], int] = {}
        rows, columns = self.axes.image
        for mapping in self.mappings:
            corner = mapping.target[rows][0], mapping.target[columns][0]
            parts[corner] = parts.get(corner, 0) + self._frames(mapping)
        return max(parts.values(), default=0)

    def mapped(self) -> NDArray[np.bool_]:
        """Return (row, column) whether anything is said of a pixel in any frame; a gap between modules is not."""
        return self.covered([self._box(mapping) for mapping in self.mappings])

    def covered(self, boxes: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> NDArray[np.bool_]:
        """Return (row, column) whether a pixel lies in any of the boxes: first and last of rows and of columns."""
        found = np.zeros(self.axes.frame_shape, dtype=np.bool_)
        for rows, columns in set(boxes):
            found[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
        return found

    def _frames(self, mapping: _Mapping) -> int:
        count = 1
        for axis in self.axes.points:
            start, _, number, block = mapping.target[axis]
            count *= max(0, min(number * block, self.axes.shape[axis] - start))
        return count

    def _box(self, mapping: _Mapping) -> tuple[tuple[int, int], tuple[int, int]]:
        (top, bottom), (left, right) = (_ends(mapping.target[axis], self.axes.shape[axis]) for axis in self.axes.image)
        return (top, bottom), (left, right)

    def _piece(self, mapping: _Mapping, place: Sequence[int | None]) -> Piece | None:
        ordinal: list[int] = []
        for axis, where in enumerate(place):
            if where is None:
                continue
            found = _ordinal(mapping.target[axis], where)
            if found is None:
                return None
            ordinal.append(found)
        rows, columns = self._box(mapping)
        return Piece(mapping.file, mapping.dataset, self._place(mapping, ordinal), mapping.extent, rows, columns)

    def _place(self, mapping: _Mapping, ordinal: Sequence[int]) -> tuple[int | None, ...] | None:
        """Where in its source a frame lies, by its place among those of the mapping."""
        if mapping.source is None or len(mapping.source) < 2 or not self.axes.images_follow:
            return None
        leading = [slab for axis, slab in enumerate(mapping.target) if axis not in self.axes.image]
        sizes = [slab[2] * slab[3] for slab in leading]
        others = [slab[2] * slab[3] for slab in mapping.source[:-2]]
        # The first axis alone may have no end.
        number = 0
        for size, where in zip(sizes, ordinal, strict=True):
            number = number * size + where
        place: list[int | None] = []
        for size in reversed(others[1:]):
            number, where = divmod(number, size)
            place.append(where)
        if others:
            place.append(number)
        elif number:
            return None
        found = [slab[0] + where // slab[3] * slab[1] + where % slab[3] for slab, where in _zip(mapping, place)]
        return (*found, None, None)


def table(node: h5py.Dataset, axes: Axes) -> Table:
    """Return the sources of a virtual dataset; read once as long as its file stays as it is."""
    stat = node.file.id.get_filesize()
    return _table(_Key(node, str(node.file.filename), str(node.name), stat, axes))


class _Key:
    """A dataset that is told from others by where it lies."""

    def __init__(self, node: h5py.Dataset, *what: object) -> None:
        self.node: h5py.Dataset | None = node
        self.axes = what[-1]
        self._what = what

    def __hash__(self) -> int:
        return hash(self._what)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._what == other._what


@lru_cache(maxsize=4)
def _table(key: _Key) -> Table:
    node, key.node = key.node, None  # the key is kept, and would keep the file open
    if node is None or not isinstance(key.axes, Axes):
        raise ValueError("a dataset is needed")
    mappings: list[_Mapping] = []
    for one in node.virtual_sources():
        source = _slabs(one.src_space)
        extent = tuple(int(n) for n in one.src_space.shape) if source is None else _reach(source[0])
        regular = source[0] if source is not None and len(source) == 1 else None
        targets = _slabs(one.vspace) or []
        if regular == () and len(targets) == 1:
            # All of a source, whose shape is not told: as much as goes into its part of the virtual dataset.
            regular = tuple((0, 1, 1, slab[2] * slab[3]) for slab in targets[0])
            extent = _reach(regular)
        for target in targets:
            mappings.append(_Mapping(one.file_name, one.dset_name, target, regular, extent))
    return Table(tuple(mappings), key.axes)


def _slabs(space: h5py.h5s.SpaceID) -> list[tuple[_Slab, ...]] | None:
    """Selection of a dataspace as regular slabs; None where it is none that can be told so."""
    kind = space.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        return [tuple((0, 1, 1, int(length)) for length in space.shape)]
    if kind != h5py.h5s.SEL_HYPERSLABS:
        return None
    if space.is_regular_hyperslab():
        parts = zip(*space.get_regular_hyperslab(), strict=True)
        return [
            tuple(
                (int(a), int(b), min(int(c), _UNLIMITED_LENGTH), min(int(d), _UNLIMITED_LENGTH)) for a, b, c, d in parts
            )
        ]
    if space.get_select_hyper_nblocks() > MAX_SELECTION_PIECES:
        return None
    blocks = space.get_select_hyper_blocklist()
    return [
        tuple((int(a), 1, 1, int(b) - int(a) + 1) for a, b in zip(first, last, strict=True)) for first, last in blocks
    ]


def _reach(slabs: tuple[_Slab, ...]) -> tuple[int, ...]:
    """Lengths of the axes that a selection asks for; 0 where it takes what there is."""
    return tuple(
        0 if _UNLIMITED_LENGTH in (count, block) else start + (count - 1) * stride + block
        for start, stride, count, block in slabs
    )


def _ends(slab: _Slab, length: int) -> tuple[int, int]:
    start, stride, count, block = slab
    return start, min(length, start + (count - 1) * stride + block) - 1


def _ordinal(slab: _Slab, where: int) -> int | None:
    """Place of an index among those of a slab; None where it is not one of them."""
    start, stride, count, block = slab
    if where < start:
        return None
    turn, within = divmod(where - start, stride) if count > 1 else (0, where - start)
    return turn * block + within if turn < count and within < block else None


def _zip(mapping: _Mapping, place: list[int | None]) -> list[tuple[_Slab, int]]:
    slabs = (mapping.source or ())[:-2]
    return [(slab, where or 0) for slab, where in zip(slabs, reversed(place), strict=True)]
