import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.config import ClusteringConfig
from laue_dask.errors import InputError
from laue_dask.pipeline.stages.specimen import SpecimenMap, require_enough_patterns, usable
from laue_dask.runtime.progress import QuietProgress

QUIET = QuietProgress()
CONFIG = ClusteringConfig(score_k=(2, 5), n_init=2)


def clouds(n=60, width=6, seed=0):
    """Points (n, width) of three clouds that are far apart."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, width)) + 40 * np.eye(3, width)[np.arange(n) % 3]).astype(np.float32)


@given(data=st.data())
def test_painting_puts_each_value_at_its_pattern_and_the_fill_elsewhere(data):
    ny, nx = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=ny * nx, max_size=ny * nx)))
    where = SpecimenMap(valid, (ny, nx))
    values = np.arange(100, 100 + valid.sum())
    painted = where.paint(values, fill=-1)
    assert painted.shape == (ny, nx)
    np.testing.assert_array_equal(painted.ravel()[valid], values)
    assert (painted.ravel()[~valid] == -1).all()
    np.testing.assert_array_equal(where.patterns, [i for i in range(ny * nx) if valid[i]])
    assert where.paint(np.zeros((valid.sum(), 3)), fill=0).shape == (ny, nx, 3)


def test_enough_patterns_are_accepted():
    require_enough_patterns(4, (2, 3))
    require_enough_patterns(4, ())


def test_only_valid_rows_are_used():
    values = clouds(6)
    valid = np.array([True, False, True, True, True, True])
    values[1] = np.nan
    found = usable(da.from_array(values, chunks=2), SpecimenMap(valid, (2, 3)))
    np.testing.assert_array_equal(found.compute(scheduler="synchronous"), values[valid])


@pytest.mark.parametrize(("count", "k"), [(0, ()), (3, ()), (4, (4,)), (12, (3, 40))])
def test_too_few_patterns_are_refused_with_both_numbers(count, k):
    with pytest.raises(InputError, match=rf"\b{count} usable pattern"):
        require_enough_patterns(count, k)
