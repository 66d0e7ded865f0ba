"""The reduction against its plain reference, on simulated low counts, and on real frames with known reflections."""

from pathlib import Path

import fabio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from laue_dask.config import Recipe
from laue_dask.errors import InputError
from laue_dask.reduction.reduce import (
    MIN_SATURATION_SIGMAS,
    Substrate,
    bin_edges,
    detector_mask,
    estimate_substrate,
    reduce_frame_reference,
    reduce_frames,
)

RECIPE = Recipe()
REMOVE = Recipe(substrate="remove")
DARK = 0.05 * 255
DTYPES = ["uint8", "uint16", "uint32", "int16", "int32", "float32", "float64"]

ALS = [f"als_1232/SiHyperlaueFinal_1_0000{i}.tif" for i in (1, 2)]
BM32 = [f"esrf_bm32/{name}" for name in ("nw1_0000.tif", "nw1_0001.tif", "AH12_CMT_r14_0200.tif", "Ge_blanc_0000.mccd")]


def scene(rng, shape, *, background, spots, strength, width=1.0):
    """Expected counts: a sloping background and Gaussian reflections; and the reflections' positions."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    expected = background * (1 + 0.5 * rows / shape[0] + 0.3 * columns / shape[1])
    places = rng.integers(4, np.array(shape) - 4, (spots, 2))
    for y, x in places:
        expected = expected + strength * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2))
    return expected, places


def bin_of(shape, rows, columns):
    """Bins of the reduced pattern where the pixels lie, and whether the frame holds them."""
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    down, across = (bin_edges(side) for side in shape)
    return (
        np.searchsorted(down, rows[inside], "right") - 1,
        np.searchsorted(across, columns[inside], "right") - 1,
        inside,
    )


@pytest.fixture(scope="module")
def real(data_dir: Path):
    """Frame, mask from that frame alone, and reduced pattern of each real frame."""
    found = {}
    for name in ALS + BM32:
        frame = fabio.open(data_dir / "frames" / name).data
        mask = detector_mask(frame[None])
        found[name] = frame, mask, reduce_frames(frame, mask, RECIPE)[0]
    return found


# The compiled loops -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(128, 200), st.integers(128, 400)),
    wide=st.booleans(),
    version=st.sampled_from([1, 2]),
    dtype=st.sampled_from(DTYPES),
    background=st.sampled_from([0.05, 0.6, 4.0, 90.0]),
    block=st.sampled_from([4, 11, 24, 60, 512]),
    clip=st.sampled_from([0.0, 2.5, 4.0]),
    remove=st.booleans(),
    mutilate=st.booleans(),
)
def test_compiled_reduction_equals_the_plain_reference(
    seed, shape, wide, version, dtype, background, block, clip, remove, mutilate
):
    rng = np.random.default_rng(seed)
    shape = shape if wide else shape[::-1]
    expected, _ = scene(rng, shape, background=background, spots=12, strength=60)
    counts = rng.poisson(expected)
    frame = np.minimum(counts, 250).astype(dtype)
    if dtype.startswith("float"):
        frame *= 0.37
    mask = rng.random(shape) < 0.02
    if mutilate:
        mask[40:90, 20:100] = True
        frame[100:110] = -1 if frame.dtype.kind != "u" else 0
        frame[:, 60] = np.nan if frame.dtype.kind == "f" else np.iinfo(dtype).max
    recipe = Recipe(version=version, background_block=block, clip_sigma=clip, substrate="remove" if remove else "keep")
    substrate = None
    if remove:
        pattern = ndimage.gaussian_filter(rng.random(shape) * 20, 1).astype(np.float32)
        substrate = Substrate(pattern, (pattern / 5).astype(np.float32))
    reduced = reduce_frames(frame, mask, recipe, substrate=substrate)
    reference = reduce_frame_reference(frame, mask, recipe, substrate=substrate)
    np.testing.assert_allclose(reduced[0].astype(int), reference, atol=1)


@pytest.mark.parametrize("name", ALS + BM32)
def test_real_frame_is_reduced_as_the_reference_says(real, name):
    frame, mask, reduced = real[name]
    np.testing.assert_allclose(reduced.astype(int), reduce_frame_reference(frame, mask, RECIPE), atol=1)


# What a reduced pattern must be -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALS + BM32)
def test_real_frame_keeps_its_spots_and_little_else(real, name):
    _, _, reduced = real[name]
    assert 0.003 < (reduced > DARK).mean() < 0.25
    assert reduced.max() == 255


def test_xmas_reflections_of_an_als_frame_are_bright(real, data_dir):
    table = []
    for line in (data_dir / "results/xmas/results_00015.IND").read_text().splitlines()[5:38]:
        words = line.split()
        table.append([float(words[0]), float(words[1]), float(words[11])])
    x, y, _ = np.array(table).T
    frame, _, reduced = real[ALS[0]]
    v, u, inside = bin_of(frame.shape, np.rint(frame.shape[0] - x).astype(int), np.rint(y - 1).astype(int))
    brightest = ndimage.maximum_filter(reduced, 3)[v, u]
    assert inside.sum() >= 30
    assert (brightest > DARK).all()
    assert np.median(brightest) > 0.5 * 255


@pytest.mark.parametrize(
    ("frame_name", "table", "columns"),
    [
        ("AH12_CMT_r14_0200.tif", "AH12_CMT_r14_0200_LT_0.cor", (2, 3, 4)),
        ("Ge_blanc_0000.mccd", "Ge_blanc_0000_LT_5.dat", (0, 1, 3)),
    ],
)
def test_lauetools_peaks_of_a_bm32_frame_are_bright(real, data_dir, frame_name, table, columns):
    lines = (data_dir / "results/lauetools" / table).read_text().splitlines()[1:]
    peaks = np.array([[float(w) for w in line.split()] for line in lines if line and line[0] != "#"])[:, columns]
    x, y, _ = peaks[np.argsort(peaks[:, 2])[::-1][:40]].T
    frame, _, reduced = real[f"esrf_bm32/{frame_name}"]
    v, u, inside = bin_of(frame.shape, np.rint(y - 1).astype(int), np.rint(x - 1).astype(int))
    brightest = ndimage.maximum_filter(reduced, 3)[v, u]
    assert inside.all()
    assert (brightest > DARK).all()
    assert brightest[:10].min() > 0.5 * 255


@pytest.mark.parametrize("point", [0, 1])
def test_predicted_silicon_reflections_of_the_nanowire_scan_are_bright(real, data_dir, point):
    with np.load(data_dir / "maps/GaN_Si_nw1_61x61_spots.npz") as spots:
        chosen = spots["point"] == point
        x, y, energy = spots["x"][chosen], spots["y"][chosen], spots["energy_keV"][chosen]
    soft = np.argsort(energy)[:30]
    frame, _, reduced = real[BM32[point]]
    v, u, inside = bin_of(frame.shape, np.rint(y[soft]).astype(int), np.rint(x[soft]).astype(int))
    brightest = ndimage.maximum_filter(reduced, 3)[v, u]
    everywhere = (ndimage.maximum_filter(reduced, 3) > DARK).mean()
    assert inside.sum() >= 25
    assert (brightest > DARK).mean() > max(0.8, 1.5 * everywhere)


@pytest.mark.parametrize("background", [0.05, 0.3, 1.0, 3.0, 30.0, 300.0])
def test_photon_noise_alone_stays_dark(background):
    frame = np.random.default_rng(1).poisson(background, (981, 981)).astype(np.int32)
    reduced = reduce_frames(frame, None, RECIPE)[0]
    assert (reduced > 0).mean() < 0.02
    assert reduced.max() < 0.6 * 255


@pytest.mark.parametrize(
    ("background", "counts", "share"),
    [(0.05, 25, 0.7), (0.3, 25, 0.5), (0.3, 50, 0.95), (3, 120, 0.95), (30, 300, 0.95)],
)
def test_weak_reflections_are_found(background, counts, share):
    rng = np.random.default_rng(2)
    peak = counts / (2 * np.pi)
    expected, places = scene(rng, (512, 512), background=background, spots=60, strength=peak)
    reduced = reduce_frames(rng.poisson(expected).astype(np.int32), None, RECIPE)[0]
    v, u, _ = bin_of((512, 512), *places.T)
    assert (ndimage.maximum_filter(reduced, 3)[v, u] > DARK).mean() > share
    assert (reduced > DARK).mean() < 0.02


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6), pedestal=st.integers(1, 30_000), dtype=st.sampled_from(["uint16", "int32", "float64"])
)
def test_a_pedestal_changes_nothing(seed, pedestal, dtype):
    rng = np.random.default_rng(seed)
    expected, _ = scene(rng, (160, 150), background=20, spots=10, strength=400)
    frame = rng.poisson(expected).astype(dtype)
    np.testing.assert_array_equal(
        reduce_frames(frame, None, RECIPE), reduce_frames((frame + pedestal).astype(dtype), None, RECIPE)
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(1e-6, 1e6))
def test_the_unit_of_continuous_data_changes_nothing(seed, factor):
    rng = np.random.default_rng(seed)
    expected, _ = scene(rng, (160, 150), background=20, spots=10, strength=400)
    frame = expected + rng.normal(0, 4, expected.shape)
    first, second = reduce_frames(frame, None, RECIPE), reduce_frames(frame * factor, None, RECIPE)
    np.testing.assert_allclose(first.astype(int), second, atol=1)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.sampled_from([0.98, 1.02]))
def test_two_percent_of_beam_hardly_change_a_pattern(seed, factor):
    rng = np.random.default_rng(seed)
    expected, _ = scene(rng, (256, 256), background=40, spots=20, strength=800)
    first = reduce_frames(expected.round().astype(np.int32), None, RECIPE)[0].astype(float)
    second = reduce_frames((expected * factor).round().astype(np.int32), None, RECIPE)[0].astype(float)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.99


def test_another_realisation_of_the_noise_hardly_changes_a_pattern():
    rng = np.random.default_rng(3)
    expected, _ = scene(rng, (512, 512), background=30, spots=60, strength=800)
    first, second = reduce_frames(rng.poisson(expected, (2, 512, 512)).astype(np.int32), None, RECIPE).astype(float)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.98


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(195, 1475), (160, 640), (514, 1030), (1475, 195), (128, 131), (300, 128)]),
)
def test_every_reflection_of_a_frame_of_any_shape_is_in_its_bin(seed, shape):
    rng = np.random.default_rng(seed)
    frame = rng.poisson(20, shape).astype(np.int32)
    rows, columns = (rng.integers(0, side, 8) for side in shape)
    corners = rng.permutation([(0, 0), (0, shape[1] - 1), (shape[0] - 1, 0), (shape[0] - 1, shape[1] - 1)])
    rows, columns = np.concatenate([[rows, columns], corners.T], axis=1)
    frame[rows, columns] += 2000
    reduced = reduce_frames(frame, None, RECIPE)[0]
    v, u, inside = bin_of(shape, rows, columns)
    assert inside.all()
    assert (reduced[v, u] > 0.9 * 255).all()
    assert (reduced > 0.6 * 255).sum() == len({*zip(v.tolist(), u.tolist(), strict=True)})


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), side=st.integers(128, 300), shape=st.sampled_from([(150, 171), (129, 300)]))
def test_a_square_frame_is_reduced_the_same_by_both_versions_and_another_only_in_its_middle(seed, side, shape):
    rng = np.random.default_rng(seed)
    square = rng.poisson(scene(rng, (side, side), background=10, spots=9, strength=90)[0])
    first = Recipe(version=1)
    np.testing.assert_array_equal(reduce_frames(square, None, RECIPE), reduce_frames(square, None, first))
    assert RECIPE.for_frames(square.shape) == first.for_frames(square.shape) == first
    frame = rng.poisson(scene(rng, shape, background=10, spots=9, strength=90)[0])
    left = (shape[1] - shape[0]) // 2
    middle = frame[:, left : left + shape[0]]
    np.testing.assert_array_equal(reduce_frames(frame, None, first), reduce_frames(middle, None, RECIPE))
    assert RECIPE.for_frames(shape) == RECIPE
    assert first.for_frames(shape) == first


def test_turning_a_frame_over_its_diagonal_turns_its_pattern_over():
    rng = np.random.default_rng(12)
    frame = rng.poisson(scene(rng, (256, 384), background=20, spots=30, strength=900)[0])
    one, other = (reduce_frames(array, None, RECIPE)[0].astype(float) for array in (frame, frame.T))
    assert np.corrcoef(one.ravel(), other.T.ravel())[0, 1] > 0.99  # every fourth row is read for the background


@pytest.mark.parametrize("fill", [0, 7, 0.1, np.nan])
def test_a_featureless_frame_becomes_a_dark_pattern(fill):
    frame = np.full((150, 140), fill)
    assert not reduce_frames(frame, None, RECIPE).any()
    assert not reduce_frame_reference(frame, None, RECIPE).any()


def test_a_wholly_masked_frame_becomes_a_dark_pattern():
    frame = np.random.default_rng(0).poisson(50, (130, 140))
    assert not reduce_frames(frame, np.ones((130, 140), bool), RECIPE).any()


def test_a_noise_free_reflection_is_white_on_black():
    expected, places = scene(np.random.default_rng(4), (256, 256), background=0, spots=1, strength=500)
    reduced = reduce_frames(expected.round(), None, RECIPE)[0]
    v, u, _ = bin_of((256, 256), *places.T)
    assert reduced[v, u] == 255
    assert (reduced > 0).sum() < 20


def test_white_is_never_less_than_twenty_sigmas():
    rng = np.random.default_rng(5)
    frame = rng.normal(100, 1, (512, 512))
    frame[::40, ::40] += 10
    reduced = reduce_frames(frame, None, RECIPE)[0]
    expected = (
        255 * np.arcsinh(10 / RECIPE.softening_sigma) / np.arcsinh(MIN_SATURATION_SIGMAS / RECIPE.softening_sigma)
    )
    assert np.median(reduced[reduced > 0.4 * 255]) == pytest.approx(expected, rel=0.1)


def test_negatives_are_data_where_a_dark_image_was_subtracted():
    rng = np.random.default_rng(6)
    expected, _ = scene(rng, (200, 200), background=0, spots=15, strength=300)
    frame = expected + rng.normal(0, 5, expected.shape)
    np.testing.assert_array_equal(reduce_frames(frame, None, RECIPE), reduce_frames(frame + 1000, None, RECIPE))


def test_every_dtype_and_byte_order_gives_the_same_pattern():
    rng = np.random.default_rng(7)
    expected, _ = scene(rng, (140, 170), background=20, spots=10, strength=150)
    counts = np.minimum(rng.poisson(expected), 255)
    patterns = [reduce_frames(counts.astype(dtype), None, RECIPE) for dtype in [*DTYPES, ">u2", ">i4", "<f4", "int64"]]
    for pattern in patterns[1:]:
        np.testing.assert_array_equal(pattern, patterns[0])


def test_a_stack_is_reduced_frame_by_frame_and_left_as_it_was():
    rng = np.random.default_rng(8)
    frames = rng.poisson(20, (3, 150, 130)).astype(np.uint16)
    frames[1, 60:63, 60:63] += 500
    before = frames.copy()
    stack = reduce_frames(frames, None, RECIPE)
    np.testing.assert_array_equal(stack, np.concatenate([reduce_frames(frame, None, RECIPE) for frame in frames]))
    np.testing.assert_array_equal(frames, before)
    assert stack.dtype == np.uint8


@pytest.mark.parametrize("side", [128, 129, 255, 981, 2016])
def test_bins_are_those_of_the_floor_rule(side):
    assert bin_edges(side).tolist() == [i * side // 128 for i in range(128)]


# The substrate ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film_on_substrate():
    """24 frames: the same strong substrate in all, 5 % beam drift, and a weak film of its own in each."""
    rng = np.random.default_rng(9)
    shape = (384, 400)
    substrate, places = scene(rng, shape, background=30, spots=40, strength=8000)
    frames, films = [], []
    for _ in range(24):
        film, own = scene(rng, shape, background=0, spots=15, strength=150)
        frames.append(rng.poisson(substrate * rng.normal(1, 0.05) + film).astype(np.int32))
        films.append(own)
    return np.stack(frames), places, films


def test_removing_the_substrate_leaves_the_film(film_on_substrate):
    frames, places, films = film_on_substrate
    common = estimate_substrate(frames, None, REMOVE)
    kept, removed = reduce_frames(frames, None, RECIPE), reduce_frames(frames, None, REMOVE, substrate=common)
    v, u, inside = bin_of(frames.shape[1:], *places.T)
    assert (kept[:, v, u] > DARK).mean() > 0.95
    assert (removed[:, v, u] > DARK).mean() < 0.1
    film = []
    for pattern, own in zip(removed, films, strict=True):
        v, u, inside = bin_of(frames.shape[1:], *own.T)
        film.append((ndimage.maximum_filter(pattern, 3)[v, u] > DARK).mean())
        assert inside.sum() > 10
    assert np.mean(film) > 0.85


def test_the_substrate_is_the_median_above_the_background(film_on_substrate):
    frames, places, _ = film_on_substrate
    common = estimate_substrate(frames, None, REMOVE)
    y, x = places[np.abs(places[:, 1] - 200) < 180].T
    assert common.median.shape == common.spread.shape == frames.shape[1:]
    np.testing.assert_allclose(common.median[y, x], 8000, rtol=0.1)
    np.testing.assert_allclose(np.median(common.spread[y, x]), 0.05 * 8000, rtol=0.5)
    assert np.median(common.spread) < np.sqrt(40)


def test_masked_pixels_are_not_part_of_the_substrate(film_on_substrate):
    frames, _, _ = film_on_substrate
    mask = np.zeros(frames.shape[1:], bool)
    mask[100:200, 100:200] = True
    common = estimate_substrate(frames[:6], mask, REMOVE)
    assert not common.median[mask].any()
    assert not common.spread[mask].any()
    assert common.median[~mask].any()


def test_a_substrate_needs_five_frames():
    with pytest.raises(InputError, match=r"the sample has 4 frames, at least 5 are needed"):
        estimate_substrate(np.ones((4, 130, 130)), None, REMOVE)


# Refusals -----------------------------------------------------------------------------------------------------------


def test_small_frames_are_refused_with_both_sizes():
    with pytest.raises(InputError, match=r"127 × 300 pixels .* 128 × 128"):
        reduce_frames(np.ones((1, 127, 300)), None, RECIPE)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"\(130, 129\) pixels, frames of \(130, 130\)"):
        reduce_frames(np.ones((130, 130)), np.zeros((130, 129), bool), RECIPE)


def test_a_substrate_of_another_shape_is_refused():
    other = Substrate(*np.zeros((2, 140, 130), np.float32))
    with pytest.raises(InputError, match=r"\(140, 130\) pixels, frames of \(130, 130\)"):
        reduce_frames(np.ones((130, 130)), None, REMOVE, substrate=other)


@pytest.mark.parametrize("recipe", [RECIPE, REMOVE])
def test_recipe_and_substrate_must_agree(recipe):
    given_one = Substrate(*np.zeros((2, 130, 130), np.float32)) if recipe is RECIPE else None
    with pytest.raises(InputError, match=r"recipe\.substrate is"):
        reduce_frames(np.ones((130, 130)), None, recipe, substrate=given_one)


def test_complex_frames_are_refused():
    with pytest.raises(InputError, match="complex128"):
        reduce_frames(np.ones((130, 130), complex), None, RECIPE)
