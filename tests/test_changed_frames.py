"""Frames that change under a run, as its commands see it; the rule itself is tested in `stages/test_source.py`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from laue_dask.io.frames import FrameRef, read_frame
from laue_dask.io.scan_store import ScanStore
from laue_dask.nightly import worker


@pytest.fixture
def files(small_scan):
    """Files of the small scan, in order; not to be changed."""
    return sorted(small_scan.glob("*.tif"))


def copied(files, folder):
    """Frames of files in a folder, without their headers, which are called as the first ones of a scan are."""
    folder.mkdir(exist_ok=True)
    for number, file in enumerate(files):
        Image.fromarray(read_frame(FrameRef(str(file)))).save(folder / f"scan_{number:05d}.tif")
    return folder


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def options(out, *more):
    return ("--out", out, "--weights", "untrained", "--shape", 3, 4, *more)


@pytest.mark.parametrize("store", ["--store-frames", "--no-store-frames"])
def test_a_finished_run_of_frames_that_were_replaced_is_refused_told_and_made_again(
    command, files, tmp_path, caplog, store
):
    caplog.set_level("INFO", "laue_dask")
    source, out = copied(files[:12], tmp_path / "frames"), tmp_path / "run"
    outcome = command("run", source, *options(out, store))
    assert outcome.code == 0, outcome.err
    key = json.loads((out / "run.json").read_text())["keys"]["scan"]
    before = content(out)
    copied(files[30:42], source)

    refused = command("run", source, *options(out, store))
    assert refused.code == 2
    [line] = refused.complaints
    assert f"12 of 12 frames changed since they were read, first {source / 'scan_00000.tif'} (" in line
    assert line.count(" bytes of ") == 2
    assert "choose another --out, or read the frames again with `laue-dask run … --again`" in line
    assert content(out) == before

    told = command("segment", out, "-k", 3)
    assert told.code == 0, told.err
    [line] = [one for one in caplog.messages if "changed since" in one]
    assert line.startswith(f"{out / 'scan.zarr'}: 12 of 12 frames changed")
    caplog.clear()

    again = command("run", source, *options(out, store, "--again"))
    assert again.code == 0, again.err
    assert any(one.startswith("ingest: again, 12 of 12 frames changed") for one in caplog.messages)
    caplog.clear()
    assert json.loads((out / "run.json").read_text())["keys"]["scan"] != key
    store_now = ScanStore.open(out / "scan.zarr")
    for pattern in (0, 11):
        now = read_frame(FrameRef(str(files[30 + pattern])))
        assert (store_now.read_frames(pattern, pattern + 1)[0] == now).all()
    assert command("verify", out, "--sources").code == 0

    shutil.rmtree(source)
    gone = command("segment", out, "-k", 4)
    assert gone.code == 0, gone.err
    assert not [one for one in caplog.messages if "changed since" in one]


def test_a_series_is_refused_where_one_of_its_scans_changed(command, files, tmp_path, caplog):
    caplog.set_level("INFO", "laue_dask")
    one, other = copied(files[:12], tmp_path / "one"), copied(files[12:24], tmp_path / "other")
    given = ("run", one, other, *options(tmp_path / "series", "-k", 3))
    assert command(*given).code == 0
    copied(files[40:41], other)
    refused = command(*given)
    assert refused.code == 2
    assert f"1 of 12 frames changed since they were read, first {other / 'scan_00000.tif'} (" in refused.complaints[-1]
    again = command(*given, "--again")
    assert again.code == 0, again.err
    assert "one, ingest: kept" in caplog.messages
    assert any(one.startswith("other, ingest: again") for one in caplog.messages)


def test_an_ingest_that_was_killed_never_goes_on_with_a_mixture(command, files, tmp_path):
    source, out = copied(files, tmp_path / "frames"), tmp_path / "s.zarr"
    arguments = ["ingest", source, out, "--shape", 8, 9, "--workers", 1]
    killed = subprocess.Popen(
        [sys.executable, "-m", "laue_dask", *map(str, arguments)], start_new_session=True, stderr=subprocess.DEVNULL
    )
    journal = tmp_path / "s.zarr.part" / "journal.jsonl"
    while not journal.exists() and killed.poll() is None:
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    if out.exists():
        pytest.skip("it was done before it was killed")
    copied(files[::-1], source)
    outcome = command(*arguments)
    assert outcome.code == 0, outcome.err
    store = ScanStore.open(out)
    for pattern in range(72):
        assert (store.read_frames(pattern, pattern + 1)[0] == read_frame(FrameRef(str(files[71 - pattern])))).all()


def test_a_night_reads_frames_again_that_changed(tmp_path, monkeypatch):
    given = {}

    def run(*_, **options):
        given.update(options)
        raise RuntimeError

    monkeypatch.setattr(worker.single_scan, "run", run)
    job = {
        "source": "frames",
        "out": str(tmp_path),
        "config": {"encoder": {"weights": "untrained"}},
        "command": "night",
    }
    kept = worker._KeptWorkers.__new__(worker._KeptWorkers)
    monkeypatch.setattr(kept, "of", lambda config: None, raising=False)
    worker._answer({**job, "log": str(tmp_path / "log"), "thumbnails": ""}, kept)
    assert given["again"] is True
