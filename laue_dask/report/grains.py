"""Figures of what goes beyond clustering: grains, places worth a dense scan, densities, and errors over many K."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from laue_dask.grains import regions
from laue_dask.io.coordinates import MapScale
from laue_dask.report import canvas, maps
from laue_dask.report.canvas import INK_COLOUR, SMALL_TEXT_PT, TEXT_PT
from laue_dask.report.densities import cluster_densities, component_ranges

N_DENSITY_CLUSTERS, N_DENSITY_COMPONENTS, N_DENSITY_BINS = 5, 8, 40
"""The paper's Figure 11: five clusters, eight components."""

MAX_DENSITY_POINTS = 200_000
"""Points up to which densities are drawn: beyond, reading the components again takes longer than clustering them."""

_LINE_COLOUR, _MARK_COLOUR = "#4477aa", "#aa3377"


def grain_map(results: xr.Dataset) -> Figure:
    """Draw the grains by neighbourhood, their boundaries in black."""
    grain: NDArray[np.int32] = results["grain"].to_numpy()
    k = int(grain.max()) + 1
    threshold = results["grain"].attrs.get("threshold")
    used = "" if threshold is None else f" · boundaries stronger than {threshold:.3g}"
    figure = maps.label_figure(
        grain,
        k,
        delegates=None,
        title="Grains by neighbourhood",
        facts=f"{k:,} grains{used}",
        kind="grain",
        scale=MapScale.of(results),
    )
    draw_boundaries(figure.axes[0], grain)
    return figure


def draw_boundaries(axes: Axes, grain: NDArray[np.int32]) -> None:
    """Draw the lines between the grains of a map, (ny, nx)."""
    axes.add_collection(LineCollection(list(boundaries(grain)), colors=INK_COLOUR, linewidths=0.6))


