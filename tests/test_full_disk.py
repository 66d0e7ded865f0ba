"""A disk that fills up: it is named, with what is free and needed, and the same command goes on once there is room."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zarr

from laue_dask.errors import DiskFullError, SpaceError
from laue_dask.pipeline import disk_space, single_scan
from laue_dask.pipeline.stages import drawing, ingest, scoring
from laue_dask.pipeline.verify import verify
from laue_dask.runtime.progress import QuietProgress

QUIET = QuietProgress()


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    if os.name != "posix" or os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", place], check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, leave: int) -> Path:
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - leave)
    return filler


@pytest.mark.usefixtures("on_workers")
@pytest.mark.parametrize("moment", ["frames", "results", "figures"])
def test_a_disk_that_fills_up_is_named_and_the_run_goes_on(disk, small_scan, small_run, quick, monkeypatch, moment):
    filler = []

    def before(owner, name):
        """Fill the disk just before something is done."""
        call = getattr(owner, name)

        def filled(*arguments, **keywords):
            if not filler:
                filler.append(fill(disk, 4096))
            return call(*arguments, **keywords)

        monkeypatch.setattr(owner, name, filled)

    before(*{"frames": (ingest, "begin"), "results": (scoring, "score")}.get(
        moment, (drawing, "begin")
    ))  # fmt: skip
    config, folder = quick(quality="all"), disk / "run"
    with pytest.raises(DiskFullError) as caught:
        single_scan.run(str(small_scan), folder, config, command="test", progress=QUIET)
    text = str(caught.value)
    assert text.startswith(str(folder))
    assert re.search(rf"no space left on the disk at {disk} \([\d.]+ (bytes|MB) of [\d.]+ MB are free\)", text), text
    assert "more are needed" in text, text
    assert not (folder / "run.json").exists()
    filler[0].unlink()
    monkeypatch.undo()
    single_scan.run(str(small_scan), folder, config, command="test", progress=QUIET)
    assert not verify(folder, progress=QUIET).findings
    ours, theirs = (zarr.open_group(one / "results.zarr", mode="r") for one in (folder, small_run))
    for name in ("features", "labels"):
        np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(theirs[name]))


def test_what_cannot_fit_is_refused_before_anything_is_begun(disk, small_scan, quick, workers):
    fill(disk, 200_000)
    with pytest.raises(SpaceError, match=rf"needs [\d.]+ MB, the disk at {disk} has [\d.]+ MB free"):
        single_scan.run(
            str(small_scan), disk / "run", quick(quality="all"), command="test", progress=QUIET, workers=workers
        )
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_what_is_still_needed_follows_from_what_lies_there(small_run, tmp_path):
    folder = shutil.copytree(small_run, tmp_path / "run")
    scan = folder / "scan.zarr"
    assert disk_space.bytes_still_needed(folder, scan, 72, 256) == 0
    gone = scan / "frames" / "c" / "1" / "0" / "0"
    size = gone.stat().st_size
    gone.unlink()
    assert disk_space.bytes_still_needed(folder, scan, 72, 256) == pytest.approx(size, rel=0.5)
    assert disk_space.bytes_still_needed(
        tmp_path / "new", tmp_path / "new" / "scan.zarr", 72, 256, frames_bytes=1e6
    ) == (1_000_000 + 2 * 72 * 256 * 4 + 72 * disk_space.MAP_BYTES_PER_POINT + disk_space.FIGURES_BYTES)
