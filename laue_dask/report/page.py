"""One self-contained page about a run: what was done, every figure, every delegate, and what was set aside."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from laue_dask.io.output_paths import write_atomically
from laue_dask.report.html import MAX_TABLE_ROWS, facts_list, page, table, warning
from laue_dask.runtime.progress import duration
from laue_dask.runtime.safe_text import escape

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
_GRAIN_FIGURES = ("grains", "boundaries", "grain_sizes")
_FIGURES_WITHOUT_K = (
    *("direct_colouring", "scores", "explained_variance", "reconstruction_error", "unexplained", "approximation"),
    *_GRAIN_FIGURES,
)
_FIGURE_OF_K = re.compile(r"(.+)_k(\d+)")


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
    text = page(
        f"Laue scan {run['source']}" if run.get("source") else "Laue scan",
        head="".join((_command(run), *map(warning, run.get("warnings") or []), _facts(results, run))),
        sections=_sections(results, figures, run),
    )
    write_atomically(path, text.encode())


def _command(run: Mapping[str, Any]) -> str:
    return f"<p><code>{escape(str(run['command']))}</code></p>" if run.get("command") else ""


def _sections(results: xr.Dataset, figures: Mapping[str, str], run: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Titles and bodies in the page's order; an empty body is left out."""
    by_k: dict[int, list[str]] = {}
    for stem in figures:
        if match := _FIGURE_OF_K.fullmatch(stem):
            by_k.setdefault(int(match[2]), []).append(stem)
    yield "Direct colouring", figures.get("direct_colouring", "")
    yield (
        "Label maps",
        "".join(f"<h3>K = {k}</h3>\n" + "".join(figures[stem] for stem in stems) for k, stems in sorted(by_k.items())),
    )
    yield "Grains", "".join(figures.get(stem, "") for stem in _GRAIN_FIGURES)
    advice = "".join(f"<p>{escape(line)}</p>" for line in run.get("advice") or [])
    yield "Scores", figures.get("scores", "") + advice
    yield "Explained variance", figures.get("explained_variance", "")
    yield (
        "Reconstruction error",
        figures.get("reconstruction_error", "") + figures.get("unexplained", "") + _drift(run.get("drift") or {}),
    )
    named = {*_FIGURES_WITHOUT_K, *(stem for stems in by_k.values() for stem in stems)}
    yield "Other figures", "".join(figure for stem, figure in figures.items() if stem not in named)
    yield "Delegates", _delegate_tables(results, run.get("delegate_sources") or {})
    yield "Evaluation", table(run.get("evaluation") or []) + figures.get("approximation", "")
    yield "Patterns set aside", table(run.get("set_aside") or [], total=run.get("n_set_aside"))
    yield "Times", _times(run)
    yield "Versions and seeds", _provenance(run)


def _facts(results: xr.Dataset, run: Mapping[str, Any]) -> str:
    facts: dict[str, str] = {}
    if shape := run.get("scan_shape") or results.attrs.get("scan_shape"):
        facts["scan (y × x)"] = " × ".join(str(points) for points in shape)
    facts |= _grid(run.get("grid") or {})
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
    return facts_list(facts)


def _grid(grid: Mapping[str, Any]) -> dict[str, str]:
    """How the grid is known, and which files are none of the scan."""
    facts = {"grid": str(grid["line"]).removeprefix("grid: ")} if "line" in grid else {}
    if left_out := [str(one["source"]) for one in grid.get("left_out", [])]:
        facts["files left out"] = ", ".join(left_out[:MAX_TABLE_ROWS]) + (
            ", …" if len(left_out) > MAX_TABLE_ROWS else ""
        )
    return facts


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
    match = _FIGURE_OF_K.fullmatch(plot.stem)
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
        shown = table(rows, total=k if k > MAX_TABLE_ROWS else None)
        tables.append(f"<details{' open' if k <= 24 else ''}><summary>K = {k}</summary>{shown}</details>")
    return "\n".join(tables)


def _delegate_rows(results: xr.Dataset, k: int, sources: Mapping[str, Any]) -> list[dict[str, Any]]:
    one = results.sel(k=k)
    labels = one["labels"].to_numpy()
    sizes = np.bincount(labels[labels >= 0], minlength=k)
    distance = one["distance_to_centroid"].to_numpy() if "distance_to_centroid" in one else None
    two = one["delegates_mixed"].to_numpy()[:, 0] if "delegates_mixed" in one else None
    rows: list[dict[str, Any]] = []
    for cluster, pattern in enumerate(one["delegate"].to_numpy()[: min(k, MAX_TABLE_ROWS)]):
        if pattern < 0:
            continue
        y, x = divmod(int(pattern), labels.shape[1])
        row = {"K": k, "cluster": cluster, "pattern": int(pattern), "x": x, "y": y}
        if sources:
            row["source file"] = sources.get(str(pattern), "")
        row |= {"size": int(sizes[cluster]), "share (%)": round(100 * sizes[cluster] / max(1, sizes.sum()), 2)}
        if two is not None:
            row["beam lies on"] = {0: "one domain", 1: "two domains"}.get(int(two[cluster]), "not known")
        if distance is not None:
            row["distance to centroid"] = float(distance[y, x])
        rows.append(row)
    return rows


def _times(run: Mapping[str, Any]) -> str:
    rates = run.get("patterns_per_second") or {}
    rows = []
    for stage, seconds in (run.get("seconds") or {}).items():
        row = {"stage": stage, "time": duration(seconds)}
        if isinstance(rates, Mapping) and rates:
            row["patterns/s"] = f"{rates[stage]:,.0f}" if stage in rates else ""
        rows.append(row)
    overall = "" if isinstance(rates, Mapping) else f"<p>{rates:,.0f} patterns/s</p>"
    return overall + table(rows)


def _provenance(run: Mapping[str, Any]) -> str:
    versions = {"laue_dask": run["laue_dask"]} if "laue_dask" in run else {}
    parts = [
        table([{"package": name, "version": value} for name, value in {**versions, **run.get("versions", {})}.items()]),
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
