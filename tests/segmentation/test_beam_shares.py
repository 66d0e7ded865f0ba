"""Shares of two domains in a pattern: intensities are found again, and the larger share decides."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.optimize import nnls
from sklearn.metrics import pairwise_distances

from laue_dask.config import Recipe
from laue_dask.reduction.reduce import reduce_frames
from laue_dask.segmentation import beam_shares

RECIPE = Recipe()


@st.composite
def patterns(draw, most=4):
    """Reduced patterns with some spots, one of them perhaps without any."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = np.zeros((draw(st.integers(1, most)), 128, 128), np.uint8)
    for one in found:
        count = draw(st.sampled_from([0, 1, 40, 400, 128 * 128]))
        one.ravel()[rng.permutation(one.size)[:count]] = rng.integers(1, 256, count)
    return found


def white(pattern, recipe=RECIPE):
    """Tone of the white of a pattern."""
    lit = pattern[pattern > 0]
    least = np.arcsinh(20 / recipe.softening_sigma)
    clip = np.arcsinh(recipe.clip_sigma / recipe.softening_sigma)
    return float(min(max(255 * clip / lit.min(), least), 12) if lit.size else max(clip, least))


def linear(pattern, recipe=RECIPE):
    """The same as `beam_shares.intensities` of one pattern, in plain NumPy."""
    signal = np.sinh(white(pattern, recipe) * pattern / 255)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    return ndimage.correlate(signal, kernel, mode="constant")


@given(patterns(), st.floats(0.5, 20), st.floats(1, 40))
def test_the_compiled_loops_equal_plain_numpy(some, clip, softening):
    recipe = Recipe(clip_sigma=clip, softening_sigma=softening)
    found = beam_shares.intensities(some, recipe)
    assert found.shape == some.shape
    assert found.dtype == np.float32
    for one, pattern in zip(found, some, strict=True):
        np.testing.assert_allclose(one, linear(pattern, recipe), rtol=2e-6, atol=1e-6)


@given(patterns(), st.integers(0, 2**32), st.sampled_from([1.0, 0.0]))
def test_shares_are_those_of_non_negative_least_squares(some, seed, alike):
    rng = np.random.default_rng(seed)
    domains = np.stack([linear(p) for p in rng.integers(0, 256, (3, 128, 128)) * (rng.random((3, 128, 128)) < 0.02)])
    domains[2] = alike * domains[1] + (1 - alike) * domains[2]  # two clusters of one domain, perhaps
    domains = domains.astype(np.float32)
    own, other = rng.integers(-1, 3, (2, len(some), 2))
    other = np.abs(other)
    found = beam_shares.beam_shares(some, own, other, domains, RECIPE)
    assert found.shape == (len(some), 2, 4)
    assert not found[own < 0].any()
    asked = [(found[n, p], some[n], own[n, p], other[n, p]) for n, p in np.argwhere(own >= 0)]
    for (a, b, alone, together), pattern, i, j in asked:
        use = pattern < 255
        y = linear(pattern)[use]
        M = domains[[i, j]][:, use].T.astype(np.float64)
        weight = 1 / np.sqrt(M.max(axis=1) + y + 1)
        squares = float(weight * y @ (weight * y))
        if squares == 0:
            assert (a, b, alone, together) == (0, 0, 0, 0)
            continue
        explained = [
            1 - (nnls(weight[:, None] * part, weight * y)[1] ** 2 / squares) for part in (M, M[:, :1], M[:, 1:])
        ]
        assert together == pytest.approx(explained[0], abs=1e-6)
        assert alone == pytest.approx(max(explained[1:]), abs=1e-6)
        residual = weight * (y - M @ (a, b))
        assert 1 - residual @ residual / squares == pytest.approx(together, abs=1e-6)
        if i != j and not (alike and {i, j} == {1, 2}):
            assert (a, b) == pytest.approx(nnls(weight[:, None] * M, weight * y)[0], rel=1e-4, abs=1e-7)


