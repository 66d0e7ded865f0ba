"""Delegates that lie in one domain, and clusters that have none."""

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.config import ClusteringConfig, Recipe
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline.stages import delegates, grains, segmentation
from laue_dask.pipeline.stages.delegates import (
    DOMAINS_UNKNOWN,
    N_RANKS,
    ONE_DOMAIN,
    TWO_DOMAINS,
    DelegateChooser,
    two_domain_warnings,
    with_delegates,
)
from laue_dask.pipeline.stages.mixed_points import Patterns
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.pipeline.stages.tables import Table
from laue_dask.reduction.reduce import reduce_frames
from laue_dask.runtime.progress import QuietProgress
from laue_dask.segmentation import labeling

SHAPE = (6, 9)
PART = np.tile([1, 1, 1, 1, 0.5, 0, 0, 0, 0], 6)
"""Share of the beam in the first of two crystals beside each other, row by row."""


@pytest.fixture(scope="module")
def twins(straddled, tmp_path_factory):
    """Components of points on two crystals, and their reduced patterns on disk."""
    frames = straddled([(30_000 * p, 25_000 * (1 - p)) for p in (1, 0.5, 0)], seed=1)
    reduced = reduce_frames(frames, None, Recipe())[np.rint(2 * (1 - PART)).astype(int)]
    array = zarr.create_array(tmp_path_factory.mktemp("s") / "r", shape=reduced.shape, chunks=(8, 128, 128), dtype="u1")
    array[:] = reduced
    X = np.column_stack([PART, np.zeros(len(PART))]) + np.random.default_rng(2).normal(0, 1e-3, (len(PART), 2))
    return X.astype(np.float32), Patterns(Recipe(), [(array, SpecimenMap(np.ones(len(PART), bool), SHAPE))])


def chooser(X, patterns, where=None):
    where = where or SpecimenMap(np.ones(len(X), bool), SHAPE)
    return DelegateChooser(da.from_array(X, chunks=(7, -1)), where, patterns, client=None)


@pytest.mark.parametrize("there", [True, False])
def test_a_cluster_of_both_twins_is_not_stood_for_by_a_point_between_them(twins, there):
    X, patterns = twins
    labels = np.zeros(len(X), np.int32)
    means = labeling.centroids(X, labels, 1)
    assert PART[labeling.delegates(X, labels, means)[0]] == 0.5  # the nearest to the mean of both
    found, mixed = chooser(X, patterns if there else None).choose(labels, means)
    assert np.isin(PART[found[0]], (0, 1)).all()
    assert mixed.tolist() == [[ONE_DOMAIN] * N_RANKS]


def test_a_cluster_of_points_between_domains_keeps_the_nearest_and_is_told(twins):
    X, patterns = twins
    labels = np.where(PART == 0.5, 2, np.where(PART == 1, 0, 1)).astype(np.int32)
    means = labeling.centroids(X, labels, 3)
    found, mixed = chooser(X, patterns).choose(labels, means)
    assert mixed.tolist() == [[ONE_DOMAIN] * N_RANKS, [ONE_DOMAIN] * N_RANKS, [TWO_DOMAINS] * N_RANKS]
    assert found[2].tolist() == labeling.ranked_delegates(X, labels, means, count=N_RANKS)[2].tolist()
    assert (chooser(X, None).choose(labels, means)[1][2] == DOMAINS_UNKNOWN).all()
    one = segmentation.Segmentation(3, 3, labels.reshape(SHAPE), *[np.zeros(0)] * 2, means, np.zeros(3, int))
    where = SpecimenMap(np.ones(len(X), bool), SHAPE)
    [line] = two_domain_warnings([one, with_delegates(one, chooser(X, patterns), where, 2)])
    assert line == f"K = 3: cluster 2 of points where the beam lies between domains: {delegates.TWO_DOMAINS_WARNING}"


