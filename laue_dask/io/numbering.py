"""From numbers of files, rows and columns to places on the grid, where these are certain. Pure.

A number is certain to be a place where only one first number and one step fit the points that there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import InputError

Numbers = NDArray[np.int64]

MIN_NUMBERS_FOR_STEP = 4
"""Numbers from which on a step other than 1 is believed where no length is known."""

MIN_EQUAL_GAP_SHARE = 0.5
"""Share of the gaps between numbers that are alike where these count something, unlike times."""


MAX_FIRST_NUMBERS = 64
"""First numbers that may be told apart by the headers, at most."""


class UnclearError(InputError):
    """What numbers count leaves it open where frames belong; the message says what to do.

    Attributes
    ----------
    choices : each (n,) int64
        Places that the frames may have, where these are few.
    """

    def __init__(self, message: str, choices: Sequence[Numbers] = ()) -> None:
        super().__init__(message)
        self.choices = choices


@dataclass(frozen=True)
class Count:
    """Places that numbers tell.

    Attributes
    ----------
    place : (n,) int64
        From 0.
    count
        Points from the first to the last place, the first of all included.
    seen
        Points from the first number that is there to the last.
    how
        For people, where something was assumed; else empty.
    assumed
        The number that was taken for the first, only because it was the first that was there; else None.
    """

    place: Numbers
    count: int
    seen: int
    how: str = ""
    assumed: int | None = None


def count_axis(
    values: Numbers, length: int | None, what: str, *, first_number: int | None = None, from_first: bool = False
) -> Count:
    """Return the places of rows or columns with these numbers, of `length` where that is known.

    Raises
    ------
    UnclearError
        The numbers do not tell.
    """
    there = np.unique(values)
    low, high = int(there[0]), int(there[-1])
    step = int(np.gcd.reduce(np.diff(there))) if len(there) > 1 else 1
    if length is not None:
        return _within(values, length, what, first_number, from_first)
    if step > 1 and len(there) < MIN_NUMBERS_FOR_STEP:
        raise UnclearError(
            f"the {what} are numbered {', '.join(map(str, there))}: it is not known whether files between them "
            f"are missing: "
            "give --shape NY NX"
        )
    first, how = low, ""
    if first_number is not None and (low - first_number) % step == 0 and first_number <= low:
        first = first_number
    elif low // step > (high - low) // step + 1 and not from_first:
        # Were the first missing, these would be more than those that are there.
        how = f"{what} counted from {low}"
    elif low > step and not from_first and low > 1:
        raise UnclearError(
            f"the {what} are numbered {low} to {high}: it is not known whether the first are missing: "
            "give --shape NY NX and --first-number"
        )
    place = (values - first) // step
    return Count(place, int(place.max()) + 1, (high - low) // step + 1, how)


def count_points(
    values: Numbers,
    points: int | None,
    *,
    first_number: int | None = None,
    from_first: bool = False,
    what: str = "files",
) -> Count:
    """Return the places in the acquisition of files with these numbers, each of which is another, of so many `points`.

    Raises
    ------
    UnclearError
        The numbers do not tell.
    """
    there = np.sort(values)
    low, high = int(there[0]), int(there[-1])
    gaps = np.diff(there)
    step = int(np.gcd.reduce(gaps)) if len(gaps) else 1
    if points is None:
        first = low if first_number is None or first_number > low else first_number
        place = (values - first) // step
        return Count(place, int(place.max()) + 1, (high - low) // step + 1)
    if len(there) == points and (high - low) // step + 1 > points:
        usual = float(np.unique(gaps, return_counts=True)[1].max()) / len(gaps)
        if usual >= MIN_EQUAL_GAP_SHARE:
            raise UnclearError(
                f"{points} {what} are there for {points} points, but are numbered {low} to {high} with gaps: "
                "give --insist to take them one after another"
            )
        rank = np.empty(len(values), dtype=np.int64)
        rank[np.argsort(values, kind="stable")] = np.arange(len(values))
        return Count(rank, points, points, "in the order of their names")
    return _within(values, points, what, first_number, from_first)


def solve_lines(
    line: Numbers,
    number: Numbers,
    shape: tuple[int, int] | None,
    *,
    first_number: int | None = None,
    from_first: bool = False,
) -> tuple[Count, Count]:
    """Return the rows and columns of files whose numbers run through all lines.

    Raises
    ------
    UnclearError
        The numbers do not tell.
    """
    lines = np.unique(line)
    relative = (lines - lines[0]).astype(np.int64)
    lows = np.array([number[line == one].min() for one in lines])
    highs = np.array([number[line == one].max() for one in lines])
    lengths = [shape[1]] if shape is not None else range(int((highs - lows).max()) + 1, int(np.ptp(number)) + 2)
    fits: list[tuple[int, int]] = []
    for nx in lengths:
        most = int((lows - relative * nx).min())
        least = max(0, int((highs - (relative + 1) * nx + 1).max()))
        if first_number is not None:
            least, most = (first_number, first_number) if least <= first_number <= most else (1, 0)
        elif from_first and least <= most:
            least = most
        fits += [(nx, first) for first in range(least, min(most, least + 2) + 1)]
        if len(fits) > 2:
            break
    low, high = int(number.min()), int(number.max())
    if not fits:
        told = "" if shape is None else f" of {shape[1]} files"
        raise UnclearError(
            f"the lines {lines[0]} to {lines[-1]} and the numbers {low} to {high} in them are no lines{told} one after "
            "another: give --shape NY NX, with --insist to leave the lines aside"
        )
    if len(fits) > 1:
        firsts = sorted({first for _, first in fits})
        widths = sorted({nx for nx, _ in fits})
        many = f"lines may have {widths[0]} or {widths[1]} points" if len(widths) > 1 else "the first may be missing"
        raise UnclearError(
            f"the numbers in the lines are {low} to {high}: {many}: give --shape NY NX"
            + (f" and --first-number {firsts[0]} or {firsts[1]}" if len(firsts) > 1 else "")
        )
    nx, first = fits[0]
    column = number - first - (line - lines[0]) * nx
    if shape is None:
        rows = count_axis(line, None, "lines", from_first=from_first)
    else:
        # The first number of all tells how many lines came before, if it is the scan's.
        before = range(first // nx + 1) if first % nx in (0, 1) else range(1)
        free = [skip for skip in before if int(relative[-1]) + skip < shape[0] and skip <= int(lines[0])]
        if first_number is None and not from_first and len(free) > 1:
            raise UnclearError(
                f"the lines are numbered {lines[0]} to {lines[-1]} of {shape[0]}: are the first or the last missing? "
                f"Give --first-number {first - free[-1] * nx} or {first}, the number of the first file"
            )
        place = (line - lines[0]).astype(np.int64)
        rows = Count(place, int(place.max()) + 1, int(relative[-1]) + 1)
    return rows, Count(column.astype(np.int64), nx, nx)


def _within(values: Numbers, points: int, what: str, first_number: int | None, from_first: bool) -> Count:
    """Places of numbers in a known number of points."""
    there = np.unique(values)
    low, high, span = int(there[0]), int(there[-1]), int(there[-1]) - int(there[0])
    largest = int(np.gcd.reduce(np.diff(there))) if len(there) > 1 else 1
    steps = [step for step in range(1, largest + 1) if largest % step == 0 and span // step + 1 <= points]
    if not steps:
        raise UnclearError(
            f"{len(values)} {what} are numbered {low} to {high}: that is more than {points}: "
            "give --insist to take them one after another"
        )
    if len(steps) > 1:
        raise UnclearError(
            f"{len(there)} {what} are numbered {low} to {high} in steps of {largest}, of {points}: whether those "
            "between are missing is not known: give --insist to take them one after another"
        )
    step = steps[0]
    least, most = max(low % step, high - (points - 1) * step), low
    if first_number is not None:
        if not least <= first_number <= most or (low - first_number) % step:
            raise UnclearError(
                f"--first-number {first_number}, but {what} are numbered {low} to {high} and may be {points}: "
                f"it is from {least} to {most}"
            )
        first = first_number
    elif least == most or from_first:
        first = most
    else:
        short = points - (span // step + 1)
        raise UnclearError(
            f"{what} are numbered {low} to {high}, {points} were expected: are the first or the last missing? "
            f"Give --first-number {least} if the first {short} {_are(short)}, {most} if the last {_are(short)}",
            [(values - first) // step for first in range(least, most + 1, step)][:MAX_FIRST_NUMBERS],
        )
    how = f"counted from {first}" if first_number is not None or least < most else ""
    assumed = first if first_number is None and least < most else None
    return Count((values - first) // step, points, span // step + 1, how, assumed)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
