"""Several maps of one scan side by side, as the paper shows its segmentations (Figures 7 to 10 and 13 to 24)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from laue_dask.report import canvas
from laue_dask.report.canvas import INK_COLOUR, SMALL_TEXT_PT, TEXT_PT
from laue_dask.segmentation.pca import Array

_WIDTH_IN, _LARGEST_PANEL_IN = 8.2, 3.9
_LEFT_IN, _TOP_IN, _GAP_IN, _HEAD_IN, _BAR_IN = 0.15, 0.72, 0.12, 0.24, 0.75


@dataclass(frozen=True, eq=False)
class Panel:
    """One map.

    Attributes
    ----------
    title
        A line above it.
    values
        (ny, nx) integers are natural labels, −1 without a pattern; (ny, nx, 3) uint8 are colours; (ny, nx) floats are a
        property, NaN where unknown.
    k
        Number of clusters of the labels.
    delegates
        (K,) pattern indices to mark, −1 for a cluster without one; None marks nothing.
    """

    title: str
    values: Array
    k: int = 0
    delegates: NDArray[np.int64] | None = None


def panel_figure(panels: Sequence[Panel], *, title: str, facts: str, columns: int, bar: str = "") -> Figure:
    """Draw maps in rows of `columns`.

    Parameters
    ----------
    panels
        All of one shape, or patterns among them; properties share one scale of colours.
    bar
        Label of that scale.
    """
    properties = [panel.values for panel in panels if _is_property(panel)]
    ny, nx = panels[0].values.shape[:2]
    width = min((_WIDTH_IN - _GAP_IN * (columns - 1)) / columns, _LARGEST_PANEL_IN)
    height = width * ny / nx
    rows = -(-len(panels) // columns)
    right = _BAR_IN if properties else 0.15
    size = (
        max(_LEFT_IN + columns * (width + _GAP_IN) - _GAP_IN + right, 4.6),
        _TOP_IN + rows * (height + _HEAD_IN + _GAP_IN) + 0.05,
    )
    figure = Figure(figsize=size, dpi=canvas.DPI, facecolor="white")
    canvas.add_title(figure, title=title, facts=facts)
    scale = _scale(properties)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        left, top = _LEFT_IN + column * (width + _GAP_IN), _TOP_IN + row * (height + _HEAD_IN + _GAP_IN) + _HEAD_IN
        axes = canvas.add_axes(figure, left=left, top=top, width=width, height=height)
        axes.set(xticks=[], yticks=[])
        axes.set_title(panel.title, size=TEXT_PT, color=INK_COLOUR, pad=3, loc="left")
        axes.patch.set(facecolor=canvas.MISSING_COLOUR, edgecolor="#bbbbbb", hatch="//////", linewidth=0)
        if panel.values.ndim == 3:
            axes.imshow(panel.values, interpolation="nearest", aspect="auto")
        elif _is_property(panel):
            axes.imshow(np.ma.masked_invalid(panel.values), norm=scale, interpolation="nearest", aspect="auto")
        else:
            colours, limits = canvas.cluster_colours(panel.k), Normalize(-0.5, panel.k - 0.5)
            labels = np.ma.masked_less(panel.values, 0)
            axes.imshow(labels, cmap=colours, norm=limits, interpolation="nearest", aspect="auto")
        if panel.delegates is not None:
            y, x = np.divmod(panel.delegates[panel.delegates >= 0], nx)
            axes.scatter(x, y, s=12, facecolor="white", edgecolor=INK_COLOUR, linewidth=0.6)
    if properties:
        place = canvas.add_axes(
            figure, left=size[0] - _BAR_IN + 0.12, top=_TOP_IN + _HEAD_IN, width=0.13, height=height
        )
        colour_bar = figure.colorbar(ScalarMappable(scale), cax=place)
        colour_bar.set_label(bar, size=SMALL_TEXT_PT, color=INK_COLOUR)
    return figure


def _is_property(panel: Panel) -> bool:
    return panel.values.ndim == 2 and panel.values.dtype.kind == "f"


def _scale(properties: Sequence[Array]) -> Normalize:
    known = [values[np.isfinite(values)] for values in properties]
    every = np.concatenate(known) if known else np.empty(0)
    return Normalize(every.min(), every.max()) if len(every) else Normalize(0, 1)
