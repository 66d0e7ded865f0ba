"""`peaks`: positions and intensities of the brightest peaks as features, which the paper's outlook suggests.

A list of peaks has no order and no fixed length. Each peak becomes a plane wave sampled at fixed frequencies, and a
pattern the sum of its peaks' waves: random Fourier features (Rahimi and Recht, 2007), with the frequencies laid out
evenly instead of drawn. The scalar product of two such vectors is, up to what 128 frequencies can resolve, the sum of
exp(−d² / 2 `WIDTH`²) over all pairs of a peak of one pattern and a peak of the other at distance d, weighted with their
intensities: two patterns are alike where their peaks coincide, and their distance grows as the peaks move apart.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laue_dask.features.extractors import Sample
from laue_dask.runtime.compiling import compiled

VERSION = 1
"""Raised when the same patterns would get other features."""

SMOOTHING = 1.0
"""Sigma in pixels of the Gaussian that makes one maximum of a spot."""

BRIGHTEST = 60
"""Peaks of a pattern that count."""

WIDTH = 4.0
"""Pixels by which a peak moves before it looks like another one."""

FREQUENCIES = 128
"""Each gives two features, a cosine and a sine."""


@dataclass(frozen=True)
class Peaks:
    """The brightest peaks of a pattern as a vector of unit length; zeros where there is none."""

    name = "peaks"
    on_gpu = False
    learns = False
    n_features = 2 * FREQUENCIES

    @property
    def digest(self) -> str:
        """Hash of the settings."""
        settings = f"peaks {VERSION} {SMOOTHING} {BRIGHTEST} {WIDTH} {FREQUENCIES}"
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    def fit(self, sample: Sample, file: Path) -> "Peaks":
        """Return itself: nothing is learnt."""
        return self

    def extract(self, patterns: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """See `Extractor.extract`."""
        features = np.full((len(patterns), self.n_features), np.nan, dtype=np.float32)
        for i in np.flatnonzero(valid):
            features[i] = embed(find_peaks(patterns[i]))
        return features


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
        brightest first, at most `BRIGHTEST`. The intensity is the height above the brightest peak left out, so that
        a peak enters the list at 0 and not with a jump.
    """
    return _brightest(_maxima(pattern, _KERNEL), BRIGHTEST)


def embed(peaks: NDArray[np.float64]) -> NDArray[np.float32]:
    """Vector (256,) of unit length of the peaks (n, 3) of a pattern, in any order; zeros where they are none."""
    return _waves(peaks, _FREQUENCIES).astype(np.float32)


def _gaussian(sigma: float) -> NDArray[np.float64]:
    offsets = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel: NDArray[np.float64] = weights / weights.sum()
    return kernel


def _spiral(count: int, width: float) -> NDArray[np.float64]:
    """Frequencies (count, 2) in radians per pixel that fill a normal distribution of sigma 1 / `width` evenly.

    Radii are the distribution's quantiles; each direction follows the last by the golden section of a half turn (a
    frequency and its opposite give the same wave).
    """
    number = np.arange(count)
    radius = np.sqrt(-2 * np.log(1 - (number + 0.5) / count)) / width
    angle = number * math.pi * (math.sqrt(5) - 1) / 2
    frequencies: NDArray[np.float64] = radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    return frequencies


_KERNEL = _gaussian(SMOOTHING)
_FREQUENCIES = _spiral(FREQUENCIES, WIDTH)


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


@compiled
def _waves(peaks: NDArray[np.float64], frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
    count = len(frequencies)
    vector = np.zeros(2 * count)
    for i in range(len(peaks)):
        for j in range(count):
            phase = peaks[i, 0] * frequencies[j, 0] + peaks[i, 1] * frequencies[j, 1]
            vector[j] += peaks[i, 2] * math.cos(phase)
            vector[count + j] += peaks[i, 2] * math.sin(phase)
    length = math.sqrt((vector * vector).sum())
    return vector / length if length > 0 else vector
