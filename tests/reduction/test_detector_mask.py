"""Masks and frame faults: what is found, and above all what is left alone."""

from pathlib import Path

import fabio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.reduction.detector_mask import detector_mask, frame_fault, value_limits

SHAPE = (400, 420)


@pytest.fixture(scope="module")
def als(data_dir: Path):
    """The two real PILATUS 1M frames, (2, 1043, 981) int32."""
    names = [f"SiHyperlaueFinal_1_0000{i}.tif" for i in (1, 2)]
    return np.stack([fabio.open(data_dir / "frames/als_1232" / name).data for name in names])


def modules():
    """True in a horizontal and a vertical gap."""
    gap = np.zeros(SHAPE, bool)
    gap[195:212] = True
    gap[:, 200:207] = True
    return gap


def reflections(rng, n, strength, *, width=0.85):
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    expected = np.zeros(SHAPE)
    places = rng.uniform(10, 180, (n, 2))
    for y, x in places:
        expected += strength * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2))
    return expected


@pytest.mark.parametrize("s", [1, 2])
def test_gaps_of_a_real_pilatus_are_found_and_nothing_else(als, s):
    zero = (als == 0).all(axis=0)
    mask = detector_mask(als[:s])
    gap = np.zeros(zero.shape, bool)
    gap[zero.mean(axis=1) > 0.99] = True
    gap[:, zero.mean(axis=0) > 0.99] = True
    assert gap.mean() == pytest.approx(0.072, abs=0.001)
    assert mask[gap].all()
    assert mask[(als[:s] < 0).all(axis=0)].all()
    assert mask[~gap].mean() < 0.0002


def test_the_strong_reflection_of_a_real_frame_is_not_a_hot_pixel(als):
    strongest = np.argsort(als[0].ravel())[::-1][:40]
    around = np.lib.stride_tricks.sliding_window_view(np.pad(als[0], 1), (3, 3)).reshape(-1, 9)[strongest]
    second = np.sort(around, axis=1)[:, -2]
    spots = strongest[second > 0.3 * als[0].ravel()[strongest]]
    assert len(spots) > 10
    assert not detector_mask(als).ravel()[spots].any()


@pytest.mark.parametrize(("name", "share"), [("Ge_blanc_0000.mccd", 0.2147), ("AH12_CMT_r14_0200.tif", 0.00004)])
def test_the_blind_part_of_a_real_camera_is_found_from_one_frame(data_dir, name, share):
    frame = fabio.open(data_dir / "frames/esrf_bm32" / name).data
    mask = detector_mask(frame[None])
    assert mask.mean() == pytest.approx(share, abs=0.0001)
    assert (mask != (frame == 0)).sum() < 20


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    background=st.sampled_from([0.0005, 0.01, 0.05, 0.4, 2, 8]),
    s=st.sampled_from([1, 2, 12]),
)
def test_no_live_pixel_is_lost_to_its_zeros(seed, background, s):
    rng = np.random.default_rng(seed)
    sample = rng.poisson(background + reflections(rng, 10, 300), (s, *SHAPE)).astype(np.int32)
    assert detector_mask(sample).mean() < 2e-5


@pytest.mark.parametrize("marker", [0, -1])
@pytest.mark.parametrize("background", [0.15, 1.0, 30.0])
@pytest.mark.parametrize("s", [1, 2, 10])
def test_module_gaps_are_found_at_any_count_rate(marker, background, s):
    rng = np.random.default_rng(0)
    sample = rng.poisson(background + reflections(rng, 10, 300), (s, *SHAPE)).astype(np.int32)
    gap = modules()
    sample[:, gap] = marker
    mask = detector_mask(sample)
    assert mask[gap].all()
    assert mask[~gap].mean() < 0.002


def test_single_dead_pixels_are_found_where_their_neighbours_count():
    rng = np.random.default_rng(1)
    sample = rng.poisson(30, (3, *SHAPE)).astype(np.uint32)
    dead = tuple(rng.integers(0, 400, (2, 30)))
    sample[:, dead[0], dead[1]] = 0
    expected = np.zeros(SHAPE, bool)
    expected[dead] = True
    np.testing.assert_array_equal(detector_mask(sample), expected)


