"""A worker gives memory that it has freed back to the system, before Dask pauses the worker for holding it.

What is freed stays with a worker, for it is used again at once (`fork_server.MALLOC_ENVIRONMENT`). Dask counts it as
held, pauses a worker at 80 % of its limit, and a paused worker that has nothing left to release stays so for ever.

Dask calls `dask_setup` in each worker process that was started with ``--preload laue_dask.compute.memory_preload``.
"""

import ctypes
from contextlib import suppress
from functools import partial
from typing import Any

import psutil
from distributed import Worker
from tornado.ioloop import PeriodicCallback

CHECK_INTERVAL_S = 2.0
"""Seconds between two looks: what is given back and needed again costs a few milliseconds."""

TRIM_FROM_MEMORY_SHARE = 0.6
"""Share of its limit from which on a worker gives back what it has freed."""


async def dask_setup(worker: Worker) -> None:
    """Check the worker's memory as long as its event loop runs."""
    limit = worker.memory_manager.memory_limit
    if limit:
        callback = PeriodicCallback(
            partial(trim_above, psutil.Process(), TRIM_FROM_MEMORY_SHARE * limit), 1000 * CHECK_INTERVAL_S
        )
        worker.periodic_callbacks["laue-dask-memory"] = callback
        callback.start()


def trim_above(process: psutil.Process, limit_bytes: float) -> None:
    """Give back what this process has freed if it holds more than so many bytes."""
    if process.memory_info().rss > limit_bytes:
        trim()


def trim() -> None:
    """Return all freed memory to the system, where the C library has a way to do so (glibc)."""
    trim: Any = None
    with suppress(OSError, AttributeError):
        trim = ctypes.CDLL(None).malloc_trim
    if trim is not None:
        trim(0)
