#!/usr/bin/env python
"""Grains by neighbourhood at the automatic threshold, on simulated scans with known truth.

Usage: .venv/bin/python scripts/benchmark_grains.py [--cache FOLDER] [--seeds 101 102 103] [--shape 30 30]
           [--kinds bent messy messy_twins] [--jobs 2]

For each scan: adjusted Rand index (ARI) with the true domains in the interior, where the beam lies in one of them.
Rows: k-means at the true K, grains by the features alone, grains as a run makes them, with peaks where features leave
doubts; and the same with components of the pixels in place of the encoder. Nothing is tuned on the default seeds.

Exit code 1 if the mean ARI of a run's grains is below 0.95 on `bent` or `messy`.
"""

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

# the scans, and the features of each row, are those of the encoder's benchmark
from benchmark_encoder import SEEDS, Row, scan_path, simulate_scan

from laue_dask.grains.neighbourhood import NeighbourhoodGrains
from laue_dask.segmentation import scores
from laue_dask.segmentation.clustering import KMeans
from laue_dask.segmentation.pca import IncrementalPCA
from laue_dask.simulate.reduced import ReducedScan

NEEDED = {"bent": 0.95, "messy": 0.95}


def measure(path: Path) -> dict[str, float]:
    """ARI in the interior of each row."""
    scan = ReducedScan.load(path)
    shape, interior, found = scan.domain.shape, ~scan.edge, {}
    for name, row in (("encoder", Row("encoder", "default")), ("pixels", Row("pixels", None))):
        pca = IncrementalPCA(n_components=0.99)
        X = pca.fit_transform(row.fitted(scan.patterns)(scan.patterns))[:, : pca.n_components_]
        k = len(np.unique(scan.domain))
        labels = {
            "k-means": KMeans(k).fit(X).labels_,
            "features": NeighbourhoodGrains().fit(X, shape=shape).labels_,
            "with peaks": NeighbourhoodGrains().fit(X, shape=shape, patterns=lambda rows: scan.patterns[rows]).labels_,
        }
        for method, one in labels.items():
            found[f"{name}, {method}"] = scores.adjusted_rand(scan.domain, one.reshape(shape), where=interior)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "laue-dask-benchmark")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--shape", type=int, nargs=2, default=(30, 30), metavar=("NY", "NX"))
    parser.add_argument("--kinds", nargs="+", default=["bent", "messy", "messy_twins"], metavar="SCAN")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    shape = (options.shape[0], options.shape[1])
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [(kind, seed) for kind in options.kinds for seed in options.seeds]
        for number, _ in enumerate(pool.map(partial(_simulate, options.cache, shape), jobs), start=1):
            print(f"simulated {number} of {len(jobs)}", file=sys.stderr, flush=True)
    low = []
    for kind in options.kinds:
        every = [measure(scan_path(options.cache, kind, shape, seed)) for seed in options.seeds]
        print(f"{kind}, {shape[0]} × {shape[1]}, seeds {', '.join(map(str, options.seeds))}: ARI in the interior")
        for method in every[0]:
            values = [one[method] for one in every]
            each = " ".join(f"{value:.3f}" for value in values)
            print(f"  {method:20s} {np.mean(values):.3f} ± {np.std(values):.3f}   {each}", flush=True)
        mean = float(np.mean([one["encoder, with peaks"] for one in every]))
        if mean < NEEDED.get(kind, 0):
            low.append(f"{kind}: {mean:.3f}, {NEEDED[kind]} is promised")
    for line in low:
        print(f"broken: {line}")
    return 1 if low else 0


def _simulate(cache: Path, shape: tuple[int, int], job: tuple[str, int]) -> None:
    simulate_scan(cache, job[0], shape, job[1])


if __name__ == "__main__":
    sys.exit(main())
