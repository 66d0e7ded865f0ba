"""Features → components, scores, segmentations and label maps: everything after the encoder.

All of it works on blocks of a feature table on disk, so a scan's size is no limit; all of it is small beside reading
the frames.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from distributed import Client
from numpy.typing import NDArray

from laue_dask.compute.cluster import Workers
from laue_dask.compute.plan import SILHOUETTES_PER_TASK
from laue_dask.compute.run import complete, map_tasks, write_array
from laue_dask.config import ClusteringConfig, PCAConfig, Recipe
from laue_dask.errors import InputError
from laue_dask.io import stored
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline.stages.delegates import NOT_KNOWN, RANKS, Chooser, of_two_domains, with_delegates
from laue_dask.pipeline.stages.specimen import Map, usable
from laue_dask.pipeline.stages.straddling import Labels, Patterns, kept_as_found, share_out
from laue_dask.runtime.progress import Progress
from laue_dask.segmentation import labeling, scores
from laue_dask.segmentation.clustering import KMeans, nearest, seed_sample
from laue_dask.segmentation.estimators import FINDS_K, MIXTURE_STEPS, DensityClusters, Estimator, Mixture, Modes
from laue_dask.segmentation.pca import IncrementalPCA, choose_components
from laue_dask.segmentation.seeding import distinct_rows, finalists, sample_rows
from laue_dask.segmentation.selection import Repeated, repeat
from laue_dask.segmentation.smoothing import potts

SPECTRUM = ("explained_variance", "explained_variance_ratio")
SCORES = ("score_k", "silhouette", "calinski_harabasz", "silhouette_draws", "calinski_harabasz_draws", "stability")
MAPS = ("k", "n_clusters", "labels", "distance_to_centroid", "pca_rgb", "centroids", "delegate")
CHOSEN = ("delegates", "delegates_mixed")
"""Results of the transformation, of the scores and of the segmentations; earlier runs lack the last ones."""

SCORED_WITH = ("score_k", "n_init", "sample", "silhouette_sample", "repeats", "seed")
CLUSTERED_WITH = ("estimator", "n_init", "sample", "seed", "min_cluster_size", "bandwidth", "straddling", "smoothing")
"""Parameters that the scores, and a segmentation of a given K, depend on."""

PROVISIONAL, TOO_FEW = "its labels are provisional", "distinct ones only"
"""How warnings end about an estimator that did not converge, and about a K for which there are too few patterns."""


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


@dataclass(frozen=True)
class Segmentation:
    """One segmentation (Definition 8) and its maps; names are those of `laue_dask.schema.RESULTS`.

    Attributes
    ----------
    k
        K asked for, or found by an estimator that finds it itself.
    n_clusters
        Clusters that own patterns: the effective clusters of a mixture, which may be fewer.
    converged
        Whether the estimator came to its end.
    delegates, delegates_mixed
        (K, ranks) of `stages.delegates`; None of what was made before there were such.
    """

    k: int
    n_clusters: int
    labels: NDArray[np.int32]
    distance_to_centroid: NDArray[np.float32]
    pca_rgb: NDArray[np.uint8]
    centroids: NDArray[np.float32]
    delegate: NDArray[np.int64]
    converged: bool = True
    delegates: NDArray[np.int64] | None = None
    delegates_mixed: NDArray[np.int8] | None = None


def transform(
    features: da.Array,
    config: PCAConfig,
    results: ResultsWriter,
    *,
    key: str,
    workers: Workers,
    progress: Progress,
    pca: IncrementalPCA | None = None,
    known: bool = False,
    tell: Callable[[bool], None] = lambda kept: None,
) -> tuple[da.Array, int]:
    """PCA transformation (section 3.2): all components are kept, `n_components_` of them are used.

    Parameters
    ----------
    pca
        Fitted to these features and those of other scans; by default it is fitted to these.
    known
        Whether the spectrum among the run's last results is that of these features.
    tell
        Called with whether all components were there, before any is made.

    Returns
    -------
    components : (pattern, M_AE) float32
        On disk, lazy; NaN where there are no features.
    m_pca
        How many of them are used.
    """
    array = results.blocks("components", features.shape, block=features.chunks[0][0], key=key)
    kept = complete(array)
    tell(kept)
    if kept and known and pca is None:
        ratio = [results.keep(name) for name in SPECTRUM][-1]
        m_pca = choose_components(np.asarray(ratio[...]), config.components)
    else:
        pca = pca or IncrementalPCA(n_components=config.components).fit(features)
        lazy = pca.transform(features, dtype=np.float32)
        write_array(lazy, array, stage="components", client=workers.client, progress=progress)
        for name in SPECTRUM:
            results.put(name, getattr(pca, f"{name}_"))
        m_pca = int(pca.n_components_)
    array.attrs["m_pca"] = m_pca
    return stored.lazy(array), m_pca


def score(
    samples: da.Array,
    config: ClusteringConfig,
    results: ResultsWriter,
    *,
    workers: Workers | None,
    progress: Progress,
) -> Scores:
    """Silhouette and Calinski-Harabasz of k-means over K on a sample, one task per K (section 4.2, Figure 16).

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
        return put_scores(Scores(), results)
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
    return put_scores(
        Scores(tuple(values), tuple(silhouette), tuple(calinski_harabasz), suggested, seeds, repeated), results
    )


