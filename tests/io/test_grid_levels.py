"""Evenly spaced levels among stage coordinates, of whatever unit."""

import numpy as np
import pytest

from laue_dask.io.grid_levels import best_grid


@pytest.mark.parametrize("step", [1e-250, 1e-6, 1.0, 1e250])
def test_a_grid_is_found_whatever_the_unit(step):
    y, x = (step * axis.ravel() for axis in np.meshgrid(np.arange(4.0), np.arange(5.0), indexing="ij"))
    found = best_grid(y, x)
    assert found is not None
    assert [levels.count for levels in found] == [4, 5]
    np.testing.assert_allclose([levels.step for levels in found], step)
