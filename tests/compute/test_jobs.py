"""Job scripts against the options that each batch system documents, and its answers as states."""

import asyncio
import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.compute import credentials, jobs
from laue_dask.compute.jobs import JobState
from laue_dask.config import load, validate
from laue_dask.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]

# The options that a job may have in its script, with their arguments: sbatch(1); qsub(1B) of PBS Professional; the
# bsub command of LSF; qsub(1) of Grid Engine.
CLOCK, PATH = r"\d{2,}:\d\d:\d\d", r"/\S+"
DOCUMENTED = {
    "slurm": (
        "#SBATCH",
        {
            "-J": r"[\w-]+", "-e": PATH, "-o": PATH, "-p": r"\S+", "-A": r"\S+", "-n": r"\d+", "-t": CLOCK,
            "--cpus-per-task": r"\d+", "--mem": r"\d+[KMGT]", "--gres": r"gpu(:\w+)?:\d+", "--no-requeue": "",
        },
    ),
    "pbs": (
        "#PBS",
        {
            "-N": r"[\w-]{1,15}", "-e": PATH, "-o": PATH, "-q": r"\S+", "-A": r"\S+", "-r": "[yn]",
            "-l": rf"(select=1:ncpus=\d+(:ngpus=\d+)?:mem=\d+mb|walltime={CLOCK}|place=\w+)",
        },
    ),
    "lsf": (
        "#BSUB",
        {
            "-J": r"\S+", "-e": PATH, "-o": PATH, "-q": r"\S+", "-P": r"\S+", "-n": r"\d+", "-R": r"span\[hosts=1\]",
            "-M": r"\d+", "-W": r"\d+:\d\d", "-gpu": r"num=\d+", "-rn": "",
        },
    ),
    "sge": (
        "#$",
        {
            "-N": r"[\w-]+", "-e": PATH, "-o": PATH, "-q": r"\S+", "-P": r"\S+", "-r": "[yn]", "-cwd": "", "-j": "[yn]",
            "-pe": r"\w+ \d+", "-l": rf"(h_rt={CLOCK}|mem_free=\d+M|gpu=\d+)",
        },
    ),
}  # fmt: skip


