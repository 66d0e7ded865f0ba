"""A simulated scan as an encoder sees it: reduced patterns and their truth, made in memory and kept in one small file.

Beside the scan's own patterns there are *repeats*, the same points once more with other noise and a beam a little
brighter or darker (`scan.frame`). *Pairs* are a crystal in two orientations a known angle apart, each seen many times.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from laue_dask.config import Recipe
from laue_dask.io.output_paths import write_atomically
from laue_dask.reduction.detector_mask import detector_mask
from laue_dask.reduction.reduce import Substrate, reduce_frames
from laue_dask.schema import PATTERN_SIZE
from laue_dask.simulate.crystal import random_orientations, rotation_about
from laue_dask.simulate.detector import Detector
from laue_dask.simulate.detector import detector as named_detector
from laue_dask.simulate.materials import CRYSTALS
from laue_dask.simulate.pattern import Grain, expose
from laue_dask.simulate.scan import ScannedSpecimen, default_exposure, frame
from laue_dask.simulate.specimens import specimen

SIMULATION_VERSION = 1
"""Of what is simulated here; kept files of other versions are made again."""

N_MASK_FRAMES = 12
"""Frames that a scan's detector mask is found from."""

POINTS_PER_REPEAT = 4
"""One point of so many is repeated."""

PAIR_CRYSTALS = ("Cu", "BaTiO3", "Ti", "Si")
N_PAIR_VIEWS = 12

PAIR_RELATIVE_TIME = 3e-3
"""Counting time of the pairs, the usual one being 1. With a hundred times the photons 0.05° is nothing to anyone."""

_PAIR_MOSAIC_DEG = np.array([0.06, 0.0, 0.0])


@dataclass(frozen=True, eq=False)
class _Kept:
    """Arrays that go to and come from one .npz file; nothing in it is pickled."""

    def save(self, path: Path) -> None:
        """Write to `path`, which appears only when complete."""
        file = io.BytesIO()
        np.savez_compressed(file, **{f.name: getattr(self, f.name) for f in fields(self)})
        write_atomically(path, file.getvalue())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as found:
            return cls(**{f.name: found[f.name] for f in fields(cls)})


@dataclass(frozen=True, eq=False)
class ReducedScan(_Kept):
    """A scan.

    Attributes
    ----------
    patterns
        (n, 128, 128) uint8, in the order of the points.
    repeats
        (m, 128, 128) uint8, of every fourth point.
    repeated
        (m,) int64, which points those are.
    domain, edge
        (ny, nx) int32 and bool, as `Specimen` has them.
    """

    patterns: NDArray[np.uint8]
    repeats: NDArray[np.uint8]
    repeated: NDArray[np.int64]
    domain: NDArray[np.int32]
    edge: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ReducedPairs(_Kept):
    """Orientations at small angles from others.

    Attributes
    ----------
    angles
        (a,) float64, degrees, ascending.
    base
        (c, v, 128, 128) uint8, v views of one orientation of each of c crystals.
    turned
        (c, a, v, 128, 128) uint8, views of the same crystal turned by each angle.
    """

    angles: NDArray[np.float64]
    base: NDArray[np.uint8]
    turned: NDArray[np.uint8]


def reduced_scan(kind: str, detector: str, shape: tuple[int, int], seed: int, recipe: Recipe) -> ReducedScan:
    """Simulate a scan and reduce it, as `laue-dask simulate` and `laue-dask run` would.

    Raises
    ------
    InputError
        There is no such specimen or detector.
    """
    made, screen = specimen(kind, shape, seed), named_detector(detector)
    n = shape[0] * shape[1]
    mask = detector_mask(sample_frames(made, screen, seed, N_MASK_FRAMES))
    patterns = partial(reduced_points, made, screen, mask, recipe, seed=seed)
    repeated = np.arange(0, n, POINTS_PER_REPEAT)
    return ReducedScan(patterns(np.arange(n)), patterns(repeated, repeat=1), repeated, made.domain, made.edge)


def sample_frames(made: ScannedSpecimen, screen: Detector, seed: int, count: int) -> NDArray[Any]:
    """Return the frames (count, rows, columns) spread over a scan, of all points where there are no more."""
    points = np.unique(np.linspace(0, made.shape[0] * made.shape[1] - 1, count).astype(int))
    return np.stack([frame(made, screen, int(point), seed=seed) for point in points])


def reduced_points(
    made: ScannedSpecimen,
    screen: Detector,
    mask: NDArray[np.bool_],
    recipe: Recipe,
    points: NDArray[np.int64],
    *,
    seed: int,
    repeat: int = 0,
    substrate: Substrate | None = None,
) -> NDArray[np.uint8]:
    """Return the reduced patterns (n, 128, 128) of some points of a scan, made one by one."""
    reduced = np.empty((len(points), PATTERN_SIZE, PATTERN_SIZE), dtype=np.uint8)
    for i, point in enumerate(points):
        made_frame = frame(made, screen, int(point), seed=seed, repeat=repeat)
        reduced[i] = reduce_frames(made_frame, mask, recipe, substrate=substrate)[0]
    return reduced


def reduced_pairs(angles: Sequence[float], seed: int, recipe: Recipe) -> ReducedPairs:
    """Simulate crystals on a PILATUS 1M, turned by each of `angles` (degrees) about random axes, and reduce them."""
    screen = named_detector("pilatus1m")
    usual = default_exposure(screen)
    low, high = usual.background
    exposure = replace(
        usual,
        counts=PAIR_RELATIVE_TIME * usual.counts,
        background=(PAIR_RELATIVE_TIME * low, PAIR_RELATIVE_TIME * high),
    )
    rng = np.random.default_rng([seed, 0])
    crystals = [CRYSTALS[name] for name in PAIR_CRYSTALS]
    first = random_orientations(len(crystals), rng)
    axes = rng.normal(size=(len(crystals), len(angles), 3))
    made = np.empty((len(crystals), 1 + len(angles), N_PAIR_VIEWS, PATTERN_SIZE, PATTERN_SIZE), dtype=np.uint8)
    for c, crystal in enumerate(crystals):
        turned = [rotation_about(axis, angle) @ first[c] for axis, angle in zip(axes[c], angles, strict=True)]
        mask = None
        for a, orientation in enumerate([first[c], *turned]):
            grain = Grain(crystal, orientation, 1.0, _PAIR_MOSAIC_DEG)
            views = [np.random.default_rng([seed, c, a, view]) for view in range(N_PAIR_VIEWS)]
            frames = np.stack(
                [
                    expose(
                        [grain], screen, replace(exposure, counts=exposure.counts * view.uniform(0.9, 1.1)), rng=view
                    )
                    for view in views
                ]
            )
            mask = detector_mask(frames) if mask is None else mask
            made[c, a] = reduce_frames(frames, mask, recipe)
    return ReducedPairs(np.asarray(angles, dtype=np.float64), made[:, 0], made[:, 1:])
