"""Named crystals, and random ones of all seven systems with symmetric motifs."""

from collections.abc import Mapping

import numpy as np

from laue_dask.errors import InputError
from laue_dask.simulate.crystal import Atom, Crystal, lattice_operations

CRYSTAL_SYSTEMS = ("cubic", "tetragonal", "orthorhombic", "hexagonal", "trigonal", "monoclinic", "triclinic")


def _cubic(a: float) -> tuple[float, float, float, float, float, float]:
    return (a, a, a, 90.0, 90.0, 90.0)


def _heusler(full: int, half: int, quarter: int) -> tuple[Atom, ...]:
    return ((full, 0, 0, 0), (half, 0.5, 0.5, 0.5), (quarter, 0.25, 0.25, 0.25), (quarter, 0.75, 0.75, 0.75))


def _quartz() -> tuple[Atom, ...]:
    x, y, z = 0.4135, 0.2669, 0.7857
    silicon = ((0.4697, 0, 2 / 3), (0, 0.4697, 1 / 3), (0.5303, 0.5303, 0))
    oxygen = ((x, y, z), (-y, x - y, z + 2 / 3), (y - x, -x, z + 1 / 3))
    turned = ((y, x, -z), (x - y, -y, 1 / 3 - z), (-x, y - x, 2 / 3 - z))
    return (*((14, *site) for site in silicon), *((8, *site) for site in oxygen + turned))


def _zirconia() -> tuple[Atom, ...]:
    atoms: list[Atom] = []
    for number, x, y, z in ((40, 0.2754, 0.0395, 0.2083), (8, 0.070, 0.3317, 0.3447), (8, 0.4496, 0.7569, 0.4792)):
        atoms += [
            (number, x, y, z),
            (number, -x, y + 0.5, 0.5 - z),
            (number, -x, -y, -z),
            (number, x, 0.5 - y, z + 0.5),
        ]
    return tuple(atoms)


def _layered_martensite() -> tuple[Atom, ...]:
    """18 close-packed layers along c, each shifted by a third of a in the (5 -1)3 sequence of 18R martensite."""
    atoms: list[Atom] = []
    shift = 0.0
    for layer in range(18):
        z = (layer + 0.5) / 18
        for number, x, y in ((79, 0.0, 0.0), (30, 0.0, 0.5), (29, 0.5, 0.25), (30, 0.5, 0.75)):
            atoms.append((number, (x + shift) % 1, y, z))
        shift += -1 / 3 if layer % 6 == 5 else 1 / 3
    return tuple(atoms)


def _centrosymmetric(*atoms: Atom) -> tuple[Atom, ...]:
    return atoms + tuple((n, -x, -y, -z) for n, x, y, z in atoms if (x, y, z) != (0, 0, 0))


_CRYSTAL_LIST = (
    Crystal(
        "BaTiO3",
        (3.994, 3.994, 4.038, 90.0, 90.0, 90.0),
        ((56, 0, 0, 0), (22, 0.5, 0.5, 0.5215), (8, 0.5, 0.5, 0.9775), (8, 0.5, 0, 0.4860), (8, 0, 0.5, 0.4860)),
    ),
    Crystal("Si", _cubic(5.4309), ((14, 0, 0, 0), (14, 0.25, 0.25, 0.25)), "F"),
    Crystal("Ge", _cubic(5.6575), ((32, 0, 0, 0), (32, 0.25, 0.25, 0.25)), "F"),
    Crystal("Cu", _cubic(3.6149), ((29, 0, 0, 0),), "F"),
    Crystal("W", _cubic(3.1652), ((74, 0, 0, 0),), "I"),
    Crystal("CuAlMn", _cubic(5.95), _heusler(13, 25, 29), "F"),
    Crystal(
        "CuAlNi-2H",
        (4.382, 5.356, 4.222, 90.0, 90.0, 90.0),
        ((29, 0, 0, 0), (29, 0, 0.5, 0), (29, 0.5, 0.25, 0.5), (13, 0.5, 0.75, 0.5)),
    ),
    Crystal("AuCuZn", _cubic(6.1606), _heusler(79, 29, 30), "F"),
    Crystal("AuCuZn-M18R", (4.458, 5.7684, 40.698, 90.0, 86.8, 90.0), _layered_martensite()),
    Crystal("Ti", (2.951, 2.951, 4.684, 90.0, 90.0, 120.0), ((22, 1 / 3, 2 / 3, 0.25), (22, 2 / 3, 1 / 3, 0.75))),
    Crystal(
        "GaN",
        (3.189, 3.189, 5.185, 90.0, 90.0, 120.0),
        ((31, 1 / 3, 2 / 3, 0), (31, 2 / 3, 1 / 3, 0.5), (7, 1 / 3, 2 / 3, 0.377), (7, 2 / 3, 1 / 3, 0.877)),
    ),
    Crystal("quartz", (4.9137, 4.9137, 5.4047, 90.0, 90.0, 120.0), _quartz()),
    Crystal("ZrO2", (5.1505, 5.2116, 5.3173, 90.0, 99.23, 90.0), _zirconia()),
    Crystal(
        "CuSO4-5H2O",
        (6.122, 10.695, 5.96, 97.58, 107.17, 77.55),
        _centrosymmetric(
            (29, 0, 0, 0), (29, 0.5, 0.5, 0), (16, 0.01, 0.29, 0.64), (8, 0.91, 0.15, 0.67), (8, 0.24, 0.32, 0.79),
            (8, 0.86, 0.37, 0.64), (8, 0.05, 0.30, 0.38), (8, 0.82, 0.07, 0.15), (8, 0.29, 0.12, 0.15),
            (8, 0.46, 0.41, 0.30), (8, 0.76, 0.42, 0.02), (8, 0.43, 0.12, 0.63),
        ),
    ),
)  # fmt: skip

