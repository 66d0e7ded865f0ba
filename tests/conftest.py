"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of published real data, used in place; the test is skipped where it is absent."""
    folder = Path(os.environ.get("LAUE_DASK_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "frames").is_dir():
        pytest.skip(f"real data not found: no folder {folder / 'frames'} (set LAUE_DASK_DATA)")
    return folder
