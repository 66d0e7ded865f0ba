"""A finished run in a notebook: its results, tables, patterns and figures, and what can be done with it."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from laue_dask.api import averages, tables
from laue_dask.api.label_maps import LabelMap
from laue_dask.api.options import (
    AnyConfig,
    AnyPath,
    as_typed,
    k_values,
    keeping_log_levels,
    overrides,
    path_of,
    progress_of,
)
from laue_dask.api.scan import Scan
from laue_dask.config import Config
from laue_dask.errors import InputError, LaueDaskError, StoreError
from laue_dask.io import block_reader
from laue_dask.io import results as io_results
from laue_dask.io.receipts import STORE_RECEIPTS_FILE
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import record as records
from laue_dask.pipeline.record import Record
from laue_dask.runtime.progress import Progress
from laue_dask.runtime.summary import Summary

if TYPE_CHECKING:
    import pandas as pd

    from laue_dask.api.plots import Plots
    from laue_dask.pipeline.verify import Verification


_RESULTS_RECEIPTS = f"{io_results.RESULTS_STORE}/{STORE_RECEIPTS_FILE}"
"""What of a run's folder tells its results from those that take their place."""


def open_run(path: AnyPath) -> "Run":
    """Open the folder of a finished run; its arrays are read when they are asked for.

    Raises
    ------
    InputError
        There is no finished run in the folder, or it is damaged.

    Examples
    --------
    >>> import laue_dask as ld
    >>> run = ld.open_run("runs/scan0001")  # doctest: +SKIP
    >>> run.labels(6).plot()  # doctest: +SKIP
    """
    opened = Run(path)
    opened.record  # noqa: B018  refused here, not at the first use
    return opened


