"""The same bits from threads and processes, one worker or four, and blocks of any size."""

import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import zarr
from distributed import Client

from laue_dask.compute import cluster
from laue_dask.compute.cluster import Workers
from laue_dask.pipeline import segmenting, single_scan
from laue_dask.pipeline.stages import reduction
from laue_dask.runtime.progress import QuietProgress


@pytest.mark.parametrize(("count", "threads", "block"), [(1, 1, 8), (4, 1, 24), (1, 4, 72)])
def test_results_do_not_depend_on_workers_threads_or_blocks(
    small_run, tmp_path, quick, monkeypatch, count, threads, block
):
    """`small_run` is of two processes and blocks of 32 patterns."""

    @contextmanager
    def running(config, **_):
        with Client(
            processes=False, n_workers=count, threads_per_worker=threads, dashboard_address="127.0.0.1:0"
        ) as client:
            yield Workers(client=client, count=count, gpu=None, described="here")

    monkeypatch.setattr(cluster, "start", running)
    monkeypatch.setattr(reduction, "block_size", lambda n: block)
    monkeypatch.setattr(segmenting, "report", lambda *args, **kwargs: None)
    store = shutil.copytree(small_run / "scan.zarr", tmp_path / "scan.zarr")
    shutil.rmtree(store / "reduced")
    config = quick(quality="all")
    single_scan.run(str(store), tmp_path / "run", config, command="test", progress=QuietProgress())
    ours, theirs = (zarr.open_group(folder / "results.zarr", mode="r") for folder in (tmp_path / "run", small_run))
    assert ours["features"].chunks[0] == block
    assert theirs["features"].chunks[0] == 32
    assert set(ours.array_keys()) == set(theirs.array_keys())
    for name in theirs.array_keys():
        assert np.asarray(ours[name]).tobytes() == np.asarray(theirs[name]).tobytes(), name
    for name in ("grains.csv", "delegates.csv", "regions.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (small_run / name).read_bytes()
