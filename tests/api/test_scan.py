"""A scan store through the Python door: lazy frames at their places, whatever the order and wherever they are."""

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import laue_dask as ld
from laue_dask.api import scan as scans
from laue_dask.api.scan import number_of
from laue_dask.errors import InputError, StoreError

NY, NX = 4, 6


@pytest.fixture(scope="module")
def recorded():
    """Frames (n, row, column) of a scan as they were recorded, each of its own level."""
    rng = np.random.default_rng(0)
    return (
        rng.poisson(20, (NY * NX, 130, 140)).astype(np.uint16)
        + 100 * np.arange(NY * NX, dtype=np.uint16)[:, None, None]
    )


@pytest.fixture(scope="module")
def snake(tmp_path_factory, recorded, written_scan, workers):
    """A scan recorded in a snake, of which frame 7 was never written."""
    folder = tmp_path_factory.mktemp("snake")
    written_scan(folder / "frames", recorded, without=[7])
    with pytest.MonkeyPatch.context() as patch:
        from contextlib import nullcontext

        from laue_dask.compute import cluster

        patch.setattr(cluster, "start", lambda *_, **__: nullcontext(workers))
        return ld.ingest(folder / "frames", folder / "scan.zarr", shape=(NY, NX), order="snake", progress=False)


def test_frames_are_lazy_and_lie_in_the_order_of_the_specimen(snake, recorded):
    expected = recorded.reshape(NY, NX, *recorded.shape[1:]).copy()
    expected[1::2] = expected[1::2, ::-1]
    hole = (1, NX - 2)  # the 8th of the snake
    expected[hole] = 0
    assert isinstance(snake.frames, da.Array)
    assert snake.frames.shape == (NY, NX, 130, 140)
    assert snake.frames.dtype == np.uint16
    np.testing.assert_array_equal(snake.frames.compute(), expected)
    assert not snake.valid[hole]
    assert int(snake.valid.sum()) == NY * NX - 1
    assert snake.source[hole] == ""
    assert snake.order == "snake"
    np.testing.assert_array_equal(snake.frame(3, 2), recorded[3 * NX + NX - 1 - 2])
    assert str(snake.source[3, 2].item()).endswith(f"img_{3 * NX + NX - 1 - 2:04d}.tif")
    assert snake.positions.shape == (NY, NX, 2)
    assert snake.positions.isnull().all()


@given(st.integers(1, 40))
def test_frames_are_the_same_in_chunks_of_any_size(snake, frames_of_a_chunk):
    whole = snake.frames.compute()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scans, "MAX_CHUNK_BYTES", frames_of_a_chunk * 130 * 140 * 2)
        cut = ld.open_scan(snake.path).frames
        assert max(y * x for y in cut.chunks[0] for x in cut.chunks[1]) <= frames_of_a_chunk
        np.testing.assert_array_equal(cut.compute(), whole)


def test_a_run_and_other_things_are_no_scan(tmp_path, run):
    with pytest.raises(StoreError, match=r"is the folder of a run: give its scan store, or use open_run\(…\).scan"):
        ld.open_scan(run.path)
    with pytest.raises(StoreError, match="there is no such scan store"):
        ld.open_scan(tmp_path / "nowhere.zarr")
    with pytest.raises(StoreError, match="holds the results of a run"):
        ld.open_scan(run.path / "results.zarr")


@pytest.fixture
def in_files(tmp_path, recorded, written_scan, on_workers):
    """A scan store without frames, and the folder that holds them."""
    folder = written_scan(tmp_path / "frames", recorded)
    config = {"scan": {"store_frames": False}}
    return ld.ingest(folder, tmp_path / "scan.zarr", config, shape=(NY, NX), progress=False), folder


def test_frames_that_are_not_in_the_store_are_read_from_their_files(in_files, recorded):
    scan, _ = in_files
    np.testing.assert_array_equal(scan.frames.compute().reshape(recorded.shape), recorded)
    mean = scan.mean_frame(np.ones((NY, NX), bool)).values
    np.testing.assert_allclose(mean[~scan.detector_mask], recorded.mean(axis=0)[~scan.detector_mask])
    assert "in the detector's files" in repr(scan)


def test_a_frame_that_is_gone_or_was_changed_is_refused_in_one_line(in_files, recorded):
    import tifffile

    scan, folder = in_files
    (folder / "img_0008.tif").unlink()
    tifffile.imwrite(folder / "img_0009.tif", recorded[0])
    y, x = divmod(8, NX)
    with pytest.raises(StoreError, match=r"img_0008.tif.*file vanished: put it back"):
        scan.frame(y, x)
    with pytest.raises(StoreError, match=r"img_0009.tif changed since it was read"):
        scan.frame(y, x + 1)
    np.testing.assert_array_equal(scan.frame(0, 0), recorded[0])
    for lazy in (scan.frames, scan.mean_frame(np.ones((NY, NX), bool))):
        with pytest.raises(StoreError):
            lazy.compute(scheduler="threads")


def test_a_lazy_array_of_a_scan_that_another_one_replaced_refuses_to_be_read(
    in_files, recorded, written_scan, on_workers
):
    import shutil

    scan, folder = in_files
    frames, mean = scan.frames, scan.mean_frame(np.ones((NY, NX), bool))
    shutil.rmtree(scan.path)
    shutil.rmtree(folder)
    written_scan(folder, recorded[::-1])
    ld.ingest(folder, scan.path, shape=(NY, NX), progress=False)
    for lazy in (frames, mean):
        with pytest.raises(StoreError, match="holds another scan now than when it was opened: open it again"):
            lazy.compute(scheduler="threads")


def test_frames_that_could_not_be_used_are_told(tmp_path, recorded, written_scan, on_workers):
    folder = written_scan(tmp_path / "frames", recorded)
    (folder / "img_0003.tif").write_bytes(b"no TIFF")
    scan = ld.ingest(folder, tmp_path / "scan.zarr", shape=(NY, NX), progress=False)
    assert [one["pattern"] for one in scan.set_aside] == [3]
    assert "1 set aside" in repr(scan)
    with pytest.raises(InputError, match=f"y = 0, x = 3 has no usable pattern: {scan.set_aside[0]['reason'][:9]}"):
        scan.frame(0, 3)


def test_a_scan_shows_itself_with_all_text_escaped(snake):
    snake.store.root.attrs["detector"] = "<b>\x1b"
    try:
        page, text = snake._repr_html_(), repr(snake)
    finally:
        snake.store.root.attrs["detector"] = None
    assert "<b>" not in page
    assert "\x1b" not in page + text
    assert "4 × 6, snake" in text
    assert "23 of 24" in text


def test_a_point_has_the_number_of_its_pattern():
    assert [number_of(y, x, (2, 3)) for y in range(2) for x in range(3)] == list(range(6))
    assert number_of(np.int64(1), np.int32(2), (2, 3)) == 5
