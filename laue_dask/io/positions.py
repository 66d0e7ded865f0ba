"""Grids in the stage positions of a scan: recovered from all of them, or one that is known held against some. Pure."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import InputError
from laue_dask.io.grid_levels import best_grid, propose_levels

Order = Literal["raster", "snake"]
Axis = Literal["x", "y"]
Positions = Sequence[tuple[float, float] | None] | NDArray[np.float64]

ORDERS: tuple[Order, ...] = ("raster", "snake")

MAX_MEASURED_AGAIN_SHARE = 0.125
"""Share of a grid's points, at most, that may have been measured again."""

MEASURED_AGAIN_PATTERN = -2
"""Pattern of a frame whose point was measured again, as long as −1 is one that is not known."""

MAX_COORDINATE = 1e12
"""Stage coordinates beyond this, in whatever unit, are not taken for any."""

MIN_HEADERS = 3
"""Positions from which on a grid that is known can be held against them."""

SAME_POINT_STEPS = 0.4
"""Steps by which two positions of one point may differ."""

MIN_WOVEN_OFFSET_STEPS = 0.15
"""Steps between lines by which every second point of a line lies off the others, from which on these are two lines."""

MAX_OFFSET_STEPS = 0.5
"""Steps that a position may lie off its place in a grid that is known."""

FARTHEST_OFF_FOUND = 0.3
"""The same where the grid was found in the positions, of `FEW_POINTS` at most: of many, some drift slowly."""

FEW_POINTS = 100

FEWEST_SPARE = 0.05
"""Share of a position's weight in a grid that the others must have for them to tell where it should be."""

MAX_RMS_OFFSET_STEPS = 0.3
"""Root mean square of the same."""

SMALLEST_STEP = 0.2
"""Share of an axis's range that its steps from place to place make up, at least, where it moves along a grid."""

MAX_SHEAR_STEPS = 0.5
"""Share of a step between lines by which a line's points may move along the other axis, from one to the next."""

MIN_FILL_SHARE = 0.6
"""Share of a grid's points below which a chessboard of them is no rectangle with gaps."""

FEWEST_SHEARED, LARGEST_SHEAR_OF_FEW = 12, 0.35
"""Points from which on that much is believed, and the share up to there: lines offset by half a step look the same."""

MIN_ALTERNATION_SHARE = 0.7
"""Share of the steps along a line at which its points change sides, where it is two lines."""

MIN_ZIGZAG_POINTS = 8
"""Points of a line that tell two lines from noise, at least."""

MAX_ZIGZAG_STEPS = 0.5
"""Steps along a line that its neighbours may lie apart across it, in the median, at most."""

MAX_LINE_WIDTH_STEPS = 0.3
"""Width of a line, as a share of the step between lines, where nothing else tells its points: at most."""

MIN_POINTS_FOR_SPACING = 4
"""Points of a line from which on it can be seen whether they are evenly spaced."""

MAX_DISORDER_SHARE = 0.05
"""Share of the frames that may come before their predecessor in an order of acquisition that is still that order."""


class Recovered(NamedTuple):
    """A grid recovered from positions, before missing positions are filled in; `pattern` is −1 there, or
    `MEASURED_AGAIN_PATTERN`.
    """

    shape: tuple[int, int]
    order: Order
    fast_axis: Axis
    pattern: NDArray[np.int64]
    why: str
    orders: tuple[Order, ...] = ORDERS
    """All orders that the frames may have been taken in."""

    @property
    def again(self) -> int:
        """How many frames were measured again."""
        return int(np.count_nonzero(self.pattern == MEASURED_AGAIN_PATTERN))

    def fits(self, shape: tuple[int, int]) -> bool:
        """Return whether the grid is that of this shape, or a beginning of it."""
        (lines, points), (ny, nx) = self.shape, shape
        return points == nx and lines <= ny if self.fast_axis == "x" else lines == ny and points <= nx


class Agreement(NamedTuple):
    """The order in which frames went through a grid that is known, as their positions tell."""

    order: Order
    fast_axis: Axis
    orders: tuple[Order, ...]
    """All orders that agree as well."""


