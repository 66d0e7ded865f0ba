"""Files of a folder or of a pattern that may be frames. Listing them again costs only what is new."""

import bisect
import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from laue_dask.errors import InputError
from laue_dask.io.file_kinds import irregular, is_frame, kind_of_content, numbered_stem, suffix_of
from laue_dask.io.line_folders import line_names
from laue_dask.io.path_patterns import understood
from laue_dask.runtime.suggestions import did_you_mean

MASTER_SUFFIX = "_master.h5"
"""End of the name of a file that links those which hold the frames."""

_FULL_SORT_DIVISOR = 8
"""A list is sorted as a whole where more than the like part of it is new."""


class EmptyError(InputError):
    """There are no frames, or not yet."""


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key that takes digits for numbers: img_2 before img_10."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part)) if i % 2 else (0, part) for i, part in enumerate(parts)]


class Folder:
    """One folder: paths of its frames in natural order, how many of each kind, and its folders."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.names: list[str] = []
        self.kinds: Counter[str] = Counter()
        """Of regular files alone."""
        self.folders: set[str] = set()
        self._odd_frames: list[str] = []
        self._odd_lines: list[str] = []
        self.changed = self.gone = False
        self.added: list[str] = []
        self.irregular: dict[str, str] = {}
        """Paths with the name of a frame that are no regular files → what they are."""
        self._numbered: list[str] = []
        """Paths whose suffix is a number."""
        self._numbered_kinds: dict[str, str] = {}
        """Of the first file of each stem of these."""
        self._before = str(Path(path) / "x")[:-1]
        self._known: set[str] = set()

    @property
    def odd(self) -> list[str]:
        """Names that are not UTF-8: of frames, or where there are none, of folders that are lines."""
        return self._odd_frames if self.kinds else self._odd_frames + self._odd_lines

    def look(self) -> bool:
        """List the folder again, and return whether anything came or went."""
        try:
            there = os.listdir(self.path)  # noqa: PTH208  nothing but names, of which most are known
            new = [name for name in there if name not in self._known]
            special = _not_files(self.path, new) if new else {}
        except OSError as error:
            raise InputError(f"{self.path}: folder cannot be read: {error.strerror}") from error
        gone = len(self._known) + len(new) > len(there)
        if gone:
            self._forget(set(there))
        shown = [name for name in new if not name.startswith(".")]
        frames = [name for name in shown if is_frame(name) and not _odd(name)]
        folders = [name for name in shown if special.get(name) == _FOLDER_KIND and not is_frame(name)]
        self.folders.update(name for name in folders if not _odd(name))
        self.added = [self._before + name for name in frames]
        add_in_order(self.names, self.added, start=len(self._before))
        self.irregular |= {self._before + name: special[name] for name in frames if name in special}
        self._numbered += [
            self._before + name
            for name in shown
            if numbered_stem(name) and name not in special and not is_frame(name) and not _odd(name)
        ]
        self._odd_frames += [name for name in shown if _odd(name) and is_frame(name)]
        self._odd_lines += [name for name in shown if _odd(name) and line_names([name]) and name in special]
        if gone:
            self.kinds = Counter(suffix_of(name) for name in self.names if name not in self.irregular)
        else:
            self.kinds.update(suffix_of(name) for name in frames if name not in special)
        self._known.update(new)
        self.gone, self.changed = gone, gone or bool(new)
        return self.changed

    def find_numbered(self) -> dict[str, str]:
        """Return the files whose suffix is a number → their kind; see `by_content`."""
        return by_content(self._numbered, known=self._numbered_kinds)

    def _forget(self, there: set[str]) -> None:
        start = len(self._before)
        self._known = there
        self.folders &= there
        self._odd_frames = [name for name in self._odd_frames if name in there]
        self._odd_lines = [name for name in self._odd_lines if name in there]
        self.names = [name for name in self.names if name[start:] in there]
        self.irregular = {name: what for name, what in self.irregular.items() if name[start:] in there}
        self._numbered = [name for name in self._numbered if name[start:] in there]


class Matches:
    """Files that a pattern matches, in natural order: those that are frames, or all where none is."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._frames: list[str] = []
        self._others: list[str] = []
        self.gone = False
        self.added: list[str] = []
        self.odd: list[str] = []
        self.masters: set[str] = set()
        self._kinds: dict[str, str] = {}
        self._known: set[str] = set()

    @property
    def files(self) -> list[str]:
        """Those that count: frames by their names, or by their content, or all."""
        return self._frames or in_order(by_content(self._others, known=self._kinds)) or self._others

    def look(self) -> bool:
        """Match the pattern again, and return whether anything came or went."""
        pattern = understood(self._source)
        if pattern is None:
            missing = self._source or "source"
            if special := irregular(self._source):
                raise EmptyError(f"{missing}: is {special}, no file or folder of frames")
            raise EmptyError(f"{missing}: there is no such file or folder{did_you_mean(Path(missing))}")
        found = pattern.matches(_matches)
        new = [name for name in found if name not in self._known]
        gone = len(self._known) + len(new) > len(found)
        if gone:
            self._known = set(found)
            self.odd = [name for name in self.odd if name in self._known]
            self._frames = [name for name in self._frames if name in self._known]
            self._others = [name for name in self._others if name in self._known]
            self.masters &= self._known
        folders = {name for name in new if is_folder(name)}
        files = [name for name in new if name not in folders and not _odd(name)]
        others = [name for name in files if not is_frame(name)]
        frames = files if not others else [name for name in files if is_frame(name)]
        add_in_order(self._frames, frames)
        self.masters.update(name for name in frames if name.endswith(MASTER_SUFFIX))
        odd = [name for name in new if _odd(name) and name not in folders]
        self.odd += [name for name in odd if is_frame(name) or not self._frames]
        add_in_order(self._others, others)
        self.gone, self.added = gone, frames if self._frames else others
        self._known.update(new)
        there = self._frames or self._others
        if not there and self.odd:
            return True  # which is what is to be told
        if not there and found:
            raise EmptyError(
                f"{self._source}: matches folders and no files: give one of the folders, or add /* for their files"
            )
        if not there:
            raise EmptyError(f"{self._source}: no file matches")
        return gone or bool(new)


