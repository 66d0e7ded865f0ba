"""`laue-dask doctor`: whether everything that a run needs is there, one line for each thing, and what to do if not."""

import os
import platform
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from dask.utils import format_bytes
from distributed import Client, Worker
from packaging.requirements import Requirement

from laue_dask import __version__
from laue_dask.compute import cluster, credentials, local
from laue_dask.compute.cluster import Workers
from laue_dask.config import AnyWorkers, Config, LocalWorkersConfig, SchedulerWorkersConfig, merged, validate
from laue_dask.errors import LaueDaskError
from laue_dask.io.lock import locked_folder
from laue_dask.pipeline import single_scan
from laue_dask.runtime.progress import QuietProgress
from laue_dask.simulate.detector import DETECTORS
from laue_dask.simulate.scan import write_scan
from laue_dask.simulate.specimens import specimen

TEST_SCAN_SHAPE = (10, 12)
"""Points of the synthetic scan: a job of seconds, of half a minute on a busy machine."""

REFUSAL_TIMEOUT_S = 5
"""Time in which a scheduler has to refuse somebody without its credentials."""

VERSIONED_PACKAGES = ("dask", "distributed", "zarr", "torch")
"""Packages whose versions are worth a line."""

NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "gpfs", "lustre", "beegfs", "cifs", "afs", "panfs", "ceph", "fuse.glusterfs")
"""Kinds of file systems that a network lies behind."""


class _Failed(Exception):  # noqa: N818
    """A check failed; the message says what to do."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    said
        What is there, or what to do.
    """

    name: str
    passed: bool
    said: str

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name:12s} {self.said}"


def run_checks(config: Config, folder: Path) -> Generator[Finding]:
    """Check one thing after another.

    Parameters
    ----------
    config
        Whose cluster is started; everything else of it is used for a synthetic scan.
    folder
        Where runs will be: on its disk a few megabytes are written, and removed again.
    """
    yield _found("versions", _versions)
    yield _found("extras", _extras)
    yield _found("machine", _machine)
    yield _found("GPU", lambda: _gpu(config.workers))
    place = None
    try:
        place = Path(tempfile.mkdtemp(prefix=".laue-dask-doctor-", dir=_existing(folder))).absolute()
    except OSError as error:
        yield Finding(
            "storage", passed=False, said=f"{folder}: {error.strerror}: choose a folder that you may write to"
        )
        return
    kept = False
    try:
        yield _found("storage", lambda: _storage(place))
        yield _found("locks", lambda: _locks(place))
        for finding in _cluster(config, place):
            kept |= finding.name == "cluster" and not finding.passed
            yield finding
    finally:
        if not kept:  # what the jobs printed, and the cluster's state, tell more than a line
            shutil.rmtree(place, ignore_errors=True)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there: `run` makes what is missing."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _found(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, passed=True, said=check())
    except (_Failed, LaueDaskError, OSError) as error:
        return Finding(name, passed=False, said=" ".join(str(error).split()))


def _versions() -> str:
    if wrong := _unmet(_requirements()):
        raise _Failed(f"{'; '.join(wrong)}: install laue_dask again, with its dependencies")
    named = ", ".join(f"{name} {version(name)}" for name in VERSIONED_PACKAGES)
    return f"laue_dask {__version__}, Python {platform.python_version()}, {named}"


def _extras() -> str:
    """Which extras are there; none of them is needed for a run."""
    always = _requirements()
    said = []
    for extra in sorted(metadata("laue_dask").get_all("Provides-Extra") or ()):
        wrong = _unmet([one for one in _requirements(extra) if one not in always])
        said.append(f"{extra}: {', '.join(wrong) or 'complete'}")
    return "; ".join(said)


def _requirements(extra: str = "") -> list[Requirement]:
    """What the package needs on this machine, with an extra or without any."""
    told = [Requirement(text) for text in requires("laue_dask") or ()]
    return [one for one in told if one.marker is None or one.marker.evaluate({"extra": extra})]


