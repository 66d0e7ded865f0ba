"""Specimens whose every domain is known: grains, twins, phases, bent grains, films, and mixtures of all that.

All kinds are one construction. Grains are the Voronoi cells of a few seeds; a grain is one domain or is cut into
lamellae that alternate between two domains (twins, martensite variants); it may be bent, so that its orientation turns
steadily across it; and another specimen may lie below and show through: a substrate, or buried grains. Positions are in
units of the scanning step, (y, x), the first point at the origin.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from laue_dask.errors import InputError
from laue_dask.simulate.conditions import Conditions, SmoothVariation, smooth_variation
from laue_dask.simulate.crystal import (
    Crystal,
    FloatArray,
    direct_basis,
    misorientation,
    random_orientations,
    rotation_about,
    symmetry_rotations,
    twin,
)
from laue_dask.simulate.materials import CRYSTALS
from laue_dask.simulate.materials import crystal as named_crystal
from laue_dask.simulate.pattern import Grain

SAMPLE_TILT_DEG = 40.0
"""Between the incident beam and the specimen's surface (BM32)."""

BEAM_RADIUS_STEPS = 0.3
"""Of the beam on the specimen, in steps: a point this near to a boundary sees both sides."""

_MIN_EDGE_SHARE = 0.05
_MOSAIC_DEG = 0.06
_SUBGRAIN_RANGE_DEG = (0.4, 1.2)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the domains of a specimen are.

    Attributes
    ----------
    seeds
        (n_grains, 2) centres of the Voronoi cells, steps.
    first
        (n_grains,) first domain of each grain.
    lamellae
        (n_grains, 3): direction of the lamellae's normal in radians, their width in steps (infinite for a grain in one
        piece) and their offset in steps.
    """

    seeds: FloatArray
    first: npt.NDArray[np.int32]
    lamellae: FloatArray

    def domain_at(self, positions: FloatArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return the domain and grain at `positions` (n, 2)."""
        grain = np.asarray(cKDTree(self.seeds).query(positions)[1], dtype=np.int32)
        angle, width, offset = self.lamellae[grain].T
        along = positions[:, 0] * np.sin(angle) + positions[:, 1] * np.cos(angle) + offset
        variant = np.floor(along / width).astype(np.int64) % 2
        variant[~np.isfinite(width)] = 0
        return self.first[grain] + variant.astype(np.int32), grain


