import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from laue_dask import schema
from laue_dask.errors import StoreError
from laue_dask.io import results
from laue_dask.io.results import RESULTS_STORE, ResultsWriter
from laue_dask.schema import RESULTS

SIZES = {
    "pattern": 6, "latent": 16, "component": 16, "k": 2, "score_k": 3, "y": 2, "x": 3, "cluster": 4,
    "rank": 3, "channel": 3, "draw": 5,
}  # fmt: skip
BLOCKS = ("features", "components")
"""What is written block by block; all else is put at once."""


def values_of(name, *, seed=0):
    spec = RESULTS[name]
    shape = tuple(SIZES[dim] for dim in spec.dims)
    return np.random.default_rng(seed).integers(0, 200, shape).astype(spec.dtype)


def fill(writer, *, seed=0, key="one", finished=True):
    for name in BLOCKS:
        values = values_of(name, seed=seed)
        array = writer.blocks(name, values.shape, block=4, key=key)
        array[...] = values
        if finished:
            array.attrs["finished"] = True
    for name in RESULTS:
        if name not in BLOCKS:
            writer.put(name, values_of(name, seed=seed))


@pytest.fixture
def run(tmp_path):
    """Folder of a finished run."""
    writer = ResultsWriter(tmp_path, {"scan_shape": [2, 3]})
    fill(writer)
    writer.finish()
    return tmp_path


