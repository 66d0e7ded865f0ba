import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.segmentation.clustering import nearest
from laue_dask.segmentation.labeling import label_map
from laue_dask.segmentation.smoothing import costs, energy, potts


@st.composite
def maps(draw):
    """Patterns, labels, centroids, valid points and shape of a small scan; labels need not be the nearest."""
    shape = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    k = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    valid = rng.random(shape[0] * shape[1]) < draw(st.sampled_from([1.0, 0.6]))
    X = rng.normal(size=(valid.sum(), 2)).astype(np.float32)
    centroids = rng.normal(size=(k, 2)).astype(np.float32)
    return X, rng.integers(0, k, len(X)).astype(np.int32), centroids, valid, shape


@given(maps())
def test_no_weight_leaves_the_labels_as_they_are(case):
    X, labels, centroids, valid, shape = case
    assert np.array_equal(potts(X, labels, centroids, valid=valid, shape=shape, weight=0), labels)


@given(maps(), st.floats(0.01, 10))
def test_the_energy_never_grows_and_no_single_change_lowers_it(case, weight):
    X, labels, centroids, valid, shape = case
    found = potts(X, labels, centroids, valid=valid, shape=shape, weight=weight)
    assert found.shape == labels.shape
    if not len(X):
        return
    cost = costs(X, centroids)
    least = energy(cost, label_map(found, valid, shape), valid, weight)
    slack = 1e-4 * (1 + abs(least))
    assert least <= energy(cost, label_map(labels, valid, shape), valid, weight) + slack
    for row in range(len(X)):
        for other in range(len(centroids)):
            changed = found.copy()
            changed[row] = other
            assert energy(cost, label_map(changed, valid, shape), valid, weight) >= least - slack


@given(maps(), st.floats(0.01, 10), st.integers(1, 9))
def test_lazy_patterns_give_the_same_map(case, weight, rows):
    X, labels, centroids, valid, shape = case
    if len(X):
        lazy = potts(da.from_array(X, chunks=(rows, -1)), labels, centroids, valid=valid, shape=shape, weight=weight)
        assert np.array_equal(lazy, potts(X, labels, centroids, valid=valid, shape=shape, weight=weight))


@pytest.mark.parametrize("seed", range(5))
def test_isolated_points_disappear_and_boundaries_stay(seed):
    rng = np.random.default_rng(seed)
    truth = np.zeros((20, 30), int)
    truth[:, 15:] = 1
    X = (truth.ravel()[:, None] + 0.4 * rng.normal(size=(600, 1))).astype(np.float32)
    centroids = np.array([[0.0], [1.0]])
    labels = nearest(X, centroids)
    before = np.mean(labels.reshape(20, 30) != truth)
    after = potts(X, labels, centroids, valid=np.ones(600, bool), shape=(20, 30), weight=2.0).reshape(20, 30)
    assert before > 0.05
    assert np.mean(after != truth) < before / 3


def test_points_without_a_pattern_have_no_say():
    valid = np.ones((3, 3), bool)
    valid[1, [0, 2]] = valid[[0, 2], 1] = False
    labels = np.array([0, 0, 1, 0, 0])
    X = labels[:, None].astype(np.float32)
    centroids = np.array([[0.0], [1.0]])
    assert np.array_equal(potts(X, labels, centroids, valid=valid.ravel(), shape=(3, 3), weight=100.0), labels)


def test_a_negative_weight_is_refused():
    with pytest.raises(InputError, match="smoothing weight -1"):
        potts(np.zeros((1, 1)), np.zeros(1, int), np.zeros((1, 1)), valid=np.ones(1, bool), shape=(1, 1), weight=-1)
