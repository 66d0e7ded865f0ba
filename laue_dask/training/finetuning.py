"""Fine-tuning on a user's own scan, where no pattern has a label.

What belongs together is taken from where patterns lie in the scan, see `relations`: patterns of a grain are pulled
together, from one of its bent ends to the other, patterns of different grains are pushed apart, and pairs of grains of
which nothing is known keep the similarity that they had. A pattern beside a boundary may be a mixture: it is not learnt
from.

All layers of the encoder learn, but not the statistics of its normalisation, and the decoder follows. The sketches,
which nothing teaches, follow a bent grain as they always do: they are shortened, for k-means would cut it in two by
their distances alone.

A scan whose features do not wander inside grains has nothing to gain, and is refused. `scripts/benchmark_finetuning.py`
measures what it is worth: segmentations before and after.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from laue_dask.errors import InputError
from laue_dask.features.losses import pair_loss, reconstruction_bce, reconstruction_mse, weighted
from laue_dask.features.network import Autoencoder
from laue_dask.training.fitting import Batch, Check, random_numbers
from laue_dask.training.relations import Relations, feature_drift, find_relations
from laue_dask.training.training import as_network_input
from laue_dask.training.training_config import FineTuningConfig

MIN_WANDER_SHARE = 0.1
"""Share of the features' scatter that is steady change inside grains, below which there is nothing to gain: between
that of flat grains and twins, and that of bent ones, which are far apart on the development scans of the benchmark."""

FINETUNED_SKETCH_LENGTH = 0.05
"""Of the sketches after a fine-tuning, where they are longer before: of several, with which k-means did best on the
development scans (messy twins, seeds 201 to 207)."""

MAX_PATTERNS = 4096
"""Patterns of a scan that are learnt from: of a larger one every second, third, ... one."""

MIN_STEPS_PER_EPOCH = 4
"""Steps of an epoch of a small scan, whose patterns then come several times."""

MAX_CHECKED_PATTERNS = 512
"""Patterns that an epoch is judged by."""

_PATTERNS_PER_BLOCK = 512


class UnlabelledObjective:
    """The objective of a fine-tuning.

    Parameters
    ----------
    model
        The weights that it begins with. Its sketches are shortened, once the relations of the scan's patterns are found
        with them.
    reduced : (pattern, 128, 128) uint8
        Zarr array of the scan's reduced patterns.
    valid : (pattern,) bool
        Patterns that exist.
    shape
        (ny, nx) of the scan.

    Attributes
    ----------
    used
        Number of patterns that are learnt from.

    Raises
    ------
    InputError
        There is one grain alone, or features do not wander inside grains: nothing to gain.
    """

    def __init__(
        self,
        config: FineTuningConfig,
        model: Autoencoder,
        reduced: Any,
        valid: NDArray[np.bool_],
        shape: tuple[int, int],
    ) -> None:
        self._config = config
        rows = np.flatnonzero(valid)
        model.eval()
        # neighbours must be seen side by side: the relations are those of all patterns, whatever is learnt from
        features = np.concatenate(
            [
                _encode(model, torch.from_numpy(np.asarray(reduced.oindex[rows[start : start + _PATTERNS_PER_BLOCK]])))
                for start in range(0, len(rows), _PATTERNS_PER_BLOCK)
            ]
        )
        found = find_relations(features, valid, shape, lambda points: np.asarray(reduced.oindex[points]))
        _require_gain(found, feature_drift(features, found, valid, shape))
        chosen = np.flatnonzero(found.grain >= 0)
        chosen = chosen[:: -(-len(chosen) // MAX_PATTERNS)]
        self.used = len(chosen)
        self._relations = Relations(found.grain[chosen], found.apart)
        self._patterns = torch.from_numpy(np.asarray(reduced.oindex[rows[chosen]]))
        self._position = np.stack(np.divmod(rows[chosen], shape[1]), axis=1).astype(np.int64)
        self.n_steps = max(MIN_STEPS_PER_EPOCH, -(-self.used // config.patterns_per_batch))
        self.n_patterns = 2 * self.n_steps * config.patterns_per_batch
        self._learned = model.architecture.learned
        self._before = nn.functional.normalize(torch.from_numpy(features[chosen, : self._learned]), dim=1)
        model.shorten_sketches(FINETUNED_SKETCH_LENGTH)

    def read(self, epoch: int, step: int) -> Batch:
        """Return the patterns, twice: each is seen in two views; `relation` is the place of each among the used
        patterns.
        """
        n, wanted = len(self._patterns), self._config.patterns_per_batch
        order = random_numbers(self._config.seed, epoch, -1)
        laps = -(-(wanted * self.n_steps) // n)
        places = np.concatenate([order.permutation(n) for _ in range(laps)])[step * wanted : (step + 1) * wanted]
        return self._batch(np.tile(places, 2))

    def losses(self, model: Autoencoder, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the contrastive term and anchor over the batch's pairs, and the reconstruction's BCE and MSE."""
        model.eval()  # a single scan's statistics are no replacement for those of the training
        with torch.no_grad():
            patterns = _perturbed(as_network_input(batch.patterns))
            target = _jittered(model.smooth(patterns))
        chosen = slice(None, None, 16)  # what the decoder learns of a scan it learns from few patterns
        logits: Tensor | None = None
        with torch.autocast(target.device.type, dtype=torch.bfloat16, enabled=self._config.mixed_precision):
            # The sketch is of patterns that did not move; what is learnt does not depend on it.
            latent = model.encode(patterns, target)
            if self._config.reconstruction_weight:
                # The decoder follows the features; they do not follow it.
                logits = model.decode(latent[chosen].detach().float())
        terms: dict[str, Tensor] = {}
        if self._config.contrastive_weight:
            terms |= self._related(latent.float(), batch.relation)
        if logits is not None:
            terms["bce"] = reconstruction_bce(logits.float(), target[chosen])
            terms["mse"] = reconstruction_mse(logits.detach().float(), target[chosen])
        return terms

    @torch.inference_mode()
    def check(self, model: Autoencoder) -> Check:
        """Return the losses of patterns of the scan as they are.

        The neighbour score is the share of patterns whose nearest neighbour in feature space, among all that are used,
        is next to them in the scan.
        """
        places = random_numbers(self._config.seed, 0, 0).permutation(len(self._patterns))[:MAX_CHECKED_PATTERNS]
        batch = self._batch(places)
        device = next(model.parameters()).device
        patterns = as_network_input(batch.patterns.to(device))
        target = model.smooth(patterns)
        latent = model.encode(patterns, target)
        logits = model.decode(latent)
        terms = {
            **self._related(latent, batch.relation.to(device)),
            "bce": reconstruction_bce(logits, target),
            "mse": reconstruction_mse(logits, target),
        }
        loss = float(weighted(terms, self._config.weights))
        nearest = _nearest(torch.from_numpy(_encode(model, self._patterns)))
        beside = np.abs(self._position - self._position[nearest]).max(axis=1) <= 1
        return Check(loss, float(terms["bce"]), float(terms["mse"]), float(beside.mean()))

    def _batch(self, places: NDArray[np.int64]) -> Batch:
        return Batch(self._patterns[places], torch.from_numpy(places.astype(np.int64)), ())

    def _related(self, latent: Tensor, places: Tensor) -> dict[str, Tensor]:
        """The contrastive term, and the squared change of the similarities of which nothing is known."""
        found = self._relations.pairs(places.cpu().numpy())
        together, apart = (torch.from_numpy(pairs).to(latent.device) for pairs in found)
        unknown = ~(together | apart)
        unit = nn.functional.normalize(latent[:, : self._learned], dim=1)
        before = self._before.to(latent.device)[places]
        change = (unit @ unit.T - before @ before.T)[unknown]
        return {
            "contrastive": pair_loss(unit, together, temperature=self._config.temperature, ignored=unknown),
            "anchor": change.square().sum() / max(1, len(change)),
        }


