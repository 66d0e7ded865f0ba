"""The compiled loops by themselves: order statistics, small grids, runs of zeros."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from laue_dask import kernels

grids = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))


@given(st.lists(st.integers(0, 400), min_size=1, max_size=80), st.sampled_from([0, 256]))
def test_median_and_quartile_are_the_sorted_values_of_their_rank(numbers, n_counts):
    values = np.array(numbers, np.float64)
    ordered = np.sort(values)
    found = kernels.median_and_quartile(values.copy(), len(values), values.min(), np.zeros(n_counts, np.int32))
    assert found == (ordered[len(values) // 2], ordered[len(values) // 4])


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=60), st.data())
def test_selection_gives_the_value_of_its_rank(numbers, data):
    values = np.array(numbers)
    rank = data.draw(st.integers(0, len(values) - 1))
    assert kernels.select(values.copy(), len(values), rank) == np.sort(values)[rank]


@given(grids)
def test_smoothing_is_scipys_median_filter(grid):
    values = np.random.default_rng(grid[2]).normal(size=grid[:2])
    np.testing.assert_array_equal(kernels.smooth(values), ndimage.median_filter(values, 3, mode="nearest"))


@given(grids, st.floats(0, 1))
def test_holes_are_filled_from_what_is_known_and_the_rest_is_left(grid, share):
    rng = np.random.default_rng(grid[2])
    values = rng.normal(size=grid[:2])
    holes = rng.random(grid[:2]) < share
    filled = np.where(holes, np.nan, values)
    assert kernels.fill_holes(filled) == (not holes.all())
    np.testing.assert_array_equal(filled[~holes], values[~holes])
    if not holes.all():
        assert values[~holes].min() - 1e-12 <= filled.min() <= filled.max() <= values[~holes].max() + 1e-12


def test_a_run_needs_enough_evidence_and_skipped_pixels_do_not_end_it():
    empty = np.array([[1, 1, 1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0]], bool)
    skipped = np.zeros_like(empty)
    skipped[0, 6] = True
    found = kernels.improbable_runs(empty, skipped, np.ones(empty.shape), 3.0)
    np.testing.assert_array_equal(found, empty)
    found = kernels.improbable_runs(empty, ~skipped & False, np.ones(empty.shape), 3.0)
    np.testing.assert_array_equal(found[0], [1, 1, 1, 0, 0, 0, 0, 0])


def test_a_function_is_compiled_where_nothing_can_be_kept_on_disk():
    names: dict = {}
    exec("def twice(x):\n    return 2 * x\n", names)  # noqa: S102  # source of no file: numba finds no cache folder
    assert kernels.compiled(names["twice"])(4) == 8
