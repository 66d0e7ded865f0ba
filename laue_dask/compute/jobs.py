"""Workers as jobs of SLURM, PBS, LSF and SGE: what jobs ask for, and what the batch system says of them.

dask-jobqueue writes the scripts and hands them in; what it leaves out is here: GPUs, one worker for each of them, an
end before the walltime, and whether a job still waits, runs or has ended, which only the batch system knows.
"""

import asyncio
import copy
import getpass
import importlib
import re
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

from distributed import Security, Status

from laue_dask.compute.fork_server import WORKER_ENVIRONMENT
from laue_dask.compute.local import GPU_PRELOAD, GPU_RESOURCE, MEMORY_PRELOAD, memory_of, protocol
from laue_dask.config import BatchWorkersConfig, GPUJobsConfig
from laue_dask.errors import ConfigError
from laue_dask.io import deadline

JOB_NAME = "laue-dask"
"""Of every job."""

WORKER_CLASS = "laue_dask.compute.servers.ClosedWorker"
"""Class of the workers."""

WORKER_CONNECT_TIMEOUT_S = 120
"""Seconds after which a worker ends that does not reach its scheduler: its command was killed."""

MAX_WALLTIME_MARGIN_S = 300
"""Seconds before the walltime at which workers end, at most; a quarter of a short walltime."""

Phase = Literal["pending", "running", "ended"]


@dataclass(frozen=True)
class JobState:
    """What a batch system says of a job."""

    phase: Phase
    said: str = ""


@dataclass(frozen=True)
class Request:
    """What a job asks for.

    Attributes
    ----------
    processes
        Workers, one thread each.
    cores, gpus
        For all of them together.
    memory
        For all of them together, in bytes.
    """

    processes: int
    cores: int
    gpus: int
    memory: int

    @property
    def mebibytes(self) -> int:
        """Memory, rounded up."""
        return ceil(self.memory / 2**20)


class _Closing:
    """A job that knows that it was closed, as `SpecCluster` asks at the end; those of dask-jobqueue do not."""

    async def close(self) -> None:
        await super().close()  # type: ignore[misc]
        self.status = Status.closed


@dataclass(frozen=True)
class System:
    """A batch system.

    Attributes
    ----------
    job
        Name of its class in dask-jobqueue.
    asking
        Options of that class for a request, and directives.
    account
        What that class calls an account.
    walltime
        Seconds as it writes them.
    query
        Command that tells of jobs.
    read
        Its answer as states by number.
    """

    job: str
    submit: str
    account: str
    asking: Callable[[Request, str | None], tuple[dict[str, Any], list[str]]]
    walltime: Callable[[int], str]
    query: Callable[[Sequence[str]], list[str]]
    read: Callable[[str], dict[str, JobState]]

    def job_class(self) -> type[Any]:
        """Return the class of dask-jobqueue.

        Raises
        ------
        ConfigError
            The batch system's commands are not on this machine.
        """
        if shutil.which(self.submit) is None:
            raise ConfigError(
                f"workers.kind: the command `{self.submit}` is not found on this machine: give the command where jobs "
                "are submitted, on a login node"
            )
        # Importing it takes the interrupt key away from the program.
        handler = signal.getsignal(signal.SIGINT)
        module = importlib.import_module("dask_jobqueue")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        job: type[Any] = getattr(module, f"{self.job}Cluster").job_cls
        return type(f"Closing{job.__name__}", (_Closing, job), {})


