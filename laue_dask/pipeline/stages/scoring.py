"""Scores over K: how many clusters the patterns speak for (section 4.2, Figure 16)."""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import dask.array as da
import numpy as np
import xarray as xr
from distributed import Client
from numpy.typing import NDArray

from laue_dask.compute.cluster import Workers
from laue_dask.compute.plan import SILHOUETTES_PER_TASK
from laue_dask.compute.run import map_tasks
from laue_dask.config import ClusteringConfig
from laue_dask.errors import InputError
from laue_dask.io.results import ResultsWriter
from laue_dask.runtime.progress import Progress
from laue_dask.segmentation import scores
from laue_dask.segmentation.clustering import nearest, seed_sample
from laue_dask.segmentation.seeding import distinct_rows, finalists, sample_rows
from laue_dask.segmentation.selection import Repeated, repeat

SCORE_ARRAYS = (
    "score_k",
    "silhouette",
    "calinski_harabasz",
    "silhouette_draws",
    "calinski_harabasz_draws",
    "stability",
)
"""Results of the scores."""

SCORE_OPTIONS = ("score_k", "n_init", "sample", "silhouette_sample", "repeats", "seed")
"""Parameters that the scores depend on."""

TOO_FEW_WARNING = "distinct ones only"
"""How a warning ends about a K for which there are too few patterns."""


@dataclass(frozen=True)
class Scores:
    """Model-selection scores (Figure 16) and the K that they suggest.

    Attributes
    ----------
    seeds
        K → (F, K, M_PCA) float64, centres of the best partitions of the sample, the best first: where k-means of all
        patterns starts.
    repeated
        Of each K; none where repetitions are switched off.
    """

    k: tuple[int, ...] = ()
    silhouette: tuple[float, ...] = ()
    calinski_harabasz: tuple[float, ...] = ()
    suggested: tuple[int, ...] = ()
    seeds: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)
    repeated: tuple[Repeated, ...] = ()


def score(
    samples: da.Array,
    config: ClusteringConfig,
    *,
    workers: Workers | None,
    progress: Progress,
) -> Scores:
    """Return the silhouette and Calinski-Harabasz of k-means over K on a sample, one task per K (section 4.2, Figure
    16).

    The K asked for are scored as well, but only the configured range suggests a K: peaks need neighbours. Repeated
    fits tell how far the scores scatter and whether a partition is found again.

    Parameters
    ----------
    samples : (n, M_PCA) float32
        Components of the valid patterns.
    workers
        None for threads of this process.
    """
    first, last = config.score_k
    rows = sample_rows(samples.shape[0], config.sample, config.seed)
    sample = np.asarray(samples[rows].compute())
    distinct = len(distinct_rows(sample))
    values = [k for k in sorted({*range(first, last + 1), *config.k}) if k < distinct]
    if not values:
        return Scores()
    client = workers.client if workers else None
    with progress.stage("scores", total=len(values), unit="K") as advance:
        found = map_tasks(_partition, values, (sample, config), client=client, on_done=lambda k: advance(1))
        silhouette = _silhouettes(sample, [one.labels for one in found], config, client)
    calinski_harabasz = [one.calinski_harabasz for one in found]
    near = slice(bisect_left(values, first), bisect_right(values, last))
    suggested = scores.suggest_k(values[near], silhouette[near], calinski_harabasz[near])
    # A larger K is sought on a larger sample, where there is one.
    seeds = {
        k: one.centers
        for k, one in zip(values, found, strict=True)
        if len(sample_rows(samples.shape[0], seed_sample(config.sample, k), config.seed)) == len(sample)
    }
    repeated = tuple(one.repeated for one in found if one.repeated is not None)
    return Scores(tuple(values), tuple(silhouette), tuple(calinski_harabasz), suggested, seeds, repeated)


def same_scores(before: ClusteringConfig, now: ClusteringConfig) -> bool:
    """Return whether scores made with one configuration are those of the other."""
    return all(getattr(before, name) == getattr(now, name) for name in SCORE_OPTIONS)


