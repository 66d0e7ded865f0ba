"""Say what is wrong with a configuration, in one plain sentence made of what pydantic found."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from laue_dask.runtime.suggestions import nearest

WORKER_KINDS = ("local", "slurm", "pbs", "lsf", "sge", "scheduler")

MAX_SHOWN_CHARACTERS = 200
"""Longest part of a value that a message repeats."""

_EXPECTATION_SUFFIX = " was expected"

_EXPECTATION_OF_TYPE = {
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "string": "a text",
    "path": "a path",
    "tuple": "a list such as [a, b]",
    "list": "a list such as [a, b]",
    "dict": "a mapping of keys to values",
    "mapping": "a mapping of keys to values",
    "model": "a section of keys",
    "is": "nothing",
}
"""What was expected, by the beginning of the type of pydantic's error."""


def explain(error: ValidationError, model: type[BaseModel], *, hint: str) -> str:
    """Say what is wrong with the first wrong value of a configuration.

    Parameters
    ----------
    model
        That the values were held against; of its keys the one nearest to an unknown key is proposed.
    hint
        Where to find all keys.

    Returns
    -------
    sentence
        One line that names the key, the value and what was expected.

    Examples
    --------
    >>> from laue_dask.config import Config
    >>> try:
    ...     Config.model_validate({"clustering": {"sead": 1}})
    ... except ValidationError as error:
    ...     explain(error, Config, hint="`laue-dask config` prints every key")
    "unknown key 'clustering.sead': did you mean 'clustering.seed'? `laue-dask config` prints every key"
    """
    errors = error.errors()
    first = errors[0]
    key = _key(first["loc"])
    if first["type"] == "union_tag_invalid":
        kind = first["input"]["kind"]
        return f"{key}.kind = {shown(kind)}: {_listed(WORKER_KINDS)}{_EXPECTATION_SUFFIX}{_proposed(kind)}"
    if first["type"] == "extra_forbidden":
        near = _nearest_key(key, list(_keys(model)))
        proposal = f"did you mean '{near}'? " if near else ""
        return f"unknown key '{key}': {proposal}{hint}"
    # Of a value that may be of several kinds every kind says why it is none.
    reasons = list(dict.fromkeys(_reason(one) for one in errors if _key(one["loc"]) == key))
    reasons[:-1] = [reason.removesuffix(_EXPECTATION_SUFFIX) for reason in reasons[:-1]]
    return f"{key or 'configuration'} = {shown(first['input'])}: {' or '.join(reasons)}"


def shown(value: Any) -> str:
    """Write a value as a message repeats it: on one line and not too long."""
    if value is None:
        return "nothing"
    text = " ".join(repr(value).split())
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}…"


def _key(location: tuple[int | str, ...]) -> str:
    """A key as it is written, without the kinds that its value might have been."""
    return ".".join(
        str(part)
        for part in location
        if not str(part).startswith(("constrained", "kind=", "literal", "function-"))
        and str(part) not in _EXPECTATION_OF_TYPE
    )


def _keys(model: type[BaseModel], before: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{before}{name}"
        for section in _sections(field.annotation):
            yield from _keys(section, f"{before}{name}.")


def _nearest_key(key: str, keys: list[str]) -> str | None:
    # A key in the wrong section, or without one, is found by its last part.
    last = key.rpartition(".")[2]
    return nearest(key, keys) or next((one for one in keys if one.rpartition(".")[2] == last), None)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models that a field's annotation names, which may be a union of annotated ones."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in getattr(annotation, "__args__", ()):
            yield from _sections(part)


def _reason(error: ErrorDetails) -> str:
    kind, limits = error["type"], error.get("ctx", {})
    if kind == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if kind == "literal_error":
        wanted = str(limits["expected"])
        near = _proposed(error["input"], wanted.replace("'", "").replace(" or ", ", ").split(", "))
        return f"{wanted.replace(chr(39), '')}{_EXPECTATION_SUFFIX}{near}"
    for name, words in (
        ("ge", "at least"),
        ("gt", "more than"),
        ("le", "at most"),
        ("lt", "less than"),
    ):
        if name in limits:
            return f"{words} {limits[name]:g}{_EXPECTATION_SUFFIX}"
    if kind in ("too_short", "missing"):
        return (
            f"{limits.get('min_length', 2)} values were expected"
            if kind == "too_short"
            else f"a value{_EXPECTATION_SUFFIX}"
        )
    if kind == "too_long":
        return f"no more than {limits['max_length']} values were expected"
    if kind == "finite_number":
        return f"a finite number{_EXPECTATION_SUFFIX}"
    expected = _EXPECTATION_OF_TYPE.get(kind.partition("_")[0])
    return error["msg"] if expected is None else f"{expected}{_EXPECTATION_SUFFIX}"


def _proposed(given: Any, words: list[str] | tuple[str, ...] = WORKER_KINDS) -> str:
    near = nearest(str(given), list(words))
    return f": did you mean {near}?" if near and near != given else ""


def _listed(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
