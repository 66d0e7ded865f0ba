import errno
import gc
import json
import logging
import os
import pickle
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress

import dask
import dask.array as da
import psutil
import pytest
from dask.utils import format_bytes
from distributed import Client, Nanny, SpecCluster
from distributed.comm import CommClosedError
from distributed.utils import LoopRunner

from laue_dask.compute import cluster, credentials, local, supervisor, worker_pools
from laue_dask.compute.cluster import start
from laue_dask.compute.local import available_cores
from laue_dask.compute.run import map_tasks, run_blocks
from laue_dask.config import BatchWorkersConfig, LocalWorkersConfig, SchedulerWorkersConfig
from laue_dask.errors import ComputeError, ConfigError


@pytest.fixture
def no_cluster(monkeypatch):
    """Starting a cluster fails the test."""

    def forbidden(*_):
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(local, "start_cluster", forbidden)


def refused(**values):
    """The one-line message with which a cluster is refused."""
    with pytest.raises(ConfigError) as caught, start(LocalWorkersConfig(**values)):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("no_cluster")
def test_more_memory_than_the_machine_has_is_refused_with_both_numbers():
    message = refused(count=2, memory="1PiB", gpu="never")
    assert "2 workers of 1.00 PiB" in message
    assert format_bytes(psutil.virtual_memory().total) in message


