#!/usr/bin/env python3
"""What it costs to place the frames of a large scan: benchmark_placement.py [--frames 100000]

Frames are links to a few TIFF files with a header of ESRF BM32: names, opening and reading headers are timed, from
the operating system's cache. With a given shape some hundred headers check it; without one all of them are read, here
by this process alone, in a run by all workers.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from laue_dask.io.frames import FrameRef, discover
from laue_dask.io.placement import place_frames
from laue_dask.io.positions import Positions
from laue_dask.pipeline.stages.frame_placement import read_positions

FILES = 100
"""Different ones."""


def main() -> None:
    """Print a line for each way to know a grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000)
    side = math.isqrt(parser.parse_args().frames)
    y, x = np.divmod(np.arange(side * side), side)
    stage = np.stack([2 + 0.001 * y, 1 + 0.001 * np.where(y % 2, side - 1 - x, x)], axis=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame = Image.fromarray(np.zeros((200, 200), dtype=np.uint16))
        for i in range(side * side):
            path = folder / f"img_{i:06d}.tif"
            if i < FILES:
                frame.save(path, description=f"{i} (Xech={1 + i / 1000:.4f} Yech=2.0 Zech=0.0 exposure=1.000)")
            else:
                path.hardlink_to(folder / f"img_{i % FILES:06d}.tif")
        begun = time.perf_counter()
        refs = discover(folder)
        print(f"{'names are listed':40s} {time.perf_counter() - begun:8.2f} s for {len(refs):,} frames")
        for what, shape in (("placed by names and --shape alone", None), ("--shape, checked by headers", (side, side))):
            _report(what, refs, stage, shape or (side, side), headers=shape is not None)
        _report("the grid from all headers", refs, stage, None, headers=True)


def _report(
    what: str, refs: Sequence[FrameRef], stage: np.ndarray, shape: tuple[int, int] | None, *, headers: bool
) -> None:
    count, reading = 0, 0.0

    def read(chosen: Sequence[int]) -> Positions:
        nonlocal count, reading
        begun = time.perf_counter()
        read_positions([refs[i] for i in chosen])
        reading += time.perf_counter() - begun
        count += len(chosen)
        return stage[list(chosen)]

    begun = time.perf_counter()
    found = place_frames(refs, shape=shape, positions=read if headers else None)
    if headers and found.order != "snake":
        raise SystemExit(f"placed wrongly: {found.line}")
    elapsed = time.perf_counter() - begun
    print(f"{what:40s} {elapsed:8.2f} s, of which {reading:.2f} s for {count:,} headers")


if __name__ == "__main__":
    main()
