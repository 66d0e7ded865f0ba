"""Maps of a scan with their keys, drawn from plain arrays: labels, colours, scalars."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from laue_dask.io.coordinates import COUNTED, MapScale
from laue_dask.report import canvas
from laue_dask.report.canvas import INK_COLOUR, SMALL_TEXT_PT, TEXT_PT, Box

UNUSABLE_LABEL = "no usable pattern"
SPARSE_MAP_SHARE = 0.25
"""Share of points with a value below which each is drawn large enough to be seen."""

_RGB_SCHEME_LABEL = "components x₁, x₂, x₃ as\nred, green and blue,"


def label_figure(
    labels: NDArray[np.int32],
    k: int,
    *,
    delegates: NDArray[np.int64] | None,
    title: str,
    facts: str,
    kind: str = "cluster",
    absent: str = UNUSABLE_LABEL,
    scale: MapScale = COUNTED,
) -> Figure:
    """Draw the map of natural labels, with a key that gives each cluster's number, colour and share of the patterns.

    Parameters
    ----------
    labels
        Natural labels 0…K−1, int32 of shape (ny, nx); −1 where there is no usable pattern.
    delegates
        Positions x, y of the delegates, (K, 2), −1 for a cluster without one; None leaves them out.
    kind
        What a label stands for.
    absent
        What the points without a label are.
    scale
        Of the map.
    """
    box = Box.of(labels.shape, scale.aspect)
    beside = (1.3, float(np.clip(box.height, 0.17 * k if k <= 24 else 2.0, 0.3 * k)))
    figure, axes, key = canvas.map_figure(
        labels.shape,
        title=title,
        facts=facts,
        key=(box.width, 0.9) if box.flat else beside,
        gap=None if box.flat else 0.7,
        scale=scale,
    )
    paint_labels(axes, labels, k)
    handles = _missing(labels >= 0, absent)
    if delegates is not None:
        handles.insert(0, mark_delegates(axes, delegates))
    canvas.legend(figure, handles)
    _draw_sizes(key, labels, k, upright=box.flat, kind=kind)
    return figure


def rgb_figure(
    rgb: NDArray[np.uint8],
    shown: NDArray[np.bool_],
    *,
    title: str,
    facts: str,
    over: str,
    absent: str = UNUSABLE_LABEL,
    scale: MapScale = COUNTED,
) -> Figure:
    """Draw the map of colours, with the key of the PCA labeler's colour scheme (paper, Figure 12).

    Parameters
    ----------
    rgb
        Colours, uint8 of shape (ny, nx, 3).
    shown
        Where there is a pattern, (ny, nx).
    over
        What of each component's values the colours span.
    absent
        What the other points are.
    scale
        Of the map.
    """
    ny, nx = shown.shape
    figure, axes, key = canvas.map_figure((ny, nx), title=title, facts=facts, key=(1.3, 1.75), gap=0.25, scale=scale)
    paint_colours(axes, rgb, shown)
    canvas.legend(figure, _missing(shown, absent))
    _draw_rgb_key(key, over=over)
    return figure


def colour_scheme() -> Figure:
    """Draw the PCA labeler's colour scheme alone (paper, Figure 12)."""
    figure = Figure(figsize=(4.6, 3.4), dpi=canvas.DPI, facecolor="white")
    canvas.add_title(figure, title="Colour scheme", facts="of the PCA labeler and of direct colouring")
    _draw_rgb_key(canvas.add_axes(figure, left=1.4, top=0.75, width=1.9, height=2.6), over="its range")
    return figure


def scalar_figure(
    values: NDArray[np.float32],
    *,
    title: str,
    facts: str,
    label: str,
    absent: str = UNUSABLE_LABEL,
    scale: MapScale = COUNTED,
) -> Figure:
    """Draw the map of a number per point, (ny, nx), with a colour bar that ends at the 99.5 % quantile; NaN is
    `absent`.
    """
    box = Box.of(values.shape, scale.aspect)
    figure, axes, key = canvas.map_figure(
        values.shape,
        title=title,
        facts=facts,
        key=(box.width, 0.16) if box.flat else (0.16, max(box.height, 2.2)),
        gap=None if box.flat else 0.2,
        scale=scale,
    )
    image, beyond = paint_scalar(axes, values, box.width)
    bar = figure.colorbar(
        image, cax=key, orientation="horizontal" if box.flat else "vertical", extend="max" if beyond else "neither"
    )
    bar.set_label(label, size=TEXT_PT, color=INK_COLOUR)
    canvas.legend(figure, _missing(np.isfinite(values), absent))
    return figure


def paint_labels(axes: Axes, labels: NDArray[np.int32], k: int) -> None:
    """Paint natural labels, (ny, nx), −1 for none, on the axes of a map."""
    axes.imshow(
        np.ma.masked_less(labels, 0),
        cmap=canvas.cluster_colours(k),
        norm=Normalize(-0.5, k - 0.5),
        interpolation="nearest",
        aspect=axes.get_aspect(),
    )


def paint_colours(axes: Axes, rgb: NDArray[np.uint8], shown: NDArray[np.bool_]) -> None:
    """Paint colours, (ny, nx, 3) uint8, on the axes of a map where they are `shown`, (ny, nx)."""
    opacity = np.where(shown, 255, 0).astype(np.uint8)
    axes.imshow(np.dstack([rgb, opacity]), interpolation="nearest", aspect=axes.get_aspect())


