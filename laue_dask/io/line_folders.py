"""Folders of the lines of one scan, `scan_01`, `scan_02`, …; or of several whole scans, which nobody may join."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from laue_dask.errors import InputError

Position = tuple[float, float] | None

MAX_SHORT_LINES_SHARE = 0.25
"""Share of the lines, besides the last, that may hold less than half of what the longest holds."""

MIN_PRESENT_LINES_SHARE = 0.25
"""Share of the numbers from the first line to the last that there must be a folder of."""

MAX_FRAMES_PER_LINE_RATIO = 50
"""Lines hold at most so many times as many frames as there are lines, where nothing else tells that they are lines."""

_MAX_OFFSET_STEPS = 0.5
"""A frame that lies farther off its line than this share of the line's step is in another line."""

_NUMBER = re.compile(r"\d+")


def line_names(folders: Iterable[str]) -> list[str]:
    """Return those names of sub-folders that may be lines of a scan: they end in a number."""
    return [name for name in folders if name[-1:].isdecimal()]


def require_one_scan(source: str, lines: Iterable[str]) -> None:
    """Refuse folders of lines that have the names of several scans.

    Raises
    ------
    InputError
        Names the scans.
    """
    stems = {re.sub(r"\d+$", "", name) for name in lines}
    if len(stems) > 1:
        scans = ", ".join(sorted(stems))
        raise InputError(f"{source}: sub-folders of {len(stems)} scans ({scans}): give the glob of one of them")


def why_several_scans(
    lines: Mapping[str, Sequence[str]], position_of: Callable[[str], Position] = lambda path: None
) -> str:
    """Return why folders that are named like lines of a scan are not its lines; empty where they are.

    Parameters
    ----------
    lines
        Folder's name → paths of its frames, both in order; none of them is empty.
    position_of
        Stage coordinates (y, x) of the frame of a path; asked for a few frames of one folder.

    Examples
    --------
    >>> why_several_scans({"a_1": ["a_1/0.tif"] * 61, "a_2": ["a_2/0.tif"] * 61})
    ''
    >>> why_several_scans({"a_1": ["a_1/0.tif"] * 3721, "a_2": ["a_2/0.tif"] * 3721})
    'its 2 folders hold 3721 frames each'
    """
    if len(lines) < 2:
        return ""
    longest = max(lines.values(), key=len)
    along = _is_line([position_of(longest[i]) for i in _spread(len(longest))])
    if along is False:
        return f"each of its {len(lines)} folders is a whole scan by the stage positions in its headers"
    if along or _numbered_through(list(lines.values())):
        return ""
    numbers = [int(found[-1]) for name in lines if (found := _NUMBER.findall(name))]
    if len(set(numbers)) < MIN_PRESENT_LINES_SHARE * (max(numbers) - min(numbers) + 1):
        return f"its {len(lines)} folders have numbers from {min(numbers)} to {max(numbers)}"
    counts = [len(files) for files in lines.values()]
    if sum(count < 0.5 * max(counts) for count in counts[:-1]) > max(1.0, MAX_SHORT_LINES_SHARE * len(counts)):
        return f"its {len(lines)} folders hold {min(counts)} to {max(counts)} frames"
    if max(counts) > MAX_FRAMES_PER_LINE_RATIO * len(counts):
        held = f"{counts[0]} frames each" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)} frames"
        return f"its {len(lines)} folders hold {held}"
    return ""


def _spread(n: int) -> list[int]:
    return sorted({0, min(1, n - 1), n // 4, n // 3, n // 2, 2 * n // 3, 3 * n // 4, n - 1})


def _is_line(positions: Sequence[Position]) -> bool | None:
    """Whether frames, of which the first two follow one another, lie on one line; None where that is not known."""
    known = [position for position in positions if position is not None]
    if len(known) < 3 or positions[0] is None or positions[1] is None:
        return None
    steps = [abs(after - before) for before, after in zip(positions[0], positions[1], strict=True)]
    fast = steps.index(max(steps))
    along, across = ([position[axis] for position in known] for axis in (fast, 1 - fast))
    if not steps[fast] > 0:
        return None
    moves = {after > before for before, after in pairwise(along)}
    # A line goes one way, whatever its other coordinate does; a scan goes back, or to and fro.
    return len(moves) == 1 or (None if max(across) - min(across) <= _MAX_OFFSET_STEPS * steps[fast] else False)


def _numbered_through(lines: Sequence[Sequence[str]]) -> bool:
    """Whether the last numbers of the files go on from one folder to the next."""
    ends: list[tuple[int, int]] = []
    for files in lines:
        found = [_NUMBER.findall(name.rpartition("/")[2]) for name in (files[0], files[-1])]
        if not all(found):
            return False
        ends.append((int(found[0][-1]), int(found[1][-1])))
    return all(before[1] < after[0] for before, after in pairwise(ends))
