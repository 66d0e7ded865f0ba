#!/usr/bin/env python
"""Where the time of a whole run goes, stage by stage; and what it was at an earlier commit.

    .venv/bin/python scripts/profile_run.py [--before COMMIT] [--turns 3] [--frames 2048]

`laue-dask run --no-store-frames` on TIFF files of a PILATUS 1M (1043 × 981, int32): 64 simulated patterns, whose files
are repeated as hard links. Versions run in turns, the earlier one from a copy of that commit; each runs once before, to
compile its loops. Times are medians over the turns, so that the ratios hold on a machine that does other things as
well. Stages are those of `run.json`, as far as one waits for them: what is encoded while others are read counts as
ingest. The rest is what a run spends before, between and after them: imports, workers, the end of Dask.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmark import repeated_files
from profile_frame import REPOSITORY, checked_out, ratio, simulate

SIMULATED = 64
WIDTH = 32
REST, ALL = "the rest", "all"


def run(root: Path, files: Path, out: Path, count: int) -> dict[str, float]:
    """Seconds of the stages of one run with the package at `root`, of the rest, and of all."""
    shutil.rmtree(out, ignore_errors=True)
    options = ["--no-store-frames", "--shape", str(count // WIDTH), str(WIDTH)]
    if any("--insist" in path.read_text(encoding="utf-8") for path in (root / "laue_dask").rglob("*.py")):
        options.append("--insist")  # the stage positions of the headers repeat
    command = [sys.executable, "-m", "laue_dask", "run", str(files), "--out", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    begun = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    took = time.perf_counter() - begun
    if done.returncode:
        sys.exit(f"this version cannot be measured:\n{done.stderr}")
    stages: dict[str, float] = json.loads((out / "run.json").read_text(encoding="utf-8"))["seconds"]
    return {**stages, REST: took - sum(stages.values()), ALL: took}


def show(turns: dict[str, list[dict[str, float]]]) -> None:
    """Print the table."""
    print("| s |", " | ".join(turns), "| ratio |" if len(turns) > 1 else "|")
    print("|---" * (len(turns) + 1 + (len(turns) > 1)) + "|")
    for stage in dict.fromkeys(stage for found in reversed(turns.values()) for stage in found[-1]):
        medians = [statistics.median(turn.get(stage, 0.0) for turn in found) for found in turns.values()]
        cells = [f"{one:.2f}" for one in medians]
        ratios = ratio(medians[0], medians[-1], turns) if all(medians) else [""] * (len(turns) > 1)
        print("|", " | ".join([stage, *cells, *ratios]), "|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="COMMIT", help="an earlier version")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--frames", type=int, default=2048, help=f"a multiple of {WIDTH}")
    given = parser.parse_args()
    if given.frames < WIDTH or given.frames % WIDTH:
        parser.error(f"--frames {given.frames}: a multiple of {WIDTH} was expected")
    if given.turns < 1:
        parser.error(f"--turns {given.turns}: one or more was expected")
    with tempfile.TemporaryDirectory() as name:
        roots = {"now": REPOSITORY}
        if given.before:
            roots = {given.before[:10]: checked_out(given.before, Path(name) / "before"), **roots}
        simulate(Path(name) / "few", SIMULATED)
        files = repeated_files(Path(name), Path(name) / "few", (given.frames // WIDTH, WIDTH))
        turns: dict[str, list[dict[str, float]]] = {version: [] for version in roots}
        for turn in range(1 + given.turns):
            for version, root in roots.items():
                found = run(root, files, Path(name) / "run", given.frames)
                print(f"turn {turn}: {version}: {found[ALL]:.1f} s", file=sys.stderr, flush=True)
                turns[version] += [found] if turn else []
    show(turns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
