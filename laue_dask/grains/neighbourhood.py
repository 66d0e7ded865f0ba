"""Grains by neighbourhood: scan neighbours with close features are one grain, however far the grain is bent.

As EBSD software builds grains from a misorientation threshold, neighbours in space are joined where their distance in
feature space is below a threshold. A beam that straddles a boundary gives a mixture of both patterns, which is close to
either: one such point would join two grains. Regions are therefore joined by the mean distance *along* their common
boundary, the weakest boundary first, so that a leak through one edge is outvoted by the rest of it. Time is about
O(n log n) and memory O(n) for n patterns.

Where features leave in doubt what is a boundary, as in bent grains with others buried below them, the peaks of the
patterns on both sides decide (`laue_dask.grains.continuity`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any, Literal, Self

import dask.array as da
import numpy as np
import xarray as xr
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist
from sklearn.base import BaseEstimator, ClusterMixin

from laue_dask.errors import InputError
from laue_dask.grains import continuity
from laue_dask.segmentation import labeling
from laue_dask.segmentation.pca import Array, block_rows
from laue_dask.segmentation.seeding import sample_rows

DECISIVE_GAP_FACTOR = 2.5
"""Factor between the strengths inside grains and those of their boundaries that leaves no doubt."""

UNRELATED_QUANTILE = 0.9
"""Quantile of the distances of any two patterns at which they are taken to have nothing in common."""

N_UNRELATED_SAMPLE = 500

BOUNDARY_THRESHOLDS, PEAK_CHECK_THRESHOLDS = (0.5, DECISIVE_GAP_FACTOR), (0.3, 1.5)
"""Where there is no gap, the share of the distance of unrelated patterns, and the least factor to the median distance
of neighbours, from which on a boundary is taken for one, and from which on its peaks are looked at."""

MIN_JOINS_PER_BOUNDARY = 1 / 32
"""Joins per boundary below which a round over all of them costs more than joining one by one."""


@dataclass(frozen=True)
class Neighbours:
    """Pairs of neighbouring patterns.

    Attributes
    ----------
    first, second
        (e,) int64 rows of the valid patterns, first < second, in ascending order of first.
    distance
        (e,) float64, between their features.
    """

    first: Array
    second: Array
    distance: Array


@dataclass(frozen=True)
class Merges:
    """The order in which the regions of a scan are joined, from single patterns to one region.

    Attributes
    ----------
    left, right
        (m,) int64, a row in either region: its first one. The joined region goes by `left`.
    height
        (m,) float64, mean distance along their boundary; never below that of an earlier join of either region.
    smaller
        (m,) int64, number of patterns in the smaller of the two.
    """

    left: Array
    right: Array
    height: Array
    smaller: Array


def neighbours(X: Any, valid: Array, shape: tuple[int, int], *, connectivity: Literal[4, 8] = 4) -> Neighbours:
    """Return the distances between neighbouring patterns.

    Parameters
    ----------
    X
        (n, M) NumPy or dask array: features of the valid patterns, in order.
    valid
        (ny · nx,) bool; a point without a pattern is nobody's neighbour.
    shape
        (ny, nx).
    connectivity
        4 or 8 neighbours of a point.

    Raises
    ------
    InputError
        The lengths do not fit, or a feature is not finite.
    """
    row = labeling.label_map(np.arange(len(X)), valid, shape).astype(np.int64)
    pairs = [(row[:, :-1], row[:, 1:]), (row[:-1], row[1:])]
    if connectivity == 8:
        pairs += [(row[:-1, :-1], row[1:, 1:]), (row[:-1, 1:], row[1:, :-1])]
    first, second = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    both = (first >= 0) & (second >= 0)
    first, second = first[both], second[both]
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    distance = pair_distances(X, first, second)
    if not np.isfinite(distance).all():
        raise InputError("features are not finite: leave those patterns out")
    return Neighbours(first, second, distance)


def pair_distances(X: Any, first: Array, second: Array) -> Array:
    """Return the distance of each pair of rows of X, float64, `first` ascending and each below its `second`.

    Read once, a block of rows and its neighbours at a time.
    """
    result = np.empty(len(first))
    size = block_rows(X.shape[1])
    for start in range(0, len(X), size):
        pairs = slice(*np.searchsorted(first, [start, start + size]))
        if pairs.start == pairs.stop:
            continue
        block = X[start : second[pairs].max() + 1]
        rows = (block if isinstance(block, np.ndarray) else block.compute()).astype(np.float64)
        for part in range(pairs.start, pairs.stop, size):  # or the differences would be several blocks more
            some = slice(part, min(part + size, pairs.stop))
            apart = rows[first[some] - start] - rows[second[some] - start]
            result[some] = np.sqrt(np.einsum("ij,ij->i", apart, apart))
    return result


def join(n: int, pairs: Neighbours) -> Merges:
    """Join regions, the weakest boundary first, until none is left between neighbours.

    All pairs of regions of which either is the other's closest are joined at once: a mean along a boundary cannot fall
    below its smaller part, so the result is that of joining the weakest boundary of all, one by one. That is also done,
    as soon as the rounds are worth less than they cost.

    Parameters
    ----------
    n
        Number of patterns.
    """
    first, second, total = pairs.first, pairs.second, pairs.distance
    length = np.ones(len(first), np.int64)
    size = np.ones(n, np.int64)
    name = np.arange(n)  # of each region: its first row
    steps: list[tuple[Array, ...]] = []
    worthwhile = True
    while len(first) and worthwhile:
        mean = total / length
        # Equal strengths in an order that is not the rows', or a uniform scan would be joined one point at a time.
        order = np.lexsort((_scattered(name[first], name[second]), mean))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        closest = np.full(len(size), len(order))
        np.minimum.at(closest, first, rank)
        np.minimum.at(closest, second, rank)
        chosen = np.flatnonzero((closest[first] == rank) & (closest[second] == rank))
        worthwhile = len(chosen) >= MIN_JOINS_PER_BOUNDARY * len(first)
        left, right = first[chosen], second[chosen]
        steps.append((name[left], name[right], mean[chosen], np.minimum(size[left], size[right])))
        target = np.arange(len(size))
        target[right] = left
        size[left] += size[right]
        kept = np.flatnonzero(target == np.arange(len(size)))
        target = np.searchsorted(kept, target)
        size, name = size[kept], name[kept]
        first, second, total, length = _boundaries(target[first], target[second], total, length, len(size))
    steps.append(_one_by_one(name, size, first, second, total, length))
    return Merges(*(np.concatenate(parts) for parts in zip(*steps, strict=True)))


def _one_by_one(
    name: Array, size: Array, first: Array, second: Array, total: Array, length: Array
) -> tuple[Array, ...]:
    """Columns of the merges that are left to make."""
    names, sizes = name.tolist(), size.tolist()
    border: list[dict[int, tuple[float, int]]] = [{} for _ in names]
    for u, v, boundary in zip(
        first.tolist(), second.tolist(), zip(total.tolist(), length.tolist(), strict=True), strict=True
    ):
        border[u][v] = border[v][u] = boundary
    waiting = list(zip((total / length).tolist(), first.tolist(), second.tolist(), strict=True))
    heapify(waiting)
    done: list[tuple[int, int, float, int]] = []
    while waiting:
        height, u, v = heappop(waiting)
        if v not in border[u] or border[u][v][0] / border[u][v][1] != height:
            continue  # one of them has grown since
        done.append((min(names[u], names[v]), max(names[u], names[v]), height, min(sizes[u], sizes[v])))
        if len(border[u]) < len(border[v]):
            u, v = v, u
        names[u], sizes[u] = min(names[u], names[v]), sizes[u] + sizes[v]
        del border[u][v], border[v][u]
        for w, (more, longer) in border[v].items():
            del border[w][v]
            summed, counted = border[u].get(w, (0.0, 0))
            border[u][w] = border[w][u] = (summed + more, counted + longer)
            heappush(waiting, ((summed + more) / (counted + longer), u, w))
        border[v] = {}
    left, right, height_, smaller = zip(*done, strict=True) if done else ((), (), (), ())
    return (
        np.array(left, np.int64),
        np.array(right, np.int64),
        np.array(height_, np.float64),
        np.array(smaller, np.int64),
    )


def _boundaries(first: Array, second: Array, total: Array, length: Array, n: int) -> tuple[Array, Array, Array, Array]:
    """Sum and number of the distances between every two of n neighbouring regions, first < second."""
    apart = first != second
    first, second = np.minimum(first, second)[apart], np.maximum(first, second)[apart]
    key, place = np.unique(first * n + second, return_inverse=True)
    summed = np.bincount(place, weights=total[apart], minlength=len(key))
    counted = np.bincount(place, weights=length[apart], minlength=len(key)).astype(np.int64)
    return key // n, key % n, summed, counted


def _scattered(first: Array, second: Array) -> Array:
    """A number for each pair in which its rows do not show: a multiplicative hash."""
    return (first.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) ^ (
        second.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    )


def cut(n: int, merges: Merges, threshold: float) -> Array:
    """Return the regions that all joins up to a strength make of n patterns: (n,) int64, 0, 1, … in order of their
    first row.
    """
    made = merges.height <= threshold
    ends = (merges.left[made], merges.right[made])
    graph = csr_array((np.ones(np.count_nonzero(made), bool), ends), shape=(n, n))
    return _renumbered(connected_components(graph, directed=False)[1])


def _renumbered(labels: Array) -> Array:
    """Labels 0, 1, … in order of first appearance."""
    _, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[codes]


def automatic_threshold(
    pairs: Neighbours,
    merges: Merges,
    unrelated: float,
    min_size: int,
    *,
    doubtful: tuple[float, float] = BOUNDARY_THRESHOLDS,
) -> tuple[float, tuple[float, float] | None]:
    """Return the strength between what holds grains together and what separates them.

    Only joins of two regions of `min_size` patterns or more count: each grain boundary is one of them, however short,
    and points that straddle a boundary are none. From the median distance of neighbours, which is one inside a grain,
    upwards, their strengths are searched for the widest gap on a logarithmic scale.

    Parameters
    ----------
    unrelated
        Distance of patterns that have nothing in common.
    doubtful
        Threshold where there is no gap: a share of `unrelated`, and the least factor to the median distance of
        neighbours.

    Returns
    -------
    threshold
        The gap's geometric mean. Without a gap of a factor `DECISIVE_GAP_FACTOR`, as where grains are bent or others
        are buried below them: `doubtful`.
    gap
        The strengths on its two sides; None without a gap.
    """
    floor = float(np.median(pairs.distance)) if len(pairs.distance) else 0.0
    heights = np.sort(merges.height[merges.smaller >= min_size])
    heights = np.concatenate([[floor], heights[heights > floor]])
    if len(heights) > 1:
        below, above = heights[:-1], heights[1:]
        at = int(np.argmin(below / above))
        if below[at] * DECISIVE_GAP_FACTOR <= above[at]:
            # a median of 0: most neighbours are the same, and any difference is a boundary
            middle = np.sqrt(below[at] * above[at]) if below[at] > 0 else above[at] / 2
            return float(middle), (float(below[at]), float(above[at]))
    return max(doubtful[0] * unrelated, doubtful[1] * floor), None


def unrelated_distance(X: Any) -> float:
    """Return the distance of patterns that have nothing in common, from a sample of the (n, M) features; 0 for less
    than two.
    """
    chosen = X[sample_rows(len(X), N_UNRELATED_SAMPLE, 0)]
    rows = chosen if isinstance(chosen, np.ndarray) else chosen.compute()
    return float(np.quantile(pdist(rows), UNRELATED_QUANTILE)) if len(rows) > 1 else 0.0


def merge_small_regions(labels: Array, pairs: Neighbours, min_size: int) -> Array:
    """Give every region of fewer than `min_size` patterns to the neighbour behind its weakest boundary.

    A small region has one such neighbour, so it never joins two large ones. Regions without neighbours remain.
    """
    labels = labels.copy()
    while True:
        size = np.bincount(labels)
        n = len(size)
        first, second, total, length = _boundaries(
            labels[pairs.first], labels[pairs.second], pairs.distance, np.ones(len(pairs.first), np.int64), n
        )
        mean = np.tile(total / length, 2)
        ends, others = np.concatenate([first, second]), np.concatenate([second, first])
        small = size[ends] < min_size
        order = np.lexsort((others[small], mean[small], ends[small]))
        ends, others = ends[small][order], others[small][order]
        chosen, place = np.unique(ends, return_index=True)
        if not len(chosen):
            return labels
        graph = csr_array((np.ones(len(chosen), bool), (chosen, others[place])), shape=(n, n))
        labels = _renumbered(connected_components(graph, directed=False)[1][labels])


def join_continued_grains(
    labels: Array, valid: Array, shape: tuple[int, int], patterns: Callable[[Array], Array]
) -> Array:
    """Join the regions in which one grain goes on, as their peaks show.

    Two regions are joined if the line between them is either's least doubtful one. Then lines are judged again: of thin
    regions, such as where the beam straddles a boundary, it is only seen in the joined ones what lies on either side.

    Parameters
    ----------
    labels
        (n,) region of each valid pattern, 0, 1, ….
    patterns
        See `NeighbourhoodGrains.fit`.
    """
    peaks = continuity.PeakCache(patterns)
    known: dict[tuple[int, int], float] = {}
    while True:
        lines = continuity.lines(labeling.label_map(labels, valid, shape), peaks, known)
        least = np.full(int(labels.max(initial=-1)) + 1, np.inf)
        for side in (lines.first, lines.second):
            np.minimum.at(least, side, lines.strength)
        mutual = (least[lines.first] == lines.strength) & (least[lines.second] == lines.strength)
        joined = np.flatnonzero(mutual & (lines.strength <= 1))
        if not len(joined):
            return _renumbered(labels)
        # in two lines of equal strength, a chain of regions may be joined at once
        changed = set(lines.first[joined].tolist()) | set(lines.second[joined].tolist())
        judged = zip(lines.first.tolist(), lines.second.tolist(), lines.strength.tolist(), strict=True)
        known = {(a, b): strength for a, b, strength in judged if a not in changed and b not in changed}
        target = np.arange(len(least))
        for i in joined.tolist():
            one, other = target[lines.first[i]], target[lines.second[i]]
            target[target == max(one, other)] = min(one, other)
        labels = target[labels]


class NeighbourhoodGrains(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Grains of a scan as connected regions of close features.

    Parameters
    ----------
    threshold
        Largest strength of a boundary inside a grain: mean distance in feature space along it. ``"auto"`` finds it from
        the strengths themselves, see `automatic_threshold`.
    min_size
        Fewest patterns of a grain.
    connectivity
        4 or 8 neighbours of a point.
    small
        What becomes of smaller regions: ``"merge"`` gives each to its most similar neighbour, ``"mark"`` labels it −1.

    Attributes
    ----------
    labels_
        (n,) int32, grain of each pattern; 0 is the largest.
    map_
        (ny, nx) int32, the same on the scan; −1 where there is no pattern.
    threshold_
        The strength that was used.
    gap_
        Strengths below and above an automatic threshold; None where it was given or nothing separates grains.
    by_peaks_
        Whether boundaries stronger than the threshold were judged by peaks.
    boundary_
        (n,) float32, largest distance of each pattern to one of its neighbours; NaN where it has none.
    means_
        (K, M) float32, mean feature of each grain.
    grains_
        One row per grain: `grain`, `size`, centre `y`, `x`, bounding box `y0`, `y1`, `x0`, `x1` (inclusive), row
        `delegate` of the pattern nearest to the mean feature (Definition 11), mean distance of neighbours inside
        (`inside`) and across its boundary (`boundary`), NaN without any.

    Examples
    --------
    Two grains of 3 × 4 points side by side, with one feature:

    >>> import numpy as np
    >>> X = np.tile([0.0, 0.1, 5.0, 5.1], (3, 1))[..., None]
    >>> NeighbourhoodGrains(min_size=2).fit(X).map_
    array([[0, 0, 1, 1],
           [0, 0, 1, 1],
           [0, 0, 1, 1]], dtype=int32)
    """

    def __init__(
        self,
        threshold: float | Literal["auto"] = "auto",
        *,
        min_size: int = 5,
        connectivity: Literal[4, 8] = 4,
        small: Literal["merge", "mark"] = "merge",
    ) -> None:
        self.threshold = threshold
        self.min_size = min_size
        self.connectivity = connectivity
        self.small = small

    def fit(
        self,
        X: Any,
        y: None = None,
        *,
        shape: tuple[int, int] | None = None,
        valid: Array | None = None,
        patterns: Callable[[Array], Array] | None = None,
    ) -> Self:
        """Find the grains.

        Parameters
        ----------
        X
            (n, M) NumPy or dask array: features of the valid patterns, in order; or (ny, nx, M), of all points.
        y
            Ignored.
        shape
            (ny, nx) of the scan; that of X by default.
        valid
            (ny · nx,) or (ny, nx) bool; all by default, but for points of (ny, nx, M) with a NaN.
        patterns
            Gives the reduced patterns (m, 128, 128) uint8 of m points, by ascending indices in the scan. Without, or
            where the threshold is given or a gap leaves no doubt, features alone make the grains.

        Raises
        ------
        InputError
            A parameter is impossible, the lengths do not fit, or a feature is not finite.
        """
        self._check()
        X, shape, valid = _points_of(X, shape, valid)
        pairs = neighbours(X, valid, shape, connectivity=self.connectivity)
        merges = join(len(X), pairs)
        self.gap_: tuple[float, float] | None = None
        if self.threshold == "auto":
            doubtful = BOUNDARY_THRESHOLDS if patterns is None else PEAK_CHECK_THRESHOLDS
            self.threshold_, self.gap_ = automatic_threshold(
                pairs, merges, unrelated_distance(X), self.min_size, doubtful=doubtful
            )
        else:
            self.threshold_ = float(self.threshold)
        self.by_peaks_ = patterns is not None and self.threshold == "auto" and self.gap_ is None
        regions = cut(len(X), merges, self.threshold_)
        if patterns is not None and self.by_peaks_:
            regions = join_continued_grains(merge_small_regions(regions, pairs, self.min_size), valid, shape, patterns)
        if self.small == "merge":
            regions = merge_small_regions(regions, pairs, self.min_size)
        else:
            regions[np.bincount(regions)[regions] < self.min_size] = -1
        self.labels_ = labeling.by_size(regions)
        self.map_ = labeling.label_map(self.labels_, valid, shape)
        self.n_features_in_ = int(X.shape[1])
        self.boundary_ = _largest(len(X), pairs)
        self._describe(X, np.flatnonzero(valid), shape[1], pairs)
        return self

    def _check(self) -> None:
        if self.threshold != "auto" and not (isinstance(self.threshold, int | float) and self.threshold >= 0):
            raise InputError(f"grain threshold {self.threshold!r}: give 'auto' or a distance of 0 or more")
        if self.min_size < 1:
            raise InputError(f"grains of at least {self.min_size} patterns: give 1 or more")
        if self.connectivity not in (4, 8):
            raise InputError(f"{self.connectivity} neighbours of a point: give 4 or 8")

    def _describe(self, X: Any, patterns: Array, nx: int, pairs: Neighbours) -> None:
        kept = np.flatnonzero(self.labels_ >= 0)
        labels, k = self.labels_[kept], int(self.labels_.max(initial=-1)) + 1
        members = X if len(kept) == len(X) else X[kept]
        self.means_ = labeling.centroids(members, labels, k)
        delegate = kept[labeling.delegates(members, labels, self.means_)] if k else kept
        y, x = np.divmod(patterns[kept], nx)
        size = np.bincount(labels, minlength=k)
        one, two = self.labels_[pairs.first], self.labels_[pairs.second]
        inside = _means(pairs.distance, [one], (one == two) & (one >= 0), k)
        boundary = _means(pairs.distance, [one, two], one != two, k)
        box = {name: _per_grain(reduced, axis, labels, k) for name, reduced, axis in _box(y, x)}
        columns = {
            "size": size,
            "y": np.bincount(labels, weights=y, minlength=k) / size,
            "x": np.bincount(labels, weights=x, minlength=k) / size,
            **box,
            "delegate": delegate,
            "inside": inside,
            "boundary": boundary,
        }
        self.grains_: list[dict[str, float | int]] = [
            {"grain": i, **{name: values[i].item() for name, values in columns.items()}} for i in range(k)
        ]


