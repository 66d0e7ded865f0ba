"""Typed, validated configuration: one YAML file ⇄ one model.

Every key has a default, an unknown key is an error, and the resolved configuration of a run is written beside its
results. Nothing heavy is imported here: the command line reads it before it does anything.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from laue_dask.errors import ConfigError

Order = Literal["raster", "snake"]
Shape = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


class Model(BaseModel):
    """Base of every section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def digest(self) -> str:
        """Hash of the values, 16 hexadecimal digits."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Recipe(Model):
    """How a frame becomes a 128 × 128 pattern in [0, 1] (section 3.1 of the paper, made robust for real frames)."""

    version: Literal[1] = 1
    background_block: int = Field(24, ge=4, le=512)
    """Side in pixels of the blocks whose medians are the local background."""
    clip_sigma: float = Field(4.0, ge=0, le=100)
    """Signal below this many sigmas of the background's robust scatter is set to zero."""
    softening_sigma: float = Field(10.0, gt=0, le=1e4)
    """Intensities d become asinh(d / (softening_sigma × sigma))."""
    white_quantile: float = Field(0.9995, gt=0.5, le=1)
    """Quantile of the 128 × 128 pixels that is mapped to 1."""
    substrate: Literal["keep", "remove"] = "keep"
    """`remove` subtracts the scan's own median pattern: a substrate that is the same at every point."""


AnyModel = TypeVar("AnyModel", bound=Model)


class ScanConfig(Model):
    """The grid, where the frames' headers do not tell it."""

    shape: Shape | None = None
    """(ny, nx): slow and fast axis."""
    order: Order = "raster"
    store_frames: bool = True
    """Whether `run` keeps the frames in its scan store. Without, the detector's files are the only copy; the reduced
    patterns are kept, and another recipe reads the files again."""


class EncoderConfig(Model):
    """What makes features of a pattern (Definition 4), and how."""

    extractor: Literal["network", "pixels", "peaks"] = "network"
    """`network` (the encoder of `weights`), `pixels` (principal components of the reduced pattern) or `peaks`
    (positions and intensities of the brightest peaks)."""
    weights: str = "default"
    """`default` (shipped), `untrained` (random, for comparison), or the path of a `.safetensors` file."""
    batch_size: int = Field(32, ge=1, le=65536)
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the convolutions; features are always float32."""


class PCAConfig(Model):
    """How many principal components the clustering uses (M_PCA)."""

    components: Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, lt=1)] = 0.99
    """A number of components, or the share of the variance that they must explain."""


class ClusteringConfig(Model):
    """Which segmentations are made and scored."""

    estimator: Literal["kmeans", "bgm", "gmm", "hdbscan", "mean_shift"] = "kmeans"
    """g of the segmentation: k-means, (Bayesian) Gaussian mixture, or one that finds K itself. Scores are k-means'."""
    k: tuple[Annotated[int, Field(ge=2, le=65536)], ...] = ()
    """Numbers of clusters K asked for, besides those at the peaks of the scores."""
    score_k: tuple[Annotated[int, Field(ge=2)], Annotated[int, Field(ge=2)]] = (2, 20)
    """First and last K that is scored."""
    n_init: int = Field(10, ge=1, le=1000)
    """Number of k-means++ starts on the sample."""
    sample: int = Field(20_000, ge=100)
    """Patterns used for the starts and for the scores."""
    silhouette_sample: int = Field(10_000, ge=100, le=50_000)
    repeats: int = Field(5, ge=0, le=100)
    """Repeated fits of each scored K to small samples: the scores' confidence bands, and whether the partition is found
    again; 0 leaves them out."""
    min_cluster_size: int = Field(20, ge=2)
    """Fewest patterns of the sample in a cluster of HDBSCAN."""
    bandwidth: float | None = Field(None, gt=0)
    """Radius of mean shift in the components' units; from the sample's distances by default."""
    smoothing: float = Field(0.0, ge=0, le=1e6)
    """Weight of a pair of scan neighbours with different labels (Potts model) against the patterns' mean squared
    distance to their centroids; 0 leaves the labels as they are."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.score_k[0] > self.score_k[1]:
            raise ValueError(f"score_k: first K {self.score_k[0]} is larger than last K {self.score_k[1]}")
        if self.k and self.estimator in ("hdbscan", "mean_shift"):
            raise ValueError(f"{self.estimator} finds the number of clusters itself: leave k out")
        return self


class ClusterConfig(Model):
    """Where it runs."""

    kind: Literal["local"] = "local"
    workers: int | None = Field(None, ge=1, le=4096)
    """Worker processes; all cores by default."""
    memory: str | None = None
    """Memory limit of a worker, as `4GiB`; by default a safe share of the machine's."""
    scratch: Path | None = None
    """Folder for what workers spill; the system's temporary folder by default."""
    gpu: Literal["auto", "never", "require"] = "auto"
    dashboard: bool = False
    """Serve Dask's dashboard on the loopback interface."""


class Config(Model):
    """A whole run."""

    scan: ScanConfig = ScanConfig()
    recipe: Recipe = Recipe()
    encoder: EncoderConfig = EncoderConfig()
    pca: PCAConfig = PCAConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    cluster: ClusterConfig = ClusterConfig()
    quality: Literal["all", "sample", "none"] = "sample"
    """For which patterns the reconstruction error is computed."""


def load(path: Path | None, overrides: dict[str, Any] | None = None) -> Config:
    """Read a YAML file into a `Config`, with `overrides` (nested dictionaries) on top.

    Raises
    ------
    ConfigError
        The file is missing, is not YAML, or has an unknown key or an impossible value; the message names the key.
    """
    data, where = ({}, "options") if path is None else (read_yaml(path), str(path))
    return validate(merged(data, overrides or {}), where)


def validate(data: dict[str, Any], where: str) -> Config:
    """Check plain values against the model; `where` names their origin in the message."""
    return checked(Config, data, where, hint="`laue-dask config` prints every key with its default")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty one.

    Raises
    ------
    ConfigError
        It is missing, or is something else.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: configuration cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not a configuration: brackets nested too deeply") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a mapping of sections was expected, found a {type(data).__name__}")
    return data


def checked(model: type[AnyModel], data: dict[str, Any], where: str, *, hint: str) -> AnyModel:
    """Check plain values against a model.

    Parameters
    ----------
    where
        Origin of the values, for the message.
    hint
        Where to find the keys that there are.

    Raises
    ------
    ConfigError
        A key is unknown or a value impossible; the message names the first of them.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("constrained"))
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{where}: unknown key '{key}': {hint}") from error
        raise ConfigError(f"{where}: {key or 'configuration'} = {first['input']!r}: {first['msg']}") from error


def dump(config: Config) -> str:
    """The configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, those of `top` over those of `base`."""
    both = dict(base)
    for key, value in top.items():
        below = both.get(key)
        both[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both
