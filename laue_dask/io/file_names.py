"""What file names say of a scan: their numbers, what these count, and which files do not belong to the scan.

Pure: no file is opened. Every run of digits in a name, and in the folders that differ, is a field. Files whose names
are alike but for their fields are a family; the scan is the largest one, and the few files beside it are left out.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import InputError
from laue_dask.io.listing import PACKED_SUFFIXES, is_frame
from laue_dask.io.time_stamps import are_times

Numbers = NDArray[np.int64]

MAX_OTHER_NAMES_SHARE = 0.15
"""Files of other names are left out up to this share of the scan's; of more nobody knows which are the scan."""

MIN_RIVAL_SHARE = 0.5
"""A family of files this large beside the scan's may be a scan itself, whatever it is called."""

MIN_COUNTER_DENSITY = 0.5
"""Share of the numbers between the first and the last that are there where a field counts frames."""

MIN_GRID_FILL_SHARE = 0.5
"""Share of all pairs of two fields that are there where they are rows and columns."""

MIN_DISTINCT_SHARE = 0.8
"""Share of the files, at least, that have numbers of their own where a few have another's."""

MAX_NUMBER_DIGITS = 18
"""Digits: longer ones are no count, and no 64-bit integer."""

_ODD_WORDS = frozenset(
    [
        "dark",
        "darks",
        "darkfield",
        "flat",
        "flats",
        "flatfield",
        "background",
        "backgrounds",
        "bg",
        "bgd",
        "bkg",
        "test",
        "tests",
        "average",
        "averaged",
        "avg",
        "mean",
        "median",
        "sum",
        "summed",
        "max",
        "maximum",
        "min",
        "minimum",
        "std",
        "mask",
        "reference",
        "ref",
        "empty",
        "blank",
        "bias",
        "copy",
        "temp",
        "tmp",
        "preview",
        "thumb",
        "thumbnail",
        "snapshot",
        "snap",
        "calib",
        "calibration",
        "align",
        "alignment",
        "overview",
        "backup",
        "bak",
        "old",
        "bad",
    ]
)
"""Words in names of images that are taken beside a scan, or made of it."""

_ROW_WORDS = frozenset(["r", "row", "rows", "y", "iy", "ny", "line", "lines", "l", "ln"])
_COLUMN_WORDS = frozenset(["c", "col", "cols", "column", "columns", "x", "ix", "nx"])
_FRAME_WORDS = frozenset(["point", "points", "pt", "pts", "frame", "frames", "shot", "shots"])
_SCAN_WORDS = frozenset(
    [
        "scan",
        "scans",
        "s",
        "run",
        "runs",
        "sample",
        "map",
        "maps",
        "dataset",
        "data",
        "series",
        "exp",
        "experiment",
        "set",
    ]
)

_FOLDERS_SOURCE = "the folders and the numbers in them"
_LINES_SOURCE = "the line numbers in the names"

_COPY_SUFFIX = re.compile(
    r"(?:\s*\(\d+\)|\s*\((?:\d+\w*\s+|another\s+)?copy\)|[\s_.-]+copy(?:[\s_.-]*\d+)?|~|[\s_.-]+bak)$", re.IGNORECASE
)
_COPY_PREFIX = re.compile(r"^copy(?: \(\d+\))? of ", re.IGNORECASE)
_DIGITS = re.compile(r"(\d+)")
_LAST_WORD = re.compile(r"([A-Za-z]+)[^A-Za-z]*$")
_SEPARATORS = re.compile(r"([-_. /()]+)")


