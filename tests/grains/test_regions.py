import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.grains.regions import MIN_INTEREST_FACTOR, box_sums, interest, propose


@st.composite
def maps(draw):
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = rng.integers(-1, draw(st.integers(1, 9)), shape)
    boundary = rng.random(shape) ** 3
    boundary[labels < 0] = np.nan
    return boundary, labels, (draw(st.integers(1, 14)), draw(st.integers(1, 14)))


@given(maps(), st.integers(1, 6))
def test_regions_lie_inside_do_not_overlap_and_come_in_the_order_of_their_score(case, count):
    boundary, labels, size = case
    found = propose(boundary, labels, size=size, count=count)
    covered = np.zeros(labels.shape, int)
    variation, smallness = interest(boundary, labels)
    for region in found:
        box = np.s_[region.y0 : region.y1 + 1, region.x0 : region.x1 + 1]
        assert covered[box].shape == (min(size[0], labels.shape[0]), min(size[1], labels.shape[1]))
        covered[box] += 1
        assert region.score == pytest.approx((variation[box].mean() + smallness[box].mean()) / 2)
        assert region.score >= MIN_INTEREST_FACTOR
        assert region.reason
    assert covered.max() <= 1
    assert [region.score for region in found] == sorted((region.score for region in found), reverse=True)
    assert len(found) <= count


@given(maps())
def test_sums_of_rectangles_are_sums(case):
    boundary, _, size = case
    values = np.nan_to_num(boundary)
    height, width = min(size[0], values.shape[0]), min(size[1], values.shape[1])
    found = box_sums(values, (height, width))
    windows = np.lib.stride_tricks.sliding_window_view(values, (height, width))
    assert found == pytest.approx(windows.sum(axis=(2, 3)))


def test_the_corner_full_of_small_domains_is_proposed_first():
    labels = np.zeros((30, 40), int)
    labels[18:, 28:] = 1 + np.arange(12 * 12).reshape(12, 12) // 3
    boundary = np.full(labels.shape, 0.05)
    boundary[18:, 28:] = 1.0
    first = propose(boundary, labels, size=(12, 12))[0]
    assert (first.y0, first.y1, first.x0, first.x1) == (18, 29, 28, 39)
    assert "small domains" in first.reason
    assert "features vary" in first.reason


def test_an_even_scan_needs_no_dense_one():
    assert propose(np.ones((10, 10)), np.zeros((10, 10), int), size=(3, 3)) == []
    assert propose(np.zeros((10, 10)), np.zeros((10, 10), int), size=(3, 3)) == []
    assert propose(np.full((5, 5), np.nan), np.full((5, 5), -1), size=(3, 3)) == []


def test_maps_that_do_not_fit_and_regions_without_size_are_refused():
    with pytest.raises(InputError, match="boundary map"):
        propose(np.ones((2, 2)), np.zeros((2, 3), int), size=(1, 1))
    with pytest.raises(InputError, match="0 × 1"):
        propose(np.ones((2, 2)), np.zeros((2, 2), int), size=(0, 1))