def read_scores(dataset: xr.Dataset, suggested: Sequence[int]) -> Scores:
    """Return the scores of a results store, without seeds."""
    names = ("score_k", "silhouette", "calinski_harabasz")
    k, silhouette, calinski_harabasz = (tuple(dataset[name].values.tolist()) for name in names)
    repeated: tuple[Repeated, ...] = ()
    if "stability" in dataset:
        draws = (dataset[name].values for name in ("silhouette_draws", "calinski_harabasz_draws"))
        columns = zip(k, *draws, dataset["stability"].values.tolist(), strict=True)
        repeated = tuple(Repeated(i, s[np.isfinite(s)], ch[np.isfinite(ch)], steady) for i, s, ch, steady in columns)
    return Scores(k, silhouette, calinski_harabasz, tuple(suggested), repeated=repeated)


def write_scores(found: Scores, results: ResultsWriter) -> None:
    """Write the scores."""
    results.put("score_k", np.asarray(found.k, dtype=np.int32))
    results.put("silhouette", np.asarray(found.silhouette))
    results.put("calinski_harabasz", np.asarray(found.calinski_harabasz))
    if found.repeated:
        for name in ("silhouette", "calinski_harabasz"):
            results.put(f"{name}_draws", _side_by_side([getattr(one, name) for one in found.repeated]))
        results.put("stability", np.array([one.stability for one in found.repeated]))


def _side_by_side(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Rows of one length, those that are shorter padded with NaN."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return table


@dataclass(frozen=True)
class _Partition:
    """The best partition of the sample into some K clusters.

    Attributes
    ----------
    labels
        (s,) int32.
    centers
        (F, K, M_PCA), of the best partitions, the best first.
    """

    labels: NDArray[np.int32]
    centers: NDArray[np.float64]
    calinski_harabasz: float
    repeated: Repeated | None


def _partition(k: int, sample: NDArray[np.float32], config: ClusteringConfig) -> _Partition:
    centers = np.array(finalists(sample, k, n_init=config.n_init, seed=config.seed))
    labels = nearest(sample, centers[0])
    again = repeat(sample, k, draws=config.repeats, seed=config.seed) if config.repeats else None
    return _Partition(labels, centers, scores.calinski_harabasz(sample, labels), again)


def _silhouettes(
    sample: NDArray[np.float32], labelings: list[NDArray[np.int32]], config: ClusteringConfig, client: Client | None
) -> list[float]:
    """Mean silhouette coefficient of each partition; where all of the sample counts, distances serve them all."""
    if len(sample) > config.silhouette_sample:
        return map_tasks(_silhouette, labelings, (sample, config), client=client)
    parts = range(0, len(sample), SILHOUETTES_PER_TASK)
    sums = map_tasks(_sum_of_silhouettes, parts, (sample, labelings), client=client)
    return [float(total) for total in np.sum(sums, axis=0) / len(sample)]


def _silhouette(labels: NDArray[np.int32], sample: NDArray[np.float32], config: ClusteringConfig) -> float:
    return scores.silhouette(sample, labels, size=config.silhouette_sample, seed=config.seed)


def _sum_of_silhouettes(
    start: int, sample: NDArray[np.float32], labelings: list[NDArray[np.int32]]
) -> NDArray[np.float64]:
    rows = slice(start, start + SILHOUETTES_PER_TASK)
    return np.asarray(scores.silhouette_samples(sample, labelings, rows).sum(axis=1))


def possible(k_values: Collection[int], samples: da.Array) -> tuple[list[int], list[str]]:
    """Return which K can be had of samples (n, M_PCA), in order, and a line for each that cannot; K = 2 where none is
    wanted.

    Raises
    ------
    InputError
        All samples are the same.
    """
    wanted = sorted(k_values) or [2]
    distinct = _distinct(samples, max(wanted))
    if distinct < 2:
        raise InputError(f"all {samples.shape[0]} usable patterns have the same features: there is nothing to segment")
    left_out = [
        f"K = {k}: left out, because the {samples.shape[0]} usable patterns fall into {distinct} {TOO_FEW_WARNING}"
        for k in wanted
        if k > distinct
    ]
    return [k for k in wanted if k <= distinct] or [distinct], left_out


def _distinct(samples: da.Array, enough: int) -> int:
    """Number of distinct rows, of which no more than `enough` are looked for; nearly always they are in one block."""
    known = np.empty((0, samples.shape[1]), dtype=samples.dtype)
    for block in range(samples.numblocks[0]):
        rows = np.concatenate([known, np.asarray(samples.blocks[block].compute())])
        known = rows[distinct_rows(rows)]
        if len(known) >= enough:
            break
    return len(known)
