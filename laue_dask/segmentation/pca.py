"""Principal components of the feature vectors, exact and in one pass (section 3.2 of the paper).

The whole fit is a sum: every block of features gives its count, mean and scatter matrix (`Moments`), moments are merged
with Chan's formula, and the components are the eigenvectors of the merged scatter matrix in float64. Blocks may be
computed anywhere and arrive at any time; nothing is read twice.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Self

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import compute
from dask.delayed import delayed
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from laue_dask.errors import InputError
from laue_dask.runtime.threads import one_thread
from laue_dask.segmentation.validation import table_of

Array = npt.NDArray[Any]


def block_rows(columns: int) -> int:
    """Return the rows of the blocks in which a table of that many columns is worked on: a function of the width alone.

    Results that are sums over blocks are therefore the same to the last bit however the table was chunked, and blocks
    are large (16 MiB of float32 at 256 columns), because each costs the scheduler about a millisecond, but a worker of
    1 GB has room for some of them in float64.
    """
    return min(65_536, max(1_024, 2**22 // max(1, columns)))


def slabs(X: Array, width: int = 1) -> Iterator[slice]:
    """Return the rows of X, (n, M), some at a time, of which M or `width` float64 values each take 2 MiB at most.

    A worker with little memory has room for copies of that size, and they stay in the processor's cache.
    """
    height = max(1, 2**18 // max(1, width, X.shape[1]))
    return (slice(start, start + height) for start in range(0, len(X), height))


def each_block(function: Callable[..., Any], X: Any, *aligned: Array, **shared: Any) -> list[Any]:
    """Apply ``function(rows of X, rows of aligned…, **shared)`` to all blocks of rows of X; results in row order.

    Parameters
    ----------
    X
        (n, M) NumPy array, worked on here, or dask array, worked on by its scheduler.
    aligned
        Arrays of length n that are cut at the same rows.
    shared
        Arguments that every block gets whole.
    """
    size = block_rows(X.shape[1])
    if not isinstance(X, da.Array):
        spans = [slice(start, start + size) for start in range(0, max(1, len(X)), size)]
        return [function(X[rows], *(array[rows] for array in aligned), **shared) for rows in spans]
    # A block is read and worked on in one task: workers hold none that waits.
    whole = X.rechunk({0: size, 1: -1})
    parts = whole.map_blocks(
        _one,
        *(da.from_array(array[:, None], chunks=(size, 1), name=False) for array in aligned),
        function=function,
        shared={name: delayed(value) for name, value in shared.items()},
        dtype=object,
        chunks=(whole.chunks[0], (1,)),
        meta=np.empty((0, 0), dtype=object),
    )
    return list(compute(*parts.to_delayed().ravel()))


def _one(X: Array, *aligned: Array, function: Callable[..., Any], shared: dict[str, Any]) -> Any:
    return function(X, *(array[:, 0] for array in aligned), **shared)


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of a set of feature vectors; all that PCA needs to know about them.

    Attributes
    ----------
    n
        Number of vectors.
    mean
        (M,) float64, zero where n is 0.
    scatter
        (M, M) float64, the sum of the outer products of the centred vectors.
    """

    n: int
    mean: Array
    scatter: Array

    @classmethod
    def from_block(cls, X: Array) -> Self:
        """Return the moments of the rows of X, (n, M); a row with a value that is not finite is left out."""
        usable = np.asarray(np.isfinite(X).all(axis=1))
        n, mean, scatter = int(usable.sum()), np.zeros(X.shape[1]), np.zeros((X.shape[1], X.shape[1]))
        for rows in slabs(X):
            mean += X[rows][usable[rows]].sum(axis=0, dtype=np.float64)
        mean /= max(1, n)
        for rows in slabs(X):
            centred = X[rows][usable[rows]] - mean
            scatter += centred.T @ centred
        return cls(n, mean, scatter)

    def merge(self, other: Self) -> Self:
        """Return the moments of both sets together (Chan, Golub and LeVeque 1979).

        Raises
        ------
        InputError
            The two have different numbers of features.
        """
        if len(self.mean) != len(other.mean):
            raise InputError(f"moments of {len(self.mean)} features cannot be merged with those of {len(other.mean)}")
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        step = other.mean - self.mean
        mean = self.mean + step * (other.n / n)
        scatter = self.scatter + other.scatter + np.outer(step, step) * (self.n * (other.n / n))
        return type(self)(n, mean, scatter)


def choose_components(ratio: Array, spec: int | float | None) -> int:
    """Return the number of components that `spec` asks for (M_PCA of the paper).

    Parameters
    ----------
    ratio
        (M,) explained variance ratios, in descending order.
    spec
        A number of components (1 to M), the share of the variance (between 0 and 1) that the components must explain
        at least, or None for all.

    Raises
    ------
    InputError
        `spec` is none of these.
    """
    if spec is None:
        return len(ratio)
    if isinstance(spec, float) and 0 < spec < 1:
        return min(len(ratio), int(np.searchsorted(np.cumsum(ratio), spec)) + 1) if ratio.any() else 1
    if not isinstance(spec, float) and 1 <= spec <= len(ratio):
        return int(spec)
    raise InputError(f"{spec!r} principal components were asked for: give 1 to {len(ratio)} or a share between 0 and 1")