def _require_gain(found: Relations, wandering: float) -> None:
    """Refuse a scan that fine-tuning can do no good to."""
    if not found.apart.any():
        raise InputError(
            "the scan shows one grain alone, so that there is nothing to learn: keep the weights as they are"
        )
    if wandering < MIN_WANDER_SHARE:
        raise InputError(
            f"inside the grains of the scan features hardly change from one end to the other ({wandering:.3f} of their "
            f"scatter, fine-tuning is of use from {MIN_WANDER_SHARE} on): there is nothing to gain: keep the weights "
            f"as they are"
        )


@torch.inference_mode()
def _encode(model: Autoencoder, patterns: Tensor) -> NDArray[np.float32]:
    """Features (n, M_AE) of patterns (n, 128, 128) uint8."""
    device = next(model.parameters()).device
    return np.concatenate(
        [
            model.encode(as_network_input(part.to(device))).float().cpu().numpy()
            for part in patterns.split(_PATTERNS_PER_BLOCK)
        ]
    )


def _nearest(features: Tensor) -> NDArray[np.int64]:
    """Place (n,) of the nearest other of each of the features (n, M_AE)."""
    found = []
    for start in range(0, len(features), _PATTERNS_PER_BLOCK):
        distance = torch.cdist(features[start : start + _PATTERNS_PER_BLOCK], features)
        rows = torch.arange(len(distance))
        distance[rows, start + rows] = torch.inf
        found.append(distance.argmin(dim=1).numpy())
    return np.concatenate(found)


def _perturbed(patterns: Tensor) -> Tensor:
    """Another view of each pattern (n, 1, 128, 128): spots lost, noise, speckle, another contrast."""
    n, device = len(patterns), patterns.device

    def drawn(low: float, high: float) -> Tensor:
        return torch.rand(n, 1, 1, 1, device=device) * (high - low) + low

    # Spots are lost with squares of 8 pixels, which lie elsewhere in every batch.
    kept = torch.rand(n, 1, 17, 17, device=device) >= drawn(0.0, 0.15)
    down, right = (int(i) for i in torch.randint(8, (2,)))
    kept = kept.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, down : down + 128, right : right + 128]
    # Counting statistics: the scatter of a count grows with its root.
    noisy = patterns * kept + drawn(0.0, 0.1) * (patterns * kept).sqrt() * torch.randn_like(patterns)
    speckle = (torch.rand_like(patterns) < drawn(0.0, 0.01)) * drawn(0.0, 0.2)
    return ((noisy + speckle) * drawn(0.75, 1.35)).clamp(0, 1)


def _jittered(patterns: Tensor) -> Tensor:
    """Each pattern (n, 1, 128, 128) moved by up to a pixel along both axes."""
    n, size = len(patterns), patterns.shape[-1]
    theta = torch.eye(2, 3, device=patterns.device).repeat(n, 1, 1)
    theta[:, :, 2] = (torch.rand(n, 2, device=patterns.device) * 2 - 1) * 2 / size
    grid = nn.functional.affine_grid(theta, list(patterns.shape), align_corners=False)
    return nn.functional.grid_sample(patterns, grid, align_corners=False)
