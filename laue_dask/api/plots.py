"""Figures of a run in a notebook: those of its report, shown in place, or drawn on axes of one's own."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from laue_dask.errors import InputError
from laue_dask.report import grains as grain_figures
from laue_dask.report import plots as figures

if TYPE_CHECKING:
    from laue_dask.api.run import Run


class Plots:
    """Figures of a run; see `laue_dask.api.run.Run.plot`.

    Each method draws a figure as the report has it, with its key, and returns the axes of the picture itself; a
    notebook shows the figure below its cell, a script shows it with ``plt.show()``. With `ax` the picture alone is
    drawn there.
    """

    def __init__(self, run: "Run") -> None:
        self._run = run

    def labels(self, k: int, *, ax: Axes | None = None) -> Axes:
        """Label map of the segmentation into `k` clusters, delegates marked.

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
        return self._drawn(lambda results: figures.label_map(results, k), ax, k=k, needs="labels")

    def pca(self, k: int, *, ax: Axes | None = None) -> Axes:
        """Label map of the PCA labeler: clusters in the colours of their centroids. Parameters as for `labels`."""
        return self._drawn(lambda results: figures.pca_map(results, k), ax, k=k, needs="pca_rgb")

    def distance(self, k: int, *, ax: Axes | None = None) -> Axes:
        """How far each pattern is from the centroid of its cluster. Parameters as for `labels`."""
        return self._drawn(lambda results: figures.distance_map(results, k), ax, k=k, needs="distance_to_centroid")

    def delegates(self, k: int, *, ax: Axes | None = None) -> Axes:
        """Reduced patterns of the delegates, framed in the colours of their clusters. Parameters as for `labels`."""
        run = self._run
        index = run.unmasked["delegate"].sel(k=run.known(k)).values
        patterns = run.reduced_rows(np.unique(index[index >= 0]))
        return self._drawn(lambda results: figures.delegate_gallery(results, k, patterns), ax, k=k, needs="delegate")

    def direct_colouring(self, *, ax: Axes | None = None) -> Axes:
        """Direct colouring of every pattern: its first three components as red, green and blue."""
        return self._drawn(figures.direct_colouring, ax, needs="direct_rgb")

    def scores(self, *, ax: Axes | None = None) -> Axes:
        """Scores of the segmentations over K, with the suggested K; with `ax` the silhouettes alone."""
        return self._drawn(figures.scores, ax, needs="silhouette")

    def explained_variance(self, *, ax: Axes | None = None) -> Axes:
        """Explained variance of the principal components and its sum; with `ax` the variance of each alone."""
        return self._drawn(figures.explained_variance, ax, needs="explained_variance")

    def grains(self, *, ax: Axes | None = None) -> Axes:
        """Grains by neighbourhood, their boundaries in black."""
        return self._drawn(grain_figures.grain_map, ax, needs="grain")

    def grain_sizes(self, *, ax: Axes | None = None) -> Axes:
        """How many grains have which size."""
        return self._drawn(grain_figures.grain_sizes, ax, needs="grain")

    def boundaries(self, *, ax: Axes | None = None) -> Axes:
        """How much each pattern differs from its neighbours, and the regions that are worth a denser scan."""
        return self._drawn(grain_figures.boundary_map, ax, needs="boundary_strength")

    def quality(self, *, ax: Axes | None = None) -> Axes:
        """What the autoencoder leaves unexplained of each pattern: where its features are to be doubted."""
        return self._drawn(figures.unexplained_map, ax, needs="unexplained")

    def _drawn(
        self, draw: Callable[[xr.Dataset], Figure], ax: Axes | None, *, needs: str, k: int | None = None
    ) -> Axes:
        results = self._run.unmasked
        if k is not None:
            self._run.known(k)
        if needs not in results or not bool(results[needs].notnull().any()):
            raise InputError(f"{self._run.path}: has no {needs}, so there is nothing to draw")
        figure = draw(results)
        if ax is None:
            return _shown(figure).axes[0]
        raise NotImplementedError


def _shown(figure: Figure) -> Figure:
    """Have pyplot, and with it a notebook, know a figure."""
    import matplotlib.pyplot as plt

    def this_one(*_: Any, **__: Any) -> Figure:
        return figure

    called: Any = this_one  # by pyplot, instead of a class of figures
    return plt.figure(FigureClass=called)
