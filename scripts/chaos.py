#!/usr/bin/env python
"""Kill workers and drivers, damage what is stored, fill the disk, race for locks; print what held.

    scripts/chaos.py OUT [--seed 0] [--worker-kills 200] [--driver-kills 100] [--corruptions 1000] [--clean 1000]
                         [--races 100] [--faults 40] [--repairs 25]

Every trial is a line of OUT/trials.jsonl with its seed; the same command goes on where it was stopped. A tiny scan with
many blocks is used, so that a kill costs seconds. Drivers are forked from this process, which has imported everything
and otherwise does nothing; a driver whose workers are threads of its own dies as a machine does, all at once.
"""

import argparse
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A worker that was killed is back in a second: its successor is forked from a process that has imported everything.
    os.environ["DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD"] = "forkserver"

import matplotlib

matplotlib.use("agg")

import numpy as np
import psutil
from distributed import Client
from distributed.utils import get_mp_context
from PIL import Image
from zarr.storage import _local

from laue_dask import schema
from laue_dask.compute import cluster
from laue_dask.compute.cluster import Workers
from laue_dask.config import Config, validate
from laue_dask.errors import LaueDaskError
from laue_dask.io import block_reader, journal
from laue_dask.io import results as io_results
from laue_dask.io.block_files import checksum
from laue_dask.io.geometry import resolve_grid
from laue_dask.io.journal import Journal
from laue_dask.io.lock import locked_folder
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import record as records
from laue_dask.pipeline import single_scan, verify
from laue_dask.runtime.progress import QuietProgress

QUIET = QuietProgress()
SHAPE = (20, 32)
SIDE = 128
HANG = 300.0
"""Seconds after which a driver that neither ends nor dies is a hang."""

PROMISES = {
    1: ("kill any worker at any time: same bytes out", "worker_kill", "200 of 200"),
    2: ("kill the driver at any instant, run again", "driver_kill", "100 of 100, 0 finished shards redone"),
    3: ("no silent corruption", "corruption", "1,000 of 1,000, 0 false alarms"),
    4: ("never a partial shard", "pytest tests/compute/test_run.py tests/io/test_scan_store.py", "0 wrong frames"),
    5: ("memory bounded and known before the start", "scripts/benchmark.py", "peak <= plan"),
    6: ("the scheduler is never the bottleneck", "scripts/benchmark.py", "<= 10 tasks per 1,000 patterns"),
    7: ("survives walltime and preemption", "pytest tests/compute/test_slurm.py", "20 expiries"),
    8: ("never hangs", "hangs", "0"),
    9: ("PCA exact and independent of order", "pytest tests/test_pca.py", "<= 1e-10"),
    10: ("KMeans honest and stable", "scripts/benchmark_clustering.py", "<= 1.01 x scikit-learn"),
    11: ("GPU work only on GPUs; out of memory is not an error", "scripts/benchmark_encoder.py", "100 %"),
    12: ("bad frames are set aside", "pytest tests/test_bad_input.py", "all listed, exit 3"),
    13: ("storage faults are clean", "fault", "no visible partial result"),
    14: ("one owner per run", "race", "100 races, one writer"),
    15: ("reproducible", "layout", "bit-identical"),
}


def config(**sections: Any) -> Config:
    """A run that takes seconds and has every stage."""
    clustering = {"score_k": (2, 3), "n_init": 2, "k": (3,), "repeats": 0}
    return validate({"clustering": clustering, "quality": "none", **sections}, "chaos")


