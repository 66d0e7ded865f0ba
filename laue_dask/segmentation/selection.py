"""How far the scores of a K can be trusted, and a suggestion of K with its reasons in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import find_peaks
from sklearn.metrics import adjusted_rand_score

from laue_dask.segmentation import scores
from laue_dask.segmentation.clustering import nearest
from laue_dask.segmentation.pca import Array
from laue_dask.segmentation.seeding import distinct_rows, search

WEAK_SILHOUETTE, CLEAR_SILHOUETTE = 0.25, 0.5
"""Silhouettes below which there is hardly a structure, and from which there is a clear one (Kaufman and Rousseeuw)."""

STABLE_RAND_INDEX = 0.9
"""Mean adjusted Rand index of repetitions from which a segmentation counts as reproducible."""

MIN_CONTIGUITY = 0.1
"""Contiguity below which labels are strewn over the specimen as if by chance."""


@dataclass(frozen=True)
class Repeated:
    """Scores of one K in repeated fits.

    Attributes
    ----------
    k
        Number of clusters.
    silhouette, calinski_harabasz
        (draws,), each of the partition of the whole table by a fit to a sample of its own.
    stability
        Mean adjusted Rand index of every two fits, as they label the whole table; 1 is the same partition. NaN for
        less than two fits.
    """

    k: int
    silhouette: Array
    calinski_harabasz: Array
    stability: float


def repeat(X: Array, k: int, *, draws: int = 5, size: int = 1000, seed: int = 0) -> Repeated:
    """Fit k-means to `draws` samples of the rows of X, (n, M), each with a seed of its own, and score its labels of X.

    A sample has `size` rows, but at most 80 % of all, drawn without repetition. Samples with at most `k` distinct
    rows are left out. The Calinski-Harabasz score is of all rows, for it grows with their number; the silhouette is
    estimated from about `size` rows, other ones for each fit. So scores differ by the patterns that a fit saw, by
    where it started and by the patterns that it was judged by, and are on the scale of `scores.score_labels`.
    """
    taken = min(size, max(2, int(0.8 * len(X))))
    labels: list[Array] = []
    found: list[tuple[float, float]] = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, k, draw])
        rows = X[np.sort(rng.choice(len(X), min(taken, len(X)), replace=False))]
        if len(distinct_rows(rows)) <= k:
            continue
        # With moves, or the starts' bad luck would tell more than the data; the last of them are worth nothing here.
        labels.append(nearest(X, search(rows, k, n_init=1, seed=int(rng.integers(2**31)), thorough=False)))
        figures = scores.score_labels(X, labels[-1], silhouette_size=size, seed=int(rng.integers(2**31)))
        found.append((figures["silhouette"], figures["calinski_harabasz"]))
    pairs = [adjusted_rand_score(labels[i], labels[j]) for i in range(len(labels)) for j in range(i)]
    values = np.array(found).reshape(-1, 2)
    return Repeated(k, values[:, 0], values[:, 1], float(np.mean(pairs)) if pairs else float("nan"))


def band(values: Array, level: float = 0.9) -> tuple[float, float]:
    """Return the middle `level` of repeated scores; NaN where there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Advice:
    """Which K to look at, and why.

    Attributes
    ----------
    k
        Up to three, ascending, as `scores.suggest_k` gives them.
    reasons
        A sentence for each of them.
    verdict
        One sentence on all of it: how clear the structure is, or that there is none.
    structure
        Whether anything speaks for more than one cluster.
    """

    k: tuple[int, ...]
    reasons: tuple[str, ...]
    verdict: str
    structure: bool


