import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from laue_dask.compute import memory_preload
from laue_dask.compute.cluster import start
from laue_dask.config import LocalWorkersConfig

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is of the GNU C library")

PIN = []


@pytest.mark.parametrize(("held", "asked"), [(599, 0), (600, 0), (601, 1)])
def test_what_is_freed_is_given_back_by_a_process_that_holds_much(monkeypatch, held, asked):
    given = []
    monkeypatch.setattr(memory_preload, "trim", lambda: given.append(1))
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=held))
    memory_preload.trim_above(process, 600)
    assert len(given) == asked


def fragmented(limit):
    """Have this process hold so much, nearly all of it freed again, but below a piece that is in use."""
    process, pieces = psutil.Process(), []
    while process.memory_info().rss < limit:
        pieces.append(np.ones(2**17))  # 1 MiB, less than what is mapped on its own
    sys.modules[__name__].PIN.append(pieces[-1])  # of this process, for the function comes with a list of its own
    del pieces
    return process.memory_info().rss


def test_a_worker_is_not_paused_for_memory_that_it_has_freed():
    with start(LocalWorkersConfig(count=1, memory="1GiB", gpu="never")) as running:
        client = running.client
        # Dask pauses it at 819 MiB and ends it at 973 MiB
        assert client.submit(fragmented, 880 * 2**20, pure=False).result(timeout=60) > 850 * 2**20
        deadline = time.monotonic() + 60

        def status_and_memory():
            [worker] = client.scheduler_info(n_workers=-1)["workers"].values()
            return worker["status"], worker["metrics"]["memory"]

        while (seen := status_and_memory())[0] != "running" or seen[1] > 500 * 2**20:
            assert time.monotonic() < deadline, seen
            time.sleep(0.1)
        assert client.submit(abs, -1, pure=False).result(timeout=60) == 1
