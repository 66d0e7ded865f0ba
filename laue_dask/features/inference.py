"""The trained network in a worker: it makes features and reconstruction errors of batches of patterns."""

from functools import lru_cache
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from laue_dask.errors import StoreError
from laue_dask.features import weights
from laue_dask.features.batch_sizes import AUTO_BATCH_SIZES
from laue_dask.features.batches import fastest_size, in_batches
from laue_dask.features.losses import unexplained
from laue_dask.features.network import Autoencoder

DECODING_BATCH_DIVISOR = 4
"""So many times smaller are batches that are decoded as well, on a CPU: the larger maps of the decoder then stay in its
cache, and in memory that the process has."""


def encode_block(
    reduced: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    *,
    weights_name: str,
    digest: str,
    batch_size: int | Literal["auto"],
    precision: str,
) -> NDArray[np.float32]:
    """Return the features (n, M_AE) float32 of one block of patterns; NaN where not valid."""
    model, device = network_here(weights_name, digest)
    width = model.architecture.latent
    features = np.full((len(reduced), width), np.nan, dtype=np.float32)
    keep = valid.reshape(len(reduced))
    if keep.any():
        size = _size(batch_size, weights_name, digest, precision)
        features[keep] = in_batches(model.encode, reduced[keep], (width,), device, size, precision)
    return features


def reconstruction_errors(
    reduced: NDArray[np.uint8], *, name: str, digest: str, batch_size: int | Literal["auto"], precision: str
) -> NDArray[np.float32]:
    """Return how far patterns (n, 128, 128) uint8 are from their reconstructions, (n, 2) float32.

    The binary cross entropy in nat, mean per pixel, and the share that is `losses.unexplained`, NaN for a pattern that
    shows nothing.
    """
    model, device = network_here(name, digest)

    def errors(patterns: Tensor) -> Tensor:
        target = model.smooth(patterns).float()
        logits = model.decode(model.encode(patterns, target)).float()
        entropy = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2, 3))
        return torch.stack([entropy, unexplained(logits, target)], dim=1)

    size = _size(batch_size, name, digest, precision)
    if device.type == "cpu":
        size = max(1, size // DECODING_BATCH_DIVISOR)
    return in_batches(errors, reduced, (2,), device, size, precision)


def reconstructions(
    reduced: NDArray[np.uint8], *, name: str, digest: str, precision: str, batch_size: int = 8
) -> NDArray[np.float32]:
    """Return what the autoencoder makes of patterns (n, 128, 128) uint8: (n, 128, 128) float32 in [0, 1]."""
    model, device = network_here(name, digest)

    def redraw(patterns: Tensor) -> Tensor:
        target = model.smooth(patterns).float()
        return torch.sigmoid(model.decode(model.encode(patterns, target)).float())[:, 0]

    return in_batches(redraw, reduced, reduced.shape[1:], device, batch_size, precision)


def load_default() -> None:
    """Load the shipped weights into this process, and onto its GPU, before anything is asked of it."""
    network_here("default", weights.digest("default"))


def _size(batch_size: int | Literal["auto"], name: str, digest: str, precision: str) -> int:
    return _found_size(name, digest, precision) if batch_size == "auto" else batch_size


@lru_cache(maxsize=4)
def _found_size(name: str, digest: str, precision: str) -> int:
    """The size of batches that encodes fastest on this process's device; looked for once."""
    model, device = network_here(name, digest)
    return fastest_size(model.encode, (model.architecture.latent,), device, precision, AUTO_BATCH_SIZES[device.type])


@lru_cache(maxsize=2)
def network_here(name: str, digest: str) -> tuple[Autoencoder, torch.device]:
    """Return the network on this process's device, loaded once; `digest` tells apart weights trained again under one
    name.

    Raises
    ------
    StoreError
        The weights have another digest, or see `weights.load`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if weights.digest(name) != digest:
        raise StoreError(f"{name}: these weights changed while they were in use: give the new ones another name")
    model, _ = weights.load(name)
    model.encoder = _folded(model.encoder)
    return cast(Autoencoder, model.to(device=device, memory_format=torch.channels_last)), device  # type: ignore[call-overload]


class _Unshuffle(nn.Module):
    """`nn.PixelUnshuffle` of single-channel patterns by 2, straight into the order that convolutions like."""

    def forward(self, patterns: Tensor) -> Tensor:
        """Patterns (n, 1, rows, columns) → (n, 4, rows / 2, columns / 2), channels last."""
        n, _, rows, columns = patterns.shape
        # Two pixels side by side move as one complex number, in fewer and longer steps.
        pairs = torch.view_as_complex(patterns.float().reshape(n, rows // 2, 2, columns // 2, 2))
        blocks = torch.view_as_real(pairs.permute(0, 1, 3, 2).contiguous())
        return blocks.reshape(n, rows // 2, columns // 2, 4).permute(0, 3, 1, 2)


class _MaxPool(nn.MaxPool2d):
    """`nn.MaxPool2d` by 2, thrice as fast on a CPU; on a GPU torch's own is one step where this takes two."""

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps (n, channels, rows, columns), both even → (n, channels, rows / 2, columns / 2)."""
        if features.is_cuda:
            return cast(Tensor, super().forward(features))
        higher = torch.maximum(features[:, :, ::2], features[:, :, 1::2])
        return torch.maximum(higher[..., ::2], higher[..., 1::2])


def _folded(layers: nn.Sequential) -> nn.Sequential:
    """The same function, faster: every batch normalisation is folded into the convolution before it."""
    folded: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.PixelUnshuffle) and layer.downscale_factor == 2:
            folded.append(_Unshuffle())
        elif isinstance(layer, nn.MaxPool2d):
            folded.append(_MaxPool(2))
        elif isinstance(layer, nn.BatchNorm2d) and isinstance(folded[-1], nn.Conv2d):
            folded[-1] = fuse_conv_bn_eval(folded[-1], layer)
        else:
            folded.append(layer)
    return nn.Sequential(*folded).eval()
