"""Text files of paths, one a line, as people's editors and spreadsheets write them."""

import codecs
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from laue_dask.errors import InputError

MAX_LIST_BYTES = 2**30
"""A file larger than this is no list of paths."""

_ENCODING_OF_BOM = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""By the mark at the beginning of a file; that of UTF-32 begins as that of UTF-16 does."""

_CLOSING_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}

_HEAD_BYTES = 4096
"""Bytes in which a file that is no text shows itself."""


class Line(NamedTuple):
    """A path in a list, and the number of its line from 1."""

    number: int
    path: str


def read_paths(file: Path) -> list[Line]:
    """Return the paths that a list has, relative ones from the list's own folder.

    Comments begin with `#`, a path may stand in quotes, `~` is a home; ends of lines and marks of byte order may be
    those of any system.

    Raises
    ------
    InputError
        It is no text, or of an encoding that does not say which it is.
    """
    lines = []
    for number, text in enumerate(re.split(r"\r\n|\r|\n", _decoded(file)), start=1):
        path = _path_in(text, file.parent)
        if path:
            lines.append(Line(number, os.path.join(file.parent, path)))  # noqa: PTH118  of 100,000 lines
    return lines


def require_distinct(file: Path, names: Iterator[tuple[int, str]]) -> None:
    """Refuse a list that has a frame twice: it would be two points of the scan.

    Raises
    ------
    InputError
        Names both lines.
    """
    seen: dict[str, int] = {}
    for number, name in names:
        before = seen.setdefault(os.path.normpath(name), number)
        if before != number:
            raise InputError(f"{file}, line {number}: {name} is in line {before} already: list each frame once")


def _decoded(file: Path) -> str:
    not_text = f"{file}: this is neither a frame of a known kind nor a text file of paths"
    if file.stat().st_size > MAX_LIST_BYTES:
        raise InputError(f"{not_text}: {file.stat().st_size / 1e9:.1f} GB")
    with file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
        encoding = next((name for mark, name in _ENCODING_OF_BOM.items() if head.startswith(mark)), "utf-8")
        if encoding == "utf-8" and b"\0" in head:
            raise InputError(f"{not_text} in UTF-8: save a list as UTF-8")
        content = head + stream.read()
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{not_text} in UTF-8, as line {line} shows: save a list as UTF-8") from error


def _path_in(text: str, folder: Path) -> str:
    text = text.strip().strip("\ufeff")
    if not text or text.startswith("#"):
        return ""
    closing = _CLOSING_QUOTES.get(text[0])
    if closing and (end := text.find(closing, 1)) > 0:
        rest = text[end + 1 :].strip()
        if not rest or rest.startswith(("#", ",", ";")):
            return _resolved(text[1:end].strip())
    if (comment := re.search(r"\s+#", text)) and not os.path.lexists(folder / text):
        text = text[: comment.start()]
    return _resolved(text)


def _resolved(path: str) -> str:
    if path.startswith("~"):
        return os.path.expanduser(path)  # noqa: PTH111  also of what cannot be expanded
    if path.lower().startswith("file:/"):
        return unquote(urlsplit(path).path)
    return path
