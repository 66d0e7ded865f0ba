"""With real processes: a few simulated nights, and a night that is killed."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "nights.py"


def nights(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=900
    )


@pytest.mark.timeout(900)
def test_every_scan_of_simulated_nights_with_faults_ends_in_a_defined_state(tmp_path):
    done = nights(tmp_path / "nights", "--nights", 2, "--scans", 5, "--faults", 0.5)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 of 10 scans ended in a defined state" in done.stdout


@pytest.mark.timeout(900)
def test_a_night_that_is_killed_goes_on_with_nothing_lost_or_done_twice(tmp_path):
    done = nights(tmp_path / "nights", "--kills", 2, "--scans", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill 2 of 2" in done.stdout
