"""HDF5 as detectors write it: what its axes mean, which bytes are there, and what is declared without being there."""

import importlib.util
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.errors import FrameError, InputError
from laue_dask.io import hdf5
from laue_dask.io.frames import FrameRef, discover, frame_info, grid_hint, pixel_mask, read_frame
from laue_dask.io.hdf5 import axes as hdf5_axes

NAME = "entry/data/data"


@pytest.fixture
def frames():
    return np.random.default_rng(1).integers(0, 60_000, (24, 20, 30), dtype=np.uint16)


def write(path, values, name=NAME, **options):
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=values, **options)
    return path


def pixels(path):
    return np.array([read_frame(ref) for ref in discover(path)])


# Axes


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((24, 20, 30), None),
        ((4, 6, 20, 30), (4, 6)),
        ((6, 4, 20, 30), (6, 4)),
        ((24, 1, 20, 30), None),
        ((1, 24, 20, 30), None),
        ((24, 20, 30, 1), None),
        ((24, 20, 1, 30), None),
        ((4, 6, 1, 20, 30), (4, 6)),
        ((1, 24, 1, 20, 30, 1), None),
    ],
)
def test_frames_are_those_of_the_file_whatever_axes_of_length_1_it_has(tmp_path, frames, shape, grid):
    path = write(tmp_path / "a.h5", frames.reshape(shape))
    refs = discover(path)
    np.testing.assert_array_equal([read_frame(ref) for ref in refs], frames)
    assert frame_info(refs[5]).shape == (20, 30)
    assert grid_hint(refs) == grid
    assert [FrameRef.parse(str(ref)) for ref in refs] == refs


@pytest.mark.parametrize(
    ("shape", "chosen", "images"),
    [
        ((24, 2), "[:,1]", lambda v: v[:, 1]),
        ((2, 24), "[1]", lambda v: v[1]),
        ((2, 24), "[1,:]", lambda v: v[1]),
        ((4, 6, 3), "[:,:,2]", lambda v: v[:, :, 2].reshape(24, 20, 30)),
        ((100, 4), "[:,3]", lambda v: v[:, 3]),
    ],
)
def test_several_images_of_a_point_are_refused_with_the_choice_and_the_choice_is_read(tmp_path, shape, chosen, images):
    values = np.random.default_rng(2).integers(0, 99, (*shape, 20, 30), dtype=np.uint8)
    path = write(tmp_path / "a.h5", values)
    with pytest.raises(InputError, match=r"images of each point.*choose one.*data\[") as refused:
        grid_hint(discover(path))
    assert "\n" not in str(refused.value)
    refs = discover(f"{path}::/{NAME}{chosen}")
    np.testing.assert_array_equal([read_frame(ref) for ref in refs], images(values))
    assert [FrameRef.parse(str(ref)) for ref in refs] == refs
    assert grid_hint(refs) == ((4, 6) if len(shape) == 3 else None)


def test_a_given_shape_or_a_choice_of_all_says_that_two_axes_are_a_grid(tmp_path):
    path = write(tmp_path / "a.h5", np.ones((24, 2, 20, 30), np.uint8))
    assert grid_hint(discover(path), (24, 2)) == (24, 2)
    assert grid_hint(discover(f"{path}::/{NAME}[:,:]")) == (24, 2)
    with pytest.raises(InputError, match="2 along axis 1"):
        grid_hint(discover(path), (4, 6))


def test_colours_behind_rows_and_columns_are_refused_and_one_is_chosen(tmp_path, frames):
    path = write(tmp_path / "a.h5", np.stack([frames, frames + 1, frames + 2], axis=-1))
    with pytest.raises(InputError, match=r"data\[:,:,:,0\]"):
        discover(path)
    for chosen in ("[...,2]", "[:,:,:,2]"):
        np.testing.assert_array_equal(pixels(f"{path}::/{NAME}{chosen}"), frames + 2)


@pytest.mark.parametrize("name", ["depth", "energy"])
def test_an_axis_of_depths_or_energies_is_refused_with_a_scan_for_each(tmp_path, frames, name):
    path = write(tmp_path / "a.h5", frames)
    write(path, np.linspace(5, 20, 24), f"entry/{name}")
    with pytest.raises(InputError, match=rf"an axis of {name}.*a scan for each.*data\[0\].*data\[:\]"):
        discover(path)
    np.testing.assert_array_equal(pixels(f"{path}::/{NAME}[7]"), frames[7:8])
    assert len(discover(f"{path}::/{NAME}[:]")) == 24