@pytest.mark.usefixtures("no_cluster")
def test_workers_that_together_need_more_memory_than_there_is_are_refused():
    total = psutil.virtual_memory().total
    assert "5 workers of" in refused(count=5, memory=str(total // 4), gpu="never")


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("memory", ["much", "4 GiBB", "4GiB each", "", "GiB GiB", "-4GiB", "0", "4", "nan", "inf"])
def test_a_memory_limit_that_is_no_size_is_refused_with_an_example(memory):
    message = refused(memory=memory, gpu="never")
    assert f"workers.memory = {memory!r}" in message
    assert "4GiB" in message


def test_the_default_memory_is_a_share_of_what_is_available(monkeypatch):
    machine = type("Memory", (), {"available": 8 * 10**9, "total": 10 * 10**9})
    monkeypatch.setattr(psutil, "virtual_memory", machine)
    monkeypatch.setattr(local, "MEMORY_LIMIT", 9 * 10**9)
    assert local.memory_limit(LocalWorkersConfig(), 4) == 1_500_000_000
    assert local.memory_limit(LocalWorkersConfig(), 1000) == local.MIN_WORKER_BYTES
    monkeypatch.setattr(local, "MEMORY_LIMIT", 4 * 10**9)
    assert local.memory_limit(LocalWorkersConfig(), 4) == local.MIN_WORKER_BYTES
    monkeypatch.setattr(local, "MEMORY_LIMIT", 6 * 10**9)
    assert local.memory_limit(LocalWorkersConfig(), 4) == 1_125_000_000
    assert local.memory_limit(LocalWorkersConfig(memory="2.5GB"), 4) == 2_500_000_000


@pytest.mark.usefixtures("no_cluster")
def test_a_scratch_folder_that_is_none_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for path in (file, tmp_path / "absent"):
        assert f"workers.scratch = {path}: this folder cannot be written to" in refused(scratch=path, gpu="never")


@pytest.mark.usefixtures("no_cluster")
def test_a_required_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(local, "gpu_count", lambda: 0)
    assert "workers.gpu = require, but no GPU is found" in refused(gpu="require")


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
        with pytest.raises(StartedError), start(LocalWorkersConfig(gpu=gpu)):
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
    assert all(address.startswith("tls://127.0.0.1:") for address in [*nannies, workers.client.scheduler.address])


def knock(port):
    """What a listening socket answers to a stranger who does not speak TLS."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as probe:
        probe.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with suppress(ConnectionResetError):
            return probe.recv(4096)
    return b""


def listening_ports():
    """Ports of this process and all that descend from it."""
    family = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    found = psutil.net_connections("inet")
    return {c.laddr.port for c in found if c.status == psutil.CONN_LISTEN and c.pid in family}


STRANGER = """
import sys
from distributed import Client, Security
own = Security.temporary() if sys.argv[2] == "own" else None
try:
    Client(sys.argv[1], security=own, timeout=3)
except (OSError, RuntimeError, TypeError):
    sys.exit(7)
"""


def test_every_port_of_a_local_run_is_closed_to_who_has_not_its_credentials(tmp_path):
    before = listening_ports()
    with start(LocalWorkersConfig(count=1, memory="1GiB", gpu="never", scratch=tmp_path)) as running:
        ports = listening_ports() - before
        assert len(ports) == 3  # the scheduler, a nanny, a worker
        assert all(knock(port)[:1] in (b"", b"\x15") for port in ports)  # nothing, or an alert of TLS
        address = running.client.scheduler.address
        for stranger, credentials_of in ((address.replace("tls", "tcp"), "none"), (address, "none"), (address, "own")):
            command = [sys.executable, "-c", STRANGER, stranger, credentials_of]
            assert subprocess.run(command, capture_output=True, timeout=60).returncode == 7, stranger
        assert running.client.submit(len, "ab").result() == 2
        keys = [path for path in tmp_path.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
        assert keys == []


def test_a_local_cluster_without_tls_is_made_with_a_warning(monkeypatch):
    said = []
    monkeypatch.setattr(cluster.logger, "warning", lambda text, *values: said.append(text % values))
    before = listening_ports()
    with start(LocalWorkersConfig(count=1, memory="1GiB", gpu="never", security="none")) as running:
        assert running.client.submit(len, "ab").result() == 2
        assert any(b"compression" in knock(port) for port in listening_ports() - before)  # the test can fail
    [warning] = said
    assert warning.startswith("workers.security = none: every user of this machine can run anything as ")


def test_credentials_are_of_their_run_alone_and_do_not_expire_with_a_clock():
    from cryptography import x509

    first, second = credentials.new(), credentials.new()
    assert first.tls_worker_key != second.tls_worker_key
    certificate = x509.load_pem_x509_certificate(first.tls_ca_file.encode())
    assert certificate.not_valid_before_utc.year <= 2000
    assert certificate.not_valid_after_utc.year >= 9999


def test_a_key_is_not_written_to_a_file_when_it_is_used(monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryDirectory", lambda *_, **__: pytest.fail("a folder was made"))
    given = pickle.loads(pickle.dumps(credentials.new()))  # noqa: S301  as a worker gets it
    assert given.get_listen_args("worker")["ssl_context"].verify_mode == ssl.CERT_REQUIRED
    assert given.tls_worker_key not in repr(given)


def outward_address():
    """The machine's own address on a network, None without one."""
    addresses = [a for several in psutil.net_if_addrs().values() for a in several if a.family == socket.AF_INET]
    return next((a.address for a in addresses if not a.address.startswith("127.")), None)


def test_a_scan_from_the_network_finds_no_open_port(workers):
    address = outward_address()
    if address is None:
        pytest.skip("this machine has no network")
    mine = listening_ports()
    assert len(mine) >= 1 + 2 * workers.count  # the scheduler; each worker and its nanny
    for port in mine:
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((address, port)) == errno.ECONNREFUSED, port


def test_a_cluster_is_what_was_asked_for_and_leaves_nothing_behind(tmp_path):
    config = LocalWorkersConfig(count=1, memory="1GiB", scratch=tmp_path, gpu="never", dashboard=True)
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
    monkeypatch.setattr(supervisor, "CHECK_INTERVAL_S", 0.1)
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "100ms"}),
        start(LocalWorkersConfig(count=1, memory="1GiB", scratch=tmp_path, gpu="never")) as running,
    ):
        client = running.client
        [before] = client.run(os.getpid).values()
        client.sync(client.cluster.workers["cpu-0"].close)
        assert client.submit(os.getpid).result(timeout=60) != before


def test_a_worker_that_dies_while_all_are_told_what_to_forward_ends_nothing(monkeypatch):
    told, forward = [], Client.forward_logging

    def dying(client, *arguments):
        told.append(arguments)
        if len(told) < 3:
            raise CommClosedError("Stream is closed")
        return forward(client, *arguments)

    monkeypatch.setattr(Client, "forward_logging", dying)
    with start(LocalWorkersConfig(count=1, gpu="never")) as running:
        assert running.client.submit(len, "ab").result() == 2
    assert told == [("laue_dask.features", logging.WARNING)] * 3


