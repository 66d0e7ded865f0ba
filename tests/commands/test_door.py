"""The command line calls the Python door and nothing beneath it."""

import ast
from pathlib import Path

import pytest

from laue_dask import commands

FOLDER = Path(commands.__file__).parent

ABOVE = ("api", "commands", "config", "errors", "runtime")
"""What every command may import."""

OWN = {
    "main.py": {
        "laue_dask",
        "laue_dask.compute.fork_server",
        "laue_dask.io.output_paths",
    },  # how a process ends, and full disks
    "process.py": {"laue_dask.io.deadline"},  # signals
    "housekeeping.py": {"laue_dask.nightly.config"},  # another configuration
    "answers.py": {"laue_dask.pipeline.record"},  # a type
}
"""What one module may import besides."""

EXAMINATION = "doctor.py"
"""It looks at every part of the installation."""


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("laue_dask"):
            inside = node.module in ("laue_dask", "laue_dask.compute", "laue_dask.io", "laue_dask.nightly")
            named = [alias.name for alias in node.names if inside and not alias.name.startswith("__")]
            found |= {f"{node.module}.{name}" for name in named} or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("laue_dask")}
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_a_command_imports_nothing_beneath_the_door(path):
    if path.name == EXAMINATION:
        return
    beneath = {
        name
        for name in imported(ast.parse(path.read_text()))
        if name.split(".")[1:2] not in [[one] for one in ABOVE] and name not in OWN.get(path.name, set())
    }
    assert not beneath
