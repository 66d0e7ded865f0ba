import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, maximum_filter

from laue_dask.reduction import pattern_peaks
from laue_dask.reduction.pattern_peaks import MAX_PEAKS, SMOOTHING_SIGMA_PX, find_peaks

seeds = st.integers(0, 2**32 - 1)


def pattern_of(spots):
    """Pattern with a small Gaussian spot at each (v, u, height)."""
    v, u = np.mgrid[:128, :128]
    image = np.zeros((128, 128))
    for at, across, height in spots:
        image = np.maximum(image, height * np.exp(-((v - at) ** 2 + (u - across) ** 2) / 2))
    return image.round().astype(np.uint8)


@given(seeds, st.integers(0, 4000))
def test_peaks_are_the_local_maxima_of_the_smoothed_pattern(seed, count):
    rng = np.random.default_rng(seed)
    pattern = np.zeros((128, 128), dtype=np.uint8)
    pattern[tuple(rng.integers(0, 128, (2, count)))] = rng.integers(1, 256, count)
    found = pattern_peaks._maxima(pattern, pattern_peaks._SMOOTHING_KERNEL)
    smooth = gaussian_filter(pattern.astype(np.float64), SMOOTHING_SIGMA_PX, mode="constant", truncate=3)
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
    places = [(10 + 12 * (i // 10), 8 + 12 * (i % 10)) for i in range(MAX_PEAKS + 20)]
    heights = np.arange(len(places)) * 2 + 60
    found = find_peaks(pattern_of([(*place, h) for place, h in zip(places, heights, strict=True)]))
    assert len(found) == MAX_PEAKS
    assert (np.diff(found[:, 2]) <= 0).all()
    np.testing.assert_array_equal(found[:3, :2].round(), places[-1:-4:-1])
    assert 0 < found[-1, 2] < 0.1 * found[0, 2]
