"""A changed parameter redoes exactly the stages that depend on it, and says which and why."""

import json
import logging
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr

from laue_dask.config import Recipe
from laue_dask.errors import ComputeError
from laue_dask.features import weights
from laue_dask.features.architecture import ARCHITECTURES
from laue_dask.features.network import build
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline import analysis, reuse, segmenting, single_scan
from laue_dask.pipeline import record as records
from laue_dask.pipeline.reuse import Reuse, Stage, differences
from laue_dask.pipeline.stages import segmentation
from laue_dask.runtime.progress import QuietProgress

STAGES = ("ingest", "reduce", "encode", "components", "scores", "segment", "grains", "quality")
AFTER_COMPONENTS = {"scores", "segment", "grains"}
AFTER_FEATURES = {"components", "quality", *AFTER_COMPONENTS}
MADE_BY = {
    "encode": "features",
    "components": "components",
    "grains": "grain",
    "quality": "reconstruction_error",
}
"""A result of each stage whose files are taken over as they are."""


@pytest.fixture
def own_run(small_run, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(small_run, tmp_path / "run")


@pytest.fixture
def again(own_run, small_scan, quick, on_workers, monkeypatch, caplog):
    """Run again in the folder of the copy, without drawing anything; the record, and the lines about stages."""
    monkeypatch.setattr(segmenting, "report", lambda *args, **kwargs: None)

    def run(**sections):
        caplog.clear()
        config = quick(**{"quality": "all", **sections})
        with caplog.at_level(logging.INFO, "laue_dask"):
            record = single_scan.run(str(small_scan), own_run, config, command="test", progress=QuietProgress())
        lines = [one.getMessage() for one in caplog.records if one.name == "laue_dask.pipeline.reuse"]
        return record, dict(line.split(": ", 1) for line in lines)

    return run


def files(folder):
    """Which file, written when, each chunk of results and of reduced patterns is, by stage."""
    found = {}
    for stage, name in {**MADE_BY, "reduce": "*", "ingest": "frames"}.items():
        top = {"reduce": "scan.zarr/reduced", "ingest": "scan.zarr"}.get(stage, "results.zarr")
        chunks = [path for path in folder.glob(f"{top}/{name}/c/**/*") if path.is_file()]
        found[stage] = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in chunks}
    return found


def other_weights(folder):
    path = folder / "other.safetensors"
    architecture = ARCHITECTURES["contrastive"]
    weights.save(build(architecture, seed=5), path, weights.Card(architecture=architecture, recipe=Recipe()))
    return str(path)


@pytest.mark.parametrize(
    ("change", "redone", "words"),
    [
        ({"workers": {"memory": "1GiB"}}, set(), {}),
        ({"quality": "none"}, {"quality"}, {"quality": "again, quality is none, was all"}),
        (
            {"clustering": {"score_k": (2, 5), "estimator": "gmm"}},
            {"scores", "segment"},
            {
                "scores": "again, clustering.score_k is 2 5, was 2 4",
                "segment": "again, clustering.estimator is gmm, was kmeans",
            },
        ),
        (
            {"pca": {"components": 2}},
            AFTER_COMPONENTS,
            dict.fromkeys(AFTER_COMPONENTS, "again, M_PCA is 2, was "),
        ),
        (
            {"encoder": {"extractor": "peaks"}},
            {"encode", *AFTER_FEATURES},
            {
                "encode": "again, encoder.batch_size is none, was 32; encoder.extractor is peaks, was network",
                "components": "again, after encode",
                "grains": "after components",
                "quality": "again, after encode",
            },
        ),
        (
            {"encoder": {"weights": "other"}},
            {"encode", *AFTER_FEATURES},
            {"encode": "other.safetensors (", "components": "again, after encode"},
        ),
        (
            {"recipe": {"clip_sigma": 5.0}},
            {"reduce", "encode", *AFTER_FEATURES},
            {"reduce": "again, recipe.clip_sigma is 5.0, was 4.0", "encode": "again, after reduce"},
        ),
    ],
)
def test_exactly_the_stages_that_depend_on_a_change_are_redone_and_told(
    own_run, again, tmp_path, change, redone, words
):
    if change.get("encoder", {}).get("weights") == "other":
        change = {"encoder": {"weights": other_weights(tmp_path)}}
    before = files(own_run)
    assert all(before.values())
    record, said = again(**change)
    assert list(said) == list(STAGES)
    assert {stage for stage, text in said.items() if text.startswith("again, ")} == redone
    assert all(said[stage] == "kept" for stage in STAGES if stage not in redone)
    for stage, text in words.items():
        assert text in said[stage]
    after = files(own_run)
    for stage in before:
        assert (after[stage] != before[stage]) == (stage in redone), stage
    assert {path: after["reduce"][path] for path in before["reduce"]} == before["reduce"]
    assert record.stages == said == json.loads((own_run / records.RECORD_FILE).read_text())["stages"]


