"""Components → segmentations and label maps (sections 4.1 and 4.2 of the paper), of one scan or of several together.

All of it works on blocks of a table on disk, so a scan's size is no limit; all of it is small beside reading frames.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from distributed import Client
from numpy.typing import NDArray

from laue_dask.config import ClusteringConfig, Recipe
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline.stages.delegates import DOMAINS_UNKNOWN, N_RANKS, two_domain_warnings
from laue_dask.pipeline.stages.label_maps import Segmentation as Segmentation
from laue_dask.pipeline.stages.mixed_points import Labels, Patterns, not_relabelled_warnings, relabel_mixed_points
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.pipeline.stages.tables import Table, choosers, divide, patterns_of, samples_of, together
from laue_dask.runtime.progress import Progress
from laue_dask.segmentation import labeling
from laue_dask.segmentation.clustering import KMeans
from laue_dask.segmentation.estimators import (
    ESTIMATORS_FINDING_K,
    MAX_MIXTURE_STEPS,
    DensityClusters,
    Estimator,
    GaussianMixtureClusters,
    MeanShiftClusters,
)
from laue_dask.segmentation.smoothing import potts

SEGMENTATION_ARRAYS = ("k", "n_clusters", "labels", "distance_to_centroid", "pca_rgb", "centroids", "delegate")
DELEGATE_ARRAYS = ("delegates", "delegates_mixed")
"""Results of the segmentations; earlier runs lack the last ones."""

CLUSTERING_OPTIONS = (
    "estimator",
    "n_init",
    "sample",
    "seed",
    "min_cluster_size",
    "bandwidth",
    "mixed_points",
    "smoothing",
)
"""Parameters that a segmentation of a given K depends on."""

NOT_CONVERGED_WARNING = "its labels are provisional"
"""How a warning ends about an estimator that did not converge."""


def segment(
    tables: Sequence[Table],
    m_pca: int,
    k_values: Sequence[int],
    config: ClusteringConfig,
    recipe: Recipe,
    *,
    progress: Progress,
    seeds: Mapping[int, NDArray[np.float64]] | None = None,
    known: Sequence[Mapping[int, Segmentation]] = (),
    client: Client | None = None,
) -> list[list[Segmentation]]:
    """Cluster, label and choose delegates for every K, and write all maps (sections 4.1 and 4.2).

    Parameters
    ----------
    tables
        Of the scans that are segmented together.
    k_values
        Without a meaning for an estimator that finds K itself: that makes one segmentation.
    recipe
        By which the patterns were reduced, which tell the shares of points that straddle two domains.
    seeds
        See `scoring.Scores`.
    known
        Of each scan, K → segmentation by the same estimator of the same components, which is taken over.
    client
        Of workers that read the patterns; None for threads of this process.

    Returns
    -------
    segmentations
        Of each scan, in the order of K.

    Raises
    ------
    InputError
        A K exceeds the number of distinct patterns, or the estimator finds no clusters.
    """
    known = known or [{} for _ in tables]
    wanted: list[int | None] = list(k_values)
    found: list[dict[int | None, Segmentation]] = [dict(one.items()) for one in known]
    if config.estimator in ESTIMATORS_FINDING_K:  # it has found one
        wanted, found = [None], [dict(zip([None], one.values(), strict=False)) for one in known]
    missing = [k for k in wanted if any(k not in one for one in found)]
    if missing:
        samples, patterns = samples_of(tables), patterns_of(tables, recipe)
        made = clusters(
            samples,
            m_pca,
            together(tables),
            missing,
            config,
            progress=progress,
            patterns=patterns,
            seeds=seeds,
            client=client,
        )
        with progress.stage("delegates", total=len(missing), unit="K") as advance:
            chosen = choosers(tables, m_pca, recipe, client=client)
            for k, one in zip(missing, made, strict=True):
                for own, part in zip(found, divide(one, m_pca, tables, chosen), strict=True):
                    own[k] = part
                advance(1)
    segmentations = [[own[k] for k in wanted] for own in found]
    for table, listed in zip(tables, segmentations, strict=True):
        write_segmentations(listed, table.components.shape[1], table.results)
    return segmentations


def clusters(
    samples: da.Array,
    m_pca: int,
    where: SpecimenMap,
    k_values: Sequence[int | None],
    config: ClusteringConfig,
    *,
    progress: Progress,
    seeds: Mapping[int, NDArray[np.float64]] | None = None,
    patterns: Patterns | None = None,
    client: Client | None = None,
) -> list[Segmentation]:
    """Return one segmentation for every K of the valid patterns' components, (n, M_AE); see `segment`.

    An estimator that finds K itself is asked with the K None.
    """
    used = samples[:, :m_pca]
    natural, converged = [], []
    with progress.stage("segment", total=len(k_values), unit="K") as advance:
        for k in k_values:
            one = estimator_of(k, config, seeds=seeds).fit(used)
            natural.append(Labels(np.asarray(one.labels_, dtype=np.int32), one.n_clusters_))
            converged.append(getattr(one, "converged_", True))
            if config.smoothing:
                natural[-1] = _smoothed(used, natural[-1], where, config.smoothing)
            advance(1)
    if patterns is not None and config.mixed_points == "larger_share":
        natural = relabel_mixed_points(used, natural, patterns, client=client, progress=progress)
    found = []
    with progress.stage("maps", total=len(k_values), unit="K") as advance:
        for k, labels, done in zip(k_values, natural, converged, strict=True):
            found.append(_mapped(samples, m_pca, where, k, labels, converged=done))
            advance(1)
    return found


def _smoothed(used: da.Array, found: Labels, where: SpecimenMap, weight: float) -> Labels:
    """Labels of a smoother map; a cluster of isolated points may be gone."""
    means = labeling.centroids(used, found.labels, found.n_clusters)
    smooth = potts(used, found.labels, means, valid=where.valid, shape=where.shape, weight=weight)
    labels = labeling.by_size(smooth)
    return Labels(labels, int(labels.max()) + 1)


def _mapped(
    samples: da.Array, m_pca: int, where: SpecimenMap, k: int | None, found: Labels, *, converged: bool
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


def write_segmentations(found: Sequence[Segmentation], width: int, results: ResultsWriter) -> None:
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
        shape = (len(found), widest, N_RANKS)
        delegates, mixed = np.full(shape, -1, np.int64), np.full(shape, DOMAINS_UNKNOWN, np.int8)
        for i, one in enumerate(found):
            if one.delegates is not None and one.delegates_mixed is not None:
                delegates[i, : one.n_clusters], mixed[i, : one.n_clusters] = one.delegates, one.delegates_mixed
        results.put("delegates", delegates)
        results.put("delegates_mixed", mixed)


def read(dataset: xr.Dataset) -> dict[int, Segmentation]:
    """Return the segmentations of a results store, by K."""
    found = {}
    for k in (int(value) for value in dataset["k"].values):
        one = dataset.sel(k=k)
        n_clusters = int(one["n_clusters"]) if "n_clusters" in one else k
        maps: dict[str, Any] = {name: one[name].values for name in ("labels", "distance_to_centroid", "pca_rgb")}
        centroids, delegate = one["centroids"].values[:n_clusters], one["delegate"].values[:n_clusters]
        converged = k not in dataset.attrs.get("provisional", ())
        if set(DELEGATE_ARRAYS) <= set(one.variables) and (one["delegates"].values >= 0).any():
            maps |= {name: one[name].values[:n_clusters] for name in DELEGATE_ARRAYS}
        found[k] = Segmentation(
            k=k, n_clusters=n_clusters, centroids=centroids, delegate=delegate, converged=converged, **maps
        )
    return found


def warnings_of(found: Sequence[Segmentation], config: ClusteringConfig, recipe: Recipe) -> list[str]:
    """Return one line for each segmentation whose estimator did not come to its end, whose points were not shared out,
    or that has clusters without a member that lies in one domain.
    """
    lines = [
        f"{config.estimator} of K = {one.k} did not converge in {MAX_MIXTURE_STEPS} steps: {NOT_CONVERGED_WARNING}"
        for one in found
        if not one.converged
    ]
    if config.mixed_points == "larger_share":
        lines += not_relabelled_warnings([(one.k, one.n_clusters) for one in found], recipe)
    return lines + two_domain_warnings(found)


def estimator_of(
    k: int | None, config: ClusteringConfig, *, seeds: Mapping[int, NDArray[np.float64]] | None = None
) -> Estimator:
    """Return the configured estimator, not yet fitted; `k` is None for one that finds the number of clusters itself."""
    common = {"sample": config.sample, "random_state": config.seed}
    match config.estimator:
        case "hdbscan":
            return DensityClusters(min_cluster_size=config.min_cluster_size, **common)
        case "mean_shift":
            return MeanShiftClusters(bandwidth=config.bandwidth, **common)
    if k is None:
        raise ValueError(f"{config.estimator} needs the number of clusters")
    if config.estimator == "kmeans":
        return kmeans(k, config, init=(seeds or {}).get(k))
    return GaussianMixtureClusters(k, bayesian=config.estimator == "bgm", n_init=config.n_init, **common)


def kmeans(k: int, config: ClusteringConfig, *, init: NDArray[np.float64] | None = None) -> KMeans:
    """Return k-means with K clusters as configured, not yet fitted."""
    return KMeans(k, n_init=config.n_init, init=init, sample=config.sample, random_state=config.seed)
