import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from laue_dask.io.coordinates import MIN_KNOWN_SHARE, POINTS, UM, coordinates_of

steps = st.floats(0.05, 500).flatmap(lambda step: st.sampled_from([step, -step]))
firsts = st.floats(-1e5, 1e5)


def stage(shape, first, step):
    y, x = (first[i] + step[i] * np.arange(shape[i]) for i in (0, 1))
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)


@given(
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
    st.tuples(firsts, firsts),
    st.tuples(steps, steps),
    st.integers(0, 2**32 - 1),
)
@example((8, 2), (0.0, 0.0), (-1.0, 1.0), 710)
def test_an_even_grid_is_found_whichever_way_it_goes_with_jitter_and_without_some_points(shape, first, step, seed):
    rng = np.random.default_rng(seed)
    position = stage(shape, first, step) + rng.uniform(-0.1, 0.1, (shape[0] * shape[1], 2)) * np.abs(step)
    lost = rng.random(len(position)) < 0.2
    lost[[0, -1]] = False
    assume(np.mean(~lost) >= MIN_KNOWN_SHARE)
    position[lost] = np.nan
    y, x = coordinates_of(shape, position)
    for axis, one in enumerate((y, x)):
        assert one.units == UM
        exact = first[axis] + step[axis] * np.arange(shape[axis])
        np.testing.assert_allclose(one.values, exact, atol=0.3 * abs(step[axis]))
        spacing = np.diff(one.values)
        np.testing.assert_allclose(spacing, spacing[0], atol=2e-6)
        assert one.attributes["direction"].startswith("ascending" if step[axis] > 0 else "descending")


def test_without_jitter_coordinates_are_those_of_the_stage():
    y, x = coordinates_of((3, 4), stage((3, 4), (6000.0, -20.5), (-2.5, 4.0)))
    assert y.values.tolist() == [6000.0, 5997.5, 5995.0]
    assert x.values.tolist() == [-20.5, -16.5, -12.5, -8.5]
    assert (y.long_name, x.long_name) == ("stage y", "stage x")


@pytest.mark.parametrize("shape", [(1, 6), (6, 1)])
def test_a_line_has_one_coordinate_across(shape):
    y, x = coordinates_of(shape, stage(shape, (10.0, 20.0), (3.0, 3.0)))
    assert (len(y.values), len(x.values)) == shape
    assert (y.values[0], x.values[0]) == (10.0, 20.0)
    assert y.units == x.units == UM


def turned(shape, degrees):
    angle = np.deg2rad(degrees)
    return stage(shape, (0, 0), (1, 1)) @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


@pytest.mark.parametrize(
    "position",
    [
        None,
        np.full((30, 2), np.nan),
        np.zeros((30, 2)),
        np.where(np.arange(30)[:, None] < 10, stage((5, 6), (0, 0), (1, 1)), np.nan),  # most are not known
        turned((5, 6), 30),
        np.random.default_rng(0).uniform(0, 10, (30, 2)),
        stage((5, 6), (0, 0), (1, 1))[::-1].reshape(6, 5, 2).swapaxes(0, 1).reshape(-1, 2),  # of another order
    ],
)
def test_what_is_no_even_grid_along_the_axes_is_counted_in_points(position):
    y, x = coordinates_of((5, 6), position)
    assert y.units == x.units == POINTS
    assert y.values.tolist() == [0, 1, 2, 3, 4]
    assert x.values.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_scan_that_goes_on_may_know_few_positions():
    position = stage((8, 5), (100.0, 0.0), (2.0, 1.0))
    position[11:] = np.nan
    y, _ = coordinates_of((8, 5), position, min_known=0.0)
    np.testing.assert_allclose(y.values, 100 + 2 * np.arange(8))
    assert coordinates_of((8, 5), position)[0].units == POINTS
