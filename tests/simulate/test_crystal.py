import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.simulate.crystal import (
    Crystal,
    direct_basis,
    lattice_operations,
    misorientation,
    random_orientations,
    reciprocal_basis,
    reflections,
    rotation_about,
    structure_factors,
    symmetry_rotations,
    twin,
)
from laue_dask.simulate.materials import CRYSTAL_SYSTEMS, CRYSTALS, crystal, random_crystal

lengths = st.floats(2.5, 12.0)
angles = st.floats(75.0, 105.0)


@settings(max_examples=30, deadline=None)
@given(lengths, lengths, lengths, angles, angles, angles)
def test_direct_basis_has_the_lattice_parameters(a, b, c, alpha, beta, gamma):
    basis = direct_basis(Crystal("any", (a, b, c, alpha, beta, gamma), ()))
    norms = np.linalg.norm(basis, axis=0)
    np.testing.assert_allclose(norms, (a, b, c), rtol=1e-9)
    cosines = (basis.T @ basis) / np.outer(norms, norms)
    np.testing.assert_allclose(
        [cosines[1, 2], cosines[0, 2], cosines[0, 1]], np.cos(np.radians([alpha, beta, gamma])), atol=1e-9
    )


def test_reciprocal_basis_is_busing_levy():
    basis = reciprocal_basis(CRYSTALS["CuSO4-5H2O"])
    assert basis[1, 0] == basis[2, 0] == basis[2, 1] == 0


def test_cell_that_does_not_close_is_refused():
    with pytest.raises(InputError, match="close no cell"):
        reciprocal_basis(Crystal("impossible", (4, 4, 4, 60, 60, 170), ()))


def test_unknown_centring_and_name_are_refused():
    with pytest.raises(InputError, match="centring 'X'"):
        Crystal("wrong", (4, 4, 4, 90, 90, 90), (), "X")
    with pytest.raises(InputError, match="'Unobtainium' is unknown"):
        crystal("Unobtainium")


@pytest.mark.parametrize(
    ("name", "absent", "present"),
    [
        ("Cu", (1, 0, 0), (1, 1, 1)),
        ("Si", (2, 2, 2), (2, 2, 0)),
        ("Si", (4, 4, 2), (4, 4, 4)),
        ("W", (1, 0, 0), (1, 1, 0)),
        ("Ti", (0, 0, 1), (0, 0, 2)),
        ("quartz", (0, 0, 1), (0, 0, 3)),
        ("ZrO2", (0, 1, 0), (0, 2, 0)),
        ("ZrO2", (1, 0, 1), (1, 0, 2)),
    ],
)
def test_extinctions_follow_from_the_motif(name, absent, present):
    factors = np.abs(structure_factors(CRYSTALS[name], np.array([absent, present])))
    assert factors[0] < 1e-2 * factors[1]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_structure_factors_agree_with_the_sum_over_atoms(seed):
    rng = np.random.default_rng(seed)
    phase = random_crystal(rng)
    hkl = rng.integers(-6, 7, size=(20, 3))
    translations = {"P": [(0, 0, 0)], "I": [(0, 0, 0), (0.5, 0.5, 0.5)], "C": [(0, 0, 0), (0.5, 0.5, 0)]}
    translations["F"] = [(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)]
    translations["R"] = [(0, 0, 0), (2 / 3, 1 / 3, 1 / 3), (1 / 3, 2 / 3, 2 / 3)]
    for index, got in zip(hkl, structure_factors(phase, hkl), strict=True):
        s2 = np.sum((reciprocal_basis(phase) @ index) ** 2) / 4
        wanted = sum(
            number
            / (1 + s2 / (0.45 * (number / 14) ** (1 / 3)) ** 2)
            * np.exp(2j * np.pi * index @ np.add(site, shift))
            for number, *site in phase.atoms
            for shift in translations[phase.centring]
        )
        np.testing.assert_allclose(got, wanted * np.exp(-0.45 * s2), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_random_crystals_diffract_with_the_symmetry_of_their_lattice(seed):
    phase = random_crystal(np.random.default_rng(seed))
    assert len(reflections(phase, 12.0).hkl) > 20
    if phase.centring == "R":  # the hexagonal axes have more symmetry than the rhombohedral lattice on them
        return
    hkl = np.random.default_rng(seed).integers(-4, 5, size=(10, 3))
    reference = np.abs(structure_factors(phase, hkl))
    for operation in lattice_operations(phase):
        # Atoms' positions are kept to six decimals, their images' too.
        turned = np.abs(structure_factors(phase, hkl @ operation))
        np.testing.assert_allclose(turned, reference, rtol=2e-4, atol=1e-3)


def test_random_crystals_are_of_all_systems():
    names = {random_crystal(np.random.default_rng(seed)).name.split("-")[0] for seed in range(80)}
    assert names == set(CRYSTAL_SYSTEMS)


@pytest.mark.parametrize(
    ("name", "order"),
    [("Si", 24), ("BaTiO3", 8), ("Ti", 12), ("CuAlNi-2H", 4), ("ZrO2", 2), ("CuSO4-5H2O", 1)],
)
def test_order_of_the_lattice_symmetry(name, order):
    rotations = symmetry_rotations(CRYSTALS[name]).as_matrix()
    assert len(rotations) == order
    np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1), np.eye(3)[None].repeat(order, 0), atol=1e-9)


@pytest.mark.parametrize("name", list(CRYSTALS))
def test_reflections_come_with_their_friedel_mates_and_harmonics_share_a_ray(name):
    table = reflections(CRYSTALS[name], 14.0)
    known = {tuple(index): strength for index, strength in zip(table.hkl.tolist(), table.strength, strict=True)}
    mates = [known[tuple(index)] for index in (-table.hkl).tolist()]
    np.testing.assert_allclose(mates, table.strength, rtol=1e-3)
    longest = 2 * 14.0 / 12.398419843
    assert np.linalg.norm(table.g, axis=1).max() <= longest * (1 + 1e-6)
    first = {}
    for ray, g in zip(table.ray, table.g / np.linalg.norm(table.g, axis=1, keepdims=True), strict=True):
        np.testing.assert_allclose(first.setdefault(ray, g), g, atol=1e-5)


def test_90_degree_twin_of_tetragonal_barium_titanate():
    tetragonal = CRYSTALS["BaTiO3"]
    operation = twin(tetragonal, (1, 0, 1))
    np.testing.assert_allclose(operation @ operation, np.eye(3), atol=1e-12)
    assert np.linalg.det(operation) == pytest.approx(1)
    u = random_orientations(1, np.random.default_rng(0))[0]
    # 2 atan(a / c): the c axis of one domain is nearly the a axis of the other
    assert misorientation(tetragonal, u, u @ operation) == pytest.approx(2 * np.degrees(np.arctan(3.994 / 4.038)))


def test_misorientation_takes_the_symmetry_into_account():
    silicon = CRYSTALS["Si"]
    u = random_orientations(1, np.random.default_rng(1))[0]
    equivalent = u @ symmetry_rotations(silicon).as_matrix()[7]
    assert misorientation(silicon, u, equivalent) == pytest.approx(0, abs=1e-5)
    turned = rotation_about([1, 2, 3], 3.0) @ equivalent
    assert misorientation(silicon, u, turned) == pytest.approx(3.0)
