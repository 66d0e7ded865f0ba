"""`peaks`: positions and intensities of the brightest peaks as features, which the paper's outlook suggests.

A list of peaks has no order and no fixed length. Each peak becomes a plane wave sampled at fixed frequencies, and a
pattern the sum of its peaks' waves: random Fourier features (Rahimi and Recht, 2007), with the frequencies laid out
evenly instead of drawn. The scalar product of two such vectors is, up to what 128 frequencies can resolve, the sum of
exp(−d² / 2 `PEAK_TOLERANCE_PX`²) over all pairs of a peak of one pattern and a peak of the other at distance d,
weighted with their intensities: two patterns are alike where their peaks coincide, and their distance grows as the
peaks move apart.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laue_dask.features.extractors import Sample
from laue_dask.reduction.pattern_peaks import MAX_PEAKS, SMOOTHING_SIGMA_PX, find_peaks
from laue_dask.runtime.compiled_loops import compiled

PEAKS_VERSION = 1
"""Raised when the same patterns would get other features."""

PEAK_TOLERANCE_PX = 4.0
"""Pixels by which a peak moves before it looks like another one."""

N_FREQUENCIES = 128
"""Each gives two features, a cosine and a sine."""


@dataclass(frozen=True)
class Peaks:
    """The brightest peaks of a pattern as a vector of unit length; zeros where there is none."""

    name = "peaks"
    on_gpu = False
    learns = False
    n_features = 2 * N_FREQUENCIES

    @property
    def digest(self) -> str:
        """Hash of the settings."""
        settings = f"peaks {PEAKS_VERSION} {SMOOTHING_SIGMA_PX} {MAX_PEAKS} {PEAK_TOLERANCE_PX} {N_FREQUENCIES}"
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


def embed(peaks: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the vector (256,) of unit length of the peaks (n, 3) of a pattern, in any order; zeros where they are
    none.
    """
    return _waves(peaks, _FREQUENCIES).astype(np.float32)


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


_FREQUENCIES = _spiral(N_FREQUENCIES, PEAK_TOLERANCE_PX)


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
