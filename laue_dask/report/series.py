"""One page about a series: the maps of all its scans side by side in the same colours, and how clusters come and go."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import xarray as xr
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from laue_dask.io.coordinates import MapScale
from laue_dask.io.output_paths import write_atomically
from laue_dask.report.canvas import MISSING_COLOUR, cluster_colours
from laue_dask.report.html import MAX_TABLE_ROWS, facts_list, page
from laue_dask.report.thumbnails import colour_labels, fit_to_side
from laue_dask.runtime.safe_text import escape

MAX_MAP_SIDE_PX = 280
"""Longest side of a map in pixels."""


@dataclass(frozen=True, eq=False)
class Member:
    """A scan of the series.

    Attributes
    ----------
    name
        Of its run's folder, beside the page.
    results
        Of its run.
    """

    name: str
    source: str
    results: xr.Dataset


def write_series_page(members: Sequence[Member], path: Path, *, command: str) -> None:
    """Write the page: one file that needs no other and no network; its links lead to the scans' reports."""
    first = members[0].results
    ks = [int(k) for k in first["k"].values]
    facts = {
        "scans": str(len(members)),
        "patterns": f"{sum(int((one.results['labels'].values[0] >= 0).sum()) for one in members):,}",
        "numbers of clusters K": ", ".join(map(str, ks)),
        "principal components used (M_PCA)": str(int(first["components"].attrs["m_pca"])),
    }
    head = f"<p><code>{escape(command)}</code></p>{facts_list(facts)}<p>All scans share their principal components, "
    head += "their clusters and the colours of these: a colour means the same in every map.</p>"
    text = page(f"Series of {len(members)} scans", head=head, sections=_sections(members, ks))
    write_atomically(path, text.encode())


def _sections(members: Sequence[Member], ks: Sequence[int]) -> Iterator[tuple[str, str]]:
    direct = "".join(_figure(one, _shown(one, one.results["direct_rgb"].values)) for one in members)
    yield "Direct colouring", direct
    for k in ks:
        maps = "".join(_figure(one, colour_labels(one.results["labels"].sel(k=k).values, k)) for one in members)
        yield f"K = {k}", maps + _sizes(members, k)
    colours = "".join(
        f"<h3>K = {k}</h3>"
        + "".join(_figure(one, _shown(one, one.results["pca_rgb"].sel(k=k).values)) for one in members)
        for k in ks
    )
    yield "PCA labeler", colours


def _shown(member: Member, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    missing = np.array([int(MISSING_COLOUR[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.uint8)
    shown: NDArray[np.uint8] = np.where((member.results["labels"].values[0] >= 0)[..., None], rgb, missing)
    return shown


def _figure(member: Member, picture: NDArray[np.uint8]) -> str:
    content = io.BytesIO()
    fit_to_side(picture.astype(np.uint8), MAX_MAP_SIDE_PX, aspect=MapScale.of(member.results).aspect).save(
        content, format="PNG", optimize=True
    )
    data = base64.b64encode(content.getvalue()).decode()
    link = f'<a href="{quote(member.name)}/report.html">{escape(member.name)}</a>'
    return (
        f'<article class="scan"><h3>{link}</h3><img src="data:image/png;base64,{data}" alt="{escape(member.name)}">'
        "</article>\n"
    )


def _sizes(members: Sequence[Member], k: int) -> str:
    """Patterns of each cluster in each scan, and their share of the scan's."""
    counted = []
    for one in members:
        labels = one.results["labels"].sel(k=k).values
        counted.append(np.bincount(labels[labels >= 0], minlength=k))
    colours = cluster_colours(k)(np.arange(k))
    heads = "".join(f'<th class="number">{escape(one.name)}</th>' for one in members)
    rows = []
    for cluster in range(min(k, MAX_TABLE_ROWS)):
        cells = "".join(
            f'<td class="number">{sizes[cluster]:,} ({100 * sizes[cluster] / max(1, sizes.sum()):.1f} %)</td>'
            for sizes in counted
        )
        swatch = f'<span style="background: {to_hex(colours[cluster])}; padding: 0 .7em">&nbsp;</span>'
        rows.append(f"<tr><td>{swatch} {cluster}</td>{cells}</tr>")
    note = f"<caption>the first {MAX_TABLE_ROWS} of {k:,}</caption>" if k > MAX_TABLE_ROWS else ""
    return f'<div class="scroll"><table>{note}<tr><th>cluster</th>{heads}</tr>{"".join(rows)}</table></div>'
