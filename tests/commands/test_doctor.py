"""What `laue-dask doctor` finds, and what it says when something is wrong."""

import os

import psutil
import pytest

from laue_dask.commands import doctor, main
from laue_dask.compute import local
from laue_dask.config import Config, load
from laue_dask.errors import ComputeError


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def test_a_sound_machine_passes_every_check_and_nothing_is_left(command, place):
    outcome = command("doctor", "--out", place)
    lines = outcome.out.splitlines()
    assert outcome.code == 0
    assert all(line.startswith("pass  ") for line in lines)
    checked = [line[6:18].strip() for line in lines]
    assert checked == [
        *("versions", "extras", "machine", "GPU", "storage", "locks", "cluster", "security", "workers"),
        *("shared", "scratch", "GPU workers", "run"),
    ]
    assert "120 simulated patterns in" in lines[-1]
    assert not list(place.iterdir())


def test_a_check_that_fails_says_what_to_do_and_the_command_ends_with_1(command, place, monkeypatch):
    monkeypatch.setattr(
        doctor, "requires", lambda name: ["dask>=1", "zarr>=99", "nowhere-to-be-found", "x; extra == 'y'"]
    )
    monkeypatch.setattr(doctor, "_cluster", lambda config, place: iter(()))
    outcome = command("doctor", "--out", place)
    assert outcome.code == 1
    assert outcome.complaints == []
    [failed] = [line for line in outcome.out.splitlines() if not line.startswith("pass  ")]
    assert failed.startswith("FAIL  versions     zarr 3")
    assert "needed >=99; nowhere-to-be-found is missing: install laue_dask again" in failed


def test_extras_that_are_missing_are_named_and_fail_nothing(place, monkeypatch):
    monkeypatch.setattr(doctor, "_cluster", lambda config, place: iter(()))
    wanted = ["dask>=1", 'numpy>=99; extra == "docs"', 'nowhere-to-be-found; extra == "test"']
    monkeypatch.setattr(doctor, "requires", lambda name: wanted)
    found = {finding.name: finding for finding in doctor.run_checks(Config(), place)}
    assert found["versions"].passed
    assert found["extras"].passed
    told = dict(part.split(": ") for part in found["extras"].said.split("; "))
    assert told["benchmark"] == "complete"
    assert told["docs"].endswith("needed >=99")
    assert told["test"] == "nowhere-to-be-found is missing"


def test_a_folder_that_cannot_be_written_to_ends_the_examination(tmp_path):
    (tmp_path / "file").touch()
    *_, last = doctor.run_checks(Config(), tmp_path / "file")
    assert (last.name, last.passed) == ("storage", False)
    assert "Not a directory: choose a folder that you may write to" in last.said


def test_workers_that_do_not_come_are_a_finding_with_its_reason(place, monkeypatch):
    def refuse(*_, **__):
        raise ComputeError("no worker for 30 min 00 s: 2 jobs PENDING (Resources)")

    monkeypatch.setattr(doctor.cluster, "start", refuse)
    *_, last = doctor.run_checks(Config(), place)
    assert str(last) == "FAIL  cluster      no worker for 30 min 00 s: 2 jobs PENDING (Resources)"
    assert list(place.iterdir())  # what the cluster wrote is kept


def test_locks_that_do_not_hold_are_found(place, monkeypatch):
    monkeypatch.setattr(doctor, "_refused", lambda folder: False)
    finding = doctor._found("locks", lambda: doctor._locks(place))
    assert not finding.passed
    assert "can have two owners there" in finding.said


@pytest.mark.usefixtures("on_workers")
def test_workers_of_another_environment_or_blind_ones_are_found(place, monkeypatch):
    monkeypatch.setattr(doctor, "_here", Versions())
    monkeypatch.setattr(doctor, "_read", blind)
    monkeypatch.setattr(doctor, "_run", lambda config, place, workers: "ran")
    findings = {finding.name: finding for finding in doctor.run_checks(Config(), place)}
    assert not findings["workers"].passed
    assert "set workers.python" in findings["workers"].said
    assert not findings["shared"].passed
    assert f"does not see {place}: keep runs on a file system that all nodes share" in findings["shared"].said
    assert findings["run"].passed


class Versions:
    """The versions here; others elsewhere."""

    def __init__(self):
        self.pid = os.getpid()

    def __call__(self):
        return ("here",) if os.getpid() == self.pid else ("elsewhere",)


def blind(path):
    return "No such file or directory"


def test_a_gpu_that_is_required_and_missing_is_found_before_any_worker_is_started(monkeypatch):
    monkeypatch.setattr(local, "gpu_count", lambda: 0)
    config = load(None, {"workers": {"gpu": "require"}}).workers
    finding = doctor._found("GPU", lambda: doctor._gpu(config))
    assert not finding.passed
    assert "workers.gpu = require" in finding.said


def test_a_machine_without_memory_is_found(monkeypatch):
    machine = type("Memory", (), {"available": 2 * 10**8, "total": 4 * 10**9})
    monkeypatch.setattr(psutil, "virtual_memory", machine)
    finding = doctor._found("machine", doctor._machine)
    assert not finding.passed
    assert "a worker needs 0.94 GiB: end other programs" in finding.said


def test_a_configuration_that_is_wrong_is_bad_input(capsys, tmp_path):
    (tmp_path / "c.yaml").write_text("workers: {kind: abacus}")
    assert main.exit_code(["doctor", "--config", str(tmp_path / "c.yaml")]) == 2
    assert "workers.kind = 'abacus': local, slurm, pbs, lsf, sge or scheduler was expected" in capsys.readouterr().err