@dataclass(frozen=True, eq=False)
class Specimen:
    """A specimen on a grid of (ny, nx) points.

    Attributes
    ----------
    kind, shape, seed
        What it was made from.
    crystals
        (n_domains,) phase of each domain.
    orientations
        (n_domains, 3, 3) U of each domain, laboratory frame, at the seed of its grain.
    layout
        Where the domains are.
    bending
        (n_grains, 2, 3) degrees per step along y and x, as rotation vectors in the laboratory frame.
    mosaic
        (n_grains, 3) orientation spread of each grain within the beam, rotation vectors in degrees: long ones make
        streaks.
    below
        Specimens that show through this one, and how strongly, this one being 1. Their domains are no part of the
        truth.
    conditions
        How it is scanned.
    """

    kind: str
    shape: tuple[int, int]
    seed: int
    crystals: tuple[Crystal, ...]
    orientations: FloatArray
    layout: Layout
    bending: FloatArray
    mosaic: FloatArray
    below: tuple[tuple[Self, SmoothVariation], ...] = ()
    conditions: Conditions = field(default_factory=Conditions)

    def at(self, point: int) -> list[Grain]:
        """Return what the beam meets at point ``y * nx + x``: its domains, whose shares sum to 1, then what lies below.

        The largest share comes first.
        """
        place = self.place(point)
        shown = [
            replace(grain, weight=grain.weight * strength.at(place))
            for buried, strength in self.below
            for grain in buried.at(point)
        ]
        return self._grains_at(point) + shown

    def place(self, point: int) -> tuple[float, float]:
        """Return where a point is, (y, x) as shares of the scan's height and width."""
        y, x = divmod(point, self.shape[1])
        return y / self.shape[0], x / self.shape[1]

    def _grains_at(self, point: int) -> list[Grain]:
        domains, shares, grains = self._footprint(np.array([point]))
        order = np.argsort(-shares[0], kind="stable")
        position = np.array(divmod(point, self.shape[1]), dtype=np.float64)
        return [
            Grain(
                self.crystals[domains[0, k]],
                self._orientation(domains[0, k], grains[0, k], position),
                float(shares[0, k]),
                self._spread(grains[0, k]),
            )
            for k in order
            if shares[0, k] > 0
        ]

    @cached_property
    def domain(self) -> npt.NDArray[np.int32]:
        """(ny, nx) domain with the largest share at each point."""
        return self._maps[0]

    @cached_property
    def edge(self) -> npt.NDArray[np.bool_]:
        """(ny, nx) True where another domain has 5 % or more."""
        return self._maps[1]

    @cached_property
    def angle(self) -> FloatArray:
        """(ny, nx) degrees between the surface normal and the nearest a axis of the lattice (Figure 1)."""
        grain = self._maps[2].ravel()
        offsets = np.indices(self.shape).reshape(2, -1).T[:, None, :] - self.layout.seeds[grain][:, None]
        turns = Rotation.from_rotvec(np.radians((offsets @ self.bending[grain])[:, 0]))
        normals = turns.inv().apply(surface_normal())
        cosines = np.empty(grain.size)
        for number, (crystal, orientation) in enumerate(zip(self.crystals, self.orientations, strict=True)):
            points = np.flatnonzero(self.domain == number)
            cosines[points] = np.abs(normals[points] @ orientation @ _a_axes(crystal).T).max(axis=1)
        return np.degrees(np.arccos(np.minimum(cosines, 1.0))).reshape(self.shape)

    @cached_property
    def _maps(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.int32]]:
        domains, shares, grains = self._footprint(np.arange(self.shape[0] * self.shape[1]))
        best = shares.argmax(axis=1)[:, None]
        largest = np.take_along_axis(shares, best, axis=1)[:, 0]
        return (
            np.take_along_axis(domains, best, axis=1).reshape(self.shape),
            (1 - largest >= _MIN_EDGE_SHARE).reshape(self.shape),
            np.take_along_axis(grains, best, axis=1).reshape(self.shape),
        )

    def _footprint(
        self, points: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int32], FloatArray, npt.NDArray[np.int32]]:
        """Domains under the beam at each point, their shares (0 for repetitions) and grains; each (n, samples)."""
        offsets = _beam()
        centres = np.stack(np.divmod(points, self.shape[1]), axis=1).astype(np.float64)
        domain, grain = self.layout.domain_at((centres[:, None, :] + offsets).reshape(-1, 2))
        domain, grain = domain.reshape(len(points), -1), grain.reshape(len(points), -1)
        order = np.argsort(domain, axis=1, kind="stable")
        domain, grain = np.take_along_axis(domain, order, axis=1), np.take_along_axis(grain, order, axis=1)
        starts = np.ones(domain.shape, dtype=bool)
        starts[:, 1:] = domain[:, 1:] != domain[:, :-1]
        shares = np.zeros(domain.shape)
        flat = np.flatnonzero(starts)
        shares.flat[flat] = np.diff(np.append(flat, domain.size)) / domain.shape[1]
        return domain, shares, grain

    def _orientation(self, domain: np.integer, grain: np.integer, position: FloatArray) -> FloatArray:
        vector = (position - self.layout.seeds[grain]) @ self.bending[grain]
        return np.asarray(Rotation.from_rotvec(np.radians(vector)).as_matrix() @ self.orientations[domain])

    def _spread(self, grain: np.integer) -> FloatArray:
        """Orientation spread under the beam: the mosaic, and the bending over the beam's width."""
        return np.asarray(self.mosaic[grain] + self.bending[grain].sum(axis=0) * 2 * BEAM_RADIUS_STEPS)


def surface_normal() -> FloatArray:
    """Return the normal of the specimen's surface in the laboratory frame, (3,)."""
    tilt = np.radians(SAMPLE_TILT_DEG)
    return np.array([-np.sin(tilt), 0.0, np.cos(tilt)])


