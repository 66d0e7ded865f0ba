"""How good a segmentation is: on its own (section 4.2 of the paper) and against a true map (section 4.3)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import dask.array as da
import numpy as np
from scipy.signal import find_peaks
from sklearn.metrics import adjusted_rand_score, homogeneity_score

from laue_dask.errors import InputError
from laue_dask.runtime.threads import one_thread
from laue_dask.segmentation.clustering import ClusterMoments, cluster_moments, nearest
from laue_dask.segmentation.pca import Array
from laue_dask.segmentation.seeding import distinct_rows, search

MIN_SAMPLE_MEMBERS = 30
"""Members of a small cluster in the silhouette's sample, where the sample's size allows."""

DISTANCES_PER_BLOCK = 2**20
"""Distances held at a time: 8 MiB of float64, which caches hold."""

MAX_TABLE_CLUSTERS, TABLE_COLUMNS = 64, 256
"""Clusters of a segmentation up to which distances are summed by a product with a table of who is in which, and the
columns of that table."""

MIN_PEAK_PROMINENCE = 0.1
"""A local peak of a score counts from this share of the score's range."""


def calinski_harabasz(X: Any, labels: Array) -> float:
    """Return the Calinski-Harabasz score of all patterns, in one pass.

    Parameters
    ----------
    X
        (n, M) NumPy or dask array.
    labels
        (n,) integers.

    Returns
    -------
    float
        As scikit-learn's; NaN where it is not defined: one cluster, or as many as patterns.
    """
    kinds, codes = np.unique(labels, return_inverse=True)
    return _calinski_harabasz(cluster_moments(X, codes.astype(np.int32), len(kinds)))


def _calinski_harabasz(clusters: ClusterMoments) -> float:
    n, k = int(clusters.n.sum()), len(clusters.n)
    if not 1 < k < n:
        return float("nan")
    offset = clusters.mean - clusters.n @ clusters.mean / n
    between = clusters.n @ np.einsum("ij,ij->i", offset, offset)
    within = clusters.ssd.sum()
    return 1.0 if within == 0 else float(between / within * (n - k) / (k - 1))


def silhouette(X: Any, labels: Array, *, size: int = 10_000, seed: int = 0) -> float:
    """Return the mean silhouette coefficient, exact for up to `size` patterns and estimated from a stratified sample
    beyond.

    Every cluster is in the sample with its share of the members, a small one with `MIN_SAMPLE_MEMBERS` where possible
    and never with a single one of several. Each member counts for those that it stands for, so that the mean estimates
    the mean of all patterns. Beside the sample, 8 MiB of distances and who is in which cluster are held.

    Parameters
    ----------
    X
        (n, M) NumPy or dask array; only the sample of it is read.
    labels
        (n,) integers.
    size
        About the number of patterns in the sample.
    seed
        Of the sample.

    Returns
    -------
    float
        From −1 to 1; a pattern alone in its cluster counts as 0; NaN where all patterns are in one cluster.
    """
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return float("nan")
    chosen = _stratified(codes, counts, size, seed)
    rows = X[chosen].compute() if isinstance(X, da.Array) else X[chosen]
    own = codes[chosen]
    weights = (counts / np.bincount(own))[own]
    return float(weights @ silhouette_samples(rows, [own])[0] / counts.sum())


