"""The detector mask, and which frames can be used: both are found from the scan's own frames.

Detector files say too little: PILATUS gaps hold zero or −1, EIGER marks pixels with the largest integer, the corners
of a round CCD are zero, and hot pixels are in no file at all. A zero of a photon-counting detector, though, is data.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from laue_dask.reduction import kernels

Frame = NDArray[Any]
Mask = NDArray[np.bool_]

BLOCK_SIDE_PX = 64
"""Side in pixels of the neighbourhoods that say what a live pixel would have counted."""

MAX_NEGATIVE_SHARE = 0.25
"""With a larger share of negative pixels a frame had a dark image subtracted: its negatives are no markers."""

GAP_LOG_IMPROBABILITY = 40.0
"""A run of zeros is a gap if its probability is below exp(−40): once in 10¹¹ frames of 10⁶ pixels."""

MIN_DEAD_PIXEL_COUNTS = 25.0
"""A single zero is a dead pixel where its neighbours counted at least this much over the sample, ..."""

MAX_DEAD_NEIGHBOUR_SHARE = 0.01
"""... and where a smaller share than this of them is zero."""

HOT_PIXEL_SIGMAS = 20.0
MAX_HOT_NEIGHBOUR_SHARE = 0.15
"""A hot pixel: so many sigmas above its surroundings, and no neighbour reaches this share of its height."""

_N_QUIET_FRAMES = 9


def frame_fault(frame: Frame, mask: Mask | None = None) -> str | None:
    """Return why a frame cannot be used, or None.

    Parameters
    ----------
    frame
        (rows, columns), counts.
    mask
        (rows, columns), True where the pixel is unusable.
    """
    values = frame if mask is None else frame[~mask]
    if values.size == 0:
        return "every pixel is masked"
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
        if values.size == 0:
            return "no finite pixel"
    low, high = values.min(), values.max()
    if low == high:
        return "all pixels are zero" if low == 0 else f"all pixels have the same value {low}"
    if high <= 0:
        return f"no pixel above zero, the largest is {high}"
    return None


def value_limits(frame: Frame, mask: Mask | None = None) -> tuple[float, float]:
    """Return the lowest value that is data, and the first that is not any more; the rest are markers.

    Nobody counts to the largest 32 bit integers: they mark gaps (EIGER) and defects. An 8 or 16 bit camera does
    saturate, so there the largest value is data in one frame (but see `detector_mask`). Pixels of `mask` have no say.
    """
    ceiling = float(np.iinfo(frame.dtype).max - 1) if frame.dtype.name in ("uint32", "int32") else np.inf
    if frame.dtype.kind == "u":
        return 0.0, ceiling
    negative = frame < 0
    if not negative.any():
        return 0.0, ceiling
    live = int(frame.size)
    if mask is not None:
        negative &= ~mask
        live -= int(np.count_nonzero(mask))
    return (-np.inf if np.count_nonzero(negative) > MAX_NEGATIVE_SHARE * live else 0.0), ceiling


def detector_mask(sample: Frame) -> Mask:
    """Find the unusable pixels of a detector from a sample of a scan's frames.

    Masked are (1) pixels that are not finite, negative or at the largest 32 bit integer in most frames; (2) pixels
    within one of the largest 8 or 16 bit integer in every frame, unless their surroundings shine too, as those of a
    saturated reflection do; (3) runs of zeros along a row or a column, zero in every frame, that are improbable: with
    the neighbourhood's share f of pixels that ever counted, a run of n has probability (1 − f)ⁿ, and below exp(−40) it
    is a gap; (4) single pixels, zero in every frame, where the neighbours counted 25 or more in all and hardly any of
    them is zero; (5) hot pixels: far above all their neighbours in the median (up to two frames: the minimum) of the
    sample, with no shoulder. Reflections are two or three pixels wide, so one that is the same in every frame (a
    substrate's) stays.

    Parameters
    ----------
    sample
        (s, rows, columns), s ≥ 1 frames from all over the scan.

    Returns
    -------
    (rows, columns) bool
        True where the pixel is unusable.
    """
    marked, total, empty = _tally(sample)
    mask = marked | _stuck(sample, marked)
    empty &= ~mask
    counted = ~mask & ~empty
    if not counted.any():
        return mask | empty
    occupancy = ndimage.maximum_filter(_coarse(counted.astype(np.float64), ~mask, np.mean), 3, mode="nearest")
    evidence = -np.log1p(-np.minimum(_spread(occupancy, mask.shape), 0.999))
    gap = kernels.improbable_runs(empty, mask, evidence, GAP_LOG_IMPROBABILITY)
    gap |= kernels.improbable_runs(
        np.ascontiguousarray(empty.T),
        np.ascontiguousarray(mask.T),
        np.ascontiguousarray(evidence.T),
        GAP_LOG_IMPROBABILITY,
    ).T
    empty &= ~gap
    mask |= gap
    zeros = _spread(_coarse(empty.astype(np.float64), ~mask, np.mean), mask.shape)
    counts = _spread(_coarse(total, counted, np.median), mask.shape)
    mask |= empty & (zeros < MAX_DEAD_NEIGHBOUR_SHARE) & (counts >= MIN_DEAD_PIXEL_COUNTS)
    return mask | _hot(_quiet(sample), mask)


def _tally(sample: Frame) -> tuple[Mask, NDArray[np.float64], Mask]:
    """Pixels that are markers in most frames, their summed data, and those that are zero whenever they are data."""
    shape = sample.shape[1:]
    markers, total, empty = np.zeros(shape, np.int64), np.zeros(shape), np.ones(shape, np.bool_)
    for frame in sample:
        lowest, ceiling = value_limits(frame)
        data = (frame >= lowest) & (frame < ceiling)
        markers += ~data
        total += np.where(data, frame, 0)
        empty &= ~data | (frame == 0)
    marked: Mask = 2 * markers > len(sample)
    return marked, total, empty


def _stuck(sample: Frame, marked: Mask) -> Mask:
    """Pixels at the largest 8 or 16 bit integer in every frame, in groups whose rim is no brighter than the rest."""
    if sample.dtype.name not in ("uint8", "uint16"):
        return np.zeros(marked.shape, np.bool_)
    top = np.iinfo(sample.dtype).max
    stuck: Mask = np.asarray((sample >= top - 1).all(axis=0))
    if not stuck.any():
        return stuck
    quiet = _quiet(sample)
    groups, n = ndimage.label(stuck, np.ones((3, 3)))
    owner = np.where(stuck, 0, ndimage.maximum_filter(groups, 3, mode="constant"))
    rim = ndimage.median(quiet, owner, np.arange(1, n + 1))
    level = _spread(_coarse(quiet, ~stuck & ~marked, np.median), marked.shape)
    around = ndimage.median(level, groups, np.arange(1, n + 1))
    shines = np.asarray(rim) - around > 0.05 * (top - around)
    dark: Mask = stuck & ~np.concatenate([[False], shines])[groups]
    return dark


def _quiet(sample: Frame) -> NDArray[np.float64]:
    """Per-pixel median of up to nine frames from all over the sample, the minimum of two."""
    n = min(len(sample), _N_QUIET_FRAMES)
    chosen = np.sort(sample[np.arange(n) * len(sample) // n], axis=0)
    return np.asarray(chosen[(n - 1) // 2], np.float64)


def _hot(quiet: NDArray[np.float64], mask: Mask) -> Mask:
    """Single pixels far above all their live neighbours."""
    usable = ~mask & np.isfinite(quiet)
    background = _spread(_coarse(quiet, usable, np.median), mask.shape)
    sigma = np.maximum(1.4826 * _spread(_coarse(np.abs(quiet - background), usable, np.median), mask.shape), 1e-6)
    if bool((quiet[usable] == np.floor(quiet[usable])).all()):
        sigma = np.maximum(sigma, 1.0)
    values = np.where(usable, quiet, -np.inf)
    ring = np.ones((3, 3), np.bool_)
    ring[1, 1] = False
    peak = values > ndimage.maximum_filter(values, footprint=ring, mode="constant", cval=-np.inf)
    rows, columns = np.nonzero(usable & peak & (quiet - background > HOT_PIXEL_SIGMAS / 2 * sigma))
    eight = [6, 7, 8, 11, 13, 16, 17, 18]
    padded = np.pad(np.where(usable, quiet, np.nan), 2, constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))[rows, columns].reshape(len(rows), 25)
    known = np.isfinite(around[:, eight]).sum(axis=1) >= 5
    rows, columns, around = rows[known], columns[known], around[known]
    base = np.nanmedian(around, axis=1)
    height = quiet[rows, columns] - base
    shoulder = np.nanmax(around[:, eight], axis=1) - base
    noise = sigma[rows, columns]
    hot = (height > HOT_PIXEL_SIGMAS * noise) & (shoulder < MAX_HOT_NEIGHBOUR_SHARE * height + 3 * noise)
    found = np.zeros(mask.shape, np.bool_)
    found[rows[hot], columns[hot]] = True
    return found


def _coarse(values: NDArray[np.float64], usable: Mask, statistic: Any) -> NDArray[np.float64]:
    """A statistic of the usable pixels of each block; blocks without any take their neighbours' mean."""
    rows, columns = (-(-n // BLOCK_SIDE_PX) for n in values.shape)
    grid = np.full((rows, columns), np.nan)
    for i, j in np.ndindex(rows, columns):
        block = np.s_[i * BLOCK_SIDE_PX : (i + 1) * BLOCK_SIDE_PX, j * BLOCK_SIDE_PX : (j + 1) * BLOCK_SIDE_PX]
        chosen = values[block][usable[block]]
        if chosen.size:
            grid[i, j] = statistic(chosen)
    kernels.fill_holes(grid)
    return grid


def _spread(grid: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The block's value at each of its pixels."""
    return grid[np.arange(shape[0])[:, None] // BLOCK_SIDE_PX, np.arange(shape[1]) // BLOCK_SIDE_PX]
