"""Faults of the arithmetic: a run goes on with what it can, and says what it could not."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from laue_dask.commands import answers
from laue_dask.errors import ExitCode, InputError
from laue_dask.features import batches
from laue_dask.features import inference as encoder
from laue_dask.pipeline import segmenting, single_scan
from laue_dask.runtime.progress import QuietProgress


@pytest.fixture
def store(small_run, tmp_path):
    return shutil.copytree(small_run / "scan.zarr", tmp_path / "scan.zarr")


def segmented(source, folder, config):
    return single_scan.run(str(source), folder, config, command="test", progress=QuietProgress())


def results(folder):
    return xr.open_zarr(folder / "results.zarr", consolidated=False, mask_and_scale=False)


@pytest.mark.usefixtures("here")
def test_patterns_whose_features_are_no_numbers_are_set_aside(store, tmp_path, quick, monkeypatch, capsys):
    odd, encode = {7: np.nan, 40: np.inf}, encoder.encode_block
    [reduced] = zarr.open_group(store, mode="r")["reduced"].arrays()
    spoilt = {reduced[1][pattern].tobytes(): value for pattern, value in odd.items()}

    def spoiling(patterns, valid, **rest):
        features = encode(patterns, valid, **rest)
        for row, pattern in enumerate(patterns):
            features[row, 3] = spoilt.get(pattern.tobytes(), features[row, 3])
        return features

    monkeypatch.setattr(encoder, "encode_block", spoiling)
    folder = tmp_path / "run"
    record = segmented(store, folder, quick(quality="sample"))
    monkeypatch.undo()
    reason = "its features are not finite numbers"
    assert [(one["pattern"], one["reason"]) for one in record.set_aside] == [(i, reason) for i in odd]
    assert record.n_patterns == 70
    assert answers.answer_run(record, folder) == ExitCode.SET_ASIDE
    assert capsys.readouterr().err.count(reason) == 2
    assert reason in (folder / "report.html").read_text(encoding="utf-8")
    assert json.loads((folder / "run.json").read_text())["n_set_aside"] == 2
    segmenting.segment(folder, {"clustering": {"k": [4]}}, command="segment", progress=QuietProgress())
    for label_map in results(folder)["labels"].values:  # those of `run` and of `segment`
        assert set(np.flatnonzero(label_map.ravel() < 0)) == set(odd)
    components = results(folder)["components"].values
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(components).all(axis=1)), list(odd))


@pytest.mark.usefixtures("here")
def test_a_gpu_without_room_for_a_batch_gets_smaller_ones_and_the_run_says_so(
    store, small_run, tmp_path, quick, monkeypatch, caplog
):
    in_batches, sizes = encoder.in_batches, []

    def crowded(function, *rest):
        def narrow(patterns):
            sizes.append(len(patterns))
            if len(patterns) > 10:
                raise torch.cuda.OutOfMemoryError
            return function(patterns)

        return in_batches(narrow, *rest)

    monkeypatch.setattr(encoder, "in_batches", crowded)
    batches._warn_of_smaller_batch.cache_clear()
    with caplog.at_level(logging.WARNING, "laue_dask"):
        record = segmented(store, tmp_path / "run", quick())
    assert sizes[:3] == [32, 16, 8]
    told = [one.text for one in record.warnings if "out of memory" in one.text]
    assert [f"batches of {size}:" in text for size, text in zip((16, 8), told, strict=True)] == [True, True]
    assert all(text in caplog.messages for text in told)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "batches of 8" in page
    ours, theirs = results(tmp_path / "run"), results(small_run)
    np.testing.assert_allclose(ours["features"].values, theirs["features"].values, atol=1e-4)
    np.testing.assert_array_equal(ours["labels"].sel(k=3).values, theirs["labels"].sel(k=3).values)


def test_what_a_worker_warns_of_is_told_by_the_command(workers, caplog):
    caplog.set_level(logging.WARNING, "laue_dask.features")
    workers.client.submit(batches._warn_of_smaller_batch, "cuda:7", 4, pure=False).result()
    workers.client.submit(int, pure=False).result()
    for _ in range(100):
        if caplog.records:
            break
        workers.client.sync(_moment)
    [record] = caplog.records
    assert record.getMessage().startswith("cuda:7: out of memory; encoding goes on with batches of 4")


async def _moment():
    import asyncio

    await asyncio.sleep(0.05)


@pytest.fixture
def alike(small_scan, tmp_path):
    """Makes a folder of 12 frames, of which so many differ."""

    def make(kinds):
        folder = tmp_path / "alike"
        folder.mkdir()
        files = sorted(small_scan.glob("*.tif"))
        for i in range(12):
            os.link(files[9 * (i % kinds)], folder / f"f_{i:02d}.tif")
        listed = tmp_path / "frames.txt"
        listed.write_text("\n".join(f"alike/f_{i:02d}.tif" for i in range(12)))
        return listed

    return make


@pytest.mark.usefixtures("on_workers")
def test_a_scan_of_one_and_the_same_pattern_is_refused_in_a_line(alike, tmp_path, quick):
    with pytest.raises(InputError, match="all 12 usable patterns have the same features") as told:
        segmented(alike(1), tmp_path / "run", quick(scan={"shape": (3, 4)}, clustering={"k": ()}))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.usefixtures("on_workers")
def test_more_clusters_than_distinct_patterns_are_left_out_and_told(alike, tmp_path, quick):
    config = quick(scan={"shape": (3, 4), "insist": True}, clustering={"k": (2, 3, 5), "score_k": (2, 6)})
    record = segmented(alike(3), tmp_path / "run", config)
    assert record.k == [2, 3]
    [told] = record.warnings
    assert told.subject == "clustering"
    assert told.text == "K = 5: left out, because the 12 usable patterns fall into 3 distinct ones only"
    labels = results(tmp_path / "run")["labels"].sel(k=3).values.ravel()
    assert [len(set(labels[i::3])) for i in range(3)] == [1, 1, 1]
    assert len(set(labels)) == 3
    assert "left out" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    again = segmenting.segment(
        tmp_path / "run", {"clustering": {"k": [2, 7]}}, command="test", progress=QuietProgress()
    )
    assert (again["k"], len(again["warnings"])) == ([2, 3], 1)  # what is there already is kept
    assert again["warnings"][0].startswith("K = 7: left out")
    only = quick(scan={"shape": (3, 4)}, clustering={"k": (7,), "score_k": (9, 9)})
    assert segmented(tmp_path / "run" / "scan.zarr", tmp_path / "other", only).k == [3]
