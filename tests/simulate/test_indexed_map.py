import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.simulate.crystal import misorientation, random_orientations
from laue_dask.simulate.detector import detector
from laue_dask.simulate.indexed_map import IndexedMap
from laue_dask.simulate.materials import CRYSTALS
from laue_dask.simulate.scan import frame


@pytest.fixture
def published(tmp_path):
    """Three slots on 3 × 4 points: tungsten everywhere, in two grains; nothing else found at the first two points."""
    orientation = np.zeros((3, 3, 4, 3, 3), np.float32)
    left, right, other = random_orientations(3, np.random.default_rng(1))
    orientation[0, :, :2], orientation[0, :, 2:], orientation[1:] = left, right, other
    material = np.ones((3, 3, 4), np.int8)
    material[1:, 0, :2] = 0
    path = tmp_path / "map.npz"
    np.savez(path, UB_orientation=orientation, material_index=material, materials=np.array(["W", "Si"]))
    return path


def test_crystals_of_a_point_are_those_that_were_found(published):
    found = IndexedMap.load(published, weights=(1.0, 0.5, 0.2))
    assert (found.kind, found.shape) == ("map", (3, 4))
    assert [grain.weight for grain in found.at(0)] == [1.0]
    assert [grain.weight for grain in found.at(11)] == [1.0, 0.5, 0.2]
    assert {grain.crystal.name for grain in found.at(11)} == {"W"}
    assert found.place(6) == (1 / 3, 0.5)
    screen = detector("scmos").binned(8)
    few, many = (frame(found, screen, point, seed=1).astype(float).sum() for point in (0, 11))
    assert many > few


def test_grains_and_angles_are_of_the_slot_that_is_shown(published):
    found = IndexedMap.load(published, weights=(1.0, 0.5, 0.2))
    assert found.domain(5.0).tolist() == [[0, 0, 1, 1]] * 3
    assert np.ptp(found.angle[:, :2]) == np.ptp(found.angle[:, 2:]) == 0
    other = IndexedMap.load(published, weights=(1.0, 0.5, 0.2), shown=1)
    assert other.domain(5.0).tolist() == [[-1, -1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert np.isnan(other.angle[0]).tolist() == [True, True, False, False]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["W", "GaN", "BaTiO3"]))
def test_misorientation_of_pairs_is_that_of_two_crystals(seed, name):
    crystal = CRYSTALS[name]
    U = random_orientations(4, np.random.default_rng(seed)).reshape(1, 2, 2, 3, 3)
    found = IndexedMap("drawn", (2, 2), (crystal,), np.zeros((1, 2, 2), int), U, (1.0,))
    first, second = found.neighbours()
    expected = [
        misorientation(crystal, U.reshape(-1, 3, 3)[i], U.reshape(-1, 3, 3)[j])
        for i, j in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(found.turned(first, second, (0, 0)), expected, atol=1e-5)


def test_what_is_no_map_is_refused(published, tmp_path):
    with pytest.raises(InputError, match="3 crystals per point, 2 weights"):
        IndexedMap.load(published, weights=(1.0, 0.5))
    with pytest.raises(InputError, match="no indexed map"):
        IndexedMap.load(tmp_path / "none.npz", weights=(1.0,))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(InputError, match="no indexed map"):
        IndexedMap.load(tmp_path / "other.npz", weights=(1.0,))
