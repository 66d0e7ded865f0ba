import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter, maximum_filter
from torch import nn

from laue_dask.features.architecture import ARCHITECTURES, Architecture
from laue_dask.features.network import BrightestPeaks, PatternSketch, Sketch, Smoothing, build, strength

SIDE = 128
TINY = Architecture(name="tiny", channels=(4, 8, 8, 8, 8), latent=16)
SKETCHED = Architecture(
    name="sketched", channels=(4, 8, 8, 8), unshuffle=2, batch_norm=True, smoothing=1.0, unit_latent=True, latent=256
).model_copy(update={"sketch": 64, "sketch_length": 0.7, "dropout": 0.0})


def spots(rng, n, *, per_pattern=12):
    patterns = np.zeros((n, 1, SIDE, SIDE), dtype=np.float32)
    for pattern in patterns:
        rows, columns = rng.integers(0, SIDE, (2, per_pattern))
        pattern[0, rows, columns] = rng.uniform(0.05, 1, per_pattern)
    return patterns


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), sigma=st.floats(0.3, 3.0))
def test_smoothing_is_scipy_s_gaussian_filter_times_the_gain_clipped_at_1(seed, sigma):
    patterns = spots(np.random.default_rng(seed), 1)
    smoothing = Smoothing(sigma)
    radius = max(1, math.ceil(3 * sigma))
    wanted = gaussian_filter(patterns[0, 0].astype(np.float64), sigma, mode="constant", radius=radius)
    wanted = np.minimum(smoothing.GAIN * wanted, 1)
    np.testing.assert_allclose(smoothing(torch.from_numpy(patterns))[0, 0].numpy(), wanted, atol=1e-6)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), sigma=st.floats(0.1, 8.0), n=st.integers(0, 3))
def test_smoothing_block_by_block_is_the_product_of_the_whole_matrices(seed, sigma, n):
    patterns = torch.from_numpy(spots(np.random.default_rng(seed), n))
    smoothing = Smoothing(sigma)
    wanted = (smoothing.matrix @ patterns @ smoothing.matrix).clamp(max=1.0)
    torch.testing.assert_close(smoothing(patterns), wanted, rtol=0, atol=1e-6)


def test_smoothing_is_the_same_bits_for_any_number_of_threads_and_any_place_in_the_batch():
    patterns = torch.from_numpy(spots(np.random.default_rng(0), 32, per_pattern=200))
    smoothing = Smoothing(1.0)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found += [smoothing(patterns), smoothing(patterns.flip(0)).flip(0)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize(("sigma", "radius"), [(1.0, 3), (1.5, 5), (0.2, 1)])
def test_a_spot_is_widened_no_further_than_three_sigmas_and_keeps_its_integral_times_the_gain(sigma, radius):
    smoothing = Smoothing(sigma)
    spot = torch.zeros(1, 1, SIDE, SIDE)
    spot[..., 64, 40] = 0.25
    rows, columns = np.nonzero(smoothing(spot)[0, 0].numpy())
    assert abs(rows - 64).max() <= radius
    assert abs(columns - 40).max() <= radius
    assert float(smoothing(spot).sum()) == pytest.approx(0.25 * smoothing.GAIN, rel=1e-5)


def test_smoothing_has_nothing_to_learn_or_to_store():
    smoothing = Smoothing(1.0)
    assert not list(smoothing.parameters())
    assert not smoothing.state_dict()


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_shapes_are_those_of_section_3_1(name):
    architecture = ARCHITECTURES[name]
    model = build(architecture, seed=0).eval()
    with torch.inference_mode():
        latent, logits = model(torch.from_numpy(spots(np.random.default_rng(0), 2)))
    assert architecture.name == name
    assert latent.shape == (2, architecture.latent)
    assert logits.shape == (2, 1, SIDE, SIDE)


@settings(max_examples=10)
@given(
    shape=st.sampled_from([1, 2, 4, 8]).flatmap(
        lambda unshuffle: st.tuples(
            st.just(unshuffle), st.lists(st.integers(1, 6), min_size=1, max_size=8 - unshuffle.bit_length())
        )
    ),
    latent=st.integers(1, 20),
    batch_norm=st.booleans(),
    dropout=st.sampled_from([0.0, 0.2]),
    smoothing=st.sampled_from([0.0, 1.0]),
    unit_latent=st.booleans(),
)
def test_any_architecture_mirrors_itself(shape, **values):
    unshuffle, channels = shape
    architecture = Architecture(channels=tuple(channels), unshuffle=unshuffle, **values)
    model = build(architecture, seed=0)
    latent, logits = model(torch.from_numpy(spots(np.random.default_rng(0), 2)))
    assert latent.shape == (2, architecture.latent)
    assert logits.shape == (2, 1, SIDE, SIDE)
    for half in (model.encoder, model.decoder):
        assert sum(isinstance(layer, nn.Dropout) for layer in half) == (
            0 if not architecture.dropout else len(channels) + (half is model.decoder)
        )
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in model.encoder) == len(channels)
    assert sum(layer.stride == (2, 2) for layer in model.decoder if isinstance(layer, nn.ConvTranspose2d)) == len(
        channels
    )