@dataclass(frozen=True)
class Names:
    """What is known from file names.

    Attributes
    ----------
    kept
        Files of the scan, in the order in which they were given.
    left_out
        Other files, and why each is none of the scan.
    pattern
        How the scan's files are called, `#` standing for what differs.
    counter : (kept,) int64
        A number that differs from file to file and counts them; None where there is none.
    row, column : (kept,) int64
        Numbers of rows and of columns; None where there are none.
    line : (kept,) int64
        Number of the line, beside a `counter` that runs through all lines; None where there is none.
    sure
        Whether `row` and `column` are called so, or are folders and the files in them; otherwise they may be something
        else, as a scan's number and a frame's.
    explicit
        Whether `column` is called so: then it is the column, whichever way the line was gone; otherwise it counts the
        line's frames.
    in_folders
        Whether the rows are folders, whose files are numbered as they were taken.
    counts_line
        Whether `column` is called what counts the frames of a line as they were taken.
    words
        What the rows and columns are read from, for people.
    globs
        Of the files of the first two rows, should they be two scans.
    timed
        Whether `counter` is the time at which a frame was taken: it orders the frames, and does not count them.
    """

    kept: list[int]
    left_out: dict[int, str] = field(default_factory=dict)
    pattern: str = ""
    counter: Numbers | None = None
    row: Numbers | None = None
    column: Numbers | None = None
    line: Numbers | None = None
    sure: bool = False
    explicit: bool = False
    in_folders: bool = False
    counts_line: bool = False
    words: str = ""
    globs: tuple[str, ...] = ()
    timed: bool = False


@dataclass(frozen=True)
class _Name:
    """A file's name without what says how it is packed: texts and numbers in turn."""

    place: int
    parts: tuple[str, ...]

    @property
    def skeleton(self) -> tuple[str, ...]:
        return self.parts[::2]

    @property
    def pattern(self) -> str:
        return "#".join(self.skeleton)


@dataclass(frozen=True)
class _Field:
    """One run of digits of all names of a family."""

    place: int
    values: Numbers
    word: str
    """The letters before it."""
    in_folder: bool
    is_time: bool = False

    @property
    def unique(self) -> bool:
        return len(np.unique(self.values)) == len(self.values)

    @property
    def rank(self) -> tuple[bool, int]:
        """Fields that count come before others, small numbers before large ones."""
        return self.density < MIN_COUNTER_DENSITY, int(self.values.max())

    @property
    def density(self) -> float:
        values = np.unique(self.values)
        step = max(1, int(np.gcd.reduce(np.diff(values)))) if len(values) > 1 else 1
        return len(values) / ((int(values[-1]) - int(values[0])) // step + 1)


def read_names(files: Sequence[str], *, listed: bool = False) -> Names:
    """Find the numbers in file names, and the files whose names are not the scan's.

    Parameters
    ----------
    files
        Paths, each once.
    listed
        Whether somebody wrote them down one by one: then all of them are the scan's.

    Raises
    ------
    InputError
        Two files have the same number and neither is clearly a copy, or it is not clear which files are the scan.
    """
    if len(files) < 2:
        return Names(list(range(len(files))), pattern=_base(files[0]) if files else "", counter=_only_number(files))
    common = _common_folder(files)
    names = [_named(place, file[len(common) :]) for place, file in enumerate(files)]
    names, left_out = _without_packed_twins(names, files)
    family, others = _family(_blurred(names), files, common, listed)
    left_out |= others
    pattern = family[0].pattern
    fields, family, odd = _fields(family, listed)
    left_out |= odd
    found = _roles(fields, family, files, common, strict=False)
    if found is None and not listed:
        if restricted := _majority(fields, family):
            family, fields, more = restricted
            left_out |= more
        found = _roles(fields, family, files, common, strict=True)
    kept = [name.place for name in family]
    return found(kept, left_out, pattern) if found else Names(kept, left_out, pattern)


def describe_left_out(left_out: Iterable[str], *, most: int = 3) -> str:
    """Return the names of files for a line: the first few, and how many more there are."""
    names = [_base(one) for one in left_out]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


# Families


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _only_number(files: Sequence[str]) -> Numbers | None:
    """The last number of the only file's name."""
    found = _DIGITS.findall(_stem(_base(files[0]))) if files else []
    return np.array([int(found[-1])], dtype=np.int64) if found and len(found[-1]) <= MAX_NUMBER_DIGITS else None


def _stem(name: str) -> str:
    stem = name
    for _ in range(2):
        if is_frame(stem) or stem.lower().endswith(PACKED_SUFFIXES):
            stem = os.path.splitext(stem)[0]  # noqa: PTH122  of 100,000 names
    return stem


def _common_folder(files: Sequence[str]) -> str:
    """What all paths begin with, up to the last `/` that they share."""
    folders = {file.rpartition("/")[0] for file in files}
    first, last = f"{min(folders)}/", f"{max(folders)}/"
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, same) + 1] if any(folders) else ""


