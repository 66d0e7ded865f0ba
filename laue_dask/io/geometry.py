"""The scan's grid, from the stage positions in the headers or from a shape that was given. Pure: no file is opened.

Patterns count in row-major order, ``y * nx + x``, whatever the order of acquisition, and the first frame is pattern 0:
rows and columns follow the direction in which the stage moved, so that a map looks the same whether its grid was given
or recovered.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import InputError
from laue_dask.io.levels import best_grid, propose_levels

Order = Literal["raster", "snake"]
Axis = Literal["x", "y"]
Positions = Sequence[tuple[float, float] | None] | NDArray[np.float64]

ORDERS: tuple[Order, ...] = ("raster", "snake")

FEWEST_POINTS = 0.5
"""A scan with a smaller share of its points than this was not aborted: its shape is wrong."""

MEASURED_AGAIN = 0.125
"""Share of a grid's points, at most, that may have been measured again."""

_AGAIN = -2
"""Pattern of a frame whose point was measured again, as long as −1 is one that is not known."""

FARTHEST = 1e12
"""Stage coordinates beyond this, in whatever unit, are not taken for any."""


@dataclass(frozen=True)
class ScanGrid:
    """Where each frame belongs.

    Attributes
    ----------
    shape
        (ny, nx).
    order
        Whether every line runs the same way (`raster`) or every second one back (`snake`).
    pattern : (n_frames,) int64
        Pattern index ``y * nx + x`` of each frame in order of acquisition; −1 for one whose point was measured again.
    position : (ny * nx, 2) float64
        Stage coordinates (y, x) of each pattern, NaN where unknown.
    how
        One line for people: how the grid was found.
    fast_axis
        Axis along which consecutive frames lie.
    """

    shape: tuple[int, int]
    order: Order
    pattern: NDArray[np.int64]
    position: NDArray[np.float64]
    how: str
    fast_axis: Axis = "x"


class _Found(NamedTuple):
    """A grid recovered from positions, before missing positions are filled in; `pattern` is −1 there, or `_AGAIN`."""

    shape: tuple[int, int]
    order: Order
    fast_axis: Axis
    pattern: NDArray[np.int64]
    why: str


def resolve_grid(
    n_frames: int,
    *,
    shape: tuple[int, int] | None = None,
    order: Order = "raster",
    positions: Positions | None = None,
    acquired: NDArray[np.int64] | None = None,
    aborted: bool = False,
) -> ScanGrid:
    """Find the place of every frame.

    Of frames at the same stage position the last one counts, if they are few and no point of the grid is missing: else
    the stage did not move as it was read, or there are two scans, and nobody knows where which of them belongs.

    Parameters
    ----------
    n_frames
        Number of frames, in order of acquisition.
    shape
        (ny, nx): slow and fast axis. Without it the positions must tell.
    order
        Of the lines, where no positions tell it.
    positions : (n_frames, 2)
        Stage coordinates (y, x) of each frame; None or NaN where unknown.
    acquired : (n_frames,) int64
        Place of each frame in the acquisition where no positions tell it, from 0 and growing: a gap is a frame that was
        never written. By default the frames follow one another.
    aborted
        Whether the frames may be fewer than `FEWEST_POINTS` of the shape's points.

    Raises
    ------
    InputError
        The shape does not fit, it is not known which of two frames belongs to a place, or the grid is unknown; the
        message proposes shapes.
    """
    if n_frames < 1:
        raise InputError("there are no frames")
    stage = _as_array(n_frames, positions)
    if shape is None:
        found = _from_positions(stage, order)
        if found is not None:
            pattern = _fill(found)
            return _grid(found.shape, found.order, pattern, stage, _how(found), found.fast_axis)
        if n_frames == 1:
            return _grid((1, 1), "raster", np.zeros(1, dtype=np.int64), stage, "one frame")
        raise InputError(
            f"the headers do not tell the scan's grid: give --shape NY NX ({n_frames} frames: {_shapes(n_frames)})"
        )
    try:
        found = _from_positions(stage, order)
    except InputError:
        # The shape was given because of positions like these.
        found = None
    fits = found is not None and _fits(found, shape)
    again = _count_again(found) if found is not None and fits else 0
    _check_shape(n_frames - again, shape, found, 0.0 if aborted else FEWEST_POINTS)
    return _with_shape(n_frames, shape, order, stage, found, acquired)


