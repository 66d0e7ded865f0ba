"""The compiled loops of the reduction: local background, noise, and the strongest signal of each bin.

They are single-threaded and release the GIL: Dask runs as many of them as there are cores. `laue_dask.preprocess`
explains the recipe and holds a plain NumPy version of it, which these loops must equal.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])

_QUARTILE = 0.6744897501960817
"""Distance of a normal distribution's quartile from its median, in sigmas."""

NOISE_WINDOW = 4.0
"""Residuals within this many first-guess sigmas of the background make the noise estimate."""

# No fastmath: the loops then round as NumPy does, and a pixel that sits on the clipping limit falls on the same side.


def compiled(function: F) -> F:
    """Compile with numba, without the GIL; kept on disk for the next process where a folder for it can be written."""
    try:
        return cast(F, njit(cache=True, nogil=True)(function))
    except RuntimeError:  # numba's word for no such folder: a read-only installation and no home
        return cast(F, njit(nogil=True)(function))


@compiled
def select(values: NDArray[np.float64], n: int, rank: int) -> float:
    """Value of the given rank among the first `n`, by Hoare's quickselect; reorders `values`."""
    low, high = 0, n - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return float(values[rank])


@compiled
def fill_holes(grid: NDArray[np.float64]) -> bool:
    """Fill NaN nodes, ring by ring, with the mean of their filled neighbours; False if every node is NaN."""
    rows, columns = grid.shape
    holes = 0
    for i in range(rows):
        for j in range(columns):
            holes += np.isnan(grid[i, j])
    if holes == rows * columns:
        return False
    while holes > 0:
        before = grid.copy()
        for i in range(rows):
            for j in range(columns):
                if not np.isnan(before[i, j]):
                    continue
                total, n = 0.0, 0
                for p in range(max(i - 1, 0), min(i + 2, rows)):
                    for q in range(max(j - 1, 0), min(j + 2, columns)):
                        if not np.isnan(before[p, q]):
                            total += before[p, q]
                            n += 1
                if n > 0:
                    grid[i, j] = total / n
                    holes -= 1
    return True


