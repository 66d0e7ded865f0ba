#!/usr/bin/env python
"""The paper's Figures 6 to 25 and what it says of them, on simulated scans with known truth and on real indexed maps.

Usage: .venv/bin/python scripts/reproduce_paper.py [OUT] [--specimen NAME ...] [--small] [--maps FOLDER]
           [--cache FOLDER] [--weights NAME] [--seed 1] [--jobs 2]

Four simulated specimens stand for the paper's; two maps that others measured and indexed are scanned by our beam.
Everything else is the product's own: encoder, PCA, estimators, scores, labelers, grains, plots. OUT gets
`figures/*.png`, `figures.md` with each figure beside its caption, the table of the paper's observations against what is
seen, and the times; and `report.json` with all numbers. Simulated patterns and features stay in the cache.

Large scans use the detector with pixels twice as large (the patterns are reduced to 128 × 128 anyway). But for
BaTiO3, whose true map the paper has in full, a pattern counts as indexable where one crystal has more than 95 % of the
beam; properties are taken from such points only (eq. 12), and a cluster without any gets none.
"""

import argparse
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.stats import kstest
from sklearn.cluster import kmeans_plusplus
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from laue_dask.config import ClusteringConfig, EncoderConfig, Recipe
from laue_dask.errors import InputError, LaueDaskError
from laue_dask.evaluation import map_scores
from laue_dask.features.encode import Network
from laue_dask.grains import neighbourhood as grains
from laue_dask.io.output_paths import write_atomically
from laue_dask.pipeline.stages.segmentation import kmeans
from laue_dask.reduction.detector_mask import detector_mask
from laue_dask.reduction.reduce import Substrate, estimate_substrate
from laue_dask.report import canvas, maps, plots
from laue_dask.report import grains as grain_plots
from laue_dask.report.panels import Panel, panel_figure
from laue_dask.segmentation import labeling, scores
from laue_dask.segmentation.estimators import GaussianMixtureClusters
from laue_dask.segmentation.pca import IncrementalPCA
from laue_dask.simulate.detector import Detector
from laue_dask.simulate.detector import detector as named_detector
from laue_dask.simulate.indexed_map import IndexedMap
from laue_dask.simulate.pattern import spots
from laue_dask.simulate.reduced import N_MASK_FRAMES, SIMULATION_VERSION, reduced_points, sample_frames
from laue_dask.simulate.specimens import Specimen, specimen

Array = NDArray[Any]
Angle = "angle to the a axis (deg)"

CHUNK = 150
"""Points that one task simulates."""

SUBSTRATE_FRAMES = 48

M_AE, M_PCA, M_FEW = 256, 32, 8
"""The paper's numbers of components."""

NATURAL_K = (6, 12, 64, 256)
ERROR_K = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
BGM_SAMPLE = 2_000
"""Patterns that a Bayesian mixture of 256 components is fitted to; its covariances have 33,000 numbers each."""

MANY = 64
"""K above which k-means goes on from one k-means++ start, in place of the search among ten: for time."""

PAPER_SECONDS = {
    "CuAlMn": (45.0, {3: 2.3, 16: 5.6}),
    "AuCuZn": (63.0, {2: 2.7, 10: 6.7, 64: 14.3}),
    "CuAlNi": (104.0, {2: 3.5, 12: 12.7, 64: 23.4}),
}
"""Table 1: feature extraction, and clustering by K, on 6 cores."""


@dataclass(frozen=True)
class Case:
    """A specimen: made by the simulator, or a published map."""

    name: str
    shape: tuple[int, int]
    kind: str = ""
    crystal: str | None = None
    grains: int | None = None
    binning: int = 2
    detector: str = "pilatus1m"
    seed: int = 1
    map: str = ""
    weights: tuple[float, ...] = ()
    shown: int = 0
    substrate: bool = False

    @property
    def recipe(self) -> Recipe:
        """How its frames are reduced."""
        return Recipe(substrate="remove" if self.substrate else "keep")

    def key(self) -> str:
        """Names its patterns in the cache."""
        said = "-".join(str(value) for value in (asdict(self) | {"map": Path(self.map).stem}).values() if value)
        plain = "".join(c if c.isalnum() or c in "-." else "_" for c in said)
        return f"{plain}-{self.recipe.digest()}-v{SIMULATION_VERSION}"


SIMULATED = (
    Case("BaTiO3", (60, 100), "twins", grains=6),
    Case("CuAlMn", (30, 30), "bent", crystal="CuAlMn", grains=3),
    Case("AuCuZn", (30, 100), "two_phases", grains=2),
    Case("CuAlNi", (60, 100), "fine_twins", crystal="CuAlNi-2H", grains=3),
)
COMPLETE = ("BaTiO3",)
"""Specimens whose true map has no holes, as the paper's Figure 1 has none."""

SMALL = {
    "BaTiO3": (12, 16),
    "CuAlMn": (8, 8),
    "AuCuZn": (8, 12),
    "CuAlNi": (12, 12),
    "GaN on Si": (16, 16),
    "W": (10, 12),
}

PUBLISHED = (
    Case(
        "GaN on Si",
        (61, 61),
        map="GaN_Si_nw1_61x61.npz",
        detector="scmos",
        weights=(1.0, 0.3, 0.1),
        shown=1,
        substrate=True,
    ),
    Case("W", (21, 51), map="W_0MPa_21x51.npz", detector="scmos", weights=(0.6, 0.3, 0.1)),
)
"""Crystals of a point were published without their intensities: the weights are assumed."""