def same_scores(before: ClusteringConfig, now: ClusteringConfig) -> bool:
    """Whether scores made with one configuration are those of the other."""
    return all(getattr(before, name) == getattr(now, name) for name in SCORED_WITH)


def read_scores(dataset: xr.Dataset, suggested: Sequence[int]) -> Scores:
    """Scores of a results store, without seeds."""
    names = ("score_k", "silhouette", "calinski_harabasz")
    k, silhouette, calinski_harabasz = (tuple(dataset[name].values.tolist()) for name in names)
    repeated: tuple[Repeated, ...] = ()
    if "stability" in dataset:
        draws = (dataset[name].values for name in ("silhouette_draws", "calinski_harabasz_draws"))
        columns = zip(k, *draws, dataset["stability"].values.tolist(), strict=True)
        repeated = tuple(Repeated(i, s[np.isfinite(s)], ch[np.isfinite(ch)], steady) for i, s, ch, steady in columns)
    return Scores(k, silhouette, calinski_harabasz, tuple(suggested), repeated=repeated)


def warnings_of(found: Sequence[Segmentation], config: ClusteringConfig, recipe: Recipe) -> list[str]:
    """One line for each segmentation whose estimator did not come to its end, whose points were not shared out, or that
    has clusters without a member that lies in one domain.
    """
    lines = [
        f"{config.estimator} of K = {one.k} did not converge in {MIXTURE_STEPS} steps: {PROVISIONAL}"
        for one in found
        if not one.converged
    ]
    if config.straddling == "share":
        lines += kept_as_found([(one.k, one.n_clusters) for one in found], recipe)
    return lines + of_two_domains(found)


