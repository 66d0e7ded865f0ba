"""A short run of `scripts/chaos.py`; the long one takes hours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "chaos.py"


@pytest.mark.timeout(900)
def test_kills_damage_faults_and_races_leave_the_same_bytes_or_an_error(tmp_path):
    counts = {"corruptions": 40, "clean": 20, "races": 5, "driver-kills": 4, "faults": 2, "repairs": 1}
    options = [f"--{name}={count}" for name, count in counts.items()]
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "out", *options, "--worker-kills=0", "--layouts=0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "out" / "trials.jsonl").read_text().splitlines()]
    assert {kind: kinds.count(kind) for kind in ("corruption", "clean", "race", "fault", "repair")} == {
        "corruption": 40, "clean": 20, "race": 5, "fault": 2, "repair": 1,
    }  # fmt: skip
    assert "driver_kill" in kinds
    assert done.stdout.count("| ") >= 15
