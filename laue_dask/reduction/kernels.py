"""The compiled loops of the reduction: local background, noise, and the strongest signal of each bin.

They are single-threaded and release the GIL: Dask runs as many of them as there are cores. `laue_dask.reduction.reduce`
explains the recipe and holds a plain NumPy version of it, which these loops must equal.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laue_dask.runtime.compiled_loops import compiled

_QUARTILE_SIGMAS = 0.6744897501960817
"""Distance of a normal distribution's quartile from its median, in sigmas."""

NOISE_WINDOW_SIGMAS = 4.0
"""Residuals within this many first-guess sigmas of the background make the noise estimate."""

_N_COUNTED_VALUES = 256
"""Whole numbers of a block that are counted, from the least of them on."""


class Axis(NamedTuple):
    """Blocks and bins along the rows or the columns of a frame, and the linear interpolation between block centres.

    Attributes
    ----------
    edges
        (blocks + 1,) int64, first pixel of each block, and the end of the last.
    nodes
        (side,) int64, block whose centre is the last at or before each pixel, the first block before that.
    weights
        (side,) float64, share of the next block's centre in each pixel's value.
    bins
        (side,) int64, bin of each pixel, 0 to 127.
    """

    edges: NDArray[np.int64]
    nodes: NDArray[np.int64]
    weights: NDArray[np.float64]
    bins: NDArray[np.int64]


# No fastmath: the loops then round as NumPy does, and a pixel that sits on the clipping limit falls on the same side.


@compiled
def select(values: NDArray[np.float64], n: int, rank: int) -> float:
    """Return the value of the given rank among the first `n`, by Hoare's quickselect; reorders `values`."""
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
    """Return the median of each node's 3 × 3 neighbourhood; nodes beyond the border repeat the border."""
    rows, columns = grid.shape
    low, mid, high = np.empty((3, rows, columns))
    for i in range(rows):
        up, own, down = grid[max(i - 1, 0)], grid[i], grid[min(i + 1, rows - 1)]
        for j in range(columns):
            a, b = min(up[j], own[j]), max(up[j], own[j])
            low[i, j], high[i, j] = min(a, down[j]), max(b, down[j])
            mid[i, j] = max(a, min(b, down[j]))
    smoothed = np.empty_like(grid)
    for i in range(rows):
        for j in range(columns):
            p, q = max(j - 1, 0), min(j + 1, columns - 1)
            # Of three sorted columns: the median lies between the largest low, the middle mid and the smallest high.
            a = max(low[i, p], max(low[i, j], low[i, q]))
            c = min(high[i, p], min(high[i, j], high[i, q]))
            u, v = min(mid[i, p], mid[i, j]), max(mid[i, p], mid[i, j])
            b = max(u, min(v, mid[i, q]))
            u, v = min(a, b), max(a, b)
            smoothed[i, j] = max(u, min(v, c))
    return smoothed


@compiled
def spread_columns(grid: NDArray[np.float64], columns: Axis) -> NDArray[np.float64]:
    """Return the values of block centres at every column: (blocks down, blocks across) → (blocks down, columns)."""
    last, nodes = grid.shape[1] - 1, columns.nodes
    wide = np.empty((grid.shape[0], nodes.size))
    for i in range(grid.shape[0]):
        for x in range(nodes.size):
            w = columns.weights[x]
            wide[i, x] = grid[i, nodes[x]] * (1.0 - w) + grid[i, min(nodes[x] + 1, last)] * w
    return wide


@compiled
def interpolate_pixel(grid: NDArray[np.float64], i: int, below: int, w: float, j: int, u: float) -> float:
    """Return the value of one pixel, as `spread_columns` and then the rows tell it."""
    k = min(j + 1, grid.shape[1] - 1)
    upper = grid[i, j] * (1.0 - u) + grid[i, k] * u
    lower = grid[below, j] * (1.0 - u) + grid[below, k] * u
    return float(upper * (1.0 - w) + lower * w)


@compiled
def counted_ranks(counts: NDArray[np.uint16], first: int, n: int) -> tuple[int, int]:
    """Return the bins of the ranks n // 2 and n // 4 of n values, by how many there are in each bin; -1 where all bins
    have less.

    The counts of a block are two rows from `first` on, which add up; the last bin of a row is of what does not count.
    """
    total, quarter = 0, -1
    for k in range(first, first + _N_COUNTED_VALUES):
        total += int(counts[k]) + int(counts[k + _N_COUNTED_VALUES + 1])
        if quarter < 0 and total > n // 4:
            quarter = k - first
        if total > n // 2:
            return k - first, quarter
    return -1, quarter