def specimen(
    kind: str,
    shape: tuple[int, int] = (30, 30),
    seed: int = 0,
    *,
    crystal: str | None = None,
    grains: int | None = None,
) -> Specimen:
    """Make a specimen.

    Parameters
    ----------
    kind
        One of `KINDS`.

        - ``grains``: copper, one domain per grain.
        - ``twins``: tetragonal BaTiO3; in two grains of three, lamellae of a 90° twin, 3 to 6 steps wide.
        - ``two_phases``: cubic and monoclinic AuCuZn; the martensite grains alternate between two variants.
        - ``bent``: BaTiO3 grains whose orientation turns by 1 to 2° from side to side.
        - ``fine_twins``: as ``twins``, with lamellae of 0.7 to 1.5 steps, so that most points see both variants.
        - ``three_phases``: titanium, copper and zirconia.
        - ``subgrains``: copper, each turned by 0.4 to 1.2° from another and by 0.4° or more from all.
        - ``substrate_film``: BaTiO3 grains on a silicon crystal that is 12 times as strong.
        - ``gan_on_si``: mosaic of GaN, its c axis within 2° of the normal of a Si (111) wafer 8 times as strong, turned
          about it by up to 4°.
        - ``low_counts``: copper, counted so shortly that the median spot has about 25 counts on a PILATUS.
        - ``few_spots``: tungsten in a narrow band, 3 to 7 spots in a pattern.
        - ``messy``: copper grains bent by 2 to 3° with streaks up to 0.5° long, others buried below them; beam and
          background drift.
        - ``messy_twins``: twinned BaTiO3, otherwise as ``messy``.
    shape
        (ny, nx).
    seed
        Of everything random in it.
    crystal
        Name of another phase, of `grains`, `twins`, `bent` and `fine_twins`.
    grains
        How many; by default 6 of 900 points, and more of a larger scan.

    Raises
    ------
    InputError
        The kind or the crystal is unknown, the shape is empty, there are no two grains, or the kind's crystals are
        fixed.
    """
    if kind not in KINDS:
        raise InputError(f"specimen '{kind}' is unknown: choose one of {', '.join(KINDS)}")
    if min(shape) < 1:
        raise InputError(f"specimen '{kind}': shape {shape} has no points: both lengths must be 1 or more")
    if grains is not None and grains < 2:
        raise InputError(f"specimen '{kind}': {grains} grains: ask for 2 or more")
    if crystal is not None and kind not in _MAKERS_BY_PHASE:
        raise InputError(
            f"specimen '{kind}' has crystals of its own: only {', '.join(_MAKERS_BY_PHASE)} are made of others"
        )
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    # Larger scans show more grains, and larger ones.
    n_grains = grains or max(2, round(6 * (shape[0] * shape[1] / 900) ** 0.25))
    if kind in _MAKERS_BY_PHASE:
        maker, usual = _MAKERS_BY_PHASE[kind]
        return maker(shape, seed, n_grains, rng, named_crystal(crystal or usual))
    return _MAKERS[kind](shape, seed, n_grains, rng)


def _assemble(
    kind: str,
    shape: tuple[int, int],
    seed: int,
    variants: list[list[tuple[Crystal, FloatArray]]],
    widths: tuple[float, float],
    bend_deg: tuple[float, float],
    rng: np.random.Generator,
    **more: Any,
) -> Specimen:
    """Specimen of grains with one or two `variants` each, lamella widths and bends drawn from ranges."""
    n = len(variants)
    counts = [len(v) for v in variants]
    first = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int32)
    width = np.where(np.array(counts) > 1, rng.uniform(*widths, size=n), np.inf)
    lamellae = np.stack([rng.uniform(0, np.pi, size=n), width, rng.uniform(0, 100, size=n)], axis=1)
    layout = Layout(_seeds(n, shape, rng), first, lamellae)
    across = np.sqrt(shape[0] * shape[1] / n)
    direction = rng.uniform(0, np.pi, size=n)
    axis = rng.normal(size=(n, 3))
    axis *= (rng.uniform(*bend_deg, size=n) / across / np.linalg.norm(axis, axis=1))[:, None]
    bending = np.stack([np.sin(direction), np.cos(direction)], axis=1)[:, :, None] * axis[:, None, :]
    flat = [domain for grain in variants for domain in grain]
    crystals, orientations = tuple(c for c, _ in flat), np.stack([u for _, u in flat])
    mosaic = np.tile([_MOSAIC_DEG, 0.0, 0.0], (n, 1))
    return replace(Specimen(kind, shape, seed, crystals, orientations, layout, np.asarray(bending), mosaic), **more)


