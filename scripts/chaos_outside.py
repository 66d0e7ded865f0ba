#!/usr/bin/env python
"""What comes from outside: frames that change, owners seen across clocks and containers, readers that hang, headers
that lie.

    scripts/chaos_outside.py OUT [--seed 0] [--changes 120] [--owners 160] [--hangs 60] [--headers 200]
                                 [--rights 12] [--quotas 12] [--grown 12] [--series 6] [--trainings 12]

Every trial is a line of OUT/trials.jsonl with its seed; the same command goes on where it was stopped. A trial is wrong
if its result is that of no scan that was there, if a process neither ends nor answers in time, if its memory grows
beyond MAX_GROWTH_BYTES, or if a refusal has no line. `scripts/chaos.py` has kills, corruptions and full disks.
"""

import argparse
import bz2
import ctypes
import errno
import gzip
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import chaos
import h5py
import numpy as np
import torch
from chaos import QUIET, Chaos, config, content, done, end, forked, threads_only, waited
from PIL import Image
from safetensors.numpy import load_file

from laue_dask.errors import FrameError, InputError, LaueDaskError
from laue_dask.io import frames as io_frames
from laue_dask.io import lock as io_lock
from laue_dask.io.frames import discover, frame_info, load
from laue_dask.io.lock import locked_folder
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import learning, series, single_scan
from laue_dask.runtime import interruption

SHAPE = (6, 8)
SIDE = 128

ANSWER_S = 20.0
"""Seconds in which a process that was refused, or that reads something damaged, must have ended."""

DEADLINE_S = 1.0
"""Deadline of a read in the trials with readers that hang."""

MAX_GROWTH_BYTES = 2**30
"""Memory by which a process may grow whatever a header declares."""

NOBODY = 65534
"""Number of the user who owns frames that others may not read."""

CLONE_NEWPID = 0x20000000


