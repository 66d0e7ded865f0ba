import os
from pathlib import Path

import google_crc32c
import h5py
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from laue_dask.io.block_files import checksum
from laue_dask.io.frames import FrameRef, discover
from laue_dask.io.source_identity import UNKNOWN_STAMP, Stamp, difference, joined, stamps_of

SHAPE = (32, 24)


def frame(number):
    return np.random.default_rng(number).poisson(3, SHAPE).astype(np.int32)


def stack(path, count, first=0):
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = np.stack([frame(first + i) for i in range(count)])


def stamp(path):
    found = Path(path).stat()
    return Stamp(found.st_size, found.st_mtime_ns)


@given(st.binary(max_size=3000), st.binary(max_size=5000))
def test_checksums_of_parts_make_the_checksum_of_the_whole(before, added):
    found = joined(google_crc32c.value(before), google_crc32c.value(added), len(added))
    assert found == google_crc32c.value(before + added)


@given(st.integers(1, 4), st.integers(1, 70_000))
def test_frames_of_any_size_are_joined(count, size):
    parts = [np.random.default_rng(i).integers(0, 255, size, np.uint8) for i in range(count)]
    crc = 0
    for part in parts:
        crc = joined(crc, checksum(part), part.nbytes)
    assert crc == checksum(np.concatenate(parts))


def test_stamp_is_that_of_the_file_and_unknown_where_there_is_none(tmp_path):
    Image.fromarray(frame(0)).save(tmp_path / "a.tif")
    a, gone = FrameRef(str(tmp_path / "a.tif")), FrameRef(str(tmp_path / "b.tif"))
    assert stamps_of([a, None, gone]) == [stamp(a.path), UNKNOWN_STAMP, UNKNOWN_STAMP]


def test_frames_behind_a_link_have_the_stamp_of_the_file_that_holds_their_pixels(tmp_path):
    for number in (1, 2):
        stack(tmp_path / f"scan_data_00000{number}.h5", 2, 2 * number)
    with h5py.File(tmp_path / "scan_master.h5", "w") as master:
        for number in (1, 2):
            name = f"data_00000{number}"
            master[f"entry/data/{name}"] = h5py.ExternalLink(f"scan_{name}.h5", "/entry/data/data")
    refs = discover(tmp_path / "scan_master.h5")
    os.utime(tmp_path / "scan_data_000002.h5", ns=(5, 5))
    first, second = (stamp(tmp_path / f"scan_data_00000{number}.h5") for number in (1, 2))
    assert stamps_of(refs) == [first, first, second, second]
    (tmp_path / "scan_data_000002.h5").unlink()
    assert stamps_of(refs) == [first, first, UNKNOWN_STAMP, UNKNOWN_STAMP]


def test_frames_of_a_virtual_dataset_have_the_stamps_of_its_sources(tmp_path):
    layout = h5py.VirtualLayout((4, *SHAPE), np.int32)
    for number in range(2):
        stack(tmp_path / f"part_{number}.h5", 2, 2 * number)
        layout[2 * number : 2 * number + 2] = h5py.VirtualSource(f"part_{number}.h5", "entry/data/data", (2, *SHAPE))
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_virtual_dataset("entry/data/data", layout)
    refs = discover(tmp_path / "scan.h5")
    os.utime(tmp_path / "part_1.h5", ns=(7, 7))
    first, second = (stamp(tmp_path / f"part_{number}.h5") for number in range(2))
    assert stamps_of(refs) == [first, first, second, second]


def test_frame_of_modules_in_several_files_has_all_of_their_bytes_and_the_last_time(tmp_path):
    rows, columns = SHAPE
    layout = h5py.VirtualLayout((2, 2 * rows, columns), np.int32)
    for number in range(2):
        stack(tmp_path / f"module_{number}.h5", 2, 2 * number)
        source = h5py.VirtualSource(f"module_{number}.h5", "entry/data/data", (2, *SHAPE))
        layout[:, number * rows : (number + 1) * rows] = source
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_virtual_dataset("entry/data/data", layout)
    sizes = sum(stamp(tmp_path / f"module_{number}.h5").size for number in range(2))
    os.utime(tmp_path / "module_1.h5", ns=(2**62, 2**62))
    assert stamps_of(discover(tmp_path / "scan.h5")) == [Stamp(sizes, 2**62)] * 2


def test_pixels_decide_whether_a_frame_is_the_one_that_was_read(tmp_path):
    path, mask, dtype = tmp_path / "a.tif", np.zeros(SHAPE, bool), np.dtype(np.int32)
    ref, crc = FrameRef(str(path)), checksum(frame(0))
    Image.fromarray(frame(0)).save(path)
    assert difference(ref, crc, mask, dtype) == ""
    assert difference(ref, 0, mask, dtype, usable=False) == "can be used now"
    Image.fromarray(frame(1)).save(path)
    assert difference(ref, crc, mask, dtype) == "other pixels"
    path.write_bytes(path.read_bytes()[:-100])
    assert difference(ref, crc, mask, dtype).startswith("truncated")
    assert difference(ref, 0, mask, dtype, usable=False) == ""
    path.unlink()
    assert difference(ref, crc, mask, dtype) == "file vanished"