def _named(place: int, name: str) -> _Name:
    if name.lower().endswith(PACKED_SUFFIXES):
        name = os.path.splitext(name)[0]  # noqa: PTH122
    if name.lower().endswith(".tiff"):
        name = name[:-1]
    return _Name(place, tuple(_DIGITS.split(name)))


def _without_packed_twins(names: list[_Name], files: Sequence[str]) -> tuple[list[_Name], dict[int, str]]:
    """One of each file that lies packed beside itself: the one that is not."""
    alike: dict[tuple[str, ...], list[_Name]] = defaultdict(list)
    for name in names:
        alike[name.parts].append(name)
    if len(alike) == len(names):
        return names, {}
    left_out: dict[int, str] = {}
    for group in alike.values():
        plain = [name for name in group if not files[name.place].lower().endswith(PACKED_SUFFIXES)]
        if len(group) > 1 and len(plain) == 1:
            twin = _base(files[plain[0].place])
            left_out |= {name.place: f"is {twin} packed" for name in group if name is not plain[0]}
        elif len(group) > 1:
            raise InputError(_same(files[group[0].place], files[group[1].place]))
    return [name for name in names if name.place not in left_out], left_out


def _same(one: str, other: str) -> str:
    if one == other:
        return f"{one}: is listed twice: leave one out, or give --insist"
    return f"{_base(one)} and {_base(other)} have the same number: take away the one that is not of the scan ({one})"


def _blurred(names: list[_Name]) -> list[_Name]:
    """Names whose parts that differ from file to file in letters, as a hash does, are no fields any more."""
    skeletons = Counter(name.skeleton for name in names)
    if len(skeletons) * 4 <= len(names) or len(skeletons) < 4:
        return names
    words = [_SEPARATORS.split("".join(name.parts)) for name in names]
    length, usual = Counter(map(len, words)).most_common(1)[0]
    if usual * 2 < len(names):
        return names
    regular = [one for one in words if len(one) == length]
    shapes = [len({_DIGITS.sub("#", one[at]) for one in regular}) for at in range(length)]
    noisy = {at for at, count in enumerate(shapes) if count * 4 > len(names) and count >= 4}
    return [
        _Name(name.place, tuple(_DIGITS.split("".join("*" if at in noisy else part for at, part in enumerate(one)))))
        if len(one) == length
        else name
        for name, one in zip(names, words, strict=True)
    ]


def _family(names: list[_Name], files: Sequence[str], common: str, listed: bool) -> tuple[list[_Name], dict[int, str]]:
    """The scan's files, and why the others are none."""
    families: dict[tuple[str, ...], list[_Name]] = defaultdict(list)
    for name in names:
        families[name.skeleton].append(name)
    if len(families) == 1:
        return names, {}
    if listed:
        return [_Name(name.place, ("",)) for name in names], {}
    ordered = sorted(families.values(), key=len, reverse=True)
    main = ordered[0]
    if _is_odd(main):
        main = next((one for one in ordered if not _is_odd(one) and len(one) * 2 >= len(main)), main)
    left_out: dict[int, str] = {}
    unclear = 0
    for other in ordered:
        if other is main:
            continue
        clear = _is_odd(other) and not _is_odd(main)
        unclear += 0 if clear else len(other)
        if len(other) > max(1, MIN_RIVAL_SHARE * len(main)) or unclear > max(1, MAX_OTHER_NAMES_SHARE * len(main)):
            raise InputError(_two_kinds(main, other, files, common))
        for name in other:
            left_out[name.place] = _why_odd(name, main[0])
    return main, left_out


def _words(name: _Name) -> set[str]:
    return set(re.findall(r"[a-z]+", _stem(" ".join(name.skeleton)).lower()))


def _is_copy(name: _Name) -> bool:
    base = _stem(_base("".join(name.parts)))
    return bool(_COPY_SUFFIX.search(base) or _COPY_PREFIX.search(base))


def _is_odd(family: list[_Name]) -> bool:
    return bool(_words(family[0]) & _ODD_WORDS) or _is_copy(family[0])


