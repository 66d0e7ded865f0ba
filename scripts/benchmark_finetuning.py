#!/usr/bin/env python
"""What fine-tuning an encoder on the scan itself is worth: the table of the README.

Usage: .venv/bin/python scripts/benchmark_finetuning.py [--cache FOLDER] [--seeds 203 204] [--shape 30 30]
           [--kinds messy messy_twins ...] [--encoder NAME]

Scans and figures are those of `benchmark_encoder.py`, of other seeds. Every scan is fine-tuned on without its labels,
as `laue-dask train --from --scan` does in its default configuration, and measured before and after.

Exit code 1 if a scan's interior ARI falls by more than 0.01.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import benchmark_encoder as encoders
import numpy as np
import torch
import zarr

from laue_dask.encoder import weights
from laue_dask.encoder.finetuning import Unlabelled
from laue_dask.encoder.fitting import fit
from laue_dask.encoder.training_config import FineTuningConfig
from laue_dask.errors import InputError, LaueDaskError
from laue_dask.progress import QuietProgress
from laue_dask.simulate.reduced import ReducedScan

KINDS = ("messy", "messy_twins", "fine_twins", "subgrains", "low_counts", "two_phases")
SEEDS = (203, 204)
MARGIN = 0.01
METRICS = ("ari_interior", "ari", "homogeneity", "neighbour")


def fine_tuned(scan: ReducedScan, start: str, out: Path, config: FineTuningConfig) -> str:
    """Write the weights that a scan's patterns make of others; returns them, or `start` where nothing is learnt."""
    model, card = weights.load(start)
    shape = scan.domain.shape
    reduced = zarr.create_array({}, shape=scan.patterns.shape, chunks=(64, 128, 128), dtype="u1")
    reduced[:] = scan.patterns
    try:
        objective = Unlabelled(config, model, reduced, np.ones(len(scan.patterns), bool), (shape[0], shape[1]))
    except InputError as error:
        print(error, file=sys.stderr)
        return start
    trained, _ = fit(model, objective, config, progress=QuietProgress())
    out.unlink(missing_ok=True)
    weights.save(trained, out, card)
    return str(out)


def compare(path: Path, start: str, config: FineTuningConfig) -> tuple[dict[str, dict[str, float]], float]:
    """Figures of one scan before and after, and the seconds that the fine-tuning took."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        after = fine_tuned(ReducedScan.load(path), start, Path(folder) / "tuned.safetensors", config)
        seconds = time.monotonic() - begun
        return encoders.measure_scan(path, [encoders.Row("before", start), encoders.Row("after", after)]), seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "laue-dask-benchmark")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--shape", type=int, nargs=2, default=(30, 30), metavar=("NY", "NX"))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), metavar="SCAN")
    parser.add_argument("--encoder", default="default", help="weights to begin with")
    options = parser.parse_args()
    if unknown := [kind for kind in options.kinds if kind not in encoders.SCANS]:
        parser.error(f"{unknown[0]} is no scan: choose of {', '.join(encoders.SCANS)}")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    options.cache.mkdir(parents=True, exist_ok=True)
    shape, config, worse = tuple(options.shape), FineTuningConfig(device="cpu"), False
    print("| scan | seed | interior ARI | ARI | homogeneity at 2K | nearest neighbour | seconds |")
    print("|---" * 7 + "|")
    for kind in options.kinds:
        for seed in options.seeds:
            try:
                encoders.simulate_scan(options.cache, kind, shape, seed)
                found, seconds = compare(encoders.scan_path(options.cache, kind, shape, seed), options.encoder, config)
            except LaueDaskError as error:
                print(error, file=sys.stderr)
                return 2
            cells = " | ".join(f"{found['before'][m]:.3f} → {found['after'][m]:.3f}" for m in METRICS)
            print(f"| {kind} | {seed} | {cells} | {seconds:.0f} |", flush=True)
            worse |= found["after"]["ari_interior"] < found["before"]["ari_interior"] - MARGIN
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())
