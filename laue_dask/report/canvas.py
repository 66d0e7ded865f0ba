"""What every figure shares: sizes in inches, maps of a scan at any aspect ratio, colours, and writing to disk.

Figures are placed in inches from the top left corner and never go through pyplot, so that they can be drawn in any
thread and nothing overlaps whether a scan is 1 × n, 60 × 100 or 500 × 40.
"""

import io
import math
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image

DPI = 150
TEXT, SMALL, TITLE = 8.5, 7.5, 11.0
"""Font sizes in points."""
INK, FAINT, MISSING = "#222222", "#666666", "#e6e6e6"

_LONGEST, _SHORTEST, _LARGEST_POINT = 6.4, 0.5, 0.5
_LEFT, _RIGHT, _TOP, _BOTTOM, _BETWEEN = 0.75, 0.65, 0.95, 0.6, 0.7
_NARROWEST = 4.6

_QUALITATIVE = (
    *("#0077bb", "#f0e442", "#882255", "#66ccee", "#cc3311", "#ddcc77"),
    *("#332288", "#aaaa00", "#bb5566", "#44aa99", "#661100", "#000000"),
)


def cluster_colours(k: int) -> ListedColormap:
    """Colours of K clusters, the same in every figure.

    Up to 12 clusters have qualitative colours chosen from those of Paul Tol and of Okabe and Ito such that under
    simulated protanopia, deuteranopia and normal vision no two are closer than ΔE = 19 in CIELAB (29 for K ≤ 6). More
    clusters than that cannot be told apart by hue: they are spread over the lightness of viridis and plasma in turn,
    in an order in which neighbouring numbers are far apart.
    """
    if k <= len(_QUALITATIVE):
        return ListedColormap(_QUALITATIVE[:k])
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
    def of(cls, shape: tuple[int, int]) -> "Box":
        """Choose the size for a scan of shape (ny, nx)."""
        ny, nx = shape
        point = min(_LONGEST / max(ny, nx), _LARGEST_POINT)
        width, height = max(point * nx, _SHORTEST), max(point * ny, _SHORTEST)
        return cls(width, height, bool(np.isclose(width / height, nx / ny)))

    @property
    def flat(self) -> bool:
        """Whether there is more room for a key below the map than beside it."""
        return self.width > 3 * self.height


def place(figure: Figure, *, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at a position in inches from the figure's top left corner."""
    total_width, total_height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height)
    )
    axes.tick_params(labelsize=SMALL, colors=INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
        spine.set_linewidth(0.6)
    return axes


def head(figure: Figure, *, title: str, facts: str) -> None:
    """Write a title and a line of facts at the figure's top left."""
    width, height = figure.get_size_inches()
    figure.text(0.15 / width, 1 - 0.14 / height, title, size=TITLE, weight="bold", va="top", color=INK)
    figure.text(0.15 / width, 1 - 0.38 / height, facts, size=TEXT, va="top", color=FAINT)


def legend(figure: Figure, handles: list[Artist]) -> None:
    """Put a one-line legend below the facts."""
    width, height = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.15 / width, 1 - 0.57 / height),
        ncols=4,
        frameon=False,
        fontsize=SMALL,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.4,
        columnspacing=1.2,
        labelcolor=INK,
    )


def map_figure(
    shape: tuple[int, int], *, title: str, facts: str, key: tuple[float, float], gap: float | None
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

    Returns
    -------
    figure, map axes, key axes
        The map's axes count scan points, row 0 at the top; what is left transparent shows as missing.
    """
    box = Box.of(shape)
    top = _TOP if box.height > 1 else _TOP + 0.15
    if gap is None:
        size = (_LEFT + max(box.width, key[0]) + _RIGHT, top + box.height + _BETWEEN + key[1] + _BOTTOM)
        corner = (_LEFT, top + box.height + _BETWEEN)
    else:
        size = (_LEFT + box.width + gap + key[0] + _RIGHT, top + max(box.height, key[1]) + _BOTTOM)
        corner = (_LEFT + box.width + gap, top)
    figure = Figure(figsize=(max(size[0], _NARROWEST), size[1]), dpi=DPI, facecolor="white")
    head(figure, title=title, facts=facts if box.to_scale else f"{facts} · axes not to scale")
    axes = place(figure, left=_LEFT, top=top, width=box.width, height=box.height)
    lay_out_map(axes, shape, box)
    return figure, axes, place(figure, left=corner[0], top=corner[1], width=key[0], height=key[1])


def lay_out_map(axes: Axes, shape: tuple[int, int], box: Box) -> None:
    """Make axes those of a map of (ny, nx) points, row 0 at the top, that is as large as `box` says."""
    ny, nx = shape
    axes.set(xlim=(-0.5, nx - 0.5), ylim=(ny - 0.5, -0.5))
    axes.set_aspect("equal" if box.to_scale else "auto")
    axes.set_xlabel("x (scan point)", size=TEXT, color=INK)
    axes.set_ylabel("y (scan point)", size=TEXT, color=INK)
    for axis, length in ((axes.xaxis, box.width), (axes.yaxis, box.height)):
        ticks = MaxNLocator(nbins=max(2, int(length / 0.55)), integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
        axis.set_major_locator(ticks)
    axes.patch.set(facecolor=MISSING, edgecolor="#bbbbbb", hatch="//////", linewidth=0)


def subscript(number: int) -> str:
    """A number in lowered digits, for text that need not be set as mathematics."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def missing_patch(label: str) -> Patch:
    """The legend's entry for points that have no value."""
    return Patch(facecolor=MISSING, edgecolor="#bbbbbb", hatch="//////", linewidth=0, label=label)


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