NAMES = tuple(case.name for case in (*SIMULATED, *PUBLISHED))


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan with features and truth; maps are (ny, nx).

    Attributes
    ----------
    components
        (n, 256) float32, all of them.
    domain, angle
        What is true.
    inside
        Where one crystal has more than 95 % of the beam.
    indexable
        Where an indexer would find the truth.
    """

    case: Case
    patterns: Array
    components: Array
    pca: IncrementalPCA
    domain: Array
    angle: Array
    inside: Array
    indexable: Array
    made: Specimen | IndexedMap

    @property
    def measured(self) -> Array:
        """The angle where it can be indexed."""
        return np.where(self.indexable, self.angle, np.nan)


@dataclass(frozen=True, eq=False)
class Found:
    """A segmentation: labels are (ny, nx)."""

    k: int
    m: int
    labels: Array
    centroids: Array
    delegate: Array
    n_clusters: int

    @property
    def rgb(self) -> Array:
        """PCA labeler."""
        colours: Array = labeling.pca_rgb(self.centroids)[self.labels]
        return colours


@dataclass(frozen=True)
class Observation:
    """Something the paper says, and what is seen."""

    figure: str
    paper: str
    seen: str
    holds: bool


@dataclass(frozen=True)
class Drawn:
    """A figure in OUT."""

    number: str
    file: str
    caption: str
    seen: str


@dataclass(frozen=True)
class Study:
    """All of one specimen."""

    name: str
    figures: tuple[Drawn, ...]
    observations: tuple[Observation, ...]
    facts: dict[str, Any]


# --- patterns and features


@lru_cache(maxsize=2)
def scanned(case: Case) -> tuple[Specimen | IndexedMap, Detector, Array, Substrate | None]:
    """What is scanned, with what, the detector's mask and the substrate; once per process."""
    screen = named_detector(case.detector).binned(case.binning)
    made: Specimen | IndexedMap
    if case.map:
        made = _indexed_map(case)
    else:
        made = specimen(case.kind, case.shape, case.seed, crystal=case.crystal, grains=case.grains)
    if not case.substrate:
        return made, screen, detector_mask(sample_frames(made, screen, case.seed, N_MASK_FRAMES)), None
    sample = sample_frames(made, screen, case.seed, SUBSTRATE_FRAMES)
    mask = detector_mask(sample)
    return made, screen, mask, estimate_substrate(sample, mask, case.recipe)


def _indexed_map(case: Case) -> IndexedMap:
    """The published map, or its first rows and columns."""
    whole = IndexedMap.load(Path(case.map), weights=case.weights, shown=case.shown)
    part = (slice(None), slice(case.shape[0]), slice(case.shape[1]))
    return replace(whole, shape=case.shape, phase=whole.phase[part], orientation=whole.orientation[part])


def simulated_part(case: Case, start: int) -> tuple[int, Array]:
    """Reduced patterns of `CHUNK` points from `start` on."""
    made, screen, mask, substrate = scanned(case)
    points = np.arange(start, min(start + CHUNK, made.shape[0] * made.shape[1]))
    return start, reduced_points(made, screen, mask, case.recipe, points, seed=case.seed, substrate=substrate)


def encoded_part(case: Case, weights: str, start: int, patterns: Array) -> tuple[int, Array, float]:
    """Features of patterns, and the seconds they took on one core."""
    torch.set_num_threads(1)
    network = _network(weights, case.recipe)
    begun = time.perf_counter()
    return start, network.extract(patterns, np.ones(len(patterns), bool)), time.perf_counter() - begun


@lru_cache(maxsize=2)
def _network(weights: str, recipe: Recipe) -> Network:
    # a recipe with the substrate removed gives patterns of the same kind
    return Network.load(EncoderConfig(weights=weights), recipe.model_copy(update={"substrate": "keep"}))


def prepare(case: Case, cache: Path, weights: str, pool: ProcessPoolExecutor) -> None:
    """Simulate, reduce and encode a scan where the cache has it not."""
    n, path = case.shape[0] * case.shape[1], cache / f"{case.key()}.npz"
    if not path.exists():
        parts = dict(_gather([pool.submit(simulated_part, case, i) for i in range(0, n, CHUNK)], f"{case.name}: made"))
        _save(path, patterns=np.concatenate([parts[i] for i in sorted(parts)]))
    path = _features_path(case, cache, weights)
    if not path.exists():
        patterns = np.load(cache / f"{case.key()}.npz")["patterns"]
        jobs = [pool.submit(encoded_part, case, weights, i, patterns[i : i + 500]) for i in range(0, n, 500)]
        found = {start: (part, seconds) for start, part, seconds in _gather(jobs, f"{case.name}: encoded")}
        whole = np.concatenate([found[i][0] for i in sorted(found)])
        _save(path, features=whole, seconds=np.array(sum(seconds for _, seconds in found.values())))


def _features_path(case: Case, cache: Path, weights: str) -> Path:
    return cache / f"{case.key()}-{_network(weights, case.recipe).digest[:12]}.npz"


def _gather(jobs: Sequence[Any], what: str) -> list[Any]:
    found = []
    for done, job in enumerate(as_completed(jobs), start=1):
        found.append(job.result())
        _say(f"{what} {done} of {len(jobs)}")
    return found


def _save(path: Path, **arrays: Array) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    write_atomically(path, file.getvalue())


def load(case: Case, cache: Path, weights: str) -> Scan:
    """A prepared scan with its components."""
    patterns = np.load(cache / f"{case.key()}.npz")["patterns"]
    features = np.load(_features_path(case, cache, weights))["features"]
    pca = IncrementalPCA().fit(features)
    components = np.asarray(pca.transform(features, dtype=np.float32))
    if case.map:
        made = _indexed_map(case)
        there = made.phase[case.shown] >= 0
        return Scan(case, patterns, components, pca, made.domain(2.0), made.angle, there, there, made)
    simulated = specimen(case.kind, case.shape, case.seed, crystal=case.crystal, grains=case.grains)
    inside = ~simulated.edge
    indexable = inside | (case.name in COMPLETE)
    return Scan(case, patterns, components, pca, simulated.domain, simulated.angle, inside, indexable, simulated)


# --- segmentations


def segmented(scan: Scan, k: int, m: int, *, bayesian: bool = False) -> Found:
    """A segmentation {M_AE, M_PCA, K, KM | BGM} with its delegates (Definition 11) among what can be indexed."""
    X = scan.components[:, :m]
    if bayesian:
        fitted = GaussianMixtureClusters(k, bayesian=True, sample=BGM_SAMPLE).fit(X)
        labels, count = np.asarray(fitted.labels_), fitted.n_clusters_
    else:
        start = None if k <= MANY else kmeans_plusplus(X.astype(np.float64), k, random_state=0)[0]
        labels, count = np.asarray(kmeans(k, ClusteringConfig(), init=start).fit(X).labels_), k
    centres = labeling.centroids(X, labels, count)
    delegate = labeling.delegates(X, labels, centres, indexable=scan.indexable.ravel())
    return Found(k, m, labels.reshape(scan.case.shape).astype(np.int32), centres, delegate, count)


def sweep(scan: Scan, m: int, k_values: Iterable[int]) -> list[Found]:
    """k-means for each K that the scan has patterns for."""
    n = scan.case.shape[0] * scan.case.shape[1]
    return [segmented(scan, k, m) for k in k_values if 2 * k <= n]


