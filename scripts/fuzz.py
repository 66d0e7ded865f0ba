#!/usr/bin/env python
"""Damaged and hostile inputs of every kind that is read: no traceback, no hang, no memory beyond bounds.

    scripts/fuzz.py [--inputs 100000] [--seed 0] [--processes 2] [--only TARGET ...] [--keep FOLDER]

Each input is a small valid file that was flipped, cut, spliced or given other numbers; where a checksum would end the
story, half of the inputs get a right one again. An input passes if it is read, or refused by an error of our own in one
line, within `SECONDS`, and with `MEMORY` bytes more than the process began with. Inputs run in processes that may die.
"""

import argparse
import faulthandler
import gzip
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import fabio
import google_crc32c
import h5py
import hdf5plugin
import numpy as np
import tifffile
import torch
import yaml
from PIL import Image

from laue_dask.config import Config, dump, load
from laue_dask.errors import LaueDaskError
from laue_dask.features import weights
from laue_dask.features.architecture import Architecture
from laue_dask.features.network import build
from laue_dask.io import frames, journal, lock, receipts
from laue_dask.io.block_files import checksum
from laue_dask.io.geometry import resolve_grid
from laue_dask.io.journal import Journal
from laue_dask.io.receipts import Receipts
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import describe, verify
from laue_dask.pipeline import record as records
from laue_dask.pipeline.learning import read_config
from laue_dask.pipeline.stages import evaluation
from laue_dask.runtime.progress import QuietProgress
from laue_dask.simulate.detector import DETECTORS
from laue_dask.simulate.tiff import Stage, write_tiff
from laue_dask.training import checkpoint
from laue_dask.training.training_config import TrainingConfig

SECONDS = 30
MEMORY = 3 * 2**30
BATCH = 50
SETTLING = 0.02
"""Seconds in place of `lock.LOCK_WRITE_TIMEOUT_S`, for which every damaged lock is waited."""

Rng = random.Random
NUMBERS = (
    "0",
    "-1",
    "1e308",
    "nan",
    "inf",
    "4294967296",
    "9223372036854775807",
    "99999999999999999999",
    "1e-320",
    "",
    "x",
)


class Target(NamedTuple):
    """What is fuzzed: valid contents, how one is tried in a folder of its own, and its share of the inputs."""

    seeds: dict[str, bytes]
    attempt: Callable[[Path, Rng], object]
    share: int = 4
    text: bool = False


