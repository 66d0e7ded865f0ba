"""A run from a script as people write it first: nothing guards its lines, and workers do not run them again."""

import subprocess
import sys

SCRIPT = """
import laue_dask as ld

print("begun")
config = {{"clustering": {{"score_k": [2, 3], "n_init": 1, "repeats": 0}}, "encoder": {{"weights": "untrained"}}}}
run = ld.run({source!r}, {out!r}, k=3, config={{**config, "quality": "none"}}, workers=2, progress=False)
assert ld.open_run(run.path).record == run.record
print(run.k, run.labels(3).shape)
"""


def test_a_script_without_a_guard_runs_once_and_says_nothing_of_its_own(tmp_path, small_scan):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(source=str(small_scan), out=str(tmp_path / "run")))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "begun"
    assert lines[1].endswith("(8, 9)")
    assert len(lines) == 2
    assert done.stderr == ""
