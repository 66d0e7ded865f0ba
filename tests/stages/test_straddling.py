"""Points between two domains: which patterns are read, and whose label they get."""

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.config import ClusteringConfig, Recipe
from laue_dask.errors import StoreError
from laue_dask.io.results import ResultsWriter
from laue_dask.preprocess import reduce_frames
from laue_dask.progress import QuietProgress
from laue_dask.stages import segmentation, straddling
from laue_dask.stages.specimen import Map
from laue_dask.stages.straddling import Labels, Patterns, share_out

QUIET = QuietProgress()
RECIPE = Recipe()
PART = np.array([1.0] * 8 + [0.0] * 8 + [0.3, 0.4, 0.6, 0.7])
"""Share of the beam in a strong crystal, beside a weak one."""


@pytest.fixture
def scan(straddled):
    """Makes reduced patterns on disk, and components that see the strong crystal alone where there is any of it."""

    def made(folder):
        reduced = reduce_frames(straddled([(30_000 * p, 7500 * (1 - p)) for p in PART], seed=1), None, RECIPE)
        group = zarr.open_group(folder, mode="a")
        array = group.create_array("reduced", shape=reduced.shape, chunks=(4, 128, 128), dtype="u1")
        array[:] = reduced
        x = np.where(PART == 0, 0, 0.7 + 0.3 * PART)
        return array, np.column_stack([x, np.zeros_like(x)]).astype(np.float32)

    return made


def nearest(X):
    """Labels by the strong crystal, the larger cluster first."""
    return Labels((X[:, 0] < 0.5).astype(np.int32), 2)


@pytest.mark.parametrize("there", [False, True])
def test_the_larger_share_decides_between_two_clusters(tmp_path, workers, scan, there, monkeypatch):
    monkeypatch.setattr(straddling, "PER_TASK", 3)
    array, X = scan(tmp_path / "store")
    where = Map(np.ones(len(X), bool), (4, 5))
    monkeypatch.setattr(straddling.shares, "BETWEEN", 0.9)
    before = nearest(X)
    kept = before.labels.copy()
    [found] = share_out(
        da.from_array(X, chunks=(7, 2)),
        [before],
        Patterns(RECIPE, [(array, where)]),
        client=workers.client if there else None,
        progress=QUIET,
    )
    assert found.n_clusters == 2
    np.testing.assert_array_equal(found.labels, PART < 0.5)
    np.testing.assert_array_equal(before.labels, kept)
    assert (before.labels[16:] == 0).all()


def test_several_segmentations_and_scans_at_a_time_and_what_cannot_be_shared_stays(tmp_path, scan, monkeypatch):
    monkeypatch.setattr(straddling.shares, "BETWEEN", 0.9)
    (one, X), (two, _) = scan(tmp_path / "one"), scan(tmp_path / "two")
    valid = np.ones(len(X), bool)
    valid[[1, 9, 17]] = False
    scans = [(one, Map(valid, (4, 5))), (two, Map(np.ones(len(X), bool), (4, 5)))]
    rows = np.concatenate([X[valid], X])
    single = Labels(np.zeros(len(rows), np.int32), 1)
    before = nearest(rows)
    found = share_out(rows, [single, before, before], Patterns(RECIPE, scans), client=None, progress=QUIET)
    assert found[0] is single
    part = np.concatenate([PART[valid], PART])
    for one_of_them in found[1:]:
        np.testing.assert_array_equal(one_of_them.labels, part < 0.5)
    blind = Recipe(clip_sigma=0)
    assert share_out(rows, [before], Patterns(blind, scans), client=None, progress=QUIET) == [before]


def test_what_stands_for_a_cluster_stays_in_it(tmp_path, scan, monkeypatch):
    """Two clusters of which the second is nothing but points between the first and another."""
    monkeypatch.setattr(straddling.shares, "BETWEEN", 1.1)
    array, X = scan(tmp_path / "store")
    labels = np.array([0] * 8 + [1] * 8 + [2] * 4, np.int32)
    X = X + 5 * (labels == 2)[:, None].astype(np.float32)
    patterns = Patterns(RECIPE, [(array, Map(np.ones(len(X), bool), (4, 5)))])
    [found] = share_out(X, [Labels(labels, 3)], patterns, client=None, progress=QUIET)
    assert set(found.labels) == {0, 1, 2}


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=4), st.data())
def test_rows_are_found_where_their_patterns_are(tmp_path_factory, valid, data):
    folder = tmp_path_factory.mktemp("places")
    scans, expected = [], []
    for i, one in enumerate(valid):
        array = zarr.create_array(folder / str(i), shape=(len(one), 2, 2), chunks=(1, 2, 2), dtype="u1")
        scans.append((array, Map(np.array(one), (1, len(one)))))
        expected += [(str(i), pattern) for pattern in np.flatnonzero(one)]
    rows = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(expected), max_size=len(expected))))
    places = Patterns(RECIPE, scans).places(rows.astype(np.int64))
    found = [(root.rsplit("/", 1)[-1], int(i)) for root, _, patterns in places for i in patterns]
    assert found == [expected[row] for row in rows]


def test_damaged_patterns_are_told_in_a_line(tmp_path, scan, monkeypatch):
    monkeypatch.setattr(straddling.shares, "BETWEEN", 0.9)
    array, X = scan(tmp_path / "store")
    for path in (tmp_path / "store" / "reduced" / "c").rglob("*"):
        if path.is_file():
            path.write_bytes(b"x")
    patterns = Patterns(RECIPE, [(array, Map(np.ones(len(X), bool), (4, 5)))])
    with pytest.raises(StoreError, match="makes it anew"):
        share_out(X, [nearest(X)], patterns, client=None, progress=QUIET)


@pytest.mark.parametrize("straddling_points", ["share", "nearest"])
def test_a_segmentation_takes_the_larger_share_or_the_nearest_centroid_as_configured(
    tmp_path, scan, straddling_points, monkeypatch
):
    monkeypatch.setattr(straddling.shares, "BETWEEN", 0.9)
    array, X = scan(tmp_path / "store")
    where = Map(np.ones(len(X), bool), (4, 5))
    results = ResultsWriter(tmp_path, {"scan_shape": [4, 5]})
    [found] = segmentation.segment(
        da.from_array(X, chunks=(8, 2)),
        2,
        where,
        (2,),
        ClusteringConfig(straddling=straddling_points),
        results,
        progress=QUIET,
        patterns=Patterns(RECIPE, [(array, where)]),
    )
    weak = PART < 0.5 if straddling_points == "share" else PART == 0
    labels = found.labels.ravel()
    assert len(set(labels[weak])) == len(set(labels[~weak])) == 1
    assert set(labels) == {0, 1}
    for k in (0, 1):  # means of those that have the label in the end (eq. 9)
        np.testing.assert_allclose(found.centroids[k], X[labels == k].mean(axis=0), rtol=1e-5)
