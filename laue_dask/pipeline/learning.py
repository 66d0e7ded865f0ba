"""A whole training, from stores to weights with their card."""

import math
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from laue_dask.compute import cluster
from laue_dask.compute.run import is_complete
from laue_dask.config import AnyModel, LocalWorkersConfig, Recipe, checked, read_yaml
from laue_dask.errors import InputError
from laue_dask.features import weights
from laue_dask.features.drift import reference
from laue_dask.features.losses import unexplained
from laue_dask.features.network import Autoencoder, build
from laue_dask.features.weights import Card
from laue_dask.io.output_paths import require_writable, write_atomically
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.stages.reduction import reduce_scan
from laue_dask.report import canvas, training_plots
from laue_dask.runtime.progress import Progress
from laue_dask.training.checkpoint import Epoch
from laue_dask.training.finetuning import UnlabelledObjective
from laue_dask.training.fitting import Checkpointing, best_epoch, choose_device, fit
from laue_dask.training.training import Plateau, TrainingSet, as_network_input, plateau, write_history
from laue_dask.training.training import train as train_network
from laue_dask.training.training_config import FIELDS_WITHOUT_EFFECT, FineTuningConfig, FittingConfig, TrainingConfig

MIN_FINETUNING_PATTERNS = 32
"""Usable patterns that a fine-tuning needs."""

