"""From a detector frame to a 128 × 128 pattern in [0, 1]: section 3.1 of the paper, made robust for real frames.

Shrinking a frame by area and dividing by its maximum, as the paper may be read, erases the reflections: they are two or
three pixels wide, one of them is a thousand times stronger than most, and cameras add a pedestal and fluorescence. The
recipe here measures every pixel in units of the local noise:

1. leave out the detector mask, pixels that are not finite, markers, and negatives (unless a quarter of the frame is
   negative: then a dark image was subtracted and negatives are data);
2. local background: the median of each block of pixels, smoothed over 3 × 3 blocks, linear between block centres;
3. noise sigma: the scatter about that background, per block and smoothed likewise (see `_noise_floor`);
4. signal below `clip_sigma` sigmas becomes zero, the rest asinh(signal / (softening_sigma × sigma));
5. the strongest pixel of each of 128 × 128 bins counts, bin edges at floor(i × side / 128) of either side;
6. the `saturation_quantile` of those becomes 1, but never less than a signal of 20 sigmas: noise stays dark.

Bins take in the whole frame, and are as wide for their height as the frame is. Version 1 of the recipe, which reads
what was reduced before, looks at the centred square alone; of a square frame both make the same.

A scan's substrate, the same reflections at every point, can be removed after step 3 (`Substrate`). Everything here
takes and returns arrays; `reduce_frame_reference` says the same in plain NumPy: the compiled loops must equal it.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from laue_dask.config import Recipe
from laue_dask.errors import InputError
from laue_dask.reduction import kernels
from laue_dask.reduction.detector_mask import Frame, Mask, detector_mask, frame_fault, value_limits
from laue_dask.reduction.kernels import Axis
from laue_dask.schema import PATTERN_SIZE

__all__ = [
    "MIN_SATURATION_SIGMAS",
    "Substrate",
    "bin_edges",
    "detector_mask",
    "estimate_substrate",
    "frame_fault",
    "reduce_frame_reference",
    "reduce_frames",
    "reduce_usable",
]

MIN_SATURATION_SIGMAS = 20.0
"""A signal of this many sigmas is the darkest that can be shown as 1."""

_COMPILED_DTYPES = frozenset(["uint16", "uint32", "int32", "float32", "float64"])
_WIDER_DTYPES = {"uint8": "uint16", "int16": "int32", "float16": "float32"}
MIN_SAMPLE_FRAMES = 5


@dataclass(frozen=True, eq=False)
class Substrate:
    """What a scan's patterns have in common.

    Attributes
    ----------
    median
        (rows, columns) float32: median over the scan of the background-subtracted frames, in counts, at least 0.
    spread
        (rows, columns) float32: how much it varies over the scan beyond the frames' own noise, as one sigma in counts.
    """

    median: NDArray[np.float32]
    spread: NDArray[np.float32]


@lru_cache(maxsize=8)
def _axis(side: int, block: int) -> Axis:
    n = max(1, round(side / block))
    edges = np.arange(n + 1) * side // n
    centres = (edges[:-1] + edges[1:] - 1) / 2
    pixel = np.arange(side)
    nodes = np.clip(np.searchsorted(centres, pixel, side="right") - 1, 0, max(0, n - 2))
    following = np.minimum(nodes + 1, n - 1)
    pitch = np.where(following > nodes, centres[following] - centres[nodes], 1.0)
    weights = np.clip((pixel - centres[nodes]) / pitch, 0, 1)
    bins = np.searchsorted(bin_edges(side), pixel, side="right") - 1
    return Axis(edges, nodes, weights, bins)


@dataclass(frozen=True)
class _Grid:
    """The pixels that count, and their blocks and bins."""

    window: tuple[slice, slice]
    rows: Axis
    columns: Axis
    step: int
    """Every so many rows of a block are read."""

    @classmethod
    def of(cls, shape: tuple[int, ...], recipe: Recipe) -> "_Grid":
        window = _window(shape, recipe)
        rows, columns = (_axis(one.stop - one.start, recipe.background_block) for one in window)
        return cls(window, rows, columns, max(1, recipe.background_block // 6))

    def interpolate(self, grid: NDArray[np.float64], rows: slice = slice(None)) -> NDArray[np.float64]:
        """Value of every pixel of the window, or of some of its rows."""
        nodes, w = self.columns.nodes, self.columns.weights
        wide = grid[:, nodes] * (1.0 - w) + grid[:, np.minimum(nodes + 1, grid.shape[1] - 1)] * w
        nodes, w = self.rows.nodes[rows], self.rows.weights[rows, None]
        values: NDArray[np.float64] = wide[nodes] * (1.0 - w) + wide[np.minimum(nodes + 1, grid.shape[0] - 1)] * w
        return values


@dataclass(frozen=True)
class _Scale:
    """Which values of a frame are data, and how coarse they are."""

    lowest: float
    ceiling: float
    floor: float


def bin_edges(side: int) -> NDArray[np.int64]:
    """Return the first pixel of each of the 128 bins of a side, floor(i × side / 128)."""
    return np.arange(PATTERN_SIZE) * side // PATTERN_SIZE


def reduce_frames(
    frames: Frame, mask: Mask | None, recipe: Recipe, *, substrate: Substrate | None = None
) -> NDArray[np.uint8]:
    """Reduce frames to 128 × 128 patterns.

    Parameters
    ----------
    frames
        (n, rows, columns) or (rows, columns), counts; integers or floating point of any width.
    mask
        (rows, columns), True where the pixel is unusable; None for no mask.
    substrate
        What to remove, of `estimate_substrate`; required where the recipe says ``substrate: remove``.

    Returns
    -------
    (n, 128, 128) uint8
        255 is 1.0. A frame without any usable pixel is all zero (`frame_fault` tells it).

    Raises
    ------
    InputError
        The frames are smaller than 128 pixels, the mask or the substrate has another shape, or the dtype is complex or
        not a number.
    """
    frames = frames if frames.ndim == 3 else frames[None]
    _check(frames, mask, recipe, substrate)
    grid = _Grid.of(frames.shape[1:], recipe)
    hidden = _hidden(frames.shape[1:], mask, grid)
    if substrate is not None:
        median, spread = (np.ascontiguousarray(one[grid.window]) for one in (substrate.median, substrate.spread))
    reduced = np.zeros((len(frames), PATTERN_SIZE, PATTERN_SIZE), np.uint8)
    for i in range(len(frames)):
        frame = _native(frames[i][grid.window])
        scale = _scale(frame, hidden)
        found = _background(frame, hidden, grid, scale)
        if found is None:
            continue
        pooled = np.zeros((PATTERN_SIZE, PATTERN_SIZE))
        shared = (frame, hidden, scale.ceiling, grid.rows, grid.columns, *found, recipe.clip_sigma, pooled)
        if substrate is None:
            kernels.pool_signal(*shared)
        else:
            kernels.pool_residual(*shared, median, spread)
        reduced[i] = _grey(pooled, recipe)
    return reduced


def reduce_usable(
    frames: Frame, usable: Mask, mask: Mask | None, recipe: Recipe, *, substrate: Substrate | None = None
) -> NDArray[np.uint8]:
    """Reduce those of the frames (n, rows, columns) that are `usable` (n,); the other patterns are zero."""
    if usable.all():
        return reduce_frames(frames, mask, recipe, substrate=substrate)
    reduced = np.zeros((len(frames), PATTERN_SIZE, PATTERN_SIZE), dtype=np.uint8)
    if usable.any():
        reduced[usable] = reduce_frames(frames[usable], mask, recipe, substrate=substrate)
    return reduced


def reduce_frame_reference(
    frame: Frame, mask: Mask | None, recipe: Recipe, *, substrate: Substrate | None = None
) -> NDArray[np.uint8]:
    """Apply the recipe of `reduce_frames` to one (rows, columns) frame in plain NumPy: slow, and meant to be read."""
    _check(frame[None], mask, recipe, substrate)
    grid = _Grid.of(frame.shape, recipe)
    hidden = _hidden(frame.shape, mask, grid)
    frame = _native(frame[grid.window])
    scale = _scale(frame, hidden)
    frame = frame.astype(np.float64)
    live = ~hidden & (frame >= scale.lowest) & (frame < scale.ceiling)

    rows = [slice(a, b, grid.step) for a, b in pairwise(grid.rows.edges)]
    columns = [slice(a, b) for a, b in pairwise(grid.columns.edges)]
    level, spread, noise = np.full((3, len(rows), len(columns)), np.nan)
    for i, j in np.ndindex(level.shape):
        usable = live[rows[i], columns[j]]
        values = np.sort(frame[rows[i], columns[j]][usable])
        if 4 * values.size >= usable.size and values.size:
            level[i, j] = values[values.size // 2]
            spread[i, j] = (level[i, j] - values[values.size // 4]) / 0.6744897501960817
    if np.isnan(level).all():
        return np.zeros((PATTERN_SIZE, PATTERN_SIZE), np.uint8)
    level = ndimage.median_filter(_filled(level), 3, mode="nearest")
    window = kernels.NOISE_WINDOW_SIGMAS * (ndimage.median_filter(_filled(spread), 3, mode="nearest") + scale.floor)
    residual = frame - grid.interpolate(level)
    for i, j in np.ndindex(level.shape):
        usable = live[rows[i], columns[j]]
        values = residual[rows[i], columns[j]][usable]
        values = values[np.abs(values) <= window[i, j]]
        if 4 * values.size >= usable.size and values.size:
            noise[i, j] = np.sqrt(np.mean(values**2))
    if np.isnan(noise).all():
        return np.zeros((PATTERN_SIZE, PATTERN_SIZE), np.uint8)
    noise = ndimage.median_filter(_filled(noise), 3, mode="nearest") + scale.floor

    sigma = grid.interpolate(noise)
    limit = grid.interpolate(level + recipe.clip_sigma * noise)
    if substrate is None:
        strength = residual / sigma
        strength[~live | (frame <= limit)] = 0
    else:
        median, deviation = (a[grid.window].astype(np.float64) for a in (substrate.median, substrate.spread))
        strength = (frame - median - grid.interpolate(level)) / np.sqrt(sigma * sigma + deviation * deviation)
        strength[~live | (frame - median <= limit) | (strength <= recipe.clip_sigma)] = 0
    down, across = (bin_edges(side) for side in frame.shape)
    pooled = np.maximum.reduceat(np.maximum.reduceat(strength, down, axis=0), across, axis=1)
    return _grey(pooled, recipe)


def estimate_substrate(sample: Frame, mask: Mask | None, recipe: Recipe) -> Substrate:
    """Return the median pattern of a scan and its variation, from a sample of its frames.

    Parameters
    ----------
    sample
        (s, rows, columns), frames from all over the scan, in any order. What more than half of them show is substrate.
    mask
        (rows, columns), True where the pixel is unusable; None for no mask.

    Raises
    ------
    InputError
        Fewer than 5 frames, or frames that `reduce_frames` would not take.
    """
    if len(sample) < MIN_SAMPLE_FRAMES:
        raise InputError(
            f"substrate: the sample has {len(sample)} frames, at least {MIN_SAMPLE_FRAMES} are needed: "
            "sample more frames or set recipe.substrate to keep"
        )
    _check(sample, mask, recipe.model_copy(update={"substrate": "keep"}), None)
    grid = _Grid.of(sample.shape[1:], recipe)
    hidden = _hidden(sample.shape[1:], mask, grid)
    found = []
    for i in range(len(sample)):
        frame = _native(sample[i][grid.window])
        scale = _scale(frame, hidden)
        background = _background(frame, hidden, grid, scale)
        if background is not None:
            found.append((i, scale, *background))
    median, spread = np.zeros((2, *sample.shape[1:]), np.float32)
    for start in range(0, len(hidden) if found else 0, 64):
        rows = slice(start, min(start + 64, len(hidden)))
        residual = np.empty((len(found), rows.stop - start, hidden.shape[1]), np.float32)
        variance = np.zeros(residual.shape[1:])
        for k, (i, scale, level, noise) in enumerate(found):
            values = sample[i][grid.window][rows].astype(np.float64)
            live = ~hidden[rows] & (values >= scale.lowest) & (values < scale.ceiling)
            residual[k] = np.where(live, values - grid.interpolate(level, rows), 0)
            variance += grid.interpolate(noise, rows) ** 2 / len(found)
        middle = np.median(residual, axis=0, overwrite_input=False)
        deviation = 1.4826 * np.median(np.abs(residual - middle), axis=0, overwrite_input=True)
        median[grid.window][rows] = np.maximum(middle, 0)
        spread[grid.window][rows] = np.sqrt(np.maximum(deviation**2 - variance, 0))
    return Substrate(median, spread)


def _check(frames: Frame, mask: Mask | None, recipe: Recipe, substrate: Substrate | None) -> None:
    shape = frames.shape[1:]
    if min(shape) < PATTERN_SIZE:
        raise InputError(
            f"frames of {shape[0]} × {shape[1]} pixels are smaller than a pattern of {PATTERN_SIZE} × {PATTERN_SIZE}: "
            "give unbinned frames"
        )
    if frames.dtype.kind not in "uif":
        raise InputError(f"frames of dtype {frames.dtype} hold no counts: give integers or floating point")
    if mask is not None and mask.shape != shape:
        raise InputError(f"detector mask of {mask.shape} pixels, frames of {shape}: make the mask from the same frames")
    if (substrate is not None) != (recipe.substrate == "remove"):
        raise InputError(
            f"recipe.substrate is {recipe.substrate}, but a median pattern was {'' if substrate else 'not '}given"
        )
    if substrate is not None and substrate.median.shape != shape:
        raise InputError(
            f"substrate of {substrate.median.shape} pixels, frames of {shape}: estimate it from the same frames"
        )


def _window(shape: tuple[int, ...], recipe: Recipe) -> tuple[slice, slice]:
    rows, columns = recipe.window(shape)
    top, left = (shape[0] - rows) // 2, (shape[1] - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)


def _hidden(shape: tuple[int, ...], mask: Mask | None, grid: _Grid) -> Mask:
    return np.ascontiguousarray(np.zeros(shape, np.bool_)[grid.window] if mask is None else mask[grid.window])


def _native(frame: Frame) -> Frame:
    """Contiguous, in this machine's byte order and in a dtype for which the loops are compiled."""
    name = _WIDER_DTYPES.get(frame.dtype.name, frame.dtype.name)
    return np.ascontiguousarray(frame, dtype=np.dtype(name if name in _COMPILED_DTYPES else "float64"))


