#!/usr/bin/env python
"""What jobs that end cost: blocks of work on a real SLURM of one node, while workers reach the end of their time.

    scripts/one_node_slurm start /tmp/slurm && export SLURM_CONF=/tmp/slurm/slurm.conf
    .venv/bin/python scripts/benchmark_cluster.py [--expiries 20] [--cancel]

Prints one line, and fails where a block is missing, was computed with another result, or where more than one block was
lost for each worker that ended. `--cancel` ends jobs with `scancel` instead, one after another.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import cloudpickle
import numpy as np
from dask.delayed import delayed

from laue_dask.compute import cluster
from laue_dask.compute.run import run_blocks
from laue_dask.config import BatchWorkersConfig
from laue_dask.io.journal import Journal

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def work(block: int, folder: Path, seconds: float) -> dict[str, int]:
    """Take a while, and leave marks at the beginning and at the end."""
    name = f"{block}-{uuid.uuid4().hex}"
    (folder / f"{name}.begun").touch()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.05)
    value = int(np.random.default_rng(block).integers(2**31))
    (folder / f"{name}.done").touch()
    return {"value": value}


def ended(logs: Path, *, cancel: bool) -> int:
    """How many workers have ended before the run was over."""
    what = "signal-15" if cancel else "Closing worker gracefully"
    return sum(what in path.read_text(errors="replace") for path in logs.glob("*.err"))


def cancel_jobs(over: threading.Event, every: float) -> None:
    """End the job that has run longest, again and again."""
    while not over.wait(every):
        command = ["squeue", "--noheader", "--states=running", "--sort=i", "--format=%i"]
        jobs = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        if len(jobs) > 1:
            subprocess.run(["scancel", jobs[0]], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expiries", type=int, default=20, help="workers that end before the work is done, at least")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--lifetime", type=int, default=10, help="seconds that a worker lives")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a block")
    parser.add_argument("--cancel", action="store_true", help="scancel jobs instead")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lifetime = None if options.cancel else options.lifetime
    config = BatchWorkersConfig(
        kind="slurm",
        count=options.workers,
        memory="1GiB",
        walltime=3600,
        lifetime=lifetime,
        timeout=300,
        report=False,
    )
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="laue-dask-cluster-") as name:
        folder = Path(name)
        marks, journal, over = folder / "marks", Journal(folder / "journal.jsonl"), threading.Event()
        marks.mkdir()
        with cluster.start(config, folder=folder) as workers:
            if options.cancel:
                threading.Thread(target=cancel_jobs, args=(over, options.lifetime / 2), daemon=True).start()
            blocks = 0
            # As many blocks as it takes, a few at a time, in one run.
            while ended(folder / "cluster", cancel=options.cancel) < options.expiries:
                blocks += 4 * options.workers
                tasks = [delayed(work, pure=False)(block, marks, options.seconds) for block in range(blocks)]
                receipts = run_blocks(tasks, client=workers.client, journal=journal)
            over.set()
            expired = ended(folder / "cluster", cancel=options.cancel)
        started, done = (len(list(marks.glob(f"*.{what}"))) for what in ("begun", "done"))
    wrong = [r["block"] for r in receipts if r["value"] != int(np.random.default_rng(r["block"]).integers(2**31))]
    found = {
        "expiries": expired,
        "blocks": blocks,
        "finished": len(receipts),
        "wrong": len(wrong),
        "interrupted": started - done,
        "computed_again": started - blocks,
        "seconds": round(time.monotonic() - begun, 1),
        "ideal_seconds": blocks * options.seconds / options.workers,
    }
    print(json.dumps(found))
    if wrong or len(receipts) < blocks or started - blocks > expired:
        sys.exit("blocks are missing, wrong, or were lost more than once for each worker that ended")


if __name__ == "__main__":
    main()
