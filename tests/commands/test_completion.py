import os
import shutil
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete

from laue_dask.commands import main, simulate
from laue_dask.commands.completion import VARIABLE
from laue_dask.simulate.detector import DETECTORS
from laue_dask.simulate.specimens import KINDS


def offered(*typed):
    """What a shell offers behind what was typed; `file` and `dir` stand for those that it knows itself."""
    *words, incomplete = typed
    items = ShellComplete(main.commands, {}, "laue-dask", VARIABLE).get_completions(list(words), incomplete)
    return [item.type if item.type != "plain" else item.value for item in items]


def test_commands_and_options_are_completed():
    assert offered("ve") == ["verify"]
    assert offered("run", "frames", "--ext") == ["--extractor"]
    assert "--estimator" in offered("segment", "run", "--")


@pytest.mark.parametrize(
    "typed",
    [
        *(["ingest", ""], ["plan", "sc"], ["run", "sc"], ["run", "a", "sc"], ["watch", ""], ["segment", ""]),
        *(["evaluate", "r", "--truth", ""], ["run", "a", "--config", ""], ["run", "a", "--out", ""], ["info", ""]),
        *(["export", "my"], ["train", "--from", "my"], ["run", "a", "--weights", "my"]),
    ],
)
def test_paths_are_completed_wherever_one_is_wanted(typed):
    assert offered(*typed) == ["file"]


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        (["run", "a", "--weights", ""], ["default", "untrained"]),
        (["export", "d"], ["default"]),
        (["segment", "r", "--estimator", "k"], ["kmeans"]),
        (["run", "a", "--extractor", "p"], ["pixels", "peaks"]),
        (["simulate", "mes"], ["messy", "messy_twins"]),
        (["simulate", "grains", "out", "--detector", "pilatus6"], ["pilatus6m"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
    ],
)
def test_names_are_completed(typed, names):
    assert offered(*typed) == names


def test_names_that_are_offered_are_those_that_there_are():
    assert set(simulate.KINDS) == set(KINDS)
    assert set(simulate.DETECTORS) == set(DETECTORS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_of_each_shell_is_printed_and_understood_by_it(shell, capsys):
    assert main.exit_code(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert VARIABLE in script
    assert "laue-dask" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_shell_is_answered_without_a_word_on_stderr():
    environment = {**os.environ, VARIABLE: "bash_complete", "COMP_WORDS": "laue-dask seg", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'laue-dask'; from laue_dask.__main__ import main; main()"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "plain,segment", "")
