import itertools
import json
import logging
import random
import shutil
import sys
from pathlib import Path

import pytest

from laue_dask.errors import LaueDaskError
from laue_dask.features import weights
from laue_dask.io import results as io_results
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import record as records
from laue_dask.pipeline import single_scan, verify
from laue_dask.runtime.progress import QuietProgress

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import chaos

QUIET = QuietProgress()


@pytest.fixture
def run(small_run, tmp_path):
    """A copy of a finished run, with its scan store."""
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    return folder


def objects(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_finished_run_is_as_it_was_written(small_run, command):
    outcome = command("verify", small_run)
    assert outcome.code == 0
    assert outcome.out.endswith("objects, all of them are as they were written\n")
    assert len(outcome.out.splitlines()) == 1
    chaos.read_all(small_run)


def test_commands_on_a_finished_run_say_first_what_its_grid_is(run, command, tmp_path, caplog):
    line = records.read(run)["grid"]["line"]
    assert line.startswith("grid: ")
    caplog.set_level(logging.INFO, logger="laue_dask")
    # The last two are refused after they said on what they work.
    refused = ("segment", run, "-k", "100000"), ("evaluate", run, "--truth", tmp_path / "none.npz")
    for arguments, code in ((("verify", run), 0), (refused[0], 2), (refused[1], 2)):
        caplog.clear()
        assert command(*arguments).code == code
        assert caplog.messages[0] == line


def test_a_record_that_tells_no_grid_is_no_obstacle(run, monkeypatch, caplog):
    record = records.read(run)
    caplog.set_level(logging.INFO, logger="laue_dask")
    for grid in ({}, None, {"line": 3}):
        monkeypatch.setattr(records, "read", lambda *_, grid=grid, **__: {**record, "grid": grid})
        assert not verify.verify(run, progress=QUIET).findings
    assert not caplog.messages


def test_every_object_is_held_against_a_receipt(small_run):
    found = verify.verify(small_run, progress=QUIET)
    # but for the three receipts themselves, and the record, which have their own checksum in them
    assert found.objects == len(objects(small_run)) - 5


def test_damage_of_any_object_is_found_by_verify_and_by_reading(run):
    files = objects(run)
    rng = random.Random(7)  # noqa: S311  not for secrets
    for _ in range(60):
        path, how, before = chaos.damage(files, rng)
        findings = verify.verify(run, progress=QUIET).findings
        assert findings, f"{path} {how}"
        assert all("\n" not in str(finding) for finding in findings)
        with pytest.raises(LaueDaskError) as caught:
            chaos.read_all(run)
        assert "\n" not in str(caught.value)
        for damaged, content in before.items():
            damaged.write_bytes(content)
    assert not verify.verify(run, progress=QUIET).findings
    chaos.read_all(run)


def test_arrays_of_one_size_that_change_places_are_found(run):
    """Each has its CRC-32C behind it, so that the CRC-32C of the whole is the same number for all of them."""
    sizes = {}
    for path in (run / "results.zarr").glob("*/c/**/*"):
        if path.is_file() and path.relative_to(run / "results.zarr").parts[0] not in ("features", "components"):
            sizes.setdefault(path.stat().st_size, []).append(path)
    pairs = [
        (a, b) for alike in sizes.values() for a, b in itertools.pairwise(alike) if a.read_bytes() != b.read_bytes()
    ]
    assert pairs
    for pair in pairs:
        before = [path.read_bytes() for path in pair]
        for path, content in zip(pair, before[::-1], strict=True):
            path.write_bytes(content)
        assert {finding.path for finding in verify.verify(run, progress=QUIET).findings} == set(pair)
        for path, content in zip(pair, before, strict=True):
            path.write_bytes(content)


@pytest.mark.parametrize("cut", [False, True], ids=["gone", "cut"])
@pytest.mark.parametrize(
    "name",
    [
        "results.zarr/zarr.json",
        "results.zarr/features/zarr.json",
        "results.zarr/labels/zarr.json",
        "results.zarr/silhouette/zarr.json",
        "results.zarr/reconstruction_error/zarr.json",
        "scan.zarr/reduced/zarr.json",
    ],
)
@pytest.mark.usefixtures("here")
def test_what_describes_arrays_is_made_again_by_a_run(run, small_run, small_scan, quick, name, cut):
    path = run / name
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    if not cut:
        path.unlink()
    assert verify.verify(run, progress=QUIET).findings
    single_scan.run(str(small_scan), run, quick(quality="all"), command="test", progress=QUIET)
    assert not verify.verify(run, progress=QUIET).findings
    chaos.read_all(run)
    ours, theirs = (io_results.read(folder) for folder in (run, small_run))
    for variable in theirs.variables:
        assert ours[variable].values.tobytes() == theirs[variable].values.tobytes(), variable


def test_what_is_damaged_is_listed_with_what_to_do_and_exit_code_1(run, command):
    shard = run / "scan.zarr" / "frames" / "c" / "1" / "0" / "0"
    shard.unlink()
    (run / "plots" / "scores.png").write_bytes(b"x")
    (run / "notes.txt").write_text("mine")
    outcome = command("verify", run)
    assert outcome.code == 1
    lines = outcome.out.splitlines()
    assert (
        f"{shard}: is missing: remove {run / 'scan.zarr'}, then the same `laue-dask run` command makes it again"
        in outcome.out
    )
    assert f"{run / 'plots' / 'scores.png'}: has 1 bytes" in outcome.out
    assert f"{run / 'notes.txt'}: was not written by laue-dask" in lines
    assert lines[-1].endswith("2 damaged")


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:100] + bytes([content[100] ^ 16]) + content[101:], lambda content: content[:-9]],
    ids=["bit", "cut"],
)
@pytest.mark.parametrize("name", ["reduced", "features", "components"])
@pytest.mark.usefixtures("on_workers")
def test_a_damaged_block_is_made_again_by_a_run(run, small_scan, quick, name, damage):
    arrays = {path.parent.name: path.parent for path in run.rglob("journal.jsonl")}
    array = next(path for key, path in arrays.items() if key == name or path.parent.name == name)
    block = sorted(path for path in (array / "c").rglob("*") if path.is_file())[1]
    before = block.read_bytes()
    block.write_bytes(damage(before))
    untouched = {path: path.stat().st_mtime_ns for path in block.parent.parent.rglob("*") if path.is_file()}
    assert [finding.path for finding in verify.verify(run, progress=QUIET).findings] == [block]
    single_scan.run(str(small_scan), run, quick(quality="all"), command="test", progress=QUIET)
    assert block.read_bytes() == before
    assert not verify.verify(run, progress=QUIET).findings
    if name == "reduced":
        again = {path for path, time in untouched.items() if path.stat().st_mtime_ns != time}
        assert again == {block}


