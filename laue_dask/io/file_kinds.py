"""Kinds of files of frames: told by the name, or else by the first bytes."""

import bz2
import gzip
import os
import re
import stat
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from laue_dask.io import hdf5

PACKED_SUFFIXES = (".gz", ".bz2")
TIFF_SUFFIXES = (".tif", ".tiff", ".mccd")
FRAME_SUFFIXES = frozenset(
    (*TIFF_SUFFIXES, *hdf5.SUFFIXES, ".edf", ".cbf", ".img", ".mar3450", ".mar2300", ".sfrm", ".esperanto")
)
"""Files of a folder that are frames; `.gz` and `.bz2` behind them are looked through."""

_SUFFIX_SYNONYMS = {".tiff": ".tif", ".hdf5": ".h5", ".hdf": ".h5"}
"""Two ways to write one suffix."""

_SUFFIX_OF_MAGIC = (
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"II+\0", ".tif"),
    (b"MM\0+", ".tif"),
    (b"\x89HDF\r\n\x1a\n", ".h5"),
    (b"###CBF", ".cbf"),
    (b"FORMAT :", ".sfrm"),
    (b"ESPERANTO FORMAT", ".esperanto"),
)
_EDF_HEAD = re.compile(rb"\s*\{\s*(?:EDF_|HeaderID|HeaderDim|Dim_1|ByteOrder|DataType|HEADER_BYTES)", re.IGNORECASE)
_HEAD_BYTES = 512

_NUMBERED_NAME = re.compile(r"(?P<stem>.*\.)\d+(?:\.gz|\.bz2)?$", re.IGNORECASE | re.DOTALL)

_OPENER_OF_SUFFIX: dict[str, Callable[..., Any]] = dict(zip(PACKED_SUFFIXES, (gzip.open, bz2.open), strict=True))

_IRREGULAR_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def suffix_of(name: str) -> str:
    """Return what a file is by its name, in lower case, looking through `.gz` and `.bz2`."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122  of 100,000 names
    return (os.path.splitext(stem)[1] if suffix.lower() in PACKED_SUFFIXES else suffix).lower()  # noqa: PTH122


def is_frame(name: str) -> bool:
    """Return whether a file's name is one of a detector's frames, or of a stack of them."""
    return suffix_of(name) in FRAME_SUFFIXES


def family_of(suffix: str) -> str:
    """Return the one of several ways to write a suffix that stands for all, as `.tif` for `.tiff`."""
    return _SUFFIX_SYNONYMS.get(suffix, suffix)


def numbered_stem(name: str) -> str:
    """Return what is before the number in `scan.0001`, a name whose suffix is a number; empty for any other name.

    Examples
    --------
    >>> numbered_stem("scan.0001"), numbered_stem("scan_0001.tif")
    ('scan.', '')
    """
    found = _NUMBERED_NAME.match(name)
    return found["stem"] if found else ""


def kind_of(path: str) -> str:
    """Return the suffix of a file of frames, or the one that its first bytes stand for; empty where it is of no known
    kind.
    """
    suffix = suffix_of(path)
    return suffix if suffix in FRAME_SUFFIXES else kind_of_content(path)


def kind_of_content(path: str) -> str:
    """Return the suffix that a file's first bytes stand for, looking through packing; empty where they tell of none."""
    if irregular(path):
        return ""
    try:
        with open_file(path) as file:
            head = file.read(_HEAD_BYTES)
    except (OSError, EOFError, ValueError):
        return ""
    if _EDF_HEAD.match(head):
        return ".edf"
    return next((suffix for magic, suffix in _SUFFIX_OF_MAGIC if head.startswith(magic)), "")


def open_file(path: str) -> BinaryIO:
    """Open a file, unpacked where its name says that it is packed."""
    opener = _OPENER_OF_SUFFIX.get(os.path.splitext(path)[1].lower(), open)  # noqa: PTH122  of 100,000 names
    return cast(BinaryIO, opener(path, "rb"))


def irregular(path: str) -> str:
    """Return what a path is that is no regular file, and must not be opened: a read might never end; empty where it is
    one.

    Something that is not there is not irregular: whoever opens it says so.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  for each frame that is read
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISREG(mode) else f"a {_IRREGULAR_KINDS.get(stat.S_IFMT(mode), 'special file')}"