class Run:
    """The folder of a finished run; see `open_run`.

    What is asked for is always that of the folder as it is: after another `segment` the new labels are there, while a
    dataset that was taken before stays as it was.

    Parameters
    ----------
    path
        Of the folder.

    Attributes
    ----------
    path : Path
        Where it is.
    """

    def __init__(self, path: AnyPath) -> None:
        self.path: Path = path_of(path).absolute()
        self._seen: dict[str, tuple[object, Any]] = {}

    # What was done

    @property
    def record(self) -> Record:
        """What was done to what, with which versions and seeds, and how long it took: `run.json`, typed."""
        found: Record = self._current("record", records.RECORD_FILE, lambda: records.load(self.path))
        return found

    @property
    def config(self) -> Config:
        """The configuration of the run, with every default."""
        return self.record.config

    @property
    def k(self) -> list[int]:
        """Number of clusters K of each segmentation."""
        return list(self.record.k)

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) of the scan."""
        return self.record.scan_shape

    @property
    def scan(self) -> Scan:
        """The scan that the run was made of, with its frames.

        Raises
        ------
        InputError
            It is gone, or another one is in its place.
        """
        found: Scan = self._current("scan", records.RECORD_FILE, lambda: Scan(tables.scan_path(self.path, self.record)))
        return found

    # What was found

    @property
    def results(self) -> xr.Dataset:
        """All arrays of the results, with labels masked where there is no pattern.

        Maps, tables and scores are in memory; ``features`` and ``components`` are lazy Dask arrays. The dataset stays
        what it is, whatever is done with the run after it was taken. Where another run took the place of this one, its
        features and components raise `StoreError` when they are read.

        Raises
        ------
        StoreError
            The results are damaged.
        """
        found: xr.Dataset = self._current("results", _RESULTS_RECEIPTS, lambda: io_results.open_results(self.path))
        return found

    @property
    def unmasked(self) -> xr.Dataset:
        """The results as they are on disk: labels and grains are whole numbers, −1 where there is no pattern."""

        def read() -> xr.Dataset:
            return io_results.open_results(self.path, masked=False)

        found: xr.Dataset = self._current("unmasked", _RESULTS_RECEIPTS, read)
        return found

    def labels(self, k: int) -> LabelMap:
        """Return the label map (y, x) of the segmentation into `k` clusters: 0 is the largest, NaN where there is no
        pattern.

        Raises
        ------
        InputError
            There is no such segmentation.
        """
        found = self.results["labels"].sel(k=self.known(k))
        return LabelMap(found.variable, coords=found.coords, name=found.name)

    def delegates(self, k: int) -> "pd.DataFrame":
        """Return the patterns that are worth indexing: of each cluster the delegate (rank 1) and those that stand in
        for it.

        Returns
        -------
        DataFrame
            Columns as in `delegates.csv`: `k`, `cluster`, `size`, `rank`, `pattern`, `y`, `x`, the same in micrometres
            of the stage (`stage_y_um`, `stage_x_um`; empty where not known), `distance` to the
            centroid, `domains` on which the beam lies (1 or 2, empty where not known), and `file`.

        Raises
        ------
        InputError
            There is no segmentation into `k` clusters.
        """
        return tables.delegates(self, self.known(k))

    @property
    def grains(self) -> "pd.DataFrame":
        """Grains by neighbourhood, the largest first: columns as in `grains.csv`, with the file of each delegate."""
        return tables.grains(self)

    @property
    def regions(self) -> "pd.DataFrame":
        """Regions that are worth a denser scan: columns as in `regions.csv`."""
        return tables.regions(self)

    # Patterns and frames

    @property
    def patterns(self) -> da.Array:
        """All reduced patterns as a lazy Dask array (y, x, v, u) uint8; 255 is 1.0, and points without one are 0."""
        array = self._reduced
        lazy: da.Array = block_reader.lazy_array(array).reshape(*self.shape, *array.shape[1:])
        return lazy

    def pattern(self, y: int, x: int) -> xr.DataArray:
        """Return the reduced pattern of one point, (v, u) float32 in [0, 1]: what the network sees.

        Raises
        ------
        InputError
            There is no such point, or it has no usable pattern.
        """
        values = self._pattern(y, x).astype(np.float32) / 255
        return xr.DataArray(values, dims=("v", "u"), coords={"y": y, "x": x}, name="pattern", attrs={"units": "1"})

    def reconstruction(self, y: int, x: int) -> xr.DataArray:
        """Return what the autoencoder makes of the pattern of one point, (v, u) float32 in [0, 1].

        Raises
        ------
        InputError
            There is no such pattern, or the run's features are not a network's.
        """
        from laue_dask.api.build import reconstruct

        if self.config.encoder.extractor != "network":
            raise InputError(f"{self.path}: its features are {self.config.encoder.extractor}, which redraw no pattern")
        values = reconstruct(self._pattern(y, x)[None], self.config.encoder)[0]
        return xr.DataArray(
            values, dims=("v", "u"), coords={"y": y, "x": x}, name="reconstruction", attrs={"units": "1"}
        )

    def frame(self, y: int, x: int) -> xr.DataArray:
        """Return the frame of one point as it was recorded, wherever it is; see `Scan.frame`."""
        return self.scan.frame(y, x)

    def mean_frame(self, where: Any) -> xr.DataArray:
        """Return the mean of the frames at some points, lazily; see `Scan.mean_frame`.

        Examples
        --------
        >>> run = open_run("runs/scan0001")  # doctest: +SKIP
        >>> difference = run.mean_frame(run.labels(6) == 0) - run.mean_frame(run.labels(6) == 1)  # doctest: +SKIP
        """
        return self.scan.mean_frame(where)

    def mean_pattern(self, where: Any) -> xr.DataArray:
        """Return the mean of the reduced patterns at some points, (v, u) float64 in [0, 1].

        Parameters
        ----------
        where
            (y, x) bool, such as ``run.labels(6) == 2``. Points without a usable pattern do not count.

        Raises
        ------
        InputError
            `where` is no such map, or it has no point with a usable pattern.
        """
        return averages.mean_pattern(self._reduced, where, self.shape, self.valid.values.ravel())

    @property
    def valid(self) -> xr.DataArray:
        """(y, x) bool: whether a point has a usable pattern, which is then in a cluster."""
        results = self.unmasked
        if results.sizes["k"]:
            there = results["labels"].isel(k=0, drop=True) >= 0
        else:  # nothing was asked for, and no K stood out
            finite = np.isfinite(results["components"][:, 0].values).reshape(self.shape)
            there = xr.DataArray(finite, dims=("y", "x"))
        return there.rename("valid").assign_attrs(long_name="the pattern was recorded and is usable")

    # What can be done

    def segment(
        self,
        k: int | Iterable[int] = (),
        config: AnyConfig | None = None,
        *,
        estimator: Literal["kmeans", "bgm", "gmm", "hdbscan", "mean_shift"] | None = None,
        components: int | float | None = None,
        sweep: bool | None = None,
        out: AnyPath | None = None,
        command: str | None = None,
        progress: Progress | bool | None = None,
    ) -> "Run":
        """Cluster the patterns again; features stay as they are, and so do segmentations of the same parameters.

        Parameters
        ----------
        k
            Numbers of clusters, besides those at the peaks of the scores; those of the run by default.
        config
            The path of a YAML file or nested dictionaries over the run's configuration, of the sections `pca`,
            `clustering` and `cluster`.
        estimator
            Clustering method; ``"hdbscan"`` and ``"mean_shift"`` find K themselves.
        components
            M_PCA: a number of components, or the share of the variance that they must explain.
        sweep
            Whether every K is scored again; by default where parameters of the scores changed.
        out
            A new folder for these segmentations; this run stays as it is. By default they are put into this run.
        command, progress
            As `laue_dask.run` takes them.

        Returns
        -------
        Run
            With the new segmentations: this one, or that in `out`.

        Raises
        ------
        InputError
            A parameter does not fit the run, or its scan is gone; the run stays as it was.

        Examples
        --------
        >>> run = open_run("runs/scan0001")  # doctest: +SKIP
        >>> run.segment(k=12).plot.labels(12)  # doctest: +SKIP
        """
        from laue_dask.pipeline import segmenting

        said = {"k": k_values(k), "estimator": estimator, "components": components}
        given = overrides(**said)
        if estimator in ("hdbscan", "mean_shift") and not said["k"]:
            given["clustering"]["k"] = ()  # the run's own K are of no use to these
        changes = tables.merged_changes(config, given)
        folder = None if out is None else path_of(out)
        with keeping_log_levels():
            segmenting.segment(
                self.path,
                changes,
                command=command or as_typed("Run.segment", self.path, **said, sweep=sweep, out=folder),
                sweep=sweep,
                out=folder,
                progress=progress_of(progress),
            )
        return self if folder is None else Run(folder)

    def evaluate(
        self,
        truth: AnyPath | Mapping[str, Any] | NDArray[Any] | xr.DataArray,
        *,
        workers: int | None = None,
        progress: Progress | bool | None = None,
    ) -> "pd.DataFrame":
        """Compare the segmentations with a true map, beside what pixels and an untrained network give.

        Parameters
        ----------
        truth
            Path of an `.npz` file, or a dictionary, with `domain` (number of the domain, negative where unknown)
            and/or `angle` (a property in degrees, NaN where unknown) and optionally `edge` (True where the beam lies on
            two domains), each (ny, nx); an array alone is `domain` if it holds whole numbers, else `angle`.
        workers
            Worker processes; all cores by default.
        progress
            As `laue_dask.run` takes it.

        Returns
        -------
        DataFrame
            A row for each kind of features and K, kept in the run's record and report as well.

        Raises
        ------
        InputError
            The truth does not fit the scan, or the scan is gone.
        """
        import pandas as pd

        from laue_dask.pipeline import evaluating

        with keeping_log_levels():
            rows = evaluating.evaluate(
                self.path, tables.truth_of(truth), workers=workers, progress=progress_of(progress)
            )
        return pd.DataFrame(rows)

    def verify(self, *, sources: bool = False, progress: Progress | bool | None = None) -> "Verification":
        """Compare every object of the run with its receipts; nothing is changed.

        Parameters
        ----------
        sources
            Whether all frames of the source are read, too, and compared with those that were ingested.

        Returns
        -------
        Verification
            Its `findings` are what is damaged, and what to do.
        """
        from laue_dask.pipeline.verify import verify

        return verify(self.path, sources=sources, progress=progress_of(progress))

    @cached_property
    def plot(self) -> "Plots":
        """Figures of the run: ``run.plot.labels(6)`` and others, each of which returns Matplotlib axes."""
        from laue_dask.api.plots import Plots

        return Plots(self)

    # How it looks

    def __repr__(self) -> str:
        return str(self._summary())

    def _repr_html_(self) -> str:
        return self._summary(self._picture).html()

    def _picture(self) -> str:
        """Direct colouring as a small PNG, transparent where there is no pattern."""
        from laue_dask.io.coordinates import MapScale
        from laue_dask.report.thumbnails import fit_to_side

        opacity = np.where(self.valid.values, 255, 0).astype(np.uint8)
        buffer = io.BytesIO()
        picture = np.dstack([self.unmasked["direct_rgb"].values, opacity])
        fit_to_side(picture, aspect=MapScale.of(self.unmasked).aspect).save(buffer, format="png", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def _summary(self, picture: Callable[[], str] = str) -> Summary:
        try:
            return replace(self._facts(), image=picture())
        except LaueDaskError as error:
            return Summary("Run", str(self.path), {"not to be read": str(error)})

    def _facts(self) -> Summary:
        record = self.record
        ny, nx = record.scan_shape
        aside = f", {len(record.set_aside):,} set aside" if record.set_aside else ""
        suggested = ", ".join(map(str, record.suggested_k))
        facts = {
            "scan": f"{ny} × {nx} points, {record.n_patterns:,} usable patterns{aside}",
            "K": ", ".join(map(str, record.k)) + (f" (suggested: {suggested})" if suggested else ""),
            "components": f"{record.m_pca} used",
            "features": record.config.encoder.extractor,
            "source": record.source,
            "warnings": "; ".join(map(str, record.warnings[:3])) + (" …" if len(record.warnings) > 3 else ""),
        }
        return Summary("Run", str(self.path), facts)

    def known(self, k: int) -> int:
        """Return a number of clusters of which there is a segmentation.

        Raises
        ------
        InputError
            There is none.
        """
        known = self.k
        if k not in known:
            there = ", ".join(map(str, known))
            raise InputError(
                f"{self.path}: there is no segmentation into {k!r} clusters, but K = {there}: run.segment(k={k!r})"
            )
        return int(k)

    @property
    def _reduced(self) -> zarr.Array[Any]:
        store: ScanStore = self.scan.store
        found = store.reduced(self.config.recipe.for_frames(store.frame_shape).digest())
        if found is None:
            raise StoreError(f"{store.path}: its reduced patterns have gone: run `laue-dask run` again")
        return found

    def reduced_rows(self, patterns: NDArray[np.int64]) -> dict[int, NDArray[np.uint8]]:
        """Return the reduced patterns (128, 128) uint8 by their numbers, which count row by row from 0."""
        rows = block_reader.read_rows(self._reduced, patterns)
        return dict(zip(patterns.tolist(), rows, strict=True))

    def _pattern(self, y: int, x: int) -> NDArray[np.uint8]:
        pattern = self.scan.pattern_at(y, x)
        return np.asarray(block_reader.read_rows(self._reduced, slice(pattern, pattern + 1))[0])

    def _current(self, what: str, file: str, read: Any) -> Any:
        """What was read of the folder, read again where a file of it is not the one that it was."""
        try:
            found = (self.path / file).stat()
            state: object = (found.st_ino, found.st_mtime_ns, found.st_size)
        except OSError:
            state = None
        before = self._seen.get(what)
        if before is None or state is None or before[0] != state:
            before = self._seen[what] = (state, read())
        return before[1]
