#!/usr/bin/env python
"""How fast a scan is read, reduced, encoded and clustered, beside what the hardware and others can do.

Usage: .venv/bin/python scripts/benchmark.py [--only floor pipeline ingest today quality scale table1 gpu]
           [--cache FOLDER] [--frames 8192] [--today 720] [--scale 1000 10000 100000] [--json FILE]

floor     the bare kernels one after another on one core: decode (Blosc), reduce, encode; and in a process of its own
          on each core at once, which tells what this machine gains by its cores.
pipeline  a scan store through `reduce` and `encode` on running Dask workers: on one core, which the scheduler shares
          with the worker, then with a worker on each of all cores.
ingest    detector files (TIFF) → features in one pass, the same workers, with and without storing the frames.
today     what one would write from the paper: fabio, skimage's resize, torch, joblib on all cores, scikit-learn's PCA,
          KMeans, silhouette and Calinski-Harabasz scores (K = 2 … 20), without any figure; and `laue-dask run` on the
          same files, without and with a copy of the frames. Needs scikit-image: the extra [benchmark].
quality   labels of both ways at the true K, on scans of specimens of several kinds, none of which was used for
          development: adjusted Rand index (ARI) of all points, and of the interior, where the beam lies in one domain;
          and of the estimator's labels alone (`clustering.mixed_points`).
scale     stores of many patterns, each in a process of its own with one worker per core: patterns/s, memory, tasks,
          size of a task, and the share of the time in which workers had no task of ours; short runs are the best of
          several turns.
table1    the paper's Table 1: feature extraction and clustering, per core.
gpu       where there is one: a scan store through `reduce` on the CPUs and `encode` on the GPU; reduced patterns in
          memory → features; the encoder alone, its convolutional layers alone, and what a roofline allows these
          (`roofline.py`); and how many labels of three scans are those of CPU workers. All else is without the GPU.

Frames are 256 simulated patterns on a PILATUS 1M (1043 × 981, int32); longer scans repeat them: files and shards are
hard links, so reading is from the operating system's cache, and decoding, reducing and encoding are done in full. For
clustering, the repeated features get the scatter of their domain as noise.

Exit code 1 if a promise is broken: pipeline on one core at least 80 % of the floor and 100 patterns/s, all cores (of
two) at least 1.8 × one, end to end 4 × as fast as today's way with ARIs that are not lower, nor in the mean over the
kinds, cost per pattern flat within 10 % over the scales, at most 10 tasks per 1,000 patterns; with a GPU, 2,000
patterns/s from the store, half of the roofline, and 99.9 % of the labels as on CPUs.
"""

import argparse
import json
import os
import pickle
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import fabio
import numpy as np
import psutil
import torch
from numcodecs import blosc
from numpy.typing import NDArray
from roofline import best_seconds, convolutions, limits

from laue_dask.compute import cluster
from laue_dask.compute.cluster import Workers
from laue_dask.compute.local import available_cores, gpu_count
from laue_dask.compute.run import write_tasks
from laue_dask.config import Config, EncoderConfig, LocalWorkersConfig, Recipe, ScanConfig
from laue_dask.errors import LaueDaskError
from laue_dask.features import weights
from laue_dask.features.architecture import ARCHITECTURES
from laue_dask.features.batch_sizes import AUTO_BATCH_SIZES
from laue_dask.features.batches import arithmetic, fastest_size
from laue_dask.features.encode import Network
from laue_dask.features.inference import network_here
from laue_dask.features.network import build
from laue_dask.io.blocks import block_size
from laue_dask.io.geometry import resolve_grid
from laue_dask.io.results import ResultsWriter
from laue_dask.io.results import read as read_results
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.reuse import Output
from laue_dask.pipeline.stages import extraction
from laue_dask.pipeline.stages.early_encoding import EarlyEncoder
from laue_dask.pipeline.stages.ingest import ingest
from laue_dask.pipeline.stages.reduction import reduce_scan, reduced_patterns
from laue_dask.pipeline.stages.segmentation import kmeans
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.reduction.reduce import reduce_frames
from laue_dask.runtime.progress import QuietProgress
from laue_dask.segmentation import scores
from laue_dask.segmentation.pca import IncrementalPCA
from laue_dask.simulate.campaign import write_scan
from laue_dask.simulate.reduced import ReducedScan, reduced_scan
from laue_dask.watch.preview import matched_labels

Array = NDArray[Any]
Figures = dict[str, Any]
BatchSize = int | Literal["auto"]

BASE = (16, 16)
SEED = 301
KERNEL_FRAMES = 64
TOGETHER_S = 3.0
TURNS = 3
CPU = torch.device("cpu")
TODAY_K = range(2, 21)
PAPER = {(30, 30): (45.0, {3: 2.3, 16: 5.6}), (30, 100): (63.0, {2: 2.7, 10: 6.7, 64: 14.3})}
PAPER |= {(60, 100): (104.0, {2: 3.5, 12: 12.7, 64: 23.4})}
PAPER_CORES = 6
"""Table 1 of the paper: seconds of feature extraction, and of clustering by K, on 6 cores."""

