#!/usr/bin/env python3
"""Scans as beamlines leave them, each with the true place of every file, held against where laue_dask puts them.

    scripts/generate_scans.py [--scans 10000] [--seed 0] [--keep FOLDER] [--show 20]

Names, gaps, files that are none of the scan, orders, stage positions, options and ways to name the source are drawn at
random. A verdict is: right (every frame at its own place, nothing else anywhere), refused (one line), or wrong; the
last must never be. A refusal is needless where the evidence leaves no doubt.
"""

import argparse
import gzip
import random
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from laue_dask.config import ScanConfig
from laue_dask.errors import InputError
from laue_dask.io.frames import discover
from laue_dask.pipeline.stages.frame_placement import locate, read_positions

Point = tuple[int, int]

STEP_MM = 0.01
"""Between neighbours of the grid."""


@dataclass
class Scan:
    """A generated scan.

    Attributes
    ----------
    shape
        (ny, nx) in truth.
    kinds
        How it was drawn: part → what was drawn, for the table.
    truth
        Name of a file, or (name, number in it) of a stack → its point; of all files that are frames of the scan.
    headers
        Point → stage position (y, x) that its header tells, in mm.
    options
        What the user gives.
    source
        As the user gives it, below the folder.
    unknowable
        Why a refusal is right; empty where the evidence leaves no doubt.
    trimmed
        Whether nothing tells of points beyond the outermost frames: any shift of the whole scan is as right.
    """

    shape: Point
    kinds: dict[str, str] = field(default_factory=dict)
    truth: dict[Any, Point] = field(default_factory=dict)
    headers: dict[Point, tuple[float, float]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    unknowable: list[str] = field(default_factory=list)
    trimmed: bool = False


def tiny_tiff(position: tuple[float, float] | None) -> bytes:
    """A TIFF of 8 × 8 pixels, uint16, whose description is that of ESRF BM32."""
    text = b"0 (exposure=1.000)\0"
    if position is not None:
        text = (
            f"0 (Xech={position[1]:.4f} Yech={position[0]:.4f} Zech=-0.8263 mon=12276 exposure=1.000)".encode() + b"\0"
        )
    text += b"\0" * (len(text) % 2)
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1)]
    data = 8 + 2 + 12 * 10 + 4
    tags += [(270, 2, len(text), data), (273, 4, 1, data + len(text)), (277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, 128)]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + text + bytes(128)


# What is drawn


def draw(rng: random.Random, folder: Path) -> Scan:
    """Draw a scan and write its files into `folder`."""
    scan = Scan(_shape(rng))
    fast = rng.choices(["x", "y"], [5, 1])[0]
    order = rng.choice(["raster", "raster", "snake"])
    scan.kinds |= {"order": f"{order}, fast {fast}"}
    path = list(acquired(scan.shape, order, fast))
    naming = rng.choice(NAMINGS)
    scan.kinds["names"] = naming.__name__
    stacked = naming is stacks_of_rows
    told = "none" if stacked else _headers(rng, scan, path)
    scan.kinds["headers"] = told
    gone = _short_rows(rng, scan, path, fast) if stacked else _gaps(rng, scan, path, fast)
    files = naming(rng, scan, path, fast)
    written = {name: point for name, point in files.items() if point not in gone}
    _write(folder, scan, written)
    _aliens(rng, folder, scan, [name for name in written if isinstance(name, str)])
    _options(rng, scan, order, fast, told)
    if scan.kinds["options"] == "wrong order" and not _headers_tell_order(scan, written.values(), fast):
        # Nothing tells that it is wrong.
        scan.options["order"], scan.kinds["options"] = order, "right"
    _source(rng, folder, scan, written)
    _judge_doubt(scan, path, gone, order, fast, told)
    return scan


def _shape(rng: random.Random) -> Point:
    kind = rng.random()
    if kind < 0.06:
        return rng.choice(
            [(1, rng.randint(5, 12)), (rng.randint(5, 12), 1), (2, rng.randint(3, 9)), (rng.randint(3, 9), 2)]
        )
    return rng.randint(3, 9), rng.randint(3, 9)


def acquired(shape: Point, order: str, fast: str) -> Iterator[Point]:
    """The points of a scan one after the other."""
    lines, length = shape if fast == "x" else shape[::-1]
    for line in range(lines):
        for i in range(length):
            place = length - 1 - i if order == "snake" and line % 2 else i
            yield (line, place) if fast == "x" else (place, line)