def as_array(n_frames: int, positions: Positions | None) -> NDArray[np.float64]:
    """Return the positions (n_frames, 2), NaN where unknown or nonsense."""
    stage = np.full((n_frames, 2), np.nan)
    if positions is None:
        return stage
    if len(positions) != n_frames:
        raise ValueError(f"{len(positions)} positions for {n_frames} frames")
    for i, pair in enumerate(positions):
        # No stage moves that far: a header of nonsense, whose squares would overflow.
        if pair is not None and all(abs(value) < MAX_COORDINATE for value in pair):
            stage[i] = pair
    return stage


def acquisition(shape: tuple[int, int], order: Order, fast_axis: Axis = "x") -> NDArray[np.int64]:
    """Return the pattern index of each point of a complete scan, in order of acquisition."""
    ny, nx = shape
    lines = np.arange(ny * nx, dtype=np.int64).reshape(ny, nx)
    if fast_axis == "y":
        lines = lines.T
    lines = lines.copy()
    if order == "snake":
        lines[1::2] = lines[1::2, ::-1].copy()
    return lines.ravel()


def moves(stage: NDArray[np.float64]) -> list[bool]:
    """Return whether the stage moved along y, and along x."""
    known = [axis[np.isfinite(axis)] for axis in stage.T]
    return [len(values) > 0 and float(values.max() - values.min()) > 0 for values in known]


def recover(stage: NDArray[np.float64], order: Order = "raster") -> Recovered | None:
    """Return the grid that positions (n, 2) show, in order of acquisition, or ``None`` where they show none.

    Parameters
    ----------
    order
        Of the lines, where the positions do not tell it.

    Raises
    ------
    InputError
        They are a grid, but no rectangle of lines that stand one above the other; or it is not known which of two
        frames at one place counts.
    """
    known = np.flatnonzero(np.isfinite(stage).all(axis=1))
    moved = moves(stage)
    if not all(moved) or len(known) < 2:
        return (
            _from_one_axis(stage[:, 0], "y", order)
            if moved[0]
            else (_from_one_axis(stage[:, 1], "x", order) if moved[1] else None)
        )
    found = best_grid(*stage[known].T)
    if found is None:
        if odd := irregular(stage[known]):
            raise InputError(odd)
        return None
    rows, columns = found
    if min(rows.count, columns.count) > 1 and (
        odd := _unlike_lines(stage[known], rows.index, columns.index, rows.step, columns.step)
    ):
        raise InputError(odd)
    shape = (rows.count, columns.count)
    if min(shape) == 1 and _zigzag(stage[known], 1 if rows.count == 1 else 0):
        raise InputError("the stage positions go to and fro across their line: they are neither a line nor a rectangle")
    if min(shape) > 1 and len(known) <= FEW_POINTS:
        fitted = _fit(stage[known], rows.index, columns.index)
        if fitted is None or fitted[1].max() > FARTHEST_OFF_FOUND:
            raise InputError("the stage positions are no rectangular grid: some lie between the places of one")
    parity = float(np.mean((rows.index + columns.index) % 2))
    if min(shape) > 1 and len(known) < MIN_FILL_SHARE * shape[0] * shape[1] and abs(parity - 0.5) > 0.4:
        raise InputError("the stage positions fill every second point of a rectangle, as a hexagonal grid does")
    # The order is that in which points were come to for the first time.
    first = np.sort(np.unique(rows.index * columns.count + columns.index, return_index=True)[1])
    along_x, along_y = (np.count_nonzero(np.diff(levels.index[first])) for levels in (columns, rows))
    # Lines of two points move about as often along either axis: then their order tells.
    close = abs(along_x - along_y) <= 1
    likely: tuple[Axis, ...] = ("x", "y") if close else ("x",) if along_x > along_y else ("y",)
    kinds = [(kind, axis) for axis in likely for kind in sorted(ORDERS, key=lambda kind: kind != order)]
    cells = {kind: _oriented(rows.index, columns.index, shape, *kind) for kind in kinds}
    disorders = {kind: _disorder(cells[kind][first], shape, *kind) for kind in kinds}
    best, fast = min(kinds, key=disorders.__getitem__)
    cell = cells[best, fast]
    axis, slow, place = (0, rows, columns.index) if fast == "x" else (1, columns, rows.index)
    if min(shape) > 1 and _woven(stage[known, axis], slow.index, place, slow.step):
        raise InputError("the stage positions are no rectangular grid: points of every second place lie between lines")
    again = _measured_again(cell, known, shape, len(stage), stage, (rows.step, columns.step))
    orders = tuple(kind for kind, axis in kinds if disorders[kind, axis] == disorders[best, fast])
    if len(known) < len(stage) and disorders[best, fast] > MAX_DISORDER_SHARE * len(first) + 1:
        lost = int(np.flatnonzero(~np.isfinite(stage).all(axis=1))[0])
        raise InputError(f"frame {lost} has no stage position, and the others go through their grid in no known order")
    if min(shape) == 1 and disorders[best, fast] > MAX_DISORDER_SHARE * len(first) + 1:
        return None  # several lines, taken for one
    pattern = np.full(len(stage), -1, dtype=np.int64)
    pattern[known] = cell
    pattern[again] = MEASURED_AGAIN_PATTERN
    return Recovered(shape, best, fast, pattern, "from the stage positions", orders)