def _seeds(n: int, shape: tuple[int, int], rng: np.random.Generator) -> FloatArray:
    """Centres that keep apart: each is the farthest from the others of 30 random candidates."""
    seeds = rng.uniform(0, 1, size=(1, 2)) * shape
    while len(seeds) < n:
        candidates = rng.uniform(0, 1, size=(30, 2)) * shape
        distance, _ = cKDTree(seeds).query(candidates)
        seeds = np.vstack([seeds, candidates[np.argmax(distance)]])
    return seeds - 0.5


def _grains(shape: tuple[int, int], seed: int, n: int, rng: np.random.Generator, crystal: Crystal) -> Specimen:
    grains = [[(crystal, u)] for u in random_orientations(n, rng)]
    return _assemble("grains", shape, seed, grains, (1, 1), (0, 0.1), rng)


def _twinned(n: int, rng: np.random.Generator, crystal: Crystal) -> list[list[tuple[Crystal, FloatArray]]]:
    planes = _TWIN_PLANES.get(crystal.name, _TWIN_PLANES["BaTiO3"])
    grains: list[list[tuple[Crystal, FloatArray]]] = []
    for i, u in enumerate(random_orientations(n, rng)):
        operation = twin(crystal, planes[rng.integers(len(planes))])
        grains.append([(crystal, u)] + ([(crystal, u @ operation)] if i % 3 else []))
    return grains


def _twins(shape: tuple[int, int], seed: int, n: int, rng: np.random.Generator, crystal: Crystal) -> Specimen:
    return _assemble("twins", shape, seed, _twinned(n, rng, crystal), (3, 6), (0, 0.1), rng)


def _fine_twins(shape: tuple[int, int], seed: int, n: int, rng: np.random.Generator, crystal: Crystal) -> Specimen:
    return _assemble("fine_twins", shape, seed, _twinned(n, rng, crystal), (0.7, 1.5), (0, 0.1), rng)


def _bent(shape: tuple[int, int], seed: int, n: int, rng: np.random.Generator, crystal: Crystal) -> Specimen:
    grains = [[(crystal, u)] for u in random_orientations(n, rng)]
    return _assemble("bent", shape, seed, grains, (1, 1), (1, 2), rng)


def _two_phases(shape: tuple[int, int], seed: int, n: int, rng: np.random.Generator) -> Specimen:
    """One austenite orientation; every second grain has transformed into two of its variants.

    A variant is the martensite laid on the austenite (its b and c axes along [010] and [101] of the parent), turned by
    one of the parent's symmetry operations.
    """
    austenite, martensite = CRYSTALS["AuCuZn"], CRYSTALS["AuCuZn-M18R"]
    lattice = symmetry_rotations(austenite).as_matrix()
    laid = rotation_about([0.0, 1.0, 0.0], 45.0)
    grains: list[list[tuple[Crystal, FloatArray]]] = []
    for i, parent in enumerate(random_orientations(n, rng)):
        if i % 2 == 0:
            grains.append([(austenite, parent)])
        else:
            grains.append([(martensite, grains[-1][0][1] @ lattice[k] @ laid) for k in _two_variants(lattice, rng)])
    return _assemble("two_phases", shape, seed, grains, (3, 6), (0, 0.1), rng)


def _three_phases(shape: tuple[int, int], seed: int, n: int, rng: np.random.Generator) -> Specimen:
    phases = [CRYSTALS[name] for name in ("Ti", "Cu", "ZrO2")]
    grains = [[(phases[i % 3], u)] for i, u in enumerate(random_orientations(max(n, 3), rng))]
    return _assemble("three_phases", shape, seed, grains, (1, 1), (0, 0.1), rng)


