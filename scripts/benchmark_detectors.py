#!/usr/bin/env python
"""What of a frame the recipe should look at, on detectors that are far from square: the whole, or the centred square.

Usage: .venv/bin/python scripts/benchmark_detectors.py [--development] [--shape 16 16] [--kinds grains messy ...]
           [--detectors eiger500k ...] [--seeds 1 2 ...] [--jobs 1]

Each scan is simulated once for each seed, and every frame of it is reduced in each of these ways:

- whole      128 × 128 bins over rows and columns, the recipe's default;
- square     the centred square alone, version 1 of the recipe;
and, with --development, from which the first was chosen,
- letterbox  the frame in the middle of a black square of its longer side: bins are square, few of them are filled;
- folded     the frame cut into strips that lie below one another, as nearly square as can be.

Figures are those of `benchmark_encoder.py`, in the interior, where the beam lies in one domain: ARI of k-means at the
true K (mean ± standard deviation over the seeds) / homogeneity at 2K / nearest neighbours of the same domain; then the
ARI of the grains by neighbourhood. Of the encoder, and in the last columns interior ARI of the untrained network and
of the pixels' principal components, for each way. Seeds 401 to 403 are for development; nothing was decided on the
seeds 501 to 505 of the verdict, which is printed at the end.

Exit code 1 if the interior ARI of the whole frame, mean of all scans of a detector, is lower than that of the square.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import dask
import numpy as np
import torch
from benchmark_encoder import ENCODER, PIXELS, UNTRAINED, Row, _figures
from numpy.typing import NDArray

from laue_dask.config import Recipe
from laue_dask.grains.neighbourhood import NeighbourhoodGrains
from laue_dask.reduction.detector_mask import detector_mask
from laue_dask.reduction.reduce import reduce_frames
from laue_dask.segmentation import scores
from laue_dask.segmentation.pca import IncrementalPCA
from laue_dask.simulate.detector import detector
from laue_dask.simulate.reduced import N_MASK_FRAMES, POINTS_PER_REPEAT, ReducedScan, sample_frames
from laue_dask.simulate.scan import frame
from laue_dask.simulate.specimens import specimen

DEVELOPMENT, VERDICT = (401, 402, 403), (501, 502, 503, 504, 505)
KINDS = ("grains", "twins", "two_phases", "bent", "messy", "low_counts")
SCREENS = ("eiger500k", "lambda750k", "pilatus300kw", "pilatus1m")
WHOLE, SQUARE, LETTERBOX, FOLDED = "whole", "square", "letterbox", "folded"
ROWS = (Row(ENCODER, "default"), Row(UNTRAINED, "untrained"), Row(PIXELS))
SHOWN = ("ari_interior", "homogeneity", "neighbour")
EQUAL = 0.005
"""Difference of two means of ARI that is none."""

Array = NDArray[Any]
Found = dict[str, dict[str, dict[str, float]]]


def letterboxed(array: Array, fill: Any) -> Array:
    """(rows, columns) in the middle of a square."""
    side = max(array.shape)
    top, left = ((side - n) // 2 for n in array.shape)
    square = np.full((side, side), fill, array.dtype)
    square[top : top + array.shape[0], left : left + array.shape[1]] = array
    return square


def folded(array: Array) -> Array:
    """(rows, columns) cut across its longer side into strips below one another; some columns at the end are lost."""
    upright = array if array.shape[1] >= array.shape[0] else array.T
    rows, columns = upright.shape
    strips = max(1, round((columns / rows) ** 0.5))
    width = columns // strips
    return np.ascontiguousarray(np.concatenate([upright[:, i * width : (i + 1) * width] for i in range(strips)]))


WAYS: dict[str, Callable[[Array, Array], Array]] = {
    WHOLE: lambda one, mask: reduce_frames(one, mask, Recipe(version=2))[0],
    SQUARE: lambda one, mask: reduce_frames(one, mask, Recipe(version=1))[0],
    LETTERBOX: lambda one, mask: reduce_frames(letterboxed(one, 0), letterboxed(mask, True), Recipe())[0],
    FOLDED: lambda one, mask: reduce_frames(folded(one), folded(mask), Recipe())[0],
}


def measure(kind: str, name: str, shape: tuple[int, int], seed: int, ways: Sequence[str]) -> Found:
    """Figures of every way and row on one scan."""
    torch.set_num_threads(1)
    made, screen = specimen(kind, shape, seed), detector(name)
    mask = detector_mask(sample_frames(made, screen, seed, N_MASK_FRAMES))
    points = [
        *((i, 0) for i in range(shape[0] * shape[1])),
        *((i, 1) for i in range(0, made.domain.size, POINTS_PER_REPEAT)),
    ]
    reduced = {way: np.empty((len(points), 128, 128), np.uint8) for way in ways}
    for i, (point, repeat) in enumerate(points):
        recorded = frame(made, screen, point, seed=seed, repeat=repeat)
        for way in ways:
            reduced[way][i] = WAYS[way](recorded, mask)
    n, repeated = made.domain.size, np.arange(0, made.domain.size, POINTS_PER_REPEAT)
    found: Found = {}
    with dask.config.set(scheduler="synchronous"):
        for way, patterns in reduced.items():
            scan = ReducedScan(patterns[:n], patterns[n:], repeated, made.domain, made.edge)
            found[way] = {row.name: _figures(scan, row) for row in ROWS}
            found[way][ENCODER]["grains"] = grains(scan)
    return found


def grains(scan: ReducedScan) -> float:
    """ARI in the interior of the grains by neighbourhood."""
    pca = IncrementalPCA(n_components=0.99)
    X = pca.fit_transform(ROWS[0].fitted(scan.patterns)(scan.patterns))[:, : pca.n_components_]
    one = NeighbourhoodGrains().fit(X, shape=scan.domain.shape, patterns=lambda rows: scan.patterns[rows]).labels_
    return scores.adjusted_rand(scan.domain, one.reshape(scan.domain.shape), where=~scan.edge)


def cell(every: Sequence[Found], way: str) -> str:
    """Figures of one way over the seeds."""

    def values(row: str, name: str) -> list[float]:
        return [one[way][row][name] for one in every]

    first = f"{np.mean(values(ENCODER, SHOWN[0])):.3f} ± {np.std(values(ENCODER, SHOWN[0])):.3f}"
    rest = [f"{np.mean(values(ENCODER, name)):.3f}" for name in (*SHOWN[1:], "grains")]
    return " / ".join([first, *rest])


def rivals(every: Sequence[Found], row: str, ways: Sequence[str]) -> str:
    """Interior ARI of another row for each way."""
    return " / ".join(f"{np.mean([one[way][row]['ari_interior'] for one in every]):.3f}" for way in ways)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--development", action="store_true", help="seeds and ways of the development")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--shape", type=int, nargs=2, default=(16, 16), metavar=("NY", "NX"))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--detectors", nargs="+", default=list(SCREENS))
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    shape = (options.shape[0], options.shape[1])
    seeds = options.seeds or (DEVELOPMENT if options.development else VERDICT)
    ways = list(WAYS) if options.development else [WHOLE, SQUARE]
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    worse = []
    print("| scan | " + " | ".join(ways) + f" | untrained, {' / '.join(ways)} | pixels, {' / '.join(ways)} |")
    print("|---" * (len(ways) + 3) + "|")
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        jobs = {
            (name, kind): [pool.submit(measure, kind, name, shape, seed, ways) for seed in seeds]
            for name in options.detectors
            for kind in options.kinds
        }
        for name in options.detectors:
            of_detector: list[Found] = []
            for kind in options.kinds:
                every = [job.result() for job in jobs[name, kind]]
                of_detector += every
                show(f"{kind}@{name}", every, ways)
            show(f"*{name}, mean*", of_detector, ways)
            whole, square = (float(np.mean([f[way][ENCODER]["ari_interior"] for f in of_detector])) for way in ways[:2])
            if whole < square - EQUAL:
                worse.append(f"{name}: the whole frame has {whole:.3f}, the square {square:.3f}")
    print(f"\n{shape[0]} × {shape[1]} points, seeds {', '.join(map(str, seeds))}")
    for line in worse:
        print("worse:", line)
    return 1 if worse else 0


def show(title: str, every: Sequence[Found], ways: Sequence[str]) -> None:
    """Print a line of the table."""
    cells = [cell(every, way) for way in ways] + [rivals(every, row, ways) for row in (UNTRAINED, PIXELS)]
    print("| " + " | ".join([title, *cells]) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
