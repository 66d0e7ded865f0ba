"""A beamtime of small folders, and a hand that runs nothing but keeps the promises of a run."""

import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from laue_dask import __version__
from laue_dask.nightly.config import NightlyConfig
from laue_dask.nightly.night import run_night


class Hand:
    """Answers as told by scan; without being told, a run is made and is fine."""

    def __init__(self, out):
        self.out = out
        self.answers = {}
        self.jobs = []
        self.found = []

    def run(self, job, *, stop):
        name = Path(job["source"]).name
        self.jobs.append(name)
        self.found.append((Path(job["out"]) / "run.json").is_file())
        answer = self.answers.get(name, {})
        if isinstance(answer, list):
            answer = answer.pop(0) if answer else {}
        if isinstance(answer, BaseException):
            raise answer
        if "failed" in answer:
            return dict(answer)
        folder = Path(job["out"])
        (folder / "scan.zarr").mkdir(exist_ok=True)
        facts = {
            "n_patterns": len(list(Path(job["source"]).iterdir())),
            "n_set_aside": 0,
            "scan_shape": [2, 2],
            "k": [3],
            "suggested_k": [],
            "m_pca": 1,
            "warnings": [],
        }
        record = {**facts, "laue_dask": __version__, "config": job["config"], "seconds": {"all": 1.0}}
        (folder / "run.json").write_text(json.dumps({**record, "command": job["command"]}))
        return {**facts, "seconds": 1.0, "thumbnails": [], "memory": 1}


@dataclass
class Beamtime:
    """Folders of a few files, an hour old, and their nights."""

    path: Path
    hand: Hand = field(init=False)
    said: list = field(default_factory=list)

    def __post_init__(self):
        self.hand = Hand(self.out)

    @property
    def root(self):
        return self.path / "root"

    @property
    def out(self):
        return self.path / "out"

    def record(self, *names, count=4, age=3600.0):
        for name in names:
            folder = self.root / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                path = folder / f"img_{i}.tif"
                path.write_bytes(b"x")
                os.utime(path, (time.time() - age,) * 2)

    def config(self, **sections):
        limits = {"min_free": 0, **sections.pop("limits", {})}
        retry = {"pause_seconds": 0, **sections.pop("retry", {})}
        return NightlyConfig.model_validate({"out": self.out, "limits": limits, "retry": retry, **sections})

    def night(self, *, again=(), **sections):
        code = run_night(self.root, self.config(**sections), again=again, say=self.said.append, scan_process=self.hand)
        return int(code)

    @property
    def summary(self):
        return json.loads((self.out / "summary.json").read_text())

    @property
    def states(self):
        return {row["scan"]: row["status"] for row in self.summary["scans"]}

    @property
    def reasons(self):
        return {row["scan"]: row["reason"] for row in self.summary["scans"]}

    @property
    def times_run(self):
        return Counter(self.hand.jobs)


@pytest.fixture(scope="session")
def make_beamtime():
    """Makes a beamtime in a folder."""
    return Beamtime


@pytest.fixture
def beamtime(tmp_path):
    made = Beamtime(tmp_path)
    made.root.mkdir()
    return made