def test_a_choice_that_does_not_fit_is_told(tmp_path, frames):
    path = write(tmp_path / "a.h5", frames.reshape(4, 6, 20, 30))
    for chosen, reason in (("[:,9]", "axis 1 has 6"), ("[0,0,0,0,0]", "5 axes"), ("[,]", "not a choice")):
        with pytest.raises(InputError, match=reason):
            discover(f"{path}::/{NAME}{chosen}")


@given(st.lists(st.sampled_from([1, 2, 3, 16, 17]), min_size=2, max_size=5), st.data())
def test_every_frame_of_any_shape_has_one_place_in_row_major_order(shape, data):
    try:
        axes = hdf5_axes.interpret(tuple(shape))
    except hdf5_axes.AxesError:
        return
    index = data.draw(st.integers(0, axes.frames - 1))
    values = np.arange(np.prod(shape)).reshape(shape)
    frame = values[tuple(slice(None) if one is None else one for one in axes.place(index))]
    assert frame.shape == axes.frame_shape
    if axes.images_follow:
        assert frame[0, 0] == index * frame.size


# Sibling datasets, scans of a BLISS file


def test_sibling_datasets_are_listed_and_one_is_chosen(tmp_path, frames):
    path = write(tmp_path / "a.h5", frames, "entry/data/threshold_1/data")
    write(path, frames + 1, "entry/data/threshold_2/data")
    with pytest.raises(InputError, match=r"which dataset.*threshold_1/data.*threshold_2/data"):
        discover(path)
    np.testing.assert_array_equal(pixels(f"{path}::/entry/data/threshold_2"), frames + 1)


def test_a_scan_of_a_bliss_file_is_found_with_its_detector_and_its_positions(tmp_path, frames):
    path = write(tmp_path / "a.h5", frames, "1.1/instrument/eiger/data")
    write(path, frames + 1, "2.1/instrument/eiger/data")
    with h5py.File(path, "a") as file:
        file["2.1/measurement/eiger"] = h5py.SoftLink("/2.1/instrument/eiger/data")
        file["2.1/measurement/xech"] = np.tile(np.arange(6.0), 4)
        file["2.1/measurement/yech"] = np.repeat(np.arange(4.0), 6)
    with pytest.raises(InputError, match=r"2 scans, /1\.1 \(24 frames.*give .*::/1\.1"):
        discover(path)
    for name in ("2.1", "/2.1"):
        refs = discover(f"{path}::{name}")
        np.testing.assert_array_equal([read_frame(ref) for ref in refs], frames + 1)
    assert frame_info(refs[8]).position == (1000.0, 2000.0)  # millimetres, where a file does not say
    write(path, frames, "2.1/instrument/basler/data")
    with pytest.raises(InputError, match=r"which dataset.*basler.*eiger"):
        discover(f"{path}::/2.1")


# What is not there


def virtual(path, sources, *, fillvalue=7, shape=(24, 20, 30)):
    layout = h5py.VirtualLayout(shape, "u2")
    for part, (name, source) in sources.items():
        layout[slice(*part)] = h5py.VirtualSource(name, "d", source)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset(NAME, layout, fillvalue=fillvalue)
    return path


def reasons(path):
    told = {}
    for i, ref in enumerate(discover(path)):
        try:
            read_frame(ref)
        except FrameError as error:
            told[i] = str(error)
    return told


def test_frames_whose_virtual_source_is_missing_or_short_are_set_aside_with_its_name(tmp_path, frames):
    for i in range(3):
        write(tmp_path / f"part_{i}.h5", frames[8 * i : 8 * i + 8], "d")
    parts = {(8 * i, 8 * i + 8): (f"part_{i}.h5", (8, 20, 30)) for i in range(3)}
    path = virtual(tmp_path / "a.h5", parts)
    np.testing.assert_array_equal(pixels(path), frames)
    (tmp_path / "part_1.h5").unlink()
    assert set(reasons(path).items()) == {(i, "its file part_1.h5 is missing") for i in range(8, 16)}
    write(tmp_path / "part_1.h5", frames[8:12], "d")
    assert sorted(reasons(path)) == [12, 13, 14, 15]
    assert "part_1.h5: 'd' ends before the frame does" in reasons(path)[12]


