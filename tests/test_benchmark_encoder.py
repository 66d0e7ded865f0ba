"""scripts/benchmark_encoder.py: what it promises, and that it runs from simulation to table."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark_encoder.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark_encoder", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def figures(script):
    """Of one scan, all rows alike."""
    return {
        name: {metric: [0.9, 0.92] for metric in script.METRICS}
        for name in (script.ENCODER, script.UNTRAINED, script.PIXELS, script.WIDENED)
    }


def test_level_with_the_best_row_breaks_nothing(script, figures):
    assert script.broken_promises("grains", figures) == []
    assert script.verdict("grains", figures) == "best"
    figures["pixels"]["ari_interior"] = [0.905, 0.925]
    assert script.verdict("grains", figures) == "within 0.01"


@pytest.mark.parametrize("metric", ["ari_interior", "homogeneity", "neighbour"])
@pytest.mark.parametrize("rival", ["untrained", "pixels"])
def test_row_that_is_ahead_in_anything_promised_is_named(script, figures, metric, rival):
    figures[rival][metric] = [0.95, 0.95]
    [line] = script.broken_promises("grains", figures)
    assert line == f"grains: {metric} 0.910, {rival} has 0.950"
    assert script.verdict("grains", figures) == "behind"


def test_widened_pixels_are_shown_alone(script, figures):
    figures["pixels, widened"]["ari_interior"] = [1.0, 1.0]
    assert script.broken_promises("grains", figures) == []


@pytest.mark.parametrize(("pixels", "broken"), [([0.80, 0.84], 0), ([0.86, 0.92], 1), ([0.9, 0.92], 1)])
def test_messy_scans_ask_for_more_than_the_spread_over_pixels(script, figures, pixels, broken):
    figures["pixels"]["ari_interior"] = pixels
    assert len(script.broken_promises("messy", figures)) == broken
    assert script.broken_promises("grains", figures) == []


def test_scans_are_twelve_at_least_with_messy_ones_and_other_detectors(script):
    assert len(script.SCANS) >= 12
    assert set(script.MESSY) <= set(script.SCANS)
    assert {scan.partition("@")[2] for scan in script.SCANS} == {"", "scmos", "marccd165", "pilatus6m"}


def test_from_simulation_to_table(script, tmp_path):
    def run(*more):
        command = [sys.executable, SCRIPT, "--cache", tmp_path, "--shape", "5", "5", "--seeds", "1", "--jobs", "1"]
        command += ["--kinds", "grains", "--angles", "2", "--json", tmp_path / "all.json", *more]
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600)

    done = run("--encoder", "untrained", "--paper", tmp_path / "none.safetensors")
    assert done.returncode in (0, 1), done.stderr
    assert "no `paper` row" in done.stderr
    report = json.loads((tmp_path / "all.json").read_text())
    ours, theirs = (report["scans"]["grains"][name] for name in ("encoder", "untrained"))
    assert ours == theirs
    assert np.isfinite([ours[metric] for metric in script.METRICS]).all()
    assert report["resolved"]["encoder"] == report["resolved"]["untrained"]
    assert report["cost_ms"]["cheapest"] > 0
    lines = done.stdout.splitlines()
    assert lines[0] == "| scan | encoder | untrained | pixels | pixels, widened | verdict |"
    assert lines[2].startswith("| grains | ")
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    assert len(kept) == 2
    assert run("--encoder", tmp_path / "none.safetensors").returncode == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")} == kept


def test_unknown_scan_is_refused():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kinds", "gravel"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert "gravel is no scan: choose of grains" in done.stderr
