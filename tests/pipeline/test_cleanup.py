"""What a run takes on the disk is told by part, and what nothing needs is removed without harm."""

import shutil

import pytest

from laue_dask.errors import BusyError, InputError
from laue_dask.io.lock import locked_store
from laue_dask.io.receipts import RUN_RECEIPTS_FILE, Receipts
from laue_dask.io.scan_store import ScanStore
from laue_dask.io.source_identity import UNKNOWN_STAMP
from laue_dask.pipeline import cleanup
from laue_dask.pipeline.disk_space import bytes_on_disk
from laue_dask.pipeline.stages import changed_frames
from laue_dask.pipeline.verify import verify
from laue_dask.runtime.progress import QuietProgress

LEFT_OVER = [
    *("run.json.part", "run.json.withdrawn", "results.zarr.part", "results.zarr.segment.part", "results.zarr.copy"),
    *("results.zarr.old", "scan.zarr.part", "scan.zarr.old", "pixels.safetensors.part"),
    ".report.html.1234-0a1b2c3d.partial",
]


@pytest.fixture
def run(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "run")


def used(run):
    return list(ScanStore.open(run / "scan.zarr").recipes())


def test_parts_add_up_to_what_lies_there(run):
    found = cleanup.disk_usage(run)
    assert sum(found.values()) == bytes_on_disk(run)
    assert {"frames", "features", "other results", "figures and report"} <= set(found)
    assert sum(cleanup.disk_usage(run / "scan.zarr").values()) == bytes_on_disk(run / "scan.zarr")


def test_left_overs_and_unused_recipes_go_and_the_run_verifies(run, command):
    store = ScanStore.open(run / "scan.zarr")
    array = store.create_reduced("0123456789abcdef", 8, {"version": 1})
    assert array is not None
    (run / "results.zarr.part").mkdir()
    (run / "results.zarr.part" / "x").write_bytes(bytes(1000))
    (run / "cluster").mkdir()
    (run / "cluster" / "job.out").write_text("printed by a job")
    (run / "cluster" / "state.json").write_text("{}")
    (run / "cluster" / "credentials").mkdir()
    (run / "cluster" / "credentials" / "key.pem").write_text("secret")
    Receipts.read(run, RUN_RECEIPTS_FILE).joined(Receipts.of(run, ["cluster/state.json"])).write(RUN_RECEIPTS_FILE)
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
    assert command("clean", run).out == "there is nothing to remove\n"


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


@pytest.mark.parametrize("name", ["notes.old", "thesis.copy", "config.yaml.old", "mine.part", "results.zarr.copy.old"])
def test_what_somebody_keeps_in_the_folder_stays(run, name):
    (run / name).mkdir()
    (run / name / "mine.txt").write_text("mine")
    (run / "cluster" / "mine").mkdir(parents=True)
    (run / "cluster" / "mine" / "notes.txt").write_text("mine")
    (run / "cluster" / "job.out").write_text("printed by a job")
    assert [one.path.name for one in cleanup.clean(run)] == ["cluster"]
    assert (run / name / "mine.txt").read_text() == "mine"
    assert [path.name for path in (run / "cluster").iterdir()] == ["mine"]


@pytest.mark.parametrize("name", LEFT_OVER)
def test_what_commands_that_were_killed_leave_goes(run, name):
    (run / name).write_text("begun")
    assert [one.path.name for one in cleanup.clean(run)] == [name]
    assert not (run / name).exists()


def test_old_results_stay_while_the_new_ones_are_not_there(run):
    (run / "results.zarr").rename(run / "results.zarr.old")
    assert cleanup.removable(run) == []


def test_a_store_that_another_command_writes_into_is_left_alone(run):
    with locked_store(run / "scan.zarr", "reduce"), pytest.raises(BusyError, match="in use by"):
        cleanup.clean(run, reduced=True)
    assert len(used(run)) == 1


def without_frames(store, monkeypatch):
    """A store that has no frames, as far as `tidying` sees."""
    monkeypatch.setattr(ScanStore, "has_frames", False)
    return changed_frames.sources_of(store)


def test_the_last_of_the_frames_is_not_removed(run, monkeypatch):
    read = without_frames(ScanStore.open(run / "scan.zarr"), monkeypatch)
    monkeypatch.setattr(changed_frames, "stamps_of", lambda refs: [UNKNOWN_STAMP for _ in refs])
    with pytest.raises(
        InputError, match=rf"{len(read)} of {len(read)} frames are gone .* reduced patterns are the last"
    ):
        cleanup.removable(run, reduced=True)


def test_reduced_patterns_of_frames_that_changed_are_not_removed(run, monkeypatch):
    read = without_frames(ScanStore.open(run / "scan.zarr"), monkeypatch)
    now = [one.stamp for one in read]
    now[5] = now[5]._replace(time=now[5].time + 1)
    monkeypatch.setattr(changed_frames, "stamps_of", lambda refs: now)
    assert [one.path.parent.name for one in cleanup.removable(run, reduced=True)] == ["reduced"]  # a copy
    monkeypatch.setattr(changed_frames, "difference", lambda *_, **__: "other pixels")
    with pytest.raises(InputError, match=r"1 of .* frames changed .* reduced patterns are the last copy and stay"):
        cleanup.removable(run, reduced=True)


def test_info_says_what_each_part_takes(run, command):
    said = command("info", run).out
    assert "on the disk     " in said
    assert "frames " in said
    assert "on the disk     " in command("info", run / "scan.zarr").out