class IncrementalPCA(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Exact PCA of any number of feature vectors, fitted by blocks (eqs. 15 and 16).

    Every component is kept and `transform` returns all of them; `n_components_` says how many the clustering is to use.
    Each component's sign is fixed: the first of its largest loadings is positive.

    Parameters
    ----------
    n_components
        See `choose_components`.

    Attributes
    ----------
    components_
        (M, M) float64, one component per row, by descending explained variance.
    mean_
        (M,) float64.
    explained_variance_, explained_variance_ratio_
        (M,) float64; the ratios are all zero where nothing varies.
    n_components_
        Number of components that `n_components` asked for.
    n_samples_seen_
        Number of vectors fitted; those with a value that is not finite do not count.
    moments_
        The `Moments` fitted so far.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 3)) * [3.0, 2.0, 0.1]
    >>> pca = IncrementalPCA(n_components=0.9).fit(X)
    >>> pca.n_components_, pca.transform(X).shape
    (2, (100, 3))
    """

    def __init__(self, n_components: int | float | None = None) -> None:
        self.n_components = n_components

    def fit(self, X: Any, y: None = None) -> Self:
        """Fit X, (n, M) NumPy or dask array, and forget what was fitted before."""
        return self._solve(_moments(table_of(self, X, reset=True)))

    def partial_fit(self, X: Any, y: None = None) -> Self:
        """Fit X, (n, M) NumPy or dask array, together with what was fitted before."""
        return self.merge(_moments(table_of(self, X, reset=not hasattr(self, "moments_"))))

    def merge(self, moments: Moments) -> Self:
        """Fit the vectors behind `moments` together with what was fitted before.

        Raises
        ------
        InputError
            Fewer than two vectors in all, or another number of features than before.
        """
        return self._solve(self.moments_.merge(moments) if hasattr(self, "moments_") else moments)

    def transform(self, X: Any, *, dtype: npt.DTypeLike = np.float64) -> Any:
        """Return all M principal components of X, (n, M); of a dask array lazily, block by block.

        Parameters
        ----------
        dtype
            Of the result. The arithmetic is always float64.
        """
        check_is_fitted(self)
        project = partial(_project, mean=self.mean_, components=self.components_, dtype=np.dtype(dtype))
        return _by_rows(project, table_of(self, X, reset=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True  # rows with a NaN do not count, and stay NaN
        return tags

    def inverse_transform(self, Y: Any, *, dtype: npt.DTypeLike = np.float64) -> Any:
        """Return the feature vectors, (n, M), of the first m principal components Y, (n, m)."""
        check_is_fitted(self)
        return _by_rows(partial(_restore, mean=self.mean_, components=self.components_, dtype=np.dtype(dtype)), Y)

    def _solve(self, moments: Moments) -> Self:
        if moments.n < 2:
            counted = f"{moments.n} usable pattern{'' if moments.n == 1 else 's'} (n_samples = {moments.n})"
            raise InputError(f"PCA of {counted}: at least 2 are needed")
        # The number of threads decides the rounding, and with it the directions in which there is no variance.
        with one_thread():
            values, vectors = np.linalg.eigh(moments.scatter / (moments.n - 1))
        variance = values[::-1].clip(min=0)
        # what the arithmetic leaves in directions without variance (fewer patterns than features, constant features)
        variance[variance <= variance[0] * len(variance) * np.finfo(np.float64).eps] = 0
        ratio = variance / (variance.sum() or 1.0)
        self.n_components_ = choose_components(ratio, self.n_components)
        self.moments_ = moments
        self.n_samples_seen_ = moments.n
        self.n_features_in_ = len(variance)
        self.mean_ = moments.mean
        self.components_ = _with_signs(vectors.T[::-1])
        self.explained_variance_ = variance
        self.explained_variance_ratio_ = ratio
        return self


def _moments(X: Any) -> Moments:
    parts: list[Moments] = each_block(Moments.from_block, X)
    return reduce(Moments.merge, parts)


def _with_signs(components: Array) -> Array:
    """Make the leading loading of each row positive.

    Loadings as large as the largest but for rounding count as equal and the first of them leads; otherwise the sign of
    (1, −1)/√2 would be left to the last bit.
    """
    size = np.abs(components)
    leading = (size >= (1 - 1e-6) * size.max(axis=1, keepdims=True)).argmax(axis=1)
    sign = np.sign(components[np.arange(len(components)), leading])
    return np.ascontiguousarray(components * sign[:, None])


def _project(X: Array, *, mean: Array, components: Array, dtype: np.dtype[Any]) -> Array:
    if X.shape[1] != len(mean):
        raise InputError(f"the PCA was fitted to {len(mean)} features, these vectors have {X.shape[1]}")
    with np.errstate(invalid="ignore"):  # a pattern without features has no components: its row stays NaN
        projected = np.empty((len(X), len(components)), dtype=dtype)
        for rows in slabs(X):
            projected[rows] = (X[rows] - mean) @ components.T
        return projected


def _restore(Y: Array, *, mean: Array, components: Array, dtype: np.dtype[Any]) -> Array:
    if Y.shape[1] > len(mean):
        raise InputError(f"the PCA has {len(mean)} components, these vectors have {Y.shape[1]}")
    with np.errstate(invalid="ignore"):
        return (Y.astype(np.float64) @ components[: Y.shape[1]] + mean).astype(dtype)


def _by_rows(function: partial[Array], X: Any) -> Any:
    """Apply a function of whole rows, (n, m) → (n, M), to a NumPy array, or lazily to a dask array."""
    if not isinstance(X, da.Array):
        return function(np.asarray(X))
    width = len(function.keywords["mean"])
    empty = function(np.empty((0, X.shape[1])))  # a wrong width is refused here, not in a worker
    return X.rechunk({1: -1}).map_blocks(function, chunks=(X.chunks[0], (width,)), meta=empty)
