"""One self-contained page about a run: what was done, every figure, every delegate, and what was set aside."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import xarray as xr

from laue_dask.io.places import replace_file
from laue_dask.progress import duration

ROWS_UP_TO = 256
"""Rows of a table on the page; the results and run.json hold them all."""

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light; }
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
</style>
</head>
<body>
<h1>$title</h1>
$command
$warnings
$facts
<nav>$links</nav>
$sections
</body>
</html>
""")

_CAPTIONS = {
    "grains": "Grains by neighbourhood: scan neighbours with close features, joined. A bent grain is one grain here.",
    "boundaries": "Largest distance of each pattern to its neighbours, and the regions worth a dense scan "
    "(regions.csv).",
    "grain_sizes": "Sizes of the grains (grains.csv).",
    "density": "Density of the first components in the largest clusters.",
    "direct_colouring": "Direct colouring: every pattern coloured by its first three principal components. No "
    "clustering is involved.",
    "labels": "Natural labels and the delegate of each cluster.",
    "pca": "PCA labeler: every cluster coloured by the first three principal components of the centroids.",
    "distance_to_centroid": "Distance of each pattern to its cluster's centroid: where it is large, the delegate says "
    "little about the pattern.",
    "delegates": "Reduced patterns of the delegates, framed in the colours of the label map.",
    "scores": "Silhouette and Calinski–Harabasz score against the number of clusters K; bands and stability (adjusted "
    "Rand index) of repeated fits to small samples, where there are any.",
    "explained_variance": "Explained variance of the principal components.",
    "approximation": "Mean squared error and Kolmogorov–Smirnov distance of the map that K delegates stand for to the "
    "true one, k-means.",
    "reconstruction_error": "Reconstruction error of the autoencoder. It grows with the number of bright pixels.",
    "unexplained": "Share of each pattern that the autoencoder's reconstruction leaves unexplained, whatever the "
    "number of bright pixels: patterns with a large share are unlike those that it was trained on.",
}
_OF_GRAINS = ("grains", "boundaries", "grain_sizes")
_NOT_BY_K = (
    *("direct_colouring", "scores", "explained_variance", "reconstruction_error", "unexplained", "approximation"),
    *_OF_GRAINS,
)
_OF_K = re.compile(r"(.+)_k(\d+)")


def write_page(results: xr.Dataset, plots: Sequence[Path], run: Mapping[str, Any], path: Path) -> None:
    """Write the report: one HTML file that needs no other file and no network.

    Parameters
    ----------
    results
        A results store opened with `xarray.open_zarr`.
    plots
        The figures of `laue_dask.report.plots.write_plots`; each is embedded.
    run
        The content of `run.json`. What it does not hold is left out of the page. `delegate_sources` (pattern index →
        file) gives the delegates' files, `evaluation` (one mapping per row) the comparison with a true map.
    path
        The page; replaced as a whole or not at all.
    """
    figures = {plot.stem: _figure(plot) for plot in plots}
    sections = [(title, body) for title, body in _sections(results, figures, run) if body]
    links = "".join(f'<a href="#{_anchor(title)}">{escape(title)}</a> ' for title, _ in sections)
    text = _PAGE.substitute(
        title=escape(f"Laue scan {run['source']}" if run.get("source") else "Laue scan"),
        command=f"<p><code>{escape(str(run['command']))}</code></p>" if run.get("command") else "",
        warnings="".join(f'<p class="warning">{escape(str(line))}</p>' for line in run.get("warnings") or []),
        facts=_facts(results, run),
        links=links,
        sections="\n".join(f'<h2 id="{_anchor(title)}">{escape(title)}</h2>\n{body}' for title, body in sections),
    )
    replace_file(path, text.encode())


