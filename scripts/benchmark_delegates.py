#!/usr/bin/env python
"""How many delegates lie in one domain, on simulated scans with known truth: nearest to the centroid, and as chosen.

Usage: .venv/bin/python scripts/benchmark_delegates.py [--seeds 701 702 703] [--shape 20 20] [--kinds grains twins ...]
           [--cache FOLDER]

For the true K and 2K of each scan, with the default clustering: share of delegates, and of the first four members of a
cluster, at which the beam lies in one domain (`Specimen.edge` of the simulation), for the nearest members (Definition
11 of the paper) and as `laue_dask.pipeline.stages.delegates` chooses them; the best that the clusters allow: whether
they have a member in one domain at all; and clusters that are told to have none, among them those that have one. The
demo's scan (twins, 24 × 30, seed 7) comes first, with K = 6. Developed on that scan and the seeds 601 and 602.

Exit code 1 if fewer delegates than before lie in one domain, over all scans.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr
from benchmark_encoder import ENCODER, Row, scan_path, simulate_scan
from numpy.typing import NDArray

from laue_dask.config import ClusteringConfig, Recipe
from laue_dask.pipeline.stages import segmentation
from laue_dask.pipeline.stages.delegates import N_RANKS, TWO_DOMAINS, DelegateChooser, with_delegates
from laue_dask.pipeline.stages.mixed_points import Patterns
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.runtime.progress import QuietProgress
from laue_dask.segmentation import labeling
from laue_dask.segmentation.pca import IncrementalPCA
from laue_dask.simulate.reduced import ReducedScan

SEEDS = (701, 702, 703)
KINDS = ("grains", "twins", "fine_twins", "bent", "messy", "messy_twins", "low_counts")
DEMO = ("twins", (24, 30), 7, (6,))


@dataclass
class Counted:
    """Of one segmentation: clusters, and shares of delegates and of the first four members that lie in one domain."""

    clusters: int
    nearest: float
    nearest_four: float
    chosen: float
    chosen_four: float
    possible: float
    told: int
    told_wrongly: int


def measure(path: Path, more: tuple[int, ...]) -> dict[int, Counted]:
    """Figures of each K of one scan."""
    scan = ReducedScan.load(path)
    n, shape = len(scan.patterns), (scan.domain.shape[0], scan.domain.shape[1])
    pca = IncrementalPCA(n_components=0.99)
    table = np.asarray(pca.fit_transform(Row(ENCODER, "default").fitted(scan.patterns)(scan.patterns)), np.float32)
    where, k = SpecimenMap(np.ones(n, bool), shape), len(np.unique(scan.domain))
    X, m = da.from_array(table, chunks=table.shape), int(pca.n_components_)
    with tempfile.TemporaryDirectory() as folder:
        array = zarr.create_array(
            Path(folder) / "reduced", shape=scan.patterns.shape, chunks=(64, 128, 128), dtype="u1"
        )
        array[:] = scan.patterns
        patterns = Patterns(Recipe(), [(array, where)])
        asked = sorted({*more, k, 2 * k})
        made = segmentation.clusters(
            X, m, where, asked, ClusteringConfig(), progress=QuietProgress(), patterns=patterns
        )
        chooser = DelegateChooser(X[:, :m], where, patterns, client=None)
        return {one.k: counted(with_delegates(one, chooser, where, m), table[:, :m], scan) for one in made}


def counted(one: segmentation.Segmentation, X: NDArray[np.float32], scan: ReducedScan) -> Counted:
    """Figures of one segmentation."""
    pure, labels = ~scan.edge.ravel(), one.labels.ravel()
    nearest = labeling.ranked_delegates(X, labels, one.centroids[:, : X.shape[1]], count=N_RANKS)
    if one.delegates is None or one.delegates_mixed is None:
        raise ValueError("no delegates")
    told = one.delegates_mixed[:, 0] == TWO_DOMAINS
    possible = np.bincount(labels[pure], minlength=one.n_clusters) > 0
    firsts = [float(pure[rows[:, 0]].mean()) for rows in (nearest, one.delegates)]
    fours = [float(pure[rows[rows >= 0]].mean()) for rows in (nearest, one.delegates)]
    return Counted(
        one.n_clusters,
        firsts[0],
        fours[0],
        firsts[1],
        fours[1],
        float(possible.mean()),
        int(told.sum()),
        int((told & possible).sum()),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "laue-dask-benchmark")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--shape", type=int, nargs=2, default=(20, 20), metavar=("NY", "NX"))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    shape = (options.shape[0], options.shape[1])
    scans = [DEMO, *((kind, shape, seed, ()) for kind in options.kinds for seed in options.seeds)]
    print("| scan | K | clusters | nearest (four) | chosen (four) | possible | told | of these wrongly |")
    print("|---|---|---|---|---|---|---|---|")
    every: list[Counted] = []
    with dask.config.set(scheduler="synchronous"):
        for kind, size, seed, more in scans:
            simulate_scan(options.cache, kind, size, seed)
            for k, one in measure(scan_path(options.cache, kind, size, seed), more).items():
                every.append(one)
                print(line(f"{kind}, {size[0]} × {size[1]}, seed {seed} | {k}", one), flush=True)
    total = sum(one.clusters for one in every)

    def mean(name: str) -> float:
        return sum(getattr(one, name) * one.clusters for one in every) / total

    shares = [mean(name) for name in ("nearest", "nearest_four", "chosen", "chosen_four", "possible")]
    told, wrongly = (sum(getattr(one, name) for one in every) for name in ("told", "told_wrongly"))
    print(line("*all* | ", Counted(total, *shares, told, wrongly)))
    return int(shares[2] < shares[0])


def line(title: str, one: Counted) -> str:
    """A row of the table."""
    cells = f"{one.nearest:.2f} ({one.nearest_four:.2f}) | {one.chosen:.2f} ({one.chosen_four:.2f})"
    return f"| {title} | {one.clusters} | {cells} | {one.possible:.2f} | {one.told} | {one.told_wrongly} |"


if __name__ == "__main__":
    sys.exit(main())