def _subgrains(shape: tuple[int, int], seed: int, n: int, rng: np.random.Generator) -> Specimen:
    copper = CRYSTALS["Cu"]
    orientations = [random_orientations(1, rng)[0]]
    while len(orientations) < n:
        other = orientations[rng.integers(len(orientations))]
        turned = rotation_about(rng.normal(size=3), rng.uniform(*_SUBGRAIN_RANGE_DEG)) @ other
        if min(misorientation(copper, turned, u) for u in orientations) >= _SUBGRAIN_RANGE_DEG[0]:
            orientations.append(turned)
    return _assemble("subgrains", shape, seed, [[(copper, u)] for u in orientations], (1, 1), (0, 0.05), rng)


def _wafer(kind: str, shape: tuple[int, int], seed: int, orientation: FloatArray, rng: np.random.Generator) -> Specimen:
    """One perfect crystal of silicon."""
    grain = [[(CRYSTALS["Si"], orientation)]]
    return _assemble(kind, shape, seed, grain, (1, 1), (0, 0), rng, mosaic=np.zeros((1, 3)))


def _substrate_film(shape: tuple[int, int], seed: int, n: int, rng: np.random.Generator) -> Specimen:
    barium_titanate, kind = CRYSTALS["BaTiO3"], "substrate_film"
    grains = [[(barium_titanate, u)] for u in random_orientations(n, rng)]
    wafer = _wafer(kind, shape, seed, random_orientations(1, rng)[0], rng)
    return _assemble(kind, shape, seed, grains, (1, 1), (0, 0.1), rng, below=((wafer, SmoothVariation(12.0, 12.0)),))


def _gan_on_si(shape: tuple[int, int], seed: int, n: int, rng: np.random.Generator) -> Specimen:
    """GaN (0001) on Si (111), its a axis along [1 -1 0] of the wafer."""
    gallium_nitride, kind = CRYSTALS["GaN"], "gan_on_si"
    # Rows: two directions in the surface and its normal, in the laboratory and in the crystals.
    laboratory = rotation_about([0.0, 1.0, 0.0], -SAMPLE_TILT_DEG) @ rotation_about([0, 0, 1], rng.uniform(0, 360))
    in_silicon = np.array([[1, -1, 0], [1, 1, -2], [1, 1, 1]]) / np.sqrt([[2.0], [6.0], [3.0]])
    a = direct_basis(gallium_nitride)[:, 0]
    in_nitride = np.stack([a / np.linalg.norm(a), np.cross([0, 0, 1], a / np.linalg.norm(a)), [0, 0, 1]])
    grains = []
    for _ in range(n):
        twist = rotation_about([0, 0, 1], rng.uniform(-4, 4))
        azimuth = rng.uniform(0, 2 * np.pi)
        tilt = rotation_about([np.cos(azimuth), np.sin(azimuth), 0], rng.uniform(0, 2))
        grains.append([(gallium_nitride, laboratory @ tilt @ twist @ in_nitride)])
    wafer = _wafer(kind, shape, seed, laboratory @ in_silicon, rng)
    return _assemble(kind, shape, seed, grains, (1, 1), (0, 0.1), rng, below=((wafer, SmoothVariation(8.0, 8.0)),))


def _low_counts(shape: tuple[int, int], seed: int, n: int, rng: np.random.Generator) -> Specimen:
    grains = [[(CRYSTALS["Cu"], u)] for u in random_orientations(n, rng)]
    conditions = Conditions(time=7e-4)
    return _assemble("low_counts", shape, seed, grains, (1, 1), (0, 0.1), rng, conditions=conditions)


def _few_spots(shape: tuple[int, int], seed: int, n: int, rng: np.random.Generator) -> Specimen:
    grains = [[(CRYSTALS["W"], u)] for u in random_orientations(n, rng)]
    conditions = Conditions(energy_range_keV=(8.0, 14.0))
    return _assemble("few_spots", shape, seed, grains, (1, 1), (0, 0.1), rng, conditions=conditions)


