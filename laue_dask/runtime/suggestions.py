"""Suggestions for an unknown word or path: the nearest known word, or the file beside it."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

MIN_SIMILARITY = 0.65
"""Least ratio of matching characters (difflib's, 0 to 1) at which a word is proposed for another."""

MAX_COMPARED_NAMES = 10_000
"""Names of a folder that are looked through for one that is near to a missing one."""


def nearest(word: str, words: Iterable[str]) -> str | None:
    """Find the word that somebody may have meant; None where none is near.

    Examples
    --------
    >>> nearest("defualt", ["default", "untrained"])
    'default'
    """
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=MIN_SIMILARITY)
    return found[0] if found else None


def nearest_path(path: Path) -> Path | None:
    """Find the file or folder beside a missing one whose name is near to its name; None where there is none."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(MAX_COMPARED_NAMES), strict=False)]
    except OSError:
        return None
    near = nearest(path.name, names)
    return None if near is None or near == path.name else path.parent / near


def did_you_mean(path: Path, *, other_than: Path | None = None) -> str:
    """Ask for the file or folder near to a missing one, to be added to a message; empty where there is none."""
    near = nearest_path(path)
    return "" if near is None or near == other_than else f" (did you mean {near}?)"
