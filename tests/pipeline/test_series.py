import json
import os
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import xarray as xr

from laue_dask.compute import cluster
from laue_dask.errors import ConfigError, InputError
from laue_dask.io.lock import locked_folder
from laue_dask.pipeline import segmenting, series, single_scan
from laue_dask.pipeline.describe import describe
from laue_dask.pipeline.verify import verify
from laue_dask.runtime.progress import QuietProgress

NY, NX = 8, 9
SPLIT = 5
"""Rows of the first of the two parts."""


@pytest.fixture(scope="module")
def parts(small_scan, tmp_path_factory):
    """The small scan cut into its first and its last rows, as two scans."""
    folder = tmp_path_factory.mktemp("parts")
    frames = sorted(small_scan.glob("*.tif"))
    for name, chosen in (("upper", frames[: SPLIT * NX]), ("lower", frames[SPLIT * NX :])):
        (folder / name).mkdir()
        for frame in chosen:
            os.link(frame, folder / name / frame.name)
    return folder


def grouped(sources, folder, config):
    return series.run([str(one) for one in sources], folder, config, command="test", progress=QuietProgress())


def results(folder):
    return xr.open_zarr(folder / "results.zarr", consolidated=False, mask_and_scale=False)


@pytest.fixture(scope="module")
def grouped_run(parts, quick, workers, tmp_path_factory):
    @contextmanager
    def running(config, **rest):
        yield workers

    folder = tmp_path_factory.mktemp("series") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "start", running)
        grouped([parts / "upper", parts / "lower"], folder, quick())
    return folder


# A scan that was cut in two is the same thing as a series


def test_the_parts_of_a_scan_together_have_the_components_labels_and_colours_of_the_whole(grouped_run, small_run):
    whole = results(small_run)
    upper, lower = results(grouped_run / "upper"), results(grouped_run / "lower")
    assert upper["k"].values.tolist() == lower["k"].values.tolist() == whole["k"].values.tolist()
    for name in ("labels", "pca_rgb", "direct_rgb", "distance_to_centroid"):
        axis = whole[name].dims.index("y")
        both = np.concatenate([upper[name].values, lower[name].values], axis=axis)
        assert both.shape == whole[name].shape
        np.testing.assert_allclose(both, whole[name].values, rtol=1e-4, atol=1e-4)
    for name in ("explained_variance", "silhouette", "centroids"):
        np.testing.assert_allclose(upper[name].values, whole[name].values, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(upper[name].values, lower[name].values)


def test_features_are_those_of_a_run_of_its_own(grouped_run, small_run):
    whole = results(small_run)["features"].values
    np.testing.assert_array_equal(results(grouped_run / "upper")["features"].values, whole[: SPLIT * NX])


def test_delegates_are_each_scans_own_members(grouped_run):
    absent = 0
    for name in ("upper", "lower"):
        dataset = results(grouped_run / name)
        for k in dataset["k"].values:
            one = dataset.sel(k=int(k))
            labels, distance = one["labels"].values.ravel(), one["distance_to_centroid"].values.ravel()
            for number, delegate in enumerate(one["delegate"].values[: int(k)]):
                members = np.flatnonzero(labels == number)
                if not len(members):
                    assert delegate == -1
                    absent += 1
                    continue
                assert delegate in members
                chosen = one["delegates"].values[number]
                assert np.isin(chosen[chosen >= 0], members).all()
                assert chosen[0] == delegate
                assert np.isfinite(distance[delegate])
    assert absent  # or this scan would not show what a cluster is that is missing in one


def test_the_page_shows_all_maps_and_how_large_each_cluster_is_in_each_scan(grouped_run):
    page = (grouped_run / "series.html").read_text(encoding="utf-8")
    ks = results(grouped_run / "upper")["k"].values.tolist()
    assert page.count("<img") == 2 * (1 + 2 * len(ks))
    assert 'href="upper/report.html"' in page
    sizes = np.bincount(results(grouped_run / "lower")["labels"].sel(k=3).values.ravel(), minlength=3)
    for size in sizes:
        assert f"{size:,} (" in page
    told = json.loads((grouped_run / "series.json").read_text())
    assert told["finished"]
    assert [one["name"] for one in told["scans"]] == ["upper", "lower"]


def test_all_scans_of_a_series_are_verified_and_described(grouped_run, tmp_path):
    out = shutil.copytree(grouped_run, tmp_path / "out")
    text = describe(out)
    assert "series of 2 scans" in text
    assert f"{out / 'upper'}: run of" in text
    assert f"{out / 'lower'}: run of" in text
    whole = verify(out, progress=QuietProgress())
    assert whole.findings == []
    assert whole.objects > verify(out / "upper", progress=QuietProgress()).objects
    victim = next(path for path in (out / "lower" / "results.zarr" / "labels" / "c").rglob("*") if path.is_file())
    victim.write_bytes(victim.read_bytes()[:-1])
    shutil.rmtree(out / "upper")
    found = verify(out, progress=QuietProgress()).findings
    assert {one.path for one in found} == {victim, out / "upper"}


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "/etc"])
def test_a_list_of_scans_that_leads_elsewhere_is_refused_in_a_line(tmp_path, name):
    (tmp_path / "series.json").write_text(json.dumps({"scans": [{"name": name}]}))
    for command in (describe, lambda path: verify(path, progress=QuietProgress())):
        with pytest.raises(InputError, match="does not belong to a series: run the series again"):
            command(tmp_path)


