"""`scripts/discrimination.py`: how well features tell patterns apart."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf
from sklearn.neighbors import KNeighborsClassifier

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from discrimination import nearest_mean_accuracy, neighbour_accuracy, smallest_resolved


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), n=st.integers(4, 60), kinds=st.integers(1, 4))
def test_neighbour_accuracy_is_that_of_a_leave_one_out_classifier(seed, n, kinds):
    rng = np.random.default_rng(seed)
    domain = rng.integers(0, kinds, n)
    X = rng.normal(size=(n, 3)) + domain[:, None]
    right = []
    for i in range(n):
        if (domain == domain[i]).sum() == 1:
            continue
        rest = np.arange(n) != i
        right.append(KNeighborsClassifier(1).fit(X[rest], domain[rest]).predict(X[[i]])[0] == domain[i])
    found = neighbour_accuracy(X, domain)
    assert np.isnan(found) if not right else found == pytest.approx(np.mean(right))


def test_equal_patterns_are_neighbours_of_each_other_not_of_themselves():
    X = np.zeros((2, 4))
    assert neighbour_accuracy(X, np.array([0, 0])) == 1
    assert np.isnan(neighbour_accuracy(X, np.array([0, 1])))


@given(seed=st.integers(0, 10_000), apart=st.floats(0, 20))
def test_views_far_apart_are_told_apart_and_equal_ones_are_not(seed, apart):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, 2000, 5))
    second[:, 0] += apart
    found = nearest_mean_accuracy(first, second)
    # The error of a nearest-mean classifier of two normal distributions of unit width is that beyond half way.
    assert found == pytest.approx((1 + erf(apart / 2 / np.sqrt(2))) / 2, abs=0.08)
    assert nearest_mean_accuracy(second, first) == pytest.approx(found)


def test_held_out_views_alone_are_judged():
    first, second = np.array([[0.0], [0.0], [9.0], [9.0]]), np.array([[10.0], [10.0], [1.0], [1.0]])
    assert nearest_mean_accuracy(first, second) == 0
    assert nearest_mean_accuracy(np.zeros((4, 2)), np.zeros((4, 2))) == 0.5


def test_smallest_angle_is_resolved_at_all_larger_ones_too():
    angles = (0.1, 0.2, 0.5, 1.0)
    assert smallest_resolved(angles, (0.5, 0.95, 0.99, 1.0)) == 0.2
    assert smallest_resolved(angles, (1.0, 0.9, 0.99, 1.0)) == 0.5
    assert smallest_resolved(angles, (1.0, 1.0, 1.0, 1.0)) == 0.1
    assert smallest_resolved(angles, (1.0, 1.0, 1.0, 0.94)) == np.inf
    assert smallest_resolved(angles, (0.5, 0.6, 0.7, 0.8), least=0.7) == 0.5