def test_the_latent_vector_sees_the_whole_pattern():
    model = build(TINY, seed=0).eval()
    patterns = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0), requires_grad=True)
    model.encode(patterns).sum().backward()
    touched = patterns.grad[0, 0] != 0
    for corner in (touched[:32, :32], touched[:32, -32:], touched[-32:, :32], touched[-32:, -32:]):
        assert corner.any()


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = build(TINY, seed=5).state_dict()
    torch.manual_seed(2)
    same, other = build(TINY, seed=5).state_dict(), build(TINY, seed=6).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("weight"))


def test_building_leaves_torch_s_random_numbers_alone():
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    build(TINY, seed=5)
    assert torch.equal(torch.rand(4), wanted)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_unit_latent_vectors_have_length_1_their_sketch_has_its_own_and_the_peaks_none(seed):
    architecture = ARCHITECTURES["contrastive"].model_copy(update={"channels": (4, 8, 8, 8)})
    model = build(architecture, seed=seed).eval()
    with torch.inference_mode():
        latent = model.encode(torch.from_numpy(spots(np.random.default_rng(seed), 3, per_pattern=100)))
    width = architecture.sketch
    learned, *sketches, peaks = latent.split([architecture.learned, width, width, architecture.peaks], dim=1)
    np.testing.assert_allclose(learned.norm(dim=1).numpy(), 1, atol=1e-3)
    for sketch in sketches:
        np.testing.assert_allclose(sketch.norm(dim=1).numpy(), architecture.sketch_length, atol=1e-3)
    assert 0 < float(peaks.square().sum(dim=1).max()) < 1e-4


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_sketch_keeps_the_angles_between_feature_maps(seed):
    sketch = Sketch((8, 16, 16), 128, 0.7)
    rng = np.random.default_rng(seed)
    one, other = rng.exponential(size=(2, 8, 16, 16)) * (rng.random((2, 8, 16, 16)) < 0.1)
    steps = np.linspace(0, 1, 5)[:, None, None, None]
    maps = torch.from_numpy((1 - steps) * one + steps * other).float()
    found = sketch(maps).double()
    assert found.shape == (5, 128)
    flat = maps.flatten(1).double()
    wanted = nn.functional.cosine_similarity(flat[:1], flat)
    # A projection to M features knows a cosine to 1 / sqrt(M), the closer to 1 the better.
    limit = 5 * (1 - wanted.square()).clamp(min=0).sqrt() / math.sqrt(128) + 1e-6
    assert ((nn.functional.cosine_similarity(found[:1], found) - wanted).abs() <= limit).all()