def dataset(scan: Scan, found: Sequence[Found], m: int) -> xr.Dataset:
    """What the package's plots read, of some segmentations and all scores."""
    X = scan.components[:, :m]
    largest = min(20, len(X) // 4)
    swept = scores.score_sweep(X, range(2, largest + 1), n_init=3)
    ks = [int(row["k"]) for row in swept]
    silhouette, harabasz = ([float(row[name]) for row in swept] for name in ("silhouette", "calinski_harabasz"))
    widest = max((one.k for one in found), default=0)
    delegate = np.full((len(found), widest), -1, np.int64)
    for i, one in enumerate(found):
        delegate[i, : one.n_clusters] = one.delegate
    return xr.Dataset(
        {
            "components": (("pattern", "component"), scan.components, {"m_pca": m}),
            "explained_variance": ("component", scan.pca.explained_variance_),
            "explained_variance_ratio": ("component", scan.pca.explained_variance_ratio_),
            "labels": (("k", "y", "x"), np.array([one.labels for one in found]).reshape(-1, *scan.case.shape)),
            "delegate": (("k", "cluster"), delegate),
            "direct_rgb": (("y", "x", "channel"), direct(scan)),
            "silhouette": ("score_k", silhouette),
            "calinski_harabasz": ("score_k", harabasz),
        },
        coords={"k": [one.k for one in found], "score_k": ks},
        attrs={"suggested_k": list(scores.suggest_k(ks, silhouette, harabasz))},
    )


def direct(scan: Scan) -> Array:
    """Direct colouring (Definition 12), over the full range as the paper has it."""
    rgb: Array = labeling.direct_rgb(scan.components, quantiles=(0, 1)).reshape(*scan.case.shape, 3)
    return rgb


def indexed(scan: Scan, found: Found) -> Array:
    """Indexing labeler (Definition 13) of the angle."""
    approximated: Array = labeling.indexing_labels(scan.measured, found.delegate, found.labels)
    return approximated


def peaks(made: xr.Dataset) -> dict[str, list[int]]:
    """Local maxima of both scores over K; the first K may be one."""
    result = {}
    for name in ("silhouette", "calinski_harabasz"):
        k, value = made["score_k"].values, made[name].values
        higher = np.r_[True, value[1:] > value[:-1]] & np.r_[value[:-1] > value[1:], False]
        order = np.argsort(-value[higher], kind="stable")
        result[name] = k[higher][order].tolist()
    return result


# --- the specimens


class Sheet:
    """Collects the figures and observations of one specimen."""

    def __init__(self, folder: Path, scan: Scan) -> None:
        self.folder, self.scan = folder, scan
        self.figures: list[Drawn] = []
        self.observations: list[Observation] = []

    def draw(self, number: str, figure: Any, caption: str, seen: str) -> None:
        """Write a figure; its number is that of the paper."""
        file = f"figures/fig_{number.lower().replace(' ', '_')}.png"
        write_atomically(self.folder / file, canvas.png(figure))
        self.figures.append(Drawn(number, file, caption, seen))

    def observe(self, figure: str, paper: str, seen: str, holds: bool | np.bool_) -> None:
        """Note what the paper says and what is seen."""
        self.observations.append(Observation(figure, paper, seen, bool(holds)))

    def panels(self, number: str, panels: Sequence[Panel], caption: str, seen: str, *, columns: int, m: int) -> None:
        """Draw maps side by side."""
        ny, nx = self.scan.case.shape
        facts = f"{self.scan.case.name}, {ny} × {nx} points" + (rf" · $M_\mathrm{{PCA}}$ = {m}" if m else "")
        title = f"Figure {number}" if number[0].isdigit() else number
        figure = panel_figure(panels, title=title, facts=facts, columns=columns, bar=Angle)
        self.draw(number, figure, caption, seen)

    def study(self, **facts: Any) -> Study:
        """All of it."""
        return Study(self.scan.case.name, tuple(self.figures), tuple(self.observations), facts)


def _natural(found: Sequence[Found], marked_up_to: int = 12) -> list[Panel]:
    return [Panel(f"K = {one.k}", one.labels, one.k, one.delegate if one.k <= marked_up_to else None) for one in found]


def _ari(truth: Array, found: Array, where: Array | None = None) -> float:
    return scores.adjusted_rand(truth, found, where)


def grains_of(scan: Scan) -> Array:
    """(ny, nx) grain of each point of a simulated scan, twins together."""
    made = scan.made
    if not isinstance(made, Specimen):
        raise TypeError("only simulated specimens know their grains")
    return np.searchsorted(made.layout.first, scan.domain, side="right") - 1


def twins_split(scan: Scan, found: Found) -> list[float]:
    """For each twinned grain: how well the clusters tell its variants apart inside, adjusted Rand index."""
    grain, inside = grains_of(scan), scan.inside
    result = []
    for number in np.unique(grain):
        where = (grain == number) & inside
        if len(np.unique(scan.domain[where])) > 1:
            result.append(float(adjusted_rand_score(scan.domain[where], found.labels[where])))
    return result


def shown_by_colours(X: Array, domain: Array) -> float:
    """Share of the variance of columns X (n, c) that the domains explain."""
    total = ((X - X.mean(axis=0)) ** 2).sum()
    within = sum(((X[domain == d] - X[domain == d].mean(axis=0)) ** 2).sum() for d in np.unique(domain))
    return float(1 - within / total) if total else float("nan")


def agreement(first: Array, second: Array) -> float:
    """Share of the variance of one map's colours that a linear map of another's explains: signs and order are free."""
    X = np.column_stack([second.reshape(-1, 3), np.ones(second.size // 3)]).astype(float)
    Y = first.reshape(-1, 3).astype(float)
    rest = Y - X @ np.linalg.lstsq(X, Y, rcond=None)[0]
    return float(1 - (rest**2).sum() / ((Y - Y.mean(axis=0)) ** 2).sum())


def barium_titanate(sheet: Sheet) -> Study:
    """Figures 1 and 6 to 19."""
    scan = sheet.scan
    n = scan.domain.size
    ks = [k for k in NATURAL_K if 2 * k <= n]
    all_, some, few = (sweep(scan, m, ks) for m in (M_AE, M_PCA, M_FEW))
    bayes = [segmented(scan, k, M_AE if k <= 12 else M_PCA, bayesian=True) for k in ks if k <= MANY]
    made = dataset(scan, all_, M_AE)
    grain, inside, variance = grains_of(scan), scan.inside, float(np.var(scan.angle))
    true = [Panel("true map", scan.angle)]
    sheet.panels("1", true, "Orientation map from complete indexing.", "The simulator's truth.", columns=1, m=0)
    ratio = np.cumsum(scan.pca.explained_variance_ratio_)
    sheet.draw(
        "6",
        plots.explained_variance(made),
        "Explained variance of principal components.",
        f"The first 8 of {len(ratio)} components hold {ratio[7]:.1%} of the variance, the first 32 {ratio[31]:.1%}.",
    )
    sheet.observe(
        "6", "the majority of the variance is in the first few components", f"{ratio[7]:.1%} in 8", ratio[7] > 0.5
    )
    families = {"KM, M = 256": all_, "BGM": bayes, "KM, M = 32": some, "KM, M = 8": few}
    speckle = {
        name: {one.k: map_scores.domain_statistics(one.labels)["in_small"] for one in family}
        for name, family in families.items()
    }
    ari = {
        name: {one.k: (_ari(scan.domain, one.labels, inside), _ari(grain, one.labels, inside)) for one in family}
        for name, family in families.items()
    }
    homogeneity = {
        name: {one.k: scores.homogeneity(scan.domain, one.labels, inside) for one in family}
        for name, family in families.items()
    }

    def told(name: str) -> str:
        return "; ".join(
            f"K = {k}: homogeneity {homogeneity[name][k]:.3f}, {speckle[name][k]:.1%} of the points in specks"
            for k in homogeneity[name]
        )

    captions = (
        ("7", "KM, M = 256", all_, M_AE, "K-Means, natural labeler, M_PCA = M_AE = 256. White dots are delegates."),
        ("8", "BGM", bayes, 0, "Bayesian Gaussian mixture, natural labeler, M_PCA = M_AE = 256."),
        ("9", "KM, M = 32", some, M_PCA, "K-Means with truncated principal components, M_PCA = 32."),
        ("10", "KM, M = 8", few, M_FEW, "K-Means with truncated principal components, M_PCA = 8."),
    )
    for number, name, family, m, caption in captions:
        more = " Beyond K = 12 with M_PCA = 32, for time." if name == "BGM" else ""
        sheet.panels(number, _natural(family), caption, told(name) + "." + more, columns=2, m=m)
    patterns = {int(i): scan.patterns[i] for i in all_[0].delegate if i >= 0}
    sheet.draw(
        "7 patterns",
        plots.delegate_gallery(made, all_[0].k, patterns),
        "128 × 128 pixel patterns of several delegate points.",
        f"The delegates of K = {all_[0].k}.",
    )
    major = {name: values[6][1] for name, values in ari.items() if 6 in values}
    sheet.observe(
        "7 to 10",
        "at K = 6 all segmentation models clearly partition the specimen into 6 grains",
        "interior ARI with the 6 grains: " + ", ".join(f"{name} {value:.3f}" for name, value in major.items()),
        min(major.values()) > 0.9,
    )
    if len(all_) > 1:
        split = {one.k: twins_split(scan, one) for one in all_}
        seen = {k: sum(value > 0.5 for value in values) for k, values in split.items()}
        total = len(split[ks[0]])
        every = {name: sum(v > 0.5 for v in twins_split(scan, family[1])) for name, family in families.items()}
        sheet.observe(
            "7 to 10",
            "at K = 12 all segmentation models start to reveal the twins in some grains",
            f"k-means tells the variants apart in {', '.join(f'{v} (K = {k})' for k, v in seen.items())} of "
            f"{total} twinned grains; at K = 12 " + ", ".join(f"{name} {v}" for name, v in every.items()),
            seen[6] < seen[12] and min(every.values()) > 0,
        )
        effective = ", ".join(f"{one.n_clusters} of {one.k}" for one in bayes)
        better = {one.k: homogeneity["BGM"][one.k] - homogeneity["KM, M = 256"][one.k] for one in bayes}
        sheet.observe(
            "8",
            "no visible improvement of the Bayesian mixture over k-means",
            "homogeneity of BGM − KM: " + ", ".join(f"{v:+.3f} (K = {k})" for k, v in better.items()),
            max(better.values()) < 0.02,
        )
        sheet.observe(
            "8",
            "the mixture's effective clusters are fewer than nominal and stable as K increases",
            f"effective of nominal: {effective}",
            bayes[-1].n_clusters < min(bayes[-1].k, 1.5 * bayes[1].n_clusters),
        )
        # the K at which all domains can be told apart
        compared = [k for k in ks if k >= 12]
        drop = {
            m: min(homogeneity[m][k] - homogeneity["KM, M = 256"][k] for k in compared)
            for m in ("KM, M = 32", "KM, M = 8")
        }
        sheet.observe(
            "9",
            "no visible degradation with 32 components",
            f"homogeneity lower by {max(0.0, -drop['KM, M = 32']):.3f} at most",
            drop["KM, M = 32"] > -0.02,
        )
        noisier = {k: speckle["KM, M = 8"][k] - speckle["KM, M = 32"][k] for k in compared}
        sheet.observe(
            "10",
            "8 components are significantly noisier",
            f"homogeneity lower by {max(0.0, -drop['KM, M = 8']):.3f} at most; points in specks "
            + ", ".join(f"{v:+.1%} (K = {k})" for k, v in noisier.items()),
            drop["KM, M = 8"] < -0.02 or max(noisier.values()) > 0.02,
        )
        _figure_11(sheet, made, all_[1])
    sheet.draw("12", maps.colour_scheme(), "Colour scheme of the PCA labeler.", "The same cube.")
    for number, family, m in (("13", all_, M_AE), ("14", some, M_PCA)):
        sheet.panels(
            number,
            [Panel(f"K = {one.k}", one.rgb) for one in family],
            f"K-Means coloured by the PCA labeler, M_PCA = {m}.",
            "Colours of successive K explain each other: "
            + ", ".join(f"R² = {agreement(b.rgb, a.rgb):.2f} (K = {a.k} → {b.k})" for a, b in pairwise(family))
            + ".",
            columns=2,
            m=m,
        )
    if len(all_) > 2:
        two = all_[-2:]
        mosaic = speckle["KM, M = 256"]
        sheet.observe(
            "7",
            "with K too large (64, 256) natural labels become a mosaic",
            ", ".join(f"{mosaic[k]:.1%} of the points in specks (K = {k})" for k in ks),
            mosaic[ks[-1]] > 2 * mosaic[6] + 0.05,
        )
        same = agreement(two[1].rgb, two[0].rgb)
        sheet.observe(
            "13, 14",
            "with the PCA labeler the features of the map are stable as K increases",
            f"colours of K = {two[0].k} explain R² = {same:.2f} of those of K = {two[1].k}",
            same > 0.9,
        )
    shown = shown_by_colours(direct(scan).reshape(-1, 3)[inside.ravel()].astype(float), scan.domain[inside])
    sheet.panels(
        "15",
        [Panel("direct colouring", direct(scan))],
        "Direct colouring, M_AE = 256.",
        f"The true domains explain {shown:.1%} of the variance of the colours.",
        columns=1,
        m=0,
    )
    _scores(sheet, "16", made, 6, "Silhouette and Calinski-Harabasz score of k-means with different K.")
    for number, family, m in (("17", all_, M_AE), ("18", some, M_PCA)):
        panels = [Panel("true map", scan.angle), *(Panel(f"K = {one.k}", indexed(scan, one)) for one in family)]
        caption = f"K-Means coloured by the indexing labeler, M_PCA = {m}."
        rest = ", ".join(f"{1 - _mse(scan, one) / variance:.3f} (K = {one.k})" for one in family)
        sheet.panels(number, panels, caption, f"R² of the approximated angle: {rest}.", columns=2, m=m)
    errors = map_scores.approximation_errors(scan.angle, _delegated(sweep(scan, M_PCA, ERROR_K), scan))
    by_k = {int(row["k"]): row for row in errors}
    sheet.draw(
        "19",
        grain_plots.approximation(errors, unit="deg²"),
        "Mean squared error and Kolmogorov-Smirnov distance to the true map (here M_PCA = 32).",
        "; ".join(
            f"K = {k}: {by_k[k]['mse']:.2f} deg², {by_k[k]['ks']:.3f}" for k in by_k if k in (6, 12, 64, 256, 1024)
        ),
    )
    if 96 in by_k and 1024 in by_k:
        steep, slow = (by_k[a]["mse"] - by_k[b]["mse"] for a, b in ((2, 96), (96, 1024)))
        sheet.observe(
            "19",
            "the mean squared error falls with K, but slowly beyond K = 100; more so the Kolmogorov-Smirnov distance",
            f"of the fall from K = 2 to 1,024 ({steep + slow:.1f} deg²) {slow / (steep + slow):.1%} is after K = 96; "
            f"KS {by_k[2]['ks']:.3f} → {by_k[96]['ks']:.3f} → {by_k[1024]['ks']:.3f}",
            0 <= slow < 0.1 * steep,
        )
        sheet.observe(
            "17 to 19",
            "64 or 256 delegates give a map fairly close to the true one",
            ", ".join(f"R² = {1 - by_k[k]['mse'] / variance:.3f} (K = {k})" for k in (64, 256)),
            by_k[64]["mse"] < 0.1 * variance,
        )
    return sheet.study(errors=errors, **_beyond(sheet))


def _delegated(found: Sequence[Found], scan: Scan) -> list[tuple[Array, Array]]:
    return [(one.labels, one.delegate) for one in found]


def _mse(scan: Scan, found: Found) -> float:
    return scores.mean_squared_error(scan.angle, indexed(scan, found))


def _figure_11(sheet: Sheet, made: xr.Dataset, found: Found) -> None:
    """Densities of a twin pair (A, B) and of three clusters of other grains."""
    scan, inside = sheet.scan, sheet.scan.inside
    grain = grains_of(scan)
    owner = np.full(found.k, -1)
    of_domain = np.full(found.k, -1)
    for cluster in range(found.k):
        where = (found.labels == cluster) & inside
        if where.any():
            of_domain[cluster] = np.bincount(scan.domain[where]).argmax()
            owner[cluster] = np.bincount(grain[where]).argmax()
    pairs = [
        (a, b)
        for a in range(found.k)
        for b in range(a + 1, found.k)
        if owner[a] == owner[b] >= 0 and of_domain[a] != of_domain[b]
    ]
    if not pairs:
        sheet.observe(
            "11", "a twin pair differs in a few components only", "no twin pair has clusters of its own", False
        )
        return
    labels = found.labels.ravel()
    X = scan.components[:, :M_FEW]
    mean = np.array([X[labels == c].mean(axis=0) for c in range(found.k)])
    spread = np.array([X[labels == c].std(axis=0) for c in range(found.k)])

    def apart(a: int, b: int) -> int:
        """Components of the first eight whose densities hardly overlap: means 3 pooled deviations apart."""
        pooled = np.sqrt((spread[a] ** 2 + spread[b] ** 2) / 2)
        return int((np.abs(mean[a] - mean[b]) > 3 * pooled).sum())

    first, second = min(pairs, key=lambda pair: apart(*pair))
    others = [c for c in range(found.k) if owner[c] not in (-1, owner[first])]
    chosen: list[int] = []
    for cluster in others:
        if owner[cluster] not in [owner[c] for c in chosen]:
            chosen.append(cluster)
    shown = [first, second, *chosen[:3]]
    twins = [apart(*pair) for pair in pairs]
    strange = [apart(a, b) for a in range(found.k) for b in range(a) if -1 != owner[a] != owner[b] != -1]
    far = [
        float(kstest((X[labels == c, j] - mean[c, j]) / spread[c, j], "norm").statistic)
        for c in range(found.k)
        for j in range(M_FEW)
    ]
    sheet.draw(
        "11",
        grain_plots.density_figure(made, found.k, clusters=shown),
        f"Density of the first 8 principal components for 5 clusters of K = {found.k}; A and B are a twin pair.",
        f"A, B = clusters {first}, {second}: {apart(first, second)} of 8 components tell them apart; "
        f"clusters of different grains {np.median(strange):.0f} (median).",
    )
    sheet.observe(
        "11",
        "a twin pair has almost the same distribution but for one component (the 7th of 8)",
        f"components of 8 that differ by 3 sigma: twin pairs {min(twins)} to {max(twins)} "
        f"({len(pairs)} pairs), clusters of different grains {np.median(strange):.0f} (median)",
        min(twins) <= 2 and np.median(twins) < np.median(strange),
    )
    sheet.observe(
        "11",
        "the density of each feature in a cluster is close to a Gaussian",
        f"Kolmogorov-Smirnov distance to the normal distribution: median {np.median(far):.2f}, largest {max(far):.2f}",
        float(np.median(far)) < 0.1,
    )


def _scores(sheet: Sheet, number: str, made: xr.Dataset, expected: int, caption: str) -> None:
    """A figure of both scores, and whether they peak where the paper's do."""
    found, best = peaks(made), {}
    for name in ("silhouette", "calinski_harabasz"):
        best[name] = int(made["score_k"].values[int(np.nanargmax(made[name].values))])
    seen = (
        f"best silhouette at K = {best['silhouette']} (peaks {_list(found['silhouette'])}), best Calinski-Harabasz at "
        f"K = {best['calinski_harabasz']} (peaks {_list(found['calinski_harabasz'])}); "
        f"suggested K: {_list(made.attrs['suggested_k'])}"
    )
    sheet.draw(number, plots.scores(made), caption, seen[0].upper() + seen[1:] + ".")
    near = all(any(abs(k - expected) <= (expected > 3) for k in found[name]) for name in found)
    sheet.observe(number, f"{sheet.scan.case.name}: both scores peak near K = {expected}", seen, near)


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:4])) or "none"


def _beyond(sheet: Sheet) -> dict[str, float]:
    """Grains by neighbourhood, which the paper has not: how well they are those that are there."""
    scan = sheet.scan
    found = grains.NeighbourhoodGrains().fit(scan.components[:, :M_PCA], shape=scan.case.shape)
    labels = found.labels_.reshape(scan.case.shape)
    made = xr.Dataset(
        {"grain": (("y", "x"), labels), "boundary_strength": (("y", "x"), found.boundary_.reshape(labels.shape))}
    )
    count, ari = int(labels.max()) + 1, _ari(scan.domain, labels, scan.inside)
    proposed = len(grain_plots.proposals(made))
    sheet.draw(
        f"Section 4.4 {scan.case.name}",
        grain_plots.boundary_map(made),
        "Step 8: where a dense scan is worth while (the paper has no figure of it).",
        f"{proposed} regions proposed; {count} grains by neighbourhood, interior ARI with the true domains {ari:.3f}.",
    )
    return {"grains": count, "grain_ari": ari}


def copper_aluminium_manganese(sheet: Sheet) -> Study:
    """Figures 20 and 21."""
    scan = sheet.scan
    three, many = sweep(scan, M_AE, (3, 16))
    made = dataset(scan, [three, many], M_AE)
    panels = [
        Panel("(a) true map", scan.measured),
        Panel("(b) direct colouring", direct(scan)),
        Panel("(c) PCA labeler, K = 3", three.rgb),
        Panel("(d) PCA labeler, K = 16", many.rgb),
        Panel("(e) indexing labeler, K = 3", indexed(scan, three)),
        Panel("(f) indexing labeler, K = 16", indexed(scan, many)),
    ]
    errors = _mse(scan, three), _mse(scan, many)
    right = _ari(scan.domain, three.labels, scan.inside)
    sheet.panels(
        "20",
        panels,
        "CuAlMn: true map, direct colouring, PCA labeler and indexing labeler with K = 3 and 16.",
        f"Interior ARI of K = 3 {right:.3f}; mean squared error {errors[0]:.2f} → {errors[1]:.2f} deg².",
        columns=3,
        m=M_AE,
    )
    _scores(sheet, "21", made, 3, "Scores of CuAlMn with different K.")
    missing = ~scan.indexable
    kinds = {
        c: np.bincount(scan.domain[(three.labels == c) & scan.indexable]).argmax()
        for c in np.unique(three.labels)
        if ((three.labels == c) & scan.indexable).any()
    }
    placed = np.vectorize(lambda c: kinds.get(c, -1))(three.labels)
    share = float((placed == scan.domain)[missing].mean()) if missing.any() else 1.0
    sheet.observe(
        "20",
        "points at grain boundaries that could not be indexed are identified by the segmentation",
        f"{share:.1%} of {missing.sum()} such points join the grain that has most of the beam",
        share > 0.8,
    )
    sheet.observe(
        "20",
        "more clusters resolve the structure within the main grains",
        f"mean squared error {errors[0]:.2f} deg² (K = 3), {errors[1]:.2f} deg² (K = 16)",
        errors[1] < errors[0],
    )
    return sheet.study(ari=right, **_beyond(sheet))


def gold_copper_zinc(sheet: Sheet) -> Study:
    """Figures 22 and 23."""
    scan = sheet.scan
    family = sweep(scan, M_AE, (2, 10, 64))
    made = dataset(scan, family, M_AE)
    martensite = np.array([c.name != "AuCuZn" for c in scan.made.crystals])[scan.domain]
    panels = [
        Panel("(a) true map, austenite", np.where(martensite, np.nan, scan.measured)),
        Panel("(b) true map, martensite", np.where(martensite, scan.measured, np.nan)),
        Panel("(c) direct colouring", direct(scan)),
        *(Panel(f"({x}) PCA labeler, K = {one.k}", one.rgb) for x, one in zip("def", family, strict=False)),
        *(
            Panel(f"({x}) indexing labeler, K = {one.k}", indexed(scan, one))
            for x, one in zip("ghi", family, strict=False)
        ),
    ]
    phase = {one.k: _ari(martensite.astype(int), one.labels) for one in family}
    inside = martensite & scan.indexable
    errors = {one.k: scores.mean_squared_error(scan.angle, indexed(scan, one), where=inside) for one in family}
    said = ", ".join(f"{value:.1f} deg² (K = {k})" for k, value in errors.items())
    sheet.panels(
        "22",
        panels,
        "AuCuZn: true maps of austenite and martensite, direct colouring, PCA and indexing labeler with K = 2, 10, 64.",
        f"ARI of K = 2 with the phases {phase[2]:.3f}; squared error of the angle in the martensite {said}.",
        columns=3,
        m=M_AE,
    )
    _scores(sheet, "23", made, 2, "Scores of AuCuZn with different K.")
    sheet.observe(
        "22", "K = 2 clearly reveals the phase boundary", f"ARI with the phases {phase[2]:.3f}", phase[2] > 0.9
    )
    last = max(errors)
    sheet.observe(
        "22",
        "one delegate cannot stand for the martensite's variants; with many clusters the map converges to the true one",
        f"squared error of the angle inside the martensite: {said}",
        errors[last] < 0.5 * errors[2],
    )
    return sheet.study(phase_ari=phase, **_beyond(sheet))


def copper_aluminium_nickel(sheet: Sheet) -> Study:
    """Figures 24 and 25."""
    scan = sheet.scan
    family = sweep(scan, M_AE, (2, 12, 64))
    made = dataset(scan, family, M_AE)
    panels = [
        Panel("(a) true map", scan.measured),
        Panel("(b) direct colouring", direct(scan)),
        *(Panel(f"({x}) PCA labeler, K = {one.k}", one.rgb) for x, one in zip("cde", family, strict=False)),
        *(
            Panel(f"({x}) indexing labeler, K = {one.k}", indexed(scan, one))
            for x, one in zip("fgh", family, strict=False)
        ),
    ]
    grain, missing = grains_of(scan), 1 - float(scan.indexable.mean())
    colours = direct(scan).reshape(-1, 3).astype(float)
    explained = []
    for number in np.unique(grain):
        where = (grain == number).ravel()
        if len(np.unique(scan.domain.ravel()[where])) > 1:
            explained.append(shown_by_colours(colours[where], scan.domain.ravel()[where]))
    fine = {one.k: scores.homogeneity(scan.domain, one.labels) for one in family}
    said = ", ".join(f"{value:.3f} (K = {k})" for k, value in fine.items())
    sheet.panels(
        "24",
        panels,
        "CuAlNi: true map, direct colouring, PCA labeler and indexing labeler with K = 2, 12, 64.",
        f"{missing:.1%} of the points cannot be indexed; homogeneity of all points {said}.",
        columns=3,
        m=M_AE,
    )
    _scores(sheet, "25", made, 2, "Scores of CuAlNi with different K.")
    sheet.observe(
        "24",
        "a large area cannot be indexed, as twins are finer than the beam",
        f"{missing:.1%} of the points",
        missing > 0.3,
    )
    sheet.observe(
        "24",
        "direct colouring clearly reveals the twins",
        "variance of the colours within a grain that its variants explain: "
        + ", ".join(f"{value:.1%}" for value in explained),
        min(explained, default=0.0) > 0.3,
    )
    sheet.observe(
        "24", "more clusters show finer features of the twins", f"homogeneity {said}", fine[max(fine)] > fine[2]
    )
    return sheet.study(homogeneity=fine, **_beyond(sheet))


def off_published_spots(made: IndexedMap, file: Path) -> Array:
    """Distance in pixels of each published spot to the nearest of ours, at 20 points of the map."""
    screen, found = named_detector("scmos"), np.load(file)
    off = []
    for point in np.linspace(0, made.shape[0] * made.shape[1] - 1, 20).astype(int):
        y, x = divmod(int(point), made.shape[1])
        ours = [spots(grain.crystal, grain.orientation, screen) for grain in made.at(int(point))]
        tree = cKDTree(np.concatenate([np.column_stack([one.row, one.column]) for one in ours]))
        there = found["point"] == y * int(found["grid"][1]) + x
        # LaueTools counts pixels from 1
        off.append(tree.query(np.column_stack([found["y"][there], found["x"][there]]) - 1)[0])
    return np.concatenate(off)


def published(sheet: Sheet) -> Study:
    """A real indexed map, scanned by our beam."""
    scan, made = sheet.scan, sheet.scan.made
    if not isinstance(made, IndexedMap):
        raise TypeError("a published map was expected")
    domain, there = scan.domain, scan.indexable
    known = np.where(there, domain, domain.max() + 1)  # where nothing was found is a domain too
    m = M_PCA
    count = int((np.bincount(known.ravel()) >= 5).sum())
    family = sweep(scan, m, sorted({2, 12, 64, max(2, count)}))
    suggested = dataset(scan, family, m).attrs["suggested_k"]
    grain = grains.NeighbourhoodGrains().fit(scan.components[:, :m], shape=scan.case.shape)
    regions = grain.labels_.reshape(scan.case.shape)
    joined = _ari(map_scores.domains(known), regions)  # grains are connected, and so must be what they are held against
    first, second = made.neighbours()
    slots = range(len(made.phase))
    if scan.case.substrate:
        shared = domain.ravel()[first] == domain.ravel()[second]
        what = "lie in the same published grain, or both have no GaN"
    else:
        turned = np.array([made.turned(first, second, (i, j)) for i in slots for j in slots])
        shared = (turned < 2).any(axis=0)
        what = "share a published orientation within 2°"
    distance = np.linalg.norm(scan.components[first, :m] - scan.components[second, :m], axis=1)
    told = float(roc_auc_score(~shared, distance))
    errors = map_scores.approximation_errors(
        scan.angle, _delegated(sweep(scan, m, (2, 6, 12, 24, 64, 128, 256, 512)), scan)
    )
    by_k = {int(row["k"]): row for row in errors}
    variance = float(np.nanvar(scan.angle))
    ari = {one.k: _ari(known, one.labels) for one in family}
    panels = [
        Panel("published angle", scan.angle),
        Panel("direct colouring", direct(scan)),
        Panel(f"{int(regions.max()) + 1} grains by neighbourhood", regions, int(regions.max()) + 1),
        *(Panel(f"K = {one.k}", one.labels, one.k) for one in family[:2]),
        Panel(f"indexing labeler, K = {family[-1].k}", indexed(scan, family[-1])),
    ]
    name = scan.case.name
    said = ", ".join(f"{value:.3f} (K = {k})" for k, value in ari.items())
    sheet.panels(
        f"Map {name}",
        panels,
        f"{name}: published orientations (lauetoolsnn) under our beam, {scan.case.detector}.",
        f"ARI with the published segmentation ({count} regions of 5 points or more) {said}; "
        f"grains by neighbourhood {joined:.3f}.",
        columns=3,
        m=m,
    )
    sheet.draw(
        f"Map {name} errors",
        grain_plots.approximation(errors, unit="deg²"),
        "As Figure 19, against the published angle.",
        "; ".join(
            f"K = {k}: {row['mse']:.1f} deg² (variance {variance:.1f}), KS {row['ks']:.3f}"
            for k, row in by_k.items()
            if k in (12, 64, 256)
        ),
    )
    sheet.observe(
        f"map {name}",
        "(beyond the paper) neighbours are close in feature space where they are one grain",
        f"pairs that {what} have the smaller distance with probability {told:.3f}; ARI {said}; "
        f"grains by neighbourhood {joined:.3f}",
        told > 0.8,
    )
    listed = Path(scan.case.map).with_name(f"{made.kind}_spots.npz")
    if listed.is_file():
        off = off_published_spots(made, listed)
        sheet.observe(
            f"map {name}",
            "(the frames) spots are where the published spot lists have them",
            f"distance to our nearest spot, of {len(off):,} spots at 20 points: median {np.median(off):.1g} pixels, "
            f"95 % below {np.quantile(off, 0.95):.1g}",
            np.quantile(off, 0.95) < 0.5,
        )
    some = [k for k in by_k if k <= MANY]
    sheet.observe(
        f"map {name}",
        "64 delegates give a map fairly close to the true one",
        ", ".join(f"{by_k[k]['mse']:.1f} deg² (K = {k})" for k in by_k if k >= 12) + f", variance {variance:.1f}",
        by_k[some[-1]]["mse"] < 0.1 * variance,
    )
    return sheet.study(ari=ari, neighbours=told, errors=errors, suggested=suggested)


STUDIES: dict[str, Callable[[Sheet], Study]] = {
    "BaTiO3": barium_titanate,
    "CuAlMn": copper_aluminium_manganese,
    "AuCuZn": gold_copper_zinc,
    "CuAlNi": copper_aluminium_nickel,
}


def studied(case: Case, cache: Path, out: Path, weights: str) -> Study:
    """Figures and observations of a prepared scan."""
    torch.set_num_threads(1)
    return STUDIES.get(case.name, published)(Sheet(out, load(case, cache, weights)))


def timed(case: Case, cache: Path, weights: str) -> dict[str, Any]:
    """Seconds of feature extraction and clustering, on one core, all 256 components, as in Table 1."""
    scan = load(case, cache, weights)
    seconds = {}
    for k in PAPER_SECONDS[case.name][1]:
        if 2 * k > len(scan.components):
            continue
        begun = time.perf_counter()
        kmeans(k, ClusteringConfig()).fit(scan.components)
        seconds[k] = round(time.perf_counter() - begun, 2)
    features = float(np.load(_features_path(case, cache, weights))["seconds"])
    return {"patterns": len(scan.components), "features": round(features, 1), "clustering": seconds}


# --- the page


def page(studies: Sequence[Study], times: dict[str, dict[str, Any]], heading: Sequence[str]) -> str:
    """Markdown: what the paper observes, times, and each figure beside its caption."""
    lines = ["# The paper's figures, on scans with known truth", "", *heading, "", "## What the paper observes", ""]
    lines += ["| figure | the paper | here | |", "|---|---|---|---|"]
    for study in studies:
        for one in study.observations:
            verdict = "holds" if one.holds else "**does not hold**"
            lines.append(f"| {one.figure} | {one.paper} | {one.seen} | {verdict} |")
    if times:
        lines += ["", "## Times (Table 1)", "", "Paper: 6 cores, 12 jobs. Here: one core, all 256 components.", ""]
        lines += [
            "| specimen | patterns | features, paper / here (s) | clustering, paper / here (s) |",
            "|---|---|---|---|",
        ]
        for name, found in times.items():
            extraction, clustering = PAPER_SECONDS[name]
            pairs = "; ".join(f"K = {k}: {clustering[k]} / {value}" for k, value in found["clustering"].items())
            lines.append(f"| {name} | {found['patterns']:,} | {extraction:g} / {found['features']} | {pairs} |")
    for study in studies:
        lines += [
            "",
            f"## {study.name}",
            "",
            "| figure | caption of the paper, shortened, and what is seen |",
            "|---|---|",
        ]
        for drawn in study.figures:
            title = f"Figure {drawn.number}" if drawn.number[0].isdigit() else drawn.number
            lines.append(f"| ![{title}]({drawn.file}) | **{title}.** {drawn.caption}<br>{drawn.seen} |")
    return "\n".join(lines) + "\n"


def _say(text: str) -> None:
    print(text, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)


def cases(options: argparse.Namespace) -> tuple[list[Case], list[str]]:
    """What is to be studied, and what is not, with the reason."""
    chosen, notes = [], []
    for case in SIMULATED:
        chosen.append(replace(case, seed=options.seed))
    for case in PUBLISHED:
        path = options.maps / case.map
        if path.is_file():
            chosen.append(replace(case, map=str(path), seed=options.seed))
        else:
            notes.append(f"{case.name}: left out, there is no {path}")
    if options.small:
        chosen = [replace(case, shape=SMALL[case.name], binning=4) for case in chosen]
    wanted = options.specimen or NAMES
    return [case for case in chosen if case.name in wanted], [note for note in notes if note.split(":")[0] in wanted]


def reproduce(options: argparse.Namespace) -> list[Study]:
    """Do all of it and write OUT."""
    chosen, notes = cases(options)
    for note in notes:
        print(note, file=sys.stderr)
    if not chosen:
        raise InputError("nothing is left to do: choose another --specimen, or say where --maps are")
    options.cache.mkdir(parents=True, exist_ok=True)
    (options.out / "figures").mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        jobs = {}
        for case in chosen:
            prepare(case, options.cache, options.weights, pool)
            jobs[case.name] = pool.submit(studied, case, options.cache, options.out, options.weights)
        studies = []
        for name, job in jobs.items():
            studies.append(job.result())
            _say(f"{name}: studied")
        times = {}
        for case in chosen:  # one at a time: these are timed
            if case.name in PAPER_SECONDS:
                times[case.name] = pool.submit(timed, case, options.cache, options.weights).result()
    digest = _network(options.weights, Recipe()).digest[:12]
    minutes = (time.monotonic() - begun) / 60
    how = f"`scripts/reproduce_paper.py{' --small' if options.small else ''}`, seed {options.seed}, weights {digest}"
    heading = [
        f"Made by {how}, on {os.cpu_count()} cores ({platform.machine()}).",
        "Specimens are simulated ("
        + "; ".join(f"{c.name}: {c.kind}, {c.shape[0]} × {c.shape[1]}, {c.grains} grains" for c in chosen if not c.map)
        + f") on a PILATUS 1M with pixels {chosen[0].binning} times as large, or are published maps. Interior: one "
        "crystal has more than 95 % of the beam; elsewhere, but in BaTiO3, a pattern counts as not indexable. Hatched: "
        "no pattern of the cluster can be indexed; such points are left out of squared errors.",
        *notes,
    ]
    write_atomically(options.out / "figures.md", page(studies, times, heading).encode())
    report = {"seed": options.seed, "weights": digest, "minutes": round(minutes, 2), "times": times}
    report |= {"studies": [asdict(study) for study in studies]}
    write_atomically(options.out / "report.json", json.dumps(report, indent=1, default=float).encode())
    return studies


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("paper"))
    parser.add_argument("--specimen", action="append", choices=NAMES, help="only this one; may be repeated")
    parser.add_argument("--small", action="store_true", help="scans of a hundred points, to see that it works")
    beside = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "maps"
    parser.add_argument("--maps", type=Path, default=beside.resolve(), help="folder of the published maps")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "laue-dask-paper")
    parser.add_argument("--weights", default="default", help="of the encoder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    # For the worker processes, which are yet to start: each has one core.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    try:
        studies = reproduce(options)
    except LaueDaskError as error:
        print(error, file=sys.stderr)
        return 2
    for study in studies:
        for one in study.observations:
            print(f"{'holds' if one.holds else 'DIFFERS':8} {one.figure}: {one.paper}: {one.seen}")
    print(f"{options.out / 'figures.md'}: {sum(len(study.figures) for study in studies)} figures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
