"""Label maps as xarray arrays that draw themselves as the figures of a run do."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LabelMap(xr.DataArray):  # type: ignore[no-untyped-call]
    """Label map (y, x) of a segmentation: 0 is the largest cluster, NaN where there is no pattern.

    An xarray array in all but ``plot()``, which gives clusters their colours and the map the way up that it has in the
    figures of the run; ``plot.imshow()``, ``plot.hist()`` and the others are xarray's own.
    """

    __slots__ = ()

    @property
    def plot(self) -> "LabelPlot":  # type: ignore[override]
        """Draws the map."""
        return LabelPlot(self)


class LabelPlot:
    """What ``plot`` of a label map is."""

    def __init__(self, labels: LabelMap) -> None:
        self._labels = labels

    def __call__(self, ax: "Axes | None" = None, **keywords: Any) -> Any:
        """Draw the map on `ax`, or as a figure of its own.

        Parameters
        ----------
        keywords
            Of `xarray.DataArray.plot`, which then draws instead, as it does arrays that are no whole map of one K.

        Returns
        -------
        Axes
            Of the map.
        """
        labels = self._labels
        if keywords or labels.dims != ("y", "x") or "k" not in labels.coords:
            return self._plain.plot(ax=ax, **keywords) if ax is not None else self._plain.plot(**keywords)
        from laue_dask.api.plots import map_on, shown
        from laue_dask.io.coordinates import MapScale
        from laue_dask.report import maps

        k = int(labels["k"])
        values = np.nan_to_num(labels.values, nan=-1).astype(np.int32)
        scale = MapScale.of(labels.to_dataset(name="labels"))
        if ax is None:
            facts = f"{int((values >= 0).sum()):,} patterns"
            return shown(
                maps.label_figure(values, k, delegates=None, title=f"K = {k}, natural labels", facts=facts, scale=scale)
            )
        map_on(ax, values.shape, f"K = {k}", scale)
        maps.paint_labels(ax, values, k)
        return ax

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain.plot, name)

    @property
    def _plain(self) -> xr.DataArray:
        return xr.DataArray(self._labels)
