import dask
import dask.array as da
import numpy as np
import pytest

from laue_dask.config import ClusteringConfig, Recipe
from laue_dask.errors import InputError
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline.stages import scoring, segmentation
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.pipeline.stages.tables import Table
from laue_dask.runtime.progress import QuietProgress

QUIET = QuietProgress()
CONFIG = ClusteringConfig(score_k=(2, 5), n_init=2)


def clouds(n=60, width=6, seed=0):
    """Points (n, width) of three clouds that are far apart."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, width)) + 40 * np.eye(3, width)[np.arange(n) % 3]).astype(np.float32)


def segmented(tmp_path, components, valid, k_values):
    results = ResultsWriter(tmp_path, {})
    where = SpecimenMap(valid, (6, 10))
    table = Table(da.from_array(components, chunks=(32, 6)), where, results)
    segmentation.segment([table], 3, k_values, CONFIG, Recipe(), progress=QUIET)
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
    table, where = da.from_array(components, chunks=(32, 6)), SpecimenMap(np.ones(60, bool), (6, 10))
    found = []
    for weight in (0.0, 1000.0):
        config = CONFIG.model_copy(update={"smoothing": weight})
        results = ResultsWriter(tmp_path / str(weight), {})
        [[one]] = segmentation.segment([Table(table, where, results)], 3, (3,), config, Recipe(), progress=QUIET)
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
    table, where = da.from_array(components, chunks=(64, 6)), SpecimenMap(np.ones(300, bool), (15, 20))
    config = ClusteringConfig(score_k=(2, 4), n_init=2, sample=sample, k=(7, 12))
    results = ResultsWriter(tmp_path, {})
    with dask.config.set(scheduler="threads"):
        found = scoring.score(table[:, :3], config, workers=None, progress=QUIET)
        assert found.k == (2, 3, 4, 7, 12)
        assert set(found.suggested) <= {2, 3, 4}
        # 12 clusters want 120 rows to start from
        assert set(found.seeds) == {2, 3, 4, 7} | ({12} if sample > 300 else set())
        ways = [
            segmentation.segment(
                [Table(table, where, results)], 3, (4, 7, 12), config, Recipe(), progress=QUIET, seeds=seeds
            )[0]
            for seeds in (found.seeds, None)
        ]
    for with_seeds, without in zip(*ways, strict=True):
        np.testing.assert_array_equal(with_seeds.labels, without.labels)


@pytest.mark.usefixtures("workers")
def test_more_clusters_than_distinct_patterns_are_refused(tmp_path):
    same = np.repeat(clouds(3), 20, axis=0)
    with pytest.raises(InputError, match="3 distinct"):
        segmented(tmp_path, same, np.ones(60, bool), (5,))
