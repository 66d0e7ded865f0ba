"""Fine-tuning on a user's own scan, where no pattern has a label.

What belongs together is taken from the features: HDBSCAN finds groups of patterns that lie close together in feature
space, follows a bent grain along its drift, and leaves out what lies between groups, such as patterns of a beam that
straddles a boundary. Of two groups whose mean features are alike nothing is known: they may be pieces of one bent
grain, or of a grain that is met twice. So patterns of a group are pulled together, patterns of groups that are unlike
are pushed apart, and all other pairs keep the similarity that they had. Groups are found anew in every epoch.

Only the last layer of the encoder learns, and the decoder, which follows it: what the layers below have learnt from
many materials stays as it is.

Experimental: it does not help reliably, and on fine twins it can make a segmentation slightly worse.
`scripts/benchmark_finetuning.py` measures that: compare a segmentation before and after.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN
from torch import Tensor, nn

from laue_dask.encoder.fitting import Batch, Check, random_numbers
from laue_dask.encoder.losses import pair_loss, reconstruction_bce, reconstruction_mse, weighted
from laue_dask.encoder.network import Autoencoder
from laue_dask.encoder.training import scaled
from laue_dask.encoder.training_config import FineTuningConfig
from laue_dask.errors import InputError

LEAST_GROUP = 15
"""Fewest patterns of a group."""

CORE = 5
"""Neighbours within which a pattern's density is measured."""

UNLIKE = 0.4
"""Cosine of mean features below which two groups are different grains. The ends of grains bent by 3° are above it."""

MOST = 4096
"""Patterns of a scan that are used: of a larger one every second, third, ... one. Grouping takes the square of it."""

LEAST_STEPS = 4
"""Steps of an epoch of a small scan, whose patterns then come several times."""

CHECKED = 512
"""Patterns that an epoch is judged by."""

_BLOCK = 512