def test_a_brighter_frame_has_higher_intensities_though_its_pattern_is_the_same(straddled):
    dim, bright = reduce_frames(straddled([(4000, 4000), (12000, 12000)]), None, RECIPE)
    spots = (dim > 100) & (bright > 100) & (dim < 255) & (bright < 255)
    assert spots.sum() > 30
    found = beam_shares.intensities(np.stack([dim, bright]), RECIPE)
    ratio = np.median(found[1][spots] / found[0][spots])
    assert 2.4 < ratio < 3.6  # grey levels are coarse where a pattern is faint
    assert np.median(bright[spots] / dim[spots]) < 1.6


@pytest.mark.parametrize("factor", [1, 4, 10])
def test_the_larger_share_of_the_beam_decides_whichever_crystal_diffracts_more(straddled, factor):
    part = np.array([0.2, 0.3, 0.4, 0.6, 0.7, 0.8])
    strong, weak = 30_000 * factor / 4, 30_000 / 4
    mixed = [(strong * p, weak * (1 - p)) for p in part]
    reduced = reduce_frames(straddled([(strong, 0)] * 5 + [(0, weak)] * 5 + mixed, seed=1), None, RECIPE)
    domains = np.stack(
        [
            beam_shares.domain_pattern(beam_shares.intensities(reduced[rows], RECIPE))
            for rows in (slice(5), slice(5, 10))
        ]
    )
    assert beam_shares.distinguishable(domains, np.array([0]), np.array([1])).all()
    both = np.tile([0, 1], (len(part), 1))
    forth, back = beam_shares.other_is_larger(beam_shares.beam_shares(reduced[10:], both, 1 - both, domains, RECIPE)).T
    np.testing.assert_array_equal(forth, part < 0.5)
    assert not back[part < 0.5].any()  # the other way round the weak one may go unseen, and nothing moves
    assert back.any()
    if factor == 10:  # the patterns themselves all look like the strong one
        flat = reduced.reshape(len(reduced), -1).astype(float)
        apart = pairwise_distances(flat[10:], np.stack([flat[:5].mean(axis=0), flat[5:10].mean(axis=0)]))
        assert (apart.argmin(axis=1) == 0)[part < 0.5].any()


def test_a_pattern_stays_where_it_is_if_two_domains_are_not_seen_in_it(straddled):
    own, other, third = reduce_frames(straddled([(30_000, 0), (0, 30_000), (0, 0)], seed=1), None, RECIPE)
    strange = reduce_frames(straddled([(9_000, 20_000)], seed=2), None, RECIPE)[0]
    domains = beam_shares.intensities(np.stack([own, other, own]), RECIPE)
    cases = [(own, 0, 1), (third, 0, 1), (strange, 0, 1), (own, 0, 2), (other, 0, 1)]
    some, i, j = (np.array(column) for column in zip(*cases, strict=True))
    found = beam_shares.beam_shares(some, i[:, None], j[:, None], domains, RECIPE)[:, 0]
    assert not beam_shares.other_is_larger(found).any()
    assert found[4, 1] > found[4, 0]  # one that is wholly of the other is no mixture: features know better