def put_scores(found: Scores, results: ResultsWriter) -> Scores:
    """Write the scores and give them back."""
    results.put("score_k", np.asarray(found.k, dtype=np.int32))
    results.put("silhouette", np.asarray(found.silhouette))
    results.put("calinski_harabasz", np.asarray(found.calinski_harabasz))
    if found.repeated:
        for name in ("silhouette", "calinski_harabasz"):
            results.put(f"{name}_draws", _side_by_side([getattr(one, name) for one in found.repeated]))
        results.put("stability", np.array([one.stability for one in found.repeated]))
    return found


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
    """Which K can be had of samples (n, M_PCA), in order, and a line for each that cannot; K = 2 where none is wanted.

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
        f"K = {k}: left out, the {samples.shape[0]} usable patterns fall into {distinct} {TOO_FEW}"
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


def segment(
    components: da.Array,
    m_pca: int,
    where: Map,
    k_values: Sequence[int],
    config: ClusteringConfig,
    results: ResultsWriter,
    *,
    progress: Progress,
    seeds: Mapping[int, NDArray[np.float64]] | None = None,
    known: Mapping[int, Segmentation] | None = None,
    patterns: Patterns | None = None,
    client: Client | None = None,
) -> list[Segmentation]:
    """Cluster, label and choose delegates for every K, and write all maps (sections 4.1 and 4.2).

    Parameters
    ----------
    k_values
        Without a meaning for an estimator that finds K itself: that makes one segmentation.
    seeds
        See `Scores`.
    known
        K → segmentation by the same estimator of the same components, which is taken over.
    patterns
        What tells the shares of points that straddle two domains; without, labels are the estimator's.
    client
        Of workers that read these; None for threads of this process.

    Raises
    ------
    InputError
        A K exceeds the number of distinct patterns, or the estimator finds no clusters.
    """
    samples = usable(components, where)
    found = clusters(
        samples,
        m_pca,
        where,
        k_values,
        config,
        progress=progress,
        seeds=seeds,
        known=known,
        patterns=patterns,
        client=client,
    )
    kept = {id(one) for one in (known or {}).values()}
    new = [i for i, one in enumerate(found) if id(one) not in kept]
    if new:
        with progress.stage("delegates", total=len(new), unit="K") as advance:
            chooser = Chooser(samples[:, :m_pca], where, patterns, client=client)
            for i in new:
                found[i] = with_delegates(found[i], chooser, where, m_pca)
                advance(1)
    put(found, components.shape[1], results)
    return found


def clusters(
    samples: da.Array,
    m_pca: int,
    where: Map,
    k_values: Sequence[int | None],
    config: ClusteringConfig,
    *,
    progress: Progress,
    seeds: Mapping[int, NDArray[np.float64]] | None = None,
    known: Mapping[int, Segmentation] | None = None,
    patterns: Patterns | None = None,
    client: Client | None = None,
) -> list[Segmentation]:
    """One segmentation for every K of the valid patterns' components, (n, M_AE); see `segment`."""
    used, known = samples[:, :m_pca], known or {}
    wanted: Sequence[int | None] = k_values
    found: dict[int | None, Segmentation] = dict(known.items())
    if config.estimator in FINDS_K:  # it has found one
        wanted, found = [None], dict(zip([None], known.values(), strict=False))
    missing = [k for k in wanted if k not in found]
    if not missing:
        return [found[k] for k in wanted]
    natural, converged = [], []
    with progress.stage("segment", total=len(missing), unit="K") as advance:
        for k in missing:
            one = estimator_of(k, config, seeds=seeds).fit(used)
            natural.append(Labels(np.asarray(one.labels_, dtype=np.int32), one.n_clusters_))
            converged.append(getattr(one, "converged_", True))
            if config.smoothing:
                natural[-1] = _smoothed(used, natural[-1], where, config.smoothing)
            advance(1)
    if patterns is not None and config.straddling == "share":
        natural = share_out(used, natural, patterns, client=client, progress=progress)
    with progress.stage("maps", total=len(missing), unit="K") as advance:
        for k, labels, done in zip(missing, natural, converged, strict=True):
            found[k] = _mapped(samples, m_pca, where, k, labels, converged=done)
            advance(1)
    return [found[k] for k in wanted]


def _smoothed(used: da.Array, found: Labels, where: Map, weight: float) -> Labels:
    """Labels of a smoother map; a cluster of isolated points may be gone."""
    means = labeling.centroids(used, found.labels, found.n_clusters)
    smooth = potts(used, found.labels, means, valid=where.valid, shape=where.shape, weight=weight)
    labels = labeling.by_size(smooth)
    return Labels(labels, int(labels.max()) + 1)


def _mapped(
    samples: da.Array, m_pca: int, where: Map, k: int | None, found: Labels, *, converged: bool
) -> Segmentation:
    """Maps, centroids and delegates of labels."""
    natural, used = found.labels, samples[:, :m_pca]
    centres = labeling.centroids(samples, natural, found.n_clusters)
    apart = labeling.distances(used, natural, centres[:, :m_pca])
    return Segmentation(
        k=k or found.n_clusters,
        n_clusters=found.n_clusters,
        labels=where.paint(natural, fill=np.int32(-1)),
        distance_to_centroid=where.paint(apart, fill=np.float32(np.nan)),
        pca_rgb=where.paint(labeling.pca_rgb(centres[:, :m_pca])[natural], fill=np.uint8(0)),
        centroids=centres,
        delegate=where.patterns[labeling.delegates(used, natural, centres[:, :m_pca])],
        converged=converged,
    )