def acquisition(shape: tuple[int, int], order: Order, fast_axis: Axis = "x") -> NDArray[np.int64]:
    """Pattern index of each point of a complete scan, in order of acquisition."""
    ny, nx = shape
    lines = np.arange(ny * nx, dtype=np.int64).reshape(ny, nx)
    if fast_axis == "y":
        lines = lines.T
    lines = lines.copy()
    if order == "snake":
        lines[1::2] = lines[1::2, ::-1].copy()
    return lines.ravel()


def _with_shape(
    n_frames: int,
    shape: tuple[int, int],
    order: Order,
    stage: NDArray[np.float64],
    found: _Found | None,
    acquired: NDArray[np.int64] | None,
) -> ScanGrid:
    ny, nx = shape
    text = f"{ny} × {nx}"
    aborted = "" if n_frames >= ny * nx else f", aborted: {n_frames} of {ny * nx} points"
    if found is not None:
        if _fits(found, shape):
            y, x = np.divmod(found.pattern, found.shape[1])
            placed = np.where(found.pattern < 0, found.pattern, y * nx + x)
            pattern = _fill(found._replace(shape=shape, pattern=placed))
            how = f"{text}, {found.order}{_fast(found.fast_axis)}, as given and as the stage positions say{aborted}"
            return _grid(shape, found.order, pattern, stage, f"{how}{_again(found)}", found.fast_axis)
        aborted += f"; the stage positions look like {found.shape[0]} × {found.shape[1]}"
    # Numbers that run past the grid number something else than its points.
    if acquired is None or acquired[-1] >= ny * nx:
        acquired = np.arange(n_frames)
    missing = int(acquired[-1]) + 1 - n_frames
    if missing:
        aborted += f", {missing} missing between the first file number and the last"
    return _grid(shape, order, acquisition(shape, order)[acquired], stage, f"{text}, {order}, as given{aborted}")


def _check_shape(n_frames: int, shape: tuple[int, int], found: _Found | None, fewest: float) -> None:
    ny, nx = shape
    points = ny * nx
    if ny < 1 or nx < 1:
        raise InputError(f"--shape {ny} {nx}: both must be at least 1")
    if points * fewest <= n_frames <= points:
        return
    near = _near(n_frames, shape)
    if found is not None:
        near = [found.shape, *(one for one in near if one != found.shape)]
    proposals = " or ".join(f"{a} × {b}" for a, b in near[:2])
    relation = "do not fit" if n_frames > points else "are fewer than half of"
    aborted = "" if n_frames > points else " For a scan that was ended so early, set scan.aborted in --config"
    raise InputError(
        f"{n_frames} frames {relation} --shape {ny} {nx} = {points} points: did you mean {proposals}?{aborted}"
    )


