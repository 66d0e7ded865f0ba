"""Start the workers: on this machine, in jobs of a batch system, or on a Dask scheduler that exists.

The one way to workers is `start`: it waits for them, watches over them, and says why where they do not come.
"""

import getpass
import json
import logging
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dask import config as dask_config
from dask.utils import format_bytes
from distributed import Client, Security, SpecCluster, performance_report

from laue_dask.compute import credentials, fork_server, jobs, local
from laue_dask.compute.local import GPU_RESOURCE, LOOPBACK_ADDRESS
from laue_dask.compute.servers import TOKEN_PARAMETER
from laue_dask.compute.supervisor import Supervisor, WorkerPool, view_scheduler
from laue_dask.compute.worker_pools import ExternalWorkerPool, JobWorkerPool, LocalWorkerPool
from laue_dask.config import AnyWorkers, BatchWorkersConfig, LocalWorkersConfig, SchedulerWorkersConfig
from laue_dask.errors import ComputeError, ConfigError
from laue_dask.io import deadline
from laue_dask.runtime import activity

CLUSTER_FOLDER = "cluster"
"""In a run's folder: what jobs print, and the cluster's state where it was given up."""

DASK_REPORT_FILE = "dask-report.html"

DASK_REPORT_TIMEOUT_S = 60.0
"""Seconds that Dask's performance report may take at the end of a run."""

logger = logging.getLogger(__name__)


class Workers:
    """A running cluster.

    Attributes
    ----------
    client
        Connected client; also Dask's default scheduler while it is open.
    count
        Number of CPU workers; of a batch system, of those that were asked for.
    described
        One line for people.
    waits_for_gpu
        Tells whether `gpu` would have to be waited for at the moment.
    write_report
        Writes Dask's performance report, where one is to be written, of what was done so far; else it is written at the
        end.
    """

    def __init__(
        self,
        *,
        client: Client,
        count: int,
        gpu: dict[str, float] | Callable[[], dict[str, float] | None] | None,
        described: str,
        waits_for_gpu: Callable[[], bool] = lambda: False,
        write_report: Callable[[], None] = lambda: None,
    ) -> None:
        self.client, self.count, self.described = client, count, described
        self.waits_for_gpu, self.write_report = waits_for_gpu, write_report
        self._gpu = gpu

    @property
    def gpu(self) -> dict[str, float] | None:
        """Resource request for tasks that run on a GPU, ``None`` without one.

        GPU workers that are still waiting in a queue are waited for, as long as `workers.timeout` says.
        """
        if callable(self._gpu):
            self._gpu = self._gpu()
        return self._gpu


@dataclass(frozen=True)
class _ConnectedCluster:
    """A cluster that a client has reached.

    Attributes
    ----------
    cpus, gpus
        Workers that there are to be.
    first
        Workers to wait for before anything is done.
    devices
        Whether GPU workers are to have a GPU.
    folder
        For the cluster's state.
    token
        For the dashboard, where it asks for one.
    """

    client: Client
    pool: WorkerPool
    cpus: int
    gpus: int
    first: int
    described: str
    devices: bool = True
    folder: Path | None = None
    token: str = ""


