"""What people get wrong: one line on stderr, the right exit code, and nothing left behind."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
import zarr
from fabio.edfimage import EdfImage
from PIL import Image

from laue_dask.io.frames import discover
from laue_dask.io.lock import locked_store
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import record as records
from laue_dask.pipeline.stages import ingest

FAILED, BAD_INPUT, SET_ASIDE = 1, 2, 3


@pytest.fixture
def refused(command):
    """Run a command that must be refused in one line, and give back that line."""

    def run(*arguments, code=BAD_INPUT, mentions=()):
        outcome = command(*arguments)
        assert outcome.code == code, outcome.err
        [line] = outcome.complaints
        assert line.startswith("laue-dask: ")
        assert "Traceback" not in outcome.err + outcome.out
        assert "a defect" not in line
        assert not outcome.out
        for text in (mentions,) if isinstance(mentions, str) else mentions:
            assert text in line
        return line

    return run


@pytest.fixture
def frames(small_scan, tmp_path):
    """A folder of 12 frames that a test may spoil; their headers do not tell where the stage was."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for path in sorted(small_scan.glob("*.tif"))[:12]:
        (folder / path.name).write_bytes(path.read_bytes().replace(b"# Comment", b"# Remarks"))
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def tiff(path, values):
    Image.fromarray(values).save(path)


def counts(shape=(160, 150), dtype=np.int32, seed=0):
    return np.random.default_rng(seed).poisson(3, shape).astype(dtype)


def options(out):
    return ("--out", out, "--weights", "untrained", "--shape", 3, 4)


# Sources