@dataclass(frozen=True)
class Groups:
    """Which patterns belong together, by their features.

    Attributes
    ----------
    group : (n,) int64
        Of each pattern; -1 where it belongs to none.
    unlike : (groups, groups) bool
        Which groups are different grains.
    """

    group: NDArray[np.int64]
    unlike: NDArray[np.bool_]

    def pairs(self, places: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Of patterns (m,): which pairs (m, m) belong together, and which do not; of the others nothing is known."""
        group = self.group[places]
        grouped = (group[:, None] >= 0) & (group >= 0)
        together = grouped & (group[:, None] == group) | (places[:, None] == places)
        apart = np.zeros_like(together)
        apart[grouped] = self.unlike[
            np.broadcast_to(group[:, None], grouped.shape)[grouped], np.broadcast_to(group, grouped.shape)[grouped]
        ]
        return together, apart


def find_groups(features: NDArray[np.float32]) -> Groups:
    """Group patterns by the density of their unit features (n, M_AE)."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    least = max(2, min(LEAST_GROUP, len(unit) // 4))
    found = HDBSCAN(min_cluster_size=least, min_samples=min(CORE, len(unit)), copy=True).fit(unit)
    group = np.asarray(found.labels_, dtype=np.int64)
    count = int(group.max(initial=-1)) + 1
    means = np.stack([unit[group == i].mean(axis=0) for i in range(count)]) if count else unit[:0]
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return Groups(group, means @ means.T < UNLIKE)


class Unlabelled:
    """The objective of a fine-tuning.

    Parameters
    ----------
    model
        The weights that it begins with; all but the last layer of its encoder and its decoder are frozen. The groups
        that judge every epoch, and the similarities that are kept, are theirs.
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
        No two groups of patterns are unlike: there is nothing to learn from.
    """

    resumes_inside = False  # the groups of an epoch are those of the features with which it began

    def __init__(
        self,
        config: FineTuningConfig,
        model: Autoencoder,
        reduced: Any,
        valid: NDArray[np.bool_],
        shape: tuple[int, int],
    ) -> None:
        self._config = config
        pattern = np.flatnonzero(valid)
        pattern = pattern[:: -(-len(pattern) // MOST)]
        self.used = len(pattern)
        self._patterns = torch.from_numpy(np.asarray(reduced.oindex[pattern]))
        self._position = np.stack(np.divmod(pattern, shape[1]), axis=1).astype(np.int64)
        self.n_steps = max(LEAST_STEPS, -(-len(pattern) // config.patterns_per_batch))
        self.n_patterns = 2 * self.n_steps * config.patterns_per_batch
        model.requires_grad_(False)
        for part in (model.encoder[-1], model.decoder, model.overlay):
            if part is not None:
                part.requires_grad_(True)
        features = self._encode(model.eval())
        self._start = self._groups = find_groups(features)
        if not self._start.unlike.any():
            raise InputError(
                "no two groups of like patterns in the scan are clearly different: nothing to learn from, "
                "keep the weights as they are"
            )
        # Sketches and peaks tell groups apart as well, but there is nothing to be learnt of them.
        self._learned = model.architecture.learned
        self._before = nn.functional.normalize(torch.from_numpy(features[:, : self._learned]), dim=1)

    def begin(self, model: Autoencoder) -> None:
        """Encode the scan and group its patterns anew."""
        self._groups = find_groups(self._encode(model))

    def read(self, epoch: int, step: int) -> Batch:
        """Patterns, twice: each is seen in two views; `relation` is the place of each among the used patterns."""
        n, wanted = len(self._patterns), self._config.patterns_per_batch
        order = random_numbers(self._config.seed, epoch, -1)
        laps = -(-(wanted * self.n_steps) // n)
        places = np.concatenate([order.permutation(n) for _ in range(laps)])[step * wanted : (step + 1) * wanted]
        return self._batch(np.tile(places, 2))

    def losses(self, model: Autoencoder, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """Contrastive term and anchor over the batch's pairs, and the reconstruction's BCE and MSE."""
        model.eval()  # a single scan's statistics are no replacement for those of the training
        with torch.no_grad():
            target = _jittered(model.smooth(_perturbed(scaled(batch.patterns))))
        chosen = slice(None, None, 16)  # what the decoder learns of a scan it learns from few patterns
        logits: Tensor | None = None
        with torch.autocast(target.device.type, dtype=torch.bfloat16, enabled=self._config.mixed_precision):
            latent = model.encode_smoothed(target)
            if self._config.reconstruction_weight:
                # The decoder follows the features; they do not follow it.
                logits = model.decode(latent[chosen].detach().float())
        terms: dict[str, Tensor] = {}
        if self._config.contrastive_weight:
            terms |= self._relations(latent.float(), batch.relation, self._groups)
        if logits is not None:
            terms["bce"] = reconstruction_bce(logits.float(), target[chosen])
            terms["mse"] = reconstruction_mse(logits.detach().float(), target[chosen])
        return terms

    @torch.inference_mode()
    def check(self, model: Autoencoder) -> Check:
        """Losses of patterns of the scan as they are, with the groups of the first epoch.

        The neighbour score is the share of patterns whose nearest neighbour in feature space, among all that are used,
        is next to them in the scan.
        """
        places = random_numbers(self._config.seed, 0, 0).permutation(len(self._patterns))[:CHECKED]
        batch = self._batch(places)
        device = next(model.parameters()).device
        target = model.smooth(scaled(batch.patterns.to(device)))
        latent = model.encode_smoothed(target)
        logits = model.decode(latent)
        terms = {
            **self._relations(latent, batch.relation.to(device), self._start),
            "bce": reconstruction_bce(logits, target),
            "mse": reconstruction_mse(logits, target),
        }
        loss = float(weighted(terms, self._config.weights))
        nearest = _nearest(torch.from_numpy(self._encode(model)))
        beside = np.abs(self._position - self._position[nearest]).max(axis=1) <= 1
        return Check(loss, float(terms["bce"]), float(terms["mse"]), float(beside.mean()))

    def _batch(self, places: NDArray[np.int64]) -> Batch:
        return Batch(self._patterns[places], torch.from_numpy(places.astype(np.int64)), ())

    def _relations(self, latent: Tensor, places: Tensor, groups: Groups) -> dict[str, Tensor]:
        """The contrastive term, and the squared change of the similarities of which nothing is known."""
        together, apart = (torch.from_numpy(v).to(latent.device) for v in groups.pairs(places.cpu().numpy()))
        unknown = ~(together | apart)
        unit = nn.functional.normalize(latent[:, : self._learned], dim=1)
        before = self._before.to(latent.device)[places]
        change = (unit @ unit.T - before @ before.T)[unknown]
        return {
            "contrastive": pair_loss(unit, together, temperature=self._config.temperature, ignored=unknown),
            "anchor": change.square().sum() / max(1, len(change)),
        }

    @torch.inference_mode()
    def _encode(self, model: Autoencoder) -> NDArray[np.float32]:
        """Features (n, M_AE) of the used patterns."""
        device, found = next(model.parameters()).device, []
        for part in self._patterns.split(_BLOCK):
            found.append(model.encode(scaled(part.to(device))).float().cpu().numpy())
        return np.concatenate(found)


def _nearest(features: Tensor) -> NDArray[np.int64]:
    """Place (n,) of the nearest other of each of the features (n, M_AE)."""
    found = []
    for start in range(0, len(features), _BLOCK):
        distance = torch.cdist(features[start : start + _BLOCK], features)
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