def advise(
    k_values: Sequence[int],
    silhouette: Sequence[float] | Array,
    calinski_harabasz: Sequence[float] | Array,
    *,
    repeated: Sequence[Repeated] = (),
    contiguity: dict[int, float] | None = None,
    suggested: Sequence[int] | None = None,
) -> Advice:
    """Suggest K and say why.

    Parameters
    ----------
    k_values, silhouette, calinski_harabasz
        The sweep (Figure 16).
    repeated
        Repeated fits of these K, or of some of them: say how far the scores scatter, and whether the partition is
        found again.
    contiguity
        `map_scores.contiguity` score of the label maps that were made, by K.
    suggested
        Numbers of clusters to give reasons for, `scores.suggest_k` of the scores by default.
    """
    chosen = tuple(scores.suggest_k(k_values, silhouette, calinski_harabasz) if suggested is None else suggested)
    if not chosen:
        return Advice((), (), "No K could be scored: there are too few distinct patterns.", structure=False)
    curves = {"silhouette": np.asarray(silhouette, float), "Calinski–Harabasz": np.asarray(calinski_harabasz, float)}
    again = {one.k: one for one in repeated}
    apart = contiguity or {}
    reasons = tuple(
        f"K = {k}: "
        + ", ".join([*_peaks(k, list(k_values), curves, again.get(k)), *_others(k, again.get(k), apart)])
        + "."
        for k in chosen
    )
    best = float(np.nanmax(curves["silhouette"]))
    strewn = bool(apart) and max(apart.values()) < MIN_CONTIGUITY
    if strewn and best < CLEAR_SILHOUETTE:
        verdict = (
            f"No structure: the best silhouette is {best:.2f} and labels are strewn over the specimen as if by chance."
        )
        return Advice(chosen, reasons, verdict, structure=False)
    if best < WEAK_SILHOUETTE and not apart:
        verdict = f"Hardly any structure: the best silhouette is {best:.2f}; clusters of noise reach as much."
        return Advice(chosen, reasons, verdict, structure=False)
    if best >= CLEAR_SILHOUETTE:
        verdict = f"Clear structure: the best silhouette is {best:.2f}."
    else:
        verdict = (
            f"The clusters touch each other (best silhouette {best:.2f}): no K is the right one, each shows the map at "
            "another level of detail."
        )
    if best < WEAK_SILHOUETTE:
        verdict += " Labels are contiguous on the specimen, so it is no noise; bent grains look like that."
    return Advice(chosen, reasons, verdict, structure=True)


def _peaks(k: int, k_values: list[int], curves: dict[str, Array], again: Repeated | None) -> list[str]:
    said = []
    scatter = {"silhouette": again.silhouette, "Calinski–Harabasz": again.calinski_harabasz} if again else {}
    for name, values in curves.items():
        if k not in k_values or not np.isfinite(values[k_values.index(k)]):
            continue
        value = values[k_values.index(k)]
        decimals = 2 if name == "silhouette" else 0
        low, high = band(scatter.get(name, np.empty(0)))
        around = f"; {low:.{decimals}f} to {high:.{decimals}f} in repeated fits" if np.isfinite(low) else ""
        shown = f"{value:.{decimals}f}"
        if value >= np.nanmax(values):
            still = " and still rising" if k == k_values[-1] and len(k_values) > 1 else ""
            said.append(f"{name} is highest here ({shown}{still}{around})")
            continue
        span = np.nanmax(values) - np.nanmin(values)
        known = np.where(np.isfinite(values), values, np.nanmin(values))
        at, found = find_peaks(np.concatenate([[known.min()], known, [known.min()]]), prominence=0)
        height = dict(zip((at - 1).tolist(), found["prominences"].tolist(), strict=True)).get(k_values.index(k), 0.0)
        if k != k_values[-1] and span > 0 and height >= scores.MIN_PEAK_PROMINENCE * span:
            doubt = ", no higher than these scatter" if high - low > height else ""
            said.append(f"{name} has a peak ({shown}, {100 * height / span:.0f} % of its range{around}{doubt})")
    return said or ["asked for; no score peaks here"]


def _others(k: int, again: Repeated | None, contiguity: dict[int, float]) -> list[str]:
    said = []
    if again and np.isfinite(again.stability):
        same = "the same partition in repeated fits" if again.stability >= STABLE_RAND_INDEX else "repeated fits differ"
        said.append(f"{same} (ARI {again.stability:.2f})")
    if np.isfinite(contiguity.get(k, np.nan)):
        strewn = "strewn over the specimen" if contiguity[k] < MIN_CONTIGUITY else "contiguous on the specimen"
        said.append(f"labels {strewn} ({contiguity[k]:.2f} of 1)")
    return said
