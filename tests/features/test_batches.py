import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.errors import ComputeError
from laue_dask.features import batches, weights
from laue_dask.features.batches import arithmetic, fastest_size, in_batches

CPU = torch.device("cpu")


def spots(seed, n):
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (n, 128, 128)) * (rng.random((n, 128, 128)) < 0.01)).astype(np.uint8)


@settings(max_examples=20)
@given(n=st.integers(0, 20), batch_size=st.integers(1, 9))
def test_each_pattern_s_result_is_in_its_place_and_all_batches_have_one_size(n, batch_size):
    sizes = []

    def function(some):
        sizes.append(tuple(some.shape))
        return torch.stack([some.sum((1, 2, 3)), some.amax((1, 2, 3))], dim=1)

    patterns = spots(n, n)
    found = in_batches(function, patterns, (2,), CPU, batch_size, "float32")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], patterns.sum((1, 2)) / 255, rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], patterns.max((1, 2), initial=0) / 255, rtol=1e-6)
    assert sizes == [(batch_size, 1, 128, 128)] * -(-n // batch_size)


def test_what_a_lane_held_before_is_not_seen_in_a_batch_that_is_not_full():
    patterns = np.full((5, 128, 128), 255, dtype=np.uint8)
    seen = []

    def function(some):
        seen.append(some.sum((1, 2, 3)).tolist())
        return some[:, 0, :1, 0]

    in_batches(function, patterns, (1,), CPU, 2, "float32")
    full = 128.0**2
    assert seen == [[full, full], [full, full], [full, 0.0]]


def test_patterns_that_do_not_lie_side_by_side_are_taken():
    patterns = spots(1, 12)[::-2]
    found = in_batches(lambda some: some.sum((1, 2, 3))[:, None], patterns, (1,), CPU, 4, "float32")
    np.testing.assert_allclose(found[:, 0], patterns.sum((1, 2)) / 255, rtol=1e-5)


class Memory:
    """A device that holds so many patterns at a time."""

    def __init__(self, fits):
        self.fits, self.sizes = fits, []

    def __call__(self, patterns):
        self.sizes.append(len(patterns))
        if len(patterns) > self.fits:
            raise torch.cuda.OutOfMemoryError
        return patterns.sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("fits", [5, 1])
def test_the_batch_halves_until_it_fits_into_the_memory(fits):
    function = Memory(fits)

    patterns = spots(3, 11)
    found = in_batches(function, patterns, (1,), torch.device("cpu"), 8, "float32")
    np.testing.assert_allclose(found[:, 0], patterns.sum((1, 2)) / 255, rtol=1e-5)
    assert function.sizes[:2] == [8, 4]
    with pytest.raises(ComputeError, match="no memory for a single pattern"):
        in_batches(Memory(0), patterns, (1,), torch.device("cpu"), 8, "float32")


def test_what_was_computed_before_the_memory_ran_out_is_kept():
    calls = []

    def function(some):
        calls.append(len(some))
        if len(calls) == 3:
            raise torch.cuda.OutOfMemoryError
        return some.sum((1, 2, 3))[:, None]

    patterns = spots(4, 13)
    found = in_batches(function, patterns, (1,), CPU, 4, "float32")
    np.testing.assert_allclose(found[:, 0], patterns.sum((1, 2)) / 255, rtol=1e-5)
    assert calls == [4, 4, 4, 2, 2, 2]


class Event:
    """Of a GPU that is none: it says in which order it was used."""

    def record(self):
        LOG.append("record")

    def synchronize(self):
        LOG.append("synchronize")


LOG = []


def test_on_a_gpu_a_batch_is_sent_before_the_one_before_is_collected(monkeypatch):
    LOG.clear()
    gpu = torch.device("cuda")
    lane = batches._TransferBuffer
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(batches._TransferBuffer, "_there", lambda self: self._patterns)
    made = lane.__init__

    def init(self, batch_size, frame, shape, device):
        made(self, batch_size, frame, shape, CPU)
        self._device, self._done = gpu, Event()

    monkeypatch.setattr(lane, "__init__", init)

    def function(some):
        LOG.append("compute")
        assert asked_of_a_gpu() == (False, False, True)
        return some.sum((1, 2, 3))[:, None]

    patterns = spots(5, 8)
    found = in_batches(function, patterns, (1,), gpu, 2, "float32")
    np.testing.assert_allclose(found[:, 0], patterns.sum((1, 2)) / 255, rtol=1e-5)
    sent = ["compute", "record"]
    assert [*sent, *sent, "synchronize", *sent, "synchronize", *sent, "synchronize", "synchronize"] == LOG


class Stopwatch:
    """Passes by what the device would have taken."""

    def __init__(self, seconds):
        self.now, self.seconds, self.tried = 0.0, seconds, []

    def function(self, some):
        self.tried.append(len(some))
        self.now += self.seconds(len(some))
        return some.sum((1, 2, 3))[:, None]

    def perf_counter(self):
        return self.now


def out_of_memory_beyond(most, seconds):
    def found(size):
        if size > most:
            raise torch.cuda.OutOfMemoryError
        return seconds(size)

    return found


@pytest.mark.parametrize(
    ("seconds", "size"),
    [
        (lambda size: size, 2),  # a pattern costs the same in any batch: the smallest
        (lambda size: 10 + size, 16),  # ever less in larger ones
        (lambda size: 1 if size < 8 else size, 4),  # more in larger ones, whatever those beyond would do
        (lambda size: size**0.97, 2),  # what is gained is not worth the memory
        (out_of_memory_beyond(8, lambda size: 10), 8),
        (out_of_memory_beyond(1, lambda size: 10), 2),  # to be halved when it comes to that
    ],
)
def test_the_fastest_size_is_found_by_trying(monkeypatch, seconds, size):
    watch = Stopwatch(seconds)
    monkeypatch.setattr(batches.time, "perf_counter", watch.perf_counter)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert fastest_size(watch.function, (1,), CPU, "float32", (2, 4, 8, 16)) == size
    assert set(watch.tried) <= {2, 4, 8, 16}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_what_the_cpu_gives_and_the_same_bits_each_time():
    patterns = spots(6, 300)
    cpu, gpu = (weights.load("default")[0].to(device) for device in (CPU, torch.device("cuda")))
    shape = (cpu.architecture.latent,)
    found = in_batches(gpu.encode, patterns, shape, torch.device("cuda"), 32, "float32")
    np.testing.assert_allclose(found, in_batches(cpu.encode, patterns, shape, CPU, 32, "float32"), atol=2e-5)
    again = in_batches(gpu.encode, patterns, shape, torch.device("cuda"), 32, "float32")
    np.testing.assert_array_equal(found, again)


def asked_of_a_gpu():
    backends = torch.backends
    return backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.deterministic


def test_a_gpu_is_asked_for_float32_and_for_kernels_that_are_deterministic():
    before = asked_of_a_gpu()
    with arithmetic(torch.device("cuda"), "float32"):
        assert asked_of_a_gpu() == (False, False, True)
        assert torch.backends.cudnn.enabled
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert not torch.is_autocast_enabled("cuda")
    assert asked_of_a_gpu() == before


def test_tf32_that_was_asked_for_is_asked_for_again_afterwards():
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    products.allow_tf32 = True
    try:
        with arithmetic(torch.device("cuda"), "float32"):
            assert not products.allow_tf32
        assert products.allow_tf32
    finally:
        products.allow_tf32 = before


def test_convolutions_are_computed_in_what_is_asked_for():
    layer, some = torch.nn.Conv2d(1, 1, 3), torch.zeros(1, 1, 4, 4)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with torch.inference_mode(), arithmetic(CPU, precision):
            assert layer(some).dtype == dtype
