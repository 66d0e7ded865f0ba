"""Which pages of a TIFF are frames."""

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.errors import FrameError
from laue_dask.io import tiff
from laue_dask.io.frames import FrameRef, discover, load
from laue_dask.io.tiff_pages import Note, chosen_pages, is_no_point

FRAME, MASK, THUMBNAIL = Note((64, 48, 16), False), Note((64, 48, 8), False), Note((8, 6, 16), False)


@pytest.mark.parametrize(
    ("pages", "chosen"),
    [
        ([FRAME] * 5, [0, 1, 2, 3, 4]),
        ([FRAME, THUMBNAIL], [0]),
        ([THUMBNAIL, FRAME], [1]),
        ([FRAME, MASK] * 3, [0, 2, 4]),
        ([FRAME] * 3 + [MASK], [0, 1, 2]),
        ([FRAME, FRAME._replace(no_point=True), FRAME], [0, 2]),
        ([FRAME._replace(no_point=True)] * 2, [0, 1]),
        ([FRAME, FRAME, THUMBNAIL, FRAME], [0, 1, 2, 3]),
        ([FRAME, FRAME, MASK, FRAME, FRAME], [0, 1, 2, 3, 4]),
    ],
)
def test_pages_that_are_no_points_are_left_out_and_no_frame_moves(pages, chosen):
    assert chosen_pages(pages) == chosen


@given(st.lists(st.sampled_from([FRAME, MASK, THUMBNAIL, FRAME._replace(no_point=True)]), min_size=1, max_size=30))
def test_chosen_pages_are_in_order_and_at_least_one(pages):
    chosen = chosen_pages(pages)
    assert chosen
    assert chosen == sorted(set(chosen))


@pytest.mark.parametrize(
    ("name", "none"),
    [
        ("variance", True),
        ("Detector mask", True),
        ("point 12", False),
        ("", False),
        ("img_0001 dark_sample_of_Si at 3 K", False),
    ],
)
def test_name_of_a_page_tells_whether_it_is_a_point(name, none):
    assert is_no_point(name) is none


def write_imagej(path, frames, order):
    """A stack as ImageJ itself writes it: one directory, the images behind one another."""
    text = f"ImageJ=1.53t\nimages={len(frames)}\nslices={len(frames)}\nloop=false\n"
    tifffile.imwrite(path, frames[0], metadata=None, description=text, byteorder=order)
    with path.open("ab") as file:
        file.write(frames[1:].astype(frames.dtype.newbyteorder(order)).tobytes())


@pytest.mark.parametrize("order", ["<", ">"])
def test_stack_of_imagej_in_one_directory_counts_as_what_it_holds(tmp_path, order):
    frames = np.arange(6 * 40 * 32, dtype=np.uint16).reshape(6, 40, 32)
    write_imagej(tmp_path / "a.tif", frames, order)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), frames)
    refs = discover(tmp_path / "a.tif")
    assert len(refs) == 6
    np.testing.assert_array_equal(np.stack([load(ref)[0] for ref in refs]), frames)


def test_cut_stack_of_imagej_keeps_the_places_of_its_frames(tmp_path):
    frames = np.arange(6 * 40 * 32, dtype=np.uint16).reshape(6, 40, 32)
    write_imagej(tmp_path / "a.tif", frames, ">")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: -2 * 40 * 32 * 2 - 100])
    refs = discover(tmp_path / "a.tif")
    assert len(refs) == 6
    np.testing.assert_array_equal(load(refs[2])[0], frames[2])
    with pytest.raises(FrameError, match="truncated"):
        load(refs[4])


def test_copy_of_one_image_of_a_stack_is_one_frame_whatever_its_description_says(tmp_path):
    frame = np.arange(40 * 32, dtype=np.uint16).reshape(40, 32)
    tifffile.imwrite(tmp_path / "a.tif", frame, metadata=None, description="ImageJ=1.53t\nimages=24\nslices=24\n")
    assert discover(tmp_path / "a.tif") == [FrameRef(str(tmp_path / "a.tif"))]
    np.testing.assert_array_equal(load(FrameRef(str(tmp_path / "a.tif")))[0], frame)


def test_stack_that_is_written_again_is_looked_at_again(tmp_path):
    for count in (3, 5):
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            for i in range(count):
                writer.write(np.full((20, 20), i, np.uint16), contiguous=False, metadata=None)
        with (tmp_path / "a.tif").open("rb") as file:
            assert tiff.count(file) == count
