import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.io.frames import FrameRef
from laue_dask.io.geometry import acquisition, resolve_grid
from laue_dask.io.numbering import acquired


@given(st.lists(st.integers(0, 99_999), min_size=1, max_size=50, unique=True))
def test_a_missing_number_leaves_its_place_free(numbers: list[int]) -> None:
    numbers.sort()
    refs = [FrameRef(f"scan 1/größe_{n:05d}.tif") for n in numbers]
    np.testing.assert_array_equal(acquired(refs), np.array(numbers) - numbers[0])


@pytest.mark.parametrize(
    "refs",
    [
        [FrameRef("a_1.tif"), FrameRef("b_2.tif"), FrameRef("b_9.tif")],
        [FrameRef("l_01/a_1.tif"), FrameRef("l_02/a_1.tif"), FrameRef("l_02/a_5.tif")],
        [FrameRef("s_7.h5", "/d", 0), FrameRef("s_7.h5", "/d", 1), FrameRef("s_7.h5", "/d", 2)],
        [FrameRef("a_3.tif"), FrameRef("a_1.tif"), FrameRef("a_9.tif")],
        [FrameRef("x.tif"), FrameRef("y.tif"), FrameRef("z_4.tif")],
    ],
)
def test_names_that_do_not_number_frames_say_nothing(refs: list[FrameRef]) -> None:
    np.testing.assert_array_equal(acquired(refs), [0, 1, 2])


@pytest.mark.parametrize("order", ["raster", "snake"])
def test_frames_after_a_missing_file_keep_their_place(order: str) -> None:
    kept = np.delete(np.arange(20), [3, 11])
    grid = resolve_grid(18, shape=(4, 5), order=order, acquired=kept)
    np.testing.assert_array_equal(grid.pattern, acquisition((4, 5), order)[kept])
    assert "2 missing" in grid.how


def test_numbers_that_run_past_the_grid_are_not_places() -> None:
    grid = resolve_grid(4, shape=(2, 2), acquired=np.array([0, 10, 20, 30]))
    np.testing.assert_array_equal(grid.pattern, [0, 1, 2, 3])
