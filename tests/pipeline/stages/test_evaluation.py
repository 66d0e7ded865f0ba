from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, homogeneity_score

from laue_dask.config import validate
from laue_dask.errors import InputError
from laue_dask.io import results as io_results
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import record as records
from laue_dask.pipeline.stages import evaluation
from laue_dask.pipeline.stages.evaluation import read_truth
from laue_dask.pipeline.stages.segmentation import estimator_of
from laue_dask.runtime.progress import QuietProgress

SHAPE = (8, 9)


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_truth_is_read_as_it_was_written(small_scan):
    truth = read_truth(small_scan / "truth.npz", SHAPE)
    with np.load(small_scan / "truth.npz") as file:
        np.testing.assert_array_equal(truth.domain, file["domain"])
        np.testing.assert_array_equal(truth.angle, file["angle"])
        np.testing.assert_array_equal(truth.edge, file["edge"])
    assert truth.n_domains == 3


def test_points_of_unknown_domain_are_no_domain(tmp_path):
    domain = np.arange(72.0).reshape(SHAPE) // 36
    domain[0] = np.nan
    truth = read_truth(saved(tmp_path / "t.npz", domain=domain), SHAPE)
    assert (truth.domain[0] == -1).all()
    assert truth.n_domains == 2
    assert truth.angle is None
    assert not truth.edge.any()


def test_property_alone_is_enough(tmp_path):
    truth = read_truth(saved(tmp_path / "t.npz", angle=np.ones(SHAPE, np.float32)), SHAPE)
    assert truth.domain is None
    assert truth.n_domains == 0
    assert truth.angle.dtype == np.float64


def test_nothing_in_a_truth_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    trapped = np.empty(SHAPE, dtype=object)
    trapped[:] = Trap()
    np.savez(tmp_path / "t.npz", domain=trapped)
    with pytest.raises(InputError, match="plain numerical arrays"):
        read_truth(tmp_path / "t.npz", SHAPE)


@pytest.fixture
def rows(small_run, small_scan, on_workers):
    """Evaluation of the small run."""
    record = records.read(small_run)
    config = validate(record["config"], "test")
    reduced = ScanStore.open(record["scan"]).reduced(config.recipe.digest())
    truth = read_truth(small_scan / "truth.npz", SHAPE)
    return evaluation.evaluate(io_results.read(small_run), reduced, config, truth, progress=QuietProgress())


@pytest.mark.parametrize("estimator", ["gmm", "mean_shift"])
def test_every_row_is_of_the_estimator_of_the_run(small_run, small_scan, on_workers, estimator):
    record = records.read(small_run)
    given = {"estimator": estimator, "k": [], "mixed_points": "estimator"}
    config = validate({**record["config"], "clustering": {**record["config"]["clustering"], **given}}, "test")
    reduced = ScanStore.open(record["scan"]).reduced(config.recipe.digest())
    truth = read_truth(small_scan / "truth.npz", SHAPE)
    dataset = io_results.read(small_run).sel(k=[3])
    rows = evaluation.evaluate(dataset, reduced, config, truth, progress=QuietProgress())
    assert {row["estimator"] for row in rows} == {estimator}
    m_pca = int(dataset["components"].attrs["m_pca"])
    X = dataset["components"].values[:, :m_pca]
    for row in (row for row in rows if row["features"] == "encoder"):
        k = None if estimator == "mean_shift" else row["k"]
        found = estimator_of(k, config.clustering).fit(X)
        assert row["ari"] == pytest.approx(adjusted_rand_score(truth.domain.ravel(), found.labels_))
    assert len(rows) == (4 if estimator == "mean_shift" else 8)


def test_the_approximation_gets_better_with_k_and_is_of_delegates(small_run, small_scan, on_workers):
    config = validate(records.read(small_run)["config"], "test")
    truth = read_truth(small_scan / "truth.npz", SHAPE)
    options = {"workers": on_workers, "progress": QuietProgress()}
    found = evaluation.approximate(io_results.read(small_run), config, truth, **options)
    assert [row["k"] for row in found] == [k for k in evaluation.APPROXIMATION_K if k <= 36]
    assert found[-1]["mse"] < found[0]["mse"]
    assert all(0 <= row["ks"] <= 1 for row in found)
    unknown = replace(truth, angle=None)
    assert evaluation.approximate(io_results.read(small_run), config, unknown, **options) == []


def test_run_is_compared_beside_its_baselines_at_its_own_k_and_the_true_ones(rows, small_run, small_scan):
    assert {row["features"] for row in rows} >= {"encoder", "untrained", "pixels"}
    own = io_results.read(small_run)["k"].values.tolist()
    for name in {row["features"] for row in rows}:
        assert [row["k"] for row in rows if row["features"] == name] == sorted({*own, 3, 6})
    for row in rows:
        assert -1 <= row["ari"] <= 1
        assert 0 <= row["homogeneity"] <= 1
        assert row["mse"] >= 0
        assert 0 <= row["ks"] <= 1
    # The run's weights are the untrained ones.
    alike = [{k: v for k, v in r.items() if k != "features"} for r in rows if r["features"] in ("encoder", "untrained")]
    for ours, theirs in zip(alike[: len(alike) // 2], alike[len(alike) // 2 :], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    # What is compared is what the run stored.
    with np.load(small_scan / "truth.npz") as truth:
        domain, inside = truth["domain"].ravel(), ~truth["edge"].ravel()
    labels = io_results.read(small_run)["labels"].sel(k=3).values.ravel()
    [row] = [row for row in rows if (row["features"], row["k"]) == ("encoder", 3)]
    assert row["ari"] == pytest.approx(adjusted_rand_score(domain, labels))
    assert row["ari_interior"] == pytest.approx(adjusted_rand_score(domain[inside], labels[inside]))
    assert row["homogeneity_interior"] == pytest.approx(homogeneity_score(domain[inside], labels[inside]))