@contextmanager
def start(config: AnyWorkers, *, folder: Path | None = None, report: bool = False) -> Iterator[Workers]:
    """Start the configured workers and stop them at the end.

    Parameters
    ----------
    folder
        Of the run: in its `cluster` folder jobs leave what they print, and the cluster's state is written there when it
        is given up.
    report
        Whether to make Dask's performance report of what succeeds; `publish_report` puts it in its place.

    Raises
    ------
    ConfigError
        What is asked for cannot be: memory, a GPU, a batch system or a scheduler that is not there.
    ComputeError
        No worker comes, or all are gone and none comes back; the message says why as far as anyone knows.
    """
    deadline.set_deadline(config.read_deadline)
    # Dask logs every worker that it stops; what matters to a person is raised instead.
    for name in ("distributed", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        starting = stack.enter_context(ExitStack())
        starting.enter_context(activity.note_activity("starting workers"))
        stack.enter_context(_terminable())
        stack.enter_context(dask_config.set(fork_server.DASK_PROFILING_CONFIG))
        match config:
            case LocalWorkersConfig():
                joined = stack.enter_context(_local(config, folder))
            case BatchWorkersConfig():
                joined = stack.enter_context(_batch(config, folder))
            case SchedulerWorkersConfig():
                joined = stack.enter_context(_scheduler(config, folder))
        supervisor = Supervisor(joined.client, joined.pool, timeout=config.timeout, folder=joined.folder)
        stack.enter_context(supervisor.at_work())
        try:
            _wait_for_first(joined, supervisor, config.timeout)
            starting.close()
            described = _described(joined, config)
            _forward_warnings(joined.client)
            with _reported(joined.client, _draft(folder) if folder and report and config.report else None) as write:
                yield Workers(
                    client=joined.client,
                    count=max(1, joined.cpus),
                    gpu=lambda: _gpu(joined, supervisor, config) if joined.gpus else None,
                    described=described,
                    waits_for_gpu=lambda: bool(joined.gpus) and not supervisor.seen.tagged(),
                    write_report=write,
                )
        except Exception as error:
            # Whatever waited was ended by the supervisor: its verdict is the cause.
            if supervisor.verdict:
                raise ComputeError(supervisor.verdict) from error
            if isinstance(error, ComputeError) and joined.folder:
                logger.warning("the work has stopped%s", supervisor.written())
            raise


def extent(config: AnyWorkers) -> tuple[int, int, int]:
    """Return the number of CPU workers, number of GPU workers, and memory limit of each in bytes that `start` would
    give them.

    Raises
    ------
    ConfigError
        See `start`.
    ComputeError
        A scheduler that is there already is not reached.
    """
    match config:
        case LocalWorkersConfig():
            return local.extent(config)
        case BatchWorkersConfig():
            gpus = _gpu_jobs_of(config)
            return config.count, gpus.count if gpus else 0, local.memory_of(config.memory, "workers.memory")
        case SchedulerWorkersConfig():
            with _scheduler(config, None) as joined:
                workers = joined.client.scheduler_info(n_workers=-1)["workers"].values()
                memory = min((int(worker["memory_limit"]) for worker in workers), default=0)
                return joined.cpus, joined.gpus, memory


def _gpu_jobs_of(config: BatchWorkersConfig) -> Any:
    if config.gpu == "never":
        return None
    if config.gpu == "require" and config.gpu_jobs is None:
        raise ConfigError("workers.gpu = require, but workers.gpu_jobs is missing: say there what the GPU jobs ask for")
    return config.gpu_jobs


@contextmanager
def _local(config: LocalWorkersConfig, folder: Path | None) -> Iterator[_ConnectedCluster]:
    count, gpus, memory = local.extent(config)
    described = f"{_counted(count, 'CPU')} of {format_bytes(memory)}"
    described += f" and {_counted(gpus, 'GPU')}" if gpus else ", no GPU"
    with local.started(config) as cluster, Client(cluster) as client:
        if config.security == "none":
            _warn(cluster, "every user of this machine")
        yield _ConnectedCluster(
            client=client,
            pool=LocalWorkerPool(cluster),
            cpus=count,
            gpus=gpus,
            first=count + gpus,
            described=described,
            folder=folder / CLUSTER_FOLDER if folder else None,
            token=_token(cluster),
        )


@contextmanager
def _batch(config: BatchWorkersConfig, folder: Path | None) -> Iterator[_ConnectedCluster]:
    gpus = _gpu_jobs_of(config)
    system = jobs.BATCH_SYSTEMS[config.kind]
    with ExitStack() as stack:
        if folder is None:
            # Where the command was given: jobs can read it, as they can the program.
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".laue-dask-", dir=Path.cwd())))
        else:
            place = folder.absolute() / CLUSTER_FOLDER
            place.mkdir(parents=True, exist_ok=True)
            stack.callback(_remove_if_empty, place)
        here = there = None
        if config.security == "tls":
            here, there = stack.enter_context(credentials.temporary(place))
        kinds = [jobs.cpu_jobs(config, security=there, logs=place)] if config.count else []
        kinds += [jobs.gpu_jobs(config, gpus, security=there, logs=place)] if gpus else []
        cluster = stack.enter_context(_listening(config, here))
        if config.security == "none":
            _warn(cluster, "whoever reaches it")
        client = stack.enter_context(Client(cluster, security=here))
        described = " and ".join(f"{_counted(one.workers, one.label.upper())} in {_jobs(one.count)}" for one in kinds)
        yield _ConnectedCluster(
            client=client,
            pool=JobWorkerPool(cluster, system, kinds, place),
            cpus=config.count,
            gpus=gpus.count if gpus else 0,
            first=1,
            described=f"{described} of {system.job}, {'TLS' if here else 'no TLS'}",
            devices=bool(gpus and gpus.gpus),
            folder=place if folder else None,
            token=_token(cluster),
        )


