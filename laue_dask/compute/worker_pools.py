"""Start workers, and start them again: on this machine, in a batch system, or where somebody else does it."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from distributed import SpecCluster

from laue_dask.compute.jobs import Jobs, JobState, System, number, states

MAX_JOBS_PER_SUBMISSION = 10
"""Jobs that are handed in at a time: a batch system has other users."""

QUEUE_POLL_INTERVAL_S = 10.0
"""Seconds between two questions to the batch system while jobs wait in its queue."""

MAX_FAILED_SUBMISSIONS = 3
"""How often in a row a job may be refused, or end before its workers start, until no more is hoped for."""

RESUBMIT_INTERVAL_S = 60.0
"""Seconds between two tries from then on, for a batch system may come back."""

Resources = Mapping[str, Mapping[str, float]]
"""Resources of each worker by its name."""


class LocalWorkerPool:
    """Worker processes of this machine; Dask itself starts most of them again."""

    def __init__(self, cluster: SpecCluster) -> None:
        self._cluster = cluster

    async def restart_missing(self, workers: Resources) -> None:
        """Start again those that Dask gives up: the ones that were killed while they started."""
        if len(self._cluster.workers) < len(self._cluster.worker_spec):
            self._cluster.scale(len(self._cluster.worker_spec))

    def failure_reason(self, label: str | None) -> str:
        """Return an empty text: no such reason can be known."""
        return ""

    def reason(self) -> str:
        """Return what to look at."""
        return "the worker processes of this machine do not start, or end at once: is there memory left?"

    def described(self) -> Any:
        """Return the names of the workers."""
        return [str(name) for name in self._cluster.worker_spec]


class ExternalWorkerPool:
    """Workers that somebody else starts."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def restart_missing(self, workers: Resources) -> None:
        """Nothing can be done."""

    def failure_reason(self, label: str | None) -> str:
        """Return an empty text: no such reason can be known."""
        return ""

    def reason(self) -> str:
        """Return what to do."""
        return f"start workers for {self._address}"

    def described(self) -> Any:
        """Return where the scheduler is."""
        return self._address


@dataclass
class _Job:
    label: str
    had_workers: bool = False
    state: JobState = field(default_factory=lambda: JobState("pending"))


