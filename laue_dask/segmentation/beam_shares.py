"""Beam shares: where the beam lies on two domains, the point gets the label of the one with the larger share.

Intensities add: such a pattern is a ``own + b other``, with a and b in proportion to the parts of the beam that lie in
the two domains. Neither reduced patterns nor features are on that scale. Each pattern is divided by its own white (step
6 of the recipe) and features have unit length, so that where one domain diffracts more strongly than the other the
point looks like that one, though more of the beam may be in the other. Here the tone curve is undone, each domain's own
pattern is the median of those in the middle of its cluster, and a and b are found by least squares. Labels change where
the two explain the pattern; where crystals bend, domains look different from point to point, or something else is seen
beside them, they do not, and the label stays that of the feature space.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from laue_dask.config import Recipe
from laue_dask.reduction.reduce import MIN_SATURATION_SIGMAS
from laue_dask.runtime.compiled_loops import compiled
from laue_dask.schema import PATTERN_SIZE
from laue_dask.segmentation.pca import Array, slabs

MAX_RELATIVE_MARGIN = 0.4
"""A pattern is looked at where its distances to its own centroid and to the nearest other differ by less than this part
of their sum."""

MIN_EXPLAINED_SHARE, MIN_EXPLAINED_GAIN = 0.6, 0.05
"""Part of a pattern's weighted squared intensities that the two domains must explain, and how much more of it they must
explain together than one of them alone: two clusters of one domain have nearly the same pattern."""

N_PATTERN_RUNS, PATTERNS_PER_RUN = 4, 8
"""So many times so many patterns of a cluster, at most, make the domain's own pattern, their median. Those of a run
follow each other in the scan, and are read at once."""

MAX_CLUSTERS = 512
"""With more of them labels are left as they are: the domains' own patterns would fill a worker's memory."""

SAME_DOMAIN_COSINE = 1 - MIN_EXPLAINED_GAIN
"""Cosine of two domains' own patterns from which on they are taken for one. Where it is c, both explain at most
(1 − c) / 2 more than one of them."""

_MAX_SATURATION_TONE = 12.0
"""Tone, asinh of nearly 10⁵, of the brightest white that is reckoned with."""

_MIN_CLIPPING_GREY = 6
"""Grey level of the clipping limit in such a pattern, at least: from fewer levels the white is not known."""


def nearest_other_cluster(X: Array, labels: Array, *, centers: Array) -> tuple[Array, Array]:
    """Cluster with the nearest other centroid, and how much farther that is than the own one.

    Parameters
    ----------
    X
        (n, M) components.
    labels
        (n,) 0 to K − 1.
    centers
        (K, M); rows of NaN stand for clusters that do not exist.

    Returns
    -------
    other
        (n,) int32.
    margin
        (n,) float32: (d_other − d_own) / (d_other + d_own), 0 half-way between, 1 on the own centroid and where there
        is no other.
    """
    other, margin = np.empty(len(X), np.int32), np.empty(len(X), np.float32)
    for rows in slabs(X, len(centers)):
        distances = cdist(X[rows], centers)
        distances[np.isnan(distances)] = np.inf
        at = np.arange(len(distances))
        own = distances[at, labels[rows]]
        distances[at, labels[rows]] = np.inf
        other[rows] = distances.argmin(axis=1)
        least = distances[at, other[rows]]
        total = least + own
        near = (total > 0) & np.isfinite(least)
        margin[rows] = np.where(total > 0, 1.0, 0.0)
        margin[rows][near] = (least - own)[near] / total[near]
    return other, margin


def representatives(labels: Array, margin: Array, n_clusters: int) -> list[NDArray[np.int64]]:
    """Return rows of up to `N_PATTERN_RUNS` × `PATTERNS_PER_RUN` patterns in the middle of each cluster.

    The middle is the half of a cluster that is farthest from any other cluster.

    The runs are spread evenly over the rows, so that all of a scan has a say.
    """
    order = np.lexsort((-margin, labels))
    ends = np.cumsum(np.bincount(labels, minlength=n_clusters))
    chosen = []
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        middle = np.sort(order[start : start + (stop - start + 1) // 2])
        begin = np.linspace(0, max(0, len(middle) - PATTERNS_PER_RUN), N_PATTERN_RUNS).round().astype(np.int64)
        places = np.unique(begin[:, None] + np.arange(PATTERNS_PER_RUN))
        chosen.append(middle[places[places < len(middle)]].astype(np.int64))
    return chosen


def invertible(recipe: Recipe) -> bool:
    """Return whether intensities can be found again from the grey levels of a recipe."""
    return 255 * _clip(recipe) / _MAX_SATURATION_TONE >= _MIN_CLIPPING_GREY


def intensities(patterns: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.float32]:
    """Return the reduced patterns (n, 128, 128) on a linear scale, in units of the recipe's softening; spots a bin
    wider.

    The white that a pattern was divided by is known from its faintest signal, which is at the recipe's clipping limit:
    to a few per cent, for there are no half grey levels, so that strong signals are known to ten or twenty. A spot that
    moves by part of a bin, as those of one domain do, still covers itself.
    """
    found = np.zeros(patterns.shape, np.float32)
    _linear(patterns, _clip(recipe), _darkest(recipe), found)
    return found


def domain_pattern(members: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a domain's own pattern, the median of the `intensities` (m, 128, 128) of its representatives; m ≥ 1."""
    # Of two, the median is the mean.
    return np.asarray(np.median(members, axis=0), np.float32)


