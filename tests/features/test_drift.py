import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from laue_dask.features.drift import MAX_SHARE_BEYOND_Q99, Drift, reference
from laue_dask.features.losses import unexplained

REFERENCE = {"error_q50": 0.5, "error_q95": 0.8, "error_q99": 0.9}

pixels = hnp.arrays(np.float32, (3, 1, 16, 16), elements=st.floats(0, 1, width=32))


def patterns(seed, *, bright, n=4):
    """Patterns (n, 1, 32, 32) with that share of their pixels bright."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.where(rng.random((n, 1, 32, 32)) < bright, 0.9, 0.02).astype(np.float32))


@given(pixels)
def test_a_perfect_reconstruction_leaves_nothing_and_the_best_constant_everything(values):
    target = torch.from_numpy(values)
    level = target.mean((1, 2, 3), keepdim=True).expand_as(target)
    varied = target.var((1, 2, 3)) > 1e-3
    perfect, constant = unexplained(target.logit(eps=1e-7), target), unexplained(level.logit(eps=1e-7), target)
    np.testing.assert_allclose(perfect[varied], 0, atol=2e-3)
    np.testing.assert_allclose(constant[varied], 1, atol=2e-3)


@given(pixels, st.floats(0.05, 1))
def test_no_constant_image_is_better_than_1(values, level):
    target = torch.from_numpy(values)
    logits = torch.full_like(target, level).logit(eps=1e-4)
    found = unexplained(logits, target)
    assert not (found[target.var((1, 2, 3)) > 1e-3] < 1 - 2e-3).any()


def test_the_number_of_bright_pixels_does_not_matter_where_the_cross_entropy_does():
    few, many = patterns(0, bright=0.02), patterns(1, bright=0.3)

    def half_drawn(target):
        """The left half as it is, nothing to the right of it."""
        drawn = target.mean((1, 2, 3), keepdim=True).expand_as(target).clone()
        drawn[..., :16] = target[..., :16]
        return drawn.logit()

    shares = [float(unexplained(half_drawn(p), p).mean()) for p in (few, many)]
    losses = [float(torch.nn.functional.binary_cross_entropy_with_logits(half_drawn(p), p)) for p in (few, many)]
    assert losses[1] > 2 * losses[0]
    assert shares == pytest.approx([0.5, 0.5], abs=0.1)


def test_a_pattern_that_shows_nothing_has_no_error():
    target = torch.zeros(2, 1, 8, 8)
    target[1, 0, 3, 3] = 1
    found = unexplained(torch.zeros_like(target), target)
    assert torch.isnan(found).tolist() == [True, False]


def test_the_reference_is_of_the_finite_errors():
    errors = np.concatenate([np.linspace(0, 1, 1001), [np.nan, np.inf]]).astype(np.float32)
    np.random.default_rng(0).shuffle(errors)
    assert reference(errors) == pytest.approx({"error_q50": 0.5, "error_q95": 0.95, "error_q99": 0.99}, abs=1e-6)
    assert reference(np.full(3, np.nan, dtype=np.float32)) == {}


def test_patterns_of_the_training_s_kind_are_not_warned_of():
    errors = np.random.default_rng(0).normal(0.5, 0.1, (40, 50)).astype(np.float32)
    found = Drift.between(errors, reference(errors))
    assert found.patterns == 2000
    assert found.beyond == pytest.approx(0.01, abs=0.002)
    assert found.warning is None


def test_a_scan_beyond_the_training_is_warned_of_with_both_values_and_what_to_do():
    errors = np.full((4, 5), np.nan, dtype=np.float32)
    errors[:2] = [0.4, 0.6, 0.7, 0.91, 0.95]
    found = Drift.between(errors, REFERENCE)
    assert (found.patterns, found.beyond) == (10, 0.4)
    assert found.warning.startswith("40 % of 10 patterns")
    for part in ("0.900", "0.700", "0.500", "laue-dask run … --extractor pixels"):
        assert part in found.warning
    assert "\n" not in found.warning


@given(st.integers(0, 100))
def test_the_warning_begins_above_the_largest_share(beyond):
    errors = np.where(np.arange(100) < beyond, 1.0, 0.1).astype(np.float32)
    found = Drift.between(errors, REFERENCE)
    assert (found.warning is not None) == (beyond / 100 > MAX_SHARE_BEYOND_Q99)


@pytest.mark.parametrize("known", [{}, {"error_q50": 0.5}])
def test_weights_without_a_reference_say_nothing(known):
    assert Drift.between(np.ones((2, 2), dtype=np.float32), known) is None


def test_a_scan_without_errors_says_nothing():
    assert Drift.between(np.full((2, 2), np.nan, dtype=np.float32), REFERENCE) is None
