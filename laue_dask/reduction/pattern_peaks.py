"""The brightest peaks of a reduced pattern, to a fraction of its pixels."""

import math

import numpy as np
from numpy.typing import NDArray

from laue_dask.runtime.compiled_loops import compiled

SMOOTHING_SIGMA_PX = 1.0
"""Sigma in pixels of the Gaussian that makes one maximum of a spot."""

MAX_PEAKS = 60
"""Peaks of a pattern that count."""


def find_peaks(pattern: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Find the brightest peaks of a pattern.

    Parameters
    ----------
    pattern : (128, 128) uint8
        Reduced.

    Returns
    -------
    peaks : (n, 3) float64
        Position v, u in pixels, to a fraction of one, and intensity of each local maximum of the smoothed pattern, the
        brightest first, at most `MAX_PEAKS`. The intensity is the height above the brightest peak left out, so that
        a peak enters the list at 0 and not with a jump.
    """
    return _brightest(_maxima(pattern, _SMOOTHING_KERNEL), MAX_PEAKS)


def _gaussian(sigma: float) -> NDArray[np.float64]:
    offsets = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel: NDArray[np.float64] = weights / weights.sum()
    return kernel


_SMOOTHING_KERNEL = _gaussian(SMOOTHING_SIGMA_PX)


@compiled
def _maxima(pattern: NDArray[np.uint8], kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Position and height (n, 3) of the local maxima of the smoothed pattern, in the order of the pixels."""
    size, reach = pattern.shape[0], kernel.size // 2
    # A frame of zeros around both: neither the filter nor the maxima then need to ask where the border is.
    rows = np.zeros((size + 2 * reach, size + 2))
    for v in range(size):
        for u in range(size):
            value = float(pattern[v, u])
            if value > 0:
                for k in range(max(-reach, -u), min(reach, size - 1 - u) + 1):
                    rows[v + reach, u + 1 + k] += kernel[reach + k] * value
    smooth = np.zeros((size + 2, size + 2))
    for v in range(size):
        for k in range(kernel.size):
            for u in range(1, size + 1):
                smooth[v + 1, u] += kernel[k] * rows[v + k, u]
    found = np.empty((size * size // 2, 3))
    n = 0
    for v in range(1, size + 1):
        for u in range(1, size + 1):
            h = smooth[v, u]
            # Of two equal neighbours the first is the maximum.
            if (
                h > smooth[v - 1, u - 1]
                and h > smooth[v - 1, u]
                and h > smooth[v - 1, u + 1]
                and h > smooth[v, u - 1]
                and h >= smooth[v, u + 1]
                and h >= smooth[v + 1, u - 1]
                and h >= smooth[v + 1, u]
                and h >= smooth[v + 1, u + 1]
            ):
                # The vertex of the parabola through the maximum and its neighbours; never further than half a pixel.
                found[n, 0] = v - 1 + _vertex(smooth[v - 1, u], h, smooth[v + 1, u])
                found[n, 1] = u - 1 + _vertex(smooth[v, u - 1], h, smooth[v, u + 1])
                found[n, 2] = h
                n += 1
    return found[:n]


@compiled
def _vertex(before: float, middle: float, after: float) -> float:
    curvature = 2 * middle - before - after
    return 0.5 * (after - before) / curvature if curvature > 0 else 0.0


@compiled
def _brightest(found: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    order = np.argsort(-found[:, 2], kind="mergesort")
    peaks = found[order[:count]]
    if len(order) > count:
        peaks[:, 2] -= found[order[count], 2]
    return peaks