CRYSTALS: Mapping[str, Crystal] = {crystal.name: crystal for crystal in _CRYSTAL_LIST}
"""Crystals by name. Motifs of the martensites and of the hydrate are stand-ins with the right cell and density."""


def crystal(name: str) -> Crystal:
    """Return the crystal of that name.

    Raises
    ------
    InputError
        No crystal has that name; the message lists them.
    """
    if name not in CRYSTALS:
        raise InputError(f"crystal '{name}' is unknown: choose one of {', '.join(CRYSTALS)}")
    return CRYSTALS[name]


def random_crystal(rng: np.random.Generator) -> Crystal:
    """Return a crystal that does not exist: random system, cell of 20 to 400 Å³, motif with the lattice's own symmetry.

    One or two atoms sit on special positions, none or one on a general orbit, so that strong and weak families
    differ the way they do in real phases.
    """
    system = CRYSTAL_SYSTEMS[rng.integers(len(CRYSTAL_SYSTEMS))]
    a, b, c = rng.uniform(2.8, 7.5, size=3)
    alpha = beta = gamma = 90.0
    if system in ("hexagonal", "trigonal"):
        gamma = 120.0
    elif system == "monoclinic":
        beta = float(rng.uniform(91, 115))
    elif system == "triclinic":
        alpha, beta, gamma = (float(v) for v in rng.uniform(75, 105, size=3))
    if system == "cubic":
        b = c = a
    elif system in ("tetragonal", "hexagonal", "trigonal"):
        b = a
    centrings = {"cubic": "PIF", "tetragonal": "PI", "orthorhombic": "PICF", "trigonal": "R", "monoclinic": "PC"}
    letters = centrings.get(system, "P")
    centring = letters[rng.integers(len(letters))]
    bare = Crystal("bare", (float(a), float(b), float(c), alpha, beta, gamma), (), centring)
    numbers = [int(n) for n in rng.choice([8, 12, 14, 20, 22, 26, 29, 40, 50, 56, 74, 79], size=3)]
    atoms: list[Atom] = [(numbers[0], 0.0, 0.0, 0.0)]
    if rng.random() < 0.6:
        atoms += _orbit(bare, numbers[1], np.array([0.5, 0.5, 0.5 if rng.random() < 0.5 else 0.0]))
    if rng.random() < 0.5:
        atoms += _orbit(bare, numbers[2], rng.uniform(0.1, 0.4, size=3) * (rng.random(3) < 0.6))
    name = f"{system}-{centring}-{a:.2f}"
    return Crystal(name, bare.cell, tuple(atoms), centring)


def _orbit(bare: Crystal, number: int, site: np.ndarray) -> list[Atom]:
    """Positions that the lattice's rotations, and inversion, make of one site."""
    rotations = lattice_operations(bare).astype(np.float64)
    sites = np.concatenate([rotations @ site, -(rotations @ site)])
    unique = np.unique(np.round(sites % 1, 6) % 1, axis=0)
    return [(number, float(x), float(y), float(z)) for x, y, z in unique]
