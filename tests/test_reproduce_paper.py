"""scripts/reproduce_paper.py: its own measures, and that it runs from simulation to the page of figures."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import laue_dask

SCRIPT = Path(__file__).parent.parent / "scripts" / "reproduce_paper.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("reproduce_paper", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@given(seed=st.integers(0, 1000))
def test_colours_agree_whatever_the_order_and_the_signs_of_their_components(script, seed):
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (6, 7, 3))
    assert script.agreement(rgb, 255 - rgb[..., [2, 0, 1]]) == pytest.approx(1)
    assert script.agreement(rgb, rng.integers(0, 256, (6, 7, 3))) < 0.8


@given(seed=st.integers(0, 1000))
def test_domains_explain_what_is_constant_in_them_and_nothing_of_noise(script, seed):
    rng = np.random.default_rng(seed)
    domain = np.repeat([0, 1, 2], 200)
    assert script.shown_by_colours(rng.normal(size=(3, 2))[domain], domain) == pytest.approx(1)
    assert script.shown_by_colours(rng.normal(size=(600, 2)), domain) < 0.1


def test_peaks_of_the_scores_are_told_best_first_and_the_last_k_is_none(script):
    import xarray as xr

    made = xr.Dataset(
        {"silhouette": ("score_k", [0.3, 0.2, 0.5, 0.4]), "calinski_harabasz": ("score_k", [1.0, 2.0, 3.0, 4.0])},
        coords={"score_k": [2, 3, 4, 5]},
    )
    assert script.peaks(made) == {"silhouette": [4, 2], "calinski_harabasz": []}


def test_twins_that_clusters_tell_apart_are_found(script, tmp_path):
    from laue_dask.simulate.specimens import specimen

    made = specimen("twins", (24, 24), 2, grains=3)
    scan = script.Scan(None, None, None, None, made.domain, made.angle, ~made.edge, ~made.edge, made)
    grain = script.grains_of(scan)
    assert len(np.unique(grain)) == 3
    perfect, blind = (script.Found(9, 2, labels, None, None, 9) for labels in (made.domain, grain))
    assert script.twins_split(scan, perfect) == [1, 1]
    assert script.twins_split(scan, blind) == [0, 0]


def test_verdicts_are_on_the_page(script):
    study = script.Study(
        "Cu",
        (script.Drawn("6", "figures/fig_6.png", "Explained variance.", "99 % in 8."),),
        (script.Observation("6", "few components", "99 % in 8", True), script.Observation("8", "a", "b", False)),
        {},
    )
    times = {"CuAlMn": {"patterns": 900, "features": 5.0, "clustering": {3: 0.5, 16: 1.0}}}
    page = script.page([study], times, ["seed 1"])
    assert "| 6 | few components | 99 % in 8 | holds |" in page
    assert "| 8 | a | b | **does not hold** |" in page
    assert "![Figure 6](figures/fig_6.png) | **Figure 6.** Explained variance.<br>99 % in 8. |" in page
    assert "| CuAlMn | 900 | 45 / 5.0 | K = 3: 2.3 / 0.5; K = 16: 5.6 / 1.0 |" in page


def test_from_simulation_to_page(tmp_path):
    def run(*more):
        command = [sys.executable, SCRIPT, tmp_path / "out", "--small", "--cache", tmp_path / "cache", "--jobs", "1"]
        command += ["--maps", tmp_path, "--weights", "untrained", *more]
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600)

    done = run("--specimen", "CuAlMn", "--specimen", "W")
    assert done.returncode == 0, done.stderr
    assert "W: left out, there is no" in done.stderr
    page = (tmp_path / "out" / "figures.md").read_text()
    assert "W: left out" in page
    figures = sorted(path.name for path in (tmp_path / "out" / "figures").glob("*.png"))
    assert figures == ["fig_20.png", "fig_21.png", "fig_section_4.4_cualmn.png"]
    assert all(f"(figures/{name})" in page for name in figures)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    [study] = report["studies"]
    assert [one["figure"] for one in study["observations"]] == ["21", "20", "20"]
    assert report["times"]["CuAlMn"]["patterns"] == 64
    assert all(f"| {one['paper']} | {one['seen']} |" in page for one in study["observations"])
    nothing = run("--specimen", "W")
    assert nothing.returncode == 2
    assert "nothing is left to do" in nothing.stderr


def test_functions_that_the_documentation_names_for_the_paper_exist():
    page = (SCRIPT.parent.parent / "docs" / "method.md").read_text(encoding="utf-8")
    packages = "|".join(path.name for path in Path(laue_dask.__file__).parent.iterdir() if path.is_dir())
    names = re.findall(rf"`((?:{packages})(?:\.\w+)+)`", page)
    assert len(names) > 25
    for name in names:
        module, _, attribute = name.rpartition(".")
        found = importlib.import_module(f"laue_dask.{module}")
        if not hasattr(found, attribute):  # a module itself
            importlib.import_module(f"laue_dask.{name}")