def _mess(
    kind: str,
    shape: tuple[int, int],
    seed: int,
    variants: list[list[tuple[Crystal, FloatArray]]],
    widths: tuple[float, float],
    rng: np.random.Generator,
) -> Specimen:
    """Bent, streaky grains with others of the same phase buried below them, scanned while all drifts."""
    n, phase = len(variants), variants[0][0][0]
    hidden = [[(phase, u)] for u in random_orientations(n, rng)]
    buried = _assemble(kind, shape, seed, hidden, (1, 1), (0, 1), rng, mosaic=_streaks(n, rng))
    return _assemble(
        kind,
        shape,
        seed,
        variants,
        widths,
        (2, 3),
        rng,
        mosaic=_streaks(n, rng),
        below=((buried, smooth_variation(0.0, 0.6, rng)),),
        conditions=Conditions(
            beam=smooth_variation(0.6, 1.4, rng, along_x=False),
            background=smooth_variation(0.5, 2.5, rng, along_x=False),
        ),
    )


def _messy(shape: tuple[int, int], seed: int, n: int, rng: np.random.Generator) -> Specimen:
    copper = CRYSTALS["Cu"]
    return _mess("messy", shape, seed, [[(copper, u)] for u in random_orientations(n, rng)], (1, 1), rng)


def _messy_twins(shape: tuple[int, int], seed: int, n: int, rng: np.random.Generator) -> Specimen:
    return _mess("messy_twins", shape, seed, _twinned(n, rng, CRYSTALS["BaTiO3"]), (3, 6), rng)


def _streaks(n: int, rng: np.random.Generator) -> FloatArray:
    """Orientation spreads of n grains, 0.1 to 0.5° about any axis."""
    axis = rng.normal(size=(n, 3))
    return np.asarray(axis * (rng.uniform(0.1, 0.5, size=n) / np.linalg.norm(axis, axis=1))[:, None])


def _two_variants(lattice: FloatArray, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Two operations that move the martensite's b axis to different parent axes, hence distinct variants."""
    axis = np.abs(lattice[:, :, 1]).argmax(axis=1)
    first = int(rng.integers(len(lattice)))
    others = np.flatnonzero(axis != axis[first])
    return np.array([first, rng.choice(others)], dtype=np.intp)


def _a_axes(crystal: Crystal) -> FloatArray:
    """Unit vectors (n, 3) along a and its equivalents, in the crystal's Cartesian frame."""
    a = direct_basis(crystal)[:, 0]
    return np.asarray(symmetry_rotations(crystal).apply(a / np.linalg.norm(a)))


def _beam() -> FloatArray:
    """Offsets (n, 2) that sample the round beam evenly."""
    line = np.linspace(-1, 1, 7) * BEAM_RADIUS_STEPS
    offsets = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.asarray(offsets[(offsets**2).sum(axis=1) <= BEAM_RADIUS_STEPS**2 * 1.001])


_TWIN_PLANES: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "BaTiO3": ((1, 0, 1), (0, 1, 1), (-1, 0, 1), (0, -1, 1)),
    "CuAlNi-2H": ((1, 2, 1), (-1, 2, 1), (1, 2, -1), (1, 0, 1)),
}

_MAKERS_BY_PHASE: Mapping[
    str, tuple[Callable[[tuple[int, int], int, int, np.random.Generator, Crystal], Specimen], str]
] = {
    "grains": (_grains, "Cu"),
    "twins": (_twins, "BaTiO3"),
    "bent": (_bent, "BaTiO3"),
    "fine_twins": (_fine_twins, "BaTiO3"),
}
_MAKERS: Mapping[str, Callable[[tuple[int, int], int, int, np.random.Generator], Specimen]] = {
    "two_phases": _two_phases,
    "three_phases": _three_phases,
    "subgrains": _subgrains,
    "substrate_film": _substrate_film,
    "gan_on_si": _gan_on_si,
    "low_counts": _low_counts,
    "few_spots": _few_spots,
    "messy": _messy,
    "messy_twins": _messy_twins,
}
KINDS: tuple[str, ...] = (
    *("grains", "twins", "two_phases", "bent", "fine_twins", "three_phases", "subgrains", "substrate_film"),
    *("gan_on_si", "low_counts", "few_spots", "messy", "messy_twins"),
)
"""Names of the specimens, in the order that their seeds count."""
