import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.training.relations import MAX_UNLIKE_COSINE, Relations, feature_drift, find_relations

SHAPE = (12, 12)
ALL = np.ones(SHAPE[0] * SHAPE[1], bool)


def no_patterns(points):
    """Without a peak, nothing goes on across a boundary."""
    return np.zeros((len(points), 128, 128), np.uint8)


def features_of(domain, centres, *, drift=0.0, noise=0.01, seed=0):
    """Features (n, 8) about the centre of each point's domain, which move by `drift` in all over the scan's height."""
    rng = np.random.default_rng(seed)
    row = np.indices(domain.shape)[0].ravel() / (domain.shape[0] - 1)
    moved = np.outer(drift * (row - 0.5), np.eye(8)[7])
    return (centres[domain.ravel()] + moved + noise * rng.normal(size=(domain.size, 8))).astype(np.float32)


def stripes(*domains):
    """Map of stripes of equal width."""
    return np.repeat(np.array(domains)[None], SHAPE[0], axis=0).repeat(SHAPE[1] // len(domains), axis=1)


def twins(cosine):
    """Centres of a crystal, of another one at that cosine, and of one that has nothing in common with them."""
    centres = np.eye(8)[:3]
    centres[1] = cosine * centres[0] + np.sqrt(1 - cosine**2) * centres[1]
    return centres


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_regions_that_touch_are_apart_however_alike(seed):
    domain = stripes(0, 1)
    found = find_relations(features_of(domain, twins(0.9), seed=seed), ALL, SHAPE, no_patterns)
    inner = np.flatnonzero(found.grain >= 0)
    assert len(inner) == 10 * SHAPE[0]
    together, apart = found.pairs(inner)
    same = domain.ravel()[inner][:, None] == domain.ravel()[inner]
    np.testing.assert_array_equal(together, same)
    np.testing.assert_array_equal(apart, ~same)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), cosine=st.floats(MAX_UNLIKE_COSINE + 0.05, 1.0))
def test_alike_regions_that_do_not_touch_may_be_one_crystal(seed, cosine):
    domain = stripes(0, 2, 1)
    found = find_relations(features_of(domain, twins(cosine), seed=seed), ALL, SHAPE, no_patterns)
    inner = np.flatnonzero(found.grain >= 0)
    first, middle, second = (domain.ravel()[inner] == i for i in (0, 2, 1))
    together, apart = found.pairs(inner)
    assert not (together | apart)[np.ix_(first, second)].any()
    assert apart[np.ix_(first, middle)].all()


def test_unlike_regions_are_apart_wherever_they_are():
    domain = stripes(0, 2, 1)
    found = find_relations(features_of(domain, twins(0.0)), ALL, SHAPE, no_patterns)
    together, apart = found.pairs(np.flatnonzero(found.grain >= 0))
    assert (together ^ apart).all()


def test_patterns_beside_a_boundary_belong_to_none_unless_a_grain_has_no_others():
    domain = stripes(0, 2, 1)
    domain[:, 4:8] = [[0, 2, 2, 1]]
    found = find_relations(features_of(domain, twins(0.0)), ALL, SHAPE, no_patterns)
    grain = found.grain.reshape(SHAPE)
    assert (grain[:, 4] == -1).all()
    assert (grain[:, 7] == -1).all()
    assert len(np.unique(grain[:, 5:7])) == 1
    assert grain[0, 5] >= 0


def test_points_without_a_pattern_are_nobodys_neighbours():
    domain = stripes(0, 1, 1)
    valid = ALL.reshape(SHAPE).copy()
    valid[:, 4] = False
    found = find_relations(features_of(domain, twins(0.9))[valid.ravel()], valid.ravel(), SHAPE, no_patterns)
    assert (found.grain >= 0).all()
    assert not found.apart.any()


def test_pairs_of_a_batch_are_those_of_its_places():
    found = Relations(np.array([0, 0, 1, -1, 2]), np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], bool))
    together, apart = found.pairs(np.array([0, 2, 1, 4]))
    np.testing.assert_array_equal(together, [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(apart, [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), noise=st.floats(0.001, 0.1))
def test_features_that_scatter_about_their_grains_mean_do_not_wander(seed, noise):
    domain = stripes(0, 1)
    features = features_of(domain, twins(0.0), noise=noise, seed=seed)
    known = Relations(domain.ravel().astype(np.int64), ~np.eye(2, dtype=bool))
    assert abs(feature_drift(features, known, ALL, SHAPE)) < 0.05


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), drift=st.floats(0.5, 4.0))
def test_wandering_is_the_variance_of_the_trend_over_that_of_the_scan(seed, drift):
    domain = stripes(0, 1)
    known = Relations(domain.ravel().astype(np.int64), ~np.eye(2, dtype=bool))
    found = feature_drift(features_of(domain, twins(0.0), drift=drift, seed=seed), known, ALL, SHAPE)
    trend = drift**2 * np.linspace(-0.5, 0.5, SHAPE[0]).var()
    assert found == pytest.approx(trend / (trend + 0.5), rel=0.1)


def test_nothing_wanders_where_nothing_is_known():
    features = features_of(stripes(0, 1), twins(0.0), drift=1.0)
    assert feature_drift(features, Relations(np.full(ALL.size, -1), np.zeros((0, 0), bool)), ALL, SHAPE) == 0.0