def _from_positions(stage: NDArray[np.float64], order: Order) -> _Found | None:
    """The grid that the positions show, or ``None`` where they show none."""
    known = np.flatnonzero(np.isfinite(stage).all(axis=1))
    moves = [bool(np.isfinite(v).any()) and float(np.nanmax(v) - np.nanmin(v)) > 0 for v in stage.T]
    if not all(moves) or len(known) < 2:
        return (
            _from_one_axis(stage[:, 0], "y", order)
            if moves[0]
            else (_from_one_axis(stage[:, 1], "x", order) if moves[1] else None)
        )
    found = best_grid(*stage[known].T)
    if found is None:
        return None
    rows, columns = found
    shape = (rows.count, columns.count)
    cell = rows.index * columns.count + columns.index
    again = _measured_again(cell, known, shape, len(stage))
    # The order is that in which points were come to for the first time.
    first = np.sort(np.unique(cell, return_index=True)[1])
    along_x, along_y = (np.count_nonzero(np.diff(levels.index[first])) for levels in (columns, rows))
    # Lines of two points move as often along either axis: then their order tells.
    likely: tuple[Axis, ...] = ("x", "y") if along_x == along_y else ("x",) if along_x > along_y else ("y",)
    kinds = [(kind, axis) for axis in likely for kind in ORDERS]
    best, fast = min(kinds, key=lambda kind: _disorder(cell[first], shape, *kind))
    pattern = np.full(len(stage), -1, dtype=np.int64)
    pattern[known] = cell
    pattern[again] = _AGAIN
    return _Found(shape, best, fast, pattern, "from the stage positions in the headers")


