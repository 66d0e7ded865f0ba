"""The process that runs a night's scans: this module starts it, gives it jobs, limits it and ends it."""

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from laue_dask.nightly.config import LimitsConfig

LIMIT_CHECK_INTERVAL_S = 1.0
"""Seconds between two looks at the limits while a scan runs."""

EXIT_TIMEOUT_S = 30.0
"""Seconds that the process has to end by itself."""


class ScanStoppedError(Exception):
    """A scan was ended from here; the message is the reason."""


class ProcessDiedError(Exception):
    """The process ended by itself in the middle of a scan; the message says how."""


class ScanProcess:
    """Runs scans, one at a time, in a process that is started when there is something to do.

    Parameters
    ----------
    log
        File that takes what the process has to say beside its answers.
    """

    def __init__(self, limits: LimitsConfig, log: Path) -> None:
        self._limits, self._log = limits, log
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch = ""
        self._scans = 0

    def run(self, job: dict[str, Any], *, stop: Callable[[], str]) -> dict[str, Any]:
        """Have one scan run; the answer of `worker`.

        Parameters
        ----------
        stop
            Asked every second: why to end now, empty to go on.

        Raises
        ------
        StoppedError, DiedError
            The process is gone, and with it all workers; what the scan had finished is on the disk.
        """
        if self._scans >= self._limits.scans_per_process:
            self.end()
        process = self._process or self._start()
        self._scans += 1
        try:
            answer = self._ask(process, job, stop)
        except BaseException:
            self.kill()
            raise
        if answer.get("failed") == "compute":
            self.end()  # its workers may be what failed: the next scan has others
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.end()
        else:
            self.kill()

    def end(self) -> None:
        """Let the process end, or make it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End the process and all that it started, now."""
        if self._process is not None:
            # It leads a group of its own, which its workers are in.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
            self._process = None
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scans = 0

    def _start(self) -> "subprocess.Popen[bytes]":
        limits = self._limits
        self._scratch = tempfile.mkdtemp(prefix="laue-dask-nightly-")
        environment = {**os.environ, "TMPDIR": self._scratch}
        if limits.cores is not None:
            environment |= {name: str(limits.cores) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "laue_dask.nightly.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        started = psutil.Process(self._process.pid)
        started.nice(max(started.nice(), limits.nice))
        if limits.cores is not None and hasattr(started, "cpu_affinity"):
            started.cpu_affinity(started.cpu_affinity()[: limits.cores])
        return self._process

    def _ask(self, process: "subprocess.Popen[bytes]", job: dict[str, Any], stop: Callable[[], str]) -> dict[str, Any]:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process has no pipes")
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise ProcessDiedError(self._how(process)) from error
        latest = time.monotonic() + 3600 * self._limits.scan_hours
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not selector.select(LIMIT_CHECK_INTERVAL_S):
                if reason := stop():
                    raise ScanStoppedError(reason)
                if time.monotonic() > latest:
                    raise ProcessDiedError(f"it was not done in {self._limits.scan_hours:g} h (limits.scan_hours)")
        line = process.stdout.readline()
        if not line:
            raise ProcessDiedError(self._how(process))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _how(self, process: "subprocess.Popen[bytes]") -> str:
        try:
            code = process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "its process does not answer any more"
        if code == -signal.SIGKILL:
            return (
                "its process was killed, probably because it had too little memory: lower workers.count or set "
                "workers.memory"
            )
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}; {self._log} has what it said"