@pytest.mark.parametrize("power", [1, 3])
def test_sketches_are_of_the_pattern_and_of_the_second_feature_map_with_signs_of_no_seed(power):
    rng = np.random.default_rng(4)
    patterns = torch.from_numpy(spots(rng, 3, per_pattern=60))
    model = build(SKETCHED.model_copy(update={"sketch_power": power}), seed=3).eval()
    with torch.inference_mode():
        smoothed = model.smooth(patterns)
        feature_map = nn.Sequential(*list(model.encoder)[:9])(smoothed)
        found = model.encode(patterns)[:, SKETCHED.learned :].numpy()
        powered = model.smooth(patterns**power)
    assert feature_map.shape == (3, 8, 16, 16)
    halved = powered.numpy().reshape(3, 64, 2, 64, 2).mean((2, 4))
    for sketched, place in ((halved, 0), (feature_map.numpy(), SKETCHED.sketch)):
        flat = sketched.reshape(3, -1).astype(np.float64)
        signs = np.random.RandomState(1).randint(0, 2, (flat.shape[1], SKETCHED.sketch)) * 2.0 - 1
        wanted = flat @ signs
        wanted *= SKETCHED.sketch_length / np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(found[:, place : place + SKETCHED.sketch], wanted, atol=1e-5)
    assert not [name for name in model.state_dict() if "sketch" in name]


@pytest.mark.parametrize(
    ("sketch", "shape"),
    [(PatternSketch(48, 0.5), (1, SIDE, SIDE)), (Sketch((48, 16, 16), 48, 0.5), (48, 16, 16))],
)
def test_a_sketch_is_the_same_bits_for_any_number_of_threads_and_any_place_in_the_batch(sketch, shape):
    features = torch.rand(32, *shape, generator=torch.Generator().manual_seed(0))
    features = features.contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found += [sketch(features), sketch(features.flip(0)).flip(0)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


def test_nothing_is_learnt_of_a_sketch():
    model = build(SKETCHED, seed=0)
    latent = model.encode(torch.from_numpy(spots(np.random.default_rng(0), 4)))
    latent.sum().backward()
    learned = {name: parameter.grad.clone() for name, parameter in model.encoder.named_parameters()}
    model.zero_grad()
    model.encode(torch.from_numpy(spots(np.random.default_rng(0), 4)))[:, : SKETCHED.learned].sum().backward()
    for name, parameter in model.encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, learned[name])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sketch": 8}, "sketch: needs unit_latent"),
        ({"sketch": 8, "unit_latent": True, "channels": (4,)}, "feature map 2, there are 1 channels"),
        (
            {"sketch": 8, "unit_latent": True, "peaks": 1, "latent": 16},
            "2 sketches of 8 and 1 peaks leave nothing of 16",
        ),
        ({"sketch": 8, "unit_latent": True, "sketch_length": 0}, "sketch_length"),
        ({"sketch": 8, "unit_latent": True, "sketch_power": 0}, "sketch_power"),
        ({"sketch": 8, "unit_latent": True, "sketch_power": 9}, "sketch_power"),
        ({"sketch_power": 2}, "sketch_power: 2, but there is no sketch"),
        ({"sketch": 4096, "unit_latent": True, "channels": (1, 4096), "latent": 8193}, "more than 134217728 signs"),
    ],
)
def test_a_sketch_needs_something_to_be_made_of_and_to_be_held_against(values, message):
    with pytest.raises(ValidationError, match=message):
        Architecture(**values)


@given(heights=st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8), noise=st.floats(0.05, 5))
def test_strength_grows_with_the_peaks_from_nothing_to_one(heights, noise):
    values = torch.tensor([heights, [min(1, 1.1 * h) for h in heights], [0.0] * 8])
    found = strength(values, noise).ravel().tolist()
    assert 0 <= found[0] <= found[1] <= 1
    assert found[2] == 0
    total = sum(h * h for h in heights)
    assert total < 4 * noise or found[0] > 0.99
    assert total > noise / 4 or found[0] < 0.01


def test_patterns_of_noise_lie_close_together_and_those_of_spots_far_apart():
    model = build(ARCHITECTURES["contrastive"], seed=0).eval()
    rng = np.random.default_rng(0)
    noise, clear = np.zeros((2, 20, 1, SIDE, SIDE), dtype=np.float32)
    for i in range(20):
        noise[i, 0][tuple(rng.integers(0, SIDE, (2, 5)))] = 0.28  # just above the clip at 4 sigmas
        clear[i, 0][tuple(rng.integers(0, SIDE, (2, 30)))] = 1
    with torch.inference_mode():
        apart = [float(torch.pdist(model.encode(torch.from_numpy(some))).mean()) for some in (noise, clear)]
    assert apart[0] < 0.05 * apart[1]