@compiled
def smooth(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of each node's 3 × 3 neighbourhood; nodes beyond the border repeat the border."""
    rows, columns = grid.shape
    smoothed = np.empty_like(grid)
    around = np.empty(9)
    for i in range(rows):
        for j in range(columns):
            n = 0
            for p in range(i - 1, i + 2):
                for q in range(j - 1, j + 2):
                    around[n] = grid[min(max(p, 0), rows - 1), min(max(q, 0), columns - 1)]
                    n += 1
            smoothed[i, j] = select(around, 9, 4)
    return smoothed


@compiled
def median_and_quartile(
    values: NDArray[np.float64], n: int, least: float, counts: NDArray[np.int32]
) -> tuple[float, float]:
    """Values of rank n // 2 and n // 4; whole numbers near the `least` of them are counted, which is quicker."""
    middle, quarter = n // 2, n // 4
    if counts.size:
        counts[:] = 0
        for k in range(n):
            above = values[k] - least
            if above < counts.size:
                counts[int(above)] += 1
        below, lower = 0, least
        for k in range(counts.size):
            before = below
            below += counts[k]
            if before <= quarter < below:
                lower = least + k
            if below > middle:
                return least + k, lower
    return select(values, n, middle), select(values, n, quarter)


@compiled
def block_statistics(
    frame: NDArray[Any],
    mask: NDArray[np.bool_],
    edges: NDArray[np.int64],
    step: int,
    lowest: float,
    ceiling: float,
    whole: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median of each block and its distance to the lower quartile in sigmas; NaN where too few pixels live.

    Every `step`-th row is read. Spots are only ever brighter than the background, so the lower quartile is the cleaner.
    `whole` says that the dtype is an integer one.
    """
    blocks = edges.size - 1
    level = np.full((blocks, blocks), np.nan)
    spread = np.full((blocks, blocks), np.nan)
    largest = 0
    for i in range(blocks):
        largest = max(largest, edges[i + 1] - edges[i])
    values = np.empty(largest * ((largest + step - 1) // step))
    counts = np.empty(256 if whole else 0, np.int32)
    for i in range(blocks):
        for j in range(blocks):
            n, read, least = 0, 0, np.inf
            for y in range(edges[i], edges[i + 1], step):
                run, hidden = frame[y, edges[j] : edges[j + 1]], mask[y, edges[j] : edges[j + 1]]
                read += run.size
                for x in range(run.size):
                    value = float(run[x])
                    if not hidden[x] and lowest <= value < ceiling:
                        values[n] = value
                        least = min(least, value)
                        n += 1
            if n > 0 and 4 * n >= read:
                level[i, j], quartile = median_and_quartile(values, n, least, counts)
                spread[i, j] = (level[i, j] - quartile) / _QUARTILE
    return level, spread


@compiled
def block_noise(
    frame: NDArray[Any],
    mask: NDArray[np.bool_],
    edges: NDArray[np.int64],
    step: int,
    lowest: float,
    ceiling: float,
    nodes: NDArray[np.int64],
    weights: NDArray[np.float64],
    level: NDArray[np.float64],
    window: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Root mean square of each block's residuals no larger than its `window`; NaN where too few pixels live."""
    blocks = edges.size - 1
    noise = np.full((blocks, blocks), np.nan)
    line = np.empty(blocks)
    square, live, read = np.empty(blocks), np.empty(blocks, np.int64), np.empty(blocks, np.int64)
    for i in range(blocks):
        square[:], live[:], read[:] = 0.0, 0, 0
        for y in range(edges[i], edges[i + 1], step):
            below, w = min(nodes[y] + 1, blocks - 1), weights[y]
            for j in range(blocks):
                line[j] = level[nodes[y], j] * (1.0 - w) + level[below, j] * w
            for j in range(blocks):
                read[j] += edges[j + 1] - edges[j]
                run, hidden = frame[y, edges[j] : edges[j + 1]], mask[y, edges[j] : edges[j + 1]]
                node, share = nodes[edges[j] : edges[j + 1]], weights[edges[j] : edges[j + 1]]
                for x in range(run.size):
                    value = float(run[x])
                    if not hidden[x] and lowest <= value < ceiling:
                        a, b, u = line[node[x]], line[min(node[x] + 1, blocks - 1)], share[x]
                        residual = value - (a * (1.0 - u) + b * u)
                        if abs(residual) <= window[i, j]:
                            square[j] += residual * residual
                            live[j] += 1
        for j in range(blocks):
            if live[j] > 0 and 4 * live[j] >= read[j]:
                noise[i, j] = np.sqrt(square[j] / live[j])
    return noise


@compiled
def pool_signal(
    frame: NDArray[Any],
    mask: NDArray[np.bool_],
    ceiling: float,
    nodes: NDArray[np.int64],
    weights: NDArray[np.float64],
    level: NDArray[np.float64],
    noise: NDArray[np.float64],
    clip: float,
    bins: NDArray[np.int64],
    pooled: NDArray[np.float64],
) -> None:
    """Largest signal of each bin, in sigmas; `pooled` comes in as zeros and pixels below `clip` leave no trace.

    One interpolation, of background plus `clip` sigmas, decides nearly every pixel, without branches; where one is
    above, the run of pixels between two nodes is gone through again.
    """
    side, last = nodes.size, level.shape[0] - 1
    limits = level + clip * noise
    starts = np.searchsorted(nodes, np.arange(last + 2))
    background, sigma, limit = np.empty(last + 1), np.empty(last + 1), np.empty(last + 1)
    for y in range(side):
        below, w = min(nodes[y] + 1, last), weights[y]
        for j in range(last + 1):
            background[j] = level[nodes[y], j] * (1.0 - w) + level[below, j] * w
            sigma[j] = noise[nodes[y], j] * (1.0 - w) + noise[below, j] * w
            limit[j] = limits[nodes[y], j] * (1.0 - w) + limits[below, j] * w
        start = 0
        while start < side:
            j = nodes[start]
            k, stop, hits = min(j + 1, last), starts[j + 1], 0
            a, b = limit[j], limit[k]
            run, share = frame[y, start:stop], weights[start:stop]
            for x in range(run.size):
                hits += float(run[x]) > a * (1.0 - share[x]) + b * share[x]
            if hits > 0:
                for x in range(start, stop):
                    u, value = weights[x], float(frame[y, x])
                    if value > a * (1.0 - u) + b * u and not mask[y, x] and value < ceiling:
                        signal = value - (background[j] * (1.0 - u) + background[k] * u)
                        strength = signal / (sigma[j] * (1.0 - u) + sigma[k] * u)
                        pooled[bins[y], bins[x]] = max(pooled[bins[y], bins[x]], strength)
            start = stop


@compiled
def pool_residual(
    frame: NDArray[Any],
    mask: NDArray[np.bool_],
    ceiling: float,
    nodes: NDArray[np.int64],
    weights: NDArray[np.float64],
    level: NDArray[np.float64],
    noise: NDArray[np.float64],
    clip: float,
    bins: NDArray[np.int64],
    pooled: NDArray[np.float64],
    median: NDArray[np.float32],
    spread: NDArray[np.float32],
) -> None:
    """As `pool_signal`, for what exceeds a scan's `median` pattern, whose `spread` adds to the noise."""
    side, last = nodes.size, level.shape[0] - 1
    limits = level + clip * noise
    background, sigma, limit = np.empty(last + 1), np.empty(last + 1), np.empty(last + 1)
    for y in range(side):
        below, w = min(nodes[y] + 1, last), weights[y]
        for j in range(last + 1):
            background[j] = level[nodes[y], j] * (1.0 - w) + level[below, j] * w
            sigma[j] = noise[nodes[y], j] * (1.0 - w) + noise[below, j] * w
            limit[j] = limits[nodes[y], j] * (1.0 - w) + limits[below, j] * w
        for x in range(side):
            j, u = nodes[x], weights[x]
            k = min(j + 1, last)
            value = float(frame[y, x])
            above = value - float(median[y, x])
            if above > limit[j] * (1.0 - u) + limit[k] * u and not mask[y, x] and value < ceiling:
                signal = above - (background[j] * (1.0 - u) + background[k] * u)
                own = sigma[j] * (1.0 - u) + sigma[k] * u
                strength = signal / np.sqrt(own * own + float(spread[y, x]) * float(spread[y, x]))
                if strength > clip:
                    pooled[bins[y], bins[x]] = max(pooled[bins[y], bins[x]], strength)


@compiled
def improbable_runs(
    empty: NDArray[np.bool_], skipped: NDArray[np.bool_], evidence: NDArray[np.float64], least: float
) -> NDArray[np.bool_]:
    """Runs of `empty` pixels along the rows whose `evidence` adds up to `least`; `skipped` pixels do not end a run."""
    rows, columns = empty.shape
    found = np.zeros((rows, columns), np.bool_)
    for y in range(rows):
        start, total = 0, 0.0
        for x in range(columns + 1):
            if x < columns and (empty[y, x] or skipped[y, x]):
                if empty[y, x]:
                    total += evidence[y, x]
                continue
            if total >= least:
                found[y, start:x] = empty[y, start:x]
            start, total = x + 1, 0.0
    return found
