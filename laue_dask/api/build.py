"""The parts of a segmentation for those who build their own: frames → patterns → features, on Dask arrays.

What follows are estimators in the manner of scikit-learn: `laue_dask.IncrementalPCA`, `laue_dask.KMeans`,
`laue_dask.NeighbourhoodGrains`.
"""

from collections.abc import Mapping
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from laue_dask.config import EncoderConfig, Recipe, checked
from laue_dask.errors import InputError
from laue_dask.features.encode import Network
from laue_dask.reduction.reduce import Substrate, reduce_frames
from laue_dask.schema import PATTERN_SIZE


def reduce(
    frames: Any,
    recipe: Recipe | Mapping[str, Any] | None = None,
    mask: Any = None,
    *,
    substrate: Substrate | None = None,
) -> Any:
    """Reduce frames to patterns of 128 × 128, as `laue_dask.run` does.

    Parameters
    ----------
    frames
        (…, row, column) Dask, NumPy or xarray array of counts, such as ``open_scan(…).frames``; of a Dask array nothing
        is read before it is computed.
    recipe
        How; section `recipe` of a `Config`, or a dictionary of it. The usual one by default.
    mask
        (row, column) bool, True where the pixel is unusable, such as ``open_scan(…).detector_mask``; none by default.
    substrate
        What a recipe with ``substrate: remove`` subtracts.

    Returns
    -------
    array
        (…, 128, 128) uint8, 255 is 1.0; lazy where the frames are.

    Raises
    ------
    InputError
        Frames or mask do not fit, or a frame is smaller than a pattern.

    Examples
    --------
    >>> import dask.array as da
    >>> import laue_dask as ld
    >>> frames = da.random.default_rng(0).poisson(20, size=(2, 3, 256, 256), chunks=(1, 3, 256, 256))
    >>> patterns = ld.reduce(frames)
    >>> patterns.shape, patterns.dtype
    ((2, 3, 128, 128), dtype('uint8'))
    """
    how = recipe if isinstance(recipe, Recipe) else checked(Recipe, dict(recipe or {}), "recipe", hint=_CONFIG_HINT)
    frames = _array_of(frames, "frames")
    unusable = None if mask is None else np.asarray(mask, bool)
    # What does not fit is refused here, not in a worker.
    reduce_frames(np.zeros((0, *frames.shape[-2:]), frames.dtype), unusable, how, substrate=substrate)
    shape = (PATTERN_SIZE, PATTERN_SIZE)
    return _each_image(frames, _reduce_block, shape, np.uint8, recipe=how, mask=unusable, substrate=substrate)


def encode(patterns: Any, weights: str = "default", *, batch_size: int = 32) -> Any:
    """Return the features of reduced patterns, by the trained network.

    Parameters
    ----------
    patterns
        (…, 128, 128) Dask, NumPy or xarray array: uint8 as `reduce` makes it, or numbers from 0 to 1.
    weights
        ``"default"``, ``"untrained"``, or the path of a ``.safetensors`` file. Each worker loads them once.
    batch_size
        Patterns that the network takes at a time.

    Returns
    -------
    array
        (…, 256) float32; lazy where the patterns are. NaN for a pattern with a NaN.

    Raises
    ------
    InputError
        The patterns are of another shape or kind.
    StoreError
        The weights are missing or damaged.

    Examples
    --------
    >>> import dask.array as da
    >>> import laue_dask as ld
    >>> patterns = da.zeros((4, 128, 128), dtype="uint8", chunks=(2, 128, 128))
    >>> ld.encode(patterns).shape
    (4, 256)
    """
    patterns = _array_of(patterns, "patterns")
    side = PATTERN_SIZE
    if patterns.shape[-2:] != (side, side):
        raise InputError(
            f"patterns of shape {patterns.shape}: (…, {side}, {side}) was expected, as `reduce` makes them"
        )
    if patterns.dtype != np.uint8 and patterns.dtype.kind != "f":
        raise InputError(f"patterns of {patterns.dtype}: uint8 was expected, as `reduce` makes them, or 0.0 to 1.0")
    network = Network.load(EncoderConfig(weights=weights, batch_size=batch_size))
    return _each_image(patterns, _encode_block, (network.n_features,), np.float32, network=network)


def reconstruct(patterns: NDArray[np.uint8], config: EncoderConfig) -> NDArray[np.float32]:
    """Return what the autoencoder makes of patterns (n, 128, 128): (n, 128, 128) float32 in [0, 1]."""
    from laue_dask.features import inference

    network = Network.load(config)
    return inference.reconstructions(
        patterns, name=network.weights_name, digest=network.weights_digest, precision=network.precision
    )


_CONFIG_HINT = "`laue-dask config` prints every key with its default"


def _array_of(values: Any, name: str) -> Any:
    """The Dask or NumPy array of images that was given."""
    array = values.data if isinstance(values, xr.DataArray) else values
    array = array if isinstance(array, da.Array) else np.asarray(array)
    if array.ndim < 2:
        raise InputError(f"{name} of shape {array.shape}: the last two dimensions are those of an image")
    return array


def _each_image(images: Any, function: Any, shape: tuple[int, ...], dtype: Any, **shared: Any) -> Any:
    """Apply a function of images (n, row, column) to all of them; lazily, block by block, to those of a Dask array."""
    if not isinstance(images, da.Array):
        return function(images, **shared)
    last = images.ndim - 2
    whole = images.rechunk({last: -1, last + 1: -1})
    once = {name: delayed(value, traverse=False) for name, value in shared.items()}  # in the graph, not in each task
    dropped = list(range(last + len(shape), images.ndim))
    return whole.map_blocks(
        function,
        **once,
        dtype=dtype,
        chunks=(*whole.chunks[:last], *((side,) for side in shape)),
        drop_axis=dropped,
        meta=np.empty((0,) * (last + len(shape)), dtype),
    )


def _reduce_block(
    frames: NDArray[Any], *, recipe: Recipe, mask: NDArray[np.bool_] | None, substrate: Substrate | None
) -> NDArray[np.uint8]:
    stack = frames.reshape(-1, *frames.shape[-2:])
    reduced = reduce_frames(stack, mask, recipe, substrate=substrate)
    return reduced.reshape(*frames.shape[:-2], *reduced.shape[1:])


def _encode_block(patterns: NDArray[Any], *, network: Network) -> NDArray[np.float32]:
    stack = patterns.reshape(-1, *patterns.shape[-2:])
    usable = np.ones(len(stack), bool)
    if stack.dtype != np.uint8:
        usable = np.isfinite(stack).all(axis=(1, 2))
        known = stack[usable]
        if known.size and not (known.min() >= 0 and known.max() <= 1):
            raise InputError(f"patterns from {known.min():g} to {known.max():g}: 0 to 1 was expected")
        grey = np.zeros(stack.shape, np.uint8)
        grey[usable] = np.rint(255 * known)
        stack = grey
    features = network.extract(stack, usable)
    return features.reshape(*patterns.shape[:-2], features.shape[-1])