def distinguishable(domains: NDArray[np.float32], own: Array, other: Array) -> NDArray[np.bool_]:
    """Return which pairs of domains differ so much that shares of them can be told, (n,) bool.

    Two clusters of one domain do not, where it was divided by chance.

    Parameters
    ----------
    domains
        (K, 128, 128) of `domain_pattern`.
    own, other
        (n,) which domains.
    """
    pairs, which = np.unique(np.stack([own, other]), axis=1, return_inverse=True)
    found = np.empty(pairs.shape[1], np.bool_)
    for i, (first, second) in enumerate(pairs.T):
        f, s = (domains[one].astype(np.float64) for one in (first, second))
        weight = 1 / (np.maximum(f, s) + 1)
        across, lengths = np.sum(weight * f * s), np.sqrt(np.sum(weight * f * f) * np.sum(weight * s * s))
        found[i] = across < SAME_DOMAIN_COSINE * lengths
    return found[which.ravel()]


def beam_shares(
    patterns: NDArray[np.uint8], own: Array, other: Array, domains: NDArray[np.float32], recipe: Recipe
) -> NDArray[np.float64]:
    """Return the shares of two domains in each pattern, by non-negative least squares.

    Squares are divided by what is expected of them, as those of counts: by the sum of the larger of the two domains'
    intensities, the pattern's own and 1.

    Parameters
    ----------
    patterns
        (n, 128, 128) uint8, reduced by the recipe. Pixels at the white are left out: they may be brighter.
    own, other
        (n, P) which domains, for P segmentations; negative where a pattern is not asked about.
    domains
        (K, 128, 128) float32 of `domain_pattern`.

    Returns
    -------
    ndarray
        (n, P, 4): a and b, in units of the domains' own patterns, and the part of the weighted squares, 0 to 1, that
        the better of the two explains alone, and that both explain together.
    """
    found = np.zeros((*own.shape, 4))
    pairs = np.asarray(own, np.int64), np.asarray(other, np.int64)
    _fit(intensities(patterns, recipe), patterns == 255, *pairs, domains, found)
    return found


