#!/usr/bin/env python
"""Promises of PCA and k-means on generated problems, and how long the sweep over K takes.

Usage: .venv/bin/python scripts/benchmark_clustering.py [--problems 200] [--skip promises sweep] [--large]

promises  on each problem: inertia true to 1e-6, within 1 % of scikit-learn's (n_init=10, another seed), the same label
          map for five chunk layouts, no empty cluster; PCA within 1e-10 of a float64 full SVD for any chunking. Every
          fourth problem is forced out of core: small blocks, and seeds from half of the rows.
sweep     K = 2…20 on 100,000 × 32 features, scored on a sample and refined on all rows, against scikit-learn's
          k-means (n_init=10) of all rows; processor time of one thread each.
--large   2,000,000 × 256 float32 features (2 GB) in Zarr through PCA and k-means (K = 6), workers of 1 GB each:
          nothing may be spilled, no worker may hold more or die, the clumps must be found. Needs 4 GB of disk in the
          system's temporary folder.

Exit code 1 if a promise is broken.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import dask.array as da
import numpy as np
import zarr
from sklearn.cluster import KMeans as Reference
from threadpoolctl import threadpool_limits

from laue_dask.compute import cluster
from laue_dask.config import ClusteringConfig, LocalWorkersConfig
from laue_dask.segmentation import clustering, pca
from laue_dask.segmentation.clustering import KMeans, cluster_moments, nearest
from laue_dask.segmentation.pca import IncrementalPCA
from laue_dask.segmentation.seeding import sample_rows, search

# What only `sweep` needs is imported there: every worker of `--large` imports this module, and its memory is tested.
LAYOUTS = 5
SWEPT = range(2, 21)
K_LARGE = 6
LIMIT = 10**9
"""Bytes of memory of a worker of the large run."""


def generated(seed: int) -> tuple[np.ndarray, int]:
    """A table of float32 and a K: clumps of unequal size and spread, heavy tails, uniform rows or a coarse grid."""
    rng = np.random.default_rng(seed)
    n, m = int(10 ** rng.uniform(2.3, 3.6)), int(2 ** rng.uniform(1, 5))
    clumps = int(rng.integers(2, 30))
    of = rng.choice(clumps, size=n, p=rng.dirichlet(np.full(clumps, rng.choice([0.3, 1, 10]))))
    X = rng.normal(size=(clumps, m))[of] * rng.choice([0.5, 1, 2, 8])
    X += rng.normal(size=(n, m)) * rng.uniform(0.2, 2, size=(clumps, 1))[of]
    kind = rng.integers(4)
    if kind == 1:
        X = rng.uniform(size=(n, m))
    elif kind == 2:
        X += 0.1 * rng.standard_t(2, size=(n, m))
    elif kind == 3:
        X = np.round(X)
    X = (X * 10.0 ** rng.uniform(-3, 3)).astype(np.float32)
    kinds = len(np.unique(X, axis=0))
    return X, int(min(rng.integers(2, 21), max(2, n // 20), kinds))


def layouts(shape: tuple[int, int], seed: int) -> list[Any]:
    """Chunkings of a table: whole, and random ones."""
    rng = np.random.default_rng(seed)
    return [shape, *([int(rng.integers(max(1, size // 9), size + 1)) for size in shape] for _ in range(LAYOUTS - 1))]


def promises(problems: int) -> list[str]:
    broken, ratios, errors, gaps = [], [], [], []
    for seed in range(problems):
        X, k = generated(seed)
        outside = seed % 4 == 0
        with (
            mock.patch.object(clustering, "MAX_IN_MEMORY_VALUES", 0 if outside else clustering.MAX_IN_MEMORY_VALUES),
            mock.patch.object(clustering, "block_rows", return_value=1000),
            mock.patch.object(pca, "block_rows", return_value=1000),
        ):
            sample = max(10 * k, len(X) // 2) if outside else 20_000
            tables = [da.from_array(X, chunks=chunks) for chunks in layouts(X.shape, seed)]
            fits = [KMeans(k, sample=sample).fit(table) for table in tables]
            spectra = [IncrementalPCA().fit(table).explained_variance_ for table in tables]
        labels, centers = fits[0].labels_, fits[0].cluster_centers_
        true = float(((X - centers[labels]).astype(np.float64) ** 2).sum())
        reference = Reference(k, n_init=10, random_state=seed + 1_000_000).fit(X)
        best = float(cluster_moments(X, reference.labels_, k).ssd.sum())
        rows = X.astype(np.float64)
        singular = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
        variance = np.zeros(X.shape[1])
        variance[: len(singular)] = singular**2 / (len(X) - 1)
        errors.append(abs(fits[0].inertia_ - true) / max(true, 1e-300))
        ratios.append(fits[0].inertia_ / best if best else 1.0)
        gaps.append(max(float(np.abs(found - variance).max()) for found in spectra) / variance[0])
        where = f"problem {seed} ({len(X)} × {X.shape[1]}, K = {k}{', out of core' if outside else ''})"
        if errors[-1] > 1e-6:
            broken.append(f"{where}: inertia {fits[0].inertia_} is not {true}")
        if ratios[-1] > 1.01:
            broken.append(f"{where}: inertia {ratios[-1]:.4f} × scikit-learn's")
        if not all(np.array_equal(labels, fit.labels_) for fit in fits):
            broken.append(f"{where}: labels depend on the chunks")
        if np.bincount(labels, minlength=k).min() == 0:
            broken.append(f"{where}: an empty cluster")
        if gaps[-1] > 1e-10:
            broken.append(f"{where}: PCA {gaps[-1]:.1e} off")
    print(f"promises on {problems} problems: {len(broken)} broken")
    print(f"  k-means: inertia / scikit-learn's: median {np.median(ratios):.4f}, largest {max(ratios):.4f}")
    print(f"  k-means: inertia true to {max(errors):.1e}; PCA to {max(gaps):.1e}, of the largest variance")
    return broken


def clumps(n: int, m: int, k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(k, m))[rng.integers(k, size=n)] + rng.normal(size=(n, m))).astype(np.float32)


def sweep() -> list[str]:
    from laue_dask.segmentation.scores import calinski_harabasz, silhouette_samples

    X = clumps(100_000, 32, 12)
    config = ClusteringConfig()
    sample = X[sample_rows(len(X), config.sample, config.seed)]
    seconds, ratios, labelings = np.zeros(3), [], []
    print(f"sweep of K = {SWEPT[0]} to {SWEPT[-1]} ({len(SWEPT)}) on 100,000 × 32, processor time of one thread:")
    print("    K   on the sample   on all rows   scikit-learn   inertia / scikit-learn's", flush=True)
    # processor time of one thread each: what else the machine does has no say
    with threadpool_limits(1):
        for k in SWEPT:
            begun = time.process_time()
            seeds = search(sample, k, n_init=config.n_init, seed=config.seed)
            labelings.append(nearest(sample, seeds))
            calinski_harabasz(sample, labelings[-1])
            scored = time.process_time()
            refined = KMeans(k, init=seeds).fit(X).inertia_
            done = time.process_time()
            reference = Reference(k, n_init=10, random_state=1).fit(X).inertia_
            taken = np.diff([begun, scored, done, time.process_time()])
            seconds += taken
            ratios.append(refined / reference)
            print(f"  {k:3d}   {taken[0]:11.2f} s {taken[1]:11.2f} s {taken[2]:12.2f} s   {ratios[-1]:.4f}", flush=True)
        begun = time.process_time()
        silhouette_samples(sample, labelings)  # of all K at once
        seconds[0] += time.process_time() - begun
    on_sample, on_all, theirs = seconds
    print(f"  scikit-learn, all rows, n_init=10   {theirs:6.1f} s")
    print(f"  ours, on the sample, with scores    {on_sample:6.1f} s  ({on_sample / theirs:.2f} ×)")
    print(f"  and refined on all rows             {on_sample + on_all:6.1f} s  ({(on_sample + on_all) / theirs:.2f} ×)")
    print(f"  inertia, ours / scikit-learn's      {min(ratios):.4f} to {max(ratios):.4f}", flush=True)
    broken = [] if on_sample + on_all <= 3 * theirs else [f"sweep: {(on_sample + on_all) / theirs:.2f} × the time"]
    return broken + ([] if max(ratios) <= 1.01 else [f"sweep: inertia {max(ratios):.4f} × scikit-learn's"])


def large(n: int, m: int = 256) -> list[str]:
    block = 512  # patterns, as a run writes them
    centers = np.random.default_rng(0).standard_normal((K_LARGE, m), dtype=np.float32)

    with tempfile.TemporaryDirectory() as folder:
        array = zarr.create_array(f"{folder}/features.zarr", shape=(n, m), chunks=(block, m), dtype="float32")
        begun = time.perf_counter()
        for i in range(-(-n // block)):
            rng, size = np.random.default_rng(i), min(block, n - block * i)
            noise = rng.standard_normal((size, m), dtype=np.float32)
            array[i * block : i * block + size] = centers[rng.integers(K_LARGE, size=size)] + noise
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        written = time.perf_counter() - begun
        print(f"large: {n:,} × {m} float32, {size / 1e9:.2f} GB on disk, written in {written:.0f} s", flush=True)
        with cluster.start(LocalWorkersConfig(count=2, memory=f"{LIMIT}B", gpu="never")) as workers:
            workers.client.run(_encode)
            before = _workers(workers.client)
            features = da.from_zarr(array, chunks=(pca.block_rows(m), m))
            begun = time.perf_counter()
            fitted = IncrementalPCA().fit(features)
            components = zarr.create_array(
                f"{folder}/components.zarr", shape=(n, m), chunks=(block, m), dtype="float32"
            )
            da.store(fitted.transform(features, dtype=np.float32), components, lock=False)  # a block is whole chunks
            middle = time.perf_counter()
            print(f"  PCA and transformation              {middle - begun:6.0f} s", flush=True)
            found = KMeans(K_LARGE).fit(da.from_zarr(components, chunks=(pca.block_rows(m), m)))
            done = time.perf_counter()
            after = _workers(workers.client)
            spilled = sum(workers.client.run(_spilled).values())
            peaks = workers.client.run(_peak).values()
        sizes, inertia = np.bincount(found.labels_), found.inertia_ / (n * m)
        print(f"  k-means, K = {K_LARGE}, all components     {done - middle:6.0f} s, {found.n_iter_} steps")
        print(f"  sizes                               {sizes.tolist()}, inertia {inertia:.4f} per value of noise 1")
        limits = [f"{limit / 1e6:.0f} MB" for limit in after.values()]
        print(f"  memory: limits of the workers       {limits}, peaks {[f'{peak / 1e6:.0f} MB' for peak in peaks]}")
        print(f"  spilled                             {spilled} bytes", flush=True)
    broken = [] if spilled == 0 else [f"large: {spilled} bytes were spilled"]
    if set(after.values()) != {LIMIT}:
        broken.append(f"large: the workers' limits are {sorted(after.values())} bytes, not {LIMIT}")
    if before != after:
        broken.append("large: a worker died on the way")
    if max(peaks) > LIMIT:
        broken.append(f"large: a worker held {max(peaks) / 1e6:.0f} MB")
    if not (0.99 < inertia < 1.01):
        broken.append(f"large: the clumps were not found: inertia {inertia:.4f} per value of noise 1")
    return broken


def _encode() -> None:
    """What a run's workers have done before: they hold PyTorch and the network."""
    from laue_dask.config import EncoderConfig
    from laue_dask.features.encode import Network

    Network.load(EncoderConfig()).extract(np.zeros((1, 128, 128), np.uint8), np.ones(1, bool))


def _workers(client: Any) -> dict[str, int]:
    """Memory limit in bytes of each worker, by its address, which a worker that takes a dead one's place has not."""
    workers = client.scheduler_info(n_workers=-1)["workers"].items()
    return {address: int(worker["memory_limit"]) for address, worker in workers}


def _spilled(dask_worker: Any) -> int:
    """Bytes that a worker has written to its spill folder since it started."""
    total = sum(value for key, value in dask_worker.digests_total.items() if "disk-write" in str(key))
    return int(total) + int(sum(dask_worker.data.spilled_total))


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--skip", nargs="*", default=[], choices=("promises", "sweep"))
    parser.add_argument("--large", nargs="?", type=int, const=2_000_000, metavar="ROWS")
    options = parser.parse_args()
    broken: list[str] = []
    if "promises" not in options.skip:
        broken += promises(options.problems)
    if "sweep" not in options.skip:
        broken += sweep()
    if options.large:
        broken += large(options.large)
    for line in broken:
        print("broken:", line)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
