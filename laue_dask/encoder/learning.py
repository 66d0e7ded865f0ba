"""A whole training, from stores to weights with their card."""

import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from laue_dask.config import Recipe, checked, read_yaml
from laue_dask.encoder import weights
from laue_dask.encoder.training import TrainingConfig, TrainingSet, plateau
from laue_dask.encoder.training import train as train_network
from laue_dask.encoder.weights import Card
from laue_dask.errors import InputError
from laue_dask.io.places import require_writable
from laue_dask.progress import Progress


def train(
    stores: Sequence[Path],
    validation_store: Path,
    out: Path,
    config_file: Path | None,
    *,
    minutes: float | None,
    start: str | None,
    progress: Progress,
) -> Card:
    """Train an encoder and write its weights, card and history.

    Parameters
    ----------
    stores
        Training stores of one recipe.
    validation_store
        Store of other experiments; its seed must differ from the training stores'.
    out
        Weights file; `history.csv` goes beside it under the same stem.
    minutes
        Time allowed; the configured epochs by default.
    start
        Weights to go on from.

    Raises
    ------
    InputError
        A store is missing, the recipes differ, or training and validation share a seed.
    """
    require_writable(out)
    if out.is_dir():
        raise InputError(f"{out}: is a folder; --out names the weights file")
    config = read_config(config_file)
    training, validation = TrainingSet(*stores), TrainingSet(validation_store)
    recipe = _common_recipe([*stores, validation_store], [*training.attributes, *validation.attributes])
    seeds = {a.get("seed") for a in training.attributes}
    if seeds & {a.get("seed") for a in validation.attributes}:
        raise InputError(f"{validation_store}: has the seed of a training store: validation needs other experiments")
    out.parent.mkdir(parents=True, exist_ok=True)
    model = weights.load(start, recipe=recipe)[0].train() if start else None
    trained, epochs = train_network(
        config,
        training,
        validation,
        progress=progress,
        history=history_path(out),
        minutes=minutes or math.inf,
        start=model,
    )
    last = epochs[-1]
    constant, perfect = plateau(trained, validation)
    metrics = {
        "validation_bce": last.validation_bce,
        "validation_bce_all_black_plateau": constant,
        "validation_bce_perfect": perfect,
        "validation_mse": last.validation_mse,
        "validation_neighbour": last.validation_neighbour,
    }
    card = Card(
        architecture=trained.architecture,
        recipe=recipe,
        training={
            "config": config.model_dump(mode="json"),
            "from": Path(start).name if start else "random weights",
            "stores": [_described(a) for a in training.attributes],
            "validation": [_described(a) for a in validation.attributes],
            "patterns": training.n_patterns,
            "experiments": len(training),
            "epochs": last.epoch,
            "patterns_seen": round(sum(e.seconds * e.patterns_per_second for e in epochs)),
            "minutes": round(sum(e.seconds for e in epochs) / 60, 1),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} CPU threads",
            "torch": torch.__version__,
        },
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
    )
    weights.save(trained, out, card)
    return card


def _described(attributes: dict[str, Any]) -> dict[str, Any]:
    """What makes a training store again."""
    return {key: attributes[key] for key in ("seed", "experiments", "patterns", "binning") if key in attributes}


def history_path(out: Path) -> Path:
    """Where the history of a training goes."""
    return out.with_name(f"{out.stem}.history.csv")


def read_config(path: Path | None) -> TrainingConfig:
    """Read a training configuration.

    Raises
    ------
    ConfigError
        The file is missing, is not YAML, or has an unknown key or an impossible value.
    """
    data, where = ({}, "defaults") if path is None else (read_yaml(path), str(path))
    return checked(TrainingConfig, data, where, hint="configs/train.yaml has every key")


def _common_recipe(paths: Sequence[Path], attributes: Sequence[dict[str, Any]]) -> Recipe:
    recipes = []
    for path, attribute in zip(paths, attributes, strict=True):
        try:
            recipes.append(Recipe.model_validate(attribute.get("recipe")))
        except ValidationError as error:
            raise InputError(f"{path}: does not say how its patterns were reduced: make it again") from error
    for path, recipe in zip(paths, recipes, strict=True):
        if recipe != recipes[0]:
            raise InputError(f"{path}: reduced by recipe {recipe.digest()}, {paths[0]} by {recipes[0].digest()}")
    return recipes[0]
