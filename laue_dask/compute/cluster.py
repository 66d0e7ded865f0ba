"""Where it runs: the only module that starts workers.

Every worker has one thread. CPU workers read and reduce; where there is a GPU, one more worker per GPU carries the
resource `GPU=1` and takes the encoding. A local cluster listens on the loopback interface only.
"""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from dask import config as dask_config
from dask.utils import format_bytes, parse_bytes
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.system import MEMORY_LIMIT
from tornado.ioloop import IOLoop, PeriodicCallback

from laue_dask.config import ClusterConfig
from laue_dask.errors import ComputeError, ConfigError

GPU = {"GPU": 1.0}
"""The resource that tasks of the encoder ask for where there is a GPU."""

MEMORY_SHARE = 0.75
"""Share of the available memory that the workers may use together."""

SMALLEST_MEMORY = 256 * 2**20
"""A worker that has imported the package cannot live with less; a limit below it is a forgotten unit."""

DEATHS = 8
"""Workers that may die with a block before it is given up: a death is suspected of every block that its worker held."""

USUAL_MEMORY = 2**30
"""What a worker needs for frames of any size; with less for each core, fewer workers are started."""

KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": 64 * 2**20, "MALLOC_MMAP_THRESHOLD_": 8 * 2**20}
"""For the C library of a worker, in bytes: what is freed stays with the process, up to so much, and is used again.
Dask's own setting gives everything back at once, and a worker that asks for megabytes with every frame spends a third
of its time on getting empty pages from the system."""

SUPERVISION = 3.0
"""Seconds between two looks at whether all workers are there."""


@dataclass(frozen=True)
class Workers:
    """A running cluster.

    Attributes
    ----------
    client
        Connected client; also Dask's default scheduler while it is open.
    count
        Number of CPU workers.
    gpu
        Resource request for tasks that run on a GPU, ``None`` without one.
    described
        One line for people.
    """

    client: Client
    count: int
    gpu: dict[str, float] | None
    described: str


@contextmanager
def start(config: ClusterConfig) -> Iterator[Workers]:
    """Start the configured workers and stop them at the end.

    Raises
    ------
    ConfigError
        The memory limit cannot be read or exceeds the machine's, or a GPU is required and none is found.
    ComputeError
        The workers do not start.
    """
    count, gpus, memory = extent(config)
    # Dask logs every worker that it stops; what matters to a person is raised instead.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with (
        dask_config.set({"distributed.nanny.pre-spawn-environ": _environment()}),
        tempfile.TemporaryDirectory(prefix="laue-dask-", dir=_scratch(config), ignore_cleanup_errors=True) as scratch,
        _cluster(config, count, gpus, memory, scratch) as cluster,
        Client(cluster) as client,
        _revived(cluster, client.loop),
    ):
        client.wait_for_workers(count + gpus, timeout=120)
        described = f"{count} CPU worker{'s' if count > 1 else ''} of {format_bytes(memory)}"
        described += f" and {gpus} GPU worker{'s' if gpus > 1 else ''}" if gpus else ", no GPU"
        if config.dashboard:
            described += f", dashboard {client.dashboard_link}"
        yield Workers(client=client, count=count, gpu=GPU if gpus else None, described=described)


def extent(config: ClusterConfig) -> tuple[int, int, int]:
    """Number of CPU workers, number of GPU workers, and memory limit of each in bytes that `start` would give them.

    Raises
    ------
    ConfigError
        As `start`.
    """
    gpus = 0 if config.gpu == "never" else _gpu_count()
    count = config.workers or max(1, min(available_cores(), _memory_budget() // USUAL_MEMORY - gpus))
    memory = _memory_limit(config, count + gpus)
    if config.gpu == "require" and not gpus:
        raise ConfigError("cluster.gpu = require, but no GPU is found: use `auto` to go on with CPU workers")
    return count, gpus, memory


def _environment() -> dict[str, Any]:
    """Environment in which workers start: Dask's, but for how memory is kept."""
    return {**dask_config.get("distributed.nanny.pre-spawn-environ"), **KEPT_MEMORY}


def available_cores() -> int:
    """Cores that this process may use, which is less than the machine's under a batch system."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_budget() -> int:
    """Memory for all workers together; a batch system or a container may allow less than is free."""
    return int(min(psutil.virtual_memory().available, MEMORY_LIMIT) * MEMORY_SHARE)


def _memory_limit(config: ClusterConfig, count: int) -> int:
    if config.memory is None:
        return max(_memory_budget() // count, SMALLEST_MEMORY)
    try:
        limit = int(parse_bytes(config.memory))
    except ValueError as error:
        raise ConfigError(f"cluster.memory = {config.memory!r}: a size such as 4GiB was expected") from error
    if limit < SMALLEST_MEMORY:
        raise ConfigError(
            f"cluster.memory = {config.memory!r}: a worker needs {format_bytes(SMALLEST_MEMORY)} at least: "
            "a size such as 4GiB was expected"
        )
    if limit * count > psutil.virtual_memory().total:
        raise ConfigError(
            f"cluster.memory: {count} workers of {format_bytes(limit)} need more than the machine's "
            f"{format_bytes(psutil.virtual_memory().total)}: lower cluster.memory or cluster.workers"
        )
    return limit


def _scratch(config: ClusterConfig) -> str | None:
    if config.scratch is None:
        return None
    if not config.scratch.is_dir() or not os.access(config.scratch, os.W_OK):
        raise ConfigError(f"cluster.scratch = {config.scratch}: not a folder that can be written to")
    return str(config.scratch)


def _gpu_count() -> int:
    # Asking torch costs its import; a machine without the driver's device files has no GPU to ask for.
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        return 0
    import torch

    return torch.cuda.device_count()


@contextmanager
def _revived(cluster: SpecCluster, loop: IOLoop) -> Iterator[None]:
    """Start workers again that Dask gives up: those that were killed while they started."""

    def revive() -> None:
        if len(cluster.workers) < len(cluster.worker_spec):
            cluster.scale(len(cluster.worker_spec))

    supervisor = PeriodicCallback(revive, 1000 * SUPERVISION)
    loop.add_callback(supervisor.start)
    try:
        yield
    finally:
        loop.add_callback(supervisor.stop)


def _cluster(config: ClusterConfig, count: int, gpus: int, memory: int, scratch: str) -> SpecCluster:
    common: dict[str, Any] = {
        "nthreads": 1,
        "host": "127.0.0.1",
        "local_directory": scratch,
        "dashboard": False,
        "silence_logs": logging.CRITICAL,
    }

    def worker(devices: str, **more: Any) -> dict[str, Any]:
        options = {**common, "memory_limit": memory, "env": {"CUDA_VISIBLE_DEVICES": devices}, **more}
        return {"cls": Nanny, "options": options}

    # A CPU worker sees no GPU: what it encodes must not fill the memory of one that is another worker's.
    workers = {f"cpu-{i}": worker("") for i in range(count)}
    # A batch system or a person may have given this process some of the machine's GPUs only.
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    workers |= {f"gpu-{i}": worker(given[i] if i < len(given) else str(i), resources=GPU) for i in range(gpus)}
    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": "127.0.0.1",
            "port": 0,
            "allowed_failures": DEATHS - 1,
            "dashboard": config.dashboard,
            "dashboard_address": "127.0.0.1:0",
        },
    }
    try:
        return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
    except (OSError, RuntimeError, TimeoutError) as error:
        raise ComputeError(f"the {count} local workers did not start: {error}") from error
