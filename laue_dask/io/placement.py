"""Find the point of the grid of each frame, from all that is known of it. Pure: it opens no file.

What is known are the numbers in the files' names and folders, how many frames each file holds, what an HDF5 file says
of its grid, the stage positions in the headers, and what the user gives. Where they disagree, or leave a frame's place
open, an error says so: no frame is put where it may not belong.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import InputError
from laue_dask.io.file_names import Names, Numbers, describe_left_out, read_names
from laue_dask.io.frames import FrameRef
from laue_dask.io.geometry import INSIST_HINT, Places, Sampler, ScanGrid, resolve_grid, shapes_of
from laue_dask.io.listing import natural_key
from laue_dask.io.numbering import Count, UnclearError, count_axis, count_points, solve_lines
from laue_dask.io.positions import Order, Positions, acquisition
from laue_dask.io.scan_store import ScanStore

MEASURED_AGAIN_REASON = "a later frame was taken at the same stage position"

Shape = tuple[int, int]


@dataclass(frozen=True)
class Placement(ScanGrid):
    """A scan's grid, and the frames that are none of it.

    Attributes
    ----------
    left_out
        Numbers of the frames that belong to no point, and why; their `pattern` is −1, as is that of frames whose point
        was measured again.
    first
        Which frame a line of the grid begins with, for people.
    outside
        Numbers of the frames of the scan that are not in the part that is taken of it; their `pattern` is −1.
    part
        What is taken of which grid, as `io.scan_part.take_part` has it; None where it is the whole.
    assumed
        Number that was taken for the first point's only because it was the first that was there; None where it is
        certain.
    """

    left_out: dict[int, str] = field(default_factory=dict)
    first: str = ""
    outside: frozenset[int] = frozenset()
    part: dict[str, Any] | None = None
    assumed: int | None = None

    @property
    def missing(self) -> int:
        """Points of the grid without a frame."""
        return self.shape[0] * self.shape[1] - int(np.count_nonzero(self.pattern >= 0))

    @property
    def line(self) -> str:
        """One line for people: what the grid is, how that is known, and how to check it."""
        first = f"; {self.first}" if self.first else ""
        return f"grid: {self.how}{first}{_without_frame(self.missing)}"

    def warning(self, refs: Sequence[FrameRef]) -> str:
        """Return one line that names the files that are left out; empty where none is."""
        if not self.left_out:
            return ""
        names = list(dict.fromkeys(refs[i].path for i in self.left_out))
        reasons = list(dict.fromkeys(self.left_out.values()))
        why = reasons[0] if len(reasons) == 1 else f"{reasons[0]}, …"
        count = f"{len(names)} files that are" if len(names) > 1 else "1 file that is"
        return f"left out {count} not of the scan: {describe_left_out(names)} ({why})"

    def as_json(self, refs: Sequence[FrameRef]) -> dict[str, Any]:
        """Return the plain values for the record of a run."""
        return {
            **({"part": self.part} if self.part else {}),
            "shape": list(self.shape),
            "order": self.order,
            "fast_axis": self.fast_axis,
            "how": self.how,
            "line": self.line,
            "missing": self.missing,
            "left_out": [{"source": str(refs[i]), "reason": reason} for i, reason in self.left_out.items()],
        }


def place_frames(
    refs: Sequence[FrameRef],
    *,
    shape: Shape | None = None,
    order: Order | None = None,
    first_number: int | None = None,
    insist: bool = False,
    aborted: bool = False,
    positions: Positions | Sampler | None = None,
    grid_hint: Shape | None = None,
    listed: bool = False,
    from_first: bool = False,
) -> Placement:
    """Find the point of every frame.

    Parameters
    ----------
    refs
        Frames as `io.frames.discover` gives them.
    shape, order, first_number
        As the user gives them: (ny, nx), order of the lines, number of the first file (or row, or column).
    insist
        Whether shape and order are taken as given, whatever headers and names say.
    aborted
        Whether fewer than half of the points may be there.
    positions : (n_frames, 2)
        Stage coordinates (y, x) from the headers, None or NaN where unknown; or what reads those of some frames, by
        their numbers. Of a large scan with a known grid only some are read.
    grid_hint
        (ny, nx) that the file of the frames says of itself; its frames are in the order of its points.
    listed
        Whether somebody wrote the files down one by one: then their order is that of the acquisition.
    from_first
        Whether the first number that is there is taken for the first point's, as while a scan is measured.

    Raises
    ------
    InputError
        What is known disagrees, or does not tell all; one line that names both and says what to do.
    """
    if not refs:
        raise InputError("there are no frames")
    stacks = _Stacks.of(refs)
    names = read_names(stacks.files, listed=listed) if not insist or not listed else _unnamed(stacks.files)
    kept = np.concatenate([np.arange(*stacks.spans[file]) for file in names.kept]).astype(np.int64)
    left_out = {i: reason for file, reason in sorted(names.left_out.items()) for i in range(*stacks.spans[file])}
    known = _Known(stacks, names, shape, order, first_number, insist, grid_hint, listed, from_first)
    found_shape, given, places = known.weigh()
    if given != "--shape" and not insist:
        aborted = True  # nobody has given a number of points that could be wrong
    try:
        grid = resolve_grid(
            len(kept),
            shape=found_shape,
            order=order,
            positions=_only(positions, kept, len(refs)),
            places=places,
            given=given,
            proposals=known.proposals,
            aborted=aborted,
            insist=insist,
        )
    except InputError as error:
        if left_out and "frames" in str(error):
            names_left = describe_left_out([refs[i].path for i in left_out])
            raise InputError(f"{error} (left out as none of the scan: {names_left})") from error
        raise
    pattern = np.full(len(refs), -1, dtype=np.int64)
    pattern[kept] = grid.pattern
    first = _first_of_second_line(refs, pattern, grid)
    told = (grid.shape, grid.order, pattern, grid.position, grid.how, grid.fast_axis)
    return Placement(*told, left_out=left_out, first=first, assumed=known.assumed)


def recorded_placement(store: ScanStore) -> dict[str, Any]:
    """Return what a scan store says of its grid, as `Placement.as_json`; of a store of before, what can be told from
    it.
    """
    told = store.provenance.get("placement")
    if isinstance(told, dict) and {"line", "how", "missing", "left_out"} <= set(told):
        return dict(told)
    missing = sum(not name for name in store.source)
    how = str(store.provenance.get("grid") or f"{store.scan_shape[0]} × {store.scan_shape[1]}, {store.order}")
    return {
        "shape": list(store.scan_shape),
        "order": store.order,
        "fast_axis": str(store.root.attrs.get("fast_axis", "x")),
        "how": how,
        "line": f"grid: {how}{_without_frame(missing)}",
        "missing": missing,
        "left_out": [],
    }


def _without_frame(missing: int) -> str:
    return f"; {missing} point{'s' if missing > 1 else ''} without a frame" if missing else ""


def frames_of_scan(refs: Sequence[FrameRef], *, listed: bool = False) -> list[FrameRef]:
    """Return those of the frames that are the scan's by their names; see `place_frames`."""
    stacks = _Stacks.of(refs)
    names = read_names(stacks.files, listed=listed)
    return [ref for file in names.kept for ref in refs[slice(*stacks.spans[file])]] if names.left_out else list(refs)


