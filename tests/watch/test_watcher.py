import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from PIL import Image

from laue_dask.errors import ComputeError, InputError
from laue_dask.io.frames import FrameRef, read_frame
from laue_dask.pipeline import segmenting, single_scan
from laue_dask.pipeline.stages import ingest
from laue_dask.runtime.progress import QuietProgress
from laue_dask.watch import folder, watcher
from laue_dask.watch.log import Log
from laue_dask.watch.watcher import watch

SHAPE = (8, 9)


@pytest.fixture
def frames(small_scan):
    """Files of the scan, in order."""
    return sorted(small_scan.glob("*.tif"))


@pytest.fixture
def soon(monkeypatch):
    """Nothing waits for longer than it must in a test."""
    monkeypatch.setattr(folder, "SETTLE_TIME_S", 0.1)
    monkeypatch.setattr(folder, "STACK_SETTLE_TIME_S", 0.3)
    monkeypatch.setattr(folder, "RETRY_WAITS_S", (0.2, 0.2))
    monkeypatch.setattr(watcher, "POLL_INTERVAL_S", 0.05)
    monkeypatch.setattr(watcher, "REFRESH_INTERVAL_S", 0.2)
    monkeypatch.setattr(watcher, "LAST_FRAMES_WAIT_S", 0.6)
    monkeypatch.setattr(segmenting, "report", lambda *args, **kwargs: None)  # figures take longer than all the rest


class Scan:
    """A watch in a thread, beside which a test writes frames."""

    def __init__(self, source, run, config, timeout=600.0):
        self.said, self.stop, self.run, self.source = [], threading.Event(), run, source
        self.record, self.error = None, None
        self._arguments = {"command": "watch", "progress": QuietProgress(), "timeout": timeout, "stop": self.stop}
        self._thread = threading.Thread(target=self._follow, args=(config,))
        self._thread.start()

    def _follow(self, config):
        try:
            self.record = watch(str(self.source), self.run, config, say=self.said.append, **self._arguments)
        except Exception as error:
            self.error = error

    @property
    def state(self):
        try:
            return json.loads((self.run / "watch.json").read_text())
        except FileNotFoundError:
            return {}

    def until(self, condition, seconds=100):
        end = time.monotonic() + seconds
        while not condition(self.state):
            assert time.monotonic() < end, self.state
            assert self._thread.is_alive(), (self.error, self.state)
            time.sleep(0.02)
        return self.state

    def end(self):
        self._thread.join(200)
        assert not self._thread.is_alive()
        if self.error:
            raise self.error
        return self.record


def copied(files, target):
    target.mkdir(exist_ok=True)
    for file in files:
        shutil.copyfile(file, target / file.name)


def taken(run):
    """Files in the watch's own list."""
    return [json.loads(line)["file"] for line in (run / "watch" / "frames.jsonl").read_text().splitlines()[1:]]


def assert_same(ours, theirs):
    one, other = (zarr.open_group(str(run / "results.zarr"), mode="r") for run in (ours, theirs))
    assert set(one.array_keys()) == set(other.array_keys())
    for name in one.array_keys():
        assert one[name][...].tobytes() == other[name][...].tobytes(), name
    records = [json.loads((run / "run.json").read_text()) for run in (ours, theirs)]
    for key in ("keys", "k", "suggested_k", "advice", "set_aside", "delegate_sources", "n_patterns", "warnings"):
        assert records[0][key] == records[1][key], key


def batch(source, run, config):
    single_scan.run(str(source), run, config, command="run", progress=QuietProgress())
    return run


@pytest.mark.usefixtures("soon")
def test_a_watch_that_is_ended_before_any_frame_came_blames_nobody(tmp_path, quick):
    stop, said = threading.Event(), []

    def say(line):
        said.append(line)
        stop.set()

    with pytest.raises(KeyboardInterrupt):
        watch(
            str(tmp_path / "frames"),
            tmp_path / "run",
            quick(scan={"shape": SHAPE}),
            command="watch",
            progress=QuietProgress(),
            timeout=600,
            stop=stop,
            say=say,
        )
    assert "as a whole now" not in "".join(said)
    assert json.loads((tmp_path / "run" / "watch.json").read_text())["state"] == "failed"


