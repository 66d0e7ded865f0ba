"""The figures of a run, made from its results alone.

Each function takes the results and returns a `matplotlib.figure.Figure`; `write_plots` knows which of them can be drawn
and under which names they are written. Variables are those of `laue_dask.schema.RESULTS`.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from laue_dask.io.coordinates import MapScale
from laue_dask.io.output_paths import write_atomically
from laue_dask.report import canvas, grains, maps
from laue_dask.report.canvas import INK_COLOUR, SMALL_TEXT_PT, TEXT_PT
from laue_dask.report.html import MAX_GALLERY_DELEGATES
from laue_dask.segmentation.selection import band

MAX_K_WITH_DELEGATES = 32
"""Largest K whose delegates are marked on the map."""

Patterns = Mapping[int, NDArray[np.uint8]]
"""Pattern index → reduced pattern, (128, 128) uint8."""


def write_plots(
    results: xr.Dataset,
    folder: Path,
    *,
    patterns: Patterns | None = None,
    unchanged: Collection[int] = (),
    changed: Collection[str] = ("scores",),
    errors: Sequence[Mapping[str, float | int]] = (),
    drawn: Collection[str] = (),
) -> list[Path]:
    """Draw every figure that the results allow, as PNG of 150 dpi.

    Parameters
    ----------
    results
        A results store opened with `xarray.open_zarr`.
    folder
        Where to write; made if need be.
    patterns
        Reduced patterns of delegates, by pattern index; without any of a K there is no gallery of it.
    unchanged
        K whose figures of an earlier call are still right; where there are any, so are those of the whole scan.
    changed
        Names of figures of the whole scan that are not.
    errors
        Of the approximation of a true map in degrees, as `map_scores.approximation_errors` gives them.
    drawn
        Names of figures that `draw_some` has just written there.

    Returns
    -------
    list of Path
        The files, those of the whole scan first, then by K. A file is there whole or not at all. Figures of an
        earlier call that these results do not have, such as those of another K, are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in _planned(results, patterns or {}, errors):
        path = folder / f"{name}.png"
        k = re.search(r"_k(\d+)$", name)
        kept = int(k[1]) in unchanged if k else bool(unchanged) and name not in changed
        if not ((kept or name in drawn) and path.exists()):
            write_atomically(path, canvas.png(draw()))
        written.append(path)
    for path in set(folder.glob("*.png")) - set(written):
        if _OUR_FIGURE_NAME.fullmatch(path.stem):
            path.unlink()
    return written


def names(results: xr.Dataset, patterns: Patterns) -> list[str]:
    """Return the names of the figures that `write_plots` would draw."""
    return [name for name, _ in _planned(results, patterns, ())]


