import json
import os
import shutil
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from laue_dask.compute import cluster
from laue_dask.config import Recipe, load
from laue_dask.errors import ComputeError, InputError
from laue_dask.features import inference as encoder
from laue_dask.features import weights
from laue_dask.features.architecture import ARCHITECTURES
from laue_dask.features.network import build
from laue_dask.io.geometry import acquisition
from laue_dask.io.journal import Journal
from laue_dask.io.lock import locked_folder
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import evaluating, folders, segmenting, single_scan
from laue_dask.pipeline.stages import reduction
from laue_dask.runtime.progress import QuietProgress

SHAPE = (8, 9)
MISSING = (70, 71)
TRUNCATED = 40

CONTRACT = {
    "features": (("pattern", "latent"), "float32"),
    "components": (("pattern", "component"), "float32"),
    "explained_variance": (("component",), "float64"),
    "explained_variance_ratio": (("component",), "float64"),
    "labels": (("k", "y", "x"), "int32"),
    "centroids": (("k", "cluster", "component"), "float32"),
    "delegate": (("k", "cluster"), "int64"),
    "pca_rgb": (("k", "y", "x", "channel"), "uint8"),
    "direct_rgb": (("y", "x", "channel"), "uint8"),
    "silhouette": (("score_k",), "float64"),
    "calinski_harabasz": (("score_k",), "float64"),
    "reconstruction_error": (("y", "x"), "float32"),
    "unexplained": (("y", "x"), "float32"),
    "distance_to_centroid": (("k", "y", "x"), "float32"),
    "grain": (("y", "x"), "int32"),
    "boundary_strength": (("y", "x"), "float32"),
}
"""The table of results that other programs rely on."""


def segmented(source, folder, config):
    return single_scan.run(str(source), folder, config, command="test", progress=QuietProgress())


def results(folder):
    return xr.open_zarr(folder / "results.zarr", consolidated=False, mask_and_scale=False)


def frame_files(folder):
    return sorted(folder.glob("*.tif"))


def state(folder, name):
    """Which file, written when, each chunk of a result is, and the journal of its blocks."""
    root = folder / "results.zarr" / name
    found = {path.relative_to(root): path.stat() for path in root.rglob("*") if path.name != "zarr.json"}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items() if not (root / path).is_dir()}


@pytest.fixture(scope="module")
def damaged_run(small_scan, quick, workers, tmp_path_factory):
    """Run of the small scan aborted two points before its end, one frame of it cut off."""
    folder = tmp_path_factory.mktemp("damaged")
    frames = folder / "frames"
    frames.mkdir()
    for path in frame_files(small_scan)[: MISSING[0]]:
        os.link(path, frames / path.name)
    cut = frame_files(frames)[TRUNCATED]
    content = cut.read_bytes()
    cut.unlink()
    cut.write_bytes(content[: len(content) // 2])

    @contextmanager
    def running(config, **_):
        yield workers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "start", running)
        segmented(frames, folder / "run", quick(scan={"shape": SHAPE}, quality="sample"))
    return folder / "run"


@pytest.fixture(params=["whole", "damaged"])
def any_run(request):
    return request.getfixturevalue("small_run" if request.param == "whole" else "damaged_run")


# What a run leaves


def test_every_contracted_result_is_there_with_its_dimensions_and_dtype(any_run):
    with xr.open_zarr(any_run / "results.zarr") as dataset:
        found = {name: (dataset[name].dims, dataset[name].dtype.name) for name in CONTRACT}
        sizes = dict(dataset.sizes)
        ks = dataset["k"].values.tolist()
    assert found == CONTRACT
    assert sizes["pattern"] == 72
    assert sizes["latent"] == sizes["component"] == 256
    assert (sizes["y"], sizes["x"], sizes["channel"]) == (*SHAPE, 3)
    assert sizes["cluster"] == max(ks)
    assert 3 in ks
    assert json.loads((any_run / "run.json").read_text())["k"] == ks


def test_xarray_opens_results_without_any_option(small_run):
    with xr.open_zarr(small_run / "results.zarr") as dataset:
        assert dataset["labels"].sel(k=3).shape == SHAPE
        assert dataset["score_k"].values.tolist() == [2, 3, 4]
        assert dataset["components"].attrs["m_pca"] >= 1


def test_record_holds_keys_versions_seeds_and_what_was_typed(small_run, small_scan, quick):
    record = json.loads((small_run / "run.json").read_text())
    assert record["command"] == "test"
    assert record["source"] == str(small_scan)
    assert set(record["keys"]) == {"scan", "features", "components"}
    assert all(len(key) == 16 for key in record["keys"].values())
    assert record["seeds"] == {"clustering": 0, "untrained": weights.UNTRAINED_SEED}
    for package in ("numpy", "torch", "zarr", "dask-ml"):
        assert record["versions"][package] == version(package)
    assert set(record["seconds"]) >= {"ingest", "reduce", "encode", "components", "scores", "segment", "report"}
    # of what worked on patterns: all was done in one pass
    assert set(record["patterns_per_second"]) == {"ingest"}
    assert record["patterns_per_second"]["ingest"] == round(72 / record["seconds"]["ingest"], 1)
    assert load(small_run / "config.yaml") == quick(quality="all")
    assert record["config"] == quick(quality="all").model_dump(mode="json")


def test_plots_and_report_are_written(small_run):
    plots = list((small_run / "plots").glob("*.png"))
    assert {"explained_variance.png", "scores.png"} <= {path.name for path in plots}
    assert any("3" in path.stem for path in plots)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)
    page = (small_run / "report.html").read_text(encoding="utf-8")
    assert "</html>" in page
    assert not list(small_run.glob("*.part"))


