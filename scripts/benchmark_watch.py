#!/usr/bin/env python
"""Whether `laue-dask watch` keeps up with a detector, and ends with what `laue-dask run` makes of the finished folder.

Usage: .venv/bin/python scripts/benchmark_watch.py [--shape 30 40 --rate 5 --binning 1] [--pause 400 20]
           [--kills 20 --seed 0] [--scan FRAMES] [--config FILE] [--folder FOLDER] [--json FILE]
       .venv/bin/python scripts/benchmark_watch.py --looks 1000 10000 100000 [--folder FOLDER]

A simulated detector (scripts/detector.py; PILATUS 1M, 1043 × 981 pixels, int32) writes each frame in four pieces and
pauses once. Beside it `watch` runs as a user would start it. How far it is behind is measured from outside: a frame is
on the map when `watch.json`, which is written after the map, first counts it. In the end `run` segments the same
folder, and everything that the two left behind is compared byte by byte.

With --kills the watch is killed (SIGKILL) at random moments while frames come, and started again at once; then no
frame may be missing or be taken in twice, and no block of the scan store may be written twice. Frames are better made
small for that: --binning 4.

With --looks nothing is measured but the folder: how long a look takes when one frame has come to so many that are
known, against listing the folder anew as `run` does it.

Exit code 1 if a promise is broken: the map at most 5 s behind at the 95th percentile (without --kills), the backlog at
most 5 s of frames once the watch has caught up with what was there before it, the result identical, and with --kills
nothing lost or done twice.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr

from laue_dask.io.frames import discover
from laue_dask.io.source_identity import State
from laue_dask.watch.folder import MAX_FILES_PER_LOOK, WatchedFolder

HERE = Path(__file__).parent
BEHIND = 5.0
SETTLING = 15.0
"""Seconds from the start of a watch, most of them for its imports, that do not count for the backlog."""

LOOKS = 20
"""Looks at a folder whose median is told."""

IMPORTING = 5.0
"""Seconds that a watch needs before it listens, about."""

UNLIKE = ("command", "scan", "seconds", "patterns_per_second", "workers", "crc32c")
"""What of run.json says how a run was made, not what came out."""


@dataclass
class Seen:
    """What was seen of a watch from outside: (seconds since 1970, content of `watch.json`), and started when."""

    states: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    memory: int = 0
    """Largest resident memory of the watch in bytes."""


def observe(run: Path, seen: Seen, over: threading.Event) -> None:
    """Look at `watch.json` ten times per second."""
    before = None
    while not over.wait(0.1):
        try:
            text = (run / "watch.json").read_text(encoding="utf-8")
        except OSError:
            continue
        if text == before:
            continue
        before = text
        seen.states.append((time.time(), json.loads(text)))
        if seen.states[-1][1]["state"] == "scanning":
            with suppress(psutil.Error):
                seen.memory = max(seen.memory, psutil.Process(seen.states[-1][1]["pid"]).memory_info().rss)


def watch(arguments: Sequence[str], seen: Seen) -> "subprocess.Popen[bytes]":
    seen.starts.append(time.time())
    return subprocess.Popen([sys.executable, "-m", "laue_dask", "watch", *arguments])


def blocks_of(run: Path) -> dict[str, int]:
    """Files of the scan store's blocks that have a receipt, and when each was written."""
    part = run / "scan.zarr.part" if (run / "scan.zarr.part").exists() else run / "scan.zarr"
    found = {}
    journal = part / "journal.jsonl"
    if not journal.is_file():
        return {}
    for line in journal.read_text(encoding="utf-8").splitlines():
        text = line.partition("\t")[0]
        try:
            shards = json.loads(text)["shards"]
        except (ValueError, KeyError):
            continue
        for shard in shards:
            path = part / "frames" / "c" / str(shard["block"]) / "0" / "0"
            if path.is_file():
                found[path.relative_to(part).as_posix()] = path.stat().st_mtime_ns
    return found