def test_bent_grains_are_not_told_to_lie_on_two_domains(straddled, tmp_path):
    """Features that turn fast from point to point are unlike on either side, but patterns are no sums."""
    n = 9
    reduced = reduce_frames(np.concatenate([straddled([(30_000, 0)], seed=i) for i in range(n)]), None, Recipe())
    array = zarr.create_array(tmp_path / "r", shape=reduced.shape, chunks=(4, 128, 128), dtype="u1")
    array[:] = reduced
    where = SpecimenMap(np.ones(n, bool), (1, n))
    steps = np.array([0.01, 0.01, 0.01, 0.01, 0.01, 1, 1, 1])
    X = np.concatenate([[0], np.cumsum(steps)])[:, None].astype(np.float32)
    labels = np.where(np.arange(n) < 6, 0, 1).astype(np.int32)
    asked = chooser(X, Patterns(Recipe(), [(array, where)]), where)
    assert asked._unlike.any()
    found, mixed = asked.choose(labels, labeling.centroids(X, labels, 2))
    assert (found[1, :3] >= 6).all()
    assert found[1, 3] == -1
    assert mixed[1].tolist() == [ONE_DOMAIN, ONE_DOMAIN, ONE_DOMAIN, DOMAINS_UNKNOWN]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_every_cluster_with_members_has_a_delegate_of_its_own_and_always_the_same(ny, nx, k, seed):
    rng = np.random.default_rng(seed)
    valid = rng.random(ny * nx) < 0.8
    valid[rng.integers(ny * nx)] = True
    where, n = SpecimenMap(valid, (ny, nx)), int(valid.sum())
    X = rng.integers(0, 4, (n, 2)).astype(np.float32)
    labels = rng.integers(0, k, n).astype(np.int32)
    means = labeling.centroids(X, labels, k)
    found, mixed = chooser(X, None, where).choose(labels, means)
    assert found.shape == mixed.shape == (k, N_RANKS)
    for cluster in range(k):
        members = where.patterns[labels == cluster]
        chosen = found[cluster][found[cluster] >= 0]
        assert len(chosen) == len(set(chosen.tolist())) == min(N_RANKS, len(members))
        assert np.isin(chosen, members).all()
    assert (mixed[found < 0] == DOMAINS_UNKNOWN).all()
    again = chooser(X, None, where).choose(labels, means)
    np.testing.assert_array_equal(found, again[0])


def test_delegates_are_written_read_again_and_tabled(twins, tmp_path):
    X, patterns = twins
    where = SpecimenMap(np.ones(len(X), bool), SHAPE)
    table = da.from_array(X, chunks=(8, 2))
    writer = ResultsWriter(tmp_path, {"scan_shape": list(SHAPE)})
    own = Table(table, where, writer, patterns.scans[0][0])
    config = ClusteringConfig(mixed_points="estimator")
    [[two, three]] = segmentation.segment([own], 2, (2, 3), config, patterns.recipe, progress=QuietProgress())
    arrays = {
        name: np.asarray(writer.group[name])
        for name in (*segmentation.SEGMENTATION_ARRAYS, *segmentation.DELEGATE_ARRAYS)
    }
    assert arrays["delegates"].shape == (2, 3, N_RANKS)
    np.testing.assert_array_equal(arrays["delegates"][1, :, 0], arrays["delegate"][1])
    assert (arrays["delegates_mixed"][1] == TWO_DOMAINS).any(axis=1).sum() == 1
    import xarray as xr

    dims = {name: writer.group[name].metadata.dimension_names for name in arrays}
    dataset = xr.Dataset({name: (dims[name], values) for name, values in arrays.items()})
    known = segmentation.read(dataset)
    np.testing.assert_array_equal(known[3].delegates, three.delegates)
    np.testing.assert_array_equal(known[2].delegates_mixed, two.delegates_mixed)
    rows = grains.ranked(table, 2, where, dataset)
    assert {row["domains"] for row in rows if row["k"] == 3} == {1, 2}
    assert [row["pattern"] for row in rows if row["k"] == 3 and row["rank"] == 1] == three.delegate.tolist()
    # What an earlier version made has the members nearest to the centroid, and nobody knows of their domains.
    older = segmentation.read(dataset.drop_vars(segmentation.DELEGATE_ARRAYS))
    assert older[2].delegates is None
    rows = grains.ranked(table, 2, where, dataset.drop_vars(segmentation.DELEGATE_ARRAYS))
    assert {row["domains"] for row in rows} == {""}
    [kept] = segmentation.segment(
        [own], 2, (2, 3), config, patterns.recipe, progress=QuietProgress(), known=[{2: older[2]}]
    )
    assert kept[0].delegates is None
    np.testing.assert_array_equal(kept[1].delegates, three.delegates)
