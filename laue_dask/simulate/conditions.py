"""Unusual conditions of a scan: counting time, energy band, and what drifts in the meantime."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from laue_dask.simulate.crystal import FloatArray
from laue_dask.simulate.pattern import ENERGY_RANGE_KEV

_N_WAVES = 3
_MAX_TURNS = 2.5


@dataclass(frozen=True, eq=False)
class SmoothVariation:
    """A factor that changes smoothly over a scan, as a beam that drifts or a layer whose thickness varies.

    Attributes
    ----------
    low, high
        Between which it stays.
    turns
        (n, 2) how often each of its waves turns over the whole scan along y and x.
    phases
        (n,) of the waves, radians.
    """

    low: float = 1.0
    high: float = 1.0
    turns: FloatArray = field(default_factory=lambda: np.zeros((1, 2)))
    phases: FloatArray = field(default_factory=lambda: np.zeros(1))

    def at(self, place: npt.ArrayLike) -> float:
        """Return the value at `place`, (y, x) as shares of the scan's height and width."""
        wave = float(np.cos(2 * np.pi * (self.turns @ np.asarray(place, dtype=np.float64)) + self.phases).mean())
        return self.low + (self.high - self.low) * (1 + wave) / 2


def smooth_variation(low: float, high: float, rng: np.random.Generator, *, along_x: bool = True) -> SmoothVariation:
    """Draw a `SmoothVariation` between two values; without `along_x` it changes from row to row alone, as time does."""
    turns = rng.uniform(-_MAX_TURNS, _MAX_TURNS, size=(_N_WAVES, 2)) * (1.0, float(along_x))
    return SmoothVariation(low, high, turns, rng.uniform(0, 2 * np.pi, size=_N_WAVES))


@dataclass(frozen=True, eq=False)
class Conditions:
    """What is unusual about a scan; nothing by default.

    Attributes
    ----------
    time
        Counting time, the usual one being 1: signal and background alike.
    energy_range_keV
        Lower and upper end of the white beam.
    beam, background
        Factors that drift over the scan.
    """

    time: float = 1.0
    energy_range_keV: tuple[float, float] = ENERGY_RANGE_KEV  # noqa: N815
    beam: SmoothVariation = field(default_factory=SmoothVariation)
    background: SmoothVariation = field(default_factory=SmoothVariation)
