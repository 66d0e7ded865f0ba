"""The store of an earlier run held against what its source is now."""

import os
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from laue_dask.config import validate
from laue_dask.errors import ChangedError, InputError
from laue_dask.io.receipts import Receipts
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.stages import changed_frames
from laue_dask.pipeline.stages.scan_source import open_scan
from laue_dask.runtime.progress import QuietProgress

SHAPE = (140, 130)
COUNT = 12


def frame(number):
    """A frame that tells its number by its first pixel."""
    values = np.random.default_rng(number).poisson(2, SHAPE).astype(np.int32)
    values[0, 0] = 1000 + number
    return values


def written(folder, numbers=range(COUNT), first=0):
    """Files scan_0, scan_1, … of frames; `first` is the number of the first frame in them."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.fromarray(frame(first + number)).save(folder / f"scan_{number}.tif")
    return folder


def stacked(path, count=COUNT, first=0):
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = np.stack([frame(first + i) for i in range(count)])
    return path


@pytest.fixture(params=[True, False], ids=["frames", "no frames"])
def opened(request, tmp_path, workers):
    """Opens the store of the run in `tmp_path/run` for a source, and makes it if there is none."""

    def run(source, *, again=False, **scan):
        options = {"shape": (3, 4), "store_frames": request.param, **scan}
        return open_scan(
            str(source),
            tmp_path / "run",
            validate({"scan": options}, "test"),
            k=(),
            again=again,
            workers=workers,
            progress=QuietProgress(),
        )

    return run


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def numbers(store):
    return (store.read_frames(0, store.n_patterns)[:, 0, 0] - 1000).tolist()


def later(folder, seconds=100):
    """Have all files of a folder changed so much later, as a copy without times has."""
    for path in folder.iterdir():
        os.utime(path, ns=(0, path.stat().st_mtime_ns + seconds * 10**9))


def test_files_that_were_all_replaced_are_refused_with_the_first_and_both_values(tmp_path, opened):
    source = written(tmp_path / "frames")
    opened(source)
    before = content(tmp_path / "run")
    written(source, first=100)
    first = source / "scan_0.tif"
    told = (
        rf"12 of 12 frames changed since they were read, first {first} \(.* bytes of .*, now .* bytes of .*, other pix"
    )
    with pytest.raises(ChangedError, match=rf"scan\.zarr: {told}els\): choose another --out, or .* --again"):
        opened(source)
    assert content(tmp_path / "run") == before


def test_frames_that_changed_are_read_again_when_asked_for(tmp_path, opened, caplog):
    source = written(tmp_path / "frames")
    key = opened(source).key()
    written(source, [5], first=100)
    with pytest.raises(ChangedError, match=r" 1 of 12 frames changed since they were read, first .*scan_5\.tif"):
        opened(source)
    with caplog.at_level("INFO", "laue_dask"):
        store = opened(source, again=True)
    assert any(one.startswith("ingest: again, 1 of 12 frames changed") for one in caplog.messages)
    assert numbers(store) == [0, 1, 2, 3, 4, 105, 6, 7, 8, 9, 10, 11]
    assert store.key() != key
    assert opened(source).key() == store.key()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["scan.zarr"]


def test_frames_that_did_not_change_are_kept_though_they_are_asked_for_again(tmp_path, opened):
    source = written(tmp_path / "frames")
    opened(source)
    before = content(tmp_path / "run")
    opened(source, again=True)
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("few", [2, COUNT])
def test_files_of_other_times_and_the_same_pixels_are_kept(tmp_path, opened, monkeypatch, caplog, few):
    monkeypatch.setattr(changed_frames, "N_PROBED_FRAMES", few)
    source = written(tmp_path / "frames")
    key = opened(source).key()
    later(source)
    with caplog.at_level("INFO", "laue_dask"):
        store = opened(source)
    assert store.key() == key
    assert "ingest: 12 files have other times, but their frames are the same" in caplog.messages
    assert store.identity.time.tolist() == [
        (source / f"scan_{number}.tif").stat().st_mtime_ns for number in range(COUNT)
    ]
    assert not [fault for _, fault in Receipts.read(store.path).faults() if fault]
    monkeypatch.setattr(changed_frames, "read_again", lambda found, *_: list(found) and pytest.fail("read once more"))
    opened(source)


def test_of_files_of_other_times_those_with_other_pixels_are_found(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(changed_frames, "N_PROBED_FRAMES", 2)
    source = written(tmp_path / "frames")
    opened(source)
    before = content(tmp_path / "run")
    written(source, [4, 5, 7], first=100)
    later(source)
    with pytest.raises(ChangedError, match=r" 3 of 12 frames changed since they were read, first .*scan_4\.tif"):
        opened(source)
    assert content(tmp_path / "run") == before


def test_a_copy_in_the_place_of_the_folder_is_kept(tmp_path, opened):
    source = written(tmp_path / "frames")
    key = opened(source).key()
    source.rename(tmp_path / "before")
    shutil.copytree(tmp_path / "before", source, copy_function=shutil.copyfile)
    assert opened(source).key() == key


def test_a_folder_that_was_moved_is_the_same_scan(tmp_path, opened):
    source = written(tmp_path / "frames")
    opened(source)
    moved = source.rename(tmp_path / "archive")
    store = opened(moved)
    assert store.provenance["source"] == str(moved)
    assert store.source == [str(moved / f"scan_{number}.tif") for number in range(COUNT)]
    assert not [fault for _, fault in Receipts.read(store.path).faults() if fault]
    assert numbers(ScanStore.open(store.path)) == list(range(COUNT))
    assert opened(moved).key() == store.key()
    written(source)
    opened(source)


def test_another_scan_of_the_same_names_is_refused(tmp_path, opened):
    opened(written(tmp_path / "frames"))
    other = written(tmp_path / "other", first=50)
    before = content(tmp_path / "run")
    with pytest.raises(ChangedError, match="12 of 12 frames changed"):
        opened(other)
    with pytest.raises(InputError, match=r"holds .*/frames, not .*/fewer"):
        opened(written(tmp_path / "fewer", range(11)))
    assert content(tmp_path / "run") == before


def test_two_files_that_changed_places_are_found(tmp_path, opened):
    source = written(tmp_path / "frames")
    opened(source)
    (source / "scan_2.tif").rename(tmp_path / "aside")
    (source / "scan_9.tif").rename(source / "scan_2.tif")
    (tmp_path / "aside").rename(source / "scan_9.tif")
    with pytest.raises(ChangedError, match=r" 2 of 12 frames changed since they were read, first .*scan_2\.tif"):
        opened(source)


def test_a_file_that_was_cut_off_is_found(tmp_path, opened):
    source = written(tmp_path / "frames")
    opened(source)
    os.truncate(source / "scan_3.tif", 1000)
    with pytest.raises(ChangedError, match=r" 1 of 12 frames .* now 1,000 bytes of .*, .*\w.*\): choose"):
        opened(source)


def test_a_frame_that_was_set_aside_and_can_be_used_now_is_found(tmp_path, opened):
    source = written(tmp_path / "frames")
    os.truncate(source / "scan_3.tif", 1000)
    assert not opened(source).valid[3]
    opened(source)
    later(source)
    opened(source)
    written(source, [3])
    with pytest.raises(ChangedError, match=r" 1 of 12 frames .*scan_3\.tif \(1,000 bytes of .*, can be used now\)"):
        opened(source)
    assert opened(source, again=True).valid.all()


def test_frames_that_came_or_went_are_told(tmp_path, opened):
    source = written(tmp_path / "frames", range(11))
    opened(source)
    written(source, [11])
    with pytest.raises(ChangedError, match=r"holds 11 frames, .* has 12 now, not the same: 1 are new, first .*scan_11"):
        opened(source)
    (source / "scan_11.tif").unlink()
    (source / "scan_10.tif").unlink()
    with pytest.raises(ChangedError, match=r"has 10 now, not the same: 1 are gone, first .*scan_10"):
        opened(source)


@pytest.mark.parametrize("store_frames", [True, False])
def test_files_of_a_list_that_are_gone_are_told(tmp_path, opened, store_frames):
    source = written(tmp_path / "frames")
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(str(source / f"scan_{number}.tif") for number in range(COUNT)))
    opened(listed)
    (source / "scan_1.tif").unlink()
    with pytest.raises(ChangedError, match=r" 1 of 12 frames are gone since they were read, first .*scan_1\.tif"):
        opened(listed)


def test_a_stack_that_was_replaced_or_has_grown_is_found(tmp_path, opened):
    source = stacked(tmp_path / "s.h5")
    key = opened(source).key()
    with h5py.File(source, "a") as file:
        file["entry/title"] = "written when the scan was over"
    assert opened(source).key() == key
    stacked(source, COUNT - 1)
    with pytest.raises(ChangedError, match=r"holds 12 frames, .* has 11 now"):
        opened(source)
    stacked(source, COUNT + 3)
    with pytest.raises(ChangedError, match=r"holds 12 frames, .* has 15 now, not the same: 3 are new, first .*\[12\]"):
        opened(source)
    stacked(source, first=100)
    with pytest.raises(ChangedError, match=r" 12 of 12 frames changed since they were read, first .*s\.h5.*\[0\]"):
        opened(source)


def test_data_files_of_a_master_that_were_replaced_are_found(tmp_path, opened):
    for part in range(3):
        stacked(tmp_path / f"s_data_00000{part + 1}.h5", 4, 4 * part)
    with h5py.File(tmp_path / "s_master.h5", "w") as file:
        for part in range(3):
            name = f"data_00000{part + 1}"
            file[f"entry/data/{name}"] = h5py.ExternalLink(f"s_{name}.h5", "/entry/data/data")
    opened(tmp_path / "s_master.h5")
    stacked(tmp_path / "s_data_000002.h5", 4, 100)
    with pytest.raises(ChangedError, match=r" 4 of 12 frames changed since they were read, first .*data_000002\[0\]"):
        opened(tmp_path / "s_master.h5")


def test_a_store_that_does_not_know_its_files_is_held_against_their_names(tmp_path, opened):
    source = written(tmp_path / "frames")
    store = opened(source)
    for name in ("source_size", "source_time", "source_checksum"):
        shutil.rmtree(store.path / name)
    receipts = Receipts.read(store.path)
    receipts.without(["source_size", "source_time", "source_checksum"]).write()
    later(source)
    assert opened(source).key() == store.key()


def test_a_kill_while_files_are_taken_down_leaves_no_damage(tmp_path, opened, monkeypatch):
    source = written(tmp_path / "frames")
    opened(source)
    later(source)

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ScanStore, "_write_identity", kill)
        with pytest.raises(KeyboardInterrupt):
            opened(source)
    store = opened(source)
    assert store.has_receipts_of_sources
    assert not [fault for _, fault in Receipts.read(store.path).faults() if fault]
    assert numbers(store) == list(range(COUNT))


def test_another_part_of_the_scan_is_another_scan(opened, tmp_path):
    source = written(tmp_path / "frames")
    store = opened(source, rows=(0, 2))
    assert store.scan_shape == (2, 4)
    assert opened(source, rows=(0, 2)).path == store.path
    with pytest.raises(ChangedError, match=r"holds rows 0:2 of the scan, now it is all of it"):
        opened(source)
    with pytest.raises(ChangedError, match=r"now it is rows 1:3, every 2"):
        opened(source, rows=(1, 3), every=2)
    with pytest.raises(InputError, match=r"is a scan store, which is used as a whole, not in part \(columns 0:2\)"):
        opened(store.path, columns=(0, 2))
