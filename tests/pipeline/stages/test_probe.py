import shutil
import subprocess
import sys
import tracemalloc

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from laue_dask.compute.plan import WORKER_BASE_BYTES, WORKER_BASE_BYTES_WITH_TORCH, Packing, plan
from laue_dask.config import Recipe, ScanConfig
from laue_dask.errors import InputError
from laue_dask.io import results as io_results
from laue_dask.io.blocks import block_size
from laue_dask.io.frames import discover, read_frame
from laue_dask.io.journal import Journal
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.stages import frame_placement, ingest
from laue_dask.pipeline.stages.extraction import extractor_of
from laue_dask.pipeline.stages.probe import probe, spread, survey, work_of
from laue_dask.runtime.progress import QuietProgress


def planned(origin, config, packing=None):
    """Plan of a run, with what a short probe finds where no packing is given."""
    extractor = extractor_of(config.encoder, config.recipe)
    found = survey(str(origin), config)
    packing = packing or probe(found, config, extractor, seconds=0.5).packing
    return {one.name: one for one in plan(found.scan, work_of(found.scan, config, extractor), packing).stages}


def size(folder):
    return sum(file.stat().st_size for file in (folder / "c").rglob("*") if file.is_file())


def of_worker(*lines):
    """Resident memory of a process that did what a worker does, in bytes."""
    code = "\n".join(
        ["import distributed.worker, psutil, numpy as np", *lines, "print(psutil.Process().memory_info().rss)"]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=250)
    return int(done.stdout)


@given(st.integers(1, 10**6))
def test_any_beginning_of_the_sample_is_from_all_over_the_scan(count):
    places = spread(count)
    assert sorted(set(places)) == sorted(places)
    assert min(places) == 0
    assert max(places) == count - 1
    if count > 1000:
        assert np.ptp(places[:8]) > count / 2


def test_a_run_does_what_its_plan_said(small_scan, small_run, quick):
    config = quick(quality="all")
    stages = planned(small_scan, config)
    store, results = ScanStore.open(small_run / "scan.zarr"), io_results.read(small_run)
    reduced = store.reduced(config.recipe.digest())
    # Tasks are receipts.
    assert stages["ingest"].tasks == len(Journal.of(reduced).read())
    for name, stage in (("features", "encode"), ("components", "components")):
        receipts = Journal(small_run / "results.zarr" / name / "journal.jsonl").read()
        passes = 1 if stage == "encode" else 2
        assert stages[stage].tasks == len(receipts) + (passes - 1)
    assert stages["scores"].tasks == results.sizes["score_k"] + 1  # silhouettes of every K
    assert stages["quality"].units == np.isfinite(results["reconstruction_error"].values).sum()
    # Bytes.
    assert stages["ingest"].read == sum(file.stat().st_size for file in small_scan.glob("*.tif"))
    ingested = size(small_run / "scan.zarr" / "frames") + size(
        small_run / "scan.zarr" / "reduced" / config.recipe.digest()
    )
    assert stages["ingest"].written == pytest.approx(ingested, rel=0.05)
    assert stages["encode"].read == pytest.approx(
        size(small_run / "scan.zarr" / "reduced" / config.recipe.digest()), rel=0.15
    )
    assert stages["encode"].written == pytest.approx(size(small_run / "results.zarr" / "features"), rel=0.1)


def test_a_store_is_reduced_only_where_it_was_not(small_run, quick, tmp_path):
    store = small_run / "scan.zarr"
    same = planned(store, quick())
    assert not {"headers", "ingest", "reduce"} & set(same)
    other = planned(store, quick(recipe={"clip_sigma": 5.0}))
    blocks = -(-72 // block_size(72))
    assert other["reduce"].tasks == other["encode"].tasks == blocks
    assert other["reduce"].read == pytest.approx(size(store / "frames"), rel=0.01)
    moved = shutil.copytree(store, tmp_path / "moved.zarr")
    with pytest.raises(InputError, match=r"its scan is 8 × 9, --shape says 9 × 8"):
        survey(str(moved), quick(scan={"shape": (9, 8)}))


def test_a_substrate_is_removed_in_a_second_pass_and_frames_that_are_not_stored_are_read_again(small_scan, quick):
    config = quick(recipe={"substrate": "remove"}, scan={"store_frames": False})
    stages = planned(small_scan, config)
    assert stages["ingest"].written == 0
    assert stages["reduce"].read == pytest.approx(stages["ingest"].read)
    kept = planned(small_scan, quick(recipe={"substrate": "remove"}), Packing(frames=0.25))
    assert kept["reduce"].read == pytest.approx(kept["ingest"].written)


@pytest.mark.parametrize("extractor", ["network", "pixels", "peaks"])
def test_every_stage_of_a_pattern_takes_time(small_scan, quick, extractor):
    config = quick(encoder={"extractor": extractor}, quality="all")
    made = extractor_of(config.encoder, config.recipe)
    found = probe(survey(str(small_scan), config), config, made, seconds=0.5)
    expected = {"headers", "ingest", "encode", "scores"} | ({"quality"} if extractor == "network" else set())
    assert set(found.costs) == expected
    assert all(0 < cost < 60 for cost in found.costs.values())
    assert 1 <= found.frames <= 72
    assert 0 < found.packing.reduced < found.packing.frames < 1


def test_frames_without_a_grid_of_another_size_or_that_cannot_be_read_are_refused_as_by_a_run(tmp_path, quick):
    for number in range(12):
        frame = np.random.default_rng(number).poisson(2, (140, 130)).astype(np.int32)
        Image.fromarray(frame).save(tmp_path / f"scan_{number:02d}.tif")
    with pytest.raises(InputError, match=r"give --shape NY NX \(12 frames"):
        survey(str(tmp_path), quick())
    with pytest.raises(InputError, match=r"12 frames .* --shape 5 5"):
        survey(str(tmp_path), quick(scan={"shape": (5, 5)}))
    found = survey(str(tmp_path), quick(scan={"shape": (3, 4)}))
    assert (found.scan.n_patterns, found.scan.header_bytes) == (12, None)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:5000])
    config = quick(scan={"shape": (3, 4)})
    with pytest.raises(InputError, match=r"none of 12 frames tried can be used; .*truncated"):
        probe(found, config, extractor_of(config.encoder, config.recipe), seconds=0.5)


