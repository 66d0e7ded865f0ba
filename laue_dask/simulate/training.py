"""Frames that an encoder can learn from: many short, imagined experiments, each with many looks at each domain.

An *experiment* is one phase on one detector with one beam. It holds *configurations*: what the beam meets at one place
of a specimen, and what an encoder should tell from each other. A *view* is one more frame of a configuration: slightly
turned, brighter or darker, with other noise and background, sometimes with a part of a neighbour. Views of one
configuration are the positives of contrastive learning; the configurations of one experiment are its negatives, some of
them hard ones (twins, small misorientations).

Every frame follows from ``(seed, experiment, configuration, view)`` alone, in any order and process.
"""

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from laue_dask.simulate.crystal import Crystal, FloatArray, misorientation, random_orientations, twin
from laue_dask.simulate.detector import DETECTORS, Detector
from laue_dask.simulate.materials import CRYSTALS, random_crystal
from laue_dask.simulate.pattern import Exposure, Grain, expose, spots
from laue_dask.simulate.rendering import Frame

N_CONFIGURATIONS = 32
N_VIEWS = 4
JITTER_RANGE_DEG = (0.1, 1.0)
"""Range of the largest rotation between a configuration and its views, one for each experiment: what belongs to one
domain differs from specimen to specimen. Over all experiments the features learn to grow apart with the angle."""

MAX_SAME_JITTERS = 1.5
"""Configurations turned by less than so many times the experiment's jitter are one: views differ by as much."""

MAX_HARD_ANGLE_DEG = 5.0
"""Largest misorientation of the configurations that are turned copies of another."""

MAX_NEIGHBOUR_SHARE = 0.25
"""Largest share of a neighbour's pattern, or of a buried grain's, in a view."""

MAX_OVERLAPPING_GRAINS = 6
"""Most grains that overlap in one configuration."""

_DETECTOR_SHARES = {"pilatus1m": 0.63, "pilatus6m": 0.07, "scmos": 0.15, "marccd165": 0.15}
_TWIN_PLANES = ((1, 0, 1), (0, 1, 1), (1, 1, 1), (1, 0, 2), (1, 1, 2), (0, 0, 1))


@dataclass(frozen=True, eq=False)
class Experiment:
    """One phase, one detector, one beam, and the places that are looked at.

    Attributes
    ----------
    key
        (seed, number) that it was drawn from.
    detector, energy_range_keV, exposure
        The instrument.
    jitter_deg
        Largest rotation between a configuration and its views.
    configurations
        Grains under the beam, for each configuration.
    buried
        Grains below the surface, one of which some of the views see through it.
    substrate
        Grains that every frame sees as well; empty for most experiments.
    """

    key: tuple[int, int]
    detector: Detector
    energy_range_keV: tuple[float, float]  # noqa: N815
    exposure: Exposure
    jitter_deg: float
    configurations: tuple[tuple[Grain, ...], ...]
    buried: tuple[Grain, ...]
    substrate: tuple[Grain, ...]

    def domains(self) -> npt.NDArray[np.int32]:
        """Return the number of the first configuration that looks the same, for each: a twin may be a symmetry of the
        lattice.
        """
        first = np.arange(len(self.configurations), dtype=np.int32)
        lone = [i for i, grains in enumerate(self.configurations) if len(grains) == 1]
        for i, j in itertools.combinations(lone, 2):
            a, b = self.configurations[i][0], self.configurations[j][0]
            apart = misorientation(a.crystal, a.orientation, b.orientation)
            if first[j] == j and apart < MAX_SAME_JITTERS * self.jitter_deg:
                first[j] = first[i]
        return first

    def frame(self, configuration: int, view: int) -> Frame:
        """Return the frame (rows, columns) of one view of one configuration, in the detector's dtype."""
        rng = np.random.default_rng([*self.key, configuration, view])
        turn = _small_rotation(rng, self.jitter_deg)
        grains = [replace(g, orientation=turn @ g.orientation) for g in self.configurations[configuration]]
        if rng.random() < 0.35 and len(self.configurations) > 1:
            share = MAX_NEIGHBOUR_SHARE * rng.random()
            other = (configuration + int(rng.integers(1, len(self.configurations)))) % len(self.configurations)
            grains = [replace(g, weight=g.weight * (1 - share)) for g in grains]
            grains += [replace(g, weight=g.weight * share) for g in self.configurations[other]]
        if rng.random() < 0.3:
            ghost = self.buried[int(rng.integers(len(self.buried)))]
            grains.append(replace(ghost, weight=MAX_NEIGHBOUR_SHARE * float(rng.random())))
        streak = rng.uniform(0.4, 1.6)
        grains = [
            replace(g, weight=g.weight * float(rng.uniform(0.85, 1.15)), spread=streak * g.spread) for g in grains
        ]
        low, high = (level * rng.uniform(0.5, 2.0) for level in self.exposure.background)
        row, column = np.array(self.exposure.background_centre) + rng.normal(0, 0.05, size=2)
        exposure = replace(
            self.exposure,
            counts=self.exposure.counts * float(np.exp(rng.uniform(-0.7, 0.4))),
            background=(min(low, high), max(low, high)),
            background_centre=(float(row), float(column)),
        )
        return expose(
            (*grains, *self.substrate), self.detector, exposure, rng=rng, energy_range_keV=self.energy_range_keV
        )


