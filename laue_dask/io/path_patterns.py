"""What the text of a source means: a path that is there, a glob, or a template of numbered files as `img_%05d.tif`."""

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_NUMBER_FIELD = re.compile(
    r"%(?P<flag>[0 -]?)(?P<width>\d{0,3})[diu]"
    r"|\{(?:[A-Za-z_]\w*|\d*)(?::(?P<filled>0?)(?P<brace>\d{0,3})d?)?\}"
    r"|(?P<hashes>#+)"
)
"""A number in a template: of printf, of Python's `format`, or one `#` for each digit."""

_ESCAPED_CHARACTER = re.compile(r"\\([*?\[\]])")
"""A character that a shell would take literally."""

_CHARACTER_CLASS = re.compile(r"\[!?(?:\]?[^\]/]+|\])\]")


@dataclass(frozen=True)
class Pattern:
    """Files that a source stands for which is no path of something that is there.

    Attributes
    ----------
    typed
        Glob, as it was typed.
    template
        Glob that matches all that the template can mean; empty where there are no fields of numbers.
    accepts
        What of that the template means.
    """

    typed: str
    template: str
    accepts: re.Pattern[str] | None

    def matches(self, find: Callable[[str], Iterator[str]]) -> list[str]:
        """Return what there is of it now, each once: names as they were typed win over what a template means.

        Parameters
        ----------
        find
            Paths that a glob matches.
        """
        found = list(dict.fromkeys(find(self.typed)))
        if found or self.accepts is None:
            return found
        return [path for path in dict.fromkeys(find(self.template)) if self.accepts.fullmatch(path)]


def understood(source: str) -> Pattern | None:
    """Return the pattern that a source is; None where it is a path, whether anything is there or not.

    The beginning of a source that is there by its very name is no pattern, whatever brackets are in it.

    Examples
    --------
    >>> understood("frames/img_%05d.tif").template
    'frames/img_*.tif'
    >>> understood("frames/img_0001.tif") is None
    True
    """
    parts = source.split("/")
    first = next((i for i, part in enumerate(parts) if _is_special(part) and not _is_there(parts[: i + 1])), None)
    if first is None:
        return None
    before = glob.escape("/".join(parts[:first])) + ("/" if first else "")
    rest = _ESCAPED_CHARACTER.sub(lambda found: f"[{found[1]}]", "/".join(parts[first:]))
    if not _NUMBER_FIELD.search(rest):
        return Pattern(before + rest, "", None)
    accepted = re.escape(glob_to_path(before)) + _as_expression(rest)
    template = _NUMBER_FIELD.sub("*", rest).replace("%%", "%")
    return Pattern(before + rest, before + template, re.compile(accepted, re.DOTALL))


def is_pattern(source: str) -> bool:
    """Return whether a source stands for several files by their names."""
    return understood(source) is not None


def glob_to_path(escaped: str) -> str:
    """Return the path that `glob.escape` made a glob of.

    Examples
    --------
    >>> glob_to_path("frames[[]1]")
    'frames[1]'
    """
    return re.sub(r"\[([*?[])\]", r"\1", escaped)


def _is_special(part: str) -> bool:
    return glob.has_magic(part) or _NUMBER_FIELD.search(part) is not None or _ESCAPED_CHARACTER.search(part) is not None


def _is_there(parts: list[str]) -> bool:
    try:
        return os.path.lexists("/".join(parts))
    except (OSError, ValueError):
        return False


def _as_expression(text: str) -> str:
    """A regular expression for a glob with fields of numbers."""
    found: list[str] = []
    place = 0
    while place < len(text):
        if field := _NUMBER_FIELD.match(text, place):
            found.append(_number(field))
            place = field.end()
        elif text.startswith("**/", place):
            found.append("(?:.*/)?")
            place += 3
        elif text.startswith("%%", place):
            found.append("%")
            place += 2
        elif text[place] in "*?":
            found.append("[^/]*" if text[place] == "*" else "[^/]")
            place += 1
        elif kept := _CHARACTER_CLASS.match(text, place):
            found.append(fnmatch.translate(kept[0])[len("(?s:") : -len(r")\Z")])
            place = kept.end()
        else:
            found.append(re.escape(text[place]))
            place += 1
    return "".join(found)


def _number(field: re.Match[str]) -> str:
    """A regular expression for the numbers that a field means; one without a width takes padded numbers, too."""
    if field["hashes"]:
        width = len(field["hashes"]) if len(field["hashes"]) > 1 else 0
    else:
        width = int(field["width"] or field["brace"] or 0)
        if width and not (field["flag"] == "0" or field["filled"]):
            return rf"(?=[ \d]{{{width}}}) *(?:0|[1-9]\d*)"  # filled with blanks
    # A number that needs more digits than the field has is not cut.
    return rf"(?:\d{{{width}}}|[1-9]\d{{{width},}})" if width else r"\d+"
