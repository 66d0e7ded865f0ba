import itertools

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask import schema
from laue_dask.errors import StoreError
from laue_dask.schema import REDUCED, RESULTS, SCAN, TRAINING

SIZES = {
    "pattern": 6, "row": 9, "column": 8, "axis": 2, "v": 128, "u": 128, "latent": 16, "component": 16, "k": 2,
    "score_k": 3, "y": 2, "x": 3, "cluster": 4, "rank": 3, "channel": 3, "draw": 5,
}  # fmt: skip
TABLE = {
    "y": ("y",),
    "x": ("x",),
    "features": ("pattern", "latent"),
    "components": ("pattern", "component"),
    "explained_variance": ("component",),
    "explained_variance_ratio": ("component",),
    "k": ("k",),
    "score_k": ("score_k",),
    "labels": ("k", "y", "x"),
    "centroids": ("k", "cluster", "component"),
    "delegate": ("k", "cluster"),
    "delegates": ("k", "cluster", "rank"),
    "delegates_mixed": ("k", "cluster", "rank"),
    "pca_rgb": ("k", "y", "x", "channel"),
    "direct_rgb": ("y", "x", "channel"),
    "silhouette": ("score_k",),
    "calinski_harabasz": ("score_k",),
    "silhouette_draws": ("score_k", "draw"),
    "calinski_harabasz_draws": ("score_k", "draw"),
    "stability": ("score_k",),
    "reconstruction_error": ("y", "x"),
    "distance_to_centroid": ("k", "y", "x"),
    "n_clusters": ("k",),
    "unexplained": ("y", "x"),
    "grain": ("y", "x"),
    "boundary_strength": ("y", "x"),
}
"""Dimensions as promised to those who open the results."""


def shape_of(spec):
    return tuple(SIZES[name] for name in spec.dims)


def values_of(spec, *, seed=0):
    rng = np.random.default_rng(seed)
    if spec.dtype == "string":
        return np.array([f"frame_{i:05d}.tif" for i in range(SIZES["pattern"])])
    return rng.integers(0, 2 if spec.dtype == "bool" else 200, shape_of(spec)).astype(spec.dtype or "int32")


def fill(path, specs):
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    group.attrs["laue_dask_schema"] = schema.SCHEMA_VERSION
    for name, spec in specs.items():
        schema.create(group, name, spec, shape_of(spec), dtype="int32")[...] = values_of(spec)
    return group


@pytest.fixture(params=["scan", "training", "results"])
def filled(request, tmp_path):
    specs = {"scan": SCAN, "training": TRAINING, "results": RESULTS}[request.param]
    return fill(tmp_path / "store.zarr", specs), specs


def test_a_store_created_from_the_specs_passes_the_check(filled):
    group, specs = filled
    schema.check(group, specs)
    schema.check(zarr.open_group(str(group.store_path.store.root), mode="r"), specs)


def test_what_is_written_is_read(filled):
    group, specs = filled
    for name, spec in specs.items():
        np.testing.assert_array_equal(group[name][...], values_of(spec))


def test_every_array_says_what_it_is(filled):
    group, specs = filled
    for name, spec in specs.items():
        assert group[name].attrs["long_name"] == spec.meaning
        assert group[name].attrs.get("units", "") == spec.units
        assert group[name].metadata.dimension_names == spec.dims


def test_what_was_never_written_has_the_fill_value(tmp_path):
    group = zarr.open_group(str(tmp_path), mode="w", zarr_format=3)
    for name, spec in RESULTS.items():
        array = schema.create(group, name, spec, shape_of(spec))
        np.testing.assert_array_equal(array[...], np.full(shape_of(spec), spec.fill, dtype=spec.dtype))


def test_a_missing_array_is_named(filled):
    group, specs = filled
    for name, spec in specs.items():
        del group[name]
        if spec.required:
            with pytest.raises(StoreError, match=f"array '{name}' is missing"):
                schema.check(group, specs)
        schema.check(group, specs, only=set(specs) - {name})
        schema.create(group, name, spec, shape_of(spec), dtype="int32")


def test_frames_may_be_left_out(tmp_path):
    schema.check(fill(tmp_path, {name: spec for name, spec in SCAN.items() if name != "frames"}), SCAN)


def test_another_dtype_is_named_with_both(filled):
    group, specs = filled
    for name, spec in specs.items():
        if spec.dtype in (None, "string"):
            continue
        del group[name]
        group.create_array(name, shape=shape_of(spec), dtype="float16", dimension_names=spec.dims)
        with pytest.raises(StoreError, match=f"array '{name}' is float16, expected {spec.dtype}"):
            schema.check(group, specs)
        schema.create(group, name, spec, shape_of(spec), overwrite=True)