@compiled
def block_statistics(
    frame: NDArray[Any],
    mask: NDArray[np.bool_],
    rows: Axis,
    columns: Axis,
    step: int,
    lowest: float,
    ceiling: float,
    whole: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the median of each block and its distance to the lower quartile in sigmas; NaN where too few pixels live.

    Every `step`-th row is read. Spots are only ever brighter than the background, so the lower quartile is the cleaner.
    `whole` says that the dtype is an integer one: values near the least of a block are then counted, which is quicker
    than to order them.
    """
    down, edges = rows.edges, columns.edges
    blocks, side = edges.size - 1, edges[-1]
    level = np.full((down.size - 1, blocks), np.nan)
    spread = np.full((down.size - 1, blocks), np.nan)
    tallest, widest = (down[1:] - down[:-1]).max(), (edges[1:] - edges[:-1]).max()
    values = np.empty(widest * ((tallest + step - 1) // step))
    live, least = np.empty(side), np.empty(side)
    # Neighbours often are equal: where they are counted in turns, one need not wait for the other.
    own, codes = np.empty(side, np.uint32), np.empty(side, np.uint32)
    for j in range(blocks):
        for x in range(edges[j], edges[j + 1]):
            own[x] = (2 * j + (x & 1)) * (_N_COUNTED_VALUES + 1)
    counts = np.zeros(2 * blocks * (_N_COUNTED_VALUES + 1), np.uint16)
    counting = whole and values.size < 2**16
    for i in range(down.size - 1):
        # Every column for itself, without branches: many at a time.
        live[:], least[:], read = 0.0, np.inf, 0
        for y in range(down[i], down[i + 1], step):
            read += 1
            line, hidden = frame[y], mask[y]
            for x in range(side):
                value = float(line[x])
                usable = (not hidden[x]) & (lowest <= value) & (value < ceiling)
                live[x] += 1.0 if usable else 0.0
                least[x] = value if usable & (value < least[x]) else least[x]
        for j in range(blocks):
            n, smallest = 0.0, np.inf
            for x in range(edges[j], edges[j + 1]):
                n += live[x]
                smallest = min(smallest, least[x])
            for x in range(edges[j], edges[j + 1]):
                live[x], least[x] = n, smallest
        if counting:
            counts[:] = 0
            for y in range(down[i], down[i + 1], step):
                line, hidden = frame[y], mask[y]
                for x in range(side):
                    value = float(line[x])
                    above = value - least[x]
                    usable = (not hidden[x]) & (lowest <= value) & (value < ceiling) & (above < _N_COUNTED_VALUES)
                    codes[x] = own[x] + np.uint32(above if usable else _N_COUNTED_VALUES)
                for x in range(side):
                    counts[codes[x]] += np.uint16(1)
        for j in range(blocks):
            n = int(live[edges[j]])
            if n == 0 or 4 * n < read * (edges[j + 1] - edges[j]):
                continue
            middle, quarter = counted_ranks(counts, 2 * j * (_N_COUNTED_VALUES + 1), n) if counting else (-1, -1)
            if middle >= 0:
                level[i, j], quartile = least[edges[j]] + middle, least[edges[j]] + quarter
            else:
                k = 0
                for y in range(down[i], down[i + 1], step):
                    for x in range(edges[j], edges[j + 1]):
                        value = float(frame[y, x])
                        if not mask[y, x] and lowest <= value < ceiling:
                            values[k] = value
                            k += 1
                level[i, j], quartile = select(values, n, n // 2), select(values, n, n // 4)
            spread[i, j] = (level[i, j] - quartile) / _QUARTILE_SIGMAS
    return level, spread


@compiled
def block_noise(
    frame: NDArray[Any],
    mask: NDArray[np.bool_],
    rows: Axis,
    columns: Axis,
    step: int,
    lowest: float,
    ceiling: float,
    level: NDArray[np.float64],
    window: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the RMS of each block's residuals that are no larger than its `window`; NaN where too few pixels live."""
    down, edges, nodes, weights = rows.edges, columns.edges, rows.nodes, rows.weights
    blocks, side, last = edges.size - 1, edges[-1], level.shape[0] - 1
    wide = spread_columns(level, columns)
    noise = np.full(level.shape, np.nan)
    square, live, widest = np.empty(side), np.empty(side), np.empty(side)
    for i in range(down.size - 1):
        square[:], live[:] = 0.0, 0.0
        for j in range(blocks):
            widest[edges[j] : edges[j + 1]] = window[i, j]
        read = 0
        for y in range(down[i], down[i + 1], step):
            read += 1
            above, below, w = wide[nodes[y]], wide[min(nodes[y] + 1, last)], weights[y]
            line, hidden = frame[y], mask[y]
            # Every column for itself, without branches: many at a time.
            for x in range(side):
                value = float(line[x])
                residual = value - (above[x] * (1.0 - w) + below[x] * w)
                counts = (not hidden[x]) & (lowest <= value) & (value < ceiling) & (abs(residual) <= widest[x])
                square[x] += residual * residual if counts else 0.0
                live[x] += 1.0 if counts else 0.0
        for j in range(blocks):
            total, n = 0.0, 0.0
            for x in range(edges[j], edges[j + 1]):
                total += square[x]
                n += live[x]
            if n > 0 and 4 * n >= read * (edges[j + 1] - edges[j]):
                noise[i, j] = np.sqrt(total / n)
    return noise


@compiled
def pool_signal(
    frame: NDArray[Any],
    mask: NDArray[np.bool_],
    ceiling: float,
    rows: Axis,
    columns: Axis,
    level: NDArray[np.float64],
    noise: NDArray[np.float64],
    clip: float,
    pooled: NDArray[np.float64],
) -> None:
    """Find the largest signal of each bin, in sigmas; `pooled` comes in as zeros and pixels below `clip` leave
    no trace.
    """
    nodes, weights, height, side = rows.nodes, rows.weights, rows.nodes.size, columns.nodes.size
    last = level.shape[0] - 1
    limits = spread_columns(level + clip * noise, columns)
    highest = np.empty(side, frame.dtype)
    start = 0
    while start < height:
        node = nodes[start]
        below = min(node + 1, last)
        upper, lower = limits[node], limits[below]
        # The rows between two nodes together. What is not above the smaller limit of a column is above none in it.
        stop = start
        highest[:] = frame[start]
        while stop < height and nodes[stop] == node:
            line = frame[stop]
            for x in range(side):
                highest[x] = line[x] if line[x] > highest[x] else highest[x]
            stop += 1
        for x in range(side):
            least = min(upper[x], lower[x])
            if float(highest[x]) <= least - 1e-9 * abs(least):
                continue
            j, u = columns.nodes[x], columns.weights[x]
            for y in range(start, stop):
                value, w = float(frame[y, x]), weights[y]
                if value > upper[x] * (1.0 - w) + lower[x] * w and not mask[y, x] and value < ceiling:
                    signal = value - interpolate_pixel(level, node, below, w, j, u)
                    strength = signal / interpolate_pixel(noise, node, below, w, j, u)
                    pooled[rows.bins[y], columns.bins[x]] = max(pooled[rows.bins[y], columns.bins[x]], strength)
        start = stop


@compiled
def pool_residual(
    frame: NDArray[Any],
    mask: NDArray[np.bool_],
    ceiling: float,
    rows: Axis,
    columns: Axis,
    level: NDArray[np.float64],
    noise: NDArray[np.float64],
    clip: float,
    pooled: NDArray[np.float64],
    median: NDArray[np.float32],
    spread: NDArray[np.float32],
) -> None:
    """Pool like `pool_signal` what exceeds a scan's `median` pattern, whose `spread` adds to the noise."""
    nodes, weights, height, side = rows.nodes, rows.weights, rows.nodes.size, columns.nodes.size
    last = level.shape[0] - 1
    limits = spread_columns(level + clip * noise, columns)
    for y in range(height):
        node, w = nodes[y], weights[y]
        below = min(node + 1, last)
        upper, lower = limits[node], limits[below]
        for x in range(side):
            value = float(frame[y, x])
            above = value - float(median[y, x])
            if above > upper[x] * (1.0 - w) + lower[x] * w and not mask[y, x] and value < ceiling:
                j, u = columns.nodes[x], columns.weights[x]
                signal = above - interpolate_pixel(level, node, below, w, j, u)
                own = interpolate_pixel(noise, node, below, w, j, u)
                strength = signal / np.sqrt(own * own + float(spread[y, x]) * float(spread[y, x]))
                if strength > clip:
                    pooled[rows.bins[y], columns.bins[x]] = max(pooled[rows.bins[y], columns.bins[x]], strength)


@compiled
def improbable_runs(
    empty: NDArray[np.bool_], skipped: NDArray[np.bool_], evidence: NDArray[np.float64], least: float
) -> NDArray[np.bool_]:
    """Return the runs of `empty` pixels along the rows whose `evidence` adds up to `least`; `skipped` pixels do not end
    a run.
    """
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
