"""The estimators g of a segmentation (Definitions 7 and 8, section 4.2 of the paper) behind one protocol.

K-means sees every pattern (`laue_dask.segmentation.clustering`). The others are scikit-learn's: fitted to a sample in
memory, then applied to all patterns block by block. Whatever the estimator, every pattern gets a label, and labels
count from the largest cluster.
"""

import warnings
from typing import Any, Literal, Protocol, Self

import dask.array as da
import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import HDBSCAN, MeanShift, estimate_bandwidth
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.utils.validation import check_is_fitted

from laue_dask.errors import InputError
from laue_dask.runtime.threads import one_thread
from laue_dask.segmentation.clustering import count_unusable_rows, nearest, numbered_by_size
from laue_dask.segmentation.pca import Array, each_block
from laue_dask.segmentation.seeding import distinct_rows, sample_rows, search
from laue_dask.segmentation.validation import table_of

Kind = Literal["kmeans", "bgm", "gmm", "hdbscan", "mean_shift"]

ESTIMATORS_FINDING_K: tuple[Kind, ...] = ("hdbscan", "mean_shift")
"""Estimators that find the number of clusters themselves."""

MAX_MIXTURE_STEPS = 500
"""Steps of expectation and maximisation at most."""

BANDWIDTH_SAMPLE_SHARE = 0.05
"""Share of the sample within the bandwidth of mean shift, on average, where none is given."""

N_SHIFTED_PATTERNS = 500
"""Patterns from which mean shift climbs to the modes."""


class Estimator(Protocol):
    """What a segmentation needs to know of a clustering method.

    Attributes
    ----------
    labels_
        (n,) int32, 0 to ``n_clusters_`` − 1; 0 is the largest cluster, of equals the one whose first row comes first.
    n_clusters_
        Clusters that own a row.
    """

    labels_: Array
    n_clusters_: int

    def fit(self, X: Any, y: None = None) -> Self:
        """Find the clusters of X, (n, M) NumPy or dask array of finite values."""

    def predict(self, X: Any) -> Any:
        """Return the label of every row of X, (n, M), as int32 (n,); of a dask array lazily, block by block."""


