"""What `scripts/benchmark.py` says of its figures, and the long scans that it makes of short ones."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from laue_dask.config import ScanConfig
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.stages.ingest import ingest
from laue_dask.runtime.progress import QuietProgress

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import benchmark
import roofline


def kind(**aris):
    return {"k": 4, **{way: dict.fromkeys(benchmark.ARIS, ari) for way, ari in aris.items()}}


def figures():
    row = {"patterns": 10_000, "patterns_per_s": 300.0, "peak_GB": 1.0, "tasks_per_1000": 8.0}
    row |= {"task_bytes": 1000, "idle_share": 0.01, "blocks": 20}
    return {
        "floor": {"ms": {"decode": 1.0, "reduce": 3.0, "encode": 1.0}, "patterns_per_s": 200.0, "cores_of_one": 1.9},
        "pipeline": {"patterns": 2048, "patterns_per_s": {1: 170.0, 2: 320.0}},
        "today": {
            "patterns": 720,
            "k": 5,
            "today_s": 99.0,
            "labels_s": 90.0,
            "ours_s": 20.0,
            "stored_s": 30.0,
            **{f"{way}_{which}": 0.9 for way in ("today", "ours", "stored") for which in benchmark.ARIS},
        },
        "quality": {
            "grains": kind(ours=1.0, estimator=0.95, today=0.9),
            "twins": kind(ours=0.8, estimator=0.7, today=0.9),
        },
        "scale": [{**row, "patterns": 1000, "patterns_per_s": 100.0}, row, {**row, "patterns": 100_000}],
        "gpu": {
            "device": "a GPU",
            "patterns": 8192,
            "batch_size": 256,
            "compared": 1728,
            "same_labels": 0.9994,
            "store_never": 700.0,
            "store_require": 2500.0,
            "memory": 9e4,
            "encoder": 1e5,
            "layers": 2e5,
            "roofline": 3e5,
        },
    }


def broken(found):
    return [what for what, _, _, kept in benchmark.promises(found) if not kept]


def test_promises_that_are_kept():
    assert broken(figures()) == []
    assert len(benchmark.promises(figures())) == 19
    page = benchmark.page(figures())
    assert "BROKEN" not in page
    assert "| 100,000 | 300 |" in page
    assert "scan store → features, CPU workers 700, with the GPU 2500, " in page
    assert "as the roofline of the convolutions allows 300000; 99.94% of 1728 labels as with CPU workers" in page
    assert "| twins | 4 | 0.800 (0.800) | 0.700 (0.700) | 0.900 (0.900) |" in page


def test_the_truth_repeats_with_the_files(tmp_path):
    np.savez(tmp_path / "truth.npz", domain=[[0, 1], [2, 2]], edge=[[False, True], [False, False]])
    domain, interior = benchmark.truth_of(tmp_path, (2, 3))
    assert domain.tolist() == [[0, 1, 2], [2, 0, 1]]
    assert interior.tolist() == [[True, False, True], [True, True, False]]


@pytest.mark.parametrize(
    ("section", "changed", "expected"),
    [
        ("pipeline", {"patterns_per_s": {1: 150.0, 2: 320.0}}, ["one core, share of the floor"]),
        ("pipeline", {"patterns_per_s": {1: 170.0, 2: 300.0}}, ["2 cores, times one"]),
        ("today", {"ours_s": 23.0}, ["end to end, times today's way"]),
        ("today", {"ours_ari": 0.4}, ["ARI ahead of today's way"]),
        ("today", {"ours_ari_interior": 0.89}, ["interior ARI ahead of today's way"]),
        ("gpu", {"store_require": 1900.0}, ["GPU, from the scan store, patterns/s"]),
        ("gpu", {"layers": 1e5}, ["GPU, convolutional layers, share of the roofline"]),
        ("gpu", {"same_labels": 0.998}, ["GPU, labels as with CPU workers"]),
        (
            "quality",
            {"twins": kind(ours=0.7, estimator=0.7, today=0.9)},
            [f"ARI of {what} ahead of today's way, mean over the kinds" for what in benchmark.ARIS.values()],
        ),
    ],
)
def test_a_promise_that_is_broken_is_named(section, changed, expected):
    found = figures()
    found[section] |= changed
    assert broken(found) == expected
    assert "BROKEN" in benchmark.page(found)


def test_cost_per_pattern_is_compared_over_the_large_scans_alone():
    found = figures()
    found["scale"][2]["patterns_per_s"] = 270.0
    assert broken(found) == ["rate, largest / smallest over the scales"]


def test_without_a_gpu_its_section_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "gpu_count", lambda: 0)
    assert benchmark.as_gpu(tmp_path, None, 64) is None
    assert "GPU" not in benchmark.page({"gpu": None})


@pytest.mark.parametrize("devices", [None, "", "3"])
def test_the_section_of_a_gpu_alone_sees_the_devices(devices, monkeypatch, small_run):
    seen = []

    def run(command, env, **_):
        seen.append(env.get(benchmark.VISIBLE))
        return subprocess.CompletedProcess(command, 0, "null")

    monkeypatch.setenv(benchmark.VISIBLE, "")
    monkeypatch.setattr(benchmark.subprocess, "run", run)
    assert benchmark.gpu(Path("cache"), ScanStore.open(small_run / "scan.zarr"), 64, devices) is None
    assert seen == [devices]


def test_a_gpu_is_held_against_the_cpus(small_run, tmp_path, workers, monkeypatch):
    # The CPU stands for the GPU where this machine has none.
    for name in ("SIDE", "COPIED"):
        monkeypatch.setattr(roofline, name, dict.fromkeys(("cpu", "cuda"), 256))
    asked = []
    monkeypatch.setattr(benchmark, "gpu_count", lambda: 1)
    monkeypatch.setattr(benchmark, "workers", lambda count, *how: asked.append(how) or nullcontext(workers))
    monkeypatch.setattr(benchmark, "SAME", ("grains", "twins"))
    monkeypatch.setattr(benchmark, "SAME_SHAPE", (5, 6))
    source = ScanStore.open(small_run / "scan.zarr").provenance["source"]
    short = ingest(source, tmp_path / "s.zarr", ScanConfig(shape=(8, 9)), workers=workers, progress=QuietProgress())
    found = benchmark.as_gpu(tmp_path, short, 4 * 32)
    assert asked == [("never", 32), ("require", "auto")]
    assert found["patterns"] == 128
    assert found["batch_size"] in {size for sizes in benchmark.AUTO_BATCH_SIZES.values() for size in sizes}
    assert all(found[name] > 0 for name in benchmark.GPU_RATES)
    assert found["compared"] == 60
    assert found["same_labels"] >= 0.9


@pytest.mark.parametrize(
    ("others", "share"),
    [
        ([0, 0, 0, 1, 1, 2], 1.0),
        ([2, 2, 2, 0, 0, 1], 1.0),  # other names
        ([0, 0, 1, 1, 1, 2], 5 / 6),
        ([0, 0, 0, 0, 0, 0], 3 / 6),
        ([0, 1, 2, 3, 4, 5], 3 / 6),
    ],
)
def test_labels_agree_whatever_their_names(others, share):
    assert benchmark.agreement(np.array([0, 0, 0, 1, 1, 2]), np.array(others)) == pytest.approx(share)


def test_a_long_store_repeats_the_frames_of_a_short_one(small_run, tmp_path, workers):
    source = ScanStore.open(small_run / "scan.zarr").provenance["source"]
    short = ingest(source, tmp_path / "s.zarr", ScanConfig(shape=(8, 9)), workers=workers, progress=QuietProgress())
    unit = short.shard_frames
    long = benchmark.repeated_store(tmp_path / "l.zarr", (5, unit), short)
    whole = short.n_patterns // unit
    for block in range(5):
        start = (block % max(1, whole)) * unit
        np.testing.assert_array_equal(
            long.read_frames(block * unit, (block + 1) * unit), short.read_frames(start, start + unit)
        )
    assert long.valid.all()
