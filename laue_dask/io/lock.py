"""One owner per run: a lock that works on shared file systems, says who holds it, and is freed when its owner is dead.

A lock is a file whose name appears only together with its content (a hard link, which is atomic on NFS too; where there
are none, a file that is made exclusively). Its owner touches it now and then, and looks whether it is still its own: an
owner that lost its lock stops.

Whether an owner is alive is told by what no clock moves: the kernel's boot, the namespace of process numbers, and the
tick at which the process began. Seen from elsewhere (another machine, another container) an owner is dead when its lock
was not touched for `OWNER_TIMEOUT_S` seconds and is not touched while one watches: clocks are set, but a living owner
goes on touching. A job of a batch system waits so long: it may have been queued again after its node, and its earlier
self there, were lost.
"""

import errno
import json
import logging
import os
import signal
import socket
import stat
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from laue_dask.errors import BusyError, ComputeError, InputError
from laue_dask.runtime import interruption

LOCK_FILE = ".lock"

HEARTBEAT_INTERVAL_S = 20.0
"""Seconds between two touches of a held lock."""

OWNER_TIMEOUT_S = 300.0
"""Seconds without a touch after which the owner, if it is elsewhere, is watched and may be taken for dead."""

LOCK_WRITE_TIMEOUT_S = 2.0
"""Seconds in which a lock without an owner is taken for one that is being written."""

OWNERSHIP_CHECK_INTERVAL_S = 2.0
"""Time between two looks of an owner at its lock."""

MISSING_LOCK_WAITS_S = 0.1, 0.3
"""Times to wait for a lock that is not there: who mistook it for a dead owner's puts it back at once."""

MAX_LOCK_BYTES = 65_536
"""A longer file is no lock."""

FINAL_CHECK_TIMEOUT_S = 1.0
"""Time that a look may take to end: a file system that hangs holds nobody up."""

MAX_COMMAND_CHARACTERS = 500
"""More of a command is not told to others."""

PROC_FOLDER = Path("/proc")