def other_is_larger(found: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where, by `beam_shares` (…, 4), two domains are seen and the other has the larger share."""
    a, b, alone, together = np.moveaxis(found, -1, 0)
    return np.asarray((b > a) & (together >= MIN_EXPLAINED_SHARE) & (together >= alone + MIN_EXPLAINED_GAIN))


def _clip(recipe: Recipe) -> float:
    return float(np.arcsinh(recipe.clip_sigma / recipe.softening_sigma))


def _darkest(recipe: Recipe) -> float:
    return float(np.arcsinh(MIN_SATURATION_SIGMAS / recipe.softening_sigma))


@compiled
def _linear(patterns: NDArray[np.uint8], clip: float, darkest: float, found: NDArray[np.float32]) -> None:
    scale = np.empty(256)
    wide = np.empty((PATTERN_SIZE, PATTERN_SIZE))
    for i in range(len(patterns)):
        _tones(patterns[i], clip, darkest, scale)
        _widen_rows(patterns[i], scale, wide)
        for y in range(PATTERN_SIZE):
            for x in range(PATTERN_SIZE):
                found[i, y, x] = _widened(wide, y, x)


@compiled
def _fit(
    bright: NDArray[np.float32],
    saturation: NDArray[np.bool_],
    own: NDArray[np.int64],
    other: NDArray[np.int64],
    domains: NDArray[np.float32],
    found: NDArray[np.float64],
) -> None:
    for i in range(len(bright)):
        for p in range(own.shape[1]):
            if own[i, p] >= 0:
                _fit_two(bright[i], saturation[i], domains[own[i, p]], domains[other[i, p]], found[i, p])


@compiled
def _fit_two(
    bright: NDArray[np.float32],
    saturation: NDArray[np.bool_],
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    found: NDArray[np.float64],
) -> None:
    ff = fs = ss = fv = sv = vv = 0.0
    for y in range(PATTERN_SIZE):
        for x in range(PATTERN_SIZE):
            if saturation[y, x]:
                continue
            f, s, v = float(first[y, x]), float(second[y, x]), float(bright[y, x])
            weight = 1.0 / (max(f, s) + v + 1.0)
            ff += weight * f * f
            fs += weight * f * s
            ss += weight * s * s
            fv += weight * f * v
            sv += weight * s * v
            vv += weight * v * v
    a, b = (fv / ff if ff > 0 else 0.0), (sv / ss if ss > 0 else 0.0)
    alone = max(a * fv, b * sv)
    determinant = ff * ss - fs * fs
    together = 0.0
    if determinant > 1e-9 * ff * ss:
        both = (fv * ss - sv * fs) / determinant, (sv * ff - fv * fs) / determinant
        if both[0] > 0 and both[1] > 0:
            a, b = both
            together = a * fv + b * sv
    if not together:  # one of them is not in it
        if a * fv >= b * sv:
            b = 0.0
        else:
            a = 0.0
    found[0], found[1] = a, b
    if vv > 0:
        found[2], found[3] = alone / vv, max(alone, together) / vv


@compiled
def _tones(pattern: NDArray[np.uint8], clip: float, darkest: float, scale: NDArray[np.float64]) -> None:
    """Intensity of each of the 256 grey levels of a pattern."""
    faintest = 255
    for y in range(PATTERN_SIZE):
        for x in range(PATTERN_SIZE):
            if 0 < pattern[y, x] < faintest:
                faintest = pattern[y, x]
    white = min(max(255.0 * clip / faintest, darkest), _MAX_SATURATION_TONE)
    for grey in range(256):
        scale[grey] = np.sinh(white * grey / 255.0)


@compiled
def _widen_rows(pattern: NDArray[np.uint8], scale: NDArray[np.float64], wide: NDArray[np.float64]) -> None:
    """Intensities along the rows, each pixel with a quarter of its neighbours' and half of its own."""
    last = PATTERN_SIZE - 1
    for y in range(PATTERN_SIZE):
        before, here = 0.0, scale[pattern[y, 0]]
        for x in range(PATTERN_SIZE):
            after = scale[pattern[y, x + 1]] if x < last else 0.0
            wide[y, x] = 0.25 * before + 0.5 * here + 0.25 * after
            before, here = here, after


@compiled
def _widened(wide: NDArray[np.float64], y: int, x: int) -> float:
    """The same down the columns."""
    above = wide[y - 1, x] if y else 0.0
    below = wide[y + 1, x] if y < PATTERN_SIZE - 1 else 0.0
    return float(0.25 * above + 0.5 * wide[y, x] + 0.25 * below)
