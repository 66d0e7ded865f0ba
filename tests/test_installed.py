"""The wheel, installed beside the dependencies of these tests but out of reach of the checkout, as a user has it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from laue_dask import __version__

REPOSITORY = Path(__file__).parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "laue_dask")

FIND_WITHOUT_CHECKOUT = """\
import sys
sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in getattr(one, "__module__", "")]
sys.path.append({dependencies!r})
"""
"""What the bare environment does at its start: it finds the dependencies, and no package that is linked to a checkout:
the .pth files beside them are not read."""


def run(*command, cwd, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE", "VIRTUAL"))}
    return subprocess.run(
        [str(one) for one in command],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Wheel of the sources, built without a network."""
    pytest.importorskip("setuptools", "77")
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    for name in SOURCES:  # a copy: building leaves folders where it is done
        path = REPOSITORY / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(path, sources / name, ignore=ignored) if path.is_dir() else shutil.copy2(path, sources)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    built = run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, sources, cwd=folder)
    assert built.returncode == 0, built.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs a program of a bare environment with the wheel in it, in a folder outside of the checkout."""
    folder = tmp_path_factory.mktemp("bare")
    place = folder / "environment"
    venv.create(place, with_pip=False, symlinks=True)
    [packages] = place.glob("lib/python*/site-packages")
    dependencies = sysconfig.get_paths()["purelib"]
    (packages / "dependencies.pth").write_text("import dependencies_of_the_tests\n")
    code = FIND_WITHOUT_CHECKOUT.format(dependencies=dependencies)
    (packages / "dependencies_of_the_tests.py").write_text(code)
    python = place / "bin" / "python"
    options = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet", "--prefix", place)
    done = run(python, "-m", "pip", "install", *options, "--ignore-installed", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr

    def program(*arguments, module=False):
        beginning = [python, "-m", "laue_dask"] if module else [place / "bin" / "laue-dask"]
        return run(*beginning, *arguments, cwd=folder)

    program.folder, program.packages, program.python = folder, packages, python
    return program


def test_wheel_is_imported_and_the_checkout_is_not(installed):
    code = (
        "import laue_dask, laue_dask.features.weights as w; "
        "print(laue_dask.__file__); print(w.DEFAULT_WEIGHTS_FILE.exists())"
    )
    done = run(installed.python, "-c", code, cwd=installed.folder)
    file, weights = done.stdout.split()
    assert Path(file).is_relative_to(installed.packages), done.stderr
    assert weights == "True"


@pytest.mark.parametrize("module", [False, True])
def test_command_and_module_are_the_same_program(installed, module):
    version, helped = installed("--version", module=module), installed("--help", module=module)
    assert version.stdout == f"laue-dask, version {__version__}\n"
    assert helped.stdout.startswith("Usage: laue-dask [OPTIONS] COMMAND")
    assert installed("no-such-command", module=module).returncode == 2


def test_demonstration_runs_and_what_it_made_is_whole(installed):
    done = installed("demo", "shown", "--shape", 8, 8, "--workers", 1)
    assert done.returncode == 0, done.stderr
    run_folder = installed.folder / "shown" / "run"
    assert json.loads((run_folder / "run.json").read_text())["laue_dask"] == __version__
    assert (run_folder / "report.html").is_file()
    assert installed("verify", run_folder).returncode == 0


def test_doctor_passes(installed):
    done = installed("doctor", "--workers", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"laue_dask {__version__}" in done.stdout
    assert "FAIL" not in done.stdout
