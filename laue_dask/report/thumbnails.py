"""Small pictures of a run's maps, a few hundred bytes to a few kilobytes each."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from laue_dask.io import results as io_results
from laue_dask.io.coordinates import MapScale
from laue_dask.report.canvas import MISSING_COLOUR, cluster_colours

MAX_THUMBNAIL_SIDE_PX = 140
"""Longest side in pixels; small maps are enlarged by whole numbers, so that points stay squares."""


def write_thumbnails(folder: Path, stem: Path, *, suggested: list[int]) -> list[str]:
    """Write `STEM.direct.png` (direct colouring) and `STEM.labels.png` (natural labels) of a run; their names.

    Parameters
    ----------
    suggested
        K of the scores' peaks: the labels shown are of the largest of them, or of the largest there are.
    """
    results = io_results.read(folder)
    there = [int(k) for k in results["k"].values]
    k = max([one for one in suggested if one in there] or there)
    labels = np.asarray(results["labels"].sel(k=k).values)
    direct = np.where((labels >= 0)[..., None], results["direct_rgb"].values, _rgb(MISSING_COLOUR))
    stem.parent.mkdir(parents=True, exist_ok=True)
    names = []
    for kind, picture in (("direct", direct), ("labels", colour_labels(labels, k))):
        path = stem.with_name(f"{stem.name}.{kind}.png")
        fit_to_side(picture.astype(np.uint8), aspect=MapScale.of(results).aspect).save(path, optimize=True)
        names.append(path.name)
    return names


def colour_labels(labels: NDArray[np.int32], k: int) -> NDArray[np.uint8]:
    """Return the colours, (ny, nx, 3), of natural labels, (ny, nx), as in every figure of K clusters."""
    colours = np.vstack([(255 * cluster_colours(k)(np.arange(k))[:, :3]).round(), _rgb(MISSING_COLOUR)]).astype(
        np.uint8
    )
    painted: NDArray[np.uint8] = colours[np.where(labels < 0, k, labels)]
    return painted


def fit_to_side(picture: NDArray[np.uint8], side: int = MAX_THUMBNAIL_SIDE_PX, *, aspect: float = 1.0) -> Image.Image:
    """Return a picture, (ny, nx, 3), of at most `side` pixels a side; its points are `aspect` times as high as wide."""
    ny, nx = picture.shape[:2]
    image = Image.fromarray(picture)
    if not np.isclose(aspect, 1.0):
        width = min(side / nx, side / (ny * aspect))
        size = (max(1, round(nx * width)), max(1, round(ny * aspect * width)))
        return image.resize(size, Image.Resampling.NEAREST if width >= 1 else Image.Resampling.BOX)
    if max(ny, nx) <= side:
        times = side // max(ny, nx)
        return image.resize((nx * times, ny * times), Image.Resampling.NEAREST)
    image.thumbnail((side, side), Image.Resampling.BOX)
    return image


def _rgb(colour: str) -> NDArray[np.uint8]:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.uint8)