def test_labels_are_missing_exactly_where_no_pattern_is_usable(damaged_run):
    missing = np.zeros(72, dtype=bool)
    missing[[TRUNCATED, *MISSING]] = True
    found = results(damaged_run)
    for name, lacking in (("labels", -1), ("distance_to_centroid", np.nan)):
        for values in found[name].values:
            np.testing.assert_array_equal(np.isin(values.ravel(), lacking) | np.isnan(values.ravel()), missing)
    for name in ("features", "components"):
        np.testing.assert_array_equal(np.isnan(found[name].values).any(axis=1), missing)
    assert not found["direct_rgb"].values.reshape(-1, 3)[missing].any()
    assert not np.isin(found["delegate"].values, np.flatnonzero(missing)).any()
    assert np.isfinite(found["reconstruction_error"].values.ravel()[~missing]).all()
    assert np.isnan(found["reconstruction_error"].values.ravel()[missing]).all()


def test_labels_count_from_zero_without_a_gap(any_run):
    found = results(any_run)
    for k, labels in zip(found["k"].values, found["labels"].values, strict=True):
        assert set(np.unique(labels[labels >= 0])) == set(range(k))


def test_centroid_is_the_mean_of_its_members_in_all_components(any_run):
    found = results(any_run)
    components = found["components"].values.astype(np.float64)
    for k, labels, centroids in zip(found["k"].values, found["labels"].values, found["centroids"].values, strict=True):
        for cluster_number in range(k):
            members = components[labels.ravel() == cluster_number]
            np.testing.assert_allclose(centroids[cluster_number], members.mean(axis=0), rtol=1e-5, atol=1e-5)
        assert np.isnan(centroids[k:]).all()


def test_delegate_is_the_member_nearest_to_the_centroid(any_run):
    found = results(any_run)
    m_pca = int(found["components"].attrs["m_pca"])
    components = found["components"].values[:, :m_pca].astype(np.float64)
    for i, k in enumerate(found["k"].values):
        labels = found["labels"].values[i].ravel()
        for cluster_number, delegate in enumerate(found["delegate"].values[i, :k]):
            members = np.flatnonzero(labels == cluster_number)
            assert delegate in members
            apart = np.linalg.norm(components - components[members].mean(axis=0), axis=1)
            assert apart[delegate] <= apart[members].min() * (1 + 1e-4)
        assert (found["delegate"].values[i, k:] == -1).all()


def test_distance_to_centroid_is_euclidean_in_the_components_that_were_clustered(any_run):
    found = results(any_run)
    m_pca = int(found["components"].attrs["m_pca"])
    components = found["components"].values[:, :m_pca].astype(np.float64)
    for labels, distance in zip(found["labels"].values, found["distance_to_centroid"].values, strict=True):
        flat = labels.ravel()
        for cluster_number in np.unique(flat[flat >= 0]):
            members = flat == cluster_number
            expected = np.linalg.norm(components[members] - components[members].mean(axis=0), axis=1)
            np.testing.assert_allclose(distance.ravel()[members], expected, rtol=1e-4, atol=1e-4)


def test_explained_variance_is_the_whole_spectrum_of_the_features(any_run):
    found = results(any_run)
    features = found["features"].values.astype(np.float64)
    spectrum = np.linalg.eigvalsh(np.cov(features[np.isfinite(features[:, 0])], rowvar=False))[::-1]
    variance = found["explained_variance"].values
    assert variance.shape == (256,)
    np.testing.assert_allclose(variance, spectrum, atol=1e-9 * spectrum[0])
    np.testing.assert_allclose(found["explained_variance_ratio"].values, variance / variance.sum())