def files_below(folder):
    return {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_was_written_is_read_with_its_attributes(run):
    with results.read(run) as dataset:
        assert dataset.attrs == {"laue_dask_schema": schema.SCHEMA_VERSION, "scan_shape": [2, 3]}
        assert set(dataset.variables) == set(RESULTS)
        for name, spec in RESULTS.items():
            assert dataset[name].dims == spec.dims
            assert dataset[name].dtype == spec.dtype
            np.testing.assert_array_equal(dataset[name].values, values_of(name))


def test_results_are_read_lazily(run):
    with results.read(run) as dataset:
        assert dataset["features"].chunks == ((4, 2), (16,))


def test_padding_is_read_as_it_was_written(tmp_path):
    writer = ResultsWriter(tmp_path, {})
    fill(writer)
    writer.put("labels", np.full((2, 2, 3), -1))
    writer.put("delegate", np.full((2, 4), -1))
    writer.finish()
    with results.read(tmp_path) as dataset:
        assert dataset["labels"].dtype == np.int32
        assert (dataset["labels"].values == -1).all()
        assert dataset["delegate"].dtype == np.int64


def test_nothing_is_visible_before_it_is_finished(tmp_path):
    writer = ResultsWriter(tmp_path, {})
    fill(writer)
    assert not (tmp_path / RESULTS_STORE).exists()
    with pytest.raises(StoreError, match="no finished run"):
        results.read(tmp_path)
    writer.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == [RESULTS_STORE]


def test_incomplete_results_are_not_finished_and_leave_the_last_ones(run):
    writer = ResultsWriter(run, {})
    writer.put("k", np.array([5]))
    with pytest.raises(StoreError, match=r"array 'features' is missing"):
        writer.finish()
    with results.read(run) as dataset:
        np.testing.assert_array_equal(dataset["k"].values, values_of("k"))


def test_new_results_take_the_place_of_the_old(run):
    writer = ResultsWriter(run, {"scan_shape": [3, 2]})
    fill(writer, seed=1, key="two")
    writer.finish()
    with results.read(run) as dataset:
        assert dataset.attrs["scan_shape"] == [3, 2]
        for name in RESULTS:
            np.testing.assert_array_equal(dataset[name].values, values_of(name, seed=1))
    assert sorted(path.name for path in run.iterdir()) == [RESULTS_STORE]


def test_an_unfinished_array_of_the_same_key_is_gone_on_with(tmp_path):
    first = ResultsWriter(tmp_path, {}).blocks("features", (6, 16), block=4, key="one")
    first[:4] = 7
    second = ResultsWriter(tmp_path, {}).blocks("features", (6, 16), block=4, key="one")
    assert (second[:4] == 7).all()
    assert np.isnan(second[4:]).all()


@pytest.mark.parametrize(("key", "shape"), [("two", (6, 16)), ("one", (7, 16)), ("one", (6, 8))])
def test_an_array_of_another_key_or_shape_is_begun_anew(tmp_path, key, shape):
    first = ResultsWriter(tmp_path, {}).blocks("features", (6, 16), block=4, key="one")
    first[...] = 7
    (tmp_path / f"{RESULTS_STORE}.part" / "features" / "journal.jsonl").write_text('{"block":0}')
    second = ResultsWriter(tmp_path, {}).blocks("features", shape, block=4, key=key)
    assert second.shape == shape
    assert np.isnan(second[...]).all()
    assert second.attrs["key"] == key
    assert not (tmp_path / f"{RESULTS_STORE}.part" / "features" / "journal.jsonl").exists()


def test_a_finished_array_of_the_last_run_is_taken_over_without_a_copy_of_its_data(run):
    old = files_below(run / RESULTS_STORE / "features")
    array = ResultsWriter(run, {}).blocks("features", (6, 16), block=4, key="one")
    np.testing.assert_array_equal(array[...], values_of("features"))
    assert array.attrs["finished"] is True
    new = files_below(run / f"{RESULTS_STORE}.part" / "features")
    assert new.keys() == old.keys()
    assert all(new[name].samefile(old[name]) == (name.name != "zarr.json") for name in old)


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_a_kill_while_an_array_is_taken_over_leaves_no_array_with_gaps(run, monkeypatch, survived):
    link = results._link
    left = iter(range(survived))

    def killed(source, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return link(source, target)

    writer = ResultsWriter(run, {})
    monkeypatch.setattr(results, "_link", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.blocks("features", (6, 16), block=4, key="one")
    monkeypatch.undo()
    writer = ResultsWriter(run, {})
    array = writer.blocks("features", (6, 16), block=4, key="one")
    np.testing.assert_array_equal(array[...], values_of("features"))
    fill(writer)
    writer.finish()
    assert sorted(path.name for path in run.iterdir()) == [RESULTS_STORE]


def test_attributes_of_an_array_taken_over_do_not_reach_the_last_run(run):
    array = ResultsWriter(run, {}).blocks("components", (6, 16), block=4, key="one")
    array.attrs["m_pca"] = 3
    with results.read(run) as dataset:
        assert "m_pca" not in dataset["components"].attrs


def test_where_files_cannot_be_shared_they_are_copied(run, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    array = ResultsWriter(run, {}).blocks("features", (6, 16), block=4, key="one")
    np.testing.assert_array_equal(array[...], values_of("features"))


@pytest.mark.parametrize("changed", ["unfinished", "key"])
def test_an_array_of_the_last_run_that_does_not_fit_is_not_taken_over(run, changed):
    last = zarr.open_array(str(run / RESULTS_STORE), path="features", mode="r+")
    last.attrs.update({"finished": False} if changed == "unfinished" else {"key": "two"})
    array = ResultsWriter(run, {}).blocks("features", (6, 16), block=4, key="one")
    assert np.isnan(array[...]).all()


def test_what_an_earlier_writer_left_in_the_store_does_not_become_results(tmp_path):
    zarr.open_group(str(tmp_path / f"{RESULTS_STORE}.part"), mode="a", zarr_format=3).create_array(
        "old", shape=(3,), dtype="i4"
    )
    writer = ResultsWriter(tmp_path, {})
    fill(writer)
    writer.finish()
    with results.read(tmp_path) as dataset:
        assert set(dataset.variables) == set(RESULTS)


def test_a_value_of_another_dtype_is_stored_as_the_schema_says(tmp_path):
    writer = ResultsWriter(tmp_path, {})
    writer.put("labels", np.arange(12, dtype=np.int64).reshape(2, 2, 3))
    writer.put("silhouette", np.array([0.5, 0.25], dtype=np.float32))
    assert writer.group["labels"].dtype == np.int32
    assert writer.group["silhouette"].dtype == np.float64
    np.testing.assert_array_equal(writer.group["labels"][...].ravel(), np.arange(12))


def test_an_empty_array_is_stored_as_such(tmp_path):
    writer = ResultsWriter(tmp_path, {})
    writer.put("k", np.array([], dtype=np.int32), attributes={"asked": []})
    assert writer.group["k"].shape == (0,)
    assert writer.group["k"].attrs["asked"] == []


def damage(store, how):
    if how == "missing":
        zarr.open_group(str(store), mode="r+").__delitem__("labels")
    elif how == "version":
        zarr.open_group(str(store), mode="r+").attrs["laue_dask_schema"] = 99
    elif how == "metadata":
        (store / "zarr.json").write_text("{")
    elif how == "array":
        (store / "labels" / "zarr.json").write_text("{")
    elif how == "empty":
        for path in files_below(store).values():
            path.unlink()


@pytest.mark.parametrize("how", ["missing", "version", "metadata", "array", "empty"])
def test_a_damaged_store_is_refused_in_one_line(run, how):
    damage(run / RESULTS_STORE, how)
    with pytest.raises(StoreError) as caught:
        results.read(run)
    assert "\n" not in str(caught.value)
    assert RESULTS_STORE in str(caught.value)


def test_a_folder_without_a_run_says_how_to_make_one(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(StoreError, match=r"no finished run .* `laue-dask run`"):
            results.read(folder)


def test_a_kill_between_the_two_renames_loses_no_results(run, monkeypatch):
    writer = ResultsWriter(run, {})
    fill(writer, seed=1, key="two")
    real = Path.rename

    def killed(self, target):
        if self.name.endswith(".part"):
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.finish()
    monkeypatch.undo()
    writer = ResultsWriter(run, {})
    taken = writer.blocks("features", (6, 16), block=4, key="two")
    np.testing.assert_array_equal(taken[...], values_of("features", seed=1))
    fill(writer, seed=1, key="two")
    writer.finish()
    with results.read(run) as dataset:
        np.testing.assert_array_equal(dataset["features"].values, values_of("features", seed=1))