_FOLDER_KIND = "a folder"

_MAX_SINGLE_LOOKUPS = 64
"""Names that are looked up one by one, up to which: of more, the folder is read once with what they are."""


def _not_files(folder: str, names: Sequence[str]) -> dict[str, str]:
    """Which names in a folder are no regular files, and what they are; links are followed.

    Of 100,000 names the folder itself tells what they are; only links are looked up, and of links that have the name of
    a frame only those among the first: the others say so when they are read.
    """
    wanted = set(names)
    if len(names) <= _MAX_SINGLE_LOOKUPS:
        return {name: what for name in names if (what := irregular(f"{folder}/{name}"))}
    special: dict[str, str] = {}
    linked = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name not in wanted or entry.is_file(follow_symlinks=False):
                continue
            if entry.is_symlink() and is_frame(entry.name):
                linked += 1
                if linked > _MAX_SINGLE_LOOKUPS:
                    continue
            if what := irregular(entry.path):
                special[entry.name] = what
    return special


def by_content(paths: Iterable[str], *, known: dict[str, str] | None = None) -> dict[str, str]:
    """Return the files whose suffix is a number, as `scan.0001`, → their kind by the content of the first of each stem.

    Those of a stem whose first file is of no known kind, as logs, are left out. `known` keeps the kind of each stem.
    """
    kinds = {} if known is None else known
    found: dict[str, str] = {}
    for path in in_order(path for path in paths if numbered_stem(path)):
        stem = numbered_stem(path)
        if stem not in kinds and (kind := kind_of_content(path)):
            kinds[stem] = kind
        if stem in kinds:
            found[path] = kinds[stem]
    return found


def is_folder(path: str) -> bool:
    """Return whether a path is a folder; False for a link that leads to itself or to where nobody may look."""
    return os.path.isdir(path)  # noqa: PTH112


def _matches(pattern: str) -> Iterator[str]:
    """What a pattern stands for, `**` being any folders below, each once: links may go round.

    Folders that cannot be read are refused: their frames would be missing without a word.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        for folder in glob.glob(str(Path(pattern).parent)):  # noqa: PTH207
            if is_folder(folder) and not os.access(folder, os.R_OK | os.X_OK):
                raise InputError(f"{folder}: you have no permission to read this folder")
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
    if len(new) * _FULL_SORT_DIVISOR > len(names):
        names += new
        names.sort(key=key)
    else:
        for name in new:
            bisect.insort(names, name, key=key)


def _key(start: int) -> Callable[[str], tuple[list[tuple[int, int | str]], str]]:
    # The names themselves decide between img_1 and img_01.
    return lambda name: (natural_key(name[start:]), name)


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names in their natural order."""
    return sorted(names, key=_key(0))