def test_noise_needs_peaks_to_be_told_from():
    with pytest.raises(ValidationError, match="without peaks"):
        Architecture(noise=0.3)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), count=st.sampled_from([1, 5, 40]))
def test_peaks_are_the_local_maxima_of_scipy_s_maximum_filter(seed, count):
    rng = np.random.default_rng(seed)
    smoothed = Smoothing(1.0)(torch.from_numpy(spots(rng, 1)))
    place, height = (found[0].numpy() for found in BrightestPeaks(count)(smoothed))
    pattern = smoothed[0, 0].numpy()
    top = (pattern == maximum_filter(pattern, 5, mode="constant")) & (pattern > 0.04)
    assert np.count_nonzero(height > 0.04) <= top.sum()
    for r, c, h in zip(*divmod(place, SIDE), height, strict=True):
        if h > 0.04:
            assert top[r, c]
            assert pattern[r, c] == pytest.approx(h, abs=2e-3)
    brightest = np.sort(pattern[top])[::-1][:count]
    found = height[: len(brightest)]
    # Peaks of one height that touch count once.
    assert (found <= brightest + 1e-6).all()
    assert (np.diff(height) <= 0).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), per_pattern=st.integers(0, 400), count=st.sampled_from([1, 40]))
def test_peaks_are_those_of_torch_s_max_pooling(seed, per_pattern, count):
    smoothed = Smoothing(1.0)(torch.from_numpy(spots(np.random.default_rng(seed), 3, per_pattern=per_pattern)))
    peaks = BrightestPeaks(count)
    sloped = smoothed - peaks.ramp
    top = (sloped == nn.functional.max_pool2d(sloped, 5, stride=1, padding=2)) & (sloped > peaks.LEAST)
    wanted, where = torch.where(top, sloped, 0.0).flatten(1).topk(count, dim=1)
    place, height = peaks(smoothed)
    assert torch.equal(height, wanted)
    assert torch.equal(place, torch.where(wanted > 0, where, 0))


def test_a_saturated_spot_is_one_peak():
    pattern = torch.zeros(1, 1, SIDE, SIDE)
    pattern[..., 30:34, 50:53] = 1
    place, height = (found[0].numpy() for found in BrightestPeaks(8)(pattern))
    assert np.count_nonzero(height) == 1
    assert divmod(place[0], SIDE) == (30, 50)
    assert not place[1:].any()
    assert height[0] == pytest.approx(1, abs=2e-3)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_drawn_peaks_stand_where_they_were_found(seed):
    rng = np.random.default_rng(seed)
    peaks = BrightestPeaks(12)
    places = [divmod(int(i), 8) for i in rng.choice(64, 12, replace=False)]
    heights = np.linspace(1, 0.2, 12)
    pattern = torch.zeros(1, 1, SIDE, SIDE)
    for (r, c), h in zip(places, heights, strict=True):
        pattern[0, 0, 16 * r + 8, 16 * c + 8] = h
    drawn = peaks.draw(*peaks(pattern))[0, 0].numpy()
    for (r, c), h in zip(places, heights, strict=True):
        assert drawn[16 * r + 8, 16 * c + 8] == pytest.approx(h, abs=5e-3)
    assert drawn.sum() == pytest.approx(heights.sum() * 2 * np.pi * peaks.SIGMA**2, rel=0.02)


@given(
    place=st.lists(st.integers(0, SIDE**2 - 1), min_size=1, max_size=8),
    height=st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8),
)
def test_a_peak_is_one_number_that_keeps_its_pixel_and_its_height_to_a_step(place, height):
    peaks = BrightestPeaks(len(place))
    numbers = peaks.pack(torch.tensor([place]), torch.tensor([height[: len(place)]]))
    assert numbers.dtype == torch.float32
    assert 0 <= float(numbers.min()) <= float(numbers.max()) <= 2**-10
    found, heights = peaks.unpack(numbers)
    assert found[0].tolist() == place
    np.testing.assert_allclose(heights[0].numpy(), height[: len(place)], atol=0.5 / 1023 + 1e-6)