def test_another_k_is_made_beside_those_that_are_kept(own_run, again, quick, tmp_path, monkeypatch):
    made = []
    of = segmentation.estimator_of
    monkeypatch.setattr(
        segmentation, "estimator_of", lambda k, *args, **kwargs: made.append(k) or of(k, *args, **kwargs)
    )
    known = xr.open_zarr(own_run / "results.zarr", consolidated=False)["k"].values.tolist()
    assert 2 not in known
    record, said = again(clustering={"k": (2, 3)})
    assert made == [2]
    assert said["segment"] == f"K = {', '.join(map(str, known))} kept; K = 2 made"
    assert {said[stage] for stage in STAGES if stage != "segment"} == {"kept"}
    fresh = tmp_path / "fresh"
    config = quick(clustering={"k": (2, 3)}, quality="all")
    single_scan.run(str(own_run / "scan.zarr"), fresh, config, command="test", progress=QuietProgress())
    ours, theirs = (zarr.open_group(folder / "results.zarr", mode="r") for folder in (own_run, fresh))
    assert set(ours) == set(theirs)
    for name in theirs:
        assert np.asarray(ours[name]).tobytes() == np.asarray(theirs[name]).tobytes(), name
    assert record.k == json.loads((fresh / records.RECORD_FILE).read_text())["k"]
    for name in ("grains.csv", "delegates.csv", "regions.csv"):
        assert (own_run / name).read_bytes() == (fresh / name).read_bytes()


def test_what_was_damaged_is_made_again_and_nothing_else(own_run, again):
    [chunk] = (path for path in (own_run / "results.zarr" / "grain" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(b"x" + chunk.read_bytes()[1:])
    (own_run / "grains.csv").write_text("")
    _, said = again()
    assert said.pop("grains") == "again, the earlier output is damaged or gone"
    assert set(said.values()) == {"kept"}


def test_a_killed_change_is_told_again_and_what_it_finished_is_kept(own_run, again, monkeypatch):
    def kill(*args, **kwargs):
        raise ComputeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(analysis, "write_direct_colouring", kill)
        with pytest.raises(ComputeError):
            again(encoder={"extractor": "peaks"})
    _, said = again(encoder={"extractor": "peaks"})
    assert [said[stage] for stage in STAGES[:4]] == ["kept"] * 4
    assert all(said[stage].endswith("; after components") for stage in AFTER_COMPONENTS)
    assert set(again(encoder={"extractor": "peaks"})[1].values()) == {"kept"}


def test_another_recipe_in_a_shared_store_is_told_by_its_nearest(own_run, again, small_run, quick, tmp_path, caplog):
    store = own_run / "scan.zarr"
    with caplog.at_level(logging.INFO, "laue_dask"):
        config = quick(recipe={"saturation_quantile": 0.999})
        single_scan.run(str(store), tmp_path / "new", config, command="test", progress=QuietProgress())
    told = [one.getMessage() for one in caplog.records if one.name == "laue_dask.pipeline.reuse"]
    assert told == ["reduce: again, recipe.saturation_quantile is 0.999, was 0.9995"]


def test_a_warning_about_labels_outlives_the_run_that_made_them(own_run, again, monkeypatch):
    never = property(lambda self: False, lambda self, value: None)
    monkeypatch.setattr(segmentation.GaussianMixtureClusters, "converged_", never, raising=False)
    change = {"clustering": {"estimator": "gmm", "k": (3,)}}
    first, _ = again(**change)
    assert any(one.text.endswith(segmentation.NOT_CONVERGED_WARNING) for one in first.warnings)
    monkeypatch.undo()
    monkeypatch.setattr(segmenting, "report", lambda *args, **kwargs: None)
    second, said = again(**change)
    assert said["segment"] == "kept"
    assert second.warnings == first.warnings


# The words


def test_nothing_is_said_where_there_was_no_earlier_run(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "laue_dask"):
        reuse = Reuse.of(tmp_path)
        reuse.announce(Stage("encode", "a", {}), kept=False)
    assert reuse.announced == {"encode": "made"}
    assert not caplog.records


@pytest.mark.parametrize("content", [{"stages": 3}, {"stages": {"encode": "a"}}, {"stages": {"encode": {"key": 1}}}])
def test_stages_that_are_none_are_not_believed(tmp_path, content):
    ResultsWriter(tmp_path, content)
    stage = Stage("encode", "a", {})
    reuse = Reuse.of(tmp_path)
    assert not reuse.holds(stage, ())
    reuse.announce(stage, kept=False)
    assert reuse.announced == {"encode": "made"}


def test_many_changes_are_counted():
    before = {f"v{i}": i for i in range(9)}
    told = differences(before, dict.fromkeys(before, -1))
    assert told[:2] == ["v0 is -1, was 0", "v1 is -1, was 1"]
    assert told[-1] == "5 more values changed"
    assert differences(before, before) == []


def test_what_older_code_found_is_not_taken_for_new_after_segmenting_again(own_run, again, monkeypatch):
    monkeypatch.setitem(reuse.STAGE_VERSIONS, "grains", 2)
    monkeypatch.setitem(reuse.STAGE_VERSIONS, "segments", 2)
    before = files(own_run)["grains"]
    segmenting.segment(own_run, {}, command="test", progress=QuietProgress())
    assert files(own_run)["grains"] != before
    _, told = again(clustering={"k": (3,)})
    assert told["grains"] == "kept"
