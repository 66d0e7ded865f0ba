import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pytest

from laue_dask.compute.cluster import start
from laue_dask.compute.run import write_block
from laue_dask.config import EncoderConfig, LocalWorkersConfig, Recipe
from laue_dask.errors import InputError, StoreError
from laue_dask.features import inference as encoder
from laue_dask.features.encode import Network
from laue_dask.features.extractors import features as lazy_features
from laue_dask.io.block_files import checksum
from laue_dask.io.frame_array import FrameArray
from laue_dask.io.geometry import resolve_grid
from laue_dask.io.journal import Journal
from laue_dask.io.lock import locked_store
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.reuse import Output
from laue_dask.pipeline.stages import reduction
from laue_dask.pipeline.stages.reduction import reduce_scan, reduced_patterns
from laue_dask.pipeline.verify import verify
from laue_dask.reduction.reduce import reduce_frames
from laue_dask.runtime.progress import QuietProgress

SIDE = 256
RECIPE = Recipe().for_frames((SIDE, SIDE))
UNTRAINED = EncoderConfig(weights="untrained")


def written(path, n, *, side=SIDE, store_frames=True, valid=None):
    """Scan store of `n` frames of 16 bit, every shard of them the same."""
    grid = resolve_grid(n, shape=(1, n))
    store = ScanStore.create(
        path,
        grid=grid,
        frame_shape=(side, side),
        dtype=np.uint16,
        detector=None,
        pixel_size_um=None,
        provenance={"source": "made here"},
        store_frames=store_frames,
    )
    rng = np.random.default_rng(0)
    frame = np.full((side, side), 20, np.uint16)
    frame[::3, ::5] += 1
    stack = np.repeat(frame[None], min(n, store.shard_frames), axis=0)
    for i in range(len(stack)):
        row, column = rng.integers(4, side - 4, (2, 8))
        stack[i, row, column] = 5000
    receipts = []
    for block, start_at in enumerate(range(0, n, store.shard_frames)):
        part = stack[: min(store.shard_frames, n - start_at)]
        if store_frames:
            store.write_frames(start_at, part)
        bad = [(i, "bad") for i in range(start_at, start_at + len(part)) if valid is not None and not valid[i]]
        receipt = {"block": block, "start": start_at, "stop": start_at + len(part), "crc32c": checksum(part)}
        if store_frames:
            receipt["seal"] = store.seal(block)
        receipts.append({**receipt, "source": ["f"] * len(part), "set_aside": bad, "positions": None})
    store.record(receipts)
    return store.finish()


@pytest.fixture
def unreadable(monkeypatch):
    """Frames of a store that say so when they are read."""

    def read(self, start, stop, *, out=None):
        raise AssertionError(f"frames {start} to {stop} were read")

    monkeypatch.setattr(FrameArray, "read", read)


@pytest.mark.usefixtures("unreadable")
def test_no_frame_is_read_before_something_is_computed(tmp_path):
    store = written(tmp_path / "s.zarr", 70, side=128)
    frames, reduced = store.frames(), reduced_patterns(store, RECIPE)
    features = lazy_features(Network.load(UNTRAINED), reduced, store.valid)
    # Whatever is built upon them stays as lazy.
    built = [frames.astype(float).mean(axis=0), reduced[::2, 10:20].max(), features[store.valid].sum(axis=0)]
    for lazy in (frames, reduced, features, *built):
        assert isinstance(lazy, da.Array)
        with pytest.raises(AssertionError, match="were read"):
            lazy.compute(scheduler="synchronous")


def test_no_network_is_loaded_before_features_are_computed(monkeypatch):
    loaded = []
    load = encoder.network_here
    monkeypatch.setattr(encoder, "network_here", lambda *args: loaded.append(args) or load(*args))
    patterns = da.zeros((8, 128, 128), dtype=np.uint8, chunks=(4, -1, -1))
    features = lazy_features(Network.load(UNTRAINED), patterns, np.ones(8, bool))
    assert not loaded
    assert features.shape == (8, 256)
    assert np.isfinite(features.compute(scheduler="synchronous")).all()
    assert loaded


