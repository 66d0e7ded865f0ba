"""The supervisor watches a running cluster: it replaces workers that ended, and ends what can never go on.

Whatever waits for workers waits in Dask, which waits for ever. So the supervisor, once it is sure, closes the client:
everything that waits ends, and `compute.cluster.start` says the cause instead.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from distributed import Client, Status
from tornado.ioloop import IOLoop, PeriodicCallback

from laue_dask.errors import StoreError
from laue_dask.io.receipts import drop_receipts
from laue_dask.runtime.progress import duration

CHECK_INTERVAL_S = 3.0
"""Seconds between two looks."""

NO_PROGRESS_TIMEOUT_S = 3600.0
"""Seconds in which no task begins or ends, though there are workers, after which the run is taken for stuck."""

ALL_PAUSED_TIMEOUT_S = 60.0
"""The same where Dask has paused every worker, as it does at 80 % of its memory, which may never be given back."""

WAITING_MESSAGE_INTERVAL_S = 60.0
"""Seconds between two lines that say what is waited for."""

STATE_FILE = "state.json"
"""What was known of the cluster when it was given up."""

UNFINISHED_TASK_STATES = ("waiting", "queued", "no-worker", "processing")
"""States of tasks that are still to be done."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SchedulerView:
    """What the scheduler says.

    Attributes
    ----------
    workers
        Resources of each worker by its name.
    tasks
        Number of tasks in each state.
    moved
        Grows whenever a task changes its state.
    paused
        Number of workers that begin no task because of their memory.
    """

    workers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tasks: Mapping[str, int] = field(default_factory=dict)
    moved: int = 0
    paused: int = 0

    @property
    def unfinished(self) -> int:
        """Tasks that are still to be done."""
        return sum(self.tasks.get(state, 0) for state in UNFINISHED_TASK_STATES)

    def tagged(self) -> list[str]:
        """Return the names of the GPU workers."""
        return [name for name, resources in self.workers.items() if resources.get("GPU")]


def view_scheduler(dask_scheduler: Any) -> SchedulerView:
    """Look at a scheduler; called inside it."""
    return SchedulerView(
        {str(worker.name): dict(worker.resources) for worker in dask_scheduler.workers.values()},
        Counter(task.state for task in dask_scheduler.tasks.values()),
        dask_scheduler.transition_counter,
        sum(worker.status == Status.paused for worker in dask_scheduler.workers.values()),
    )


class WorkerPool(Protocol):
    """Who starts the workers."""

    async def restart_missing(self, workers: Mapping[str, Mapping[str, float]]) -> None:
        """Start again what ended, given the workers that there are."""
        ...

    def failure_reason(self, label: str | None) -> str:
        """Return why no workers of a kind (`cpu`, `gpu`), or any, will come any more, if that is known."""
        ...

    def reason(self) -> str:
        """Return why workers are missing, as far as is known; empty if nothing is."""
        ...

    def described(self) -> Any:
        """Return what is known of it, for a file."""
        ...


class Supervisor:
    """Looks after a cluster while it is used.

    Parameters
    ----------
    timeout
        Seconds without a worker that could do what is to be done, after which the cluster is given up.
    folder
        Where the state of the cluster is written then.

    Attributes
    ----------
    seen
        What the last look saw.
    verdict
        Why the cluster was given up, None while it is not.
    awaited
        Whether workers are waited for though nothing has been asked of them yet.
    """

    def __init__(self, client: Client, pool: WorkerPool, *, timeout: float, folder: Path | None) -> None:
        self.seen = SchedulerView()
        self.verdict: str | None = None
        self.awaited = True
        self._client, self._pool, self._timeout, self._folder = client, pool, timeout, folder
        self._lacking: float | None = None
        self._moved = (-1, time.monotonic())
        self._told = time.monotonic()
        self._looking = False

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Look at the cluster every few seconds."""
        loop = cast(IOLoop, self._client.loop)
        callback = PeriodicCallback(self.look, 1000 * CHECK_INTERVAL_S)
        loop.add_callback(self.look)
        loop.add_callback(callback.start)
        try:
            yield
        finally:
            loop.add_callback(callback.stop)

    async def look(self) -> None:
        """Look once."""
        if self._looking or self.verdict or self._client.status != "running":
            return
        self._looking = True
        try:
            self.seen = await self._client.run_on_scheduler(view_scheduler)
            await self._pool.restart_missing(self.seen.workers)
            cause = self._cause()
            if cause:
                await self.give_up(cause)
        except Exception as error:
            # Most often the scheduler does not answer, as at the end: whoever waits for it is told so by the client.
            # The next look may do better.
            logger.debug("the scheduler could not be asked: %s: %s", type(error).__name__, error)
        finally:
            self._looking = False

    async def give_up(self, cause: str) -> None:
        """End everything that waits for this cluster."""
        self.verdict = cause + self.written()
        await self._client.close()

    def written(self) -> str:
        """Write what is known of the cluster; where, in words to be added to a message."""
        if self._folder is None:
            return ""
        path = self._folder / STATE_FILE
        state = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "workers": self.seen.workers,
            "tasks": self.seen.tasks,
            "reason": self._pool.reason(),
            "jobs": self._pool.described(),
        }
        with suppress(OSError):
            with suppress(StoreError):  # of a run that is not finished there are none
                drop_receipts(self._folder.parent, [f"{self._folder.name}/{STATE_FILE}"])
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(state, indent=1, default=str), encoding="utf-8")
            return f" (the cluster's state is in {path})"
        return ""

    def _cause(self) -> str | None:
        """Why nothing can go on, if that is so."""
        seen, now = self.seen, time.monotonic()
        # Without work to be done workers may come and go.
        missing = "no worker" if not seen.workers and (self.awaited or seen.unfinished) else ""
        # Tasks of any kind wait as if for a GPU while all workers are paused.
        if not missing and seen.tasks.get("no-worker") and not seen.tagged() and seen.paused < len(seen.workers):
            missing = "no GPU worker"
        reason = self._pool.failure_reason("gpu" if seen.workers else None) if missing else ""
        if reason:
            return f"{missing}: {reason}"
        if not missing:
            self._lacking = None
        elif self._lacking is None:
            self._lacking = now
        else:
            lacking = now - self._lacking
            reason = self._pool.reason()
            if lacking >= self._timeout:
                return f"{missing} for {duration(lacking)}" + (f": {reason}" if reason else "")
            if now - self._told >= WAITING_MESSAGE_INTERVAL_S:
                self._told = now
                logger.info("%s for %s%s", missing, duration(lacking), f": {reason}" if reason else "")
        if seen.moved != self._moved[0] or not seen.unfinished or missing:
            self._moved = (seen.moved, now)
        elif seen.paused == len(seen.workers) and now - self._moved[1] >= ALL_PAUSED_TIMEOUT_S:
            return (
                f"all {seen.paused} workers have been paused for {duration(ALL_PAUSED_TIMEOUT_S)}, with "
                f"{seen.unfinished} tasks to be done: they hold 80 % of their memory: raise workers.memory or lower "
                "workers.count"
            )
        elif now - self._moved[1] >= NO_PROGRESS_TIMEOUT_S:
            return (
                f"no task has begun or ended for {duration(NO_PROGRESS_TIMEOUT_S)} ({seen.unfinished} to be done, "
                f"{len(seen.workers)} workers): is the disk reachable from the workers?"
            )
        return None