def write_scan(folder: Path, seed: int) -> None:
    """Frames of two grains whose spots depend on the seed, one TIFF each; all files have the same size."""
    rng = np.random.default_rng(seed)
    grains = rng.integers(4, SIDE - 6, (2, 12, 2))
    folder.mkdir(parents=True)
    for i in range(SHAPE[0] * SHAPE[1]):
        frame = rng.poisson(20, (SIDE, SIDE)).astype(np.uint16)
        for row, column in grains[i % SHAPE[1] * 2 // SHAPE[1]]:
            frame[row : row + 3, column : column + 3] += rng.poisson(900, (3, 3)).astype(np.uint16)
        Image.fromarray(frame).save(folder / f"f_{i:04d}.tif")


def run(frames: Path, folder: Path, store: bool) -> None:
    """What `laue-dask run` does, on threads of this process."""
    given = config(scan={"shape": SHAPE, "store_frames": store})
    with threads_only():
        single_scan.run(str(frames), folder, given, command="chaos", progress=QUIET)


def bytes_of(folder: Path) -> dict[str, str]:
    """Hash of every file of a folder but its lock."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".lock")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def results(folder: Path) -> dict[str, str]:
    """Hash of every stored chunk of the results of a run."""
    return {name: found for name, found in content(folder).items() if name.startswith("results.zarr")}


class Outside(Chaos):
    """The trials of a folder; see `chaos.Chaos`."""

    def prepare(self) -> None:
        """Two scans of the same names and sizes."""
        for seed, name in enumerate("ab"):
            if not (self.out / name).exists():
                write_scan(self.out / f"{name}.part", seed)
                (self.out / f"{name}.part").rename(self.out / name)

    def _said(self) -> str:
        lines = self.log.read_text().strip().splitlines() if self.log.exists() else []
        return lines[-1][-300:] if lines else ""

    # Frames that change

    def changes(self, wanted: int) -> None:
        """Change the frames of a finished or a killed run; it is refused, or its result is that of now."""
        for number in range(len(self.known("change")), wanted):
            rng = self.random("change", number)
            frames, folder, fresh = (self.out / name for name in ("frames", "changed", "fresh"))
            for path in (frames, folder, fresh):
                shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(self.out / "a", frames)
            store, killed, how = rng.random() < 0.5, rng.random() < 0.5, rng.choice(list(CHANGES))
            pid = forked(lambda f=frames, r=folder, s=store: run(f, r, s), self.log)
            if killed:
                time.sleep(rng.uniform(0.2, 2.5))
                end(pid)
            first = None if killed else waited(pid, chaos.HANG)
            finished = (folder / "run.json").exists()
            before = bytes_of(folder) if finished else {}
            noticeable = CHANGES[how](frames, self.out / "b", rng)
            truth, differing = None, []
            self.log.write_text("")
            again = done(lambda f=frames, r=folder, s=store: run(f, r, s), self.log)
            said = self._said()
            if again == 2:
                # A finished run is refused and left as it was; one that was killed may be refused where files are gone.
                ok = bool(said) and (not finished or before == bytes_of(folder)) and noticeable
            else:
                truth = done(lambda f=frames, r=fresh, s=store: run(f, r, s), self.log)
                differing = _differing(results(folder), results(fresh))
                ok = again == truth == 0 and not differing
            ok = ok and first in (0, None) and again is not None
            self.add(
                "change", ok, number=number, how=how, store=store, finished=finished, again=again, truth=truth,
                first=first, differing=differing, said=said,
            )  # fmt: skip
            self._keep_wrong(ok, "change", number, folder, fresh, frames)

    # Owners

    def owners(self, wanted: int) -> None:
        """A living owner keeps its folder whatever clocks and containers say; what is no living owner frees it."""
        for number in range(len(self.known("owner")), wanted):
            rng = self.random("owner", number)
            folder = self.out / "owned"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            how = rng.choice(["namespace", "clock", "namespace and clock", "killed", "forged"])
            holder = 0
            if how != "forged":
                holder = forked(lambda f=folder, h=how: _hold_elsewhere(f, "namespace" in h), self.log)
                until = time.monotonic() + ANSWER_S
                while not (folder / ".lock").exists() and time.monotonic() < until:
                    time.sleep(0.01)
            if how == "killed":
                end(holder)
            if how == "forged":
                how = f"forged {_forge(folder / '.lock', rng)}"
            shift = rng.choice([-1, 1]) * 10 ** rng.uniform(0.3, 9) if "clock" in how else 0.0
            self.log.write_text("")
            begun = time.monotonic()
            code = done(lambda f=folder, s=shift: _enter(f, s), self.log, limit=ANSWER_S)
            seconds, said = time.monotonic() - begun, self._said()
            if holder and how != "killed":
                end(holder)
            # What no process can have left there may be refused, in a line, or replaced.
            expected = {2} if holder and how != "killed" else {0} if how == "killed" else {0, 2}
            ok = code in expected and (code == 0 or bool(said))
            self.add("owner", ok, number=number, how=how, code=code, seconds=round(seconds, 1), said=said)

    # Readers that hang

    def hangs(self, wanted: int) -> None:
        """Some frames never answer: they are set aside, or the run ends in a line; and signals end it whatever."""
        for number in range(len(self.known("hang")), wanted):
            rng = self.random("hang", number)
            folder = self.out / "hanging"
            shutil.rmtree(folder, ignore_errors=True)
            count = rng.choice([1, 1, 2, SHAPE[0] * SHAPE[1]])
            names = {f"f_{i:04d}.tif" for i in rng.sample(range(SHAPE[0] * SHAPE[1]), count)}
            interrupt = rng.random() < 0.4
            self.log.write_text("")
            begun = time.monotonic()
            pid = forked(lambda f=folder, n=names: _run_hanging(self.out / "a", f, n), self.log)
            if interrupt:
                time.sleep(rng.uniform(0.5, 4))
                os.kill(pid, rng.choice([signal.SIGTERM, signal.SIGINT]))
                code = waited(pid, ANSWER_S)
            else:
                code = waited(pid, 120.0)
            if code is None:
                end(pid)
            seconds, said = time.monotonic() - begun, self._said()
            aside = 0
            if code == 0:
                aside = json.loads((folder / "run.json").read_text())["n_set_aside"]
            ok = code is not None and (interrupt or (code == 0 and aside == count) or (code == 2 and bool(said)))
            self.add(
                "hang", ok, number=number, hanging=count, interrupt=interrupt, code=code, aside=aside,
                seconds=round(seconds, 1), said=said,
            )  # fmt: skip

    # Rights, errors, quota, files that grow, kills of a series

    def rights(self, wanted: int) -> None:
        """Another user may not read some frames, or reading them fails: they are set aside with that reason."""
        for number in range(len(self.known("right")), wanted):
            rng = self.random("right", number)
            frames, folder = self.out / "guarded", self.out / "stranger"
            for path in (frames, folder):
                shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(self.out / "a", frames)
            how = rng.choice(["unreadable", "input/output error"] if os.geteuid() == 0 else ["input/output error"])
            count = rng.choice([1, 3, 20, SHAPE[0] * SHAPE[1]])
            names = set(rng.sample(_names(frames), count))
            folder.mkdir()
            for name in names if how == "unreadable" else ():
                os.chown(frames / name, NOBODY, NOBODY)
                (frames / name).chmod(0o600)
            self.log.write_text("")
            code = done(lambda f=frames, r=folder, n=names, h=how: _run_as_stranger(f, r / "run", n, h), self.log)
            said, aside, reasons = self._said(), 0, set()
            if code == 0:
                aside = json.loads((folder / "run" / "run.json").read_text())["n_set_aside"]
                reasons = {one["reason"] for one in ScanStore.open(folder / "run" / "scan.zarr").set_aside}
            word = "permission" if how == "unreadable" else "Input/output error"
            known = all(word in reason for reason in reasons) and (code == 0 or word in said)
            ok = known and ((code == 0 and aside == count) or (code == 2 and count == SHAPE[0] * SHAPE[1]))
            self.add("right", ok, number=number, how=how, count=count, code=code, aside=aside, said=said)

    def quotas(self, wanted: int) -> None:
        """A quota, or a limit of the size of files, is reached at some moment; then it is raised and the run ends."""
        truth = self._truth() if wanted else {}
        for number in range(len(self.known("quota")), wanted):
            rng = self.random("quota", number)
            folder, how = self.out / "limited", rng.choice(["EDQUOT", "EFBIG"])
            shutil.rmtree(folder, ignore_errors=True)
            at, size = rng.randrange(1, 100), round(10 ** rng.uniform(2, 5.5))
            self.log.write_text("")
            code = done(lambda f=folder, h=how, n=at, b=size: _run_limited(self.out / "a", f, h, n, b), self.log)
            said = self._said()
            self.log.write_text("")
            again = done(lambda f=folder: run(self.out / "a", f, True), self.log)
            differing = _differing(results(folder), truth)
            ok = code in (0, 2) and (code == 0 or bool(said)) and again == 0 and not differing
            self.add(
                "quota", ok, number=number, how=how, at=at if how == "EDQUOT" else size, code=code, again=again,
                said=said, differing=differing,
            )  # fmt: skip
            self._keep_wrong(ok, "quota", number, folder)

    def grown(self, wanted: int) -> None:
        """Frames are added to an HDF5 file while it is read: what is made is of the frames, or there is a line."""
        truth = self._truth() if wanted else {}
        for number in range(len(self.known("grown")), wanted):
            rng = self.random("grown", number)
            folder, path = self.out / "growing", self.out / "growing.h5"
            shutil.rmtree(folder, ignore_errors=True)
            count, how = SHAPE[0] * SHAPE[1], rng.choice(["frames are added", "written until its end"])
            _write_stack(path, self.out / "a", count if how == "frames are added" else rng.randint(1, count - 1))
            pause, more = rng.uniform(0.0, 1.0), rng.randint(1, 6) if how == "frames are added" else count
            writer = forked(lambda p=path, w=pause, m=more: _grow_stack(p, self.out / "a", w, m), self.log)
            self.log.write_text("")
            source = f"{path}::/entry/data/data"
            code = done(lambda r=folder, s=source: run(Path(s), r, True), self.log)
            end(writer)
            said = self._said()
            differing = []
            if code == 0:  # the scan is what was there when the file was looked at
                taken = json.loads((folder / "run.json").read_text())["n_patterns"]
                differing = _differing(results(folder), truth if taken == count else self._part(taken))
            ok = (code == 0 and not differing) or (code == 2 and bool(said))
            self.add("grown", ok, number=number, how=how, code=code, said=said, differing=differing)
            self._keep_wrong(ok, "grown", number, folder)

    def _part(self, count: int) -> dict[str, str]:
        """Results of the first frames alone, from a file that does not grow."""
        path, folder = self.out / "part.h5", self.out / "part"
        shutil.rmtree(folder, ignore_errors=True)
        _write_stack(path, self.out / "a", count)
        done(lambda r=folder, s=f"{path}::/entry/data/data": run(Path(s), r, True), self.log)
        return results(folder)

    def series(self, wanted: int) -> None:
        """A series is killed, once or more often, and given again: its results are those of an undisturbed one."""
        calm, sources = self.out / "calm_series", [str(self.out / name) for name in "ab"]
        if wanted and not (calm / "series.html").exists():
            shutil.rmtree(calm, ignore_errors=True)
            if done(lambda: _run_series(sources, calm), self.log):
                raise SystemExit(f"the undisturbed series failed: see {self.log}")
        truth = {name: results(calm / name) for name in "ab"}
        for number in range(len(self.known("series")), wanted):
            rng = self.random("series", number)
            folder, kills = self.out / "series", rng.randint(1, 3)
            shutil.rmtree(folder, ignore_errors=True)
            self.log.write_text("")
            for _ in range(kills):
                pid = forked(lambda f=folder: _run_series(sources, f), self.log)
                waited(pid, rng.uniform(0.5, 12.0))
                end(pid)
            code = done(lambda f=folder: _run_series(sources, f), self.log)
            differing = [f"{name}/{one}" for name in "ab" for one in _differing(results(folder / name), truth[name])]
            ok = code == 0 and not differing
            self.add(
                "series", ok, number=number, how=f"{kills} kills", code=code, said=self._said(), differing=differing
            )
            self._keep_wrong(ok, "series", number, folder)

    def trainings(self, wanted: int) -> None:
        """A training is killed, once or more often, and given again: its weights are those of an undisturbed one."""
        stores, calm = [self.out / "training.zarr", self.out / "validation.zarr"], self.out / "calm.safetensors"
        if wanted and not calm.exists():
            for seed, store in enumerate(stores):
                _simulate_training(store, seed)
            if done(lambda: _train(stores, calm), self.log):
                raise SystemExit(f"the undisturbed training failed: see {self.log}")
        for number in range(len(self.known("training")), wanted):
            rng = self.random("training", number)
            folder, kills = self.out / "trained", rng.randint(1, 4)
            shutil.rmtree(folder, ignore_errors=True)
            out = folder / "mine.safetensors"
            self.log.write_text("")
            for _ in range(kills):
                pid = forked(lambda o=out: _train(stores, o), self.log)
                waited(pid, rng.uniform(0.2, 6.0))
                end(pid)
            finished = out.exists()
            code = done(lambda o=out: _train(stores, o), self.log)
            # Weights that are there already are not overwritten: that is refused.
            same = out.exists() and _weights_of(out) == _weights_of(calm)
            ok = same and code == (2 if finished else 0)
            self.add(
                "training", ok, number=number, how=f"{kills} kills", code=code, finished=finished, said=self._said()
            )
            self._keep_wrong(ok, "training", number, folder)

    def _truth(self) -> dict[str, str]:
        """Results of the first scan that nothing disturbed."""
        folder = self.out / "calm"
        if not (folder / "run.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            if done(lambda: run(self.out / "a", folder, True), self.log):
                raise SystemExit(f"the undisturbed run failed: see {self.log}")
        return results(folder)

    def _keep_wrong(self, ok: bool, kind: str, number: int, *folders: Path) -> None:
        """Keep what a wrong trial left, for whoever looks for the cause."""
        for folder in folders if not ok else ():
            if folder.exists():
                shutil.copytree(folder, self.out / "wrong" / f"{kind}_{number}" / folder.name, dirs_exist_ok=True)

    # Headers that lie

    def headers(self, wanted: int) -> None:
        """Files whose headers declare what is not there: a reason, soon, and in bounded memory."""
        for number in range(len(self.known("header")), wanted):
            rng = self.random("header", number)
            folder = self.out / "lying"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            how = rng.choice(list(LIES))
            path = LIES[how](folder, rng)
            self.log.write_text("")
            begun = time.monotonic()
            code = done(lambda p=path: _read(p), self.log, limit=ANSWER_S)
            seconds = time.monotonic() - begun
            self.add("header", code in (0, 2), number=number, how=how, code=code, seconds=round(seconds, 1),
                     said=self._said())  # fmt: skip

    def table(self) -> str:
        """What was tried, and how much of it was wrong, hung or silent."""
        lines = ["| from outside | trials | wrong | hangs | longest answer | kinds |", "|---|---|---|---|---|---|"]
        words = {
            "change": "frames that change", "owner": "owners across clocks and containers, forged locks",
            "hang": "readers that hang", "header": "headers that lie",
            "right": "frames that may not be read, input/output errors", "quota": "quota, limits of the size of files",
            "grown": "HDF5 files that grow while they are read", "series": "a series under kills",
            "training": "a training under kills",
        }  # fmt: skip
        for kind, name in words.items():
            found = self.known(kind)
            wrong, hung = (
                sum(not one["ok"] for one in found),
                sum(one.get("code", one.get("again")) is None for one in found),
            )
            longest = max((one["seconds"] for one in found if "seconds" in one), default=0.0)
            kinds = len(Counter(str(one.get("how", one.get("hanging"))) for one in found))
            lines.append(
                f"| {name} | {len(found)} | {wrong} | {hung} | {f'{longest} s' if longest else '–'} | {kinds} |"
            )
        return "\n".join(lines)


# Changes: each returns whether anybody could notice it


def _later(path: Path, rng: random.Random) -> None:
    """Give a file another time of change, as whoever writes it does."""
    now = time.time() + rng.uniform(1, 1000)
    os.utime(path, (now, now))


def _replace(frames: Path, other: Path, rng: random.Random, names: list[str]) -> bool:
    for name in names:
        shutil.copyfile(other / name, frames / name)
        _later(frames / name, rng)
    return True


def _names(frames: Path) -> list[str]:
    return sorted(path.name for path in frames.iterdir())


def _swap(frames: Path, other: Path, rng: random.Random) -> bool:
    one, two = (frames / name for name in rng.sample(_names(frames), 2))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    _later(one, rng)
    _later(two, rng)
    return True


def _truncate(frames: Path, other: Path, rng: random.Random) -> bool:
    path = frames / rng.choice(_names(frames))
    path.write_bytes(path.read_bytes()[: rng.randrange(1, 20_000)])
    return True


def _remove(frames: Path, other: Path, rng: random.Random) -> bool:
    (frames / rng.choice(_names(frames))).unlink()
    return True


def _grow(frames: Path, other: Path, rng: random.Random) -> bool:
    with (frames / rng.choice(_names(frames))).open("ab") as file:
        file.write(bytes(rng.randrange(1, 5000)))
    return True


def _touch(frames: Path, other: Path, rng: random.Random) -> bool:
    for path in frames.iterdir():
        _later(path, rng)
    return False


def _copy(frames: Path, other: Path, rng: random.Random) -> bool:
    aside = frames.with_name("aside")
    shutil.rmtree(aside, ignore_errors=True)
    frames.rename(aside)
    shutil.copytree(aside, frames, copy_function=shutil.copyfile)
    return False


CHANGES: dict[str, Callable[[Path, Path, random.Random], bool]] = {
    "all replaced": lambda f, o, r: _replace(f, o, r, _names(f)),
    "one replaced": lambda f, o, r: _replace(f, o, r, [r.choice(_names(f))]),
    "some replaced": lambda f, o, r: _replace(f, o, r, r.sample(_names(f), r.randint(2, 20))),
    "two swapped": _swap,
    "one truncated": _truncate,
    "one removed": _remove,
    "one grown": _grow,
    "times alone": _touch,
    "a copy": _copy,
    "nothing": lambda f, o, r: False,
}


# Owners


def _hold_elsewhere(folder: Path, namespace: bool) -> None:
    """Own a folder until killed, in a namespace of process numbers of its own if wanted."""
    io_lock.HEARTBEAT_INTERVAL_S = 0.2
    if namespace:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWPID):
            namespace = False  # not allowed here: then it is a plain owner
        else:
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
                return
    with locked_folder(folder, "chaos: holder"):
        time.sleep(600)


def _enter(folder: Path, shift: float) -> None:
    """Try to own a folder, with a clock that is off by `shift` seconds."""
    io_lock.OWNER_TIMEOUT_S, io_lock.HEARTBEAT_INTERVAL_S = (
        3.0,
        0.5,
    )  # an owner that gives no sign is watched for two heartbeats
    if shift:
        real = time.time
        time.time = lambda: real() + shift  # type: ignore[assignment]
    with locked_folder(folder, "chaos: competitor"):
        pass


def _forge(path: Path, rng: random.Random) -> str:
    """Put something at the place of a lock that no living owner left there."""
    how = rng.choice(["folder", "fifo", "link", "empty", "garbage", "future", "never", "huge", "array"])
    owner = {
        "host": os.uname().nodename, "pid": rng.randrange(2**22, 2**30), "command": "x\n\x1b[31m", "token": "t",
        "boot": "", "namespace": "", "ticks": 0,
    }  # fmt: skip
    if how == "folder":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "link":
        path.symlink_to(rng.choice(["/dev/zero", "nowhere", "/etc/passwd"]))
    else:
        text = {"empty": b"", "garbage": rng.randbytes(200), "huge": b"[" * 10**6, "array": b"[1, 2]"}
        path.write_bytes(text.get(how, json.dumps(owner).encode()))
        age = 10**6 if how == "future" else -(10**6)
        os.utime(path, (time.time() + age, time.time() + age))
    return how


# Readers that hang


def _run_hanging(frames: Path, folder: Path, names: set[str]) -> None:
    """Run while the files of some names never answer."""
    real = io_frames._opened

    def hanging(path: str) -> Any:
        if Path(path).name in names:
            time.sleep(3600)
        return real(path)

    io_frames._opened = hanging
    interruption.exit_at_once()
    interruption.raise_on_interrupt()
    given = config(scan={"shape": SHAPE}, workers={"read_deadline": DEADLINE_S})
    with threads_only():
        single_scan.run(str(frames), folder, given, command="chaos", progress=QUIET)


# Rights, errors, quota, files that grow, kills of a series


def _differing(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


def _run_as_stranger(frames: Path, folder: Path, names: set[str], how: str) -> None:
    """Run as a user who may not read the files of some names, or where reading them ends in an error of the disk."""
    if how == "unreadable":
        _give_up_rights()
    else:
        real = io_frames._opened

        def failing(path: str) -> Any:
            if Path(path).name in names:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return real(path)

        io_frames._opened = failing
    run(frames, folder, True)


def _give_up_rights() -> None:
    """Give up all that makes root more than a user like any other; what root owns can still be read."""
    head, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(head, none):
        raise OSError(ctypes.get_errno(), "capset")


def _run_limited(frames: Path, folder: Path, how: str, at: int, size: int) -> None:
    """Run where from some object on a quota is exceeded, or where no file may be larger than `size` bytes."""
    if how == "EDQUOT":
        with chaos.storage_fails(at, errno.EDQUOT):
            run(frames, folder, True)
    else:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = sys.stdout
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            run(frames, folder, True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            log.flush()


def _write_stack(path: Path, frames: Path, count: int) -> None:
    with h5py.File(path, "w") as file:
        stack = np.stack([np.asarray(Image.open(frames / name)) for name in _names(frames)[:count]])
        file.create_dataset("entry/data/data", data=stack, chunks=(1, SIDE, SIDE), maxshape=(None, SIDE, SIDE))


def _grow_stack(path: Path, frames: Path, pause: float, more: int) -> None:
    """Add frames to a stack, one after the other, up to so many more or to the end of the scan."""
    names = _names(frames)
    for _ in range(more):
        time.sleep(pause)
        with h5py.File(path, "r+", locking=False) as file:
            data = file["entry/data/data"]
            if more == len(names) and len(data) == len(names):
                return
            data.resize(len(data) + 1, axis=0)
            data[-1] = np.asarray(Image.open(frames / names[(len(data) - 1) % len(names)]))


def _run_series(sources: list[str], folder: Path) -> None:
    given = config(scan={"shape": SHAPE})
    with threads_only():
        series.run(sources, folder, given, command="chaos", progress=QUIET)


def _simulate_training(store: Path, seed: int) -> None:
    """Write a training store of one experiment, in a process of its own that starts workers."""
    shutil.rmtree(store, ignore_errors=True)
    options = ["--experiments", "1", "--seed", str(seed), "--binning", "4"]
    words = [sys.executable, "-m", "laue_dask", "simulate", "training", str(store), *options]
    subprocess.run(words, check=True, capture_output=True)


def _train(stores: list[Path], out: Path) -> None:
    """What `laue-dask train` does, with a small network that is kept after every step."""
    out.parent.mkdir(exist_ok=True)
    given = out.parent / "training.yaml"
    layers = {"name": "small", "channels": [4, 8, 8, 8, 8], "latent": 16, "dropout": 0.2, "batch_norm": True}
    given.write_text(json.dumps({"architecture": layers, "epochs": 3, "checkpoint_minutes": 0}))
    torch.set_num_threads(1)
    learning.train(stores[:1], stores[1], out, given, minutes=None, start=None, progress=QUIET)


def _weights_of(path: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in load_file(path).items()}


# Headers that lie


def _read(path: Path) -> None:
    """Read whatever is there as our commands do, and hold the memory against its bound."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        refs = discover(str(path))
        for ref in refs[:3]:
            try:
                frame_info(ref)
                load(ref)
            except FrameError as error:
                print(f"set aside: {error}", flush=True)
    except InputError as error:
        print(f"refused: {error}", flush=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > MAX_GROWTH_BYTES:
        raise RuntimeError(f"memory grew by {grown / 2**20:.0f} MiB")


def _tiff(rng: random.Random, *, rows: int, columns: int, pages: int = 1, loop: bool = False, strips: int = 1) -> bytes:
    """A TIFF whose directories say what they like, with few bytes behind them."""
    head = struct.pack("<2sHI", b"II", 42, 8)
    parts, offset = [], 8
    entries = 9
    size = 2 + 12 * entries + 4
    for page in range(pages):
        following = 0 if page == pages - 1 and not loop else (8 if loop and page == pages - 1 else offset + size)
        bits, compression, step = rng.choice([8, 16, 32]), rng.choice([1, 1, 5, 8]), max(1, rows // strips)
        told = {256: columns, 257: rows, 258: bits, 259: compression, 262: 1, 273: 8, 277: 1, 278: step, 279: 100}
        counts = {273: strips, 279: strips}
        tags = [(tag, 3 if value < 2**16 else 4, counts.get(tag, 1), value) for tag, value in told.items()]
        parts.append(struct.pack("<H", entries) + b"".join(struct.pack("<HHII", *tag) for tag in tags))
        parts[-1] += struct.pack("<I", following)
        offset += size
    return head + b"".join(parts) + bytes(200)


def _written(path: Path, data: bytes, *, sparse: int = 0) -> Path:
    path.write_bytes(data)
    if sparse:
        os.truncate(path, sparse)
    return path


def _bomb(folder: Path, rng: random.Random) -> Path:
    zeros = _tiff(rng, rows=50_000, columns=50_000)
    if rng.random() < 0.5:
        with gzip.open(folder / "f_0001.tif.gz", "wb", 1) as file:
            file.write(zeros)
            for _ in range(3 * 2**10):
                file.write(bytes(2**20))
        return folder / "f_0001.tif.gz"
    with bz2.open(folder / "f_0001.tif.bz2", "wb", 1) as file:
        file.write(zeros)
        for _ in range(300):
            file.write(bytes(2**20))
    return folder / "f_0001.tif.bz2"


def _hdf5(folder: Path, rng: random.Random) -> Path:
    path = folder / "stack.h5"
    n, side = rng.choice([(10**7, 512), (10**9, 16), (10, 60_000), (10**6, 2048)])
    with h5py.File(path, "w") as file:
        chunked = rng.random() < 0.7
        options = {"chunks": (1, min(side, 4096), min(side, 4096))} if chunked else {}
        if not chunked:
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
            space = h5py.h5s.create_simple((n, side, side))
            file.require_group("entry/data")
            h5py.h5d.create(file["entry/data"].id, b"data", h5py.h5t.NATIVE_UINT16, space, plist)
        else:
            file.create_dataset("entry/data/data", shape=(n, side, side), dtype="u2", **options)
    return path


def _edf(folder: Path, rng: random.Random) -> Path:
    dims = rng.choice([(50_000, 50_000), (10**9, 10**9), (2**31, 2), (-5, 10), (0, 0)])
    head = (
        f"{{\nByteOrder = LowByteFirst ;\nDataType = UnsignedShort ;\nDim_1 = {dims[0]} ;\nDim_2 = {dims[1]} ;\n"
        f"Size = {abs(dims[0] * dims[1]) * 2} ;\n"
    )
    return _written(folder / "f_0001.edf", head.ljust(1022).encode() + b"}\n" + bytes(1000))


def _cbf(folder: Path, rng: random.Random) -> Path:
    size = rng.choice([10**12, 100, -1, 0])
    text = (
        "###CBF: VERSION 1.5\n_array_data.data\n;\n--CIF-BINARY-FORMAT-SECTION--\n"
        'Content-Type: application/octet-stream;\n     conversions="x-CBF_BYTE_OFFSET"\n'
        f"X-Binary-Size: {size}\nX-Binary-Number-of-Elements: {10**10}\n"
        f"X-Binary-Size-Fastest-Dimension: {rng.choice([10**5, 50_000])}\nX-Binary-Size-Second-Dimension: {10**5}\n"
        'X-Binary-Element-Type: "signed 32-bit integer"\n\n'
    )
    return _written(folder / "f_0001.cbf", text.encode() + b"\x0c\x1a\x04\xd5" + bytes(100))


def _sized(folder: Path, rng: random.Random) -> Path:
    return _written(folder / "f_0001.tif", _tiff(rng, rows=rng.choice([50_000, 2**31 - 1]), columns=50_000))


def _sparse(folder: Path, rng: random.Random) -> Path:
    return _written(folder / "f_0001.tif", _tiff(rng, rows=50_000, columns=50_000), sparse=10**10)


def _overlapping(folder: Path, rng: random.Random) -> Path:
    return _written(folder / "f_0001.tif", _tiff(rng, rows=128, columns=128, pages=rng.randint(2, 20_000)))


def _ring(folder: Path, rng: random.Random) -> Path:
    return _written(folder / "f_0001.tif", _tiff(rng, rows=9, columns=9, pages=rng.randint(1, 50), loop=True))


def _strips(folder: Path, rng: random.Random) -> Path:
    return _written(folder / "f_0001.tif", _tiff(rng, rows=128, columns=128, strips=2**31))


def _noise(folder: Path, rng: random.Random) -> Path:
    suffix = rng.choice([".tif", ".edf", ".cbf", ".h5", ".mccd", ".tif.gz"])
    return _written(folder / f"f_0001{suffix}", rng.randbytes(5000))


LIES: dict[str, Callable[[Path, random.Random], Path]] = {
    "TIFF, too large": _sized,
    "TIFF, sparse": _sparse,
    "TIFF, directories overlap": _overlapping,
    "TIFF, directories in a ring": _ring,
    "TIFF, strips without end": _strips,
    "packed bomb": _bomb,
    "HDF5, too many": _hdf5,
    "EDF, too large": _edf,
    "CBF, too large": _cbf,
    "noise": _noise,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    counts = {
        "changes": 120, "owners": 160, "hangs": 60, "headers": 200, "rights": 12, "quotas": 12, "grown": 12,
        "series": 6, "trainings": 12,
    }  # fmt: skip
    for name, count in counts.items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"[{count}]")
    given = parser.parse_args()
    outside = Outside(given.out, given.seed)
    outside.prepare()
    for name in ("headers", "owners", "rights", "quotas", "grown", "series", "trainings", "hangs", "changes"):
        begun = time.monotonic()
        getattr(outside, name)(getattr(given, name))
        print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
    print(outside.table())
    sys.exit(any(not json.loads(line)["ok"] for line in outside.trials.read_text().splitlines()))


if __name__ == "__main__":
    try:
        main()
    except LaueDaskError as error:
        sys.exit(str(error))