@pytest.mark.parametrize("verb", ["run", "ingest"])
@pytest.mark.parametrize(
    ("source", "mentions"),
    [
        ("empty", "no frames in it"),
        ("nowhere", "there is no such file or folder"),
        ("nowhere/*.tif", "no file matches"),
        ("nowhere.h5::/entry/data", "no such file"),
        ("notes.bin", "neither a frame"),
        ("list.txt", "none of its 2 files is there"),
        ("blank.txt", "the list names no frames"),
        ("broken.h5", "truncated or unreadable HDF5"),
        ("table.h5", "no dataset of frames"),
        ("loop", "loop"),
    ],
)
def test_source_that_holds_no_frames_is_refused(refused, tmp_path, verb, source, mentions):
    there = tmp_path / "there"
    (there / "empty").mkdir(parents=True)
    (there / "notes.bin").write_bytes(bytes(range(256)))
    (there / "list.txt").write_text("a.tif\nb.tif\n")
    (there / "blank.txt").write_text("# nothing yet\n")
    (there / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with h5py.File(there / "table.h5", "w") as file:
        file["entry/data/numbers"] = np.arange(5)
    (there / "loop").symlink_to(there / "loop")
    out = tmp_path / "out"
    arguments = options(out) if verb == "run" else (out,)
    refused(verb, there / source, *arguments, mentions=mentions)
    assert names(tmp_path) == ["there"]


def test_several_kinds_of_frames_in_one_folder_are_refused(refused, frames, tmp_path):
    (frames / "dark.edf").write_bytes(b"{}")
    refused("run", frames, *options(tmp_path / "run"), mentions=("12 .tif", "1 .edf"))
    assert names(tmp_path) == ["frames"]


def test_frames_that_are_all_cut_off_are_refused(refused, frames, tmp_path):
    for path in frames.iterdir():
        cut(path)
    refused("run", frames, *options(tmp_path / "run"), mentions=("none of 12 frames", "truncated"))
    refused("ingest", frames, tmp_path / "s.zarr", mentions="none of 12 frames")
    assert names(tmp_path) == ["frames"]


def test_frames_that_are_all_zero_are_refused(refused, tmp_path):
    folder = tmp_path / "dark"
    folder.mkdir()
    for i in range(6):
        tiff(folder / f"dark_{i}.tif", np.zeros((160, 150), np.int32))
    arguments = ("--weights", "untrained", "--shape", 2, 3)
    refused("run", folder, "--out", tmp_path / "run", *arguments, mentions=("none of 6", "all pixels are zero"))
    refused("ingest", folder, tmp_path / "s.zarr", "--shape", 2, 3, mentions=("none of 6", "dark_0.tif"))
    assert names(tmp_path) == ["dark"]


def test_frames_smaller_than_a_pattern_are_refused(refused, tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    for i in range(4):
        tiff(folder / f"tiny_{i}.tif", counts((100, 90), seed=i))
    refused("run", folder, "--out", tmp_path / "run", "--weights", "untrained", mentions=("100 × 90", "128"), code=2)
    assert names(tmp_path) == ["tiny"]


def test_frames_without_grid_name_shapes_that_would_fit(refused, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    for i in range(6):
        tiff(folder / f"bare_{i}.tif", counts(seed=i))
    for arguments in (
        ("run", folder, "--out", tmp_path / "run", "--weights", "untrained"),
        ("ingest", folder, tmp_path / "s.zarr"),
    ):
        refused(*arguments, mentions=("--shape NY NX", "2 × 3", "1 × 6"))
    assert names(tmp_path) == ["bare"]


def test_wrong_shape_is_answered_with_the_right_one(refused, frames, tmp_path):
    out = tmp_path / "run"
    line = refused("run", frames, "--out", out, "--weights", "untrained", "--shape", 3, 3, mentions="12 frames")
    assert re.search(r"did you mean (\d+) × (\d+)", line)
    ny, nx = map(int, re.search(r"did you mean (\d+) × (\d+)", line).groups())
    assert ny * nx >= 12
    assert names(tmp_path) == ["frames"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_patterns_to_segment_are_refused_and_nothing_is_written(refused, frames, tmp_path, count):
    for path in sorted(frames.iterdir())[count:]:
        path.unlink()
    refused(
        "run", frames, "--out", tmp_path / "run", "--weights", "untrained", mentions=(f"{count} usable", "at least 4")
    )
    assert names(tmp_path) == ["frames"]


def test_too_few_usable_patterns_are_refused_once_the_frames_were_read(refused, frames, tmp_path):
    for path in sorted(frames.iterdir())[3:]:
        cut(path)
    refused("run", frames, *options(tmp_path / "run"), mentions=("3 usable", "at least 4"))
    assert names(tmp_path) == ["frames"]


def test_more_clusters_than_patterns_are_refused_before_anything_is_written(refused, frames, tmp_path):
    refused("run", frames, *options(tmp_path / "run"), "-k", 40, mentions=("40", "12"))
    assert names(tmp_path) == ["frames"]


def test_four_patterns_are_segmented(command, frames, tmp_path):
    for path in sorted(frames.iterdir())[4:]:
        path.unlink()
    outcome = command("run", frames, "--out", tmp_path / "run", "--weights", "untrained", "-k", 2, "--shape", 1, 4)
    assert outcome.code == 0, outcome.err
    assert outcome.complaints == []
    assert (tmp_path / "run" / "report.html").is_file()


# Frames to set aside


def test_bad_frames_among_good_ones_are_set_aside_and_listed_everywhere(command, frames, tmp_path):
    files = sorted(frames.iterdir())
    cut(files[2])
    files[5].write_bytes(b"")
    tiff(files[7], counts((100, 90)))
    Image.fromarray(np.zeros((260, 245), np.int32)).save(files[9])
    outcome = command("run", frames, *options(tmp_path / "run"), "-k", 2)
    assert outcome.code == SET_ASIDE
    assert outcome.complaints == []
    listed = [line for line in outcome.err.splitlines() if line.startswith("set aside: ")]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    labels = zarr.open_group(tmp_path / "run" / "results.zarr", mode="r")["labels"][:]
    reasons = {2: "truncated", 5: "empty", 7: "shape (100, 90)", 9: "zero"}
    assert len(listed) == record["n_set_aside"] == len(reasons)
    for (pattern, reason), line, entry in zip(reasons.items(), listed, record["set_aside"], strict=True):
        assert f"pattern {pattern}, {files[pattern]}: " in line
        assert reason in line
        assert entry["pattern"] == pattern
        assert entry["source"] == str(files[pattern])
        assert reason in entry["reason"]
        assert files[pattern].name in page
    expected = np.isin(np.arange(12), list(reasons)).reshape(3, 4)
    for label_map in labels:
        np.testing.assert_array_equal(label_map == -1, expected)


def test_minority_of_another_shape_or_dtype_is_set_aside(command, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i in range(9):
        values = counts((140, 150)) if i == 0 else counts(dtype=np.uint16) if i == 4 else counts(seed=i)
        tiff(folder / f"mixed_{i}.tif", values)
    outcome = command("ingest", folder, tmp_path / "s.zarr", "--shape", 3, 3)
    assert outcome.code == SET_ASIDE
    store = ScanStore.open(tmp_path / "s.zarr")
    assert store.frame_shape == (160, 150)
    assert store.dtype == np.int32
    assert [entry["pattern"] for entry in store.set_aside] == [0, 4]
    assert "shape (140, 150), the scan's is (160, 150)" in outcome.err
    assert "dtype uint16" in outcome.err


@pytest.fixture
def floats():
    """Eight frames of floating point with a spot; one of them holds pixels that are not numbers, one nothing else."""
    frames = counts((8, 160, 150), dtype=np.float32)
    frames[:, 80:83, 70:73] += np.arange(50, 130, 10, dtype=np.float32)[:, None, None]
    frames[1, 10:40] = np.nan
    frames[6] = np.nan
    return frames


def test_pixels_that_are_not_numbers_are_left_out_and_frames_of_them_set_aside(command, floats, tmp_path):
    with h5py.File(tmp_path / "floats.h5", "w") as file:
        file["entry/data/data"] = floats
    arguments = ("--out", tmp_path / "run", "--weights", "untrained", "--shape", 2, 4, "-k", 2)
    outcome = command("run", tmp_path / "floats.h5", *arguments)
    assert outcome.code == SET_ASIDE, outcome.err
    assert outcome.complaints == []
    assert "set aside: pattern 6, " in outcome.err
    assert "no finite pixel" in outcome.err
    results = zarr.open_group(tmp_path / "run" / "results.zarr", mode="r")
    usable = np.arange(8) != 6
    np.testing.assert_array_equal(np.isfinite(results["features"][:]).all(axis=1), usable)
    np.testing.assert_array_equal(results["labels"][0].ravel() >= 0, usable)


def test_edf_frame_without_a_number_is_set_aside(command, floats, tmp_path):
    (tmp_path / "floats").mkdir()
    for i, frame in enumerate(floats):
        EdfImage(data=frame).write(str(tmp_path / "floats" / f"f_{i}.edf"))
    outcome = command("ingest", tmp_path / "floats", tmp_path / "s.zarr", "--shape", 2, 4)
    assert outcome.code == SET_ASIDE, outcome.err
    store = ScanStore.open(tmp_path / "s.zarr")
    assert [(entry["pattern"], entry["reason"]) for entry in store.set_aside] == [(6, "no finite pixel")]
    np.testing.assert_array_equal(store.read_frames(0, 6), floats[:6])


def test_names_with_spaces_and_other_alphabets_are_kept(command, frames, tmp_path):
    folder = tmp_path / "Probe 3 – μLaue [été]"
    frames.rename(folder)
    for path in sorted(folder.iterdir()):
        path.rename(folder / f"Ångström scan {path.name}")
    cut(sorted(folder.iterdir())[3])
    out = tmp_path / "Läufe" / "erster Lauf"
    outcome = command("run", folder, *options(out), "-k", 2)
    assert outcome.code == SET_ASIDE, outcome.err
    assert f"{folder}/Ångström scan scan_00004.tif" in outcome.err
    assert "Ångström scan scan_00004.tif" in (out / "report.html").read_text(encoding="utf-8")
    assert all("Ångström" in name for name in json.loads((out / "run.json").read_text())["delegate_sources"].values())


def test_loop_of_links_among_frames_is_one_frame_that_cannot_be_read(command, frames, tmp_path):
    (frames / "round").symlink_to(frames)
    path = sorted(frames.glob("*.tif"))[4]
    path.unlink()
    path.symlink_to(path)
    outcome = command("ingest", frames, tmp_path / "s.zarr", "--shape", 3, 4)
    assert outcome.code == SET_ASIDE, outcome.err
    assert [entry["pattern"] for entry in ScanStore.open(tmp_path / "s.zarr").set_aside] == [4]


def test_a_run_that_was_refused_after_its_workers_started_may_be_given_again(small_scan, tmp_path):
    frames, out = tmp_path / "frames", tmp_path / "run"
    shutil.copytree(small_scan, frames)
    shutil.copy(frames / "scan_00020.tif", frames / "scan_00021.tif")
    command = [sys.executable, "-m", "laue_dask", "run", str(frames), "--out", str(out), "--weights", "untrained"]
    command += ["--workers", "1"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == BAD_INPUT
    assert "were taken at the same stage position" in refused.stderr.splitlines()[-1]
    assert not list(out.glob("*"))
    done = subprocess.run(
        [*command, "--workers", "1", "--shape", "8", "9", "--insist"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (out / "dask-report.html").exists()


def test_of_a_point_that_was_measured_again_the_last_frame_counts_and_the_others_are_set_aside(
    command, small_scan, small_run, tmp_path
):
    frames, run = tmp_path / "frames", tmp_path / "run"
    shutil.copytree(small_scan, frames)
    files = sorted(frames.glob("*.tif"))
    for number, point in enumerate((20, 3, 20)):
        shutil.copy(files[point], frames / f"scan_{1000 + number:05d}.tif")
    outcome = command("run", frames, *options(run)[:4], "-k", 3, "--workers", 1)
    assert outcome.code == SET_ASIDE, outcome.err
    assert f"set aside: {files[3]}: a later frame was taken at the same stage position" in outcome.err
    record = json.loads((run / "run.json").read_text())
    assert [entry["pattern"] for entry in record["set_aside"]] == [None] * 3
    assert {Path(entry["source"]).name for entry in record["set_aside"]} == {
        files[3].name,
        files[20].name,
        "scan_01000.tif",
    }
    assert (record["n_patterns"], record["n_set_aside"]) == (72, 3)
    assert files[20].name in (run / "report.html").read_text(encoding="utf-8")
    sources = ScanStore.open(run / "scan.zarr").source
    assert [Path(sources[point]).name for point in (3, 20)] == ["scan_01001.tif", "scan_01002.tif"]
    ours, theirs = (zarr.open_group(folder / "results.zarr", mode="r")["features"][:] for folder in (run, small_run))
    np.testing.assert_array_equal(ours, theirs)
    assert command("segment", run, "-k", 4).code == 0


@pytest.mark.parametrize("pattern", ["", "/**/*.tif", "/s*.tif"])
def test_links_that_go_round_among_frames_neither_hang_nor_count_twice(frames, pattern):
    (frames / "itself").symlink_to(frames / "itself")
    for name in ("round_1", "round_2"):  # of two of them there are 2^40 ways round
        (frames / name).symlink_to(frames)
    found = discover(f"{frames}{pattern}")
    assert [Path(ref.path).parent for ref in found] == [frames] * 12


@pytest.fixture
def unprivileged():
    """Run the program as one who may not read what permissions forbid; root may read anything."""
    held = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if held and not shutil.which("setpriv"):
        pytest.skip("root without setpriv cannot give up its right to read anything")

    def run(*arguments):
        done = subprocess.run(
            [*held, sys.executable, "-m", "laue_dask", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )
        # On a slow machine the command says that it is still importing.
        return done.returncode, re.sub(r"(?m)^\w+: (?:loading libraries|working) .*\n", "", done.stderr).splitlines()

    return run


def test_frame_without_permission_is_set_aside(unprivileged, frames, tmp_path):
    closed = sorted(frames.iterdir())[4]
    closed.chmod(0)
    code, lines = unprivileged("ingest", frames, tmp_path / "s.zarr", "--shape", 3, 4, "--workers", 1)
    assert code == SET_ASIDE, lines
    assert lines[-1] == f"set aside: pattern 4, {closed}: you have no permission to read the file"
    assert ScanStore.open(tmp_path / "s.zarr").valid.sum() == 11


@pytest.mark.parametrize(("pattern", "within"), [("", ""), ("/*/*.tif", "/line_2")])
def test_folder_without_permission_to_look_into_is_refused(unprivileged, frames, tmp_path, pattern, within):
    for number, path in enumerate(sorted(frames.iterdir())):
        line = frames / f"line_{1 + number // 4}"
        line.mkdir(exist_ok=True)
        path.rename(line / path.name)
    closed = Path(f"{frames}{within}")
    closed.chmod(0)
    try:
        code, lines = unprivileged("run", f"{frames}{pattern}", *options(tmp_path / "run"))
    finally:
        closed.chmod(0o700)
    assert code == BAD_INPUT
    [line] = lines
    assert line.startswith(f"laue-dask: {closed}: ")
    assert "ermission" in line
    assert names(tmp_path) == ["frames"]


@pytest.fixture
def meanwhile(monkeypatch):
    """Have something happen to the frames after they were found, and before the workers read them."""

    def happen(event):
        look = ingest.read_sample

        def then(refs):
            sample = look(refs)
            event()
            return sample

        monkeypatch.setattr(ingest, "read_sample", then)

    return happen


def test_frames_that_change_between_being_found_and_being_read_are_set_aside(command, frames, meanwhile, tmp_path):
    files = sorted(frames.iterdir())

    def change():
        files[1].unlink()
        cut(files[4])
        pages = [Image.open(files[0]), Image.open(files[2])]
        pages[0].save(files[6], save_all=True, append_images=pages[1:])  # longer by a frame
        tiff(files[8], counts((300, 260)))  # longer, and larger
        files[9].write_bytes(files[9].read_bytes() + bytes(5000))  # longer, with the same frame in it
        files[10].unlink()
        files[10].mkdir()

    meanwhile(change)
    outcome = command("run", frames, *options(tmp_path / "run"), "-k", 2)
    assert outcome.code == SET_ASIDE, outcome.err
    assert outcome.complaints == []
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    reasons = {
        1: "file vanished",
        4: "truncated",
        6: "holds 2 frames",
        8: "shape (300, 260)",
        10: "is a folder, not a file",
    }
    assert [entry["pattern"] for entry in record["set_aside"]] == list(reasons)
    for entry, (pattern, reason) in zip(record["set_aside"], reasons.items(), strict=True):
        assert reason in entry["reason"]
        assert files[pattern].name in page
    labels = zarr.open_group(tmp_path / "run" / "results.zarr", mode="r")["labels"][:]
    for label_map in labels:
        np.testing.assert_array_equal(np.flatnonzero(label_map.ravel() == -1), list(reasons))


def test_frames_that_all_vanish_before_they_are_read_are_refused(refused, frames, meanwhile, tmp_path):
    meanwhile(lambda: shutil.rmtree(frames))
    refused("run", frames, *options(tmp_path / "run"), mentions=("none of 12", "vanished"))
    assert names(tmp_path) == []


def test_a_hundred_thousand_frames_in_a_folder_are_found_at_once_and_counted(refused, frames, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    one = sorted(frames.iterdir())[0]
    for i in range(100_000):
        os.symlink(one, f"{folder}/m_{i}.tif")  # noqa: PTH211  a third of the time
    held, begun = psutil.Process().memory_info().rss, time.process_time()
    refs = discover(folder)
    assert time.process_time() - begun < 5  # a second or less on an idle machine
    assert psutil.Process().memory_info().rss - held < 200 * 2**20
    assert len(refs) == 100_000
    assert refs[-1].path.endswith("m_99999.tif")
    arguments = ("run", folder, "--out", tmp_path / "run", "--weights", "untrained", "--shape", 300, 300)
    line = refused(*arguments, mentions=("100000 frames", "did you mean"))
    assert "--shape 300 300" in line
    assert names(tmp_path) == ["frames", "many"]


def test_two_frames_at_one_stage_position_are_refused_with_both(refused, small_scan, frames, tmp_path):
    for path in frames.iterdir():
        shutil.copy(small_scan / path.name, path)
    files = sorted(frames.iterdir())
    shutil.copy(files[3], files[5])
    for verb, out in (
        ("run", ("--out", tmp_path / "run", "--weights", "untrained")),
        ("ingest", (tmp_path / "s.zarr",)),
    ):
        refused(verb, frames, *out, mentions=("same", "--shape"))
    assert names(tmp_path) == ["frames"]


# Stores


@pytest.fixture
def own_store(small_run, tmp_path):
    return shutil.copytree(small_run / "scan.zarr", tmp_path / "own.zarr")


def test_store_that_is_missing_is_refused(refused, tmp_path):
    refused("run", tmp_path / "no.zarr", *options(tmp_path / "run"), mentions="there is no such scan store")
    assert names(tmp_path) == []


def test_folder_that_only_calls_itself_a_store_is_refused(refused, tmp_path):
    (tmp_path / "fake.zarr").mkdir()
    (tmp_path / "fake.zarr" / "readme.txt").write_text("hello")
    refused("run", tmp_path / "fake.zarr", *options(tmp_path / "run"), mentions=("fake.zarr", "not a scan store"))
    refused("info", tmp_path / "fake.zarr", mentions="not a scan store")
    assert names(tmp_path) == ["fake.zarr"]


def test_another_kind_of_zarr_store_is_refused(refused, tmp_path):
    zarr.create_array(str(tmp_path / "other.zarr"), shape=(3,), dtype="f4")
    refused("run", tmp_path / "other.zarr", *options(tmp_path / "run"), mentions="not a scan store")
    zarr.create_group(str(tmp_path / "group.zarr"))
    refused("run", tmp_path / "group.zarr", *options(tmp_path / "run"), mentions="schema version None")
    assert names(tmp_path) == ["group.zarr", "other.zarr"]


def test_store_that_was_not_finished_is_refused(refused, own_store, tmp_path):
    zarr.open_group(str(own_store)).attrs["complete"] = False
    refused("run", own_store, *options(tmp_path / "run"), mentions="not finished")
    own_store.rename(tmp_path / "own.zarr.part")
    refused("run", own_store, *options(tmp_path / "run"), mentions="not finished")
    assert names(tmp_path) == ["own.zarr.part"]


def test_store_with_a_lost_or_damaged_shard_fails_and_leaves_no_results(refused, own_store, tmp_path):
    shutil.rmtree(own_store / "reduced")
    shard, *_ = sorted(path for path in (own_store / "frames" / "c").rglob("*") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    arguments = ("run", own_store, "--out", tmp_path / "run", "--weights", "untrained")
    refused(*arguments, mentions="damaged")
    shard.unlink()
    refused(*arguments, mentions="missing")
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "run" / "results.zarr").exists()


def test_a_wrong_option_costs_nothing_of_what_a_killed_ingest_did(command, refused, frames, tmp_path, monkeypatch):
    def kill(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ScanStore, "record", kill)
        assert command("run", frames, *options(tmp_path / "run")).code != 0
    part = tmp_path / "run" / "scan.zarr.part"
    before = {path: path.stat().st_mtime_ns for path in part.rglob("*") if path.is_file()}
    assert before
    refused("run", frames, "--out", tmp_path / "run", "--shape", 3, 3, mentions="--shape 3 3")
    assert {path: path.stat().st_mtime_ns for path in part.rglob("*") if path.is_file()} == before


def test_shape_that_is_not_the_stores_is_refused_with_both(refused, own_store, tmp_path):
    refused("run", own_store, *options(tmp_path / "run"), mentions=("8 × 9", "3 × 4"))
    assert names(tmp_path) == ["own.zarr"]


def test_two_ingests_into_one_store_are_kept_apart(command, refused, frames, tmp_path):
    store = tmp_path / "s.zarr"
    with locked_store(store, "ingest elsewhere"):
        line = refused("ingest", frames, store, "--shape", 3, 4, mentions=("s.zarr: in use by", "`ingest elsewhere`"))
    assert str(os.getpid()) in line
    assert names(tmp_path) == ["frames"]
    assert command("ingest", frames, store, "--shape", 3, 4).code == 0
    assert names(tmp_path) == ["frames", "s.zarr"]


def test_store_is_not_overwritten(refused, own_store, frames):
    refused("ingest", frames, own_store, "--shape", 3, 4, mentions="exists already")
    assert ScanStore.open(own_store).scan_shape == (8, 9)


# Options and configurations


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("recipe: {background_blocks: 3}", ("recipe.background_blocks", "unknown key")),
        ("recipe: {clip_sigma: many}", ("recipe.clip_sigma", "many")),
        ("clustering: {score_k: [9, 3]}", ("9", "3")),
        ("- a list", "mapping"),
        ("a: [1, 2", "not valid YAML"),
        ("encoder: {weights: nowhere.safetensors}", "there is no such weights file"),
    ],
)
def test_impossible_configuration_is_refused(refused, frames, tmp_path, text, mentions):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    refused("run", frames, "--out", tmp_path / "run", "--config", file, mentions=mentions)
    assert names(tmp_path) == ["c.yaml", "frames"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-k", "1"),
        ("-k", "many"),
        ("--components", "0"),
        ("--components", "1.5"),
        ("--components", "most"),
        ("--substrate", "maybe"),
        ("--order", "spiral"),
        ("--shape", "0", "5"),
        ("--shape", "5"),
        ("--workers", "0"),
        ("--weights", "nowhere.safetensors"),
        ("--config", "nowhere.yaml"),
        ("--config", "."),
        ("--frobnicate",),
    ],
)
def test_impossible_option_is_refused(refused, frames, tmp_path, arguments):
    refused("run", frames, "--out", tmp_path / "run", "--weights", "untrained", *arguments)
    assert names(tmp_path) == ["frames"]


@pytest.mark.parametrize("arguments", [(), ("fly",), ("run",), ("run", "x"), ("ingest", "x"), ("evaluate", "x")])
def test_incomplete_command_is_refused_with_where_to_look(command, arguments):
    outcome = command(*arguments)
    assert outcome.code == BAD_INPUT
    assert "--help" in outcome.err or "Usage" in outcome.err


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\x08\0\0\0\0\0\0\0{}      ", bytes(4000)])
def test_weights_that_are_garbage_are_refused(refused, frames, tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    refused("run", frames, "--out", tmp_path / "run", "--weights", tmp_path / "w.safetensors", mentions="w.safetensors")
    refused("info", tmp_path / "w.safetensors", mentions="w.safetensors")
    assert names(tmp_path) == ["frames", "w.safetensors"]


# Where to write


@pytest.mark.parametrize("verb", ["run", "ingest", "simulate"])
@pytest.mark.parametrize("place", ["file/inside", "nowhere-link", "round/inside"])
def test_place_that_cannot_be_written_to_is_refused(refused, frames, tmp_path, verb, place):
    there = tmp_path / "there"
    there.mkdir()
    (there / "file").write_text("in the way")
    (there / "nowhere-link").symlink_to(there / "gone" / "gone")
    (there / "round").symlink_to(there / "round")
    out = there / place
    arguments = {
        "run": (frames, "--out", out, "--weights", "untrained"),
        "ingest": (frames, out, "--shape", 3, 4),
        "simulate": ("grains", out, "--shape", 2, 2),
    }
    refused(verb, *arguments[verb], mentions=str(out))
    assert names(there) == ["file", "nowhere-link", "round"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_refused(refused, frames, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    refused("run", frames, *options(closed / "run"), mentions="permission")


def test_name_that_is_too_long_is_refused(refused, frames, tmp_path):
    refused("run", frames, *options(tmp_path / ("x" * 300)), mentions="too long")
    refused("ingest", frames, tmp_path / ("x" * 300), mentions="too long")


def test_run_folder_that_is_a_file_or_holds_other_things_is_refused_and_left_alone(refused, frames, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    refused("run", frames, *options(tmp_path / "file"), mentions="is a file")
    refused("run", frames, *options(tmp_path / "mine"), mentions="holds files that are not a run's")
    refused("simulate", "grains", tmp_path / "file", mentions="is a file")
    refused("simulate", "grains", tmp_path / "mine", mentions="other files")
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path / "mine") == ["thesis.tex"]


def test_run_folder_of_another_scan_is_refused_and_left_alone(refused, small_run, frames, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    refused("run", frames, *options(run), mentions=("scan.zarr", str(frames)))
    assert json.loads((run / "run.json").read_text())["n_patterns"] == 72


@pytest.fixture
def finished(command, frames, tmp_path):
    """Finished run of `frames` by the command that tests give again."""
    outcome = command("run", frames, *options(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    return tmp_path / "run"


def test_run_goes_on_for_the_same_source_and_no_other(command, refused, frames, finished, tmp_path, monkeypatch):
    refused("run", frames, *options(finished), "--order", "snake", mentions=("raster", "snake"))
    shutil.copy(frames / "scan_00012.tif", frames / "scan_00013.tif")
    refused("run", frames, *options(finished), mentions=("12 frames", "13 now"))
    (frames / "scan_00013.tif").unlink()
    monkeypatch.chdir(tmp_path)
    outcome = command("run", "./frames/", *options("run"))
    assert outcome.code == 0, outcome.err
    assert "ingest" not in outcome.err
    assert "encode" not in outcome.err


# Truth


@pytest.mark.parametrize(
    ("arrays", "mentions"),
    [
        ({"domain": np.zeros((3, 3), int)}, ("(3, 3)", "(8, 9)")),
        ({"grain": np.zeros((8, 9), int)}, "neither `domain` nor `angle`"),
        ({"domain": np.full((8, 9), None)}, "plain numerical arrays"),
        ({"domain": np.full((8, 9), "a")}, "numbers were expected"),
        ({"domain": np.zeros((8, 9), int), "edge": np.zeros((9, 8), bool)}, "`edge`"),
    ],
)
def test_truth_that_does_not_fit_is_refused(refused, small_run, tmp_path, arrays, mentions):
    np.savez(tmp_path / "truth.npz", **arrays)
    record = (small_run / "run.json").read_bytes()
    refused("evaluate", small_run, "--truth", tmp_path / "truth.npz", mentions=mentions)
    assert (small_run / "run.json").read_bytes() == record


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04" + bytes(50)])
def test_truth_that_is_no_npz_is_refused(refused, small_run, tmp_path, content):
    if content is not None:
        (tmp_path / "truth.npz").write_bytes(content)
    refused("evaluate", small_run, "--truth", tmp_path / "truth.npz", mentions="truth.npz")


def test_truth_without_archive_is_refused(refused, small_run, tmp_path):
    np.save(tmp_path / "truth.npy", np.zeros((8, 9)))
    refused("evaluate", small_run, "--truth", tmp_path / "truth.npy", mentions="truth.npy")


def test_evaluation_of_what_is_no_run_is_refused(refused, small_scan, tmp_path):
    truth = small_scan / "truth.npz"
    for folder in (tmp_path, truth):
        refused("evaluate", folder, "--truth", truth, mentions="no finished run")
    refused("evaluate", tmp_path / "nowhere", "--truth", truth, mentions="there is no such folder of a run")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": {}}'])
def test_record_that_is_damaged_is_refused(refused, small_scan, tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    for arguments in (("evaluate", tmp_path, "--truth", small_scan / "truth.npz"), ("info", tmp_path)):
        refused(*arguments, mentions="run.json")


def test_evaluation_without_the_scan_is_refused(refused, small_run, small_scan, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    records.write(run, {**record, "scan": str(run / "gone.zarr")})
    shutil.rmtree(run / "scan.zarr")
    refused("evaluate", run, "--truth", small_scan / "truth.npz", mentions="gone.zarr")


# Simulation, training, info


def test_unknown_specimen_or_detector_is_refused_with_those_there_are(refused, tmp_path):
    refused("simulate", "sponge", tmp_path / "a", mentions=("sponge", "twins"))
    refused("simulate", "grains", tmp_path / "a", "--detector", "polaroid", mentions=("polaroid", "pilatus1m"))
    assert names(tmp_path) == []


def test_training_without_stores_is_refused(refused, tmp_path):
    out = tmp_path / "w.safetensors"
    refused("train", tmp_path / "a.zarr", "--validation", tmp_path / "b.zarr", "--out", out, mentions="a.zarr")
    assert names(tmp_path) == []


def test_info_on_what_is_nothing_is_refused(refused, frames, tmp_path):
    refused("info", tmp_path / "nowhere", mentions="there is no such file or folder")
    cut(sorted(frames.iterdir())[0], 0.01)
    refused("info", sorted(frames.iterdir())[0], mentions="truncated")


# As a program


def test_refusal_by_the_program_itself_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "laue_dask", "run", "nowhere", "--out", "run", "--weights", "untrained"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == BAD_INPUT
    assert (
        re.sub(r"\w+: (?:loading libraries|working) .*\n", "", done.stderr)
        == "laue-dask: nowhere: there is no such file or folder\n"
    )
    assert done.stdout == ""
    assert names(tmp_path) == []