def killed(arguments: Sequence[str], run: Path, seen: Seen, kills: int, seconds: float, seed: int) -> list[str]:
    """A watch that is killed at random moments, and started again; what was done twice.

    A moment is at random within twice `seconds` / `kills` after the watch began to listen: imports take a while, and
    are no place to lose anything. What is left of the moments when it has come to its end is left out.
    """
    waits = np.random.default_rng(seed).uniform(0, 2 * seconds / kills, kills).tolist()
    written: dict[str, int] = {}
    moments: list[str] = []
    process = watch(arguments, seen)
    for wait in waits:
        while process.poll() is None and not any(state["pid"] == process.pid for _, state in seen.states[-20:]):
            time.sleep(0.05)
        try:
            process.wait(wait)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        last = seen.states[-1][1]
        moments.append(f"{last['frames']} ({last['state']})")
        written |= {**blocks_of(run), **written}
        process = watch(arguments, seen)
    if process.wait():
        raise SystemExit(f"watch ended with exit code {process.returncode}")
    after = {name: (run / "scan.zarr" / name).stat().st_mtime_ns for name in written}
    print(f"killed {len(moments)} times, after frames {', '.join(moments)}")
    print(f"{len(written)} shards of the scan store had been written at a kill")
    return [f"block {name} was written twice" for name in written if after[name] != written[name]]


def differences(ours: Path, theirs: Path) -> list[str]:
    """What two runs do not have in common, of what they are to have."""
    found = []
    one, other = (zarr.open_group(str(run / "results.zarr"), mode="r") for run in (ours, theirs))
    names = sorted({*one.array_keys(), *other.array_keys()})
    for name in names:
        if name not in one or name not in other:
            found.append(f"results.zarr: {name} is in one of them alone")
        elif np.asarray(one[name]).tobytes() != np.asarray(other[name]).tobytes():
            found.append(f"results.zarr: {name} differs")
    records = [json.loads((run / "run.json").read_text(encoding="utf-8")) for run in (ours, theirs)]
    found += [
        f"run.json: {key} differs"
        for key in sorted({*records[0], *records[1]} - set(UNLIKE))
        if records[0].get(key) != records[1].get(key)
    ]
    for table in ("grains.csv", "delegates.csv", "regions.csv"):
        if (ours / table).read_bytes() != (theirs / table).read_bytes():
            found.append(f"{table} differs")
    print(f"compared: {len(names)} arrays, run.json, 3 tables: {len(found)} differences")
    return found