def test_what_is_for_one_scan_says_where_the_scans_of_a_series_are(grouped_run, small_scan, quick):
    with pytest.raises(InputError, match=rf"holds a series: give the folder of one of its scans, {grouped_run}/upper"):
        segmenting.segment(grouped_run, {}, command="test", progress=QuietProgress())
    with pytest.raises(InputError, match="holds a series of scans: choose an empty or a new folder"):
        single_scan.run(str(small_scan), grouped_run, quick(), command="test", progress=QuietProgress())
    assert not (grouped_run / "run.json").exists()


def test_clusters_are_counted_against_the_patterns_of_all_scans(parts, quick, on_workers, tmp_path):
    sources, out = [parts / "upper", parts / "lower"], tmp_path / "out"
    with pytest.raises(InputError, match="K = 72 with 72 usable patterns"):
        grouped(sources, out, quick(clustering={"k": (72,)}))
    records = grouped(sources, out, quick(clustering={"k": (50,)}))  # more than either scan has
    assert 50 in records[0].k


# Again, and refused


def test_another_member_leaves_the_features_of_the_others_untouched(grouped_run, parts, quick, on_workers, tmp_path):
    out = shutil.copytree(grouped_run, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (out / "upper" / "results.zarr" / "features").rglob("[0-9]*")}
    third = shutil.copytree(parts / "lower", tmp_path / "third")
    grouped([parts / "upper", parts / "lower", third], out, quick())
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before
    lower, copy = (results(out / name)["labels"].values for name in ("lower", "third"))
    np.testing.assert_array_equal(lower, copy)


def test_segment_of_one_member_is_refused(command, grouped_run):
    outcome = command("segment", grouped_run / "upper", "-k", 4)
    assert outcome.code == 2
    assert "one of 2 scans that share their clusters" in outcome.err
    assert len(outcome.complaints) == 1


def test_run_takes_several_scans(command, parts, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(series, "run", lambda sources, out, config, **rest: given.update(s=sources, out=out) or [])
    command("run", parts / "upper", parts / "lower", "--out", tmp_path / "out")
    assert tuple(given["s"]) == (str(parts / "upper"), str(parts / "lower"))


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"encoder": {"extractor": "pixels"}}, "learns from each scan"),
        ({"clustering": {"smoothing": 1.0}}, "single scan"),
    ],
)
def test_what_makes_no_sense_for_several_scans_is_refused(parts, quick, tmp_path, sections, complaint):
    with pytest.raises(ConfigError, match=complaint):
        grouped([parts / "upper", parts / "lower"], tmp_path / "out", quick(**sections))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_things_is_refused(parts, quick, small_run):
    with pytest.raises(InputError, match="not a series'"):
        grouped([parts / "upper", parts / "lower"], small_run, quick())


def test_a_member_in_use_stops_the_series(parts, quick, tmp_path):
    with locked_folder(tmp_path / "out" / "upper", "another"):
        (tmp_path / "out" / "series.json").write_text("{}")
        with pytest.raises(InputError, match="in use"):
            grouped([parts / "upper", parts / "lower"], tmp_path / "out", quick())


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["/data/cold/scan1", "/data/warm/scan1"], ["cold-scan1", "warm-scan1"]),
        (["a.h5", "b.h5"], ["a", "b"]),
        (["a.h5::/x/1", "a.h5::/x/2"], ["1", "2"]),
        (["/r/a/scan.zarr", "/r/b/scan.zarr"], ["a", "b"]),
        (["/d/img 1*.tif", "/d/img 2*.tif"], ["img_1", "img_2"]),
    ],
)
def test_names_tell_the_scans_apart(sources, names):
    assert series.names_of(sources) == names


def test_a_scan_given_twice_is_refused():
    with pytest.raises(InputError, match="given twice"):
        series.names_of(["a", "./a"])
