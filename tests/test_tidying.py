"""What a run takes on the disk is told by part, and what nothing needs is removed without harm."""

import shutil

import pytest

from laue_dask import tidying
from laue_dask.errors import InputError
from laue_dask.io.scan_store import ScanStore
from laue_dask.progress import QuietProgress
from laue_dask.room import size
from laue_dask.verify import verify


@pytest.fixture
def run(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "run")


def used(run):
    return list(ScanStore.open(run / "scan.zarr").recipes())


def test_parts_add_up_to_what_lies_there(run):
    found = tidying.parts(run)
    assert sum(found.values()) == size(run)
    assert {"frames", "features", "other results", "figures and report"} <= set(found)
    assert sum(tidying.parts(run / "scan.zarr").values()) == size(run / "scan.zarr")


def test_left_overs_and_unused_recipes_go_and_the_run_verifies(run, command):
    store = ScanStore.open(run / "scan.zarr")
    array = store.create_reduced("0123456789abcdef", 8, {"version": 1})
    assert array is not None
    (run / "results.zarr.part").mkdir()
    (run / "results.zarr.part" / "x").write_bytes(bytes(1000))
    (run / "cluster").mkdir()
    (run / "cluster" / "job.out").write_text("printed by a job")
    dry = command("clean", run, "--dry-run")
    assert dry.code == 0
    assert "would be removed" in dry.out
    assert (run / "results.zarr.part").exists()
    done = command("clean", run)
    assert done.code == 0, done.err
    assert done.out.splitlines()[:-1] == dry.out.splitlines()[:-1]
    assert not (run / "results.zarr.part").exists()
    assert not (run / "cluster").exists()
    assert "0123456789abcdef" not in used(run)
    assert verify(run, progress=QuietProgress()).findings == []
    assert command("clean", run).out == "nothing to remove\n"


def features_of(run):
    files = (run / "results.zarr" / "features" / "c").rglob("*")
    return {path.relative_to(run): path.read_bytes() for path in files if path.is_file()}


def test_reduced_patterns_are_made_again_by_run(run, command, tmp_path):
    before = features_of(run)
    done = command("clean", run, "--reduced")
    assert done.code == 0, done.err
    assert used(run) == []
    assert verify(run, progress=QuietProgress()).findings == []
    again = command("run", run / "scan.zarr", "--out", tmp_path / "again", "--config", run / "config.yaml")
    assert again.code == 0, again.err
    assert len(used(run)) == 1
    assert features_of(tmp_path / "again") == before
    assert verify(run, progress=QuietProgress()).findings == []


def test_what_is_no_finished_run_is_refused_and_left_alone(tmp_path, command):
    (tmp_path / "a.part").write_text("somebody's")
    refused = command("clean", tmp_path)
    assert refused.code == 2
    assert "no finished run" in refused.complaints[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.part"]


def test_the_last_of_the_frames_is_not_removed(run, monkeypatch):
    monkeypatch.setattr(ScanStore, "has_frames", False)
    monkeypatch.setattr(tidying.os.path, "exists", lambda path: False)
    with pytest.raises(InputError, match="reduced patterns are the last of them and stay"):
        tidying.removable(run, reduced=True)


def test_info_says_what_each_part_takes(run, command):
    said = command("info", run).out
    assert "on the disk     " in said
    assert "frames " in said
    assert "on the disk     " in command("info", run / "scan.zarr").out
