#!/usr/bin/env python
"""Where the time of a frame goes, from its file to its features; and what it was at an earlier commit.

    .venv/bin/python scripts/profile_frame.py [--before COMMIT] [--turns 30] [--frames 16]

Frames are simulated on a PILATUS 1M (1043 × 981, int32) once; every step is measured on one core, in turns with the
other version, which runs in a process of its own from a copy of that commit. Times are medians over the turns, so that
the ratios hold on a machine that does other things as well. Below the steps, the functions that take longest, by
cProfile. The patterns of both versions must be the same: exit code 1 if they are not.
"""

import argparse
import cProfile
import hashlib
import json
import os
import pstats
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Collection
from io import BytesIO
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SEED = 302
SHOWN = 12
"""Functions that are listed."""


def measured(folder: Path) -> None:
    """Answer every line of the standard input with one turn of all steps; the last answer is the profile."""
    import numpy as np

    from laue_dask.config import EncoderConfig, Recipe
    from laue_dask.features.encode import Network
    from laue_dask.io.block_files import checksum
    from laue_dask.io.frames import discover, read_frame
    from laue_dask.io.shards import read_shard
    from laue_dask.reduction import detector_mask as detector
    from laue_dask.reduction import reduce as preprocess

    refs, recipe = discover(folder), Recipe()
    frames = np.stack([read_frame(ref) for ref in refs])
    mask, memory = detector.detector_mask(frames), np.empty_like(frames[:1])
    network, valid = Network.load(EncoderConfig(), recipe), np.ones(len(frames), bool)
    reduced = preprocess.reduce_frames(frames, mask, recipe)
    steps: dict[str, Callable[[], Any]] = {
        "read and check": lambda: [read_shard([ref], mask, frames.dtype, memory=memory) for ref in refs],
        "checksum": lambda: [checksum(frame) for frame in frames],
        "reduce": lambda: [preprocess.reduce_frames(frame[None], mask, recipe) for frame in frames],
        "encode": lambda: network.extract(reduced, valid),
    }
    digest = hashlib.sha256(reduced.tobytes()).hexdigest()
    for line in sys.stdin:
        found = {}
        profile = cProfile.Profile() if line.strip() == "profile" else None
        for name, step in steps.items():
            if profile:
                profile.enable()
            begun = time.perf_counter()
            step()
            found[name] = 1e3 * (time.perf_counter() - begun) / len(frames)
            if profile:
                profile.disable()
        answer: dict[str, Any] = {"ms": found, "digest": digest}
        if profile:
            rows = pstats.Stats(profile).get_stats_profile().func_profiles.items()
            longest = sorted(rows, key=lambda row: -row[1].tottime)[:SHOWN]
            answer["profile"] = [(name, 1e3 * one.tottime / len(frames)) for name, one in longest]
        print(json.dumps(answer), flush=True)


class Version:
    """A version of the package in a process of its own."""

    def __init__(self, root: Path, frames: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, __file__, "--steps", str(frames)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=root
        )
        self.turns: list[dict[str, float]] = []
        self.digest = ""
        self.ask("first")  # compiles, and does not count
        self.turns.clear()

    def ask(self, what: str) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("no pipes")
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit("this version cannot be measured: it lacks a function that is measured here")
        answer: dict[str, Any] = json.loads(line)
        self.turns.append(answer["ms"])
        self.digest = answer["digest"]
        return answer

    def median(self, step: str) -> float:
        return statistics.median(turn[step] for turn in self.turns)

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def checked_out(commit: str, folder: Path) -> Path:
    """A copy of the package at a commit."""
    packed = subprocess.run(["git", "archive", commit, "laue_dask"], cwd=REPOSITORY, capture_output=True)
    if packed.returncode:
        print(f"--before {commit}: {packed.stderr.decode().strip()}", file=sys.stderr)
        sys.exit(2)
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def simulate(folder: Path, count: int) -> None:
    from laue_dask.simulate.detector import DETECTORS
    from laue_dask.simulate.scan import write_scan
    from laue_dask.simulate.specimens import specimen

    write_scan(specimen("messy", (count // 4, 4), 3), DETECTORS["pilatus1m"], folder, seed=SEED)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="COMMIT", help="an earlier version")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.steps:
        measured(given.steps)
        return 0
    if given.turns < 1:
        parser.error(f"--turns {given.turns}: one or more was expected")
    with tempfile.TemporaryDirectory() as name:
        frames = Path(name) / "frames"
        before = checked_out(given.before, Path(name) / "before") if given.before else None
        simulate(frames, given.frames)
        versions = {}
        if before:
            versions[given.before[:10]] = Version(before, frames)
        versions["now"] = Version(REPOSITORY, frames)
        for _ in range(given.turns):
            for version in versions.values():
                version.ask("turn")
        profiles = {label: version.ask("profile")["profile"] for label, version in versions.items()}
        for version in versions.values():
            version.close()
    show(versions, profiles)
    return int(len({version.digest for version in versions.values()}) > 1)


def show(versions: dict[str, Version], profiles: dict[str, list[tuple[str, float]]]) -> None:
    """Print the tables."""
    first, last = next(iter(versions.values())), versions["now"]
    print("| ms per frame |", " | ".join(versions), "| ratio |" if len(versions) > 1 else "|")
    print("|---" * (len(versions) + 1 + (len(versions) > 1)) + "|")
    steps = list(last.turns[0])
    for step in steps:
        cells = [f"{version.median(step):.2f}" for version in versions.values()]
        print("|", " | ".join([step, *cells, *ratio(first.median(step), last.median(step), versions)]), "|")
    totals = [sum(version.median(step) for step in steps) for version in versions.values()]
    print("|", " | ".join(["all", *(f"{one:.2f}" for one in totals), *ratio(totals[0], totals[-1], versions)]), "|")
    for label, rows in profiles.items():
        print(f"\n{label}: functions that take longest, ms per frame")
        for function, ms in rows:
            print(f"  {ms:6.3f}  {Path(function).name}")
    same = len({version.digest for version in versions.values()}) == 1
    if len(versions) > 1:
        print(f"\npatterns: {'the same to the last bit' if same else 'DIFFERENT'}")


def ratio(before: float, now: float, versions: Collection[str]) -> list[str]:
    return [f"{before / now:.2f} ×"] if len(versions) > 1 else []


if __name__ == "__main__":
    sys.exit(main())
