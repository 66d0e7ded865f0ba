"""Coordinates of a map's rows and columns: micrometres where the stage's positions are known, else points. Pure."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

UM = "µm"
"""Units of stage positions in a scan store, and of the coordinates that are made of them."""

POINTS = "1"
"""Units of coordinates that count points."""

MIN_KNOWN_SHARE = 0.5
"""Share of the points whose stage position has to be known."""

MAX_OFF_LINE_STEPS = 0.25
"""How far the median position of a row or column may lie off an even spacing, in steps."""

MAX_SPREAD_STEPS = 0.5
"""How far points may lie off the middle of their row or column along the axis that it stands for, in steps."""

SHARPNESS_UM = 1e-6
"""Coordinates are rounded to so many micrometres: what is finer comes of the arithmetic."""


class Coordinate(NamedTuple):
    """The coordinate of a map's rows, or of its columns.

    Attributes
    ----------
    values
        (n,) float64, evenly spaced, in the order of the map; it may ascend or descend.
    units
        `UM` or `POINTS`.
    long_name
        What it is, for the axis of a plot.
    """

    values: NDArray[np.float64]
    units: str
    long_name: str

    @property
    def attributes(self) -> dict[str, str]:
        """As xarray and the results store keep them."""
        way = "ascending" if len(self.values) < 2 or self.values[-1] > self.values[0] else "descending"
        return {"units": self.units, "long_name": self.long_name, "direction": f"{way} from the first on"}


def coordinates_of(
    shape: tuple[int, int], position_um: NDArray[np.float64] | None, *, min_known: float = MIN_KNOWN_SHARE
) -> tuple[Coordinate, Coordinate]:
    """Return the coordinates y and x of a map.

    Parameters
    ----------
    shape
        (ny, nx).
    position_um
        (ny * nx, 2) stage positions (y, x) in micrometres in the order of the map, NaN where unknown; None where all
        are, or where their units are.
    min_known
        Share of the points whose position has to be known; that of a scan that goes on may be small.

    Returns
    -------
    y, x
        Of the stage, where enough positions are known and lie on an even grid whose rows and columns are along the
        stage's axes; counted in points otherwise, both of them.
    """
    if position_um is not None:
        stage = position_um.reshape(*shape, 2)
        known = np.isfinite(stage).all(axis=2)
        if known.any() and known.mean() >= min_known:
            y, x = (_axis(np.where(known, stage[..., axis], np.nan), along=axis) for axis in (0, 1))
            if y is not None and x is not None and (len(y) == 1) + (len(x) == 1) < 2:
                return Coordinate(y, UM, "stage y"), Coordinate(x, UM, "stage x")
    ny, nx = shape
    return (
        Coordinate(np.arange(ny, dtype=np.float64), POINTS, "row of the scan"),
        Coordinate(np.arange(nx, dtype=np.float64), POINTS, "column of the scan"),
    )


def _axis(values: NDArray[np.float64], *, along: int) -> NDArray[np.float64] | None:
    """Evenly spaced coordinates of the rows (`along` 0) or columns (1) of a map of positions; None where they are none.

    One row or column alone has one coordinate, whatever its points do along it.
    """
    lines = values if along == 0 else values.T
    count = len(lines)
    known = np.flatnonzero(np.isfinite(lines).any(axis=1))
    middle = np.array([np.median(lines[line][np.isfinite(lines[line])]) for line in known])
    if count == 1:
        return np.round(middle / SHARPNESS_UM) * SHARPNESS_UM if len(known) else None
    if len(known) < 2:
        return None
    slope, start = np.polyfit(known.astype(float), middle, 1)
    if abs(slope) < SHARPNESS_UM:
        return None
    even: NDArray[np.float64] = start + slope * np.arange(count)
    spread = np.abs(lines - even[:, None])[np.isfinite(lines)]
    off_line = float(np.abs(middle - even[known]).max())
    if off_line > MAX_OFF_LINE_STEPS * abs(slope) or float(spread.max()) > MAX_SPREAD_STEPS * abs(slope):
        return None
    rounded: NDArray[np.float64] = np.round(even / SHARPNESS_UM) * SHARPNESS_UM
    return rounded


@dataclass(frozen=True)
class MapScale:
    """What the points of a map are apart along its axes.

    Attributes
    ----------
    first, step
        Coordinates (y, x) of the first point, and from one point to the next.
    units
        Of these; empty where points are counted.
    """

    first: tuple[float, float] = (0.0, 0.0)
    step: tuple[float, float] = (1.0, 1.0)
    units: str = ""

    @classmethod
    def of(cls, results: xr.Dataset) -> "MapScale":
        """Return the coordinates of a run's results; points where they have none in micrometres."""
        if not {"y", "x"} <= set(results.coords) or {results[name].attrs.get("units") for name in "yx"} != {UM}:
            return cls()
        return cls.of_coordinates(*(Coordinate(results[name].values, UM, name) for name in "yx"))

    @classmethod
    def of_coordinates(cls, y: Coordinate, x: Coordinate) -> "MapScale":
        """Return what coordinates have for a map; a line is as wide as its points are apart along it."""
        steps = [float(one.values[-1] - one.values[0]) / max(1, len(one.values) - 1) for one in (y, x)]
        if y.units != UM or not any(steps):
            return cls()
        along = [step or abs(other) for step, other in zip(steps, steps[::-1], strict=True)]
        return cls((float(y.values[0]), float(x.values[0])), (along[0], along[1]), UM)

    def at(self, y: float, x: float) -> tuple[float, float]:
        """Return the coordinates (y, x) of a point, rounded to a nanometre where they are micrometres."""
        values = [first + step * place for first, step, place in zip(self.first, self.step, (y, x), strict=True)]
        return round(values[0], 3), round(values[1], 3)

    @property
    def aspect(self) -> float:
        """Height of a point over its width."""
        return abs(self.step[0] / self.step[1]) if self.units else 1.0


COUNTED = MapScale()
"""Of a map whose points are counted."""
