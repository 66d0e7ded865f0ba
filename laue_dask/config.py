"""Typed, validated configuration: one YAML file ⇄ one model.

Every key has a default, an unknown key is an error, and the resolved configuration of a run is written beside its
results. Nothing heavy is imported here: the command line reads it before it does anything.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from laue_dask.config_errors import explain
from laue_dask.errors import ConfigError
from laue_dask.former_names import former, modern

logger = logging.getLogger(__name__)


def _as_shape(value: object) -> object:
    """Two numbers as people write them, `4 x 6` or `4, 6`, as a list."""
    written = re.fullmatch(r"\s*(\d+)\s*[x×*, ]\s*(\d+)\s*", value) if isinstance(value, str) else None
    if value is not None and not written and not (isinstance(value, list | tuple) and len(value) == 2):
        raise ValueError("two numbers of points such as [4, 6] were expected, of the slow and the fast axis")
    return [int(written[1]), int(written[2])] if written else value


def _as_list(value: object) -> object:
    """One number where a list of them may stand."""
    if isinstance(value, str | float):
        raise ValueError("numbers of clusters such as [6, 12] were expected")
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


def _as_components(value: object, check: ValidatorFunctionWrapHandler) -> Any:
    try:
        return check(value)
    except ValidationError as error:
        raise ValueError(
            "a number of components such as 32, or a share of the variance such as 0.99, was expected"
        ) from error


Order = Literal["raster", "snake"]
Shape = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], BeforeValidator(_as_shape)]


def _as_range(value: object) -> object:
    """A half-open range of `2:10`, `:10` or `5:`, or of a list of two numbers; counted from 0."""
    text = f"{value!r}: a range such as 2:10 was expected, from 0, without the last (in YAML [2, 10] or '2:10')"
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", value)
        if not found:
            raise ValueError(text)
        value = (int(found[1] or 0), int(found[2]) if found[2] else None)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(text)
    first, stop = value
    if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in (first, stop or 0)):
        raise ValueError(text)
    if stop is not None and stop <= first:
        raise ValueError(f"{first}:{stop} is empty: the last is not in a range, so {first}:{first + 1} is the smallest")
    return (first, stop)


Range = Annotated[tuple[int, int | None], BeforeValidator(_as_range)]
"""First and the one after the last, from 0; None for the end."""


class Model(BaseModel):
    """Base of every section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty_sections(cls, data: Any) -> Any:
        """A section with nothing under it (`scan:`) keeps its defaults."""
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        empty = {
            key for key, value in data.items() if value is None and key in fields and _is_section(fields[key].default)
        }
        return {key: value for key, value in data.items() if key not in empty} if empty else data

    def digest(self) -> str:
        """Return the hash of the values, 16 hexadecimal digits."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_section(default: object) -> bool:
    return isinstance(default, Model)


class Recipe(Model):
    """How a frame becomes a 128 × 128 pattern in [0, 1] (section 3.1 of the paper, made robust for real frames)."""

    version: Literal[1, 2] = 2
    """2 takes in the whole frame, 1 the centred square alone, as the patterns of earlier runs."""
    background_block: int = Field(24, ge=4, le=512)
    """Side in pixels of the blocks whose medians are the local background."""
    clip_sigma: float = Field(4.0, ge=0, le=100)
    """Signal below this many sigmas of the background's robust scatter is set to zero."""
    softening_sigma: float = Field(10.0, gt=0, le=1e4)
    """Intensities d become asinh(d / (softening_sigma × sigma))."""
    saturation_quantile: float = Field(0.9995, gt=0.5, le=1)
    """Quantile of the 128 × 128 pixels that is mapped to 1."""
    substrate: Literal["keep", "remove"] = "keep"
    """`remove` subtracts the scan's own median pattern: a substrate that is the same at every point."""

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, data: Any) -> Any:
        """Stores and weights of before name their recipe's keys as it was then."""
        return modern({"recipe": data})[0]["recipe"] if isinstance(data, dict) else data

    def digest(self) -> str:
        """Hash of the values, 16 hexadecimal digits, under the names that they always had there."""
        text = json.dumps(former("recipe", self.model_dump(mode="json")), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def for_frames(self, shape: Sequence[int]) -> Self:
        """Return the recipe under whose hash patterns of frames of (rows, columns) are kept.

        Of square frames both versions make the same patterns: those of earlier runs are valid for either.
        """
        return self.model_copy(update={"version": 1}) if shape[0] == shape[1] else self

    def window(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return the rows and columns of the middle part of a frame of (rows, columns) that patterns are made of."""
        return (shape[0], shape[1]) if self.version > 1 else (min(shape), min(shape))


AnyModel = TypeVar("AnyModel", bound=Model)


class ScanConfig(Model):
    """The grid, where the frames' headers do not tell it."""

    shape: Shape | None = None
    """(ny, nx): slow and fast axis."""
    order: Order | None = None
    """Of the lines; by default that of the stage positions, or `raster` where these do not tell."""
    first_number: int | None = Field(None, ge=0)
    """Number of the first file (or row, column, line of files), where files are missing and nobody knows which."""
    insist: bool = False
    """Whether shape and order are taken as given, whatever the headers and the names of the files say."""
    rows: Range | None = None
    """Rows that are taken of the whole grid, `[first, after the last]` from 0; all by default."""
    columns: Range | None = None
    """Columns, likewise."""
    every: int = Field(1, ge=1)
    """Takes every so manieth of these rows, and of these columns."""
    aborted: bool = False
    """Whether fewer than half of the shape's points may be there; otherwise so few say that the shape is wrong."""
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
    batch_size: Annotated[int, Field(ge=1, le=65536)] | Literal["auto"] = 32
    """Patterns at a time; `auto` is for GPUs: each worker finds the size that is fastest on its own before it begins.
    On CPUs nothing is faster than the default."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the convolutions; features are always float32."""


class PCAConfig(Model):
    """How many principal components the clustering uses (M_PCA)."""

    components: Annotated[
        Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, lt=1)], WrapValidator(_as_components)
    ] = 0.99
    """A number of components, or the share of the variance that they must explain."""


