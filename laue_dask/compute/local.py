"""Workers of this machine. They listen on the loopback interface and speak TLS, because other users reach it, too.

Every worker has one thread. CPU workers read and reduce; where there is a GPU, one more worker per GPU carries the
resource `GPU=1` and takes the encoding.
"""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from dask import config as dask_config
from dask.utils import format_bytes, parse_bytes
from distributed import Nanny, Security, SpecCluster
from distributed.core import Status
from distributed.system import MEMORY_LIMIT

from laue_dask.compute import credentials, fork_server
from laue_dask.compute.servers import ClosedScheduler, ClosedWorker, GuardedScheduler
from laue_dask.config import AnyWorkers, LocalWorkersConfig
from laue_dask.errors import ComputeError, ConfigError
from laue_dask.io import deadline

GPU_RESOURCE = {"GPU": 1.0}
"""The resource that tasks of the encoder ask for where there are GPU workers."""

LOOPBACK_ADDRESS = "127.0.0.1"

MAX_WORKER_DEATHS_PER_TASK = 8
"""Workers that may die with a block before it is given up: a death is suspected of every block that its worker held."""

WORKERS_MEMORY_SHARE = 0.75
"""Share of the available memory that the workers may use together."""

MIN_WORKER_BYTES = 960 * 2**20
"""A worker that has encoded and decoded patterns holds 660 MiB, and Dask stops it at 80 % of its limit; a much smaller
limit is a forgotten unit."""

TYPICAL_WORKER_BYTES = 2**30
"""What a worker needs for frames of any size; with less for each core, fewer workers are started."""

MAX_WORKER_STARTS = 8
"""Times that a worker may die while it starts before the run gives up; each takes a second or less."""

EVENT_LOOP_ERROR = "Dask's event loop did not start within 10 s: is the machine overloaded?"
"""What an `AssertionError` without words of Dask means."""

MEMORY_PRELOAD = "laue_dask.compute.memory_preload"
"""What all workers do first: they see to it that what they have freed is not taken for what they hold."""

GPU_PRELOAD = "laue_dask.compute.gpu_preload"
"""What GPU workers do next."""


@contextmanager
def started(config: LocalWorkersConfig) -> Iterator[SpecCluster]:
    """Start the scheduler and the workers, and stop them at the end; workers may still be starting.

    Raises
    ------
    ConfigError
        See `extent`; or the scratch folder cannot be used.
    ComputeError
        They do not start.
    """
    count, gpus, memory = extent(config)
    with (
        dask_config.set({"distributed.nanny.pre-spawn-environ": fork_server.WORKER_ENVIRONMENT, **_method(gpus)}),
        fork_server.without_script(),
        tempfile.TemporaryDirectory(prefix="laue-dask-", dir=_scratch(config), ignore_cleanup_errors=True) as scratch,
        start_cluster(config, count, gpus, memory, scratch) as cluster,
    ):
        yield cluster


def start_cluster(config: LocalWorkersConfig, count: int, gpus: int, memory: int, scratch: str) -> SpecCluster:
    """Start so many CPU and GPU workers, of so many bytes each.

    Raises
    ------
    ComputeError
        They do not start.
    """
    preload = [*dask_config.get("distributed.worker.preload"), MEMORY_PRELOAD]
    security = credentials.new() if config.security == "tls" else None
    transport = {"protocol": protocol(security), "security": security}
    common: dict[str, Any] = {
        "nthreads": 1,
        "host": LOOPBACK_ADDRESS,
        **transport,
        "worker_class": ClosedWorker,
        "memory_limit": memory,
        "preload": preload,
        "local_directory": scratch,
        "dashboard": False,
        "silence_logs": logging.CRITICAL,
    }

    def worker(devices: str, **more: Any) -> dict[str, Any]:
        environment = {"CUDA_VISIBLE_DEVICES": devices, deadline.READ_DEADLINE_VARIABLE: config.read_deadline}
        options = {**common, "env": environment, **more}
        return {"cls": _PersistentNanny, "options": options}

    # A CPU worker sees no GPU: what it encodes must not fill the memory of one that is another worker's.
    workers = {f"cpu-{i}": worker("") for i in range(count)}
    # A batch system or a person may have given this process some of the machine's GPUs only.
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    workers |= {
        f"gpu-{i}": worker(
            given[i] if i < len(given) else str(i), resources=GPU_RESOURCE, preload=[*preload, GPU_PRELOAD]
        )
        for i in range(gpus)
    }
    try:
        return SpecCluster(
            workers=workers,
            scheduler=scheduler(config.dashboard, host=LOOPBACK_ADDRESS, **transport),
            security=security,
            silence_logs=logging.CRITICAL,
        )
    except (OSError, RuntimeError, TimeoutError, AssertionError) as error:
        raise ComputeError(f"the {count} local workers did not start: {_first_cause(error)}") from error


