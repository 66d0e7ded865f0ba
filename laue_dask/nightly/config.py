"""The configuration of a nightly batch, read from YAML."""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from laue_dask.config import Config, Model, checked, merged, read_yaml, renamed
from laue_dask.config_errors import explain
from laue_dask.errors import ConfigError

_BYTES_PER_UNIT = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def _in_bytes(value: object) -> object:
    """Bytes of `20GB` or `1.5 TB`; a plain number is bytes."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", value.strip().lower())
    if not found:
        raise ValueError("a size such as 20GB was expected")
    return round(float(found[1]) * _BYTES_PER_UNIT[found[2]])


def _as_clock(value: object) -> object:
    """`HH:MM`; of an unquoted 19:30 YAML itself makes minutes."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 24 * 60:
        return f"{value // 60:02d}:{value % 60:02d}"
    if not isinstance(value, str) or not re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", value):
        raise ValueError("a time of day such as '07:00' was expected")
    return value.zfill(5)


def _relative(pattern: str) -> str:
    if pattern.startswith("/") or ".." in pattern.split("/") or not pattern.strip("/"):
        raise ValueError("a pattern of paths below the beamtime's folder was expected, such as '*/scan*'")
    return pattern.strip("/")


def _http(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("an http or https address was expected")
    return url


Bytes = Annotated[int, BeforeValidator(_in_bytes), Field(ge=0)]
Clock = Annotated[str, BeforeValidator(_as_clock)]
Pattern = Annotated[str, AfterValidator(_relative)]
"""Of paths below ROOT: `*` stands for one name or a part of it, `**` for any number of folders."""
Names = Annotated[tuple[Pattern, ...], PlainSerializer(list)]


class FindConfig(Model):
    """What is a scan, and when it is complete."""

    patterns: Names = ("**",)
    """Folders of frames, or files of several frames such as `**/*.h5`. Sub-folders that are the lines of one scan, as
    `run` takes them, are one; where a pattern matches them but not the folder above, each is a scan."""
    exclude: Names = ()
    """Folders and files that are left out, with all that is in them."""
    min_frames: int = Field(4, ge=1)
    """Files of frames in a folder below which it waits for more; of a file of several frames, 1 counts."""
    min_size: Bytes = 0
    """Bytes of all its frames below which a scan waits for more."""
    quiet_minutes: float = Field(10.0, ge=0)
    """A scan is complete when none of its files has changed for so long."""
    done_marker: str | None = Field(None, pattern=r"^[^/]+$")
    """Name of a file that is written in a scan's folder when it is complete; of the scan `a.h5` with the marker
    `.done`, the file `a.h5.done` beside it. Without it a scan waits."""


class LimitsConfig(Model):
    """What a night may take."""

    until: Clock | None = None
    """Time of day, `HH:MM` of this machine's clock, at which the night ends."""
    hours: float | None = Field(None, gt=0)
    """Hours after which the night ends, if that is earlier."""
    scan_hours: float = Field(12.0, gt=0)
    """Hours after which one scan is given up; that is a failure."""
    min_free: Bytes = 20 * 10**9
    """Bytes of the disk that are left free."""
    cores: int | None = Field(None, ge=1)
    """Cores used; all by default."""
    nice: int = Field(10, ge=0, le=19)
    """How far the processes step back behind others on the machine."""
    scans_per_process: int = Field(16, ge=1)
    """Scans after which their process and its workers are started afresh, so that what they leave in memory is gone."""


class RetryConfig(Model):
    """What happens after a failure that may be a passing one."""

    attempts: int = Field(3, ge=1)
    """Times that a scan is tried before it is set aside."""
    pause_seconds: float = Field(60.0, ge=0)
    """Before the next try, where nothing else is left to do."""


class KeepConfig(Model):
    """How long what the nights made is kept. Nothing else is ever removed, nor a run that was worked on by hand."""

    stores_days: float | None = Field(None, ge=0)
    """Days after which a run's scan store (frames and reduced patterns) is removed; maps and results stay."""
    runs_days: float | None = Field(None, ge=0)
    """Days after which a whole run is removed; it is not done again."""


class NotifyConfig(Model):
    """Who is told."""

    when: Literal["problems", "always"] = "problems"
    """`problems`: where the night failed or scans are set aside."""
    webhook: Annotated[str, AfterValidator(_http)] | None = None
    """Address that the summary is posted to as JSON."""
    command: tuple[str, ...] = ()
    """Program and arguments; the summary comes on its standard input."""
    timeout_seconds: float = Field(10.0, gt=0)


class LogConfig(Model):
    """`nightly.log`: one line for each scan."""

    max_size: Bytes = 10**6
    """Bytes after which it is rotated."""
    files: int = Field(5, ge=1)
    """Older ones that are kept."""


class Special(Model):
    """Scans that are run with other settings."""

    pattern: Pattern
    run: dict[str, Any]
    """Sections and keys of a run's configuration, on top of those for all scans."""


class NightlyConfig(Model):
    """A nightly batch."""

    out: Path | None = None
    """Folder for runs, journal, log and pages; relative to this file."""
    find: FindConfig = FindConfig()
    run: Config = Config()
    """Configuration of every run."""
    special: tuple[Special, ...] = ()
    """The first whose pattern matches a scan applies to it."""
    limits: LimitsConfig = LimitsConfig()
    retry: RetryConfig = RetryConfig()
    keep: KeepConfig = KeepConfig()
    notify: NotifyConfig = NotifyConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _special_runs(self) -> Self:
        for place, special in enumerate(self.special):
            try:
                Config.model_validate(merged(self.run.model_dump(mode="json"), special.run))
            except ValidationError as error:
                reason = explain(error, Config, hint="this is not a key of a run's configuration")
                raise ValueError(f"special.{place} ('{special.pattern}').run: {reason}") from error
        return self


def load(path: Path | None, overrides: dict[str, Any] | None = None) -> NightlyConfig:
    """Read a YAML file into a `NightlyConfig`, with `overrides` on top; paths in it are relative to the file.

    Raises
    ------
    ConfigError
        The file is missing, is not YAML, or has an unknown key or an impossible value; the message names the key.
    """
    data, where = ({}, "options") if path is None else (read_yaml(path), str(path))
    here = Path.cwd() if path is None else path.absolute().parent
    if isinstance(data.get("out"), str):
        data["out"] = str(here / data["out"])
    if isinstance(data.get("run"), dict):
        data["run"] = renamed(data["run"], f"{where}, run")
    if isinstance(data.get("special"), list):
        data["special"] = [
            {**one, "run": renamed(one["run"], f"{where}, special.{place}.run")}
            if isinstance(one, dict) and isinstance(one.get("run"), dict)
            else one
            for place, one in enumerate(data["special"])
        ]
    hint = "`laue-dask config --nightly` prints every key with its default"
    config = checked(NightlyConfig, merged(data, overrides or {}), where, hint=hint)
    encoder = config.run.encoder
    if encoder.weights.endswith(".safetensors"):
        encoder = encoder.model_copy(update={"weights": str(here / encoder.weights)})
    special = tuple(one.model_copy(update={"run": _placed(one.run, here)}) for one in config.special)
    run = config.run.model_copy(update={"encoder": encoder})
    return config.model_copy(update={"run": run, "special": special})


def _placed(run: dict[str, Any], here: Path) -> dict[str, Any]:
    """Settings of special scans, whose weights are relative to the file, too."""
    weights = run.get("encoder", {}).get("weights", "")
    return merged(run, {"encoder": {"weights": str(here / weights)}}) if weights.endswith(".safetensors") else run


def dump(config: NightlyConfig) -> str:
    """Return the configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def ends_at(limits: LimitsConfig, began: datetime) -> datetime | None:
    """Return when a night that began at `began`, in local time, is over."""
    ends = []
    if limits.hours is not None:
        ends.append(began + timedelta(hours=limits.hours))
    if limits.until is not None:
        hour, minute = map(int, limits.until.split(":"))
        end = began.replace(hour=hour, minute=minute, second=0, microsecond=0)
        ends.append(end if end > began else end + timedelta(days=1))
    return min(ends, default=None)


def require_out(config: NightlyConfig, where: str) -> Path:
    """Return the folder for everything that is written.

    Raises
    ------
    ConfigError
        None was given, or it holds a run, a series or a store.
    """
    if config.out is None:
        raise ConfigError(f"{where}: the folder to write to is missing: set `out` in the configuration, or give --out")
    if any((config.out / name).exists() for name in ("run.json", "results.zarr", "series.json", "zarr.json")):
        raise ConfigError(f"{where}: `out` = {config.out}: holds a run, a series or a store: choose another folder")
    return config.out.absolute()
