"""`laue-dask segment`: other segmentations of a finished run, its features untouched."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from laue_dask.config import load
from laue_dask.features import inference as encoder
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline import record as records
from laue_dask.pipeline import segmenting, single_scan
from laue_dask.pipeline.stages import segmentation
from laue_dask.runtime.progress import QuietProgress

QUIET = QuietProgress()


def results(folder: Path) -> xr.Dataset:
    return xr.open_zarr(folder / "results.zarr", consolidated=False, mask_and_scale=False)


def chunks(folder: Path, name: str) -> dict[str, tuple[int, int]]:
    """Which file, written when, each chunk of a result is."""
    root = folder / "results.zarr" / name
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "zarr.json"]
    return {str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def segmented(folder: Path, sweep: bool | None = None, **sections: dict[str, object]) -> dict[str, object]:
    return segmenting.segment(folder, sections, command="segment", sweep=sweep, progress=QUIET)


def told(folder: Path) -> dict[str, object]:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture
def own_run(small_run, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(small_run, tmp_path / "run")


def forbidden(*args, **kwargs):
    raise AssertionError("not to be called")


@pytest.fixture
def no_workers(monkeypatch):
    from laue_dask.compute import cluster

    monkeypatch.setattr(cluster, "start", forbidden)


@pytest.mark.usefixtures("no_workers")
def test_another_k_leaves_features_scores_and_known_segmentations_as_they_are(own_run, small_run, monkeypatch):
    monkeypatch.setattr(encoder, "encode_block", forbidden)
    before = {name: chunks(own_run, name) for name in ("features", "components", "direct_rgb")}
    figure = (own_run / "plots" / "labels_k03.png").stat().st_mtime_ns
    record = segmented(own_run, clustering={"k": (3, 5)})
    assert all(chunks(own_run, name) == state for name, state in before.items())
    ours, theirs = results(own_run), results(small_run)
    assert 5 in ours["k"].values
    assert set(np.unique(ours["labels"].sel(k=5))) == set(range(5))
    for name in ("labels", "delegate", "centroids", "pca_rgb", "distance_to_centroid"):
        np.testing.assert_array_equal(
            ours[name].sel(k=3).values[: 3 if name in ("delegate", "centroids") else None],
            theirs[name].sel(k=3).values[: 3 if name in ("delegate", "centroids") else None],
        )
    for name in ("score_k", "silhouette", "calinski_harabasz", "features", "reconstruction_error"):
        np.testing.assert_array_equal(ours[name].values, theirs[name].values)
    assert (own_run / "plots" / "labels_k03.png").stat().st_mtime_ns == figure
    assert (own_run / "plots" / "labels_k05.png").exists()
    assert record == records.read(own_run)
    assert record["k"] == ours["k"].values.tolist()
    assert record["command"] == told(small_run)["command"]
    assert record["segmented_by"] == ["segment"]
    assert load(own_run / "config.yaml").clustering.k == (3, 5)
    assert "K = 5" in (own_run / "report.html").read_text(encoding="utf-8")
    assert not [path for path in own_run.iterdir() if path.name.endswith((".part", ".copy", ".old", ".withdrawn"))]


@pytest.mark.usefixtures("on_workers")
def test_segment_gives_what_a_run_gives(own_run, small_scan, quick, tmp_path):
    changed = quick(clustering={"k": (4,), "seed": 3}, pca={"components": 5}, quality="all")
    again = shutil.copytree(own_run, tmp_path / "again")
    single_scan.run(str(small_scan), again, changed, command="test", progress=QUIET)
    segmented(own_run, clustering={"k": (4,), "seed": 3}, pca={"components": 5})
    ours, theirs = results(own_run), results(again)
    assert set(ours.variables) == set(theirs.variables)
    for name in ours.variables:
        np.testing.assert_array_equal(ours[name].values, theirs[name].values, err_msg=name)
    assert ours["components"].attrs["m_pca"] == 5
    assert told(own_run)["m_pca"] == 5
    assert told(own_run)["config"] == told(again)["config"]
    assert {path.name for path in (own_run / "plots").iterdir()} == {path.name for path in (again / "plots").iterdir()}


@pytest.mark.usefixtures("no_workers")
@pytest.mark.parametrize("estimator", ["bgm", "gmm", "hdbscan", "mean_shift"])
def test_every_estimator_makes_a_whole_run(own_run, estimator):
    given = {"k": (6,)} if estimator in ("bgm", "gmm") else {"k": (), "min_cluster_size": 5}
    record = segmented(own_run, clustering={"estimator": estimator, **given})
    found = results(own_run)
    assert found["n_clusters"].values.tolist() == record["n_clusters"]
    for i, k in enumerate(record["k"]):
        n = record["n_clusters"][i]
        labels = found["labels"].values[i]
        assert set(np.unique(labels)) == set(range(n))
        assert n <= k
        assert (found["delegate"].values[i, :n] >= 0).all()
        assert (found["delegate"].values[i, n:] == -1).all()
        assert np.isnan(found["centroids"].values[i, n:]).all()
    if estimator in ("hdbscan", "mean_shift"):
        assert record["k"] == record["n_clusters"]
        assert len(record["k"]) == 1


@pytest.mark.usefixtures("no_workers")
def test_scores_are_made_again_left_out_or_asked_for(own_run):
    before = results(own_run)["silhouette"].values
    record = segmented(own_run, clustering={"score_k": (2, 6)})
    assert results(own_run)["score_k"].values.tolist() == [2, 3, 4, 5, 6]
    np.testing.assert_allclose(results(own_run)["silhouette"].values[:3], before, rtol=1e-12)
    record = segmented(own_run, sweep=False, clustering={"n_init": 3, "k": (4,)})
    assert results(own_run)["score_k"].size == 0
    assert record["suggested_k"] == []
    assert record["k"] == [4]
    assert not (own_run / "plots" / "scores.png").exists()
    record = segmented(own_run, sweep=True, clustering={"k": (9,)})
    assert results(own_run)["score_k"].values.tolist() == [2, 3, 4, 5, 6, 9]
    assert 9 in record["k"]


@pytest.mark.usefixtures("no_workers")
@pytest.mark.parametrize("moment", ["segment", "finish", "report"])
def test_a_killed_segment_goes_on_with_the_same_command(own_run, small_run, monkeypatch, moment):
    class PowerCutError(Exception):
        pass

    def cut(*args, **kwargs):
        raise PowerCutError

    place = {"segment": segmentation, "finish": ResultsWriter, "report": segmenting}[moment]
    with monkeypatch.context() as patch:
        patch.setattr(place, moment, cut)
        with pytest.raises(PowerCutError):
            segmented(own_run, clustering={"k": (5,)})
    if moment != "report":  # until others take its place, the run is what it was
        assert told(own_run) == told(small_run)
    else:
        assert not (own_run / "run.json").exists()
    record = segmented(own_run, clustering={"k": (5,)})
    assert record["k"] == told(own_run)["k"] == results(own_run)["k"].values.tolist()
    assert 5 in record["k"]
    assert not [path for path in own_run.iterdir() if path.name.endswith((".part", ".copy", ".old", ".withdrawn"))]


def test_command_says_what_it_found(command, own_run, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("clustering: {k: [7], n_init: 3}\n")
    outcome = command("segment", own_run, "-k", 4, "--components", 3, "--config", file, "--no-scores")
    assert outcome.code == 0, outcome.err
    assert [line for line in outcome.complaints if "where the beam lies between domains" not in line] == []
    assert "K = 4\n" in outcome.out
    assert str(own_run / "report.html") in outcome.out
    found = load(own_run / "config.yaml")
    assert (found.clustering.k, found.clustering.n_init, found.pca.components) == ((4,), 3, 3)
    outcome = command("segment", own_run, "--estimator", "mean_shift")
    assert outcome.code == 0, outcome.err
    assert load(own_run / "config.yaml").clustering.k == ()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("-k", 72), "K = 72 with 72 usable patterns"),
        (("--components", 999), "999 principal components"),
        (("-k", 3, "--estimator", "hdbscan"), "hdbscan finds the number of clusters itself"),
        (("--config", "weights.yaml"), "encoder: differs from the run's"),
        (("--config", "unknown.yaml"), "unknown key 'clusters'"),
        (("--config", "missing.yaml"), "missing.yaml: configuration cannot be read"),
    ],
)
def test_what_does_not_fit_the_run_is_refused_and_nothing_changes(
    command, own_run, small_run, tmp_path, monkeypatch, arguments, text
):
    monkeypatch.chdir(tmp_path)
    Path("weights.yaml").write_text("encoder: {weights: default}\n")
    Path("unknown.yaml").write_text("clusters: {}\n")
    outcome = command("segment", own_run, *arguments)
    assert outcome.code == 2
    [line] = outcome.complaints
    assert text in line
    assert told(own_run) == told(small_run)
    assert results(own_run).identical(results(small_run))


def test_a_folder_without_a_finished_run_is_refused(command, own_run, small_scan, tmp_path):
    for folder, said in (
        (tmp_path / "nowhere", "there is no such folder of a run"),
        (small_scan, "no finished run"),
        (small_scan / "truth.npz", "no finished run"),
    ):
        outcome = command("segment", folder)
        assert outcome.code == 2
        [line] = outcome.complaints
        assert said in line
    shutil.rmtree(own_run / "results.zarr")
    outcome = command("segment", own_run)
    assert outcome.code == 2
    assert "no finished run (results.zarr is missing)" in outcome.err