def test_a_run_without_its_record_is_a_damaged_one(run, command):
    (run / "run.json").unlink()
    outcome = command("verify", run)
    assert outcome.code == 1
    assert "run.json: is missing" in outcome.out


def test_a_run_killed_just_before_its_first_record_is_no_damaged_one(run, command, monkeypatch):
    record = records.read(run)
    records.remove(run)

    def kill(path, content):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records, "write_atomically", kill)
        with pytest.raises(KeyboardInterrupt):
            records.write(run, record)
    assert (run / "receipts.json").exists()
    assert not (run / "run.json").exists()
    outcome = command("verify", run)
    assert outcome.code == 0, outcome.out
    assert "not finished" in outcome.out
    assert "not written by laue-dask" not in outcome.out
    records.write(run, record)
    assert command("verify", run).code == 0
    (run / "run.json").unlink()
    assert command("verify", run).code == 1


def test_an_unfinished_run_is_no_damaged_one(run, command, monkeypatch):
    def killed(path, **_):
        if path.name == records.RUN_RECEIPTS_FILE:
            raise KeyboardInterrupt
        return unlink(path, missing_ok=True)

    unlink = Path.unlink
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            records.remove(run)
    assert command("verify", run).code == 0
    records.remove(run)
    (run / "results.zarr").rename(run / "results.zarr.part")
    outcome = command("verify", run)
    assert outcome.code == 0
    assert "the run is not finished: the same `laue-dask run` command goes on" in outcome.out


def test_a_store_and_results_can_be_checked_by_themselves(run, command):
    for name in ("scan.zarr", "results.zarr"):
        assert command("verify", run / name).code == 0
    (run / "results.zarr" / "labels" / "c" / "0" / "0" / "0").unlink()
    assert command("verify", run / "results.zarr").code == 1


def test_weights_have_a_checksum(tmp_path, command):
    content = weights.DEFAULT_WEIGHTS_FILE.read_bytes()
    assert command("verify", weights.DEFAULT_WEIGHTS_FILE).code == 0
    rng = random.Random(3)  # noqa: S311
    for place in [3, 20, 400, *(rng.randrange(len(content)) for _ in range(10))]:
        path = tmp_path / "w.safetensors"
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        outcome = command("verify", path)
        assert outcome.code == 1, place
        assert command("run", tmp_path, "--out", tmp_path / "r", "--weights", path).code == 2


def test_what_is_none_of_ours_is_refused(tmp_path, command):
    (tmp_path / "a.txt").write_text("text")
    for path in (tmp_path, tmp_path / "a.txt", tmp_path / "gone"):
        outcome = command("verify", path)
        assert outcome.code == 2
        assert len(outcome.complaints) == 1


def test_a_record_that_was_changed_is_refused(run, command):
    path = run / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "m_pca": record["m_pca"] + 1}))
    assert "its checksum differs" in command("segment", run, "-k", "4").err
    assert command("verify", run).code == 1


def test_a_shard_of_another_place_is_refused(run):
    store = ScanStore.open(run / "scan.zarr")
    shards = sorted(path for path in (run / "scan.zarr" / "frames" / "c").rglob("*") if path.is_file())
    first, second = shards[0].read_bytes(), shards[1].read_bytes()
    shards[0].write_bytes(second)
    shards[1].write_bytes(first)
    for start in (0, store.shard_frames):
        with pytest.raises(LaueDaskError, match="is not the file that was written"):
            store.read_frames(start, start + 1)


def test_a_shard_without_a_receipt_is_refused(run):
    store = ScanStore.open(run / "scan.zarr")
    store.root.attrs["seals"] = []
    with pytest.raises(LaueDaskError, match="has no receipt"):
        ScanStore(run / "scan.zarr").read_frames(0, 1)
