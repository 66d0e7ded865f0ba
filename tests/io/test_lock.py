"""One owner per folder, whoever dies."""

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from laue_dask.errors import ComputeError, InputError
from laue_dask.io import lock
from laue_dask.io.journal import Journal
from laue_dask.io.lock import LOCK_FILE, Owner, locked_folder, locked_store
from laue_dask.io.output_paths import write_atomically
from laue_dask.runtime import interruption

CONTEXT = multiprocessing.get_context("fork")


def hold(folder: Path, told) -> None:
    with locked_folder(folder, "laue-dask run a"):
        told.send(None)
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that owns the folder."""
    heard, told = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=hold, args=(tmp_path / "run", told))
    process.start()
    assert heard.poll(30)
    yield process
    process.kill()
    process.join(30)


def test_second_owner_is_told_who_the_first_is(holder, tmp_path):
    told = rf"run: in use by process {holder.pid} on .* \(`laue-dask run a`\)"
    with pytest.raises(InputError, match=told), locked_folder(tmp_path / "run", "b"):
        pytest.fail("two owners")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]


def test_a_killed_owner_s_lock_is_free_at_once(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(30)
    assert (tmp_path / "run" / LOCK_FILE).exists()
    with locked_folder(tmp_path / "run", "b"):
        assert Owner(**json.loads((tmp_path / "run" / LOCK_FILE).read_text())).pid == os.getpid()
    assert not (tmp_path / "run").exists()


def test_a_store_is_locked_beside_it_and_nothing_is_left(tmp_path):
    store = tmp_path / "scan.zarr"
    with locked_store(store, "ingest a"):
        assert [path.name for path in tmp_path.iterdir()] == [f"{LOCK_FILE}-scan.zarr"]
        told = rf"scan\.zarr: in use by process {os.getpid()} on .* \(`ingest a`\): wait for it$"
        with pytest.raises(InputError, match=told), locked_store(store, "b"):
            pytest.fail("two owners")
        with locked_store(tmp_path / "other.zarr", "c"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_command_that_wrote_nothing_and_nothing_is_taken_from_one_that_did(tmp_path):
    with pytest.raises(RuntimeError), locked_folder(tmp_path / "a" / "b", "x"):
        raise RuntimeError
    assert not (tmp_path / "a" / "b").exists()
    with locked_folder(tmp_path / "c", "x"):
        (tmp_path / "c" / "result").touch()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["result"]


@pytest.fixture
def quick(monkeypatch):
    """Signs of life are awaited for a moment only."""
    monkeypatch.setattr(lock, "HEARTBEAT_INTERVAL_S", 0.2)
    monkeypatch.setattr(lock, "OWNERSHIP_CHECK_INTERVAL_S", 0.05)


def left_by(folder: Path, *, idle: float, **changes) -> None:
    """A lock of an owner elsewhere."""
    folder.mkdir()
    owner = asdict(Owner.myself("laue-dask run far")) | {"host": "elsewhere"} | changes
    (folder / LOCK_FILE).write_text(json.dumps(owner))
    os.utime(folder / LOCK_FILE, (time.time() - idle,) * 2)


def test_an_owner_on_another_machine_is_alive_while_it_touches_its_lock(tmp_path):
    left_by(tmp_path / "run", idle=lock.OWNER_TIMEOUT_S - 60)
    with pytest.raises(InputError, match="on elsewhere"), locked_folder(tmp_path / "run", "b"):
        pytest.fail("two owners")


@pytest.mark.usefixtures("quick")
def test_an_owner_on_another_machine_that_fell_silent_is_dead(tmp_path):
    left_by(tmp_path / "run", idle=lock.OWNER_TIMEOUT_S + 60)
    with locked_folder(tmp_path / "run", "b"):
        pass


@pytest.mark.parametrize("number", ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID"])
def test_a_job_waits_until_an_owner_on_another_machine_is_surely_dead(tmp_path, monkeypatch, number):
    monkeypatch.setattr(lock, "OWNER_TIMEOUT_S", 2.0)
    monkeypatch.setattr(lock, "HEARTBEAT_INTERVAL_S", 0.2)
    monkeypatch.setenv(number, "17")
    left_by(tmp_path / "run", idle=1)
    begun = time.monotonic()
    with locked_folder(tmp_path / "run", "b"):
        assert time.monotonic() - begun > 0.8


def test_a_job_leaves_a_folder_to_an_owner_on_another_machine_that_is_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "OWNER_TIMEOUT_S", 30.0)
    monkeypatch.setattr(lock, "HEARTBEAT_INTERVAL_S", 0.2)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    left_by(tmp_path / "run", idle=1)
    touch = threading.Timer(0.5, os.utime, [tmp_path / "run" / LOCK_FILE])
    touch.start()
    with pytest.raises(InputError, match="on elsewhere"), locked_folder(tmp_path / "run", "b"):
        pytest.fail("two owners")
    touch.join()


def test_another_process_under_a_dead_one_s_number_owns_nothing(tmp_path):
    left_by(tmp_path / "run", idle=0, host=socket.gethostname(), ticks=1)
    with locked_folder(tmp_path / "run", "b"):
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"host": 1}'])
def test_what_is_no_lock_keeps_nobody_out(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    with locked_folder(tmp_path, "b"):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_held_lock_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_INTERVAL_S", 0.01)
    with locked_folder(tmp_path, "b"):
        os.utime(tmp_path / LOCK_FILE, (1, 1))
        deadline = time.monotonic() + 30
        while (tmp_path / LOCK_FILE).stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def compete(folder: Path, start, owners) -> None:
    start.wait(30)
    try:
        with locked_folder(folder, "c"):
            owners.put(os.getpid())
            time.sleep(1)
    except InputError:
        owners.put(0)


@pytest.mark.usefixtures("quick")
def test_of_many_who_find_a_dead_lock_one_gets_it(tmp_path):
    left_by(tmp_path / "run", idle=1e4)
    start, owners = CONTEXT.Event(), CONTEXT.Queue()
    crowd = [CONTEXT.Process(target=compete, args=(tmp_path / "run", start, owners)) for _ in range(6)]
    for process in crowd:
        process.start()
    start.set()
    found = [owners.get(timeout=60) for _ in crowd]
    for process in crowd:
        process.join(30)
    assert sum(pid > 0 for pid in found) == 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
@pytest.mark.usefixtures("quick")
def test_a_file_system_without_hard_links_has_locks_too(tmp_path, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    left_by(tmp_path / "run", idle=lock.OWNER_TIMEOUT_S + 60)
    with locked_folder(tmp_path / "run", "b"):
        with pytest.raises(InputError, match="in use by process"), locked_folder(tmp_path / "run", "c"):
            pytest.fail("two owners")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
    assert not (tmp_path / "run").exists()


def test_a_living_owner_stays_one_when_the_clock_is_set(holder, tmp_path, monkeypatch):
    for step in (-1e5, -2.0, 2.0, 1e5):
        monkeypatch.setattr(psutil, "boot_time", lambda step=step: 1e9 + step)
        monkeypatch.setattr(psutil.Process, "create_time", lambda self, step=step: 1e9 + step)
        os.utime(tmp_path / "run" / LOCK_FILE, (time.time() + step,) * 2)
        with pytest.raises(InputError, match=f"in use by process {holder.pid} "), locked_folder(tmp_path / "run", "b"):
            pytest.fail("two owners")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("step", [-1e6, 1e6])
@pytest.mark.parametrize(
    "elsewhere",
    [{"boot": "another"}, {"namespace": "pid:[7]"}, {"host": "elsewhere"}, {"boot": "", "namespace": "", "ticks": 0}],
    ids=["same-name", "container", "machine", "no-proc"],
)
def test_an_owner_elsewhere_that_lives_is_one_whatever_the_clocks_say(elsewhere, step, tmp_path):
    left_by(tmp_path / "run", idle=step, **{"host": socket.gethostname(), "pid": 2**30, **elsewhere})
    over = threading.Event()

    def live():
        while not over.wait(0.05):
            os.utime(tmp_path / "run" / LOCK_FILE, (time.time() - step + time.monotonic() % 100,) * 2)

    beat = threading.Thread(target=live)
    beat.start()
    try:
        with (
            pytest.raises(InputError, match=r"whose last sign of life was \d+ s ago"),
            locked_folder(tmp_path / "run", "b"),
        ):
            pytest.fail("two owners")
    finally:
        over.set()
        beat.join()


@pytest.mark.usefixtures("quick")
def test_a_lock_from_the_future_that_nobody_touches_is_free(tmp_path):
    left_by(tmp_path / "run", idle=-1e6)
    with locked_folder(tmp_path / "run", "b"):
        pass


def test_a_process_that_never_was_owns_nothing(tmp_path):
    left_by(tmp_path / "run", idle=0, host=socket.gethostname(), pid=2**31 - 1)
    with locked_folder(tmp_path / "run", "b"):
        pass


def test_a_process_that_has_ended_owns_nothing_even_before_its_parent_asks(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ticks = lock._ticks(ended.pid)
    try:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        left_by(tmp_path / "run", idle=0, host=socket.gethostname(), pid=ended.pid, ticks=ticks)
        with locked_folder(tmp_path / "run", "b"):
            pass
    finally:
        ended.wait()


HOLD = """
import sys, time
from pathlib import Path
from laue_dask.io.lock import locked_folder
with locked_folder(Path(sys.argv[1]), "laue-dask run in a container"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_living_owner_in_another_namespace_of_processes_is_one(tmp_path, monkeypatch):
    apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("this user cannot make a namespace of processes")
    command = [*apart, sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as container:
        try:
            assert container.stdout.readline() == "held\n"
            with pytest.raises(InputError, match="in a container"), locked_folder(tmp_path / "run", "b"):
                pytest.fail("two owners")
        finally:
            container.kill()
    monkeypatch.setattr(lock, "HEARTBEAT_INTERVAL_S", 0.1)
    monkeypatch.setattr(lock, "OWNER_TIMEOUT_S", 0.5)
    time.sleep(0.6)
    with locked_folder(tmp_path / "run", "b"):  # it is gone, and in time this is seen
        pass


@pytest.mark.usefixtures("quick")
def test_a_lock_of_an_earlier_version_is_understood(tmp_path):
    old = {"host": socket.gethostname(), "pid": os.getpid(), "began": 1.0, "command": "laue-dask run a", "token": "t"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(old))
    with pytest.raises(InputError, match=rf"in use by process {os.getpid()} "), locked_folder(tmp_path, "b"):
        pytest.fail("two owners")
    os.utime(tmp_path / LOCK_FILE, (1, 1))
    with locked_folder(tmp_path, "b"):
        pass


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "socket"])
def test_a_lock_that_is_no_file_is_refused_in_a_line(kind, tmp_path):
    path, other = tmp_path / LOCK_FILE, tmp_path / "other"
    other.write_text("kept")
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to(other)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(os.path.relpath(path))
    with pytest.raises(InputError, match=rf"\.lock: a lock was expected, this is a {kind}: remove it$"):  # noqa: SIM117
        with locked_folder(tmp_path, "b"):
            pytest.fail("owned")
    assert os.path.lexists(path)
    assert other.read_text() == "kept"


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 300, b"[" * 50_000, b"x" * 100_000, b'{"host": "a", "pid": true, "command": "", "token": ""}'],
    ids=["empty", "zeros", "deep", "long", "types"],
)
@pytest.mark.parametrize("idle", [0, 1e6, -1e6])
def test_what_no_owner_wrote_keeps_nobody_out_for_long(content, idle, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_WRITE_TIMEOUT_S", 0.2)
    (tmp_path / LOCK_FILE).write_bytes(content)
    os.utime(tmp_path / LOCK_FILE, (time.time() - idle,) * 2)
    begun = time.monotonic()
    with locked_folder(tmp_path, "b"):
        assert time.monotonic() - begun < 10


def test_what_an_owner_says_of_itself_cannot_steer_a_terminal(tmp_path):
    left_by(tmp_path / "run", idle=0, command="a\x1b[2J\nlaue-dask: all fine")
    with pytest.raises(InputError) as caught, locked_folder(tmp_path / "run", "b"):
        pytest.fail("two owners")
    assert str(caught.value).isprintable()


def steal(path: Path) -> None:
    path.unlink()
    path.write_text(json.dumps(asdict(Owner.myself("laue-dask run thief"))))


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("theft", "told"),
    [
        (steal, r"run: another process may write here now \(process \d+ on .* \(`laue-dask run thief`\)\)"),
        (Path.unlink, r"run: another process may write here now \(its lock is gone\)"),
        (lambda path: path.write_text("{"), "its lock is gone"),
        (replace_by_folder, "this is a folder"),
    ],
    ids=["stolen", "gone", "overwritten", "folder"],
)
def test_an_owner_whose_lock_is_taken_stops_in_a_line_whatever_it_waits_for(theft, told, tmp_path):
    def own():
        with locked_folder(tmp_path / "run", "a"):
            theft(tmp_path / "run" / LOCK_FILE)
            time.sleep(60)

    begun = time.monotonic()
    with pytest.raises(ComputeError, match=told) as caught:
        own()
    assert time.monotonic() - begun < 20
    assert not interruption.is_interruption(caught.value)
    assert "\n" not in str(caught.value)
    assert os.path.lexists(tmp_path / "run" / LOCK_FILE) == (theft is not Path.unlink)


