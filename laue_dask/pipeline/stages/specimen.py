"""The specimen domain (Definition 1): which points of the scan have a usable pattern, and whether they are enough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import InputError

MIN_PATTERNS = 4
"""A segmentation of fewer patterns says nothing."""


@dataclass(frozen=True)
class SpecimenMap:
    """Where the patterns of a scan lie.

    Attributes
    ----------
    valid : (pattern,) bool
        Patterns that have features.
    shape
        (ny, nx).
    """

    valid: NDArray[np.bool_]
    shape: tuple[int, int]

    @property
    def patterns(self) -> NDArray[np.int64]:
        """Pattern index of each valid row."""
        return np.flatnonzero(self.valid)

    def paint(self, values: NDArray[Any], *, fill: Any) -> NDArray[Any]:
        """Return the map (ny, nx, …) of one value per valid pattern."""
        full = np.full((len(self.valid), *values.shape[1:]), fill, dtype=values.dtype)
        full[self.valid] = values
        return full.reshape(*self.shape, *values.shape[1:])


def require_enough_patterns(count: int, k_values: Sequence[int], set_aside: Sequence[Mapping[str, Any]] = ()) -> None:
    """Refuse to segment `count` usable patterns where they are too few for anything, or for one of `k_values`.

    Parameters
    ----------
    set_aside
        Frames that could not be used, with `source` and `reason` of each: they are why patterns are few.

    Raises
    ------
    InputError
        They are.
    """
    unusable = ""
    if set_aside:
        first, number = set_aside[0], len(set_aside)
        frames = f"1 frame was set aside ({first['source']}: {first['reason']})"
        if number > 1:
            frames = f"{number} frames were set aside (the first, {first['source']}: {first['reason']})"
        unusable = f"{frames}, and too few are left: "
    if count < MIN_PATTERNS:
        raise InputError(
            f"{unusable}{count} usable pattern{'s' if count != 1 else ''}: a segmentation needs at least "
            f"{MIN_PATTERNS}; `laue-dask ingest` keeps the frames"
        )
    if k_values and max(k_values) >= count:
        raise InputError(
            f"{unusable}K = {max(k_values)} with {count} usable patterns: ask for fewer clusters than patterns"
        )


def usable(components: da.Array, where: SpecimenMap) -> da.Array:
    """Return the rows of the valid patterns, for estimators that know no missing values.

    Raises
    ------
    InputError
        There are too few of them to segment anything.
    """
    require_enough_patterns(int(where.valid.sum()), ())
    return components if where.valid.all() else components[where.patterns]
