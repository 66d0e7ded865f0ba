"""Names that keys of the configuration had before: they are read as today's, and what is hashed keeps them.

Runs, stores, weights and nights of before stay valid, whatever their configuration calls its keys.
"""

from collections.abc import Mapping
from typing import Any

FORMER_KEYS = {
    "workers": "cluster",
    "workers.count": "cluster.workers",
    "workers.gpu_jobs.count": "cluster.gpu_jobs.workers",
    "clustering.mixed_points": "clustering.straddling",
    "recipe.saturation_quantile": "recipe.white_quantile",
}
"""Key → what it was called, with its section as that was called."""

FORMER_VALUES = {("clustering.mixed_points", "larger_share"): "share"}
"""Key and value → the value as it was called."""


def modern(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A configuration with today's names.

    Parameters
    ----------
    values
        Nested mapping of sections, under today's or former names.

    Returns
    -------
    values
        The same under today's names.
    renamed
        Former → today's dotted key, of those that were used.

    Raises
    ------
    ValueError
        A key is given under both names.
    """
    found, renamed = dict(values), {}
    for key, former in FORMER_KEYS.items():
        *sections, name = key.split(".")
        inside: Any = found
        for section in sections:
            below = inside.get(section)
            if not isinstance(below, Mapping):
                break
            inside[section] = dict(below)
            inside = inside[section]
        else:
            before = former.rsplit(".", 1)[-1]
            if before not in inside:
                continue
            if name in inside:
                raise ValueError(f"{key} is given under this name and under its former one, {before}: leave one out")
            value = inside.pop(before)
            inside[name] = _todays_value(key, value)
            renamed[former if former == before else ".".join([*sections, before])] = key
    return found, renamed


def former(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a section under the names that are hashed."""
    found = {}
    for name, value in values.items():
        key = f"{section}.{name}"
        same = not isinstance(value, str) or (key, value) not in FORMER_VALUES
        found[FORMER_KEYS.get(key, key).rsplit(".", 1)[-1]] = value if same else FORMER_VALUES[key, value]
    return found


def todays(key: str, value: Any) -> tuple[str, Any]:
    """A dotted key and its value as they were recorded, under today's names."""
    name = next((new for new, old in FORMER_KEYS.items() if old == key), key)
    return name, _todays_value(name, value)


def _todays_value(key: str, value: Any) -> Any:
    return next((new for (name, new), old in FORMER_VALUES.items() if (name, old) == (key, value)), value)
