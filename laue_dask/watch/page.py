"""One self-contained page about a scan that is going on, which loads itself again; nothing comes from a network."""

import base64
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from laue_dask.io.output_paths import write_atomically
from laue_dask.report.html import facts_list, page_shell
from laue_dask.runtime.progress import duration
from laue_dask.runtime.safe_text import escape

RELOAD_INTERVAL_S = 2
"""Seconds after which the page is loaded again."""

_PAGE_STYLE = """:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; max-width: 116rem;
  padding: .6rem 1.2rem 3rem; }
h1 { font-size: 1.4rem; margin: .4rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 1.2rem 0 .3rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .5rem 1.2rem; margin: .6rem 0; }
dt { color: #666; font-size: .85rem; }
dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.alarm { border-left: .3rem solid #b00020; background: #fdecee; padding: .5rem .8rem; margin: .4rem 0; }
.over { color: #666; }
.maps { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.maps img { flex: 1 1 40rem; min-width: 0; max-width: min(100%, 80rem); height: auto; }
.bar { height: .5rem; background: #e6e6e6; margin: .6rem 0; }
.bar div { height: 100%; background: #0077bb; }
"""

_PAGE_BODY = Template("""$alarms
<div class="bar"><div style="width: $percent%"></div></div>
$facts
<div class="maps">$maps</div>
$suggestions
$trouble""")

_STATE_IN_WORDS = {
    "waiting": "waiting for the first frames",
    "scanning": "scanning",
    "finishing": "the scan is over, the whole of it is segmented",
    "finished": "finished: report.html, beside this page, has the result",
    "failed": "ended without a result",
}


def write_page(state: Mapping[str, Any], maps: Mapping[str, Path], path: Path) -> None:
    """Write the page.

    Parameters
    ----------
    state
        The content of `watch.json`.
    maps
        Caption and file of each map; one that is not there yet is left out.
    path
        The page; replaced as a whole.
    """
    over = state["state"] in ("finished", "failed")
    images = "".join(
        f'<img src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}" alt="{escape(caption)}">'
        for caption, file in maps.items()
        if file.is_file()
    )
    body = _PAGE_BODY.substitute(
        # Those that last first, then the others, the latest first.
        alarms="".join(map(_alarm, sorted(state["alarms"], key=_urgency, reverse=True))),
        percent=f"{100 * state['frames'] / max(1, state['points']):.1f}",
        facts=_facts(state),
        maps=images,
        suggestions=_listed("Suggestions", state["suggestions"]),
        trouble=_listed(
            "Not readable yet, or damaged", [f"{one['file']}: {one['reason']}" for one in state["unreadable"]]
        ),
    )
    again = "" if over else f'<meta http-equiv="refresh" content="{RELOAD_INTERVAL_S}">\n'
    text = page_shell(f"Laue scan {state['source']}", body, style=_PAGE_STYLE, meta=again)
    write_atomically(path, text.encode(errors="backslashreplace"))


def _urgency(alarm: Mapping[str, Any]) -> tuple[bool, str]:
    return not alarm["until"], alarm["since"]


def _alarm(alarm: Mapping[str, Any]) -> str:
    since = alarm["since"][11:19]
    if alarm["until"]:
        return f'<p class="over">{since} to {alarm["until"][11:19]}: {escape(alarm["message"])}</p>'
    return f'<p class="alarm"><b>since {since}</b> {escape(alarm["message"])}</p>'


def _facts(state: Mapping[str, Any]) -> str:
    ny, nx = state["scan_shape"]
    latency, store = state["latency_s"], state["store"]
    facts = {
        "state": _STATE_IN_WORDS[state["state"]] + (f": {state['reason']}" if state["reason"] else ""),
        "frames": f"{state['frames']:,} of {state['points']:,} ({ny} × {nx})",
        "frames/s": f"{state['frames_per_s']:.1f}",
        "backlog": f"{state['backlog']:,}",
        "file to map": f"{latency['p50']:.1f} s, 95 %: {latency['p95']:.1f} s" if latency["frames"] else "–",
        "without a frame so far": f"{state['skipped']:,}",
        "in the store": f"{store['patterns']:,} patterns",
        "last frame": f"{duration(state['quiet_s'])} ago" if state["frames"] else "–",
        "clusters": f"{state['k']}" if state["k"] else "–",
        "as of": state["updated"][11:19],
    }
    return facts_list(facts)


def _listed(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    return f"<h2>{title}</h2><ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
