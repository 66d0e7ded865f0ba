"""What a device allows convolutions: its arithmetic, or its memory where that is slower.

This is the roofline model of Williams, Waterman and Patterson (2009): a layer takes no less than its multiplications
and additions at the device's highest rate, and no less than reading its input and weights and writing its output at the
highest bandwidth. Both rates are measured, with a product of two large matrices and with a copy. Operations are counted
as a convolution is defined; Winograd's algorithm takes fewer, so that a device may come out ahead of it.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows of the matrices, by kind of device."""

COPIED = {"cpu": 2**27, "cuda": 2**30}
"""Bytes that are copied: more than its caches hold."""


@dataclass(frozen=True)
class Work:
    """Of one layer: operations of its arithmetic (to multiply and to add are two), and bytes that it moves."""

    operations: float
    bytes: float


@dataclass(frozen=True)
class Limits:
    """Of a device: operations/s and bytes/s."""

    operations: float
    bytes: float

    def seconds(self, works: Iterable[Work]) -> float:
        """The least time for layers that run one after another."""
        return sum(max(work.operations / self.operations, work.bytes / self.bytes) for work in works)


def convolutions(network: nn.Module, function: Callable[[Tensor], Any], patterns: Tensor) -> list[Work]:
    """The work of each `nn.Conv2d` of a network while a function of it runs on some patterns."""
    found: list[Work] = []

    def look(layer: nn.Conv2d, given: tuple[Tensor, ...], result: Tensor) -> None:
        moved = given[0].numel() + result.numel() + sum(parameter.numel() for parameter in layer.parameters())
        window = layer.weight[0].numel()
        found.append(Work(2.0 * result.numel() * window, float(moved * result.element_size())))

    hooks = [layer.register_forward_hook(look) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    try:
        with torch.inference_mode():
            function(patterns)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def limits(device: torch.device, turns: int) -> Limits:
    """Measure a device, with the arithmetic that is asked for where this is called."""
    side, size = SIDE[device.type], COPIED[device.type]
    # Not of ones: a GPU is faster where few bits change.
    matrix = torch.rand((side, side), device=device)
    source = torch.rand(size // 4, device=device)
    target = torch.empty_like(source)
    multiplied = best_seconds(lambda: matrix @ matrix, device, turns)
    copied = best_seconds(lambda: target.copy_(source), device, turns)
    return Limits(2.0 * side**3 / multiplied, 2.0 * size / copied)


def best_seconds(function: Callable[[], Any], device: torch.device, turns: int) -> float:
    """Seconds of the best of so many calls, each to its end, after one that does not count."""
    taken = []
    with torch.inference_mode():
        for _ in range(1 + turns):
            _finish(device)
            begun = time.perf_counter()
            function()
            _finish(device)
            taken.append(time.perf_counter() - begun)
    return min(taken[1:])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
