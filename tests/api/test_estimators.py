"""The estimators keep to scikit-learn's manners."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import check_is_fitted

import laue_dask as ld
from laue_dask.errors import InputError

OF_TABLES = (ld.IncrementalPCA(), ld.KMeans(3))
CHECKS = [
    pytest.param(estimator, check, id=f"{type(estimator).__name__} {check.func.__name__} {number}")
    for one in OF_TABLES
    for number, (estimator, check) in enumerate(estimator_checks_generator(one, mark=None))
    if "array_api" not in check.func.__name__
]


@pytest.mark.parametrize(("estimator", "check"), CHECKS)
@pytest.mark.filterwarnings("ignore")
def test_it_does_what_scikit_learn_expects(estimator, check):
    check(clone(estimator))


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(0).normal(size=(60, 5)) + np.repeat([[0], [9], [20]], 20, axis=0)


@pytest.mark.parametrize("estimator", OF_TABLES, ids=lambda one: type(one).__name__)
def test_dask_arrays_give_what_numpy_arrays_give_lazily(estimator, table):
    lazy = da.from_array(table, (17, 3))
    known, found = clone(estimator).fit(table), clone(estimator).fit(lazy)
    apply = "transform" if hasattr(found, "transform") else "predict"
    answer = getattr(found, apply)(lazy)
    assert isinstance(answer, da.Array)
    np.testing.assert_allclose(answer.compute(), getattr(known, apply)(table), atol=1e-12)
    labelled = xr.DataArray(lazy, dims=("pattern", "feature"))
    np.testing.assert_allclose(getattr(clone(estimator).fit(labelled), apply)(labelled).compute(), answer.compute())


@pytest.mark.parametrize("estimator", OF_TABLES, ids=lambda one: type(one).__name__)
def test_dask_arrays_that_do_not_fit_are_refused_before_anything_is_computed(estimator, table):
    never = da.map_blocks(lambda block: 1 / 0, da.from_array(table), dtype=float, meta=np.empty((0, 0)))
    fitted = clone(estimator).fit(table)
    apply = fitted.transform if hasattr(fitted, "transform") else fitted.predict
    with pytest.raises(ValueError, match="expecting 5 features"):
        apply(never[:, :3])
    for call in (apply, clone(estimator).fit):
        with pytest.raises(InputError, match=r"\(n, M\) was expected"):
            call(never.reshape(3, 20, 5))
        with pytest.raises(InputError, match="real numbers were expected"):
            call(never.astype(complex))
        with pytest.raises(InputError, match="compute_chunk_sizes"):
            call(never[never[:, 0] > 0])


def test_grains_have_parameters_as_scikit_learn_wants_them():
    grains = ld.NeighbourhoodGrains(0.5, min_size=2, small="mark")
    assert clone(grains).get_params() == {"threshold": 0.5, "min_size": 2, "connectivity": 4, "small": "mark"}
    assert "min_size=2" in repr(grains.set_params(connectivity=8))
    with pytest.raises(NotFittedError):
        check_is_fitted(grains)


def test_grains_are_found_on_a_map_of_features_as_on_a_table(table):
    scan = table[:, :2].reshape(6, 10, 2)
    flat = ld.NeighbourhoodGrains(3.0, min_size=2).fit(scan.reshape(60, 2), shape=(6, 10))
    for given in (scan, da.from_array(scan, (2, 3, 2)), xr.DataArray(scan, dims=("y", "x", "component"))):
        found = ld.NeighbourhoodGrains(3.0, min_size=2).fit(given)
        np.testing.assert_array_equal(found.map_.ravel(), flat.labels_)
    np.testing.assert_array_equal(ld.NeighbourhoodGrains(3.0, min_size=2).fit_predict(scan), flat.labels_)
    gaps = scan.copy()
    gaps[2, 3] = np.nan
    holed = ld.NeighbourhoodGrains(3.0, min_size=2).fit(gaps)
    assert holed.map_[2, 3] == -1
    assert len(holed.labels_) == 59
    same = ld.NeighbourhoodGrains(3.0, min_size=2).fit(scan, valid=np.isfinite(gaps[..., 0]))
    np.testing.assert_array_equal(same.map_, holed.map_)


@pytest.mark.parametrize(
    ("X", "options", "words"),
    [
        (np.zeros((6, 2)), {}, r"give the shape \(ny, nx\)"),
        (np.zeros(6), {"shape": (2, 3)}, r"\(n, M\) or \(ny, nx, M\) were expected"),
        (np.zeros((6, 2), complex), {"shape": (2, 3)}, "were expected"),
        (np.zeros((2, 3, 4)), {"shape": (3, 2)}, "a scan of"),
        (np.zeros((5, 4)), {"shape": (3, 2)}, "5 labels for 6 valid patterns"),
    ],
)
def test_features_that_do_not_fit_their_scan_are_refused(X, options, words):
    with pytest.raises(InputError, match=words):
        ld.NeighbourhoodGrains().fit(X, **options)
