"""Workers of this machine are forked from one process that has imported what they need."""

import gc
import os
import subprocess
import sys
from contextlib import suppress

import dask
import psutil
import pytest

from laue_dask.compute import fork_server
from laue_dask.compute.cluster import start
from laue_dask.config import LocalWorkersConfig

pytestmark = pytest.mark.skipif(not fork_server.available(), reason="no forkserver on this system")


def seen():
    """What a worker finds when its first task begins."""
    names = ("torch", "sklearn", "zarr", "laue_dask.pipeline.stages.ingest")
    assert {key: dask.config.get(key) for key in fork_server.DASK_PROFILING_CONFIG} == fork_server.DASK_PROFILING_CONFIG
    collected = gc.isenabled() and gc.get_freeze_count() > 0
    return (
        {name: name in sys.modules for name in names},
        collected,
        {name: os.environ.get(name) for name in fork_server.WORKER_ENVIRONMENT},
    )


def test_workers_start_with_all_imports_done_and_in_their_environment():
    before = dict(os.environ)
    fork_server.start()
    assert dict(os.environ) == before
    with start(LocalWorkersConfig(count=2, memory="1GiB", gpu="never")) as running:
        found = list(running.client.run(seen).values())
        pids = list(running.client.run(os.getpid).values())
        parents = {psutil.Process(pid).ppid() for pid in pids}
    assert len(found) == 2
    for imported, collected, environment in found:
        assert all(imported.values())
        assert collected
        assert environment == {name: str(value) for name, value in fork_server.WORKER_ENVIRONMENT.items()}
    assert len(parents) == 1
    assert parents != {os.getpid()}
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_the_process_ends_with_the_one_that_had_it_begin_and_that_imports_nothing_for_it():
    code = (
        "import sys\nfrom multiprocessing import forkserver\nfrom laue_dask.compute import fork_server\n"
        "fork_server.start()\n"
        "print(forkserver._forkserver._forkserver_pid, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    pid, *imported = done.stdout.split()
    assert imported == ["False", "False"]
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(pid)).wait(60)
    assert not psutil.pid_exists(int(pid))
