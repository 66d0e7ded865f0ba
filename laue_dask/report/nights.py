"""One page about a beamtime's nights: every scan with its maps, what became of it, and how to bring it back."""

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from laue_dask.io.output_paths import write_atomically
from laue_dask.report.html import facts_list, page_pieces, table, warning
from laue_dask.runtime.progress import duration
from laue_dask.runtime.safe_text import escape

_SECTION_TITLES = {
    "aside": "Set aside",
    "left": "Left for the next night",
    "done": "Done",
    "waiting": "Waiting",
    "gone": "Gone",
}
"""What needs a person comes first."""

_COUNT_LABELS = {"done": "done", "aside": "set aside", "left": "left for the next night", "waiting": "waiting"}


def write_index(summary: Mapping[str, Any], out: Path) -> None:
    """Write `index.html`: one file that needs no other and no network; its links lead to the runs' reports.

    Parameters
    ----------
    summary
        The content of `summary.json`.
    out
        Folder of the nights.
    """
    rows: Sequence[Mapping[str, Any]] = summary["scans"]
    by_status = {status: [row for row in rows if row["status"] == status] for status in _SECTION_TITLES}
    sections = [
        (title, _section(status, by_status[status], out))
        for status, title in _SECTION_TITLES.items()
        if by_status[status]
    ]
    # The pictures of a whole beamtime never are in memory together.
    write_atomically(
        out / "index.html", page_pieces(f"Nights of {summary['root']}", head=_head(summary), sections=sections)
    )


def _section(status: str, rows: Sequence[Mapping[str, Any]], out: Path) -> Iterable[str]:
    if status in ("aside", "done"):
        return (_scan(row, out) for row in rows)
    return [table([{"scan": row["scan"], "why": row["reason"], "files": row.get("frames", "")} for row in rows])]


def _head(summary: Mapping[str, Any]) -> str:
    counts = summary["counts"]
    facts = {
        "last night began": summary["began"].replace("T", " "),
        "took": duration(summary["seconds"]),
        **{title: str(counts[status]) for status, title in _COUNT_LABELS.items()},
        "run in the last night": str(len(summary["run_this_night"])),
    }
    return (warning(f"The night ended early: {summary['stopped']}") if summary["stopped"] else "") + facts_list(facts)


def _scan(row: Mapping[str, Any], out: Path) -> str:
    facts = row.get("facts", {})
    pictures = "".join(_picture(out / "thumbnails" / name, name) for name in facts.get("thumbnails", ()))
    report = row.get("report") if row["status"] == "done" else None
    name = escape(row["scan"])
    title = f'<a href="{_link(report)}">{name}</a>' if report else name
    lines = [line for line in (_facts(facts), escape(row.get("reason", "")), escape(row.get("again", ""))) if line]
    if row["status"] == "aside" and "log" in row:
        lines.append(f'<a href="{_link(row["log"])}">what it said</a>')
    lines += [escape(text) for text in facts.get("warnings", ())]
    text = "".join(f"<p>{line}</p>" for line in lines)
    return f'<article class="scan">{pictures}<h3>{title}</h3>{text}</article>\n'


def _link(path: str) -> str:
    # A name need not be UTF-8.
    return quote_from_bytes(os.fsencode(path))


def _facts(facts: Mapping[str, Any]) -> str:
    if "n_patterns" not in facts:
        return ""
    shape = " × ".join(str(points) for points in facts["scan_shape"])
    aside = f", {facts['n_set_aside']:,} set aside" if facts["n_set_aside"] else ""
    k = ", ".join(str(k) for k in facts["k"])
    return f"{shape} points, {facts['n_patterns']:,} patterns{aside}; K = {k}; {duration(facts['seconds'])}"


def _picture(path: Path, name: str) -> str:
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return ""
    what = "direct colouring" if name.endswith(".direct.png") else "natural labels"
    return f'<img src="data:image/png;base64,{data}" alt="{what}" title="{what}">'
