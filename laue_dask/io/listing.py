"""Files of frames in a folder, or that a glob matches, in the order of acquisition; a second look costs what is new."""

import bisect
import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from laue_dask.errors import InputError
from laue_dask.io import hdf5
from laue_dask.suggestions import did_you_mean

PACKED = (".gz", ".bz2")
TIFF_SUFFIXES = (".tif", ".tiff", ".mccd")
SUFFIXES = frozenset(
    (*TIFF_SUFFIXES, *hdf5.SUFFIXES, ".edf", ".cbf", ".img", ".mar3450", ".mar2300", ".sfrm", ".esperanto")
)
"""Files of a folder that are frames; `.gz` and `.bz2` behind them are looked through."""

MASTER = "_master.h5"
"""End of the name of a file that links those which hold the frames."""

_FEW = 8
"""A list is sorted as a whole where more than the like part of it is new."""


class EmptyError(InputError):
    """There are no frames, or not yet."""


def is_frame(name: str) -> bool:
    """Whether a file's name is one of a detector's frames, or of a stack of them."""
    return suffix_of(name) in SUFFIXES


def suffix_of(name: str) -> str:
    """What a file is by its name, in lower case, looking through `.gz` and `.bz2`."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122  of 100,000 names
    return (os.path.splitext(stem)[1] if suffix.lower() in PACKED else suffix).lower()  # noqa: PTH122


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key that takes digits for numbers: img_2 before img_10."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part)) if i % 2 else (0, part) for i, part in enumerate(parts)]


class Listing:
    """Files of frames, listed again and again.

    Parameters
    ----------
    source
        Folder of frames, or of one sub-folder `…_01`, `…_02` per line of the scan; or a glob.

    Attributes
    ----------
    files
        In natural order of their names (img_2 before img_10); of EIGER files the masters alone.
    odd
        What is wrong with the name of a file, which is left out; empty where nothing is.
    added
        What came to `files` in the last look, in no order; None where that is not known, or others are gone.
    """

    def __init__(self, source: str | Path) -> None:
        self.files: list[str] = []
        self.odd = ""
        self.added: list[str] | None = None
        self._source = str(source)
        self._content: _Folder | _Matches | None = None
        self._count = 0
        """Files after the last look: their list may be that of a folder, which changes."""
        self._whole = False
        """Whether the last look came to its end."""
        self._lines: dict[str, _Folder] = {}

    def look(self) -> bool:
        """List what is there now; whether anything came or went.

        Raises
        ------
        EmptyError
            There is nothing.
        InputError
            There are several kinds of frames, or scans, or a folder cannot be read.
        """
        whole, self._whole = self._whole, False
        kind = _Folder if is_folder(self._source) else _Matches
        if not isinstance(self._content, kind):
            self._content, self._lines = kind(self._source), {}
        changed = self._content.look()
        if isinstance(self._content, _Matches):
            files = self._content.files
        elif self._content.names:
            files = self._chosen([self._content])
        else:
            folders = self._look_at_lines(self._content.folders)
            changed |= any(folder.changed for folder in folders)
            files = self._chosen(folders)
        self.odd = self._find_odd()
        lines = isinstance(self._content, _Folder) and not self._content.names
        exact = whole and files is self.files and not lines and not self._content.gone
        self.added = self._content.added if exact else None
        changed |= not whole or len(files) != self._count
        self.files, self._count, self._whole = files, len(files), True
        return changed

    def _find_odd(self) -> str:
        parts = [part for part in (self._content, *self._lines.values()) if part is not None]
        odd = next((name for part in parts for name in part.odd), "")
        return f"{odd!a}: the file's name is not UTF-8: rename it" if odd else ""

    def _look_at_lines(self, folders: Iterable[str]) -> "list[_Folder]":
        """Folders of the lines of a scan, in order."""
        names = _sorted([name for name in folders if name[-1].isdigit()])
        self._lines = {name: self._lines.get(name) or _Folder(f"{Path(self._source) / name}") for name in names}
        for line in self._lines.values():
            line.look()
        lines = {name: line for name, line in self._lines.items() if line.names}
        stems = {re.sub(r"\d+$", "", name) for name in lines}
        if len(stems) > 1:
            scans = ", ".join(sorted(stems))
            raise InputError(f"{self._source}: sub-folders of {len(stems)} scans ({scans}): give one's glob")
        return list(lines.values())

    def _chosen(self, folders: "Sequence[_Folder]") -> list[str]:
        kinds = sum((folder.kinds for folder in folders), Counter[str]())
        if not kinds and (odd := self._find_odd()):
            raise InputError(odd)
        if not kinds:
            raise EmptyError(f"{self._source}: no frames in it ({', '.join(sorted(SUFFIXES))})")
        if len(kinds) > 1:
            ordered = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
            found = ", ".join(f"{number} {suffix}" for suffix, number in ordered)
            raise InputError(
                f"{self._source}: several kinds of frames ({found}): choose one with a glob, as "
                f"{self._source}/*{max(kinds)}"
            )
        files = folders[0].names if len(folders) == 1 else [name for folder in folders for name in folder.names]
        return [name for name in files if name.endswith(MASTER)] or files if ".h5" in kinds else files


class _Folder:
    """One folder: paths of its frames in natural order, how many of each kind, and its folders."""

    def __init__(self, path: str) -> None:
        self.names: list[str] = []
        self.kinds: Counter[str] = Counter()
        self.folders: set[str] = set()
        self.odd: list[str] = []
        self.changed = self.gone = False
        self.added: list[str] = []
        self._path = path
        self._before = str(Path(path) / "x")[:-1]
        self._known: set[str] = set()

    def look(self) -> bool:
        try:
            there = os.listdir(self._path)  # noqa: PTH208  nothing but names, of which most are known
        except OSError as error:
            raise InputError(f"{self._path}: folder cannot be read: {error.strerror}") from error
        new = [name for name in there if name not in self._known]
        gone = len(self._known) + len(new) > len(there)
        if gone:
            self._known = set(there)
            self.folders &= self._known
            self.odd = [name for name in self.odd if name in self._known]
            start = len(self._before)
            self.names = [name for name in self.names if name[start:] in self._known]
        shown = [name for name in new if not name.startswith(".")]
        frames = [name for name in shown if is_frame(name) and not _odd(name)]
        folders = [name for name in shown if not is_frame(name) and is_folder(f"{self._before}{name}")]
        self.folders.update(name for name in folders if not _odd(name))
        self.added = [self._before + name for name in frames]
        add_in_order(self.names, self.added, start=len(self._before))
        self.odd += [name for name in shown if _odd(name) and (is_frame(name) or self._is_line(name))]
        if gone:
            self.kinds = Counter(map(suffix_of, self.names))
        else:
            self.kinds.update(map(suffix_of, frames))
        self._known.update(new)
        self.gone, self.changed = gone, gone or bool(new)
        return self.changed

    def _is_line(self, name: str) -> bool:
        """Whether a name is that of a line of a scan, where there are no frames beside it."""
        return not self.names and name[-1].isdigit() and is_folder(f"{self._before}{name}")


class _Matches:
    """Files that a glob matches, in natural order: those that are frames, or all where none is."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._frames: list[str] = []
        self._others: list[str] = []
        self.gone = False
        self.added: list[str] = []
        self.odd: list[str] = []
        self._known: set[str] = set()

    @property
    def files(self) -> list[str]:
        return self._frames or self._others

    def look(self) -> bool:
        if not glob.has_magic(self._pattern):
            missing = self._pattern or "source"
            raise EmptyError(f"{missing}: no such file or folder{did_you_mean(Path(missing))}")
        found = list(set(_matches(self._pattern)))
        new = [name for name in found if name not in self._known]
        gone = len(self._known) + len(new) > len(found)
        if gone:
            self._known = set(found)
            self.odd = [name for name in self.odd if name in self._known]
            self._frames = [name for name in self._frames if name in self._known]
            self._others = [name for name in self._others if name in self._known]
        files = [name for name in new if not is_folder(name) and not _odd(name)]
        others = [name for name in files if not is_frame(name)]
        frames = files if not others else [name for name in files if is_frame(name)]
        add_in_order(self._frames, frames)
        odd = [name for name in new if _odd(name) and not is_folder(name)]
        self.odd += [name for name in odd if is_frame(name) or not self._frames]
        add_in_order(self._others, others)
        self.gone, self.added = gone, frames if self._frames else others
        self._known.update(new)
        if not self.files and self.odd:
            return True  # which is what is to be told
        if not self.files:
            raise EmptyError(f"{self._pattern}: no file matches")
        return gone or bool(new)


