"""What every figure shares: sizes in inches, maps of a scan at any aspect ratio, colours, and writing to disk.

Figures are placed in inches from the top left corner and never go through pyplot, so that they can be drawn in any
thread and nothing overlaps whether a scan is 1 × n, 60 × 100 or 500 × 40.
"""

import io
import math
from dataclasses import dataclass
from typing import cast

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator
from matplotlib.transforms import blended_transform_factory, offset_copy
from PIL import Image

from laue_dask.io.coordinates import COUNTED, MapScale

DPI = 150
TEXT_PT, SMALL_TEXT_PT, TITLE_PT = 8.5, 7.5, 11.0
"""Font sizes in points."""
INK_COLOUR, FAINT_COLOUR, MISSING_COLOUR = "#222222", "#666666", "#e6e6e6"

_LONGEST_SIDE_IN, _SHORTEST_SIDE_IN, _LARGEST_POINT_IN = 6.4, 0.5, 0.5
_LEFT_IN, _RIGHT_IN, _TOP_IN, _BOTTOM_IN, _BETWEEN_IN = 0.75, 0.65, 0.95, 0.6, 0.7
_MIN_WIDTH_IN = 4.6

_QUALITATIVE_COLOURS = (
    *("#0077bb", "#f0e442", "#882255", "#66ccee", "#cc3311", "#ddcc77"),
    *("#332288", "#aaaa00", "#bb5566", "#44aa99", "#661100", "#000000"),
)


def cluster_colours(k: int) -> ListedColormap:
    """Return the colours of K clusters, the same in every figure.

    Up to 12 clusters have qualitative colours chosen from those of Paul Tol and of Okabe and Ito such that under
    simulated protanopia, deuteranopia and normal vision no two are closer than ΔE = 19 in CIELAB (29 for K ≤ 6). More
    clusters than that cannot be told apart by hue: they are spread over the lightness of viridis and plasma in turn,
    in an order in which neighbouring numbers are far apart.
    """
    if k <= len(_QUALITATIVE_COLOURS):
        return ListedColormap(_QUALITATIVE_COLOURS[:k])
    stride = next(step for step in range(round(0.618 * k), k + 1) if math.gcd(step, k) == 1)
    order = np.arange(k) * stride % k
    cold, warm = (matplotlib.colormaps[name](0.95 * order / (k - 1)) for name in ("viridis", "plasma"))
    return ListedColormap(np.where((order % 2 == 0)[:, None], cold, warm))


@dataclass(frozen=True)
class Box:
    """Size in inches at which a scan of (ny, nx) points is drawn; axes longer than 12.8 : 1 are not to scale."""

    width: float
    height: float
    to_scale: bool

    @classmethod
    def of(cls, shape: tuple[int, int], aspect: float = 1.0) -> "Box":
        """Choose the size for a scan of shape (ny, nx), whose points are `aspect` times as high as wide."""
        ny, nx = shape[0] * aspect, shape[1]
        point = min(_LONGEST_SIDE_IN / max(ny, nx), _LARGEST_POINT_IN / max(aspect, 1.0))
        width, height = max(point * nx, _SHORTEST_SIDE_IN), max(point * ny, _SHORTEST_SIDE_IN)
        return cls(width, height, bool(np.isclose(width / height, nx / ny)))

    @property
    def flat(self) -> bool:
        """Whether there is more room for a key below the map than beside it."""
        return self.width > 3 * self.height


def add_axes(figure: Figure, *, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at a position in inches from the figure's top left corner."""
    total_width, total_height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height)
    )
    axes.tick_params(labelsize=SMALL_TEXT_PT, colors=INK_COLOUR)
    for spine in axes.spines.values():
        spine.set_color(INK_COLOUR)
        spine.set_linewidth(0.6)
    return axes


def add_title(figure: Figure, *, title: str, facts: str) -> None:
    """Write a title and a line of facts at the figure's top left."""
    width, height = figure.get_size_inches()
    figure.text(0.15 / width, 1 - 0.14 / height, title, size=TITLE_PT, weight="bold", va="top", color=INK_COLOUR)
    figure.text(0.15 / width, 1 - 0.38 / height, facts, size=TEXT_PT, va="top", color=FAINT_COLOUR)


def legend(figure: Figure, handles: list[Artist]) -> None:
    """Put a one-line legend below the facts."""
    width, height = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.15 / width, 1 - 0.57 / height),
        ncols=4,
        frameon=False,
        fontsize=SMALL_TEXT_PT,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.4,
        columnspacing=1.2,
        labelcolor=INK_COLOUR,
    )


