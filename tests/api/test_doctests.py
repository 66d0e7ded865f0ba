"""The examples of the Python door run as they stand."""

import doctest
from importlib import import_module

import pytest

import laue_dask

MODULES = (
    "laue_dask.api.averages",
    "laue_dask.api.build",
    "laue_dask.api.label_maps",
    "laue_dask.api.learning",
    "laue_dask.api.options",
    "laue_dask.api.plots",
    "laue_dask.api.run",
    "laue_dask.api.scan",
    "laue_dask.api.simulation",
    "laue_dask.api.tables",
    "laue_dask.api.tools",
    "laue_dask.api.watching",
    "laue_dask.api.work",
    "laue_dask.config",
    "laue_dask.config_errors",
    "laue_dask.grains.neighbourhood",
    "laue_dask.runtime.summary",
    "laue_dask.segmentation.clustering",
    "laue_dask.segmentation.pca",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = import_module(name)
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert found.failed == 0


@pytest.mark.parametrize("name", laue_dask.__all__)
def test_every_name_has_an_example(name):
    value = getattr(laue_dask, name)
    if not (isinstance(value, type) and issubclass(value, Exception)):
        assert ">>> " in value.__doc__ or any(">>> " in (getattr(value, one).__doc__ or "") for one in vars(value))


def test_all_modules_of_the_door_are_looked_at():
    from pathlib import Path

    own = Path(laue_dask.__file__).parent / "api"
    assert {f"laue_dask.api.{path.stem}" for path in own.glob("[!_]*.py")} <= set(MODULES)
