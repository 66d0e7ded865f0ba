"""The rows and columns of a grid from coordinates that an encoder read back. Pure arrays.

The levels of one coordinate are separated by the large gaps between its sorted values. How many gaps are large is not
decided on one coordinate alone: `best_grid` takes the pair of proposals under which the frames fill a grid.
"""

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

MAX_PROPOSALS = 12
MAX_LEVEL_WIDTH_STEPS = 0.6
"""A level is at most this wide, as a share of the step between levels."""
MIN_STEP_SHARE = 0.5
"""Steps of a scan are alike: none is shorter than this share of their median."""
MIN_FILLED_SHARE = 0.5
MAX_STEP_RATIO = 1.75
"""Ratio of the largest to the smallest of few steps that are still alike."""
MAX_FEW_STEPS = 3
"""Steps between lines that are too few to tell one that is uneven from one with a line missing in it."""

MIN_GAP_RATIO = 1.05
"""Gaps between levels are at least so many times as wide as those within: equal ones differ in rounding alone."""


@dataclass(frozen=True)
class Levels:
    """One way to cut a coordinate into levels.

    Attributes
    ----------
    index : (n,) int64
        Level of each value; the first value's end of the range is level 0.
    count
        Number of levels, those that no value is at included.
    step
        Median distance between neighbouring levels; infinite for one level.
    spread
        Width of the widest level.
    residual
        Sum of the squared distances to the levels' means, in steps; 0 for one level.
    """

    index: NDArray[np.int64]
    count: int
    step: float
    spread: float
    residual: float


def propose_levels(values: NDArray[np.float64]) -> list[Levels]:
    """Return the ways to cut `values` (n,) into evenly spaced levels, the most clear-cut first; one level is always
    among them.
    """
    distinct = np.unique(values)
    gaps = np.diff(distinct)
    falling = np.sort(gaps)[::-1]
    proposals = [_cut(values, distinct, np.inf)]
    if len(gaps):
        below = np.append(falling[1:], 0.0)
        median = falling[np.arange(len(falling)) // 2]
        with np.errstate(divide="ignore", over="ignore"):
            clarity = np.where(below < falling, falling / below, 0)
        clarity[(falling < MIN_STEP_SHARE / 2 * median) | (clarity < MIN_GAP_RATIO)] = 0
        for k in np.argsort(-clarity, kind="stable")[:MAX_PROPOSALS]:
            if clarity[k] > 0:
                proposals.append(_cut(values, distinct, (falling[k] + below[k]) / 2))
    return [one for one in proposals if one.count == 1 or one.spread <= MAX_LEVEL_WIDTH_STEPS * one.step]


def best_grid(y: NDArray[np.float64], x: NDArray[np.float64]) -> tuple[Levels, Levels] | None:
    """Return the rows and columns under which points (y, x) fill a grid best, or ``None`` where they are no grid.

    Fewest points in one cell come first, then the fullest grid, then the narrowest levels.
    """
    found: list[tuple[tuple[int, float, float], Levels, Levels]] = []
    for rows, columns in product(propose_levels(y), propose_levels(x)):
        # A coordinate that does not move may wander, but by less than a step of the one that does.
        if rows.count == 1 and rows.spread > MAX_LEVEL_WIDTH_STEPS * columns.step:
            continue
        if columns.count == 1 and columns.spread > MAX_LEVEL_WIDTH_STEPS * rows.step:
            continue
        cells = len(np.unique(rows.index * columns.count + columns.index))
        filled = cells / (rows.count * columns.count)
        if rows.count * columns.count > 1 and filled > MIN_FILLED_SHARE:
            found.append(((len(y) - cells, -filled, rows.residual + columns.residual), rows, columns))
    if not found:
        return None
    _, rows, columns = min(found, key=lambda one: one[0])
    return rows, columns


def _cut(values: NDArray[np.float64], distinct: NDArray[np.float64], threshold: float) -> Levels:
    edges = np.flatnonzero(np.diff(distinct) > threshold) + 1
    bounds = distinct[edges]
    index = np.searchsorted(bounds, values, side="right")
    count = len(bounds) + 1
    means = np.bincount(index, weights=values, minlength=count) / np.bincount(index, minlength=count)
    ends = [0, *edges, len(distinct)]
    spread = max(float(distinct[stop - 1] - distinct[start]) for start, stop in pairwise(ends))
    if count == 1:
        return Levels(np.zeros(len(values), dtype=np.int64), 1, np.inf, spread, 0.0)
    steps = np.diff(means)
    step = float(np.median(steps))
    if not _are_multiples(steps, step) and _are_multiples(steps, float(steps.min())):
        step = float(steps.min())  # of few lines, most are beside one that is missing
    residual = float((((values - means[index]) / step) ** 2).sum())
    apart = float(steps.max() / max(steps.min(), 1e-300))
    # A line may be missing between two.
    uneven = len(steps) <= MAX_FEW_STEPS and apart > MAX_STEP_RATIO and not _are_multiples(steps, step)
    if steps.min() < MIN_STEP_SHARE * step or uneven:
        spread = np.inf
    places = np.concatenate([[0], np.cumsum(_multiples(steps, step))])
    index = places[index]
    count = int(places[-1]) + 1
    if index[0] > (count - 1) / 2:
        index = count - 1 - index
    return Levels(index.astype(np.int64), count, step, spread, residual)


def _multiples(steps: NDArray[np.float64], step: float) -> NDArray[np.int64]:
    """How many steps apart neighbours are: a line that is missing leaves a double step."""
    whole = np.maximum(1, np.rint(steps / step))
    if _are_multiples(steps, step):
        return whole.astype(np.int64)
    return np.where(np.abs(steps / step - whole) < 0.2, whole, 1).astype(np.int64)


def _are_multiples(steps: NDArray[np.float64], step: float) -> bool:
    return bool((np.abs(steps / step - np.maximum(1, np.rint(steps / step))) < 0.2).all())