def _headers(rng: random.Random, scan: Scan, path: list[Point]) -> str:
    told = rng.choices(["none", "exact", "jitter", "drift", "some missing", "hexagonal"], [8, 3, 3, 2, 2, 1])[0]
    scan.kinds["headers"] = told
    if told == "none":
        return told
    y0, x0 = rng.uniform(-20, 20), rng.uniform(-20, 20)
    dy, dx = (rng.choice([-1, 1]) * STEP_MM * rng.choice([1, 1, 0.5, 3]) for _ in range(2))
    jitter = {"jitter": rng.uniform(0.02, 0.12), "hexagonal": rng.choice([0.0, 0.05])}.get(told, 0.0)
    drift = rng.uniform(0.05, 0.25) if told == "drift" else 0.0
    for number, (y, x) in enumerate(path):
        along = x + (0.5 if told == "hexagonal" and y % 2 else 0.0)
        moved = drift * number / len(path)
        scan.headers[y, x] = (
            y0 + dy * (y + rng.uniform(-jitter, jitter) + moved),
            x0 + dx * (along + rng.uniform(-jitter, jitter) + moved),
        )
    if told == "some missing":
        for point in rng.sample(path, max(1, int(len(path) * rng.uniform(0.02, 0.3)))):
            del scan.headers[point]
    return told


