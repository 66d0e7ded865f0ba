"""The two loops of the renderer: they draw spots as expected photons, and the background as it is read out.

Drawing a million Poisson numbers with NumPy takes longer than everything else together, so what a background pixel
reads (photons, gain, read noise, pedestal) is drawn by inverting its cumulative distribution with a guide table: exact
to 2^-32, one 64-bit random number per pixel.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr
from scipy.stats import poisson

from laue_dask.runtime.compiled_loops import compiled
from laue_dask.simulate.detector import Detector

FloatArray = npt.NDArray[np.float64]
Frame = npt.NDArray[np.int32] | npt.NDArray[np.uint16]

_N_LEVELS = 96
_GUIDE_LENGTH = 256
_SPOT_SHELLS = ((0.91, 1.0, 1e-3), (0.04, 3.0, 0.05), (0.05, 12.0, 0.5))
"""(share of the photons, width in spot widths, least photons at the centre that are worth drawing): the spot, its
tail, and the halo of diffuse scattering that the brightest spots of real frames have."""


def add_spots(
    photons: npt.NDArray[np.float32],
    row: FloatArray,
    column: FloatArray,
    total: FloatArray,
    smear: FloatArray,
    sigma_px: float,
) -> None:
    """Add spots to a picture of expected photons, in place.

    A spot is a Gaussian of `sigma_px` convolved with its smear (a Gaussian of the same variance as a uniform streak),
    with two wider shells about it.

    Parameters
    ----------
    photons
        (rows, columns) float32.
    row, column, total
        (n,): centre in pixels and photons of each spot.
    smear
        (n, 2): length of the streak along rows and columns, pixels.
    sigma_px
        Standard deviation without smear.
    """
    for share, width, least in _SPOT_SHELLS:
        variance = (width * sigma_px) ** 2 + smear**2 / 12
        drawn = np.flatnonzero(share * total > least * 2 * np.pi * (width * sigma_px) ** 2)
        _stamp(
            photons,
            row[drawn],
            column[drawn],
            share * total[drawn],
            variance[drawn, 0],
            variance[drawn, 1],
            (smear[:, 0] * smear[:, 1])[drawn] / 12,
            least / 5,
        )


@compiled
def _stamp(
    photons: Any, row: Any, column: Any, total: Any, row_var: Any, column_var: Any, covariance: Any, floor: float
) -> None:
    rows, columns = photons.shape
    for i in range(row.size):
        determinant = row_var[i] * column_var[i] - covariance[i] ** 2
        peak = total[i] / (2 * np.pi * np.sqrt(determinant))
        if peak <= floor:
            continue
        # Out to where `floor` photons are expected, at most six standard deviations.
        reach = min(36.0, 2 * np.log(peak / floor))
        half_rows, half_columns = np.sqrt(reach * row_var[i]), np.sqrt(reach * column_var[i])
        a = 0.5 * column_var[i] / determinant
        b = covariance[i] / determinant
        c = 0.5 * row_var[i] / determinant
        for y in range(max(0, int(np.ceil(row[i] - half_rows))), min(rows, int(row[i] + half_rows) + 1)):
            dy = y - row[i]
            for x in range(
                max(0, int(np.ceil(column[i] - half_columns))), min(columns, int(column[i] + half_columns) + 1)
            ):
                dx = x - column[i]
                exponent = a * dy * dy - b * dy * dx + c * dx * dx
                if 2 * exponent < reach:
                    photons[y, x] += peak * np.exp(-exponent)


def background(
    row_profile: npt.NDArray[np.float32],
    column_profile: npt.NDArray[np.float32],
    level: tuple[float, float],
    detector: Detector,
    *,
    rng: np.random.Generator,
) -> Frame:
    """Return the frame of background alone, expecting ``low + (high - low) × row_profile × column_profile`` counts per
    pixel.

    The expectation takes one of 96 values between the two levels; a pixel in between is drawn from one or the other
    neighbour with the matching probability, which keeps its mean exact.

    Parameters
    ----------
    row_profile, column_profile
        (rows,) and (columns,) float32 in [0, 1].
    level
        Lowest and highest expectation, counts per pixel above the pedestal.
    detector
        Gain, read noise, pedestal and dtype.
    rng
        Seeds the generator of the loop: two frames from one generator state are equal.

    Returns
    -------
    ndarray
        (rows, columns) of the detector's dtype.
    """
    lowest, thresholds, guide = _tables(
        level, detector.gain, detector.read_noise, detector.pedestal if detector.dtype == "uint16" else 0.0
    )
    frame = np.empty((row_profile.size, column_profile.size), dtype=detector.dtype)
    _draw(frame, row_profile, column_profile, lowest, thresholds, guide, rng.integers(1, 2**63, dtype=np.uint64))
    return frame


def _tables(
    level: tuple[float, float], gain: float, read_noise: float, pedestal: float
) -> tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.int32]]:
    """Cumulative distributions of what a pixel reads, one row per expectation, scaled to 2^32, and where to start."""
    photons = np.linspace(level[0], level[1], _N_LEVELS) / gain
    most = int(poisson.isf(1e-12, photons[-1])) + 2
    probability = poisson.pmf(np.arange(most), photons[:, None])
    if read_noise == 0 and gain == 1:
        lowest, chance = 0, probability
    else:
        lowest = max(0, int(pedestal - 7 * read_noise))
        reading = np.arange(lowest, int(pedestal + gain * most + 7 * read_noise) + 2)
        expected = pedestal + gain * np.arange(most)
        below = ndtr((reading[None, 1:] - 0.5 - expected[:, None]) / max(read_noise, 1e-6))
        chance = probability @ np.diff(below, axis=1, prepend=0.0)
    cumulative = np.cumsum(chance, axis=1)
    cumulative /= cumulative[:, -1:]
    guide = np.stack(
        [np.searchsorted(row, np.arange(_GUIDE_LENGTH) / _GUIDE_LENGTH, side="right") for row in cumulative]
    )
    return lowest, np.ceil(cumulative * 2.0**32).astype(np.uint64), guide.astype(np.int32)


@compiled
def _draw(
    frame: Any, row_profile: Any, column_profile: Any, lowest: int, thresholds: Any, guide: Any, seed: Any
) -> None:
    state = np.uint64(seed)
    levels = guide.shape[0] - 1
    for y in range(frame.shape[0]):
        scale = row_profile[y] * levels
        for x in range(frame.shape[1]):
            # SplitMix64
            state += np.uint64(0x9E3779B97F4A7C15)
            z = state
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
            place = scale * column_profile[x]
            level = int(place)
            if (z & np.uint64(0xFFFF)) * (1.0 / 65536) < place - level:
                level += 1
            level = min(level, levels)
            draw = z >> np.uint64(32)
            value = guide[level, draw >> np.uint64(24)]
            while thresholds[level, value] <= draw:
                value += 1
            frame[y, x] = lowest + value