@pytest.mark.usefixtures("on_workers", "soon")
def test_growing_scan_ends_as_run_does_whatever_happens_on_the_way(frames, tmp_path, quick):
    source, config = tmp_path / "frames", quick(scan={"shape": SHAPE})
    scan = Scan(source, tmp_path / "run", config)
    scan.until(lambda state: state.get("state") == "waiting")
    copied(frames[20:30], source)  # the first frames are late, so all of these are placed anew
    scan.until(lambda state: state["mapped"] == 10)
    with Image.open(tmp_path / "run" / "watch" / "labels.png") as image:
        assert image.size[0] > 300
    copied(frames[:20], source)
    content = frames[30].read_bytes()
    with (source / frames[30].name).open("wb") as half:
        half.write(content[: len(content) // 2])
    state = scan.until(lambda state: state["unreadable"] and state["frames"] == 30)
    assert "truncated" in state["unreadable"][0]["reason"]
    (source / frames[30].name).write_bytes(content)
    scan.until(lambda state: state["frames"] == 31 and not state["unreadable"])
    copied([one for one in frames[31:] if one != frames[50]], source)
    scan.until(lambda state: state["mapped"] == 71)
    assert scan.until(lambda state: state["store"]["patterns"] == 40)["skipped"] == 1
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "scan.zarr.part").glob("frames/c/0/0/0")}
    assert written
    scan.stop.set()
    record = scan.end()
    assert record.n_patterns == 71
    after = {path: Path(str(path).replace(".part", "")).stat().st_mtime_ns for path in written}
    assert after == written
    assert_same(tmp_path / "run", batch(source, tmp_path / "batch", config))
    state = scan.state
    assert (state["state"], state["frames"], state["backlog"]) == ("finished", 71, 0)
    assert 0 < state["latency_s"]["p95"] < 60
    assert 'http-equiv="refresh"' not in (tmp_path / "run" / "watch.html").read_text()
    names = Counter(taken(tmp_path / "run"))
    assert set(names.values()) == {1}


@pytest.mark.usefixtures("on_workers", "soon")
def test_scan_that_was_aborted_early_ends_with_what_there_is_and_may_go_on(frames, tmp_path, quick):
    source, config = tmp_path / "frames", quick(scan={"shape": SHAPE})
    copied(frames[:20], source)
    scan = Scan(source, tmp_path / "run", config, timeout=1.0)
    record = scan.end()
    assert (record.n_patterns, record.scan_shape) == (20, SHAPE)
    assert any("nothing new for 1 s, after 20 of 72 frames" in line for line in scan.said)
    results = zarr.open_group(str(tmp_path / "run" / "results.zarr"), mode="r")
    assert (results["labels"][0].ravel() >= 0).tolist() == [True] * 20 + [False] * 52
    aborted = config.model_copy(update={"scan": config.scan.model_copy(update={"aborted": True})})
    assert_same(tmp_path / "run", batch(source, tmp_path / "batch", aborted))
    copied(frames[20:], source)
    again = Scan(source, tmp_path / "run", config)
    assert again.end().n_patterns == 72
    assert any("20 frames were read earlier" in line for line in again.said)
    assert_same(tmp_path / "run", batch(source, tmp_path / "whole", config))


@pytest.mark.usefixtures("on_workers", "soon")
def test_block_whose_file_changed_after_it_was_written_is_written_again(frames, tmp_path, quick):
    source, config = tmp_path / "frames", quick(scan={"shape": SHAPE})
    copied(frames[:-1], source)
    scan = Scan(source, tmp_path / "run", config)
    scan.until(lambda state: state.get("store", {}).get("patterns") == 64)
    content, row = frames[3].read_bytes(), read_frame(FrameRef(str(frames[3])))[100].tobytes()
    (source / frames[3].name).write_bytes(content.replace(row, bytes(len(row))))
    scan.until(lambda state: state["frames"] == 72)
    copied(frames[-1:], source)
    scan.end()
    assert_same(tmp_path / "run", batch(source, tmp_path / "batch", config))


