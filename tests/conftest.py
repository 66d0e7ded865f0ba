"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from laue_dask.compute.cluster import Workers, start
from laue_dask.config import ClusterConfig

REPOSITORY = Path(__file__).parent.parent

# No test depends on timing: a busy machine is no failure.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of published real data, used in place; the test is skipped where it is absent."""
    folder = Path(os.environ.get("LAUE_DASK_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "frames").is_dir():
        pytest.skip(f"real data not found: no folder {folder / 'frames'} (set LAUE_DASK_DATA)")
    return folder


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    """Two CPU workers, started once for all tests that need them."""
    with start(ClusterConfig(workers=2, gpu="never")) as running:
        yield running