OWNER_LOST_MESSAGE = (
    "another process may write here now ({}), and this one no longer owns it: it has stopped and writes nothing more"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes
    ----------
    host, pid
        Machine and process.
    command
        What it does.
    token
        Of this very lock.
    boot
        Identifier of the machine's last start; empty where it is not known, as in locks of earlier versions.
    namespace
        In which its number and its ticks count.
    ticks
        When the process began, in ticks since the machine's start.
    """

    host: str
    pid: int
    command: str
    token: str
    boot: str = ""
    namespace: str = ""
    ticks: int = 0

    @classmethod
    def myself(cls, command: str) -> "Owner":
        """Return the process that asks, for a new lock."""
        boot, namespace = _here()
        ticks = (_ticks(os.getpid()) or 0) if boot else 0
        told, token = command[:MAX_COMMAND_CHARACTERS], uuid.uuid4().hex
        return cls(socket.gethostname(), os.getpid(), told, token, boot, namespace, ticks)

    @classmethod
    def read(cls, content: bytes) -> "Owner | None":
        """Return the owner that a lock names, be it of an earlier version; None where it names none."""
        try:
            told = json.loads(content)
            told.pop("began", None)  # of earlier versions: a time by a clock that may have been set since
            owner = cls(**told)
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None
        named = (owner.host, owner.command, owner.token, owner.boot, owner.namespace)
        numbered = all(type(number) is int for number in (owner.pid, owner.ticks)) and 0 < owner.pid < 2**31
        return owner if all(isinstance(text, str) for text in named) and numbered else None

    def alive(self) -> bool | None:
        """Return whether the process is there, None where that cannot be told from here."""
        here = _here()
        if self.host != socket.gethostname() or not self.ticks or not all(here) or (self.boot, self.namespace) != here:
            return None
        ticks = _ticks(self.pid)
        if ticks is not None:
            return ticks == self.ticks
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except (OSError, OverflowError):
            pass
        return None  # another user's, and this system does not show those

    def __str__(self) -> str:
        text = f"process {self.pid} on {self.host} (`{self.command}`)"
        return "".join(one if one.isprintable() else "?" for one in text)


class LockLostError(KeyboardInterrupt):
    """Another process owns what this one writes: as on Ctrl-C all work ends, and nothing is finished."""


class _Held:
    """A lock of this process's own."""

    def __init__(self, path: Path, what: Path, owner: Owner) -> None:
        self.path, self.what, self.owner = path, what, owner
        self.lost = ""
        """Why it is no longer its own; empty while it is."""

    def look(self) -> str:
        """Look whether it is still its own; why not, if it is not. A file system that does not answer says nothing."""
        holder: Owner | str | None = None
        for wait in (0.0, *MISSING_LOCK_WAITS_S):
            if self.lost:
                break
            time.sleep(wait)
            try:
                holder = _holder(self.path)[0]
            except InputError as error:
                holder = str(error)
            except OSError:
                return ""
            if holder == self.owner:
                return ""
            if holder is not None:
                break
        self.lost = self.lost or f"{self.what}: {OWNER_LOST_MESSAGE.format(holder or 'its lock is gone')}"
        return self.lost


_held: list[_Held] = []
"""Locks of this process, the oldest first."""


def require_lock() -> None:
    """Raise `LockLostError` if a lock of this process is no longer its own; of a process that holds none, nothing."""
    for held in tuple(_held):
        if held.look():
            raise LockLostError(held.lost)


@contextmanager
def locked_folder(folder: Path, command: str, remedy: str = "wait for it, or choose another --out") -> Iterator[None]:
    """Own a folder; a missing one is made, and removed at the end if nothing is in it.

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
        with _owned(folder / LOCK_FILE, folder, command, remedy):
            yield
    finally:
        with suppress(OSError):
            folder.rmdir()  # of a command that wrote nothing


@contextmanager
def locked_store(store: Path, command: str) -> Iterator[None]:
    """Own a Zarr store, whether it is there yet or not, to be its only writer; the lock lies beside it.

    Raises
    ------
    BusyError, ComputeError
        See `locked_folder`.
    """
    with _owned(store.with_name(f"{LOCK_FILE}-{store.name}"), store, command, "wait for it"):
        yield


@contextmanager
def _owned(path: Path, what: Path, command: str, remedy: str) -> Iterator[None]:
    """Own `what` as long as `path` is there."""
    owner = Owner.myself(command)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _take(path, what, owner, remedy)
    except OSError as error:
        raise ComputeError(f"{path}: cannot be locked: {error.strerror or error}") from error
    held, over = _Held(path, what, owner), threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(held, over), name="lock", daemon=True)
    try:
        with _raising_loss():
            _held.append(held)
            beat.start()
            yield
    except LockLostError as error:
        if not held.lost:  # it is another one of this process's
            raise
        raise ComputeError(str(error)) from None
    finally:
        over.set()
        _held[:] = [one for one in _held if one is not held]
        if beat.is_alive():
            beat.join(FINAL_CHECK_TIMEOUT_S)
        with suppress(OSError, InputError):
            if _holder(path)[0] == owner:
                path.unlink(missing_ok=True)


def _take(path: Path, what: Path, owner: Owner, remedy: str) -> None:
    """Make a lock the owner's, once it is free."""
    settled = 0.0
    while not _taken(path, owner):
        holder, _ = _holder(path)
        if holder is not None:
            settled = 0.0
            dead = _dead(path, holder)
            if dead is None:
                continue
            if not dead:
                raise BusyError(f"{what}: in use by {holder}{_silent_since(path, holder)}: {remedy}")
        elif os.path.lexists(path):
            # Without hard links its content comes a moment after its name.
            settled = settled or time.monotonic() + LOCK_WRITE_TIMEOUT_S
            if time.monotonic() < settled:
                time.sleep(LOCK_WRITE_TIMEOUT_S / 20)
                continue
        _discard(path, holder)


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
    """Who holds a lock, None where nobody does or its content is no lock's; and when it was touched.

    Raises
    ------
    InputError
        It is no file.
    OSError
        It cannot be read.
    """
    try:
        # Opened, not only looked at: then NFS asks the server. What is no file must neither be followed nor waited for.
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.fstat(opened)
            _require_file(path, found.st_mode)
            content = os.read(opened, MAX_LOCK_BYTES + 1)
        finally:
            os.close(opened)
    except FileNotFoundError:
        return None, 0.0
    except OSError:
        with suppress(FileNotFoundError):
            _require_file(path, path.lstat().st_mode)
        raise
    return (Owner.read(content) if len(content) <= MAX_LOCK_BYTES else None), found.st_mtime


def _require_file(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: a lock was expected, this is {_kind(mode)}: remove it")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _silent_since(path: Path, holder: Owner) -> str:
    """Since when nothing was heard of an owner elsewhere, in words."""
    if holder.alive() is not None:
        return ""
    return f", whose last sign of life was {max(0.0, _now(path) - _holder(path)[1]):.0f} s ago"


def _dead(path: Path, holder: Owner) -> bool | None:
    """Whether a lock's owner is dead for all that can be known; if need be it is watched first.

    None where somebody else holds the lock by then, or nobody.
    """
    alive = holder.alive()
    if alive is not None:
        return not alive
    idle = _now(path) - _holder(path)[1]
    if 0 <= idle <= OWNER_TIMEOUT_S and not _in_job():
        return False
    # Clocks may have been set, this machine's or the file system's: only what is not touched now is nobody's.
    watched = max(2 * HEARTBEAT_INTERVAL_S, OWNER_TIMEOUT_S - idle if idle >= 0 else 0.0)
    logger.info("%s: in use by %s: waiting for a sign of life, %.0f s at most", path.parent, holder, watched)
    touched, end = _holder(path)[1], time.monotonic() + watched
    while time.monotonic() < end:
        time.sleep(min(HEARTBEAT_INTERVAL_S / 4, watched / 4))
        current, now = _holder(path)
        if current != holder:
            return None
        if now != touched:
            return False
    return True


def _in_job() -> bool:
    """Whether this process runs in a job of a batch system, where nobody waits for an answer."""
    return any(os.environ.get(name) for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID"))


def _discard(path: Path, holder: Owner | None) -> None:
    """Remove a dead owner's lock; of several who try, one does."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    try:
        found, _ = _holder(aside)
    except InputError:  # no file: whoever put it there gets it back, and is told
        aside.rename(path)
        raise
    if found != holder:  # someone else was quicker, and this is a living one's
        _appears(aside, path)
    aside.unlink(missing_ok=True)


@contextmanager
def _raising_loss() -> Iterator[None]:
    """Have a loss raised in the main thread, whatever it waits for; others find it when they write."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGURG"):
        yield
        return

    def lost(number: int, frame: FrameType | None) -> None:
        found = next((held.lost for held in _held if held.lost), "")
        if found and not interruption.is_interruption(sys.exception()):
            raise LockLostError(found)
        if callable(before):
            before(number, frame)

    # A signal that is ignored unless somebody asks for it.
    before: Any = signal.signal(signal.SIGURG, lost)
    try:
        yield
    finally:
        signal.signal(signal.SIGURG, before if before is not None else signal.SIG_DFL)


def _heartbeat(held: _Held, over: threading.Event) -> None:
    """Touch a lock now and then, and look whether it is still this process's own."""
    main, touched = threading.main_thread().ident, time.monotonic()
    while not over.wait(min(OWNERSHIP_CHECK_INTERVAL_S, HEARTBEAT_INTERVAL_S)):
        if held.look():
            # One that is raised within a finalizer or a callback is dropped: again and again.
            if main is not None and hasattr(signal, "SIGURG"):
                signal.pthread_kill(main, signal.SIGURG)
        elif time.monotonic() - touched >= HEARTBEAT_INTERVAL_S:
            touched = time.monotonic()
            with suppress(OSError):
                os.utime(held.path, follow_symlinks=False)


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


def _here() -> tuple[str, str]:
    """Identifier of the machine's start, and the namespaces that numbers and ticks count in; empty where not known."""
    try:
        boot = (PROC_FOLDER / "sys/kernel/random/boot_id").read_text().strip()
        # In a container that sees the processes of the machine, numbers mean others.
        if str((PROC_FOLDER / "self").readlink()) != str(os.getpid()):
            return "", ""
        spaces = [str((PROC_FOLDER / "self/ns/pid").readlink())]
        with suppress(FileNotFoundError):
            spaces.append(str((PROC_FOLDER / "self/ns/time").readlink()))
    except OSError:
        return "", ""
    return boot, " ".join(spaces)


def _ticks(pid: int) -> int | None:
    """When a process began, in ticks since the machine's start; 0 if it has ended, None where none is seen."""
    try:
        # The name, in brackets, may hold anything.
        fields = (PROC_FOLDER / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None