def _oriented(
    row: NDArray[np.int64], column: NDArray[np.int64], shape: tuple[int, int], order: Order, fast_axis: Axis
) -> NDArray[np.int64]:
    """Patterns of rows and columns counted as the stage moved in an order, also where the first frames are missing."""
    (slow, fast), (lines, length) = ((row, column), shape) if fast_axis == "x" else ((column, row), shape[::-1])
    if slow[0] > slow[-1]:
        slow = lines - 1 - slow
    along = np.flatnonzero(np.diff(slow) == 0)
    ways = np.sign(np.diff(fast))[along]
    back = order == "snake"
    if int((ways * np.where(back & ((slow[along] - slow[0]) % 2 == 1), -1, 1)).sum()) < 0:
        fast = length - 1 - fast
    return slow * shape[1] + fast if fast_axis == "x" else fast * shape[1] + slow


def agreement(
    stage: NDArray[np.float64],
    acquired: NDArray[np.int64],
    shape: tuple[int, int],
    order: Order | None,
) -> Agreement | None:
    """Return the order in which frames went through a grid of this shape; ``None`` where they did not.

    Parameters
    ----------
    stage : (n, 2)
        Of some frames.
    acquired : (n,) int64
        Place of each of them in the acquisition.
    order
        The one that is preferred where the positions tell several.
    """
    found: list[tuple[float, Order, Axis]] = []
    for fast_axis in ("x", "y"):
        for kind in ORDERS:
            pattern = acquisition(shape, kind, fast_axis)[acquired]
            off = distance(stage, pattern, shape)
            if off is not None:
                found.append((off, kind, fast_axis))
    if not found:
        return None
    # Those that agree equally well differ in rounding alone.
    least = min(off for off, _, _ in found)
    equal = [(kind, axis) for off, kind, axis in found if off <= 1.01 * least + 1e-6]
    orders = tuple(dict.fromkeys(kind for kind, _ in equal))
    kind, axis = next((one for one in equal if one[0] == order), equal[0])
    return Agreement(kind, axis, orders)


def distance(stage: NDArray[np.float64], pattern: NDArray[np.int64], shape: tuple[int, int]) -> float | None:
    """Return how far positions lie off an even grid with these patterns at their places, as root mean square in steps.

    ``None`` where that is too far. The grid may be turned and sheared a little.
    """
    known = np.isfinite(stage).all(axis=1)
    stage, pattern = stage[known], pattern[known]
    row, column = np.divmod(pattern, shape[1])
    if _half_offset(stage, row, column) or _half_offset(stage[:, ::-1], column, row):
        return None
    fitted = _fit(stage, row, column)
    if fitted is None:
        return None
    off, alone, freedom = fitted
    usual = float(np.sqrt(np.sum(off**2) / freedom)) if freedom else 0.0
    return usual if alone.max() <= MAX_OFFSET_STEPS and usual <= MAX_RMS_OFFSET_STEPS else None