OURS = {"ours": "--no-store-frames", "stored": "--store-frames"}
"""Ways of `laue-dask run` that are held against today's."""

QUALITY = ("grains", "twins", "two_phases", "bent", "messy", "low_counts")
QUALITY_SEED = 303

SECTIONS = ("floor", "pipeline", "ingest", "today", "quality", "scale", "table1", "gpu")
CORES = {"pipeline": "by number of cores", "ingest": "all cores"}

VISIBLE = "CUDA_VISIBLE_DEVICES"

SAME, SAME_SHAPE = ("grains", "twins", "messy"), (24, 24)
"""Scans whose labels are compared."""

GPU_RATES = {
    "store_never": "scan store → features, CPU workers",
    "store_require": "with the GPU",
    "memory": "reduced patterns in memory → features",
    "encoder": "the encoder alone",
    "layers": "its convolutional layers alone",
    "roofline": "as the roofline of the convolutions allows",
}

WAYS = ("ours", "estimator", "today")

ARIS = {"ari": "all points", "ari_interior": "the interior"}

NOISE = 0.02
"""Scatter of the features of a domain, where they are repeated; theirs have unit length."""

STEADY, LONG = 10_000, 50_000
"""Patterns of a scan from which on a run's cost per pattern is flat, and from which on one run tells it."""

ONE_OF_FLOOR, CORES_OF_ONE, LEAST_RATE, TIMES_TODAY, FLAT, TASKS, IDLE = 0.8, 0.9, 100.0, 4.0, 0.1, 10.0, 0.05
GPU_RATE, OF_ROOFLINE, SAME_LABELS = 2000.0, 0.5, 0.999


# What is measured on


def base(cache: Path) -> tuple[Path, ScanStore]:
    """Files and store of the simulated patterns; made where they are missing."""
    files, store = cache / "frames", cache / "base.zarr"
    if not (files / "truth.npz").exists():
        simulate("grains", files, SEED)
    if not store.exists():
        with workers(1) as one:
            ingest(str(files), store, ScanConfig(shape=BASE), workers=one, progress=QuietProgress())
    return files, ScanStore.open(store)


def simulate(kind: str, folder: Path, seed: int) -> None:
    """Frames of a scan as TIFF files, with their truth."""
    say(f"simulating the frames of {kind}")
    write_scan(kind, folder, shape=BASE, seed=seed, detector="pilatus1m", config=Config(), progress=QuietProgress())


def truth_of(files: Path, shape: tuple[int, int]) -> tuple[Array, Array]:
    """True domain, and whether the beam lies in one domain alone, of each point of a scan that repeats these files."""
    with np.load(files / "truth.npz") as truth:
        return np.resize(truth["domain"].ravel(), shape), ~np.resize(truth["edge"].ravel(), shape)


def repeated_files(cache: Path, files: Path, shape: tuple[int, int]) -> Path:
    """Folder of hard links to the base's files, one for each point; their headers repeat the base's stage positions."""
    names = sorted(files.glob("*.tif"))
    folder = fresh(cache / "many")
    folder.mkdir()
    for i in range(shape[0] * shape[1]):
        os.link(names[i % len(names)], folder / f"f_{i:06d}.tif")
    return folder


def repeated_store(path: Path, shape: tuple[int, int], of: ScanStore) -> ScanStore:
    """Scan store whose shards are hard links to the base's."""
    n, unit = shape[0] * shape[1], of.shard_frames
    store = ScanStore.create(
        fresh(path),
        grid=resolve_grid(n, shape=shape),
        frame_shape=of.frame_shape,
        dtype=of.dtype,
        detector=None,
        pixel_size_um=None,
        provenance={"source": str(of.path)},
    )
    if store.shard_frames != unit:
        raise SystemExit(f"shards of {store.shard_frames} frames, the base has {unit}")
    store.write_detector_mask(of.detector_mask)
    shards = len(of.source) // unit
    receipts = []
    for block, start in enumerate(range(0, n, unit)):
        stop = min(start + unit, n)
        source = of.path / "frames" / "c" / str(block % shards) / "0" / "0"
        target = Path(store.writing_path) / "frames" / "c" / str(block) / "0" / "0"
        target.parent.mkdir(parents=True)
        os.link(source, target)
        crc = of.root.attrs["crc32c"][block % shards]
        names = [f"f_{i}.tif" for i in range(start, stop)]
        receipts.append(
            {"block": block, "start": start, "stop": stop, "crc32c": crc, "source": names, "seal": store.seal(block)}
            | {"set_aside": [], "positions": None}
        )
    store.record(receipts)
    return store.finish()