def _only(positions: Positions | Sampler | None, kept: NDArray[np.int64], n_frames: int) -> Positions | Sampler | None:
    """Positions of the frames that are kept."""
    if positions is None or len(kept) == n_frames:
        return positions
    if callable(positions):
        read = positions
        return lambda chosen: read([int(kept[i]) for i in chosen])
    return [positions[i] for i in kept.tolist()]


def _unnamed(files: Sequence[str]) -> Names:
    return Names(list(range(len(files))))


def _first_of_second_line(refs: Sequence[FrameRef], pattern: NDArray[np.int64], grid: ScanGrid) -> str:
    """Which frame the second line of a grid begins with."""
    ny, nx = grid.shape
    if min(ny, nx) < 2:
        return ""
    length, line = (nx, "row") if grid.fast_axis == "x" else (ny, "column")
    of = np.full(ny * nx, -1, dtype=np.int64)
    of[pattern[pattern >= 0]] = np.flatnonzero(pattern >= 0)
    second = of[acquisition(grid.shape, grid.order, grid.fast_axis)[length : 2 * length]]
    there = np.flatnonzero(second >= 0)
    if not len(there):
        return f"{line} 2 has no frame"
    ref = refs[int(second[there[0]])]
    index = "" if ref.index is None else f"[{ref.index}]"
    return f"frame {int(there[0]) + 1} of {line} 2 is {ref.path.rpartition('/')[2]}{index}"


