"""Ctrl-C and SIGTERM: a command that is told to end says so in a line and exits with 1, whatever it is doing.

Until its work begins, while it imports, it leaves at once: an exception could not pass through half of an import. From
then on an interruption is raised, so that what was begun is cleaned up, and raised again where Python drops it. Nothing
heavy is imported here, for what is imported first cannot be interrupted in order.
"""

import os
import random
import signal
import sys
import threading
from contextlib import suppress

SAID = "interrupted: the same command goes on where it stopped"

INSISTING = 0.5, 1.5
"""Seconds, from and to, after which an interruption that was dropped is raised again."""

_begun, _over = threading.Event(), threading.Event()
"""Whether the command was told to end in order, and whether it has ended."""


def at_once() -> None:
    """From now on an interruption ends the process with its line."""
    for event in (_begun, _over):
        event.clear()
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not under nohup
        signal.signal(signal.SIGINT, _leave)
    sys.unraisablehook = _unraisable


def in_order() -> None:
    """From now on an interruption raises KeyboardInterrupt; only in a process that has called `at_once`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is _leave:
            signal.signal(number, _raise)


def over() -> None:
    """The command has ended: it cannot be interrupted any more, and what fails in taking it apart is not told."""
    _over.set()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) in (_leave, _raise):
            signal.signal(number, signal.SIG_IGN)


def ends(error: BaseException | None) -> bool:
    """Whether an exception is an interruption on its way out, or was raised in cleaning up after one.

    One that was raised `from None` stands for itself, whatever it was raised in.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        alone = error.__suppress_context__ and error.__cause__ is None
        error = None if alone else error.__context__
    return error is not None


def _leave(*_: object) -> None:
    with suppress(OSError):  # nobody listens
        os.write(2, f"laue-dask: {SAID}\n".encode())
    forks = sys.modules.get("laue_dask.compute.forks")
    if forks is not None:
        forks.abandon()
    os._exit(1)


def _raise(number: int, _: object) -> None:
    # Batch systems and systemd end a command by SIGTERM, which is to end as on Ctrl-C. Some say it twice, to the job
    # and to its script: the second time must not end what the first one began.
    if _over.is_set() or (number == signal.SIGTERM and ends(sys.exception())):
        return
    if not _begun.is_set():
        _begun.set()
        threading.Thread(target=_insist, daemon=True).start()
    raise KeyboardInterrupt


def _insist() -> None:
    # One that is raised within a finalizer, a callback of the garbage collector or an import is dropped.
    main = threading.main_thread().ident
    while main is not None and not _over.wait(random.uniform(*INSISTING)):  # noqa: S311  never in step with a finalizer
        signal.pthread_kill(main, signal.SIGTERM)


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    # An interruption is raised again; and when the command has ended, Dask stumbles over what an interruption left it.
    if not (issubclass(unraisable.exc_type, KeyboardInterrupt) or _over.is_set()):
        sys.__unraisablehook__(unraisable)
