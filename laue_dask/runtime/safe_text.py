"""Text of strangers made harmless: file names, reasons and attributes that go to a terminal, a page or a table.

A file's name may hold anything but a slash and a zero byte: codes that steer a terminal, line ends that forge messages,
marks that turn the reading direction, formulas for a spreadsheet. What cannot be seen is written as Python writes it.
"""

import html
import re
from collections.abc import Mapping
from typing import Any

import click

_INVISIBLE_CHARACTERS = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, the escape among them
    "\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # no width, line ends, directions
    "\ud800-\udfff"  # bytes of names that are not UTF-8
    "\U000e0000-\U000e007f]"  # tags
)

_FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a cell begins with that spreadsheets run; the last four are the full-width forms of the first."""


def printable(text: object) -> str:
    r"""Make text one line of visible characters; any other is written as an escape.

    Examples
    --------
    >>> print(printable("a\x1b[2J\nlaue-dask: all fine \u202etif"))
    a\x1b[2J\nlaue-dask: all fine \u202etif
    """
    return _INVISIBLE_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def printable_lines(text: str) -> str:
    """Make text of several lines visible, line by line: only its line feeds and tabs stay."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def echo(line: object, *, err: bool = False) -> None:
    """Print one line, on stderr if wanted; the one way of a command to the terminal."""
    click.echo(printable(line), err=err)


def echo_lines(text: str) -> None:
    """Print text whose line ends are our own."""
    click.echo(printable_lines(text))


def escape(text: object) -> str:
    """Return the text for a page: visible, and no markup."""
    return html.escape(printable_lines(str(text)))


def spreadsheet_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cells of a table that no spreadsheet takes for formulas; numbers stay what they are.

    Examples
    --------
    >>> as_cells({"file": "=HYPERLINK(1)", "x": -1.5})
    {'file': "'=HYPERLINK(1)", 'x': -1.5}
    """
    return {name: _as_cell(value) if isinstance(value, str) else value for name, value in row.items()}


def _as_cell(text: str) -> str:
    return f"'{printable(text)}" if text.lstrip(" ").startswith(_FORMULA_PREFIXES) else printable(text)
