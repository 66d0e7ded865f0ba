"""One owner per folder, whoever dies."""

import errno
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from laue_dask.errors import InputError
from laue_dask.io import lock
from laue_dask.io.lock import NAME, Owner, locked, locked_store

CONTEXT = multiprocessing.get_context("fork")


def hold(folder: Path, told) -> None:
    with locked(folder, "laue-dask run a"):
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
    with pytest.raises(InputError, match=told), locked(tmp_path / "run", "b"):
        pytest.fail("two owners")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [NAME]


def test_a_killed_owner_s_lock_is_free_at_once(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(30)
    assert (tmp_path / "run" / NAME).exists()
    with locked(tmp_path / "run", "b"):
        assert Owner(**json.loads((tmp_path / "run" / NAME).read_text())).pid == os.getpid()
    assert not (tmp_path / "run").exists()


def test_a_store_is_locked_beside_it_and_nothing_is_left(tmp_path):
    store = tmp_path / "scan.zarr"
    with locked_store(store, "ingest a"):
        assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}-scan.zarr"]
        told = rf"scan\.zarr: in use by process {os.getpid()} on .* \(`ingest a`\): wait for it$"
        with pytest.raises(InputError, match=told), locked_store(store, "b"):
            pytest.fail("two owners")
        with locked_store(tmp_path / "other.zarr", "c"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_command_that_wrote_nothing_and_nothing_is_taken_from_one_that_did(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / "a" / "b", "x"):
        raise RuntimeError
    assert not (tmp_path / "a" / "b").exists()
    with locked(tmp_path / "c", "x"):
        (tmp_path / "c" / "result").touch()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["result"]


def left_by(folder: Path, *, idle: float, **changes) -> None:
    """A lock of an owner elsewhere."""
    folder.mkdir()
    owner = asdict(Owner.myself("laue-dask run far")) | {"host": "elsewhere"} | changes
    (folder / NAME).write_text(json.dumps(owner))
    os.utime(folder / NAME, (time.time() - idle,) * 2)


def test_an_owner_on_another_machine_is_alive_while_it_touches_its_lock(tmp_path):
    left_by(tmp_path / "run", idle=lock.PATIENCE - 60)
    with pytest.raises(InputError, match="on elsewhere"), locked(tmp_path / "run", "b"):
        pytest.fail("two owners")


def test_an_owner_on_another_machine_that_fell_silent_is_dead(tmp_path):
    left_by(tmp_path / "run", idle=lock.PATIENCE + 60)
    with locked(tmp_path / "run", "b"):
        pass


@pytest.mark.parametrize("number", ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID"])
def test_a_job_waits_until_an_owner_on_another_machine_is_surely_dead(tmp_path, monkeypatch, number):
    monkeypatch.setattr(lock, "PATIENCE", 2.0)
    monkeypatch.setattr(lock, "HEARTBEAT", 0.2)
    monkeypatch.setenv(number, "17")
    left_by(tmp_path / "run", idle=1)
    begun = time.monotonic()
    with locked(tmp_path / "run", "b"):
        assert time.monotonic() - begun > 0.8


def test_a_job_leaves_a_folder_to_an_owner_on_another_machine_that_is_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 30.0)
    monkeypatch.setattr(lock, "HEARTBEAT", 0.2)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    left_by(tmp_path / "run", idle=1)
    touch = threading.Timer(0.5, os.utime, [tmp_path / "run" / NAME])
    touch.start()
    with pytest.raises(InputError, match="on elsewhere"), locked(tmp_path / "run", "b"):
        pytest.fail("two owners")
    touch.join()


def test_another_process_under_a_dead_one_s_number_owns_nothing(tmp_path):
    left_by(tmp_path / "run", idle=0, host=socket.gethostname(), began=1.0)
    with locked(tmp_path / "run", "b"):
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"host": 1}'])
def test_what_is_no_lock_keeps_nobody_out(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    with locked(tmp_path, "b"):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_a_held_lock_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    with locked(tmp_path, "b"):
        os.utime(tmp_path / NAME, (1, 1))
        deadline = time.monotonic() + 30
        while (tmp_path / NAME).stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def compete(folder: Path, start, owners) -> None:
    start.wait(30)
    try:
        with locked(folder, "c"):
            owners.put(os.getpid())
            time.sleep(1)
    except InputError:
        owners.put(0)


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
def test_a_file_system_without_hard_links_has_locks_too(tmp_path, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    left_by(tmp_path / "run", idle=lock.PATIENCE + 60)
    with locked(tmp_path / "run", "b"):
        with pytest.raises(InputError, match="in use by process"), locked(tmp_path / "run", "c"):
            pytest.fail("two owners")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [NAME]
    assert not (tmp_path / "run").exists()