def _unmet(requirements: Iterable[Requirement]) -> list[str]:
    """Which of the requirements are missing, or there in another version."""
    wrong = []
    for wanted in requirements:
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} {found}, needed {wanted.specifier}")
    return wrong


def _machine() -> str:
    memory = psutil.virtual_memory()
    cores = local.available_cores()
    said = (
        f"{cores} core{'s' if cores > 1 else ''}, {format_bytes(memory.available)} of {format_bytes(memory.total)} free"
    )
    if memory.available * local.WORKERS_MEMORY_SHARE < local.MIN_WORKER_BYTES:
        raise _Failed(f"{said}: a worker needs {format_bytes(local.MIN_WORKER_BYTES)}: end other programs")
    return said


def _gpu(config: AnyWorkers) -> str:
    count = local.gpu_count()
    if isinstance(config, LocalWorkersConfig):
        if config.gpu == "require" and not count:
            raise _Failed("no GPU is found, but workers.gpu = require: is the driver installed? `auto` uses the CPU")
        if config.gpu == "never" and count:
            return f"{count}, not used: workers.gpu = never"
    elif not count:
        return "this machine has none; those of the workers are checked below"
    if not count:
        return "there is none: the CPU encodes"
    import torch

    return ", ".join(torch.cuda.get_device_name(i) for i in range(count))


def _storage(place: Path) -> str:
    begun, content = time.perf_counter(), os.urandom(2**23)
    path = place / "written"
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    path.replace(place / "renamed")
    if (place / "renamed").read_bytes() != content:
        raise _Failed(
            f"{place.parent}: the bytes that were read differ from those that were written: do not keep runs there"
        )
    rate = len(content) / (time.perf_counter() - begun)
    free = shutil.disk_usage(place).free
    return f"{place.parent}: {format_bytes(free)} free, {_file_system(place)}, {format_bytes(int(rate))}/s with fsync"


def _file_system(path: Path) -> str:
    """Kind of the file system that a path lies on."""
    holding = [one for one in psutil.disk_partitions(all=True) if path.is_relative_to(one.mountpoint)]
    return max(holding, key=lambda one: len(one.mountpoint)).fstype if holding else "unknown file system"


def _refused(place: str) -> bool:
    """Whether a folder that is locked is refused to this process."""
    try:
        with locked_folder(Path(place), "laue-dask doctor"):
            return False
    except LaueDaskError:
        return True


def _locks(place: Path) -> str:
    with locked_folder(place / "owned", "laue-dask doctor"):
        if not _refused(str(place / "owned")):
            raise _Failed(f"{place.parent}: a folder can have two owners there: give each run to one command at a time")
    if _refused(str(place / "owned")):
        raise _Failed(f"{place.parent}: a lock is not given back there: choose another file system")
    return "each folder has one owner at a time"


def _cluster(config: Config, place: Path) -> Iterator[Finding]:
    """Start the configured workers; what they see; a synthetic run on them."""
    begun = time.monotonic()
    with _held() as problems, cluster.start(config.workers, folder=place) as workers:
        yield Finding("cluster", passed=True, said=f"{workers.described}, in {time.monotonic() - begun:.0f} s")
        yield _found("security", lambda: _security(config.workers, workers.client))
        yield _found("workers", lambda: _alike(workers.client))
        yield _found("shared", lambda: _shared(workers.client, place))
        yield _found("scratch", lambda: _scratch(workers.client))
        yield _found(
            "GPU workers", lambda: "they do the encoding" if workers.gpu else "there are none: CPU workers encode"
        )
        yield _found("run", lambda: _run(config, place, workers))
    for problem in problems:
        yield Finding("cluster", passed=False, said=problem)


@contextmanager
def _held() -> Iterator[list[str]]:
    problems: list[str] = []
    try:
        yield problems
    except LaueDaskError as error:
        problems.append(str(error))


