"""How well features tell patterns apart, without any clustering: by nearest neighbours and by nearest means."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Array = npt.NDArray[Any]


def neighbour_accuracy(X: Array, domain: Array) -> float:
    """Return the share of the patterns whose nearest neighbour in feature space belongs to the same domain.

    Parameters
    ----------
    X
        (n, M) features.
    domain
        (n,) integers. Patterns that are alone in their domain are neighbours of others, but do not count themselves.

    Returns
    -------
    float
        NaN where no pattern counts.
    """
    kinds, members = np.unique(domain, return_counts=True)
    counts = np.isin(domain, kinds[members > 1])
    if not counts.any():
        return float("nan")
    others = np.asarray(cKDTree(X).query(X, k=2)[1])
    # Of equal patterns the tree may name either first.
    own = np.arange(len(X))
    neighbour = np.where(others[:, 0] == own, others[:, 1], others[:, 0])
    return float((domain[neighbour] == domain)[counts].mean())


def nearest_mean_accuracy(first: Array, second: Array) -> float:
    """Return the share of held-out views of two things that are nearer to the mean of their own views.

    Parameters
    ----------
    first, second
        (v, M) features of v ≥ 2 views each; the first half gives the means, the other half is told apart.

    Returns
    -------
    float
        1 where every view is right, about 0.5 where the features see no difference; a tie counts one half.
    """
    half = len(first) // 2
    means = first[:half].mean(axis=0), second[:half].mean(axis=0)
    right = []
    for views, own, other in ((first[half:], means[0], means[1]), (second[half:], means[1], means[0])):
        lead = np.linalg.norm(views - other, axis=1) - np.linalg.norm(views - own, axis=1)
        right.append((1 + np.sign(lead)) / 2)
    return float(np.concatenate(right).mean())


def smallest_resolved(angles: Sequence[float] | Array, accuracy: Sequence[float] | Array, least: float = 0.95) -> float:
    """Return the smallest of `angles` (ascending) from which on, up to the largest, the accuracy is at least `least`.

    Returns
    -------
    float
        Infinity where it is not reached at the largest angle.
    """
    enough = np.asarray(accuracy) >= least
    from_here_on = np.logical_and.accumulate(enough[::-1])[::-1]
    return float(np.asarray(angles)[from_here_on][0]) if from_here_on.any() else float("inf")