@dataclass(frozen=True)
class _Stacks:
    """Files in their order, and which frames each of them holds."""

    files: list[str]
    spans: list[tuple[int, int]]
    inside: NDArray[np.int64]
    """Place of each frame in its file."""

    @classmethod
    def of(cls, refs: Sequence[FrameRef]) -> "_Stacks":
        paths = [ref.path for ref in refs]
        starts = [0, *(i for i in range(1, len(paths)) if paths[i] != paths[i - 1])]
        spans = list(zip(starts, [*starts[1:], len(paths)], strict=True))
        files = [paths[start] for start in starts]
        if len(spans) == len(paths):
            return cls(files, spans, np.zeros(len(paths), dtype=np.int64))
        inside = np.concatenate([cls._inside(refs[start:stop]) for start, stop in spans])
        return cls(files, spans, inside)

    @staticmethod
    def _inside(refs: Sequence[FrameRef]) -> NDArray[np.int64]:
        index = [ref.index for ref in refs]
        if len({ref.dataset for ref in refs}) == 1 and all(one is not None for one in index):
            return np.array(index, dtype=np.int64)
        return np.arange(len(refs), dtype=np.int64)

    def counts(self, files: Sequence[int]) -> NDArray[np.int64]:
        return np.array([self.spans[file][1] - self.spans[file][0] for file in files], dtype=np.int64)


