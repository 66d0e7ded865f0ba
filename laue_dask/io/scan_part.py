"""A part of a scan: some rows and columns of its whole grid, every so many of them. Pure: no file is opened."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import InputError
from laue_dask.io.placement import Placement

Range = tuple[int, int | None]
"""First row or column, and the one after the last; None for the end of the scan."""


@dataclass(frozen=True)
class ScanPart:
    """Rows and columns that are taken, counted from 0 in the whole grid.

    Attributes
    ----------
    rows, columns
        Half-open ranges; None for all.
    every
        Distance between rows, and between columns, that are taken.
    """

    rows: Range | None = None
    columns: Range | None = None
    every: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self.rows is None and self.columns is None and self.every == 1

    def __str__(self) -> str:
        named = (("rows", self.rows), ("columns", self.columns))
        words = [f"{name} {range_text(one)}" for name, one in named if one is not None]
        return ", ".join([*words, *([f"every {self.every}"] if self.every > 1 else [])]) or "all of it"


def range_text(one: Range) -> str:
    """Return a range as it is written in options.

    Examples
    --------
    >>> text_of((2, 10)), text_of((5, None))
    ('2:10', '5:')
    """
    return f"{one[0]}:{'' if one[1] is None else one[1]}"


def take_part(placement: Placement, part: ScanPart) -> Placement:
    """Keep a part of a scan whose frames have their places; positions and order are those of the whole.

    Returns
    -------
    Placement
        Frames of other points are in its `outside`, with pattern −1. Patterns count in the part.

    Raises
    ------
    InputError
        The grid does not reach so far, or no frame is in the part.
    """
    if part.is_whole:
        return placement
    ny, nx = placement.shape
    y, x = _taken(part.rows, ny, part.every, "rows"), _taken(part.columns, nx, part.every, "columns")
    place = np.full((ny, nx), -1, dtype=np.int64)
    place[np.ix_(y, x)] = np.arange(len(y) * len(x)).reshape(len(y), len(x))
    there = placement.pattern >= 0
    pattern = np.where(there, place.ravel()[placement.pattern], -1)
    if not (pattern >= 0).any():
        raise InputError(f"{part}: there is no frame in this part: the scan's grid is {placement.how}")
    position = placement.position.reshape(ny, nx, 2)[np.ix_(y, x)].reshape(-1, 2)
    turned = placement.order == "snake" and part.every % 2 == 0
    return replace(
        placement,
        shape=(len(y), len(x)),
        order="raster" if turned else placement.order,
        pattern=pattern,
        position=position,
        how=f"{len(y)} × {len(x)}, {part} of {placement.how}",
        first="",
        outside=frozenset(np.flatnonzero(there & (pattern < 0)).tolist()),
        part={"of": [ny, nx], "rows": _listed(part.rows), "columns": _listed(part.columns), "every": part.every},
    )


def _taken(one: Range | None, count: int, every: int, name: str) -> NDArray[np.int64]:
    start, stop = one or (0, None)
    end = count if stop is None else stop
    if end > count or start >= count:
        text = range_text((start, stop))
        raise InputError(
            f"--{name} {text}: the scan has {count} {name}, 0 to {count - 1}: give a range within 0:{count}"
        )
    return np.arange(start, end, every)


def _listed(one: Range | None) -> list[int | None] | None:
    return None if one is None else list(one)
