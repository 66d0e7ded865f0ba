"""The templates as they are, under the programs that are to read them."""

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from laue_dask.commands import main

TEMPLATES = Path(__file__).parent.parent.parent / "scripts" / "nightly"


def tool(name, *arguments):
    """Run a program; the test is skipped where it is not installed."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return subprocess.run([name, *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["laue-dask-nightly.service", "crontab", "scrontab"])
def test_the_command_of_each_template_is_one_that_there_is(name):
    lines = (TEMPLATES / name).read_text().splitlines()
    (line,) = [line for line in lines if "laue-dask nightly" in line and not line.startswith("#")]
    words = shlex.split(line.partition(">/dev/null")[0])
    arguments = words[words.index("nightly") + 1 :]
    with main.commands.commands["nightly"].make_context("nightly", arguments) as context:
        assert context.params["config_file"] is not None


def test_systemd_has_nothing_to_say_against_service_and_timer():
    done = tool("systemd-analyze", "verify", *sorted(TEMPLATES.glob("laue-dask-nightly.*")))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_cron_accepts_the_crontab():
    done = tool("crontab", "-n", TEMPLATES / "crontab")  # Debian's; cronie knows -T
    if "usage" in done.stderr:
        done = tool("crontab", "-T", TEMPLATES / "crontab")
    assert done.returncode == 0, done.stderr


def test_slurm_accepts_the_options_of_the_scrontab(tmp_path):
    if tool("sinfo", "-h").returncode:
        pytest.skip("no SLURM controller answers")
    script = tmp_path / "job.sh"
    options = [line for line in (TEMPLATES / "scrontab").read_text().splitlines() if line.startswith("#SCRON ")]
    # What does not fit the machine that the tests run on is no fault of the template's.
    small = [re.sub(r"--cpus-per-task=\d+", "--cpus-per-task=1", re.sub(r"--mem=\S+", "--mem=1G", o)) for o in options]
    script.write_text("\n".join(["#!/bin/sh", *(o.replace("#SCRON", "#SBATCH") for o in small), "true\n"]))
    done = tool("sbatch", "--test-only", script)
    assert done.returncode == 0, done.stderr


def test_a_real_cron_runs_the_crontab(tmp_path):
    if "LAUE_DASK_REAL_CRON" not in os.environ:
        pytest.skip("changes this user's crontab for two minutes: set LAUE_DASK_REAL_CRON")
    # A program of that name that says what it was given; all else of the template is as it is, but for the time.
    (tmp_path / "laue-dask").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/given\n')
    (tmp_path / "laue-dask").chmod(0o755)
    text = (TEMPLATES / "crontab").read_text()
    text = text.replace("/opt/laue_dask/.venv/bin", str(tmp_path)).replace("0 20 * * *", "* * * * *")
    before = tool("crontab", "-l")
    (tmp_path / "new").write_text(text)
    assert tool("crontab", tmp_path / "new").returncode == 0
    daemon = subprocess.Popen(["cron", "-f"])
    try:
        for _ in range(130):
            if (tmp_path / "given").exists():
                break
            time.sleep(1)
        assert (tmp_path / "given").read_text() == "nightly /data/beamtime --config /etc/laue-dask/nightly.yaml\n"
    finally:
        daemon.terminate()
        daemon.wait()
        (tmp_path / "old").write_text(before.stdout)
        tool("crontab", tmp_path / "old") if before.returncode == 0 else tool("crontab", "-r")
