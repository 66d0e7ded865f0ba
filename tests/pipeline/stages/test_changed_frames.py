"""Frames that change while a scan is ingested, or between an ingest that was killed and the one that goes on."""

import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from laue_dask.config import Recipe, ScanConfig
from laue_dask.errors import InputError
from laue_dask.io import scan_store
from laue_dask.io.block_files import checksum
from laue_dask.io.frame_array import Layout
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.stages import ingest as stage
from laue_dask.pipeline.stages.ingest import ingest
from laue_dask.runtime.progress import QuietProgress

SHAPE = (140, 130)


def frame(number):
    """A frame that tells its number by its first pixel."""
    values = np.random.default_rng(number).poisson(2, SHAPE).astype(np.int32)
    values[0, 0] = 1000 + number
    return values


def written(folder, numbers=range(12), first=0):
    """Files scan_0, scan_1, … of frames; `first` is the number of the first frame in them."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.fromarray(frame(first + number)).save(folder / f"scan_{number}.tif")
    return folder


def stacked(path, count, first=0):
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = np.stack([frame(first + i) for i in range(count)])
    return path


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of three frames."""
    monkeypatch.setattr(scan_store, "frame_layout", lambda *args: Layout(1, 3, "test"))


def ingested(source, out, workers, recipe=None, **scan):
    options = ScanConfig(**{"shape": (3, 4), **scan})
    return ingest(str(source), out, options, recipe=recipe, workers=workers, progress=QuietProgress())


def numbers(store):
    return (store.read_frames(0, store.n_patterns)[:, 0, 0] - 1000).tolist()


def killed(source, out, workers, monkeypatch, **scan):
    """Leave an ingest that was killed when all its shards were written."""

    def kill(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ScanStore, "record", kill)
        with pytest.raises(KeyboardInterrupt):
            ingested(source, out, workers, **scan)


@pytest.mark.parametrize("store_frames", [True, False])
def test_a_store_says_which_files_its_frames_came_from(tmp_path, workers, store_frames):
    source = written(tmp_path / "frames")
    store = ingested(source, tmp_path / "s.zarr", workers, store_frames=store_frames)
    states = [(source / f"scan_{number}.tif").stat() for number in range(12)]
    assert store.identity.size.tolist() == [state.st_size for state in states]
    assert store.identity.time.tolist() == [state.st_mtime_ns for state in states]
    assert store.identity.checksum.tolist() == [checksum(frame(number)) for number in range(12)]
    array = store.root["source_time"]
    assert array.attrs["units"] == "ns"


@pytest.mark.parametrize("store_frames", [True, False])
@pytest.mark.parametrize("recipe", [None, Recipe()])
def test_files_that_were_replaced_before_an_ingest_went_on_are_read_again(
    tmp_path, workers, monkeypatch, caplog, store_frames, recipe
):
    source, out = written(tmp_path / "frames"), tmp_path / "s.zarr"
    killed(source, out, workers, monkeypatch, store_frames=store_frames, recipe=recipe)
    written(source, [2, 7, 8], first=100)
    with caplog.at_level("INFO", "laue_dask"):
        store = ingested(source, out, workers, store_frames=store_frames, recipe=recipe)
    assert numbers(store) == [0, 1, 102, 3, 4, 5, 6, 107, 108, 9, 10, 11]
    [told] = [one for one in caplog.messages if "changed since" in one]
    assert "3 frames changed" in told
    assert "scan_2.tif (" in told
    assert "their 2 blocks" in told or recipe
    fresh = ingested(source, tmp_path / "fresh.zarr", workers, store_frames=store_frames, recipe=recipe)
    assert fresh.key() == store.key()
    if recipe:
        ours, theirs = (one.reduced(recipe.digest())[:] for one in (store, fresh))
        np.testing.assert_array_equal(ours, theirs)


def test_two_files_that_changed_places_are_read_again(tmp_path, workers, monkeypatch):
    source, out = written(tmp_path / "frames"), tmp_path / "s.zarr"
    killed(source, out, workers, monkeypatch)
    shutil.move(source / "scan_1.tif", tmp_path / "aside")
    shutil.move(source / "scan_10.tif", source / "scan_1.tif")
    shutil.move(tmp_path / "aside", source / "scan_10.tif")
    assert numbers(ingested(source, out, workers)) == [0, 10, 2, 3, 4, 5, 6, 7, 8, 9, 1, 11]


def test_files_that_are_gone_cost_nothing_of_what_was_read(tmp_path, workers, monkeypatch):
    source, out = written(tmp_path / "frames"), tmp_path / "s.zarr"
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(str(source / f"scan_{number}.tif") for number in range(12)))
    killed(listed, out, workers, monkeypatch)
    for number in range(1, 6):
        (source / f"scan_{number}.tif").unlink()
    store = ingested(listed, out, workers)
    assert numbers(store) == list(range(12))
    assert store.set_aside == []


class Meanwhile:
    """Does something once, after so many shards were written by workers in this process."""

    def __init__(self, monkeypatch, act, after=2, times=1):
        self.act, self.after, self.times, self.written = act, after, times, 0
        whole = stage.ingest_shard

        def then(*arguments, **options):
            receipt = whole(*arguments, **options)
            self.written += 1
            if self.written >= self.after and self.times:
                self.times -= 1
                self.act()
            return receipt

        monkeypatch.setattr(stage, "ingest_shard", then)


@pytest.fixture
def alone(here):
    """One worker, which is a thread of this process."""
    from laue_dask.compute import cluster
    from laue_dask.config import LocalWorkersConfig

    with cluster.start(LocalWorkersConfig()) as running:
        yield running


def test_files_that_are_replaced_while_the_scan_is_read_are_never_mixed(tmp_path, alone, monkeypatch, caplog):
    source = written(tmp_path / "frames")
    Meanwhile(monkeypatch, lambda: written(source, first=100))
    with caplog.at_level("INFO", "laue_dask"):
        store = ingested(source, tmp_path / "s.zarr", alone)
    assert numbers(store) == list(range(100, 112))
    assert any("changed while the scan was read" in one for one in caplog.messages)


def test_a_stack_that_is_replaced_while_it_is_read_is_never_mixed(tmp_path, alone, monkeypatch):
    source = stacked(tmp_path / "s.h5", 12)
    Meanwhile(monkeypatch, lambda: stacked(source, 12, first=100))
    assert numbers(ingested(source, tmp_path / "s.zarr", alone)) == list(range(100, 112))


def test_a_stack_that_grows_while_it_is_read_is_not_read_again(tmp_path, alone, monkeypatch, caplog):
    source = stacked(tmp_path / "s.h5", 12)

    def grow():
        with h5py.File(source, "a") as file:
            file["entry/more"] = np.zeros(1000)

    seen = Meanwhile(monkeypatch, grow)
    assert numbers(ingested(source, tmp_path / "s.zarr", alone)) == list(range(12))
    assert seen.written == 4
    assert any("was written to while it was read" in one for one in caplog.messages)


def test_frames_that_do_not_stop_changing_are_refused(tmp_path, alone, monkeypatch):
    source, path = written(tmp_path / "frames"), tmp_path / "frames" / "scan_3.tif"
    Meanwhile(monkeypatch, lambda: written(source, [3], first=int(np.random.default_rng().integers(100))), times=99)
    with pytest.raises(InputError, match=rf"{path} \(.* bytes of .*, now .*\): is still being written"):
        ingested(source, tmp_path / "s.zarr", alone)