def paint_scalar(axes: Axes, values: NDArray[np.float32], width: float) -> tuple[ScalarMappable, bool]:
    """Paint a number per point, (ny, nx), NaN for none, on the axes of a map that is so many inches wide.

    Returns
    -------
    image
        For its colour bar.
    beyond
        Whether there are values above the 99.5 % quantile, at which the colours end.
    """
    finite = np.isfinite(values)
    # a few outliers must not take the whole range of colours
    low, high = float(values[finite].min()), float(np.quantile(values[finite], 0.995))
    limits = Normalize(low, high)
    image: ScalarMappable
    if finite.mean() < SPARSE_MAP_SHARE:
        y, x = np.nonzero(finite)
        # points of a large scan would be too small to see, or lost between the figure's pixels
        side = max(72 * width / values.shape[1], 3.5)
        image = axes.scatter(x, y, c=values[finite], s=side**2, marker="s", linewidth=0, cmap="viridis", norm=limits)
    else:
        shown = np.ma.masked_invalid(values)
        image = axes.imshow(shown, cmap="viridis", norm=limits, interpolation="nearest", aspect=axes.get_aspect())
    return image, bool(values[finite].max() > high)


def _missing(shown: NDArray[np.bool_], label: str) -> list[Artist]:
    absent = int(shown.size - shown.sum())
    return [canvas.missing_patch(f"{label} ({absent:,})")] if absent else []


def mark_delegates(axes: Axes, position: NDArray[np.int64]) -> Artist:
    """Mark the delegates on a map, (K, 2) as x, y, −1 where there is none; the legend's entry for them."""
    there = position[position[:, 0] >= 0]
    axes.scatter(there[:, 0], there[:, 1], s=22, facecolor="white", edgecolor=INK_COLOUR, linewidth=0.9, clip_on=False)
    return Line2D(
        [], [], linestyle="", marker="o", markersize=5, color="white", markeredgecolor=INK_COLOUR, label="delegate"
    )


def _draw_sizes(axes: Axes, labels: NDArray[np.int32], k: int, *, upright: bool, kind: str) -> None:
    """Key and histogram in one: a bar per label in its colour, as long as its share of the patterns."""
    members = labels[labels >= 0]
    share = 100 * np.bincount(members, minlength=k) / max(1, members.size)
    along = share[:, None] * [0, 1, 1, 0]
    across = np.arange(k)[:, None] + (0.42 if k <= 24 else 0.5) * np.array([-1, -1, 1, 1])
    bars = np.stack([across, along] if upright else [along, across], axis=-1)
    axes.add_collection(PolyCollection(list(bars), facecolors=canvas.cluster_colours(k)(np.arange(k)), linewidth=0))
    ends = (0.0, (1.35 if k <= 16 else 1.05) * (float(share.max()) or 1.0))
    numbers = MaxNLocator(nbins=24 if k <= 24 else 10, integer=True, min_n_ticks=1)
    shares = NullLocator() if k <= 16 else MaxNLocator(nbins=4)
    if upright:
        axes.set(xlim=(-0.5, k - 0.5), ylim=ends)
        axes.set_xlabel(kind, size=TEXT_PT, color=INK_COLOUR)
        axes.set_ylabel("patterns (%)", size=TEXT_PT, color=INK_COLOUR)
        axes.xaxis.set_major_locator(numbers)
        axes.yaxis.set_major_locator(shares)
    else:
        axes.set(xlim=ends, ylim=(k - 0.5, -0.5))
        axes.set_xlabel("patterns (%)", size=TEXT_PT, color=INK_COLOUR)
        axes.set_ylabel(kind, size=TEXT_PT, color=INK_COLOUR)
        axes.xaxis.set_major_locator(shares)
        axes.yaxis.set_major_locator(numbers)
    axes.tick_params(axis="x" if upright else "y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    if k <= 16:
        axes.spines["left" if upright else "bottom"].set_visible(False)
        _write_shares(axes, share, upright=upright)


def _write_shares(axes: Axes, share: NDArray[np.float64], *, upright: bool) -> None:
    for cluster, value in enumerate(share):
        axes.annotate(
            f"{value:.1f}",
            (cluster, value) if upright else (value, cluster),
            (0, 2) if upright else (3, 0),
            textcoords="offset points",
            ha="center" if upright else "left",
            va="bottom" if upright else "center_baseline",
            size=SMALL_TEXT_PT,
            color=INK_COLOUR,
        )


def _draw_rgb_key(axes: Axes, *, over: str) -> None:
    """The RGB cube seen from its white corner: components 1, 2, 3 are red, green, blue."""
    angles = np.radians([90.0, 210.0, 330.0])
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    ramp = np.stack(np.meshgrid(*2 * [np.linspace(0, 1, 24)]), axis=-1)
    for full in range(3):
        face = np.insert(ramp, full, 1.0, axis=-1)
        at = face @ directions
        axes.pcolormesh(at[..., 0], at[..., 1], face, shading="nearest")
    for channel, (x, y) in enumerate(1.17 * directions, start=1):
        axes.text(x, y, f"x{canvas.subscript(channel)}", ha="center", va="center", size=TEXT_PT, color=INK_COLOUR)
    axes.text(
        0, -1.2, f"{_RGB_SCHEME_LABEL}\neach over {over}", ha="center", va="top", size=SMALL_TEXT_PT, color=INK_COLOUR
    )
    axes.set(xlim=(-1.3, 1.3), ylim=(-2.2, 1.3), aspect="equal", anchor="N")
    axes.axis("off")
