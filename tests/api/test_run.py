"""A finished run through the Python door."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import laue_dask as ld
from laue_dask.config import Config
from laue_dask.errors import InputError, StoreError
from laue_dask.io import results as io_results
from laue_dask.pipeline import record as records

TESTS = Path(__file__).parents[1]


def test_results_are_those_on_disk_with_labels_masked(run, small_run):
    on_disk = xr.open_zarr(small_run / "results.zarr", mask_and_scale=False)
    assert set(run.results.variables) >= set(on_disk.variables)
    for name in on_disk.variables:
        if name not in io_results.MASKED_ARRAYS:
            np.testing.assert_array_equal(run.results[name].values, on_disk[name].values)
    labels, raw = run.labels(3), on_disk["labels"].sel(k=3).values
    np.testing.assert_array_equal(np.isnan(labels.values), raw < 0)
    np.testing.assert_array_equal(labels.fillna(-1).values, raw)
    assert labels.dims == ("y", "x")


def test_labels_are_missing_where_there_is_no_pattern(tmp_path, written_scan, on_workers, quick, small_scan):
    import tifffile

    frames = [tifffile.imread(path) for path in sorted(small_scan.glob("*.tif"))]
    folder = written_scan(tmp_path / "frames", frames, without=[13])
    run = ld.run(folder, tmp_path / "run", config=quick(), shape=(8, 9), progress=False)
    y, x = divmod(13, 9)
    assert np.isnan(run.labels(3)[y, x])
    assert int(np.isnan(run.labels(3)).sum()) == 1
    assert np.isnan(run.results["grain"][y, x])
    assert not run.valid[y, x]
    assert not run.scan.valid[y, x]
    for ask in (run.pattern, run.frame, run.reconstruction):
        with pytest.raises(InputError, match=rf"y = {y}, x = {x} has no usable pattern: nothing was recorded"):
            ask(y, x)
    everywhere = run.mean_frame(xr.ones_like(run.valid, dtype=bool))
    assert everywhere.attrs["frames"] == 71


def test_a_number_of_clusters_without_a_segmentation_is_refused_with_those_there_are(run):
    for ask in (run.labels, run.delegates, run.plot.labels, run.plot.pca, run.plot.distance, run.plot.delegates):
        with pytest.raises(InputError, match=r"no segmentation into 7 clusters, but K = .*3.*: run.segment\(k=7\)"):
            ask(7)


def test_tables_are_those_of_the_csv_files(run, small_run):
    delegates = pd.concat([run.delegates(k) for k in run.k], ignore_index=True)
    written = pd.read_csv(small_run / "delegates.csv")
    assert list(delegates.columns) == list(written.columns)
    for name in written.columns:
        if name == "distance" or name.startswith("stage_"):
            np.testing.assert_allclose(delegates[name], written[name], rtol=1e-4)
        else:
            assert delegates[name].astype(str).tolist() == written[name].astype(str).tolist()
    pd.testing.assert_frame_equal(run.grains, pd.read_csv(small_run / "grains.csv"), check_dtype=False)
    assert len(run.regions) == len(pd.read_csv(small_run / "regions.csv"))
    assert run.grains["size"].sum() == 72
    assert (run.delegates(3)["rank"] == 1).sum() == 3


def test_patterns_and_frames_are_those_of_the_scan(run):
    store = run.scan.store
    stored = np.asarray(run._reduced[:])
    assert run.patterns.shape == (8, 9, 128, 128)
    np.testing.assert_array_equal(run.patterns.compute().reshape(stored.shape), stored)
    np.testing.assert_array_equal(run.frame(2, 5).values, store.read_frames(23, 24)[0])
    pattern = run.pattern(2, 5)
    np.testing.assert_array_equal(pattern.values, stored[23].astype(np.float32) / 255)
    assert pattern.dtype == np.float32
    assert run.frame(2, 5).attrs["source"].endswith("scan_00024.tif")


def test_a_reconstruction_is_as_far_from_its_pattern_as_the_run_says(run):
    from laue_dask.features.encode import Network
    from laue_dask.features.inference import network_here

    network = Network.load(run.config.encoder)
    model, _ = network_here(network.weights_name, network.weights_digest)
    import torch

    y, x = 2, 5
    with torch.inference_mode():
        target = model.smooth(torch.from_numpy(run.pattern(y, x).values)[None, None])[0, 0].numpy()
    redrawn = run.reconstruction(y, x).values.astype(np.float64)
    assert redrawn.min() >= 0
    entropy = -(target * np.log(redrawn) + (1 - target) * np.log1p(-redrawn)).mean()
    assert entropy == pytest.approx(float(run.results["reconstruction_error"][y, x]), rel=1e-3)


def test_mean_frames_and_patterns_are_means_of_the_chosen_points(run):
    where = run.labels(3) == 1
    frames = run.scan.frames.compute()[where.values]
    found = run.mean_frame(where)
    assert found.chunks is not None
    assert found.attrs["frames"] == len(frames)
    usable = ~run.scan.detector_mask
    np.testing.assert_allclose(found.values[usable], frames.astype(float).mean(axis=0)[usable], rtol=1e-12)
    assert np.isnan(found.values[~usable]).all()
    patterns = run.patterns.compute()[where.values]
    np.testing.assert_allclose(run.mean_pattern(where).values, patterns.mean(axis=0) / 255, rtol=1e-12)
    np.testing.assert_array_equal(run.mean_frame(where.values).values, found.values)


@pytest.mark.parametrize(
    "where",
    [np.zeros((8, 9), bool), np.ones((9, 8), bool), np.ones((8, 9), int), np.ones(72, bool), True],
    ids=["nowhere", "another shape", "numbers", "flat", "no map"],
)
def test_what_is_no_map_of_some_points_is_refused(run, where):
    for mean in (run.mean_frame, run.mean_pattern):
        with pytest.raises(InputError, match="where "):
            mean(where)


@pytest.mark.parametrize("point", [(-1, 0), (0, -1), (8, 0), (0, 9), (1.0, 2), ("a", 0)])
def test_points_outside_of_the_scan_are_refused(run, point):
    for ask in (run.pattern, run.frame):
        with pytest.raises(InputError, match="point y = "):
            ask(*point)


def test_a_dataset_taken_before_segment_stays_what_it_was(copied_run, on_workers):
    before, unmasked, map_of_3 = copied_run.results, copied_run.unmasked, copied_run.labels(3)
    kept = {name: before[name].values.copy() for name in before.variables if name not in io_results.BLOCK_ARRAYS}
    large = {name: xr.open_zarr(copied_run.path / "results.zarr")[name].values for name in io_results.BLOCK_ARRAYS}
    assert copied_run.segment(k=5, estimator="gmm", progress=False) is copied_run
    assert 5 in copied_run.k
    assert 5 in copied_run.results["k"]
    for name, values in kept.items():
        np.testing.assert_array_equal(before[name].values, values)
    for name, values in large.items():  # read now for the first time, from what took the place of the old store
        np.testing.assert_array_equal(before[name].values, values)
        np.testing.assert_array_equal(unmasked[name].values, values)
    np.testing.assert_array_equal(map_of_3, kept["labels"][before["k"].values.tolist().index(3)])


def test_features_of_a_run_that_another_one_replaced_refuse_to_be_read(copied_run, on_workers, quick):
    before = copied_run.results
    labels = before["labels"].values.copy()
    config = quick(encoder={"extractor": "peaks"})
    ld.run(copied_run.scan, copied_run.path, config=config, progress=False)
    np.testing.assert_array_equal(before["labels"].values, labels)
    with pytest.raises(StoreError, match="holds other features now than when it was opened: open the run again"):
        before["features"].values  # noqa: B018
    assert copied_run.results["features"].notnull().all()
    with pytest.raises(InputError, match="features are peaks, which redraw no pattern"):
        copied_run.reconstruction(0, 0)


def test_results_that_are_replaced_while_they_are_opened_are_of_one_piece(copied_run, on_workers, monkeypatch):
    usual, calls = io_results.read, []

    def read(folder):
        found = usual(folder)
        calls.append(folder)
        if len(calls) == 1:  # right after it was opened, and before anything is read of it
            copied_run.segment(k=6, estimator="gmm", progress=False)
        return found

    monkeypatch.setattr(io_results, "read", read)
    opened = io_results.open_results(copied_run.path)
    assert 6 in opened["k"]
    assert len(calls) > 1


def test_segment_into_another_folder_leaves_the_run_as_it_was(copied_run, on_workers, tmp_path):
    other = copied_run.segment(k=[5], out=tmp_path / "other", progress=False)
    assert other.path == tmp_path / "other"
    assert 5 in other.k
    assert 5 not in copied_run.k
    assert "Run.segment" in other.record.segmented_by[-1]


def test_segment_refuses_what_would_change_features(copied_run):
    with pytest.raises(InputError, match="recipe: differs from the run's"):
        copied_run.segment(config={"recipe": {"clip_sigma": 5.0}})


def test_evaluate_takes_a_file_its_arrays_or_one_of_them(copied_run, small_scan, on_workers):
    path = small_scan / "truth.npz"
    from_file = copied_run.evaluate(path, progress=False)
    assert {"features", "k", "ari", "mse"} <= set(from_file.columns)
    with np.load(path) as truth:
        arrays = {name: truth[name] for name in ("domain", "angle", "edge") if name in truth.files}
    pd.testing.assert_frame_equal(copied_run.evaluate(arrays, progress=False), from_file)
    assert copied_run.record.evaluation == from_file.where(from_file.notna(), None).to_dict("records")
    of_domains = copied_run.evaluate(arrays["domain"], progress=False)
    assert "ari" in of_domains
    assert "mse" not in of_domains


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        (np.zeros((3, 3), int), r"truth: `domain` has shape \(3, 3\), the run's scan is \(8, 9\)"),
        ({"domains": np.zeros((8, 9))}, "truth: has 'domains': domain, angle, edge are known"),
        ({}, "truth: has neither `domain` nor `angle`"),
        ({"domain": np.full((8, 9), "a")}, "numbers were expected"),
        ("nowhere.npz", "nowhere.npz: there is no such file"),
    ],
)
def test_a_truth_that_does_not_fit_is_refused_in_one_line(run, on_workers, truth, words):
    with pytest.raises(InputError, match=words):
        run.evaluate(truth, progress=False)


def test_the_record_reads_back_equal_to_what_was_written(tmp_path, small_scan, quick, on_workers, monkeypatch):
    written = []
    usual = records.write
    monkeypatch.setattr(records, "write", lambda folder, values: (written.append(values), usual(folder, values)))
    from laue_dask.pipeline import single_scan

    record = single_scan.run(str(small_scan), tmp_path / "run", quick(quality="all"))
    assert records.load(tmp_path / "run") == record
    assert records.load(tmp_path / "run").as_json() == written[-1]
    run = ld.Run(tmp_path / "run").segment(k=4, progress=False)
    assert run.record.as_json() == written[-1]
    assert run.record.k == [3, 4]
    assert isinstance(run.config, Config)
    assert run.shape == (8, 9)


def test_a_record_of_an_earlier_version_is_read(tmp_path):
    with tarfile.open(TESTS / "data" / "run_of_f105967.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    run = ld.open_run(tmp_path / "run")
    assert (run.record.laue_dask, run.record.m_pca, run.shape) == ("0.1.0", 3, (4, 6))
    assert run.record.patterns == {}
    assert run.record.versions["python"]
    assert run.labels(3).shape == (4, 6)
    assert len(run.delegates(3)) >= 3
    assert not run.verify(progress=False).findings
    assert "4 × 6 points" in repr(run)


def test_a_run_that_lost_its_scan_still_shows_its_maps_and_tables(copied_run, small_run):
    shutil.rmtree(copied_run.path / "scan.zarr")
    moved = copied_run.path.with_name("moved")
    copied_run.path.rename(moved)
    record = records.read(moved)
    records.write(moved, {**record, "scan": str(moved / "elsewhere.zarr")})
    run = ld.open_run(moved)
    assert run.labels(3).notnull().all()
    pd.testing.assert_frame_equal(run.grains, ld.open_run(small_run).grains)
    leading = run.delegates(3).query("rank == 1")
    assert leading["file"].str.endswith(".tif").all()
    assert run.regions["stage_y0_um"].tolist() == ld.open_run(small_run).regions["stage_y0_um"].tolist()
    for ask in (lambda: run.frame(0, 0), lambda: run.pattern(0, 0), lambda: run.mean_frame(run.valid)):
        with pytest.raises(InputError, match="has gone"):
            ask()


@pytest.mark.parametrize("make", [lambda folder: folder / "nowhere", lambda folder: folder])
def test_what_is_no_run_is_refused_in_one_line(tmp_path, make):
    with pytest.raises(InputError, match=r"there is no such folder of a run|no finished run"):
        ld.open_run(make(tmp_path))


def test_a_damaged_table_is_refused(copied_run):
    (copied_run.path / "grains.csv").write_text("grain,size\n0,5\n")
    with pytest.raises(StoreError, match=r"grains.csv: is missing, or was changed after it was written"):
        copied_run.grains  # noqa: B018
    assert copied_run.verify(progress=False).findings


def test_a_run_shows_itself_with_all_text_escaped(copied_run):
    record = records.read(copied_run.path)
    records.write(copied_run.path, {**record, "source": "<script>a\x1b[2J"})
    assert "8 × 9 points, 72 usable patterns" in repr(copied_run)
    assert "\x1b" not in repr(copied_run)
    page = copied_run._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "data:image/png;base64," in page
    assert len(page) < 20_000
    shutil.rmtree(copied_run.path)
    assert "not to be read" in copied_run._repr_html_()
