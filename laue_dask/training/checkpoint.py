"""The checkpoint of a training: safetensors with JSON metadata, whole or absent; nothing is unpickled.

No generator's state is kept because none is needed: every step seeds its random numbers from the training's seed, the
epoch and the step, so the position inside the training says it all.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from laue_dask.errors import StoreError
from laue_dask.features.network import Autoencoder
from laue_dask.io.output_paths import write_atomically

CHECKPOINT_VERSION = 1


@dataclass(frozen=True)
class Epoch:
    """One line of `history.csv`; losses are means per pixel (BCE in nat)."""

    epoch: int
    seconds: float
    patterns_per_second: float
    loss: float
    train_bce: float
    train_mse: float
    validation_loss: float
    """The terms of the loss with their weights, of validation patterns: the criterion of early stopping."""
    validation_bce: float
    validation_mse: float
    validation_neighbour: float
    """Share of validation patterns whose nearest neighbour in their experiment shows the same configuration."""


@dataclass
class Position:
    """How far a training has come, but for its tensors.

    Attributes
    ----------
    step, seen
        Steps and patterns done in the epoch that is being trained.
    sums
        Of each watched loss over those steps.
    seconds, epoch_began
        Training time until now and until the epoch began, over all the times that the command ran.
    history
        The finished epochs.
    finished
        Nothing is left to train.
    """

    step: int = 0
    seen: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    epoch_began: float = 0.0
    history: list[Epoch] = field(default_factory=list)
    finished: bool = False


def write(
    path: Path,
    position: Position,
    model: Autoencoder,
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
    identity: Mapping[str, Any],
) -> None:
    """Write a checkpoint in the place of the one before.

    Parameters
    ----------
    best
        Tensors of the best epoch so far; none before the first has ended.
    identity
        What training this is, in plain values: a checkpoint of another one is refused.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
    about = {"version": CHECKPOINT_VERSION, "identity": identity, "position": asdict(position)}
    # a copy of each: safetensors refuses tensors that share memory
    content = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, safetensors.torch.save(content, metadata={"training": json.dumps(about)}))


def read(
    path: Path, model: Autoencoder, optimizer: torch.optim.Optimizer, identity: Mapping[str, Any]
) -> tuple[Position, dict[str, Tensor]]:
    """Put `model` and `optimizer` where the checkpoint was taken.

    Returns
    -------
    position, best
        As they were written.

    Raises
    ------
    StoreError
        The file is damaged, or belongs to another training; the message names the first difference.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        if about["version"] != CHECKPOINT_VERSION:
            raise KeyError("version")
        theirs = about["identity"]
        values = about["position"]
        position = Position(**{**values, "history": [Epoch(**epoch) for epoch in values["history"]]})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path}: this is not a checkpoint that this laue-dask can read: remove it to start again"
        ) from error
    # through JSON, as theirs went
    difference = _difference(theirs, json.loads(json.dumps(identity)))
    if difference:
        raise StoreError(
            f"{path}: this is the checkpoint of another training ({difference}): remove it or choose another --out"
        )
    try:
        model.load_state_dict(_under("model.", tensors))
        optimizer.load_state_dict(_optimizer_state(optimizer, _under("optimizer.", tensors)))
    except (RuntimeError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: its tensors do not fit this network: remove it to start again") from error
    return position, _under("best.", tensors)


def _optimizer_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        like = parameters[int(number)]
        # In the layout of its parameter, as it was: another order of the same sums would round differently.
        placed = tensor if tensor.ndim == 0 else torch.empty_like(like).copy_(tensor)
        state.setdefault(int(number), {})[key] = placed
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _difference(theirs: Any, ours: Any, name: str = "") -> str:
    """The first value in which two trees of plain values differ, in words; empty where they are equal."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted({*theirs, *ours}):
            found = _difference(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return ""
    return "" if theirs == ours else f"{name}: {theirs} there, {ours} here"
