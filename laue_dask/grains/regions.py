"""Coarse to dense (section 4.4, step 8 of the paper): regions of a coarse scan that are worth a dense one.

A place is interesting where neighbouring patterns differ: at boundaries, in small domains, where features vary fast.
"""

from dataclasses import dataclass

import numpy as np

from laue_dask.errors import InputError
from laue_dask.segmentation.pca import Array

MIN_INTEREST_FACTOR = 1.25
"""A region is proposed only where its interest is this many times that of the whole scan."""


@dataclass(frozen=True)
class Region:
    """A rectangle of scan points.

    Attributes
    ----------
    y0, y1, x0, x1
        First and last row and column, all inclusive.
    score
        Mean interest of its points in units of the mean over the scan.
    reason
        What makes it interesting, for people.
    """

    y0: int
    y1: int
    x0: int
    x1: int
    score: float
    reason: str


def interest(boundary: Array, labels: Array) -> tuple[Array, Array]:
    """Return what speaks for a dense scan at each point, both (ny, nx) float64 of mean 1 (or all 0), 0 without a
    pattern.

    Parameters
    ----------
    boundary
        (ny, nx), largest distance of a pattern to its neighbours, NaN where there is none.
    labels
        (ny, nx) grains or clusters as connected regions, −1 without a pattern.

    Returns
    -------
    variation
        How much the features vary.
    smallness
        How small the domain is that the point is in: one over its width in points.
    """
    there = labels >= 0
    size = np.bincount(labels[there], minlength=1)
    variation = np.where(np.isfinite(boundary) & there, boundary, 0.0).astype(np.float64)
    smallness = np.zeros(labels.shape)
    smallness[there] = 1 / np.sqrt(size[labels[there]])
    return _relative(variation, there), _relative(smallness, there)


def propose(boundary: Array, labels: Array, *, size: tuple[int, int], count: int = 5) -> list[Region]:
    """Return the rectangles worth a dense scan, the most interesting first, no two of which overlap.

    Parameters
    ----------
    boundary, labels
        As `interest` takes them.
    size
        (height, width) of the rectangles in points; cut to the scan.
    count
        Of rectangles, at most.

    Returns
    -------
    list of Region
        None where nothing stands out: an even scan needs no dense one.

    Raises
    ------
    InputError
        The maps differ in shape, or the size is none.
    """
    if boundary.shape != labels.shape:
        raise InputError(f"boundary map of {boundary.shape} points, label map of {labels.shape}")
    if min(size) < 1:
        raise InputError(f"regions of {size[0]} × {size[1]} points: give 1 × 1 or more")
    variation, smallness = interest(boundary, labels)
    height, width = min(size[0], labels.shape[0]), min(size[1], labels.shape[1])
    there = (labels >= 0).astype(np.float64)
    points = box_sums(there, (height, width))
    # A place that is half missing promises half as much.
    sums = [box_sums(part, (height, width)) / (height * width) for part in (variation, smallness)]
    score = np.where(points > 0, (sums[0] + sums[1]) / 2, -np.inf)
    found: list[Region] = []
    while len(found) < count:
        y, x = np.unravel_index(int(np.argmax(score)), score.shape)
        if not score[y, x] >= MIN_INTEREST_FACTOR:
            break
        parts = float(sums[0][y, x]), float(sums[1][y, x])
        inside = labels[y : y + height, x : x + width]
        reason = _reason(*parts, len(np.unique(inside[inside >= 0])))
        found.append(Region(int(y), int(y) + height - 1, int(x), int(x) + width - 1, float(score[y, x]), reason))
        # Every rectangle that would overlap with this one.
        score[max(0, y - height + 1) : y + height, max(0, x - width + 1) : x + width] = -np.inf
    return found


def quarter(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the size of a region that is a quarter of a scan (ny, nx) high and wide."""
    return max(2, shape[0] // 4), max(2, shape[1] // 4)


def box_sums(values: Array, size: tuple[int, int]) -> Array:
    """Return the sum of each rectangle of (height, width) inside the map (ny, nx), from its integral image."""
    integral = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    integral[1:, 1:] = values.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    height, width = size
    rows = integral[height:] - integral[:-height]
    return np.asarray(rows[:, width:] - rows[:, :-width])


def _relative(values: Array, there: Array) -> Array:
    mean = values[there].mean() if there.any() else 0.0
    return np.asarray(values / mean if mean > 0 else np.zeros(values.shape))


def _reason(variation: float, smallness: float, domains: int) -> str:
    said = []
    if variation >= MIN_INTEREST_FACTOR:
        said.append(f"features vary {variation:.1f} × as much as in the whole scan")
    if smallness >= MIN_INTEREST_FACTOR:
        said.append(f"small domains ({domains} here)")
    return "; ".join(said) or f"{domains} domains, features vary {variation:.1f} × as much as in the whole scan"
