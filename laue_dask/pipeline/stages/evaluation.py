"""How good a segmentation is against a true map, beside two baselines that nothing was learnt for.

The rows are the run's own features, principal components of the reduced pixels (64 times wider), and the same network
with random weights. All go through the same PCA and the run's own estimator, and the same is done to its labels: rows
differ by their features alone. Figures are given over all points and over the interior, where the beam does not
straddle two domains.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from distributed import Client
from numpy.typing import NDArray

from laue_dask.compute.cluster import Workers
from laue_dask.compute.run import map_tasks
from laue_dask.config import ClusteringConfig, Config
from laue_dask.errors import InputError
from laue_dask.evaluation import map_scores
from laue_dask.features.encode import Network
from laue_dask.features.extractors import features
from laue_dask.features.pixels import Pixels
from laue_dask.pipeline.stages import segmentation, specimen
from laue_dask.pipeline.stages.extraction import lazy_patterns, sample_of
from laue_dask.pipeline.stages.mixed_points import Patterns
from laue_dask.pipeline.stages.segmentation import Segmentation
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.runtime.progress import Progress, QuietProgress
from laue_dask.segmentation import labeling, scores
from laue_dask.segmentation.clustering import nearest
from laue_dask.segmentation.estimators import ESTIMATORS_FINDING_K
from laue_dask.segmentation.pca import IncrementalPCA, each_block
from laue_dask.segmentation.seeding import distinct_rows, sample_rows, search

N_PIXEL_COMPONENTS = 32
"""Components of the reduced pixels that the baseline uses."""

APPROXIMATION_K = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Numbers of clusters over which the true map is approximated (Figure 19)."""

OWN_ROW_NAMES = {"network": "encoder", "pixels": "pixels, own run", "peaks": "peaks"}
"""What the row of the run's own features is called, by the extractor that made them."""


@dataclass(frozen=True)
class Truth:
    """A true map.

    Attributes
    ----------
    domain : (ny, nx) int or None
        Number of the domain, negative where unknown.
    angle : (ny, nx) float64 or None
        A property in degrees, NaN where unknown (the paper's o(x, y)).
    edge : (ny, nx) bool
        True where the beam straddles two domains.
    """

    domain: NDArray[np.int64] | None
    angle: NDArray[np.float64] | None
    edge: NDArray[np.bool_]

    @property
    def n_domains(self) -> int:
        """Number of domains, 0 where unknown."""
        return 0 if self.domain is None else len(np.unique(self.domain[self.domain >= 0]))


TRUTH_ARRAYS = ("domain", "angle", "edge")


def read_truth(truth: Path | Mapping[str, Any], shape: tuple[int, int]) -> Truth:
    """Read a true map.

    Parameters
    ----------
    truth
        `truth.npz`, in which nothing is unpickled, or its arrays: `domain` and/or `angle`, optionally `edge`.
    shape
        (ny, nx) of the scan.

    Raises
    ------
    InputError
        The file is missing or no such file, or an array has another shape than the scan.
    """
    path: object = "truth"
    if isinstance(truth, Mapping):
        arrays = {name: np.asarray(truth[name]) for name in TRUTH_ARRAYS if truth.get(name) is not None}
    else:
        path, arrays = truth, _arrays_of(truth)
    if not {"domain", "angle"} & set(arrays):
        raise InputError(f"{path}: has neither `domain` nor `angle`: give at least one of them")
    for name, values in arrays.items():
        if values.shape != shape:
            raise InputError(f"{path}: `{name}` has shape {values.shape}, the run's scan is {shape}")
        if values.dtype.kind not in "biuf":
            raise InputError(f"{path}: `{name}` holds {values.dtype}, numbers were expected")
    domain = arrays.get("domain")
    if domain is not None and domain.dtype.kind == "f":
        domain = np.where(np.isfinite(domain), domain, -1)
    return Truth(
        domain=None if domain is None else domain.astype(np.int64),
        angle=arrays["angle"].astype(np.float64) if "angle" in arrays else None,
        edge=arrays.get("edge", np.zeros(shape, dtype=bool)).astype(bool),
    )


def _arrays_of(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return {name: np.asarray(found[name]) for name in TRUTH_ARRAYS if name in found.files}
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no such file: --truth names an .npz file with `domain` or `angle`"
        ) from error
    except Exception as error:  # np.load raises nearly anything on a damaged archive
        raise InputError(f"{path}: this is not an .npz file of plain numerical arrays") from error