def _scale(frame: Frame, hidden: Mask) -> _Scale:
    some, beside = frame[::4], hidden[::4]
    lowest, ceiling = value_limits(some, beside)
    if frame.dtype.kind in "ui":
        return _Scale(lowest, ceiling, 0.5)
    return _Scale(lowest, ceiling, _noise_floor(some[~beside & (some >= lowest) & (some < ceiling)]))


def _noise_floor(values: Frame) -> float:
    """What is added to every noise sigma of a frame: half a count for counts.

    A detector that counts photons has no scatter at all where most pixels hold zero, and the tail of its Poisson
    distribution is longer than a normal one's: the quantile that lies z sigmas out in a normal distribution is at
    z × sqrt(mean) + (z² - 1) / 6 here (Cornish-Fisher), that is as if sigma were 0.6 counts larger at z = 4. Half a
    count keeps the share of noise that passes 4 sigmas near the normal 3e-5 for means from 0.05 to 100; a camera's own
    noise of several units does not feel it. Data that were scaled to other units keep their step: the median of what is
    not zero, where most pixels are exactly zero. Continuous data get next to nothing, but more than rounding errors.
    """
    if bool((values == np.floor(values)).all()):
        return 0.5
    filled = values[values != 0]
    if 2 * filled.size < values.size:
        return 0.5 * float(np.median(np.abs(filled)))
    low, high = float(values.min()), float(values.max())
    single = np.finfo(np.float32)
    return max(1e-6 * (high - low), float(single.eps) * max(abs(low), abs(high)), float(single.tiny))