def lost_or_twice(run: Path, names: set[str]) -> list[str]:
    """Frames that are missing in the watch's own list, or are in it twice."""
    lines = (run / "watch" / "frames.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    counted = Counter(Path(json.loads(line)["file"]).name for line in lines)
    missing = names - counted.keys()
    twice = [name for name, count in counted.items() if count > 1]
    print(f"frames: {len(names)} written by the detector, {len(counted)} taken in, {len(twice)} of them twice")
    return [f"{name} was not taken in" for name in missing] + [f"{name} was taken in twice" for name in twice]


def behind(seen: Seen, written: Sequence[dict[str, Any]]) -> np.ndarray:
    """Seconds from when each frame was complete to when the map showed it, in the order in which they came; NaN for one
    that no map showed before the scan was over."""
    complete = np.array([one["complete"] for one in written])
    when = np.array([time for time, _ in seen.states])
    mapped = np.maximum.accumulate([state["mapped"] for _, state in seen.states])
    first = np.searchsorted(mapped, np.arange(1, len(complete) + 1))
    return np.append(when, np.nan)[first] - complete


def looks(folder: Path, counts: Sequence[int]) -> int:
    """Time a look at a folder of so many frames that are known, and one that is new."""
    rng = np.random.default_rng(0)
    for count in counts:
        place = folder / f"looks_{count}"
        place.mkdir()
        for i in range(count):
            (place / f"scan_{i:06d}.tif").write_bytes(b"II*\0")
            os.utime(place / f"scan_{i:06d}.tif", (1e9, 1e9))  # read long ago
        known = {str(path): State.of(str(path)) for path in place.iterdir()}
        files, took = WatchedFolder(str(place), known), []
        for _ in range(2 + count // MAX_FILES_PER_LOOK):
            files.look()
        for number in rng.permutation(LOOKS) + count:
            (place / f"scan_{number:06d}.tif").write_bytes(b"II*\0")
            begun = time.perf_counter()
            files.look()
            took.append(time.perf_counter() - begun)
            if len(files.refs) != count + len(took):
                raise SystemExit(f"{len(files.refs)} frames are known, {count + len(took)} are there")
        begun = time.perf_counter()
        discover(place)
        anew, look = time.perf_counter() - begun, float(np.median(took))
        print(f"{count:9,} frames: a look {1e3 * look:7.2f} ms, listed anew {1e3 * anew:8.2f} ms: {anew / look:.0f} ×")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=2, default=(30, 40))
    parser.add_argument("--rate", type=float, default=5.0)
    parser.add_argument("--binning", type=int, default=1)
    parser.add_argument("--pause", type=float, nargs=2, default=(400, 20), metavar=("AFTER", "SECONDS"))
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scan", type=Path, help="Frames of an earlier `laue-dask simulate` of this shape.")
    parser.add_argument("--folder", type=Path, help="Where to work; a temporary folder by default.")
    parser.add_argument("--config", type=Path, help="Of both, `watch` and `run`.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--looks", type=int, nargs="+", metavar="FRAMES")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        if given.looks:
            return looks(Path(folder), given.looks)
        return measure(given, Path(folder))


def measure(given: argparse.Namespace, folder: Path) -> int:
    ny, nx = given.shape
    frames, run, batch, log = folder / "frames", folder / "watched", folder / "batch", folder / "detector.jsonl"
    scan = given.scan or folder / "simulated"
    if given.scan is None:
        print(f"simulating {ny} × {nx} frames")
        subprocess.run([sys.executable, HERE / "detector.py", scan, *_simulation(given)], check=True)
    shape = ["--shape", str(ny), str(nx)]
    config = [] if given.config is None else ["--config", str(given.config)]
    detector = subprocess.Popen(
        [sys.executable, HERE / "detector.py", frames, *shape, "--scan", scan, *_measurement(given), "--log", log]
    )
    seen, over = Seen(), threading.Event()
    observer = threading.Thread(target=observe, args=(run, seen, over))
    observer.start()
    arguments = [str(frames), *shape, "--out", str(run), "--timeout", "120", *config]
    broken = []
    begun = time.monotonic()
    try:
        if given.kills:
            working = ny * nx / given.rate - IMPORTING * given.kills
            broken += killed(arguments, run, seen, given.kills, max(given.kills, working), given.seed)
        else:
            code = watch(arguments, seen).wait()
            if code:
                raise SystemExit(f"watch ended with exit code {code}")
        detector.wait()
    finally:
        detector.kill()
        over.set()
        observer.join()
    took = time.monotonic() - begun
    subprocess.run([sys.executable, "-m", "laue_dask", "run", frames, *shape, "--out", batch, *config], check=True)
    written = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    broken += lost_or_twice(run, {one["name"] for one in written})
    broken += differences(run, batch)
    figures: dict[str, Any] = {"frames": len(written), "kills": given.kills, "seconds": round(took, 1)}
    measuring = written[-1]["complete"] - written[0]["complete"] - given.pause[1]
    figures["frames_per_second_of_the_detector"] = round((len(written) - 1) / measuring, 2)
    ends = [when for when, state in seen.states if state["state"] == "finishing"]
    figures["memory_of_watch_MB"] = round(seen.memory / 1e6)
    figures["seconds_from_last_frame_to_result"] = round(seen.states[-1][0] - written[-1]["complete"], 1)
    figures["seconds_from_last_frame_to_its_map"] = round(ends[0] - written[-1]["complete"], 1)
    calm = [
        state["backlog"]
        for when, state in seen.states
        if state["state"] == "scanning" and all(not 0 <= when - start < SETTLING for start in seen.starts)
    ]
    if calm:
        figures["backlog_largest"], figures["backlog_median"] = max(calm), float(np.median(calm))
    if not given.kills:
        # What came before the watch listened waited for its imports.
        late = behind(seen, written)[[one["complete"] > seen.starts[0] + SETTLING for one in written]]
        for name, q in (("median", 50), ("p95", 95), ("largest", 100)):
            figures[f"seconds_behind_{name}"] = round(float(np.percentile(late, q)), 2)
        told = seen.states[-1][1]["latency_s"]
        figures["seconds_behind_p95_as_told"] = told["p95"]
        if not figures["seconds_behind_p95"] <= BEHIND:
            broken.append(f"the map was {figures['seconds_behind_p95']} s behind at the 95th percentile")
        if calm and max(calm) > BEHIND * given.rate:
            broken.append(f"the backlog grew to {max(calm)} frames")
    for name, value in figures.items():
        print(f"{name:40s} {value}")
    for line in broken:
        print(f"broken: {line}")
    if given.json:
        given.json.write_text(json.dumps({**figures, "broken": broken}, indent=1))
    return 1 if broken else 0


def _measurement(given: argparse.Namespace) -> list[str]:
    return ["--rate", str(given.rate), "--pause", *map(str, given.pause)]


def _simulation(given: argparse.Namespace) -> list[str]:
    """Arguments of a detector that has no time to lose: it makes the frames that another one is to write."""
    shape = map(str, given.shape)
    return ["--shape", *shape, "--binning", str(given.binning), "--rate", "1e9", "--pieces", "1"]


if __name__ == "__main__":
    sys.exit(main())