def test_frames_without_a_virtual_source_are_no_data_and_gaps_between_modules_are_masked(tmp_path, frames):
    write(tmp_path / "part.h5", frames[:, :8], "d")
    layout = h5py.VirtualLayout((24, 20, 30), "u2")
    source = h5py.VirtualSource(tmp_path / "part.h5", "d", (24, 8, 30))
    layout[:20, :8], layout[:22, 12:] = source[:20], source[:22]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset(NAME, layout, fillvalue=9)
    told = reasons(tmp_path / "a.h5")
    assert sorted(told) == [20, 21, 22, 23]
    assert "240 of its pixels were never written" in told[20]
    assert "no source for it" in told[23]
    found = pixel_mask(discover(tmp_path / "a.h5")[0])
    assert found.mask[8:12].all()
    assert found.mask.sum() == 4 * 30


def test_interleaved_virtual_sources_are_followed_frame_by_frame(tmp_path, frames):
    layout = h5py.VirtualLayout((24, 20, 30), "u2")
    for i in range(4):
        write(tmp_path / f"part_{i}.h5", frames[i::4][: 5 if i == 2 else 6], "d")
        layout[i::4] = h5py.VirtualSource(tmp_path / f"part_{i}.h5", "d", (6, 20, 30))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset(NAME, layout)
    assert sorted(reasons(tmp_path / "a.h5")) == [22]


def test_chunks_that_were_never_written_are_no_data(tmp_path, frames):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset(NAME, (24, 20, 30), "u2", chunks=(1, 10, 30), fillvalue=5)
        made[:12] = frames[:12]
        made[12, :10] = frames[12, :10]
    told = reasons(tmp_path / "a.h5")
    assert sorted(told) == list(range(12, 24))
    assert told[12] == "was never written: 1 of its 2 chunks are missing"
    assert told[13] == "was never written: the file has nothing in its place"


def test_raw_data_beside_the_file_that_are_missing_or_short_are_told(tmp_path, frames):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset(NAME, (24, 20, 30), "u2", external=[(str(tmp_path / "raw.bin"), 0, frames.nbytes)])
        made[...] = frames
    np.testing.assert_array_equal(pixels(tmp_path / "a.h5"), frames)
    raw = tmp_path / "raw.bin"
    raw.write_bytes(raw.read_bytes()[: 20 * 1200 + 7])
    assert sorted(reasons(tmp_path / "a.h5")) == [20, 21, 22, 23]
    raw.unlink()
    with pytest.raises(FrameError, match=r"raw\.bin is missing"):
        read_frame(FrameRef(str(tmp_path / "a.h5"), NAME, 0))


def test_a_data_file_missing_from_an_eiger_master_leaves_its_places_free(tmp_path, frames):
    with h5py.File(tmp_path / "a_master.h5", "w") as master:
        for i in range(1, 6):
            master[f"entry/data/data_{i:06d}"] = h5py.ExternalLink(f"a_data_{i:06d}.h5", NAME)
    for i in (1, 2, 4):
        write(tmp_path / f"a_data_{i:06d}.h5", frames[6 * i - 6 : 6 * i])
    refs = discover(tmp_path / "a_master.h5")
    assert len(refs) == 24
    assert reasons(tmp_path / "a_master.h5") == dict.fromkeys(range(12, 18), "its file a_data_000003.h5 is missing")
    np.testing.assert_array_equal(read_frame(refs[18]), frames[18])


@pytest.mark.parametrize("target", ["gone.h5", "there.h5"])
def test_a_link_that_leads_nowhere_is_told_with_its_file(tmp_path, frames, target):
    write(tmp_path / "there.h5", frames, "other")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[NAME] = h5py.ExternalLink(target, "/d")
    with pytest.raises(InputError, match=target.replace(".", r"\.")):
        discover(f"{tmp_path / 'a.h5'}::/{NAME}")


# Kinds of values, filters


@pytest.mark.parametrize("dtype", ["c8", "c16", "S4", [("a", "u2"), ("b", "f4")], "V6"])
def test_values_that_are_no_counts_are_refused_by_name(tmp_path, dtype):
    path = write(tmp_path / "a.h5", np.zeros((4, 20, 30), np.dtype(dtype)))
    with pytest.raises(InputError, match=r"complex|compound|opaque|text"):
        discover(path)


