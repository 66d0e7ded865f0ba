import json
import os
import struct
import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import Image

from laue_dask.config import Recipe, ScanConfig
from laue_dask.errors import InputError, StoreError
from laue_dask.io import scan_store
from laue_dask.io.frame_array import Layout
from laue_dask.io.frames import discover
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.stages import ingest as stage
from laue_dask.pipeline.stages.ingest import absolute, ingest, read_sample
from laue_dask.pipeline.stages.reduction import reduce_scan
from laue_dask.runtime.progress import QuietProgress


def frame(number, shape=(140, 130), dtype=np.int32):
    """A frame that tells its number by its first pixel."""
    values = np.random.default_rng(number).poisson(2, shape).astype(dtype)
    values[0, 0] = 1000 + number
    return values


@pytest.fixture
def bare(tmp_path):
    """Folder of 12 frames whose headers tell no position."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(frame(number)).save(folder / f"scan_{number}.tif")
    return folder


def ingested(source, out, workers, **scan):
    return ingest(str(source), out, ScanConfig(**scan), workers=workers, progress=QuietProgress())


def numbers(store):
    return (store.read_frames(0, store.n_patterns)[:, 0, 0] - 1000).tolist()


def test_patterns_are_in_row_major_order_whichever_way_the_stage_went(bare, tmp_path, workers):
    raster = ingested(bare, tmp_path / "r.zarr", workers, shape=(3, 4))
    snake = ingested(bare, tmp_path / "s.zarr", workers, shape=(3, 4), order="snake")
    assert numbers(raster) == list(range(12))
    assert numbers(snake) == [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11]
    for store in (raster, snake):
        assert [int(name.rpartition("_")[2].removesuffix(".tif")) for name in store.source] == numbers(store)


def test_stage_positions_of_the_headers_tell_the_grid(small_run):
    store = ScanStore.open(small_run / "scan.zarr")
    y, x = (store.position[:, axis].reshape(8, 9) for axis in (0, 1))
    assert store.scan_shape == (8, 9)
    assert (np.diff(y, axis=0) > 0).all()
    assert (np.diff(x, axis=1) > 0).all()
    np.testing.assert_allclose(np.diff(x, axis=1), 5.0, atol=1e-6)
    assert store.valid.all()


def test_frames_are_stored_without_loss(small_run, small_scan):
    store = ScanStore.open(small_run / "scan.zarr")
    for pattern in (0, 40, 71):
        with Image.open(small_scan / f"scan_{pattern + 1:05d}.tif") as image:
            np.testing.assert_array_equal(store.read_frames(pattern, pattern + 1)[0], np.asarray(image))


def test_aborted_scan_leaves_its_missing_points_without_a_pattern(bare, tmp_path, workers):
    store = ingested(bare, tmp_path / "s.zarr", workers, shape=(4, 4))
    assert store.valid.tolist() == [True] * 12 + [False] * 4
    assert store.source[12:] == [""] * 4
    assert store.set_aside == []


def test_most_frequent_shape_of_the_sample_is_the_scans(bare):
    for number in (0, 5):
        Image.fromarray(frame(number, (150, 130))).save(bare / f"scan_{number}.tif")
    sample = read_sample(discover(bare))
    assert sample.frames.shape == (10, 140, 130)
    assert (sample.frames[:, 0, 0] - 1000).tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert sample.info.shape == (140, 130)


def test_giant_among_the_frames_looked_at_first_is_never_read(bare):
    for number in (0, 5):
        path = bare / f"scan_{number}.tif"
        content = bytearray(path.read_bytes())
        with tifffile.TiffFile(path) as file:
            for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
                tag = file.pages[0].tags[name]
                struct.pack_into("<H" if tag.dtype == 3 else "<I", content, tag.valueoffset, 9_000)
        path.write_bytes(content)
        os.truncate(path, len(content) + 4 * 9_000**2)
    tracemalloc.start()
    try:
        sample = read_sample(discover(bare))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sample.frames.shape == (10, 140, 130)
    assert peak < 20 * 2**20


def test_sample_is_bounded_in_number_and_in_bytes(bare, monkeypatch):
    monkeypatch.setattr(stage, "MAX_SAMPLE_FRAMES", 4)
    assert (read_sample(discover(bare)).frames[:, 0, 0] - 1000).tolist() == [0, 3, 7, 11]
    monkeypatch.setattr(stage, "MAX_SAMPLE_BYTES", 2 * frame(0).nbytes)
    assert len(read_sample(discover(bare)).frames) == 3


def test_frames_that_cannot_be_read_are_left_out_of_the_sample(bare):
    (bare / "scan_0.tif").write_bytes(b"II*\0")
    assert len(read_sample(discover(bare)).frames) == 11
    for path in bare.iterdir():
        path.write_bytes(b"II*\0")
    with pytest.raises(InputError, match=r"none of 12 frames tried can be read; .*scan_0.tif: "):
        read_sample(discover(bare))


def test_store_says_where_it_came_from_and_what_was_asked(bare, tmp_path, workers, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = ingested("bare", tmp_path / "s.zarr", workers, shape=(3, 4), order="snake")
    assert store.provenance["source"] == str(bare)
    asked = {"shape": [3, 4], "order": "snake", "aborted": False, "store_frames": True}
    asked |= {"first_number": None, "insist": False, "rows": None, "columns": None, "every": 1}
    assert store.provenance["asked"] == asked
    assert store.source[0] == str(bare / "scan_0.tif")


@pytest.mark.parametrize(
    ("source", "expected"),
    [("frames", "frames"), ("./frames/", "frames"), ("a.h5::/entry/data", "a.h5::/entry/data"), ("f/*.tif", "f/*.tif")],
)
def test_source_is_the_same_from_every_folder(tmp_path, monkeypatch, source, expected):
    monkeypatch.chdir(tmp_path)
    assert absolute(source) == f"{tmp_path}/{expected}"
    assert absolute(absolute(source)) == absolute(source)


def test_detector_mask_is_found_from_the_scan(small_run):
    mask = ScanStore.open(small_run / "scan.zarr").detector_mask
    # PILATUS 1M, 4 × 4 pixels in one: modules of 48 × 121 pixels, 4 rows and 1 column between them.
    row, column = np.indices(mask.shape)
    gaps = (row % 52 >= 48) | (column % 122 >= 121)
    assert mask[gaps].all()
    assert mask[~gaps].mean() < 0.01


def test_missing_file_leaves_its_own_point_without_a_pattern(bare, tmp_path, workers):
    (bare / "scan_5.tif").unlink()
    store = ingested(bare, tmp_path / "s.zarr", workers, shape=(3, 4))
    assert np.flatnonzero(~store.valid).tolist() == [5]
    assert numbers(store)[6:] == list(range(6, 12))


def killed_after(blocks, bare, out, workers, monkeypatch):
    """An ingest that was killed when so many of its four shards were finished."""

    def kill(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ScanStore, "record", kill)
        with pytest.raises(KeyboardInterrupt):
            ingested(bare, out, workers, shape=(3, 4))
    part = out.with_name(out.name + ".part")
    journal = part / "journal.jsonl"
    lines = [line for line in journal.read_text().splitlines() if line]
    journal.write_text("\n".join(lines[:blocks]))
    lost = [json.loads(line.partition("\t")[0])["block"] for line in lines[blocks:]]
    for block in lost:
        (part / "frames" / "c" / str(block) / "0" / "0").unlink()
    return part, lost


def test_killed_ingest_goes_on_at_its_first_missing_shard(bare, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(scan_store, "frame_layout", lambda *args: Layout(1, 3, "test"))
    out = tmp_path / "s.zarr"
    part, lost = killed_after(2, bare, out, workers, monkeypatch)
    kept = {p: p.stat().st_mtime_ns for p in part.glob("frames/c/*/0/0")}
    assert len(kept) == len(lost) == 2
    store = ingested(bare, out, workers, shape=(3, 4))
    assert {p: (out / p.relative_to(part)).stat().st_mtime_ns for p in kept} == kept
    assert numbers(store) == list(range(12))
    assert store.valid.all()
    assert not list(out.glob("*.jsonl"))
    whole = ingested(bare, tmp_path / "whole.zarr", workers, shape=(3, 4))
    assert whole.key() == store.key()
    assert whole.source == store.source


def test_an_odd_frame_among_those_looked_at_first_leaves_room_for_the_others(many, monkeypatch):
    (many / "scan_40.tif").unlink()
    Image.fromarray(frame(0, (130, 130))).save(many / "scan_2.tif")
    monkeypatch.setattr(stage, "MAX_SAMPLE_BYTES", 10 * frame(0).nbytes - 1)
    sample = read_sample(discover(str(many)))
    assert sample.frames.shape[1:] == (140, 130)
    assert len(sample.frames) == 10
    assert len(np.unique(sample.frames[:, 0, 0])) == 10


def test_frames_are_reduced_while_they_are_in_memory(many, tmp_path, workers):
    apart = ingested(many, tmp_path / "apart.zarr", workers, shape=(7, 10))
    expected = reduce_scan(apart, Recipe(), workers=workers, progress=QuietProgress())
    config = ScanConfig(shape=(7, 10))
    progress = QuietProgress()
    store = ingest(str(many), tmp_path / "s.zarr", config, recipe=Recipe(), workers=workers, progress=progress)
    found = store.reduced(Recipe().for_frames(store.frame_shape).digest())
    assert (found.shards, found.chunks) == (expected.shards, expected.chunks)
    np.testing.assert_array_equal(found[:], expected[:])
    assert found[:].any(axis=(1, 2)).tolist() == store.valid.tolist()
    assert store.key() == apart.key()


def test_frames_may_stay_in_the_detector_files(many, tmp_path, workers):
    progress, recipe = QuietProgress(), Recipe()
    kept, left = (
        ingest(
            str(many),
            tmp_path / f"{whether}.zarr",
            ScanConfig(shape=(7, 10), store_frames=whether),
            recipe=recipe,
            workers=workers,
            progress=progress,
        )
        for whether in (True, False)
    )
    assert not left.has_frames
    assert left.key() == kept.key()
    assert sum(path.stat().st_size for path in left.path.rglob("*") if path.is_file()) < 500_000
    for other in (recipe, Recipe(clip_sigma=3), Recipe(substrate="remove")):
        ours, theirs = (reduce_scan(store, other, workers=workers, progress=progress)[:] for store in (left, kept))
        np.testing.assert_array_equal(ours, theirs)
    Image.fromarray(frame(3)).save(many / "scan_7.tif")
    with pytest.raises(
        StoreError, match=r"not in the store, and .*scan_7\.tif changed since it was read \(.*other pixels"
    ):
        reduce_scan(left, Recipe(clip_sigma=5), workers=workers, progress=progress)
    (many / "scan_7.tif").unlink()
    with pytest.raises(StoreError, match=r"not in the store, and .*scan_7\.tif: file vanished"):
        reduce_scan(left, Recipe(clip_sigma=6), workers=workers, progress=progress)


def test_killed_reduction_in_an_ingest_redoes_no_finished_block(many, tmp_path, workers, monkeypatch):
    def kill(self, *_):
        raise KeyboardInterrupt

    config, out = ScanConfig(shape=(7, 10)), tmp_path / "s.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(ScanStore, "record", kill)
        with pytest.raises(KeyboardInterrupt):
            ingest(str(many), out, config, recipe=Recipe(), workers=workers, progress=QuietProgress())
    part = tmp_path / "s.zarr.part"
    blocks = sorted(part.glob("reduced/*/c/*/0/0"))
    assert len(blocks) == 3
    before = {path.relative_to(part): path.stat().st_mtime_ns for path in blocks}
    (part / "frames" / "c" / "2" / "0" / "0").unlink()
    store = ingest(str(many), out, config, recipe=Recipe(), workers=workers, progress=QuietProgress())
    after = {path: (out / path).stat().st_mtime_ns for path in before}
    assert [after[path] == before[path] for path in before] == [True, True, False]
    reduced = reduce_scan(store, Recipe(), workers=workers, progress=QuietProgress())
    assert {path: (out / path).stat().st_mtime_ns for path in before} == after
    assert reduced.attrs["finished"]


def test_killed_ingest_of_other_frames_is_begun_again(bare, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(scan_store, "frame_layout", lambda *args: Layout(1, 3, "test"))
    out = tmp_path / "s.zarr"
    killed_after(2, bare, out, workers, monkeypatch)
    Image.fromarray(frame(77)).save(bare / "scan_12.tif")
    (bare / "scan_0.tif").unlink()
    store = ingested(bare, out, workers, shape=(3, 4))
    assert numbers(store) == [*range(1, 12), 77]


def test_file_names_that_are_not_utf8_are_refused_by_name(bare):
    (bare / "scan_3.tif").rename(bare / "scan_\udce9.tif")
    with pytest.raises(InputError, match=r"scan_\\udce9\.tif': the file's name is not UTF-8"):
        discover(bare)


def test_an_existing_store_is_refused_before_any_frame_is_read(bare, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(stage, "read_sample", lambda refs: pytest.fail("frames were read"))
    out = tmp_path / "s.zarr"
    out.mkdir()
    with pytest.raises(StoreError, match="exists already"):
        ingested(bare, out, workers, shape=(3, 4))


def test_a_part_of_a_scan_is_found_on_the_whole_grid(bare, tmp_path, workers):
    store = ingested(bare, tmp_path / "s.zarr", workers, shape=(3, 4), order="snake", rows=(1, 3), columns=(0, 3))
    assert store.scan_shape == (2, 3)
    assert numbers(store) == [7, 6, 5, 8, 9, 10]
    assert store.set_aside == []
    assert store.provenance["placement"]["part"] == {"of": [3, 4], "rows": [1, 3], "columns": [0, 3], "every": 1}
    assert store.provenance["manifest"] == stage.manifest(discover(absolute(str(bare))))
    every = ingested(bare, tmp_path / "e.zarr", workers, shape=(3, 4), every=2)
    assert numbers(every) == [0, 2, 8, 10]
