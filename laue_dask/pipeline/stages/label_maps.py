"""What a segmentation is, from the estimator's labels to the maps that are written."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Segmentation:
    """One segmentation (Definition 8) and its maps; names are those of `laue_dask.schema.RESULTS`.

    Attributes
    ----------
    k
        K asked for, or found by an estimator that finds it itself.
    n_clusters
        Clusters that own patterns: the effective clusters of a mixture, which may be fewer.
    converged
        Whether the estimator came to its end.
    delegates, delegates_mixed
        (K, ranks) of `stages.delegates`; None of what was made before there were such.
    """

    k: int
    n_clusters: int
    labels: NDArray[np.int32]
    distance_to_centroid: NDArray[np.float32]
    pca_rgb: NDArray[np.uint8]
    centroids: NDArray[np.float32]
    delegate: NDArray[np.int64]
    converged: bool = True
    delegates: NDArray[np.int64] | None = None
    delegates_mixed: NDArray[np.int8] | None = None
