"""What the axes of a dataset mean: points of the scan, rows and columns of a frame, or a choice to be made. Pure.

Axes of length 1 mean nothing. Of the others the last two are rows and columns, those before them count points. Where an
axis may as well count the images of one point (thresholds, modules, depths, energies), nobody but the user knows: such
a dataset is refused with the choice that it leaves.

A choice is written behind the name of a dataset, as numpy writes it: `/entry/data/data[:,0]` is the first image of each
point, `/entry/data/data[:,:]` says that both axes are the grid's.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

MIN_FRAME_SIDE_PX = 16
"""Rows and columns of a frame, at least: datasets with fewer are tables."""

MIN_POINTS_PER_IMAGE = {2: 0, 3: 0, 4: 3, 8: 2, 16: 1}
"""Thresholds or modules that detectors have, and of how many times as many points they must be to be taken for some:
4 × 6 is a grid, 24 × 2 and 100 × 4 may be two or four images of each point."""

IMAGE_AXIS_NAMES = frozenset(
    ("depth", "depths", "energy", "energies", "photon_energy", "wavelength", "threshold", "thresholds")
) | {"threshold_energy", "module", "modules", "channel", "channels"}
"""Names of the values along an axis that counts images of a point."""

_DATASET_WITH_CHOICE = re.compile(r"(?P<name>.*)\[(?P<items>[\d:,.\s]+)\]", re.DOTALL)

Choice = tuple[int | None, ...]
"""Of each axis the index that was chosen, or None for all of it; axes beyond its end are all of it."""


class AxesError(ValueError):
    """The axes are not those of a stack of frames, or a choice does not fit them."""


@dataclass(frozen=True)
class Axes:
    """Axes of a dataset.

    Attributes
    ----------
    shape
        Of the whole dataset.
    points
        Axes that count points of the scan, the slow one first.
    image
        Axes of rows and columns.
    chosen
        Axis and index of what was chosen.
    """

    shape: tuple[int, ...]
    points: tuple[int, ...]
    image: tuple[int, int]
    chosen: tuple[tuple[int, int], ...] = ()

    @property
    def frames(self) -> int:
        """Number of frames."""
        return math.prod(self.shape[axis] for axis in self.points)

    @property
    def grid(self) -> tuple[int, int] | None:
        """(ny, nx) where two axes count points."""
        return (self.shape[self.points[0]], self.shape[self.points[1]]) if len(self.points) == 2 else None

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.shape[self.image[0]], self.shape[self.image[1]]

    @property
    def images_follow(self) -> bool:
        """Whether rows and columns are the last axes, as they are in most files."""
        return self.image == (len(self.shape) - 2, len(self.shape) - 1)

    def place(self, index: int) -> tuple[int | None, ...]:
        """Return the index along each axis of frame `index`, counted in row-major order; None for rows and columns."""
        place: list[int | None] = [0] * len(self.shape)
        for axis, chosen in self.chosen:
            place[axis] = chosen
        sizes = [self.shape[axis] for axis in self.points]
        for axis, where in zip(self.points, np.unravel_index(index, sizes) if sizes else (), strict=True):
            place[axis] = int(where)
        place[self.image[0]] = place[self.image[1]] = None
        return tuple(place)


def split(dataset: str) -> tuple[str, str]:
    """Return the name of a dataset and what was chosen of it: `/d[:,0]` → `/d` and `:,0`."""
    found = _DATASET_WITH_CHOICE.fullmatch(dataset)
    return (found["name"], found["items"]) if found else (dataset, "")


def choice(text: str, rank: int) -> Choice:
    """Return what `:,0` or `...,0` chooses of a dataset with `rank` axes.

    Raises
    ------
    AxesError
        It is none, or of more axes.
    """
    items = [item.strip() for item in text.split(",")] if text.strip() else []
    if items.count("...") == 1:
        at = items.index("...")
        items[at : at + 1] = [":"] * max(0, rank - len(items) + 1)
    if not all(item == ":" or item.isdecimal() for item in items):
        raise AxesError(f"[{text}] is not a choice: give a number or ':' for each axis, as [:,0]")
    if len(items) > rank:
        raise AxesError(f"[{text}] chooses of {len(items)} axes, there are {rank}")
    return tuple(None if item == ":" else int(item) for item in items)


def written(chosen: Choice, axes: Axes) -> str:
    """Return the choice as it is written behind a name, the shortest that says it all; empty where there is none."""
    if not chosen:
        return ""
    last = max([axis for axis, _ in axes.chosen] + list(axes.points), default=-1)
    whole = [*chosen, *[None] * len(axes.shape)][: last + 1]
    return f"[{','.join(':' if item is None else str(item) for item in whole)}]" if whole else ""


def interpret(shape: tuple[int, ...], chosen: Choice = ()) -> Axes:
    """Return what the axes are, as far as their lengths tell.

    Raises
    ------
    AxesError
        There are no rows and columns among them, or the choice is none of them.
    """
    fixed = tuple((axis, index) for axis, index in enumerate(chosen) if index is not None)
    for axis, index in fixed:
        if index >= shape[axis]:
            raise AxesError(f"axis {axis} has {shape[axis]}, number {index} of it was asked for")
    of_choice = {axis for axis, _ in fixed}
    long = [axis for axis, length in enumerate(shape) if length != 1 and axis not in of_choice]
    after = 0
    if (
        len(long) > 2
        and shape[long[-1]] < MIN_FRAME_SIDE_PX
        and min(shape[long[-3]], shape[long[-2]]) >= MIN_FRAME_SIDE_PX
    ):
        after = 1  # colours or thresholds behind rows and columns
    image = long[len(long) - 2 - after : len(long) - after]
    if len(image) < 2 or min(shape[axis] for axis in image) < MIN_FRAME_SIDE_PX:
        raise AxesError(f"shape {_text(shape)} is not a stack of frames")
    points = tuple(axis for axis in long if axis not in image)
    if 0 in (shape[axis] for axis in points):
        raise AxesError(f"shape {_text(shape)}: no frame was written")
    return Axes(shape, points, (image[0], image[1]), fixed)


def question(
    axes: Axes,
    *,
    explicit: bool = False,
    scan_shape: tuple[int, int] | None = None,
    named: Mapping[int, str] | None = None,
    moved: Collection[int] = (),
) -> int | None:
    """Return the axis of which an image is to be chosen before anybody knows what the frames are; None where all is
    known.

    Parameters
    ----------
    explicit
        Whether the user has chosen of these axes: two that are left are the grid's.
    scan_shape
        (ny, nx) that the user gave.
    named
        Name of the values along an axis, by its length; see `IMAGE_AXIS_NAMES`.
    moved
        Lengths of the lists of stage positions beside the dataset.
    """
    behind = [axis for axis in axes.points if axis > axes.image[0]]
    if behind:
        return behind[0]
    if len(axes.points) > 2:
        return min(axes.points, key=lambda axis: (axes.shape[axis], -axis))
    if explicit:
        return None
    for axis in axes.points:
        if axes.shape[axis] in (named or {}):
            return axis
    if axes.grid is None or axes.grid == scan_shape:
        return None
    slow, fast = axes.points
    a, b = axes.grid
    for known in ({scan_shape[0] * scan_shape[1]} if scan_shape else set(), set(moved)):
        if a * b in known:
            return None
        if a in known:
            return fast
        if b in known:
            return slow
    few, many = min(a, b), max(a, b)
    times = MIN_POINTS_PER_IMAGE.get(few)
    if times is None or many < times * few or a == b:
        return None
    return fast if b == few else slow


def ask(where: str, axes: Axes, axis: int, name: str = "") -> str:
    """Return the question in one line: what is asked, and how it is answered."""
    number = axes.shape[axis]
    what = f"an axis of {name}" if name else "images of each point (thresholds, modules, depths, energies)"
    items = [":"] * (max([*axes.points, *(one for one, _ in axes.chosen)]) + 1)
    for one, index in axes.chosen:
        items[one] = str(index)
    every = ",".join(items)
    items[axis] = "0"
    text = f"{where}: shape {_text(axes.shape)}: the {number} along axis {axis} may be {what}: "
    text += f"choose one, a scan for each, as {where}[{','.join(items)}]"
    if axes.grid is not None and all(one < axes.image[0] for one in axes.points):
        ny, nx = axes.grid
        text += f"; or say that they are a grid of {ny} × {nx} points, as {where}[{every}]"
        text += "" if name else f" or --shape {ny} {nx}"
    elif len(axes.points) == 1 and axis < axes.image[0]:
        text += f"; or say that they are points of the scan, as {where}[{every}]"
    return text


def _text(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