def boundaries(labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the line segments (n, 2, 2) as (x, y), between the points of a map (ny, nx) whose neighbours differ."""
    y, x = np.nonzero(labels[:, :-1] != labels[:, 1:])
    upright = np.stack([np.column_stack([x + 0.5, y - 0.5]), np.column_stack([x + 0.5, y + 0.5])], axis=1)
    y, x = np.nonzero(labels[:-1] != labels[1:])
    level = np.stack([np.column_stack([x - 0.5, y + 0.5]), np.column_stack([x + 0.5, y + 0.5])], axis=1)
    return np.concatenate([upright, level])


def boundary_map(results: xr.Dataset) -> Figure:
    """Draw how much each pattern differs from its neighbours, and regions worth a dense scan (section 4.4)."""
    strength = results["boundary_strength"].to_numpy()
    proposed = proposals(results)
    counted = f"{len(proposed)} region{'s' if len(proposed) > 1 else ''} worth a dense scan"
    said = counted if proposed else "no region stands out"
    figure = maps.scalar_figure(
        strength,
        title="Boundaries",
        facts=said,
        label="largest distance to a neighbour, component space",
        scale=MapScale.of(results),
    )
    draw_regions(figure.axes[0], proposed)
    return figure


def draw_regions(axes: Axes, proposed: Sequence[regions.Region]) -> None:
    """Frame and number regions on a map."""
    for number, region in enumerate(proposed, start=1):
        corner = (region.x0 - 0.5, region.y0 - 0.5)
        size = (region.x1 - region.x0 + 1, region.y1 - region.y0 + 1)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="white", linewidth=2.4))
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=_MARK_COLOUR, linewidth=1.4))
        axes.annotate(
            str(number),
            corner,
            (3, -3),
            textcoords="offset points",
            ha="left",
            va="top",
            size=SMALL_TEXT_PT,
            color="white",
            bbox={"boxstyle": "square,pad=0.15", "facecolor": _MARK_COLOUR, "linewidth": 0},
        )


def proposals(results: xr.Dataset) -> list[regions.Region]:
    """Return the regions of a quarter of the scan's height and width that are worth a dense scan."""
    grain = results["grain"].to_numpy()
    return regions.propose(results["boundary_strength"].to_numpy(), grain, size=regions.quarter(grain.shape))


def grain_sizes(results: xr.Dataset) -> Figure:
    """Draw how many grains have which size."""
    grain = results["grain"].to_numpy()
    size = np.bincount(grain[grain >= 0])
    figure = Figure(figsize=(5.4, 3.4), dpi=canvas.DPI, facecolor="white")
    facts = f"{len(size):,} grains, median {np.median(size):,.0f} points, largest {size.max():,}"
    canvas.add_title(figure, title="Sizes of the grains", facts=facts)
    axes = canvas.add_axes(figure, left=0.75, top=0.75, width=4.4, height=2.1)
    draw_sizes(axes, size)
    return figure


def draw_sizes(axes: Axes, size: NDArray[np.int64]) -> None:
    """Draw how many grains have which size, of the size of each, (grain,)."""
    edges = np.geomspace(1, max(2, size.max()) * 1.001, 25)
    axes.hist(size, bins=list(edges), color=_LINE_COLOUR, edgecolor="white", linewidth=0.4)
    axes.set_xscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("size (scan points)", size=TEXT_PT, color=INK_COLOUR)
    axes.set_ylabel("grains", size=TEXT_PT, color=INK_COLOUR)


def density_figure(results: xr.Dataset, k: int, *, clusters: Sequence[int] | None = None) -> Figure:
    """Draw the density of the first components in some clusters, by default the largest (paper, Figure 11)."""
    labels = results["labels"].sel(k=k).to_numpy().ravel()
    rows = np.flatnonzero(labels >= 0)
    m_pca = int(results["components"].attrs.get("m_pca", results.sizes["component"]))
    used = results["components"][:, : min(N_DENSITY_COMPONENTS, m_pca)].data
    X = used if len(rows) == len(labels) else used[rows]
    ranges = component_ranges(X, count=N_DENSITY_COMPONENTS)
    density = cluster_densities(X, labels[rows], k, ranges=ranges, bins=N_DENSITY_BINS)
    largest = np.flatnonzero(np.bincount(labels[rows], minlength=k))[:N_DENSITY_CLUSTERS]
    shown = largest.tolist() if clusters is None else list(clusters)
    columns = min(4, len(ranges))
    height = -(-len(ranges) // columns)
    figure = Figure(figsize=(max(0.5 + 1.75 * columns, 4.6), 1.35 + 1.35 * height), dpi=canvas.DPI, facecolor="white")
    which = f"the {len(shown)} largest clusters" if clusters is None else f"{len(shown)} clusters"
    canvas.add_title(figure, title=f"K = {k}, density of the components", facts=which)
    colours = canvas.cluster_colours(k)
    for component, (low, high) in enumerate(ranges):
        row, column = divmod(component, columns)
        axes = canvas.add_axes(figure, left=0.3 + 1.75 * column, top=1.1 + 1.35 * row, width=1.55, height=0.85)
        edges = low + (high - low or 1.0) * np.arange(N_DENSITY_BINS + 1) / N_DENSITY_BINS
        steps = [np.column_stack([np.repeat(edges, 2), _rises(density[cluster, component])]) for cluster in shown]
        faces, lines = [(*colours(cluster)[:3], 0.25) for cluster in shown], [colours(cluster) for cluster in shown]
        axes.add_collection(
            PolyCollection(steps, closed=False, facecolors=faces, edgecolors=lines, linewidths=0.9), autolim=False
        )
        beside = 0.05 * (edges[-1] - edges[0])
        highest = float(density[shown, component].max())
        axes.set(yticks=[], ylim=(0, 1.05 * highest or 1.0), xlim=(edges[0] - beside, edges[-1] + beside))
        axes.set_title(f"x{canvas.subscript(component + 1)}", size=TEXT_PT, color=INK_COLOUR, pad=2)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
    canvas.legend(figure, [Line2D([], [], color=colours(cluster), label=f"cluster {cluster}") for cluster in shown])
    return figure


def _rises(heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Heights of a histogram, (n,), at both sides of each edge, (2n + 2,)."""
    return np.concatenate([[0.0], np.repeat(heights, 2), [0.0]])


def approximation(rows: Sequence[Mapping[str, float | int]], *, unit: str = "") -> Figure:
    """Draw the mean squared error and Kolmogorov-Smirnov distance to the true map against K (paper, Figure 19).

    Parameters
    ----------
    rows
        As `map_scores.approximation_errors` gives them.
    unit
        Of the squared error.
    """
    k = np.array([row["k"] for row in rows])
    figure = Figure(figsize=(6.2, 5.0), dpi=canvas.DPI, facecolor="white")
    canvas.add_title(figure, title="Approximation of the true map", facts=f"K-means, K = {k.min():,} to {k.max():,}")
    labels = (f"mean squared error{f' ({unit})' if unit else ''}", "Kolmogorov–Smirnov distance")
    for place, (name, label) in enumerate(zip(("mse", "ks"), labels, strict=True)):
        axes = canvas.add_axes(figure, left=0.95, top=0.85 + 1.9 * place, width=5.0, height=1.65)
        axes.plot(k, [row[name] for row in rows], "o-", color=_LINE_COLOUR, markersize=4, linewidth=1)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("number of clusters K" if place else "", size=TEXT_PT, color=INK_COLOUR)
        axes.set_ylabel(label, size=TEXT_PT, color=INK_COLOUR)
        axes.grid(visible=True, color="#dddddd", linewidth=0.5)
        if not place:
            axes.tick_params(labelbottom=False)
    return figure
