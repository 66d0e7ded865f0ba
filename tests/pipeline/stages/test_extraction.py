import json
import re

import dask.array as da
import numpy as np
import pytest

from laue_dask.config import EncoderConfig, Recipe
from laue_dask.features import weights
from laue_dask.features.architecture import Architecture
from laue_dask.features.drift import Drift
from laue_dask.features.encode import Network
from laue_dask.features.network import build
from laue_dask.features.pixels import Pixels
from laue_dask.io import results as io_results
from laue_dask.pipeline import single_scan
from laue_dask.pipeline.stages.extraction import drift_of, extractor_of, sample_of
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.runtime.progress import QuietProgress

WHERE = SpecimenMap(np.ones(6, dtype=bool), (2, 3))
REFERENCE = {"error_q50": 0.1, "error_q95": 0.2, "error_q99": 0.3}


def others(warnings):
    """Warnings but those of clusters whose points all lie on two domains, as these small scans have some."""
    return [text for text in warnings if "where the beam lies between domains" not in text]


def saved(path, **card):
    architecture = Architecture(channels=(4, 8, 8, 8, 8), latent=16)
    weights.save(build(architecture, seed=1), path, weights.Card(architecture=architecture, recipe=Recipe(), **card))
    return str(path)


@pytest.mark.parametrize("name", ["network", "pixels", "peaks"])
def test_extractors_have_the_names_of_the_configuration(name):
    found = extractor_of(EncoderConfig(extractor=name, weights="untrained"), Recipe())
    assert (found.name, found.n_features) == (name, 256)


def test_only_the_network_asks_for_weights(tmp_path):
    config = EncoderConfig(extractor="peaks", weights=str(tmp_path / "missing.safetensors"))
    assert extractor_of(config, Recipe()).name == "peaks"


def test_a_sample_is_of_valid_patterns_spread_over_the_scan():
    valid = np.arange(100) % 3 > 0
    patterns = da.from_array(np.arange(100, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8), chunks=7)
    found = sample_of(patterns, SpecimenMap(valid, (10, 10)))(10)[:, 0, 0]
    assert len(found) == 10
    assert valid[found].all()
    assert (found[0], found[-1]) == (1, 98)
    assert np.ptp(np.diff(found.astype(int))) <= 3
    np.testing.assert_array_equal(
        sample_of(patterns, SpecimenMap(valid, (10, 10)))(4000)[:, 0, 0], np.flatnonzero(valid)
    )


@pytest.mark.parametrize(
    ("made", "errors", "why"),
    [
        (lambda path: Pixels(), np.ones((2, 3)), "`pixels` does not reconstruct"),
        (lambda path: Network.load(EncoderConfig(weights=saved(path))), np.full((2, 3), np.nan), "was computed"),
        (lambda path: Network.load(EncoderConfig(weights=saved(path))), np.ones((2, 3)), "have no reference"),
        (lambda path: Network.load(EncoderConfig(weights="untrained")), np.ones((2, 3)), "have no reference"),
    ],
)
def test_what_is_not_known_of_a_drift_is_said(made, errors, why, tmp_path):
    found = drift_of(made(tmp_path / "w.safetensors"), errors.astype(np.float32))
    assert why in found


def test_a_drift_is_measured_against_the_card(tmp_path):
    network = Network.load(EncoderConfig(weights=saved(tmp_path / "w.safetensors", reference=REFERENCE)))
    found = drift_of(network, np.array([[0.1, 0.1, 0.1], [0.1, 0.1, 0.4]], dtype=np.float32))
    assert found == Drift(6, 1 / 6, pytest.approx(0.1), 0.1, 0.3)


@pytest.mark.usefixtures("on_workers")
@pytest.mark.parametrize("name", ["pixels", "peaks"])
def test_a_run_with_another_extractor_is_whole_and_reconstructs_nothing(name, small_run, quick, tmp_path):
    config = quick(encoder={"extractor": name}, quality="all")
    source = json.loads((small_run / "run.json").read_text())["scan"]
    record = single_scan.run(source, tmp_path / "run", config, command="test", progress=QuietProgress())
    found = io_results.read(tmp_path / "run")
    assert found["features"].shape == (72, 256)
    assert np.isfinite(found["features"].values).all()
    assert np.isnan(found["reconstruction_error"].values).all()
    assert np.isnan(found["unexplained"].values).all()
    assert others(one.text for one in record.warnings) == []
    assert name in record.drift["not_known"]
    assert record.keys["features"] != json.loads((small_run / "run.json").read_text())["keys"]["features"]
    assert not (tmp_path / "run" / "plots" / "unexplained.png").exists()
    # Whatever the blocks, workers and order: the same bits as all patterns at once.
    before = found["features"].values
    (tmp_path / "again").mkdir()
    single_scan.run(source, tmp_path / "again" / "run", config, command="test", progress=QuietProgress())
    np.testing.assert_array_equal(io_results.read(tmp_path / "again" / "run")["features"].values, before)


def test_a_scan_unlike_the_training_is_warned_of_everywhere(small_run, command, tmp_path):
    path = saved(tmp_path / "w.safetensors", reference=REFERENCE)
    source = json.loads((small_run / "run.json").read_text())["scan"]
    outcome = command("run", source, "--out", tmp_path / "run", "--weights", path)
    assert outcome.code == 0
    [line] = [
        line
        for line in outcome.err.splitlines()
        if line in others(outcome.err.splitlines()) and line.startswith("warning: ")
    ]
    assert re.search(r"100 % of 72 patterns .* 0\.300.*0\.100.*laue-dask run … --extractor pixels", line)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert others(record["warnings"]) == [line.removeprefix("warning: ")]
    assert record["drift"]["beyond"] == 1
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert 'class="warning"' in page
    assert "100.0 % of 72 patterns are beyond the 99 % quantile (0.300)" in page
    assert (tmp_path / "run" / "plots" / "unexplained.png").is_file()
    assert io_results.read(tmp_path / "run")["unexplained"].attrs["units"] == "1"