class ClusteringConfig(Model):
    """Which segmentations are made and scored."""

    estimator: Literal["kmeans", "bgm", "gmm", "hdbscan", "mean_shift"] = "kmeans"
    """g of the segmentation: k-means, (Bayesian) Gaussian mixture, or one that finds K itself. Scores are k-means'."""
    k: Annotated[tuple[Annotated[int, Field(ge=2, le=65536)], ...], BeforeValidator(_as_list)] = ()
    """Numbers of clusters K asked for, besides those at the peaks of the scores."""
    score_k: tuple[Annotated[int, Field(ge=2)], Annotated[int, Field(ge=2)]] = (2, 20)
    """First and last K that is scored."""
    n_init: int = Field(10, ge=1, le=1000)
    """Number of k-means++ starts on the sample."""
    sample: int = Field(20_000, ge=100)
    """Patterns used for the starts and for the scores."""
    silhouette_sample: int = Field(20_000, ge=100, le=50_000)
    """Patterns of the sample that silhouettes are of; where they are fewer than all, each K has its own."""
    repeats: int = Field(5, ge=0, le=100)
    """Repeated fits of each scored K to small samples: the scores' confidence bands, and whether the partition is found
    again; 0 leaves them out."""
    min_cluster_size: int = Field(20, ge=2)
    """Fewest patterns of the sample in a cluster of HDBSCAN."""
    bandwidth: float | None = Field(None, gt=0)
    """Radius of mean shift in the components' units; from the sample's distances by default."""
    mixed_points: Literal["larger_share", "estimator"] = "larger_share"
    """Label of a point where the beam straddles two domains: of the one with the `larger_share` of its intensities,
    where the pattern tells and there are no more than 512 clusters; or the `estimator`'s, as that of all others."""
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


def _in_seconds(value: object) -> object:
    """Seconds of `8h`, `90 min`, `08:00:00` or `1-12:00:00`; `08:00` means minutes to some, hours to others."""
    if not isinstance(value, str):
        # YAML itself makes seconds of an unquoted 12:00:00.
        return value
    written = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", value.strip())
    if written:
        days, hours, minutes, seconds = (int(part or 0) for part in written.groups())
        return ((24 * days + hours) * 60 + minutes) * 60 + seconds
    counted = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)", value.strip())
    if counted:
        return round(float(counted[1]) * {"s": 1, "min": 60, "h": 3600, "d": 86400}[counted[2]])
    raise ValueError("a time such as 08:00:00, 8h or 30min was expected")


