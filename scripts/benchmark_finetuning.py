#!/usr/bin/env python
"""What fine-tuning an encoder on the scan itself is worth: the table of the README.

Usage: .venv/bin/python scripts/benchmark_finetuning.py [--cache FOLDER] [--seeds 101 102 103] [--shape 24 24]
           [--kinds messy messy_twins ...] [--encoder NAME]

Scans and figures are those of `benchmark_encoder.py`. Every scan is fine-tuned on without its labels, as
`laue-dask train --from --scan` does in its default configuration, and measured before and after. A scan that
fine-tuning refuses keeps its weights. Nothing is tuned on the default seeds; use others for development.

Exit code 1 if a promise is broken: the mean interior ARI over the seeds rises by more than 0.01 on messy scans and
messy twins, and falls by no more than that on any other.
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

from laue_dask.errors import InputError, LaueDaskError
from laue_dask.features import weights
from laue_dask.runtime.progress import QuietProgress
from laue_dask.simulate.reduced import ReducedScan
from laue_dask.training.finetuning import UnlabelledObjective
from laue_dask.training.fitting import fit
from laue_dask.training.training_config import FineTuningConfig

KINDS = (*encoders.MESSY, "fine_twins", "twins", "subgrains", "low_counts", "two_phases", "grains", "bent")
METRICS = ("ari_interior", "ari", "homogeneity", "neighbour", "stability")


def fine_tuned(scan: ReducedScan, start: str, out: Path, config: FineTuningConfig) -> str:
    """Write the weights that a scan's patterns make of others; returns them, or `start` where nothing is learnt."""
    model, card = weights.load(start)
    shape = scan.domain.shape
    reduced = zarr.create_array({}, shape=scan.patterns.shape, chunks=(64, 128, 128), dtype="u1")
    reduced[:] = scan.patterns
    try:
        objective = UnlabelledObjective(config, model, reduced, np.ones(len(scan.patterns), bool), (shape[0], shape[1]))
    except InputError as error:
        print(error, file=sys.stderr)
        return start
    trained, _ = fit(model, objective, config, progress=QuietProgress())
    out.unlink(missing_ok=True)
    weights.save(trained, out, card.model_copy(update={"architecture": trained.architecture}))
    return str(out)


def broken_promise(kind: str, before: float, after: float) -> str:
    """What the mean interior ARI of a kind of scan should have done, where it did not; else nothing."""
    change = f"{kind}: interior ARI {before:.3f} → {after:.3f}"
    if kind in encoders.MESSY and after <= before + encoders.MARGIN:
        return f"{change}, a rise is promised"
    return f"{change}, falls by more than {encoders.MARGIN}" if after < before - encoders.MARGIN else ""


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
    parser.add_argument("--seeds", type=int, nargs="+", default=list(encoders.SEEDS))
    parser.add_argument("--shape", type=int, nargs=2, default=(24, 24), metavar=("NY", "NX"))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), metavar="SCAN")
    parser.add_argument("--encoder", default="default", help="weights to begin with")
    options = parser.parse_args()
    if unknown := [kind for kind in options.kinds if kind not in encoders.SCANS]:
        parser.error(f"{unknown[0]} is no scan: choose of {', '.join(encoders.SCANS)}")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    options.cache.mkdir(parents=True, exist_ok=True)
    shape, config, broken = tuple(options.shape), FineTuningConfig(device="cpu"), []
    print("| scan | seed | interior ARI | ARI | homogeneity at 2K | nearest neighbour | stability | seconds |")
    print("|---" * 8 + "|")
    for kind in options.kinds:
        every, took = [], []
        for seed in options.seeds:
            try:
                encoders.simulate_scan(options.cache, kind, shape, seed)
                found, seconds = compare(encoders.scan_path(options.cache, kind, shape, seed), options.encoder, config)
            except LaueDaskError as error:
                print(error, file=sys.stderr)
                return 2
            every.append(found)
            took.append(seconds)
            print(f"| {kind} | {seed} | {_cells([found])} | {seconds:.0f} |", flush=True)
        print(f"| {kind} | *mean* | {_cells(every)} | {np.mean(took):.0f} |", flush=True)
        before, after = (_mean(every, row, "ari_interior") for row in ("before", "after"))
        if line := broken_promise(kind, before, after):
            broken.append(line)
    for line in broken:
        print("broken:", line)
    return int(bool(broken))


def _mean(every: list[dict[str, encoders.Figures]], row: str, metric: str) -> float:
    return float(np.mean([found[row][metric] for found in every]))


def _cells(every: list[dict[str, encoders.Figures]]) -> str:
    return " | ".join(f"{_mean(every, 'before', m):.3f} → {_mean(every, 'after', m):.3f}" for m in METRICS)


if __name__ == "__main__":
    sys.exit(main())
