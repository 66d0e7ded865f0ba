"""Times in file names, which order the frames of a scan but do not count them. Pure.

A number is taken for a time only where nothing else is as likely: a date stands in it or right before it, all of them
are times of day, and a counter would not have written them so.
"""

from collections.abc import Sequence
from datetime import date, datetime
from itertools import pairwise

HOURS_FROM = 10_000
"""`HHMMSS` from which on a number behind a date is a time: counters of so many frames are rare, at night 1 o'clock."""

LONGEST_SEPARATOR = 2
"""Characters between a date and a time, at most."""

_MINUTE_S = 60


def are_times(texts: Sequence[str], before: str, separator: str) -> bool:
    """Return whether the digits that differ from name to name are times of day.

    Parameters
    ----------
    texts
        Digits of each name.
    before
        Digits that stand before them in all names; empty where these differ.
    separator
        What is between the two.

    Examples
    --------
    >>> are_times(["114958", "114959", "115001"], "20261201", "_")
    True
    >>> are_times(["000001", "000002", "000004"], "20261201", "_")
    False
    >>> are_times(["20261201114958", "20261201114959"], "", "img_")
    True
    """
    if all(len(text) == len("20261201114958") for text in texts):
        return all(_is_time(text, "%Y%m%d%H%M%S") for text in texts)
    if len(separator) > LONGEST_SEPARATOR or not _is_time(before, "%Y%m%d"):
        return False
    if not all(len(text) == len("114958") and _is_time(text, "%H%M%S") for text in texts):
        return False
    numbers = sorted(int(text) for text in texts)
    return numbers[0] >= HOURS_FROM or _skips_what_is_no_time(numbers)


def _is_time(text: str, form: str) -> bool:
    try:
        found = datetime.strptime(text, form)
    except ValueError:
        return False
    return "%Y" not in form or date(1990, 1, 1) <= found.date() <= date(2100, 1, 1)


def _skips_what_is_no_time(numbers: Sequence[int]) -> bool:
    """Whether a minute ends between the numbers, and the gap there is wide only because no second is the sixtieth."""
    seconds = [number // 10_000 * 3600 + number // 100 % 100 * _MINUTE_S + number % 100 for number in numbers]
    within = [b - a for a, b in pairwise(seconds) if a // _MINUTE_S == b // _MINUTE_S]
    across = [b - a for a, b in pairwise(seconds) if a // _MINUTE_S != b // _MINUTE_S]
    return bool(across and within) and max(across) <= 2 * max(within)
