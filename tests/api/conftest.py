"""Runs for the Python door; what is changed is a copy."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import laue_dask as ld


@pytest.fixture(scope="session")
def run(small_run: Path) -> ld.Run:
    """A finished run of 8 × 9 points, K = 3; not to be changed."""
    return ld.open_run(small_run)


@pytest.fixture
def copied_run(small_run: Path, tmp_path: Path) -> ld.Run:
    """The same run, to be changed."""
    shutil.copytree(small_run, tmp_path / "run")
    return ld.open_run(tmp_path / "run")


@pytest.fixture(scope="session")
def written_scan() -> Callable[..., Path]:
    """Writes numbered TIFF frames, (n, row, column), into a folder, but for the numbers that are left out."""
    import tifffile

    def write(folder: Path, frames, *, without=()) -> Path:
        folder.mkdir()
        for number, frame in enumerate(frames):
            if number not in without:
                tifffile.imwrite(folder / f"img_{number:04d}.tif", frame)
        return folder

    return write