@given(st.data())
def test_neighbours_are_the_nearest_other_centroids(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n, k, m = (data.draw(st.integers(1, most)) for most in (40, 6, 4))
    X, centers = rng.normal(size=(n, m)).astype(np.float32), rng.normal(size=(k, m)).astype(np.float32)
    labels = rng.integers(0, k, n)
    gone = np.setdiff1d(np.arange(k), labels)[: data.draw(st.integers(0, 2))]
    centers[gone] = np.nan
    other, margin = beam_shares.nearest_other_cluster(X, labels, centers=centers)
    for row, label, near, apart in zip(X, labels, other, margin, strict=True):
        distances = np.linalg.norm(row - centers.astype(float), axis=1)
        rest = [c for c in range(k) if c != label and c not in gone]
        if not rest:
            assert apart == 1
            continue
        assert near == min(rest, key=lambda c: distances[c])
        expected = (distances[near] - distances[label]) / (distances[near] + distances[label])
        assert apart == pytest.approx(expected, abs=1e-5)


def test_a_row_on_two_centroids_is_half_way_between_them():
    _, margin = beam_shares.nearest_other_cluster(
        np.zeros((1, 2), np.float32), np.zeros(1, int), centers=np.zeros((2, 2))
    )
    assert margin == 0


@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 5))
def test_representatives_are_of_the_middle_half_of_each_cluster(seed, n, k):
    rng = np.random.default_rng(seed)
    labels, margin = rng.integers(0, k, n), rng.random(n).round(1).astype(np.float32)
    found = beam_shares.representatives(labels, margin, k + 1)
    assert len(found) == k + 1
    for cluster, rows in enumerate(found):
        members = np.flatnonzero(labels == cluster)
        middle = (len(members) + 1) // 2
        assert (
            min(beam_shares.PATTERNS_PER_RUN, middle)
            <= len(rows)
            <= min(beam_shares.N_PATTERN_RUNS * beam_shares.PATTERNS_PER_RUN, middle)
        )
        if middle >= beam_shares.N_PATTERN_RUNS * beam_shares.PATTERNS_PER_RUN:
            assert len(rows) == beam_shares.N_PATTERN_RUNS * beam_shares.PATTERNS_PER_RUN
        assert (np.diff(rows) > 0).all()
        assert np.isin(rows, members).all()
        if len(rows):
            assert margin[rows].min() >= np.median(margin[members]) - 1e-6


@pytest.mark.parametrize(
    ("clip", "softening", "possible"), [(4, 10, True), (8, 10, True), (0, 10, False), (0.3, 10, False), (4, 100, False)]
)
def test_recipes_with_few_grey_levels_below_the_faintest_signal_have_no_way_back(clip, softening, possible):
    assert beam_shares.invertible(Recipe(clip_sigma=clip, softening_sigma=softening)) == possible


def test_the_limits_decide_what_is_seen():
    fits = np.array([[1, 2, 0.5, 0.9], [2, 1, 0.5, 0.9], [1, 2, 0.5, 0.59], [1, 2, 0.88, 0.9], [0, 0, 0, 0]])
    assert beam_shares.other_is_larger(fits).tolist() == [True, False, False, False, False]


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_domains_that_are_taken_for_one_explain_little_more_together(seed, mixing):
    rng = np.random.default_rng(seed)
    f, s = rng.random((2, 40)) * 50 * (rng.random((2, 40)) < 0.5)
    s = mixing * f + (1 - mixing) * s
    domains = np.zeros((2, 128, 128), np.float32)
    domains[:, 0, :40] = f, s
    weight = 1 / (np.maximum(*domains[:, 0, :40]) + 1)
    across, lengths = np.sum(weight * f * s), np.sqrt(np.sum(weight * f * f) * np.sum(weight * s * s))
    [told] = beam_shares.distinguishable(domains, np.array([0]), np.array([1]))
    assume(abs(across - beam_shares.SAME_DOMAIN_COSINE * lengths) > 1e-3)
    assert told == (across < beam_shares.SAME_DOMAIN_COSINE * lengths)
    if not told and lengths > 0:
        most = 0.0
        for a in np.linspace(0, 1, 21):  # of all that the two could be mixed to
            y = a * f / np.sqrt(np.sum(weight * f * f)) + (1 - a) * s / np.sqrt(np.sum(weight * s * s))
            alone = max(np.sum(weight * y * one) ** 2 / np.sum(weight * one * one) for one in (f, s))
            most = max(most, 1 - alone / np.sum(weight * y * y))
        assert most < beam_shares.MIN_EXPLAINED_GAIN


def test_pairs_are_compared_each_for_itself():
    domains = np.zeros((3, 128, 128), np.float32)
    domains[0, 3], domains[1, 3], domains[2, 5] = 7, 9, 8
    own, other = np.array([0, 1, 0, 2, 1, 0]), np.array([1, 0, 2, 1, 2, 1])
    assert beam_shares.distinguishable(domains, own, other).tolist() == [False, False, True, True, True, False]
    assert beam_shares.distinguishable(domains, own[:0], other[:0]).shape == (0,)