def test_workers_that_never_start_end_the_command_in_time_with_the_cause(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(local, "start_cluster", lambda config, *_: SpecCluster({}, local.scheduler(False)))
    begun = time.monotonic()
    with (
        pytest.raises(
            ComputeError, match=r"^no worker for \d\.\d s: the worker processes .*\(the cluster's state is in "
        ),
        start(LocalWorkersConfig(count=1, gpu="never", timeout=1), folder=tmp_path),
    ):
        pytest.fail("it started")
    assert time.monotonic() - begun < 20
    state = json.loads((tmp_path / "cluster" / "state.json").read_text())
    assert (state["workers"], state["tasks"]) == ({}, {})


async def nothing(*_):
    """Mend nothing."""


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: run_blocks([dask.delayed(dict)(block=i) for i in range(5)], client=client),
        lambda client: map_tasks(len, ["a", "b"], (), client=client),
        lambda client: map_tasks(max, [1, 2], (3,), client=client),
        lambda client: da.ones(10, chunks=5).sum().compute(),
        lambda client: client.submit(len, "a").result(),
    ],
    ids=["blocks", "tasks", "shared", "array", "future"],
)
def test_whatever_waits_for_workers_that_are_gone_for_good_ends_in_time(ask, monkeypatch, tmp_path):
    monkeypatch.setattr(supervisor, "CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(worker_pools.LocalWorkerPool, "restart_missing", nothing)
    lost = []

    def work():
        config = LocalWorkersConfig(count=1, memory="1GiB", gpu="never", timeout=2)
        with start(config, folder=tmp_path) as running:
            running.client.sync(running.client.cluster.workers["cpu-0"].close)
            lost.append(time.monotonic())
            ask(running.client)

    with pytest.raises(ComputeError, match=r"^no worker for \d\.\d s") as caught:
        work()
    assert "\n" not in str(caught.value)
    assert time.monotonic() - lost[0] < 30


# Dask's cluster cannot be deleted before its loop was there.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "config",
    [
        LocalWorkersConfig(count=1, gpu="never"),
        BatchWorkersConfig(kind="slurm", count=1, memory="1GiB", walltime="00:10:00"),
        SchedulerWorkersConfig(kind="scheduler", address="tcp://127.0.0.1:1"),
    ],
    ids=["local", "batch", "scheduler"],
)
def test_a_machine_too_busy_to_start_the_event_loop_is_told_in_one_line(config, monkeypatch, tmp_path):
    def stalled(_):
        # as Dask's own assertion: it has no words
        raise AssertionError

    submit = tmp_path / "sbatch"  # whether or not the machine has a batch system
    submit.write_text("#!/bin/sh\n")
    submit.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(LoopRunner, "_start_unlocked", stalled)
    with pytest.raises(ComputeError, match=local.EVENT_LOOP_ERROR[:40]) as caught, start(config, folder=tmp_path):
        pass
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()