def fresh(path: Path) -> Path:
    """The path, with nothing at it."""
    for stale in (path, path.with_name(path.name + ".part")):
        shutil.rmtree(stale, ignore_errors=True)
    return path


@contextmanager
def workers(count: int, gpu: Literal["never", "require"] = "never", batch_size: BatchSize = 32) -> Iterator[Workers]:
    """Running workers that have imported all they need, and know their size of batches."""
    with cluster.start(LocalWorkersConfig(count=count, gpu=gpu)) as started:
        started.client.run(_warm, batch_size)
        yield started


def _warm(batch_size: BatchSize) -> None:
    torch.set_num_threads(1)
    reduced = reduce_frames(np.ones((1, 256, 256), np.int32), None, Recipe())
    Network.load(EncoderConfig(batch_size=batch_size), Recipe()).extract(reduced, np.ones(1, bool))


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


# What is measured


def _kernels(store: ScanStore) -> dict[str, Callable[[], Any]]:
    """Each does its work on the same `KERNEL_FRAMES` frames."""
    torch.set_num_threads(1)
    blosc.set_nthreads(1)
    frames, mask, recipe = store.read_frames(0, KERNEL_FRAMES), store.detector_mask, Recipe()
    packed = [blosc.compress(frame.tobytes(), b"lz4", 5, blosc.BITSHUFFLE, typesize=4) for frame in frames]
    memory = np.empty(frames.shape[1:], frames.dtype)
    reduced = reduce_frames(frames, mask, recipe)
    network, valid = Network.load(EncoderConfig(), recipe), np.ones(len(frames), bool)

    def decode() -> None:
        for one in packed:
            blosc.decompress(one, memory)

    return {
        "decode": decode,
        "reduce": lambda: reduce_frames(frames, mask, recipe),
        "encode": lambda: network.extract(reduced, valid),
    }


def floor(store: ScanStore) -> Figures:
    """Milliseconds per frame of the kernels on a core, each the best of several turns; and what all cores gain."""
    kernels = _kernels(store)
    found = {name: 1e3 * best_seconds(kernel, CPU, TURNS) / KERNEL_FRAMES for name, kernel in kernels.items()}
    total = sum(found.values())
    rates: dict[int, list[float]] = {1: [], available_cores(): []}
    for _ in range(TURNS):  # by turns: what else the machine does comes and goes
        for count, turns in rates.items():
            turns.append(sum(map(float, _on_cores(count, store.path))))
    gain = max(rates[available_cores()]) / max(rates[1])
    return {"ms": found, "patterns_per_s": 1e3 / total, "cores_of_one": gain}


def _on_cores(count: int, store: Path) -> list[str]:
    """Patterns/s of the kernels in each of so many processes that begin together."""
    command = [sys.executable, __file__, "--as-floor", str(store)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    for process in started:
        process.stdout.readline()  # type: ignore[union-attr]  # it is ready
    for process in started:
        process.stdin.write("\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    return [process.communicate()[0] for process in started]


def as_floor(path: Path) -> None:
    """Print the patterns/s of all kernels in this process, some seconds long from when a line is read."""
    kernels = _kernels(ScanStore.open(path))
    for kernel in kernels.values():
        kernel()
    print("ready", flush=True)
    sys.stdin.readline()
    begun, frames = time.perf_counter(), 0
    while time.perf_counter() - begun < TOGETHER_S:
        for kernel in kernels.values():
            kernel()
        frames += KERNEL_FRAMES
    print(frames / (time.perf_counter() - begun))


def seconds(function: Callable[[], Any]) -> float:
    """Seconds of a call."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def features_of(store: ScanStore, folder: Path, started: Workers, encoder: EncoderConfig | None = None) -> Any:
    """Reduce and encode a scan as a run does; the lazy features."""
    config, where = Config(), SpecimenMap(store.valid, store.scan_shape)
    extractor = extraction.extractor_of(encoder or config.encoder, config.recipe)
    with EarlyEncoder(folder, extractor, started) as ahead:
        reduced = reduce_scan(store, config.recipe, ahead=ahead, workers=started, progress=QuietProgress())
    results = ResultsWriter(folder, {"scan": str(store.path), "scan_shape": list(store.scan_shape)})
    return extraction.extract(
        reduced, where, extractor, results, Output.of_key(store.key()), workers=started, progress=QuietProgress()
    )


def pipeline(cache: Path, of: ScanStore, n: int) -> Figures:
    """Patterns/s on one core, and on all: each the best of several turns, as those of the floor."""
    rates: dict[int, list[float]] = {count: [] for count in sorted({1, available_cores()})}
    for _ in range(TURNS):
        for count, turns in rates.items():
            store = repeated_store(cache / "pipeline.zarr", (n // 32, 32), of)
            turns.append(alone(store, cache / "run", count)["patterns_per_s"])
            say(f"pipeline, {count} cores: {turns[-1]:.0f} patterns/s")
    return {"patterns": n, "patterns_per_s": {count: max(turns) for count, turns in rates.items()}}


def alone(store: ScanStore, folder: Path, cores: int) -> Figures:
    """Figures of a run, in a process of its own with a worker for each of so many cores.

    What making the store left in the memory of this process is none of the run's; and all that the run consists of, the
    scheduler and the workers' event loops as well, is on these cores.
    """
    command = [sys.executable, __file__, "--as-scale", str(store.path), str(fresh(folder)), str(cores)]
    with confined(cores):
        figures: Figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return figures


@contextmanager
def confined(cores: int) -> Iterator[None]:
    """Processes that are started meanwhile have so many cores, where the system can tell them so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cores)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)