def mutated(content: bytes, rng: Rng, others: list[bytes], *, text: bool) -> bytes:
    """One to eight changes of a valid content."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        at = rng.randrange(len(changed) + 1)
        length = rng.choice([1, 2, 4, 8, 64, 1000])
        match rng.choice(["flip", "byte", "number", "cut", "drop", "double", "insert", "splice", "word"]):
            case "flip" if changed:
                changed[at % len(changed)] ^= 1 << rng.randrange(8)
            case "byte" if changed:
                changed[at % len(changed)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x22, 0x7B, 0x5B])
            case "number":
                value = rng.choice([0, 1, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, 2**16, 1000])
                width = rng.choice([1, 2, 4, 8])
                changed[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, rng.choice(["little", "big"]))
            case "cut":
                del changed[at:]
            case "drop":
                del changed[at : at + length]
            case "double":
                changed[at:at] = changed[at : at + length]
            case "insert":
                changed[at:at] = rng.randbytes(length)
            case "splice":
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                changed[at : at + length] = other[start : start + length]
            case "word" if changed:
                _other_number(changed, rng)
    if text and rng.random() < 0.6:
        for _ in range(rng.choice([1, 2, 3])):
            _other_number(changed, rng)
    return bytes(changed)


def _other_number(content: bytearray, rng: Rng) -> None:
    """Put another number, or a word, in the place of a run of digits."""
    places = [i for i, byte in enumerate(content[:65536]) if 48 <= byte <= 57]
    if not places:
        return
    first = last = rng.choice(places)
    while last < len(content) and content[last] in b"0123456789.eE+-":
        last += 1
    while first and content[first - 1] in b"0123456789.eE+-":
        first -= 1
    content[first:last] = rng.choice(NUMBERS).encode()


# What is read


def _frames(suffix: str) -> Callable[[Path, Rng], None]:
    def attempt(file: Path, rng: Rng) -> None:
        named = file.with_name(f"f_1{suffix}")
        file.rename(named)
        found = frames.discover(str(named))
        for ref in found[:2]:
            _unless_ours(lambda ref=ref: frames.frame_info(ref))
            _unless_ours(lambda ref=ref: frames.load(ref))
        _unless_ours(lambda: describe.describe(named))

    return attempt


def _unless_ours(work: Callable[[], object]) -> None:
    try:
        work()
    except LaueDaskError as error:
        if "\n" in str(error):
            raise AssertionError(f"more than one line: {error!r}") from error


def frame_seeds() -> dict[str, dict[str, bytes]]:
    """Small valid files of every format, by suffix."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 900, (40, 36)).astype(np.uint16)
    found: dict[str, dict[str, bytes]] = {
        suffix: {} for suffix in (".tif", ".edf", ".cbf", ".img", ".h5", ".gz", ".mccd")
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        detector = DETECTORS["pilatus1m"].binned(16)
        frame = rng.integers(0, 900, detector.shape).astype(np.int32)
        write_tiff(folder / "als.tif", frame, detector, Stage(1.0, 2.0, 5.0, 1.0))
        Image.fromarray(small).save(folder / "plain.tif")
        for how in ("tiff_deflate", "tiff_lzw", "packbits"):
            Image.fromarray(small).save(folder / f"{how}.tif", compression=how)
        Image.fromarray(small).save(folder / "pages.tif", save_all=True, append_images=[Image.fromarray(small)])
        for how in ("lzw", "zlib", "zstd", "packbits"):
            predictor = 2 if how in ("lzw", "zlib") else None
            tifffile.imwrite(
                folder / f"tiles_{how}.tif", small, byteorder=">", tile=(16, 16), compression=how, predictor=predictor
            )
        tifffile.imwrite(
            folder / "imagej.tif", np.stack([small] * 3), imagej=True, metadata={"Labels": ["a", "b", "mask"]}
        )
        tifffile.imwrite(folder / "big.tif", small, bigtiff=True, rowsperstrip=7)
        for path in folder.glob("*.tif"):
            found[".tif"][path.stem] = path.read_bytes()
        for suffix, kind in ((".edf", "edfimage"), (".cbf", "cbfimage"), (".img", "dtrekimage")):
            image = type(fabio.factory(kind))(data=small.astype(np.int32 if suffix == ".cbf" else np.uint16))
            image.header.update({"motor_mne": "xech yech", "motor_pos": "1.0 2.0", "PIXEL_SIZE": "0.1"})
            image.write(str(folder / f"a{suffix}"))
            found[suffix]["plain"] = (folder / f"a{suffix}").read_bytes()
        packed = zlib.compress(small.tobytes())
        head = (
            "{\nByteOrder = LowByteFirst ;\nDataType = UnsignedShort ;\nDim_1 = 36 ;\nDim_2 = 40 ;\nCompression = Z ;\n"
        )
        found[".edf"]["packed"] = f"{head}Size = {len(packed)} ;\n}}\n".encode() + packed
        with h5py.File(folder / "a.h5", "w") as file:
            stack = np.stack([small, small + 1])
            file.create_dataset("entry/data", data=stack, chunks=(1, 40, 36), compression="gzip")
            file.create_dataset("entry/other", data=stack, chunks=(1, 40, 36), **hdf5plugin.Bitshuffle())
            file["entry/position"] = np.arange(2.0)
        with h5py.File(folder / "b.h5", "w") as file:
            file["data"] = small
        for path in folder.glob("*.h5"):
            found[".h5"][path.stem] = path.read_bytes()
        found[".gz"]["tif"] = gzip.compress(found[".tif"]["plain"])
        found[".mccd"]["tif"] = found[".tif"]["plain"] + bytes(4096)
    return found


def _store(folder: Path) -> ScanStore:
    """A tiny scan store with frames and reduced patterns."""
    store = ScanStore.create(
        folder, grid=resolve_grid(6, shape=(2, 3)), frame_shape=(5, 4), dtype="uint16", detector="d", pixel_size_um=1.0,
        provenance={"source": "here"},
    )  # fmt: skip
    stack = np.arange(6 * 20, dtype=np.uint16).reshape(6, 5, 4)
    store.write_frames(0, stack)
    store.record(
        [
            {"block": 0, "start": 0, "stop": 6, "crc32c": checksum(stack), "seal": store.seal(0), "set_aside": []}
            | {"source": [f"{i}.tif" for i in range(6)], "positions": None}
        ]
    )
    return store.finish()


def _read_store(folder: Path) -> None:
    store = ScanStore.open(folder)
    _ = store.scan_shape, store.order, store.provenance, store.set_aside, store.key(), store.seals
    _ = store.valid, store.source, store.position, store.detector_mask
    if store.n_patterns > 10**6:
        raise AssertionError(f"{store.n_patterns} patterns are believed")
    store.read_frames(0, min(store.n_patterns, store.shard_frames))


def store_target(template: Path) -> Target:
    """Any file of a scan store."""
    files = {p.relative_to(template).as_posix(): p.read_bytes() for p in sorted(template.rglob("*")) if p.is_file()}

    def attempt(file: Path, rng: Rng) -> None:
        name = rng.choice(sorted(files))
        store = file.parent / "s.zarr"
        shutil.copytree(template, store)
        (store / name).write_bytes(mutated(files[name], rng, list(files.values()), text=name.endswith("json")))
        if name != receipts.STORE_RECEIPTS_FILE and rng.random() < 0.7:  # someone who knows how they are made
            Receipts.of(store, [n for n in files if n != receipts.STORE_RECEIPTS_FILE and "frames/c" not in n]).write()
        _unless_ours(lambda: _read_store(store))
        _unless_ours(lambda: verify.verify(store, progress=QuietProgress()))
        _unless_ours(lambda: describe.describe(store))

    return Target({"none": b""}, attempt, share=3)


def _journal(file: Path, rng: Rng) -> None:
    lines = file.read_bytes().split(b"\n")
    if rng.random() < 0.5:
        lines = [line.rpartition(b"\t")[0] for line in lines]
        lines = [line + f"\t{google_crc32c.value(line):08x}".encode() for line in lines]
        file.write_bytes(b"\n".join(lines))
    Journal(file).read()


def _run_json(file: Path, rng: Rng) -> None:
    file.rename(file.parent / records.RECORD_FILE)
    if rng.random() < 0.6:
        try:
            values = json.loads((file.parent / records.RECORD_FILE).read_bytes())
            values[records.CHECKSUM_ENTRY] = records._checksum(values)
            (file.parent / records.RECORD_FILE).write_text(json.dumps(values))
        except (ValueError, TypeError, RecursionError):
            pass
    _unless_ours(lambda: records.read(file.parent))
    _unless_ours(lambda: describe.describe(file.parent))


def _locked(file: Path, rng: Rng) -> None:
    file.rename(file.parent / lock.LOCK_FILE)

    def own() -> None:
        with lock.locked_folder(file.parent, "fuzz"):
            pass

    _unless_ours(own)


def _weights(file: Path, rng: Rng) -> None:
    path = file.with_suffix(".safetensors")
    file.rename(path)
    content = path.read_bytes()
    if rng.random() < 0.5:
        try:
            card = weights.Card.model_validate_json(weights._header(content)["__metadata__"]["card"])
            right = weights._checksum(card, content)
            path.write_bytes(content.replace(card.crc32c.encode(), right.encode()) if card.crc32c else content)
        except Exception:  # noqa: S110  as it is, then
            pass
    for work in (weights.read_card, lambda path: weights.load(str(path)), describe.describe):
        _unless_ours(lambda work=work: work(path))


def _checkpoint(file: Path, rng: Rng) -> None:
    model = _model()
    _unless_ours(lambda: checkpoint.read(file, model, torch.optim.Adam(model.parameters()), {"a": 1}))


def _model() -> Any:
    return build(Architecture(channels=(1, 1, 1, 1, 1, 1), latent=4), seed=0)


def _checkpoint_seed(folder: Path) -> bytes:
    model = _model()
    optimizer = torch.optim.Adam(model.parameters())
    checkpoint.write(
        folder / "checkpoint", checkpoint.Position(step=3, sums={"loss": 1.5}), model, optimizer, {}, {"a": 1}
    )
    return (folder / "checkpoint").read_bytes()


def _config(file: Path, rng: Rng) -> None:
    _unless_ours(lambda: load(file))
    _unless_ours(lambda: read_config(file, TrainingConfig))


def _listed(file: Path, rng: Rng) -> None:
    _unless_ours(lambda: [frames.load(ref) for ref in frames.discover(str(file))[:2]])


def _truth(file: Path, rng: Rng) -> None:
    _unless_ours(lambda: evaluation.read_truth(file, (4, 5)))


def _grid(file: Path, rng: Rng) -> None:
    n = rng.choice([1, 2, 7, 24, 60, 400])
    values = [0.0, 1.0, -1.0, 0.5, 1e300, -1e300, float("nan"), float("inf"), 1e-300]
    positions: list[tuple[float, float] | None] = [
        rng.choice([None, (rng.choice(values), rng.choice(values)), (i // 6 * 1.0, i % 6 * 1.0), (0.0, i * 0.1)])
        for i in range(n)
    ]
    shape = rng.choice([None, (rng.randint(1, 30), rng.randint(1, 30)), (10**9, 10**9)])
    order = rng.choice(["raster", "snake"])
    _unless_ours(lambda: resolve_grid(n, shape=shape, order=order, positions=positions))


def targets(folder: Path) -> dict[str, Target]:
    """Everything that is fuzzed."""
    found = {f"frames{s}": Target(seeds, _frames(s), share=12) for s, seeds in frame_seeds().items() if s != ".gz"}
    found["frames.tif.gz"] = Target(frame_seeds()[".gz"], _frames(".tif.gz"), share=2)
    template = folder / "template.zarr"
    if not template.exists():
        _store(template)
    found["store"] = store_target(template)
    line = folder / "journal"
    line.unlink(missing_ok=True)
    for block in range(4):
        Journal(line).add({"block": block, "start": block, "stop": block + 1, "crc32c": 5, "seal": 7})
    found[journal.JOURNAL_FILE] = Target({"four": line.read_bytes()}, _journal, text=True, share=8)
    record = {"laue_dask": "0", "source": "here", "scan_shape": [2, 3], "n_patterns": 6, "n_set_aside": 0, "k": [3]}
    record |= {"suggested_k": [3], "m_pca": 2, "seconds": {"ingest": 1.5}, "config": {}, "keys": {"scan": "abc"}}
    record[records.CHECKSUM_ENTRY] = records._checksum(record)
    found[records.RECORD_FILE] = Target({"one": json.dumps(record).encode()}, _run_json, text=True, share=10)
    owner = {"host": "h", "pid": 1, "began": 1.5, "command": "c", "token": "t"}
    found["lock"] = Target({"one": json.dumps(owner).encode()}, _locked, text=True, share=4)
    content = weights.DEFAULT_WEIGHTS_FILE.read_bytes()
    found["weights"] = Target({"default": content}, _weights, share=1)
    found["checkpoint"] = Target({"begun": _checkpoint_seed(folder)}, _checkpoint, share=2)
    found["config"] = Target({"default": dump(Config()).encode(), "train": _train_yaml()}, _config, text=True, share=14)
    found["list"] = Target({"paths": b"# list\na.tif\nb.tif[3]\nc.h5::/entry/data[1]\n"}, _listed, text=True, share=6)
    truth = io.BytesIO()
    np.savez(truth, domain=np.zeros((4, 5), int), angle=np.zeros((4, 5)))
    found["truth"] = Target({"npz": truth.getvalue()}, _truth, share=6)
    found["grid"] = Target({"none": b""}, _grid, share=8)
    return found


def _train_yaml() -> bytes:
    return yaml.safe_dump(TrainingConfig().model_dump(mode="json"), sort_keys=False).encode()


# The pool


def attempt(name: str, target: Target, number: int, seed: int, keep: Path) -> str:
    """Try one input; what is wrong, empty if nothing is."""
    rng = Rng(f"{seed} {name} {number}")
    folder = Path(tempfile.mkdtemp())
    try:
        seeds = list(target.seeds.values())
        content = mutated(rng.choice(seeds), rng, seeds, text=target.text) if seeds != [b""] else b""
        file = folder / "input"
        file.write_bytes(content)
        (keep / f"doing-{os.getpid()}").write_text(f"{name} {number}")
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target.attempt(file, rng)
        except LaueDaskError as error:
            if "\n" in str(error):
                return f"more than one line: {error!r}"
        except MemoryError:
            return "MemoryError: " + "".join(traceback.format_exc()[-600:])
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            (keep / f"{name}-{number}").write_bytes(content)
            return traceback.format_exc()
        return ""
    finally:
        signal.alarm(0)
        shutil.rmtree(folder, ignore_errors=True)


class HungError(BaseException):
    """An input took too long."""


def _hung(*_: object) -> None:
    raise HungError(f"more than {SECONDS} s")


def work(numbers: "multiprocessing.Queue[Any]", found: "multiprocessing.Queue[Any]", folder: Path, seed: int) -> None:
    """Try batches of inputs until there are none."""
    signal.signal(signal.SIGALRM, _hung)
    lock.LOCK_WRITE_TIMEOUT_S = SETTLING
    with (folder / f"crash-{os.getpid()}").open("w") as crash:
        faulthandler.enable(crash)
        everything = targets(folder)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + MEMORY, virtual + MEMORY))
        while (batch := numbers.get()) is not None:
            name, first, last = batch
            for number in range(first, last):
                fault = attempt(name, everything[name], number, seed, folder)
                if fault:
                    found.put((name, number, fault))
            found.put((name, last - first, None))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found.put(("peak", int(peak - used), None))


def fuzz(inputs: int, seed: int, processes: int, only: list[str], keep: Path) -> tuple[Counter[str], list[str], int]:
    """Try inputs; how many of each target, what is wrong, and the memory of the largest process."""
    keep.mkdir(parents=True, exist_ok=True)
    everything = {name: t for name, t in targets(keep).items() if not only or name in only}
    whole = sum(target.share for target in everything.values())
    batches = []
    for name, target in everything.items():
        count = -(-inputs * target.share // whole)
        batches += [(name, first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
    Rng(seed).shuffle(batches)
    context = multiprocessing.get_context("spawn")
    numbers: Any = context.Queue()
    found: Any = context.Queue()
    for batch in batches:
        numbers.put(batch)
    for _ in range(processes):
        numbers.put(None)
    tried: Counter[str] = Counter()
    faults: list[str] = []
    peak = 0
    running = [context.Process(target=work, args=(numbers, found, keep, seed)) for _ in range(processes)]
    for process in running:
        process.start()
    begun = told = time.monotonic()
    while running or not found.empty():
        try:
            name, number, fault = found.get(timeout=1)
            if name == "peak":
                peak = max(peak, number)
            elif fault is None:
                tried[name] += number
            else:
                faults.append(f"{name} {number}: {fault}")
                print(faults[-1], flush=True)
        except Exception:  # noqa: S110  the queue is empty
            pass
        for process in list(running):
            if process.exitcode is not None:
                running.remove(process)
                if process.exitcode:
                    doing = keep / f"doing-{process.pid}"
                    what = doing.read_text() if doing.exists() else "its start"
                    said = (keep / f"crash-{process.pid}").read_text()[-2000:]
                    faults.append(f"{what}: process ended with {process.exitcode}\n{said}")
                    print(faults[-1], flush=True)
                    running.append(context.Process(target=work, args=(numbers, found, keep, seed)))
                    running[-1].start()
        if time.monotonic() - told > 30:
            told = time.monotonic()
            rate = sum(tried.values()) / (told - begun)
            print(f"{sum(tried.values())} inputs, {rate:.0f}/s, {len(faults)} faults", flush=True)
    return tried, faults, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "laue-dask-fuzz")
    given = parser.parse_args()
    tried, faults, peak = fuzz(given.inputs, given.seed, given.processes, given.only, given.keep)
    for name, count in sorted(tried.items()):
        print(f"{name:18s} {count}")
    print(
        f"{sum(tried.values())} inputs, {len(faults)} faults, {peak / 2**20:.0f} MiB more than at the beginning at most"
    )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
