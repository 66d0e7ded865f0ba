"""Send patterns through a network, batch by batch, on a CPU or a GPU.

On a GPU two batches are under way: while one is computed, the next is copied from page-locked memory by a stream of its
own. On a CPU the same lanes are mere memory.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laue_dask.errors import ComputeError
from laue_dask.schema import PATTERN_SIZE

logger = logging.getLogger(__name__)

N_BATCHES_IN_FLIGHT = 2
"""Batches under way: one is computed while another is copied."""

MIN_SPEEDUP = 1.05
"""Factor in patterns/s for which a larger batch is worth its memory."""

N_TIMED_BATCHES = 3

Function = Callable[[Tensor], Tensor]
"""Patterns (n, 1, 128, 128) float32 in [0, 1] → (n, …)."""


@torch.inference_mode()
def in_batches(
    function: Function,
    patterns: NDArray[np.uint8],
    shape: tuple[int, ...],
    device: torch.device,
    batch_size: int,
    precision: str,
) -> NDArray[np.float32]:
    """Apply `function` to batches of one size; the size halves where a GPU's memory does not hold a batch.

    The last batch is filled up with empty patterns: the arithmetic of a convolution may depend on the size of its
    batch, and a pattern's features must not depend on how many patterns came with it.

    Parameters
    ----------
    patterns : (n, 128, 128)
    shape
        Of what `function` makes of a pattern.
    precision
        Of the arithmetic, `float32` or `bfloat16`.

    Returns
    -------
    result : (n, *shape) float32

    Raises
    ------
    ComputeError
        The device has no memory for a single pattern.
    """
    result = np.empty((len(patterns), *shape), dtype=np.float32)
    start = 0
    while start < len(patterns):
        lanes = [_TransferBuffer(batch_size, patterns.shape[1:], shape, device) for _ in range(N_BATCHES_IN_FLIGHT)]
        try:
            for number, begin in enumerate(range(start, len(patterns), batch_size)):
                lane = lanes[number % N_BATCHES_IN_FLIGHT]
                lane.collect(result)
                lane.send(patterns, begin, function, precision)
                start = begin + batch_size
        except torch.cuda.OutOfMemoryError as error:
            if batch_size == 1:
                raise ComputeError(
                    f"{device}: there is no memory for a single pattern: is another program using the device?"
                ) from error
            batch_size //= 2
            _warn_of_smaller_batch(str(device), batch_size)
        for lane in lanes:
            lane.collect(result)
        if start < len(patterns):
            del lane, lanes  # what is given back to the GPU must not be held here
            torch.cuda.empty_cache()
    return result


def fastest_size(
    function: Function, shape: tuple[int, ...], device: torch.device, precision: str, sizes: Sequence[int]
) -> int:
    """Return the size of batches from which on larger ones gain nothing, or do not fit into the memory.

    Parameters
    ----------
    shape
        See `in_batches`.
    sizes
        That are tried, from the smallest on.
    """
    best, rate = sizes[0], 0.0
    for size in sizes:
        try:
            found = _rate(function, shape, device, size, precision)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if found < MIN_SPEEDUP * rate:
            break
        best, rate = size, found
    return best


@contextmanager
def arithmetic(device: torch.device, precision: str) -> Iterator[None]:
    """What convolutions and products are computed in: `float32` or `bfloat16`.

    On a GPU PyTorch may take TF32 for float32, whose 10 bits move features, and a point between two clusters with them.
    Here float32 is float32, and batches of one size have the same bits each time on a GPU of one kind.
    """
    with ExitStack() as entered:
        bfloat16 = precision == "bfloat16"
        entered.enter_context(torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16))
        if device.type == "cuda":
            products = torch.backends.cuda.matmul
            entered.callback(setattr, products, "allow_tf32", products.allow_tf32)
            products.allow_tf32 = False
            exact = torch.backends.cudnn.flags(
                enabled=True, deterministic=True, allow_tf32=False, fp32_precision="ieee"
            )
            entered.enter_context(exact)
        yield


@torch.inference_mode()
def _rate(function: Function, shape: tuple[int, ...], device: torch.device, size: int, precision: str) -> float:
    """Patterns/s of the best of a few turns with batches of one size, after one that does not count."""
    patterns = np.zeros((N_BATCHES_IN_FLIGHT * size, PATTERN_SIZE, PATTERN_SIZE), np.uint8)
    result = np.empty((len(patterns), *shape), np.float32)
    taken = []
    for _ in range(N_TIMED_BATCHES + 1):
        begun = time.perf_counter()
        lanes = [_TransferBuffer(size, patterns.shape[1:], shape, device) for _ in range(N_BATCHES_IN_FLIGHT)]
        for number, lane in enumerate(lanes):
            lane.send(patterns, number * size, function, precision)
        for lane in lanes:
            lane.collect(result)
        taken.append(time.perf_counter() - begun)
    return len(patterns) / min(taken[1:])


class _TransferBuffer:
    """Memory for one batch at a time on its way to the device and back."""

    def __init__(self, batch_size: int, frame: tuple[int, ...], shape: tuple[int, ...], device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._device, self._begin, self._count = device, 0, 0
        self._patterns = torch.zeros((batch_size, 1, *frame), dtype=torch.uint8, pin_memory=on_gpu)
        self._result = torch.empty((batch_size, *shape), dtype=torch.float32, pin_memory=on_gpu)
        self._copying = _copying_stream(str(device)) if on_gpu else None
        self._done = torch.cuda.Event() if on_gpu else None

    def send(self, patterns: NDArray[np.uint8], begin: int, function: Function, precision: str) -> None:
        """Begin with the batch from pattern `begin` on; a GPU goes on with it after this returns."""
        part = patterns[begin : begin + len(self._patterns)]
        self._patterns[: len(part), 0] = torch.from_numpy(np.ascontiguousarray(part))
        self._patterns[len(part) :] = 0
        batch = self._there().float().div_(255)
        with arithmetic(self._device, precision):
            output = function(batch)
        self._result.copy_(output, non_blocking=True)
        if self._done is not None:
            self._done.record()
        self._begin, self._count = begin, len(part)

    def collect(self, result: NDArray[np.float32]) -> None:
        """Put what came of the last batch into its place, when it is there."""
        if self._count:
            if self._done is not None:
                self._done.synchronize()
            result[self._begin : self._begin + self._count] = self._result[: self._count].numpy()
        self._count = 0

    def _there(self) -> Tensor:
        """The batch on the device."""
        if self._copying is None:
            return self._patterns
        with torch.cuda.stream(self._copying):
            there = self._patterns.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copying)
        there.record_stream(computing)
        return there


@lru_cache(maxsize=8)
def _copying_stream(device: str) -> torch.cuda.Stream:
    """The one for this device: memory that a stream has had is not another's."""
    return torch.cuda.Stream(device)


@lru_cache(maxsize=64)
def _warn_of_smaller_batch(device: str, batch_size: int) -> None:
    """Say once per process that batches became smaller."""
    logger.warning(
        "%s: out of memory; encoding goes on with batches of %d: features may differ in their last digits from "
        "those of larger "
        "ones; encoder.batch_size = %d avoids it",
        device,
        batch_size,
        batch_size,
    )