def _why_odd(name: _Name, main: _Name) -> str:
    if _is_copy(name) and not _is_copy(main):
        return "is a copy by its name"
    return f"is not called {main.pattern}"


def _two_kinds(main: list[_Name], other: list[_Name], files: Sequence[str], common: str) -> str:
    def glob(family: list[_Name]) -> str:
        return f"{common}{'*'.join(family[0].skeleton)}"

    return (
        f"{len(main)} files are called {main[0].pattern} and {len(other)} {other[0].pattern}: which of them are "
        f"the scan? "
        f"Give their glob, '{glob(main)}' or '{glob(other)}'"
    )


# Fields


def _fields(family: list[_Name], listed: bool) -> tuple[list[_Field], list[_Name], dict[int, str]]:
    """Fields that differ, of a family's files without those whose numbers are written otherwise than the others'."""
    count = len(family[0].parts) // 2
    texts = [[name.parts[2 * i + 1] for name in family] for i in range(count)]
    varying = [i for i in range(count) if len(set(texts[i])) > 1 and max(map(len, texts[i])) <= MAX_NUMBER_DIGITS]
    odd: dict[int, str] = {}
    for i in varying:
        wrong = _written_otherwise(texts[i])
        if not listed and 0 < len(wrong) <= max(1, MAX_OTHER_NAMES_SHARE * len(family)):
            odd |= {family[j].place: "its number is not written as the others' are" for j in wrong}
    if odd:
        family = [name for name in family if name.place not in odd]
        return (*_fields(family, listed)[:2], odd)
    fields: list[_Field] = []
    for i in varying:
        before = family[0].parts[2 * i]
        word = _LAST_WORD.search(before.rpartition("/")[2])
        values = np.array([int(text) for text in texts[i]], dtype=np.int64)
        in_folder = any("/" in text for text in family[0].parts[2 * i + 2 :: 2])
        date = texts[i - 1][0] if i and i - 1 not in varying else ""
        one = _Field(i, values, word[1].lower() if word else "", in_folder, are_times(texts[i], date, before))
        if not any(len(np.unique(one.values - known.values)) == 1 for known in fields):
            fields.append(one)
    return fields, family, odd


def _written_otherwise(texts: Sequence[str]) -> list[int]:
    """Which texts have another number of leading zeros than most."""
    lengths = Counter(len(text) for text in texts if text[0] == "0" and len(text) > 1)
    bare = [len(str(int(text))) for text in texts]

    def wrong(width: int) -> list[int]:
        return [i for i, text in enumerate(texts) if len(text) != max(width, bare[i])]

    return min((wrong(width) for width in (1, *sorted(lengths))), key=len)


def _majority(fields: list[_Field], family: list[_Name]) -> tuple[list[_Name], list[_Field], dict[int, str]] | None:
    """The scan without a few files that differ in a field that is the same in all others; None where there is none."""
    for one in fields:
        values, counts = np.unique(one.values, return_counts=True)
        usual = values[counts.argmax()]
        odd = np.flatnonzero(one.values != usual)
        if 0 < len(odd) <= max(1, MAX_OTHER_NAMES_SHARE * counts.max()):
            left_out = {family[i].place: f"has another number than {usual} where all others have it" for i in odd}
            kept = [name for name in family if name.place not in left_out]
            fields, kept, more = _fields(kept, listed=False)
            return kept, fields, left_out | more
    return None


# Roles


class _Found:
    """What the fields count; becomes `Names` when it is known which files they are of."""

    def __init__(self, **roles: object) -> None:
        self._roles = roles

    def __call__(self, kept: list[int], left_out: dict[int, str], pattern: str) -> Names:
        return Names(kept, left_out, pattern, **self._roles)  # type: ignore[arg-type]


