"""Places to write to: asked for before hours of work, not after, and written to so that no reader sees a half."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from laue_dask.errors import InputError, SpaceError
from laue_dask.io.lock import require_held


def require_writable(path: Path) -> None:
    """Raise `InputError` where `path` can neither be made nor written to; nothing is made here.

    Parameters
    ----------
    path
        A file or folder that may not exist yet, nor its parents.
    """
    place = path.absolute()
    try:
        # A link that leads nowhere or in a circle does not exist, but is in the way.
        nearest = next(p for p in (place, *place.parents) if p.exists() or p.is_symlink())
        folder = nearest.is_dir()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    if not folder and nearest != place:
        raise InputError(f"{path}: cannot be made, {nearest} is not a folder")
    if not folder and not nearest.exists():
        raise InputError(f"{path}: is a link to nothing: remove it or choose another path")
    if not os.access(nearest, os.W_OK | (os.X_OK if folder else 0)):
        raise InputError(f"{path}: no permission to write to {nearest}")


def require_space(path: Path, n_bytes: int) -> None:
    """Raise `SpaceError` where the disk that `path` is or will be on has less than `n_bytes` free."""
    free = free_space(path)
    if n_bytes > free:
        raise SpaceError(
            f"{path}: needs {n_bytes / 1e9:.2f} GB, its disk has {free / 1e9:.2f} GB free: "
            "make room or choose another place"
        )


def free_space(path: Path) -> int:
    """Bytes that are free on the disk that `path` is or will be on."""
    place = path.absolute()
    nearest = next(p for p in (place, *place.parents) if p.exists())
    return shutil.disk_usage(nearest).free


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk, or a quota that is used up, is what an error comes from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def replace_file(path: Path, content: bytes | Iterable[str]) -> None:
    """Write a file so that its readers see either the old content or the new one, whole.

    Nothing is written by a process that owned a folder and lost it to another; see `io.lock.require_held`.

    Parameters
    ----------
    content
        All of it, or pieces of a text that never is in memory as a whole; of file names that are not UTF-8, what
        JSON would write.
    """
    require_held()
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
    try:
        if isinstance(content, bytes):
            partial.write_bytes(content)
        else:
            with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.writelines(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