@pytest.mark.usefixtures("on_workers", "soon")
def test_lost_beam_and_suggestions_are_told_while_the_scan_goes_on(frames, tmp_path, quick):
    source, config = tmp_path / "frames", quick(scan={"shape": SHAPE})
    copied(frames[:55], source)
    scan = Scan(source, tmp_path / "run", config)
    state = scan.until(lambda state: state.get("suggestions"))
    assert state["suggestions"][0].startswith("K = ")
    for file in frames[55:63]:
        with Image.open(file) as image:
            values = np.asarray(image)
        Image.fromarray(np.where(values > 0, values // 500, values)).save(source / file.name)
    state = scan.until(lambda state: state["alarms"])
    assert state["alarms"][0]["kind"] == "beam"
    assert sum(line.startswith("alarm: the beam or the sample is lost") for line in scan.said) == 1
    page = (tmp_path / "run" / "watch.html").read_text()
    assert "the beam or the sample is lost" in page
    assert 'src="http' not in page
    copied(frames[63:], source)
    scan.end()
    assert any(line.startswith("over: the beam is back") for line in scan.said)


@pytest.mark.usefixtures("on_workers", "soon")
def test_stacks_that_are_added_end_as_run_does(frames, tmp_path, quick):
    made, source, config = tmp_path / "made", tmp_path / "frames", quick(scan={"shape": SHAPE})
    made.mkdir()
    for i, part in enumerate((frames[:40], frames[40:42], frames[42:])):
        with h5py.File(made / f"scan_{i}.h5", "w") as file:
            file["entry/data/data"] = np.stack([read_frame(FrameRef(str(one))) for one in part])
    stacks = sorted(made.iterdir())
    copied([stacks[0]], source)
    content = stacks[1].read_bytes()
    (source / "scan_1.h5").write_bytes(content[: len(content) // 2])
    scan = Scan(source, tmp_path / "run", config)
    state = scan.until(lambda state: state.get("store", {}).get("patterns") == 32 and state["unreadable"])
    assert [Path(one["file"]).name for one in state["unreadable"]] == ["scan_1.h5"]
    written = [path.stat().st_mtime_ns for path in (tmp_path / "run" / "scan.zarr.part").glob("frames/c/0/0/0")]
    # The second file seems to hold as many frames as the first, which are too many then, for a while.
    copied([stacks[2]], source)
    state = scan.until(lambda state: state["alarms"] and state["frames"] == 70)
    assert "do not fit" in state["alarms"][0]["message"]
    (source / "scan_1.h5").write_bytes(content)
    assert scan.end().n_patterns == 72
    assert scan.state["alarms"][0]["until"]
    assert written == [path.stat().st_mtime_ns for path in (tmp_path / "run" / "scan.zarr").glob("frames/c/0/0/0")]
    assert_same(tmp_path / "run", batch(source, tmp_path / "batch", config))
    assert set(Counter(taken(tmp_path / "run")).values()) == {1}


@pytest.mark.usefixtures("on_workers", "soon")
def test_full_disk_is_told_and_stops_neither_map_nor_scan(frames, tmp_path, quick, monkeypatch):
    source, config = tmp_path / "frames", quick(scan={"shape": SHAPE})
    free, failures = [10**12], iter(range(1))
    real = ingest.write_ahead

    def write_ahead(*arguments):
        # A quota, which the free space of the disk does not tell.
        if next(failures, None) is not None:
            raise ComputeError("frames cannot be written") from OSError(errno.EDQUOT, "Disk quota exceeded")
        return real(*arguments)

    monkeypatch.setattr(watcher, "free_space", lambda path: free[0])
    monkeypatch.setattr(watcher, "DISK_FULL_RETRY_S", 0.3)
    monkeypatch.setattr(ingest, "write_ahead", write_ahead)
    copied(frames[:60], source)
    scan = Scan(source, tmp_path / "run", config)
    scan.until(lambda state: state.get("store", {}).get("patterns") == 32)
    free[0] = 1_000_000
    copied(frames[60:70], source)
    state = scan.until(lambda state: state["mapped"] == 70 and any(not one["until"] for one in state["alarms"]))
    assert re.match(
        r"the disk is too full: the frames need 0\.\d\d GB more and the maps", state["alarms"][-1]["message"]
    )
    assert state["store"]["patterns"] == 32
    free[0] = 10**12
    scan.until(lambda state: all(one["until"] for one in state["alarms"]))
    copied(frames[70:], source)
    scan.end()
    assert [line.split(":")[0] for line in scan.said if ": the disk" in line] == ["alarm", "over", "alarm", "over"]
    assert_same(tmp_path / "run", batch(source, tmp_path / "batch", config))


@pytest.mark.usefixtures("on_workers", "soon")
def test_maps_that_a_full_disk_does_not_take_are_drawn_later(frames, tmp_path, quick, monkeypatch):
    source, config, full = tmp_path / "frames", quick(scan={"shape": SHAPE}), threading.Event()
    real_maps, real_log = watcher.write_atomically, Log.add

    def replace_file(path, content):
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        real_maps(path, content)

    def add(log, *arguments):
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        real_log(log, *arguments)

    monkeypatch.setattr(watcher, "write_atomically", replace_file)
    monkeypatch.setattr(Log, "add", add)
    monkeypatch.setattr(watcher, "DISK_FULL_RETRY_S", 0.3)
    copied(frames[:20], source)
    scan = Scan(source, tmp_path / "run", config)
    scan.until(lambda state: state.get("mapped") == 20)
    full.set()
    copied(frames[20:71], source)
    end = time.monotonic() + 100
    while not any(line.startswith("alarm: the disk is too full") for line in scan.said):
        assert time.monotonic() < end, scan.said
        time.sleep(0.02)
    full.clear()
    scan.until(lambda state: state["mapped"] == 71)
    copied(frames[71:], source)
    scan.end()
    assert set(Counter(taken(tmp_path / "run")).values()) == {1}
    assert_same(tmp_path / "run", batch(source, tmp_path / "batch", config))


@pytest.mark.usefixtures("on_workers", "soon")
@pytest.mark.parametrize("extractor", ["pixels", "peaks"])
def test_other_extractors_are_mapped_too(frames, tmp_path, quick, extractor):
    source = tmp_path / "frames"
    config = quick(scan={"shape": SHAPE}, encoder={"extractor": extractor}, recipe={"substrate": "remove"})
    copied(frames[:60], source)
    scan = Scan(source, tmp_path / "run", config)
    scan.until(lambda state: state.get("mapped") == 60)
    copied(frames[60:], source)
    scan.end()
    assert_same(tmp_path / "run", batch(source, tmp_path / "batch", config))


@pytest.mark.usefixtures("on_workers", "soon")
def test_more_frames_than_points_are_told_at_once_and_refused_in_the_end(frames, tmp_path, quick):
    source, config = tmp_path / "frames", quick(scan={"shape": (7, 9)})
    copied(frames, source)
    scan = Scan(source, tmp_path / "run", config)
    with pytest.raises(InputError, match="72 frames do not fit --shape 7 9"):
        scan.end()
    assert scan.state["state"] == "failed"
    assert "do not fit" in scan.state["reason"]


def test_what_cannot_be_watched_is_refused_before_anything_is_made(small_scan, tmp_path, command):
    stack = tmp_path / "a.h5"
    stack.touch()
    for source, shape, said in [
        (small_scan, (), "give --shape NY NX"),
        (stack, SHAPE, "one file that grows cannot be followed"),
        (tmp_path / "not_there_yet.h5", SHAPE, "one file that grows cannot be followed"),
        (tmp_path / os.fsdecode(b"frames \xff"), SHAPE, "the name is not UTF-8"),
        (tmp_path / "no" / "such", SHAPE, "no such folder"),
        (tmp_path / "scan.zarr", SHAPE, "use `laue-dask run`"),
    ]:
        found = command("watch", source, *(["--shape", *shape] if shape else []), "--out", tmp_path / "run")
        assert found.code == 2
        assert said in found.err
        assert len(found.complaints) == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_that_never_comes_is_said_at_once_and_given_up(tmp_path, command):
    (tmp_path / "scan0001").mkdir()
    found = command("watch", tmp_path / "scan001", "--shape", *SHAPE, "--timeout", 1, "--out", tmp_path / "run")
    assert found.code == 2
    assert f"no such folder yet (did you mean {tmp_path / 'scan0001'}?); waiting 1 s for it" in found.err
    assert "scan001: no such folder came within 1 s: check its name" in found.complaints[-1]


def test_killed_watch_goes_on_and_sigterm_ends_it(frames, tmp_path):
    source, run = tmp_path / "frames", tmp_path / "run"
    settings = tmp_path / "quick.yaml"
    settings.write_text("clustering: {score_k: [2, 3], n_init: 2, repeats: 0}\nquality: none\n")
    arguments = [sys.executable, "-m", "laue_dask", "watch", source, "--shape", *map(str, SHAPE), "--out", run]
    arguments += ["--config", settings, "--workers", "1"]

    def started(process, known):
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            state = json.loads((run / "watch.json").read_text()) if (run / "watch.json").exists() else {"pid": None}
            if state["pid"] == process.pid and state["frames"] >= known:
                return
            time.sleep(0.05)
        pytest.fail(f"no {known} frames: {process.communicate()[1]}")

    written = {}
    for before, known in ((0, 40), (40, 66)):
        copied(frames[before:known], source)
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        started(process, known)
        time.sleep(np.random.default_rng(known).uniform(0, 2))
        process.kill()
        process.communicate()
        kept = ingest.Journal(run / "scan.zarr.part" / "journal.jsonl").read()
        for path in (run / "scan.zarr.part").glob("frames/c/*/0/0"):
            if int(path.parts[-3]) in kept:
                written.setdefault(path.parts[-3], path.stat().st_mtime_ns)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    started(process, 66)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=200)[1]
    assert process.returncode == 0, errors
    assert "ended after 66 of 72 frames" in errors
    counted = Counter(taken(run))
    assert counted == Counter(str(source / file.name) for file in frames[:66])
    for shard, when in written.items():
        assert (run / "scan.zarr" / "frames" / "c" / shard / "0" / "0").stat().st_mtime_ns == when
    assert json.loads((run / "run.json").read_text())["n_patterns"] == 66
