"""One Laue pattern: which spots a crystal gives, and the frame that a detector records of them.

`spots` is kinematic: Bragg's law gives each reflection its energy, the intensity is spectrum × squared structure
factor × Lorentz × polarisation × escape depth × extinction, and harmonics add up in one spot. `render` draws
anisotropic Gaussian spots with faint tails into small windows, and counts photons with exact Poisson statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from laue_dask.simulate.crystal import HC_KEV_ANGSTROM, Crystal, FloatArray, reflections
from laue_dask.simulate.detector import Detector, blind_pixels
from laue_dask.simulate.rendering import Frame, add_spots, background

ENERGY_RANGE_KEV = (5.0, 23.0)
CRITICAL_ENERGY_KEV = 7.5
"""Of the bending magnet whose spectrum `spectrum` resembles."""

_ESCAPE_ENERGY_KEV = 15.0
"""Above it the beam crosses the specimen; below, the illuminated depth grows as E³."""

_EXTINCTION_COEFFICIENT = 20.0
"""Coefficient of the Zachariasen correction. With it, the energies above and the fall-off of the atoms, the integrated
intensities of 27 reflections of a real silicon frame (results_00001.IND) are met within a factor of 1.5 (rms)."""

_INTENSITY_UNIT = 10.0
"""Brings the strongest spots to about 1."""


@dataclass(frozen=True)
class Spots:
    """Spots of one crystal on one detector, in no particular order.

    Attributes
    ----------
    row, column
        (n,) float64, pixels from the centre of the first one.
    intensity
        (n,) float64, one scale for all crystals: the strongest spots of a pattern are between 0.3 and 10.
    energy_keV
        (n,) float64, of the strongest harmonic.
    hkl
        (n, 3) int16, of the strongest harmonic.
    smear
        (n, 2) float64, how far (rows, columns) the spot moves over the whole orientation spread of the crystal.
    """

    row: FloatArray
    column: FloatArray
    intensity: FloatArray
    energy_keV: FloatArray  # noqa: N815
    hkl: npt.NDArray[np.int16]
    smear: FloatArray


@dataclass(frozen=True, eq=False)
class Grain:
    """One crystal under the beam.

    Attributes
    ----------
    crystal
        Its phase.
    orientation
        U (3, 3) in the laboratory frame.
    weight
        Share of the illuminated volume.
    spread
        Rotation vector (3,) in degrees: orientation spread within the beam.
    """

    crystal: Crystal
    orientation: FloatArray
    weight: float
    spread: FloatArray


@dataclass(frozen=True)
class Exposure:
    """What turns spots into counts of the detector.

    Attributes
    ----------
    counts
        Counts in the whole of a spot of intensity 1.
    spot_sigma_px
        Standard deviation of a spot without smear, pixels.
    background
        Lowest and highest expectation of the smooth background, counts per pixel above the pedestal.
    background_centre
        (row, column) where it is highest, as fractions of the frame; may lie outside.
    """

    counts: float = 5e5
    spot_sigma_px: float = 1.0
    background: tuple[float, float] = (2.0, 45.0)
    background_centre: tuple[float, float] = (0.5, 0.2)


def spectrum(energy_keV: npt.ArrayLike) -> FloatArray:
    """Return the photons per relative bandwidth on the specimen, 1 at the most: bending magnet, windows and mirror
    cut-off.
    """
    energy = np.asarray(energy_keV, dtype=np.float64)
    y = energy / CRITICAL_ENERGY_KEV
    shape = 2.35 * y**0.9 * np.exp(-y) * np.exp(-((4.5 / energy) ** 3)) / (1 + np.exp((energy - 21.5) / 0.6))
    return np.asarray(shape)


def spots(
    crystal: Crystal,
    orientation: FloatArray,
    detector: Detector,
    *,
    energy_range_keV: tuple[float, float] = ENERGY_RANGE_KEV,
    spread: FloatArray | None = None,
) -> Spots:
    """Return the spots of one crystal that fall on the detector.

    Parameters
    ----------
    crystal
        The phase; its reflections are computed once per phase and upper energy.
    orientation
        Rotation U (3, 3) with ``G_lab = U @ B @ hkl``; a strained U is used as it is.
    detector
        Where the spots go.
    energy_range_keV
        Lower and upper end of the white beam.
    spread
        Rotation vector (3,) in degrees, laboratory frame: orientation spread of a bent or strained crystal, which
        smears every spot along the path that this rotation moves it.

    Returns
    -------
    Spots
        One entry per spot inside the frame, gaps included.
    """
    table = reflections(crystal, energy_range_keV[1])
    turned = table.g @ np.asarray(orientation, dtype=np.float32).T
    with np.errstate(divide="ignore"):
        energies = (0.5 * HC_KEV_ANGSTROM) * np.einsum("ij,ij->i", turned, turned) / -turned[:, 0]
    rays = np.flatnonzero((energies >= energy_range_keV[0]) & (energies <= energy_range_keV[1]))
    g: FloatArray = turned[rays].astype(np.float64)
    energy: FloatArray = energies[rays].astype(np.float64)
    direction = _diffracted(g)
    row, column = detector.project(direction)
    with np.errstate(invalid="ignore"):
        inside = (row > -0.5) & (row < detector.shape[0] - 0.5) & (column > -0.5) & (column < detector.shape[1] - 0.5)
    keep = np.flatnonzero(inside)
    rays, g, energy, direction = rays[keep], g[keep], energy[keep], direction[keep]
    row, column = row[keep], column[keep]
    sine_squared = (1 - direction[:, 0]) / 2
    polarisation = 1 - direction[:, 1] ** 2
    escape = 1 - np.exp(-((energy / _ESCAPE_ENERGY_KEV) ** 3))
    strength = table.strength[rays] * (10 / energy) ** 3
    strength /= np.sqrt(1 + 2 * _EXTINCTION_COEFFICIENT * strength / np.sqrt(sine_squared))
    intensity = _INTENSITY_UNIT * strength * spectrum(energy) * polarisation * escape / sine_squared
    first, total = _merge_harmonics(table.ray[rays], intensity)
    smear = np.zeros((len(first), 2))
    if spread is not None and len(first):
        half = np.radians(np.asarray(spread, dtype=np.float64)) / 2
        ends = [detector.project(_diffracted(g[first] + sign * np.cross(half, g[first]))) for sign in (1, -1)]
        smear = np.nan_to_num(np.stack([ends[0][0] - ends[1][0], ends[0][1] - ends[1][1]], axis=1))
    return Spots(row[first], column[first], total, energy[first], table.hkl[rays[first]], smear)


def _diffracted(g: FloatArray) -> FloatArray:
    """Directions (n, 3) into which reciprocal vectors (n, 3) send a beam along x."""
    direction = g * (-2 * g[:, :1] / np.einsum("ij,ij->i", g, g)[:, None])
    direction[:, 0] += 1
    return np.asarray(direction)


def _merge_harmonics(ray: npt.NDArray[np.int32], intensity: FloatArray) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """Index of the strongest reflection along each direction, and the sum over all of that direction."""
    order = np.lexsort((-intensity, ray))
    _, start = np.unique(ray[order], return_index=True)
    total = np.add.reduceat(intensity[order], start) if len(start) else np.zeros(0)
    return order[start], total


def render(
    patterns: Sequence[tuple[Spots, float]], detector: Detector, exposure: Exposure, *, rng: np.random.Generator
) -> Frame:
    """Return the frame that the detector records of several overlapping patterns.

    Parameters
    ----------
    patterns
        Spots and the share of the illuminated volume that they come from.
    detector
        Its shape, dtype, noise and gaps.
    exposure
        Counts, spot size and background.
    rng
        Noise; the same generator state gives the same frame.

    Returns
    -------
    ndarray
        (rows, columns) of `detector.dtype`. A photon counter reads 0 in its gaps and -2 in dead pixels.
    """
    rows, columns = detector.shape
    frame = background(
        bell(rows, exposure.background_centre[0]),
        bell(columns, exposure.background_centre[1]),
        exposure.background,
        detector,
        rng=rng,
    )
    photons = np.zeros(detector.shape, dtype=np.float32)
    for pattern, weight in patterns:
        total = pattern.intensity * (weight * exposure.counts / detector.gain)
        add_spots(photons, pattern.row, pattern.column, total, pattern.smear, exposure.spot_sigma_px)
    lit = np.flatnonzero(photons > 0)
    # A photon gives `gain` counts: the remainder below one count is rounded up or down at random.
    signal = rng.poisson(photons.ravel()[lit]) * detector.gain + (rng.random(lit.size) if detector.gain != 1 else 0)
    flat = frame.reshape(-1)
    flat[lit] = np.minimum(flat[lit] + signal.astype(np.int64), detector.saturation)
    # Hot and bad pixels belong to the detector, not to the frame: they must not move from one frame to the next.
    of_detector = np.random.default_rng(2)
    hot, level = of_detector.integers(0, flat.size, detector.hot_pixels), of_detector.uniform(2, 5, detector.hot_pixels)
    flat[hot] = np.minimum(rng.poisson(10**level), detector.saturation)
    flat[blind_pixels(detector)] = 0
    bad = np.random.default_rng(1).integers(0, flat.size, detector.bad_pixels)
    flat[bad] = -2 if detector.dtype == "int32" else detector.saturation
    return frame


def expose(
    grains: Sequence[Grain],
    detector: Detector,
    exposure: Exposure,
    *,
    rng: np.random.Generator,
    energy_range_keV: tuple[float, float] = ENERGY_RANGE_KEV,
) -> Frame:
    """Return the frame of all that is under the beam: `spots` of each grain, rendered together."""
    patterns = [
        (spots(g.crystal, g.orientation, detector, energy_range_keV=energy_range_keV, spread=g.spread), g.weight)
        for g in grains
    ]
    return render(patterns, detector, exposure, rng=rng)


def bell(length: int, top: float) -> npt.NDArray[np.float32]:
    """Return the background along one axis, (length,) in (0, 1]: 1 at the fraction `top` of it, falling as fluorescence
    does.
    """
    position = np.linspace(0, 1, length) - top
    return np.asarray(1 / (1 + (1.6 * position) ** 2), dtype=np.float32)