def test_components_are_centred_and_carry_the_explained_variance(any_run):
    found = results(any_run)
    components = found["components"].values.astype(np.float64)
    components = components[np.isfinite(components[:, 0])]
    variance = found["explained_variance"].values
    np.testing.assert_allclose(components.mean(axis=0), 0, atol=1e-4 * np.sqrt(variance[0]))
    np.testing.assert_allclose(components.var(axis=0, ddof=1), variance, rtol=1e-3, atol=1e-6 * variance[0])


def test_delegates_name_their_files(small_run):
    record = json.loads((small_run / "run.json").read_text())
    delegates = results(small_run)["delegate"].values
    assert set(map(int, record["delegate_sources"])) == set(delegates[delegates >= 0].tolist())
    for pattern, source in record["delegate_sources"].items():
        assert Path(source).name == f"scan_{int(pattern) + 1:05d}.tif"


def test_grains_are_found(small_run, small_scan):
    with np.load(small_scan / "truth.npz") as truth:
        domain, inside = truth["domain"], ~truth["edge"]
    labels = results(small_run)["labels"].sel(k=3).values
    pairs = {(int(a), int(b)) for a, b in zip(domain[inside], labels[inside], strict=True)}
    assert len(pairs) == 3


# The same specimen on other ways


@pytest.mark.usefixtures("on_workers")
def test_ingested_store_gives_the_same_results_as_its_frames(small_run, tmp_path, quick):
    store = shutil.copytree(small_run / "scan.zarr", tmp_path / "copy.zarr")
    shutil.rmtree(store / "reduced")
    record = segmented(store, tmp_path / "run", quick())
    ours, theirs = results(tmp_path / "run"), results(small_run)
    for name in ("features", "components", "labels", "delegate", "pca_rgb", "direct_rgb"):
        np.testing.assert_array_equal(ours[name].values, theirs[name].values, err_msg=name)
    assert record.keys == json.loads((small_run / "run.json").read_text())["keys"]
    assert not (tmp_path / "run" / "scan.zarr").exists()


@pytest.mark.usefixtures("on_workers")
def test_snake_acquisition_gives_the_same_results_as_raster(small_scan, small_run, tmp_path, quick):
    frames = tmp_path / "frames"
    frames.mkdir()
    files = frame_files(small_scan)
    for number, pattern in enumerate(acquisition(SHAPE, "snake")):
        os.link(files[pattern], frames / f"snake_{number:04d}.tif")
    segmented(frames, tmp_path / "run", quick())
    assert ScanStore.open(tmp_path / "run" / "scan.zarr").order == "snake"
    ours, theirs = results(tmp_path / "run"), results(small_run)
    for name in ("features", "labels", "delegate", "direct_rgb"):
        np.testing.assert_array_equal(ours[name].values, theirs[name].values, err_msg=name)


# Going on


class BreakdownError(Exception):
    pass


class Counted:
    """A function of patterns that breaks down after `allowed` calls."""

    def __init__(self, function, allowed=10**6):
        self.function, self.allowed, self.patterns = function, allowed, []

    def __call__(self, *args, **kwargs):
        if len(self.patterns) >= self.allowed:
            raise BreakdownError("the power went out")
        self.patterns.append(len(next(value for value in args if isinstance(value, np.ndarray))))
        return self.function(*args, **kwargs)


@pytest.mark.parametrize(
    ("module", "name", "allowed", "array"),
    [
        (reduction.preprocess, "reduce_frames", 70, "copy.zarr/reduced/*"),
        (encoder, "in_batches", 2, "run/results.zarr.part/features"),
    ],
)
@pytest.mark.usefixtures("here")
def test_interrupted_run_goes_on_to_the_same_bits(
    small_run, tmp_path, quick, monkeypatch, module, name, allowed, array
):
    store = shutil.copytree(small_run / "scan.zarr", tmp_path / "copy.zarr")
    shutil.rmtree(store / "reduced")
    working = getattr(module, name)
    monkeypatch.setattr(module, name, Counted(working, allowed))
    with pytest.raises(ComputeError, match="the power went out"):
        segmented(store, tmp_path / "run", quick())
    assert not (tmp_path / "run" / "results.zarr").exists()
    assert not (tmp_path / "run" / "run.json").exists()
    [journal] = tmp_path.glob(f"{array}/journal.jsonl")
    finished = [receipt["stop"] - receipt["start"] for receipt in Journal(journal).read().values()]
    assert 0 < sum(finished) < 72
    counted = Counted(working)
    monkeypatch.setattr(module, name, counted)
    segmented(store, tmp_path / "run", quick())
    # Blocks are of 32 patterns: those that were finished are not done again.
    assert sum(counted.patterns) == 72 - sum(finished)
    for result in ("features", "labels", "centroids"):
        ours, theirs = results(tmp_path / "run")[result].values, results(small_run)[result].values
        assert ours.tobytes() == theirs.tobytes()