N_REFERENCE_PATTERNS = 2000
"""Patterns of a scan, at most about twice as many, that the card's reference is taken of."""


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
        Weights file. Beside it, under the same stem, go the history, the figures (paper, Figures 4 and 5) and, until
        the training is finished, its checkpoint: the same call goes on where it was killed.
    minutes
        Time allowed, over all calls; the configured epochs by default.
    start
        Weights to go on from.

    Raises
    ------
    InputError
        A store is missing, the recipes differ, training and validation share a seed, or `out` exists already.
    """
    _require_free(out)
    config = read_config(config_file, TrainingConfig)
    training, validation = TrainingSet(*stores), TrainingSet(validation_store)
    recipe = _common_recipe([*stores, validation_store], [*training.attributes, *validation.attributes])
    seeds = {a.get("seed") for a in training.attributes}
    if seeds & {a.get("seed") for a in validation.attributes}:
        raise InputError(
            f"{validation_store}: has the same seed as a training store: validation needs other experiments"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    model = weights.load(start, recipe=recipe)[0] if start else build(config.architecture, seed=config.seed)
    config = config.model_copy(update={"architecture": model.architecture})
    limits, data = plateau(model, validation), training.digest()
    identity = {
        "configuration": config.model_dump(mode="json", exclude=set(FIELDS_WITHOUT_EFFECT)),
        "data": data,
        "validation": validation.digest(),
        "from": weights.digest(start) if start else "random weights",
    }
    trained, epochs = train_network(
        config,
        training,
        validation,
        progress=progress,
        minutes=minutes or math.inf,
        start=model,
        checkpointing=Checkpointing(checkpoint_path(out), identity),
        on_epoch=lambda history: _show(history, out, limits),
    )
    best = best_epoch(epochs)
    metrics = {
        "validation_bce": best.validation_bce,
        "validation_bce_all_black_plateau": limits.bce,
        "validation_bce_perfect": limits.perfect_bce,
        "validation_mse": best.validation_mse,
        "validation_mse_all_black_plateau": limits.mse,
        "validation_neighbour": best.validation_neighbour,
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
            "epochs": len(epochs),
            "best_epoch": best.epoch,
            "patterns_seen": round(sum(e.seconds * e.patterns_per_second for e in epochs)),
            "minutes": round(sum(e.seconds for e in epochs) / 60, 1),
            "machine": _machine(config),
            "torch": torch.__version__,
        },
        data=data,
        seeds={
            "weights": [config.seed],
            "training": [a["seed"] for a in training.attributes if "seed" in a],
            "validation": [a["seed"] for a in validation.attributes if "seed" in a],
        },
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        reference=reference(_errors(trained, validation)),
    )
    write_atomically(encodings_path(out), canvas.png(_encodings(trained, validation)))
    weights.save(trained, out, card)
    checkpoint_path(out).unlink(missing_ok=True)  # last: until here, the same command goes on
    return card


def fine_tune(
    scan: Path,
    start: str,
    out: Path,
    config_file: Path | None,
    *,
    minutes: float | None,
    workers: int | None = None,
    progress: Progress,
) -> Card:
    """Train weights further on a scan without labels; see `finetuning`.

    Parameters
    ----------
    scan
        Scan store; it is reduced by the weights' recipe, in its present version, if that was not done before.
    start
        Weights to go on from.
    out, minutes
        As for `train`; there is no figure of encodings.
    workers
        Worker processes of the reduction.

    Raises
    ------
    InputError
        There is no such scan, or too little of it.
    """
    _require_free(out)
    config = read_config(config_file, FineTuningConfig)
    model, before = weights.load(start)
    store = ScanStore.open(scan)
    valid = store.valid
    if valid.sum() < MIN_FINETUNING_PATTERNS:
        raise InputError(f"{scan}: has {valid.sum()} usable patterns, fine-tuning needs {MIN_FINETUNING_PATTERNS}")
    recipe = before.recipe.model_copy(update={"version": Recipe().version})
    reduced = store.reduced(recipe.for_frames(store.frame_shape).digest())
    if reduced is None or not is_complete(reduced):
        with cluster.start(LocalWorkersConfig(count=workers)) as running:
            reduced = reduce_scan(store, recipe, workers=running, progress=progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    identity = {
        "configuration": config.model_dump(mode="json", exclude=set(FIELDS_WITHOUT_EFFECT)),
        "data": store.key(),
        "from": weights.digest(start),
    }
    objective = UnlabelledObjective(config, model, reduced, valid, store.scan_shape)
    trained, epochs = fit(
        model,
        objective,
        config,
        progress=progress,
        minutes=minutes or math.inf,
        checkpointing=Checkpointing(checkpoint_path(out), identity),
        on_epoch=lambda history: _show(history, out),
    )
    best = best_epoch(epochs)
    metrics = {
        "scan_bce": best.validation_bce,
        "scan_mse": best.validation_mse,
        "scan_neighbour": best.validation_neighbour,
    }
    card = Card(
        architecture=trained.architecture,
        recipe=recipe,
        training={
            "config": config.model_dump(mode="json"),
            "from": Path(start).name,
            "before": before.training,
            "patterns": objective.used,
            "epochs": len(epochs),
            "best_epoch": best.epoch,
            "minutes": round(sum(e.seconds for e in epochs) / 60, 1),
            "machine": _machine(config),
            "torch": torch.__version__,
        },
        data=store.key(),
        seeds={**before.seeds, "fine_tuning": [config.seed]},
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        reference=reference(_scan_errors(trained, reduced, np.flatnonzero(valid))),
    )
    weights.save(trained, out, card)
    checkpoint_path(out).unlink(missing_ok=True)
    return card


@torch.inference_mode()
def _scan_errors(model: Autoencoder, reduced: Any, patterns: NDArray[np.int64]) -> NDArray[np.float32]:
    """Reconstruction error of patterns spread over a scan."""
    chosen = patterns[:: max(1, len(patterns) // N_REFERENCE_PATTERNS)]
    found = []
    for start in range(0, len(chosen), 128):
        block = np.asarray(reduced.oindex[chosen[start : start + 128]])
        found.append(_unexplained(model, as_network_input(torch.from_numpy(block))))
    return np.concatenate(found)


@torch.inference_mode()
def _errors(model: Autoencoder, validation: TrainingSet) -> NDArray[np.float32]:
    """Reconstruction error (n,) of each validation pattern, as `losses.unexplained` defines it."""
    found = []
    for experiment in range(len(validation)):
        found.append(_unexplained(model, validation.read(experiment)[0]))
    return np.concatenate(found)


def _unexplained(model: Autoencoder, patterns: Tensor) -> NDArray[np.float32]:
    target = model.smooth(patterns)
    return np.asarray(unexplained(model.decode(model.encode(patterns, target)), target).numpy())


def _show(history: list[Epoch], out: Path, limits: Plateau | None = None) -> None:
    """Write the history and its figure."""
    write_history(history, history_path(out))
    figure = training_plots.loss_curves(
        [asdict(epoch) for epoch in history],
        plateau={"bce": limits.bce, "mse": limits.mse} if limits else {},
        perfect={"bce": limits.perfect_bce} if limits else {},
        kept=best_epoch(history).epoch,
    )
    write_atomically(losses_path(out), canvas.png(figure))


@torch.inference_mode()
def _encodings(model: Autoencoder, validation: TrainingSet) -> Figure:
    """Of two experiments: two views of a configuration, and a view of another one."""
    patterns, latent, chosen, names = [], [], [], []
    for experiment in range(len(validation)):
        views, configuration = validation.read(experiment)
        latent.append(model.encode(views))
        if experiment in (0, len(validation) - 1):
            own, other = (torch.nonzero(found).flatten().tolist() for found in _same(configuration))
            picked = [*own[:2], *other[:1]]
            chosen += [sum(map(len, latent[:-1])) + i for i in picked]
            patterns.append(model.smooth(views[picked]))
            names += [f"experiment {experiment}\nconfiguration {int(configuration[i])}" for i in picked]
    features = torch.cat(latent)
    learned = features[:, : model.architecture.learned]
    return training_plots.encodings(
        torch.cat(patterns)[:, 0].numpy(),
        ((learned - learned.mean(dim=0)) / learned.std(dim=0).clamp(min=1e-12))[chosen].numpy(),
        model.decode(features[chosen]).sigmoid()[:, 0].numpy(),
        names,
    )


def _same(configuration: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of the patterns that show what the first does, and of the others."""
    same = configuration == configuration[0]
    return same, ~same