@lru_cache(maxsize=4)
def experiment(
    seed: int, number: int, *, n_configurations: int = N_CONFIGURATIONS, binning: int = 1, detector: str | None = None
) -> Experiment:
    """Draw an experiment.

    Parameters
    ----------
    seed, number
        Together they fix everything.
    n_configurations
        How many configurations it has. One half are independent orientations, a quarter are twins of an earlier one,
        a quarter are turned by up to 5° from an earlier one; one in five holds two to six overlapping grains.
    binning
        Pixels per side that are joined in one, to make smaller frames faster; 1 gives the real detectors.
    detector
        Name of the detector; by default one is drawn (PILATUS 1M 63 %, sCMOS and MarCCD 15 % each, PILATUS 6M 7 %).
    """
    rng = np.random.default_rng([seed, number])
    phase = random_crystal(rng) if rng.random() < 0.6 else list(CRYSTALS.values())[rng.integers(len(CRYSTALS))]
    name = detector or str(rng.choice(list(_DETECTOR_SHARES), p=list(_DETECTOR_SHARES.values())))
    screen = _moved(DETECTORS[name], rng).binned(binning)
    energy_range = (float(rng.uniform(4.5, 6.5)), float(rng.choice([18.0, 20.0, 22.0, 23.0, 24.0])))
    spread = _small_vector(rng, 1.0 if rng.random() < 0.4 else 0.08)
    jitter = float(np.exp(rng.uniform(*np.log(JITTER_RANGE_DEG))))
    configurations = _configurations(phase, n_configurations, spread, 2.5 * jitter, rng)
    buried = tuple(Grain(phase, u, 1.0, spread) for u in random_orientations(4, rng))
    substrate: tuple[Grain, ...] = ()
    if rng.random() < 0.12:
        ground = CRYSTALS[str(rng.choice(["Si", "Ge", "quartz"]))]
        substrate = (Grain(ground, random_orientations(1, rng)[0], float(rng.uniform(0.5, 4)), np.zeros(3)),)
    drawn = Experiment((seed, number), screen, energy_range, Exposure(), jitter, configurations, buried, substrate)
    return replace(drawn, exposure=_exposure(drawn, binning, rng))


def training_frame(
    seed: int, number: int, configuration: int, view: int, *, binning: int = 1, detector: str | None = None
) -> tuple[Frame, Detector]:
    """Return the frame of one view of one of the 32 configurations of experiment `number`, and the detector that
    recorded it.

    `seed` starts the whole training set; the same five numbers always give the same frame. Frames of one experiment are
    best asked for one after another: the experiment is kept.
    """
    drawn = experiment(seed, number, binning=binning, detector=detector)
    return drawn.frame(configuration, view), drawn.detector


