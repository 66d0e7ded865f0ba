#!/usr/bin/env python
"""Quality on simulated scans with known truth, beside the baselines: the table of the README.

Usage: .venv/bin/python scripts/validate.py FOLDER [--seeds 11 12] [--shape 30 30] [--kinds grains twins ...]

Every kind of specimen is simulated as PILATUS 1M files with each seed, segmented, and compared with its truth: ARI at
the true K and homogeneity at 2K, over the interior and (in brackets) over all points. Exit code 1 if a promise is
broken: interior ARI >= 0.9 and homogeneity at 2K >= 0.97, and never more than 0.02 below PCA of the pixels.
`fine_twins` is shown without a promise: its lamellae are finer than the beam.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import numpy as np

from laue_dask import pipeline
from laue_dask.config import Config
from laue_dask.progress import default_progress
from laue_dask.simulate import campaign
from laue_dask.simulate.specimens import KINDS

ROWS = ("encoder", "untrained", "pixels", "pixels, widened")
PROMISED = {"ari_interior": 0.9, "homogeneity_interior": 0.97}
MARGIN = 0.02
NO_PROMISE = ("fine_twins",)


def figures(folder: Path, kind: str, seed: int, shape: tuple[int, int]) -> dict[str, dict[str, float]]:
    """ARI at the true K and homogeneity at 2K of each feature extractor on one scan."""
    frames, run = folder / f"{kind}-{seed}" / "frames", folder / f"{kind}-{seed}" / "run"
    config, progress = Config(quality="none"), default_progress()
    campaign.write_scan(kind, frames, shape=shape, seed=seed, detector="pilatus1m", config=config, progress=progress)
    pipeline.run(str(frames), run, config, command="scripts/validate.py", progress=progress)
    rows = pipeline.evaluate(run, frames / "truth.npz", workers=None, progress=progress)
    with np.load(frames / "truth.npz") as truth:
        k = len(np.unique(truth["domain"]))
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        name = str(row["features"])
        if row["k"] == k:
            found.setdefault(name, {}).update({n: float(row[n]) for n in ("ari", "ari_interior")})
        if row["k"] == 2 * k:
            found.setdefault(name, {}).update({n: float(row[n]) for n in ("homogeneity", "homogeneity_interior")})
    return found


def broken(kind: str, seed: int, found: dict[str, dict[str, float]]) -> list[str]:
    """Promises that a scan breaks."""
    if kind in NO_PROMISE:
        return []
    lines = []
    for name, least in PROMISED.items():
        ours, pixels = found["encoder"][name], max(found["pixels"][name], found["pixels, widened"][name])
        if ours < least:
            lines.append(f"{kind} seed {seed}: {name} {ours:.3f} < {least}")
        if ours < pixels - MARGIN:
            lines.append(f"{kind} seed {seed}: {name} {ours:.3f} is more than {MARGIN} below pixels {pixels:.3f}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12])
    parser.add_argument("--shape", type=int, nargs=2, default=(30, 30))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    options = parser.parse_args()
    failures: list[str] = []
    print("| specimen | " + " | ".join(ROWS) + " |")
    print("|---|" + "---|" * len(ROWS))
    for kind in options.kinds:
        figure: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for seed in options.seeds:
            found = figures(options.folder, kind, seed, tuple(options.shape))
            failures += broken(kind, seed, found)
            for name, values in found.items():
                for key, value in values.items():
                    figure[name][key].append(value)
        cells = []
        for name in ROWS:
            ari, ari_in, hom, hom_in = (
                mean(figure[name][key]) for key in ("ari", "ari_interior", "homogeneity", "homogeneity_interior")
            )
            cells.append(f"{ari_in:.3f} ({ari:.3f}) / {hom_in:.3f} ({hom:.3f})")
        print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{options.shape[0]} × {options.shape[1]} points, mean over seeds {options.seeds}")
    for line in failures:
        print("broken:", line)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
