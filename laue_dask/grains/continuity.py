"""Tell whether a grain goes on across a line: the same peaks, moved together, have most of the light.

Features of a bent grain change steadily, and those of a grain with another one buried below it change where the buried
one ends, as much as at the grain's own boundary. The peaks tell them apart. A small rotation of a crystal moves all its
peaks along one smooth field, while peaks of different crystals are nowhere near each other but by chance. A grain goes
on where more than half of the intensity on either side moves along one such field, and where that field is what the
bending on both sides foretells: between twins it jumps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laue_dask.reduction.pattern_peaks import find_peaks
from laue_dask.runtime.compiled_loops import compiled

Array = NDArray[Any]

MAX_PEAK_SHIFT_PX = 8.0
"""Pixels of the reduced pattern by which a peak may move over the few points that are compared."""

PEAK_MATCH_PX = 1.5
"""Pixels between where the field takes a peak and where one is."""

MAJORITY_INTENSITY_SHARE = 0.5
"""Share of the intensity that one crystal has: two of them cannot both have more."""

MIN_FIELD_JUMP_PX = 1.5
"""Pixels between the field across a line and what both sides foretell, from which on two crystals are taken to meet: a
rotation of about 0.4° on a usual detector."""

POINTS_FROM_LINE = 1
"""Points from the line at which patterns are compared: the beam straddles it nearer by."""

POINTS_FOR_BENDING = 2
"""Points further inside over which the bending is seen."""

MIN_CROSSINGS, MAX_CROSSINGS = 3, 32
"""Places along a line: with fewer it is not judged, of more an even selection is."""

PATTERNS_PER_READ = 512
"""Patterns in memory at a time."""

_FIELD_SAMPLE_POINTS = np.array([[v, u, 1.0] for v in (-0.7, 0.0, 0.7) for u in (-0.7, 0.0, 0.7)])
"""Where fields are compared, in half widths of the pattern from its middle."""


@dataclass(frozen=True)
class Lines:
    """Lines between every two regions that touch.

    Attributes
    ----------
    first, second
        (l,) int64, the regions, first < second.
    strength
        (l,) float64, up to 1 where one grain goes on.
    length
        (l,) int64, in points.
    """

    first: Array
    second: Array
    strength: Array
    length: Array


class PeakCache:
    """Peaks of the patterns of a scan, found when they are asked for and kept.

    Parameters
    ----------
    read
        Gives the reduced patterns (m, 128, 128) uint8 of m points, by their ascending indices in the flattened map.
    """

    def __init__(self, read: Callable[[Array], Array]) -> None:
        self._read = read
        self._found: dict[int, Array] = {}

    def find(self, points: Array) -> None:
        """Find the peaks of points, (n,) int64 in any order."""
        new = np.array([point for point in np.unique(points).tolist() if point not in self._found], dtype=np.int64)
        for start in range(0, len(new), PATTERNS_PER_READ):
            some = new[start : start + PATTERNS_PER_READ]
            self._found |= dict(zip(some.tolist(), map(find_peaks, self._read(some)), strict=True))

    def __getitem__(self, point: int) -> Array:
        return self._found[point]


def lines(regions: Array, peaks: PeakCache, known: Mapping[tuple[int, int], float] | None = None) -> Lines:
    """Return how much of a boundary each line between two regions is.

    Parameters
    ----------
    regions
        (ny, nx) int, region of every point, negative where there is no pattern.
    known
        Strengths of lines between two regions that were judged before and have not changed.
    """
    crossings = np.concatenate([_crossings(regions, axis) for axis in (0, 1)])
    order = np.lexsort((crossings[:, 1], crossings[:, 0]))
    crossings = crossings[order]
    pairs, start, length = np.unique(crossings[:, :2], axis=0, return_index=True, return_counts=True)
    judged = length >= MIN_CROSSINGS
    pairs, start, length = pairs[judged], start[judged], length[judged]
    strength = np.array([(known or {}).get((a, b), np.nan) for a, b in pairs.tolist()], dtype=np.float64)
    walks = {
        i: crossings[
            start[i] + np.unique(np.linspace(0, length[i] - 1, min(length[i], MAX_CROSSINGS)).astype(np.int64)), 2:
        ]
        for i in np.flatnonzero(np.isnan(strength)).tolist()
    }
    if walks:
        peaks.find(np.concatenate(list(walks.values())))
    for i, some in walks.items():
        strength[i] = _strength(some, peaks)
    return Lines(pairs[:, 0], pairs[:, 1], strength, length)


def _crossings(regions: Array, axis: int) -> Array:
    """Neighbours in two regions: (c, 6) int64, the regions, lower first, and the four points further and further apart.

    In the order of a walk across the line: a point inside the one region, `POINTS_FROM_LINE` points from the line (or
    nearer, in a thin region), then the same in the other. The outer two are `POINTS_FOR_BENDING` points further inside.
    """
    index = np.moveaxis(np.arange(regions.size).reshape(regions.shape), axis, 0)
    region = np.moveaxis(regions, axis, 0)
    here, there = region[:-1], region[1:]
    i, j = np.nonzero((here != there) & (here >= 0) & (there >= 0))
    before = _inside(region, i, j, -1, POINTS_FROM_LINE)
    after = _inside(region, i + 1, j, 1, POINTS_FROM_LINE)
    walk = [
        _inside(region, before, j, -1, POINTS_FOR_BENDING),
        before,
        after,
        _inside(region, after, j, 1, POINTS_FOR_BENDING),
    ]
    pair = np.sort(np.stack([region[i, j], region[i + 1, j]]), axis=0)
    return np.stack([*pair, *(index[row, j] for row in walk)], axis=1).astype(np.int64)


def _inside(region: Array, row: Array, column: Array, step: int, count: int) -> Array:
    """Rows after `count` steps, or as many as lead to points of the same region."""
    own = region[row, column]
    for _ in range(count):
        following = np.clip(row + step, 0, len(region) - 1)
        stays = region[following, column] == own
        # what has stopped once must not go on beyond another region
        row = np.where(stays, following, row)
    return row


def _strength(walks: Array, peaks: PeakCache) -> float:
    """How much of a boundary the line is that all `walks`, (n, 4), cross: up to 1 where one grain goes on."""
    shares, jumps = [], []
    # Differences of the points' indices are steps, up to a factor that all of a walk have in common.
    for outer, before, after, other in walks.tolist():
        field, share = motion(peaks[before], peaks[after])
        shares.append(share)
        rates = [
            motion(peaks[one], peaks[two])[0] / (two - one)
            for one, two in ((outer, before), (after, other))
            if one != two
        ]
        if share > MAJORITY_INTENSITY_SHARE and rates:
            foretold = np.mean(rates, axis=0) * (after - before)
            jumps.append(float(np.hypot(*(_FIELD_SAMPLE_POINTS @ (field - foretold)).T).mean()))
    lost = (1 - float(np.mean(shares))) / (1 - MAJORITY_INTENSITY_SHARE)
    return max(lost, float(np.median(jumps)) / MIN_FIELD_JUMP_PX) if len(jumps) > 1 else lost


def motion(before: Array, after: Array) -> tuple[Array, float]:
    """Return the one smooth field along which most of the intensity of two patterns moves from one to the other.

    Parameters
    ----------
    before, after
        (n, 3) peaks: v, u in pixels of the reduced pattern, intensity.

    Returns
    -------
    field
        (3, 2) float64: shift of v and u per half width of the pattern in v, in u, and in its middle, in pixels.
    share
        Of the squared intensities that the field takes to a peak of the other pattern, in the one of the two where it
        is less.
    """
    return _motion(before, after, MAX_PEAK_SHIFT_PX, PEAK_MATCH_PX)  # type: ignore[no-any-return]


@compiled
def _motion(before: Array, after: Array, reach: float, tolerance: float) -> Any:
    field = np.zeros((3, 2))
    if len(before) == 0 or len(after) == 0:
        return field, 0.0
    one = np.empty(len(before) * len(after), np.int64)
    two = np.empty_like(one)
    count = 0
    for i in range(len(before)):
        for j in range(len(after)):
            v, u = after[j, 0] - before[i, 0], after[j, 1] - before[i, 1]
            if v * v + u * u <= reach * reach:
                one[count], two[count] = i, j
                count += 1
    if count == 0:
        return field, 0.0
    shift = np.empty((count, 2))
    weight = np.empty(count)
    place = np.empty((count, 3))
    for n in range(count):
        i, j = one[n], two[n]
        shift[n, 0], shift[n, 1] = after[j, 0] - before[i, 0], after[j, 1] - before[i, 1]
        weight[n] = min(before[i, 2], after[j, 2]) ** 2
        place[n, 0], place[n, 1], place[n, 2] = before[i, 0] / 64 - 1, before[i, 1] / 64 - 1, 1.0
    # The shift that most of the intensity has, give or take the tolerance, ...
    best, most = 0, -1.0
    for n in range(count):
        votes = 0.0
        for m in range(count):
            v, u = shift[n, 0] - shift[m, 0], shift[n, 1] - shift[m, 1]
            if v * v + u * u <= 2 * tolerance * tolerance:
                votes += weight[m]
        if votes > most:
            best, most = n, votes
    field[2] = shift[best]
    # ... and then a field that varies over the pattern, by least squares; where few peaks are it hardly may.
    for step in range(4):
        within = tolerance * (2 if step < 2 else 1)
        normal, right, members = np.zeros((3, 3)), np.zeros((3, 2)), 0
        for n in range(count):
            v = shift[n, 0] - place[n, 0] * field[0, 0] - place[n, 1] * field[1, 0] - field[2, 0]
            u = shift[n, 1] - place[n, 0] * field[0, 1] - place[n, 1] * field[1, 1] - field[2, 1]
            if v * v + u * u <= within * within:
                members += 1
                for p in range(3):
                    for q in range(3):
                        normal[p, q] += weight[n] * place[n, p] * place[n, q]
                    for q in range(2):
                        right[p, q] += weight[n] * place[n, p] * shift[n, q]
        if members < 4 or normal[2, 2] <= 0:
            break
        ridge = 0.06 * normal[2, 2]
        normal[0, 0] += ridge
        normal[1, 1] += ridge
        field[:] = np.linalg.solve(normal, right)
    moved_before, moved_after = np.zeros(len(before)), np.zeros(len(after))
    for n in range(count):
        v = shift[n, 0] - place[n, 0] * field[0, 0] - place[n, 1] * field[1, 0] - field[2, 0]
        u = shift[n, 1] - place[n, 0] * field[0, 1] - place[n, 1] * field[1, 1] - field[2, 1]
        if v * v + u * u <= tolerance * tolerance:
            moved_before[one[n]] = before[one[n], 2] ** 2
            moved_after[two[n]] = after[two[n], 2] ** 2
    all_before, all_after = (before[:, 2] ** 2).sum(), (after[:, 2] ** 2).sum()
    if all_before <= 0 or all_after <= 0:
        return field, 0.0
    return field, min(moved_before.sum() / all_before, moved_after.sum() / all_after)
