import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from laue_dask import schema
from laue_dask.errors import ComputeError, FrameError, StoreError
from laue_dask.io import frame_array
from laue_dask.io.block_files import checksum
from laue_dask.io.blocks import block_size
from laue_dask.io.frames import FrameRef, discover, read_position
from laue_dask.io.geometry import resolve_grid
from laue_dask.io.scan_store import ScanStore, frame_layout, ingest_shard
from laue_dask.io.shards import check_frame, read_shard

ROWS, COLUMNS = 40, 30


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of four frames and chunks of one or two, so that small scans have several."""
    monkeypatch.setattr(frame_array, "TARGET_SHARD_BYTES", 4 * ROWS * COLUMNS * 4)
    monkeypatch.setattr(frame_array, "TARGET_CHUNK_BYTES", ROWS * COLUMNS * 4)


def some_frames(n, dtype, seed=0):
    values = np.random.default_rng(seed).integers(0, 200, (n, ROWS, COLUMNS))
    return (values - 3 if np.dtype(dtype).kind == "i" else values).astype(dtype)


def begun(path, n=10, dtype=np.int32, **options):
    grid = resolve_grid(n, shape=(1, n))
    options = {"detector": "D", "pixel_size_um": 172.0, "provenance": {"source": "here"}, **options}
    return ScanStore.create(path, grid=grid, frame_shape=(ROWS, COLUMNS), dtype=dtype, **options)


def receipt(store, block, stack, **found):
    start = block * store.shard_frames
    source = [f"{i}.tif" for i in range(start, start + len(stack))]
    known = {"crc32c": checksum(stack), "source": source, "set_aside": [], "positions": None}
    file = Path(store.writing_path) / "frames" / "c" / str(block) / "0" / "0"
    known["seal"] = store.seal(block) if file.exists() else 0
    return {"block": block, "start": start, "stop": start + len(stack), **known, **found}


def written(path, frames):
    store = begun(path, len(frames), frames.dtype)
    receipts = []
    for block, start in enumerate(range(0, len(frames), store.shard_frames)):
        part = frames[start : start + store.shard_frames]
        store.write_frames(start, part)
        receipts.append(receipt(store, block, part))
    store.record(receipts)
    return store.finish()


def shard_files(store):
    return sorted(path for path in (store.path / "frames" / "c").rglob("*") if path.is_file())


# Layout


@given(rows=st.integers(1, 6000), columns=st.integers(1, 6000), dtype=st.sampled_from(["u1", "u2", "i4", "f4"]))
def test_layout_keeps_single_frames_apart_and_shards_bounded(rows, columns, dtype):
    layout = frame_layout((rows, columns), dtype, 1000)
    size = rows * columns * np.dtype(dtype).itemsize
    chunk, shard = layout.chunk_frames, layout.shard_frames
    assert chunk.bit_count() == shard.bit_count() == 1
    assert shard % chunk == 0
    assert shard == 1 or shard * size <= frame_array.TARGET_SHARD_BYTES
    assert shard == block_size(1000) or 2 * shard * size > frame_array.TARGET_SHARD_BYTES
    assert block_size(1000) % shard == 0
    assert chunk == 1 or chunk * size <= frame_array.TARGET_CHUNK_BYTES


@pytest.mark.parametrize(
    ("shape", "dtype", "chunk", "shard"),
    [((1043, 981), "i4", 1, 32), ((2018, 2016), "u2", 1, 16), ((2527, 2463), "i4", 1, 4), ((64, 64), "u1", 32, 32)],
)
def test_layout_of_known_detectors(shape, dtype, chunk, shard):
    layout = frame_layout(shape, dtype, 900)
    assert layout[:2] == (chunk, shard)
    assert "900 frames of" in layout.why


# Round trip


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "float32"])
def test_frames_come_back_bit_for_bit(tmp_path, small_shards, dtype):
    frames = some_frames(10, dtype)
    if dtype == "float32":
        frames[2, 3, 4], frames[2, 3, 5] = np.nan, -np.inf
    store = ScanStore.open(written(tmp_path / "s.zarr", frames).path)
    assert store.dtype == np.dtype(dtype)
    assert store.frame_shape == (ROWS, COLUMNS)
    assert store.read_frames(0, 10).tobytes() == frames.tobytes()
    assert store.read_frames(3, 7).tobytes() == frames[3:7].tobytes()
    assert np.asarray(store.frames().compute(scheduler="synchronous")).tobytes() == frames.tobytes()


def test_store_says_what_it_holds(tmp_path, small_shards):
    store = written(tmp_path / "s.zarr", some_frames(10, "int32"))
    assert (store.n_patterns, store.scan_shape, store.order) == (10, (1, 10), "raster")
    assert store.valid.all()
    assert store.source == [f"{i}.tif" for i in range(10)]
    assert store.set_aside == []
    assert np.isnan(store.position).all()
    assert not store.detector_mask.any()
    assert store.provenance == {"source": "here"}
    names = {
        "laue_dask_schema",
        "scan_shape",
        "order",
        "fast_axis",
        "detector",
        "pixel_size_um",
        "provenance",
        "complete",
    }
    assert names <= set(store.root.attrs)
    schema.check(store.root, schema.SCAN)


def test_store_is_sent_by_its_path(tmp_path, small_shards):
    store = written(tmp_path / "s.zarr", some_frames(4, "int32"))
    sent = pickle.dumps(store)
    assert len(sent) < 300
    np.testing.assert_array_equal(pickle.loads(sent).read_frames(0, 4), store.read_frames(0, 4))  # noqa: S301


def test_mask_and_substrate_are_kept(tmp_path, small_shards):
    mask = np.zeros((ROWS, COLUMNS), bool)
    mask[3, 4] = True
    store = begun(tmp_path / "s.zarr")
    store.write_detector_mask(mask)
    np.testing.assert_array_equal(store.detector_mask, mask)
    median = np.random.default_rng(0).random((ROWS, COLUMNS), dtype=np.float32)
    store.write_substrate("abc", median, median + 1)
    store.write_substrate("abc", median, median + 2)
    np.testing.assert_array_equal(store.read_substrate("abc"), [median, median + 2])


def test_reduced_patterns_begin_empty_and_are_found_by_their_recipe(tmp_path, small_shards):
    store = written(tmp_path / "s.zarr", some_frames(10, "int32"))
    assert store.reduced("abc") is None
    array = store.create_reduced("abc", 8, {"version": 1})
    array[0:8] = 7
    found = ScanStore.open(store.path).reduced("abc")
    assert (found.shape, found.shards[0], found.dtype) == ((10, 128, 128), 8, np.uint8)
    assert found.attrs["recipe"] == {"version": 1}
    assert found[0, 0, 0] == 7


# Writing


@pytest.mark.parametrize(
    ("start", "length"), [(0, 3), (1, 4), (2, 4), (4, 5), (8, 1), (8, 4), (12, 4), (-4, 4), (0, 8)]
)
def test_anything_but_one_whole_shard_is_refused(tmp_path, small_shards, start, length):
    store = begun(tmp_path / "s.zarr", 10)
    with pytest.raises(ValueError, match="not one shard"):
        store.write_frames(start, some_frames(length, np.int32))


def test_frames_of_another_dtype_or_shape_are_not_converted(tmp_path, small_shards):
    store = begun(tmp_path / "s.zarr", 10)
    with pytest.raises(ValueError, match="uint16"):
        store.write_frames(0, some_frames(4, np.uint16))
    with pytest.raises(ValueError, match="frames in a store of"):
        store.write_frames(0, some_frames(4, np.int32)[:, :20])


def test_shards_written_together_do_not_disturb_each_other(tmp_path, small_shards):
    frames = some_frames(40, np.int32)
    store = begun(tmp_path / "s.zarr", 40)
    threads = [
        threading.Thread(target=lambda i=i: ScanStore(store.writing_path).write_frames(i, frames[i : i + 4]))
        for i in range(0, 40, 4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(store.read_frames(0, 40), frames)


def test_full_disk_ends_with_its_cause(tmp_path, small_shards, monkeypatch):
    store = begun(tmp_path / "s.zarr", 10)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("laue_dask.io.shard_file._write", full)
    with pytest.raises(ComputeError, match=r"no space left on the disk at .* are free\): make room"):
        store.write_frames(0, some_frames(4, np.int32))


# Visible only when complete


def test_store_is_invisible_until_it_is_finished(tmp_path, small_shards):
    store = begun(tmp_path / "s.zarr", 4)
    assert not (tmp_path / "s.zarr").exists()
    with pytest.raises(StoreError, match="not finished"):
        ScanStore.open(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="incomplete"):
        ScanStore.open(store.writing_path)
    with pytest.raises(StoreError, match="nothing is recorded about its shards"):
        store.finish()
    frames = some_frames(4, np.int32)
    store.record([receipt(store, 0, frames)])
    with pytest.raises(StoreError, match="is missing"):
        store.finish()
    store.write_frames(0, frames)
    finished = store.finish()
    assert finished.path == tmp_path / "s.zarr"
    assert not (tmp_path / "s.zarr.part").exists()
    assert ScanStore.open(tmp_path / "s.zarr").root.attrs["complete"] is True


def test_existing_path_is_kept_and_an_unfinished_one_replaced(tmp_path, small_shards):
    left = begun(tmp_path / "s.zarr", 4)
    left.write_frames(0, some_frames(4, np.int32))
    again = begun(tmp_path / "s.zarr", 8)
    assert again.n_patterns == 8
    assert not (tmp_path / "s.zarr.part" / "frames" / "c").exists()
    (tmp_path / "s.zarr").mkdir()
    with pytest.raises(StoreError, match="exists already"):
        begun(tmp_path / "s.zarr", 4)


def test_receipts_must_be_those_of_every_shard(tmp_path, small_shards):
    store = begun(tmp_path / "s.zarr", 8)
    one = receipt(store, 0, some_frames(4, np.int32))
    for receipts in ([one], [one, one]):
        with pytest.raises(StoreError, match="1 of 2 shards"):
            store.record(receipts)


def test_what_is_not_a_store_is_refused_in_one_line(tmp_path, small_shards):
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged.zarr").mkdir()
    (tmp_path / "damaged.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_ty')
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    store = written(tmp_path / "s.zarr", some_frames(4, "int32"))
    store.root.attrs["laue_dask_schema"] = 99
    for name, message in [
        ("gone.zarr", "there is no such scan store"),
        ("folder", "no zarr.json"),
        ("damaged.zarr", "not a scan store"),
        ("other.zarr", "schema version None"),
        ("s.zarr", "schema version 99"),
    ]:
        with pytest.raises(StoreError, match=message) as caught:
            ScanStore.open(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2
    assert not ScanStore.is_store(tmp_path / "folder")
    assert ScanStore.is_store(tmp_path / "damaged.zarr")
    assert not ScanStore.is_store(str(tmp_path / "*.tif"))


# Damage


def test_flipped_bit_in_any_shard_raises_on_reading(tmp_path, small_shards):
    store = written(tmp_path / "s.zarr", some_frames(10, "int32"))
    for block, file in enumerate(shard_files(store)):
        whole = file.read_bytes()
        for place in np.linspace(0, len(whole) - 1, 25).astype(int):
            content = bytearray(whole)
            content[place] ^= 4
            file.write_bytes(content)
            with pytest.raises(StoreError, match=r"damaged.*ingest again"):
                store.read_frames(4 * block, min(4 * block + 4, 10))
        file.write_bytes(whole)
    np.testing.assert_array_equal(store.read_frames(0, 10), some_frames(10, "int32"))


def test_truncated_and_lost_shards_raise_on_reading(tmp_path, small_shards):
    frames = some_frames(10, "int32")
    frames[4:8] = 0
    store = written(tmp_path / "s.zarr", frames)
    np.testing.assert_array_equal(store.read_frames(0, 10), frames)
    files = shard_files(store)
    files[0].write_bytes(files[0].read_bytes()[:-30])
    files[1].unlink()
    with pytest.raises(StoreError, match="damaged"):
        store.read_frames(0, 1)
    with pytest.raises(StoreError, match="is missing"):
        store.read_frames(5, 6)


def test_swapped_shards_are_found_by_their_checksums(tmp_path, small_shards):
    store = written(tmp_path / "s.zarr", some_frames(8, "int32"))
    for block in (0, 1):
        store.check_shard_content(block)
    first, second = shard_files(store)
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(whole)
    for block in (0, 1):
        with pytest.raises(StoreError, match="is not the file that was written"):
            store.check_shard_content(block)
        with pytest.raises(StoreError, match="is not the file that was written"):
            store.read_frames(4 * block + 1, 4 * block + 2)


# Laziness and keys


def test_lazy_frames_read_nothing_before_they_are_computed(tmp_path, small_shards, monkeypatch):
    store = written(tmp_path / "s.zarr", some_frames(10, "int32"))
    read = []
    original = ScanStore.read_frames
    monkeypatch.setattr(ScanStore, "read_frames", lambda self, a, b: read.append((a, b)) or original(self, a, b))
    lazy = store.frames()
    assert (lazy.shape, lazy.dtype, lazy.chunks[0]) == ((10, ROWS, COLUMNS), np.int32, (4, 4, 2))
    part = lazy[5]
    assert read == []
    np.testing.assert_array_equal(part.compute(scheduler="synchronous"), some_frames(10, "int32")[5])
    assert read == [(4, 8)]


def test_key_depends_on_the_content_and_not_on_the_place(tmp_path, small_shards):
    frames = some_frames(10, "int32")
    key = written(tmp_path / "a.zarr", frames).key()
    assert written(tmp_path / "b.zarr", frames).key() == key
    assert (tmp_path / "b.zarr").rename(tmp_path / "c.zarr")
    assert ScanStore.open(tmp_path / "c.zarr").key() == key
    frames[7, 3, 3] += 1
    assert written(tmp_path / "d.zarr", frames).key() != key
    masked = ScanStore.open(tmp_path / "c.zarr")
    masked.write_detector_mask(np.ones((ROWS, COLUMNS), bool))
    assert masked.key() != key


# Ingest


def save(path, frame, description=None):
    Image.fromarray(frame).save(path, tiffinfo={270: description} if description else {})


def test_bad_frames_are_set_aside_with_their_reason_and_good_ones_kept(tmp_path, small_shards):
    frames = some_frames(10, np.uint16) + 1
    for i, frame in enumerate(frames):
        save(tmp_path / f"{i}.tif", frame, f"0 (Xech={i}.5 Yech=-2.0 mon=1 exposure=1.0)")
    whole = (tmp_path / "1.tif").read_bytes()
    (tmp_path / "1.tif").write_bytes(whole[: len(whole) // 2])
    save(tmp_path / "2.tif", np.zeros((ROWS, COLUMNS), np.uint16))
    save(tmp_path / "3.tif", np.full((ROWS, COLUMNS), 65535, np.uint16))
    save(tmp_path / "5.tif", frames[5][:20])
    save(tmp_path / "6.tif", frames[6].astype(np.uint8))
    refs = discover(tmp_path)
    (tmp_path / "7.tif").unlink()
    refs[8] = None
    store = begun(tmp_path / "s.zarr", 10, np.uint16)
    unit = store.shard_frames
    receipts = [ingest_shard(store, i, refs[i * unit : (i + 1) * unit]) for i in range(-(-10 // unit))]
    store.record(receipts)
    store = store.finish()
    reasons = {entry["pattern"]: entry["reason"] for entry in store.set_aside}
    assert reasons == {
        1: f"truncated TIFF: strip 1 of 1 would end at byte {len(whole)}, the file ends at {len(whole) // 2}",
        2: "all pixels are zero",
        3: "all pixels have the same value 65535",
        5: "shape (20, 30), the scan's is (40, 30)",
        6: "dtype uint8, the scan's is uint16",
        7: "file vanished",
    }
    assert store.set_aside[0]["source"] == str(refs[1])
    assert np.flatnonzero(store.valid).tolist() == [0, 4, 9]
    assert store.source[8] == ""
    np.testing.assert_array_equal(store.read_frames(0, 10)[[0, 4, 9]], frames[[0, 4, 9]])
    assert not store.read_frames(0, 10)[[1, 2, 3, 5, 6, 7, 8]].any()
    np.testing.assert_array_equal(store.position[[4, 9]], [[-2000.0, 4500.0], [-2000.0, 9500.0]])
    assert np.isnan(store.position[1]).all()
    assert sum(one["frames"] for one in receipts) == 9


def test_float_frames_may_hold_pixels_that_are_not_finite(tmp_path):
    frame = some_frames(1, np.float32)[0]
    frame[0, :3] = np.nan, np.inf, np.nan
    mask = np.zeros(frame.shape, dtype=bool)
    check_frame(frame, mask, frame.dtype)
    with pytest.raises(FrameError, match="no finite pixel"):
        check_frame(np.full_like(frame, np.nan), mask, frame.dtype)
    save(tmp_path / "0.tif", frame)
    shard = read_shard([FrameRef(str(tmp_path / "0.tif")), None], mask, frame.dtype)
    assert (shard.set_aside, shard.positions) == ([], [None, None])
    np.testing.assert_array_equal(shard.stack, [frame, np.zeros_like(frame)])


@given(place=st.tuples(st.integers(0, ROWS - 1), st.integers(0, COLUMNS - 1)), value=st.integers(0, 255))
def test_one_pixel_that_differs_makes_a_frame_usable(place, value):
    frame = np.full((ROWS, COLUMNS), value, np.uint8)
    mask = np.zeros(frame.shape, dtype=bool)
    with pytest.raises(FrameError, match="all pixels"):
        check_frame(frame, mask, frame.dtype)
    frame[place] ^= 1
    check_frame(frame, mask, frame.dtype)
    mask[place] = True
    with pytest.raises(FrameError, match="all pixels"):
        check_frame(frame, mask, frame.dtype)


def test_marked_gaps_do_not_make_a_dark_frame_usable(tmp_path):
    frame, mask = np.zeros((ROWS, COLUMNS), np.int32), np.zeros((ROWS, COLUMNS), dtype=bool)
    mask[10:14] = True
    frame[mask] = -1
    save(tmp_path / "0.tif", frame)
    shard = read_shard([FrameRef(str(tmp_path / "0.tif"))], mask, frame.dtype)
    assert shard.set_aside == [(0, "all pixels are zero")]


def test_frames_left_out_of_the_store_are_read_from_the_detector_files(tmp_path, small_shards):
    frames = some_frames(6, np.uint16) + 1
    for i, frame in enumerate(frames):
        save(tmp_path / f"{i}.tif", frame)
    refs = discover(tmp_path)
    stored, left = (
        begun(tmp_path / "a.zarr", 6, np.uint16),
        begun(tmp_path / "b.zarr", 6, np.uint16, store_frames=False),
    )
    for store in (stored, left):
        unit = store.shard_frames
        store.record([ingest_shard(store, i, refs[i * unit : (i + 1) * unit]) for i in range(-(-6 // unit))])
    stored, left = stored.finish(), left.finish()
    assert (stored.has_frames, left.has_frames) == (True, False)
    np.testing.assert_array_equal(left.read_frames(1, 5), frames[1:5])
    assert left.key() == stored.key()
    (tmp_path / "2.tif").unlink()
    with pytest.raises(StoreError, match=r"2\.tif: file vanished"):
        left.read_frames(1, 5)


def test_real_frames_are_stored_without_loss(data_dir, tmp_path):
    refs = discover(data_dir / "frames" / "als_1232")
    grid = resolve_grid(2, positions=[read_position(ref) for ref in refs])
    store = ScanStore.create(
        tmp_path / "als.zarr",
        grid=grid,
        frame_shape=(1043, 981),
        dtype=np.int32,
        detector=None,
        pixel_size_um=None,
        provenance={},
    )
    store.record([ingest_shard(store, 0, refs)])
    store = store.finish()
    frames = store.read_frames(0, 2)
    assert (frames.min(), frames[0].max(), frames[1].max()) == (-2, 518605, 530264)
    np.testing.assert_array_equal(store.position, [[6560.0, 6000.0], [7600.0, 6000.0]])
    assert sum(file.stat().st_size for file in shard_files(store)) < frames.nbytes / 3
