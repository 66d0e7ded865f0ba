import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.simulate.crystal import misorientation
from laue_dask.simulate.specimens import KINDS, specimen, surface_normal


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_what_the_beam_meets_agrees_with_the_maps(kind, seed):
    made = specimen(kind, (9, 12), seed)
    assert made.domain.dtype == np.int32
    assert made.domain.shape == made.edge.shape == made.angle.shape == (9, 12)
    assert (made.angle >= 0).all()
    assert (made.angle <= 90).all()
    for point in range(0, 108, 7):
        met = made.at(point)
        # What lies below comes last, in the order of the specimens there.
        below = [g for buried, _ in made.below for g in buried.at(point)]
        grains, shown = met[: len(met) - len(below)], met[len(met) - len(below) :]
        assert [g.crystal for g in shown] == [g.crystal for g in below]
        assert sum(g.weight for g in grains) == pytest.approx(1)
        assert made.edge.flat[point] == (grains[0].weight <= 0.95)
        assert grains[0].crystal is made.crystals[made.domain.flat[point]]
        true = made.orientations[made.domain.flat[point]]
        assert misorientation(grains[0].crystal, true, grains[0].orientation) < (6 if kind.startswith("messy") else 3)
        axis = grains[0].orientation[:, :] @ np.array([1.0, 0, 0])
        if kind == "grains":  # cubic: a, b and c are the axes of the Cartesian frame
            cosines = np.abs(grains[0].orientation.T @ surface_normal())
            assert made.angle.flat[point] == pytest.approx(np.degrees(np.arccos(cosines.max())), abs=1e-6)
            assert np.linalg.norm(axis) == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_specimen_follows_from_its_seed(kind):
    first, again, other = (specimen(kind, (12, 12), seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.domain, again.domain)
    np.testing.assert_array_equal(first.orientations, again.orientations)
    assert not np.allclose(first.orientations[0], other.orientations[0])


def test_lamellae_of_a_twinned_grain_are_90_degree_twins():
    made = specimen("twins", (30, 30), 0)
    counts = np.diff(np.append(made.layout.first, len(made.crystals)))
    assert (counts == 2).sum() == 4
    for first in made.layout.first[counts == 2]:
        angle = misorientation(made.crystals[first], made.orientations[first], made.orientations[first + 1])
        assert angle == pytest.approx(2 * np.degrees(np.arctan(3.994 / 4.038)))
        neighbours = (made.domain[:, :-1] == first) & (made.domain[:, 1:] == first + 1)
        below = (made.domain[:-1] == first) & (made.domain[1:] == first + 1)
        assert neighbours.any() or below.any()


def test_two_phases_have_cubic_grains_and_two_martensite_variants_in_each_other_grain():
    made = specimen("two_phases", (30, 30), 1)
    names = [c.name for c in made.crystals]
    assert names == ["AuCuZn", "AuCuZn-M18R", "AuCuZn-M18R"] * 3
    for first in (1, 4, 7):
        assert misorientation(made.crystals[first], made.orientations[first], made.orientations[first + 1]) > 5


def test_bent_grains_turn_by_one_to_two_degrees_and_others_hardly():
    for kind, low, high in (("bent", 0.4, 4.0), ("grains", 0.0, 0.3)):
        made = specimen(kind, (30, 30), 2)
        for domain in range(len(made.crystals)):
            points = np.flatnonzero((made.domain == domain).ravel())
            ends = [made.at(int(p))[0].orientation for p in points[[0, -1]]]
            turns = [
                misorientation(made.crystals[domain], ends[0], made.at(int(p))[0].orientation) for p in points[::5]
            ]
            assert max(turns) <= high
        assert max(turns) >= low


def test_fine_twins_are_mostly_seen_two_at_a_time():
    fine, coarse = (specimen(kind, (30, 30), 0).edge.mean() for kind in ("fine_twins", "twins"))
    assert fine > 2 * coarse


def test_substrate_is_one_perfect_crystal_of_one_strength_everywhere():
    for kind, strength in (("substrate_film", 12.0), ("gan_on_si", 8.0)):
        made = specimen(kind, (20, 20), 1)
        wafers = [made.at(point)[-1] for point in range(0, 400, 19)]
        for wafer in wafers:
            assert wafer.crystal.name == "Si"
            assert wafer.weight == pytest.approx(strength)
            assert not wafer.spread.any()
            np.testing.assert_array_equal(wafer.orientation, wafers[0].orientation)


def test_gallium_nitride_stands_on_a_silicon_111_wafer():
    made = specimen("gan_on_si", (30, 30), 3)
    wafer = made.at(0)[-1].orientation
    np.testing.assert_allclose(wafer @ np.ones(3) / np.sqrt(3), surface_normal(), atol=1e-9)
    for crystal, orientation in zip(made.crystals, made.orientations, strict=True):
        assert crystal.name == "GaN"
        assert np.linalg.det(orientation) == pytest.approx(1)
        assert np.degrees(np.arccos(orientation[:, 2] @ surface_normal())) <= 2 + 1e-6
        # Busing-Levy: a* is x, so a is 30° from it; [1 -1 0] of the wafer lies in the surface.
        along = orientation @ [np.sqrt(3) / 2, -0.5, 0.0] @ (wafer @ [1, -1, 0] / np.sqrt(2))
        assert np.degrees(np.arccos(min(along, 1.0))) <= 4 + 2 + 1e-6


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_subgrains_are_little_but_all_turned(seed):
    made = specimen("subgrains", (30, 30), seed)
    apart = np.array(
        [[misorientation(made.crystals[0], u, v) for v in made.orientations] for u in made.orientations]
    ) + 9 * np.eye(len(made.orientations))
    assert apart.min() >= 0.4
    assert (apart.min(axis=1) <= 1.2 + 1e-9).all()


def test_three_phases_are_all_there():
    made = specimen("three_phases", (10, 10), 0)
    assert {c.name for c in made.crystals} == {"Ti", "Cu", "ZrO2"}


@pytest.mark.parametrize("kind", ["messy", "messy_twins"])
def test_messy_grains_are_bent_streaked_and_let_buried_ones_show_through(kind):
    made = specimen(kind, (30, 30), 2)
    lengths = np.linalg.norm(made.mosaic, axis=1)
    assert (lengths >= 0.1).all()
    assert (lengths <= 0.5).all()
    [(buried, strength)] = made.below
    weights = np.array([sum(g.weight for g in made.at(p)) - 1 for p in range(900)])
    assert weights.min() >= 0
    assert weights.max() <= 0.6
    assert np.ptp(weights) > 0.1
    # The weight is that of the place, whatever grain lies there.
    np.testing.assert_allclose(weights, [strength.at(made.place(p)) for p in range(900)])
    # Buried grains have boundaries of their own.
    assert (buried.domain != made.domain).any()
    ends = [made.at(p)[0] for p in np.flatnonzero((made.domain == made.domain[0, 0]).ravel())[[0, -1]]]
    assert misorientation(ends[0].crystal, ends[0].orientation, ends[1].orientation) > 0.5


def test_unknown_kind_and_empty_shape_are_refused():
    with pytest.raises(InputError, match="'gravel' is unknown: choose one of grains"):
        specimen("gravel")
    with pytest.raises(InputError, match="no points"):
        specimen("grains", (0, 5))


@pytest.mark.parametrize("kind", ["grains", "twins", "bent", "fine_twins"])
def test_kinds_of_one_phase_can_be_made_of_another(kind):
    made = specimen(kind, (10, 12), 3, crystal="CuAlNi-2H", grains=3)
    assert {c.name for c in made.crystals} == {"CuAlNi-2H"}
    assert len(made.layout.seeds) == 3
    usual = specimen(kind, (10, 12), 3)
    np.testing.assert_array_equal(usual.domain, specimen(kind, (10, 12), 3, crystal=usual.crystals[0].name).domain)


def test_twins_of_another_crystal_are_lattice_twins():
    made = specimen("fine_twins", (20, 20), 1, crystal="CuAlNi-2H", grains=4)
    crystal = made.crystals[0]
    pairs = [
        first
        for first, n in zip(made.layout.first, np.diff([*made.layout.first, len(made.crystals)]), strict=True)
        if n == 2
    ]
    assert len(pairs) == 2
    assert all(misorientation(crystal, made.orientations[i], made.orientations[i + 1]) > 1 for i in pairs)


def test_impossible_phases_and_too_few_grains_are_refused():
    with pytest.raises(InputError, match="'two_phases' has crystals of its own"):
        specimen("two_phases", crystal="Cu")
    with pytest.raises(InputError, match="crystal 'mud' is unknown"):
        specimen("grains", crystal="mud")
    with pytest.raises(InputError, match="1 grains: ask for 2 or more"):
        specimen("grains", grains=1)
