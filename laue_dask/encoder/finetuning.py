"""Fine-tuning on a user's own scan, where no pattern has a label.

What belongs together is taken from the scan itself. Two views of one pattern do: other noise, contrast, a spot less,
half a pixel aside. So do neighbours in the scan that are each among the other's nearest in feature space, wherever in
the scan it is looked: inside a bent grain, where the orientation drifts from point to point, or where the beam's
intensity drifts. Chains of such links make a grain's ends alike. What does not belong together are patterns of the same
batch that are neither near in the scan, nor linked through others, nor as similar as linked neighbours are: of those
nothing is known, and they are left out of the loss.

Experimental. After two short epochs (900 patterns, seed 201) the adjusted Rand index at the true K rose from 0.58 to
0.60 on simulated messy twins and fell from 0.96 to 0.57 on messy grains: compare a segmentation before and after.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from laue_dask.encoder.fitting import Batch, Check, random_numbers
from laue_dask.encoder.losses import pair_loss, reconstruction_bce, reconstruction_mse, weighted
from laue_dask.encoder.network import Autoencoder
from laue_dask.encoder.training import scaled
from laue_dask.encoder.training_config import FineTuningConfig

NEAREST = 12
"""Neighbours in feature space among which linked patterns find each other."""

NEAR = 2
"""Points within so many rows and columns are never pushed apart."""

ALIKE_QUANTILE = 0.25
"""Patterns more similar than this quantile of the linked neighbours are not pushed apart either."""

LEAST_STEPS = 16
"""Steps of an epoch of a small scan, whose patterns then come several times."""

RUN = 8
"""Consecutive patterns that go into a batch together: they lie in one chunk on disk."""

CHECKED = 512
"""Patterns that an epoch is judged by."""

_BLOCK = 512


@dataclass(frozen=True)
class Links:
    """Which neighbours in a scan belong together, by their features.

    Attributes
    ----------
    pairs : (links, 2) int64
        Places in the list of usable patterns.
    component : (n,) int64
        Patterns of a number are linked, through others if need be.
    alike
        Cosine similarity from which patterns may belong together.
    """

    pairs: NDArray[np.int64]
    component: NDArray[np.int64]
    alike: float


def find_links(features: NDArray[np.float32], position: NDArray[np.int64]) -> Links:
    """Link neighbours in the scan that are mutual nearest neighbours in feature space.

    Parameters
    ----------
    features : (n, M_AE) float32
        Of the usable patterns.
    position : (n, 2) int64
        Their rows and columns in the scan.
    """
    n = len(features)
    unit = torch.from_numpy(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12))
    count = min(NEAREST, n - 1)
    sources, targets, similarities = [], [], []
    for start in range(0, n, _BLOCK):
        similarity = unit[start : start + _BLOCK] @ unit.T
        rows = torch.arange(len(similarity))
        similarity[rows, start + rows] = -torch.inf
        value, nearest = similarity.topk(count, dim=1)
        sources.append((start + rows)[:, None].expand(-1, count).reshape(-1).numpy())
        targets.append(nearest.reshape(-1).numpy())
        similarities.append(value.reshape(-1).numpy())
    source, target, similar = map(np.concatenate, (sources, targets, similarities))
    beside = np.abs(position[source] - position[target]).max(axis=1) == 1
    there = coo_array((similar[beside] + 2, (source[beside], target[beside])), shape=(n, n)).tocsr()
    # an entry is left where both found each other; + 2, above, keeps it from being zero
    mutual = there.minimum(there.T).tocoo()
    upper = mutual.row < mutual.col
    pairs = np.stack([mutual.row[upper], mutual.col[upper]], axis=1).astype(np.int64)
    component = connected_components(mutual, directed=False)[1].astype(np.int64)
    alike = float(np.quantile(mutual.data[upper] - 2, ALIKE_QUANTILE)) if len(pairs) else 1.0
    return Links(pairs, component, alike)


class Unlabelled:
    """The objective of a fine-tuning.

    Parameters
    ----------
    model
        The weights that it begins with: the links that judge every epoch are theirs.
    reduced : (pattern, 128, 128) uint8
        Zarr array of the scan's reduced patterns.
    valid : (pattern,) bool
        Patterns that exist.
    shape
        (ny, nx) of the scan.
    """

    resumes_inside = False  # the links of an epoch are those of the features with which it began

    def __init__(
        self,
        config: FineTuningConfig,
        model: Autoencoder,
        reduced: Any,
        valid: NDArray[np.bool_],
        shape: tuple[int, int],
    ) -> None:
        self._config, self._reduced = config, reduced
        self._pattern = np.flatnonzero(valid)
        self._position = np.stack(np.divmod(self._pattern, shape[1]), axis=1).astype(np.int64)
        n = len(self._pattern)
        self.n_steps = max(LEAST_STEPS, -(-n // config.patterns_per_batch))
        self.n_patterns = 2 * self.n_steps * config.patterns_per_batch
        self._features, self._links = Tensor(), Links(np.empty((0, 2), np.int64), np.empty(0, np.int64), 1.0)
        self._partners: list[NDArray[np.int64]] = []
        self.begin(model.eval())
        self._start = self._features, self._links, self._partners

    def begin(self, model: Autoencoder) -> None:
        """Encode the scan and link its patterns anew."""
        features = self._encode(model)
        self._links = find_links(features, self._position)
        device = next(model.parameters()).device
        self._features = nn.functional.normalize(torch.from_numpy(features), dim=1).to(device)
        both = np.concatenate([self._links.pairs, self._links.pairs[:, ::-1]])
        both = both[np.argsort(both[:, 0], kind="stable")]
        self._partners = np.split(both[:, 1], np.searchsorted(both[:, 0], np.arange(1, len(features))))

    def read(self, epoch: int, step: int) -> Batch:
        """Patterns and then their partners; `relation` is the place of each among the usable patterns."""
        n, wanted = len(self._pattern), self._config.patterns_per_batch
        order = random_numbers(self._config.seed, epoch, -1)
        runs = np.arange(n + -n % RUN).reshape(-1, RUN)
        laps = -(-(wanted * self.n_steps) // n)
        places = np.concatenate([order.permutation(runs).ravel() for _ in range(laps)])
        chosen = places[places < n][step * wanted : (step + 1) * wanted]
        rng = random_numbers(self._config.seed, epoch, step)
        return self._batch(chosen, rng)

    def losses(self, model: Autoencoder, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """Contrastive term over what is known of the batch's pairs, and the reconstruction's BCE and MSE."""
        with torch.no_grad():
            target = _jittered(model.smooth(_perturbed(scaled(batch.patterns))))
        chosen = slice(None, None, 4)  # what the decoder learns of a scan it learns from few patterns
        logits: Tensor | None = None
        with torch.autocast(target.device.type, dtype=torch.bfloat16, enabled=self._config.mixed_precision):
            latent = model.encode_smoothed(target)
            if self._config.reconstruction_weight:
                logits = model.decode(latent[chosen].float())
        terms: dict[str, Tensor] = {}
        if self._config.contrastive_weight:
            terms["contrastive"] = self._contrastive(latent.float(), batch.relation)
        if logits is not None:
            terms["bce"] = reconstruction_bce(logits.float(), target[chosen])
            terms["mse"] = reconstruction_mse(logits.detach().float(), target[chosen])
        return terms

    @torch.inference_mode()
    def check(self, model: Autoencoder) -> Check:
        """Losses of patterns of the scan as they are, with the links of the first epoch.

        The neighbour score is the share of patterns whose nearest neighbour in feature space, in the whole scan, is
        next to them in the scan.
        """
        current = self._features, self._links, self._partners
        self._features, self._links, self._partners = self._start
        rng = random_numbers(self._config.seed, 0, 0)
        batch = self._batch(rng.permutation(len(self._pattern))[: CHECKED // 2], rng)
        device = next(model.parameters()).device
        target = model.smooth(scaled(batch.patterns.to(device)))
        latent = model.encode_smoothed(target)
        logits = model.decode(latent)
        terms = {
            "contrastive": self._contrastive(latent, batch.relation.to(device)),
            "bce": reconstruction_bce(logits, target),
            "mse": reconstruction_mse(logits, target),
        }
        loss = float(weighted(terms, self._config.weights))
        self._features, self._links, self._partners = current
        nearest = _nearest(torch.from_numpy(self._encode(model)))
        beside = np.abs(self._position - self._position[nearest]).max(axis=1) <= 1
        return Check(loss, float(terms["bce"]), float(terms["mse"]), float(beside.mean()))

    def _batch(self, chosen: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        partner = chosen.copy()
        for i, place in enumerate(chosen):
            linked = self._partners[place]
            if len(linked) and rng.random() < self._config.neighbour_share:
                partner[i] = linked[rng.integers(len(linked))]
        places = np.concatenate([chosen, partner])
        needed, back = np.unique(places, return_inverse=True)
        patterns = np.asarray(self._reduced.oindex[self._pattern[needed]])[back]
        return Batch(torch.from_numpy(patterns), torch.from_numpy(places.astype(np.int64)), ())

    def _contrastive(self, latent: Tensor, places: Tensor) -> Tensor:
        n = len(places)
        number = torch.arange(n, device=places.device) % (n // 2)
        partners = (number[:, None] == number) | (places[:, None] == places)
        at = places.cpu().numpy()
        position, component = (
            torch.from_numpy(v[at]).to(places.device) for v in (self._position, self._links.component)
        )
        near = ((position[:, None] - position).abs() <= NEAR).all(dim=2)
        before = self._features[places]
        ignored = near | (component[:, None] == component) | (before @ before.T > self._links.alike)
        unit = nn.functional.normalize(latent, dim=1)
        return pair_loss(unit, partners, temperature=self._config.temperature, ignored=ignored)

    @torch.inference_mode()
    def _encode(self, model: Autoencoder) -> NDArray[np.float32]:
        """Features (n, M_AE) of the usable patterns."""
        device, found = next(model.parameters()).device, []
        for start in range(0, len(self._pattern), _BLOCK):
            patterns = np.asarray(self._reduced.oindex[self._pattern[start : start + _BLOCK]])
            found.append(model.encode(scaled(torch.from_numpy(patterns).to(device))).float().cpu().numpy())
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
