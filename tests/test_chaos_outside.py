"""A short run of `scripts/chaos_outside.py`; the long one takes an hour."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "chaos_outside.py"


def test_files_that_may_not_be_read_quotas_growing_files_and_killed_trainings_end_in_a_result_or_a_line(tmp_path):
    counts = {"changes": 0, "owners": 2, "hangs": 0, "headers": 4, "rights": 2, "quotas": 1, "grown": 1, "series": 0,
              "trainings": 1}  # fmt: skip
    options = [f"--{name}={count}" for name, count in counts.items()]
    # Of seed 2 the trials of rights are of both kinds.
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "out", "--seed=2", *options],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "out" / "trials.jsonl").read_text().splitlines()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "owner": 2, "header": 4, "right": 2, "quota": 1, "grown": 1, "training": 1,
    }  # fmt: skip
