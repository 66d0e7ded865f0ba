"""Ctrl-C and SIGTERM: a command that is told to end says so in a line and exits with 1, whatever it is doing.

Until its work begins, while it imports, it leaves at once: an exception could not pass through half of an import. From
then on an interruption is raised, so that what was begun is cleaned up, and raised again where Python drops it. Where
that does not end the command in a few seconds, as on a file system that does not answer, a thread of its own ends it.
Nothing heavy is imported here, for what is imported first cannot be interrupted in order.
"""

import math
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

INTERRUPTED_MESSAGE = "interrupted: the same command goes on where it stopped"

RAISE_AGAIN_AFTER_S = 0.5, 1.5
"""Seconds, from and to, after which an interruption that was dropped is raised again."""

CLEANUP_TIMEOUT_S = 4.25
"""Time for cleaning up, after which the command is ended all the same."""

POLL_INTERVAL_S = 0.2
"""Time between two looks whether the command ends."""

LATE_NOTICE_S = 1.0
"""Time in which the system may still give notice of a signal that the command has acknowledged already."""

PROCESS_STATUS_FILE = Path("/proc/self/status")

HANDLED_SIGNALS = signal.SIGINT, signal.SIGTERM

_waited_s = 0.0
_acknowledged_at = -math.inf

_begun, _over = threading.Event(), threading.Event()
"""Whether the command was told to end in order; whether it has ended."""


def exit_at_once() -> None:
    """Let an interruption end the process with its line, from now on."""
    global _acknowledged_at
    _acknowledged_at = -math.inf
    _begun.clear()
    _over.clear()
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not under nohup
        signal.signal(signal.SIGINT, _leave)
    sys.unraisablehook = _unraisable
    woken, waking = os.pipe()
    for end in (woken, waking):
        os.set_blocking(end, False)
    # Told of a signal even where Python does not come to its handler.
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    threading.Thread(target=_force_exit, args=(woken,), name="end", daemon=True).start()


def acknowledge() -> None:
    """Note that a command ends in its own way after a signal, so that it is not ended by force."""
    global _acknowledged_at
    _acknowledged_at = time.monotonic()


def expect_exit(waited_s: float = 0.0) -> None:
    """Expect the command to end by itself now, or end it by force; somebody has waited so long already."""
    global _waited_s
    _waited_s = waited_s
    _begun.set()


def raise_on_interrupt() -> None:
    """Let an interruption raise KeyboardInterrupt, from now on; only in a process that has called `exit_at_once`."""
    for number in HANDLED_SIGNALS:
        if signal.getsignal(number) is _leave:
            signal.signal(number, _raise)


def command_over() -> None:
    """Note that the command has ended: it cannot be interrupted any more, and later faults are not reported."""
    _over.set()
    if threading.current_thread() is threading.main_thread() and (waking := signal.set_wakeup_fd(-1)) >= 0:
        os.close(waking)
    for number in HANDLED_SIGNALS:
        if signal.getsignal(number) in (_leave, _raise):
            signal.signal(number, signal.SIG_IGN)


def is_interruption(error: BaseException | None) -> bool:
    """Return whether an exception is an interruption on its way out, or was raised in cleaning up after one.

    One that was raised `from None` stands for itself, whatever it was raised in.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        alone = error.__suppress_context__ and error.__cause__ is None
        error = None if alone else error.__context__
    return error is not None


def _force_exit(woken: int) -> None:
    """End the command if it does not end by itself in time, whatever its main thread waits for."""
    told, since = False, 0.0
    while not _over.wait(POLL_INTERVAL_S):
        with suppress(BlockingIOError):
            told |= bool(set(os.read(woken, 4096)) & set(HANDLED_SIGNALS))
        told &= time.monotonic() - _acknowledged_at > LATE_NOTICE_S
        if not (told or _begun.is_set() or _pending()):
            since = 0.0
        elif not since:
            since = time.monotonic() - _waited_s
        elif time.monotonic() - since >= CLEANUP_TIMEOUT_S:
            _leave()
    os.close(woken)


def _pending() -> bool:
    """Whether a signal waits for a main thread that the system does not wake, as on a dead mount."""
    with suppress(OSError, ValueError):
        lines = PROCESS_STATUS_FILE.read_bytes().splitlines()
        waiting = [int(line.split()[1], 16) for line in lines if line.startswith((b"SigPnd:", b"ShdPnd:"))]
        return any(pending & 1 << number - 1 for pending in waiting for number in HANDLED_SIGNALS)
    return False


def _leave(*_: object) -> None:
    with suppress(OSError):  # nobody listens
        terminal = sys.modules.get("laue_dask.runtime.terminal")
        as_line = getattr(terminal, "as_line", None)  # not there where it is being imported
        line = as_line(INTERRUPTED_MESSAGE, level="error") if as_line else f"laue-dask: {INTERRUPTED_MESSAGE}"
        os.write(2, f"{line}\n".encode())
    fork_server = sys.modules.get("laue_dask.compute.fork_server")
    if fork_server is not None:
        fork_server.stop()
    os._exit(1)


def _raise(number: int, _: object) -> None:
    # Batch systems and systemd end a command by SIGTERM, which is to end as on Ctrl-C. Some say it twice, to the job
    # and to its script: the second time must not end what the first one began.
    if _over.is_set() or (number == signal.SIGTERM and is_interruption(sys.exception())):
        return
    if not _begun.is_set():
        _begun.set()
        threading.Thread(target=_raise_again, daemon=True).start()
    raise KeyboardInterrupt


def _raise_again() -> None:
    # One that is raised within a finalizer, a callback of the garbage collector or an import is dropped.
    main = threading.main_thread().ident
    while main is not None and not _over.wait(random.uniform(*RAISE_AGAIN_AFTER_S)):  # noqa: S311  never in step with a finalizer
        signal.pthread_kill(main, signal.SIGTERM)


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    # An interruption is raised again; and when the command has ended, Dask stumbles over what an interruption left it.
    if not (issubclass(unraisable.exc_type, KeyboardInterrupt) or _over.is_set()):
        sys.__unraisablehook__(unraisable)
