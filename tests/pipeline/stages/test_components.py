import dask.array as da
import numpy as np
import pytest

from laue_dask.config import ClusteringConfig, PCAConfig
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline.reuse import Output
from laue_dask.pipeline.stages.components import transform
from laue_dask.runtime.progress import QuietProgress

QUIET = QuietProgress()
CONFIG = ClusteringConfig(score_k=(2, 5), n_init=2)


def clouds(n=60, width=6, seed=0):
    """Points (n, width) of three clouds that are far apart."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, width)) + 40 * np.eye(3, width)[np.arange(n) % 3]).astype(np.float32)


def test_transformation_writes_the_whole_spectrum_and_says_how_much_is_used(tmp_path, workers):
    features = clouds()
    features[7] = np.nan
    results = ResultsWriter(tmp_path, {})
    components, m_pca = transform(
        da.from_array(features, chunks=(32, 6)),
        PCAConfig(components=2),
        results,
        Output.of_key("a"),
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
