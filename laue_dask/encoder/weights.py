"""Weights on disk: safetensors, with a card that says what they are and how they came about.

The card is JSON in the file's own metadata, so that the two cannot be separated. Nothing is unpickled.
"""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from laue_dask.config import Model, Recipe
from laue_dask.encoder.network import ARCHITECTURES, Architecture, Autoencoder, build
from laue_dask.errors import StoreError
from laue_dask.io.places import replace_file

DEFAULT = Path(str(files("laue_dask") / "weights" / "default.safetensors"))
"""The shipped weights."""

UNTRAINED_SEED = 0
"""Seed of the random weights that stand beside the trained ones wherever quality is reported."""


class Card(Model):
    """What a weights file says of itself."""

    architecture: Architecture
    recipe: Recipe
    """The reduction that the network was trained on; encoding with another one is refused."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Data, configuration, time and machine of the training; empty for random weights."""
    data: str = ""
    """Hash of what it was trained on: `TrainingSet.digest`, or the key of the scan that it was fine-tuned on."""
    seeds: dict[str, list[int]] = Field(default_factory=dict)
    """Seeds of the `weights`, and of the `training` and `validation` stores: they make all of it again."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Losses of the validation patterns, and what they mean: the all-black plateau and a perfect reconstruction."""
    reference: dict[str, float] = Field(default_factory=dict)
    """Quantiles of the validation patterns' reconstruction errors (`drift.reference`): how a scan is found strange."""
    benchmark: list[dict[str, str | int | float | None]] = Field(default_factory=list)
    """Rows of the benchmark's table; filled in by `annotate`."""


def save(model: Autoencoder, path: Path, card: Card) -> None:
    """Write weights and card; the file appears only when complete."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    replace_file(path, safetensors.torch.save(state, metadata={"card": card.model_dump_json()}))


def annotate(
    path: Path,
    *,
    benchmark: Sequence[Mapping[str, str | int | float | None]] | None = None,
    reference: Mapping[str, float] | None = None,
) -> Card:
    """Rewrite the card of a weights file; its tensors stay the same bytes.

    Parameters
    ----------
    benchmark, reference
        New values of these fields; a field that is not given stays.

    Returns
    -------
    Card
        As it is now in the file, whose `digest` is another.

    Raises
    ------
    StoreError
        The file has no card that can be read, or a value is not finite or no plain one.
    """
    given = {"benchmark": benchmark, "reference": reference}
    try:
        values = {**read_card(path).model_dump(), **{name: value for name, value in given.items() if value is not None}}
        card = Card.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path}: card not changed: {where} = {first['input']!r}: {first['msg']}") from error
    replace_file(path, safetensors.torch.save(load_file(path), metadata={"card": card.model_dump_json()}))
    return card


def locate(name: str) -> Path | None:
    """File behind a configured name: ``None`` for `untrained`.

    Raises
    ------
    StoreError
        There is no such file.
    """
    if name == "untrained":
        return None
    path = DEFAULT if name == "default" else Path(name)
    if not path.is_file():
        raise StoreError(f"{path}: no such weights file: give a .safetensors file, `default` or `untrained`")
    return path


def digest(name: str) -> str:
    """Hash of the weights, 16 hexadecimal digits; part of the cache key of everything encoded with them."""
    path = locate(name)
    if path is None:
        return ARCHITECTURES["contrastive"].digest()
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_card(path: Path) -> Card:
    """Read the card of a weights file.

    Raises
    ------
    StoreError
        The file is not safetensors, or has no card, or a card of another version.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return Card.model_validate_json(metadata["card"])
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{path}: not a safetensors file: {error}") from error
    except (KeyError, ValidationError) as error:
        raise StoreError(f"{path}: no card that this laue-dask reads: train it again with `laue-dask train`") from error


def load(name: str, *, recipe: Recipe | None = None) -> tuple[Autoencoder, Card]:
    """Load an autoencoder in evaluation mode.

    Parameters
    ----------
    name
        `default`, `untrained`, or a path.
    recipe
        The recipe of the patterns to be encoded, compared with the card's.

    Raises
    ------
    StoreError
        No such file, or its card and tensors do not fit, or the recipes differ.
    """
    path = locate(name)
    if path is None:
        architecture = ARCHITECTURES["contrastive"]
        return build(architecture, seed=UNTRAINED_SEED).eval(), Card(
            architecture=architecture, recipe=recipe or Recipe()
        )
    card = read_card(path)
    # A removed substrate leaves patterns that look like any others; every other field changes how a spot looks.
    for field in sorted(set(Recipe.model_fields) - {"substrate"}) if recipe is not None else ():
        theirs, ours = getattr(card.recipe, field), getattr(recipe, field)
        if theirs != ours:
            raise StoreError(
                f"{path}: trained with recipe.{field} = {theirs}, but this run has {ours}: "
                "use the weights' recipe or train others"
            )
    model = build(card.architecture, seed=0)
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise StoreError(f"{path}: tensors do not fit the architecture of the card: train it again") from error
    return model.eval(), card