def _fit(
    stage: NDArray[np.float64], row: NDArray[np.int64], column: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int] | None:
    """How far positions (n, 2) lie off an even grid, in steps; None where they are of no such grid.

    Returns
    -------
    off
        Of each position along each axis that moves.
    alone
        The same from where all other positions tell that it should be; 0 where they do not tell.
    freedom
        Number of positions along the axes beyond those that any grid would go through.
    """
    places = [one for one in (row, column) if np.ptp(one) > 0]
    table = np.stack([np.ones(len(row)), *places], axis=1).astype(float)
    largest_shear = MAX_SHEAR_STEPS if len(row) >= FEWEST_SHEARED else LARGEST_SHEAR_OF_FEW
    steps: list[float] = []
    residuals: list[NDArray[np.float64]] = []
    for axis, main, other in ((0, row, column), (1, column, row)):
        values = stage[:, axis]
        if np.ptp(values) == 0:
            continue
        solved = np.linalg.lstsq(table, values - values.mean(), rcond=None)[0]
        residuals.append(values - values.mean() - table @ solved)
        slopes = dict(zip([id(one) for one in places], solved[1:], strict=True))
        step, shear = abs(slopes.get(id(main), 0.0)), abs(slopes.get(id(other), 0.0))
        if np.ptp(main) > 0:
            if shear > largest_shear * step:
                return None
            if step < SMALLEST_STEP * np.ptp(values) / np.ptp(main):
                return None  # it moves, but not from one place to the next
            steps.append(float(step))
        else:
            if shear > MAX_SHEAR_STEPS * abs(_slope(stage[:, 1 - axis], other)):
                return None  # it moves the other way
            steps.append(0.0)
    if not steps or not max(steps):
        return None
    steps = [step or max(steps) for step in steps]
    off = np.stack([residual / step for residual, step in zip(residuals, steps, strict=True)])
    spare = 1 - np.einsum("ij,ji->i", table, np.linalg.pinv(table))
    alone = np.abs(off) / np.where(spare > FEWEST_SPARE, spare, np.inf)
    return off, alone, len(steps) * max(0, len(row) - table.shape[1])


def _slope(values: NDArray[np.float64], place: NDArray[np.int64]) -> float:
    """Change of values from one place to the next."""
    return float(np.polyfit(place.astype(float), values, 1)[0]) if np.ptp(place) > 0 else 0.0


