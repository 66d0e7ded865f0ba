"""Jobs are replaced when they end, and given up when they fail time and again; no batch system is needed for that."""

import asyncio
from itertools import count

import pytest

from laue_dask.compute import jobs, worker_pools
from laue_dask.compute.jobs import Jobs, JobState
from laue_dask.compute.worker_pools import JobWorkerPool

NUMBERS = count(1)


class Batch:
    """Stands for `SpecCluster` and the batch system behind it."""

    def __init__(self):
        self.workers, self.worker_spec, self.states, self.refusal, self.handed_in = {}, {}, {}, None, []

    async def _correct_state(self):
        for name in self.workers.keys() - self.worker_spec.keys():
            del self.workers[name]
        for name in self.worker_spec.keys() - self.workers.keys():
            self.workers[name] = type("Job", (), {"job_id": None, "job_script": lambda self: "#!/bin/sh"})()
            if self.refusal:
                continue
            self.workers[name].job_id = number = str(next(NUMBERS))
            self.states[number] = JobState("pending", "PENDING (Priority)")
            self.handed_in.append(name)
        if self.refusal:
            raise RuntimeError(f"Command exited\nstdout:\n\nstderr:\n{self.refusal}\n\n")

    def end(self, name, said="FAILED (NonZeroExitCode)"):
        self.states[self.workers[name].job_id] = JobState("ended", said)


@pytest.fixture
def batch(monkeypatch):
    made = Batch()

    async def states(system, numbers):
        return {number: made.states[number] for number in numbers}

    monkeypatch.setattr(worker_pools, "states", states)
    monkeypatch.setattr(worker_pools, "QUEUE_POLL_INTERVAL_S", 0.0)
    return made


def crew(batch, cpus=3, gpus=0, logs=None):
    kinds = [Jobs("cpu", cpus, 1, {})] + ([Jobs("gpu", gpus, 2, {"group": ["-0", "-1"]})] if gpus else [])
    return JobWorkerPool(batch, jobs.BATCH_SYSTEMS["slurm"], kinds, logs)


def look(crew, *workers):
    asyncio.run(crew.restart_missing({worker: {} for worker in workers}))


def test_jobs_that_wait_are_waited_for_and_those_that_ended_are_replaced_under_new_names(batch):
    made = crew(batch, cpus=2, gpus=4)
    look(made)
    assert sorted(batch.handed_in) == ["cpu-0", "cpu-1", "gpu-0", "gpu-1"]
    for _ in range(5):
        look(made)
    assert len(batch.handed_in) == 4
    assert made.reason() == "4 jobs PENDING (Priority)"
    look(made, "cpu-0", "cpu-1", "gpu-0-0", "gpu-0-1", "gpu-1-1")  # the other one of gpu-1 starts later
    batch.end("cpu-1", "TIMEOUT (TimeLimit)")
    batch.end("gpu-1", "TIMEOUT (TimeLimit)")
    look(made, "cpu-0", "gpu-0-1")
    look(made, "cpu-0", "gpu-0-1")
    assert sorted(batch.handed_in[4:]) == ["cpu-2", "gpu-2"]
    assert sorted(batch.workers) == ["cpu-0", "cpu-2", "gpu-0", "gpu-2"]
    assert made.replaced == 2
    assert made.failure_reason(None) == ""


def test_a_job_whose_workers_are_silent_while_it_runs_is_left_alone(batch):
    made = crew(batch, cpus=1)
    look(made)
    look(made, "cpu-0")
    batch.states[batch.workers["cpu-0"].job_id] = JobState("running", "RUNNING")
    for _ in range(5):
        look(made)  # a worker that is started again by its nanny
    assert batch.handed_in == ["cpu-0"]


def test_jobs_are_handed_in_a_few_at_a_time(batch):
    made = crew(batch, cpus=25)
    for wanted in (10, 20, 25, 25):
        look(made)
        assert len(batch.handed_in) == wanted


def test_what_is_refused_time_and_again_is_hopeless_and_says_why(batch):
    batch.refusal = "sbatch: error: Batch job submission failed: Invalid account"
    made = crew(batch, cpus=8)
    for _ in range(worker_pools.MAX_FAILED_SUBMISSIONS):
        assert made.failure_reason(None) == ""
        look(made)
    assert made.failure_reason(None) == batch.refusal
    assert not batch.handed_in


def test_a_batch_system_that_is_gone_for_a_while_is_asked_again_if_workers_were_there_before(batch, monkeypatch):
    made = crew(batch, cpus=1)
    look(made)
    look(made, "cpu-0")
    batch.end("cpu-0", "TIMEOUT")
    batch.refusal = "sbatch: error: Socket timed out"
    for _ in range(6):
        look(made)
    assert made.failure_reason(None) == ""
    assert "Socket timed out" in made.reason()
    batch.refusal = None
    look(made)
    assert len(batch.handed_in) == 1  # not at once
    monkeypatch.setattr(worker_pools, "RESUBMIT_INTERVAL_S", 0.0)
    look(made)
    assert len(batch.handed_in) == 2
    look(made, "cpu-4")
    assert "Socket" not in made.reason()


def test_jobs_that_end_before_their_workers_start_are_hopeless_and_their_last_words_are_told(batch, tmp_path):
    made = crew(batch, cpus=1, logs=tmp_path)
    for _ in range(worker_pools.MAX_FAILED_SUBMISSIONS):
        look(made)
        [(name, job)] = batch.workers.items()
        (tmp_path / f"laue-dask-{job.job_id}.err").write_text(
            "INFO - starting\nModuleNotFoundError: No module named 'laue_dask'\nINFO - End worker\n"
        )
        batch.end(name)
        look(made)
    assert made.failure_reason(None) == made.failure_reason("cpu")
    assert (
        "ended before its workers started, FAILED (NonZeroExitCode): ModuleNotFoundError: No module"
        in made.failure_reason(None)
    )


def test_jobs_that_fail_leave_hope_while_others_of_their_kind_wait(batch):
    made = crew(batch, cpus=5)
    look(made)
    for name in list(batch.workers)[: worker_pools.MAX_FAILED_SUBMISSIONS]:
        batch.end(name)
    for _ in range(3):
        look(made)
    assert made.failure_reason(None) == ""
    for name in batch.workers:
        batch.end(name)
    look(made)
    assert made.failure_reason(None)


def test_one_kind_that_is_hopeless_leaves_hope_for_the_other(batch):
    made = crew(batch, cpus=1, gpus=2)
    look(made)
    for _ in range(worker_pools.MAX_FAILED_SUBMISSIONS):
        batch.end(next(name for name in batch.workers if name.startswith("gpu")))
        look(made, "cpu-0")
        look(made, "cpu-0")
    assert made.failure_reason("gpu")
    assert made.failure_reason(None) == ""
    known = made.described()
    assert known["cpu-0"]["had_workers"]
    assert known["failures"]["gpu"] == worker_pools.MAX_FAILED_SUBMISSIONS
