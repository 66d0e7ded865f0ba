"""What looks after runs and simulates scans, through the Python door."""

import json

import numpy as np
import pytest

import laue_dask as ld
from laue_dask.errors import InputError


def test_a_run_is_described_and_verified(run):
    assert "72 patterns" in ld.info(run.path)
    found = ld.verify(run.path, progress=False)
    assert not found.findings
    assert found.lines()[-1].endswith("all of them are as they were written")


def test_what_can_go_is_told_and_then_removed(copied_run):
    left = copied_run.path / "results.zarr.part"
    left.mkdir()
    (left / "half").write_bytes(b"x" * 100)
    told = ld.clean(copied_run.path, dry_run=True)
    assert left in [one.path for one in told]
    assert left.exists()
    assert [one.path for one in ld.clean(copied_run.path)] == [one.path for one in told]
    assert not left.exists()


def test_a_simulated_scan_has_a_truth_of_its_shape(tmp_path, on_workers):
    path = ld.simulate_scan("grains", tmp_path / "frames", shape=(1, 2), seed=3, workers=1, progress=False)
    with np.load(path) as truth:
        assert truth["domain"].shape == (1, 2)
    assert len(list(path.parent.glob("*.tif"))) == 2
    assert json.loads((path.parent / "simulation.json").read_text())["seed"] == 3
    with pytest.raises(InputError, match="grain"):
        ld.simulate_scan("grain", tmp_path / "others", progress=False)


def test_a_night_says_what_it_would_do_and_writes_nothing(tmp_path, small_scan):
    said: list[str] = []
    code = ld.run_nights(small_scan.parent, out=tmp_path / "nights", dry_run=True, say=said.append)
    assert code == 0
    assert any("frames" in line for line in said)
    assert not (tmp_path / "nights").exists()


def test_a_scan_is_watched_to_its_end(tmp_path, small_scan, on_workers, quick):
    said: list[str] = []
    run = ld.watch_scan(
        small_scan, tmp_path / "run", config=quick(), shape=(8, 9), timeout=5, say=said.append, progress=False
    )
    assert run.labels(3).shape == (8, 9)
    assert run.record.command.startswith("laue_dask.watch_scan(")
    with pytest.raises(InputError, match="shape before the scan is measured"):
        ld.watch_scan(small_scan, tmp_path / "other", progress=False)


def test_a_plan_says_what_a_run_would_take(small_scan, tmp_path, quick, monkeypatch):
    from laue_dask.pipeline import planning

    asked = []
    monkeypatch.setattr(planning, "plan_run", lambda *given: (asked.append(given), "planned")[1])
    assert ld.plan(small_scan, tmp_path / "run", quick(), k=5, workers=1) == "planned"
    [(source, out, config)] = asked
    assert (source, out) == (str(small_scan), tmp_path / "run")
    assert (config.clustering.k, config.workers.count) == ((5,), 1)
