"""Crystals: cell, motif, reciprocal basis, structure factors and the reflections that a white beam can excite.

The structure factors are computed from point-like atoms with one analytic fall-off, so extinctions, symmetry and the
spread between strong and weak families follow from the motif instead of from tables. Orientations are proper rotation
matrices U with ``G_lab = U @ B @ hkl``; B is the Busing-Levy basis (a* along x, b* in the xy plane) in 1/Å.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from laue_dask.errors import InputError

FloatArray = npt.NDArray[np.float64]
Atom = tuple[int, float, float, float]

HC_KEV_ANGSTROM = 12.398419843
"""Photon energy times wavelength."""

_DEBYE_WALLER_B_A2 = 0.45
"""Isotropic B factor in Å², a metal or oxide at room temperature."""

_MIN_RELATIVE_STRENGTH = 1e-5
"""Reflections below this share of the strongest one, at equal energy, are left out of the tables."""

_CENTRING: dict[str, tuple[tuple[float, float, float], ...]] = {
    "P": ((0, 0, 0),),
    "I": ((0, 0, 0), (0.5, 0.5, 0.5)),
    "F": ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)),
    "A": ((0, 0, 0), (0, 0.5, 0.5)),
    "B": ((0, 0, 0), (0.5, 0, 0.5)),
    "C": ((0, 0, 0), (0.5, 0.5, 0)),
    "R": ((0, 0, 0), (2 / 3, 1 / 3, 1 / 3), (1 / 3, 2 / 3, 2 / 3)),
}


@dataclass(frozen=True)
class Crystal:
    """A phase.

    Attributes
    ----------
    name
        What it is called in specimens and truth files.
    cell
        a, b, c in Å and alpha, beta, gamma in degrees.
    atoms
        (atomic number, x, y, z) of the motif in fractional coordinates, without the centring translations.
    centring
        Lattice letter: P, I, F, A, B, C, or R (obverse, hexagonal axes).
    """

    name: str
    cell: tuple[float, float, float, float, float, float]
    atoms: tuple[Atom, ...]
    centring: str = "P"

    def __post_init__(self) -> None:
        if self.centring not in _CENTRING:
            raise InputError(f"crystal '{self.name}': centring '{self.centring}' is not one of {', '.join(_CENTRING)}")


class Reflections(NamedTuple):
    """Reflections of one crystal up to one energy, in no particular order.

    Attributes
    ----------
    hkl
        (n, 3) int16.
    g
        (n, 3) float32, reciprocal vectors in the crystal's Cartesian frame, 1/Å.
    strength
        (n,) float32, structure factor over cell volume, squared; 1 is the (220) reflection of silicon.
    ray
        (n,) int32, the same for all reflections along one direction (harmonics), counted from 0.
    """

    hkl: npt.NDArray[np.int16]
    g: npt.NDArray[np.float32]
    strength: npt.NDArray[np.float32]
    ray: npt.NDArray[np.int32]


def direct_basis(crystal: Crystal) -> FloatArray:
    """Return the vectors a, b, c as columns, shape (3, 3), in Å, in the frame of `reciprocal_basis`."""
    return np.asarray(np.linalg.inv(reciprocal_basis(crystal)).T, dtype=np.float64)


@lru_cache(maxsize=256)
def _basis(cell: tuple[float, ...]) -> FloatArray:
    a, b, c = cell[:3]
    cosines = np.cos(np.radians(cell[3:]))
    sines = np.sin(np.radians(cell[3:]))
    if 1 - (cosines**2).sum() + 2 * cosines.prod() <= 0 or min(a, b, c) <= 0:
        raise InputError(f"crystal: the lattice parameters {cell} close no cell: check lengths and angles")
    ca, cb, cg = cosines
    sa, sb, sg = sines
    volume = a * b * c * np.sqrt(1 - (cosines**2).sum() + 2 * cosines.prod())
    a_star, b_star, c_star = b * c * sa / volume, a * c * sb / volume, a * b * sg / volume
    cos_gamma_star = (ca * cb - cg) / (sa * sb)
    cos_beta_star = (ca * cg - cb) / (sa * sg)
    return np.array(
        [
            [a_star, b_star * cos_gamma_star, c_star * cos_beta_star],
            [0, b_star * np.sqrt(1 - cos_gamma_star**2), -c_star * np.sqrt(1 - cos_beta_star**2) * ca],
            [0, 0, 1 / c],
        ]
    )


def reciprocal_basis(crystal: Crystal) -> FloatArray:
    """Return the Busing-Levy matrix B: a*, b*, c* as columns, shape (3, 3), in 1/Å (no factor 2π).

    Raises
    ------
    InputError
        The lattice parameters close no cell.
    """
    return _basis(crystal.cell).copy()


@lru_cache(maxsize=256)
def lattice_operations(crystal: Crystal) -> npt.NDArray[np.int8]:
    """Return the proper rotations that map the lattice's metric onto itself, as integer matrices on direct coordinates.

    Returns
    -------
    ndarray
        Shape (n, 3, 3) int8 with n from 1 (triclinic) to 24 (cubic); the identity is among them.
    """
    candidates = np.array(list(product((-1, 0, 1), repeat=9)), dtype=np.float64).reshape(-1, 3, 3)
    candidates = candidates[np.abs(np.linalg.det(candidates) - 1) < 1e-6]
    direct = direct_basis(crystal)
    metric = direct.T @ direct
    moved = candidates.transpose(0, 2, 1) @ metric @ candidates
    keep = np.abs(moved - metric).max(axis=(1, 2)) < 1e-6 * metric.max()
    return np.asarray(candidates[keep], dtype=np.int8)


def symmetry_rotations(crystal: Crystal) -> Rotation:
    """Return the operations of `lattice_operations` as rotations of the crystal's Cartesian frame."""
    direct = direct_basis(crystal)
    return Rotation.from_matrix(direct @ lattice_operations(crystal) @ np.linalg.inv(direct))


