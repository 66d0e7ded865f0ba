"""Stores without frames: each is read through the store, wherever its file is, or said to be gone or changed."""

import os
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from laue_dask.config import ScanConfig
from laue_dask.errors import StoreError
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.stages.ingest import ingest
from laue_dask.pipeline.verify import verify
from laue_dask.runtime.progress import QuietProgress

SHAPE = (140, 130)
COUNT = 12


def frame(number):
    return np.random.default_rng(number).poisson(2, SHAPE).astype(np.int32)


def tiffs(folder):
    folder.mkdir()
    for number in range(COUNT):
        Image.fromarray(frame(number)).save(folder / f"scan_{number}.tif")
    return folder, [folder / f"scan_{number}.tif" for number in range(COUNT)]


def pages(folder):
    folder.mkdir()
    first, *others = (Image.fromarray(frame(number)) for number in range(COUNT))
    first.save(folder / "scan.tif", save_all=True, append_images=others)
    return folder / "scan.tif", [folder / "scan.tif"] * COUNT


def hdf5(folder):
    folder.mkdir()
    with h5py.File(folder / "scan.h5", "w") as file:
        file["entry/data/data"] = np.stack([frame(number) for number in range(COUNT)])
    return folder / "scan.h5", [folder / "scan.h5"] * COUNT


def master(folder):
    folder.mkdir()
    with h5py.File(folder / "scan_master.h5", "w") as file:
        for part in range(2):
            name = f"data_00000{part + 1}"
            with h5py.File(folder / f"scan_{name}.h5", "w") as data:
                data["entry/data/data"] = np.stack([frame(6 * part + i) for i in range(6)])
            file[f"entry/data/{name}"] = h5py.ExternalLink(f"scan_{name}.h5", "/entry/data/data")
    holders = [folder / f"scan_data_00000{part + 1}.h5" for part in range(2) for _ in range(6)]
    return folder / "scan_master.h5", holders


@pytest.fixture(params=[tiffs, pages, hdf5, master])
def manifest(request, tmp_path, workers):
    """Store without frames in `tmp_path/night/run`, and the file that holds each frame, in `tmp_path/night/frames`."""
    (tmp_path / "night").mkdir()
    source, files = request.param(tmp_path / "night" / "frames")
    scan = ScanConfig(shape=(3, 4), store_frames=False)
    out = tmp_path / "night" / "run" / "scan.zarr"
    return ingest(str(source), out, scan, workers=workers, progress=QuietProgress()), files


def assert_whole(store):
    for pattern in (0, 5, 11):
        np.testing.assert_array_equal(store.read_frames(pattern, pattern + 1)[0], frame(pattern))
    np.testing.assert_array_equal(store.read_frames(3, 9), [frame(number) for number in range(3, 9)])
    np.testing.assert_array_equal(store.frames().compute(scheduler="threads"), [frame(i) for i in range(COUNT)])


def checked(store):
    return verify(store.path, sources=True, progress=QuietProgress())


def test_any_frame_is_read_through_the_store(manifest):
    store, _ = manifest
    assert not store.has_frames
    assert_whole(ScanStore.open(store.path))
    assert not checked(store).findings


def test_frames_are_found_where_they_were_moved_to_with_their_store(manifest, tmp_path):
    (tmp_path / "night").rename(tmp_path / "archive")
    store = ScanStore.open(tmp_path / "archive" / "run" / "scan.zarr")
    assert_whole(store)
    assert not checked(store).findings


def test_frames_stay_where_they_are_when_their_store_is_moved(manifest, tmp_path):
    store, _ = manifest
    assert_whole(ScanStore.open(shutil.move(store.path, tmp_path / "elsewhere.zarr")))


def test_a_frame_whose_file_is_gone_is_named(manifest):
    store, files = manifest
    files[11].unlink()
    name = store.source[11].replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(StoreError, match=rf"not in the store, and {name}: .*: put it back, or `laue-dask run FOLDER"):
        store.read_frames(11, 12)
    found = checked(store).findings
    assert len(found) == files.count(files[11])
    assert all(one.fault == "is gone" and "no other copy" in one.remedy for one in found)


def test_a_frame_that_was_replaced_is_named_though_size_and_time_are_as_before(manifest):
    store, files = manifest
    state = files[11].stat()
    content = files[11].read_bytes()
    place = content.index(frame(11)[70].tobytes())
    files[11].write_bytes(content[:place] + bytes(4 * SHAPE[1]) + content[place + 4 * SHAPE[1] :])
    os.utime(files[11], ns=(0, state.st_mtime_ns))
    np.testing.assert_array_equal(store.read_frames(10, 11)[0], frame(10))
    with pytest.raises(StoreError, match=r"not in the store, and .* changed since it was read \(.*, other pixels\)"):
        ScanStore.open(store.path).read_frames(11, 12)
    [found] = checked(store).findings
    assert str(found.path) == store.source[11]
    assert "other pixels" in found.fault


def test_sources_are_compared_on_demand(tmp_path, workers, command):
    source, files = tiffs(tmp_path / "frames")
    store = tmp_path / "s.zarr"
    ingest(str(source), store, ScanConfig(shape=(3, 4)), workers=workers, progress=QuietProgress())
    assert command("verify", store, "--sources").out.endswith("objects, all of them are as they were written\n")
    files[3].unlink()
    os.truncate(files[4], 1000)
    assert command("verify", store).code == 0
    outcome = command("verify", store, "--sources")
    assert outcome.code == 1
    assert f"{files[3]}: is gone: put it back; the store has its pixels" in outcome.out
    assert f"{files[4]}: changed since it was read (" in outcome.out
    assert "truncated" in outcome.out
