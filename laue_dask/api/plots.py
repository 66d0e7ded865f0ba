"""Figures of a run in a notebook: those of its report, shown in place, or drawn on axes of one's own."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from laue_dask.errors import InputError
from laue_dask.io.coordinates import MapScale
from laue_dask.report import canvas, maps
from laue_dask.report import grains as grain_figures
from laue_dask.report import plots as figures

if TYPE_CHECKING:
    from laue_dask.api.run import Run


class Plots:
    """Figures of a run; see `laue_dask.api.run.Run.plot`.

    Each method draws a figure as the report has it, with its key, and returns the axes of the picture itself; a
    notebook shows the figure below its cell, a script shows it with ``plt.show()``. With `ax` the picture alone is
    drawn there.

    Examples
    --------
    >>> import laue_dask as ld
    >>> run = ld.open_run("runs/scan0001")  # doctest: +SKIP
    >>> run.plot.labels(6)  # doctest: +SKIP
    """

    def __init__(self, run: "Run") -> None:
        self._run = run

    def __repr__(self) -> str:
        names = ", ".join(name for name in vars(type(self)) if not name.startswith("_"))
        return f"figures of {self._run.path}: {names}"

    def labels(self, k: int, *, ax: Axes | None = None) -> Axes:
        """Draw the label map of the segmentation into `k` clusters, delegates marked.

        Parameters
        ----------
        k
            Number of clusters, one of ``run.k``.
        ax
            To draw on; a figure of its own by default.

        Returns
        -------
        Axes
            Of the map.

        Raises
        ------
        InputError
            There is no such segmentation.
        """
        results = self._having("labels", k)
        if ax is None:
            return shown(figures.label_map(results, k))
        labels = results["labels"].sel(k=k).values
        map_on(ax, labels.shape, f"K = {k}", MapScale.of(results))
        maps.paint_labels(ax, labels, k)
        if (delegates := figures.marked_delegates(results, k)) is not None:
            maps.mark_delegates(ax, delegates)
        return ax

    def pca(self, k: int, *, ax: Axes | None = None) -> Axes:
        """Draw the label map of the PCA labeler: clusters in the colours of their centroids.

        Parameters, what is returned and what is raised are as of `labels`.
        """
        results = self._having("pca_rgb", k)
        if ax is None:
            return shown(figures.pca_map(results, k))
        rgb = results["pca_rgb"].sel(k=k).values
        map_on(ax, rgb.shape[:2], f"K = {k}, PCA labeler", MapScale.of(results))
        maps.paint_colours(ax, rgb, results["labels"].sel(k=k).values >= 0)
        return ax

    def distance(self, k: int, *, ax: Axes | None = None) -> Axes:
        """Draw how far each pattern is from the centroid of its cluster.

        Parameters, what is returned and what is raised are as of `labels`.
        """
        results = self._having("distance_to_centroid", k)
        if ax is None:
            return shown(figures.distance_map(results, k))
        return _scalar_on(ax, results["distance_to_centroid"].sel(k=k), f"K = {k}, distance to the centroid")

    def delegates(self, k: int) -> Axes:
        """Draw the reduced patterns of the delegates, framed in the colours of their clusters.

        Parameters
        ----------
        k
            Number of clusters, one of ``run.k``.

        Returns
        -------
        Axes
            Of all patterns, in inches from the top left.

        Raises
        ------
        InputError
            There is no such segmentation.
        """
        results = self._having("delegate", k)
        index = results["delegate"].sel(k=k).values
        return shown(figures.delegate_gallery(results, k, self._run.reduced_rows(np.unique(index[index >= 0]))))

    def direct_colouring(self, *, ax: Axes | None = None) -> Axes:
        """Draw the direct colouring of every pattern: its first three components as red, green and blue.

        Parameters
        ----------
        ax
            To draw on; a figure of its own by default.

        Returns
        -------
        Axes
            Of the map.
        """
        results = self._having("direct_rgb")
        if ax is None:
            return shown(figures.direct_colouring(results))
        rgb = results["direct_rgb"].values
        map_on(ax, rgb.shape[:2], "Direct colouring", MapScale.of(results))
        maps.paint_colours(ax, rgb, self._run.valid.values)
        return ax

    def scores(self, *, ax: Axes | None = None) -> Axes:
        """Draw the scores of the segmentations over K, with the suggested K.

        Parameters
        ----------
        ax
            To draw the silhouettes alone on; by default a figure of all scores.

        Returns
        -------
        Axes
            Of the silhouettes.
        """
        results = self._having("silhouette")
        if ax is None:
            return shown(figures.scores(results))
        figures.draw_score(ax, results, "silhouette")
        return ax

    def explained_variance(self, *, ax: Axes | None = None) -> Axes:
        """Draw the explained variance of the principal components, and its sum.

        Parameters
        ----------
        ax
            To draw the variance of each alone on; by default a figure of both.

        Returns
        -------
        Axes
            Of the variance of each.
        """
        results = self._having("explained_variance")
        if ax is None:
            return shown(figures.explained_variance(results))
        figures.draw_variance(ax, results["explained_variance"].values)
        return ax

    def grains(self, *, ax: Axes | None = None) -> Axes:
        """Draw the grains by neighbourhood, boundaries in black; `ax` and what is returned are as of
        `direct_colouring`.
        """
        results = self._having("grain")
        if ax is None:
            return shown(grain_figures.grain_map(results))
        grain = results["grain"].values
        map_on(ax, grain.shape, "Grains by neighbourhood", MapScale.of(results))
        maps.paint_labels(ax, grain, int(grain.max()) + 1)
        grain_figures.draw_boundaries(ax, grain)
        return ax

    def grain_sizes(self, *, ax: Axes | None = None) -> Axes:
        """Draw how many grains have which size; `ax` and what is returned are as of `direct_colouring`."""
        results = self._having("grain")
        if ax is None:
            return shown(grain_figures.grain_sizes(results))
        grain = results["grain"].values
        grain_figures.draw_sizes(ax, np.bincount(grain[grain >= 0]))
        return ax

    def boundaries(self, *, ax: Axes | None = None) -> Axes:
        """Draw how much each pattern differs from its neighbours, and the regions that are worth a denser scan.

        `ax` and what is returned are as of `direct_colouring`.
        """
        results = self._having("boundary_strength")
        if ax is None:
            return shown(grain_figures.boundary_map(results))
        _scalar_on(ax, results["boundary_strength"], "Boundaries")
        grain_figures.draw_regions(ax, grain_figures.proposals(results))
        return ax

    def quality(self, *, ax: Axes | None = None) -> Axes:
        """Draw what the autoencoder leaves unexplained of each pattern: where its features are to be doubted.

        `ax` and what is returned are as of `direct_colouring`.

        Raises
        ------
        InputError
            The run did not look (``quality: none``), or its features are not a network's.
        """
        results = self._having("unexplained")
        if ax is None:
            return shown(figures.unexplained_map(results))
        return _scalar_on(ax, results["unexplained"], "Left unexplained by the reconstruction")

    def _having(self, name: str, k: int | None = None) -> xr.Dataset:
        """The results, if they have something to draw."""
        if k is not None:
            self._run.known(k)
        results = self._run.unmasked
        if name not in results or not bool(results[name].notnull().any()):
            raise InputError(f"{self._run.path}: its results have no {name}, so there is nothing to draw")
        return results


def map_on(ax: Axes, shape: tuple[int, ...], title: str, scale: MapScale) -> None:
    """Make axes those of a map (ny, nx)."""
    ny, nx = shape
    canvas.lay_out_map(ax, (ny, nx), _box_of(ax), scale)
    ax.set_title(title, size=canvas.TITLE_PT, color=canvas.INK_COLOUR)


def _scalar_on(ax: Axes, values: xr.DataArray, title: str) -> Axes:
    map_on(ax, values.shape, title, MapScale.of(values.to_dataset(name="values")))
    image, beyond = maps.paint_scalar(ax, values.values, _box_of(ax).width)
    ax.figure.colorbar(image, ax=ax, extend="max" if beyond else "neither")
    return ax


def _box_of(ax: Axes) -> canvas.Box:
    """How large a map is on axes that are there."""
    per_inch = ax.figure.dpi
    return canvas.Box(float(ax.bbox.width / per_inch), float(ax.bbox.height / per_inch), to_scale=True)


def shown(figure: Figure) -> Axes:
    """Have pyplot, and with it a notebook, know a figure; its first axes."""
    import matplotlib.pyplot as plt

    def this_one(*_: Any, **__: Any) -> Figure:
        return figure

    called: Callable[..., Any] = this_one  # by pyplot, instead of a class of figures
    return plt.figure(FigureClass=called).axes[0]  # type: ignore[arg-type]