def is_folder(path: str) -> bool:
    """Whether it is one; not, for a link to itself or to where nobody may look, of which pathlib makes an error."""
    return os.path.isdir(path)  # noqa: PTH112


def _matches(pattern: str) -> Iterator[str]:
    """What a pattern stands for, `**` being any folders below, each once: links may go round.

    Folders that cannot be read are refused: their frames would be missing without a word.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        for folder in glob.glob(str(Path(pattern).parent)):  # noqa: PTH207
            if is_folder(folder) and not os.access(folder, os.R_OK | os.X_OK):
                raise InputError(f"{folder}: folder cannot be read: no permission")
        yield from glob.glob(pattern)  # noqa: PTH207
        return
    place = parts.index("**")
    head, tail = "/".join(parts[:place]), "/".join(parts[place + 1 :]) or "*"
    for top in glob.glob(head) if head else ["/" if pattern.startswith("/") else "."]:  # noqa: PTH207
        seen: set[str] = set()
        for where, folders, _ in os.walk(top, onerror=_refuse, followlinks=True):
            real = os.path.realpath(where)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from _matches(f"{glob.escape(where)}/{tail}")


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: folder cannot be read: {error.strerror}") from error


def _odd(name: str) -> bool:
    # Names are kept in the store and in the report, which are UTF-8.
    return not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name)


def add_in_order(names: list[str], new: list[str], *, start: int = 0) -> None:
    """Add names to those in natural order, by what follows the first `start` characters."""
    key = _key(start)
    if len(new) * _FEW > len(names):
        names += new
        names.sort(key=key)
    else:
        for name in new:
            bisect.insort(names, name, key=key)


def _key(start: int) -> Callable[[str], tuple[list[tuple[int, int | str]], str]]:
    # The names themselves decide between img_1 and img_01.
    return lambda name: (natural_key(name[start:]), name)


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names, key=_key(0))
