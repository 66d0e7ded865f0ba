import csv
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr

from laue_dask.grains.regions import Region
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.stages import grains
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.segmentation.labeling import ranked_delegates


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def opened(small_run):
    with xr.open_zarr(small_run / "results.zarr", consolidated=False, mask_and_scale=False) as dataset:
        yield dataset.load(), ScanStore.open(small_run / "scan.zarr")


def test_the_grains_of_a_run_are_on_the_map_and_in_the_table(small_run, opened):
    dataset, store = opened
    table = rows_of(small_run / grains.GRAINS_FILE)
    grain = dataset["grain"].values
    assert [int(row["size"]) for row in table] == np.bincount(grain[grain >= 0]).tolist()
    for row in table:
        delegate = int(row["delegate"])
        assert grain.ravel()[delegate] == int(row["grain"])
        assert row["file"] == store.source[delegate]
    assert dataset["grain"].attrs["threshold"] > 0
    assert np.isfinite(dataset["boundary_strength"].values[grain >= 0]).all()


def test_delegates_and_those_that_stand_in_for_them_are_in_a_table_with_their_files(small_run, opened):
    dataset, store = opened
    table = rows_of(small_run / grains.DELEGATES_FILE)
    assert {int(row["k"]) for row in table} == set(dataset["k"].values.tolist())
    for row in table:
        k, cluster, pattern = (int(row[name]) for name in ("k", "cluster", "pattern"))
        one = dataset.sel(k=k)
        assert (int(row["y"]), int(row["x"])) == divmod(pattern, store.scan_shape[1])
        assert one["labels"].values.ravel()[pattern] == cluster
        assert int(row["size"]) == np.count_nonzero(one["labels"].values == cluster)
        assert row["file"] == store.source[pattern]
        if row["rank"] == "1":
            assert one["delegate"].values[cluster] == pattern
    for one, two in pairwise(table):
        if two["rank"] != "1":
            assert int(two["rank"]) == int(one["rank"]) + 1 <= grains.N_RANKS
            assert one["domains"] <= two["domains"]  # what shows two comes last
    assert {row["domains"] for row in table} <= {"1", "2"}


def test_patterns_that_cannot_be_indexed_are_left_out(opened):
    dataset, store = opened
    where, m_pca = SpecimenMap(store.valid, store.scan_shape), int(dataset["components"].attrs["m_pca"])
    components = dataset["components"].values
    first = grains.ranked(components, m_pca, where, dataset)
    indexable = np.ones(len(store.valid), bool)
    indexable[[row["pattern"] for row in first if row["rank"] == 1]] = False
    left = grains.ranked(components, m_pca, where, dataset, indexable=indexable)
    assert all(indexable[row["pattern"]] for row in left)
    k = int(dataset["k"].values[0])
    one = dataset.sel(k=k)
    chosen = ranked_delegates(
        components[:, :m_pca],
        one["labels"].values.ravel(),
        one["centroids"].values[:k, :m_pca],
        indexable=indexable,
        count=1,
    )
    assert [row["pattern"] for row in left if row["k"] == k and row["rank"] == 1] == chosen[chosen >= 0].tolist()


def test_regions_know_where_they_are_on_the_stage(opened):
    dataset, _ = opened
    changed = dataset.copy(deep=True)
    changed["boundary_strength"][:] = 0.01
    changed["boundary_strength"][2:4, 3:5] = 1.0
    (region, *_) = grains.proposed(changed)
    assert [region[name] for name in ("y0", "y1", "x0", "x1")] == [2, 3, 3, 4]
    # The simulated stage starts at 6 mm and moves by 5 µm.
    assert (region["stage_y0_um"], region["stage_y1_um"]) == pytest.approx((6010, 6015))
    assert (region["stage_x0_um"], region["stage_x1_um"]) == pytest.approx((6015, 6020))
    unknown = grains.proposed(changed.drop_vars(["y", "x"]))
    assert unknown[0]["stage_x0_um"] == ""
    assert unknown[0]["score"] == region["score"]


def test_a_region_of_descending_coordinates_is_told_with_the_smaller_end_first():
    found = {"y": 6000 + 5.0 * np.arange(6), "x": 7000 - 5.0 * np.arange(8)}
    dataset = xr.Dataset(coords={name: (name, values, {"units": "µm"}) for name, values in found.items()})
    box = grains._stage_box(dataset, Region(1, 3, 2, 5, 2.0, ""))
    assert box == {"stage_y0_um": 6005, "stage_y1_um": 6015, "stage_x0_um": 6975, "stage_x1_um": 6990}