def _background(
    frame: Frame, hidden: Mask, grid: _Grid, scale: _Scale
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Background and noise at the block centres; None where too few pixels live."""
    shared = (frame, hidden, grid.rows, grid.columns, grid.step, scale.lowest, scale.ceiling)
    level, spread = kernels.block_statistics(*shared, int(frame.dtype.kind in "ui"))
    if not (kernels.fill_holes(level) and kernels.fill_holes(spread)):
        return None
    level = kernels.smooth(level)
    window = kernels.NOISE_WINDOW_SIGMAS * (kernels.smooth(spread) + scale.floor)
    noise = kernels.block_noise(*shared, level, window)
    return (level, kernels.smooth(noise) + scale.floor) if kernels.fill_holes(noise) else None


def _filled(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN nodes filled, ring by ring, with the mean of their known neighbours."""
    grid = grid.copy()
    while np.isnan(grid).any():
        padded = np.pad(grid, 1, constant_values=np.nan)
        around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
        known = ~np.isnan(around)
        near = np.isnan(grid) & known.any(axis=(2, 3))
        for i, j in np.argwhere(near):
            grid[i, j] = around[i, j][known[i, j]].sum() / known[i, j].sum()
    return grid


def _grey(pooled: NDArray[np.float64], recipe: Recipe) -> NDArray[np.uint8]:
    """Signal in sigmas → grey levels, as steps 4 and 6 of the recipe."""
    signal = pooled > 0
    toned = np.arcsinh(pooled[signal] / recipe.softening_sigma)
    white = max(
        _quantile(toned, pooled.size, recipe.saturation_quantile),
        float(np.arcsinh(MIN_SATURATION_SIGMAS / recipe.softening_sigma)),
    )
    grey = np.zeros(pooled.shape, np.uint8)
    grey[signal] = np.floor(255 * np.minimum(toned / white, 1) + 0.5)
    return grey


def _quantile(positive: NDArray[np.float64], size: int, quantile: float) -> float:
    """`np.quantile` of `size` values of which all but the `positive` are zero: these are few."""
    place = quantile * (size - 1)
    below = int(place)
    first = size - positive.size
    ranks = [max(rank - first, 0) for rank in (below, min(below + 1, size - 1))]
    if below + 1 < first or not positive.size:
        return 0.0
    ordered = np.partition(positive, ranks)
    low, high = (0.0 if below < first else float(ordered[ranks[0]])), float(ordered[ranks[1]])
    share = place - below
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share
