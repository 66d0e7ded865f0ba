"""Features → components, scores, segmentations and label maps: everything after the encoder.

All of it works on blocks of a feature table on disk, so a scan's size is no limit; all of it is small beside reading
the frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from laue_dask import labeling, scores
from laue_dask.clustering import KMeans, sample_rows
from laue_dask.compute.cluster import Workers
from laue_dask.compute.run import map_tasks, write_array
from laue_dask.config import ClusteringConfig, PCAConfig
from laue_dask.io.results import ResultsWriter
from laue_dask.pca import IncrementalPCA
from laue_dask.progress import Progress
from laue_dask.stages.specimen import Map, usable


@dataclass(frozen=True)
class Scores:
    """Model-selection scores (Figure 16) and the K that they suggest."""

    k: tuple[int, ...]
    silhouette: tuple[float, ...]
    calinski_harabasz: tuple[float, ...]
    suggested: tuple[int, ...]


def transform(
    features: da.Array,
    config: PCAConfig,
    results: ResultsWriter,
    *,
    key: str,
    workers: Workers,
    progress: Progress,
) -> tuple[da.Array, IncrementalPCA]:
    """PCA transformation (section 3.2): all components are kept, `n_components_` of them are used.

    Returns
    -------
    components : (pattern, M_AE) float32
        On disk, lazy; NaN where there are no features.
    pca
        Fitted.
    """
    pca = IncrementalPCA(n_components=config.components).fit(features)
    block = features.chunks[0][0]
    array = results.blocks("components", features.shape, block=block, key=key)
    write_array(
        pca.transform(features, dtype=np.float32), array, stage="components", client=workers.client, progress=progress
    )
    array.attrs["m_pca"] = int(pca.n_components_)
    results.put("explained_variance", pca.explained_variance_)
    results.put("explained_variance_ratio", pca.explained_variance_ratio_)
    return da.from_zarr(array, chunks=(block, features.shape[1])), pca


def score(
    samples: da.Array, config: ClusteringConfig, results: ResultsWriter, *, workers: Workers, progress: Progress
) -> Scores:
    """Silhouette and Calinski-Harabasz over K on a sample, one task per K (section 4.2, Figure 16).

    Parameters
    ----------
    samples : (n, M_PCA) float32
        Components of the valid patterns.
    """
    first, last = config.score_k
    rows = sample_rows(samples.shape[0], config.sample, config.seed)
    sample = np.asarray(samples[rows].compute())
    distinct = len(np.unique(sample, axis=0))
    values = [k for k in range(first, last + 1) if k < distinct]
    if not values:
        return _put_scores(Scores((), (), (), ()), results)
    with progress.stage("scores", total=len(values), unit="K") as advance:
        found = map_tasks(_score_one, values, (sample, config), client=workers.client, on_done=lambda k: advance(1))
    silhouette = tuple(float(f["silhouette"]) for f in found)
    calinski_harabasz = tuple(float(f["calinski_harabasz"]) for f in found)
    suggested = scores.suggest_k(values, silhouette, calinski_harabasz)
    return _put_scores(Scores(tuple(values), silhouette, calinski_harabasz, tuple(suggested)), results)


def _put_scores(found: Scores, results: ResultsWriter) -> Scores:
    results.put("score_k", np.asarray(found.k, dtype=np.int32))
    results.put("silhouette", np.asarray(found.silhouette))
    results.put("calinski_harabasz", np.asarray(found.calinski_harabasz))
    return found


def _score_one(k: int, sample: NDArray[np.float32], config: ClusteringConfig) -> dict[str, float | int]:
    return scores.score_one(sample, k, n_init=config.n_init, silhouette_size=config.silhouette_sample, seed=config.seed)


def segment(
    components: da.Array,
    m_pca: int,
    where: Map,
    k_values: Sequence[int],
    config: ClusteringConfig,
    results: ResultsWriter,
    *,
    progress: Progress,
) -> None:
    """Cluster, label and choose delegates for every K, and write all maps (sections 4.1 and 4.2).

    Raises
    ------
    InputError
        A K exceeds the number of distinct patterns.
    """
    samples = usable(components, where)
    widest = max(k_values)
    n_k, width = len(k_values), components.shape[1]
    labels = np.empty((n_k, *where.shape), dtype=np.int32)
    distance = np.empty((n_k, *where.shape), dtype=np.float32)
    rgb = np.zeros((n_k, *where.shape, 3), dtype=np.uint8)
    centroids = np.full((n_k, widest, width), np.nan, dtype=np.float32)
    delegate = np.full((n_k, widest), -1, dtype=np.int64)
    with progress.stage("segment", total=n_k, unit="K") as advance:
        for i, k in enumerate(k_values):
            estimator = kmeans(k, config).fit(samples[:, :m_pca])
            natural = np.asarray(estimator.labels_)
            centres = labeling.centroids(samples, natural, k)
            apart = labeling.distances(samples[:, :m_pca], natural, centres[:, :m_pca])
            labels[i] = where.paint(natural.astype(np.int32), fill=np.int32(-1))
            distance[i] = where.paint(apart, fill=np.float32(np.nan))
            rgb[i] = where.paint(labeling.pca_rgb(centres[:, :m_pca])[natural], fill=np.uint8(0))
            centroids[i, :k] = centres
            delegate[i, :k] = where.patterns[labeling.delegates(samples[:, :m_pca], natural, centres[:, :m_pca])]
            advance(1)
    results.put("k", np.asarray(k_values, dtype=np.int32))
    results.put("labels", labels)
    results.put("distance_to_centroid", distance)
    results.put("pca_rgb", rgb)
    results.put("centroids", centroids)
    results.put("delegate", delegate)


def kmeans(k: int, config: ClusteringConfig) -> KMeans:
    """The configured estimator of K clusters, not yet fitted."""
    return KMeans(k, n_init=config.n_init, sample=config.sample, random_state=config.seed)


def write_direct_colouring(components: da.Array, where: Map, results: ResultsWriter) -> None:
    """Direct colouring (Definition 12): the first three components of every pattern as red, green and blue."""
    leading = np.asarray(usable(components[:, :3], where).compute())
    results.put("direct_rgb", where.paint(labeling.direct_rgb(leading), fill=np.uint8(0)))