def test_a_filter_that_is_not_installed_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 20, 30))
        plist.set_filter(32099, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5py.h5s.create_simple((4, 20, 30))
        h5py.h5d.create(file.create_group("entry/data").id, b"data", h5py.h5t.NATIVE_UINT16, space, plist)
    with pytest.raises(InputError, match=r"HDF5 filter '.*' \(32099\), which is not installed"):
        discover(tmp_path / "a.h5")


# A header is a claim


@pytest.mark.parametrize("chunks", [(1, 20, 30), None])
def test_ten_million_frames_of_which_next_to_none_is_written_are_refused_in_little_memory(tmp_path, chunks):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset(NAME, (10**7, 20, 30), "u2", chunks=chunks)
        if chunks:
            made[3] = 1
    tracemalloc.start()
    with pytest.raises(InputError, match="10000000 frames are declared") as refused:
        discover(tmp_path / "a.h5")
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()
    assert "\n" not in str(refused.value)


def test_ten_million_virtual_frames_of_a_short_source_are_refused(tmp_path, frames):
    write(tmp_path / "part.h5", frames, "d")
    path = virtual(tmp_path / "a.h5", {(0, 10**7): ("part.h5", (10**7, 20, 30))}, shape=(10**7, 20, 30))
    with pytest.raises(InputError, match="room for 24 of them"):
        discover(path)


@pytest.mark.parametrize(
    ("shape", "chunks", "reason"),
    [((4, 60_000, 60_000), (1, 64, 64), "pixels"), ((4000, 1000, 1000), (2000, 1000, 1000), "chunks")],
)
def test_frames_and_chunks_that_are_declared_too_large_are_refused_unread(tmp_path, shape, chunks, reason):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(NAME, shape, "u1", chunks=chunks)
    with pytest.raises(InputError, match=reason):
        discover(tmp_path / "a.h5")


def test_groups_in_a_circle_and_too_many_of_them_end(tmp_path, frames, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("some/where/deep")
        group["up"] = file["some"]
        group["away"] = h5py.SoftLink("/some/where/deep/away")
        group["frames"] = frames
    assert len(discover(tmp_path / "a.h5")) == 24
    monkeypatch.setattr("laue_dask.io.hdf5.discovery.MAX_SEARCHED_OBJECTS", 2)
    with pytest.raises(InputError, match="name their dataset"):
        discover(tmp_path / "a.h5")


# Masks


@pytest.mark.parametrize("place", ["pixel_mask", "detectorSpecific/pixel_mask"])
@pytest.mark.parametrize("dtype", ["u4", "u1", "i4", "f4", "?"])
def test_the_pixel_mask_of_the_file_is_used_by_its_bits(tmp_path, frames, place, dtype):
    path = write(tmp_path / "a.h5", frames)
    mask = np.zeros((20, 30), dtype)
    mask[3], mask[:, 7] = 1, 1
    expected = np.asarray(mask != 0)
    if dtype == "u4":
        mask[3], mask[5, 8:] = 8, 1 << 31  # an interpolated pixel is data
    write(path, mask, f"entry/instrument/detector/{place}")
    found = pixel_mask(discover(path)[0])
    np.testing.assert_array_equal(found.mask, expected)
    assert f"{expected.sum()} of 600 pixels" in found.text


@pytest.mark.parametrize(
    ("mask", "reason"), [(np.ones((20, 31)), "20 × 31"), (np.ones((20, 30)), "600 of 600"), (np.zeros(4), "4 pixels")]
)
def test_a_mask_that_cannot_be_the_frames_is_said_and_not_used(tmp_path, frames, mask, reason):
    path = write(tmp_path / "a.h5", frames)
    write(path, mask, "entry/instrument/detector/pixel_mask")
    found = pixel_mask(discover(path)[0])
    assert found.mask is None
    assert reason in found.text


# Files still growing


def test_a_growing_swmr_file_is_read_as_it_is_and_a_watch_waits_for_it(tmp_path, frames):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest", locking=False) as file:
        made = file.create_dataset("frames", (0, 20, 30), "u2", chunks=(1, 20, 30), maxshape=(None, 20, 30))
        file.swmr_mode = True
        made.resize(5, axis=0)
        made[...] = frames[:5]
        made.flush()
        np.testing.assert_array_equal(pixels(path), frames[:5])
        with pytest.raises(InputError, match="still open for writing"):
            hdf5.find_frames(str(path), None, closed=True)
    assert len(discover(path)) == 5


# Every pixel of every kind


@pytest.fixture(scope="module")
def matrix():
    path = Path(__file__).parents[2] / "scripts" / "pixel_matrix_hdf5.py"
    spec = importlib.util.spec_from_file_location("pixel_matrix_hdf5", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pixels_are_those_of_h5py_in_some_cells_of_the_matrix(matrix, tmp_path):
    cells = list(matrix.cells())
    for place in np.random.default_rng(18).permutation(len(cells))[:60]:
        (folder := tmp_path / str(place)).mkdir()
        assert not matrix.fault(cells[place], folder), cells[place]
