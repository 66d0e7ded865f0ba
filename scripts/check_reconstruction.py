#!/usr/bin/env python
"""Whether reconstructions of real frames are recognisable: how many of their brightest peaks survive.

Usage: .venv/bin/python scripts/check_reconstruction.py [FRAME ...] [--encoder NAME] [--out FOLDER]

Each frame is reduced, encoded and decoded; `fidelity.py` says what a peak is and when it survives. By
default all published frames in $LAUE_DASK_DATA or ../shared/data are taken. A picture of pattern and reconstruction
goes to FOLDER for each. Exit code 1 if less than 80 % of the 30 brightest peaks of a frame survive.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
from fidelity import MAX_PEAKS, Fidelity, fidelity, find_peaks
from matplotlib.figure import Figure
from numpy.typing import NDArray

from laue_dask.config import Recipe
from laue_dask.errors import LaueDaskError
from laue_dask.features import weights
from laue_dask.features.network import Autoencoder
from laue_dask.io.frames import FrameRef, read_frame
from laue_dask.reduction.detector_mask import detector_mask
from laue_dask.reduction.reduce import reduce_frames

FORMATS = (".tif", ".tiff", ".mccd", ".edf", ".cbf")
PROMISED = 0.8

Image = NDArray[np.float32]


def published() -> list[Path]:
    """The real frames, where they are."""
    data = Path(os.environ.get("LAUE_DASK_DATA", Path(__file__).parents[2] / "shared" / "data"))
    return sorted(path for path in (data / "frames").rglob("*") if path.suffix in FORMATS)


def reconstruct(model: Autoencoder, path: Path, recipe: Recipe) -> tuple[Image, Image]:
    """Smoothed pattern and reconstruction of a frame, (128, 128) in [0, 1]."""
    frame = read_frame(FrameRef.parse(str(path)))
    pattern = reduce_frames(frame, detector_mask(frame[None]), recipe)
    with torch.inference_mode():
        scaled = torch.from_numpy(pattern)[:, None].float() / 255
        target = model.smooth(scaled)
        drawn = torch.sigmoid(model.decode(model.encode(scaled, target)))
    return target[0, 0].numpy(), drawn[0, 0].numpy()


def draw(path: Path, name: str, target: Image, drawn: Image, found: Fidelity) -> None:
    """Picture of both, the peaks that are looked for marked."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    position = find_peaks(target).position[: found.peaks]
    for axes, image, title in (
        (left, target, f"{name}: pattern"),
        (right, drawn, f"reconstruction: {found.survived} of {found.peaks} peaks, {found.false} false"),
    ):
        axes.imshow(image, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        axes.scatter(position[:, 1], position[:, 0], s=60, facecolors="none", edgecolors="white", linewidths=0.4)
        axes.set(title=title, xticks=[], yticks=[])
    figure.savefig(path, dpi=90)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path, nargs="*")
    parser.add_argument("--encoder", default="default", help="weights in place of the shipped ones")
    parser.add_argument("--out", type=Path, help="pictures go there")
    options = parser.parse_args()
    frames = options.frames or published()
    if not frames:
        print("no real frames here: name some, or set LAUE_DASK_DATA", file=sys.stderr)
        return 0
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    shares = []
    try:
        model, card = weights.load(options.encoder)
        print(f"| frame | of the {MAX_PEAKS} brightest peaks survive | share | drawn | false |")
        print("|---|---|---|---|---|")
        for path in frames:
            target, drawn = reconstruct(model, path, card.recipe)
            found = fidelity(target, drawn)
            shares.append(found.survived / max(found.peaks, 1))
            kept = f"{found.survived} of {found.peaks}"
            print(f"| {path.name} | {kept} | {shares[-1]:.2f} | {found.drawn} | {found.false} |", flush=True)
            if options.out is not None:
                draw(options.out / f"{path.stem}.png", path.name, target, drawn, found)
    except LaueDaskError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if min(shares) >= PROMISED else 1


if __name__ == "__main__":
    sys.exit(main())