def map_figure(
    shape: tuple[int, int],
    *,
    title: str,
    facts: str,
    key: tuple[float, float],
    gap: float | None,
    scale: MapScale = COUNTED,
) -> tuple[Figure, Axes, Axes]:
    """Make a figure with the map of a scan and room for its key, beside the map or below it.

    Parameters
    ----------
    shape
        (ny, nx) of the scan.
    title, facts
        Two lines above the map.
    key, gap
        Width and height of the key's axes, and the space between them and the map's right edge, in inches; with a
        gap of None the key is below the map.
    scale
        Of the map, which gives its axes their numbers and its points their aspect.

    Returns
    -------
    figure, map axes, key axes
        The map's axes count scan points, row 0 at the top; what is left transparent shows as missing.
    """
    box = Box.of(shape, scale.aspect)
    top = _TOP_IN if box.height > 1 else _TOP_IN + 0.15
    if gap is None:
        size = (_LEFT_IN + max(box.width, key[0]) + _RIGHT_IN, top + box.height + _BETWEEN_IN + key[1] + _BOTTOM_IN)
        corner = (_LEFT_IN, top + box.height + _BETWEEN_IN)
    else:
        size = (_LEFT_IN + box.width + gap + key[0] + _RIGHT_IN, top + max(box.height, key[1]) + _BOTTOM_IN)
        corner = (_LEFT_IN + box.width + gap, top)
    figure = Figure(figsize=(max(size[0], _MIN_WIDTH_IN), size[1]), dpi=DPI, facecolor="white")
    add_title(figure, title=title, facts=facts if box.to_scale else f"{facts} · axes not to scale")
    axes = add_axes(figure, left=_LEFT_IN, top=top, width=box.width, height=box.height)
    lay_out_map(axes, shape, box, scale)
    return figure, axes, add_axes(figure, left=corner[0], top=corner[1], width=key[0], height=key[1])


def lay_out_map(axes: Axes, shape: tuple[int, int], box: Box, scale: MapScale = COUNTED) -> None:
    """Make axes those of a map of (ny, nx) points, row 0 at the top, that is as large as `box` says.

    Their data are points, whatever the scale: its units are those of the numbers beside them.
    """
    ny, nx = shape
    axes.set(xlim=(-0.5, nx - 0.5), ylim=(ny - 0.5, -0.5))
    axes.set_aspect(scale.aspect if box.to_scale else "auto")
    units = scale.units or "scan point"
    axes.set_xlabel(f"x ({units})", size=TEXT_PT, color=INK_COLOUR)
    axes.set_ylabel(f"y ({units})", size=TEXT_PT, color=INK_COLOUR)
    sides = ((axes.yaxis, box.height, ny), (axes.xaxis, box.width, nx))
    for (axis, length, count), first, step in zip(sides, scale.first, scale.step, strict=True):
        bins = max(2, int(length / 0.55))
        ticks = MaxNLocator(nbins=bins, integer=not scale.units, steps=[1, 2, 5, 10], min_n_ticks=1)
        if not scale.units:
            axis.set_major_locator(ticks)
            continue
        low, high = sorted((first - 0.5 * step, first + (count - 0.5) * step))
        told = [float(value) for value in ticks.tick_values(low, high) if low <= value <= high]
        axis.set_major_locator(FixedLocator([(value - first) / step for value in told]))
        axis.set_major_formatter(FixedFormatter([f"{value:.10g}" for value in told]))
    if scale.units:
        _draw_scale_bar(axes, nx, abs(scale.step[1]), scale.units)
    axes.patch.set(facecolor=MISSING_COLOUR, edgecolor="#bbbbbb", hatch="//////", linewidth=0)


def _draw_scale_bar(axes: Axes, nx: int, step: float, units: str) -> None:
    """Draw a bar of a round length along x, about a quarter of the map, above its right end."""
    quarter = 0.25 * nx * step
    power = 10.0 ** math.floor(math.log10(quarter))
    length = max(factor * power for factor in (1.0, 2.0, 5.0) if factor * power <= quarter)
    over = blended_transform_factory(axes.transData, axes.transAxes)
    right, left = nx - 0.5, nx - 0.5 - length / step
    lifted = offset_copy(over, fig=cast(Figure, axes.figure), y=4, units="points")
    axes.add_line(Line2D([left, right], [1, 1], color=INK_COLOUR, linewidth=2.2, clip_on=False, transform=lifted))
    axes.annotate(
        f"{length:g} {units}",
        (left, 1),
        (-3, 4),
        xycoords=over,
        textcoords="offset points",
        ha="right",
        va="center",
        size=SMALL_TEXT_PT,
        color=INK_COLOUR,
        annotation_clip=False,
    )


def subscript(number: int) -> str:
    """Return a number in lowered digits, for text that need not be set as mathematics."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def missing_patch(label: str) -> Patch:
    """Return the legend's entry for points that have no value."""
    return Patch(facecolor=MISSING_COLOUR, edgecolor="#bbbbbb", hatch="//////", linewidth=0, label=label)


def png(figure: Figure) -> bytes:
    """Draw a figure, on white.

    Without the alpha channel, and packed less hard than by default, a file is about as large and sooner made.
    """
    drawn = FigureCanvasAgg(figure)
    drawn.draw()  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    pixels = np.asarray(drawn.buffer_rgba())  # type: ignore[no-untyped-call]
    Image.fromarray(pixels).convert("RGB").save(buffer, format="png", compress_level=3, dpi=(DPI, DPI))
    return buffer.getvalue()