def _security(config: AnyWorkers, client: Client) -> str:
    """Who may run anything as this user while the cluster is there."""
    address = str(client.scheduler_info(n_workers=0)["address"])
    if urlsplit(address).scheme != "tls":
        return f"there is none at {address}: whoever reaches it can run anything as you: set `security: tls`"
    stranger = credentials.new()  # whoever is on this machine or network
    try:
        Client(address, security=stranger, timeout=REFUSAL_TIMEOUT_S, set_as_default=False).close()
    except (OSError, TimeoutError):
        whose = "their own files" if isinstance(config, SchedulerWorkersConfig) else "this run's alone"
        return f"TLS, credentials {whose}: others are refused at {address}"
    raise _Failed(f"{address} lets in who has other credentials: give `ca`, `cert` and `key` of this scheduler alone")


def _here() -> tuple[str, ...]:
    """What must be the same for all."""
    return platform.python_version(), __version__, *(version(name) for name in VERSIONED_PACKAGES)


def _alike(client: Client) -> str:
    mine = _here()
    found = client.run(_here)
    others = {address: theirs for address, theirs in found.items() if theirs != mine}
    if others:
        address, theirs = next(iter(others.items()))
        raise _Failed(
            f"{address} has {', '.join(theirs)}, here {', '.join(mine)}: set workers.python to one environment"
        )
    return f"{len(found)} workers have the same versions as this machine"


def _shared(client: Client, place: Path) -> str:
    """Whether workers see the folder of the runs, and whether its locks hold for them."""
    token = secrets.token_hex()
    (place / "token").write_text(token)
    blind = [address for address, seen in client.run(_read, str(place / "token")).items() if seen != token]
    if blind:
        raise _Failed(f"{blind[0]} does not see {place.parent}: keep runs on a file system that all nodes share")
    with locked_folder(place / "owned", "laue-dask doctor"):
        thieves = [address for address, refused in client.run(_refused, str(place / "owned")).items() if not refused]
    if thieves:
        raise _Failed(f"{place.parent}: {thieves[0]} takes a folder that is in use: one command at a time for each run")
    return f"workers see {place.parent}, and its locks hold for them"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        return str(error)


def _spill(dask_worker: Worker) -> tuple[str, str]:
    """Write where this worker spills: folder and kind of its file system."""
    folder = Path(dask_worker.local_directory)
    path = folder / "laue-dask-doctor"
    try:
        path.write_bytes(bytes(2**20))
        path.unlink()
    except OSError as error:
        return str(folder), f"not writable ({error.strerror})"
    return str(folder), _file_system(folder)


def _scratch(client: Client) -> str:
    found = sorted(set(client.run(_spill).values()))
    kinds = sorted({kind for _, kind in found})
    for folder, kind in found:
        if kind.startswith("not writable"):
            raise _Failed(f"{folder}: {kind}: set workers.scratch to a folder on the nodes' own disks")
        if kind in NETWORK_FILE_SYSTEMS:
            raise _Failed(f"{folder}: lies on {kind}: set workers.scratch to a folder on the nodes' own disks")
    return f"{Path(found[0][0]).parent}: writable, {', '.join(kinds)}"


def _run(config: Config, place: Path, workers: Workers) -> str:
    begun = time.monotonic()
    frames = place / "frames"
    write_scan(specimen("grains", TEST_SCAN_SHAPE, 3), DETECTORS["pilatus1m"].binned(4), frames, seed=1)
    quick = {"score_k": (2, 4), "n_init": 2, "k": (3,), "repeats": 0, "estimator": "kmeans"}
    # All but the scan's own: another shape would not fit this one.
    base = config.model_dump(mode="json", exclude={"scan"})
    checked = validate(merged(base, {"clustering": quick}), "doctor")
    record = single_scan.run(
        *(str(frames), place / "run", checked), command="laue-dask doctor", progress=QuietProgress(), workers=workers
    )
    if record.set_aside:
        raise _Failed(f"{len(record.set_aside)} of its patterns were set aside: {record.set_aside[0]['reason']}")
    rates = ", ".join(f"{stage} {rate:.0f}" for stage, rate in record.as_json()["patterns_per_second"].items())
    return f"{record.n_patterns} simulated patterns in {time.monotonic() - begun:.0f} s; patterns/s: {rates}"