def test_an_owner_whose_lock_is_taken_writes_nothing_more(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "OWNERSHIP_CHECK_INTERVAL_S", 60)
    journal = Journal(tmp_path / "run" / "journal.jsonl")

    def own():
        with locked_folder(tmp_path / "run", "a"):
            journal.add({"block": 0})
            steal(tmp_path / "run" / LOCK_FILE)
            with pytest.raises(lock.LockLostError):
                write_atomically(tmp_path / "run" / "run.json", b"{}")
            journal.add({"block": 1})

    with pytest.raises(ComputeError, match="another process may write here"):
        own()
    assert list(journal.read()) == [0]
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.usefixtures("quick")
def test_a_lock_that_was_taken_by_mistake_and_put_back_stays_its_owner_s(tmp_path):
    path = tmp_path / "run" / LOCK_FILE
    with locked_folder(tmp_path / "run", "a"):
        for _ in range(20):
            path.rename(tmp_path / "aside")
            time.sleep(0.02)
            os.link(tmp_path / "aside", path)
            (tmp_path / "aside").unlink()
            time.sleep(0.03)
        lock.require_lock()


@pytest.mark.usefixtures("quick")
def test_a_loss_is_of_the_folder_that_was_lost(tmp_path):
    def own(stolen):
        with locked_folder(tmp_path / "outer", "a"), locked_folder(tmp_path / "inner", "a"):
            steal(tmp_path / stolen / LOCK_FILE)
            time.sleep(60)

    for stolen in ("outer", "inner"):
        with pytest.raises(ComputeError, match=f"{stolen}: another process may write here"):
            own(stolen)
        (tmp_path / stolen / LOCK_FILE).unlink()
    lock.require_lock()