def _roles(
    fields: list[_Field], family: list[_Name], files: Sequence[str], common: str, *, strict: bool
) -> _Found | None:
    """What the fields count; None where no field, nor two of them together, tell all files apart.

    Files that have the same number are refused if `strict`.
    """
    if len(family) < 2:
        return _Found(counter=_only_number([files[name.place] for name in family]))
    counter = min((one for one in fields if one.unique), key=lambda one: one.rank, default=None)
    dense = counter is not None and counter.density >= MIN_COUNTER_DENSITY
    pair = _pair([one for one in fields if one is not counter or not dense])
    if not dense and (pair is None or not pair[2]):
        for one in fields:
            if one.density >= MIN_COUNTER_DENSITY and MIN_DISTINCT_SHARE * len(family) < len(
                np.unique(one.values)
            ) < len(family):
                if strict:
                    raise InputError(_duplicates([one], family, files))
                return None
    count = counter.values if counter is not None else None
    lines = [one for one in fields if not one.unique and (one.in_folder or one.word in _ROW_WORDS)]
    if pair is not None and (pair[2] or not dense):
        row, column, sure = pair
        words = _FOLDERS_SOURCE if row.in_folder else "the row and column numbers in the names"
        globs = _globs_of(row, fields, family, common)
        through = count if dense else None
        explicit = column.word in _COLUMN_WORDS
        return _Found(
            row=row.values,
            column=column.values,
            counter=through,
            sure=sure,
            explicit=explicit,
            in_folders=row.in_folder,
            counts_line=column.word in _FRAME_WORDS,
            words=words,
            globs=globs,
        )
    if counter is None:
        if strict and (duplicates := _duplicates(fields, family, files)):
            raise InputError(duplicates)
        return None
    if lines and dense:
        line = lines[0]
        words = _FOLDERS_SOURCE if line.in_folder else _LINES_SOURCE
        sure, globs = line.word not in _SCAN_WORDS, _globs_of(line, fields, family, common)
        roles = {"counter": count, "line": line.values, "sure": sure, "in_folders": line.in_folder}
        return _Found(**roles, words=words, globs=globs)
    if pair is not None:
        row, column, _ = pair
        return _Found(counter=count, row=row.values, column=column.values, words="two numbers in the names")
    return _Found(counter=count, timed=counter.is_time)


def _globs_of(row: _Field, fields: Sequence[_Field], family: list[_Name], common: str) -> tuple[str, ...]:
    """Globs of the files of the first two rows."""
    found = []
    for value in np.unique(row.values)[:2]:
        name = family[int(np.flatnonzero(row.values == value)[0])]
        parts = list(name.parts)
        for one in fields:
            if one is not row:
                parts[2 * one.place + 1] = "*"
        found.append(common + "".join(parts))
    return tuple(found)


def _pair(fields: Sequence[_Field]) -> tuple[_Field, _Field, bool] | None:
    """Rows and columns among the fields, and whether that is sure."""
    found: list[tuple[tuple[bool, float], _Field, _Field, bool]] = []
    for row, column in permutations(fields, 2):
        sure = _are_named(row, column)
        if not sure and next(one for one in fields if one is row or one is column) is not row:
            continue
        if _are_named(column, row):
            continue
        y, x = np.unique(row.values), np.unique(column.values)
        if len(y) < 2 or len(x) < 2:
            continue
        cells = np.searchsorted(y, row.values) * len(x) + np.searchsorted(x, column.values)
        unique = len(np.unique(cells)) == len(cells)
        fill = len(cells) / (len(y) * len(x))
        if unique and fill >= MIN_GRID_FILL_SHARE:
            found.append(((sure, fill), row, column, sure))
    if not found:
        return None
    _, row, column, sure = max(found, key=lambda one: one[0])
    return row, column, sure


def _are_named(row: _Field, column: _Field) -> bool:
    if row.word in _ROW_WORDS and column.word not in _ROW_WORDS:
        return True
    return row.in_folder and not column.in_folder and row.word not in _SCAN_WORDS


def _duplicates(fields: list[_Field], family: list[_Name], files: Sequence[str]) -> str:
    """Which two files have the same numbers in all fields but how they are written; empty where none have."""
    seen: dict[tuple[int, ...], int] = {}
    table = np.stack([one.values for one in fields], axis=1) if fields else np.zeros((len(family), 0), np.int64)
    for i, row in enumerate(table.tolist()):
        if (before := seen.setdefault(tuple(row), i)) != i:
            return _same(files[family[before].place], files[family[i].place])
    return ""
