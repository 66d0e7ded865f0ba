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
        grains = made.at(point)
        assert sum(g.weight for g in grains) == pytest.approx(1)
        assert made.edge.flat[point] == (grains[0].weight <= 0.95)
        assert grains[0].crystal is made.crystals[made.domain.flat[point]]
        true = made.orientations[made.domain.flat[point]]
        assert misorientation(grains[0].crystal, true, grains[0].orientation) < 3
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


def test_unknown_kind_and_empty_shape_are_refused():
    with pytest.raises(InputError, match="'gravel' is unknown: choose one of grains"):
        specimen("gravel")
    with pytest.raises(InputError, match="no points"):
        specimen("grains", (0, 5))