def draw_some(results: xr.Dataset, folder: Path, wanted: Collection[str], patterns: Patterns) -> None:
    """Draw figures by name; see `write_plots`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in _planned(results, patterns, ()):
        if name in wanted:
            write_atomically(folder / f"{name}.png", canvas.png(draw()))


def label_map(results: xr.Dataset, k: int) -> Figure:
    """Draw the label map of the natural labeler, delegates marked (paper, Figures 7 to 10).

    Delegates are left out above 32 clusters, as in the paper. The key gives the clusters' numbers, colours and sizes.
    """
    labels = _labels(results, k)
    return maps.label_figure(
        labels,
        k,
        delegates=marked_delegates(results, k),
        title=f"K = {k}, natural labels",
        facts=_facts(results, labels),
        scale=MapScale.of(results),
    )


def marked_delegates(results: xr.Dataset, k: int) -> NDArray[np.int64] | None:
    """Return positions x, y (K, 2) of the delegates that the map of K clusters marks; None where they are too many."""
    return _delegates(results, k)[1] if k <= MAX_K_WITH_DELEGATES and "delegate" in results else None


def pca_map(results: xr.Dataset, k: int) -> Figure:
    """Draw the label map of the PCA labeler (paper, section 4.2, Figures 12 to 14)."""
    labels = _labels(results, k)
    rgb = results["pca_rgb"].sel(k=k).to_numpy()
    return maps.rgb_figure(
        rgb,
        labels >= 0,
        title=f"K = {k}, PCA labeler",
        facts=_facts(results, labels),
        over="its range",
        scale=MapScale.of(results),
    )


def direct_colouring(results: xr.Dataset) -> Figure:
    """Draw the direct colouring of every pattern (paper, Definition 12, Figures 12 and 15)."""
    rgb = results["direct_rgb"].to_numpy()
    labels = results["labels"].isel(k=0).to_numpy() if _has(results, "labels") else np.zeros(rgb.shape[:2], np.int32)
    return maps.rgb_figure(
        rgb,
        labels >= 0,
        title="Direct colouring",
        facts=_facts(results, labels),
        over="its middle 99 %",
        scale=MapScale.of(results),
    )


def distance_map(results: xr.Dataset, k: int) -> Figure:
    """Draw how far each pattern is from its centroid: where a delegate speaks for its cluster, and where not."""
    return maps.scalar_figure(
        results["distance_to_centroid"].sel(k=k).to_numpy(),
        title=f"K = {k}, distance to the centroid",
        facts=_facts(results, _labels(results, k)),
        label="distance in component space",
        absent="no usable pattern",
        scale=MapScale.of(results),
    )


def reconstruction_map(results: xr.Dataset) -> Figure:
    """Draw the reconstruction error of the autoencoder: patterns unlike those that it was trained on."""
    error = results["reconstruction_error"].to_numpy()
    return maps.scalar_figure(
        error,
        title="Reconstruction error",
        facts=f"computed for {np.isfinite(error).sum():,} of {error.size:,} points",
        label="binary cross entropy (nat per pixel)",
        absent="not computed",
        scale=MapScale.of(results),
    )


def unexplained_map(results: xr.Dataset) -> Figure:
    """Draw the reconstruction error free of how many bright pixels a pattern has; see `features.losses.unexplained`."""
    share = results["unexplained"].to_numpy()
    return maps.scalar_figure(
        share,
        title="Left unexplained by the reconstruction",
        facts=f"computed for {np.isfinite(share).sum():,} of {share.size:,} points",
        label="share of the pattern (1: as a uniform grey)",
        absent="not computed",
        scale=MapScale.of(results),
    )


def explained_variance(results: xr.Dataset) -> Figure:
    """Draw the explained variance of the principal components and its running sum (paper, Figure 6)."""
    variance = results["explained_variance"].to_numpy()
    total = np.nancumsum(results["explained_variance_ratio"].to_numpy())
    number = np.arange(1, variance.size + 1)
    m_pca = _m_pca(results)
    explained = "" if m_pca is None else f", the first {m_pca} explain {100 * total[m_pca - 1]:.2f} % of the variance"
    figure = Figure(figsize=(7.6, 3.6), dpi=canvas.DPI, facecolor="white")
    canvas.add_title(figure, title="Principal components", facts=f"{variance.size} components{explained}")
    left, right = (canvas.add_axes(figure, left=x, top=0.95, width=2.75, height=2.05) for x in (0.85, 4.6))
    draw_variance(left, variance)
    right.plot(number, 100 * total, ".-", color=_LINE_COLOUR, markersize=3, linewidth=0.8)
    right.ticklabel_format(useOffset=False)
    _label(right, "number of components", "cumulative explained variance (%)")
    if m_pca is not None:
        marks = [axes.axvline(m_pca, color=_MARK_COLOUR, linewidth=1, linestyle="--") for axes in (left, right)]
        marks[0].set_label(f"M_PCA = {m_pca}")
        canvas.legend(figure, [marks[0]])
    return figure


def draw_variance(axes: Axes, variance: NDArray[np.float64]) -> None:
    """Draw the variance that each principal component explains, (component,)."""
    positive = np.where(variance > 0, variance, np.nan)
    axes.plot(np.arange(1, variance.size + 1), positive, ".-", color=_LINE_COLOUR, markersize=3, linewidth=0.8)
    if np.isfinite(positive).any():
        axes.set_yscale("log")
        # what is smaller than that is the rounding error of the decomposition
        axes.set_ylim(bottom=max(0.5 * np.nanmin(positive), 1e-12 * np.nanmax(positive)))
    _label(axes, "principal component", "explained variance")


SCORES = {
    "silhouette": "silhouette score",
    "calinski_harabasz": "Calinski–Harabasz score",
    "stability": "stability (mean ARI)",
}
"""What the axes of each score are called."""


def scores(results: xr.Dataset) -> Figure:
    """Draw the silhouette and Calinski-Harabasz score against K, the suggested K marked (paper, Figure 16).

    Where fits were repeated, bands hold 90 % of their scores, and a third curve tells how well their partitions agree.
    """
    k = results["score_k"].to_numpy()
    shown = [name for name in SCORES if name != "stability" or _has(results, name)]
    figure = Figure(figsize=(6.2, 1.3 + 1.85 * len(shown)), dpi=canvas.DPI, facecolor="white")
    canvas.add_title(figure, title="Scores of the segmentations", facts=f"K-means, K = {k.min()} to {k.max()}")
    marks: list[Artist] = []
    bands: list[Artist] = []
    for row, name in enumerate(shown):
        axes = canvas.add_axes(figure, left=0.95, top=0.95 + 1.85 * row, width=5.0, height=1.6)
        marks, band_of_one = draw_score(axes, results, name)
        bands = band_of_one or bands
        last = row == len(shown) - 1
        axes.set_xlabel("number of clusters K" if last else "", size=TEXT_PT, color=INK_COLOUR)
        axes.tick_params(labelbottom=last)
    if marks or bands:
        canvas.legend(figure, [*marks[:1], *bands])
    return figure


def draw_score(axes: Axes, results: xr.Dataset, name: str) -> tuple[list[Artist], list[Artist]]:
    """Draw one of `SCORES` against K, with its band and the suggested K; legend entries of these and of the band."""
    k = results["score_k"].to_numpy()
    axes.plot(k, results[name].to_numpy(), "o-", color=_LINE_COLOUR, markersize=4, linewidth=1)
    bands: list[Artist] = []
    if _has(results, f"{name}_draws"):
        draws = results[f"{name}_draws"].to_numpy()
        low, high = np.array([band(values) for values in draws]).T
        said = f"90 % of {draws.shape[1]} repeated fits"
        bands = [axes.fill_between(k, low, high, color=_LINE_COLOUR, alpha=0.25, linewidth=0, label=said)]
    marks: list[Artist] = [
        axes.axvline(best, color=_MARK_COLOUR, linewidth=1, linestyle="--") for best in _suggested(results)
    ]
    if marks:
        marks[0].set_label(f"suggested K = {', '.join(str(best) for best in _suggested(results))}")
    _label(axes, "number of clusters K", SCORES[name])
    return marks, bands


def delegate_gallery(results: xr.Dataset, k: int, patterns: Patterns) -> Figure:
    """Draw the patterns of the delegates, dark on white, framed in the colours of the label map, as wide for their
    height as the frames are.

    Clusters whose pattern is not given are left out; of more than 24 the largest 24 are shown.
    """
    index, position = _delegates(results, k)
    two = results["delegates_mixed"].sel(k=k).to_numpy()[:, 0] if "delegates_mixed" in results else None
    largest = np.argsort(-_sizes(_labels(results, k), k), kind="stable")
    given = [int(cluster) for cluster in largest if int(index[cluster]) in patterns]
    chosen = sorted(given[:MAX_GALLERY_DELEGATES])
    tall, wide = _pattern_inches(results)
    columns = max(1, min(int(_GALLERY_WIDTH_IN / (wide + _PATTERN_GAP_IN)), len(chosen)))
    rows = -(-len(chosen) // columns)
    size = (max(0.3 + (wide + _PATTERN_GAP_IN) * columns, 4.6), 0.75 + (tall + _ROW_GAP_IN) * rows)
    figure = Figure(figsize=size, dpi=canvas.DPI, facecolor="white")
    shown = f"{len(chosen)} of {k} clusters" if len(chosen) < k else "one pattern per cluster"
    canvas.add_title(figure, title=f"K = {k}, delegates", facts=f"{shown}, intensities inverted")
    colours = canvas.cluster_colours(k)
    # one axes in inches for all, because two dozen take longer to make than to draw
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for place, cluster in enumerate(chosen):
        row, column = divmod(place, columns)
        left, top = 0.2 + (wide + _PATTERN_GAP_IN) * column, 1.02 + (tall + _ROW_GAP_IN) * row
        extent = (left, left + wide, top + tall, top)
        axes.imshow(patterns[int(index[cluster])], cmap="gray_r", vmin=0, vmax=255, extent=extent, aspect="auto")
        axes.add_patch(Rectangle((left, top), wide, tall, fill=False, edgecolor=colours(cluster), linewidth=2.5))
        x, y = position[cluster]
        both = ", two domains" if two is not None and two[cluster] == 1 else ""
        said = f"cluster {cluster}{both}\n#{index[cluster]}, x {x}, y {y}"
        axes.text(left + wide / 2, top - 0.06, said, ha="center", va="bottom", size=SMALL_TEXT_PT, color=INK_COLOUR)
    return figure


def _pattern_inches(results: xr.Dataset) -> tuple[float, float]:
    """Height and width of a pattern in the gallery."""
    rows, columns = results.attrs.get("pattern_pixels", (1, 1))
    aspect = min(max(columns / rows, 1 / _MAX_PATTERN_ASPECT), _MAX_PATTERN_ASPECT) ** 0.5
    return _PATTERN_SIDE_IN / aspect, _PATTERN_SIDE_IN * aspect


_PATTERN_SIDE_IN, _PATTERN_GAP_IN, _ROW_GAP_IN, _GALLERY_WIDTH_IN = 1.25, 0.15, 0.47, 8.41
"""Inches: side of a square pattern in the gallery, what lies between patterns, and the width of all."""

_MAX_PATTERN_ASPECT = 4.0
"""Patterns are drawn at most so many times as wide as high, or as high as wide."""

_LINE_COLOUR, _MARK_COLOUR = "#4477aa", "#aa3377"

_SCAN_FIGURES: tuple[tuple[str, Callable[[xr.Dataset], Figure], tuple[str, ...]], ...] = (
    ("direct_colouring", direct_colouring, ("direct_rgb",)),
    ("explained_variance", explained_variance, ("explained_variance", "explained_variance_ratio")),
    ("scores", scores, ("silhouette", "calinski_harabasz")),
    ("reconstruction_error", reconstruction_map, ("reconstruction_error",)),
    ("unexplained", unexplained_map, ("unexplained",)),
    ("grains", grains.grain_map, ("grain",)),
    ("grain_sizes", grains.grain_sizes, ("grain",)),
    ("boundaries", grains.boundary_map, ("grain", "boundary_strength")),
)
_FIGURES_OF_EACH_K: tuple[tuple[str, Callable[[xr.Dataset, int], Figure], tuple[str, ...]], ...] = (
    ("labels", label_map, ("labels",)),
    ("pca", pca_map, ("labels", "pca_rgb")),
    ("distance_to_centroid", distance_map, ("labels", "distance_to_centroid")),
)
_OUR_FIGURE_NAME = re.compile(
    "|".join(
        [
            *(name for name, _, _ in _SCAN_FIGURES),
            *(rf"{name}_k\d+" for name, _, _ in _FIGURES_OF_EACH_K),
            r"(delegates|density)_k\d+",
            "approximation",
        ]
    )
)


def _planned(
    results: xr.Dataset, patterns: Patterns, errors: Sequence[Mapping[str, float | int]]
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    for name, draw, needs in _SCAN_FIGURES:
        if _has(results, *needs):
            yield name, partial(draw, results)
    if errors:
        yield "approximation", partial(grains.approximation, errors, unit="deg²")
    for k in (int(value) for value in results["k"].to_numpy()) if "k" in results else ():
        one = results.sel(k=k)
        for name, draw_k, needs in _FIGURES_OF_EACH_K:
            if _has(one, *needs):
                yield f"{name}_k{k:02d}", partial(draw_k, results, k)
        if _has(one, "labels", "delegate") and any(int(index) in patterns for index in _delegates(results, k)[0]):
            yield f"delegates_k{k:02d}", partial(delegate_gallery, results, k, patterns)
        if _has(one, "labels") and "components" in results and one["labels"].size <= grains.MAX_DENSITY_POINTS:
            yield f"density_k{k:02d}", partial(grains.density_figure, results, k)


def _has(results: xr.Dataset, *names: str) -> bool:
    """Whether the variables are there, not empty, and hold something else than NaN."""
    return all(name in results and results[name].size > 0 and bool(results[name].notnull().any()) for name in names)


def _labels(results: xr.Dataset, k: int) -> NDArray[np.int32]:
    labels: NDArray[np.int32] = results["labels"].sel(k=k).to_numpy()
    return labels


def _sizes(labels: NDArray[np.int32], k: int) -> NDArray[np.intp]:
    return np.bincount(labels[labels >= 0], minlength=k)


def _delegates(results: xr.Dataset, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pattern indices (K,) and positions x, y (K, 2) of the delegates; −1 for a cluster that has none."""
    index = results["delegate"].sel(k=k).to_numpy()[:k]
    nx = results.sizes["x"]
    position = np.column_stack([index % nx, index // nx])
    position[index < 0] = -1
    return index, position


def _m_pca(results: xr.Dataset) -> int | None:
    value = results["components"].attrs.get("m_pca") if "components" in results else None
    return None if value is None else int(value)


def _suggested(results: xr.Dataset) -> list[int]:
    value: Any = results.attrs.get("suggested_k")
    return [] if value is None else [int(best) for best in np.atleast_1d(value)]


def _facts(results: xr.Dataset, labels: NDArray[np.int32]) -> str:
    m_pca = _m_pca(results)
    # no mathematical text: to set the first costs as much as a figure
    used = "" if m_pca is None else f" · M_PCA = {m_pca}"
    return f"{(labels >= 0).sum():,} patterns{used}"


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, size=TEXT_PT, color=INK_COLOUR)
    axes.set_ylabel(y, size=TEXT_PT, color=INK_COLOUR)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(visible=True, color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
