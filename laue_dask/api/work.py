"""The long work: it makes scan stores of frames, and finished runs of scans."""

import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from laue_dask.api.options import (
    AnyConfig,
    AnyPath,
    AnyRange,
    as_typed,
    configured,
    k_values,
    keeping_log_levels,
    overrides,
    path_of,
    prepare_workers,
    progress_of,
)
from laue_dask.api.run import Run
from laue_dask.api.scan import Scan
from laue_dask.compute import cluster
from laue_dask.config import Config, Order
from laue_dask.pipeline import planning, series, single_scan
from laue_dask.pipeline.stages import ingest as ingesting
from laue_dask.runtime.progress import Progress

AnySource = AnyPath | Scan
"""Frames (a folder, a glob, a text file of paths, an HDF5 stack as ``file.h5::/path``) or a scan store."""


def run(
    source: AnySource,
    out: AnyPath,
    k: int | Iterable[int] = (),
    config: AnyConfig | None = None,
    *,
    components: int | float | None = None,
    estimator: Literal["kmeans", "bgm", "gmm", "hdbscan", "mean_shift"] | None = None,
    extractor: Literal["network", "pixels", "peaks"] | None = None,
    weights: str | None = None,
    substrate: Literal["keep", "remove"] | None = None,
    store_frames: bool | None = None,
    shape: tuple[int, int] | None = None,
    order: Order | None = None,
    first_number: int | None = None,
    insist: bool | None = None,
    rows: AnyRange | None = None,
    columns: AnyRange | None = None,
    every: int | None = None,
    workers: int | None = None,
    again: bool = False,
    command: str | None = None,
    progress: Progress | bool | None = None,
) -> Run:
    """Segment a scan: the whole way from frames or a scan store to maps and a report.

    The same call goes on where one that was killed or interrupted stopped, and keeps what is already there. Workers are
    started for this call and stopped at its end; a script needs no ``if __name__ == "__main__":`` for them.

    Parameters
    ----------
    source
        Frames (a folder, a glob, a text file of paths, an HDF5 stack as ``file.h5::/path``), a scan store, or a `Scan`.
    out
        Folder of the run, made if need be.
    k
        Numbers of clusters, besides those at the peaks of the scores.
    config
        A `Config`, the path of a YAML file, or nested dictionaries; the keywords below win over it.
    components
        M_PCA: a number of components, or the share of the variance that they must explain.
    estimator
        Clustering method; ``"hdbscan"`` and ``"mean_shift"`` find K themselves.
    extractor
        What makes features of a pattern.
    weights
        ``"default"``, ``"untrained"``, or the path of a ``.safetensors`` file.
    substrate
        ``"remove"`` subtracts the scan's own median pattern.
    store_frames
        Whether the frames are copied into the run's scan store.
    shape
        (ny, nx) of the grid: slow and fast axis. By default as the files say.
    order
        Order of acquisition.
    first_number
        Number of the first file, where some are gone.
    insist
        Whether `shape` and `order` are taken whatever the files say.
    rows, columns
        A part of the scan, half open and counted from 0: ``"2:10"``, ``slice(2, 10)`` or ``(2, 10)``.
    every
        Every so many rows and columns of these.
    workers
        Worker processes; all cores by default.
    again
        Whether frames that changed since an earlier run in `out` are read again; by default they are refused.
    command
        What the record and the report say was asked for; by default this call.
    progress
        Where it is told how far the work is; False for nowhere.

    Returns
    -------
    Run
        The finished run. Patterns that could not be used are listed in its ``record.set_aside``.

    Raises
    ------
    InputError
        The frames, the folder or the configuration cannot be used as they are; nothing was changed.
    ComputeError
        The work could not be finished; the same call goes on with it.

    Examples
    --------
    >>> import laue_dask as ld
    >>> run = ld.run("frames", "runs/scan0001", k=[6, 12])  # doctest: +SKIP
    >>> run.plot.labels(6)  # doctest: +SKIP
    """
    said = {
        "k": k_values(k),
        "components": components,
        "estimator": estimator,
        "extractor": extractor,
        "weights": weights,
        "substrate": substrate,
        "store_frames": store_frames,
        "shape": shape,
        "order": order,
        "first_number": first_number,
        "insist": insist,
        "rows": rows,
        "columns": columns,
        "every": every,
        "workers": workers,
    }
    found, name, folder = _begun(config, said), _source(source), path_of(out)
    with keeping_log_levels():
        single_scan.run(
            name,
            folder,
            found,
            command=command or as_typed("run", name, folder, config=config, **said, again=again),
            progress=progress_of(progress),
            again=again,
        )
    return Run(folder)