@pytest.mark.parametrize("s", [1, 2, 9])
@pytest.mark.parametrize("background", [0.1, 20.0, 1000.0])
def test_hot_pixels_are_masked_and_a_substrates_reflections_are_not(s, background):
    rng = np.random.default_rng(2)
    expected = background + reflections(rng, 25, 60 * np.sqrt(background + 1) + 200)
    sample = rng.poisson(expected, (s, *SHAPE)).astype(np.int32)
    hot = np.zeros(SHAPE, bool)
    hot[250:400:30, 250:400:30] = True
    sample[:, hot] += rng.poisson(100 * np.sqrt(background + 1), (s, hot.sum())).astype(np.int32)
    np.testing.assert_array_equal(detector_mask(sample), hot)


def test_a_pixel_that_is_hot_in_one_frame_stays():
    sample = np.random.default_rng(3).poisson(20, (5, *SHAPE)).astype(np.int32)
    sample[2, 100, 100] = 100_000
    assert not detector_mask(sample).any()


@pytest.mark.parametrize("dtype", ["uint32", "int32", "uint16"])
def test_the_largest_integer_marks_gaps(dtype):
    sample = np.random.default_rng(4).poisson(20, (2, *SHAPE)).astype(dtype)
    sample[:, modules()] = np.iinfo(dtype).max
    np.testing.assert_array_equal(detector_mask(sample), modules())


def test_a_reflection_that_saturates_in_every_frame_stays():
    rng = np.random.default_rng(5)
    expected = 1000 + reflections(rng, 8, 200_000, width=1.3)
    sample = np.minimum(rng.poisson(expected, (4, *SHAPE)), 65535).astype(np.uint16)
    assert (sample == 65535).all(axis=0).sum() > 20
    assert not detector_mask(sample).any()


def test_pixels_that_are_not_finite_in_most_frames_are_masked():
    sample = np.random.default_rng(6).normal(100, 5, (3, *SHAPE)).astype(np.float32)
    sample[:, 10], sample[:2, 20], sample[0, 30] = np.nan, np.inf, np.nan
    expected = np.zeros(SHAPE, bool)
    expected[[10, 20]] = True
    np.testing.assert_array_equal(detector_mask(sample), expected)


def test_negatives_of_a_dark_subtracted_frame_are_data():
    sample = np.random.default_rng(7).normal(0, 5, (2, *SHAPE))
    assert not detector_mask(sample).any()


def test_without_any_count_everything_is_masked():
    assert detector_mask(np.zeros((2, *SHAPE), np.uint16)).all()


def test_limits_of_what_is_data():
    assert value_limits(np.ones(4, np.uint16)) == (0, np.inf)
    assert value_limits(np.ones(4, np.uint32)) == (0, 2**32 - 2)
    assert value_limits(np.array([-1, 5, 5, 5, 5], np.int32)) == (0, 2**31 - 2)
    assert value_limits(np.array([-1.0, -2, 5])) == (-np.inf, np.inf)
    assert value_limits(np.array([[-1.0, -2, 5, 5, 5]]), np.array([[True, False, False, False, False]])) == (0, np.inf)
    assert value_limits(np.array([[-1.0, -2, 5, 5]]), np.zeros((1, 4), bool)) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (np.zeros((2, 2)), "all pixels are zero"),
        (np.full((2, 2), 5, np.uint16), "all pixels have the same value 5"),
        (np.full((2, 2), np.nan), "no finite pixel"),
        (np.array([[-2, -1], [-1, -1]]), "no pixel above zero, the largest is -1"),
        (np.array([[0, 1], [2, 3]]), None),
        (np.array([[np.nan, 1], [2, np.inf]]), None),
    ],
)
def test_fault_of_a_frame_is_told(frame, reason):
    assert frame_fault(frame) == reason


def test_masked_pixels_do_not_save_a_frame():
    frame = np.array([[0, 0], [0, 9]])
    assert frame_fault(frame, np.array([[False, False], [False, True]])) == "all pixels are zero"
    assert frame_fault(frame, np.ones((2, 2), bool)) == "every pixel is masked"