def _configurations(
    phase: Crystal, n: int, spread: FloatArray, least_deg: float, rng: np.random.Generator
) -> tuple[tuple[Grain, ...], ...]:
    made: list[tuple[Grain, ...]] = []
    for i in range(n):
        kind = i % 4 if i >= 4 else 0
        orientation = random_orientations(1, rng)[0]
        if kind == 1:
            planes = rng.integers(len(_TWIN_PLANES))
            orientation = made[rng.integers(i)][0].orientation @ twin(phase, _TWIN_PLANES[planes])
        elif kind == 2:
            axis = rng.normal(size=3)
            angle = np.radians(rng.uniform(least_deg, MAX_HARD_ANGLE_DEG))
            turn = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
            orientation = turn @ made[rng.integers(i)][0].orientation
        others = int(rng.integers(1, MAX_OVERLAPPING_GRAINS)) if rng.random() < 0.2 else 0
        weights = rng.dirichlet(np.full(others + 1, 4.0)) if others else np.ones(1)
        orientations = [orientation, *random_orientations(others, rng)] if others else [orientation]
        made.append(tuple(Grain(phase, u, float(w), spread) for u, w in zip(orientations, weights, strict=True)))
    return tuple(made)


def _moved(detector: Detector, rng: np.random.Generator) -> Detector:
    """The detector elsewhere: 15 % nearer or further, up to 12 % of its size aside, tilted by a degree."""
    reach = float(rng.uniform(0.85, 1.15))
    turn = _small_rotation(rng, 1.0)
    row, column = turn @ np.array(detector.along_row), turn @ np.array(detector.along_column)
    shift = rng.uniform(-0.12, 0.12, size=2) * detector.shape
    x, y, z = (reach * value for value in detector.origin)
    return replace(
        detector,
        origin=(x, y, z),
        centre=(float(detector.centre[0] + shift[0]), float(detector.centre[1] + shift[1])),
        along_row=(float(row[0]), float(row[1]), float(row[2])),
        along_column=(float(column[0]), float(column[1]), float(column[2])),
    )


def _exposure(drawn: Experiment, binning: int, rng: np.random.Generator) -> Exposure:
    """Counts, spot size and background such that the brightest spots have 500 to 6 × 10⁵ counts."""
    first = [configuration[0] for configuration in drawn.configurations[:4]]
    brightest = [
        spots(g.crystal, g.orientation, drawn.detector, energy_range_keV=drawn.energy_range_keV).intensity.max(
            initial=0
        )
        for g in first
    ]
    counts = np.exp(rng.uniform(np.log(5e2), np.log(6e5))) / max(float(np.median(brightest)), 1e-3)
    camera = drawn.detector.dtype == "uint16"
    high = float(np.exp(rng.uniform(np.log(0.5), np.log(120 if camera else 60))))
    return Exposure(
        counts=float(counts),
        spot_sigma_px=max(0.5, float(rng.uniform(0.7, 1.5)) * (1.2 if camera else 1.0) / binning),
        background=(high * float(rng.uniform(0.02, 0.5)) * binning**2, high * binning**2),
        background_centre=(float(rng.uniform(0.3, 0.7)), float(rng.uniform(0.1, 0.7))),
    )


def _small_vector(rng: np.random.Generator, largest_deg: float) -> FloatArray:
    """Rotation vector (3,) in degrees of random direction and a length uniform up to `largest_deg`."""
    direction = rng.normal(size=3)
    return np.asarray(direction / np.linalg.norm(direction) * largest_deg * rng.random())


def _small_rotation(rng: np.random.Generator, largest_deg: float) -> FloatArray:
    return Rotation.from_rotvec(np.radians(_small_vector(rng, largest_deg))).as_matrix()
