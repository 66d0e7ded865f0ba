#!/usr/bin/env python3
"""Simulated nights: small scans arrive day by day, some of them faulty, and `laue-dask nightly` runs every night.

    .venv/bin/python scripts/nights.py OUT [--nights 30] [--scans 20] [--faults 0.05] [--seed 0]

After every night the state of every scan, the counts of the summary and the exit code are held against what the faults
must lead to; at the end also what each run holds, how often each scan was run, and the memory. Time is compressed: a
day passes in no time, files of the day before are dated back. Frames are simulated once, and scans share them.

Faults: `truncated` frames; `empty` folders, filled a day later or never; `growing` folders, half written at night and
complete a day later; `garbage` instead of frames, repaired a day later or never; `killed`: the scan's process is
killed while it runs, once or every time; and, of whole nights, `night killed`: nightly itself is killed in the middle
of a scan and the timer starts it again; `disk`: no room is left until the next night; `time`: the night ends early.

    .venv/bin/python scripts/nights.py OUT --kills 20 [--scans 6] [--seed 0]

Instead of nights: one night that is killed (SIGKILL) at so many random moments and started again after each. Every scan
must be done, once, with results that are to the last bit those of a night that nobody disturbed.

Exit code: 0 if everything is as it must be.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psutil
import yaml

from laue_dask.runtime.progress import duration

NIGHTLY = [sys.executable, "-m", "laue_dask", "nightly"]
"""Every night is a process, as a timer starts it."""

SHAPE = (4, 5)
POOL = 6
"""Different scans that are simulated."""

KINDS = ("truncated", "empty", "growing", "garbage", "killed")
NIGHTS = ("night killed", "disk", "time")
OLD = 86400.0
"""Seconds by which files of the day before are dated back."""

FLAT = 0.05


@dataclass
class Scan:
    """A scan, what is wrong with it, and what must become of it."""

    name: str
    pool: int
    fault: str = ""
    lasting: bool = False
    """Whether the fault is still there a day later."""
    day: int = 0
    cut: tuple[int, ...] = ()
    runs: int = 1
    """Times that it must be run to its end."""

    def status(self, day: int) -> str:
        """After the night of a day in which nothing stopped the night."""
        first = day == self.day
        if self.fault in ("empty", "growing") and (first or self.lasting):
            return "waiting"
        if self.fault == "garbage" and (first or self.lasting):
            return "aside"
        return "aside" if self.fault == "killed" and self.lasting else "done"


@dataclass
class Campaign:
    """All nights."""

    out: Path
    scans: list[Scan] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    workers: list[list[int]] = field(default_factory=list)
    ends: Counter = field(default_factory=Counter)

    @property
    def root(self) -> Path:
        return self.out / "beamtime"

    @property
    def runs(self) -> Path:
        return self.out / "nights"

    def expect(self, found: object, wanted: object, what: str) -> None:
        if found != wanted:
            self.problems.append(f"{what}: {found!r}, {wanted!r} was expected")
            print(f"  WRONG {self.problems[-1]}", flush=True)


def make_pool(folder: Path) -> None:
    """Simulate the scans that all others are copies of."""
    from laue_dask.simulate.detector import DETECTORS
    from laue_dask.simulate.scan import write_scan
    from laue_dask.simulate.specimens import specimen

    for i in range(POOL):
        kind = ("grains", "twins", "two_phases")[i % 3]
        write_scan(specimen(kind, SHAPE, i), DETECTORS["pilatus1m"].binned(7), folder / str(i), seed=i)


def plan(nights: int, scans: int, faults: float, seed: int) -> list[list[Scan]]:
    """What arrives on each day, with faults evenly spread over the kinds."""
    draw = random.Random(seed)  # noqa: S311
    days = [
        [Scan(f"day{day:02d}/scan{i:02d}", draw.randrange(POOL), day=day) for i in range(scans)]
        for day in range(nights)
    ]
    # None on the last day: its scans have no day after it.
    early = [scan for day in days[: max(1, nights - 1)] for scan in day]
    for i, scan in enumerate(draw.sample(early, round(faults * nights * scans))):
        scan.fault, scan.lasting = KINDS[i % len(KINDS)], (i // len(KINDS)) % 3 == 2
        if scan.fault == "truncated":
            points = SHAPE[0] * SHAPE[1]
            scan.cut = tuple(sorted(draw.sample(range(points), draw.randint(1, 4))))
        if scan.lasting and scan.fault != "truncated":
            scan.runs = 0
    return days


def arrive(campaign: Campaign, scan: Scan) -> None:
    """Write a scan as the detector leaves it on its first day."""
    folder = campaign.root / scan.name
    folder.mkdir(parents=True, exist_ok=True)
    frames = sorted((campaign.out / "pool" / str(scan.pool)).glob("*.tif"))
    if scan.fault == "empty":
        return
    if scan.fault == "growing":
        for frame in frames[: len(frames) // 2]:
            shutil.copy(frame, folder)
        return
    for i, frame in enumerate(frames):
        target = folder / frame.name
        if scan.fault == "garbage":
            target.write_bytes(random.Random(f"{scan.name} {i}").randbytes(4000))  # noqa: S311
        elif i in scan.cut:
            target.write_bytes(frame.read_bytes()[: frame.stat().st_size // 3])
        else:
            os.link(frame, target)
    date_back(folder)


def day_after(campaign: Campaign, scan: Scan) -> None:
    """What the day after brings for a scan that was not complete; one that still grows is touched."""
    folder = campaign.root / scan.name
    if scan.fault == "growing" and scan.lasting:
        os.utime(max(folder.glob("*.tif")))
    elif scan.fault in ("empty", "growing", "garbage") and not scan.lasting and (folder / "done").exists() is False:
        for frame in sorted((campaign.out / "pool" / str(scan.pool)).glob("*.tif")):
            (folder / frame.name).unlink(missing_ok=True)
            os.link(frame, folder / frame.name)
        (folder / "done").touch()
        date_back(folder)


def date_back(folder: Path) -> None:
    then = time.time() - OLD
    for path in folder.iterdir():
        if path.stat().st_mtime > then:
            os.utime(path, (then, then))


def settings(campaign: Campaign, limits: dict[str, object]) -> Path:
    """Configuration of a night as a file."""
    path = campaign.out / "nightly.yaml"
    run = {
        "encoder": {"extractor": "peaks"},
        "clustering": {"score_k": [2, 3], "n_init": 1, "k": [3], "repeats": 0},
        "quality": "none",
        "workers": {"count": 1},
    }
    values = {
        "out": "nights",
        "find": {"patterns": ["day*/scan*"], "quiet_minutes": 600},
        "run": run,
        "limits": {"min_free": "1GB", "nice": 0, **limits},
        "retry": {"pause_seconds": 0},
    }
    path.write_text(yaml.safe_dump(values))
    return path


class Killer(threading.Thread):
    """Kills the process of some scans while they run: once, or every time that they are tried."""

    def __init__(self, campaign: Campaign, victims: list[Scan], draw: random.Random) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.kills: Counter = Counter()
        self._campaign, self._victims, self._draw = campaign, {scan.name: scan for scan in victims}, draw

    def run(self) -> None:
        last: dict = {}
        while self._victims and not self.over.wait(0.05):
            event = last_event(self._campaign)
            name = event.get("scan", "")
            if event != last and event.get("event") == "begun" and name in self._victims:
                last = event
                if self._victims[name].lasting or not self.kills[name]:
                    self.over.wait(self._draw.uniform(0.0, 0.6))
                    self.kills[name] += kill_workers()


def last_event(campaign: Campaign) -> dict:
    """The last whole line of the journal."""
    try:
        with (campaign.runs / "journal.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
            return json.loads(file.read().split(b"\n")[-2])
    except (OSError, ValueError, IndexError):
        return {}


def log_lines(campaign: Campaign) -> list[str]:
    """Lines of the log and of those that were rotated away."""
    return [line for log in sorted(campaign.runs.glob("nightly.log*")) for line in log.read_text().splitlines()]


def kill_workers() -> int:
    """Kill the processes that run scans for the night that lasts; how many there were."""
    killed = 0
    for child in psutil.Process().children(recursive=True):
        try:
            if "laue_dask.nightly.worker" in child.cmdline():
                child.send_signal(signal.SIGKILL)
                killed += 1
        except psutil.Error:
            continue
    return killed


def killed_night(campaign: Campaign, path: Path, draw: random.Random, arrived: int) -> bool:
    """Start a night as a timer does, and kill it after a few scans; whether it was killed before its end."""
    command = [*NIGHTLY, str(campaign.root), "--config", str(path)]
    before = len(log_lines(campaign))
    night = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    wanted = draw.randint(1, max(1, arrived // 2))
    while night.poll() is None and len(log_lines(campaign)) < before + wanted:
        time.sleep(0.1)
    time.sleep(draw.uniform(0, 1.0))
    ended = night.poll() is not None
    if not ended:
        night.send_signal(signal.SIGKILL)
        night.wait()
    return not ended


def one_night(campaign: Campaign, day: int, arrived: list[Scan], kind: str, draw: random.Random) -> None:
    for scan in campaign.scans:
        day_after(campaign, scan)
    for scan in arrived:
        arrive(campaign, scan)
    campaign.scans += arrived
    limits: dict[str, object] = {}
    if kind == "disk":
        limits["min_free"] = "1000TB"
    if kind == "time":
        limits["hours"] = 15 / 3600
    path = settings(campaign, limits)
    if kind == "night killed":
        killed = killed_night(campaign, path, draw, len(arrived))
        campaign.expect(killed, True, f"night {day}: was killed before its end")
    killer = Killer(campaign, [scan for scan in arrived if scan.fault == "killed"], draw)
    killer.start()
    began = time.monotonic()
    code = subprocess.run([*NIGHTLY, str(campaign.root), "--config", str(path)], stdout=subprocess.DEVNULL).returncode
    killer.over.set()
    killer.join()
    summary = json.loads((campaign.runs / "summary.json").read_text())
    campaign.memory.append(summary["memory"]["night"])
    campaign.workers.append(summary["memory"]["worker"])
    campaign.ends[kind or "whole"] += 1
    check_night(campaign, day, kind, code, summary)
    faults = dict(Counter(scan.fault for scan in arrived if scan.fault))
    counts = {status: count for status, count in summary["counts"].items() if count}
    print(
        f"{datetime.now():%H:%M:%S} night {day:2d}{f' ({kind})' if kind else ''}: exit {code}, {counts}, "
        f"{duration(time.monotonic() - began)}, {campaign.memory[-1] / 1e6:.1f} MB; faults {faults}",
        flush=True,
    )


def check_night(campaign: Campaign, day: int, kind: str, code: int, summary: dict) -> None:
    found = {row["scan"]: row for row in summary["scans"]}
    campaign.expect(sorted(found), sorted(scan.name for scan in campaign.scans), f"night {day}: scans in the summary")
    counts = Counter(row["status"] for row in found.values())
    campaign.expect(sum(summary["counts"].values()), len(found), f"night {day}: sum of the counts")
    campaign.expect({k: v for k, v in summary["counts"].items() if v}, dict(counts), f"night {day}: counts")
    for scan in campaign.scans:
        wanted = scan.status(day)
        allowed = {wanted, "left"} if kind in ("disk", "time") and wanted in ("done", "aside") else {wanted}
        if found[scan.name]["status"] not in allowed:
            campaign.expect(found[scan.name]["status"], wanted, f"night {day}: {scan.name} ({scan.fault or 'good'})")
    wanted_code = 1 if kind == "disk" else 3 if counts["aside"] else 0
    campaign.expect(code, wanted_code, f"night {day}: exit code")
    campaign.expect(summary["exit_code"], code, f"night {day}: exit code in the summary")
    if kind in ("disk", "time"):
        begins = "disk" if kind == "disk" else "time"
        campaign.expect(summary["stopped"].startswith(begins), True, f"night {day}: says why it stopped")


def check_end(campaign: Campaign, nights: int) -> None:
    """What every run holds, and how often every scan was run to its end."""
    summary = json.loads((campaign.runs / "summary.json").read_text())
    found = {row["scan"]: row for row in summary["scans"]}
    told = [line.partition(" done    ")[2] for line in log_lines(campaign)]
    done = Counter(line.partition(": ")[0] for line in told)
    page = (campaign.runs / "index.html").read_text()
    for scan in campaign.scans:
        row = found[scan.name]
        campaign.expect(done[scan.name], scan.runs, f"{scan.name} ({scan.fault or 'good'}): runs to the end")
        campaign.expect(scan.name in page, True, f"{scan.name}: on the page")
        if row["status"] == "done":
            record = json.loads((campaign.runs / row["run"] / "run.json").read_text())
            points = SHAPE[0] * SHAPE[1]
            campaign.expect(record["n_patterns"], points - len(scan.cut), f"{scan.name}: patterns")
            campaign.expect(record["n_set_aside"], len(scan.cut), f"{scan.name}: patterns set aside")
            campaign.expect(record["source"], str(campaign.root / scan.name), f"{scan.name}: source")
    states = Counter(row["status"] for row in found.values())
    defined = sum(states[one] for one in ("done", "aside", "waiting"))
    campaign.expect(defined, len(campaign.scans), "scans in a defined state")
    print(f"\n{defined} of {len(campaign.scans)} scans ended in a defined state after {nights} nights: {dict(states)}")
    faults = Counter(scan.fault for scan in campaign.scans if scan.fault)
    print(f"faults: {dict(faults)}; nights: {dict(campaign.ends)}")
    steady = campaign.memory[1:] or campaign.memory
    rise = max(steady) / min(steady) - 1
    print(
        "memory of nightly at the end of each night, from the second: "
        f"{min(steady) / 1e6:.1f} to {max(steady) / 1e6:.1f} MB"
    )
    print(f"  {100 * rise:.1f} % (at most {100 * FLAT:.0f} % is asked for)")
    # A scan whose process was killed tells no memory.
    nights_of_workers = [[size for size in one if size] for one in campaign.workers]
    spans = [(one[1], one[-1]) for one in nights_of_workers if len(one) > 10]
    if spans:
        rises = [last / first - 1 for first, last in spans]
        print(
            f"memory of the process of the scans, from the second to the last of a night: {100 * min(rises):+.1f} to "
            f"{100 * max(rises):+.1f} %; at the end of the first such night {spans[0][1] / 1e6:.0f} MB, of the last "
            f"{spans[-1][1] / 1e6:.0f} MB"
        )
    if nights >= 5:
        campaign.expect(rise <= FLAT, True, "memory of nightly is flat")


def kill_often(campaign: Campaign, scans: int, kills: int, draw: random.Random) -> None:
    """Kill a night at random moments until it has been killed often enough, let it end, and compare."""
    calm = Campaign(campaign.out / "calm")
    for one in (calm, campaign):
        one.out.mkdir(exist_ok=True)
        one.scans = [Scan(f"day00/scan{i:02d}", i % POOL) for i in range(scans)]
        if one is calm:
            (calm.out / "pool").symlink_to(campaign.out / "pool")
        for scan in one.scans:
            arrive(one, scan)
    path = settings(calm, {})
    began = time.monotonic()
    subprocess.run([*NIGHTLY, str(calm.root), "--config", str(path)], check=True, stdout=subprocess.DEVNULL)
    of_one = (time.monotonic() - began) / scans
    path = settings(campaign, {})
    moments: Counter = Counter()
    while moments.total() < kills:
        left = len(campaign.scans) - sum(" done " in line for line in log_lines(campaign))
        night = subprocess.Popen([*NIGHTLY, str(campaign.root), "--config", str(path)], stdout=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            night.wait(draw.uniform(0, of_one * left))
            # All is done before the kills are: one more scan for the others.
            scan = Scan(f"day01/scan{len(campaign.scans):02d}", draw.randrange(POOL))
            for one in (calm, campaign):
                arrive(one, scan)
                one.scans.append(scan)
            continue
        moments[last_event(campaign).get("event", "start")] += 1
        night.send_signal(signal.SIGKILL)
        night.wait()
        print(f"{datetime.now():%H:%M:%S} kill {moments.total()} of {kills}, after {dict(moments)}", flush=True)
    subprocess.run([*NIGHTLY, str(campaign.root), "--config", str(path)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(
        [*NIGHTLY, str(calm.root), "--config", str(settings(calm, {}))], check=True, stdout=subprocess.DEVNULL
    )
    done = Counter(line.partition(" done    ")[2].partition(": ")[0] for line in log_lines(campaign))
    summary = json.loads((campaign.runs / "summary.json").read_text())
    for row in summary["scans"]:
        campaign.expect(row["status"], "done", row["scan"])
        campaign.expect(done[row["scan"]], 1, f"{row['scan']}: runs to the end")
        same = same_results(calm.runs / row["run"], campaign.runs / row["run"])
        campaign.expect(same, True, f"{row['scan']}: results as without kills")
    campaign.expect(len(summary["scans"]), len(campaign.scans), "scans in the summary")
    for child in psutil.process_iter(["cmdline"]):
        mine = str(campaign.out) in " ".join(child.info["cmdline"] or ())
        if mine and "laue_dask.nightly.worker" in " ".join(child.info["cmdline"]):
            campaign.expect(child.pid, None, "process left behind")
    print(f"{len(summary['scans'])} scans, killed {moments.total()} times while the journal's last line was {moments}")


def same_results(one: Path, other: Path) -> bool:
    """Whether the arrays of two runs are the same to the last bit."""
    import xarray as xr

    left, right = (xr.open_zarr(folder / "results.zarr", mask_and_scale=False) for folder in (one, other))
    with left, right:
        return set(left.variables) == set(right.variables) and all(
            left[name].values.tobytes() == right[name].values.tobytes() for name in left.variables
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--scans", type=int, default=20)
    parser.add_argument("--faults", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0, help="kill one night so often instead")
    given = parser.parse_args()
    out = given.out.absolute()
    if out.exists():
        parser.error(f"{out} exists: choose a new folder")
    campaign = Campaign(out)
    began = time.monotonic()
    pool = multiprocessing.get_context("spawn").Process(target=make_pool, args=(out / "pool",))
    pool.start()
    pool.join()
    draw = random.Random(given.seed + 1)  # noqa: S311
    if given.kills:
        kill_often(campaign, given.scans, given.kills, draw)
        print(f"{len(campaign.problems)} things are not as they must be; {duration(time.monotonic() - began)} in all")
        return 1 if campaign.problems else 0
    days = plan(given.nights, given.scans, given.faults, given.seed)
    # Whose process is to be killed, is in a night that lasts.
    free = [day for day in range(1, given.nights - 1) if not any(scan.fault == "killed" for scan in days[day])]
    kinds = dict(zip(draw.sample(free, min(6, len(free))), 2 * NIGHTS, strict=False))
    for day, arrived in enumerate(days):
        one_night(campaign, day, arrived, kinds.get(day, ""), draw)
    check_end(campaign, given.nights)
    print(f"{len(campaign.problems)} things are not as they must be; {duration(time.monotonic() - began)} in all")
    return 1 if campaign.problems else 0


if __name__ == "__main__":
    sys.exit(main())
