import dask.array as da
import numpy as np
import xarray as xr

from laue_dask.config import ClusteringConfig
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline.stages import scoring
from laue_dask.runtime.progress import QuietProgress

QUIET = QuietProgress()
CONFIG = ClusteringConfig(score_k=(2, 5), n_init=2)


def clouds(n=60, width=6, seed=0):
    """Points (n, width) of three clouds that are far apart."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, width)) + 40 * np.eye(3, width)[np.arange(n) % 3]).astype(np.float32)


def scored(samples, folder, workers):
    results = ResultsWriter(folder, {})
    found = scoring.score(da.from_array(samples, chunks=(20, 6)), CONFIG, workers=workers, progress=QUIET)
    scoring.write_scores(found, results)
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
    found = scoring.score(table, CONFIG, workers=workers, progress=QUIET)
    scoring.write_scores(found, results)
    assert [one.k for one in found.repeated] == [2, 3, 4, 5]
    assert all(len(one.silhouette) == len(one.calinski_harabasz) == CONFIG.repeats for one in found.repeated)
    assert found.repeated[1].stability > 0.99 > found.repeated[3].stability
    stored = xr.open_zarr(results.partial, consolidated=False, mask_and_scale=False)
    again = scoring.read_scores(stored, found.suggested)
    assert again.suggested == found.suggested
    for ours, theirs in zip(found.repeated, again.repeated, strict=True):
        assert (ours.k, ours.stability) == (theirs.k, theirs.stability)
        np.testing.assert_array_equal(ours.silhouette, theirs.silhouette)
        np.testing.assert_array_equal(ours.calinski_harabasz, theirs.calinski_harabasz)


def test_repeated_fits_can_be_left_out(tmp_path, workers):
    table = da.from_array(clouds(), chunks=(20, 6))
    results = ResultsWriter(tmp_path, {})
    config = CONFIG.model_copy(update={"repeats": 0})
    found = scoring.score(table, config, workers=workers, progress=QUIET)
    assert found.repeated == ()
    scoring.write_scores(found, results)
    assert not [name for name in results.group.array_keys() if "draws" in name or name == "stability"]
    stored = xr.open_zarr(results.partial, consolidated=False, mask_and_scale=False)
    assert scoring.read_scores(stored, ()).repeated == ()


def test_scores_stop_at_the_number_of_distinct_patterns(tmp_path, workers):
    assert scored(np.repeat(clouds(3), 4, axis=0), tmp_path / "three", workers)[0].k == (2,)
    found, stored = scored(np.ones((12, 6), np.float32), tmp_path / "one", workers)
    assert found.k == ()
    assert all(len(values) == 0 for values in stored.values())