def _as_clock(seconds: int) -> str:
    """Seconds as `HH:MM:SS`."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


Seconds = Annotated[int, BeforeValidator(_in_seconds), PlainSerializer(_as_clock, return_type=str), Field(ge=1)]
"""A time of whole seconds."""


class _WorkersConfig(Model):
    """What all kinds of workers have."""

    gpu: Literal["auto", "never", "require"] = "auto"
    """`auto` says so where there is no GPU, and goes on with CPU workers; `require` ends there."""
    dashboard: bool = False
    """Serve Dask's dashboard, on the loopback interface alone; how to get there is said at the start."""
    report: bool = True
    """Keep Dask's performance report of a run, `RUN/dask-report.html`."""
    read_deadline: Seconds = 120
    """Time after which a frame that is not read is set aside: the file system may not answer."""


class LocalWorkersConfig(_WorkersConfig):
    """Workers of this machine; loopback interface only."""

    kind: Literal["local"] = "local"
    count: int | None = Field(None, ge=1, le=4096)
    """Worker processes; all cores by default."""
    memory: str | None = None
    """Memory limit of a worker, as `4GiB`; by default a safe share of the machine's."""
    scratch: Path | None = None
    """Folder for what workers spill; the system's temporary folder by default."""
    security: Literal["tls", "none"] = "tls"
    """`none`: every user of this machine can run anything as you."""
    timeout: Seconds = 120
    """Time without a single worker after which the run ends."""


class _JobsConfig(Model):
    """Jobs of a batch system."""

    memory: str = "4GiB"
    """Memory limit of a worker; a job asks for that of its workers together."""
    queue: str | None = None
    """Queue, or partition."""
    account: str | None = None
    """Account, or project, that the time is charged to."""
    walltime: Seconds | None = None
    """Of a job; workers end shortly before, and jobs that ended are replaced."""
    lifetime: Seconds | None = None
    """Time after which a worker ends; by default shortly before the walltime."""
    resource_spec: str | None = None
    """What a job asks for in the batch system's own words (`-l` of PBS and SGE), instead of cores, memory and GPUs."""
    directives: tuple[str, ...] = ()
    """More directives of the batch system, without their prefix, as `--exclusive`."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """More Dask resources of each worker."""


class GPUJobsConfig(_JobsConfig):
    """Jobs with GPUs; one worker process with one thread for each GPU.

    Queue, account and walltime are those of the other jobs where they are not given.
    """

    count: int = Field(1, ge=1, le=4096)
    """GPUs, that is workers, in all."""
    gpus: int = Field(1, ge=0, le=64)
    """GPUs of a job, that is of a node. 0: a worker without a GPU that takes the encoding all the same, if its
    `resources` say `GPU: 1`."""
    cores: int = Field(1, ge=1, le=4096)
    """Cores for each worker."""
    memory: str = "16GiB"

    @model_validator(mode="after")
    def _tagged(self) -> Self:
        if not self.gpus and "GPU" not in self.resources:
            raise ValueError("gpus = 0 makes no workers with a GPU: leave gpu_jobs out")
        return self


class BatchWorkersConfig(_WorkersConfig, _JobsConfig):
    """Jobs of a batch system, through dask-jobqueue; the scheduler runs beside the command."""

    kind: Literal["slurm", "pbs", "lsf", "sge"]
    count: int = Field(1, ge=0, le=4096)
    """CPU workers in all, one core and one thread each."""
    cores: int = Field(1, ge=1, le=4096)
    """Cores of a job, that is its workers."""
    gpu_jobs: GPUJobsConfig | None = None
    """Jobs with GPUs, which take the encoding."""
    interface: str | None = None
    """Network interface between the scheduler and the workers, as `ib0`; the machine's own name by default."""
    scratch: str = "${TMPDIR:-/tmp}"
    """Folder on a node's own disk for what workers spill; the job's shell fills in variables."""
    prologue: tuple[str, ...] = ()
    """Shell lines of a job before its workers start, as `module load cuda`."""
    python: Path | None = None
    """Interpreter of the workers; the command's own by default."""
    security: Literal["tls", "none"] = "tls"
    """`none`: whoever reaches the scheduler's port can run anything as you."""
    timeout: Seconds = 1800
    """Time without a single worker after which the run ends with the batch system's own reason."""

    @model_validator(mode="after")
    def _any_workers(self) -> Self:
        if not self.count and self.gpu_jobs is None:
            raise ValueError("count = 0 and no gpu_jobs: there would be no workers at all")
        return self


