import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import label

from laue_dask.errors import InputError
from laue_dask.grains import neighbourhood as grains
from laue_dask.grains.neighbourhood import NeighbourhoodGrains, Neighbours, cut, join, merge_small_regions, neighbours
from laue_dask.segmentation.scores import adjusted_rand


@st.composite
def scans(draw) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Features of the valid points of a small scan, the points that are valid, and its shape."""
    shape = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    valid = rng.random(shape[0] * shape[1]) < draw(st.sampled_from([1.0, 0.7]))
    return rng.normal(size=(valid.sum(), 3)), valid, shape


def voronoi(shape, n, seed):
    """True grains, (ny, nx); the grains of every point from the nearest on; how much farther the second nearest is."""
    rng = np.random.default_rng(seed)
    seeds = rng.random((n, 2)) * shape
    points = np.indices(shape).reshape(2, -1).T[:, None]
    apart = np.linalg.norm(points - seeds, axis=2)
    order = np.argsort(apart, axis=1)
    nearest, second = np.take_along_axis(apart, order[:, :2], axis=1).T
    return order[:, 0].reshape(shape), order, second - nearest


def bent_grains(shape, n, seed, *, noise=0.05, bend=0.15):
    """Features of grains that turn from side to side, points within 0.3 of a boundary being mixtures; truth, edge."""
    rng = np.random.default_rng(seed)
    truth, order, margin = voronoi(shape, n, seed)
    y, x = np.indices(shape).reshape(2, -1)
    pure = np.empty((n, y.size, 8))
    for i in range(n):
        turn = bend * (np.cos(i) * y + np.sin(i) * x)
        pure[i] = np.column_stack([np.sin((k + 1) * turn / 4 + rng.uniform(0, 6)) for k in range(8)])
        pure[i] += 3 * rng.normal(size=8)
    share = np.clip(0.5 + margin / 1.2, 0.5, 1)[:, None]
    at = np.arange(y.size)
    mixed = share * pure[order[:, 0], at] + (1 - share) * pure[order[:, 1], at]
    return mixed + noise * rng.normal(size=mixed.shape), truth, (margin < 0.6).reshape(shape)


def one_by_one(n, pairs):
    """Heights of joining the weakest boundary of all, again and again, as the definition says."""
    labels, heights = np.arange(n), []
    while True:
        sums = {}
        for a, b, d in zip(labels[pairs.first], labels[pairs.second], pairs.distance, strict=True):
            if a != b:
                sums.setdefault((min(a, b), max(a, b)), []).append(d)
        if not sums:
            return np.array(heights)
        (a, b), height = min(((key, np.mean(d)) for key, d in sums.items()), key=lambda item: item[1])
        labels[labels == b] = a
        heights.append(height)


@given(scans(), st.sampled_from([4, 8]), st.integers(1, 9))
def test_neighbours_are_the_valid_points_beside_each_other(scan, connectivity, rows):
    X, valid, shape = scan
    found = neighbours(X, valid, shape, connectivity=connectivity)
    place = np.flatnonzero(valid)
    expected = {}
    for i, one in enumerate(place):
        for j, two in enumerate(place[:i]):
            dy, dx = np.abs(np.subtract(divmod(one, shape[1]), divmod(two, shape[1])))
            if (dy + dx == 1) if connectivity == 4 else (max(dy, dx) == 1):
                expected[j, i] = np.linalg.norm(X[i] - X[j])
    pairs = dict(zip(zip(found.first.tolist(), found.second.tolist(), strict=True), found.distance, strict=True))
    assert pairs == pytest.approx(expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grains, "block_rows", lambda columns: rows)
        blocks = neighbours(X, valid, shape, connectivity=connectivity)
        lazy = neighbours(da.from_array(X, chunks=(3, -1)), valid, shape, connectivity=connectivity)
    assert np.array_equal(blocks.distance, found.distance)
    assert np.array_equal(lazy.distance, found.distance)


@given(scans(), st.sampled_from([0.0, 0.2, 2.0]))
def test_regions_are_joined_as_if_one_by_one(scan, share):
    X, valid, shape = scan
    pairs = neighbours(X, valid, shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grains, "MIN_JOINS_PER_BOUNDARY", share)
        merges = join(len(X), pairs)
    assert np.sort(merges.height) == pytest.approx(one_by_one(len(X), pairs))
    assert (merges.left < merges.right).all()
    # what is joined above any strength is a coarser map of what is joined below it
    for low, high in zip(np.sort(merges.height)[:-1], np.sort(merges.height)[1:], strict=True):
        fine, coarse = cut(len(X), merges, low), cut(len(X), merges, high)
        assert len(np.unique(fine * len(X) + coarse)) == len(np.unique(fine))
    assert len(np.unique(cut(len(X), merges, np.inf))) == label(valid.reshape(shape))[1]


@given(scans(), st.integers(1, 6), st.floats(0, 4))
def test_small_regions_are_given_away_and_no_two_large_ones_are_joined(scan, min_size, threshold):
    X, valid, shape = scan
    pairs = neighbours(X, valid, shape)
    before = cut(len(X), join(len(X), pairs), threshold)
    after = merge_small_regions(before, pairs, min_size)
    size = np.bincount(before, minlength=1)
    large = size[before] >= min_size
    assert len(np.unique(after[large])) == len(np.unique(before[large])) or not large.any()
    for region in np.flatnonzero(np.bincount(after, minlength=1) < min_size) if len(X) else ():
        touching = (after[pairs.first] == region) != (after[pairs.second] == region)
        assert not touching.any()


@given(scans(), st.sampled_from(["auto", 0.0, 1.5]), st.integers(1, 4), st.sampled_from(["merge", "mark"]))
def test_grains_are_connected_numbered_by_size_and_described(scan, threshold, min_size, small):
    X, valid, shape = scan
    found = NeighbourhoodGrains(threshold, min_size=min_size, small=small).fit(X, shape=shape, valid=valid)
    painted = np.full(len(valid), -1)
    painted[valid] = found.labels_
    sizes = [row["size"] for row in found.grains_]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == np.count_nonzero(found.labels_ >= 0)
    if small == "mark":
        assert all(size >= min_size for size in sizes)
    else:
        assert (found.labels_ >= 0).all()
    for row in found.grains_:
        mask = (painted == row["grain"]).reshape(shape)
        y, x = np.nonzero(mask)
        assert label(mask)[1] == 1
        assert (row["y"], row["x"]) == pytest.approx((y.mean(), x.mean()))
        assert [row[name] for name in ("y0", "y1", "x0", "x1")] == [y.min(), y.max(), x.min(), x.max()]
        members = np.flatnonzero(found.labels_ == row["grain"])
        apart = np.linalg.norm(X[members] - X[members].mean(axis=0), axis=1)
        assert row["delegate"] in members
        assert apart[members == row["delegate"]] == pytest.approx(apart.min(), abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_bent_grains_are_found_where_features_alone_cannot_tell(seed):
    X, truth, edge = bent_grains((30, 40), 7, seed)
    found = NeighbourhoodGrains().fit(X, shape=truth.shape).labels_.reshape(truth.shape)
    assert adjusted_rand(truth, found, where=~edge) >= 0.95


@pytest.mark.parametrize("kind", ["equal", "noise", "bent", "line"])
def test_a_scan_without_boundaries_is_one_grain(kind):
    rng = np.random.default_rng(0)
    shape = (20, 25) if kind != "line" else (1, 500)
    X = np.zeros((500, 6)) if kind == "equal" else rng.normal(size=(500, 6))
    if kind in ("bent", "line"):
        X = 0.02 * X + np.column_stack([np.sin(np.arange(500) % shape[1] / shape[1] * k) for k in range(6)])
    assert len(NeighbourhoodGrains().fit(X, shape=shape).grains_) == 1


def test_a_weak_place_in_a_boundary_joins_nothing():
    X = np.zeros((10, 20, 2))
    X[:, 10:] = 1
    X[5, 8:12, 0] = [0.2, 0.4, 0.6, 0.8]  # steps of 0.2 from one grain to the other
    X += np.random.default_rng(0).normal(size=X.shape) * 0.03
    found = NeighbourhoodGrains(0.5).fit(X.reshape(200, 2), shape=(10, 20)).labels_.reshape(10, 20)
    assert np.unique(found).tolist() == [0, 1]
    assert found[0, 0] != found[0, -1]


def test_missing_points_separate_grains():
    valid = np.ones((5, 7), bool)
    valid[:, 3] = False
    found = NeighbourhoodGrains().fit(np.zeros((30, 2)), shape=(5, 7), valid=valid.ravel())
    assert [row["size"] for row in found.grains_] == [15, 15]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": -1.0}, "threshold -1.0"),
        ({"threshold": "much"}, "threshold 'much'"),
        ({"min_size": 0}, "at least 0 patterns"),
        ({"connectivity": 6}, "6 neighbours"),
    ],
)
def test_impossible_parameters_are_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        NeighbourhoodGrains(**parameters).fit(np.zeros((4, 2)), shape=(2, 2))


def test_features_that_are_not_finite_or_too_few_are_refused():
    with pytest.raises(InputError, match="not finite"):
        NeighbourhoodGrains().fit(np.array([[0.0], [np.nan]]), shape=(1, 2))
    with pytest.raises(InputError, match="3 labels for 4 valid"):
        NeighbourhoodGrains().fit(np.zeros((3, 2)), shape=(2, 2))


def test_equal_boundaries_do_not_join_one_point_at_a_time():
    n = 300
    first = np.arange(n - 1)
    merges = join(n, Neighbours(first, first + 1, np.zeros(n - 1)))
    assert len(merges.height) == n - 1