def _from_one_axis(values: NDArray[np.float64], axis: Axis, order: Order) -> _Found | None:
    """The grid where only one coordinate is known to move: its lines are counted, the other axis follows."""
    n = len(values)
    if not np.isfinite(values).all():
        return None
    for levels in propose_levels(values)[1:]:
        starts = np.flatnonzero(np.diff(levels.index, prepend=-1))
        length = int(np.diff(starts, append=n).max())
        if levels.count == n:
            length = 1
        moved: Axis = axis
        still: Axis = "y" if axis == "x" else "x"
        if np.array_equal(levels.index, np.arange(n) // length):
            shape = (levels.count, length) if moved == "y" else (length, levels.count)
            why = f"lines from the stage's {axis} in the headers, {still} not told there"
            return _Found(shape, order, still, acquisition(shape, order, still)[:n], why)
        lines = -(-n // levels.count)
        shape = (levels.count, lines) if moved == "y" else (lines, levels.count)
        for kind in ORDERS:
            pattern = acquisition(shape, kind, moved)[:n]
            if np.array_equal(levels.index, pattern // shape[1] if moved == "y" else pattern % shape[1]):
                why = f"lines from the stage's {axis} in the headers, {still} not told there"
                return _Found(shape, kind, moved, pattern, why)
    return None


def _measured_again(
    cell: NDArray[np.int64], known: NDArray[np.int64], shape: tuple[int, int], n_frames: int
) -> NDArray[np.int64]:
    """Frames after which another one was taken at the same place, where these are sure to be points measured again."""
    by_cell = np.argsort(cell, kind="stable")
    again = np.flatnonzero(np.diff(cell[by_cell]) == 0)
    points = shape[0] * shape[1]
    whole = len(known) == n_frames == points + len(again)
    if len(again) and not (whole and len(again) <= max(1.0, MEASURED_AGAIN * points)):
        first, second = known[by_cell[again[0]]], known[by_cell[again[0] + 1]]
        more = f", as were {len(again) - 1} more pairs" if len(again) > 1 else ""
        raise InputError(
            f"frames {first} and {second} were taken at the same stage position{more}: "
            "leave out what does not belong to the scan, or give --shape NY NX"
        )
    return known[by_cell[again]]


def _fits(found: _Found, shape: tuple[int, int]) -> bool:
    """Whether a grid is that of this shape, or a beginning of it."""
    (lines, points), (ny, nx) = found.shape, shape
    return points == nx and lines <= ny if found.fast_axis == "x" else lines == ny and points <= nx


def _count_again(found: _Found) -> int:
    return int(np.count_nonzero(found.pattern == _AGAIN))


def _again(found: _Found) -> str:
    count = _count_again(found)
    return f"; {count} of {len(found.pattern)} frames measured again" if count else ""


def _rank(shape: tuple[int, int], order: Order, fast_axis: Axis) -> NDArray[np.int64]:
    """When each pattern of a complete scan is acquired: the inverse of `acquisition`."""
    sequence = acquisition(shape, order, fast_axis)
    rank = np.empty_like(sequence)
    rank[sequence] = np.arange(len(sequence))
    return rank


def _disorder(cell: NDArray[np.int64], shape: tuple[int, int], order: Order, fast_axis: Axis) -> int:
    """Number of frames that come before their predecessor in this order of acquisition."""
    return int(np.count_nonzero(np.diff(_rank(shape, order, fast_axis)[cell]) < 0))


def _fill(found: _Found) -> NDArray[np.int64]:
    """Patterns of the frames whose position is unknown, from the frames before and after them."""
    pattern = found.pattern.copy()
    unknown = np.flatnonzero(pattern == -1)
    if not len(unknown):
        return pattern
    sequence = acquisition(found.shape, found.order, found.fast_axis)
    rank = _rank(found.shape, found.order, found.fast_axis)
    known = np.flatnonzero(pattern >= 0)
    # Frames that follow one another in time do so in the grid: `lag` counts the points that were left out before one.
    lag = rank[pattern[known]] - known
    after = np.searchsorted(known, unknown)
    lag_before = np.concatenate([[0], lag])[after]
    lag_after = np.concatenate([lag, lag[-1:]])[after]
    place = unknown + lag_before
    lost = np.flatnonzero((lag_before != lag_after) | (place < 0) | (place >= len(sequence)))
    if len(lost):
        raise InputError(
            f"frame {unknown[lost[0]]} has no stage position and the frames beside it do not tell its place: "
            "give --shape NY NX"
        )
    pattern[unknown] = sequence[place]
    return pattern


def _grid(
    shape: tuple[int, int],
    order: Order,
    pattern: NDArray[np.int64],
    stage: NDArray[np.float64],
    how: str,
    fast_axis: Axis = "x",
) -> ScanGrid:
    position = np.full((shape[0] * shape[1], 2), np.nan)
    placed = pattern >= 0
    position[pattern[placed]] = stage[placed]
    return ScanGrid(shape, order, np.maximum(pattern, -1), position, how, fast_axis)


def _as_array(n_frames: int, positions: Positions | None) -> NDArray[np.float64]:
    stage = np.full((n_frames, 2), np.nan)
    if positions is None:
        return stage
    if len(positions) != n_frames:
        raise ValueError(f"{len(positions)} positions for {n_frames} frames")
    for i, pair in enumerate(positions):
        # No stage moves that far: a header of nonsense, whose squares would overflow.
        if pair is not None and all(abs(value) < FARTHEST for value in pair):
            stage[i] = pair
    return stage


def _how(found: _Found) -> str:
    ny, nx = found.shape
    placed = len(found.pattern) - _count_again(found)
    missing = "" if placed == ny * nx else f", {placed} of {ny * nx} points"
    return f"{ny} × {nx}, {found.order}{_fast(found.fast_axis)}, {found.why}{missing}{_again(found)}"


def _fast(axis: Axis) -> str:
    return "" if axis == "x" else " with y as fast axis"


def _factors(n: int) -> list[tuple[int, int]]:
    small = [a for a in range(1, math.isqrt(n) + 1) if n % a == 0]
    return [(a, n // a) for a in small]


def _shapes(n: int) -> str:
    """Shapes of exactly `n` points, the squarest first."""
    pairs = _factors(n)[::-1]
    return ", ".join(f"{a} × {b}" for a, b in pairs[:4]) + (", …" if len(pairs) > 4 else "")


def _near(n: int, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Shapes of `n` points, or a few more, near to the one given."""
    ny, nx = shape
    exact = {pair for a, b in _factors(n) for pair in ((a, b), (b, a))}
    loose = {(-(-n // nx), nx), (ny, -(-n // ny))} - exact

    def distance(pair: tuple[int, int]) -> float:
        return abs(math.log(pair[0] / ny)) + abs(math.log(pair[1] / nx)) + 0.5 * (pair in loose)

    return sorted(exact | loose, key=distance)