def clock(seconds: int) -> str:
    """Return the seconds as hours, minutes and seconds."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _slurm(request: Request, spec: str | None) -> tuple[dict[str, Any], list[str]]:
    # A job that was preempted is replaced: it must not come back as well.
    directives = ["--no-requeue"] + ([f"--gres=gpu:{request.gpus}"] if request.gpus else [])
    return {"job_cpu": request.cores, "job_mem": f"{request.mebibytes}M"}, directives


def _read_squeue(text: str) -> dict[str, JobState]:
    phases: dict[str, Phase] = dict.fromkeys(
        ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "REQUEUE_FED", "RESV_DEL_HOLD"),
        "pending",
    )
    phases |= dict.fromkeys(("RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"), "running")
    states = {}
    for line in text.splitlines():
        number, state, reason = (*line.split("|", 2), "", "")[:3]
        said = f"{state} ({reason})" if reason not in ("", "None") else state
        states[number] = JobState(phases.get(state, "ended"), said)
    return states


def _pbs(request: Request, spec: str | None) -> tuple[dict[str, Any], list[str]]:
    gpus = f":ngpus={request.gpus}" if request.gpus else ""
    return {"resource_spec": spec or f"select=1:ncpus={request.cores}{gpus}:mem={request.mebibytes}mb"}, ["-r n"]


def _read_qstat_f(text: str) -> dict[str, JobState]:
    phases: dict[str, Phase] = dict.fromkeys("QHWT", "pending")
    phases |= dict.fromkeys("RSUB", "running")
    states = {}
    # Long values go on in the next line, after a tab.
    for part in re.split(r"^Job Id:\s*", text.replace("\n\t", ""), flags=re.MULTILINE)[1:]:
        name, *lines = part.splitlines()
        values = dict(line.strip().split(" = ", 1) for line in lines if " = " in line)
        state = values.get("job_state", "")
        comment = f" ({values['comment']})" if values.get("comment") else ""
        states[re.match(r"\d*", name)[0]] = JobState(phases.get(state, "ended"), state + comment)  # type: ignore[index]
    return states


def _lsf(request: Request, spec: str | None) -> tuple[dict[str, Any], list[str]]:
    directives = ["-rn"] + ([f'-gpu "num={request.gpus}"'] if request.gpus else [])
    return {"ncpus": request.cores, "mem": request.memory}, directives


def _read_bjobs(text: str) -> dict[str, JobState]:
    phases: dict[str, Phase] = dict.fromkeys(("PEND", "PSUSP", "WAIT", "PROV"), "pending")
    phases |= dict.fromkeys(("RUN", "USUSP", "SSUSP", "UNKWN"), "running")
    states = {}
    for line in text.splitlines():
        number, _, rest = line.partition("|")
        state, *reasons = (part.strip() for part in rest.split("|"))
        reason = "; ".join(one for one in reasons if one not in ("", "-"))
        states[number.strip()] = JobState(phases.get(state, "ended"), f"{state} ({reason})" if reason else state)
    return states


def _sge(request: Request, spec: str | None) -> tuple[dict[str, Any], list[str]]:
    directives = ["-r n"]
    if spec is None:
        directives += [f"-pe smp {request.cores}"] if request.cores > 1 else []
        directives += [f"-l gpu={request.gpus}"] if request.gpus else []
    return {"resource_spec": spec or f"mem_free={request.mebibytes}M"}, directives


def _read_qstat(text: str) -> dict[str, JobState]:
    states = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) > 4 and fields[0].isdigit():
            # Of a job in an error nothing comes any more, though it is listed as waiting.
            phase: Phase = "ended" if "E" in fields[4] else "pending" if set(fields[4]) & set("qw") else "running"
            states[fields[0]] = JobState(phase, fields[4])
    return states


BATCH_SYSTEMS = {
    "slurm": System(
        job="SLURM",
        submit="sbatch",
        account="account",
        asking=_slurm,
        walltime=clock,
        query=lambda jobs: ["squeue", "--noheader", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(jobs)}"],
        read=_read_squeue,
    ),
    "pbs": System(
        job="PBS",
        submit="qsub",
        account="account",
        asking=_pbs,
        walltime=clock,
        query=lambda jobs: ["qstat", "-f", *jobs],
        read=_read_qstat_f,
    ),
    "lsf": System(
        job="LSF",
        submit="bsub",
        account="project",
        asking=_lsf,
        walltime=lambda seconds: f"{seconds // 3600:02d}:{ceil(seconds % 3600 / 60):02d}",
        query=lambda jobs: ["bjobs", "-noheader", "-o", "jobid stat pend_reason exit_reason delimiter='|'", *jobs],
        read=_read_bjobs,
    ),
    "sge": System(
        job="SGE",
        submit="qsub",
        account="project",
        asking=_sge,
        walltime=clock,
        query=lambda jobs: ["qstat", "-u", getpass.getuser()],
        read=_read_qstat,
    ),
}


async def states(system: System, jobs: Sequence[str]) -> dict[str, JobState] | None:
    """Return what the batch system says of jobs by number; those it does not know any more have ended.

    Returns None where it does not answer, as happens on a busy day: then nothing is known.
    """
    if not jobs:
        return {}
    try:
        process = await asyncio.create_subprocess_exec(
            *system.query(jobs), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = (stream.decode(errors="replace") for stream in await process.communicate())
    except OSError:
        return None
    # They complain of jobs that are no more, each in its own words; silence on an error is something else.
    gone = re.search(
        r"invalid job id|unknown job|has finished|is not found|do not exist|no matching", err, re.IGNORECASE
    )
    if process.returncode and not gone:
        return None
    found = system.read(out)
    return {job: found.get(number(job), JobState("ended")) for job in jobs}


def number(job: str) -> str:
    """Return the number in a job's name, such as 7 of `7.server`."""
    found = re.match(r"\d+", job)
    return found[0] if found else job


@dataclass(frozen=True)
class Jobs:
    """Jobs of one kind, all alike.

    Attributes
    ----------
    label
        `cpu` or `gpu`; names of jobs and workers begin with it.
    workers
        How many there are to be in all.
    processes
        Workers of a job.
    spec
        As `SpecCluster` takes it.
    """

    label: str
    workers: int
    processes: int
    spec: Mapping[str, Any]

    @property
    def count(self) -> int:
        """How many jobs there are to be."""
        return ceil(self.workers / self.processes)


