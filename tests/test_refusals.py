"""A finished run stays a finished run: what is refused leaves every file in its folder as it was."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from laue_dask.errors import InputError
from laue_dask.io.lock import locked_folder
from laue_dask.io.receipts import drop_receipts
from laue_dask.pipeline import record as records
from laue_dask.pipeline import segmenting, single_scan, verify
from laue_dask.pipeline.stages import scoring, segmentation, specimen, tables
from laue_dask.runtime.progress import QuietProgress

QUIET = QuietProgress()
BAD_INPUT = 2

CONFIGS = {
    "bgm": "clustering: {k: [3, 4], score_k: [2, 4], n_init: 2, estimator: bgm}\nencoder: {weights: untrained}\n",
    "unknown": "clusters: {}\n",
    "impossible": "clustering: {n_init: 0}\n",
    "not-yaml": "clustering: [\n",
    "weights": "encoder: {weights: other.safetensors}\n",
    "extractor": "encoder: {extractor: pixels}\n",
    "night": "find: {patterns: ['*']}\n",
}


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def place(small_scan, quick, workers, tmp_path_factory):
    """A folder with a finished run, `RUN`, the frames that it was made of, and what refused commands name."""
    folder = tmp_path_factory.mktemp("refusals")
    shutil.copytree(small_scan, folder / "frames")
    single_scan.run(
        str(folder / "frames"), folder / "RUN", quick(quality="all"), command="test", progress=QUIET, workers=workers
    )
    shutil.copytree(folder / "RUN" / "scan.zarr", folder / "store.zarr")
    fewer = folder / "fewer"
    fewer.mkdir()
    for path in sorted(small_scan.glob("*.tif"))[:70]:
        (fewer / path.name).symlink_to(path)
    (folder / "empty").mkdir()
    (folder / "three").mkdir()
    for path in sorted(small_scan.glob("*.tif"))[:3]:
        (folder / "three" / path.name).symlink_to(path)
    for name, text in CONFIGS.items():
        (folder / f"{name}.yaml").write_text(text)
    np.savez(folder / "wrong.npz", domain=np.zeros((9, 8), int))
    np.savez(folder / "strange.npz", other=np.zeros((8, 9)))
    (folder / "text.npz").write_text("no archive")
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine")
    (folder / "file").write_text("x")
    return folder


QUICK = ("-k", "3", "--weights", "untrained")

REFUSED = [
    *(
        ("run", source, "--out", "RUN", *QUICK)
        for source in (
            *("frame", "frames/none_*.tif", "nosuch.h5::/data", "nosuch.zarr", "empty", "notes", "file", "fewer"),
            *("three", "scan.txt", "frames/truth.npz", "RUN", "frames/scan_00000.tif"),
        )
    ),
    ("run", "frames", "--out", "RUN", *QUICK, "--shape", "9", "8"),
    ("run", "frames", "--out", "RUN", *QUICK, "--shape", "7", "9"),
    ("run", "frames", "--out", "RUN", *QUICK, "--order", "snake"),
    ("run", "store.zarr", "--out", "RUN", *QUICK, "--shape", "9", "8"),
    ("run", "frames", "--out", "RUN", "--weights", "nosuch.safetensors"),
    ("run", "frames", "--out", "RUN", "--weights", "file"),
    ("run", "frames", "--out", "RUN", "--weights", "unknown.yaml"),
    ("run", "frames", "--out", "RUN", *QUICK, "-k", "72"),
    ("run", "frames", "--out", "RUN", "-k", "1"),
    ("run", "frames", "--out", "RUN", *QUICK, "--components", "0"),
    ("run", "frames", "--out", "RUN", *QUICK, "--components", "foo"),
    ("run", "frames", "--out", "RUN", *QUICK, "--components", "999"),
    ("run", "frames", "--out", "RUN", "--extractor", "eyes"),
    ("run", "frames", "--out", "RUN", "--substrate", "maybe"),
    ("run", "frames", "--out", "RUN", *QUICK, "--workers", "0"),
    ("run", "frames", "--out", "RUN", "--unknown"),
    ("run", "frames"),
    ("run", "--out", "RUN"),
    *(("run", "frames", "--out", "RUN", "--config", f"{name}.yaml") for name in ("unknown", "impossible", "not-yaml")),
    ("run", "frames", "--out", "RUN", "--config", "nosuch.yaml"),
    ("run", "frames", "--out", "RUN/plots", *QUICK),
    ("run", "frames", "--out", "RUN/run.json", *QUICK),
    ("run", "frames", "--out", "RUN/scan.zarr", *QUICK),
    ("run", "frames", "store.zarr", "--out", "RUN", *QUICK),
    ("run", "frames", "frames", "--out", "RUN", *QUICK),
    ("segment", "RUN", "-k", "72"),
    ("segment", "RUN", "-k", "1"),
    ("segment", "RUN", "--components", "999"),
    ("segment", "RUN", "--components", "0"),
    ("segment", "RUN", "--estimator", "magic"),
    ("segment", "RUN", "-k", "3", "--estimator", "hdbscan"),
    *(("segment", "RUN", "--config", f"{name}.yaml") for name in ("unknown", "impossible", "weights", "extractor")),
    ("segment", "RUN", "-k", "4", "--out", "notes"),
    ("segment", "RUN", "-k", "4", "--out", "RUN"),
    ("segment", "RUN", "-k", "72", "--out", "elsewhere"),
    ("segment", "RUN/scan.zarr", "-k", "4"),
    ("evaluate", "RUN"),
    *(("evaluate", "RUN", "--truth", name) for name in ("nosuch.npz", "wrong.npz", "strange.npz", "text.npz", "empty")),
    ("watch", "frames", "--out", "RUN"),
    ("watch", "frames", "--out", "RUN", "--shape", "9", "8"),
    ("watch", "frames", "--out", "RUN", "--shape", "8", "9", "--order", "snake"),
    ("watch", "frame", "--out", "RUN", "--shape", "8", "9"),
    ("watch", "nosuch/frames", "--out", "RUN", "--shape", "8", "9"),
    ("watch", "store.zarr", "--out", "RUN", "--shape", "8", "9"),
    ("watch", "frames", "--out", "RUN", "--shape", "8", "9", "-k", "1"),
    ("watch", "frames", "--out", "RUN", "--shape", "8", "9", "--config", "impossible.yaml"),
    ("nightly", ".", "--out", "RUN"),
    ("nightly", "nosuch", "--out", "RUN"),
    ("nightly", ".", "--config", "impossible.yaml", "--out", "RUN"),
    ("nightly", ".", "--config", "night.yaml", "--out", "RUN", "--dry-run"),
    ("ingest", "frames", "RUN"),
    ("ingest", "frames", "RUN/scan.zarr"),
    ("ingest", "nosuch", "RUN/scan.zarr"),
    ("simulate", "grains", "RUN"),
    ("simulate", "cheese", "RUN"),
    ("simulate", "training", "RUN"),
    ("demo", "RUN"),
    ("train", "store.zarr", "--validation", "store.zarr", "--out", "RUN/w.safetensors"),
    ("train", "--scan", "RUN", "--from", "default", "--out", "RUN/w.safetensors"),
    ("train", "--scan", "RUN/scan.zarr", "--from", "default", "--out", "RUN/run.json"),
    ("export", "nosuch.safetensors", "RUN/encoder.pt2"),
    ("export", "default", "RUN/run.json"),
    ("export", "default", "RUN/encoder.onnx"),
    ("info", "RUN/nosuch"),
    ("info", "RUN/report.html"),
    ("verify", "RUN/nosuch"),
    ("verify", "RUN/plots"),
    ("plan", "nosuch", "--out", "RUN"),
    ("plan", "frames", "--out", "RUN", "--shape", "7", "9"),
]


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_what_is_refused_leaves_a_finished_run_as_it_was(place, command, monkeypatch, arguments):
    monkeypatch.chdir(place)
    before = state(place)
    outcome = command(*arguments)
    assert outcome.code == BAD_INPUT, (outcome.out, outcome.err)
    assert outcome.complaints, "nothing was said"
    assert state(place) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "frames", "--out", "RUN", *QUICK),
        ("segment", "RUN", "-k", "4"),
        ("segment", "RUN", "-k", "4", "--out", "elsewhere"),
        ("evaluate", "RUN", "--truth", "frames/truth.npz"),
        ("watch", "frames", "--out", "RUN", "--shape", "8", "9"),
    ],
    ids=" ".join,
)
def test_a_run_that_somebody_works_on_is_left_alone(place, command, monkeypatch, arguments):
    monkeypatch.chdir(place)
    with locked_folder(place / "RUN", "somebody else"):
        before = state(place)
        outcome = command(*arguments)
        assert outcome.code == BAD_INPUT, (outcome.out, outcome.err)
        assert "in use by" in outcome.err
        assert state(place) == before


@pytest.mark.usefixtures("on_workers")
@pytest.mark.parametrize("moment", ["usable", "possible", "segment"])
@pytest.mark.parametrize("verb", ["run", "segment"])
def test_what_is_refused_late_leaves_a_finished_run_as_it_was(place, quick, monkeypatch, verb, moment):
    def refuse(*_, **__):
        raise InputError("too late")

    for module in {"usable": (specimen, tables), "possible": (scoring,), "segment": (segmentation,)}[moment]:
        monkeypatch.setattr(module, moment, refuse)
    before = state(place)
    changed = quick(quality="all", encoder={"extractor": "pixels"})
    calls = {
        "run": lambda: single_scan.run(str(place / "frames"), place / "RUN", changed, command="test", progress=QUIET),
        "segment": lambda: segmenting.segment(
            place / "RUN", {"clustering": {"k": (5,)}}, command="test", progress=QUIET
        ),
    }
    with pytest.raises(InputError, match="too late"):
        calls[verb]()
    assert state(place) == before
    assert not verify.verify(place / "RUN", progress=QUIET).findings


def test_a_changed_run_that_is_killed_leaves_the_finished_one(
    small_scan, small_run, quick, workers, tmp_path, monkeypatch
):
    folder = shutil.copytree(small_run, tmp_path / "run")
    before = {name: found for name, found in state(folder).items() if not name.startswith("scan.zarr")}
    changed = quick(quality="all", encoder={"extractor": "pixels"})
    monkeypatch.setattr(segmentation, "segment", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        single_scan.run(str(small_scan), folder, changed, command="test", progress=QUIET, workers=workers)
    monkeypatch.undo()
    assert (folder / "results.zarr.part").is_dir()
    assert before.items() <= state(folder).items()
    found = verify.verify(folder, progress=QUIET)
    assert not found.findings
    assert "another run was begun there and is not finished" in found.notes[0]
    segmenting.segment(folder, {"clustering": {"k": (4,)}}, command="test", progress=QUIET)
    assert (folder / "results.zarr.part").is_dir()
    record = single_scan.run(str(small_scan), folder, changed, command="test", progress=QUIET, workers=workers)
    assert record.patterns.get("encode", 0) == 0
    assert not list(folder.glob("*.part"))
    assert not verify.verify(folder, progress=QUIET).findings
    assert not verify.verify(folder, progress=QUIET).foreign


def test_a_typing_error_in_the_grid_costs_a_finished_run_nothing(place):
    before = state(place / "RUN")
    command = [
        sys.executable,
        "-m",
        "laue_dask",
        "run",
        "frames",
        "--out",
        "RUN",
        "--workers",
        "1",
        "--shape",
        "6",
        "9",
    ]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == BAD_INPUT
    assert "scan.zarr: holds 8 × 9, --shape says 6 × 9" in done.stderr
    assert state(place / "RUN") == before


def _warned(caplog):
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.usefixtures("on_workers")
def test_another_estimator_leaves_what_is_there_in_a_folder_beside_or_says_what_it_replaces(place, tmp_path, caplog):
    before = state(place / "RUN")
    changes = {"clustering": {"estimator": "gmm"}}
    with caplog.at_level(logging.INFO, "laue_dask"):
        made = segmenting.segment(place / "RUN", changes, command="test", progress=QUIET, out=tmp_path / "gmm")
    assert not _warned(caplog)
    assert state(place / "RUN") == before
    assert made["config"]["clustering"]["estimator"] == "gmm"
    found = verify.verify(tmp_path / "gmm", progress=QUIET)
    assert not found.findings
    assert not found.foreign
    with caplog.at_level(logging.INFO, "laue_dask"):
        again = segmenting.segment(tmp_path / "gmm", {"clustering": {"k": (7,)}}, command="test", progress=QUIET)
    assert set(again["k"]) == {*made["k"], 7}
    assert not _warned(caplog)
    with caplog.at_level(logging.INFO, "laue_dask"):
        segmenting.segment(tmp_path / "gmm", {"clustering": {"estimator": "kmeans"}}, command="test", progress=QUIET)
    [line] = _warned(caplog)
    assert line.startswith(f"the earlier segmentations, K = {', '.join(map(str, again['k']))}, are out of date")
    assert line.endswith("To keep them, stop now and give another --out")


@pytest.mark.usefixtures("on_workers")
def test_a_damaged_shard_of_frames_that_no_run_reads_any_more_gets_a_line(small_scan, small_run, quick, tmp_path):
    folder = shutil.copytree(small_run, tmp_path / "run")
    shard = folder / "scan.zarr" / "frames" / "c" / "1" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 4
    shard.write_bytes(content)
    record = single_scan.run(str(small_scan), folder, quick(quality="all"), command="test", progress=QUIET)
    [line] = [one.text for one in record.warnings if one.subject == "frames"]
    assert "1 of its" in line


def test_all_that_our_own_commands_leave_is_known_and_what_is_finished_is_vouched_for(small_run, tmp_path):
    folder = shutil.copytree(small_run, tmp_path / "run")
    ours = ("watch.html", "watch.json", "watch/labels.png", "watch/frames.jsonl", "cluster/state.json", ".nightly")
    for name in (*ours, "cluster/slurm-12.out"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    found = verify.verify(folder, progress=QUIET)
    assert (found.findings, found.foreign) == ([], [])
    records.write_receipts(folder, records.WATCH_FILES)
    drop_receipts(folder, ())
    (folder / "watch.html").write_text("y")
    (folder / "watch" / "labels.png").unlink()
    [one, other] = verify.verify(folder, progress=QUIET).findings
    assert (one.path, other.path) == (folder / "watch.html", folder / "watch" / "labels.png")
