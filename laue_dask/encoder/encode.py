"""Feature extraction (Definition 4): reduced patterns → latent features, as a `map_blocks`.

The task graph carries the name of the weights, never the weights: each worker loads them once and keeps them.
"""

from functools import lru_cache
from typing import Any, cast

import dask.array as da
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from laue_dask.encoder import weights
from laue_dask.encoder.network import Autoencoder
from laue_dask.errors import StoreError


def encode(
    reduced: da.Array,
    valid: NDArray[np.bool_],
    *,
    name: str,
    latent: int,
    batch_size: int = 32,
    precision: str = "float32",
) -> da.Array:
    """Lazy feature map of a scan (equation 14).

    Parameters
    ----------
    reduced : (pattern, 128, 128) uint8
        Reduced patterns, chunked along `pattern` alone.
    valid : (pattern,) bool
        Patterns that exist; the features of the others are NaN.
    name
        Weights: `default`, `untrained` or a path.

    Returns
    -------
    features : (pattern, latent) float32
        With the chunks of `reduced` along `pattern`.
    """
    features: da.Array = da.map_blocks(
        encode_block,
        reduced,
        da.from_array(valid, chunks=reduced.chunks[0])[:, None, None],
        weights_name=name,
        digest=weights.digest(name),
        batch_size=batch_size,
        precision=precision,
        dtype=np.float32,
        drop_axis=(1, 2),
        new_axis=1,
        chunks=(reduced.chunks[0], (latent,)),
        meta=np.empty((0, 0), dtype=np.float32),
    )
    return features


def encode_block(
    reduced: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    *,
    weights_name: str,
    digest: str,
    batch_size: int,
    precision: str,
) -> NDArray[np.float32]:
    """Features (n, M_AE) float32 of one block of patterns; NaN where not valid."""
    model, device = _network(weights_name, digest)
    width = model.architecture.latent
    features = np.full((len(reduced), width), np.nan, dtype=np.float32)
    keep = valid.reshape(len(reduced))
    if keep.any():
        features[keep] = _in_batches(model.encode, reduced[keep], (width,), device, batch_size, precision)
    return features


def reconstruction_error(
    reduced: NDArray[np.uint8], *, name: str, digest: str, batch_size: int, precision: str
) -> NDArray[np.float32]:
    """Binary cross entropy (n,) float32 in nat, mean per pixel, of patterns (n, 128, 128) uint8."""
    model, device = _network(name, digest)

    def error(patterns: Tensor) -> Tensor:
        target = model.smooth(patterns)
        logits = model.decode(model.encode_smoothed(target))
        return nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2, 3))

    return _in_batches(error, reduced, (), device, batch_size, precision)


@lru_cache(maxsize=2)
def _network(name: str, digest: str) -> tuple[Autoencoder, torch.device]:
    """Load the network once per process; `digest` tells apart weights that were trained again under one name."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if weights.digest(name) != digest:
        raise StoreError(f"{name}: these weights changed while they were in use: give the new ones another name")
    model, _ = weights.load(name)
    model.encoder = _folded(model.encoder)
    return cast(Autoencoder, model.to(device=device, memory_format=torch.channels_last)), device  # type: ignore[call-overload]


def _folded(layers: nn.Sequential) -> nn.Sequential:
    """The same function with every batch normalisation folded into the convolution before it."""
    folded: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d) and isinstance(folded[-1], nn.Conv2d):
            folded[-1] = fuse_conv_bn_eval(folded[-1], layer)
        else:
            folded.append(layer)
    return nn.Sequential(*folded).eval()


@torch.inference_mode()
def _in_batches(
    function: Any,
    reduced: NDArray[np.uint8],
    shape: tuple[int, ...],
    device: torch.device,
    batch_size: int,
    precision: str,
) -> NDArray[np.float32]:
    """Apply `function` to batches of one size.

    The last batch is filled up with empty patterns: the arithmetic of a convolution may depend on the size of its
    batch, and a pattern's features must not depend on how many patterns came with it.
    """
    result = np.empty((len(reduced), *shape), dtype=np.float32)
    for start in range(0, len(reduced), batch_size):
        part = reduced[start : start + batch_size]
        batch = np.zeros((batch_size, 1, *reduced.shape[1:]), dtype=np.uint8)
        batch[: len(part), 0] = part
        patterns = torch.from_numpy(batch).to(device).float().div_(255)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            output = function(patterns)
        result[start : start + len(part)] = output.float().cpu().numpy()[: len(part)]
    return result
