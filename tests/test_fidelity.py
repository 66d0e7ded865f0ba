"""`scripts/fidelity.py`: which peaks of a pattern survive in its reconstruction."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from fidelity import Fidelity, fidelity, find_peaks

GRID = np.indices((128, 128))


def drawn(spots, sigma=1.2):
    """Image of Gaussian (row, column, height)."""
    image = np.zeros((128, 128))
    for row, column, height in spots:
        distance = (GRID[0] - row) ** 2 + (GRID[1] - column) ** 2
        image = np.maximum(image, height * np.exp(-0.5 * distance / sigma**2))
    return image


@st.composite
def apart(draw, least=1, most=25):
    """Spots on different cells of a coarse grid, with heights that differ."""
    cells = draw(st.lists(st.integers(0, 99), min_size=least, max_size=most, unique=True))
    heights = np.linspace(1.0, 0.2, len(cells))
    jitter = [draw(st.tuples(st.integers(-2, 2), st.integers(-2, 2))) for _ in cells]
    return [
        (10 + 12 * (c // 10) + y, 10 + 12 * (c % 10) + x, h)
        for c, (y, x), h in zip(cells, jitter, heights, strict=True)
    ]


@settings(max_examples=20)
@given(spots=apart())
def test_peaks_are_found_where_they_were_drawn_the_highest_first(spots):
    found = find_peaks(drawn(spots))
    np.testing.assert_allclose(found.position, [s[:2] for s in spots])
    np.testing.assert_allclose(found.height, [s[2] for s in spots])


def test_flat_top_is_one_peak_and_what_is_too_faint_is_none():
    image = drawn([(40, 60, 0.04)])
    image[20:23, 30:32] = 1.0
    found = find_peaks(image)
    np.testing.assert_allclose(found.position, [(21, 30.5)])
    assert len(find_peaks(np.zeros((128, 128))).height) == 0


def test_shoulder_within_the_window_is_no_peak_of_its_own():
    assert len(find_peaks(drawn([(40, 60, 1.0), (40, 62, 0.9)])).height) == 1
    assert len(find_peaks(drawn([(40, 60, 1.0), (40, 66, 0.9)])).height) == 2


@settings(max_examples=20)
@given(spots=apart(), share=st.floats(0.35, 1.0), shift=st.tuples(st.integers(-1, 1), st.integers(-1, 1)))
def test_all_peaks_survive_a_little_shift_and_fading(spots, share, shift):
    moved = [(y + shift[0], x + shift[1], h * share) for y, x, h in spots]
    assert fidelity(drawn(spots), drawn(moved, 2.0)) == Fidelity(len(spots), len(spots), len(spots), 0)


@settings(max_examples=20)
@given(spots=apart(least=2), lost=st.integers(1, 24), share=st.floats(0, 0.25))
def test_faded_peaks_are_lost(spots, lost, share):
    lost = min(lost, len(spots) - 1)
    faded = [(y, x, h * (share if i < lost else 1)) for i, (y, x, h) in enumerate(spots)]
    found = fidelity(drawn(spots), drawn(faded))
    assert (found.peaks, found.survived, found.false) == (len(spots), len(spots) - lost, 0)


@settings(max_examples=20)
@given(spots=apart(least=3), added=st.integers(1, 24))
def test_peaks_that_the_pattern_has_not_are_false(spots, added):
    added = min(added, len(spots) - 1)
    found = fidelity(drawn(spots[added:]), drawn(spots))
    assert found == Fidelity(len(spots) - added, len(spots) - added, len(spots), added)


def test_displaced_peaks_neither_survive_nor_are_they_true():
    assert fidelity(drawn([(40, 60, 1.0)]), drawn([(43, 60, 1.0)])) == Fidelity(1, 0, 1, 1)
    assert fidelity(drawn([(40, 60, 1.0)]), drawn([(42, 60, 1.0)])) == Fidelity(1, 1, 1, 0)


def test_only_the_brightest_are_looked_for_but_none_of_the_others_is_false():
    spots = [(10 + 12 * (i // 9), 10 + 12 * (i % 9), 1 - 0.01 * i) for i in range(50)]
    assert fidelity(drawn(spots), drawn(spots)) == Fidelity(30, 30, 50, 0)
    assert fidelity(drawn(spots), drawn(spots[:15])) == Fidelity(30, 15, 15, 0)


def test_black_images_have_nothing_to_lose():
    black = np.zeros((128, 128))
    assert fidelity(drawn([(40, 60, 1.0)]), black) == Fidelity(1, 0, 0, 0)
    assert fidelity(black, drawn([(40, 60, 1.0)])) == Fidelity(0, 0, 1, 1)
    assert fidelity(black, black) == Fidelity(0, 0, 0, 0)


@pytest.mark.parametrize("level", [0.2, 1.0])
def test_grey_picture_holds_no_peaks_of_a_pattern(level):
    found = fidelity(drawn([(40, 60, 1.0), (80, 90, 0.8)]), np.full((128, 128), level))
    assert found.survived == 0
