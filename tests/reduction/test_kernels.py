"""The compiled loops by themselves: order statistics, small grids, runs of zeros."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from laue_dask.reduction import kernels

grids = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(2, 30), st.integers(1, 4), st.integers(0, 2**32 - 1)),
    st.sampled_from(["uint16", "int32", "float32"]),
    st.sampled_from([0.3, 30, 3000]),
    st.floats(0, 1),
)
def test_statistics_of_a_block_are_those_of_its_sorted_usable_pixels(grid, dtype, counts, share):
    *blocks, width, step, seed = grid
    rng = np.random.default_rng(seed)
    shape = [n * width + n // 2 for n in blocks]
    down, across = (axis(n, side) for n, side in zip(blocks, shape, strict=True))
    frame = rng.poisson(counts, shape).astype(dtype)
    frame[rng.random(shape) < 0.1] = 60_000
    mask = rng.random(shape) < share
    found = kernels.block_statistics(frame, mask, down, across, step, 0.0, 60_000.0, int(dtype != "float32"))
    for i, j in np.ndindex(*blocks):
        rows, columns = slice(down.edges[i], down.edges[i + 1], step), slice(*across.edges[j : j + 2])
        usable = ~mask[rows, columns] & (frame[rows, columns] < 60_000)
        values = np.sort(frame[rows, columns][usable]).astype(float)
        if values.size == 0 or 4 * values.size < usable.size:
            assert np.isnan([found[0][i, j], found[1][i, j]]).all()
            continue
        middle, quarter = values[values.size // 2], values[values.size // 4]
        assert found[0][i, j] == middle
        assert found[1][i, j] == (middle - quarter) / 0.6744897501960817


def axis(blocks, side):
    """Blocks of a side, and the interpolation between their centres."""
    edges = np.arange(blocks + 1) * side // blocks
    centres, pixel = (edges[:-1] + edges[1:] - 1) / 2, np.arange(side)
    nodes = np.clip(np.searchsorted(centres, pixel, side="right") - 1, 0, max(0, blocks - 2))
    following = np.minimum(nodes + 1, blocks - 1)
    pitch = np.where(following > nodes, centres[following] - centres[nodes], 1.0)
    return kernels.Axis(edges, nodes, np.clip((pixel - centres[nodes]) / pitch, 0, 1), pixel * 128 // side)


@given(grids)
def test_columns_are_interpolated_as_numpy_does(grid):
    n, side = grid[0], grid[0] * grid[1]
    values = np.random.default_rng(grid[2]).normal(size=(grid[1], n))
    columns = axis(n, side)
    centres = (np.arange(n) + 0.5) * grid[1] - 0.5
    wide = kernels.spread_columns(values, columns)
    for row, found in zip(values, wide, strict=True):
        np.testing.assert_allclose(found, np.interp(np.arange(side), centres, row), atol=1e-12)
    i, below, w = 0, min(1, grid[1] - 1), 0.25
    expected = wide[i] * (1 - w) + wide[below] * w
    own = [kernels.interpolate_pixel(values, i, below, w, columns.nodes[x], columns.weights[x]) for x in range(side)]
    np.testing.assert_array_equal(own, expected)


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