def put(found: Sequence[Segmentation], width: int, results: ResultsWriter) -> None:
    """Write segmentations side by side, those of fewer clusters padded."""
    widest = max(one.k for one in found)
    results.group.attrs["provisional"] = [one.k for one in found if not one.converged]
    centroids = np.full((len(found), widest, width), np.nan, dtype=np.float32)
    delegate = np.full((len(found), widest), -1, dtype=np.int64)
    for i, one in enumerate(found):
        centroids[i, : one.n_clusters] = one.centroids
        delegate[i, : one.n_clusters] = one.delegate
    results.put("k", np.asarray([one.k for one in found], dtype=np.int32))
    results.put("n_clusters", np.asarray([one.n_clusters for one in found], dtype=np.int32))
    for name in ("labels", "distance_to_centroid", "pca_rgb"):
        results.put(name, np.stack([getattr(one, name) for one in found]))
    results.put("centroids", centroids)
    results.put("delegate", delegate)
    if any(one.delegates is not None for one in found):
        shape = (len(found), widest, RANKS)
        delegates, mixed = np.full(shape, -1, np.int64), np.full(shape, NOT_KNOWN, np.int8)
        for i, one in enumerate(found):
            if one.delegates is not None and one.delegates_mixed is not None:
                delegates[i, : one.n_clusters], mixed[i, : one.n_clusters] = one.delegates, one.delegates_mixed
        results.put("delegates", delegates)
        results.put("delegates_mixed", mixed)


def read(dataset: xr.Dataset) -> dict[int, Segmentation]:
    """Segmentations of a results store, by K."""
    found = {}
    for k in (int(value) for value in dataset["k"].values):
        one = dataset.sel(k=k)
        n_clusters = int(one["n_clusters"]) if "n_clusters" in one else k
        maps: dict[str, Any] = {name: one[name].values for name in ("labels", "distance_to_centroid", "pca_rgb")}
        centroids, delegate = one["centroids"].values[:n_clusters], one["delegate"].values[:n_clusters]
        converged = k not in dataset.attrs.get("provisional", ())
        if set(CHOSEN) <= set(one.variables) and (one["delegates"].values >= 0).any():
            maps |= {name: one[name].values[:n_clusters] for name in CHOSEN}
        found[k] = Segmentation(
            k=k, n_clusters=n_clusters, centroids=centroids, delegate=delegate, converged=converged, **maps
        )
    return found


def estimator_of(
    k: int | None, config: ClusteringConfig, *, seeds: Mapping[int, NDArray[np.float64]] | None = None
) -> Estimator:
    """The configured estimator, not yet fitted; `k` is None for one that finds the number of clusters itself."""
    common = {"sample": config.sample, "random_state": config.seed}
    match config.estimator:
        case "hdbscan":
            return DensityClusters(min_cluster_size=config.min_cluster_size, **common)
        case "mean_shift":
            return Modes(bandwidth=config.bandwidth, **common)
    if k is None:
        raise ValueError(f"{config.estimator} needs the number of clusters")
    if config.estimator == "kmeans":
        return kmeans(k, config, init=(seeds or {}).get(k))
    return Mixture(k, bayesian=config.estimator == "bgm", n_init=config.n_init, **common)


def kmeans(k: int, config: ClusteringConfig, *, init: NDArray[np.float64] | None = None) -> KMeans:
    """K-means into K clusters as configured, not yet fitted."""
    return KMeans(k, n_init=config.n_init, init=init, sample=config.sample, random_state=config.seed)


def write_direct_colouring(components: da.Array, where: Map, results: ResultsWriter) -> None:
    """Direct colouring (Definition 12): the first three components of every pattern as red, green and blue."""
    leading = np.asarray(usable(components[:, :3], where).compute())
    results.put("direct_rgb", where.paint(labeling.direct_rgb(leading), fill=np.uint8(0)))
