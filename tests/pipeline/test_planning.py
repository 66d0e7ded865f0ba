import re

import psutil
import pytest
import yaml

from laue_dask.compute import local
from laue_dask.compute.plan import WORKER_BASE_BYTES_WITH_TORCH

COLUMNS = ["tasks", "read", "written", "memory of a worker", "time"]


def test_the_table_adds_up_and_nothing_is_left_behind(command, small_scan, tmp_path):
    outcome = command("plan", small_scan, "--out", tmp_path / "run", "--workers", 2, "--extractor", "peaks")
    assert outcome.code == 0, outcome.err
    assert outcome.complaints == []
    assert list(tmp_path.iterdir()) == []
    assert "72 frames of 260 × 245, int32; 8 × 9 points" in outcome.out
    assert "blocks          3 of 32 patterns, shards of 32 frames" in outcome.out
    lines = outcome.out.splitlines()
    first = next(i for i, line in enumerate(lines) if re.split(r"\s{2,}", line.strip()) == COLUMNS)
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[first + 1 : lines.index("", first)]]
    assert [row[0] for row in rows] == ["headers", "ingest", "encode", "components", "scores", "all"]
    assert {len(line) for line in lines[first : first + 1 + len(rows)]} == {len(lines[first])}
    assert int(rows[-1][1]) == sum(int(row[1]) for row in rows[:-1])


def test_a_disk_without_room_is_refused_with_both_numbers(command, small_scan, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**6}))
    outcome = command("plan", small_scan, "--out", tmp_path / "run", "--extractor", "peaks")
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert re.search(r"run: needs [\d.]+ [MG]B, the disk at .* has [\d.]+ [MG]B free", line)


@pytest.mark.usefixtures("on_workers")
def test_a_worker_with_too_little_memory_is_refused_with_both_numbers(command, small_scan, tmp_path, monkeypatch):
    file = tmp_path / "c.yaml"
    limit = WORKER_BASE_BYTES_WITH_TORCH
    monkeypatch.setattr(local, "MIN_WORKER_BYTES", limit)
    assert limit < psutil.virtual_memory().total
    file.write_text(yaml.safe_dump({"workers": {"memory": str(limit), "count": 1}}))
    outcome = command("plan", small_scan, "--config", file)
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert re.search(
        rf"a worker needs [\d.]+ GiB for a task of '\w+', but with a limit of {limit / 2**30:.2f} GiB", line
    )


@pytest.mark.parametrize("source", ["nowhere", "nowhere.zarr"])
def test_a_source_that_is_not_there_is_refused_as_by_a_run(command, tmp_path, source):
    outcome = command("plan", tmp_path / source)
    assert outcome.code == 2
    assert len(outcome.complaints) == 1