def _sections(results: xr.Dataset, figures: Mapping[str, str], run: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Titles and bodies in the page's order; an empty body is left out."""
    by_k: dict[int, list[str]] = {}
    for stem in figures:
        if match := _OF_K.fullmatch(stem):
            by_k.setdefault(int(match[2]), []).append(stem)
    yield "Direct colouring", figures.get("direct_colouring", "")
    yield (
        "Label maps",
        "".join(f"<h3>K = {k}</h3>\n" + "".join(figures[stem] for stem in stems) for k, stems in sorted(by_k.items())),
    )
    yield "Grains", "".join(figures.get(stem, "") for stem in _OF_GRAINS)
    advice = "".join(f"<p>{escape(line)}</p>" for line in run.get("advice") or [])
    yield "Scores", figures.get("scores", "") + advice
    yield "Explained variance", figures.get("explained_variance", "")
    yield (
        "Reconstruction error",
        figures.get("reconstruction_error", "") + figures.get("unexplained", "") + _drift(run.get("drift") or {}),
    )
    named = {*_NOT_BY_K, *(stem for stems in by_k.values() for stem in stems)}
    yield "Other figures", "".join(figure for stem, figure in figures.items() if stem not in named)
    yield "Delegates", _delegate_tables(results, run.get("delegate_sources") or {})
    yield "Evaluation", _table(run.get("evaluation") or []) + figures.get("approximation", "")
    yield "Patterns set aside", _table(run.get("set_aside") or [], total=run.get("n_set_aside"))
    yield "Times", _times(run)
    yield "Versions and seeds", _provenance(run)


def _facts(results: xr.Dataset, run: Mapping[str, Any]) -> str:
    facts: dict[str, str] = {}
    if shape := run.get("scan_shape") or results.attrs.get("scan_shape"):
        facts["scan (y × x)"] = " × ".join(str(points) for points in shape)
    if "n_patterns" in run:
        facts["patterns"] = f"{run['n_patterns']:,}"
    if "n_set_aside" in run:
        facts["set aside"] = f"{run['n_set_aside']:,}"
    if "k" in results and results["k"].size:
        facts["numbers of clusters K"] = ", ".join(str(int(k)) for k in results["k"].to_numpy())
    if suggested := results.attrs.get("suggested_k"):
        facts["suggested K"] = ", ".join(str(int(k)) for k in np.atleast_1d(suggested))
    if "components" in results and (m_pca := results["components"].attrs.get("m_pca")) is not None:
        facts["principal components used (M_PCA)"] = f"{int(m_pca)}{_explained(results, int(m_pca))}"
    if seconds := run.get("seconds"):
        facts["time"] = duration(sum(seconds.values()))
    if workers := run.get("workers"):
        facts["ran on"] = str(workers)
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"<dl>{items}</dl>" if items else ""


def _explained(results: xr.Dataset, m_pca: int) -> str:
    if "explained_variance_ratio" not in results:
        return ""
    share = float(np.nansum(results["explained_variance_ratio"].to_numpy()[:m_pca]))
    return f", explaining {100 * share:.2f} %"


def _drift(drift: Mapping[str, Any]) -> str:
    """Whether the patterns are of the training's kind; says so too where that is not known."""
    if not drift:
        return ""
    if "not_known" in drift:
        text = f"Whether these patterns are of the kind that was trained on is not known: {drift['not_known']}."
    else:
        text = (
            f"{100 * drift['beyond']:.1f} % of {drift['patterns']:,} patterns are beyond the 99 % quantile "
            f"({drift['reference_q99']:.3f}) of the patterns that the weights were checked on, where 1 % is expected; "
            f"the median is {drift['median']:.3f} here and {drift['reference_median']:.3f} there."
        )
    return f"<p>{escape(text)}</p>\n"


def _figure(plot: Path) -> str:
    match = _OF_K.fullmatch(plot.stem)
    caption = _CAPTIONS.get(match[1] if match else plot.stem, plot.stem.replace("_", " "))
    data = base64.b64encode(plot.read_bytes()).decode()
    what = f"K = {int(match[2])}. {caption}" if match else caption
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(what)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def _delegate_tables(results: xr.Dataset, sources: Mapping[str, Any]) -> str:
    if not {"k", "delegate", "labels"} <= set(results.variables):
        return ""
    tables = []
    for k in (int(value) for value in results["k"].to_numpy()):
        rows = _delegate_rows(results, k, sources)
        table = _table(rows, total=k if k > ROWS_UP_TO else None)
        tables.append(f"<details{' open' if k <= 24 else ''}><summary>K = {k}</summary>{table}</details>")
    return "\n".join(tables)


def _delegate_rows(results: xr.Dataset, k: int, sources: Mapping[str, Any]) -> list[dict[str, Any]]:
    one = results.sel(k=k)
    labels = one["labels"].to_numpy()
    sizes = np.bincount(labels[labels >= 0], minlength=k)
    distance = one["distance_to_centroid"].to_numpy() if "distance_to_centroid" in one else None
    rows: list[dict[str, Any]] = []
    for cluster, pattern in enumerate(one["delegate"].to_numpy()[: min(k, ROWS_UP_TO)]):
        if pattern < 0:
            continue
        y, x = divmod(int(pattern), labels.shape[1])
        row = {"K": k, "cluster": cluster, "pattern": int(pattern), "x": x, "y": y}
        if sources:
            row["source file"] = sources.get(str(pattern), "")
        row |= {"size": int(sizes[cluster]), "share (%)": round(100 * sizes[cluster] / max(1, sizes.sum()), 2)}
        if distance is not None:
            row["distance to centroid"] = float(distance[y, x])
        rows.append(row)
    return rows


def _table(rows: Sequence[Mapping[str, Any]], *, total: int | None = None) -> str:
    """A table of rows that need not all have the same columns; long ones are cut, and say so."""
    if not rows:
        return ""
    shown = rows[:ROWS_UP_TO]
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
    if isinstance(value, float):
        return f"{value:#.4g}" if np.isfinite(value) else "–"
    return escape(str(value))


def _times(run: Mapping[str, Any]) -> str:
    rates = run.get("patterns_per_second") or {}
    rows = []
    for stage, seconds in (run.get("seconds") or {}).items():
        row = {"stage": stage, "time": duration(seconds)}
        if isinstance(rates, Mapping) and rates:
            row["patterns/s"] = f"{rates[stage]:,.0f}" if stage in rates else ""
        rows.append(row)
    overall = "" if isinstance(rates, Mapping) else f"<p>{rates:,.0f} patterns/s</p>"
    return overall + _table(rows)


def _provenance(run: Mapping[str, Any]) -> str:
    versions = {"laue_dask": run["laue_dask"]} if "laue_dask" in run else {}
    parts = [
        _table(
            [{"package": name, "version": value} for name, value in {**versions, **run.get("versions", {})}.items()]
        ),
        _seeds(run.get("seeds")),
    ]
    for title, values in (("Configuration", run.get("config")), ("Keys of the stages", run.get("keys"))):
        if values:
            parts.append(f"<details><summary>{title}</summary><pre>{escape(_outline(values))}</pre></details>")
    return "\n".join(part for part in parts if part)


def _seeds(seeds: Any) -> str:
    if seeds is None:
        return ""
    named = seeds if isinstance(seeds, Mapping) else {"seed": seeds}
    return "<p>Seeds: " + escape(", ".join(f"{name} {value}" for name, value in named.items())) + "</p>"


def _outline(values: Mapping[str, Any], *, indent: str = "") -> str:
    """Nested mappings as indented lines."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{name}:\n{_outline(value, indent=indent + '  ')}")
        else:
            lines.append(f"{indent}{name}: {value}")
    return "\n".join(lines)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