def fill(found: Recovered, number: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Return the patterns of the frames whose position is unknown, from the frames before and after them.

    Parameters
    ----------
    number : (n,) int64
        Place of each frame in the acquisition, where file names tell it; by default they follow one another.
    """
    pattern = found.pattern.copy()
    unknown = np.flatnonzero(pattern == -1)
    if not len(unknown):
        return pattern
    counted, number = number, np.arange(len(pattern)) if number is None else number
    sequence = acquisition(found.shape, found.order, found.fast_axis)
    rank = _rank(found.shape, found.order, found.fast_axis)
    known = np.flatnonzero(pattern >= 0)
    # Frames that follow one another in time do so in the grid: `lag` counts the points that were left out before one.
    lag = rank[pattern[known]] - number[known]
    after = np.searchsorted(known, unknown)
    lag_before = np.concatenate([lag[:1] if number[0] else [0], lag])[after]
    lag_after = np.concatenate([lag, lag[-1:]])[after]
    place = number[unknown] + lag_before
    # After the last position nothing tells where a frame is missing, if one is and no number says so.
    open_end = counted is None and int(place[-1]) + 1 < len(sequence)
    unsure = open_end & (unknown > known[-1])
    lost = np.flatnonzero((lag_before != lag_after) | (place < 0) | (place >= len(sequence)) | unsure)
    if len(lost):
        raise InputError(
            f"frame {unknown[lost[0]]} has no stage position and the frames beside it do not tell its place: "
            "give --shape NY NX"
        )
    pattern[unknown] = sequence[place]
    return pattern


def irregular(stage: NDArray[np.float64]) -> str:
    """Return what is known of positions (n, 2) that are lines, but no rectangle of them; empty where nothing is."""
    for axis, name in ((0, "rows"), (1, "columns")):
        along, across = stage[:, 1 - axis], stage[:, axis]
        for levels in propose_levels(across)[1:]:
            lines = [np.sort(along[levels.index == line]) for line in np.unique(levels.index)]
            if len(lines) < 2 or max(map(len, lines)) < 2:
                continue
            steps = [float(np.median(np.diff(line))) for line in lines if len(line) > 1]
            step = float(np.median(steps))
            even = all(np.abs(np.diff(line) - step).max() < 0.2 * step for line in lines if len(line) > 1)
            if step <= 0:
                continue
            offsets = np.array([(line[0] - lines[0][0]) / step for line in lines])
            apart = np.abs(np.diff(offsets - np.rint(offsets)))
            if even and np.median(np.minimum(apart, 1 - apart)) > 0.4:
                return _HEXAGONAL_MESSAGE.format(name=name)
            if len({len(line) for line in lines}) > 1 or not even:
                return f"the stage positions are {len(lines)} {name} of {_few({len(line) for line in lines})} points"
    return ""


_HEXAGONAL_MESSAGE = "the stage positions are a hexagonal grid: every second of the {name} is offset by half a step"


def _few(counts: set[int]) -> str:
    ordered = sorted(counts)
    return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def _half_offset(stage: NDArray[np.float64], line: NDArray[np.int64], place: NDArray[np.int64]) -> bool:
    """Whether every second line is offset by half a step along itself."""
    if np.ptp(line) < 1 or np.ptp(place) < 1:
        return False
    odd = (line % 2).astype(float)
    if not 0 < odd.sum() < len(odd):
        return False
    terms = [np.ones(len(line)), line, place, odd] if len(np.unique(line)) > 2 else [np.ones(len(line)), place, odd]
    table = np.stack(terms, axis=1).astype(float)
    values = stage[:, 1] - stage[:, 1].mean()
    solved = np.linalg.lstsq(table, values, rcond=None)[0]
    step, shift = abs(solved[-2]), abs(solved[-1])
    if step == 0 or len(values) <= len(terms):
        return False
    scatter = np.sqrt(np.sum((values - table @ solved) ** 2) / (len(values) - len(terms)))
    return bool(abs(shift / step - 0.5) < 0.15 and shift > 4 * scatter / np.sqrt(len(values) / 4))


def _unlike_lines(
    stage: NDArray[np.float64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    row_step: float,
    column_step: float,
) -> str:
    """Why points that were cut into rows and columns are no rectangle; empty where they are one."""
    if _half_offset(stage, rows, columns):
        return _HEXAGONAL_MESSAGE.format(name="rows")
    if _half_offset(stage[:, ::-1], columns, rows):
        return _HEXAGONAL_MESSAGE.format(name="columns")
    for values, line, place, step, name in (
        (stage[:, 1], rows, columns, column_step, "rows"),
        (stage[:, 0], columns, rows, row_step, "columns"),
    ):
        if _uneven(values, line, place, step):
            counts = _few(set(np.unique(line, return_counts=True)[1].tolist()))
            return f"the stage positions are {len(np.unique(line))} {name} of {counts} points that do not line up"
    return ""


def _zigzag(stage: NDArray[np.float64], along: int) -> bool:
    """Whether points of one line lie now on one side of it and now on the other, by more than their steps."""
    order = np.argsort(stage[:, along], kind="stable")
    place, side = stage[order, along], stage[order, 1 - along]
    steps = np.diff(place)
    step = float(np.median(steps))
    if len(place) < MIN_POINTS_FOR_SPACING or step <= 0:
        return False
    # A line that is turned, or drifts slowly, is a line.
    aside = side - np.polyval(np.polyfit(place - place.mean(), side, 1), place - place.mean())
    if np.median(np.abs(np.diff(aside))) > MAX_ZIGZAG_STEPS * step:
        return True
    left = aside < (aside.min() + aside.max()) / 2
    between = float(aside[~left].mean() - aside[left].mean())
    within = float(np.sqrt((aside[left].var() + aside[~left].var()) / 2))
    turns = np.count_nonzero(np.diff(left)) / (len(left) - 1)
    return bool(
        len(left) >= MIN_ZIGZAG_POINTS and turns > MIN_ALTERNATION_SHARE and between > max(6 * within, 0.15 * step)
    )


def _woven(across: NDArray[np.float64], line: NDArray[np.int64], place: NDArray[np.int64], step: float) -> bool:
    """Whether lines are two each, whose points take turns along them."""
    apart: list[float] = []
    clear: list[float] = []
    for one in np.unique(line):
        odd = place[line == one] % 2 == 1
        groups = [across[line == one][odd], across[line == one][~odd]]
        if min(map(len, groups)) < 2:
            continue
        between = abs(float(groups[0].mean() - groups[1].mean()))
        within = float(np.sqrt(np.mean([np.var(group) for group in groups])))
        apart.append(between / step)
        clear.append(between / max(within, 1e-9 * step))
    return bool(apart) and float(np.median(apart)) > MIN_WOVEN_OFFSET_STEPS and float(np.median(clear)) > 4


def _uneven(values: NDArray[np.float64], line: NDArray[np.int64], place: NDArray[np.int64], step: float) -> bool:
    """Whether points are evenly spaced along each line, but not by the places that they were cut into.

    Lines may begin at different places: a stage that goes to and fro does so.
    """
    if not np.isfinite(step) or step <= 0:
        return False
    table = np.stack([np.ones(len(line)), line, place], axis=1).astype(float)
    centred = (values - values.mean()) / step
    off = centred - table @ np.linalg.lstsq(table, centred, rcond=None)[0]
    order = np.lexsort((values, line))
    bounds = [0, *(np.flatnonzero(np.diff(line[order])) + 1), len(order)]
    cut, even, points, largest = 0.0, 0.0, 0, 0.0
    for start, stop in pairwise(bounds):
        members = order[start:stop]
        if stop - start < MIN_POINTS_FOR_SPACING:
            continue
        mine = off[members] - off[members].mean()
        count = np.arange(stop - start, dtype=float)
        told = np.polyval(np.polyfit(count, centred[members], 1), count)
        cut += float(np.sum(mine**2))
        even += float(np.sum((centred[members] - told) ** 2))
        points += stop - start
        largest = max(largest, float(np.abs(mine).max()))
    return points > 0 and largest > 0.2 and cut / points > 0.1**2 and even < 0.1 * cut


def _from_one_axis(values: NDArray[np.float64], axis: Axis, order: Order) -> Recovered | None:
    """The grid where only one coordinate is known to move: its lines are counted, the other axis follows."""
    n = len(values)
    if not np.isfinite(values).all():
        return None
    for levels in propose_levels(values)[1:]:
        if levels.spread > MAX_LINE_WIDTH_STEPS * levels.step:
            continue  # its lines are lines of lines
        starts = np.flatnonzero(np.diff(levels.index, prepend=-1))
        length = int(np.diff(starts, append=n).max())
        if levels.count == n:
            length = 1
        moved: Axis = axis
        still: Axis = "y" if axis == "x" else "x"
        why = f"from the stage's {axis}, {still} not told there"
        if np.array_equal(levels.index, np.arange(n) // length):
            shape = (levels.count, length) if moved == "y" else (length, levels.count)
            return Recovered(shape, order, still, acquisition(shape, order, still)[:n], why)
        lines = -(-n // levels.count)
        shape = (levels.count, lines) if moved == "y" else (lines, levels.count)
        for kind in ORDERS:
            pattern = acquisition(shape, kind, moved)[:n]
            if np.array_equal(levels.index, pattern // shape[1] if moved == "y" else pattern % shape[1]):
                return Recovered(shape, kind, moved, pattern, why, (kind,))
    return None


def _measured_again(
    cell: NDArray[np.int64],
    known: NDArray[np.int64],
    shape: tuple[int, int],
    n_frames: int,
    stage: NDArray[np.float64],
    steps: tuple[float, float],
) -> NDArray[np.int64]:
    """Frames after which another one was taken at the same place, where these are sure to be points measured again."""
    by_cell = np.argsort(cell, kind="stable")
    again = np.flatnonzero(np.diff(cell[by_cell]) == 0)
    pairs = known[by_cell[again]], known[by_cell[again + 1]]
    apart = np.abs(stage[pairs[0]] - stage[pairs[1]])
    if (apart > SAME_POINT_STEPS * np.where(np.isfinite(steps), steps, np.inf)).any():
        raise InputError("the stage positions are no rectangular grid: some points lie between others")
    points = shape[0] * shape[1]
    whole = len(known) == n_frames == points + len(again)
    if len(again) and not (whole and len(again) <= MAX_MEASURED_AGAIN_SHARE * points):
        first, second = known[by_cell[again[0]]], known[by_cell[again[0] + 1]]
        more = f", as were {len(again) - 1} more pairs" if len(again) > 1 else ""
        raise InputError(
            f"frames {first} and {second} were taken at the same stage position{more}: "
            "leave out what does not belong to the scan"
        )
    return known[by_cell[again]]


def _rank(shape: tuple[int, int], order: Order, fast_axis: Axis) -> NDArray[np.int64]:
    """When each pattern of a complete scan is acquired: the inverse of `acquisition`."""
    sequence = acquisition(shape, order, fast_axis)
    rank = np.empty_like(sequence)
    rank[sequence] = np.arange(len(sequence))
    return rank


def _disorder(cell: NDArray[np.int64], shape: tuple[int, int], order: Order, fast_axis: Axis) -> int:
    """Number of frames that come before their predecessor in this order of acquisition."""
    return int(np.count_nonzero(np.diff(_rank(shape, order, fast_axis)[cell]) < 0))
