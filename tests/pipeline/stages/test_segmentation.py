import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.config import ClusteringConfig, PCAConfig
from laue_dask.errors import InputError
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline.stages import segmentation
from laue_dask.pipeline.stages.specimen import Map, require_enough, usable
from laue_dask.runtime.progress import QuietProgress

QUIET = QuietProgress()
CONFIG = ClusteringConfig(score_k=(2, 5), n_init=2)


def clouds(n=60, width=6, seed=0):
    """Points (n, width) of three clouds that are far apart."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, width)) + 40 * np.eye(3, width)[np.arange(n) % 3]).astype(np.float32)


@given(data=st.data())
def test_painting_puts_each_value_at_its_pattern_and_the_fill_elsewhere(data):
    ny, nx = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=ny * nx, max_size=ny * nx)))
    where = Map(valid, (ny, nx))
    values = np.arange(100, 100 + valid.sum())
    painted = where.paint(values, fill=-1)
    assert painted.shape == (ny, nx)
    np.testing.assert_array_equal(painted.ravel()[valid], values)
    assert (painted.ravel()[~valid] == -1).all()
    np.testing.assert_array_equal(where.patterns, [i for i in range(ny * nx) if valid[i]])
    assert where.paint(np.zeros((valid.sum(), 3)), fill=0).shape == (ny, nx, 3)


@pytest.mark.parametrize(("count", "k"), [(0, ()), (3, ()), (4, (4,)), (12, (3, 40))])
def test_too_few_patterns_are_refused_with_both_numbers(count, k):
    with pytest.raises(InputError, match=rf"\b{count} usable pattern"):
        require_enough(count, k)


def test_enough_patterns_are_accepted():
    require_enough(4, (2, 3))
    require_enough(4, ())


def test_only_valid_rows_are_used():
    values = clouds(6)
    valid = np.array([True, False, True, True, True, True])
    values[1] = np.nan
    found = usable(da.from_array(values, chunks=2), Map(valid, (2, 3)))
    np.testing.assert_array_equal(found.compute(scheduler="synchronous"), values[valid])


def test_transformation_writes_the_whole_spectrum_and_says_how_much_is_used(tmp_path, workers):
    features = clouds()
    features[7] = np.nan
    results = ResultsWriter(tmp_path, {})
    components, m_pca = segmentation.transform(
        da.from_array(features, chunks=(32, 6)),
        PCAConfig(components=2),
        results,
        key="a",
        workers=workers,
        progress=QUIET,
    )
    found = components.compute()
    assert components.shape == (60, 6)
    assert np.isnan(found[7]).all()
    assert results.group["components"].attrs["m_pca"] == m_pca == 2
    rows = np.isfinite(features[:, 0])
    centred = features[rows].astype(np.float64) - features[rows].mean(axis=0, dtype=np.float64)
    # A rotation: distances between patterns are kept.
    np.testing.assert_allclose(found[rows] @ found[rows].T, centred @ centred.T, rtol=1e-3, atol=0.05)
    np.testing.assert_allclose(results.group["explained_variance"][:], found[rows].var(axis=0, ddof=1), rtol=1e-4)
    assert results.group["explained_variance_ratio"][:].sum() == pytest.approx(1)


def scored(samples, folder, workers):
    results = ResultsWriter(folder, {})
    found = segmentation.score(da.from_array(samples, chunks=(20, 6)), CONFIG, results, workers=workers, progress=QUIET)
    stored = {name: results.group[name][...] for name in ("score_k", "silhouette", "calinski_harabasz")}
    return found, stored


def test_scores_suggest_the_number_of_clouds(tmp_path, workers):
    found, stored = scored(clouds(), tmp_path, workers)
    assert found.k == (2, 3, 4, 5)
    assert np.argmax(found.silhouette) == np.argmax(found.calinski_harabasz) == 1
    assert 3 in found.suggested
    np.testing.assert_array_equal(stored["score_k"], found.k)
    np.testing.assert_array_equal(stored["silhouette"], found.silhouette)
    np.testing.assert_array_equal(stored["calinski_harabasz"], found.calinski_harabasz)


def test_repeated_fits_are_stored_and_read_back(tmp_path, workers):
    table = da.from_array(clouds(), chunks=(20, 6))
    results = ResultsWriter(tmp_path, {})
    found = segmentation.score(table, CONFIG, results, workers=workers, progress=QUIET)
    assert [one.k for one in found.repeated] == [2, 3, 4, 5]
    assert all(len(one.silhouette) == len(one.calinski_harabasz) == CONFIG.repeats for one in found.repeated)
    assert found.repeated[1].stability > 0.99 > found.repeated[3].stability
    stored = xr.open_zarr(results.partial, consolidated=False, mask_and_scale=False)
    again = segmentation.read_scores(stored, found.suggested)
    assert again.suggested == found.suggested
    for ours, theirs in zip(found.repeated, again.repeated, strict=True):
        assert (ours.k, ours.stability) == (theirs.k, theirs.stability)
        np.testing.assert_array_equal(ours.silhouette, theirs.silhouette)
        np.testing.assert_array_equal(ours.calinski_harabasz, theirs.calinski_harabasz)


def test_repeated_fits_can_be_left_out(tmp_path, workers):
    table = da.from_array(clouds(), chunks=(20, 6))
    results = ResultsWriter(tmp_path, {})
    config = CONFIG.model_copy(update={"repeats": 0})
    assert segmentation.score(table, config, results, workers=workers, progress=QUIET).repeated == ()
    assert not [name for name in results.group.array_keys() if "draws" in name or name == "stability"]
    stored = xr.open_zarr(results.partial, consolidated=False, mask_and_scale=False)
    assert segmentation.read_scores(stored, ()).repeated == ()


def test_scores_stop_at_the_number_of_distinct_patterns(tmp_path, workers):
    assert scored(np.repeat(clouds(3), 4, axis=0), tmp_path / "three", workers)[0].k == (2,)
    found, stored = scored(np.ones((12, 6), np.float32), tmp_path / "one", workers)
    assert found.k == ()
    assert all(len(values) == 0 for values in stored.values())


def segmented(tmp_path, components, valid, k_values):
    results = ResultsWriter(tmp_path, {})
    where = Map(valid, (6, 10))
    segmentation.segment(da.from_array(components, chunks=(32, 6)), 3, where, k_values, CONFIG, results, progress=QUIET)
    return {name: values[...] for name, values in results.group.arrays()}


@pytest.mark.usefixtures("workers")
def test_segmentation_finds_the_clouds_and_leaves_missing_points_open(tmp_path):
    components = clouds()
    valid = np.arange(60) != 11
    components[11] = np.nan
    found = segmented(tmp_path, components, valid, (3, 5))
    labels = found["labels"].reshape(2, -1)
    assert (labels[:, 11] == -1).all()
    pairs = {(i % 3, label) for i, label in enumerate(labels[0]) if label >= 0}
    assert len(pairs) == 3
    assert np.isnan(found["distance_to_centroid"].reshape(2, -1)[:, 11]).all()
    assert not found["pca_rgb"].reshape(2, 60, 3)[:, 11].any()
    assert (found["delegate"][0, 3:] == -1).all()
    assert np.isnan(found["centroids"][0, 3:]).all()
    for k, delegates, centroids in zip((3, 5), found["delegate"], found["centroids"], strict=True):
        own = labels[0 if k == 3 else 1]
        for cluster in range(k):
            members = np.flatnonzero(own == cluster)
            mean = components[members].mean(axis=0, dtype=np.float64)
            np.testing.assert_allclose(centroids[cluster], mean, atol=1e-4)
            apart = np.linalg.norm((components[members] - mean)[:, :3], axis=1)
            assert delegates[cluster] == members[apart.argmin()]


@pytest.mark.usefixtures("workers")
def test_smoothing_removes_isolated_points_and_says_which_clusters_are_left(tmp_path):
    rng = np.random.default_rng(0)
    left = np.arange(60) % 10 < 5
    components = (left[:, None] * [8.0, 0, 0, 0, 0, 0] + rng.normal(size=(60, 6))).astype(np.float32)
    lonely = np.array([22, 37])
    components[lonely] = [4.0, 7, 0, 0, 0, 0]
    table, where = da.from_array(components, chunks=(32, 6)), Map(np.ones(60, bool), (6, 10))
    found = []
    for weight in (0.0, 1000.0):
        config = CONFIG.model_copy(update={"smoothing": weight})
        results = ResultsWriter(tmp_path / str(weight), {})
        (one,) = segmentation.segment(table, 3, where, (3,), config, results, progress=QUIET)
        found.append(one)
    rough, smooth = found
    assert rough.n_clusters == 3
    assert smooth.n_clusters == 2
    assert (smooth.labels.ravel()[left] == smooth.labels[0, 0]).all()
    assert (smooth.labels.ravel()[~left] == 1 - smooth.labels[0, 0]).all()
    for cluster in range(2):
        members = np.flatnonzero(smooth.labels.ravel() == cluster)
        np.testing.assert_allclose(smooth.centroids[cluster], components[members].mean(axis=0), atol=1e-5)
        assert smooth.delegate[cluster] in members


@pytest.mark.parametrize("sample", [100, 1000])
def test_seeds_of_the_sweep_give_the_segmentation_that_is_found_without_them(tmp_path, sample):
    components = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    table, where = da.from_array(components, chunks=(64, 6)), Map(np.ones(300, bool), (15, 20))
    config = ClusteringConfig(score_k=(2, 4), n_init=2, sample=sample, k=(7, 12))
    results = ResultsWriter(tmp_path, {})
    with dask.config.set(scheduler="threads"):
        found = segmentation.score(table[:, :3], config, results, workers=None, progress=QUIET)
        assert found.k == (2, 3, 4, 7, 12)
        assert set(found.suggested) <= {2, 3, 4}
        # 12 clusters want 120 rows to start from
        assert set(found.seeds) == {2, 3, 4, 7} | ({12} if sample > 300 else set())
        ways = [
            segmentation.segment(table, 3, where, (4, 7, 12), config, results, progress=QUIET, seeds=seeds)
            for seeds in (found.seeds, None)
        ]
    for with_seeds, without in zip(*ways, strict=True):
        np.testing.assert_array_equal(with_seeds.labels, without.labels)


@pytest.mark.usefixtures("workers")
def test_more_clusters_than_distinct_patterns_are_refused(tmp_path):
    same = np.repeat(clouds(3), 20, axis=0)
    with pytest.raises(InputError, match="3 distinct"):
        segmented(tmp_path, same, np.ones(60, bool), (5,))


@pytest.mark.usefixtures("workers")
def test_direct_colouring_is_black_where_nothing_was_recorded(tmp_path):
    components = clouds()
    valid = np.arange(60) > 4
    components[:5] = np.nan
    results = ResultsWriter(tmp_path, {})
    segmentation.write_direct_colouring(da.from_array(components, chunks=(32, 6)), Map(valid, (6, 10)), results)
    colours = np.asarray(zarr.open_array(str(results.partial), path="direct_rgb")).reshape(60, 3)
    assert not colours[:5].any()
    assert colours[5:].any(axis=1).all()
    assert len(np.unique(colours[5:] // 64, axis=0)) >= 3
