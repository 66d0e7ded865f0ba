"""Runs on a real SLURM of one node: TLS, walltime, lost jobs, a requeued driver, and what can never start."""

import json
import os
import stat
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest
from dask.delayed import delayed
from distributed import Client, SchedulerPlugin

from laue_dask.compute import cluster, supervisor, worker_pools
from laue_dask.compute.run import run_blocks
from laue_dask.config import dump
from laue_dask.errors import ComputeError
from laue_dask.io import results
from laue_dask.pipeline import single_scan
from laue_dask.runtime.progress import QuietProgress

# Workers cannot import a test module: what it defines travels with the tasks.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(600)  # jobs wait for a batch system that looks every few seconds


def batch(**changes):
    """Configuration of a small cluster of CPU workers and a worker that is tagged as if it had a GPU."""
    tagged = {"gpus": 0, "workers": 1, "memory": "1GiB", "resources": {"GPU": 1}}
    return {"kind": "slurm", "workers": 2, "memory": "1GiB", "walltime": "00:10:00", "timeout": 120,
            "report": False, "gpu_jobs": tagged, **changes}  # fmt: skip


def everything(folder):
    """All variables of a finished run, as bytes."""
    found = results.read(folder).load()
    return {
        name: (array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes())
        for name, array in found.variables.items()
    }


@pytest.fixture(scope="module")
def at_home(small_run):
    """What a run on workers of this machine finds."""
    return everything(small_run)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """The supervisor looks more often than it should on a machine that others use."""
    monkeypatch.setattr(supervisor, "CHECK_INTERVAL_S", 0.5)
    monkeypatch.setattr(worker_pools, "QUEUE_POLL_INTERVAL_S", 1.0)