def _warn(cluster: SpecCluster, who: str) -> None:
    address, user = cluster.scheduler_address, _user()
    logger.warning("workers.security = none: %s can run anything as %s at %s", who, user, address)


def _token(cluster: SpecCluster) -> str:
    """What the link to the dashboard ends with; empty where there is no dashboard."""
    return str(getattr(cluster.scheduler, "token", ""))


def _remove_if_empty(place: Path) -> None:
    with suppress(OSError):
        place.rmdir()


def _listening(config: BatchWorkersConfig, security: Security | None) -> SpecCluster:
    """A scheduler of this process that workers on other machines can reach, without any yet."""
    scheduler = local.scheduler(
        config.dashboard,
        protocol=local.protocol(security),
        security=security,
        interface=config.interface,
    )
    try:
        return SpecCluster(workers={}, scheduler=scheduler, security=security, silence_logs=logging.CRITICAL)
    except (OSError, RuntimeError, AssertionError) as error:
        where = f"workers.interface = {config.interface}" if config.interface else "the scheduler"
        raise ComputeError(f"{where}: {' '.join(str(error).split()) or local.EVENT_LOOP_ERROR}") from error


@contextmanager
def _scheduler(config: SchedulerWorkersConfig, folder: Path | None) -> Iterator[_ConnectedCluster]:
    address = config.address or _address_in(config.file)
    encrypted = urlsplit(address).scheme == "tls"
    if (
        not encrypted
        and config.security != "none"
        and urlsplit(address).hostname not in (LOOPBACK_ADDRESS, "localhost")
    ):
        raise ConfigError(
            f"workers.address = {address}: whoever reaches it can run anything: start it with TLS, or say "
            "`security: none` if all who reach it may"
        )
    if not encrypted:
        logger.warning("%s does not use TLS: whoever reaches it can run anything as %s", address, _user())
    security = credentials.of_files(config.ca, config.cert, config.key) if encrypted else None
    try:
        client = Client(address, security=security, timeout=min(config.timeout, 30))
    except (OSError, ValueError, TypeError, TimeoutError, AssertionError) as error:
        # TypeError: there are no credentials.
        why = " ".join(str(error).split()) or local.EVENT_LOOP_ERROR
        raise ComputeError(f"{address}: the scheduler cannot be reached: {why}") from error
    with client:
        try:
            seen = client.run_on_scheduler(view_scheduler)
        except ModuleNotFoundError as error:
            raise ConfigError(f"{address}: its scheduler cannot import laue_dask: {error}: install it there") from error
        tagged = len(seen.tagged()) if config.gpu != "never" else 0
        if config.gpu == "require" and not tagged:
            raise ConfigError(f"workers.gpu = require, but no worker of {address} has the resource GPU")
        threads = {worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()}
        if threads - {1}:
            raise ConfigError(
                f"{address}: workers have {max(threads)} threads: start them with --nthreads 1, because several "
                "threads cannot read HDF5 and frames at once"
            )
        cpus = len(seen.workers) - tagged
        described = f"{_counted(cpus, 'CPU')} and {_counted(tagged, 'GPU')} of {address}"
        yield _ConnectedCluster(
            client=client,
            pool=ExternalWorkerPool(address),
            cpus=cpus,
            gpus=tagged,
            first=config.count or 1,
            described=described,
            devices=False,
            folder=folder / CLUSTER_FOLDER if folder else None,
        )