def structure_factors(crystal: Crystal, hkl: npt.NDArray[np.integer]) -> npt.NDArray[np.complex128]:
    """Return the structure factors of reflections `hkl` (n, 3), in electrons per cell, with thermal motion.

    The scattering factor is ``Z / (1 + (s / s0)²)`` with ``s = sin(theta) / lambda`` and
    ``s0 = 0.45 (Z / 14)^(1/3)`` 1/Å, which follows the tabulated factor of silicon within a quarter
    up to s = 1.
    """
    s_squared = ((hkl @ reciprocal_basis(crystal).T) ** 2).sum(axis=1) / 4
    total = np.zeros(len(hkl), dtype=np.complex128)
    lattice = np.exp(2j * np.pi * (hkl @ np.array(_CENTRING[crystal.centring]).T)).sum(axis=1)
    low = hkl.min(axis=0)
    for number in sorted({atom[0] for atom in crystal.atoms}):
        phases = np.zeros(len(hkl), dtype=np.complex128)
        for _, *site in (atom for atom in crystal.atoms if atom[0] == number):
            # One table per axis: three look-ups in place of a complex exponential per reflection.
            waves = [
                np.exp(2j * np.pi * x * np.arange(n, m + 1)) for x, n, m in zip(site, low, hkl.max(axis=0), strict=True)
            ]
            phases += waves[0][hkl[:, 0] - low[0]] * waves[1][hkl[:, 1] - low[1]] * waves[2][hkl[:, 2] - low[2]]
        total += phases * number / (1 + s_squared / (0.45 * (number / 14) ** (1 / 3)) ** 2)
    return np.asarray(total * lattice * np.exp(-_DEBYE_WALLER_B_A2 * s_squared))


@lru_cache(maxsize=96)
def reflections(crystal: Crystal, max_energy_keV: float) -> Reflections:
    """Return every reflection with a noticeable structure factor that `max_energy_keV` can excite in any orientation.

    The result is cached per crystal and energy: 5,000 to 40,000 reflections, about 20 bytes each.
    """
    basis = reciprocal_basis(crystal)
    longest = 2 * max_energy_keV / HC_KEV_ANGSTROM
    limits = np.floor(longest * np.linalg.norm(direct_basis(crystal), axis=0)).astype(int)
    axes = [np.arange(-n, n + 1, dtype=np.int16) for n in limits]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    length = np.linalg.norm(hkl @ basis.T, axis=1)
    hkl = hkl[(length <= longest) & (length > 0)]
    strength = np.abs(structure_factors(crystal, hkl)) ** 2 * np.linalg.det(basis) ** 2
    g = hkl @ basis.T
    visible = strength / (g**2).sum(axis=1)
    keep = visible > _MIN_RELATIVE_STRENGTH * visible.max()
    hkl, g, strength = hkl[keep], g[keep], strength[keep]
    primitive = hkl // np.gcd.reduce(hkl, axis=1)[:, None]
    _, ray = np.unique(primitive, axis=0, return_inverse=True)
    return Reflections(
        hkl,
        g.astype(np.float32),
        (strength / _SILICON_220_STRENGTH).astype(np.float32),
        ray.reshape(-1).astype(np.int32),
    )


def twin(crystal: Crystal, plane: tuple[int, int, int]) -> FloatArray:
    """Return the twin operation of a lattice plane: half a turn about its normal, in the crystal's Cartesian frame.

    For a crystal whose diffraction is centrosymmetric this is the same as reflection in the plane. `{101}` of a
    tetragonal crystal gives its 90° domains (2 atan(c / a) apart), `{111}` of a cubic one the Σ3 twin.

    Returns
    -------
    ndarray
        Rotation matrix R (3, 3): the twin of orientation U is ``U @ R``.
    """
    normal = reciprocal_basis(crystal) @ np.asarray(plane, dtype=np.float64)
    normal /= np.linalg.norm(normal)
    return 2 * np.outer(normal, normal) - np.eye(3)


def random_orientations(n: int, rng: np.random.Generator) -> FloatArray:
    """Return the orientations drawn uniformly from all rotations, shape (n, 3, 3)."""
    quaternions = rng.normal(size=(n, 4))
    return Rotation.from_quat(quaternions).as_matrix()


def rotation_about(axis: npt.ArrayLike, degrees: float) -> FloatArray:
    """Return the rotation matrix (3, 3) about `axis` (any length above zero)."""
    direction = np.asarray(axis, dtype=np.float64)
    return Rotation.from_rotvec(np.radians(degrees) * direction / np.linalg.norm(direction)).as_matrix()


def misorientation(crystal: Crystal, first: FloatArray, second: FloatArray) -> float:
    """Return the smallest angle in degrees that turns one orientation (3, 3) into the other, lattice symmetry
    considered.
    """
    between = Rotation.from_matrix(np.asarray(first).T @ np.asarray(second))
    return float(np.degrees((symmetry_rotations(crystal) * between).magnitude().min()))


def _silicon_220() -> float:
    """|F|² / V² of silicon's strongest reflection: the unit of `Reflections.strength`."""
    silicon = Crystal("Si", (5.4309,) * 3 + (90.0,) * 3, ((14, 0, 0, 0), (14, 0.25, 0.25, 0.25)), "F")
    factor = structure_factors(silicon, np.array([[2, 2, 0]]))[0]
    return float(abs(factor) ** 2 * np.linalg.det(reciprocal_basis(silicon)) ** 2)


_SILICON_220_STRENGTH = _silicon_220()
