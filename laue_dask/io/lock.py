"""One owner per run: a lock that works on shared file systems, says who holds it, and is freed when its owner is dead.

A lock is a file whose name appears only together with its content (a hard link, which is atomic on NFS too; where there
are none, a file that is made exclusively). Its owner
touches it now and then. On the owner's own machine the process itself tells whether it is alive; elsewhere a lock that
was not touched for `PATIENCE` seconds of the file system's own clock is taken for a dead owner's. A job of a batch
system waits so long: it may have been queued again after its node, and its earlier self there, were lost.
"""

import errno
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from laue_dask.errors import BusyError, ComputeError

NAME = ".lock"

HEARTBEAT = 20.0
"""Seconds between two touches of a held lock."""

PATIENCE = 300.0
"""Seconds without a touch after which the owner, on another machine, is taken for dead."""


logger = logging.getLogger(__name__)


SETTLING = 2.0
"""Seconds in which a lock without an owner is taken for one that is being written."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes
    ----------
    host, pid
        Machine and process.
    began
        When that process began, in seconds since 1970: another one may get its number.
    command
        What it does.
    token
        Of this very lock.
    """

    host: str
    pid: int
    began: float
    command: str
    token: str

    @classmethod
    def myself(cls, command: str) -> "Owner":
        """The process that asks, for a new lock."""
        return cls(socket.gethostname(), os.getpid(), _began(os.getpid()), command, uuid.uuid4().hex)

    def dead(self, idle: float) -> bool:
        """Whether the owner of a lock that was touched `idle` seconds ago is dead for all that can be known."""
        if self.host != socket.gethostname():
            return idle > PATIENCE
        return abs(_began(self.pid) - self.began) > 1

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (`{self.command}`)"


@contextmanager
def locked(folder: Path, command: str, remedy: str = "wait for it, or choose another --out") -> Iterator[None]:
    """Own a folder, which is made where it is missing, and goes again if nothing is in it at the end.

    Parameters
    ----------
    folder
        What is owned.
    command
        What others are told that it is used for.
    remedy
        What this process is told to do where another one owns the folder.

    Raises
    ------
    BusyError
        A living process owns it.
    ComputeError
        The lock cannot be written.
    """
    try:
        with _owned(folder / NAME, folder, command, remedy):
            yield
    finally:
        with suppress(OSError):
            folder.rmdir()  # of a command that wrote nothing


@contextmanager
def locked_store(store: Path, command: str) -> Iterator[None]:
    """Be the only one who writes into a Zarr store, be it there yet or not; the lock lies beside it.

    Raises
    ------
    BusyError, ComputeError
        See `locked`.
    """
    with _owned(store.with_name(f"{NAME}-{store.name}"), store, command, "wait for it"):
        yield


@contextmanager
def _owned(path: Path, what: Path, command: str, remedy: str) -> Iterator[None]:
    """Own `what` as long as `path` is there."""
    owner = Owner.myself(command)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not _taken(path, owner):
            holder, idle = _holder(path)
            if holder is not None and not holder.dead(idle) and not (_in_job() and _fell_silent(path, holder)):
                raise BusyError(f"{what}: in use by {holder}: {remedy}")
            if holder is None and idle < SETTLING and path.exists():
                time.sleep(SETTLING / 20)  # without hard links its content comes a moment after its name
                continue
            _discard(path, holder)
    except OSError as error:
        raise ComputeError(f"{path}: cannot be locked: {error.strerror or error}") from error
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, owner, over), name="lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()
        if _holder(path)[0] == owner:
            path.unlink(missing_ok=True)


def _taken(path: Path, owner: Owner) -> bool:
    """Whether the lock was free and is the owner's now."""
    draft = path.with_name(f"{path.name}.{owner.token}")
    try:
        draft.write_text(json.dumps(asdict(owner)), encoding="utf-8")
        return _appears(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _appears(draft: Path, path: Path) -> bool:
    """Give a file a second name that nobody has taken yet, whole; whether that was so."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links: the name is exclusive all the same, its content a moment later.
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(draft.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def _holder(path: Path) -> tuple[Owner | None, float]:
    """Who holds a lock, None where nobody does or its content is no lock's; and seconds since it was touched."""
    try:
        touched = path.stat().st_mtime
        content = path.read_bytes()
    except FileNotFoundError:
        return None, 0.0
    idle = _now(path) - touched
    try:
        owner = Owner(**json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return None, idle
    named = all(isinstance(text, str) for text in (owner.host, owner.command, owner.token))
    numbered = isinstance(owner.pid, int) and 0 < owner.pid < 2**31 and isinstance(owner.began, int | float)
    return (owner if named and numbered else None), idle


def _in_job() -> bool:
    """Whether this process runs in a job of a batch system, where nobody waits for an answer."""
    return any(os.environ.get(name) for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID"))


def _fell_silent(path: Path, holder: Owner) -> bool:
    """Wait until a lock of another machine is touched, or its owner can be taken for dead."""
    if holder.host == socket.gethostname():
        return False
    logger.info("%s: in use by %s: waiting for a sign of life, %.0f s at most", path.parent, holder, PATIENCE)
    before = 0.0
    while True:
        current, idle = _holder(path)
        if current != holder or holder.dead(idle):
            return True
        if idle < before:  # it was touched
            return False
        before = idle
        time.sleep(HEARTBEAT / 4)


def _discard(path: Path, holder: Owner | None) -> None:
    """Remove a dead owner's lock; of several who try, one does."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    found, _ = _holder(aside)
    if found != holder:  # someone else was quicker, and this is a living one's
        _appears(aside, path)
    aside.unlink(missing_ok=True)


def _beat(path: Path, owner: Owner, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT):
        with suppress(OSError):
            if _holder(path)[0] == owner:
                os.utime(path)


def _now(path: Path) -> float:
    """Time by the clock of the file system, which need not be this machine's."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        probe.unlink(missing_ok=True)


def _began(pid: int) -> float:
    """When a process began, in seconds since 1970; 0 where there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0