def _address_in(file: Path | None) -> str:
    try:
        return str(json.loads(Path(str(file)).read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"workers.file = {file}: not a scheduler file ({error}): `dask scheduler --scheduler-file` writes it"
        ) from error


def _wait_for_first(joined: _ConnectedCluster, supervisor: Supervisor, timeout: float) -> None:
    """Wait until there are workers to begin with; the supervisor knows when there will be none."""
    begun = time.monotonic()
    while len(supervisor.seen.workers) < joined.first:
        if supervisor.verdict or (supervisor.seen.workers and time.monotonic() - begun > timeout):
            break
        time.sleep(0.05)
    supervisor.awaited = False
    if supervisor.verdict:
        raise ComputeError(supervisor.verdict)


def _gpu(joined: _ConnectedCluster, supervisor: Supervisor, config: AnyWorkers) -> dict[str, float] | None:
    """Wait for a GPU worker; None where CPU workers are to do its work."""
    begun = time.monotonic()
    reason = ""
    while not (tagged := supervisor.seen.tagged()):
        if supervisor.verdict:
            raise ComputeError(supervisor.verdict)
        reason = joined.pool.failure_reason("gpu")
        if reason or time.monotonic() - begun > config.timeout:
            reason = f"no GPU worker: {reason or joined.pool.reason()}"
            break
        time.sleep(0.2)
    if tagged and joined.devices:
        workers = joined.client.scheduler_info(n_workers=-1)["workers"]
        addresses = [address for address, worker in workers.items() if worker["resources"].get("GPU")]
        seen = joined.client.run(_devices, workers=addresses, on_error="return")
        without = [
            workers[address]["host"] for address, found in seen.items() if not isinstance(found, int) or not found
        ]
        reason = f"PyTorch finds no GPU on {', '.join(sorted(set(without)))}" if without else ""
    if not reason:
        return GPU_RESOURCE
    if config.gpu == "require" or not joined.cpus:
        raise ComputeError(f"{reason}: no GPU, but workers.gpu = {config.gpu}")
    logger.warning("%s: CPU workers encode", reason)
    return None


def _devices() -> int:
    """Number of GPUs that this worker may use."""
    import torch

    return int(torch.cuda.device_count())


def _forward_warnings(client: Client) -> None:
    """What a worker has to say, about its GPU's memory for one, is for whoever started the command."""
    for _ in range(local.MAX_WORKER_STARTS):
        with suppress(OSError):  # one of them died just now
            client.forward_logging("laue_dask.features", logging.WARNING)
            return


def _described(joined: _ConnectedCluster, config: AnyWorkers) -> str:
    """What the workers are, which is also said."""
    described = joined.described
    if not config.dashboard or isinstance(config, SchedulerWorkersConfig):
        logger.info("%s", described)
        return described
    link = joined.client.dashboard_link
    described += f", dashboard {link}"
    logger.info("%s", described)
    logger.info("the dashboard opens with this link alone: %s?%s=%s", link, TOKEN_PARAMETER, joined.token)
    port = urlsplit(link).port
    place = f"{_user()}@{socket.gethostname()}"
    logger.info("to see the dashboard on your own computer: ssh -N -L %s:%s:%s %s", port, LOOPBACK_ADDRESS, port, place)
    return described


def _counted(number: int, label: str) -> str:
    return f"{number} {label} worker{'' if number == 1 else 's'}"


def _jobs(number: int) -> str:
    return f"{number} job{'' if number == 1 else 's'}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "USER"


def _draft(folder: Path) -> Path:
    return folder / f".{DASK_REPORT_FILE}"


def publish_report(folder: Path) -> None:
    """Put the performance report of a run that came to its end in the place of an earlier one, where one was made."""
    if (draft := _draft(folder)).exists() and not _tried(lambda: draft.replace(folder / DASK_REPORT_FILE)):
        draft.unlink()


@contextmanager
def _reported(client: Client, path: Path | None) -> Iterator[Callable[[], None]]:
    """Make Dask's performance report of what succeeds, at the end or when asked for; if that fails, nothing else does.

    What is refused or fails leaves none: there may be a finished run, with a report of its own.
    """
    if path is None:
        yield lambda: None
        return
    path.unlink(missing_ok=True)  # of a command that was killed
    # What a browser needs is in the file: a beamline's computer may not reach the internet.
    keeping = performance_report(filename=str(path), mode="inline")
    begun = _tried(lambda: client.sync(keeping.__aenter__, callback_timeout=DASK_REPORT_TIMEOUT_S))

    def keep() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        client.sync(keeping.__aexit__, None, None, None, code="laue_dask", callback_timeout=DASK_REPORT_TIMEOUT_S)

    def write() -> None:
        nonlocal begun
        if begun and client.status == "running":
            begun = False
            if not _tried(keep):
                path.unlink(missing_ok=True)  # half of it

    try:
        yield write
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    write()


def _tried(call: Callable[[], object]) -> bool:
    try:
        call()
    except Exception as error:
        logger.debug("report: %s", error)
        return False
    return True


@contextmanager
def _terminable() -> Iterator[None]:
    """Let what ends a program of one's own from outside end it as Ctrl-C does; `laue-dask` itself sees to that."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # a command may have its own way
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
