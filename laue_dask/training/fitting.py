"""The loop of every training: steps, learning rate, checkpoints, early stopping, whatever the objective is."""

import math
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from laue_dask.errors import ConfigError
from laue_dask.features.losses import weighted
from laue_dask.features.network import Autoencoder
from laue_dask.runtime.progress import Progress, duration
from laue_dask.training import checkpoint as checkpoints
from laue_dask.training.checkpoint import Epoch, Position
from laue_dask.training.training_config import FittingConfig


class Batch(NamedTuple):
    """Patterns of one step.

    Attributes
    ----------
    patterns : (n, 128, 128) uint8
    relation : (n,) int64
        What the objective knows of them: the configuration that each shows, or its place in the scan.
    groups
        Lengths of the experiments that follow one another in the batch.
    """

    patterns: Tensor
    relation: Tensor
    groups: tuple[int, ...]


class Check(NamedTuple):
    """Quality at the end of an epoch; see `Epoch`."""

    loss: float
    bce: float
    mse: float
    neighbour: float


class Objective(Protocol):
    """What is learnt, and from which patterns."""

    @property
    def n_patterns(self) -> int:
        """Patterns of an epoch."""
        ...

    @property
    def n_steps(self) -> int:
        """Steps of an epoch."""
        ...

    def read(self, epoch: int, step: int) -> Batch:
        """Return the patterns of a step, on the CPU; called in a thread ahead of the training."""
        ...

    def losses(self, model: Autoencoder, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the terms of the loss of a batch that is on the model's device, and what is watched beside them."""
        ...

    def check(self, model: Autoencoder) -> Check:
        """Judge the model, which is in evaluation mode."""
        ...


@dataclass(frozen=True)
class Checkpointing:
    """Where checkpoints go, and what training they belong to (plain values)."""

    path: Path
    identity: Mapping[str, Any]


def fit(
    model: Autoencoder,
    objective: Objective,
    config: FittingConfig,
    *,
    progress: Progress,
    minutes: float = math.inf,
    checkpointing: Checkpointing | None = None,
    on_epoch: Callable[[list[Epoch]], None] | None = None,
) -> tuple[Autoencoder, list[Epoch]]:
    """Train a model.

    Parameters
    ----------
    minutes
        Time allowed; the learning rate then falls with the time rather than with the epochs.
    checkpointing
        With it, a training that was killed goes on at its last checkpoint. One that only epochs limit ends with the
        same bits as if it had not been killed (on the CPU, with the same number of threads); one that time limits
        goes on with the time that was left.
    on_epoch
        Called with the history whenever an epoch has ended.

    Returns
    -------
    model, history
        The weights of the epoch with the lowest validation loss, on the CPU, in evaluation mode.

    Raises
    ------
    ConfigError
        A GPU is asked for and there is none.
    StoreError
        The checkpoint cannot be read, or belongs to another training.
    """
    device = choose_device(config.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        fitting = _Fitting(model, objective, config, device, checkpointing)
        fitting.run(progress, minutes, on_epoch or (lambda epochs: None))
        model.load_state_dict(fitting.best)
        return model.cpu().eval(), fitting.position.history


def choose_device(name: str) -> torch.device:
    """Return the device that a configuration's `device` means on this machine."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfigError("device: cuda is asked for, but torch finds no CUDA GPU: use device: auto")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def random_numbers(seed: int, epoch: int, step: int) -> np.random.Generator:
    """Return the generator of one step (from 0), or with −1 of the epoch's order."""
    return np.random.default_rng([seed, epoch, step + 1])


class _Fitting:
    """A training that is under way."""

    def __init__(
        self,
        model: Autoencoder,
        objective: Objective,
        config: FittingConfig,
        device: torch.device,
        checkpointing: Checkpointing | None,
    ) -> None:
        self._objective, self._config, self._device, self._checkpointing = objective, config, device, checkpointing
        self._model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.position, self.best = Position(), dict[str, Tensor]()
        if checkpointing is not None and checkpointing.path.exists():
            self.position, self.best = checkpoints.read(
                checkpointing.path, self._model, self._optimizer, checkpointing.identity
            )
        self._sums = {
            name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in self.position.sums.items()
        }
        self._before, self._begun = self.position.seconds, time.monotonic()
        self._saved = self._begun

    def run(self, progress: Progress, minutes: float, on_epoch: Callable[[list[Epoch]], None]) -> None:
        """Train until the epochs, the time or the patience are over."""
        while not self.position.finished:
            out_of_time = self._train_epoch(progress, minutes)
            self._end_epoch(out_of_time)
            self._save()
            on_epoch(self.position.history)

    def _train_epoch(self, progress: Progress, minutes: float) -> bool:
        """Do the steps of one epoch that are left; returns whether the time is over."""
        position, objective = self.position, self._objective
        number = len(position.history) + 1
        self._model.train()
        done = self._done(minutes)
        left = f", {duration(self._elapsed() * (1 - done) / done)} left in all" if 0 < done < 1 else ""
        name = f"epoch {number} of {self._config.epochs}{left}"
        with (
            progress.stage(name, total=objective.n_patterns, done=position.seen) as advance,
            closing(_prefetched_batches(objective, number, position.step, pin=self._device.type == "cuda")) as batches,
        ):
            for batch in batches:
                done = self._done(minutes)
                for group in self._optimizer.param_groups:
                    group["lr"] = self._config.learning_rate * _schedule(done)
                self._step(batch, number)
                position.step += 1
                position.seen += len(batch.patterns)
                advance(len(batch.patterns))
                if done >= 1:
                    return True
                waited = time.monotonic() - self._saved
                if waited >= 60 * self._config.checkpoint_minutes:
                    self._save()
        return False

    def _step(self, batch: Batch, epoch: int) -> None:
        rng = random_numbers(self._config.seed, epoch, self.position.step)
        torch.manual_seed(int(rng.integers(2**63)))  # dropout draws from torch's own generators
        patterns, relation = (values.to(self._device, non_blocking=True) for values in batch[:2])
        terms = self._objective.losses(self._model, Batch(patterns, relation, batch.groups), rng)
        loss = weighted(terms, self._config.weights)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        # Summed where they are: reading them would make the CPU wait for the GPU at every step.
        for name, value in {"loss": loss, **terms}.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().double()

    def _end_epoch(self, out_of_time: bool) -> None:
        position, history = self.position, self.position.history
        check = self._objective.check(self._model.eval())
        seconds = self._elapsed() - position.epoch_began
        mean = {name: float(value) / position.step for name, value in self._sums.items()}
        history.append(
            Epoch(
                epoch=len(history) + 1,
                seconds=seconds,
                patterns_per_second=position.seen / seconds,
                loss=mean["loss"],
                train_bce=mean.get("bce", math.nan),
                train_mse=mean.get("mse", math.nan),
                validation_loss=check.loss,
                validation_bce=check.bce,
                validation_mse=check.mse,
                validation_neighbour=check.neighbour,
            )
        )
        since_best = len(history) - best_epoch(history).epoch
        if since_best == 0:
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self._model.state_dict().items()}
        position.step = position.seen = 0
        self._sums = {}
        position.epoch_began = self._elapsed()
        impatient = self._config.patience is not None and since_best >= self._config.patience
        position.finished = out_of_time or impatient or len(history) >= self._config.epochs

    def _done(self, minutes: float) -> float:
        """Share of the training that is done, by epochs or, if that is more, by time."""
        position = self.position
        by_epochs = (len(position.history) + position.step / self._objective.n_steps) / self._config.epochs
        return max(by_epochs, self._elapsed() / (60 * minutes))

    def _elapsed(self) -> float:
        return self._before + time.monotonic() - self._begun

    def _save(self) -> None:
        if self._checkpointing is None:
            return
        self.position.sums = {name: float(value) for name, value in self._sums.items()}
        self.position.seconds = self._elapsed()
        checkpoints.write(
            self._checkpointing.path,
            self.position,
            self._model,
            self._optimizer,
            self.best,
            self._checkpointing.identity,
        )
        self._saved = time.monotonic()


def best_epoch(history: list[Epoch]) -> Epoch:
    """Return the epoch with the lowest validation loss, the first of several; its weights are those that are kept."""
    return min(history, key=lambda epoch: epoch.validation_loss if math.isfinite(epoch.validation_loss) else math.inf)


def _prefetched_batches(objective: Objective, epoch: int, first: int, *, pin: bool) -> Generator[Batch]:
    """Batches of an epoch from step `first` on; the next is read while one is trained on."""

    def read(step: int) -> Batch:
        batch = objective.read(epoch, step)
        return Batch(batch.patterns.pin_memory(), batch.relation.pin_memory(), batch.groups) if pin else batch

    with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:
        steps = range(first, objective.n_steps)
        pending = [reader.submit(read, step) for step in steps[:1]]
        for step in steps:
            batch = pending.pop().result()
            if step + 1 < objective.n_steps:
                pending.append(reader.submit(read, step + 1))
            yield batch


def _schedule(done: float) -> float:
    """Share of the learning rate after the share `done` of the training: a short ramp, then a cosine."""
    warm = 0.03
    if done < warm:
        return 0.1 + 0.9 * done / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warm) / (1 - warm))))
