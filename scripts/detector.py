#!/usr/bin/env python
"""A simulated detector: writes the frames of a scan into a folder, one after another, as a real one does.

Usage: .venv/bin/python scripts/detector.py OUT [--shape 30 40] [--rate 5] [--kind grains] [--detector pilatus1m]
           [--binning 1] [--seed 1] [--scan FOLDER] [--pieces 4] [--pause AFTER SECONDS] [--missing N ...]
           [--late N ...] [--dark FIRST LAST] [--log FILE]

Frames are simulated first (or taken from --scan, a folder of `laue-dask simulate`). Then every frame is written under
its final name, in pieces with a moment between them, so that whoever looks may see a part of a file. After AFTER frames
the detector pauses for SECONDS. Frames that are --missing (numbers from 0) are never written, those that are --late
come three frames later, and frames FIRST to LAST have a thousandth of their counts: the beam is lost.

--log gets a line per frame: its name, and when its file was complete, in seconds since 1970.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from laue_dask.simulate.detector import DETECTORS
from laue_dask.simulate.scan import write_scan
from laue_dask.simulate.specimens import specimen

LATE = 3
"""Frames by which one that is late comes later."""


def simulated(folder: Path, kind: str, shape: tuple[int, int], detector: str, binning: int, seed: int) -> list[Path]:
    """Frames of a scan, in order of acquisition."""
    made = DETECTORS[detector] if binning == 1 else DETECTORS[detector].binned(binning)
    write_scan(specimen(kind, shape, seed), made, folder, seed=seed)
    return sorted(folder.glob("*.tif"))


def in_order(count: int, late: set[int], missing: set[int]) -> Iterator[int]:
    """Numbers of the frames as they are written."""
    waiting: list[int] = []
    for number in range(count + LATE):
        if number < count and number not in missing:
            if number in late:
                waiting.append(number)
            else:
                yield number
        while waiting and number >= min(waiting[0] + LATE, count - 1):
            yield waiting.pop(0)


def darkened(content: bytes) -> bytes:
    """The same TIFF with a thousandth of its counts; what the header says is left out."""
    with Image.open(BytesIO(content)) as image:
        values = np.asarray(image)
    out = BytesIO()
    Image.fromarray(np.where(values > 0, values // 1000, values)).save(out, format="tiff")
    return out.getvalue()


def write_in_pieces(path: Path, content: bytes, pieces: int, moment: float) -> float:
    """Write a file as a detector does that streams it; when it was complete."""
    size = -(-len(content) // pieces)
    with path.open("wb") as file:
        for i in range(pieces):
            if i:
                time.sleep(moment)
            file.write(content[i * size : (i + 1) * size])
            file.flush()
    return time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", type=int, nargs=2, default=(30, 40))
    parser.add_argument("--rate", type=float, default=5.0)
    parser.add_argument("--kind", default="grains")
    parser.add_argument("--detector", default="pilatus1m")
    parser.add_argument("--binning", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--pieces", type=int, default=4)
    parser.add_argument("--pause", type=float, nargs=2, default=(0, 0), metavar=("AFTER", "SECONDS"))
    parser.add_argument("--missing", type=int, nargs="*", default=())
    parser.add_argument("--late", type=int, nargs="*", default=())
    parser.add_argument("--dark", type=int, nargs=2, default=(0, -1), metavar=("FIRST", "LAST"))
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    shape = tuple(given.shape)
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        frames = (
            sorted(given.scan.glob("*.tif"))
            if given.scan
            else simulated(Path(made), given.kind, shape, given.detector, given.binning, given.seed)
        )
        count = min(len(frames), shape[0] * shape[1])
        print(f"detector: {count} frames at {given.rate:g} per second", file=sys.stderr)
        due = time.monotonic()
        for done, number in enumerate(in_order(count, set(given.late), set(given.missing))):
            if given.pause[1] and done == given.pause[0]:
                time.sleep(given.pause[1])
                due = time.monotonic()
            content = frames[number].read_bytes()
            if given.dark[0] <= number <= given.dark[1]:
                content = darkened(content)
            time.sleep(max(0.0, due - time.monotonic()))
            due += 1 / given.rate
            moment = 0.5 / given.rate / max(1, given.pieces - 1)
            complete = write_in_pieces(given.out / frames[number].name, content, given.pieces, moment)
            if given.log:
                with given.log.open("a", encoding="utf-8") as log:
                    log.write(json.dumps({"name": frames[number].name, "complete": complete}) + "\n")


if __name__ == "__main__":
    main()
