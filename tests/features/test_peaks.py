import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, maximum_filter

from laue_dask.features import peaks as module
from laue_dask.features.peaks import BRIGHTEST, SMOOTHING, WIDTH, Peaks, embed, find_peaks

seeds = st.integers(0, 2**32 - 1)


def pattern_of(spots):
    """Pattern with a small Gaussian spot at each (v, u, height)."""
    v, u = np.mgrid[:128, :128]
    image = np.zeros((128, 128))
    for at, across, height in spots:
        image = np.maximum(image, height * np.exp(-((v - at) ** 2 + (u - across) ** 2) / 2))
    return image.round().astype(np.uint8)


def scattered(seed, count):
    """Peaks (count, 3) anywhere, of different heights."""
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(4, 124, (count, 2)), rng.uniform(0.2, 1, count)])


@given(seeds, st.integers(0, 4000))
def test_peaks_are_the_local_maxima_of_the_smoothed_pattern(seed, count):
    rng = np.random.default_rng(seed)
    pattern = np.zeros((128, 128), dtype=np.uint8)
    pattern[tuple(rng.integers(0, 128, (2, count)))] = rng.integers(1, 256, count)
    found = module._maxima(pattern, module._KERNEL)
    smooth = gaussian_filter(pattern.astype(np.float64), SMOOTHING, mode="constant", truncate=3)
    wanted = np.argwhere((smooth > 1e-9) & (smooth >= maximum_filter(smooth, 3, mode="constant") * (1 - 1e-12)))
    at = {tuple(p) for p in found[:, :2].round().astype(int)}
    # A maximum half a pixel off rounds to its neighbour, and equal neighbours are one maximum.
    assert len(found) == pytest.approx(len(wanted), abs=2)
    assert sum(any((v + i, u + j) in at for i in (-1, 0, 1) for j in (-1, 0, 1)) for v, u in wanted) == len(wanted)


@given(st.floats(8, 120), st.floats(8, 120), st.integers(60, 255))
def test_a_spot_is_found_to_a_fraction_of_a_pixel(v, u, height):
    found = find_peaks(pattern_of([(v, u, height)]))
    assert found.shape == (1, 3)
    assert np.hypot(*(found[0, :2] - (v, u))) < 0.15


def test_spots_at_the_border_and_in_the_corners_are_found():
    corners = [(0, 0, 200), (0, 127, 180), (127, 0, 160), (127, 127, 140), (64, 0, 120)]
    found = find_peaks(pattern_of(corners))
    assert {tuple(at) for at in found[:, :2].round().astype(int)} == {c[:2] for c in corners}


def test_two_equal_pixels_are_one_peak_between_them():
    pattern = np.zeros((128, 128), dtype=np.uint8)
    pattern[50, 60:62] = 200
    found = find_peaks(pattern)
    np.testing.assert_allclose(found[:, :2], [[50, 60.5]], atol=1e-6)


def test_the_brightest_peaks_count_above_the_first_that_does_not():
    places = [(10 + 12 * (i // 10), 8 + 12 * (i % 10)) for i in range(BRIGHTEST + 20)]
    heights = np.arange(len(places)) * 2 + 60
    found = find_peaks(pattern_of([(*place, h) for place, h in zip(places, heights, strict=True)]))
    assert len(found) == BRIGHTEST
    assert (np.diff(found[:, 2]) <= 0).all()
    np.testing.assert_array_equal(found[:3, :2].round(), places[-1:-4:-1])
    assert 0 < found[-1, 2] < 0.1 * found[0, 2]


@given(seeds, st.integers(1, BRIGHTEST))
def test_the_order_of_the_peaks_does_not_matter(seed, count):
    peaks = scattered(seed, count)
    shuffled = np.random.default_rng(seed).permutation(peaks)
    np.testing.assert_allclose(embed(shuffled), embed(peaks), atol=1e-6)


@given(seeds, st.integers(1, BRIGHTEST), st.floats(0.1, 10))
def test_vectors_have_unit_length_whatever_the_exposure(seed, count, exposure):
    peaks = scattered(seed, count)
    assert np.linalg.norm(embed(peaks)) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(embed(peaks * (1, 1, exposure)), embed(peaks), atol=1e-6)


def test_no_peaks_are_the_origin():
    np.testing.assert_array_equal(embed(np.empty((0, 3))), 0)
    np.testing.assert_array_equal(Peaks().extract(np.zeros((1, 128, 128), np.uint8), np.ones(1, bool)), 0)


@pytest.mark.parametrize("direction", [(1, 0), (0, 1), (0.6, 0.8), (0.6, -0.8)])
def test_the_scalar_product_is_the_gaussian_of_the_distance_in_every_direction(direction):
    distance = np.linspace(0, 3 * WIDTH, 13)
    here = embed(np.array([[60.0, 70.0, 1.0]]))
    there = [embed(np.array([[60 + d * direction[0], 70 + d * direction[1], 1.0]])) for d in distance]
    np.testing.assert_allclose(np.array(there) @ here, np.exp(-(distance**2) / (2 * WIDTH**2)), atol=0.05)


@given(seeds)
def test_patterns_without_a_common_peak_are_far_and_moved_ones_near(seed):
    first, other = embed(scattered(seed, 40)), embed(scattered(seed + 1, 40))
    moved = embed(scattered(seed, 40) + np.array([0.5, -0.5, 0]))
    assert np.linalg.norm(first - moved) < 0.35
    assert np.linalg.norm(first - other) > 2 * np.linalg.norm(first - moved)
