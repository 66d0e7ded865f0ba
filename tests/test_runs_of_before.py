"""A run that the first commit with users made is opened, verified, segmented and taken over by today's code.

`data/run_of_f105967.tar.xz` was made by `laue-dask run scan --out run --config quick.yaml` of commit f105967: 4 × 6
frames of three simulated grains (seed 1) on a PILATUS 1M binned by 7, `clustering: {score_k: [2, 4], n_init: 2,
repeats: 0, k: [3]}` and `quality: all`.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from laue_dask.io import results
from laue_dask.pipeline import record as records

ARCHIVE = Path(__file__).with_name("data") / "run_of_f105967.tar.xz"


@pytest.fixture
def old_run(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def test_it_is_opened_and_verified(old_run, command):
    assert command("verify", old_run).code == 0
    found = command("info", old_run)
    assert found.code == 0
    assert "3 used" in found.out
    assert json.loads((old_run / "run.json").read_text())["laue_dask"] == "0.1.0"


def test_it_is_segmented_again_and_keeps_what_it_has(old_run, command):
    before = results.read(old_run)["labels"].sel(k=3).values
    found = command("segment", old_run, "-k", 5)
    assert found.code == 0, found.err
    assert "take their place" not in found.err
    after = results.read(old_run)
    assert after["k"].values.tolist() == [3, 5]
    np.testing.assert_array_equal(after["labels"].sel(k=3).values, before)
    assert command("verify", old_run).code == 0


def test_the_same_command_of_a_later_release_keeps_every_stage(old_run, command, monkeypatch):
    monkeypatch.setattr(records, "__version__", "9.9.9")
    config = old_run / "config.yaml"
    found = command("run", old_run / "scan.zarr", "--out", old_run, "--config", config)
    assert found.code == 0, found.err
    record = json.loads((old_run / "run.json").read_text())
    assert record["laue_dask"] == "9.9.9"
    assert set(record["stages"].values()) == {"kept"}