def _require_free(out: Path) -> None:
    """Refuse, before hours of training, an output that cannot be written or would be lost."""
    require_writable(out)
    if out.is_dir():
        raise InputError(f"{out}: is a folder, but --out names the weights file")
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: --out names the weights file, which ends in .safetensors")
    if out.exists() and not checkpoint_path(out).exists():
        raise InputError(f"{out}: exists already: choose another path, or remove it")


def _machine(config: FittingConfig) -> str:
    if choose_device(config.device).type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} CPU threads"


def _described(attributes: dict[str, Any]) -> dict[str, Any]:
    """What makes a training store again."""
    return {key: attributes[key] for key in ("seed", "experiments", "patterns", "binning") if key in attributes}


def history_path(out: Path) -> Path:
    """Return where the history of a training goes."""
    return out.with_name(f"{out.stem}.history.csv")


def losses_path(out: Path) -> Path:
    """Return where the figure of the losses goes."""
    return out.with_name(f"{out.stem}.losses.png")


def encodings_path(out: Path) -> Path:
    """Return where the figure of patterns, features and reconstructions goes."""
    return out.with_name(f"{out.stem}.encodings.png")


def checkpoint_path(out: Path) -> Path:
    """Return where a training that is not finished is kept."""
    return out.with_name(f"{out.stem}.checkpoint.safetensors")


def read_config(path: Path | None, kind: type[AnyModel]) -> AnyModel:
    """Read the configuration of a training, or of a fine-tuning.

    Raises
    ------
    ConfigError
        The file is missing, is not YAML, or has an unknown key or an impossible value.
    """
    data, where = ({}, "defaults") if path is None else (read_yaml(path), str(path))
    file = "configs/train.yaml" if kind is TrainingConfig else "configs/finetune.yaml"
    return checked(kind, data, where, hint=f"{file} has every key")


def _common_recipe(paths: Sequence[Path], attributes: Sequence[dict[str, Any]]) -> Recipe:
    recipes = []
    for path, attribute in zip(paths, attributes, strict=True):
        try:
            recipes.append(Recipe.model_validate(attribute.get("recipe")))
        except ValidationError as error:
            raise InputError(f"{path}: does not say how its patterns were reduced: make the store again") from error
    for path, recipe in zip(paths, recipes, strict=True):
        if recipe != recipes[0]:
            raise InputError(f"{path}: reduced by recipe {recipe.digest()}, {paths[0]} by {recipes[0].digest()}")
    return recipes[0]