def test_workers_that_are_gone_while_nothing_is_asked_of_them_end_nothing(monkeypatch):
    monkeypatch.setattr(supervisor, "CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(worker_pools.LocalWorkerPool, "restart_missing", nothing)
    with start(LocalWorkersConfig(count=1, memory="1GiB", gpu="never", timeout=1)) as running:
        running.client.sync(running.client.cluster.workers["cpu-0"].close)
        time.sleep(2)
        assert running.client.status == "running"


def test_a_run_in_which_nothing_begins_or_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(supervisor, "CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(supervisor, "NO_PROGRESS_TIMEOUT_S", 1.0)
    with (
        pytest.raises(ComputeError, match=r"^no task has begun or ended for 1\.0 s \(1 to be done, 1 workers\)"),
        start(LocalWorkersConfig(count=1, memory="1GiB", gpu="never")) as running,
    ):
        running.client.submit(time.sleep, 60).result()


def test_a_run_whose_workers_are_all_paused_is_given_up(monkeypatch):
    monkeypatch.setattr(supervisor, "CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(supervisor, "ALL_PAUSED_TIMEOUT_S", 1.0)
    full = {f"distributed.worker.memory.{name}": 0.01 for name in ("target", "spill", "pause")}
    with (
        pytest.raises(ComputeError, match=r"^all 1 workers have been paused for 1\.0 s, with 1 tasks to be done: "),
        dask.config.set(full),
        start(LocalWorkersConfig(count=1, memory="1GiB", gpu="never")) as running,
    ):
        running.client.submit(time.sleep, 60).result()


def test_a_command_that_knows_itself_how_to_end_is_left_to_it():
    def own(*_):
        pytest.fail("nobody sent a signal")

    before = signal.signal(signal.SIGTERM, own)
    try:
        with start(LocalWorkersConfig(count=1, memory="1GiB", gpu="never")):
            assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def usual_end():
    """SIGTERM ends this process, as it does unless somebody (such as one who measures coverage) has another wish."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("usual_end")
def test_a_command_that_is_told_to_end_leaves_no_worker(tmp_path):
    pids = []

    def work():
        with start(LocalWorkersConfig(count=1, memory="1GiB", gpu="never")) as running:
            pids.extend(running.client.run(os.getpid).values())
            threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()
            running.client.submit(time.sleep, 60).result()

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_run_leaves_a_report_that_needs_no_network(tmp_path):
    config = LocalWorkersConfig(count=1, memory="1GiB", gpu="never")
    with start(config, folder=tmp_path, report=True) as running:
        running.client.gather(running.client.map(str, range(20)))
    assert not (tmp_path / "dask-report.html").exists()  # of a run that may be refused yet
    cluster.publish_report(tmp_path)
    text = (tmp_path / "dask-report.html").read_text()
    assert "Dask Performance Report" in text
    assert "<script src=" not in text.replace(' type="text/javascript"', "")
    assert [path.name for path in tmp_path.iterdir()] == ["dask-report.html"]


def test_a_report_that_cannot_be_written_fails_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "dask-report.html").mkdir()
    with start(
        LocalWorkersConfig(count=1, memory="1GiB", gpu="never"), folder=tmp_path / "run", report=True
    ) as running:
        assert running.client.submit(len, "abc").result() == 3
    with start(
        LocalWorkersConfig(count=1, memory="1GiB", gpu="never", report=False), folder=tmp_path / "none", report=True
    ):
        pass
    assert not (tmp_path / "none").exists()


@pytest.fixture
def elsewhere(tmp_path):
    """A scheduler that is there already, over TLS, and the files of its credentials."""
    with (
        credentials.temporary(tmp_path) as (here, there),
        SpecCluster(
            {
                "w": {
                    "cls": Nanny,
                    "options": {"nthreads": 1, "security": here, "host": "127.0.0.1", "dashboard": False},
                }
            },
            local.scheduler(False, host="127.0.0.1", protocol="tls://", security=here),
            security=here,
        ) as running,
    ):
        files = {"ca": there.tls_ca_file, "cert": there.tls_worker_cert, "key": there.tls_worker_key}
        yield running.scheduler_address, files


def test_a_scheduler_that_is_there_already_is_used_and_left_running(elsewhere, tmp_path):
    address, files = elsewhere
    (tmp_path / "scheduler.json").write_text(json.dumps({"address": address}))
    for where in ({"address": address}, {"file": tmp_path / "scheduler.json"}):
        with start(SchedulerWorkersConfig(kind="scheduler", **where, **files)) as running:
            assert running.client.submit(len, "abc").result() == 3
            assert (running.count, running.gpu) == (1, None)
            assert running.described == f"1 CPU worker and 0 GPU workers of {address}"


def test_a_scheduler_that_cannot_be_used_is_refused_in_one_line(elsewhere, tmp_path):
    address, files = elsewhere
    cases = [
        ({"address": address}, ComputeError, "the scheduler cannot be reached"),  # without credentials
        ({"address": "tls://127.0.0.1:1", **files}, ComputeError, "the scheduler cannot be reached"),
        ({"address": "tcp://192.0.2.7:8786"}, ConfigError, "whoever reaches it can run anything"),
        ({"file": tmp_path / "none.json"}, ConfigError, "not a scheduler file"),
        ({"address": address, "gpu": "require", **files}, ConfigError, "no worker of .* has the resource GPU"),
    ]
    for values, error, message in cases:
        config = SchedulerWorkersConfig(kind="scheduler", timeout=2, **values)
        with pytest.raises(error, match=message) as caught, start(config):
            pytest.fail("it was used")
        assert "\n" not in str(caught.value)


def asked(port, path, cookie=""):
    """What the dashboard answers."""
    with socket.create_connection(("127.0.0.1", int(port)), timeout=20) as probe:
        probe.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\nCookie: {cookie}\r\n\r\n".encode())
        return probe.makefile("rb").read()


def test_the_way_to_the_dashboard_is_told(monkeypatch):
    said = []
    monkeypatch.setattr(cluster.logger, "info", lambda text, *values: said.append(text % values))
    with start(LocalWorkersConfig(count=1, memory="1GiB", gpu="never", dashboard=True)) as running:
        port = running.client.dashboard_link.split(":")[2].split("/")[0]
        assert b"403" in knock(int(port)).splitlines()[0]
        assert b"302" in asked(port, f"/status?token={running.client.cluster.scheduler.token}").splitlines()[0]
        cookie = f"laue-dask-{port}={running.client.cluster.scheduler.token}"
        assert b"200" in asked(port, "/status", cookie).splitlines()[0]
        assert b"403" in asked(port, "/status", cookie[:-1]).splitlines()[0]
        assert b"403" in asked(port, "/json/counts.json?token=").splitlines()[0]
    workers, link, tunnel = said
    assert re.search(rf": http://127.0.0.1:{port}/status\?token=[\w-]{{20,}}$", link)
    assert workers == f"1 CPU worker of 1.00 GiB, no GPU, dashboard http://127.0.0.1:{port}/status"
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in tunnel


def test_workers_that_were_to_have_a_gpu_and_have_none_are_told_and_cpu_workers_encode(monkeypatch):
    said = []
    monkeypatch.setattr(local, "gpu_count", lambda: 1)
    monkeypatch.setattr(cluster.logger, "warning", lambda text, *values: said.append(text % values))
    with start(LocalWorkersConfig(count=1, memory="1GiB")) as running:
        assert running.described == "1 CPU worker of 1.00 GiB and 1 GPU worker"
        assert running.gpu is None
        assert running.gpu is None
    assert said == ["PyTorch finds no GPU on 127.0.0.1: CPU workers encode"]


def test_a_gpu_that_is_required_must_be_seen_by_its_worker(monkeypatch):
    monkeypatch.setattr(local, "gpu_count", lambda: 1)

    def work():
        with start(LocalWorkersConfig(count=1, memory="1GiB", gpu="require")) as running:
            return running.gpu

    with pytest.raises(ComputeError, match=r"PyTorch finds no GPU on .*: no GPU, but workers\.gpu = require"):
        work()


@pytest.fixture
def refusing(tmp_path, monkeypatch):
    """A SLURM that takes no job."""
    command = tmp_path / "sbatch"
    command.write_text("#!/bin/sh\necho 'sbatch: error: Invalid account' >&2\nexit 1\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(supervisor, "CHECK_INTERVAL_S", 0.1)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("refusing")
@pytest.mark.parametrize("security", ["tls", "none"])
def test_a_cluster_without_tls_is_made_with_a_warning_alone_and_leaves_nothing(security, monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(cluster.logger, "warning", lambda text, *values: said.append(text % values))
    with (
        pytest.raises(ComputeError, match=r"^no worker: sbatch: error: Invalid account$"),
        start(BatchWorkersConfig(kind="slurm", security=security)),
    ):
        pytest.fail("it started")
    assert len(said) == (security == "none")
    assert all("workers.security = none: whoever reaches it can run anything as" in text for text in said)
    assert [path.name for path in tmp_path.iterdir()] == ["sbatch"]


@pytest.mark.usefixtures("refusing")
def test_an_interface_that_is_not_there_is_refused_with_those_that_are():
    with (
        pytest.raises(ComputeError, match=r"^workers\.interface = ib9: .* Valid network interfaces are: \['lo'"),
        start(BatchWorkersConfig(kind="slurm", interface="ib9")),
    ):
        pytest.fail("it started")


def test_gpus_that_are_required_must_be_asked_for():
    with (
        pytest.raises(ConfigError, match=r"workers\.gpu_jobs is missing"),
        start(BatchWorkersConfig(kind="slurm", gpu="require")),
    ):
        pytest.fail("it started")


def test_a_worker_that_dies_while_it_starts_is_started_again(tmp_path):
    left = tmp_path / "left"
    left.write_text(str(local.MAX_WORKER_STARTS - 1))
    (tmp_path / "die.py").write_text(
        f"import os, pathlib\nleft = pathlib.Path({str(left)!r})\ncount = int(left.read_text())\n"
        "if count:\n    left.write_text(str(count - 1))\n    os.kill(os.getpid(), 9)\n"
    )
    config = LocalWorkersConfig(count=1, memory="1GiB", gpu="never")
    with dask.config.set({"distributed.worker.preload": [str(tmp_path / "die.py")]}), start(config) as running:
        assert running.client.submit(sum, [1, 2]).result() == 3
    assert left.read_text() == "0"
