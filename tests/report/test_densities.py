import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.report.densities import cluster_densities, component_ranges


@given(st.integers(1, 60), st.integers(1, 10), st.integers(1, 5), st.integers(1, 12), st.integers(0, 2**32))
def test_densities_are_numpys_histograms(n, m, k, bins, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, m))
    labels = rng.integers(0, k, n)
    ranges = component_ranges(X)
    found = cluster_densities(X, labels, k, ranges=ranges, bins=bins)
    assert found.shape == (k, min(8, m), bins)
    lazy = da.from_array(X, chunks=(7, -1))
    assert np.array_equal(cluster_densities(lazy, labels, k, ranges=component_ranges(lazy), bins=bins), found)
    width = np.maximum(ranges[:, 1] - ranges[:, 0], 0)
    width[width == 0] = 1
    for cluster in range(k):
        members = X[labels == cluster]
        integral = (found[cluster] * width[:, None] / bins).sum(axis=1)
        assert integral == pytest.approx(np.full(len(width), bool(len(members)), float))
        for component in range(min(8, m)):
            if len(members) and ranges[component, 1] > ranges[component, 0]:
                expected = np.histogram(members[:, component], bins=bins, range=ranges[component], density=True)[0]
                # a value within rounding of a bin's edge may fall on either side
                assert np.abs(found[cluster, component] - expected).sum() * width[component] / bins <= 2 / len(members)
