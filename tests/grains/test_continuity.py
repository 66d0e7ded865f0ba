import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.grains.continuity import MAX_CROSSINGS, MIN_CROSSINGS, MIN_FIELD_JUMP_PX, PeakCache, lines, motion
from laue_dask.grains.neighbourhood import NeighbourhoodGrains

SIDE = 128


def crystal(rng, n=30, *, brightness=1.0):
    """Peaks (n, 3) of a crystal, 8 pixels or more from the border."""
    return np.column_stack([rng.uniform(12, SIDE - 12, (n, 2)), brightness * rng.uniform(20, 60, n)])


def moved(peaks, field):
    """The peaks where a field takes them."""
    place = np.column_stack([peaks[:, :2] / 64 - 1, np.ones(len(peaks))])
    return np.column_stack([peaks[:, :2] + place @ field, peaks[:, 2]])


def pattern(*crystals):
    """Reduced pattern (128, 128) uint8 that shows them."""
    v, u, height = np.concatenate(crystals).T[:, :, None, None]
    y, x = np.indices((SIDE, SIDE))
    return np.clip((4 * height * np.exp(-((y - v) ** 2 + (x - u) ** 2) / 2)).sum(axis=0), 0, 255).astype(np.uint8)


@given(
    seed=st.integers(0, 2**32 - 1),
    shift=st.tuples(*[st.floats(-4, 4)] * 2),
    bend=st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    others=st.integers(0, 30),
)
def test_motion_finds_the_field_whatever_else_is_there(seed, shift, bend, others):
    rng = np.random.default_rng(seed)
    field = np.array([bend[:2], bend[2:], shift])
    before = crystal(rng)
    after = rng.permutation(np.concatenate([moved(before, field), crystal(rng, others, brightness=0.5)]))
    found, share = motion(before, after)
    back, same = motion(after, before)
    total = (after[:, 2] ** 2).sum()
    assert share >= 0.9 * (before[:, 2] ** 2).sum() / total
    assert share == pytest.approx(same, abs=0.1)
    # the field is held back from varying more than the peaks ask for
    np.testing.assert_allclose(found[2], shift, atol=0.35)
    np.testing.assert_allclose(back[2], np.negative(shift), atol=0.35)


@pytest.mark.parametrize("seed", range(20))
def test_most_of_the_intensity_of_different_crystals_never_moves_together(seed):
    rng = np.random.default_rng(seed)
    assert motion(crystal(rng, 60), crystal(rng, 60))[1] < 0.4


def test_no_peaks_move_nowhere():
    none, some = np.empty((0, 3)), crystal(np.random.default_rng(0), 1)
    for before, after in ((none, none), (none, some), (some, none), (some, some * [1, 1, 0])):
        assert motion(before, after)[1] == 0
    assert motion(some, some)[1] == 1


SHAPE = (6, 16)
HALVES = np.repeat([[0, 1]], 8, axis=1).repeat(6, axis=0)


def bent(rng, rate):
    """Peaks of a crystal in each column of a scan."""
    one = crystal(rng)
    return [moved(one, np.array([[0, 0], [0, 0], [rate * x, 0.4 * rate * x]])) for x in range(SHAPE[1])]


def scan(left, right, *, below=None, below_from=0):
    """Patterns (n, 128, 128) of a scan that shows `left` in its first eight columns and `right` in the others."""
    columns = []
    for x in range(SHAPE[1]):
        shown = [(left if x < 8 else right)[x]]
        if below is not None and x >= below_from:
            shown.append(below[x] * [1, 1, 0.6])
        columns.append(pattern(*shown))
    return np.tile(np.stack(columns), (SHAPE[0], 1, 1))


def strength(patterns, regions=HALVES):
    found = lines(regions, PeakCache(lambda rows: patterns[rows]))
    assert found.first.tolist() == [0]
    assert found.second.tolist() == [1]
    return found.strength[0], found.length[0]


def test_a_bent_grain_goes_on_and_another_one_does_not():
    rng = np.random.default_rng(1)
    one, other = bent(rng, 0.8), bent(rng, 0.8)
    same, length = strength(scan(one, one))
    assert same < 0.4
    assert length == 6
    assert strength(scan(one, other))[0] > 1.5


def test_a_grain_goes_on_where_one_buried_below_it_ends():
    rng = np.random.default_rng(2)
    one, other, below = bent(rng, 0.8), bent(rng, 0.8), bent(rng, 0.2)
    assert strength(scan(one, one, below=below, below_from=8))[0] < 1
    # what is buried goes on below a boundary
    assert strength(scan(one, other, below=below))[0] > 1


def test_a_jump_of_the_bending_is_a_boundary():
    one = bent(np.random.default_rng(3), 0.5)
    for jump, boundary in ((0.0, False), (3 * MIN_FIELD_JUMP_PX, True)):
        twin = [moved(peaks, np.array([[0, 0], [0, 0], [jump, 0]])) for peaks in one]
        assert (strength(scan(one, twin))[0] > 1) == boundary


def test_short_lines_are_not_judged_and_long_ones_by_a_selection():
    rng = np.random.default_rng(4)
    image = pattern(crystal(rng))
    asked = []

    def read(rows):
        asked.extend(rows.tolist())
        return np.repeat(image[None], len(rows), axis=0)

    short = np.zeros((5, 6), int)
    short[: MIN_CROSSINGS - 1, 3:], short[MIN_CROSSINGS - 1 :, :] = 1, -1
    peaks = PeakCache(read)
    assert not len(lines(short, peaks).first)
    assert not len(lines(np.zeros((4, 4), int), peaks).first)
    assert not asked
    long = np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 5 * MAX_CROSSINGS, axis=0)
    found = lines(long, peaks)
    assert found.length.tolist() == [5 * MAX_CROSSINGS]
    assert len(asked) == 4 * MAX_CROSSINGS
    assert asked == sorted(set(asked))
    # what is known is not judged again, and what was seen is not read again
    assert lines(long, PeakCache(read), {(0, 1): 0.25}).strength.tolist() == [0.25]
    assert lines(long, peaks).strength == found.strength
    assert len(asked) == 4 * MAX_CROSSINGS


def test_grains_by_neighbourhood_ask_the_peaks_where_there_is_no_gap():
    """A grain of which half has another one below it, beside a second grain: to the features all three are alike."""
    rng = np.random.default_rng(5)
    one, other, below = bent(rng, 0.5), bent(rng, 0.5), bent(rng, 0.1)
    patterns = scan(one, other, below=below, below_from=4)
    column = np.arange(SHAPE[1])
    place = np.column_stack([0.8 * np.eye(3)[np.digitize(column, [4, 8])], 0.5 * (column % 2)])
    X = np.tile(place, (SHAPE[0], 1)) + 0.08 * rng.normal(size=(SHAPE[0] * SHAPE[1], 4))
    alone = NeighbourhoodGrains().fit(X, shape=SHAPE)
    asked = NeighbourhoodGrains().fit(X, shape=SHAPE, patterns=lambda rows: patterns[rows])
    assert alone.gap_ is None
    assert not alone.by_peaks_
    assert asked.by_peaks_
    assert alone.labels_.max() == 2
    np.testing.assert_array_equal(asked.labels_.reshape(SHAPE), HALVES)
    # what the user gives is not doubted
    given_one = NeighbourhoodGrains(alone.threshold_).fit(X, shape=SHAPE, patterns=lambda rows: patterns[rows])
    np.testing.assert_array_equal(given_one.labels_, alone.labels_)
    assert not given_one.by_peaks_
