"""Find patterns that lie in one domain, from their neighbours in the scan.

Where the beam lies on two domains the pattern shows both, and cannot be indexed as one. Such a pattern is unlike its
neighbour on either side: there is a line through it, along a row, a column or a diagonal, on which both neighbours are
farther away in feature space than neighbours usually are, from it and from each other. That also holds where crystals
bend strongly, or where a domain between two others is one point wide: whether a pattern is a sum of both neighbours' is
then told by the patterns (`is_mixed`).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from laue_dask.config import Recipe
from laue_dask.grains.neighbourhood import Neighbours, pair_distances
from laue_dask.segmentation import beam_shares

UNLIKE_DISTANCE_FACTOR = 1.5
"""A neighbour is unlike a pattern that is more than so many times as far away as the median neighbour in a row or a
column of the scan."""

NEIGHBOUR_STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Steps (y, x) to the second neighbour on each of the four lines through a point; the first is on the other side."""

MIN_INTENSITY_SHARE = 0.05
"""Part of a pattern's intensities below which the beam does not lie on a domain."""

MIN_EXPLAINED_GAIN = 0.03
"""Part of the weighted squared intensities that both neighbours must explain beyond the better of them alone."""


def opposite_neighbours(
    X: Any, pairs: Neighbours, patterns: NDArray[np.int64], nx: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the neighbours of each pattern on the four lines through it, and where it is unlike both.

    Parameters
    ----------
    X
        (n, M) NumPy or dask array: features of the patterns.
    pairs
        Of its rows, with 8 neighbours of a point.
    patterns
        (n,) index in the scan of each row, ascending.
    nx
        Points of a line of the scan.

    Returns
    -------
    rows
        (n, 4, 2) int64: rows of the two neighbours on each of `NEIGHBOUR_STEPS`, −1 where there is none.
    unlike
        (n, 4) bool: both are there and far away, and far from each other.
    """
    rows = np.full((len(patterns), len(NEIGHBOUR_STEPS), 2), -1, np.int64)
    far = np.zeros(rows.shape, np.bool_)
    y, x = np.divmod(patterns, nx)
    step = np.stack([y[pairs.second] - y[pairs.first], x[pairs.second] - x[pairs.first]])
    straight = np.abs(step).sum(axis=0) == 1
    limit = UNLIKE_DISTANCE_FACTOR * float(np.median(pairs.distance[straight])) if straight.any() else np.inf
    for line, (down, across) in enumerate(NEIGHBOUR_STEPS):
        on = (step[0] == down) & (step[1] == across)
        first, second = pairs.first[on], pairs.second[on]
        rows[first, line, 1], rows[second, line, 0] = second, first
        far[first, line, 1] = far[second, line, 0] = pairs.distance[on] > limit
    unlike: NDArray[np.bool_] = np.asarray(far.all(axis=2))
    either_side = rows[unlike]
    order = np.lexsort((either_side[:, 1], either_side[:, 0]))
    apart = np.empty(len(order))
    apart[order] = pair_distances(X, *either_side[order].T)
    unlike[unlike] = apart > limit
    return rows, unlike


def is_mixed(
    patterns: NDArray[np.uint8],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    beside: NDArray[np.uint8],
    recipe: Recipe,
) -> NDArray[np.bool_]:
    """Return which patterns are a sum of two neighbours', so that the beam lies on two domains, (n,) bool.

    Parameters
    ----------
    patterns
        (n, 128, 128) uint8, reduced by the recipe.
    first, second
        (n, L) places of the two neighbours on each line among `beside`; negative where none is asked about.
    beside
        (m, 128, 128) uint8, neighbours.
    """
    found = beam_shares.beam_shares(patterns, first, second, beam_shares.intensities(beside, recipe), recipe)
    a, b, alone, together = np.moveaxis(found, -1, 0)
    both = (
        (np.minimum(a, b) > MIN_INTENSITY_SHARE * (a + b))
        & (together >= beam_shares.MIN_EXPLAINED_SHARE)
        & (together >= alone + MIN_EXPLAINED_GAIN)
    )
    return np.asarray(both.any(axis=1))
