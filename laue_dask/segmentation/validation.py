"""What an estimator is given: a table of numbers in memory or a lazy one, held against what it was fitted to."""

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from laue_dask.errors import InputError


def table_of(estimator: BaseEstimator, X: Any, *, reset: bool) -> Any:
    """Return the Dask or NumPy array (n, M) that was given to an estimator, whose `n_features_in_` it sets or must
    have.

    A Dask array is looked at by its shape and dtype alone; nothing of it is computed.

    Parameters
    ----------
    X
        Dask array, or anything that NumPy or scikit-learn takes for a dense table of numbers.
    reset
        Whether the estimator is fitted anew.

    Raises
    ------
    InputError
        It has another number of dimensions or of features, or holds no real numbers.
    TypeError
        It is sparse.
    """
    X = X.data if isinstance(X, xr.DataArray) else X
    if not isinstance(X, da.Array):
        return _validated(estimator, X, reset=reset, dtype="numeric", ensure_all_finite=False, ensure_min_samples=0)
    if X.ndim != 2:
        raise InputError(f"a table of shape {X.shape}: (n, M) was expected: reshape it, as X.reshape(-1, X.shape[-1])")
    if X.dtype.kind not in "biuf":
        raise InputError(f"a table of {X.dtype}: real numbers were expected")
    if np.isnan(X.shape[0]):
        raise InputError("a table of an unknown number of rows: call its compute_chunk_sizes() before")
    _validated(estimator, X, reset=reset, skip_check_array=True)
    return X


def _validated(estimator: BaseEstimator, X: Any, **options: Any) -> Any:
    try:
        return validate_data(estimator, X, **options)
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from error
