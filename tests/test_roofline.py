"""`scripts/roofline.py`: the work of convolutions, and the least time that it takes."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import roofline
from roofline import Limits, Work


@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 4),
    filters=st.integers(1, 4),
    window=st.sampled_from([1, 3]),
    side=st.integers(3, 8),
)
def test_the_work_of_a_convolution_is_counted_from_its_definition(n, channels, filters, window, side):
    layer = nn.Conv2d(channels, filters, window)
    [work] = roofline.convolutions(layer, layer, torch.zeros(n, channels, side, side))
    pixels = (side - window + 1) ** 2
    assert work.operations == 2 * n * filters * pixels * channels * window**2
    weights = filters * channels * window**2 + filters
    assert work.bytes == 4 * (n * channels * side**2 + weights + n * filters * pixels)


def test_only_the_convolutions_that_run_count_and_none_is_looked_at_afterwards():
    network = nn.ModuleList([nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 1)])
    patterns = torch.zeros(1, 1, 5, 5)
    assert len(roofline.convolutions(network, network[0], patterns)) == 1
    assert len(roofline.convolutions(network, lambda some: network[2](network[1](network[0](some))), patterns)) == 2
    with pytest.raises(RuntimeError):
        roofline.convolutions(network, network[2], patterns)
    assert not any(layer._forward_hooks for layer in network)


def test_each_layer_takes_as_long_as_the_slower_of_its_arithmetic_and_its_memory():
    limits = Limits(operations=100.0, bytes=10.0)
    assert limits.seconds([Work(100.0, 1.0), Work(1.0, 30.0)]) == pytest.approx(1.0 + 3.0)
    assert limits.seconds([]) == 0


def test_a_device_s_limits_are_rates(monkeypatch):
    for name in ("SIDE", "COPIED"):
        monkeypatch.setattr(roofline, name, {"cpu": 256})
    found = roofline.limits(torch.device("cpu"), 1)
    assert found.operations > 0
    assert found.bytes > 0


def test_the_time_of_a_call_is_that_of_the_best_after_the_first(monkeypatch):
    ticks = iter([0.0, 100.0, 0.0, 3.0, 0.0, 2.0, 0.0, 4.0])
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(ticks))
    assert roofline.best_seconds(lambda: None, torch.device("cpu"), 3) == 2.0
