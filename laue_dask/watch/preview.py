"""Maps of what is there so far: PCA by merged moments, k-means from the last centres, colours that do not jump.

Everything here is provisional and bounded in time: the principal components are merged, never fitted again, k-means
sees a sample, and only the leading components of all patterns are computed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from laue_dask.config import PCAConfig
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.segmentation.clustering import nearest
from laue_dask.segmentation.labeling import direct_rgb
from laue_dask.segmentation.pca import IncrementalPCA, Moments
from laue_dask.segmentation.seeding import distinct_rows, improve, sample_rows, search

MIN_PATTERNS = 8
"""Patterns from which on there are maps."""

MAX_COMPONENTS = 32
"""Components that the preview uses, at most: what is beyond them hardly moves a label."""

MAX_SAMPLE_PATTERNS = 2_000
"""Patterns that k-means sees."""

ROWS_PER_PROJECTION = 8_192
"""Rows that are projected at a time."""

N_STARTS = 3
"""Starts of k-means, where it does not go on from the last centres."""


@dataclass(frozen=True)
class Maps:
    """What is known so far.

    Attributes
    ----------
    patterns : (n,) int64
        Place of each row in the scan, ``y * nx + x``, ascending.
    components : (n, m) float32
        Leading components, the first three in the order and with the signs of the last maps.
    labels : (n,) int32
        Numbered as in the last maps.
    rgb : (n, 3) uint8
        Direct colouring.
    k
        Number of clusters.
    """

    patterns: NDArray[np.int64]
    components: NDArray[np.float32]
    labels: NDArray[np.int32]
    rgb: NDArray[np.uint8]
    k: int

    def where(self, shape: tuple[int, int]) -> SpecimenMap:
        """Return which points of a scan (ny, nx) have a row."""
        valid = np.zeros(shape[0] * shape[1], dtype=bool)
        valid[self.patterns] = True
        return SpecimenMap(valid, shape)


class Preview:
    """PCA and k-means of a growing table of features, each refresh close to the last.

    Parameters
    ----------
    config
        Of the PCA.
    seed
        Of samples and starts.
    """

    def __init__(self, config: PCAConfig, *, seed: int = 0) -> None:
        self._seed = seed
        self._pca = IncrementalPCA(n_components=config.components)
        self._merged = 0
        self._stale: set[int] = set()
        self._basis: NDArray[np.float64] | None = None
        self._means: NDArray[np.float64] | None = None
        self._labels = np.empty(0, dtype=np.int32)

    def update(
        self, features: NDArray[np.float32], rows: NDArray[np.int64], patterns: NDArray[np.int64], k: int
    ) -> Maps | None:
        """Take in the rows that are new, and map all that are current.

        Parameters
        ----------
        features : (N, M)
            All rows so far, those of the last call first.
        rows : (n,)
            Rows that count, each of another pattern; one that is not among them was replaced by a later one.
        patterns : (n,)
            Place of each in the scan, ascending.
        k
            Number of clusters; fewer where there are fewer distinct patterns.

        Returns
        -------
        Maps
            None while there are too few patterns.
        """
        if len(rows) < MIN_PATTERNS:
            return None
        self._merge(features, rows)
        m = max(3, min(int(self._pca.n_components_), MAX_COMPONENTS))
        basis = self._basis = aligned_axes(self._pca.components_[:m], self._basis)
        components = np.empty((len(rows), m), dtype=np.float32)
        for start in range(0, len(rows), ROWS_PER_PROJECTION):
            part = slice(start, start + ROWS_PER_PROJECTION)
            components[part] = (features[rows[part]].astype(np.float64) - self._pca.mean_) @ basis.T
        labels, k = self._cluster(components, basis, rows, k)
        self._labels = np.full(len(features), -1, dtype=np.int32)
        self._labels[rows] = labels
        return Maps(patterns, components, labels, direct_rgb(components), k)

    def _merge(self, features: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        current = np.zeros(len(features), dtype=bool)
        current[rows] = True
        stale = set(np.flatnonzero(~current[: self._merged]).tolist())
        if self._merged and stale == self._stale:
            new = rows[rows >= self._merged]
            if len(new):
                self._pca.merge(Moments.from_block(features[new]))
        else:
            # A frame that was read again takes the place of its first version: the moments are summed anew.
            self._pca.fit(features[np.sort(rows)])
        self._merged, self._stale = len(features), set(np.flatnonzero(~current).tolist())

    def _cluster(
        self, components: NDArray[np.float32], basis: NDArray[np.float64], rows: NDArray[np.int64], k: int
    ) -> tuple[NDArray[np.int32], int]:
        sample = components[sample_rows(len(components), MAX_SAMPLE_PATTERNS, self._seed)]
        k = max(1, min(k, len(distinct_rows(sample))))
        if self._means is not None and len(self._means) == k:
            centers = improve(sample, (self._means - self._pca.mean_) @ basis.T)
        else:
            centers = search(sample, k, n_init=N_STARTS, seed=self._seed)
        found = nearest(components, centers)
        known = rows < len(self._labels)
        number = matched_labels(found[known], self._labels[rows[known]], k)
        # Kept as features: the components turn from refresh to refresh.
        self._means = np.empty((k, basis.shape[1]))
        self._means[number] = centers @ basis + self._pca.mean_
        return number[found], k


def aligned_axes(components: NDArray[np.float64], before: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return principal axes (m, M), the first three of them in the order and with the signs of the last time."""
    basis = np.array(components)
    if before is None:
        return basis
    alike = basis[:3] @ before[:3].T
    new, old = linear_sum_assignment(-np.abs(alike))
    sign = np.where(alike[new, old] < 0, -1.0, 1.0)
    basis[old] = components[new] * sign[:, None]
    return basis


def matched_labels(labels: NDArray[np.int32], before: NDArray[np.int32], k: int) -> NDArray[np.int32]:
    """Return the new number of each of k clusters, so that most patterns keep the label that they had.

    Parameters
    ----------
    labels, before : (n,)
        Labels of the same patterns now and the last time; −1 for one that had none.

    Returns
    -------
    (k,) int32
        A permutation of 0…k−1.
    """
    known = (before >= 0) & (before < k)
    shared = np.zeros((k, k))
    np.add.at(shared, (labels[known], before[known]), 1)
    number = np.empty(k, dtype=np.int32)
    mine, theirs = linear_sum_assignment(-shared)
    number[mine] = theirs
    return number
