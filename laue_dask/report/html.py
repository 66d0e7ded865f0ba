"""Pages that need no other file and no network: one style, headings with links to them, facts, tables."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import Template
from typing import Any

import numpy as np

from laue_dask.runtime.safe_text import escape

MAX_GALLERY_DELEGATES = 24
"""Most delegate patterns in a gallery."""

MAX_TABLE_ROWS = 256
"""Rows of a table on the page; the results and run.json hold them all."""

_PAGE_BEGINNING = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
$meta<title>$title</title>
<style>
$style</style>
</head>
<body>
<h1>$title</h1>
""")

_PAGE_END = """
</body>
</html>
"""

_PAGE_STYLE = """:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; max-width: 62rem;
  padding: 1rem 1.2rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .6rem 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid #ccc; padding-bottom: .2rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { margin: .4rem 0; }
a { color: #0b5394; }
nav a { margin-right: 1rem; white-space: nowrap; }
code { font: .85em ui-monospace, monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .8rem 1.2rem; margin: 1rem 0; }
dt { color: #666; font-size: .85rem; }
dd { margin: 0; font-size: 1.15rem; overflow-wrap: anywhere; }
.warning { border-left: .3rem solid #d08700; background: #fff6e0; padding: .5rem .8rem; }
figure { margin: .8rem 0 1.4rem; }
figure img { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
.scan { display: inline-block; vertical-align: top; width: 18.8rem; margin: 0 1rem 1.4rem 0; break-inside: avoid; }
.scan h3 { margin: .2rem 0 0; overflow-wrap: anywhere; }
.scan p { margin: .1rem 0; font-size: .88rem; overflow-wrap: anywhere; }
.scan img { margin-right: .4rem; vertical-align: top; max-width: 100%; image-rendering: pixelated; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #666; padding: .2rem 0; }
th, td { text-align: left; padding: .22rem .8rem .22rem 0; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
th { border-bottom-color: #999; white-space: nowrap; }
.number { text-align: right; }
summary { cursor: pointer; margin: .5rem 0; }
pre { font: .8rem/1.4 ui-monospace, monospace; background: #f5f5f5; padding: .8rem; overflow-x: auto; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
}
"""


def page_shell(title: str, body: str, *, style: str, meta: str = "") -> str:
    """Return a page that needs nothing but itself.

    Parameters
    ----------
    body
        HTML below the title.
    style
        CSS, whole lines.
    meta
        More lines of the head.
    """
    return _begin(title, style, meta) + body + _PAGE_END


def _begin(title: str, style: str, meta: str = "") -> str:
    return _PAGE_BEGINNING.substitute(title=escape(title), style=style, meta=meta)


def page(title: str, *, head: str, sections: Iterable[tuple[str, str]]) -> str:
    """Return a whole page.

    Parameters
    ----------
    head
        HTML below the title.
    sections
        Titles and HTML in the page's order; an empty body is left out.
    """
    return "".join(page_pieces(title, head=head, sections=[(name, [body]) for name, body in sections if body]))


def page_pieces(title: str, *, head: str, sections: Sequence[tuple[str, Iterable[str]]]) -> Iterator[str]:
    """Return a whole page piece by piece, where its sections would fill the memory.

    Parameters
    ----------
    head
        HTML below the title.
    sections
        Titles and pieces of HTML in the page's order.
    """
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a> ' for name, _ in sections)
    yield f"{_begin(title, _PAGE_STYLE)}{head}\n<nav>{links}</nav>"
    for name, body in sections:
        yield f'\n<h2 id="{_anchor(name)}">{escape(name)}</h2>\n'
        yield from body
    yield _PAGE_END


def warning(text: object) -> str:
    """Return a line that nobody can overlook."""
    return f'<p class="warning">{escape(str(text))}</p>'


def facts_list(facts: Mapping[str, str]) -> str:
    """Return the names and values side by side; nothing where there are none."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"<dl>{items}</dl>" if items else ""


def table(rows: Sequence[Mapping[str, Any]], *, total: int | None = None) -> str:
    """Return a table of rows that need not all have the same columns; long ones are cut, and say so."""
    if not rows:
        return ""
    shown = rows[:MAX_TABLE_ROWS]
    columns = list(dict.fromkeys(name for row in shown for name in row))
    total = max(len(rows), total or 0)
    note = f"<caption>the first {len(shown):,} of {total:,}</caption>" if total > len(shown) else ""
    numeric = [all(isinstance(row.get(name, 0), int | float) for row in shown) for name in columns]
    kinds = [' class="number"' if is_numeric else "" for is_numeric in numeric]
    heads = "".join(f"<th{kind}>{escape(str(name))}</th>" for name, kind in zip(columns, kinds, strict=True))
    lines = "\n".join(
        "<tr>"
        + "".join(f"<td{k}>{_cell(row.get(name, ''))}</td>" for name, k in zip(columns, kinds, strict=True))
        + "</tr>"
        for row in shown
    )
    return f'<div class="scroll"><table>{note}<tr>{heads}</tr>\n{lines}</table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:#.4g}" if np.isfinite(value) else "–"
    return escape(str(value))


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
