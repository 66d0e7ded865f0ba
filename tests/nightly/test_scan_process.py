"""The process of the scans, in whose place a small program stands that does as it is told."""

import os
import sys
import time

import psutil
import pytest

from laue_dask.nightly import scan_process as hands
from laue_dask.nightly.config import LimitsConfig
from laue_dask.nightly.scan_process import ProcessDiedError, ScanProcess, ScanStoppedError

PROGRAM = """#!{python}
import json, os, signal, subprocess, sys, time
for line in sys.stdin:
    job = json.loads(line)
    if job["do"] == "answer":
        about = {{"pid": os.getpid(), "nice": os.nice(0), "tmp": os.environ["TMPDIR"]}}
        print(json.dumps({{**about, "cores": len(os.sched_getaffinity(0))}}), flush=True)
    elif job["do"] == "fail":
        print(json.dumps({{"failed": "compute", "reason": "no block finished", "pid": os.getpid()}}), flush=True)
    elif job["do"] == "die":
        os.kill(os.getpid(), job["signal"])
    elif job["do"] == "exit":
        sys.exit(7)
    else:
        child = subprocess.Popen(["sleep", "600"])
        open(job["file"], "w").write(f"{{child.pid}}")
        time.sleep(600)
"""


@pytest.fixture
def hand(tmp_path, monkeypatch):
    """Makes a hand with limits; whatever it started is gone at the end."""
    program = tmp_path / "python"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(hands.sys, "executable", str(program))
    monkeypatch.setattr(hands, "LIMIT_CHECK_INTERVAL_S", 0.05)
    made = []

    def make(**limits):
        made.append(ScanProcess(LimitsConfig(**limits), tmp_path / "log"))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def goes_on():
    return ""


def test_scans_share_a_process_until_it_has_had_its_number(hand):
    with hand(scans_per_process=2) as at_work:
        answers = [at_work.run({"do": "answer"}, stop=goes_on) for _ in range(5)]
    pids = [answer["pid"] for answer in answers]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not any(os.path.exists(answer["tmp"]) for answer in answers)  # noqa: PTH110


def test_after_a_failed_computation_the_next_scan_has_another_process(hand):
    at_work = hand()
    first = at_work.run({"do": "fail"}, stop=goes_on)
    assert first["failed"] == "compute"
    assert at_work.run({"do": "answer"}, stop=goes_on)["pid"] != first["pid"]


def test_limits_of_cores_and_priority_are_the_processes(hand):
    answer = hand(cores=1, nice=19).run({"do": "answer"}, stop=goes_on)
    assert answer["cores"] == 1
    assert answer["nice"] == 19


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        ({"do": "die", "signal": 9}, "too little memory"),
        ({"do": "die", "signal": 11}, "SIGSEGV"),
        ({"do": "exit"}, "exit code 7"),
    ],
)
def test_how_a_process_ended_is_said_and_the_next_scan_has_another(hand, job, reason):
    at_work = hand()
    with pytest.raises(ProcessDiedError, match=reason):
        at_work.run(job, stop=goes_on)
    assert at_work.run({"do": "answer"}, stop=goes_on)["pid"]


@pytest.mark.parametrize("by", ["night", "scan"])
def test_what_is_stopped_leaves_no_process_behind(hand, tmp_path, by):
    at_work, file = hand(scan_hours=12 if by == "night" else 0.5 / 3600), tmp_path / "child"
    expected = ScanStoppedError if by == "night" else ProcessDiedError
    with pytest.raises(expected, match="the time is up" if by == "night" else "scan_hours"):
        at_work.run(
            {"do": "hang", "file": str(file)},
            stop=lambda: "the time is up" if by == "night" and file.exists() and file.read_text() else "",
        )
    if file.exists() and file.read_text():
        child = int(file.read_text())
        deadline = time.monotonic() + 10
        while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