def write_frames(folder: Path, seed: int = 0) -> None:
    """Frames of three grains whose spots stand out of noise, one TIFF each."""
    rng = np.random.default_rng(seed)
    grains = rng.integers(4, SIDE - 6, (3, 12, 2))
    folder.mkdir(parents=True)
    for i in range(SHAPE[0] * SHAPE[1]):
        frame = rng.poisson(20, (SIDE, SIDE)).astype(np.uint16)
        for row, column in grains[i % SHAPE[1] * 3 // SHAPE[1]]:
            frame[row : row + 3, column : column + 3] += rng.poisson(900, (3, 3)).astype(np.uint16)
        Image.fromarray(frame).save(folder / f"f_{i:04d}.tif")


@contextmanager
def threads_only() -> Iterator[None]:
    """Workers are threads of the driver, which dies with them."""
    real = cluster.start

    @contextmanager
    def running(_: Any, *args: Any, **options: Any) -> Iterator[Workers]:
        with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
            yield Workers(client=client, count=1, gpu=None, described="threads of the driver")

    cluster.start = running
    try:
        yield
    finally:
        cluster.start = real


def run(frames: Path, folder: Path) -> None:
    """What `laue-dask run` does, on threads of this process."""
    with threads_only():
        single_scan.run(str(frames), folder, config(scan={"shape": SHAPE}), command="chaos", progress=QUIET)


def run_on_workers(frames: Path, folder: Path, workers: int = 2) -> None:
    """What `laue-dask run` does, on worker processes."""
    given = config(scan={"shape": SHAPE}, workers={"count": workers, "gpu": "never", "memory": "2GiB"})
    single_scan.run(str(frames), folder, given, command="chaos", progress=QUIET)


def forked(work: Callable[[], Any], log: Path) -> int:
    """Process number of a child that does some work and exits with 0, or with 2 for an error that is ours, or 1."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        work()
        code = 0
    except (LaueDaskError, OSError) as error:  # one line each on the command line
        print(f"{type(error).__name__}: {error}", flush=True)
        code = 2
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def waited(pid: int, limit: float) -> int | None:
    """Exit code of a child, negative if a signal ended it, None if it still runs after `limit` seconds."""
    until = time.monotonic() + limit
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.01)


def done(work: Callable[[], Any], log: Path, limit: float = HANG) -> int | None:
    """Exit code of a child that is given its time."""
    pid = forked(work, log)
    code = waited(pid, limit)
    if code is None:
        end(pid)
    return code


def end(pid: int) -> None:
    """Kill a child and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def content(run_folder: Path) -> dict[str, str]:
    """Hash of every stored chunk of a finished run, by array."""
    found = {}
    for store in ("scan.zarr", "results.zarr"):
        for path in sorted((run_folder / store).rglob("*")):
            name = path.relative_to(run_folder).as_posix()
            if path.is_file() and ("/c/" in name or name.endswith("/c")):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def finished_blocks(folder: Path) -> dict[tuple[str, int], tuple[int, int]]:
    """Inode and time of writing of every block that has a receipt; by array and number."""
    found: dict[tuple[str, int], tuple[int, int]] = {}

    def add(array: str, at: Path, block: int) -> None:
        for path in (at / "c" / str(block) / "0" / "0", at / "c" / str(block) / "0"):
            if path.is_file():
                state = path.stat()
                found[array, block] = (state.st_ino, state.st_mtime_ns)
                return

    for scan in (folder / "scan.zarr.part", folder / "scan.zarr"):
        for receipt in Journal(scan / journal.JOURNAL_FILE).read().values():
            for one in receipt["shards"]:
                add("frames", scan / "frames", int(one["block"]))
        for path in scan.glob(f"reduced/*/{journal.JOURNAL_FILE}"):
            for block in Journal(path).read():
                add("reduced", path.parent, block)
    for store in (folder / "results.zarr.part", folder / "results.zarr"):
        for name in ("features", "components"):
            for block in Journal(store / name / journal.JOURNAL_FILE).read():
                add(name, store / name, block)
    if (folder / "scan.zarr").exists():
        for path in (folder / "scan.zarr" / "frames" / "c").rglob("*"):
            if path.is_file():
                add("frames", folder / "scan.zarr" / "frames", int(path.parent.parent.name))
    return found


def read_all(run_folder: Path) -> None:
    """Read a run as our own commands do, all of it."""
    records.read(run_folder)
    records.check(run_folder)
    with io_results.read(run_folder) as dataset:
        try:
            dataset.load()
        except LaueDaskError:
            raise
        except Exception as error:
            raise LaueDaskError(f"codec: {error}") from error
    read_store(run_folder / "scan.zarr")


def read_store(path: Path) -> None:
    """Read all of a scan store."""
    store = ScanStore.open(path)
    _ = store.valid, store.source, store.position, store.detector_mask, store.set_aside, store.key(), store.identity
    for start in range(0, store.n_patterns, store.shard_frames):
        store.read_frames(start, min(start + store.shard_frames, store.n_patterns))
    for folder in (path / "reduced").glob("*/"):
        array = store.reduced(folder.name)
        if array is None:
            raise LaueDaskError(f"{folder}: is no array")
        block_reader.read_rows(array, slice(0, array.shape[0]))


class Chaos:
    """All trials of a folder.

    Parameters
    ----------
    out
        Where they work and what they found is kept.
    seed
        Of everything that is random.
    """

    def __init__(self, out: Path, seed: int) -> None:
        self.out, self.seed = out.absolute(), seed
        self.out.mkdir(parents=True, exist_ok=True)
        self.trials = self.out / "trials.jsonl"
        self.frames, self.reference = self.out / "frames", self.out / "reference"
        self.log = self.out / "log.txt"

    def random(self, kind: str, number: int) -> random.Random:
        """Random numbers of one trial."""
        return random.Random(f"{self.seed} {kind} {number}")  # noqa: S311  not for secrets

    def known(self, kind: str) -> list[dict[str, Any]]:
        """Trials of a kind so far."""
        if not self.trials.exists():
            return []
        lines = [json.loads(line) for line in self.trials.read_text().splitlines()]
        return [line for line in lines if line["kind"] == kind]

    def add(self, kind: str, ok: bool, **more: Any) -> None:
        """Keep one trial."""
        with self.trials.open("a") as file:
            file.write(json.dumps({"kind": kind, "ok": ok, "seed": self.seed, **more}) + "\n")
        if not ok:
            print(f"{kind}: {more}", flush=True)

    def prepare(self) -> None:
        """Frames, and the run that nothing disturbed."""
        if not self.frames.exists():
            write_frames(self.out / "frames.part")
            (self.out / "frames.part").rename(self.frames)
        if not (self.reference / records.RECORD_FILE).exists():
            begun = time.monotonic()
            if done(lambda: run(self.frames, self.reference), self.log):
                raise SystemExit(f"the undisturbed run failed: see {self.log}")
            (self.out / "calm.txt").write_text(f"{time.monotonic() - begun:.2f}")
        self.calm = float((self.out / "calm.txt").read_text())
        self.expected = content(self.reference)

    def same(self, folder: Path) -> bool:
        """Whether a run has the bytes of the undisturbed one."""
        return content(folder) == self.expected

    # Promise 1

    def worker_kills(self, wanted: int) -> None:
        """Kill random workers while runs work; each run must end with the same bytes."""
        get_mp_context().set_forkserver_preload(["laue_dask.pipeline.single_scan"])
        while (count := sum(trial["kills"] for trial in self.known("worker_kill"))) < wanted:
            rng = self.random("worker_kill", count)
            folder = self.out / "workers"
            shutil.rmtree(folder, ignore_errors=True)
            begun, kills = time.monotonic(), []
            pid = forked(lambda folder=folder: run_on_workers(self.frames, folder), self.log)
            code = None
            while code is None and time.monotonic() - begun < HANG:
                code = waited(pid, rng.uniform(0.3, 1.5))
                found = _workers_of(pid) if code is None and len(kills) < wanted - count else []
                if found:
                    victim = rng.choice(found)
                    how = rng.choice([signal.SIGKILL, signal.SIGTERM])
                    with suppress(ProcessLookupError):
                        os.kill(victim, how)
                        kills.append(how.name)
            if code is None:
                end(pid)
            same = code == 0 and self.same(folder)
            seconds = round(time.monotonic() - begun, 1)
            self.add("worker_kill", same, kills=len(kills), how=Counter(kills), seconds=seconds, code=code)

    # Promise 2

    def driver_kills(self, wanted: int) -> None:
        """Kill drivers at random instants, run again until all is done; nothing finished may be done again."""
        while (count := sum(trial["kills"] for trial in self.known("driver_kill"))) < wanted:
            rng = self.random("driver_kill", count)
            folder = self.out / "driver"
            shutil.rmtree(folder, ignore_errors=True)
            kills: list[str] = []
            receipts: dict[tuple[str, int], tuple[int, int]] = {}
            hang, partial = False, 0
            while True:
                pid = forked(lambda folder=folder: run(self.frames, folder), self.log)
                rest = wanted - count - len(kills)
                begun = time.monotonic()
                code = waited(pid, rng.uniform(0, self.calm) if len(kills) < 12 and rest > 0 else HANG)
                if code is not None:
                    if not kills:  # a run from its beginning to its end: how long that takes now
                        self.calm = min(self.calm, time.monotonic() - begun)
                    break
                if len(kills) >= 12 or rest <= 0:
                    hang = True
                    end(pid)
                    break
                how = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
                with suppress(ProcessLookupError):
                    os.kill(pid, how)
                code = waited(pid, 20)
                hang = hang or code is None
                end(pid) if code is None else None
                kills.append(how.name)
                receipts |= finished_blocks(folder)
                partial += _partly_visible(folder)
            now = finished_blocks(folder)
            redone = [f"{name} {block}" for (name, block), state in receipts.items() if now.get((name, block)) != state]
            same = code == 0 and self.same(folder)
            ok = same and not redone and not hang and not partial
            self.add(
                "driver_kill", ok, kills=len(kills), how=Counter(kills), same=same, redone=redone, hang=hang,
                partial=partial, finished=len(receipts), code=code,
            )  # fmt: skip

    # Promise 3

    def corruptions(self, wanted: int) -> None:
        """Damage a random object of a finished run: `verify` and reading must both notice."""

        def work() -> None:
            files = sorted(path for path in self.reference.rglob("*") if path.is_file())
            files = [path for path in files if path.name not in ("dask-report.html", ".lock")]
            for number in range(len(self.known("corruption")), wanted):
                rng = self.random("corruption", number)
                path, how, before = damage(files, rng)
                try:
                    found = verify.verify(self.reference, progress=QUIET)
                    try:
                        read_all(self.reference)
                        read = ""
                    except LaueDaskError as error:
                        read = str(error)
                finally:
                    for damaged, whole in before.items():
                        damaged.write_bytes(whole)
                name = path.relative_to(self.reference).as_posix()
                ok = bool(found.findings) and bool(read)
                more = {"verified": len(found.findings), "read": read[-160:]}
                self.add("corruption", ok, number=number, path=name, how=how, **more)

        self._in_child("corruption", work, wanted)

    def repairs(self, wanted: int) -> None:
        """Damage a finished run, do what `verify` says, and run again: all must be as it was."""

        def work() -> None:
            for number in range(len(self.known("repair")), wanted):
                rng = self.random("repair", number)
                folder = self.out / "repaired"
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(self.reference, folder)
                files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "dask-report.html")
                path, how, _ = damage(files, rng)
                found = verify.verify(folder, progress=QUIET).findings
                for finding in found:
                    _, _, rest = finding.remedy.partition("remove ")
                    if rest:
                        shutil.rmtree(rest.partition(", then")[0].partition(" first")[0], ignore_errors=True)
                try:
                    run(self.frames, folder)
                    error = ""
                except LaueDaskError as caught:
                    error = str(caught)
                left = [str(finding) for finding in verify.verify(folder, progress=QUIET).findings]
                ok = bool(found) and not error and not left and self.same(folder)
                name = path.relative_to(folder).as_posix()
                self.add("repair", ok, number=number, path=name, how=how, error=error, left=left[:3])

        self._in_child("repair", work, wanted)

    def clean(self, wanted: int) -> None:
        """Stores of random layouts that nobody touched: no alarm."""

        def work() -> None:
            for number in range(len(self.known("clean")), wanted):
                folder = Path(tempfile.mkdtemp(dir=self.out))
                try:
                    write_store(folder / "s.zarr", self.random("clean", number))
                    found = verify.verify(folder / "s.zarr", progress=QUIET)
                    read_store(folder / "s.zarr")
                    self.add("clean", not found.findings and not found.foreign, number=number)
                except LaueDaskError as error:
                    self.add("clean", False, number=number, error=str(error))
                finally:
                    shutil.rmtree(folder)

        self._in_child("clean", work, wanted)

    def _in_child(self, kind: str, work: Callable[[], None], wanted: int) -> None:
        while len(self.known(kind)) < wanted:
            before = len(self.known(kind))
            code = done(work, self.log, limit=3600)
            if code and len(self.known(kind)) == before:
                self.add(kind, False, number=before, code=code)

    # Promise 13

    def faults(self, wanted: int) -> None:
        """The disk fills up, or fails, at a random moment; then there is room again and the same command finishes."""
        for number in range(len(self.known("fault")), wanted):
            rng = self.random("fault", number)
            folder = self.out / "faulty"
            if folder.is_mount():  # of trials that were stopped
                subprocess.run(["umount", str(folder)], check=True)
            shutil.rmtree(folder, ignore_errors=True)
            how = rng.choice(["EIO", "ENOSPC", "full"] if _can_mount() else ["EIO", "ENOSPC"])
            if how == "full":
                folder.mkdir()
                total = sum(path.stat().st_size for path in self.reference.rglob("*") if path.is_file())
                size = rng.randrange(total // 20, total)
                _mount("-t", "tmpfs", "-o", f"size={size // 4096 * 4096}", "none", str(folder))
                code = done(lambda folder=folder: run(self.frames, folder / "run"), self.log)
                _mount("-o", f"remount,size={8 * total}", str(folder))
            else:
                number_of_write = rng.randrange(1, 140)
                folder.mkdir()

                def failing(folder: Path = folder, at: int = number_of_write, how: str = how) -> None:
                    with storage_fails(at, getattr(errno, how)):
                        run(self.frames, folder / "run")

                code = done(failing, self.log)
            said = self.log.read_text().strip().splitlines()[-1][-200:] if code else ""
            partial = _partly_visible(folder / "run")
            again = done(lambda folder=folder: run(self.frames, folder / "run"), self.log)
            same = again == 0 and self.same(folder / "run")
            if how == "full":
                subprocess.run(["umount", str(folder)], check=True)
            ok = same and not partial and code in (0, 2)
            self.add("fault", ok, number=number, how=how, code=code, said=said, partial=partial, again=again)

    # Promise 14

    def races(self, wanted: int) -> None:
        """Several processes want the same folder at once: one has it, and a dead owner's lock is free."""
        for number in range(len(self.known("race")), wanted):
            rng = self.random("race", number)
            folder = Path(tempfile.mkdtemp(dir=self.out))
            if rng.random() < 0.5:  # of an owner that was killed
                dead = forked(lambda folder=folder: _hold(folder / "run", folder / "inside", folder / "over"), self.log)
                while not (folder / "run" / ".lock").exists():
                    time.sleep(0.005)
                end(dead)
                (folder / "inside").unlink(missing_ok=True)
            count, at = rng.randint(2, 5), time.monotonic() + 0.3

            def compete(folder: Path = folder, at: float = at) -> None:
                time.sleep(max(0, at - time.monotonic()))
                _hold(folder / "run", folder / "inside", folder / "over")

            running = {forked(compete, self.log): "" for _ in range(count)}
            codes: list[int | None] = []
            until = time.monotonic() + 60
            while running and time.monotonic() < until:
                if len(codes) == count - 1:
                    (folder / "over").touch()  # all others have left: the owner may
                for pid in list(running):
                    if (code := waited(pid, 0)) is not None:
                        del running[pid]
                        codes.append(code)
                time.sleep(0.01)
            for pid in running:
                end(pid)
            self.add("race", codes == [*[2] * (count - 1), 0], number=number, codes=codes)
            shutil.rmtree(folder)

    # Promise 15

    def layouts(self, wanted: int) -> None:
        """The same run on worker processes instead of threads."""
        for workers in range(len(self.known("layout")) + 1, wanted + 1):
            folder = self.out / "layout"
            shutil.rmtree(folder, ignore_errors=True)
            code = done(lambda folder=folder, n=workers: run_on_workers(self.frames, folder, n), self.log)
            self.add("layout", code == 0 and self.same(folder), workers=workers, code=code)

    def table(self) -> str:
        """The promises, and the figure reached for each that was tried here."""
        lines = ["| # | promise | to reach | reached |", "|---|---|---|---|"]
        for number, (promise, kind, goal) in PROMISES.items():
            lines.append(f"| {number} | {promise} | {goal} | {self._reached(kind)} |")
        return "\n".join(lines)

    def _reached(self, kind: str) -> str:
        found = self.known(kind)
        good = [trial for trial in found if trial["ok"]]
        match kind:
            case "worker_kill" if found:
                kills = sum(trial["kills"] for trial in found), sum(trial["kills"] for trial in good)
                return f"{kills[1]} of {kills[0]} kills in runs that ended bit-identical ({len(found)} runs)"
            case "driver_kill" if found:
                kills = sum(trial["kills"] for trial in found), sum(trial["kills"] for trial in good)
                redone = sum(len(trial["redone"]) for trial in found)
                return (
                    f"{kills[1]} of {kills[0]} kills bit-identical ({len(found)} runs), {redone} finished shards redone"
                )
            case "corruption" if found:
                clean, repaired = self.known("clean"), self.known("repair")
                return (
                    f"{len(good)} of {len(found)} by verify and by reading; {sum(not c['ok'] for c in clean)} false "
                    f"alarms on {len(clean)} clean stores; {sum(r['ok'] for r in repaired)} of {len(repaired)} "
                    "repaired by a re-run"
                )
            case "hangs":
                runs = [*self.known("worker_kill"), *self.known("driver_kill"), *self.known("fault")]
                hangs = sum(bool(trial.get("hang")) or trial.get("code") is None for trial in runs)
                return f"{hangs} in {len(runs)} runs here; pytest tests/compute" if runs else "not tried"
            case "fault" if found:
                how = Counter(trial["how"] for trial in good)
                return f"{len(good)} of {len(found)} finished by the next run ({dict(how)})"
            case "race" if found:
                return f"{len(good)} of {len(found)}"
            case "layout" if found:
                return f"threads and 1 to {len(found)} workers: {len(good)} of {len(found)} identical"
            case "worker_kill" | "driver_kill" | "corruption" | "fault" | "race" | "layout":
                return "not tried"
        return f"`{kind}`"


def damage(files: list[Path], rng: random.Random) -> tuple[Path, str, dict[Path, bytes]]:
    """Flip a bit, cut, delete or swap; what was hit, how, and what was there before."""
    while True:
        path, how = rng.choice(files), rng.choice(["flip", "truncate", "delete", "swap"])
        before = path.read_bytes()
        if how in ("flip", "truncate") and not before:
            continue
        if how == "swap":
            alike = [other for other in files if other != path and other.suffix == path.suffix and "/c/" in str(other)]
            alike = alike if "/c/" in str(path) else [other for other in files if other.name == path.name != other]
            alike = [other for other in alike if other.read_bytes() != before]
            if not alike:
                continue
            other = rng.choice(alike)
            theirs = other.read_bytes()
            path.write_bytes(theirs)
            other.write_bytes(before)
            return path, f"swapped with {other.name}", {path: before, other: theirs}
        if how == "flip":
            place = rng.randrange(len(before))
            changed = bytearray(before)
            changed[place] ^= 1 << rng.randrange(8)
            path.write_bytes(changed)
        elif how == "truncate":
            path.write_bytes(before[: rng.randrange(len(before))])
        else:
            path.unlink()
        return path, how, {path: before}


def write_store(path: Path, rng: random.Random) -> None:
    """A scan store of random size, dtype and content, with reduced patterns."""
    n = rng.randint(1, 130)
    shape = rng.randint(1, 40), rng.randint(1, 40)
    dtype = rng.choice(["uint8", "uint16", "int32", "float32"])
    store = ScanStore.create(
        path, grid=resolve_grid(n, shape=(1, n)), frame_shape=shape, dtype=dtype, detector=None, pixel_size_um=None,
        provenance={"source": "chaos"},
    )  # fmt: skip
    values = np.random.default_rng(rng.randrange(2**32))
    frames = values.integers(0, rng.choice([1, 2, 200]), (n, *shape)).astype(dtype)
    receipts = []
    for block, start in enumerate(range(0, n, store.shard_frames)):
        part = frames[start : start + store.shard_frames]
        store.write_frames(start, part)
        receipts.append(
            {"block": block, "start": start, "stop": start + len(part), "crc32c": checksum(part), "positions": None}
            | {"seal": store.seal(block), "source": [f"{i}.tif" for i in range(len(part))], "set_aside": []}
        )
    store.record(receipts)
    store = store.finish()
    array = store.create_reduced("abc", 32, {})
    reduced = values.integers(0, rng.choice([1, 255]), (n, schema.PATTERN_SIZE, schema.PATTERN_SIZE)).astype(np.uint8)
    from laue_dask.compute.run import write_block

    for block in range(-(-n // 32)):
        Journal.of(array).add(write_block(reduced[32 * block : 32 * block + 32], array, block))
    array.attrs["finished"] = True
    store.add_receipts_of("abc")


@contextmanager
def storage_fails(at: int, number: int) -> Iterator[None]:
    """From the `at`-th object of a Zarr store on, writing fails: the disk is full, or broken."""
    real, count = _local._put, 0

    def put(*args: Any, **options: Any) -> int:
        nonlocal count
        count += 1
        if count >= at:
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    _local._put = put
    try:
        yield
    finally:
        _local._put = real


def _hold(folder: Path, inside: Path, over: Path) -> None:
    """Own a folder, alone, until a file appears."""
    with locked_folder(folder, "chaos"):
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # raises if someone else owns it, too
        while not over.exists():
            time.sleep(0.01)
        inside.unlink()


def _partly_visible(folder: Path) -> int:
    """Whether what a killed command left looks finished and is not."""
    found = 0
    if (folder / "scan.zarr").exists():
        found += bool(verify.verify(folder / "scan.zarr", progress=QUIET).findings)
    if (folder / "results.zarr").exists():
        found += bool(verify.verify(folder / "results.zarr", progress=QUIET).findings)
    if (folder / records.RECORD_FILE).exists():
        found += bool(verify.verify(folder, progress=QUIET).findings)
    return found


def _workers_of(pid: int) -> list[int]:
    """Worker processes of a driver: what nannies have started."""
    with suppress(psutil.Error):
        found = []
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                line = " ".join(child.cmdline())
                if (
                    "forkserver" in line
                    and child.parent() is not None
                    and "forkserver" in " ".join(child.parent().cmdline())
                ):
                    found.append(child.pid)
        return found
    return []


def _can_mount() -> bool:
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    for name, count in (
        ("corruptions", 1000), ("clean", 1000), ("races", 100), ("driver-kills", 100), ("faults", 40), ("repairs", 25),
        ("worker-kills", 200), ("layouts", 4),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"[{count}]")
    given = parser.parse_args()
    chaos = Chaos(given.out, given.seed)
    chaos.prepare()
    for name in ("corruptions", "races", "driver_kills", "faults", "repairs", "clean", "worker_kills", "layouts"):
        begun = time.monotonic()
        getattr(chaos, name)(getattr(given, name))
        print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
    print(chaos.table())
    wrong = [line for line in chaos.trials.read_text().splitlines() if not json.loads(line)["ok"]]
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