@dataclass
class _Known:
    """What is known of a scan but for its headers, on the way to the places of its frames."""

    stacks: _Stacks
    names: Names
    shape: Shape | None
    order: Order | None
    first_number: int | None
    insist: bool
    grid_hint: Shape | None
    listed: bool
    from_first: bool
    proposals: str = ""
    assumed: int | None = None

    @property
    def _counts(self) -> NDArray[np.int64]:
        return self.stacks.counts(self.names.kept)

    @property
    def _n(self) -> int:
        return int(self._counts.sum())

    @property
    def _axis(self) -> dict[str, Any]:
        return {"first_number": self.first_number, "from_first": self.from_first}

    def weigh(self) -> tuple[Shape | None, str, Places]:
        """Return the shape, what it is known from, and the places of the frames that are kept."""
        if self.grid_hint is not None:
            shape, given = self._agree(self.grid_hint, "the file", exact=True)
            inside = np.concatenate([self.stacks.inside[slice(*self.stacks.spans[i])] for i in self.names.kept])
            return shape, given, Places(acquired=inside)
        if self._counts.max() > 1:
            return self._of_stacks()
        if self.names.row is not None or self.names.line is not None:
            found = self._of_cells()
            if found is not None:
                return found
        return self._of_counter()

    def _agree(self, found: Shape, source: str, *, exact: bool = False) -> tuple[Shape, str]:
        """The given shape where there is one, held against the one that is found."""
        if self.shape is None:
            return found, source
        (a, b), (ny, nx) = found, self.shape
        fits = (a, b) == (ny, nx) or (not exact and ((a <= ny and b == nx) or (a == ny and b <= nx)))
        if not fits and not self.insist:
            raise InputError(
                f"--shape {ny} {nx}, but {source} say{'s' if source == 'the file' else ''} {a} × {b}: "
                f"leave --shape out, or {INSIST_HINT}"
            )
        return self.shape, "--shape" if exact or (a, b) != (ny, nx) else source

    # Rows and columns

    def _of_cells(self) -> tuple[Shape | None, str, Places] | None:
        """Places of rows and columns, where the names tell these."""
        names, ny_nx = self.names, self.shape
        if names.row is not None and names.column is not None:
            row, column = names.row, names.column
            span = (len(np.unique(row)), len(np.unique(column)))
            if not names.sure and (self.shape is None or _spans(row, column) != self.shape):
                if names.counter is not None or self.insist:
                    return None
                if self.shape is None:
                    return self._of_headers(self._may_be_scans(span))
                raise InputError(self._may_be_scans(span))
            rows = self._count(row, None if ny_nx is None else ny_nx[0], "rows")
            columns = self._count(column, None if ny_nx is None else ny_nx[1], "columns")
        else:
            if names.line is None or names.counter is None:
                return None
            if not names.sure and self.shape is None:
                return self._of_headers(self._may_be_scans((len(np.unique(names.line)), 0)))
            try:
                rows, columns = solve_lines(names.line, names.counter, ny_nx, **self._axis)
            except UnclearError as unclear:
                if self.insist:
                    return None
                self._agree_with_lines()
                return self.shape, "--shape", Places(doubt=str(unclear))
        if isinstance(rows, UnclearError) or isinstance(columns, UnclearError):
            if self.insist:
                return None
            doubt = rows if isinstance(rows, UnclearError) else columns
            seen = _spans(row, column)
            if self.shape is None:
                raise InputError(str(doubt))
            self._agree(seen, names.words)
            return self.shape, "--shape", Places(doubt=str(doubt))
        self.assumed = rows.assumed if rows.assumed is not None else columns.assumed
        seen = (rows.seen, columns.seen)
        if self.insist and ny_nx is not None and not (rows.count <= ny_nx[0] and columns.count <= ny_nx[1]):
            return None
        shape, given = self._agree(seen, names.words)
        told = names.explicit or names.counts_line or (names.sure and names.in_folders)
        if self.order == "snake" and not (told or self.insist):
            readings = (
                "the second number in the names may be the column, or count the frames of a line: leave --order out if "
                "it is the column, give --insist if it counts"
            )
            return shape, given, Places(doubt=readings)
        how = ", ".join(axis.how for axis in (rows, columns) if self.shape is None and axis.how)
        if not names.explicit:
            # A number in a line counts its frames as they were taken: which way the line ran is another matter.
            return shape, given, Places(acquired=rows.place * shape[1] + columns.place, how=how)
        cells = np.stack([rows.place, columns.place], axis=1)
        self._check_order_of(cells, shape)
        return shape, given, Places(cells=cells, how=how)

    def _agree_with_lines(self) -> None:
        """Refuse a shape where lines and the numbers that run through them say another."""
        if self.shape is None or self.names.line is None or self.names.counter is None:
            return
        try:
            rows, columns = solve_lines(self.names.line, self.names.counter, None)
        except UnclearError:
            return
        self._agree((rows.seen, columns.seen), self.names.words)

    def _count(self, values: Numbers, length: int | None, what: str) -> Count | UnclearError:
        try:
            return count_axis(values, length, what, **self._axis)
        except UnclearError as unclear:
            return unclear

    def _check_order_of(self, cells: Numbers, shape: Shape) -> None:
        """Refuse rows and columns that another counter, or the order of a list, contradicts."""
        if self.insist:
            return
        sequence: Numbers | None = None
        source = ""
        if self.names.counter is not None and self.names.row is not None:
            sequence, source = np.argsort(self.names.counter, kind="stable"), "the other number in the names"
        elif self.listed and self._unsorted:
            sequence, source = np.arange(len(cells)), "the list's order"
        if sequence is None:
            return
        ordered = cells[sequence, 0] * shape[1] + cells[sequence, 1]
        ranks = []
        for order in ("raster", "snake"):
            for axis in ("x", "y"):
                rank = np.empty(shape[0] * shape[1], dtype=np.int64)
                rank[acquisition(shape, order, axis)] = np.arange(len(rank))
                ranks.append(bool((np.diff(rank[ordered]) > 0).all()))
        if not any(ranks):
            raise InputError(
                f"{self.names.words} put the files in rows and columns, {source} goes through them in no order of "
                f"lines: {INSIST_HINT.replace('it', 'the rows and columns')}"
            )

    @property
    def _unsorted(self) -> bool:
        files = [self.stacks.files[i] for i in self.names.kept]
        keys = [natural_key(file) for file in files]
        return any(one > other for one, other in pairwise(keys))

    def _of_headers(self, doubt: str) -> tuple[None, str, Places]:
        """Leave the shape to the stage positions; where these do not tell it, the doubt is said."""
        self.proposals = doubt
        return None, "--shape", Places(acquired=None, doubt=doubt)

    def _may_be_scans(self, span: Shape) -> str:
        first, second = (*self.names.globs, "", "")[:2]
        a, b = span
        shape = f" --shape {a} {b}" if b else " --shape NY NX"
        if self.shape is not None:
            ny, nx = self.shape
            return (
                f"--shape {ny} {nx}, but {self.names.words or 'two numbers in the names'} say {a} × {b}, or that there "
                f"are {a} scans: give --shape {a} {b}, or the glob of one scan, '{first}' or '{second}'"
            )
        return (
            f"the names tell {a} lines of {b} frames, or {a} scans: give{shape}, or the glob of one scan, "
            f"'{first}' or '{second}'"
        )

    # One number for each file

    def _of_counter(self) -> tuple[Shape | None, str, Places]:
        number, n = self.names.counter, self._n
        if number is None:
            return self._of_order("the names have no number that counts the files")
        if self.listed and (np.diff(number) < 1).any():
            if not self.insist:
                i = int(np.flatnonzero(np.diff(number) < 1)[0])
                one, other = (self.stacks.files[self.names.kept[j]].rpartition("/")[2] for j in (i, i + 1))
                raise InputError(
                    f"the list has {one} before {other}, their numbers say the reverse: sort it, or give --insist to "
                    "take the list's order"
                )
            return self.shape, "--shape", Places(acquired=np.arange(n))
        if self.names.timed and self.first_number is None:
            return self._of_times(number)
        points = None if self.shape is None else self.shape[0] * self.shape[1]
        try:
            found = count_points(number, points, **self._axis)
        except UnclearError as unclear:
            if self.insist and points is not None and n <= points:
                return self.shape, "--shape", Places(acquired=np.argsort(np.argsort(number)))
            return self.shape, "--shape", Places(doubt=str(unclear), choices=unclear.choices)
        self.assumed = found.assumed
        span = found.seen
        if points is None and span != n and span <= 2 * n:
            gaps = f"{n} files, numbered {number.min()} to {number.max()}, {span} points with those missing"
            self.proposals = f"{gaps}: {shapes_of(span)}"
        return self.shape, "--shape", Places(acquired=found.place, how=found.how)

    def _of_times(self, number: Numbers) -> tuple[Shape | None, str, Places]:
        """Frames in the order in which they were taken, where all are there: times do not tell which are missing."""
        n, points = self._n, None if self.shape is None else self.shape[0] * self.shape[1]
        if (points is None or n < points) and not (self.insist or self.from_first):
            of = n if points is None else f"{n} of {points}"
            doubt = f"{of} frames are there and the times in their names do not tell which are missing: {_INSIST_HINT}"
            return self.shape, "--shape", Places(doubt=doubt)
        ranks = np.argsort(np.argsort(number, kind="stable"), kind="stable").astype(np.int64)
        return self.shape, "--shape", Places(acquired=ranks, how="in the order of the times in their names")

    def _of_order(self, why: str) -> tuple[Shape | None, str, Places]:
        """Frames one after another, where nothing tells which are missing."""
        n = self._n
        points = n if self.shape is None else self.shape[0] * self.shape[1]
        if n < points and not (self.listed or self.insist or self.from_first):
            return self.shape, "--shape", Places(doubt=f"{n} of {points} frames are there and {why}: {_INSIST_HINT}")
        how = "in the order of the list" if self.listed else "in the order of the names"
        return self.shape, "--shape", Places(acquired=np.arange(n), how=how)

    # Several frames in each file

    def _of_stacks(self) -> tuple[Shape | None, str, Places]:
        counts, n, kept = self._counts, self._n, self.names.kept
        inside = np.concatenate([self.stacks.inside[slice(*self.stacks.spans[i])] for i in kept])
        if len(kept) == 1:
            return self.shape, "--shape", Places(acquired=self._within(inside))
        usual = int(counts.max())
        if self.shape is None:
            self.proposals = f"{n} frames in {len(kept)} files: {len(kept)} × {usual}, {shapes_of(n)}"
            whole = bool((counts == usual).all())
            return None, "--shape", Places(acquired=np.arange(n) if whole else None, doubt="")
        points = self.shape[0] * self.shape[1]
        try:
            return self.shape, "--shape", self._stacked(counts, inside, points)
        except UnclearError as unclear:
            if n == points or self.insist or self.from_first:
                return self.shape, "--shape", Places(acquired=np.arange(n), how="the files one after another")
            return self.shape, "--shape", Places(doubt=str(unclear))

    def _within(self, inside: Numbers) -> Numbers:
        """Places of the frames of one file, some of which may be listed alone."""
        points = None if self.shape is None else self.shape[0] * self.shape[1]
        if (np.diff(inside) < 1).any():
            if not self.insist:
                raise InputError(
                    f"frames of {self.stacks.files[0]} are listed in another order than theirs: {INSIST_HINT}"
                )
            return np.arange(len(inside))
        if points is not None and inside[-1] >= points and len(inside) == points:
            return np.arange(len(inside))
        if points is not None and inside[-1] >= points >= len(inside):
            raise InputError(
                f"frame {inside[-1]} of {self.stacks.files[0]} is listed for {points} points: {INSIST_HINT}"
            )
        return inside

    def _stacked(self, counts: Numbers, inside: Numbers, points: int) -> Places:
        """Places of frames in files of several: a file for each line, or for so many frames."""
        assert self.shape is not None  # noqa: S101  the caller looked
        ny, nx = self.shape
        usual, n, files = int(counts.max()), int(counts.sum()), len(counts)
        number = self.names.counter
        lines = usual == nx and files <= ny
        if not lines and (counts[:-1] != usual).any():
            if n == points:
                return Places(acquired=np.arange(n), how="the files one after another")
            raise UnclearError(
                f"{files} files hold {counts.min()} to {usual} frames each, {n} of {points}: which are missing is not "
                f"known: {_INSIST_HINT}"
            )
        length = ny if lines else -(-points // usual)
        if number is None:
            if n == points:
                return Places(acquired=np.arange(n), how="the files one after another")
            raise UnclearError(
                f"{n} of {points} frames are there and no number tells which file is missing: {_INSIST_HINT}"
            )
        found = count_points(number, length, **self._axis, what="files")
        place, self.assumed = found.place, found.assumed
        acquired = np.repeat(place, counts) * usual + inside
        if acquired.max() >= points:
            raise UnclearError(f"{files} files of {usual} frames do not fit {points} points: {_INSIST_HINT}")
        short = np.flatnonzero(counts < usual)
        how = f"a file of {usual} frames for each line" if lines else f"{usual} frames in each file"
        if len(short):
            lost = ", ".join(str(int(place[i]) + 1) for i in short[:3]) + (", …" if len(short) > 3 else "")
            how += f", of the last frames of file {lost} some are missing"
        return Places(acquired=acquired, how=how)


_INSIST_HINT = "give --insist to take them one after another"


def _spans(row: Numbers, column: Numbers) -> Shape:
    """Rows and columns from the first number to the last."""
    found = []
    for values in (row, column):
        there = np.unique(values)
        step = max(1, int(np.gcd.reduce(np.diff(there)))) if len(there) > 1 else 1
        found.append((int(there[-1]) - int(there[0])) // step + 1)
    return found[0], found[1]
