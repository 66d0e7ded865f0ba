"""Runs that start by themselves: while a scan is measured, and every night of a beamtime."""

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from laue_dask.api.options import AnyConfig, AnyPath, as_typed, configured, k_values, overrides, path_of, progress_of
from laue_dask.api.run import Run
from laue_dask.config import Order
from laue_dask.errors import ExitCode
from laue_dask.io.path_patterns import is_pattern
from laue_dask.nightly import config as nightly_config
from laue_dask.nightly import night
from laue_dask.nightly.config import NightlyConfig
from laue_dask.runtime.progress import Progress
from laue_dask.watch import watcher

LONGEST_PAUSE_S = 1800.0
"""Time without anything new after which a scan is over."""


def watch_scan(
    folder: AnyPath,
    out: AnyPath | None = None,
    k: int | Iterable[int] = (),
    config: AnyConfig | None = None,
    *,
    shape: tuple[int, int] | None = None,
    order: Order | None = None,
    first_number: int | None = None,
    insist: bool | None = None,
    timeout: float = LONGEST_PAUSE_S,
    workers: int | None = None,
    stop: threading.Event | None = None,
    say: Callable[[str], Any] = print,
    command: str | None = None,
    progress: Progress | bool | None = None,
) -> Run:
    """Map a scan while the detector writes its files, and segment it when it is over.

    Parameters
    ----------
    folder
        Of the files, or a glob of them; it may be empty yet.
    out
        Folder of the run; ``FOLDER_run`` here by default. ``watch.html`` in it shows maps, suggestions and alarms.
    shape
        (ny, nx) of the grid, which has to be known.
    k, config, order, first_number, insist, workers, command, progress
        As `laue_dask.run` takes them; the first K is mapped while the scan is measured.
    timeout
        Seconds without anything new after which the scan is over.
    stop
        Set to end the scan with what there is.
    say
        Told one line at a time: how far the scan is, suggestions, alarms.

    Returns
    -------
    Run
        The finished run, the same as that of `laue_dask.run`.

    Raises
    ------
    InputError, ComputeError
        As `laue_dask.run`.

    Examples
    --------
    >>> import laue_dask as ld
    >>> run = ld.watch_scan("/data/sample/scan0002", "runs/scan0002", shape=(30, 40))  # doctest: +SKIP
    """
    said = {
        "k": k_values(k),
        "shape": shape,
        "order": order,
        "first_number": first_number,
        "insist": insist,
        "workers": workers,
    }
    name, target = str(path_of(folder)), run_folder_of(folder) if out is None else path_of(out)
    watcher.watch(
        name,
        target,
        configured(config, overrides(**said)),
        command=command or as_typed("watch_scan", name, target, config=config, **said),
        progress=progress_of(progress),
        timeout=timeout,
        stop=stop or threading.Event(),
        say=say,
    )
    return Run(target)


def run_folder_of(folder: AnyPath) -> Path:
    """Return the folder of the run of a scan that is watched, where none is given."""
    path = Path(str(path_of(folder)).partition("::")[0]).absolute()
    return Path(f"{(path.parent if is_pattern(str(path)) else path).name}_run")


def run_nights(
    root: AnyPath,
    config: NightlyConfig | AnyPath | None = None,
    *,
    out: AnyPath | None = None,
    again: Sequence[str] = (),
    dry_run: bool = False,
    say: Callable[[str], Any] = print,
) -> ExitCode:
    """Run every scan below a beamtime's folder that is complete, and new or changed since it was last run.

    Parameters
    ----------
    root
        The beamtime's folder.
    config
        Of the nights, or the path of its YAML file.
    out
        Folder for runs, log and pages; that of the configuration by default.
    again
        Scans that are done again.
    dry_run
        Whether only is said what would be done.
    say
        Told one line at a time.

    Returns
    -------
    ExitCode
        `DONE`, `FAILED` where the night had to end early, `SET_ASIDE` where some scans are set aside.

    Raises
    ------
    InputError
        The configuration or the folder cannot be used.

    Examples
    --------
    >>> import laue_dask as ld
    >>> ld.run_nights("/data/beamtime", "nightly.yaml", dry_run=True)  # doctest: +SKIP
    """
    where = "options" if config is None or isinstance(config, NightlyConfig) else str(config)
    if isinstance(config, NightlyConfig):
        found = config
    else:
        given = {} if out is None else {"out": str(path_of(out).absolute())}
        found = nightly_config.load(None if config is None else path_of(config), given)
    if not dry_run:
        return night.run_night(path_of(root), found, again=again, where=where, say=say)
    for line in night.plan_night(path_of(root), found, again=again, where=where):
        say(line)
    return ExitCode.DONE