def called(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout.split()


def alive():
    """Numbers of the jobs that wait or run."""
    return called("squeue", "--noheader", "--states=pending,running", "--format=%i")


def waits(count, marks=None, seconds=0.0):
    """Tasks that take a while, and leave marks when they begin and when they are done."""

    def work(block):
        name = f"{block}-{uuid.uuid4().hex}"
        if marks is not None:
            (marks / f"{name}.begun").touch()
        time.sleep(seconds)
        if marks is not None:
            (marks / f"{name}.done").touch()
        return {"block": block}

    return [delayed(work, pure=False)(block) for block in range(count)]


class Placed(SchedulerPlugin):
    """Keeps where tasks that ask for a GPU were done, and where all others were."""

    def __init__(self, scheduler):
        self.scheduler, self.tagged, self.others = scheduler, [], []

    def transition(self, key, start, finish, *args, worker=None, **kwargs):
        if (start, finish) == ("processing", "memory"):
            wanted = (self.scheduler.tasks[key].resource_restrictions or {}).get("GPU")
            (self.tagged if wanted else self.others).append(worker)


class Meddling(QuietProgress):
    """Does something once, when a stage begins."""

    def __init__(self, stage, meddle):
        self._stage, self._meddle = stage, meddle

    @contextmanager
    def stage(self, name, **options):
        if name == self._stage and self._meddle:
            meddle, self._meddle = self._meddle, None
            meddle()
        yield lambda count: None


async def let_in(address):
    # on the loop that runs already: Dask gives a new one 10 s to start, which a busy machine exceeds
    stranger = Client(address, timeout=3, asynchronous=True, set_as_default=False)
    try:
        await stranger
        pytest.fail("a stranger was let in")
    finally:
        await stranger.close()  # else it is closed when it is collected, which on a loop's thread is a warning


def listening(pids):
    found = set()
    for pid in pids:
        for connection in psutil.Process(pid).net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                found.add((connection.laddr.ip, connection.laddr.port))
    return found


def wait_for_running(client, count):
    """Wait for so many workers that take tasks; what all are and hold is told if they are not there in time."""
    deadline = time.monotonic() + 120
    while True:
        seen = client.scheduler_info(n_workers=-1)["workers"].values()
        states = {worker["name"]: (worker["status"], worker["metrics"].get("memory")) for worker in seen}
        if sum(status == "running" for status, _ in states.values()) >= count:
            return
        assert time.monotonic() < deadline, (states, called("squeue", "--format=%i,%T,%r"))
        time.sleep(0.2)


@pytest.mark.usefixtures("slurm")
def test_a_run_over_tls_places_gpu_work_on_gpu_workers_and_ends_as_at_home(small_scan, quick, at_home, tmp_path):
    config = quick(workers=batch(), quality="all")
    keys = tmp_path / "run" / "cluster" / "credentials"
    with cluster.start(config.workers, folder=tmp_path / "run") as running:
        client = running.client
        assert running.gpu == {"GPU": 1.0}
        assert "2 CPU workers in 2 jobs and 1 GPU worker in 1 job of SLURM, TLS" in running.described
        assert stat.S_IMODE(keys.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in keys.iterdir()} == {0o600}
        address = client.scheduler.address
        assert address.startswith("tls://")
        for stranger in (address, address.replace("tls://", "tcp://")):
            # no credentials, and no encryption
            with pytest.raises((OSError, TypeError)):
                client.sync(let_in, stranger)
        placed = Placed(client.cluster.scheduler)
        client.cluster.scheduler.add_plugin(placed)
        single_scan.run(
            str(small_scan), tmp_path / "run", config, command="test", progress=QuietProgress(), workers=running
        )
        wait_for_running(client, 3)
        assert len(placed.tagged) >= 3
        assert len(run_blocks(waits(40), client=client, resources=running.gpu)) == 40
        workers = client.scheduler_info(n_workers=-1)["workers"]
        tagged = {address for address, worker in workers.items() if worker["resources"].get("GPU")}
        assert len(tagged) == 1
        assert len(placed.tagged) >= 43
        assert set(placed.tagged) == tagged
        assert set(placed.others) - tagged
        # nothing but Dask's encrypted ports is open beyond the loopback interface
        pids = [*client.run(os.getpid).values(), *client.run(os.getppid).values(), os.getpid()]
        outside = {port for ip, port in listening(pids) if ip not in ("127.0.0.1", "::1")}
        known = [address, *workers, *(worker["nanny"] for worker in workers.values())]
        assert outside <= {int(one.rsplit(":", 1)[1]) for one in known}
    assert not keys.exists()
    assert same(tmp_path / "run", at_home)
    assert not alive()


def same(folder, at_home):
    found = everything(folder)
    assert found.keys() == at_home.keys()
    return [name for name, values in at_home.items() if found[name] != values] == []


@pytest.mark.usefixtures("slurm")
def test_workers_that_reach_the_end_of_their_time_are_replaced_and_the_run_ends_as_at_home(
    small_scan, quick, at_home, tmp_path
):
    first = []

    def until_all_are_replaced():
        deadline = time.monotonic() + 120
        while len(first) != 3:  # one may just have ended
            first[:] = alive()
        while set(first) & set(alive()):
            assert time.monotonic() < deadline
            time.sleep(0.2)

    config = quick(workers=batch(lifetime="15s"), quality="all")
    meddling = Meddling("components", until_all_are_replaced)
    single_scan.run(str(small_scan), tmp_path / "run", config, command="test", progress=meddling)
    assert len(first) == 3
    assert same(tmp_path / "run", at_home)
    assert not alive()


@pytest.mark.usefixtures("slurm")
def test_a_worker_at_the_end_of_its_time_loses_one_task_at_most(quick, tmp_path):
    config = quick(workers=batch(lifetime="8s", gpu_jobs=None))
    marks = tmp_path / "marks"
    marks.mkdir()

    def expired():
        logs = "".join(path.read_text() for path in (tmp_path / "run" / "cluster").glob("*.err"))
        return logs.count("worker-lifetime-reached")

    asked = 0
    deadline = time.monotonic() + 120
    with cluster.start(config.workers, folder=tmp_path / "run") as running:
        while not expired():
            assert time.monotonic() < deadline
            receipts = run_blocks(waits(12, marks, seconds=0.8), client=running.client)
            assert [receipt["block"] for receipt in receipts] == list(range(12))
            asked += 12
    begun, done = (len(list(marks.glob(f"*.{what}"))) for what in ("begun", "done"))
    assert done >= asked
    assert begun - asked <= expired()


@pytest.mark.usefixtures("slurm")
def test_a_run_that_loses_half_of_its_jobs_ends_as_at_home(small_scan, quick, at_home, tmp_path):
    config = quick(workers=batch(), quality="all")
    lost = []

    def lose_half():
        lost.extend(alive()[::2])
        called("scancel", *lost)

    single_scan.run(
        str(small_scan),
        tmp_path / "run",
        config,
        command="test",
        progress=Meddling("ingest, reduce and encode", lose_half),
    )
    assert len(lost) == 2
    assert same(tmp_path / "run", at_home)
    assert not alive()


def test_a_driver_that_is_queued_again_goes_on_and_ends_as_at_home(slurm, small_scan, quick, at_home, tmp_path):
    file, folder = tmp_path / "slurm.yaml", tmp_path / "run"
    file.write_text(dump(quick(workers=batch(), quality="all")))
    environment = {**os.environ, "LAUE_DASK": f"{sys.executable} -m laue_dask"}
    command = ["run", str(small_scan), "--out", str(folder), "--config", str(file)]
    submit = ["sbatch", "--parsable", f"--output={tmp_path}/driver.txt", "--mem=1G", "--cpus-per-task=1"]
    [driver] = called(*submit, REPOSITORY / "scripts" / "drivers" / "slurm.sh", *command, env=environment)

    def wait_for(ready):
        deadline = time.monotonic() + 120
        while not ready():
            assert time.monotonic() < deadline, (tmp_path / "driver.txt").read_text()
            time.sleep(0.1)

    wait_for(lambda: any(folder.glob("scan.zarr*")))
    called("scontrol", "requeue", driver)
    wait_for(lambda: called("squeue", "--noheader", "--format=%T", f"--jobs={driver}") == ["PENDING"])
    assert not (folder / "run.json").exists()
    time.sleep(3)  # SLURM refuses to launch a job in the second in which it was ended, for good

    def goes_on():
        # A job that is queued again is put off by two minutes, from when its end was seen.
        subprocess.run(["scontrol", "update", f"jobid={driver}", "starttime=now"], check=False, capture_output=True)
        return called("squeue", "--noheader", "--format=%T", f"--jobs={driver}") == ["RUNNING"]

    wait_for(goes_on)
    wait_for((folder / "run.json").exists)
    wait_for(lambda: not alive())
    said = (tmp_path / "driver.txt").read_text()
    assert "interrupted: the same command goes on where it stopped" in said
    assert "defect" not in said
    assert same(folder, at_home)


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"queue": "nowhere"}, "Invalid partition name specified"),
        ({"memory": "500TiB"}, "Memory specification can not be satisfied"),
        ({"directives": ["--begin=now+1hour"], "timeout": 6}, r"no worker for \d+\.\d s: 2 jobs PENDING \(BeginTime\)"),
        ({"python": "/nowhere/python"}, r"job \d+ ended before its workers started, .*/nowhere/python: No such file"),
    ],
)
def test_what_can_never_start_ends_in_time_with_the_reason(quick, tmp_path, changes, reason):
    config = quick(workers=batch(gpu_jobs=None, **changes))
    begun = time.monotonic()
    with (
        pytest.raises(ComputeError, match=reason) as caught,
        cluster.start(config.workers, folder=tmp_path / "run"),
    ):
        pytest.fail("it started")
    assert time.monotonic() - begun < 60
    assert "\n" not in str(caught.value)
    [state] = (tmp_path / "run" / "cluster").glob("state.json")
    assert str(state) in str(caught.value)
    assert json.loads(state.read_text())["workers"] == {}
    assert not alive()