class _PersistentNanny(Nanny):
    """Starts its worker again if it dies while it starts, which is the end of all for Dask's own; later it is not."""

    async def instantiate(self) -> Status:
        status: Status = await super().instantiate()
        for _ in range(MAX_WORKER_STARTS - 1):
            if status != Status.stopped or self.status not in (Status.init, Status.starting):
                break
            status = await super().instantiate()
        return status


def protocol(security: Security | None) -> str:
    """Return how a scheduler and its workers speak to each other."""
    return "tls://" if security else "tcp://"


def scheduler(dashboard: bool, **options: Any) -> dict[str, Any]:
    """Return a scheduler of this process for `SpecCluster`; its dashboard is on the loopback interface alone."""
    return {
        "cls": GuardedScheduler if dashboard else ClosedScheduler,
        "options": {
            "port": 0,
            "allowed_failures": MAX_WORKER_DEATHS_PER_TASK - 1,
            "dashboard": dashboard,
            "dashboard_address": f"{LOOPBACK_ADDRESS}:0",
            **options,
        },
    }


def extent(config: LocalWorkersConfig) -> tuple[int, int, int]:
    """Return the number of CPU workers, number of GPU workers, and memory limit of each in bytes that `started` would
    give them.

    Raises
    ------
    ConfigError
        The memory limit cannot be read or exceeds the machine's, or a GPU is required and none is found.
    """
    gpus = 0 if config.gpu == "never" else gpu_count()
    count = config.count or max(1, min(available_cores(), memory_budget() // TYPICAL_WORKER_BYTES - gpus))
    memory = memory_limit(config, count + gpus)
    if config.gpu == "require" and not gpus:
        raise ConfigError("workers.gpu = require, but no GPU is found: use `auto` to go on with CPU workers")
    return count, gpus, memory


def _method(gpus: int) -> dict[str, str]:
    """How the workers' processes are started; CUDA does not work in one that was forked from where it was used."""
    if gpus or not fork_server.available():
        return {}
    fork_server.start()
    return {"distributed.worker.multiprocessing-method": "forkserver"}


def available_cores() -> int:
    """Return the cores that this process may use, which is less than the machine's under a batch system."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_budget() -> int:
    """Return the memory for all workers together; a batch system or a container may allow less than is free."""
    return int(min(psutil.virtual_memory().available, MEMORY_LIMIT) * WORKERS_MEMORY_SHARE)


def memory_of(text: str, key: str) -> int:
    """Return the bytes of a worker's memory limit, such as 4GiB.

    Raises
    ------
    ConfigError
        It is no size, or too small to be meant.
    """
    try:
        limit = int(parse_bytes(text))
    except ValueError as error:
        raise ConfigError(f"{key} = {text!r}: a size such as 4GiB was expected") from error
    if limit < MIN_WORKER_BYTES:
        raise ConfigError(
            f"{key} = {text!r}: a worker needs {format_bytes(MIN_WORKER_BYTES)} at least: "
            "a size such as 4GiB was expected"
        )
    return limit


def memory_limit(config: LocalWorkersConfig, count: int) -> int:
    """Return the bytes for each of so many workers.

    Raises
    ------
    ConfigError
        See `memory_of`; or all together have more than the machine.
    """
    if config.memory is None:
        return max(memory_budget() // count, MIN_WORKER_BYTES)
    limit = memory_of(config.memory, "workers.memory")
    if limit * count > psutil.virtual_memory().total:
        raise ConfigError(
            f"workers.memory: {count} workers of {format_bytes(limit)} need more than the machine's "
            f"{format_bytes(psutil.virtual_memory().total)}: lower workers.memory or workers.count"
        )
    return limit


def _scratch(config: LocalWorkersConfig) -> str | None:
    if config.scratch is None:
        return None
    if not config.scratch.is_dir() or not os.access(config.scratch, os.W_OK):
        raise ConfigError(f"workers.scratch = {config.scratch}: this folder cannot be written to")
    return str(config.scratch)


def local_scratch(config: AnyWorkers) -> Path:
    """Return the folder of what local workers write for themselves, on whatever disk that is."""
    return Path((config.scratch if isinstance(config, LocalWorkersConfig) else None) or tempfile.gettempdir())


def gpu_count() -> int:
    """Return the number of GPUs that PyTorch can use here."""
    # Asking torch costs its import; a machine without the driver's device files has no GPU to ask for.
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def _first_cause(error: BaseException) -> str:
    """What was the matter before others said that they failed because of it, on one line."""
    causes = [error]
    while (before := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(before)
    said = next((" ".join(str(one).split()) for one in reversed(causes) if str(one)), EVENT_LOOP_ERROR)
    # Dask itself leaves files there in which everything is a comment.
    own = [folder for folder in dask_config.paths if any(dask_config.collect_yaml([folder]))]
    return f"{said}; it may be your configuration of Dask in {own[0]}: try without it" if own else said