class JobWorkerPool:
    """Jobs of a batch system, which are replaced when they end.

    Parameters
    ----------
    cluster
        Without any workers yet.
    kinds
        The jobs that there are to be.
    logs
        Folder where the jobs leave what they print.
    """

    def __init__(self, cluster: SpecCluster, system: System, kinds: Sequence[Jobs], logs: Path | None) -> None:
        self._cluster, self._system, self._logs = cluster, system, logs
        self._kinds = {jobs.label: jobs for jobs in kinds}
        self._jobs: dict[str, _Job] = {}
        self._numbers = {label: count() for label in self._kinds}
        self._failures: Counter[str] = Counter()
        self._causes: dict[str, str] = {}
        self._started: set[str] = set()
        self._tried: dict[str, float] = {}
        self._alive: set[str] = set()
        self._asked = 0.0
        self.replaced = 0

    async def restart_missing(self, workers: Resources) -> None:
        """Hand in what is missing, and anew what has ended."""
        alive = {"-".join(name.split("-")[:2]) for name in workers} & self._jobs.keys()
        for name in alive:
            job = self._jobs[name]
            job.had_workers, job.state = True, JobState("running")
            self._started.add(job.label)
            self._failures[job.label] = 0
            self._causes.pop(job.label, None)
        silent = [name for name in self._jobs if name not in alive]
        if silent and (self._alive - alive or time.monotonic() - self._asked >= QUEUE_POLL_INTERVAL_S):
            await self._ask(silent)
        self._alive = alive
        for name in silent:
            if self._jobs[name].state.phase == "ended" or name not in self._cluster.workers:
                self._forget(name)
        await self._submit()

    def failure_reason(self, label: str | None) -> str:
        """Return why no workers of a kind, or of any, will come: jobs fail again and again, and none ever had a
        worker.
        """
        labels = [label] if label else list(self._kinds)
        hoped = self._started | {job.label for job in self._jobs.values()}
        lost = [one for one in labels if self._failures[one] >= MAX_FAILED_SUBMISSIONS and one not in hoped]
        return "; ".join(self._causes[one] for one in lost) if lost == labels else ""

    def reason(self) -> str:
        """Return what the batch system says."""
        waiting = Counter(job.state.said or "handed in" for job in self._jobs.values() if not job.had_workers)
        said = [f"{n} job{'s' if n > 1 else ''} {text}" for text, n in waiting.items()]
        return "; ".join([*said, *dict.fromkeys(self._causes.values())])

    def described(self) -> Any:
        """Return each job with its number, what the batch system says of it, and its script."""
        jobs = self._cluster.workers
        return {
            name: {
                "number": getattr(jobs.get(name), "job_id", None),
                "had_workers": job.had_workers,
                "state": [job.state.phase, job.state.said],
                "script": jobs[name].job_script().splitlines() if name in jobs else None,
            }
            for name, job in self._jobs.items()
        } | {"failures": dict(self._failures), "causes": self._causes}

    async def _ask(self, names: Sequence[str]) -> None:
        numbers = {name: self._cluster.workers[name].job_id for name in names if name in self._cluster.workers}
        found = await states(self._system, [one for one in numbers.values() if one])
        self._asked = time.monotonic()
        if found is not None:
            for name, one in numbers.items():
                self._jobs[name].state = found[one] if one else JobState("ended")

    def _forget(self, name: str) -> None:
        job = self._jobs.pop(name)
        self._cluster.worker_spec.pop(name, None)
        self.replaced += 1
        if not job.had_workers:
            self._failures[job.label] += 1
            one = getattr(self._cluster.workers.get(name), "job_id", None)
            said = f"job {one} ended before its workers started" + (f", {job.state.said}" if job.state.said else "")
            last = self._last_output_line(one)
            self._causes[job.label] = said + (f": {last}" if last else "")

    async def _submit(self) -> None:
        new: dict[str, str] = {}
        for label, jobs in self._kinds.items():
            missing = jobs.count - sum(job.label == label for job in self._jobs.values())
            resting = (
                time.monotonic() - self._tried.get(label, -RESUBMIT_INTERVAL_S) < RESUBMIT_INTERVAL_S
                and self._failures[label] >= MAX_FAILED_SUBMISSIONS
            )
            for _ in range(0 if resting else min(missing, MAX_JOBS_PER_SUBMISSION - len(new))):
                new[f"{label}-{next(self._numbers[label])}"] = label
                self._tried[label] = time.monotonic()
        if not new and self._cluster.workers.keys() <= self._cluster.worker_spec.keys():
            return
        self._cluster.worker_spec.update({name: self._kinds[label].spec for name, label in new.items()})
        refused = None
        try:
            # Of all ways to bring a cluster to its specification the one that says what went wrong.
            await self._cluster._correct_state()
        except (RuntimeError, OSError, ValueError) as error:
            refused = _complaint(str(error))
        for name, label in new.items():
            if getattr(self._cluster.workers.get(name), "job_id", None):
                self._jobs[name] = _Job(label)
            else:
                self._cluster.worker_spec.pop(name, None)
                self._causes[label] = refused or "the batch system did not take the job"
        # Several that were refused together were refused once.
        self._failures.update({label for name, label in new.items() if name not in self._jobs})

    def _last_output_line(self, job: str | None) -> str:
        """The line of what a job printed that tells most about its end."""
        if self._logs is None or not job:
            return ""
        lines: list[str] = []
        for path in sorted(self._logs.glob(f"*{number(job)}*")):
            with path.open(encoding="utf-8", errors="replace") as file:
                lines += [line.strip() for line in file.readlines()[-200:] if line.strip()]
        telling = [line for line in lines if any(word in line.lower() for word in ("error", "not found", "timed out"))]
        return (telling or lines or [""])[-1][:300]


def _complaint(text: str) -> str:
    """What a batch system's command said on stderr, in one line."""
    said = text.partition("stderr:\n")[2] or text
    return "; ".join(line.strip() for line in said.splitlines() if line.strip())
