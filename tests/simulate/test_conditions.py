import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.simulate.conditions import Conditions, SmoothVariation, smooth_variation

LEVEL = st.floats(0, 10)


@given(low=LEVEL, width=LEVEL, seed=st.integers(0, 1000), y=st.floats(0, 1), x=st.floats(0, 1))
def test_wandering_factor_stays_between_its_ends_and_is_smooth(low, width, seed, y, x):
    factor = smooth_variation(low, low + width, np.random.default_rng(seed))
    assert low - 1e-9 <= factor.at((y, x)) <= low + width + 1e-9
    assert abs(factor.at((y, x)) - factor.at((y + 1e-3, x))) <= 0.02 * width + 1e-9


@given(seed=st.integers(0, 1000), y=st.floats(0, 1), x=st.floats(0, 1))
def test_what_drifts_with_time_is_the_same_along_a_row(seed, y, x):
    factor = smooth_variation(0.5, 1.5, np.random.default_rng(seed), along_x=False)
    assert factor.at((y, x)) == factor.at((y, 0))


def test_it_does_wander():
    factor = smooth_variation(0.5, 1.5, np.random.default_rng(0), along_x=False)
    assert np.ptp([factor.at((y, 0)) for y in np.linspace(0, 1, 50)]) > 0.2


def test_usual_conditions_change_nothing():
    usual = Conditions()
    assert usual.time * usual.beam.at((0.3, 0.7)) * usual.background.at((0.9, 0.1)) == 1.0
    assert SmoothVariation(3.0, 3.0).at((0.2, 0.2)) == pytest.approx(3.0)
