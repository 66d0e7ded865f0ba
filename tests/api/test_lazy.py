"""`import laue_dask` takes no time and brings nothing heavy along; its names are there all the same."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import laue_dask

HEAVY = {"torch", "dask_ml", "dask", "distributed", "xarray", "zarr", "matplotlib", "pandas", "sklearn", "numpy"}

LIMIT_S = 0.3


def in_a_process_of_its_own(code: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_importing_the_package_imports_nothing_heavy_and_takes_no_time():
    code = """
import json, sys, time
begun = time.process_time()
import laue_dask
spent = time.process_time() - begun
print(json.dumps({"seconds": spent, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""
    found = in_a_process_of_its_own(code)
    assert found["seconds"] < LIMIT_S
    assert not HEAVY & set(found["modules"])


def test_opening_a_run_imports_neither_pytorch_nor_dask_ml_nor_matplotlib(small_run):
    code = f"""
import json, sys
import laue_dask as ld
run = ld.open_run({str(small_run)!r})
run.results, run.labels(3), run.delegates(3), run.pattern(0, 0), run.frame(0, 0)
print(json.dumps({{"modules": sorted({{name.partition(".")[0] for name in sys.modules}})}}))
"""
    assert not {"torch", "dask_ml", "matplotlib"} & set(in_a_process_of_its_own(code)["modules"])


@pytest.mark.parametrize("name", laue_dask.__all__)
def test_every_name_is_there_and_documented(name):
    assert getattr(laue_dask, name).__doc__
    assert name in dir(laue_dask)


def test_no_other_name_is_offered():
    assert not [name for name in dir(laue_dask) if not name.startswith("__") and name not in laue_dask.__all__]
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        laue_dask.rnu  # noqa: B018


def test_no_name_is_that_of_a_module_which_would_take_its_place_once_it_is_imported():
    inside = {path.stem for path in Path(laue_dask.__file__).parent.iterdir()}
    assert not inside & set(laue_dask.__all__)


def test_type_checkers_see_the_names_that_there_are():
    tree = ast.parse(Path(laue_dask.__file__).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in checked.body for alias in node.names}
    assert seen == laue_dask._MODULE_OF_NAME
    assert sorted(seen) == laue_dask.__all__
