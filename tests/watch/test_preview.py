import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from laue_dask.config import PCAConfig
from laue_dask.segmentation.pca import IncrementalPCA
from laue_dask.watch import preview as module
from laue_dask.watch.preview import MIN_PATTERNS, Preview, aligned_axes, matched_labels

SHAPE = (12, 20)
N = SHAPE[0] * SHAPE[1]


@pytest.fixture(scope="module")
def domains():
    y, x = np.divmod(np.arange(N), SHAPE[1])
    return np.where(x < 7, 0, np.where(y < 6, 1, 2))


@pytest.fixture(scope="module")
def features(domains):
    rng = np.random.default_rng(0)
    means = rng.normal(0, 1, (3, 24))
    return (means[domains] + 0.05 * rng.normal(0, 1, (N, 24))).astype(np.float32)


def refreshed(preview, features, count, k=3):
    rows = np.arange(count)
    return preview.update(features[:count], rows, rows, k)


def assert_same_axes(found, expected):
    """The same principal components, but for the order of the first three and for signs."""
    order = [int(np.argmax(np.abs(found.T @ column))) for column in expected.T]
    assert sorted(order) == list(range(expected.shape[1]))
    np.testing.assert_allclose(np.abs(found[:, order]), np.abs(expected), atol=1e-3)


def test_there_is_no_map_of_a_few_patterns(features):
    assert refreshed(Preview(PCAConfig()), features, MIN_PATTERNS - 1) is None


def test_growing_map_ends_with_the_domains_and_the_principal_components_of_all(features, domains):
    preview = Preview(PCAConfig(components=5))
    for count in range(10, N + 1, 23):
        refreshed(preview, features, count)
    maps = refreshed(preview, features, N)
    assert adjusted_rand_score(domains, maps.labels) == 1.0
    expected = IncrementalPCA().fit(features).transform(features)[:, :5]
    assert_same_axes(maps.components, expected)


def test_labels_and_colours_stay_from_refresh_to_refresh(features):
    preview = Preview(PCAConfig())
    first = refreshed(preview, features, 150)
    before, rgb = first.labels, first.rgb.astype(int)
    for count in range(155, N + 1, 5):
        maps = refreshed(preview, features, count)
        assert np.array_equal(maps.labels[: len(before)], before)
        assert np.abs(maps.rgb[: len(rgb)].astype(int) - rgb).mean() < 25
        before, rgb = maps.labels, maps.rgb.astype(int)


def test_frame_that_was_read_again_replaces_the_first_version(features):
    replaced = features.copy()
    replaced[5] = 100.0
    table = np.concatenate([replaced, features[5:6]])
    rows = np.arange(N)
    preview = Preview(PCAConfig(components=4))
    preview.update(table[:N], rows, rows, 3)
    rows = rows.copy()
    rows[5] = N
    maps = preview.update(table, rows, np.arange(N), 3)
    direct = refreshed(Preview(PCAConfig(components=4)), features, N)
    assert_same_axes(maps.components, direct.components)


def test_patterns_that_are_all_alike_are_one_cluster():
    maps = refreshed(Preview(PCAConfig()), np.ones((20, 24), np.float32), 20, k=5)
    assert maps.k == 1
    assert set(maps.labels.tolist()) == {0}


def test_large_scans_are_clustered_from_a_sample(features, domains, monkeypatch):
    monkeypatch.setattr(module, "MAX_SAMPLE_PATTERNS", 40)
    maps = refreshed(Preview(PCAConfig()), features, N)
    assert adjusted_rand_score(domains, maps.labels) == 1.0


@given(seed=st.integers(0, 10_000), k=st.integers(1, 6))
def test_renaming_is_undone(seed, k):
    rng = np.random.default_rng(seed)
    before = np.concatenate([np.arange(k), rng.integers(0, k, 60)]).astype(np.int32)
    shuffled = rng.permutation(k).astype(np.int32)
    assert np.array_equal(matched_labels(shuffled[before], before, k)[shuffled[before]], before)


@given(seed=st.integers(0, 10_000))
def test_axes_keep_their_order_and_signs(seed):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(12, 12)))[0][:5]
    turned = basis.copy()
    turned[:3] = basis[rng.permutation(3)] * rng.choice([-1.0, 1.0], (3, 1))
    np.testing.assert_allclose(aligned_axes(turned, basis), basis)
    np.testing.assert_array_equal(aligned_axes(turned, None), turned)
