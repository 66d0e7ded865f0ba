"""One process imports what the workers of this machine need; they are forked from it, start at once and share it.

Each of them would otherwise spend seconds of its core on importing PyTorch, scikit-learn and Zarr when a run begins,
and again whenever one of them is replaced. Nothing heavy is imported here: a command has the process begin before it
imports anything itself.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

MALLOC_ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": 32 * 2**20, "MALLOC_MMAP_THRESHOLD_": 8 * 2**20, "MALLOC_ARENA_MAX": 1}
"""For the C library of a worker, in bytes: what is freed stays with the process, up to so much, and is used again.
Dask's own setting gives everything back at once, and a worker that asks for megabytes with every frame spends a third
of its time on getting empty pages from the system. There is one store of freed memory and not one for each thread: what
those keep adds up until Dask pauses the worker."""

DASK_PROFILING_CONFIG = {"distributed.worker.profile.interval": "100ms", "distributed.admin.tick.interval": "500ms"}
"""Dask's configuration of this process and of the workers that it starts. A thread of each worker looks at what it is
doing, for Dask's report, and each event loop at whether it is on time: 100 and 50 times a second, as is Dask's own
setting, they take twentieths of a core that has other work to do."""

WORKER_ENVIRONMENT = {
    **MALLOC_ENVIRONMENT,
    # Every worker has one thread.
    **{f"{library}_NUM_THREADS": 1 for library in ("OMP", "MKL", "OPENBLAS")},
    **{f"DASK_{key.replace('.', '__')}".upper(): value for key, value in DASK_PROFILING_CONFIG.items()},
    # Dask's: sets of strings are in the same order in all workers.
    "PYTHONHASHSEED": 6640,
}
"""In which workers start, those of batch jobs as well."""

WORKER_PROCESS_NAME_PREFIX = "Dask Worker process"
"""How the names of processes begin in which Dask starts workers."""

_PRELOADED_MODULE = "laue_dask.compute.fork_server_imports"


def available() -> bool:
    """Return whether this system can start processes that way."""
    return "forkserver" in multiprocessing.get_all_start_methods()


def start() -> None:
    """Have the process begin with its imports, if it has not; returns at once."""
    if not available():
        return
    from multiprocessing import forkserver, resource_tracker, util

    # Python 3.11.0 has the process listen where other users of the machine reach it (CVE-2022-42919); later ones not.
    setattr(util, "abstract_sockets_supported", False)  # noqa: B010  to the type checker it is final
    resource_tracker.ensure_running()  # begins with it, and would end what is blocked here
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update({name: str(value) for name, value in WORKER_ENVIRONMENT.items()})
    # A terminal sends Ctrl-C to this process as well, which has nothing to say to it: it ends with its parent.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.set_forkserver_preload([_PRELOADED_MODULE])
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def without_script() -> Iterator[None]:
    """Keep workers of Dask that start in here from running the caller's script again.

    `multiprocessing` has every new process do so, for functions of the script that it may be asked for. Workers are
    asked for none; a script would have to say ``if __name__ == "__main__":``, or each worker would begin with its run.
    """
    from multiprocessing import spawn

    usual = spawn.get_preparation_data

    def prepared(name: str) -> dict[str, Any]:
        told: dict[str, Any] = usual(name)
        if name.startswith(WORKER_PROCESS_NAME_PREFIX):
            told = {key: value for key, value in told.items() if not key.startswith("init_main_from_")}
        return told

    setattr(spawn, "get_preparation_data", prepared)  # noqa: B010  to the type checker a function does not change
    try:
        yield
    finally:
        setattr(spawn, "get_preparation_data", usual)  # noqa: B010


def stop() -> None:
    """End the process, whatever it is importing, and those that were forked from it and nobody has stopped.

    They would find that out by themselves, but seconds later, and with a traceback.
    """
    module = sys.modules.get("multiprocessing.forkserver")
    pid = getattr(getattr(module, "_forkserver", None), "_forkserver_pid", None)
    if pid is None:
        return
    with suppress(Exception):  # of a process that is ending: of one that was interrupted while it imported psutil, too
        import psutil

        for process in psutil.Process(pid).children(recursive=True):
            process.kill()
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)