def ingested(cache: Path, files: Path, n: int) -> Figures:
    """Patterns/s from detector files, with one worker per core."""
    shape, rates = (n // 32, 32), {}
    folder = repeated_files(cache, files, shape)
    with workers(available_cores()) as started:
        for kept in (True, False):

            def run(kept: bool = kept) -> None:
                scan = ScanConfig(shape=shape, store_frames=kept, insist=True)
                recipe, out = Recipe(), fresh(cache / "run")
                out.mkdir()
                common = {"workers": started, "progress": QuietProgress()}
                with EarlyEncoder(out, extraction.extractor_of(EncoderConfig(), recipe), started) as ahead:
                    store = ingest(
                        str(folder), fresh(cache / "ingest.zarr"), scan, recipe=recipe, ahead=ahead, **common
                    )
                features_of(store, out, started)

            rates["frames stored" if kept else "--no-store-frames"] = n / seconds(run)
            size = sum(path.stat().st_size for path in (cache / "ingest.zarr").rglob("*") if path.is_file())
            say(f"ingest, {'' if kept else 'not '}stored: {size / n / 1e3:.0f} kB per pattern on disk")
    shutil.rmtree(folder)
    return {"patterns": n, "patterns_per_s": rates}


def today(cache: Path, files: Path, n: int) -> Figures:
    """Seconds of the way that a scientist would write from the paper, and of `laue-dask run`, on the same files."""
    shape = (n // 30, 30)
    folder = repeated_files(cache, files, shape)
    truth, interior = truth_of(files, shape)
    k = len(np.unique(truth))
    result: Figures = {"patterns": n, "k": k}
    begun = time.time()
    labels, clustered = labels_of_today(folder, cache / "today.npz", k)
    result |= {"today_s": time.time() - begun, "labels_s": clustered - begun}
    result |= {f"today_{name}": value for name, value in aris(truth, interior, labels.reshape(shape)).items()}
    for name, option in OURS.items():
        begun = time.perf_counter()
        labels = labels_of_ours(folder, fresh(cache / "todays-run"), shape, k, option)
        result[f"{name}_s"] = time.perf_counter() - begun
        result |= {f"{name}_{which}": value for which, value in aris(truth, interior, labels).items()}
    shutil.rmtree(cache / "todays-run")
    shutil.rmtree(folder)
    return result


def quality(cache: Path) -> dict[str, Figures]:
    """ARIs of both ways, by kind of specimen."""
    found = {}
    for kind in QUALITY:
        files = fresh(cache / "quality")
        simulate(kind, files, QUALITY_SEED)
        truth, interior = truth_of(files, BASE)
        k = len(np.unique(truth))
        run = fresh(cache / "todays-run")
        ours = labels_of_ours(files, run, BASE, k, "--no-store-frames")
        estimator = labels_of_estimator(run, k)
        theirs, _ = labels_of_today(files, cache / "today.npz", k)
        found[kind] = {
            "ours": aris(truth, interior, ours),
            "estimator": aris(truth, interior, estimator),
            "today": aris(truth, interior, theirs.reshape(BASE)),
            "k": k,
        }
        say(f"quality of {kind}: {found[kind]}")
        shutil.rmtree(files)
    return found


def labels_of_today(folder: Path, out: Path, k: int) -> tuple[Array, float]:
    """Labels of today's way at K, in the order of the files, and when it had them."""
    subprocess.run([sys.executable, __file__, "--as-today", str(folder), str(out)], check=True)
    with np.load(out) as theirs:
        return theirs[f"k{k}"], float(theirs["clustered"])


def labels_of_ours(folder: Path, run: Path, shape: tuple[int, int], k: int, option: str) -> Array:
    """Label map of `laue-dask run` at K."""
    command = [sys.executable, "-m", "laue_dask", "run", str(folder), "--out", str(run), "-k", str(k), option]
    subprocess.run([*command, "--insist", "--shape", *map(str, shape)], check=True, stdout=subprocess.DEVNULL)
    return _labels_at(run, k)


def labels_of_estimator(run: Path, k: int) -> Array:
    """Label map of a run at K where all points, also those between two domains, have the label of k-means."""
    config = run.with_suffix(".yaml")
    config.write_text("clustering: {mixed_points: estimator}\n", encoding="utf-8")
    command = [sys.executable, "-m", "laue_dask", "segment", str(run), "-k", str(k), "--config", str(config)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    config.unlink()
    return _labels_at(run, k)


def _labels_at(run: Path, k: int) -> Array:
    found = read_results(run)
    return np.asarray(found["labels"].values[found["k"].values.tolist().index(k)])


def aris(truth: Array, interior: Array, labels: Array) -> Figures:
    """ARI of all points, and of the interior."""
    return {
        "ari": scores.adjusted_rand(truth, labels),
        "ari_interior": scores.adjusted_rand(truth, labels, where=interior),
    }


def as_today(folder: Path, out: Path) -> None:
    """The paper's method as written with today's usual tools; `out` gets the labels of each K."""
    from joblib import Parallel, delayed
    from skimage.transform import resize
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import calinski_harabasz_score, silhouette_score

    def features(paths: list[Path]) -> Array:
        torch.set_num_threads(1)
        network = build(ARCHITECTURES["paper"], seed=0).eval()
        found = []
        for path in paths:
            frame = fabio.open(path).data.astype(np.float32)
            small = resize(frame / frame.max(), (128, 128), anti_aliasing=True).astype(np.float32)
            with torch.no_grad():
                found.append(network.encode(torch.from_numpy(small)[None, None]).numpy()[0])
        return np.array(found)

    paths = sorted(folder.glob("*.tif"))
    parts = [paths[i : i + 60] for i in range(0, len(paths), 60)]
    table = np.concatenate(Parallel(n_jobs=available_cores())(delayed(features)(part) for part in parts))
    components = PCA(min(256, *table.shape)).fit_transform(table)[:, :32]
    labels = {f"k{k}": KMeans(k, n_init=10, random_state=0).fit_predict(components) for k in TODAY_K}
    clustered = time.time()
    figures = [(silhouette_score(components, one), calinski_harabasz_score(components, one)) for one in labels.values()]
    np.savez(out, clustered=clustered, scores=np.array(figures), **labels)


class Watch:
    """Peak resident memory of this process and its children, while it is entered."""

    def __enter__(self) -> "Watch":
        self.peak, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        me = psutil.Process()
        while not self._over.wait(0.2):
            try:
                sizes = [process.memory_info().rss for process in (me, *me.children(recursive=True))]
            except psutil.Error:
                continue
            self.peak = max(self.peak, sum(sizes))


def scale(cache: Path, of: ScanStore, sizes: list[int]) -> list[Figures]:
    """Cost per pattern from small scans to large ones."""
    rows = []
    for n in sizes:
        shape, found = (-(-n // 256), 256), []
        # What else the machine does makes much of a run of seconds, and little of one of minutes.
        for _ in range(TURNS if n < LONG else 1):
            store = repeated_store(cache / "scale.zarr", shape, of)
            found.append(alone(store, cache / "run", available_cores()))
        rows.append(max(found, key=lambda one: float(one["patterns_per_s"])))
        say(f"scale: {rows[-1]}")
    fresh(cache / "scale.zarr")
    return rows


def as_scale(path: str, folder: str, cores: str) -> None:
    """Print the figures of a run as JSON; see `alone`."""
    store, count = ScanStore.open(path), int(cores)
    Path(folder).mkdir()
    n = store.n_patterns
    with workers(count) as started, Watch() as watch:
        took = seconds(lambda: features_of(store, Path(folder), started))
        spans = started.client.run_on_scheduler(_busy)
    task = write_tasks(reduced_patterns(store, Recipe()), store.reduced(Recipe().digest()))[0]
    found = {
        "patterns": n,
        "patterns_per_s": n / took,
        "peak_GB": watch.peak / 1e9,
        "tasks_per_1000": 1e3 * sum(count for count, _ in spans.values()) / n,
        "task_bytes": len(pickle.dumps(dict(task.__dask_graph__()))),
        "blocks": -(-n // block_size(n)),
        "idle_share": 1 - sum(busy for _, busy in spans.values()) / (took * count),
    }
    print(json.dumps(found))


def _busy(dask_scheduler: Any) -> dict[str, tuple[int, float]]:
    """Number of finished tasks and seconds of computing, by the tasks' name."""
    return {
        name: (int(prefix.state_counts["memory"]), float(prefix.all_durations["compute"]))
        for name, prefix in dask_scheduler.task_prefixes.items()
    }


def table1(cache: Path, of: ScanStore) -> list[Figures]:
    """Seconds of feature extraction and of clustering for the paper's scans, on all cores."""
    torch.set_num_threads(1)
    rng, recipe = np.random.default_rng(SEED), Recipe()
    n_base = of.n_patterns
    reduced = reduce_frames(of.read_frames(0, n_base), of.detector_mask, recipe)
    known = Network.load(EncoderConfig(), recipe).extract(reduced, np.ones(n_base, bool))
    rows = []
    for shape, (extraction_s, clustering_s) in PAPER.items():
        n = shape[0] * shape[1]
        folder = fresh(cache / "run")
        folder.mkdir()
        with workers(available_cores()) as started:
            store = repeated_store(cache / "table.zarr", shape, of)
            took = seconds(lambda: features_of(store, folder, started))  # noqa: B023  called here
        table = np.resize(known, (n, known.shape[1]))
        table += rng.normal(0, NOISE, table.shape).astype(np.float32)
        pca = IncrementalPCA(32).fit(table)
        X = pca.transform(table, dtype=np.float32)[:, :32]
        times = {k: seconds(lambda: kmeans(k, Config().clustering).fit(X)) for k in clustering_s}  # noqa: B023
        rows.append(
            {"shape": shape, "extraction_s": took, "clustering_s": times, "paper": (extraction_s, clustering_s)}
        )
        say(f"table 1: {rows[-1]}")
    fresh(cache / "table.zarr")
    return rows


def gpu(cache: Path, of: ScanStore, n: int, devices: str | None) -> Figures | None:
    """Patterns/s with a GPU, from a scan store and from memory, and labels beside those of CPU workers.

    In a process of its own, which may see these devices: all else is measured without them.
    """
    environment = {name: value for name, value in os.environ.items() if name != VISIBLE}
    environment |= {VISIBLE: devices} if devices is not None else {}
    command = [sys.executable, __file__, "--as-gpu", str(cache), str(of.path), str(n)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    figures: Figures | None = json.loads(done.stdout)
    return figures


def as_gpu(cache: Path, of: ScanStore, n: int) -> Figures | None:
    """The figures of `gpu`; None where there is none."""
    if not gpu_count():
        say("no GPU: left out")
        return None
    say(f"simulating {', '.join(SAME)}")
    scans = [reduced_scan(kind, "pilatus1m", SAME_SHAPE, SEED, Recipe()) for kind in SAME]
    found: Figures = {}
    labels: dict[str, list[Array]] = {}
    sizes: dict[Literal["never", "require"], BatchSize] = {"never": 32, "require": "auto"}
    for where, size in sizes.items():
        encoder = EncoderConfig(batch_size=size)
        with workers(available_cores(), where, size) as started:
            rates = []
            for _ in range(TURNS):
                store = repeated_store(cache / "gpu.zarr", (n // 32, 32), of)
                folder = fresh(cache / "run")
                folder.mkdir()
                rates.append(n / seconds(lambda: features_of(store, folder, started, encoder)))  # noqa: B023
            found[f"store_{where}"] = max(rates)
            labels[where] = [_labels(scan, started, encoder) for scan in scans]
    fresh(cache / "gpu.zarr")
    pairs = list(zip(labels["never"], labels["require"], strict=True))
    found["compared"] = sum(len(cpu) for cpu, _ in pairs)
    found["same_labels"] = sum(agreement(*pair) * len(pair[0]) for pair in pairs) / found["compared"]
    # Last, for it keeps memory of the GPU that workers would miss.
    return found | on_device(np.resize(scans[0].patterns, (n, *scans[0].patterns.shape[1:])))


def _labels(scan: ReducedScan, started: Workers, encoder: EncoderConfig) -> Array:
    """Labels of a scan at its true K, from features of one worker: a GPU's where there is one."""
    network, valid = Network.load(encoder, Recipe()), np.ones(len(scan.patterns), bool)
    features = started.client.submit(network.extract, scan.patterns, valid, resources=started.gpu).result()
    components = IncrementalPCA(Config().pca.components).fit(features)
    X = components.transform(features, dtype=np.float32)[:, : components.n_components_]
    return np.asarray(kmeans(len(np.unique(scan.domain)), Config().clustering).fit(X).labels_)


def agreement(some: Array, others: Array) -> float:
    """Share of the points with the same label, whatever the labels' names: two clusters of one size may swap them."""
    names = matched_labels(some, others, 1 + max(some.max(), others.max()))
    return float((names[some] == others).mean())


def on_device(reduced: Array) -> Figures:
    """Patterns/s on this process's device: from memory, of the encoder's parts, and as a roofline allows."""
    model, device = network_here("default", weights.digest("default"))
    precision, latent = EncoderConfig().precision, model.architecture.latent
    size = fastest_size(model.encode, (latent,), device, precision, AUTO_BATCH_SIZES[device.type])
    network, valid = Network.load(EncoderConfig(batch_size=size), Recipe()), np.ones(len(reduced), bool)
    from_memory = best_seconds(lambda: network.extract(reduced, valid), device, TURNS)
    batch = torch.from_numpy(np.resize(reduced, (size, 1, *reduced.shape[1:]))).to(device).float().div_(255)
    with arithmetic(device, precision):
        whole = best_seconds(lambda: model.encode(batch), device, TURNS)
        layers = best_seconds(lambda: model.encoder(batch), device, TURNS)
        least = limits(device, TURNS).seconds(convolutions(model, model.encoder, batch))
    return {
        "patterns": len(reduced),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "batch_size": size,
        "memory": len(reduced) / from_memory,
        "encoder": size / whole,
        "layers": size / layers,
        "roofline": size / least,
    }


# What is said of it


def promises(found: Figures) -> list[tuple[str, float, str, bool]]:
    """Each promise that was measured: what, the figure, the limit, and whether it is kept."""
    rows: list[tuple[str, float, str, bool]] = []

    def promise(what: str, figure: float, least: float | None = None, most: float | None = None) -> None:
        limit = f"≥ {least:g}" if least is not None else f"≤ {most:g}"
        kept = figure >= least if least is not None else figure <= (most or 0.0)
        rows.append((what, figure, limit, bool(kept)))

    if "pipeline" in found:
        rates = found["pipeline"]["patterns_per_s"]
        promise("one core, patterns/s", rates[1], least=LEAST_RATE)
        if "floor" in found:
            promise("one core, share of the floor", rates[1] / found["floor"]["patterns_per_s"], least=ONE_OF_FLOOR)
        for count in set(rates) - {1}:
            promise(f"{count} cores, times one", rates[count] / rates[1], least=CORES_OF_ONE * count)
    if "today" in found:
        one = found["today"]
        # Today's way keeps no copy of the frames either,
        # nor are its scores counted: the promise is of features and labels.
        promise("end to end, times today's way", one["labels_s"] / one["ours_s"], least=TIMES_TODAY)
        promise("ARI ahead of today's way", one["ours_ari"] - one["today_ari"], least=0.0)
        promise("interior ARI ahead of today's way", one["ours_ari_interior"] - one["today_ari_interior"], least=0.0)
    for which, what in ARIS.items() if "quality" in found else ():
        ahead = [one["ours"][which] - one["today"][which] for one in found["quality"].values()]
        promise(f"ARI of {what} ahead of today's way, mean over the kinds", float(np.mean(ahead)), least=0.0)
    if "scale" in found:
        large = [row for row in found["scale"] if row["patterns"] >= STEADY]
        for row in large:
            promise(f"{row['patterns']} patterns: tasks per 1,000", row["tasks_per_1000"], most=TASKS)
            promise(f"{row['patterns']} patterns: bytes of a task", row["task_bytes"], most=2**20)
            promise(f"{row['patterns']} patterns: idle share of the workers", row["idle_share"], most=IDLE)
        for name, what in (("patterns_per_s", "rate"), ("peak_GB", "peak memory")):
            if len(large) > 1:
                values = [row[name] for row in large]
                promise(f"{what}, largest / smallest over the scales", max(values) / min(values), most=1 + FLAT)
    if found.get("gpu"):
        one = found["gpu"]
        promise("GPU, from the scan store, patterns/s", one["store_require"], least=GPU_RATE)
        promise("GPU, convolutional layers, share of the roofline", one["layers"] / one["roofline"], least=OF_ROOFLINE)
        promise("GPU, labels as with CPU workers", one["same_labels"], least=SAME_LABELS)
    return rows


def page(found: Figures) -> str:
    """The figures as Markdown tables."""
    lines: list[str] = []
    if "floor" in found:
        kernels = ", ".join(f"{name} {ms:.2f} ms" for name, ms in found["floor"]["ms"].items())
        lines += [f"floor, one core: {kernels}; together {found['floor']['patterns_per_s']:.0f} patterns/s"]
        gain = f"{found['floor']['cores_of_one']:.2f} × one"
        lines += [f"floor, all {available_cores()} cores at once, nothing shared: {gain}", ""]
    for name in ("pipeline", "ingest"):
        if name in found:
            said = [f"{key}: {rate:.0f}" for key, rate in found[name]["patterns_per_s"].items()]
            lines += [f"{name}, {found[name]['patterns']} patterns, patterns/s ({CORES[name]}): " + ", ".join(said), ""]
    if "today" in found:
        one = found["today"]
        ways = (("today's way", "today"), *((f"laue-dask run {option}", name) for name, option in OURS.items()))
        said = [
            f"{way} {one[f'{key}_s']:.0f} s (ARI {one[f'{key}_ari']:.3f}, interior {one[f'{key}_ari_interior']:.3f})"
            for way, key in ways
        ]
        lines += [f"end to end, {one['patterns']} files: " + ", ".join(said)]
        ratios = f"{one['labels_s'] / one['ours_s']:.2f} × ours, with them {one['today_s'] / one['ours_s']:.2f} ×"
        lines += [f"today's way without the scores that tell which K to take: {one['labels_s']:.0f} s, {ratios}", ""]
    if "quality" in found:
        lines += ["| ARI, interior (all points) | K | laue-dask run | mixed_points: estimator | today's way |"]
        lines += ["|---|---|---|---|---|"]
        for kind, one in found["quality"].items():
            cells = [f"{one[way]['ari_interior']:.3f} ({one[way]['ari']:.3f})" for way in WAYS]
            lines.append(f"| {kind} | {one['k']} | {' | '.join(cells)} |")
        lines.append("")
    if "scale" in found:
        lines += ["| patterns | patterns/s | peak memory, GB | tasks / 1,000 | bytes of a task | workers idle |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [
            f"| {row['patterns']:,} | {row['patterns_per_s']:.0f} | {row['peak_GB']:.2f} "
            f"| {row['tasks_per_1000']:.1f} | {row['task_bytes']:,} | {row['idle_share']:.1%} |"
            for row in found["scale"]
        ]
        lines.append("")
    if "table1" in found:
        cores = available_cores()
        lines += ["| scan | | paper, s | here, s | patterns/s per core: paper | here |", "|---|---|---|---|---|---|"]
        for row in found["table1"]:
            n = row["shape"][0] * row["shape"][1]
            extraction_s, clustering_s = row["paper"]
            stages = {"extraction": (extraction_s, row["extraction_s"])}
            stages |= {f"K = {k}": (clustering_s[k], took) for k, took in row["clustering_s"].items()}
            lines += [
                f"| {row['shape'][0]} × {row['shape'][1]} | {stage} | {theirs} | {ours:.2f} | "
                f"{n / theirs / PAPER_CORES:.1f} | {n / ours / cores:.1f} |"
                for stage, (theirs, ours) in stages.items()
            ]
        lines.append("")
    if found.get("gpu"):
        one = found["gpu"]
        said = [f"{what} {one[name]:.0f}" for name, what in GPU_RATES.items()]
        lines += [f"{one['device']}, {one['patterns']} patterns, batches of {one['batch_size']}, patterns/s: "]
        lines[-1] += f"{', '.join(said)}; {one['same_labels']:.2%} of {one['compared']} labels as with CPU workers"
        lines.append("")
    kept = promises(found)
    if kept:
        lines += ["| promise | figure | limit | |", "|---|---|---|---|"]
        lines += [
            f"| {what} | {figure:.3g} | {limit} | {'kept' if ok else 'BROKEN'} |" for what, figure, limit, ok in kept
        ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "laue-dask-speed")
    parser.add_argument("--frames", type=int, default=8192, help="of the sections `pipeline`, `ingest` and `gpu`")
    parser.add_argument("--today", type=int, default=720, help="frames of the section `today`; the promise is for 6000")
    parser.add_argument("--scale", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--json", type=Path, help="all figures go there")
    parser.add_argument("--as-floor", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--as-scale", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--as-gpu", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--as-today", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_floor:
        as_floor(options.as_floor)
        return 0
    if options.as_scale:
        as_scale(*options.as_scale)
        return 0
    if options.as_today:
        as_today(*options.as_today)
        return 0
    if options.as_gpu:
        cache, of, n = options.as_gpu
        print(json.dumps(as_gpu(Path(cache), ScanStore.open(Path(of)), int(n))))
        return 0
    devices, os.environ[VISIBLE] = os.environ.get(VISIBLE), ""
    cache = options.cache.absolute()
    cache.mkdir(parents=True, exist_ok=True)
    found: Figures = {"machine": f"{platform.machine()}, {available_cores()} cores, torch {torch.__version__}"}
    try:
        files, store = base(cache)
        sections: dict[str, Callable[[], Any]] = {
            "floor": lambda: floor(store),
            "pipeline": lambda: pipeline(cache, store, options.frames),
            "ingest": lambda: ingested(cache, files, options.frames),
            "today": lambda: today(cache, files, options.today),
            "quality": lambda: quality(cache),
            "scale": lambda: scale(cache, store, options.scale),
            "table1": lambda: table1(cache, store),
            "gpu": lambda: gpu(cache, store, options.frames, devices),
        }
        for name in options.only:
            say(name)
            found[name] = sections[name]()
    except LaueDaskError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        for left in (
            "run",
            "pipeline.zarr",
            "ingest.zarr",
            "scale.zarr",
            "table.zarr",
            "gpu.zarr",
            "many",
            "todays-run",
            "quality",
        ):
            fresh(cache / left)
    print(page(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")
    return int(not all(kept for *_, kept in promises(found)))


if __name__ == "__main__":
    sys.exit(main())
