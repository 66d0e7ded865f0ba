"""The figures of a training: its losses (paper, Figure 4), and what the encoder makes of patterns (Figure 5)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from numpy.typing import NDArray

from laue_dask.report import canvas
from laue_dask.report.canvas import INK_COLOUR, SMALL_TEXT_PT, TEXT_PT

_TRAINING_COLOUR, _VALIDATION_COLOUR, _PLATEAU_COLOUR, _PERFECT_COLOUR, _KEPT_COLOUR = (
    "#4477aa",
    "#ee7733",
    "#000000",
    "#009988",
    "#aa3377",
)

_LOSS_PANELS = (
    ("bce", "binary cross entropy (nat per pixel)"),
    ("mse", "mean squared error per pixel"),
)


def loss_curves(
    history: Sequence[Mapping[str, float]],
    *,
    plateau: Mapping[str, float],
    perfect: Mapping[str, float],
    kept: int | None = None,
) -> Figure:
    """Draw the losses of training and validation patterns at the end of each epoch (paper, Figure 4).

    Parameters
    ----------
    history
        One mapping per epoch with `epoch`, `train_bce`, `validation_bce`, `train_mse` and `validation_mse`; NaN where
        not known.
    plateau, perfect
        `bce` and `mse` of the best constant image (all but black) and of a perfect reconstruction; either may be
        missing. A logarithmic axis has no place for 0, which is left out.
    kept
        The epoch whose weights are kept.
    """
    epoch = np.array([row["epoch"] for row in history])
    figure = Figure(figsize=(8.0, 4.0), dpi=canvas.DPI, facecolor="white")
    count = f"{len(epoch)} epoch{'s' if len(epoch) != 1 else ''}"
    facts = count if kept is None else f"{count}, weights of epoch {kept} kept"
    canvas.add_title(figure, title="Losses of the training", facts=facts)
    for place, (name, label) in enumerate(_LOSS_PANELS):
        axes = canvas.add_axes(figure, left=0.85 + 4.0 * place, top=1.0, width=2.95, height=2.45)
        marker = "o" if len(epoch) <= 40 else ""
        for kind, colour, style in (("train", _TRAINING_COLOUR, "--"), ("validation", _VALIDATION_COLOUR, "-")):
            values = np.array([row[f"{kind}_{name}"] for row in history], dtype=float)
            shown = np.where(values > 0, values, np.nan)
            axes.plot(
                epoch, shown, style, marker=marker, markersize=3, linewidth=1.2, color=colour, label=_CURVE_NAMES[kind]
            )
        for limits, colour, style, text in (
            (plateau, _PLATEAU_COLOUR, ":", "all-black plateau"),
            (perfect, _PERFECT_COLOUR, "-.", "perfect reconstruction"),
        ):
            if limits.get(name, 0) > 0:
                axes.axhline(limits[name], color=colour, linestyle=style, linewidth=1.2, label=text)
        if kept is not None:
            axes.axvline(kept, color=_KEPT_COLOUR, linewidth=0.8, alpha=0.7, label="weights kept")
        axes.set_yscale("log")
        axes.set_xlim(min(epoch) - 0.5, max(epoch) + 0.5)
        low, high = axes.get_ylim()
        if high / low < 50:  # decades alone would leave one number on the axis, or none
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axes.set_xlabel("epoch", size=TEXT_PT, color=INK_COLOUR)
        axes.set_ylabel(label, size=TEXT_PT, color=INK_COLOUR)
        axes.grid(visible=True, color="#dddddd", linewidth=0.5)
        axes.set_axisbelow(True)
        if place == 0:
            handles = axes.get_legend_handles_labels()[0]
            figure.legend(
                handles=handles,
                loc="upper left",
                bbox_to_anchor=(0.15 / 8.0, 1 - 0.62 / 4.0),
                ncols=5,
                frameon=False,
                fontsize=SMALL_TEXT_PT,
                borderpad=0,
                borderaxespad=0,
                labelcolor=INK_COLOUR,
            )
    return figure


_CURVE_NAMES = {"train": "training", "validation": "validation"}


def encodings(
    patterns: NDArray[np.float32],
    features: NDArray[np.float32],
    reconstructions: NDArray[np.float32],
    names: Sequence[str],
) -> Figure:
    """Draw the patterns, their latent features and their reconstructions, a column each (paper, Figure 5).

    Parameters
    ----------
    patterns, reconstructions : (n, 128, 128) in [0, 1]
        What the decoder is to draw, and what it draws.
    features : (n, M_AE)
        Latent features, each in standard deviations from its mean over the validation patterns: shown as they are, the
        few that are large in any pattern would hide what differs.
    names
        What each pattern is.
    """
    n, width = features.shape
    side = int(np.ceil(np.sqrt(width)))
    square = np.full((n, side * side), np.nan, dtype=np.float32)
    square[:, :width] = features
    figure = Figure(figsize=(1.0 + 1.42 * n + 0.95, 5.35), dpi=canvas.DPI, facecolor="white")
    canvas.add_title(
        figure,
        title="Patterns, latent features and reconstructions",
        facts=f"{n} validation patterns, {width} features row by row; intensities inverted, 0 to 1",
    )
    for column in range(n):
        for row, kind in enumerate(("pattern", "latent features", "reconstruction")):
            axes = canvas.add_axes(figure, left=0.6 + 1.42 * column, top=1.0 + 1.42 * row, width=1.3, height=1.3)
            if row == 1:
                image = axes.imshow(
                    square[column].reshape(side, side), cmap="PuOr", vmin=-3, vmax=3, interpolation="nearest"
                )
            else:
                shown = patterns if row == 0 else reconstructions
                axes.imshow(shown[column], cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(kind, size=TEXT_PT, color=INK_COLOUR)
            if row == 0:
                axes.set_title(names[column], size=SMALL_TEXT_PT, color=INK_COLOUR, pad=4)
    bar = canvas.add_axes(figure, left=0.72 + 1.42 * n, top=1.0 + 1.42, width=0.13, height=1.3)
    figure.colorbar(image, cax=bar, extend="both").set_label("standard deviations\nfrom the mean", size=SMALL_TEXT_PT)
    return figure
