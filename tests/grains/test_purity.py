"""Which patterns lie between unlike neighbours, and which of them are sums of these."""

import dask.array as da
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.config import Recipe
from laue_dask.grains import purity
from laue_dask.grains.neighbourhood import neighbours
from laue_dask.reduction.reduce import reduce_frames


def flagged(X, valid, shape):
    """`purity.opposite_neighbours` as a mask of the rows."""
    pairs = neighbours(X, valid, shape, connectivity=8)
    return purity.opposite_neighbours(X, pairs, np.flatnonzero(valid), shape[1])


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_a_pattern_is_between_two_that_are_far_from_it_and_from_each_other(ny, nx, seed, block):
    rng = np.random.default_rng(seed)
    valid = rng.random(ny * nx) < 0.8
    patterns = np.flatnonzero(valid)
    X = rng.normal(size=(len(patterns), 3)) * rng.integers(0, 4, (len(patterns), 1))
    beside, unlike = flagged(X, valid, (ny, nx))
    row = {int(pattern): i for i, pattern in enumerate(patterns)}

    def at(y, x):
        return row.get(y * nx + x, -1) if 0 <= y < ny and 0 <= x < nx else -1

    straight = [
        np.linalg.norm(X[row[p]] - X[other])
        for p in row
        for other in (at(*np.add(divmod(p, nx), (0, 1))), at(*np.add(divmod(p, nx), (1, 0))))
        if other >= 0
    ]
    limit = purity.UNLIKE_DISTANCE_FACTOR * np.median(straight) if straight else np.inf
    for pattern, i in row.items():
        y, x = divmod(pattern, nx)
        for line, (down, across) in enumerate(purity.NEIGHBOUR_STEPS):
            a, b = at(y - down, x - across), at(y + down, x + across)
            assert beside[i, line].tolist() == [a, b]
            apart = [np.linalg.norm(X[p] - X[q]) for p, q in ((i, a), (i, b), (a, b))] if min(a, b) >= 0 else [0]
            assert unlike[i, line] == all(one > limit for one in apart)
    again = flagged(da.from_array(X, chunks=(block, -1)), valid, (ny, nx))[1] if len(X) else unlike
    np.testing.assert_array_equal(again, unlike)


def test_points_on_a_straight_boundary_are_between_and_no_others():
    part = np.clip((np.arange(9) - 3.5), 0, 1)  # 0 up to column 3, one half in column 4, then 1
    X = np.outer(np.ones(5), part).reshape(-1, 1) + np.random.default_rng(0).normal(0, 1e-3, (45, 1))
    unlike = flagged(X, np.ones(45, bool), (5, 9))[1].any(axis=1).reshape(5, 9)
    assert unlike[:, 4].all()
    assert not unlike[:, :3].any()
    assert not unlike[:, 6:].any()


def test_a_lamella_of_one_point_between_two_of_another_domain_is_not_between():
    X = np.tile([[0.0], [0.0], [1.0], [0.0], [0.0], [0.0]], (5, 1))
    assert not flagged(X, np.ones(30, bool), (5, 6))[1].any()


def test_a_sum_of_both_neighbours_is_mixed_and_either_alone_is_not(straddled):
    shares = [1.0, 0.0, 0.5, 0.3, 0.8, 1.0, 0.0, 0.01]
    patterns = reduce_frames(straddled([(30_000 * p, 20_000 * (1 - p)) for p in shares], seed=3), None, Recipe())
    first, second = np.full((8, 2), -1), np.full((8, 2), -1)
    first[:, 1], second[:, 1] = 0, 1
    found = purity.is_mixed(patterns, first, second, patterns[:2], Recipe())
    assert found[2:].tolist() == [True, True, True, False, False, False]
    assert not purity.is_mixed(patterns, np.full((8, 1), -1), np.full((8, 1), -1), patterns[:2], Recipe()).any()


def test_a_crystal_of_its_own_is_no_sum_of_its_neighbours(straddled):
    sides = reduce_frames(straddled([(30_000, 0), (0, 30_000)], seed=3), None, Recipe())
    other = reduce_frames(straddled([(30_000, 0)], seed=9), None, Recipe())
    assert not purity.is_mixed(other, np.zeros((1, 1), int), np.ones((1, 1), int), sides, Recipe()).any()
