"""Training of the autoencoder (section 3.1): binary cross entropy, Adam, and a contrastive term on the latent vectors.

A training store holds simulated experiments; each has configurations (what the beam illuminates) and several views of
each configuration (another noise, exposure, background, a slight rotation). The reconstruction alone does not say which
differences matter: a network that reproduces the brightest spots may map two twins to the same latent vector. The
supervised contrastive loss (Khosla et al., 2020) pulls the views of a configuration together and pushes the
configurations of a batch, twins and small misorientations among them, apart.
"""

import csv
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from laue_dask import schema
from laue_dask.config import Model
from laue_dask.encoder.network import ARCHITECTURES, Architecture, Autoencoder, build
from laue_dask.errors import InputError
from laue_dask.progress import Progress
from laue_dask.schema import TRAINING


class TrainingConfig(Model):
    """One training, as read from YAML."""

    architecture: Architecture = ARCHITECTURES["contrastive"]
    """Its hyper-parameters, or a name."""
    epochs: int = Field(20, ge=1)
    experiments_per_batch: int = Field(4, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    contrastive_weight: float = Field(1.0, ge=0)
    """Weight of the contrastive term; 0 is the paper's training."""
    reconstruction_weight: float = Field(2.0, ge=0)
    temperature: float = Field(0.1, gt=0)
    max_shift: Annotated[int, Field(ge=0, le=64)] = 12
    """Largest shift, in pixels of the 128 × 128, that a whole experiment is moved by."""
    mixed_precision: bool = True
    seed: int = Field(0, ge=0)

    @field_validator("architecture", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ARCHITECTURES:
            raise ValueError(f"architecture '{value}' is not one of {', '.join(ARCHITECTURES)}")
        return ARCHITECTURES[value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _something_learnt(self) -> Self:
        if self.contrastive_weight == self.reconstruction_weight == 0:
            raise ValueError("contrastive_weight and reconstruction_weight are both 0: nothing would be learnt")
        return self


@dataclass(frozen=True)
class Epoch:
    """One line of `history.csv`; losses are means per pixel (BCE in nat)."""

    epoch: int
    seconds: float
    patterns_per_second: float
    loss: float
    train_bce: float
    validation_bce: float
    validation_mse: float
    validation_neighbour: float
    """Share of validation patterns whose nearest neighbour in their experiment shows the same configuration."""


class TrainingSet:
    """Experiments of one or many training stores, read one chunk at a time.

    Parameters
    ----------
    paths
        Stores with `schema.TRAINING`.

    Raises
    ------
    InputError
        One of them is not such a store.
    """

    def __init__(self, *paths: Path) -> None:
        self.attributes: list[dict[str, Any]] = []
        self._experiments: list[tuple[Any, int, int, NDArray[np.int64]]] = []
        for path in paths:
            try:
                root: Any = zarr.open_group(str(path), mode="r")
                patterns, experiment, configuration = (root[name] for name in TRAINING)
            except (OSError, KeyError, ValueError) as error:
                raise InputError(
                    f"{path}: not a training store: make one with `laue-dask simulate training`"
                ) from error
            schema.check(root, TRAINING)
            self.attributes.append(dict(root.attrs))
            number, name = np.asarray(experiment[:]), np.asarray(configuration[:], dtype=np.int64)
            if not len(number):
                raise InputError(f"{path}: a training store with no patterns: make it again")
            edges = [0, *(np.flatnonzero(np.diff(number)) + 1), len(number)]
            for start, stop in itertools.pairwise(edges):
                self._experiments.append((patterns, int(start), int(stop), name[start:stop]))

    def __len__(self) -> int:
        return len(self._experiments)

    @property
    def n_patterns(self) -> int:
        """Number of patterns in all experiments."""
        return sum(stop - start for _, start, stop, _ in self._experiments)

    def read(self, experiment: int) -> tuple[Tensor, Tensor]:
        """Patterns (n, 1, 128, 128) float32 in [0, 1] and configurations (n,) int64 of one experiment."""
        patterns, start, stop, configuration = self._experiments[experiment]
        values = torch.from_numpy(np.asarray(patterns[start:stop])).float().div_(255)
        return values[:, None], torch.from_numpy(configuration)


@torch.random.fork_rng(devices=[])
def train(
    config: TrainingConfig,
    training: TrainingSet,
    validation: TrainingSet,
    *,
    progress: Progress,
    history: Path | None = None,
    minutes: float = math.inf,
    start: Autoencoder | None = None,
) -> tuple[Autoencoder, list[Epoch]]:
    """Train an autoencoder.

    Parameters
    ----------
    minutes
        Time allowed; the learning rate then falls with the time rather than with the epochs.
    start
        Weights to go on from, instead of random ones of the configuration's seed.

    Returns
    -------
    autoencoder, history
        The trained network (in evaluation mode) and one `Epoch` per epoch.
    """
    torch.manual_seed(config.seed)  # dropout draws from torch's global generator, which `fork_rng` gives back
    model = (start or build(config.architecture, seed=config.seed)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    rng = np.random.default_rng(config.seed)
    epochs: list[Epoch] = []
    begun = time.monotonic()
    for number in range(1, config.epochs + 1):
        epoch_begun = time.monotonic()
        losses, bces, seen = [], [], 0
        with progress.stage(f"epoch {number}", total=training.n_patterns, unit="patterns") as advance:
            for step, (patterns, configuration) in enumerate(_batches(training, config, rng)):
                done = (number - 1 + step * config.experiments_per_batch / len(training)) / config.epochs
                if math.isfinite(minutes):
                    done = max(done, (time.monotonic() - begun) / (60 * minutes))
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * _schedule(done)
                loss, bce = _step(model, optimizer, patterns, configuration, config)
                losses.append(loss)
                bces.append(bce)
                seen += len(patterns)
                advance(len(patterns))
                if done >= 1:
                    break
        seconds = time.monotonic() - epoch_begun
        checked = validate(model, validation)
        epochs.append(Epoch(number, seconds, seen / seconds, float(np.mean(losses)), float(np.mean(bces)), *checked))
        if history is not None:
            write_history(epochs, history)
        if done >= 1:
            break
    return model.eval(), epochs


def write_history(epochs: list[Epoch], path: Path) -> None:
    """Write one line per epoch as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(epochs[0])))
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in epochs)


def contrastive_loss(latent: Tensor, configuration: Tensor, *, temperature: float) -> Tensor:
    """Supervised contrastive loss of unit vectors (n, M_AE), averaged over those that have a partner; 0 without."""
    similarity = latent @ latent.T / temperature
    itself = torch.eye(len(latent), dtype=torch.bool)
    same = (configuration[:, None] == configuration[None, :]) & ~itself
    log_share = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    partners = same.sum(dim=1)
    mean = (log_share * same).sum(dim=1)[partners > 0] / partners[partners > 0]
    return -mean.sum() / max(1, len(mean))


@torch.inference_mode()
def validate(model: Autoencoder, validation: TrainingSet) -> tuple[float, float, float]:
    """BCE and MSE per pixel, and the share of nearest neighbours that are views of the same configuration."""
    model.eval()
    bce, mse, hits, total = 0.0, 0.0, 0, 0
    for experiment in range(len(validation)):
        patterns, configuration = validation.read(experiment)
        target = model.smooth(patterns)
        latent = model.encode_smoothed(target)
        logits = model.decode(latent)
        bce += float(nn.functional.binary_cross_entropy_with_logits(logits, target)) * len(patterns)
        mse += float(nn.functional.mse_loss(logits.sigmoid(), target)) * len(patterns)
        distance = torch.cdist(latent, latent).fill_diagonal_(torch.inf)
        hits += int((configuration[distance.argmin(dim=1)] == configuration).sum())
        total += len(patterns)
    model.train()
    return bce / total, mse / total, hits / total


@torch.inference_mode()
def plateau(model: Autoencoder, validation: TrainingSet) -> tuple[float, float]:
    """BCE of the best constant image, the plateau a training must leave behind, and of a perfect reconstruction.

    Targets between 0 and 1 have an entropy of their own, so a perfect reconstruction does not reach a BCE of 0.
    """
    mean = torch.cat([model.smooth(validation.read(i)[0]).mean((1, 2, 3)) for i in range(len(validation))]).mean()
    perfect: list[float] = []
    for experiment in range(len(validation)):
        target = model.smooth(validation.read(experiment)[0])
        perfect.append(float(nn.functional.binary_cross_entropy(target, target)))
    constant = -(mean * mean.log() + (1 - mean) * (1 - mean).log())
    return float(constant), float(np.mean(perfect))


def _schedule(done: float) -> float:
    """Share of the learning rate after the share `done` of the training: a short ramp, then a cosine."""
    warm = 0.03
    if done < warm:
        return 0.1 + 0.9 * done / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warm) / (1 - warm))))


def _batches(
    training: TrainingSet, config: TrainingConfig, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    order = rng.permutation(len(training))
    for start in range(0, len(order), config.experiments_per_batch):
        patterns, configurations = [], []
        for place, experiment in enumerate(order[start : start + config.experiments_per_batch]):
            views, configuration = training.read(int(experiment))
            patterns.append(_augment(views, config.max_shift, rng))
            configurations.append(configuration + place * 1_000_000)
        yield torch.cat(patterns), torch.cat(configurations)


def _augment(patterns: Tensor, max_shift: int, rng: np.random.Generator) -> Tensor:
    """Move a whole experiment (mirror, quarter turns, shift) and change the contrast of each of its patterns."""
    if rng.random() < 0.5:
        patterns = patterns.flip(-1)
    patterns = patterns.rot90(int(rng.integers(4)), (-2, -1))
    if max_shift:
        down, right = (int(s) for s in rng.integers(-max_shift, max_shift + 1, size=2))
        patterns = patterns.roll((down, right), (-2, -1))
    contrast: NDArray[np.float32] = rng.uniform(0.75, 1.35, size=(len(patterns), 1, 1, 1)).astype(np.float32)
    return (patterns * torch.from_numpy(contrast)).clamp_(max=1).contiguous()


def _step(
    model: Autoencoder,
    optimizer: torch.optim.Optimizer,
    patterns: Tensor,
    configuration: Tensor,
    config: TrainingConfig,
) -> tuple[float, float]:
    model.train()
    with torch.no_grad():
        target = model.smooth(patterns)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.mixed_precision):
        latent = model.encode_smoothed(target).float()
        loss = torch.zeros(())
        if config.contrastive_weight:
            unit = nn.functional.normalize(latent, dim=1)
            term = contrastive_loss(unit, configuration, temperature=config.temperature)
            loss = loss + config.contrastive_weight * term
        bce = torch.tensor(torch.nan)
        if config.reconstruction_weight:
            # Half of the views show the decoder all it needs, at half of its cost.
            chosen = slice(None, None, 2 if config.contrastive_weight else 1)
            bce = nn.functional.binary_cross_entropy_with_logits(model.decode(latent[chosen]).float(), target[chosen])
            loss = loss + config.reconstruction_weight * bce
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach()), float(bce.detach())