def _points_of(X: Any, shape: tuple[int, int] | None, valid: Array | None) -> tuple[Any, tuple[int, int], Array]:
    """Features (n, M) of the valid patterns, (ny, nx) of the scan, and which points these are, (ny · nx,)."""
    X = X.data if isinstance(X, xr.DataArray) else X
    X = X if isinstance(X, da.Array) else np.asarray(X)
    if X.ndim not in (2, 3) or X.dtype.kind not in "biuf":
        raise InputError(
            f"features of shape {X.shape} and dtype {X.dtype}: numbers (n, M) or (ny, nx, M) were expected"
        )
    if shape is None and X.ndim == 2:
        raise InputError(f"features of shape {X.shape}: give the shape (ny, nx) of their scan as well")
    points = shape or (int(X.shape[0]), int(X.shape[1]))
    there = np.ones(points, bool).ravel() if valid is None else np.asarray(valid, bool).ravel()
    if X.ndim == 3:
        if X.shape[:2] != points or there.size != points[0] * points[1]:
            raise InputError(f"features of {X.shape[:2]} points, a scan of {points}, {there.size} points valid or not")
        X = X.reshape(-1, X.shape[2])
        if valid is None:
            finite = np.isfinite(X).all(axis=1)
            there = np.asarray(finite.compute() if isinstance(finite, da.Array) else finite)
        X = X if there.all() else X[np.flatnonzero(there)]
    return X, points, there


def _box(y: Array, x: Array) -> list[tuple[str, Callable[..., Any], Array]]:
    return [("y0", np.minimum, y), ("y1", np.maximum, y), ("x0", np.minimum, x), ("x1", np.maximum, x)]


def _per_grain(reduced: Any, values: Array, labels: Array, k: int) -> Array:
    result = np.empty(k, np.int64)
    result[labels] = values
    reduced.at(result, labels, values)
    return result


def _means(distance: Array, sides: list[Array], where: Array, k: int) -> Array:
    """Mean distance of each grain's pairs among those of `where`, which count for the grains on all `sides`."""
    total, count = np.zeros(k), np.zeros(k, np.int64)
    for grain in sides:
        used = where & (grain >= 0)
        total += np.bincount(grain[used], weights=distance[used], minlength=k)
        count += np.bincount(grain[used], minlength=k)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _largest(n: int, pairs: Neighbours) -> Array:
    result = np.full(n, -np.inf)
    np.maximum.at(result, pairs.first, pairs.distance)
    np.maximum.at(result, pairs.second, pairs.distance)
    return np.where(np.isfinite(result), result, np.nan).astype(np.float32)
