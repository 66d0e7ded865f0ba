"""`laue-dask info` says what a path is, and what was meant where it is nothing."""

from pathlib import Path

import numpy as np
import pytest

from laue_dask.errors import InputError
from laue_dask.io.results import ResultsWriter
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import describe


def test_the_shipped_weights_are_known_by_name():
    assert "architecture contrastive, 256 latent features" in describe.describe(Path("default"))
    assert describe.describe(Path("untrained")).startswith("untrained: random weights")


def test_a_source_that_is_something_else_is_called_what_it_is(tmp_path):
    (tmp_path / "README.md").write_text("# What this is\n\nNothing that a detector wrote.\n")
    with pytest.raises(InputError, match="neither a frame nor a list of frames"):
        describe.describe(tmp_path / "README.md")
    (tmp_path / "run" / "scan.zarr").mkdir(parents=True)
    with pytest.raises(InputError, match=r"is the folder of a run: give its scan, .*run/scan\.zarr"):
        describe.describe(tmp_path / "run")


def test_results_are_no_scan(tmp_path):
    writer = ResultsWriter(tmp_path, {})
    writer.put("features", np.zeros((4, 2), np.float32))
    writer.partial.rename(writer.path)
    with pytest.raises(InputError, match=r"holds the results of a run and not its frames: give the run's scan\.zarr"):
        ScanStore.open(writer.path)


def test_a_misspelt_path_is_answered_with_the_one_beside_it(tmp_path):
    (tmp_path / "scan0001").mkdir()
    with pytest.raises(InputError, match=r"there is no such file or folder \(did you mean .*scan0001\?\)"):
        describe.describe(tmp_path / "scan001")
