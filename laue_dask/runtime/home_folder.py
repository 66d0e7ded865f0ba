"""Folders in which libraries keep files between processes, where the user's home cannot be written."""

import os
import stat
import tempfile
from pathlib import Path

MATPLOTLIB_FOLDER = "MPLCONFIGDIR"
"""Variable of the environment that names the folder in which Matplotlib keeps its list of fonts."""


def ensure_matplotlib_folder() -> None:
    """Give Matplotlib a folder where it would find none, of which it would warn in the midst of our output.

    Processes that are started later inherit it. Nothing is done where the variable is set or the home can be written.
    """
    if MATPLOTLIB_FOLDER in os.environ or _can_be_written(Path(os.path.expanduser("~")) / ".config" / "matplotlib"):  # noqa: PTH111
        return
    private = private_folder()
    if private is not None:
        os.environ[MATPLOTLIB_FOLDER] = str(private)


def private_folder() -> Path | None:
    """Return the folder below the temporary one that nobody else can write to; None where there is none to be had.

    Its name is the same for all processes of a user. Whatever somebody else has put there is not taken.
    """
    path = Path(tempfile.gettempdir()) / f"laue-dask-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return path if ours else None


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)  # as Matplotlib does
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