class SampleEstimator(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Base of the estimators that are fitted to a sample and applied out of core.

    Parameters
    ----------
    sample
        Rows in the sample, spread over the table; all where there are no more.
    random_state
        Seed.

    Attributes
    ----------
    labels_, n_clusters_
        See `Estimator`.
    converged_
        Whether the fit to the sample came to its end; False where its steps ran out.
    """

    def __init__(self, *, sample: int = 20_000, random_state: int = 0) -> None:
        self.sample = sample
        self.random_state = random_state

    def fit(self, X: Any, y: None = None) -> Self:
        """Find the clusters of X, (n, M) NumPy or dask array of finite values.

        Raises
        ------
        InputError
            A row has a value that is not finite, or the sample has no such clusters.
        """
        X = table_of(self, X, reset=True)
        bad = sum(each_block(count_unusable_rows, X))
        if bad:
            raise InputError(
                f"{bad} of {len(X)} rows have values that are not finite (NaN or inf): leave those patterns out"
            )
        chosen = sample_rows(len(X), self.sample, self.random_state)
        rows = np.asarray(X[chosen].compute() if isinstance(X, da.Array) else X[chosen], dtype=np.float64)
        # scikit-learn's regularisation and tolerances are absolute
        self.mean_ = rows.mean(axis=0)
        self.scale_ = float(np.sqrt(rows.var(axis=0).mean())) or 1.0
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.converged_ = True
            self._fit_sample((rows - self.mean_) / self.scale_)
        self.order_ = np.arange(self._n_found())
        labels = np.concatenate(each_block(self._label, X))
        self.labels_, self.order_ = numbered_by_size(labels)
        self.n_clusters_ = len(self.order_)
        return self

    def predict(self, X: Any) -> Any:
        """Return the label of every row of X, (n, M), as int32 (n,); of a dask array lazily, block by block."""
        check_is_fitted(self)
        X = table_of(self, X, reset=False)
        if isinstance(X, da.Array):
            return X.rechunk({1: -1}).map_blocks(self._label, drop_axis=1, meta=np.empty(0, np.int32))
        return self._label(X)

    def _label(self, X: Array) -> Array:
        if not len(X):
            return np.empty(0, np.int32)
        with one_thread():
            return self._assign((X.astype(np.float64) - self.mean_) / self.scale_).astype(np.int32)

    def _fit_sample(self, rows: Array) -> None:
        """Fit to the rows of the sample, (s, M) float64 of unit variance on average."""
        raise NotImplementedError

    def _n_found(self) -> int:
        """Clusters that the sample has."""
        raise NotImplementedError

    def _assign(self, rows: Array) -> Array:
        """Place in `order_` of the cluster of each row, (n, M)."""
        raise NotImplementedError


class GaussianMixtureClusters(SampleEstimator):
    """Gaussian mixture (future work of the paper) or Bayesian Gaussian mixture (g_BGM) of full covariances.

    Parameters
    ----------
    n_components
        K, the nominal number of clusters.
    bayesian
        Whether weights have a Dirichlet process prior, which leaves superfluous components empty.
    n_init
        Starts of the k-means from which a Gaussian mixture begins; the Bayesian one makes its own k-means start.
    sample, random_state
        See `SampleEstimator`.

    Attributes
    ----------
    n_clusters_
        Effective clusters: components that own a pattern. Labels and `predict` know no others.
    weights_
        (n_clusters_,) share of each.
    """

    def __init__(
        self,
        n_components: int,
        *,
        bayesian: bool,
        n_init: int = 10,
        sample: int = 20_000,
        random_state: int = 0,
    ) -> None:
        super().__init__(sample=sample, random_state=random_state)
        self.n_components = n_components
        self.bayesian = bayesian
        self.n_init = n_init

    def _fit_sample(self, rows: Array) -> None:
        found = len(distinct_rows(rows))
        if not 1 <= self.n_components <= found:
            raise InputError(
                f"{self.n_components} clusters were asked for, but the {len(rows)} rows of the sample fall into "
                f"{found} distinct ones only: ask for at most {found}"
            )
        common = {"max_iter": MAX_MIXTURE_STEPS, "random_state": self.random_state}
        if self.bayesian:
            self.mixture_ = BayesianGaussianMixture(n_components=self.n_components, **common)
        else:
            means = search(rows, self.n_components, n_init=self.n_init, seed=self.random_state)
            self.mixture_ = GaussianMixture(n_components=self.n_components, means_init=means, **common)
        self.mixture_.fit(rows)
        self.converged_ = bool(self.mixture_.converged_)

    def _n_found(self) -> int:
        return self.n_components

    def _assign(self, rows: Array) -> Array:
        return np.asarray(self.mixture_.predict_proba(rows)[:, self.order_].argmax(axis=1))

    @property
    def weights_(self) -> Array:
        """(n_clusters_,) weight of each effective cluster in the mixture."""
        return np.asarray(self.mixture_.weights_[self.order_])


class DensityClusters(SampleEstimator):
    """HDBSCAN (the paper's future work, there DBSCAN): dense regions of any shape; it finds K itself.

    Rows that HDBSCAN takes for noise, and those outside the sample, join the cluster of the nearest member in the
    sample: a label map leaves no valid pattern out.

    Parameters
    ----------
    min_cluster_size
        Fewest rows of the sample in a cluster.
    sample, random_state
        See `SampleEstimator`.

    Attributes
    ----------
    noise_share_
        Share of the sample that HDBSCAN took for noise.
    """

    def __init__(self, *, min_cluster_size: int = 20, sample: int = 20_000, random_state: int = 0) -> None:
        super().__init__(sample=sample, random_state=random_state)
        self.min_cluster_size = min_cluster_size

    def _fit_sample(self, rows: Array) -> None:
        if self.min_cluster_size > len(rows):
            raise InputError(
                f"HDBSCAN: clusters of at least {self.min_cluster_size} among {len(rows)} patterns: "
                "lower clustering.min_cluster_size"
            )
        labels = HDBSCAN(min_cluster_size=self.min_cluster_size, copy=True).fit(rows).labels_
        member = labels >= 0
        if not member.any():
            raise InputError(
                f"HDBSCAN found no cluster of at least {self.min_cluster_size} among {len(rows)} patterns: "
                "lower clustering.min_cluster_size, or use another estimator"
            )
        self.members_, self.own_ = rows[member], labels[member]
        self.noise_share_ = float(1 - member.mean())

    def _n_found(self) -> int:
        return int(self.own_.max()) + 1

    def _assign(self, rows: Array) -> Array:
        place = np.zeros(self._n_found(), np.int32)
        place[self.order_] = np.arange(len(self.order_))
        return np.asarray(place[self.own_[pairwise_distances_argmin(rows, self.members_)]])


class MeanShiftClusters(SampleEstimator):
    """Mean shift (the paper's future work): one cluster for each mode of the density; it finds K itself.

    Every row belongs to the mode that is nearest.

    Parameters
    ----------
    bandwidth
        Radius of the flat kernel in the units of the components; by default the mean distance within which a row of
        the sample has `BANDWIDTH_SAMPLE_SHARE` of the others.
    sample, random_state
        See `SampleEstimator`.
    """

    def __init__(self, *, bandwidth: float | None = None, sample: int = 20_000, random_state: int = 0) -> None:
        super().__init__(sample=sample, random_state=random_state)
        self.bandwidth = bandwidth

    def _fit_sample(self, rows: Array) -> None:
        given = None if self.bandwidth is None else self.bandwidth / self.scale_
        width = given or estimate_bandwidth(
            rows, quantile=BANDWIDTH_SAMPLE_SHARE, n_samples=2_000, random_state=self.random_state
        )
        if not width > 0:
            raise InputError(
                "mean shift: most patterns are equal, so that no bandwidth can be found: give clustering.bandwidth"
            )
        starts = rows[sample_rows(len(rows), N_SHIFTED_PATTERNS, self.random_state)]
        self.modes_ = MeanShift(bandwidth=width, seeds=starts).fit(rows).cluster_centers_

    def _n_found(self) -> int:
        return len(self.modes_)

    def _assign(self, rows: Array) -> Array:
        return nearest(rows, self.modes_[self.order_])
