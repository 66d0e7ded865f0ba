"""Terms of the training's loss: pure functions of tensors, each a mean, so that no weight depends on the batch's size.

A new term is a function here, an entry in what the objective's `losses` returns, and a weight of the same name in
`TrainingConfig.weights`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

MIN_CONTRAST_NAT = 1e-6
"""Excess (nat per pixel) of the best constant image below which a pattern shows nothing to be explained."""


def contrastive_loss(latent: Tensor, configuration: Tensor, *, temperature: float) -> Tensor:
    """Return the supervised contrastive loss (Khosla et al., 2020, equation 2).

    Parameters
    ----------
    latent : (n, M_AE)
        Unit vectors.
    configuration : (n,) int64
        Vectors of the same configuration are partners.
    temperature
        What similarities are divided by.

    Returns
    -------
    Tensor
        Mean over the vectors that have a partner; 0 where none has.
    """
    return pair_loss(latent, configuration[:, None] == configuration[None, :], temperature=temperature)


def pair_loss(latent: Tensor, partners: Tensor, *, temperature: float, ignored: Tensor | None = None) -> Tensor:
    """Return `contrastive_loss` of any relation: which vectors are partners, and which are compared at all.

    Parameters
    ----------
    partners : (n, n) bool
        True where two vectors belong together; the diagonal does not matter.
    ignored : (n, n) bool
        True where nothing is known of two vectors: neither pulled together nor pushed apart.
    """
    itself = torch.eye(len(latent), dtype=torch.bool, device=latent.device)
    left_out = itself if ignored is None else itself | (ignored & ~partners)
    same = partners & ~itself
    similarity = latent @ latent.T / temperature
    log_share = similarity - similarity.masked_fill(left_out, -torch.inf).logsumexp(dim=1, keepdim=True)
    count = same.sum(dim=1)
    mean = log_share.masked_fill(~same, 0.0).sum(dim=1)[count > 0] / count[count > 0]
    return -mean.sum() / max(1, len(mean))


def reconstruction_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross entropy in nat, mean per pixel: the paper's loss (section 3.1)."""
    return nn.functional.binary_cross_entropy_with_logits(logits, target)


def reconstruction_mse(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error per pixel: what the paper watches beside its loss (Figure 4)."""
    return nn.functional.mse_loss(logits.sigmoid(), target)


def weighted(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of the terms that have a weight; the others are only watched."""
    return torch.stack([weight * terms[name] for name, weight in weights.items() if weight]).sum()


def unexplained(logits: Tensor, target: Tensor) -> Tensor:
    """Return the share of each pattern that its reconstruction leaves unexplained.

    The binary cross entropy above the target's own entropy, which no reconstruction can go below, divided by the same
    of the best constant image: the Kullback-Leibler divergence from the pattern to its reconstruction, relative to
    that of a uniform grey. 0 is a perfect reconstruction, 1 is as good as none, and above 1 is worse.

    Parameters
    ----------
    logits : (n, 1, 128, 128)
        Of the reconstruction, `Autoencoder.decode`.
    target : (n, 1, 128, 128) in [0, 1]
        What the decoder is to draw: `Autoencoder.smooth` of the pattern.

    Returns
    -------
    share : (n,)
        NaN for a pattern that is constant, as an empty one.
    """
    target, logits = target.float(), logits.float()
    floor = (torch.special.entr(target) + torch.special.entr(1 - target)).mean((1, 2, 3))
    reached = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2, 3))
    level = target.mean((1, 2, 3))
    contrast = torch.special.entr(level) + torch.special.entr(1 - level) - floor
    share = (reached - floor) / contrast
    return torch.where(contrast > MIN_CONTRAST_NAT, share, torch.nan)
