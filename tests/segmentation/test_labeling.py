import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.segmentation.labeling import (
    centroids,
    delegates,
    direct_rgb,
    distances,
    indexing_labels,
    label_map,
    pca_rgb,
    ranked_delegates,
)


@st.composite
def segmented(draw) -> tuple[np.ndarray, np.ndarray, int]:
    """Components (n, M), some rows equal; labels (n,); K, of which some may be empty."""
    n, m, k = draw(st.integers(1, 60)), draw(st.integers(1, 6)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    X = rng.normal(size=(n, m)) if draw(st.booleans()) else rng.integers(0, 3, size=(n, m))
    return X.astype(np.float32), rng.integers(0, k, size=n).astype(np.int32), k


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32))
def test_label_map_puts_each_label_where_its_pattern_was_recorded(ny, nx, seed):
    rng = np.random.default_rng(seed)
    valid = rng.random(ny * nx) < 0.7
    labels = rng.integers(0, 5, size=valid.sum())
    found = label_map(labels, valid, (ny, nx))
    assert found.dtype == np.int32
    remaining = iter(labels)
    for y in range(ny):
        for x in range(nx):
            assert found[y, x] == (next(remaining) if valid[y * nx + x] else -1)


def test_label_map_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="3 labels for 2 valid patterns"):
        label_map(np.zeros(3), np.array([True, False, True, False]), (2, 2))
    with pytest.raises(InputError, match="4 patterns do not fill a scan of 2 × 3"):
        label_map(np.zeros(4), np.ones(4, bool), (2, 3))