def cpu_jobs(config: BatchWorkersConfig, *, security: Security | None, logs: Path | None) -> Jobs:
    """Return the jobs of CPU workers.

    Parameters
    ----------
    security
        The workers' credentials, None for none.
    logs
        Folder for what the jobs print; wherever the batch system puts it by default.

    Raises
    ------
    ConfigError
        The memory is no size, or the batch system is not on this machine.
    """
    processes = min(config.cores, max(1, config.count))
    request = Request(processes, processes, 0, memory_of(config.memory, "workers.memory") * processes)
    return Jobs("cpu", config.count, processes, _spec(config, config, request, security, logs, [MEMORY_PRELOAD]))


def gpu_jobs(config: BatchWorkersConfig, gpus: GPUJobsConfig, *, security: Security | None, logs: Path | None) -> Jobs:
    """Return the jobs of GPU workers; see `cpu_jobs`."""
    inherited = {name: getattr(gpus, name) or getattr(config, name) for name in ("queue", "account", "walltime")}
    if gpus.walltime is None:
        inherited["lifetime"] = gpus.lifetime or config.lifetime
    processes = max(1, min(gpus.gpus, gpus.count))
    memory = memory_of(gpus.memory, "workers.gpu_jobs.memory")
    request = Request(processes, processes * gpus.cores, min(gpus.gpus, processes), memory * processes)
    gpus = gpus.model_copy(update={**inherited, "resources": {**GPU_RESOURCE, **gpus.resources}})
    return Jobs(
        "gpu", gpus.count, processes, _spec(config, gpus, request, security, logs, [MEMORY_PRELOAD, GPU_PRELOAD])
    )


def _spec(
    config: BatchWorkersConfig,
    jobs: BatchWorkersConfig | GPUJobsConfig,
    request: Request,
    security: Security | None,
    logs: Path | None,
    preloads: Sequence[str],
) -> dict[str, Any]:
    system = BATCH_SYSTEMS[config.kind]
    asked, directives = system.asking(request, jobs.resource_spec)
    if logs is not None and re.search(r"\s", str(logs)):
        logs = None  # No batch system takes such a name in its directives.
    arguments = ["--no-dashboard", "--worker-class", WORKER_CLASS, *_lifetime(jobs)]
    if jobs.resources:
        arguments += ["--resources", shlex.quote(",".join(f"{k}={v:g}" for k, v in jobs.resources.items()))]
    for module in preloads:
        arguments += ["--preload", module]
    environment = {**WORKER_ENVIRONMENT, deadline.READ_DEADLINE_VARIABLE: config.read_deadline}
    options = {
        "cores": request.processes,
        "processes": request.processes,
        "memory": f"{request.memory}B",
        "nanny": True,
        "protocol": protocol(security),
        "security": _quoted(security) if security else None,
        "interface": config.interface,
        "death_timeout": WORKER_CONNECT_TIMEOUT_S,
        "local_directory": f'"{config.scratch}"',
        "worker_extra_args": arguments,
        "job_extra_directives": [*directives, *jobs.directives],
        "job_script_prologue": [*(f"export {k}={v}" for k, v in environment.items()), *config.prologue],
        "log_directory": str(logs) if logs else None,
        "python": shlex.quote(str(config.python or sys.executable)),
        "job_name": JOB_NAME,
        "queue": jobs.queue,
        system.account: jobs.account,
        "walltime": system.walltime(jobs.walltime) if jobs.walltime else None,
        **asked,
    }
    group = {"group": [f"-{i}" for i in range(request.processes)]} if request.processes > 1 else {}
    return {"cls": system.job_class(), "options": options, **group}


def _quoted(security: Security) -> Security:
    """The same for a shell: dask-jobqueue puts the names of the files into a command line as they are."""
    quoted = copy.copy(security)
    for attribute in ("tls_ca_file", "tls_worker_cert", "tls_worker_key"):
        setattr(quoted, attribute, shlex.quote(getattr(security, attribute)))
    return quoted


def _lifetime(jobs: BatchWorkersConfig | GPUJobsConfig) -> list[str]:
    """Workers end before their job does, and not all at once: what they were at is begun again elsewhere."""
    if jobs.lifetime is None and jobs.walltime is None:
        return []
    margin = min(MAX_WALLTIME_MARGIN_S, jobs.walltime / 4) if jobs.walltime else MAX_WALLTIME_MARGIN_S
    lifetime = jobs.lifetime or (jobs.walltime or 0) - margin
    return ["--lifetime", f"{lifetime:g}s", "--lifetime-stagger", f"{min(margin, lifetime) / 2:g}s"]