@pytest.mark.parametrize("kind", ["counts", "noise"])
def test_a_task_of_the_ingest_holds_no_more_than_planned(tmp_path, kind, quick):
    rng, shape = np.random.default_rng(0), (700, 800)
    for number in range(32):
        frame = rng.poisson(2, shape) if kind == "counts" else rng.integers(0, 2**31, shape)
        Image.fromarray(frame.astype(np.int32)).save(tmp_path / f"scan_{number:02d}.tif")
    found = survey(str(tmp_path), quick(scan={"shape": (4, 8)}))
    refs = discover(str(tmp_path))
    grid = frame_placement.locate(str(tmp_path), refs, ScanConfig(shape=(4, 8)))
    store = ScanStore.create(
        tmp_path / "s.zarr",
        grid=grid,
        frame_shape=shape,
        dtype=np.int32,
        detector=None,
        pixel_size_um=None,
        provenance={},
    )
    recipe = Recipe()
    store.create_reduced(recipe.digest(), block_size(32), recipe.model_dump(mode="json"))
    ingest._ingest_block(store.writing_path, ingest.Block(0, 0, [refs]), recipe)  # compiled
    tracemalloc.start()
    try:
        ingest._ingest_block(store.writing_path, ingest.Block(0, 0, [refs]), recipe)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    frames = np.stack([read_frame(ref) for ref in refs[::8]])
    packing = Packing(frames=ingest.pack(frames, ingest.schema.SCAN["frames"])[0])
    config = quick(scan={"shape": (4, 8)})
    work = work_of(found.scan, config, extractor_of(config.encoder, config.recipe))
    arrays = plan(found.scan, work, packing).stages[0].peak - WORKER_BASE_BYTES_WITH_TORCH
    assert 0.3 * arrays < held < arrays


def test_what_a_worker_imports_fits_into_what_is_counted_for_it():
    reduction = (
        "import laue_dask.pipeline.stages.ingest",
        "from laue_dask.config import Recipe",
        "from laue_dask.reduction.reduce import reduce_frames",
        "reduce_frames(np.ones((1, 256, 256), np.int32), None, Recipe())",
    )
    network = (
        "import laue_dask.pipeline.stages.segmentation",
        "from laue_dask.config import EncoderConfig",
        "from laue_dask.features.encode import Network",
        "Network.load(EncoderConfig()).extract(np.zeros((32, 128, 128), np.uint8), np.ones(32, bool))",
    )
    assert 0.5 * WORKER_BASE_BYTES < of_worker(*reduction) < 1.1 * WORKER_BASE_BYTES
    assert 0.5 * WORKER_BASE_BYTES_WITH_TORCH < of_worker(*reduction, *network) < 1.05 * WORKER_BASE_BYTES_WITH_TORCH


def test_a_disk_without_room_for_the_frames_is_told_before_anything_is_written(
    small_scan, tmp_path, workers, monkeypatch
):
    free = 10**5
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free}))
    out = tmp_path / "new" / "s.zarr"
    arguments = {"workers": workers, "progress": QuietProgress()}
    with pytest.raises(InputError, match=r"needs [\d.]+ [kMG]B, the disk at .* has [\d.]+ [kMG]B free"):
        ingest.ingest(str(small_scan), out, ScanConfig(), **arguments)
    assert not out.parent.exists()
    # What is not copied needs no room.
    assert ingest.ingest(str(small_scan), out, ScanConfig(store_frames=False), **arguments).valid.all()


def test_frames_of_a_stack_take_what_they_take_in_their_file(tmp_path, quick):
    frames = np.random.default_rng(0).poisson(1, (16, 200, 180)).astype(np.uint16)
    with h5py.File(tmp_path / "packed.h5", "w") as file:
        file.create_dataset("entry/data", data=frames, chunks=(1, 200, 180), compression="gzip")
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout(frames.shape, frames.dtype)
        layout[:] = h5py.VirtualSource(tmp_path / "packed.h5", "entry/data", frames.shape)
        file.create_virtual_dataset("entry/data", layout)
    config = quick(scan={"shape": (4, 4)})
    packed, virtual = (survey(str(tmp_path / name), config).scan for name in ("packed.h5", "virtual.h5"))
    assert packed.n_frames == virtual.n_frames == 16
    # The file holds little else; what is elsewhere counts as if it were not packed.
    assert 16 * packed.source_bytes == pytest.approx((tmp_path / "packed.h5").stat().st_size, rel=0.05)
    assert 16 * virtual.source_bytes == frames.nbytes
