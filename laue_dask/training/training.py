"""Training of the autoencoder (section 3.1): binary cross entropy, Adam, and a contrastive term on the latent vectors.

A training store holds simulated experiments; each has configurations (what the beam illuminates) and several views of
each configuration (another noise, exposure, background, a slight rotation). The reconstruction alone does not say which
differences matter: a network that reproduces the brightest spots may map two twins to the same latent vector. The
supervised contrastive loss (Khosla et al., 2020) pulls the views of a configuration together and pushes the
configurations of a batch, twins and small misorientations among them, apart.
"""

import csv
import hashlib
import io
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor, nn

from laue_dask import schema
from laue_dask.errors import InputError, StoreError
from laue_dask.features.losses import contrastive_loss, reconstruction_bce, reconstruction_mse, weighted
from laue_dask.features.network import Autoencoder, build
from laue_dask.io.output_paths import write_atomically
from laue_dask.runtime.progress import Progress
from laue_dask.schema import TRAINING
from laue_dask.training.checkpoint import Epoch
from laue_dask.training.fitting import Batch, Check, Checkpointing, fit, random_numbers
from laue_dask.training.training_config import TrainingConfig


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
        self._paths = paths
        self._experiments: list[tuple[Any, int, int, NDArray[np.int64]]] = []
        for path in paths:
            try:
                root: Any = zarr.open_group(str(path), mode="r")
                patterns, experiment, configuration = (root[name] for name in TRAINING)
            except (OSError, KeyError, ValueError) as error:
                raise InputError(
                    f"{path}: this is not a training store: make one with `laue-dask simulate training`"
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

    def digest(self) -> str:
        """Return the hash of the data, 16 hexadecimal digits, whatever the stores are called.

        It is taken over each store's attributes (seed, recipe, experiments) and the CRC-32C that closes every chunk of
        its arrays, in their order: the content counts, and only four bytes of each chunk are read.
        """
        found = hashlib.sha256()
        for path, attributes in zip(self._paths, self.attributes, strict=True):
            found.update(json.dumps(attributes, sort_keys=True).encode())
            for name in TRAINING:
                for chunk in sorted((path / name / "c").rglob("*")):
                    if chunk.is_file():
                        with chunk.open("rb") as file:
                            file.seek(-4, io.SEEK_END)
                            found.update(chunk.relative_to(path).as_posix().encode() + file.read())
        return found.hexdigest()[:16]

    def load(self, experiment: int) -> tuple[Tensor, Tensor]:
        """Return the patterns (n, 128, 128) uint8 and configurations (n,) int64 of one experiment.

        Raises
        ------
        StoreError
            Its chunk is damaged.
        """
        patterns, start, stop, configuration = self._experiments[experiment]
        try:
            values = np.asarray(patterns[start:stop])
        except (ValueError, RuntimeError) as error:
            where = patterns.store_path
            raise StoreError(f"{where}: patterns {start} to {stop} are damaged: make the store again") from error
        return torch.from_numpy(values), torch.from_numpy(configuration)

    def read(self, experiment: int) -> tuple[Tensor, Tensor]:
        """Read like `load`, but give patterns (n, 1, 128, 128) float32 in [0, 1]."""
        patterns, configuration = self.load(experiment)
        return as_network_input(patterns), configuration


def as_network_input(patterns: Tensor) -> Tensor:
    """Return the patterns (n, 128, 128) uint8 as the network takes them: (n, 1, 128, 128) float32 in [0, 1]."""
    return patterns[:, None].float().div_(255)


class SupervisedObjective:
    """The objective of a training on simulated experiments, whose configurations are known.

    Parameters
    ----------
    config
        Batches and weights of the terms.
    training, validation
        Different experiments.
    """

    def __init__(self, config: TrainingConfig, training: TrainingSet, validation: TrainingSet) -> None:
        self._config, self._training, self._validation = config, training, validation
        self.n_patterns = training.n_patterns
        self.n_steps = -(-len(training) // config.experiments_per_batch)

    def read(self, epoch: int, step: int) -> Batch:
        """Return the experiments of a step, in an order that is new in each epoch; `relation` is the configuration."""
        order = random_numbers(self._config.seed, epoch, -1).permutation(len(self._training))
        first = step * self._config.experiments_per_batch
        chosen = order[first : first + self._config.experiments_per_batch]
        loaded = [self._training.load(int(experiment)) for experiment in chosen]
        configurations = [configuration + place * 1_000_000 for place, (_, configuration) in enumerate(loaded)]
        patterns = [views for views, _ in loaded]
        return Batch(torch.cat(patterns), torch.cat(configurations), tuple(len(views) for views in patterns))

    def losses(self, model: Autoencoder, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the contrastive term and, of every other view, the reconstruction's BCE and MSE."""
        config = self._config
        experiments = as_network_input(batch.patterns).split(batch.groups)
        patterns = torch.cat([_augment(views, config.max_shift, rng) for views in experiments])
        with torch.no_grad():
            target = model.smooth(patterns)
        # Half of the views show the decoder all it needs, at half of its cost.
        chosen = slice(None, None, 2 if config.contrastive_weight else 1)
        logits: Tensor | None = None
        with torch.autocast(target.device.type, dtype=torch.bfloat16, enabled=config.mixed_precision):
            latent = model.encode(patterns, target)
            if config.reconstruction_weight:
                logits = model.decode(latent[chosen].float())
        terms: dict[str, Tensor] = {}
        if config.contrastive_weight:
            unit = nn.functional.normalize(latent[:, : model.architecture.learned].float(), dim=1)
            terms["contrastive"] = contrastive_loss(unit, batch.relation, temperature=config.temperature)
        if logits is not None:
            terms["bce"] = reconstruction_bce(logits.float(), target[chosen])
            terms["mse"] = reconstruction_mse(logits.detach().float(), target[chosen])
        return terms

    def check(self, model: Autoencoder) -> Check:
        """See `validate`."""
        return validate(model, self._validation, self._config)


def train(
    config: TrainingConfig,
    training: TrainingSet,
    validation: TrainingSet,
    *,
    progress: Progress,
    minutes: float = math.inf,
    start: Autoencoder | None = None,
    checkpointing: Checkpointing | None = None,
    on_epoch: Callable[[list[Epoch]], None] | None = None,
) -> tuple[Autoencoder, list[Epoch]]:
    """Train an autoencoder.

    Parameters
    ----------
    start
        Weights to go on from, instead of random ones of the configuration's seed.
    minutes, checkpointing, on_epoch
        See `fitting.fit`.

    Returns
    -------
    autoencoder, history
        The network of the epoch with the lowest validation loss (in evaluation mode) and one `Epoch` per epoch.
    """
    return fit(
        start or build(config.architecture, seed=config.seed),
        SupervisedObjective(config, training, validation),
        config,
        progress=progress,
        minutes=minutes,
        checkpointing=checkpointing,
        on_epoch=on_epoch,
    )


def write_history(epochs: list[Epoch], path: Path) -> None:
    """Write one line per epoch as CSV."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(asdict(epochs[0])))
    writer.writeheader()
    writer.writerows(asdict(epoch) for epoch in epochs)
    write_atomically(path, text.getvalue().encode())


@torch.inference_mode()
def validate(model: Autoencoder, validation: TrainingSet, config: TrainingConfig) -> Check:
    """Return the losses of patterns that were not trained on, as they are, experiment by experiment.

    Parameters
    ----------
    model
        In evaluation mode.
    config
        Weights of the terms and temperature, for the loss; the other figures do not depend on it.

    Returns
    -------
    Check
        The weighted loss, BCE and MSE per pixel, and the share of nearest neighbours that are views of the same
        configuration.
    """
    device = next(model.parameters()).device
    sums, hits, total = dict.fromkeys(("loss", "bce", "mse"), 0.0), 0, 0
    for experiment in range(len(validation)):
        patterns, configuration = (values.to(device) for values in validation.read(experiment))
        target = model.smooth(patterns)
        latent = model.encode(patterns, target)
        logits = model.decode(latent)
        unit = nn.functional.normalize(latent[:, : model.architecture.learned], dim=1)
        terms = {
            "contrastive": contrastive_loss(unit, configuration, temperature=config.temperature),
            "bce": reconstruction_bce(logits, target),
            "mse": reconstruction_mse(logits, target),
        }
        terms["loss"] = weighted(terms, config.weights)
        for name in sums:
            sums[name] += float(terms[name]) * len(patterns)
        distance = torch.cdist(latent, latent).fill_diagonal_(torch.inf)
        hits += int((configuration[distance.argmin(dim=1)] == configuration).sum())
        total += len(patterns)
    mean = {name: value / total for name, value in sums.items()}
    return Check(neighbour=hits / total, **mean)


class Plateau(NamedTuple):
    """What a training must leave behind, and how far it can get; losses are means per pixel (BCE in nat).

    Attributes
    ----------
    bce, mse
        Of the best constant image, which on Laue patterns is all but black.
    perfect_bce
        Of a perfect reconstruction: targets between 0 and 1 have an entropy of their own. Its MSE is 0.
    """

    bce: float
    perfect_bce: float
    mse: float


@torch.inference_mode()
def plateau(model: Autoencoder, validation: TrainingSet) -> Plateau:
    """Return the local minimum that the paper warns of, and the goal, for the targets that this model is shown."""
    total, mean, square, perfect = 0, 0.0, 0.0, 0.0
    for experiment in range(len(validation)):
        target = model.smooth(validation.read(experiment)[0].to(next(model.parameters()).device))
        total += len(target)
        mean += float(target.double().mean()) * len(target)
        square += float(target.double().square().mean()) * len(target)
        perfect += float(nn.functional.binary_cross_entropy(target, target)) * len(target)
    mean, square, perfect = mean / total, square / total, perfect / total
    constant = -(mean * math.log(mean) + (1 - mean) * math.log1p(-mean)) if 0 < mean < 1 else 0.0
    return Plateau(constant, perfect, square - mean**2)


def _augment(patterns: Tensor, max_shift: int, rng: np.random.Generator) -> Tensor:
    """Move a whole experiment (mirror, quarter turns, shift) and change the contrast of each of its patterns."""
    if rng.random() < 0.5:
        patterns = patterns.flip(-1)
    patterns = patterns.rot90(int(rng.integers(4)), (-2, -1))
    if max_shift:
        down, right = (int(s) for s in rng.integers(-max_shift, max_shift + 1, size=2))
        patterns = patterns.roll((down, right), (-2, -1))
    contrast: NDArray[np.float32] = rng.uniform(0.75, 1.35, size=(len(patterns), 1, 1, 1)).astype(np.float32)
    return (patterns * torch.from_numpy(contrast).to(patterns.device)).clamp_(max=1).contiguous()
