import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.features.peaks import PEAK_TOLERANCE_PX, Peaks, embed
from laue_dask.reduction.pattern_peaks import MAX_PEAKS

seeds = st.integers(0, 2**32 - 1)


def scattered(seed, count):
    """Peaks (count, 3) anywhere, of different heights."""
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(4, 124, (count, 2)), rng.uniform(0.2, 1, count)])


@given(seeds, st.integers(1, MAX_PEAKS))
def test_the_order_of_the_peaks_does_not_matter(seed, count):
    peaks = scattered(seed, count)
    shuffled = np.random.default_rng(seed).permutation(peaks)
    np.testing.assert_allclose(embed(shuffled), embed(peaks), atol=1e-6)


@given(seeds, st.integers(1, MAX_PEAKS), st.floats(0.1, 10))
def test_vectors_have_unit_length_whatever_the_exposure(seed, count, exposure):
    peaks = scattered(seed, count)
    assert np.linalg.norm(embed(peaks)) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(embed(peaks * (1, 1, exposure)), embed(peaks), atol=1e-6)


def test_no_peaks_are_the_origin():
    np.testing.assert_array_equal(embed(np.empty((0, 3))), 0)
    np.testing.assert_array_equal(Peaks().extract(np.zeros((1, 128, 128), np.uint8), np.ones(1, bool)), 0)


@pytest.mark.parametrize("direction", [(1, 0), (0, 1), (0.6, 0.8), (0.6, -0.8)])
def test_the_scalar_product_is_the_gaussian_of_the_distance_in_every_direction(direction):
    distance = np.linspace(0, 3 * PEAK_TOLERANCE_PX, 13)
    here = embed(np.array([[60.0, 70.0, 1.0]]))
    there = [embed(np.array([[60 + d * direction[0], 70 + d * direction[1], 1.0]])) for d in distance]
    np.testing.assert_allclose(np.array(there) @ here, np.exp(-(distance**2) / (2 * PEAK_TOLERANCE_PX**2)), atol=0.05)


@given(seeds)
def test_patterns_without_a_common_peak_are_far_and_moved_ones_near(seed):
    first, other = embed(scattered(seed, 40)), embed(scattered(seed + 1, 40))
    moved = embed(scattered(seed, 40) + np.array([0.5, -0.5, 0]))
    assert np.linalg.norm(first - moved) < 0.35
    assert np.linalg.norm(first - other) > 2 * np.linalg.norm(first - moved)