def evaluate(
    results: xr.Dataset,
    reduced: zarr.Array[Any],
    config: Config,
    truth: Truth,
    *,
    client: Client | None = None,
    progress: Progress,
) -> list[dict[str, float | int | str]]:
    """Compare a run and its baselines with a true map.

    Parameters
    ----------
    client
        Of workers that read patterns; None for threads of this process.

    Returns
    -------
    rows
        One per feature extractor and K: the run's own K, the true number of domains and twice that; for an estimator
        that finds K itself, one per feature extractor with what it finds. `ari`, `ari_interior`, `homogeneity`,
        `homogeneity_interior` where the domains are known, `mse` and `ks` (section 4.3) where a property is known.
    """
    components = results["components"]
    m_pca = int(components.attrs["m_pca"])
    table: da.Array = da.asarray(components.data)
    where = SpecimenMap(np.isfinite(np.asarray(components[:, 0])), truth.edge.shape)
    k_values = set(map(int, results["k"].values))
    if truth.n_domains >= 2:
        k_values |= {truth.n_domains, 2 * truth.n_domains}
    usable = int(where.valid.sum())
    rows: list[dict[str, float | int | str]] = []
    finds = config.clustering.estimator in ESTIMATORS_FINDING_K
    chosen: list[int | None] = [None] if finds else [*sorted(k for k in k_values if k < usable)]
    # Workers read what the pixels' components are from a file, here as in a run.
    with tempfile.TemporaryDirectory(prefix="laue-dask-") as scratch:
        patterns = lazy_patterns(reduced)
        widened: da.Array = da.map_blocks(_widen, patterns, dtype=np.uint8)
        extracted: Mapping[str, da.Array] = {
            OWN_ROW_NAMES[config.encoder.extractor]: specimen.usable(table, where)[:, :m_pca],
            "untrained": _untrained(reduced, where, config),
            "pixels": _pixels(patterns, where, Path(scratch) / "pixels.safetensors"),
            "pixels, widened": _pixels(widened, where, Path(scratch) / "widened.safetensors"),
        }
        with progress.stage("evaluate", total=len(extracted) * len(chosen), unit="segmentations") as advance:
            for name, samples in extracted.items():
                for k in chosen:
                    [one] = segmentation.clusters(
                        samples,
                        samples.shape[1],
                        where,
                        [k],
                        config.clustering,
                        progress=QuietProgress(),
                        patterns=Patterns(config.recipe, [(reduced, where)]),
                        client=client,
                    )
                    figures = _compare(one, truth)
                    rows.append({"features": name, "k": one.k, "estimator": config.clustering.estimator, **figures})
                    advance(1)
    return rows


def approximate(
    results: xr.Dataset, config: Config, truth: Truth, *, workers: Workers, progress: Progress
) -> list[dict[str, float | int]]:
    """Return how well K delegates stand for the true property, over a wide range of K (section 4.3, Figure 19).

    By k-means, as in the paper and whatever the run's estimator: a mixture of a thousand components has more parameters
    than a scan has patterns. Centres come from one start, improved by moves, on the sample of the scores.

    Returns
    -------
    rows
        `map_scores.approximation_errors` for up to half as many clusters as there are patterns; none where no property
        is known.
    """
    if truth.angle is None:
        return []
    components = results["components"]
    where = SpecimenMap(np.isfinite(np.asarray(components[:, 0])), truth.edge.shape)
    samples = specimen.usable(da.asarray(components.data), where)[:, : int(components.attrs["m_pca"])]
    chosen = sample_rows(samples.shape[0], config.clustering.sample, config.clustering.seed)
    sample = np.asarray(samples[chosen].compute())
    most = min(samples.shape[0] // 2, len(distinct_rows(sample)) - 1)
    values = [k for k in APPROXIMATION_K if k <= most]
    with progress.stage("approximate", total=len(values), unit="K") as advance:
        found = map_tasks(
            _centres, values, (sample, config.clustering), client=workers.client, on_done=lambda k: advance(1)
        )
    maps = []
    for centres in found:
        labels = np.concatenate(each_block(nearest, samples, centers=centres))
        delegate = labeling.delegates(samples, labels, centres)
        maps.append((where.paint(labels, fill=np.int32(-1)), np.where(delegate < 0, -1, where.patterns[delegate])))
    return map_scores.approximation_errors(truth.angle, maps)


def _centres(k: int, sample: NDArray[np.float32], config: ClusteringConfig) -> NDArray[np.float64]:
    return search(sample, k, n_init=1, seed=config.seed)


def _compare(one: Segmentation, truth: Truth) -> dict[str, float]:
    found = one.labels
    figures: dict[str, float] = {}
    if truth.domain is not None:
        inside = ~truth.edge
        figures["ari"] = scores.adjusted_rand(truth.domain, found)
        figures["ari_interior"] = scores.adjusted_rand(truth.domain, found, where=inside)
        figures["homogeneity"] = scores.homogeneity(truth.domain, found)
        figures["homogeneity_interior"] = scores.homogeneity(truth.domain, found, where=inside)
    if truth.angle is not None:
        approximation = labeling.indexing_labels(truth.angle, one.delegate, found)
        figures["mse"] = scores.mean_squared_error(truth.angle, approximation)
        figures["ks"] = scores.kolmogorov_smirnov(truth.angle, approximation)
    return figures


def _untrained(reduced: zarr.Array[Any], where: SpecimenMap, config: Config) -> da.Array:
    """Components of the shipped architecture with random weights, whichever the run used."""
    random = config.encoder.model_copy(update={"weights": "untrained"})
    extracted = features(Network.load(random), lazy_patterns(reduced), where.valid).persist()
    pca = IncrementalPCA(n_components=config.pca.components).fit(extracted)
    components: da.Array = pca.transform(extracted, dtype=np.float32)[:, : pca.n_components_].persist()
    return specimen.usable(components, where)


def _pixels(patterns: da.Array, where: SpecimenMap, file: Path) -> da.Array:
    """The leading components of the patterns themselves; `file` keeps what is fitted for as long as it is computed."""
    extractor = Pixels(n_features=N_PIXEL_COMPONENTS).fit(sample_of(patterns, where), file)
    components: da.Array = features(extractor, patterns, where.valid).persist()
    return specimen.usable(components, where)


def _widen(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Patterns with their spots widened as the encoder's first layer does."""
    import torch  # what a run imports with this module has no use for it

    from laue_dask.features.network import Smoothing

    with torch.inference_mode():
        smoothed = Smoothing(1.0)(torch.from_numpy(np.asarray(block))[:, None].float() / 255)
        return np.asarray((smoothed[:, 0] * 255).round().to(torch.uint8).numpy())


def table(rows: list[dict[str, float | int | str]]) -> str:
    """Return the plain text table of the rows of `evaluate`."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_cell(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def _cell(value: float | int | str) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
