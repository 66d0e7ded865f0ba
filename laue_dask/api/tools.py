"""Tools for what exists already: they say what a path is, whether it is whole, and what of it can be removed."""

from dask.utils import format_bytes

from laue_dask.api.options import AnyPath, path_of, progress_of
from laue_dask.pipeline import cleanup, describe
from laue_dask.pipeline.cleanup import Removal
from laue_dask.pipeline.verify import Verification
from laue_dask.pipeline.verify import verify as verify_path
from laue_dask.runtime.progress import Progress


def info(path: AnyPath) -> str:
    """Say what a run, a scan store, a weights file or a frame is, in a few lines for people.

    Raises
    ------
    InputError
        It is none of these, or damaged.

    Examples
    --------
    >>> import laue_dask as ld
    >>> "256 latent features" in ld.info("default")
    True
    """
    return describe.describe(path_of(path))


def verify(path: AnyPath, *, sources: bool = False, progress: Progress | bool | None = None) -> Verification:
    """Hold every object of a run, a series, a scan store or a weights file against its receipts; nothing is changed.

    Parameters
    ----------
    path
        Of any of these.
    sources
        Whether all frames of the source are read, too, and compared with those that were ingested.
    progress
        Where it is told how far the work is; False for nowhere.

    Returns
    -------
    Verification
        Its `findings` are what is damaged, and what to do; its `lines()` say everything in words.

    Raises
    ------
    InputError
        It is none of these, or is not there.

    Examples
    --------
    >>> import laue_dask as ld
    >>> ld.verify("runs/scan0001").findings  # doctest: +SKIP
    []
    """
    return verify_path(path_of(path), sources=sources, progress=progress_of(progress))


def clean(run: AnyPath, *, reduced: bool = False, dry_run: bool = False) -> list[Removal]:
    """Remove what a finished run does not need: left-overs of killed work, reduced patterns of other recipes.

    Parameters
    ----------
    run
        Folder of a run or of a series.
    reduced
        Whether the run's own reduced patterns are removed, too; `run` makes them again, of the frames.
    dry_run
        Whether nothing is removed.

    Returns
    -------
    list of Removal
        What was removed, or would be: `path`, `what` it is, and its `bytes`.

    Raises
    ------
    InputError
        There is no finished run in the folder, or something is at work there.

    Examples
    --------
    >>> import laue_dask as ld
    >>> for one in ld.clean("runs/scan0001", dry_run=True):  # doctest: +SKIP
    ...     print(one.bytes, one.path, one.what)
    """
    return cleanup.clean(path_of(run), reduced=reduced, dry_run=dry_run)


def in_words(removed: list[Removal], *, dry_run: bool) -> list[str]:
    """Return what `clean` removed, or would, as lines with the size of each and of all."""
    lines = [f"{format_bytes(one.bytes):>12s}  {one.path}: {one.what}" for one in removed]
    total = format_bytes(sum(one.bytes for one in removed))
    return [*lines, f"{total} {'would be' if dry_run else 'were'} removed" if removed else "there is nothing to remove"]