def _gaps(rng: random.Random, scan: Scan, path: list[Point], fast: str) -> set[Point]:
    kind = rng.choices(["none", "first", "middle", "last", "several", "whole line"], [8, 1, 3, 2, 2, 1])[0]
    scan.kinds["gaps"] = kind
    if kind == "none" or len(path) < 6:
        scan.kinds["gaps"] = "none"
        return set()
    if kind == "first":
        return set(path[: rng.choice([1, 1, 2])])
    if kind == "middle":
        return {rng.choice(path[1:-1])}
    if kind == "last":
        return set(path[-rng.choice([1, 1, 2]) :])
    if kind == "several":
        return set(rng.sample(path[1:-1], min(len(path) // 4, rng.randint(2, 5))))
    lines, axis = (scan.shape[0], 0) if fast == "x" else (scan.shape[1], 1)
    if lines < 4:
        scan.kinds["gaps"] = "none"
        return set()
    line = rng.randrange(1, lines)  # without the first of a snake scan nobody knows where left is
    return {point for point in path if point[axis] == line}


def _short_rows(rng: random.Random, scan: Scan, path: list[Point], fast: str) -> set[Point]:
    """A row that was aborted: nothing but its last frames can be missing, or nobody knows which."""
    scan.kinds["gaps"] = rng.choice(["none", "none", "short row"])
    lines, length = scan.shape if fast == "x" else scan.shape[::-1]
    if scan.kinds["gaps"] == "none" or length < 2:
        return set()
    end = rng.randint(1, lines) * length
    return set(path[end - rng.randint(1, length // 2) : end])


# Names


def _suffix(rng: random.Random) -> str:
    return rng.choice([".tif", ".tif", ".tif", ".tiff", ".TIF", ".tif.gz"])


def _prefix(rng: random.Random) -> str:
    return rng.choice(["img_", "nw1_", "GRA95229_mLaue_6_", "img", "Si-map-", "a.b_", "sample 2 ", "x7-", "", "frame."])


def _tail(rng: random.Random) -> str:
    return rng.choice(["", "", "", "_raw", ".corrected", "_mono", "-a", "_ccd2"])


def _start(rng: random.Random, scan: Scan) -> int:
    start = rng.choice([0, 0, 1, 1, 1, rng.randint(2, 5000)])
    scan.kinds["first number"] = str(start) if start < 2 else "n"
    return start


def plain(rng: random.Random, scan: Scan, path: list[Point], fast: str) -> dict[Any, Point]:
    """One counter, padded or not, words around it."""
    start, step = _start(rng, scan), rng.choice([1, 1, 1, 1, 2, 10])
    scan.kinds["step"] = str(step)
    width = rng.choice([0, 3, 4, 5])
    before, after = _prefix(rng), _tail(rng) + _suffix(rng)
    return {f"{before}{start + step * i:0{width}d}{after}": point for i, point in enumerate(path)}


def two_counters(rng: random.Random, scan: Scan, path: list[Point], fast: str) -> dict[Any, Point]:
    """A number of the scan that stays, and one that counts; or two that count."""
    start, other = _start(rng, scan), rng.choice([7, 100])
    both = rng.random() < 0.5
    before, after = _prefix(rng), _tail(rng) + _suffix(rng)
    swap = rng.random() < 0.3
    made: dict[Any, Point] = {}
    for i, point in enumerate(path):
        one, two = f"{other + i if both else other:03d}", f"{start + i:05d}"
        made[f"{before}{two}_{one}{after}" if swap else f"{before}{one}_{two}{after}"] = point
    return made


def rows_and_columns(rng: random.Random, scan: Scan, path: list[Point], fast: str) -> dict[Any, Point]:
    """Row and column."""
    spelling = rng.choice(
        [
            "map_r{y:02d}_c{x:03d}", "row{y}_col{x}", "R{y:02d}C{x:02d}", "a_y{y:03d}_x{x:03d}", "a_x{x:03d}_y{y:03d}",
            "iy{y}_ix{x}", "s3_row_{y:02d}_column_{x:02d}",
        ]
    )  # fmt: skip
    start = _start(rng, scan)
    scan.kinds["spelling"] = spelling
    after = _tail(rng) + _suffix(rng)
    return {spelling.format(y=y + start, x=x + start) + after: (y, x) for y, x in path}


def lines_and_points(rng: random.Random, scan: Scan, path: list[Point], fast: str) -> dict[Any, Point]:
    """Line, and number in the line as the points were taken."""
    spelling = rng.choice(["img_{line:02d}_{point:03d}", "line{line:02d}_point{point:04d}"])
    start, length = _start(rng, scan), scan.shape[1 if fast == "x" else 0]
    scan.kinds["spelling"] = spelling
    after = _tail(rng) + _suffix(rng)
    return {
        spelling.format(line=start + i // length, point=start + i % length) + after: point
        for i, point in enumerate(path)
    }


def number_as_suffix(rng: random.Random, scan: Scan, path: list[Point], fast: str) -> dict[Any, Point]:
    """`scan.0001`."""
    start, width = _start(rng, scan), rng.choice([0, 3, 4])
    before = rng.choice(["scan", "ccd_img", "a.b", "run7"])
    return {f"{before}.{start + i:0{width}d}": point for i, point in enumerate(path)}


def time_stamps(rng: random.Random, scan: Scan, path: list[Point], fast: str) -> dict[Any, Point]:
    """A time in the name, with or without a counter."""
    alone = rng.random() < 0.4
    start, second = _start(rng, scan), rng.randint(0, 40_000)
    before, after = rng.choice(["img_", "nw1_", ""]), _suffix(rng)
    made: dict[Any, Point] = {}
    for i, point in enumerate(path):
        second += rng.choice([1, 1, 2, 3])
        stamp = time.strftime(rng.choice(["20261201_%H%M%S"]), time.gmtime(second))
        made[f"{before}{stamp}{after}" if alone else f"{before}{start + i:04d}_{stamp}{after}"] = point
    if alone:
        scan.kinds["first number"] = "time"
    return made


def lines_numbered_in_each(rng: random.Random, scan: Scan, path: list[Point], fast: str) -> dict[Any, Point]:
    """A folder for each line, files numbered in each."""
    return _in_lines(rng, scan, path, fast, through=False)


def lines_numbered_through(rng: random.Random, scan: Scan, path: list[Point], fast: str) -> dict[Any, Point]:
    """A folder for each line, files numbered through."""
    return _in_lines(rng, scan, path, fast, through=True)


def _in_lines(rng: random.Random, scan: Scan, path: list[Point], fast: str, *, through: bool) -> dict[Any, Point]:
    start, first_line = _start(rng, scan), rng.choice([0, 1, 1, 1])
    stem = rng.choice(["scan_", "line", "GRA_mLaue_", "row-"])
    width = rng.choice([1, 2, 3])
    before, after = rng.choice(["img_", "a_", "{stem}{line}_"]), _suffix(rng)
    length = scan.shape[1 if fast == "x" else 0]
    made: dict[Any, Point] = {}
    for i, point in enumerate(path):
        line = f"{first_line + i // length:0{width}d}"
        number = i if through else i % length
        name = before.format(stem=stem, line=line)
        made[f"{stem}{line}/{name}{start + number:04d}{after}"] = point
    scan.kinds["first line"] = str(first_line)
    return made


def stacks_of_rows(rng: random.Random, scan: Scan, path: list[Point], fast: str) -> dict[Any, Point]:
    """An HDF5 file for each line."""
    start = rng.choice([0, 1])
    scan.kinds["first number"] = str(start)
    length = scan.shape[1 if fast == "x" else 0]
    return {(f"line_{start + i // length:03d}.h5", i % length): point for i, point in enumerate(path)}


NAMINGS: list[Callable[..., dict[Any, Point]]] = [
    plain, plain, plain, two_counters, rows_and_columns, lines_and_points, number_as_suffix, time_stamps,
    lines_numbered_in_each, lines_numbered_through, stacks_of_rows,
]  # fmt: skip


# Files


def _write(folder: Path, scan: Scan, written: dict[Any, Point]) -> None:
    stacks: dict[str, int] = Counter()
    for name, point in written.items():
        if isinstance(name, tuple):
            # A stack with a frame that was not recorded is shorter: the frame is gone, the others follow one another.
            scan.truth[name[0], stacks[name[0]]] = point
            stacks[name[0]] += 1
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = tiny_tiff(scan.headers.get(point))
        path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
        scan.truth[name] = point
    for name, count in stacks.items():
        with h5py.File(folder / name, "w") as file:
            file["entry/data/data"] = np.zeros((count, 16, 16), np.uint16)


def _aliens(rng: random.Random, folder: Path, scan: Scan, names: list[str]) -> None:
    kind = rng.choices(["none", *ALIENS], [len(ALIENS)] + [1] * len(ALIENS))[0]
    if not names and kind not in ("log", "hidden"):
        kind = "none"
    scan.kinds["aliens"] = kind
    if kind == "none":
        return
    model = rng.choice(names) if names else "line_001.h5"
    where = (folder / model).parent
    stem, _, suffix = Path(model).name.partition(".") if "." in Path(model).name[1:] else (model, "", "tif")
    content = tiny_tiff(None)
    made: dict[str, bytes] = {}
    match kind:
        case "dark":
            made = {f"dark_{i:04d}.{suffix}": content for i in range(1, rng.choice([2, 2, 3]))}
        case "flat":
            made = {f"flat.{suffix}": content}
        case "copy":
            made = {
                rng.choice([f"{stem} (copy).{suffix}", f"{stem}_copy.{suffix}", f"Copy of {stem}.{suffix}"]): content
            }
        case "twin":
            original = (folder / model).read_bytes()
            made = {f"{Path(model).name}.gz": gzip.compress(original)} if suffix[-2:] != "gz" else {}
        case "hidden":
            made = {f".{Path(model).name}": content, f"._{Path(model).name}": b"\0\5\x16\7"}
        case "backup":
            made = {f"{Path(model).name}~": content, f"{Path(model).name}.bak": content}
        case "thumbnail":
            made = {f"{stem}_thumb.{suffix}": content}
        case "log":
            made = {"scan.log": b"a\n", "notes.txt": b"b\n", "log.1": b"c\n"}
        case "average":
            made = {f"average_{stem}.{suffix}": content}
    for name, data in made.items():
        if name.endswith(".gz") and data[:2] != b"\x1f\x8b":
            data = gzip.compress(data, 1)
        (where / name).write_bytes(data)


ALIENS = ["dark", "flat", "copy", "twin", "hidden", "backup", "thumbnail", "log", "average"]


def _options(rng: random.Random, scan: Scan, order: str, fast: str, told: str) -> None:
    ny, nx = scan.shape
    lines_are_y = fast == "x"
    kind = rng.choices(["right", "none", "swapped", "other", "wrong order"], [6, 3, 1, 1, 1])[0]
    names = scan.kinds["names"]
    if told == "none" and (
        min(scan.shape) == 1 or kind == "wrong order" or names not in ("rows_and_columns", "lines_numbered_in_each")
    ):
        # Nothing tells that it is wrong.
        kind = "right" if kind != "none" else kind
    scan.kinds["options"] = kind
    if kind in ("right", "wrong order"):
        rows = lines_are_y or told != "none" or names == "rows_and_columns"
        scan.options["shape"] = (ny, nx) if rows else (nx, ny)
    if kind == "swapped":
        scan.options["shape"] = (nx, ny)
    if kind == "other" and told == "none":
        scan.options["shape"] = rng.choice([(ny * nx, 1), (1, ny * nx)])
    elif kind == "other":
        scan.options["shape"] = rng.choice([(ny, nx + 1), (ny + 1, nx), (ny * nx, 1), (1, ny * nx)])
    if kind == "wrong order":
        scan.options["order"] = "raster" if order == "snake" else "snake"
    elif rng.random() < 0.3 or (order == "snake" and told == "none"):
        scan.options["order"] = order


def _headers_tell_order(scan: Scan, there: Collection[Point], fast: str) -> bool:
    """Whether the headers that are there tell raster from snake: some of a line that runs back, off its middle."""
    line, place = (0, 1) if fast == "x" else (1, 0)
    told = [point for point in there if point in scan.headers]
    off = [2 * point[place] != scan.shape[place] - 1 for point in told]
    odd = [point[line] % 2 == 1 for point in told]
    return all(any(o and is_odd is back for o, is_odd in zip(off, odd, strict=True)) for back in (True, False))


def _source(rng: random.Random, folder: Path, scan: Scan, written: dict[Any, Point]) -> None:
    names = list(dict.fromkeys(name if isinstance(name, str) else name[0] for name in written))
    kind = rng.choices(["folder", "glob", "list"], [6, 1, 1])[0]
    scan.kinds["source"] = kind
    if kind == "glob":
        scan.source = "*/*" if "/" in names[0] else "*"
    elif kind == "list":
        scan.source = "of this scan.txt"
        (folder / scan.source).write_text("\n".join(names), encoding="utf-8")


def _judge_doubt(scan: Scan, path: list[Point], gone: set[Point], order: str, fast: str, told: str) -> None:
    """Why nobody could know the place of each frame, or what is given is wrong."""
    doubt, kinds, shape = scan.unknowable, scan.kinds, scan.options.get("shape")
    names, full = kinds["names"], told in ("exact", "jitter")
    if told == "none" and fast == "y" and names != "rows_and_columns":
        # Without headers lines are rows: for whoever reads it, the fast axis is x.
        scan.shape = scan.shape[::-1]
        scan.truth = {name: (x, y) for name, (y, x) in scan.truth.items()}
    by_itself = names in ("rows_and_columns", "lines_numbered_in_each", "lines_numbered_through")
    if kinds["options"] in ("swapped", "other", "wrong order") and shape != scan.shape:
        doubt.append("wrong shape")
    if kinds["options"] == "wrong order":
        doubt.append("wrong order")
    if told in ("hexagonal", "some missing", "drift"):
        doubt.append(told)
    if min(scan.shape) < 3:
        doubt.append("few lines")
    if gone and (
        kinds["gaps"] in ("first", "last", "whole line", "several") or names in ("time_stamps", "stacks_of_rows")
    ):
        doubt.append("gaps at an end, or that names do not tell")
    if gone and kinds.get("first number") == "n":
        doubt.append("the first number is not known")
    if kinds.get("step", "1") != "1" and gone:
        doubt.append("gaps between numbers that are not one apart")
    if kinds.get("spelling", "").startswith("img_") and scan.options.get("order") == "snake":
        doubt.append("the second number may be the column")
    if kinds["source"] == "list" and gone:
        doubt.append("a list leaves no gaps")
    if shape is None and not full and not by_itself:
        doubt.append("nothing tells the shape")
    if kinds["aliens"] in ("copy", "average", "thumbnail", "backup") or (
        kinds["aliens"] != "none" and len(scan.truth) < 20
    ):
        doubt.append("aliens that may be frames")
    if names == "number_as_suffix" and kinds["aliens"] != "none":
        doubt.append("aliens beside numbers")
    scan.trimmed = shape is None or shape != scan.shape


# Verdicts


@dataclass
class Verdict:
    """`right`, `refused` or `wrong`, and what was said."""

    kind: str
    text: str = ""


def judge(scan: Scan, folder: Path) -> Verdict:
    """Where laue_dask puts the frames of a scan, held against the truth."""
    source = f"{folder}/{scan.source}".rstrip("/")
    try:
        refs = discover(source)
        found = locate(
            source, refs, ScanConfig(**scan.options), lambda chosen: read_positions([refs[i] for i in chosen])
        )
    except InputError as error:
        return Verdict("refused" if "\n" not in str(error) else "wrong", str(error))
    nx = found.shape[1]
    places: dict[Any, Point] = {}
    for ref, pattern in zip(refs, found.pattern.tolist(), strict=True):
        name = str(Path(ref.path).relative_to(folder))
        if pattern >= 0:
            places[name if ref.index is None else (name, ref.index)] = divmod(pattern, nx)
    if strange := [str(name) for name in places if _plain(scan, name) not in scan.truth]:
        return Verdict("wrong", f"{strange[0]} is a point ({found.how})")
    if lost := [str(name) for name in scan.truth if name not in places and _plain_key(name) not in places]:
        return Verdict("wrong", f"{lost[0]} is no point ({found.how})")
    offsets = set()
    for name, (y, x) in places.items():
        true = scan.truth[_plain(scan, name)]
        offsets.add((y - true[0], x - true[1]))
    if len(offsets) > 1:
        return Verdict("wrong", f"{len(offsets)} different shifts ({found.how})")
    offset = offsets.pop()
    if offset != (0, 0) and not _is_trim(scan, offset, found.shape):
        return Verdict("wrong", f"shifted by {offset} ({found.how})")
    if offset == (0, 0) and found.shape != scan.shape and not scan.trimmed:
        return Verdict("wrong", f"{found.shape} is not {scan.shape} ({found.how})")
    return Verdict("right", found.how)


def _plain(scan: Scan, name: Any) -> Any:
    """The key of a frame in the truth: a stack of one frame has no numbers in it."""
    return name if name in scan.truth or isinstance(name, tuple) else (name, 0)


def _plain_key(name: Any) -> Any:
    return name[0] if isinstance(name, tuple) and name[1] == 0 else name


def _is_trim(scan: Scan, offset: Point, shape: Point) -> bool:
    """Whether whole lines at an end, of which nothing tells, were left out: the others keep their places."""
    if not scan.trimmed:
        return False
    ys, xs = zip(*scan.truth.values(), strict=True)
    return offset == (-min(ys), -min(xs)) and (max(ys) - min(ys) < shape[0]) and (max(xs) - min(xs) < shape[1])


def check(number: int, seed: int, folder: Path) -> tuple[Scan, Verdict]:
    """Draw one scan into an empty folder and judge it."""
    rng = random.Random(f"{seed} {number}")  # noqa: S311  nothing is secret
    scan = draw(rng, folder)
    return scan, judge(scan, folder)


def main() -> int:
    """Exit with 1 where a frame is silently at a wrong place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one scan, by its number; its files are left in --keep")
    parser.add_argument("--keep", type=Path, help="folder for the files of scans that are wrong")
    parser.add_argument("--show", type=int, default=20, help="cases that are shown of each verdict")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    per_kind: dict[str, Counter[str]] = {}
    shown: Counter[str] = Counter()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        for number in range(arguments.scans) if arguments.only is None else [arguments.only]:
            folder = Path(place) / f"s{number}x"
            folder.mkdir()
            scan, verdict = check(number, arguments.seed, folder)
            kind = verdict.kind
            if kind == "refused":
                kind = "refused in doubt" if scan.unknowable else "refused needlessly"
            counts[kind] += 1
            for part in ("names", "gaps", "aliens", "headers", "order", "options", "source"):
                per_kind.setdefault(f"{part}: {scan.kinds[part]}", Counter())[kind] += 1
            if kind in ("wrong", "refused needlessly") and shown[kind] < arguments.show:
                shown[kind] += 1
                print(
                    f"{number}: {kind}: {verdict.text}\n    {scan.shape} {scan.kinds} {scan.options} {scan.unknowable}"
                )
            if arguments.keep and (kind == "wrong" or arguments.only is not None):
                shutil.copytree(folder, arguments.keep / str(number), dirs_exist_ok=True)
            shutil.rmtree(folder)
    columns = ["right", "refused in doubt", "refused needlessly", "wrong"]
    print(f"\n{'':40s}" + "".join(f"{name:>20s}" for name in columns))
    for name, row in [*sorted(per_kind.items()), ("all", counts)]:
        print(f"{name:40s}" + "".join(f"{row[column]:20d}" for column in columns))
    print(f"{sum(counts.values())} scans in {time.perf_counter() - begun:.0f} s")
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