def test_peaks_need_room_in_the_latent_vector():
    with pytest.raises(ValidationError, match="16 peaks leave nothing of 16 latent features"):
        Architecture(latent=16, peaks=16)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_spotless_pattern_has_finite_latent_features(name):
    model = build(ARCHITECTURES[name], seed=0).eval()
    with torch.inference_mode():
        latent, logits = model(torch.zeros(1, 1, SIDE, SIDE))
    assert torch.isfinite(latent).all()
    assert torch.isfinite(logits).all()
    if ARCHITECTURES[name].unit_latent:
        assert float(latent.norm()) <= math.hypot(1, *[ARCHITECTURES[name].sketch_length] * 2) + 1e-4


def test_a_latent_vector_of_zeros_stays_finite_with_its_gradient():
    model = build(TINY.model_copy(update={"unit_latent": True}), seed=0)
    for parameter in model.encoder.parameters():
        nn.init.zeros_(parameter)
    latent = model.encode(torch.zeros(2, 1, SIDE, SIDE))
    latent.square().sum().backward()
    assert float(latent.detach().abs().max()) == 0
    assert all(torch.isfinite(p.grad).all() for p in model.encoder.parameters())


def test_more_poolings_than_the_pattern_has_pixels_are_refused():
    assert Architecture(channels=(2,) * 7).bottleneck_side == 1
    with pytest.raises(ValidationError, match="8 poolings leave nothing of 128 pixels"):
        Architecture(channels=(2,) * 8)


def test_patterns_whose_pixels_became_channels_have_fewer_poolings_left():
    assert Architecture(channels=(2,) * 6, unshuffle=2).bottleneck_side == 1
    with pytest.raises(ValidationError, match="7 poolings leave nothing"):
        Architecture(channels=(2,) * 7, unshuffle=2)


@pytest.mark.parametrize("unshuffle", [0, 3, 6, 16])
def test_blocks_that_do_not_tile_the_pattern_are_refused(unshuffle):
    with pytest.raises(ValidationError, match="unshuffle"):
        Architecture(channels=(2, 2), unshuffle=unshuffle)


@pytest.mark.parametrize(
    "values", [{"channels": ()}, {"channels": (0,)}, {"latent": 0}, {"dropout": 1.0}, {"smoothing": -1}, {"x": 1}]
)
def test_impossible_hyper_parameters_are_refused(values):
    with pytest.raises(ValidationError):
        Architecture(**values)


def test_with_a_power_the_sketch_of_a_mixture_lies_nearer_to_the_brighter_part():
    rng = np.random.default_rng(7)
    first, second = torch.from_numpy(spots(rng, 2, per_pattern=30)).split(1)
    mixed = torch.maximum(first, 0.7 * second)

    def nearness(power):
        architecture = SKETCHED.model_copy(update={"sketch_power": power})
        model = build(architecture, seed=3).eval()
        with torch.inference_mode():
            found = model.encode(torch.cat([first, second, mixed]))
        sketch = found[:, architecture.learned :][:, : architecture.sketch]
        return (sketch[0] - sketch[2]).norm() / (sketch[1] - sketch[2]).norm()

    assert nearness(3) < nearness(1) < 1


def test_given_what_smoothing_makes_of_them_patterns_have_the_same_features():
    patterns = torch.from_numpy(spots(np.random.default_rng(1), 2, per_pattern=40))
    model = build(ARCHITECTURES["contrastive"], seed=0).eval()
    with torch.inference_mode():
        assert torch.equal(model.encode(patterns, model.smooth(patterns)), model.encode(patterns))


def test_networks_that_threads_build_side_by_side_have_the_weights_of_one_built_alone():
    alone = build(TINY, seed=4).state_dict()
    begin = threading.Barrier(4)

    def built(_):
        begin.wait()
        return [build(TINY, seed=4).state_dict() for _ in range(20)]

    with ThreadPoolExecutor(4) as threads:
        found = [one for some in threads.map(built, range(4)) for one in some]
    assert all(torch.equal(one[name], alone[name]) for one in found for name in alone)
