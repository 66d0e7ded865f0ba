#!/usr/bin/env python
"""What TLS on the loopback interface costs a local run: start-up of its workers, and the rate and time of whole runs.

    .venv/bin/python scripts/benchmark_security.py [--turns 5] [--shape 20 30] [--workers 2]

Runs with and without take turns on one machine; medians are printed as one line of JSON. `--turns` runs of each kind
are commands of their own, as a person would give them; workers are started `STARTS` times for each kind.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, get_args

from laue_dask.compute import cluster, fork_server
from laue_dask.config import LocalWorkersConfig
from laue_dask.simulate.detector import DETECTORS
from laue_dask.simulate.scan import write_scan
from laue_dask.simulate.specimens import specimen

Kind = Literal["tls", "none"]

STARTS = 12
"""Times that workers are started with each kind."""

PATTERNS_PER_S = "patterns_per_second"


def start_s(kind: Kind, workers: int) -> float:
    """Seconds until workers have done their first task; the process that they are forked from is there already."""
    begun = time.perf_counter()
    with cluster.start(LocalWorkersConfig(count=workers, gpu="never", security=kind, report=False)) as running:
        running.client.submit(len, "ab").result()
        return time.perf_counter() - begun


def run(frames: Path, out: Path, kind: Kind, workers: int) -> dict[str, Any]:
    """Time of a whole command, and what its record says of its rates."""
    config = out.with_suffix(".yaml")
    config.write_text(f"workers: {{security: {kind}, workers: {workers}, gpu: never}}\n", encoding="utf-8")
    command = [sys.executable, "-m", "laue_dask", "run", str(frames), "--out", str(out), "--config", str(config)]
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    took = time.perf_counter() - begun
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return {"seconds": took, PATTERNS_PER_S: next(iter(record[PATTERNS_PER_S].values()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="runs of each kind")
    parser.add_argument("--shape", type=int, nargs=2, default=(20, 30), help="points of the simulated scan")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    fork_server.start()
    kinds = get_args(Kind)
    for kind in kinds:
        start_s(kind, options.workers)  # what is imported once is not counted
    starts = [{kind: start_s(kind, options.workers) for kind in kinds} for _ in range(STARTS)]
    with tempfile.TemporaryDirectory(prefix="laue-dask-security-") as name:
        folder = Path(name)
        frames = folder / "frames"
        write_scan(specimen("grains", tuple(options.shape), 3), DETECTORS["pilatus1m"], frames, seed=1)
        turns = []
        for turn in range(options.turns):
            order = kinds if turn % 2 else kinds[::-1]
            turns.append({kind: run(frames, folder / f"{kind}-{turn}", kind, options.workers) for kind in order})
    found: dict[str, Any] = {"points": options.shape[0] * options.shape[1], "turns": options.turns}
    for what, pairs in (
        ("start_s", starts),
        ("run_s", [{kind: turn[kind]["seconds"] for kind in kinds} for turn in turns]),
        (PATTERNS_PER_S, [{kind: turn[kind][PATTERNS_PER_S] for kind in kinds} for turn in turns]),
    ):
        for kind in kinds:
            found[f"{what}_{kind}"] = round(statistics.median(pair[kind] for pair in pairs), 3)
        found[f"{what}_ratio"] = round(statistics.median(pair["tls"] / pair["none"] for pair in pairs), 3)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