def _stratified(codes: Array, counts: Array, size: int, seed: int) -> Array:
    """Indices of the sample, sorted: its share of each cluster, drawn without repetition."""
    n = len(codes)
    if n <= size:
        return np.arange(n)
    least = max(2, min(MIN_SAMPLE_MEMBERS, size // (2 * len(counts))))
    wanted = np.minimum(counts, np.maximum(least, np.rint(counts * (size / n)).astype(int)))
    shuffled = np.random.default_rng(seed).permutation(n)
    shuffled = shuffled[np.argsort(codes[shuffled], kind="stable")]
    place = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(shuffled[place < np.repeat(wanted, counts)])


def silhouette_samples(X: Array, labelings: Sequence[Array], rows: slice = slice(None)) -> Array:
    """Return the silhouette coefficient of every pattern in several segmentations, whose distances are computed but
    once.

    One thread, because the sums of several depend on their number.

    Parameters
    ----------
    X
        (n, M), in memory.
    labelings
        S arrays (n,) of integers.
    rows
        Of X, one after another, whose coefficients are wanted; all by default.

    Returns
    -------
    (S, rows) float64
        As scikit-learn's; 0 for a pattern alone in its cluster, NaN where all are in one.
    """
    X = X.astype(np.float64)
    X -= X.mean(axis=0)  # or the squares would cancel far from the origin
    squares, ones = np.einsum("ij,ij->i", X, X), np.ones(len(X))
    left, right = np.column_stack([X, squares, ones]), np.vstack([-2 * X.T, ones, squares])
    first, last, _ = rows.indices(len(X))
    height = max(1, DISTANCES_PER_BLOCK // max(1, len(X)))
    result = np.empty((len(labelings), max(0, last - first)))
    done = 0
    with one_thread():
        for clusters in _together(labelings):
            into = result[done : done + len(clusters)]
            done += len(clusters)
            table = _memberships(clusters, len(X))
            for start in range(first, last, height):
                block = slice(start, min(start + height, last))
                distance = left[block] @ right
                np.sqrt(np.maximum(distance, 0, out=distance), out=distance)
                distance[np.arange(block.stop - start), np.arange(start, block.stop)] = 0
                product, column = distance @ table, 0
                for one, coefficients in zip(clusters, into[:, start - first : block.stop - first], strict=True):
                    if one.few:
                        sums, column = product[:, column : column + one.k], column + one.k
                    else:
                        sums = np.add.reduceat(distance[:, one.order], one.starts, axis=1)
                    coefficients[:] = one.coefficients(sums, block)
    return result


def _together(labelings: Sequence[Array]) -> Iterator[list["_Members"]]:
    """Segmentations whose memberships are held at a time: of `TABLE_COLUMNS` clusters, or a single segmentation."""
    held: list[_Members] = []
    for labels in labelings:
        one = _Members.of(labels)
        if held and sum(min(other.k, MAX_TABLE_CLUSTERS) for other in [*held, one]) > TABLE_COLUMNS:
            yield held
            held = []
        held.append(one)
    if held:
        yield held


def _memberships(clusters: list["_Members"], n: int) -> Array:
    """(n, clusters) float64, 1 where a pattern is in a cluster, of the segmentations of few."""
    table = np.zeros((n, sum(one.k for one in clusters if one.few)))
    column = 0
    for one in clusters:
        if one.few:
            table[np.arange(n), column + one.codes] = 1
            column += one.k
    return table


@dataclass(frozen=True)
class _Members:
    """Who is in which of the clusters 0 … K − 1 of a segmentation.

    Attributes
    ----------
    codes
        (n,), the cluster of each pattern.
    counts, starts
        (K,), its members, and the place of the first of them in `order`.
    order
        (n,), patterns by their clusters.
    """

    codes: Array
    counts: Array
    starts: Array
    order: Array

    @property
    def k(self) -> int:
        return len(self.counts)

    @property
    def few(self) -> bool:
        """Whether sums over clusters are a product with a table of who is in which."""
        return self.k <= MAX_TABLE_CLUSTERS

    @classmethod
    def of(cls, labels: Array) -> Self:
        _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        return cls(codes, counts, np.cumsum(counts) - counts, np.argsort(codes, kind="stable"))

    def coefficients(self, sums: Array, rows: slice) -> Array:
        """Silhouette coefficients of some rows, from the sums of their distances to each cluster's members."""
        if self.k < 2:
            return np.full(len(sums), np.nan)
        own, others = self.codes[rows], self.counts[self.codes[rows]] - 1
        at = (np.arange(len(sums)), own)
        inside = sums[at] / np.maximum(others, 1)
        means = sums / self.counts
        means[at] = np.inf
        outside = means.min(axis=1)
        scale = np.maximum(inside, outside)
        return np.where((others > 0) & (scale > 0), (outside - inside) / np.where(scale > 0, scale, 1), 0)


def score_one(
    X: Array, k: int, *, n_init: int = 10, seed: int = 0, silhouette_size: int = 10_000
) -> dict[str, float | int]:
    """Return the scores of k-means with `k` clusters on the sample X, (s, M), in memory.

    Returns
    -------
    dict
        `k` and what `score_labels` gives; NaN where the sample has fewer than `k` distinct patterns.
    """
    if len(distinct_rows(X)) < k:
        return {"k": k, "silhouette": np.nan, "calinski_harabasz": np.nan, "inertia": np.nan}
    labels = nearest(X, search(X, k, n_init=n_init, seed=seed))
    return {"k": k, **score_labels(X, labels, seed=seed, silhouette_size=silhouette_size)}


def score_labels(X: Array, labels: Array, *, seed: int = 0, silhouette_size: int = 10_000) -> dict[str, float]:
    """Return the scores of one segmentation of X, (n, M) NumPy or dask array.

    Returns
    -------
    dict
        `silhouette`, `calinski_harabasz`, and `inertia` about the clusters' means.
    """
    kinds, codes = np.unique(labels, return_inverse=True)
    clusters = cluster_moments(X, codes.astype(np.int32), len(kinds))
    return {
        "silhouette": silhouette(X, labels, size=silhouette_size, seed=seed),
        "calinski_harabasz": _calinski_harabasz(clusters),
        "inertia": float(clusters.ssd.sum()),
    }


def score_sweep(
    X: Array, k_values: Sequence[int], *, n_init: int = 10, seed: int = 0, silhouette_size: int = 10_000
) -> list[dict[str, float | int]]:
    """Return the scores of `score_one` for every K in turn: Fig. 16 of the paper, on a sample."""
    return [score_one(X, k, n_init=n_init, seed=seed, silhouette_size=silhouette_size) for k in k_values]


def suggest_k(
    k_values: Sequence[int], silhouette: Sequence[float] | Array, calinski_harabasz: Sequence[float] | Array
) -> tuple[int, ...]:
    """Return up to three K that the scores favour, ascending.

    First the K with the best silhouette and the K with the best Calinski-Harabasz score, then the most prominent of the
    other local peaks of either: major subdomains show as peaks (section 4.2). The first K may be a peak. The last is
    none, for a score that still rises says nothing of where it stops; it is suggested only where neither score has a
    peak. Scores that are NaN are left out.
    """
    best: list[int] = []
    rising: list[int] = []
    peaks: list[tuple[float, int]] = []
    for score in (silhouette, calinski_harabasz):
        known = sorted((k, float(value)) for k, value in zip(k_values, score, strict=True) if np.isfinite(value))
        if not known:
            continue
        ks, values = zip(*known, strict=True)
        highest = int(np.argmax(values))
        (rising if highest == len(ks) - 1 > 0 else best).append(ks[highest])
        span = max(values) - min(values)
        at, found = find_peaks([min(values), *values], prominence=max(MIN_PEAK_PROMINENCE * span, np.finfo(float).tiny))
        peaks += [(-height / span, ks[i - 1]) for i, height in zip(at, found["prominences"], strict=True)]
    ranked = dict.fromkeys(best + [k for _, k in sorted(peaks)] or rising)
    return tuple(sorted(list(ranked)[:3]))


def adjusted_rand(truth: Array, labels: Array, where: Array | None = None) -> float:
    """Return the adjusted Rand index of the labels and the true domains.

    Parameters
    ----------
    truth, labels
        Arrays of one shape; points where either is negative or NaN do not count.
    where
        True at the points that are compared, as inside the domains; all by default.

    Returns
    -------
    float
        At most 1, about 0 for chance; NaN where no point is left.

    Raises
    ------
    InputError
        The shapes differ.
    """
    compared = _domains(truth, labels, where)
    return float(adjusted_rand_score(*compared)) if len(compared[0]) else float("nan")


def homogeneity(truth: Array, labels: Array, where: Array | None = None) -> float:
    """Return how far each cluster holds points of one true domain only, 0 to 1; otherwise as `adjusted_rand`."""
    compared = _domains(truth, labels, where)
    return float(homogeneity_score(*compared)) if len(compared[0]) else float("nan")


def mean_squared_error(true_map: Array, label_map: Array, where: Array | None = None) -> float:
    """Return the mean squared error of a label map (Fig. 19), over all points and channels.

    Parameters
    ----------
    true_map, label_map
        (ny, nx) or (ny, nx, c) property maps; a point with a NaN in either does not count.
    where
        (ny, nx), True at the points that are compared; all by default.

    Returns
    -------
    float
        NaN where no point is left.

    Raises
    ------
    InputError
        The shapes differ.
    """
    true, found = _properties(true_map, label_map, where)
    return float(np.mean((true - found) ** 2)) if true.size else float("nan")


def kolmogorov_smirnov(true_map: Array, label_map: Array, where: Array | None = None) -> float:
    """Return the two-sample Kolmogorov-Smirnov distance of the values of two (ny, nx) maps (Fig. 19); see
    `mean_squared_error`.

    Unlike the mean squared error it compares the distributions and not the places.
    """
    true, found = _properties(true_map, label_map, where)
    if true.ndim > 1:
        raise InputError(f"Kolmogorov-Smirnov distance of {true.shape[1]} channels: give maps of one number per point")
    if not true.size:
        return float("nan")
    steps = np.concatenate([true, found])
    below_true, below_found = (np.searchsorted(np.sort(values), steps, side="right") for values in (true, found))
    return float(np.abs(below_true - below_found).max() / len(true))


def _domains(truth: Array, labels: Array, where: Array | None) -> tuple[Array, Array]:
    """Codes 0, 1, … of both arrays at the points that count."""
    truth, labels, used = _aligned(truth, labels, where)
    used = used & (truth >= 0) & (labels >= 0)
    return np.unique(truth[used], return_inverse=True)[1], np.unique(labels[used], return_inverse=True)[1]


def _properties(true_map: Array, label_map: Array, where: Array | None) -> tuple[Array, Array]:
    """Values of both maps at the points that count, (points,) or (points, c)."""
    true, found, used = _aligned(true_map, label_map, where)
    channels = tuple(range(used.ndim, true.ndim))
    used = used & np.isfinite(true).all(axis=channels) & np.isfinite(found).all(axis=channels)
    return true[used].astype(np.float64), found[used].astype(np.float64)


def _aligned(first: Array, second: Array, where: Array | None) -> tuple[Array, Array, Array]:
    first, second = np.asarray(first), np.asarray(second)
    used = np.ones(first.shape[:2], bool) if where is None else np.asarray(where, bool)
    if first.shape != second.shape or used.shape != first.shape[:2]:
        raise InputError(
            f"true map {first.shape}, map {second.shape} and mask {used.shape} do not cover the same points: "
            "all three need the scan's shape"
        )
    return first, second, used
