import dask.array as da
import numpy as np
import pytest
import zarr

from laue_dask.config import ClusteringConfig
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.pipeline.stages.tables import Table, write_direct_colouring
from laue_dask.runtime.progress import QuietProgress

QUIET = QuietProgress()
CONFIG = ClusteringConfig(score_k=(2, 5), n_init=2)


def clouds(n=60, width=6, seed=0):
    """Points (n, width) of three clouds that are far apart."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, width)) + 40 * np.eye(3, width)[np.arange(n) % 3]).astype(np.float32)


@pytest.mark.usefixtures("workers")
def test_direct_colouring_is_black_where_nothing_was_recorded(tmp_path):
    components = clouds()
    valid = np.arange(60) > 4
    components[:5] = np.nan
    results = ResultsWriter(tmp_path, {})
    write_direct_colouring([Table(da.from_array(components, chunks=(32, 6)), SpecimenMap(valid, (6, 10)), results)])
    colours = np.asarray(zarr.open_array(str(results.partial), path="direct_rgb")).reshape(60, 3)
    assert not colours[:5].any()
    assert colours[5:].any(axis=1).all()
    assert len(np.unique(colours[5:] // 64, axis=0)) >= 3