def forbidden(*args, **kwargs):
    raise AssertionError("a block was computed again")


@pytest.fixture
def own_run(small_run, tmp_path):
    """A copy of the finished run that a test may go on with."""
    return shutil.copytree(small_run, tmp_path / "run")


@pytest.mark.usefixtures("here")
def test_same_command_again_computes_no_block_and_leaves_the_features_as_they_are(
    own_run, small_scan, quick, monkeypatch
):
    for module, name in ((reduction, "_reduce_block"), (encoder, "encode_block")):
        monkeypatch.setattr(module, name, forbidden)
    before, labels = state(own_run, "features"), results(own_run)["labels"].values
    segmented(small_scan, own_run, quick(quality="none"))
    assert state(own_run, "features") == before
    assert len(before) == 4  # three blocks and their journal
    np.testing.assert_array_equal(results(own_run)["labels"].values, labels)


@pytest.mark.usefixtures("here")
def test_another_k_keeps_the_features(own_run, small_scan, quick, monkeypatch):
    monkeypatch.setattr(encoder, "encode_block", forbidden)
    before = state(own_run, "features")
    record = segmented(small_scan, own_run, quick(clustering={"k": (5,)}))
    assert state(own_run, "features") == before
    assert 5 in record.k
    assert results(own_run)["labels"].sel(k=5).values.max() == 4


@pytest.mark.usefixtures("on_workers")
def test_other_weights_compute_other_features(own_run, small_scan, quick, tmp_path):
    architecture = ARCHITECTURES["contrastive"]
    other = tmp_path / "other.safetensors"
    weights.save(build(architecture, seed=5), other, weights.Card(architecture=architecture, recipe=Recipe()))
    before, keys = results(own_run)["features"].values, json.loads((own_run / "run.json").read_text())["keys"]
    record = segmented(small_scan, own_run, quick(encoder={"weights": str(other)}))
    after = results(own_run)["features"].values
    assert np.isfinite(after).all()
    assert not np.allclose(after, before)
    assert record.keys["scan"] == keys["scan"]
    assert all(record.keys[stage] != keys[stage] for stage in ("features", "components"))


@pytest.mark.usefixtures("on_workers")
def test_other_frames_under_the_same_source_are_not_taken_for_those_of_the_store(small_scan, tmp_path, quick):
    files = frame_files(small_scan)
    listed = tmp_path / "frames.txt"
    listed.write_text("\n".join(map(str, files)))
    segmented(listed, tmp_path / "run", quick())
    listed.write_text("\n".join(map(str, [*files[1:], files[0]])))
    with pytest.raises(
        InputError,
        match=r"scan\.zarr: holds 72 frames, .*frames\.txt has 72 now, not the same: the same in another order",
    ):
        segmented(listed, tmp_path / "run", quick())


def test_run_is_evaluated_with_the_scan_that_it_was_made_of(own_run, small_run, tmp_path):
    record = json.loads((own_run / "run.json").read_text())
    moved = {**record, "scan": str(tmp_path / "gone.zarr")}
    assert folders.scan_of(own_run, moved).path == own_run / "scan.zarr"
    other = {**moved, "keys": {**record["keys"], "scan": "0" * 16}}
    with pytest.raises(InputError, match="is not the scan that"):
        folders.scan_of(own_run, other)
    shutil.rmtree(own_run / "scan.zarr")
    with pytest.raises(InputError, match="has gone"):
        folders.scan_of(own_run, moved)


def test_more_components_than_features_are_refused_before_anything_is_made(small_scan, tmp_path, quick):
    with pytest.raises(InputError, match="300"):
        segmented(small_scan, tmp_path / "run", quick(pca={"components": 300}))
    assert not (tmp_path / "run").exists()


def test_a_run_has_one_owner(small_run, tmp_path, quick):
    folder = shutil.copytree(small_run, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with locked_folder(folder, "laue-dask run elsewhere"):
        commands = (
            lambda: segmented(folder / "scan.zarr", folder, quick()),
            lambda: segmenting.segment(folder, {"clustering": {"k": [3]}}, command="b", progress=QuietProgress()),
            lambda: evaluating.evaluate(folder, tmp_path / "truth.npz", workers=1, progress=QuietProgress()),
        )
        for command in commands:
            with pytest.raises(InputError, match=r"in use by process .*`laue-dask run elsewhere`"):
                command()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
