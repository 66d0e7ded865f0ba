"""Blocks of work."""

import pytest

from laue_dask.io.blocks import LARGEST_BLOCK, SMALLEST_BLOCK, block_size


@pytest.mark.parametrize(("n", "expected"), [(1, 32), (72, 32), (500, 32), (2000, 64), (6000, 256), (10**6, 512)])
def test_blocks_grow_with_the_scan_between_bounds(n, expected):
    assert block_size(n) == expected
    assert SMALLEST_BLOCK <= block_size(n) <= LARGEST_BLOCK