def run_series(
    sources: Sequence[AnySource],
    out: AnyPath,
    k: int | Iterable[int] = (),
    config: AnyConfig | None = None,
    *,
    again: bool = False,
    command: str | None = None,
    progress: Progress | bool | None = None,
    **options: Any,
) -> list[Run]:
    """Segment several scans (a series in temperature or load) with components and clusters in common.

    Label 3 is the same cluster, in the same colour, in every scan of the series.

    Parameters
    ----------
    sources
        Of each scan, as `run` takes them.
    out
        Folder of the series; the run of each scan is a folder in it, named after its source.
    k, config, again, command, progress
        As `run` takes them.
    **options
        As the keywords of `run`.

    Returns
    -------
    list of Run
        One of each scan, in the order of the sources.

    Raises
    ------
    InputError, ComputeError
        As `run`.

    Examples
    --------
    >>> import laue_dask as ld
    >>> cold, hot = ld.run_series(["cold", "hot"], "runs/series", k=6)  # doctest: +SKIP
    """
    said = {"k": k_values(k), **options}
    found, names = _begun(config, said), [_source(one) for one in sources]
    folder = path_of(out)
    with keeping_log_levels():
        records = series.run(
            names,
            folder,
            found,
            command=command or as_typed("run_series", names, folder, config=config, **said, again=again),
            progress=progress_of(progress),
            again=again,
        )
    return [Run(folder / name) for name in records[0].series]


def ingest(
    source: AnyPath,
    store: AnyPath,
    config: AnyConfig | None = None,
    *,
    shape: tuple[int, int] | None = None,
    order: Order | None = None,
    first_number: int | None = None,
    insist: bool | None = None,
    rows: AnyRange | None = None,
    columns: AnyRange | None = None,
    every: int | None = None,
    workers: int | None = None,
    progress: Progress | bool | None = None,
) -> Scan:
    """Write detector frames into a scan store, losslessly compressed and each at its place.

    Parameters
    ----------
    source
        A folder, a glob, a text file of paths, or an HDF5 stack as ``file.h5::/path``.
    store
        Path of the new store, ``….zarr``.
    config, shape, order, first_number, insist, rows, columns, every, workers, progress
        As `run` takes them.

    Returns
    -------
    Scan
        The finished store. Frames that could not be used are listed in its `set_aside`.

    Raises
    ------
    InputError
        No frame can be used, nobody knows where they belong, or something is at `store` already.

    Examples
    --------
    >>> import laue_dask as ld
    >>> scan = ld.ingest("frames/img_*.tif", "scan.zarr", shape=(61, 61))  # doctest: +SKIP
    """
    path = path_of(store)
    ingesting.check_out(path)
    found = _begun(
        config,
        {
            "shape": shape,
            "order": order,
            "first_number": first_number,
            "insist": insist,
            "rows": rows,
            "columns": columns,
            "every": every,
            "workers": workers,
        },
    )
    name = _source(source)
    # Local workers are still importing; jobs may wait for hours, in which frames arrive.
    look = ingesting.inspect_source(name, found.scan) if found.workers.kind == "local" else None
    with keeping_log_levels(), cluster.start(found.workers) as started:
        ingesting.ingest(name, path, found.scan, inspection=look, workers=started, progress=progress_of(progress))
    return Scan(path)


def plan(source: AnySource, out: AnyPath = ".", config: AnyConfig | None = None, **options: Any) -> str:
    """Say what a run would take: blocks, tasks, bytes, memory, and time from a probe of about ten seconds.

    Parameters
    ----------
    source
        As `run` takes it.
    out
        Folder that the run would have; nothing is made.
    config
        As `run` takes it.
    **options
        As the keywords of `run`.

    Returns
    -------
    str
        Lines for people.

    Raises
    ------
    InputError
        As `run`; or the disk or a worker's memory is too small.

    Examples
    --------
    >>> import laue_dask as ld
    >>> print(ld.plan("frames", "runs/scan0001"))  # doctest: +SKIP
    """
    said = {**options, "k": k_values(options.get("k", ()))}
    return planning.plan_run(_source(source), path_of(out), configured(config, overrides(**said)))


def _begun(config: AnyConfig | None, options: dict[str, Any]) -> Config:
    """The configuration of a call; local workers import, from here on, what they need."""
    found = configured(config, overrides(**options))
    prepare_workers(found)
    return found


def _source(source: AnySource) -> str:
    return str(source.path) if isinstance(source, Scan) else os.path.expanduser(os.fspath(source))  # noqa: PTH111  a glob