def test_graph_of_a_large_scan_is_small(tmp_path):
    store = written(tmp_path / "s.zarr", 4000, side=128)
    assert len(reduced_patterns(store, RECIPE).dask) <= 10 * 4


def test_reduced_patterns_are_those_of_the_recipe_and_zero_where_set_aside(tmp_path, workers):
    valid = np.arange(40) % 7 != 3
    store = written(tmp_path / "s.zarr", 40, side=140, valid=valid)
    found = reduce_scan(store, RECIPE, workers=workers, progress=QuietProgress())
    expected = reduce_frames(store.read_frames(0, 40), store.detector_mask, RECIPE)
    assert expected.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(found[:], np.where(valid[:, None, None], expected, 0))


def test_reduced_patterns_outlive_the_frames_they_came_from(tmp_path, workers, unreadable):
    store = written(tmp_path / "s.zarr", 8, side=128, store_frames=False)
    with pytest.raises(StoreError, match="frames are not in the store, and f: file vanished"):
        reduce_scan(store, RECIPE, workers=workers, progress=QuietProgress())
    array = store.create_reduced(RECIPE.digest(), 32, RECIPE.model_dump(mode="json"))
    Journal.of(array).add(write_block(np.full((8, 128, 128), 7, np.uint8), array, 0))
    array.attrs["finished"] = True
    found = reduce_scan(ScanStore.open(store.path), RECIPE, workers=workers, progress=QuietProgress())
    assert (found[:] == 7).all()


def test_sample_holds_usable_frames_only(tmp_path):
    valid = np.arange(60) % 2 == 0
    store = written(tmp_path / "s.zarr", 60, side=128, valid=valid)
    sample = reduction.read_sample(store)
    np.testing.assert_array_equal(sample, store.read_frames(0, 60)[valid])
    nothing = written(tmp_path / "t.zarr", 5, side=128, valid=np.zeros(5, bool))
    with pytest.raises(InputError, match="none of its 5 patterns is usable"):
        reduction.read_sample(nothing)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory of a process is read from /proc")
def test_memory_of_a_worker_does_not_grow_with_the_scan(tmp_path):
    def peak():
        """Largest resident memory of this process since it began to run this program, bytes.

        Not `ru_maxrss`, which a process inherits from the one that started it. Defined here, so that a worker gets the
        function alone and does not import this module for it.
        """
        with Path("/proc/self/status").open() as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))

    peaks = {}
    for n in (500, 2000):
        store = written(tmp_path / f"{n}.zarr", n)
        with start(LocalWorkersConfig(count=1, gpu="never")) as one:
            reduce_scan(store, RECIPE, workers=one, progress=QuietProgress())
            [peaks[n]] = one.client.run(peak).values()
    # Blocks are of 32 and 64 patterns here: a task holds eight frames at once and its reduced patterns, 16 KiB each.
    assert peaks[2000] <= 1.2 * peaks[500], peaks
    assert peaks[2000] - peaks[500] <= 0.2 * 1500 * SIDE * SIDE * 2, peaks


def test_two_runs_that_reduce_into_one_store_are_kept_apart(tmp_path, workers):
    store = written(tmp_path / "s.zarr", 40, side=140)
    with locked_store(store.path, "reduce elsewhere"), pytest.raises(InputError, match="`reduce elsewhere`"):
        reduce_scan(store, RECIPE, workers=workers, progress=QuietProgress())
    assert store.recipes() == {}
    other, third = RECIPE.model_copy(update={"clip_sigma": 5.0}), ScanStore.open(store.path)

    class Meanwhile(Output):
        def announce(self, *, kept, remark=""):
            assert not kept
            reduce_scan(third, other, workers=workers, progress=QuietProgress())

    # Another run is done between the first one's look and its turn: what that one listed must not be lost.
    assert store._receipts is not None  # as the first one read it
    reduce_scan(store, RECIPE, workers=workers, progress=QuietProgress(), output=Meanwhile.of_key("reduced"))
    found = ScanStore.open(store.path)
    assert found.has_receipts_of(RECIPE.digest())
    assert found.has_receipts_of(other.digest())
    assert not verify(store.path, progress=QuietProgress()).findings