@pytest.fixture
def everywhere(tmp_path, monkeypatch):
    """A machine that has the commands of all batch systems; none of them is called."""
    for name in ("sbatch", "qsub", "bsub"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        command = tmp_path / "bin" / name
        command.write_text("#!/bin/sh\nexit 1\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return tmp_path


def cluster(kind, **changes):
    given = {
        "kind": kind, "workers": 40, "cores": 16, "memory": "4GiB", "walltime": "08:30:00", "queue": "day",
        "account": "xmd", "gpu_jobs": {"workers": 4, "gpus": 2, "cores": 3, "memory": "10GiB", "queue": "gpu"},
    }  # fmt: skip
    return load(None, {"workers": {**given, **changes}}).workers


def script(made, name="cpu-0"):
    return made.spec["cls"]("tls://10.0.0.1:8786", name=name, **made.spec["options"]).job_script()


def directives(text, prefix):
    """Options and arguments of a script's directives."""
    found = []
    for line in text.splitlines():
        if line.startswith(f"{prefix} "):
            option, *arguments = shlex.split(line[len(prefix) :])
            if "=" in option and option.startswith("--"):
                option, _, argument = option.partition("=")
                arguments = [argument]
            found.append((option, " ".join(arguments)))
    return found


@pytest.mark.parametrize("kind", DOCUMENTED)
def test_every_directive_is_one_that_is_documented(everywhere, kind):
    prefix, documented = DOCUMENTED[kind]
    config = cluster(kind)
    for made in (
        jobs.cpu_jobs(config, security=None, logs=everywhere),
        jobs.gpu_jobs(config, config.gpu_jobs, security=None, logs=everywhere),
    ):
        found = directives(script(made), prefix)
        assert len(found) >= 8
        for option, argument in found:
            assert option in documented, (option, argument)
            assert re.fullmatch(documented[option], argument), (option, argument)
        # nothing but directives before the first command, or the batch system would not read them
        lines = script(made).splitlines()
        first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
        assert not any(line.startswith(prefix) for line in lines[first:])


@pytest.mark.parametrize(
    ("kind", "cpu", "gpu"),
    [
        (
            "slurm",
            {"-p": "day", "-A": "xmd", "-t": "08:30:00", "--cpus-per-task": "16", "--mem": "65536M"},
            {"-p": "gpu", "-A": "xmd", "-t": "08:30:00", "--cpus-per-task": "6", "--mem": "20480M", "--gres": "gpu:2"},
        ),
        (
            "pbs",
            {"-q": "day", "-A": "xmd", "-l": {"select=1:ncpus=16:mem=65536mb", "walltime=08:30:00"}},
            {"-q": "gpu", "-l": {"select=1:ncpus=6:ngpus=2:mem=20480mb", "walltime=08:30:00"}},
        ),
        ("lsf", {"-q": "day", "-P": "xmd", "-W": "08:30", "-n": "16"}, {"-q": "gpu", "-gpu": "num=2", "-n": "6"}),
        (
            "sge",
            {"-q": "day", "-P": "xmd", "-pe": "smp 16", "-l": {"h_rt=08:30:00", "mem_free=65536M"}},
            {"-q": "gpu", "-pe": "smp 6", "-l": {"h_rt=08:30:00", "mem_free=20480M", "gpu=2"}},
        ),
    ],
)
def test_a_job_asks_for_what_its_workers_need(everywhere, kind, cpu, gpu):
    config = cluster(kind)
    kinds = (
        (jobs.cpu_jobs(config, security=None, logs=everywhere), cpu, 3, 16),
        (jobs.gpu_jobs(config, config.gpu_jobs, security=None, logs=everywhere), gpu, 2, 2),
    )
    for made, wanted, count, processes in kinds:
        assert (made.count, made.processes) == (count, processes)
        assert made.spec["group"] == [f"-{i}" for i in range(processes)]
        found: dict[str, set[str]] = {}
        for option, argument in directives(script(made), DOCUMENTED[kind][0]):
            found.setdefault(option, set()).add(argument)
        for option, argument in wanted.items():
            assert found[option] == (argument if isinstance(argument, set) else {argument})


def worker_command(text):
    [line] = [line for line in text.splitlines() if "distributed.cli.dask_worker" in line]
    return shlex.split(line)


def test_workers_have_one_thread_end_before_their_job_and_show_nothing_on_the_network(everywhere):
    config = cluster("slurm", python="/opt/my env/bin/python")
    cpu = worker_command(script(jobs.cpu_jobs(config, security=None, logs=everywhere)))
    gpu = worker_command(script(jobs.gpu_jobs(config, config.gpu_jobs, security=None, logs=everywhere)))
    for command, memory in ((cpu, "4.00GiB"), (gpu, "10.00GiB")):
        options = dict(itertools.pairwise(command))
        assert command[0] == "/opt/my env/bin/python"
        assert (options["--nthreads"], options["--memory-limit"]) == ("1", memory)
        lifetime, stagger = (float(options[f"--{name}"][:-1]) for name in ("lifetime", "lifetime-stagger"))
        assert lifetime + stagger < 8.5 * 3600 - 120
        assert lifetime - stagger > 8 * 3600
        assert options["--worker-class"] == "laue_dask.compute.servers.ClosedWorker"
        assert "--no-dashboard" in command
        assert options["--local-directory"] == "${TMPDIR:-/tmp}"
    assert "--resources" not in cpu
    assert dict(itertools.pairwise(gpu))["--resources"] == "GPU=1"
    loaded = [[after for option, after in itertools.pairwise(one) if option == "--preload"] for one in (cpu, gpu)]
    assert loaded == [
        ["laue_dask.compute.memory_preload"],
        ["laue_dask.compute.memory_preload", "laue_dask.compute.gpu_preload"],
    ]


@given(walltime=st.integers(4, 10**6))
def test_a_worker_always_ends_before_its_job(walltime):
    config = load(None, {"workers": {"kind": "slurm", "walltime": walltime}}).workers
    options = jobs._lifetime(config)
    lifetime, stagger = (float(options[i][:-1]) for i in (1, 3))
    assert lifetime > stagger > 0
    assert lifetime + stagger < walltime


def test_credentials_are_named_in_the_command_whatever_the_folder_is_called(everywhere):
    folder = everywhere / "beam time"
    with credentials.temporary(folder) as (here, there):
        made = jobs.cpu_jobs(cluster("pbs"), security=there, logs=folder)
        command = worker_command(script(made))
        options = dict(itertools.pairwise(command))
        for name in ("ca-file", "cert", "key"):
            path = folder / credentials.CREDENTIALS_FOLDER / f"{name.removesuffix('-file')}.pem"
            assert options[f"--tls-{name}"] == str(path)
            assert "\n" in path.read_text()
        assert here.tls_worker_key == (folder / credentials.CREDENTIALS_FOLDER / "key.pem").read_text()
        # no batch system takes a folder with a space in a directive
        assert str(folder) not in made.spec["cls"]("tls://x:1", name="a", **made.spec["options"]).job_header
    assert not (folder / credentials.CREDENTIALS_FOLDER).exists()


def test_what_a_killed_command_left_is_replaced_and_others_can_never_read_it(tmp_path):
    left = tmp_path / credentials.CREDENTIALS_FOLDER
    left.mkdir(mode=0o777)
    (left / "key.pem").write_text("old")
    with credentials.temporary(tmp_path):
        assert left.stat().st_mode & 0o777 == 0o700
        assert "BEGIN" in (left / "key.pem").read_text()
        assert {path.stat().st_mode & 0o777 for path in left.iterdir()} == {0o600}


def test_own_words_for_a_batch_system_replace_or_follow_ours(everywhere):
    spec = "select=1:ncpus=16:model=rom"
    config = cluster("pbs", resource_spec=spec, directives=["-l place=scatter"], prologue=["module load python"])
    text = script(jobs.cpu_jobs(config, security=None, logs=None))
    resources = [argument for option, argument in directives(text, "#PBS") if option == "-l"]
    assert resources == [spec, "walltime=08:30:00", "place=scatter"]
    assert text.index("module load python") < text.index("distributed.cli.dask_worker")


def test_a_batch_system_that_is_not_here_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="the command `bsub` is not found on this machine"):
        jobs.cpu_jobs(cluster("lsf"), security=None, logs=None)


SQUEUE = """\
101|PENDING|Resources
102|RUNNING|None
103|TIMEOUT|TimeLimit
104|CANCELLED|None
105|COMPLETING|None
106|PENDING|Dependency|odd
"""

QSTAT_F = """\
Job Id: 1234.pbs01
    Job_Name = laue-dask
    job_state = Q
    queue = workq
    comment = Not Running: Insufficient amount of resource: ncpus (R: 128 A: 6
\t4 T: 1024)
    Variable_List = PBS_O_HOME=/home/u,
\tPBS_O_PATH=/usr/bin

Job Id: 1235.pbs01
    Job_Name = laue-dask
    job_state = R
    exec_host = node7/0*16

Job Id: 1236.pbs01
    job_state = F
    comment = Job run at Mon Nov 23 and failed
"""

BJOBS = """\
211|PEND|New job is waiting for scheduling;|-
212|RUN|-|-
213|EXIT|-|TERM_RUNLIMIT: job killed after reaching LSF run time limit
214|DONE|-|-
"""

QSTAT = """\
job-ID  prior   name       user         state submit/start at     queue                          slots ja-task-ID
-----------------------------------------------------------------------------------------------------------------
    311 0.55500 laue-dask  u            r     11/23/2026 10:00:00 all.q@node1                       16
    312 0.00000 laue-dask  u            qw    11/23/2026 10:00:01                                   16
    313 0.00000 laue-dask  u            Eqw   11/23/2026 10:00:01                                   16
    314 0.50000 laue-dask  u            hqw   11/23/2026 10:00:01                                   16
"""


@pytest.mark.parametrize(
    ("kind", "text", "wanted"),
    [
        (
            "slurm",
            SQUEUE,
            {
                "101": JobState("pending", "PENDING (Resources)"),
                "102": JobState("running", "RUNNING"),
                "103": JobState("ended", "TIMEOUT (TimeLimit)"),
                "104": JobState("ended", "CANCELLED"),
                "105": JobState("ended", "COMPLETING"),
                "106": JobState("pending", "PENDING (Dependency|odd)"),
            },
        ),
        (
            "pbs",
            QSTAT_F,
            {
                "1234": JobState(
                    "pending", "Q (Not Running: Insufficient amount of resource: ncpus (R: 128 A: 64 T: 1024))"
                ),
                "1235": JobState("running", "R"),
                "1236": JobState("ended", "F (Job run at Mon Nov 23 and failed)"),
            },
        ),
        (
            "lsf",
            BJOBS,
            {
                "211": JobState("pending", "PEND (New job is waiting for scheduling;)"),
                "212": JobState("running", "RUN"),
                "213": JobState("ended", "EXIT (TERM_RUNLIMIT: job killed after reaching LSF run time limit)"),
                "214": JobState("ended", "DONE"),
            },
        ),
        (
            "sge",
            QSTAT,
            {
                "311": JobState("running", "r"),
                "312": JobState("pending", "qw"),
                "313": JobState("ended", "Eqw"),
                "314": JobState("pending", "hqw"),
            },
        ),
    ],
)
def test_what_a_batch_system_says_of_its_jobs_is_understood(kind, text, wanted):
    assert jobs.BATCH_SYSTEMS[kind].read(text) == wanted


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("echo '7|RUNNING|None'", {"7.server": JobState("running", "RUNNING"), "8": JobState("ended")}),
        (
            "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
            {"7.server": JobState("ended"), "8": JobState("ended")},
        ),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", None),
    ],
)
def test_a_batch_system_that_does_not_answer_tells_nothing_and_one_that_does_not_know_a_job_that_it_ended(
    tmp_path, monkeypatch, answer, wanted
):
    command = tmp_path / "squeue"
    command.write_text(f"#!/bin/sh\n{answer}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert asyncio.run(jobs.states(jobs.BATCH_SYSTEMS["slurm"], ["7.server", "8"])) == wanted


DRIVERS = {
    "slurm": {
        "--job-name": r"[\w-]+", "--cpus-per-task": r"\d+", "--mem": r"\d+[KMGT]", "--time": CLOCK, "--requeue": "",
        "--signal": r"B:USR1@\d+", "--open-mode": "append",
    },
    "pbs": {"-N": r"[\w-]{1,15}", "-l": rf"(select=1:ncpus=\d+:mem=\d+gb|walltime={CLOCK})", "-r": "y"},
    "lsf": {
        "-J": r"\S+", "-n": r"\d+", "-M": r"\d+GB", "-W": r"\d+:\d\d", "-wt": r"\d+", "-wa": "USR1", "-r": "",
        "-Q": r"\d+",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", DRIVERS)
def test_a_driver_s_directives_are_documented_too(kind):
    text = (REPOSITORY / "scripts" / "drivers" / f"{kind}.sh").read_text()
    found = directives(text, DOCUMENTED[kind][0])
    assert {option for option, _ in found} == set(DRIVERS[kind])
    for option, argument in found:
        assert re.fullmatch(DRIVERS[kind][option], argument), (option, argument)


CONFIGURATIONS = sorted(
    path for path in (REPOSITORY / "configs").glob("*.yaml") if "workers" in yaml.safe_load(path.read_text())
)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_every_configuration_that_comes_with_us_can_be_used(path, everywhere):
    config = load(path).workers
    if config.kind in jobs.BATCH_SYSTEMS:
        made = [jobs.cpu_jobs(config, security=None, logs=everywhere)]
        if config.gpu_jobs:
            made.append(jobs.gpu_jobs(config, config.gpu_jobs, security=None, logs=everywhere))
        for one in made:
            assert "distributed.cli.dask_worker" in script(one)
            assert one.count * one.processes >= one.workers
    assert validate(load(path).model_dump(mode="json"), "again") == load(path)


def test_there_is_a_configuration_for_each_kind():
    assert {load(path).workers.kind for path in CONFIGURATIONS} == {"local", "slurm", "pbs", "lsf", "sge", "scheduler"}
    assert {path.stem for path in CONFIGURATIONS} >= {"local", "gpu", "slurm_cpu", "slurm_gpu", "pbs", "lsf"}
