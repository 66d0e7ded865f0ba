"""The parts that others build with: what they give is what a run has."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import laue_dask as ld
from laue_dask.config import Recipe
from laue_dask.errors import ConfigError, InputError, StoreError


@pytest.fixture(scope="module")
def reduced(run):
    return ld.reduce(run.scan.frames, mask=run.scan.detector_mask)


def test_reduced_frames_are_the_patterns_of_the_run(run, reduced):
    assert isinstance(reduced, da.Array)
    assert (reduced.shape, reduced.dtype) == ((8, 9, 128, 128), np.uint8)
    np.testing.assert_array_equal(reduced.compute(), run.patterns.compute())


@pytest.mark.parametrize("cut", [(1, 9, 260, 245), (3, 4, 100, 100), (8, 1, 260, 61)])
def test_reduced_frames_do_not_depend_on_chunks(run, reduced, cut):
    frames = run.scan.frames.compute()
    mask = run.scan.detector_mask
    lazy = ld.reduce(da.from_array(frames, cut), mask=mask)
    np.testing.assert_array_equal(lazy.compute(scheduler="threads"), reduced.compute())
    np.testing.assert_array_equal(ld.reduce(frames, mask=mask), reduced.compute())
    one = xr.DataArray(frames[2, 3], dims=("row", "column"))
    np.testing.assert_array_equal(ld.reduce(one, mask=mask), reduced[2, 3].compute())


def test_a_recipe_is_one_of_a_configuration_or_a_dictionary(run):
    frames = run.scan.frames[:1, :2].compute()
    other = ld.reduce(frames, Recipe(clip_sigma=20.0))
    np.testing.assert_array_equal(ld.reduce(frames, {"clip_sigma": 20.0}), other)
    assert not np.array_equal(ld.reduce(frames), other)
    with pytest.raises(ConfigError, match="clip_sigm"):
        ld.reduce(frames, {"clip_sigm": 20.0})


@pytest.mark.parametrize(
    ("frames", "mask", "words"),
    [
        (np.zeros((2, 100, 200)), None, "smaller than a pattern"),
        (np.zeros((2, 200, 200)), np.zeros((100, 200), bool), "detector mask"),
        (np.zeros((2, 200, 200), complex), None, "complex"),
        (np.zeros(200), None, "frames of shape"),
    ],
)
def test_frames_that_do_not_fit_are_refused_before_anything_is_computed(frames, mask, words):
    for given in (frames, da.from_array(frames)):
        with pytest.raises(InputError, match=words):
            ld.reduce(given, mask=mask)


def test_a_substrate_is_asked_for_where_the_recipe_removes_one(run):
    with pytest.raises(InputError, match=r"recipe\.substrate is remove"):
        ld.reduce(run.scan.frames, {"substrate": "remove"})


def test_encoded_patterns_are_the_features_of_the_run(run):
    name = run.config.encoder.weights
    features = ld.encode(run.patterns, weights=name)
    assert isinstance(features, da.Array)
    assert (features.shape, features.dtype) == ((8, 9, 256), np.float32)
    found, own = features.compute().reshape(72, 256), run.results["features"].values
    np.testing.assert_allclose(found, own, atol=1e-5 * np.abs(own).max())
    one = ld.encode(run.pattern(2, 3), weights=name)
    np.testing.assert_allclose(one, found[2 * 9 + 3], atol=1e-5 * np.abs(own).max())
    np.testing.assert_array_equal(ld.encode(run.patterns[2:3, 3:5].compute(), weights=name)[0, 0], one)


def test_a_pattern_with_a_gap_has_no_features():
    patterns = np.zeros((2, 128, 128), np.float32)
    patterns[1, 5, 5] = np.nan
    found = ld.encode(patterns, weights="untrained")
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (np.zeros((2, 64, 64), np.uint8), "was expected, as `reduce` makes them"),
        (np.zeros((2, 128, 128), np.int32), "patterns of int32: uint8 was expected"),
        (np.full((2, 128, 128), 7.0), "0 to 1 was expected"),
        (np.full((2, 128, 128), -0.5), "0 to 1 was expected"),
    ],
)
def test_what_is_no_pattern_is_refused(patterns, words):
    with pytest.raises(InputError, match=words):
        ld.encode(patterns, weights="untrained")


def test_weights_that_are_missing_are_refused_before_anything_is_computed(run):
    with pytest.raises(StoreError, match="nowhere"):
        ld.encode(run.patterns, weights="nowhere.safetensors")


def test_the_parts_put_together_make_the_segmentation_of_the_run(run):
    features = ld.encode(run.patterns, weights=run.config.encoder.weights).reshape(72, 256)
    pca = ld.IncrementalPCA(0.99).fit(features)
    components = pca.transform(features)[:, : pca.n_components_]
    assert pca.n_components_ == run.record.m_pca
    grains = ld.NeighbourhoodGrains().fit(components, shape=(8, 9))
    assert grains.labels_.max() + 1 == len(run.grains)
    labels = ld.KMeans(3).fit(components).labels_
    own = run.results["labels"].sel(k=3).values.ravel()
    alike = {(a, b) for a, b in zip(labels.tolist(), own.astype(int).tolist(), strict=True)}
    assert len({a for a, _ in alike}) == 3