class SchedulerWorkersConfig(_WorkersConfig):
    """A Dask scheduler that is there already, with its workers."""

    kind: Literal["scheduler"]
    address: str | None = None
    """As `tls://node1:8786`."""
    file: Path | None = None
    """Or the scheduler file, as `dask scheduler --scheduler-file` writes it."""
    count: int | None = Field(None, ge=1, le=4096)
    """Workers to wait for; one by default."""
    security: Literal["tls", "none"] = "tls"
    """`none` for one that anybody who reaches its port can run anything on."""
    ca: Path | None = None
    """Files of the credentials: certificate authority, certificate, key; by default those of Dask's configuration."""
    cert: Path | None = None
    key: Path | None = None
    timeout: Seconds = 300
    """Time without a single worker after which the run ends."""

    @model_validator(mode="after")
    def _reached_one_way(self) -> Self:
        if (self.address is None) == (self.file is None):
            raise ValueError("give either address or file of the scheduler")
        return self


def _kind_of(value: object) -> str:
    kind = value.get("kind", "local") if isinstance(value, dict) else getattr(value, "kind", "local")
    return "kind=batch" if kind in ("slurm", "pbs", "lsf", "sge") else f"kind={kind}"


AnyWorkers = Annotated[
    Annotated[LocalWorkersConfig, Tag("kind=local")]
    | Annotated[BatchWorkersConfig, Tag("kind=batch")]
    | Annotated[SchedulerWorkersConfig, Tag("kind=scheduler")],
    Discriminator(_kind_of),
]
"""Where it runs, by `kind`."""


class Config(Model):
    """A whole run.

    Every key has a default; an unknown key, or a value that is impossible, is an error.

    Examples
    --------
    >>> config = Config(clustering={"k": [6, 12]}, quality="none")
    >>> config.clustering.k, config.pca.components
    ((6, 12), 0.99)
    >>> Config(clustering={"k": [1]})
    Traceback (most recent call last):
    ...
    pydantic_core._pydantic_core.ValidationError: ...
    """

    scan: ScanConfig = ScanConfig()
    recipe: Recipe = Recipe()
    encoder: EncoderConfig = EncoderConfig()
    pca: PCAConfig = PCAConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    workers: AnyWorkers = LocalWorkersConfig()
    quality: Literal["all", "sample", "none"] = "sample"
    """For which patterns the reconstruction error is computed."""

    def _repr_html_(self) -> str:
        """What differs from the defaults, for a notebook."""
        from laue_dask.runtime.summary import Summary

        usual, given = Config().model_dump(mode="json"), self.model_dump(mode="json")
        facts = dict(_differences(usual, given))
        return Summary("Config", "" if facts else "all defaults", facts).html()


def _differences(usual: dict[str, Any], given: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys whose values are not the usual ones, and these."""
    for name, value in given.items():
        other = usual.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _differences(other, value, f"{before}{name}.")
        elif value != other:
            yield f"{before}{name}", str(value)


def load(path: Path | None, overrides: dict[str, Any] | None = None) -> Config:
    """Read a YAML file into a `Config`, with `overrides` (nested dictionaries) on top.

    Raises
    ------
    ConfigError
        The file is missing, is not YAML, or has an unknown key or an impossible value; the message names the key.
    """
    data, where = ({}, "options") if path is None else (read_yaml(path), str(path))
    return validate(merged(renamed(data, where), overrides or {}), where)


def renamed(data: dict[str, Any], where: str) -> dict[str, Any]:
    """A configuration that somebody wrote under today's names; each former one is named in a line.

    Raises
    ------
    ConfigError
        A key is given under both of its names.
    """
    try:
        found, former_keys = modern(data)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    for before, now in former_keys.items():
        logger.warning("%s: the key '%s' is called '%s' now: write that instead", where, before, now)
    return found


def validate(data: dict[str, Any], where: str) -> Config:
    """Check plain values against the model; `where` names their origin in the message.

    Keys may have the names of before, as those of earlier runs do.
    """
    try:
        data = modern(data)[0]
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return checked(Config, data, where, hint="`laue-dask config` prints every key with its default")


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may stand but once: of two, one would be lost without a word.

    Nor are there aliases, a few of which, one within the other, make a configuration of more values than any memory
    holds.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", None)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key.value}' is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty one.

    Raises
    ------
    ConfigError
        It is missing, or is something else.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  a safe one
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: configuration cannot be read: {reason}") from error
    except (yaml.YAMLError, ValueError) as error:  # a date of the 31st of February is a ValueError
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
        raise ConfigError(f"{where}: {explain(error, model, hint=hint)}") from error


def dump(config: Config) -> str:
    """Return the configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Return the nested dictionaries, those of `top` over those of `base`."""
    both = dict(base)
    for key, value in top.items():
        below = both.get(key)
        both[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both
