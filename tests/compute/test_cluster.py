import os

import dask
import psutil
import pytest
from dask.utils import format_bytes

from laue_dask.compute import local, supervisor
from laue_dask.compute.cluster import start
from laue_dask.compute.local import available_cores
from laue_dask.config import ClusterConfig
from laue_dask.errors import ConfigError


@pytest.fixture
def no_cluster(monkeypatch):
    """Starting a cluster fails the test."""

    def forbidden(*_):
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(local, "start_cluster", forbidden)


def refused(**values):
    """The one-line message with which a cluster is refused."""
    with pytest.raises(ConfigError) as caught, start(ClusterConfig(**values)):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("no_cluster")
def test_more_memory_than_the_machine_has_is_refused_with_both_numbers():
    message = refused(workers=2, memory="1PiB", gpu="never")
    assert "2 workers of 1.00 PiB" in message
    assert format_bytes(psutil.virtual_memory().total) in message


@pytest.mark.usefixtures("no_cluster")
def test_workers_that_together_need_more_memory_than_there_is_are_refused():
    total = psutil.virtual_memory().total
    assert "5 workers of" in refused(workers=5, memory=str(total // 4), gpu="never")


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("memory", ["much", "4 GiBB", "4GiB each", "", "GiB GiB", "-4GiB", "0", "4", "nan", "inf"])
def test_a_memory_limit_that_is_no_size_is_refused_with_an_example(memory):
    message = refused(memory=memory, gpu="never")
    assert f"cluster.memory = {memory!r}" in message
    assert "4GiB" in message


def test_the_default_memory_is_a_share_of_what_is_available(monkeypatch):
    machine = type("Memory", (), {"available": 8 * 10**9, "total": 10 * 10**9})
    monkeypatch.setattr(psutil, "virtual_memory", machine)
    monkeypatch.setattr(local, "MEMORY_LIMIT", 9 * 10**9)
    assert local.memory_limit(ClusterConfig(), 4) == 1_500_000_000
    assert local.memory_limit(ClusterConfig(), 1000) == local.SMALLEST_MEMORY
    monkeypatch.setattr(local, "MEMORY_LIMIT", 4 * 10**9)
    assert local.memory_limit(ClusterConfig(), 4) == 750_000_000
    assert local.memory_limit(ClusterConfig(memory="2.5GB"), 4) == 2_500_000_000


@pytest.mark.usefixtures("no_cluster")
def test_a_scratch_folder_that_is_none_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for path in (file, tmp_path / "absent"):
        assert f"cluster.scratch = {path}: not a folder" in refused(scratch=path, gpu="never")


@pytest.mark.usefixtures("no_cluster")
def test_a_required_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(local, "gpu_count", lambda: 0)
    assert "cluster.gpu = require, but no GPU is found" in refused(gpu="require")


def test_gpus_are_asked_for_unless_never(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(local, "gpu_count", lambda: 3)

    class StartedError(Exception):
        pass

    def started(config, count, gpus, memory, scratch):
        asked.append(gpus)
        raise StartedError

    monkeypatch.setattr(local, "start_cluster", started)
    for gpu in ("auto", "require", "never"):
        with pytest.raises(StartedError), start(ClusterConfig(gpu=gpu)):
            pass
    assert asked == [3, 3, 0]


def test_available_cores_are_those_of_the_process():
    cores = available_cores()
    assert 1 <= cores <= os.cpu_count()
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        try:
            assert available_cores() == 1
        finally:
            os.sched_setaffinity(0, allowed)
        assert available_cores() == len(allowed) == cores


def test_everything_listens_on_loopback_alone(workers):
    pids = [os.getpid(), *workers.client.run(os.getpid).values()]
    assert len(set(pids)) == 1 + workers.count
    for pid in pids:
        listening = [c.laddr.ip for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert listening
        assert set(listening) == {"127.0.0.1"}
    nannies = [n.address for n in workers.client.cluster.workers.values()]
    assert all(address.startswith("tcp://127.0.0.1:") for address in [*nannies, workers.client.scheduler.address])


def test_a_cluster_is_what_was_asked_for_and_leaves_nothing_behind(tmp_path):
    config = ClusterConfig(workers=1, memory="1GiB", scratch=tmp_path, gpu="never", dashboard=True)
    with start(config) as running:
        information = running.client.scheduler_info(n_workers=-1)["workers"]
        [worker] = information.values()
        assert (worker["nthreads"], worker["memory_limit"], worker["name"]) == (1, 2**30, "cpu-0")
        assert (running.count, running.gpu) == (1, None)
        assert running.described.startswith("1 CPU worker of 1.00 GiB, no GPU, dashboard http://127.0.0.1:")
        assert worker["local_directory"].startswith(str(tmp_path))
        [pid] = running.client.run(os.getpid).values()
        listening = [c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert set(listening) == {"127.0.0.1"}
    assert not list(tmp_path.iterdir())
    assert not psutil.pid_exists(pid)


def test_a_worker_that_dask_gives_up_is_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "LOOK", 0.1)
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "100ms"}),
        start(ClusterConfig(workers=1, memory="1GiB", scratch=tmp_path, gpu="never")) as running,
    ):
        client = running.client
        [before] = client.run(os.getpid).values()
        client.sync(client.cluster.workers["cpu-0"].close)
        assert client.submit(os.getpid).result(timeout=60) != before