def test_other_dimensions_are_named_with_both(filled):
    group, specs = filled
    for name, spec in specs.items():
        del group[name]
        dims = ("time", *spec.dims[1:])
        group.create_array(name, shape=shape_of(spec), dtype=spec.dtype or "int32", dimension_names=dims)
        with pytest.raises(StoreError, match=f"array '{name}' has dimensions .*time.*, expected .*{spec.dims[0]}"):
            schema.check(group, specs)
        schema.create(group, name, spec, shape_of(spec), dtype="int32", overwrite=True)


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_another_version_is_named_with_both(filled, version):
    group, specs = filled
    group.attrs["laue_dask_schema"] = version
    with pytest.raises(StoreError, match=f"schema version {version!r}, this laue-dask reads {schema.SCHEMA_VERSION}"):
        schema.check(group, specs)


def test_a_group_in_an_array_s_place_is_named(filled):
    group, specs = filled
    name = next(iter(specs))
    del group[name]
    group.create_group(name)
    with pytest.raises(StoreError, match=f"'{name}' is a group"):
        schema.check(group, specs)


def test_a_shape_of_another_rank_is_refused(tmp_path):
    group = zarr.open_group(str(tmp_path), mode="w", zarr_format=3)
    with pytest.raises(ValueError, match="'labels' has dimensions"):
        schema.create(group, "labels", RESULTS["labels"], (2, 3))


def test_attributes_of_the_caller_stand_beside_the_spec_s(tmp_path):
    group = zarr.open_group(str(tmp_path), mode="w", zarr_format=3)
    schema.create(group, "components", RESULTS["components"], (6, 16), attributes={"m_pca": 5})
    assert dict(group["components"].attrs) == {"long_name": RESULTS["components"].meaning, "m_pca": 5}


COMPRESSED = [("results", name) for name in RESULTS] + [("training", name) for name in TRAINING]
COMPRESSED += [("scan", name) for name, spec in SCAN.items() if spec.dtype != "string"] + [("scan", "reduced")]


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    """One store per layout, whose chunk files the tests below damage and restore."""
    folder = tmp_path_factory.mktemp("undamaged")
    specs = {"results": RESULTS, "training": TRAINING, "scan": {**SCAN, "reduced": REDUCED}}
    groups = {name: fill(folder / name, these) for name, these in specs.items()}
    shape = shape_of(REDUCED)
    schema.create(groups["scan"], "sharded", REDUCED, shape, chunks=(1, *shape[1:]), shards=shape)[...] = values_of(
        REDUCED
    )
    return groups


@pytest.mark.parametrize(("store", "name"), COMPRESSED)
@settings(max_examples=12)
@given(data=st.data())
def test_a_flipped_bit_in_a_chunk_raises_on_reading(undamaged, store, name, data):
    array = undamaged[store][name]
    [chunk] = (path for path in (array.store_path.store.root / name / "c").rglob("*") if path.is_file())
    good = chunk.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(good) - 1), label="bit")
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    chunk.write_bytes(bad)
    try:
        with pytest.raises(ValueError, match="checksum"):
            array[...]
    finally:
        chunk.write_bytes(good)
    np.testing.assert_array_equal(array[...], values_of({**RESULTS, **TRAINING, **SCAN, "reduced": REDUCED}[name]))


@settings(max_examples=25)
@given(data=st.data())
def test_a_flipped_bit_anywhere_in_a_shard_raises_on_reading(undamaged, data):
    group = undamaged["scan"]
    [shard] = (path for path in (group.store_path.store.root / "sharded" / "c").rglob("*") if path.is_file())
    good = shard.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(good) - 1), label="bit")
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    shard.write_bytes(bad)
    try:
        with pytest.raises(ValueError, match="checksum"):
            group["sharded"][...]
    finally:
        shard.write_bytes(good)


def test_meanings_within_a_store_are_distinct():
    for specs in (SCAN, TRAINING, RESULTS):
        for one, other in itertools.combinations(specs, 2):
            assert specs[one].meaning != specs[other].meaning
        assert all(spec.meaning and "\n" not in spec.meaning for spec in specs.values())


def test_results_open_with_xarray_as_the_design_says(tmp_path):
    fill(tmp_path, RESULTS)
    with xr.open_zarr(tmp_path, consolidated=False) as dataset:
        assert {name: dataset[name].dims for name in dataset.variables} == TABLE
        assert set(dataset.coords) == {"k", "score_k", "y", "x"}
        assert dataset["labels"].dtype == np.int32
        assert dataset["reconstruction_error"].attrs["units"] == "nat"
