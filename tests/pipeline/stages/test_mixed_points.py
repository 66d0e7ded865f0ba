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
from laue_dask.pipeline.stages import mixed_points, segmentation
from laue_dask.pipeline.stages.mixed_points import Labels, Patterns, not_relabelled_warnings, relabel_mixed_points
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.pipeline.stages.tables import Table
from laue_dask.reduction.reduce import reduce_frames
from laue_dask.runtime.progress import QuietProgress

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
    monkeypatch.setattr(mixed_points, "PATTERNS_PER_TASK", 3)
    array, X = scan(tmp_path / "store")
    where = SpecimenMap(np.ones(len(X), bool), (4, 5))
    monkeypatch.setattr(mixed_points.beam_shares, "MAX_RELATIVE_MARGIN", 0.9)
    before = nearest(X)
    kept = before.labels.copy()
    [found] = relabel_mixed_points(
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
    monkeypatch.setattr(mixed_points.beam_shares, "MAX_RELATIVE_MARGIN", 0.9)
    (one, X), (two, _) = scan(tmp_path / "one"), scan(tmp_path / "two")
    valid = np.ones(len(X), bool)
    valid[[1, 9, 17]] = False
    scans = [(one, SpecimenMap(valid, (4, 5))), (two, SpecimenMap(np.ones(len(X), bool), (4, 5)))]
    rows = np.concatenate([X[valid], X])
    single = Labels(np.zeros(len(rows), np.int32), 1)
    before = nearest(rows)
    found = relabel_mixed_points(rows, [single, before, before], Patterns(RECIPE, scans), client=None, progress=QUIET)
    assert found[0] is single
    part = np.concatenate([PART[valid], PART])
    for one_of_them in found[1:]:
        np.testing.assert_array_equal(one_of_them.labels, part < 0.5)
    for recipe, most in ((Recipe(clip_sigma=0), 512), (RECIPE, 1)):
        monkeypatch.setattr(mixed_points.beam_shares, "MAX_CLUSTERS", most)
        assert relabel_mixed_points(rows, [before], Patterns(recipe, scans), client=None, progress=QUIET) == [before]


def test_what_keeps_its_labels_is_told():
    assert not_relabelled_warnings([(4, 4), (600, 512)], RECIPE) == []
    [line] = not_relabelled_warnings([(4, 4), (600, 513)], RECIPE)
    assert line == "K = 600: 513 clusters, more than 512: points between two domains keep the estimator's labels"
    [line] = not_relabelled_warnings([(4, 4), (6, 6)], Recipe(clip_sigma=0.5))
    assert line.startswith("recipe.clip_sigma = 0.5 with recipe.softening_sigma = 10: ")


def test_what_stands_for_a_cluster_stays_in_it(tmp_path, scan, monkeypatch):
    """Whatever is moved, no cluster is lost."""
    monkeypatch.setattr(mixed_points.beam_shares, "MAX_RELATIVE_MARGIN", 1.1)
    monkeypatch.setattr(
        mixed_points.beam_shares, "distinguishable", lambda domains, own, other: np.ones(len(own), bool)
    )
    monkeypatch.setattr(mixed_points.beam_shares, "other_is_larger", lambda found: np.ones(found.shape[:-1], bool))
    array, X = scan(tmp_path / "store")
    labels = np.array([0] * 8 + [1] * 8 + [2] * 4, np.int32)
    X = X + 5 * (labels == 2)[:, None].astype(np.float32)
    patterns = Patterns(RECIPE, [(array, SpecimenMap(np.ones(len(X), bool), (4, 5)))])
    [found] = relabel_mixed_points(X, [Labels(labels, 3)], patterns, client=None, progress=QUIET)
    assert set(found.labels) == {0, 1, 2}
    assert (found.labels != labels).any()


def test_clusters_are_named_by_their_sizes_again(tmp_path, scan, monkeypatch):
    monkeypatch.setattr(mixed_points.beam_shares, "MAX_RELATIVE_MARGIN", 0.9)
    array, X = scan(tmp_path / "store")
    rows = np.r_[0:5, 8:14, 16, 17, 16, 17]  # 9 of them look strong, 10 are weak
    X, valid = X[rows], np.ones(len(rows), bool)
    group = zarr.open_group(tmp_path / "other", mode="a")
    other = group.create_array("reduced", shape=(len(rows), 128, 128), chunks=(4, 128, 128), dtype="u1")
    other[:] = array[:][rows]
    patterns = Patterns(RECIPE, [(other, SpecimenMap(valid, (1, len(rows))))])
    before = nearest(X)
    assert np.bincount(before.labels).tolist() == [9, 6]
    [found] = relabel_mixed_points(X, [before], patterns, client=None, progress=QUIET)
    assert np.bincount(found.labels).tolist() == [10, 5]
    np.testing.assert_array_equal(found.labels == 0, PART[rows] < 0.5)


def test_only_patterns_between_two_domains_are_read_and_once_for_all_segmentations(tmp_path, scan, monkeypatch):
    monkeypatch.setattr(mixed_points.beam_shares, "MAX_RELATIVE_MARGIN", 0.9)
    array, X = scan(tmp_path / "store")
    two = nearest(X)
    alike = iter([False, True, False])
    monkeypatch.setattr(
        mixed_points.beam_shares, "distinguishable", lambda domains, own, other: np.full(len(own), not next(alike))
    )
    looked = []
    larger = mixed_points.beam_shares.other_is_larger
    monkeypatch.setattr(
        mixed_points.beam_shares, "other_is_larger", lambda found: looked.append(found) or larger(found)
    )
    patterns = Patterns(RECIPE, [(array, SpecimenMap(np.ones(len(X), bool), (4, 5)))])
    found = relabel_mixed_points(X, [two, two, two], patterns, client=None, progress=QUIET)
    [fits] = looked
    # The mixed ones, of which one is near the centroid of the strong; nothing is asked between clusters of one domain.
    assert fits.any(axis=2).tolist() == [[True, False, True]] * 3
    np.testing.assert_array_equal(found[1].labels, two.labels)
    for one in (found[0], found[2]):
        np.testing.assert_array_equal(one.labels, PART < 0.5)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=4), st.data())
