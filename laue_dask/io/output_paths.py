"""Paths to write to: they are checked before hours of work, and written so that no reader sees half a file."""

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from laue_dask.errors import DiskFullError, InputError, SpaceError
from laue_dask.io.lock import require_lock


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
        raise InputError(f"{path}: cannot be made, because {nearest} is not a folder")
    if not folder and not nearest.exists():
        raise InputError(f"{path}: is a link that leads nowhere: remove it or choose another path")
    if not os.access(nearest, os.W_OK | (os.X_OK if folder else 0)):
        raise InputError(f"{path}: you have no permission to write to {nearest}")


def require_space(path: Path, n_bytes: int) -> None:
    """Raise `SpaceError` where the disk that `path` is or will be on has less than `n_bytes` free."""
    free = free_space(path)
    if n_bytes > free:
        raise SpaceError(
            f"{path}: needs {size_text(n_bytes)}, the disk at {_mount_of(path)} has {size_text(free)} free: make room "
            "or choose another place"
        )


def free_space(path: Path) -> int:
    """Return the bytes that are free on the disk that `path` is or will be on."""
    return shutil.disk_usage(_existing(path)).free


def size_text(n_bytes: float) -> str:
    """Return a size in bytes as people write it.

    Examples
    --------
    >>> as_text(1_234_000), as_text(5_678_000_000), as_text(90)
    ('1.2 MB', '5.68 GB', '90 bytes')
    """
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.2f} GB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes:.0f} bytes"


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether a full disk, or a quota that is used up, is what an error comes from."""
    return any(isinstance(one, DiskFullError) or _is_refusal(one) for one in _causes(error))


def disk_full_error(error: BaseException, *places: Path, needed: int = 0) -> DiskFullError:
    """Return the error that says which disk is full, how much is free there, and how much is still to be written.

    Parameters
    ----------
    error
        One that comes from a full disk.
    places
        Where it may have been written to, if the error does not say so itself: the one with the least room is named.
    needed
        Bytes that are still to be written, 0 where that is not known.
    """
    causes = list(_causes(error))
    named = [one.place for one in causes if isinstance(one, DiskFullError)]
    named += [os.fsdecode(one.filename) for one in causes if _is_refusal(one) and one.filename]  # type: ignore[attr-defined]
    place = Path(named[0]) if named else min(places or (Path.cwd(), Path(tempfile.gettempdir())), key=free_space)
    mount, found = _mount_of(place), os.statvfs(_existing(place))
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    room = f"{size_text(free)} of {size_text(total)} are free"
    if any(getattr(one, "errno", None) == errno.EDQUOT for one in causes) or "quota" in str(error):
        what = f"your quota on the disk at {mount} is used up ({room} for all)"
    elif any(getattr(one, "errno", None) == errno.EFBIG for one in causes):
        return DiskFullError(
            f"{place}: a file would be larger than this account, or the disk at {mount}, allows: raise the limit "
            "(`ulimit -f`); the same command goes on where it stopped",
            str(place),
        )
    elif found.f_files and not found.f_favail:
        what = f"the disk at {mount} holds as many files as it can ({room})"
    else:
        what = f"no space left on the disk at {mount} ({room})"
    more = f", about {size_text(needed)} more are needed" if needed > 0 else ""
    return DiskFullError(f"{place}: {what}{more}: make room; the same command goes on where it stopped", str(place))


@contextmanager
def naming_full_disk(*places: Path, needed: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Turn every error in here that comes from a full disk into a `DiskFullError` that names it; see
    `disk_full_error`.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        more = 0
        with suppress(Exception):  # what is known of the rest is no reason to say nothing of the disk
            more = needed()
        if isinstance(error, DiskFullError) and not more:
            raise
        raise disk_full_error(error, *places, needed=more) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _mount_of(path: Path) -> Path:
    place = _existing(path)
    return next(one for one in (place, *place.parents) if one.is_mount() or one == one.parent)


def _existing(path: Path) -> Path:
    place = path.absolute()
    return next(p for p in (place, *place.parents) if p.exists())


def write_atomically(path: Path, content: bytes | Iterable[str]) -> None:
    """Write a file so that its readers see either the old content or the new one, whole.

    Nothing is written by a process that owned a folder and lost it to another; see `io.lock.require_lock`.

    Parameters
    ----------
    content
        All of it, or pieces of a text that never is in memory as a whole; of file names that are not UTF-8, what
        JSON would write.
    """
    require_lock()
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
    try:
        with naming_full_disk(path):
            if isinstance(content, bytes):
                partial.write_bytes(content)
            else:
                with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                    file.writelines(content)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
