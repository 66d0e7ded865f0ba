import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.config import validate
from laue_dask.errors import ConfigError, InputError
from laue_dask.io.frames import FrameRef
from laue_dask.io.placement import place_frames
from laue_dask.io.scan_part import ScanPart, take_part

SHAPE = (5, 7)


def whole(order="raster"):
    refs = [FrameRef(f"img_{i:04d}.tif") for i in range(35)]
    path = [(y, x if order == "raster" or y % 2 == 0 else 6 - x) for y in range(5) for x in range(7)]
    return place_frames(refs, shape=SHAPE, positions=[(0.1 * y, 0.2 * x) for y, x in path])


ranges = st.none() | st.tuples(st.integers(0, 3), st.none() | st.integers(4, 5))


@given(rows=ranges, columns=ranges, every=st.integers(1, 3), order=st.sampled_from(["raster", "snake"]))
def test_a_part_is_what_numpy_slices_of_the_whole(rows, columns, every, order):
    scan = whole(order)
    part = take_part(scan, ScanPart(rows, columns, every))
    cut = tuple(slice(*(one or (0, None)), every) for one in (rows, columns))
    frames = np.full(35, -1)
    frames[scan.pattern] = np.arange(35)
    expected = frames.reshape(SHAPE)[cut]
    found = np.full(part.shape[0] * part.shape[1], -1)
    found[part.pattern[part.pattern >= 0]] = np.flatnonzero(part.pattern >= 0)
    assert part.shape == expected.shape
    np.testing.assert_array_equal(found.reshape(part.shape), expected)
    np.testing.assert_array_equal(part.position.reshape(*part.shape, 2), scan.position.reshape(*SHAPE, 2)[cut])
    assert len(part.outside) == 35 - expected.size
    assert not part.left_out


def test_the_whole_stays_as_it_is_and_a_part_says_of_what():
    scan = whole()
    assert take_part(scan, ScanPart()) is scan
    part = take_part(scan, ScanPart((1, 3), None, 2))
    assert part.how.startswith("1 × 4, rows 1:3, every 2 of 5 × 7, raster")
    assert part.as_json([FrameRef("a")] * 35)["part"] == {
        "of": [5, 7], "rows": [1, 3], "columns": None, "every": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (ScanPart((0, 6)), r"--rows 0:6: the scan has 5 rows, 0 to 4"),
        (ScanPart(None, (7, None)), r"--columns 7:: the scan has 7 columns"),
    ],
)
def test_a_part_beyond_the_grid_is_refused(part, says):
    with pytest.raises(InputError, match=says):
        take_part(whole(), part)


def test_a_part_without_a_frame_is_refused():
    refs = [FrameRef(f"img_r{y}_c{x}.tif") for y in range(5) for x in range(7) if y != 2]
    with pytest.raises(InputError, match="rows 2:3: there is no frame in this part"):
        take_part(place_frames(refs, shape=SHAPE), ScanPart((2, 3)))


@pytest.mark.parametrize(
    ("text", "value"),
    [("2:10", (2, 10)), (":3", (0, 3)), (" 4 : ", (4, None)), ([1, 2], (1, 2)), ([0, None], (0, None))],
)
def test_ranges_are_read_as_python_writes_them(text, value):
    assert validate({"scan": {"rows": text}}, "test").scan.rows == value


@pytest.mark.parametrize("text", ["-1:3", "3:3", "5:2", "2", "a:b", "1:2:3", 130, [1], [-1, 2], [1.5, 2], True, "0:0"])
def test_ranges_that_are_none_are_refused_in_one_line(text):
    with pytest.raises(ConfigError, match=r"scan\.columns") as refused:
        validate({"scan": {"columns": text}}, "test")
    assert "\n" not in str(refused.value)