def test_rows_are_found_where_their_patterns_are(tmp_path_factory, valid, data):
    folder = tmp_path_factory.mktemp("places")
    scans, expected = [], []
    for i, one in enumerate(valid):
        array = zarr.create_array(folder / str(i), shape=(len(one), 2, 2), chunks=(1, 2, 2), dtype="u1")
        scans.append((array, SpecimenMap(np.array(one), (1, len(one)))))
        expected += [(str(i), pattern) for pattern in np.flatnonzero(one)]
    rows = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(expected), max_size=len(expected))))
    places = Patterns(RECIPE, scans).locate(rows.astype(np.int64))
    found = [(root.rsplit("/", 1)[-1], int(i)) for root, _, patterns in places for i in patterns]
    assert found == [expected[row] for row in rows]


def test_damaged_patterns_are_told_in_a_line(tmp_path, scan, monkeypatch):
    monkeypatch.setattr(mixed_points.beam_shares, "MAX_RELATIVE_MARGIN", 0.9)
    array, X = scan(tmp_path / "store")
    for path in (tmp_path / "store" / "reduced" / "c").rglob("*"):
        if path.is_file():
            path.write_bytes(b"x")
    patterns = Patterns(RECIPE, [(array, SpecimenMap(np.ones(len(X), bool), (4, 5)))])
    with pytest.raises(StoreError, match="makes it again"):
        relabel_mixed_points(X, [nearest(X)], patterns, client=None, progress=QUIET)


@pytest.mark.parametrize("label_of", ["larger_share", "estimator"])
def test_a_segmentation_takes_the_larger_share_or_the_nearest_centroid_as_configured(
    tmp_path, scan, label_of, monkeypatch
):
    monkeypatch.setattr(mixed_points.beam_shares, "MAX_RELATIVE_MARGIN", 0.9)
    array, X = scan(tmp_path / "store")
    where = SpecimenMap(np.ones(len(X), bool), (4, 5))
    results = ResultsWriter(tmp_path, {"scan_shape": [4, 5]})
    table = Table(da.from_array(X, chunks=(8, 2)), where, results, array)
    config = ClusteringConfig(mixed_points=label_of)
    [[found]] = segmentation.segment([table], 2, (2,), config, RECIPE, progress=QUIET)
    weak = PART < 0.5 if label_of == "larger_share" else PART == 0
    labels = found.labels.ravel()
    assert len(set(labels[weak])) == len(set(labels[~weak])) == 1
    assert set(labels) == {0, 1}
    for k in (0, 1):  # means of those that have the label in the end (eq. 9)
        np.testing.assert_allclose(found.centroids[k], X[labels == k].mean(axis=0), rtol=1e-5)


def test_a_smoother_map_keeps_the_larger_share(tmp_path, scan, monkeypatch):
    monkeypatch.setattr(mixed_points.beam_shares, "MAX_RELATIVE_MARGIN", 0.9)
    array, X = scan(tmp_path / "store")
    where = SpecimenMap(np.ones(len(X), bool), (4, 5))
    maps = []
    for smoothing in (0, 1e-6):
        [one] = segmentation.clusters(
            da.from_array(X, chunks=(8, 2)),
            2,
            where,
            [2],
            ClusteringConfig(smoothing=smoothing),
            progress=QUIET,
            patterns=Patterns(RECIPE, [(array, where)]),
        )
        maps.append(one.labels)
    np.testing.assert_array_equal(*maps)
    assert len(set(maps[0].ravel()[PART < 0.5])) == 1


@pytest.mark.parametrize("estimator", ["gmm", "mean_shift"])
def test_any_estimator_s_labels_are_shared_out(tmp_path, scan, monkeypatch, estimator):
    monkeypatch.setattr(mixed_points.beam_shares, "MAX_RELATIVE_MARGIN", 0.9)
    array, X = scan(tmp_path / "store")
    X = X + np.random.default_rng(0).normal(0, 0.01, X.shape).astype(np.float32)
    where = SpecimenMap(np.ones(len(X), bool), (4, 5))
    [one] = segmentation.clusters(
        da.from_array(X, chunks=(8, 2)),
        2,
        where,
        [2],
        ClusteringConfig(estimator=estimator, bandwidth=0.4),
        progress=QUIET,
        patterns=Patterns(RECIPE, [(array, where)]),
    )
    weak = one.labels.ravel()[PART < 0.5]
    assert one.n_clusters == 2
    assert len(set(weak)) == 1
    assert not np.isin(one.labels.ravel()[PART > 0.5], weak).any()
