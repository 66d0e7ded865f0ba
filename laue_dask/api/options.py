"""Turn the keywords of a call into a configuration."""

import logging
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from laue_dask.compute import fork_server
from laue_dask.config import Config, load, merged, renamed, validate
from laue_dask.errors import ConfigError

if TYPE_CHECKING:
    from laue_dask.runtime.progress import Progress

AnyPath: TypeAlias = str | os.PathLike[str]

AnyConfig: TypeAlias = Config | AnyPath | Mapping[str, Any]
"""A configuration, the path of its YAML file, or its sections as nested dictionaries."""

AnyRange: TypeAlias = str | slice | tuple[int, int | None]
"""Rows or columns, half open and counted from 0: ``"2:10"``, ``slice(2, 10)`` or ``(2, 10)``."""

SECTION_OF_OPTION = {
    "shape": "scan",
    "order": "scan",
    "first_number": "scan",
    "insist": "scan",
    "rows": "scan",
    "columns": "scan",
    "every": "scan",
    "store_frames": "scan",
    "workers": "workers",
    "k": "clustering",
    "estimator": "clustering",
    "components": "pca",
    "extractor": "encoder",
    "weights": "encoder",
    "substrate": "recipe",
}
"""Section of the configuration that each keyword belongs to."""

KEY_OF_OPTION = {"workers": "count"}
"""Key in its section, where that is not called like the keyword."""


def path_of(path: AnyPath) -> Path:
    """Return a path as it was given, with `~` for one's home."""
    return Path(path).expanduser()


def k_values(k: int | Iterable[int]) -> tuple[int, ...]:
    """Return the numbers of clusters, given as one number or several.

    Raises
    ------
    ConfigError
        They are no whole numbers.

    Examples
    --------
    >>> k_values(6), k_values([6, 12])
    ((6,), (6, 12))
    """
    try:
        return tuple(map(operator.index, k)) if isinstance(k, Iterable) else (operator.index(k),)
    except TypeError as error:
        raise ConfigError(
            f"k = {k!r}: a number of clusters such as 6, or several such as [6, 12], was expected"
        ) from error


def overrides(**options: Any) -> dict[str, Any]:
    """Return keywords as the nested dictionary of the configuration, without those that are None or an empty `k`.

    Examples
    --------
    >>> overrides(k=(6,), shape=(4, 6), order=None)
    {'clustering': {'k': (6,)}, 'scan': {'shape': (4, 6)}}
    """
    nested: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        if name == "k":
            value = value or None
        elif isinstance(value, slice):
            value = _range(name, value)
        elif name == "weights" and value is not None:
            value = os.path.expanduser(value)  # noqa: PTH111  `default` is no path
        if value is not None:
            nested.setdefault(SECTION_OF_OPTION[name], {})[KEY_OF_OPTION.get(name, name)] = value
    return nested


def configured(config: AnyConfig | None, given: Mapping[str, Any]) -> Config:
    """Return the configuration of a call: what was `given` in keywords, as `overrides` has it, over `config`.

    Raises
    ------
    ConfigError
        A key is unknown or a value impossible; the message names it.
    """
    if isinstance(config, str | os.PathLike):
        return load(path_of(config), dict(given))
    if isinstance(config, Config):
        return validate(merged(config.model_dump(mode="json"), dict(given)), "options") if given else config
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(f"config = {config!r}: a Config, the path of a YAML file, or a dictionary was expected")
    where = "config" if config else "options"
    return validate(merged(renamed(dict(config or {}), where), dict(given)), where)


def prepare_workers(config: Config) -> None:
    """Have workers of this machine begin to import what they need; returns at once."""
    if config.workers.kind == "local":
        fork_server.start()


@contextmanager
def keeping_log_levels() -> Iterator[None]:
    """Leave loggers, which our own workers silence while they work, as the caller has them."""
    loggers = [logging.getLogger(name) for name in ("distributed", "asyncio")]
    levels = [logger.level for logger in loggers]
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def progress_of(progress: "Progress | bool | None") -> "Progress":
    """Return where a call reports how far it is: None or True for the usual place, False for nowhere."""
    if progress is None or progress is True:
        from laue_dask.runtime.notebook import usual_progress

        return usual_progress()
    from laue_dask.runtime.progress import NO_PROGRESS

    return progress or NO_PROGRESS


def as_typed(function: str, *positional: object, **options: Any) -> str:
    """Return a call as one line of Python, for the record.

    Examples
    --------
    >>> as_typed("run", "frames", out="runs/a", k=(6,), shape=None)
    "laue_dask.run('frames', out='runs/a', k=(6,))"
    """
    said = [repr(_plain(one)) for one in positional]
    said += [f"{name}={_plain(value)!r}" for name, value in options.items() if _is_said(value)]
    return f"laue_dask.{function}({', '.join(said)})"


def _is_said(value: object) -> bool:
    return not (value is None or value is False or (isinstance(value, tuple) and not value))


def _plain(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _range(name: str, part: slice) -> tuple[int, int | None]:
    if part.step not in (None, 1):
        raise ConfigError(f"{name} = {part!r}: a step is given by `every`, for rows and columns alike")
    return part.start or 0, part.stop
