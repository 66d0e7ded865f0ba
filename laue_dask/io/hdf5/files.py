"""HDF5 files: opening them, also while they are written, and saying where a link leads that leads nowhere."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters of EIGER files

from laue_dask.errors import FrameError, InputError
from laue_dask.io.deadline import read_byte

SUFFIXES = (".h5", ".hdf5", ".hdf", ".nxs")

SERIES_NAME = re.compile(r"data_\d{6}$")
"""Names under which an EIGER master links its data files."""

MAX_FOLLOWED_LINKS = 8
"""Links that are followed one after the other to say where the last one leads."""

_OPEN_FOR_WRITE_ERROR = "already open for write"
"""What HDF5 says of a file that is marked as being written, such as every file for SWMR."""


class UnreadableError(InputError):
    """The file is missing or damaged."""


def open_file(path: str) -> h5py.File:
    """Open a file for reading; one that is written for readers (SWMR) as it is now. Raises what h5py raises."""
    with suppress(OSError):  # which HDF5 has its own words for
        read_byte(path)
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
        raise OSError("not a regular file")
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if _OPEN_FOR_WRITE_ERROR not in str(error):
            raise
        try:
            return h5py.File(path, "r", locking=False, swmr=True)
        except OSError:
            raise error from None


def is_growing(file: h5py.File) -> bool:
    """Return whether another process says that it writes the file."""
    return bool(file.id.get_intent() & (h5py.h5f.ACC_SWMR_READ | h5py.h5f.ACC_SWMR_WRITE))


@contextmanager
def reading(path: str, *, closed: bool = False) -> Iterator[h5py.File]:
    """Open a file, and raise its faults as errors of the input.

    Parameters
    ----------
    closed
        Refuse a file that is still written.

    Raises
    ------
    UnreadableError
        It is missing or damaged.
    InputError
        It is still open for writing.
    """
    try:
        with open_file(path) as file:
            if closed and is_growing(file):
                raise OSError(_OPEN_FOR_WRITE_ERROR)
            yield file
    except (InputError, MemoryError):
        raise
    except FrameError as error:
        raise InputError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise UnreadableError(f"{path}: no such file") from error
    except Exception as error:
        if _OPEN_FOR_WRITE_ERROR in str(error):
            raise InputError(
                f"{path}: is still open for writing: its frames can be read when it is closed (`h5clear -s` closes one "
                "whose writer was killed)"
            ) from error
        raise UnreadableError(f"{path}: truncated or unreadable HDF5: {line(error)}") from error


def resolve(file: h5py.File | h5py.Group, name: str) -> Any:
    """Return the dataset or group of that name.

    Raises
    ------
    FrameError
        There is none, or the file that it is linked to is missing, which is named.
    """
    try:
        node = file.get(name)
    except (OSError, RuntimeError, ValueError):
        node = None
    if node is None:
        raise FrameError(_why(file, name))
    return node


def holder(path: str, dataset: str) -> str:
    """Return the file that holds a dataset which `path` may only link to.

    Raises
    ------
    InputError
        It is not there any more.
    """
    try:
        with open_file(path) as file:
            return str(file[dataset].file.filename)
    except Exception as error:
        raise InputError(f"{path}::{dataset}: {line(error)}") from error


def linked_files(path: str) -> list[str]:
    """Return the files that an EIGER master links to, whether they are there or not.

    Raises
    ------
    InputError
        The master cannot be read.
    """
    try:
        with open_file(path) as file:
            groups = [group for name in file if isinstance(group := file.get(f"{name}/data"), h5py.Group)]
            links = [group.get(name, getlink=True) for group in groups for name in group if SERIES_NAME.match(name)]
            names = [link.filename for link in links if isinstance(link, h5py.ExternalLink)]
    except Exception as error:
        raise InputError(f"{path}: truncated or unreadable HDF5: {line(error)}") from error
    return [str(Path(path).parent / name) for name in dict.fromkeys(names)]


def locate(name: str, beside: str) -> str | None:
    """Return the file that HDF5 finds under a name in a link or a virtual dataset of the file `beside`; None where none
    is.
    """
    folder, path = Path(beside).parent, Path(name)
    places = (path, folder / path.name) if path.is_absolute() else (folder / path, path)
    return next((str(place) for place in places if place.is_file()), None)


def line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _why(file: h5py.File | h5py.Group, name: str, followed: int = 0) -> str:
    """Why there is nothing under a name."""
    group: Any = file["/"] if name.startswith("/") else file
    parts = [part for part in name.split("/") if part]
    for place, part in enumerate(parts):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        where = "/".join(parts[: place + 1])
        if isinstance(link, h5py.ExternalLink):
            found = locate(link.filename, group.file.filename)
            if found is None:
                return f"its file {link.filename} is missing"
            try:
                with open_file(found) as other:
                    if link.path in other and followed < MAX_FOLLOWED_LINKS:
                        return _why(other, "/".join((link.path, *parts[place + 1 :])), followed + 1)
            except Exception as error:
                return f"its file {link.filename} cannot be read: {line(error)}"
            return f"its file {link.filename} has no '{link.path}'"
        if isinstance(link, h5py.SoftLink) and group.get(part) is None:
            if followed < MAX_FOLLOWED_LINKS:
                reason = _why(group, link.path, followed + 1)
                return reason if reason.startswith("its file") else f"'{where}' is a link to '{link.path}': {reason}"
            return f"'{where}' is a link that leads to itself"
        if link is None:
            return f"no dataset '{where}' in it"
        group = group.get(part)
    return f"'{name}' cannot be read"
