from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import multivariate_normal, poisson

from laue_dask.simulate.detector import DETECTORS
from laue_dask.simulate.rendering import add_spots, background

COUNTER = DETECTORS["pilatus1m"]
CAMERA = DETECTORS["scmos"]
FLAT = np.ones(300, dtype=np.float32)


@settings(max_examples=25, deadline=None)
@given(level=st.floats(0.02, 150.0), seed=st.integers(0, 1000))
def test_counted_background_is_poisson(level, seed):
    frame = background(FLAT, FLAT, (0.0, level), COUNTER, rng=np.random.default_rng(seed))
    assert frame.dtype == np.int32
    values = np.arange(frame.max() + 1)
    empirical = np.cumsum(np.bincount(frame.ravel())) / frame.size
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed by 99.9 % of true samples; 25 fixed draws stay below 2.5.
    assert np.abs(empirical - poisson.cdf(values, level)).max() < 2.5 / np.sqrt(frame.size)


def test_background_between_two_levels_has_the_right_mean():
    half = np.full(500, 0.503, dtype=np.float32)
    frame = background(half, np.ones(500, dtype=np.float32), (2.0, 40.0), COUNTER, rng=np.random.default_rng(0))
    expected = 2 + 38 * 0.503
    assert frame.mean() == pytest.approx(expected, abs=5 * np.sqrt(expected / frame.size))
    assert frame.var() == pytest.approx(expected, rel=0.02)


@settings(max_examples=10, deadline=None)
@given(
    level=st.floats(0.1, 100.0), gain=st.floats(0.1, 2.0), noise=st.floats(0.5, 4.0), pedestal=st.floats(0.0, 1000.0)
)
def test_camera_background_is_photons_times_gain_plus_noise(level, gain, noise, pedestal):
    screen = replace(CAMERA, gain=gain, read_noise=noise, pedestal=pedestal)
    frame = background(FLAT, FLAT, (0.0, level), screen, rng=np.random.default_rng(1))
    assert frame.dtype == np.uint16
    photons = np.arange(int(poisson.isf(1e-13, level / gain)) + 2)
    chance = poisson.pmf(photons, level / gain)
    values = np.arange(int(frame.min()), int(frame.max()) + 1)
    expected = (chance * ndtr((values[:, None] + 0.5 - pedestal - gain * photons) / noise)).sum(axis=1)
    empirical = np.cumsum(np.bincount(frame.ravel())[values[0] :]) / frame.size
    assert np.abs(empirical - expected).max() < 2.5 / np.sqrt(frame.size)


def test_background_follows_from_the_generator():
    first = background(FLAT, FLAT, (1.0, 9.0), COUNTER, rng=np.random.default_rng(5))
    again = background(FLAT, FLAT, (1.0, 9.0), COUNTER, rng=np.random.default_rng(5))
    other = background(FLAT, FLAT, (1.0, 9.0), COUNTER, rng=np.random.default_rng(6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
    assert abs(np.corrcoef(first[:-1].ravel(), first[1:].ravel())[0, 1]) < 0.02


@settings(max_examples=25, deadline=None)
@given(
    row=st.floats(30, 70),
    column=st.floats(30, 70),
    sigma=st.floats(0.7, 2.0),
    streak=st.tuples(st.floats(-12, 12), st.floats(-12, 12)),
)
def test_spot_is_a_normal_density_with_the_streak_in_its_covariance(row, column, sigma, streak):
    total = 30.0  # too faint for tail and halo
    photons = np.zeros((100, 100), dtype=np.float32)
    smear = np.array([streak])
    add_spots(photons, np.array([row]), np.array([column]), np.array([total]), smear, sigma)
    grid = np.stack(np.meshgrid(np.arange(100), np.arange(100), indexing="ij"), axis=-1)
    covariance = sigma**2 * np.eye(2) + smear.T @ smear / 12
    expected = 0.91 * total * multivariate_normal([row, column], covariance).pdf(grid)
    drawn = photons > 0
    np.testing.assert_allclose(photons[drawn], expected[drawn], rtol=1e-3, atol=1e-5)
    assert expected[~drawn].max() < 1e-3


@settings(max_examples=10, deadline=None)
@given(total=st.floats(1e4, 1e6), row=st.floats(80, 120), column=st.floats(80, 120))
def test_bright_spots_keep_their_photons_in_spot_tail_and_halo(total, row, column):
    photons = np.zeros((200, 200), dtype=np.float32)
    add_spots(photons, np.array([row]), np.array([column]), np.array([total]), np.zeros((1, 2)), 1.0)
    assert photons.sum() == pytest.approx(total, rel=0.06)
    weighted = (photons.sum(axis=1) @ np.arange(200), photons.sum(axis=0) @ np.arange(200))
    np.testing.assert_allclose(np.array(weighted) / photons.sum(), (row, column), atol=0.05)


def test_spots_at_the_border_and_outside_are_cut():
    photons = np.zeros((50, 60), dtype=np.float32)
    outside = np.array([-0.4, 49.4, 200.0]), np.array([-0.4, 59.4, 10.0])
    add_spots(photons, *outside, np.full(3, 1000.0), np.zeros((3, 2)), 1.0)
    assert photons[0, 0] > 0
    assert photons[49, 59] > 0
    assert np.isfinite(photons).all()
