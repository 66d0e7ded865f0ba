"""Rows of arrays on disk, whichever and in whatever order."""

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.io import block_reader


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Rows on disk, blocks of 100, and the same in memory."""
    values = np.arange(350 * 3, dtype=np.float32).reshape(350, 3)
    array = zarr.create_array(
        tmp_path_factory.mktemp("stored") / "a", shape=values.shape, chunks=(20, 3), shards=(100, 3), dtype="f4"
    )
    array[:] = values
    return array, values


@given(st.lists(st.integers(0, 349), max_size=60))
def test_any_rows_are_read_in_the_order_they_are_asked_for(table, rows):
    array, values = table
    found = block_reader.read_rows(array, np.array(rows, np.int64))
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values[rows])


@given(st.integers(0, 350), st.integers(0, 350))
def test_slices_are_read(table, start, stop):
    array, values = table
    np.testing.assert_array_equal(block_reader.read_rows(array, slice(start, stop)), values[start:stop])


def test_no_more_than_a_block_is_read_at_once_and_near_rows_together(table, monkeypatch):
    array, values = table
    asked = []

    class Watched:
        shape, dtype = array.shape, array.dtype

        def __getitem__(self, rows):
            asked.append((rows.start, rows.stop))
            return array[rows]

    rows = np.array([250, 3, 10, 99, 100, 101, 3, 200, 349])
    np.testing.assert_array_equal(block_reader._read_stretches(Watched(), rows, 100), values[rows])
    assert asked == [(3, 11), (99, 100), (100, 102), (200, 251), (349, 350)]


@pytest.mark.parametrize("rows", [[350], [-1], [0, 400]])
def test_rows_that_are_not_there_are_refused(table, rows):
    array, _ = table
    with pytest.raises(IndexError, match="of 350"):
        block_reader.read_rows(array, np.array(rows))
