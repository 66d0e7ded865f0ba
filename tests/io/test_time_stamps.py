"""Times in file names order frames; counters behind a date do not become times."""

import pytest

from laue_dask.errors import InputError
from laue_dask.io.frames import FrameRef
from laue_dask.io.placement import place_frames
from laue_dask.io.time_stamps import are_times

STAMPS = ["114956", "114957", "114959", "115000", "115002", "115003"]


def refs(stamps):
    return [FrameRef(f"/scan/img_20261201_{stamp}.tif") for stamp in stamps]


@pytest.mark.parametrize(
    ("texts", "before", "separator", "expected"),
    [
        (STAMPS, "20261201", "_", True),
        (STAMPS, "20261301", "_", False),
        (STAMPS, "20261201", "_frame_", False),
        (["000057", "000059", "000101"], "20261201", "_", True),
        (["000057", "000059", "000162"], "20261201", "_", False),
        (["000001", "000002", "000004"], "20261201", "_", False),
        (["114960", "114961"], "20261201", "_", False),
        (["20261201114958", "20261201115001"], "", "img_", True),
    ],
)
def test_times_are_told_from_counters(texts, before, separator, expected):
    assert are_times(texts, before, separator) is expected


def test_a_complete_scan_is_taken_in_the_order_of_the_times_and_says_so():
    found = place_frames(refs(STAMPS), shape=(2, 3))
    assert found.pattern.tolist() == list(range(6))
    assert "in the order of the times in their names" in found.line


@pytest.mark.parametrize("listed", [True, False])
def test_times_do_not_tell_which_frame_is_missing(listed):
    with pytest.raises(InputError, match="5 of 6 frames are there and the times in their names do not tell"):
        place_frames(refs(STAMPS[:2] + STAMPS[3:]), shape=(2, 3), listed=listed)


def test_rows_numbered_from_far_are_counted_from_there():
    names = [FrameRef(f"/scan/r{y}_c{x}.tif") for y in range(301, 304) for x in range(301, 305)]
    found = place_frames(names)
    assert found.shape == (3, 4)
    assert "rows counted from 301, columns counted from 301" in found.line


def test_points_of_lines_called_so_may_run_back():
    names = [FrameRef(f"/scan/line{y}_point{x}.tif") for y in range(3) for x in range(4)]
    assert place_frames(names, shape=(3, 4), order="snake").pattern.tolist() == [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11]