@given(segmented(), st.integers(1, 60))
def test_centroids_distances_and_delegates_are_those_of_the_definition(table, rows):
    X, labels, k = table
    means = centroids(X, labels, k)
    apart = distances(X, labels, means)
    chosen = delegates(X, labels, means)
    assert (means.dtype, apart.dtype, chosen.dtype) == (np.float32, np.float32, np.int64)
    for i in range(k):
        members = np.flatnonzero(labels == i)
        if not members.size:
            assert np.isnan(means[i]).all()
            assert chosen[i] == -1
            continue
        assert np.allclose(means[i], X[members].mean(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-12)
        squares = ((X[members].astype(np.float64) - means[i].astype(np.float64)) ** 2).sum(axis=1)
        assert np.allclose(apart[members], np.sqrt(squares), rtol=1e-6)
        # equal rows are equally near, whatever the rounding: the first must have been taken
        nearest = members[np.flatnonzero(squares <= squares.min() * (1 + 1e-12))]
        same = nearest[(X[nearest] == X[chosen[i]]).all(axis=1)]
        assert chosen[i] in nearest
        assert chosen[i] == same[0]
    lazy = da.from_array(X, chunks=(rows, -1))
    assert np.array_equal(centroids(lazy, labels, k), means, equal_nan=True)
    assert np.array_equal(distances(lazy, labels, means), apart)
    assert np.array_equal(delegates(lazy, labels, means), chosen)


@given(segmented())
def test_the_next_nearest_member_stands_in_for_a_delegate_that_cannot_be_indexed(table):
    X, labels, k = table
    means = centroids(X, labels, k)
    indexable = np.ones(len(X), bool)
    seen: list[int] = []
    last = np.zeros(k)
    while indexable.any():
        chosen = delegates(X, labels, means, indexable=indexable)
        assert np.array_equal(chosen == -1, np.bincount(labels[indexable], minlength=k) == 0)
        for i in np.flatnonzero(chosen >= 0):
            assert labels[chosen[i]] == i
            apart = np.linalg.norm(X[chosen[i]].astype(np.float64) - means[i])
            assert apart >= last[i] * (1 - 1e-9)
            last[i] = apart
        indexable[chosen[chosen >= 0]] = False
        seen += chosen[chosen >= 0].tolist()
    assert sorted(seen) == list(range(len(X)))


@given(segmented(), st.integers(1, 5), st.integers(0, 2**32))
def test_ranks_are_the_delegates_that_are_left_when_the_nearer_ones_fail(table, count, seed):
    X, labels, k = table
    means = centroids(X, labels, k)
    indexable = np.random.default_rng(seed).random(len(X)) < 0.8
    ranked = ranked_delegates(X, labels, means, indexable=indexable, count=count)
    assert ranked.shape == (k, count)
    left = indexable.copy()
    for rank in range(count):
        chosen = delegates(X, labels, means, indexable=left)
        assert np.array_equal(ranked[:, rank], chosen)
        left[chosen[chosen >= 0]] = False


@given(segmented(), st.integers(1, 5), st.integers(0, 2**32))
def test_members_that_are_to_come_first_do_however_near_the_others_are(table, count, seed):
    X, labels, k = table
    means = centroids(X, labels, k)
    rng = np.random.default_rng(seed)
    after, indexable = rng.integers(0, 3, len(X)), rng.random(len(X)) < 0.8
    ranked = ranked_delegates(X, labels, means, indexable=indexable, after=after, count=count)
    parts = [ranked_delegates(X, labels, means, indexable=indexable & (after == i), count=count) for i in range(3)]
    for cluster in range(k):
        rows = np.concatenate([part[cluster] for part in parts])
        expected = rows[rows >= 0][:count]
        assert ranked[cluster].tolist() == [*expected, *[-1] * (count - len(expected))]
    same = ranked_delegates(X, labels, means, after=np.full(len(X), 7), count=count)
    assert np.array_equal(same, ranked_delegates(X, labels, means, count=count))


def test_pca_labeler_scales_the_first_three_components_of_the_centroids_to_the_full_range():
    rng = np.random.default_rng(0)
    means = (rng.normal(size=(12, 8)) * [9, 5, 3, 1, 1, 1, 1, 1]).astype(np.float32)
    colours = pca_rgb(means)
    assert colours.dtype == np.uint8
    assert colours.min(axis=0).tolist() == [0, 0, 0]
    assert colours.max(axis=0).tolist() == [255, 255, 255]
    centred = means - means.mean(axis=0)
    _, _, rows = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    for channel in range(3):
        along = centred @ rows[channel]
        expected = 255 * (along - along.min()) / np.ptp(along)
        either = np.minimum(
            np.abs(colours[:, channel] - expected).max(), np.abs(255 - colours[:, channel] - expected).max()
        )
        assert either <= 0.51


def test_pca_labeler_gives_the_same_colours_to_shifted_and_scaled_centroids():
    means = np.random.default_rng(1).normal(size=(10, 6)).astype(np.float64)
    difference = pca_rgb(means).astype(int) - pca_rgb(4 * means + 3)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("means", "colours"),
    [
        ([[1.0, 2.0, 3.0, 4.0]], [[128, 128, 128]]),
        ([[0.0, 1.0], [0.0, 3.0]], [[0, 128, 128], [255, 128, 128]]),
        ([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [2.0, 1.0, 0.0]], [[0, 0, 128], [255, 0, 128], [128, 255, 128]]),
        ([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [[128, 128, 128], [128, 128, 128]]),
        ([[0.0], [2.0], [np.nan]], [[0, 128, 128], [255, 128, 128], [0, 0, 0]]),
    ],
)
def test_channels_without_variation_are_grey_and_missing_clusters_black(means, colours):
    assert pca_rgb(np.array(means, np.float32)).tolist() == colours


@given(st.integers(2, 60), st.integers(3, 6), st.integers(0, 2**32))
def test_direct_colouring_over_the_full_range_is_linear(n, m, seed):
    X = np.random.default_rng(seed).normal(size=(n, m)).astype(np.float32)
    colours = direct_rgb(X, quantiles=(0, 1))
    low, high = X[:, :3].min(axis=0).astype(float), X[:, :3].max(axis=0).astype(float)
    assert np.abs(colours - 255 * (X[:, :3] - low) / (high - low)).max() <= 0.5 + 1e-6


def test_one_odd_pattern_does_not_flatten_the_direct_colouring():
    X = np.random.default_rng(0).uniform(size=(1000, 3)).astype(np.float32)
    X[17] = 1e6
    robust, full = direct_rgb(X), direct_rgb(X, quantiles=(0, 1))
    assert robust[17].tolist() == [255, 255, 255]
    assert (np.delete(robust, 17, axis=0).std(axis=0) > 70).all()
    assert not np.delete(full, 17, axis=0).any()


def test_a_rare_but_real_difference_is_still_coloured():
    X = np.zeros((1000, 3), np.float32)
    X[5] = [1, 2, 3]
    colours = direct_rgb(X)
    assert colours[5].tolist() == [255, 255, 255]
    assert not np.delete(colours, 5, axis=0).any()


def test_direct_colouring_is_black_without_a_pattern_and_grey_without_a_component():
    X = np.array([[0.0, 5.0], [np.nan, np.nan], [1.0, 5.0]])
    assert direct_rgb(X).tolist() == [[0, 128, 128], [0, 0, 0], [255, 128, 128]]
    assert not direct_rgb(np.full((3, 4), np.nan)).any()


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 5), st.sampled_from([(), (1,), (3,)]), st.data())
def test_indexing_labeler_gives_each_point_the_property_at_its_delegate(ny, nx, k, channels, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    true = rng.normal(size=(ny, nx, *channels))
    labels = rng.integers(-1, k, size=(ny, nx))
    delegate = rng.integers(-1, ny * nx, size=k)
    found = indexing_labels(true, delegate, labels)
    assert found.shape == true.shape
    for y in range(ny):
        for x in range(nx):
            at = delegate[labels[y, x]] if labels[y, x] >= 0 else -1
            if at < 0:
                assert np.isnan(found[y, x]).all()
            else:
                assert np.array_equal(found[y, x], true[at // nx, at % nx])


def test_indexing_labeler_refuses_maps_of_different_shapes():
    with pytest.raises(InputError, match=r"\(2, 3\).*\(3, 2\)"):
        indexing_labels(np.zeros((2, 3)), np.array([0]), np.zeros((3, 2), int))
