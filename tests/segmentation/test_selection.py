import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.segmentation.scores import score_sweep
from laue_dask.segmentation.selection import Repeated, advise, band, repeat


def blobs(n, k, *, apart=6.0, seed=0, m=4):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(k, m)) * apart)[rng.integers(k, size=n)] + rng.normal(size=(n, m))


def swept(X, last=8):
    rows = score_sweep(X, range(2, last + 1), n_init=3)
    return [row["k"] for row in rows], [row["silhouette"] for row in rows], [row["calinski_harabasz"] for row in rows]


def test_the_true_k_is_stable_and_a_wrong_one_is_not():
    X = blobs(600, 4, apart=12)
    true, wrong = repeat(X, 4, size=300), repeat(X, 7, size=300)
    assert true.stability > 0.99
    assert wrong.stability < true.stability - 0.02
    assert len(true.silhouette) == len(true.calinski_harabasz) == 5
    low, high = band(true.silhouette)
    assert low <= np.median(true.silhouette) <= high
    again = repeat(X, 4, size=300)
    assert np.array_equal(again.silhouette, true.silhouette)
    assert repeat(X, 4, size=300, seed=1).silhouette[0] != true.silhouette[0]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_a_band_lies_within_the_scores(values):
    low, high = band(np.array(values))
    assert min(values) <= low <= high <= max(values)


def test_too_few_distinct_rows_have_no_scores():
    found = repeat(np.zeros((20, 2)), 2)
    assert len(found.silhouette) == 0
    assert np.isnan(found.stability)
    assert np.isnan(band(found.silhouette)).all()


def test_repeated_fits_are_scored_on_the_scale_of_the_sweep():
    X = blobs(2000, 4, apart=12)
    [row] = score_sweep(X, [4], n_init=3)
    found = repeat(X, 4, size=300)
    np.testing.assert_allclose(found.calinski_harabasz, row["calinski_harabasz"], rtol=0.02)
    np.testing.assert_allclose(found.silhouette, row["silhouette"], atol=0.05)
    assert np.ptp(found.silhouette) > 0


def test_reasons_name_the_scores_that_peak():
    steady = Repeated(4, np.array([0.5, 0.55]), np.array([150.0, 190.0]), 0.97)
    found = advise(
        [2, 3, 4, 5, 6],
        [0.3, 0.4, 0.6, 0.4, 0.3],
        [100.0, 300.0, 200.0, 150.0, 120.0],
        repeated=[Repeated(3, np.empty(0), np.empty(0), 0.85), steady],
        contiguity={4: 0.85, 3: 0.02},
    )
    assert found.k == (3, 4)
    assert "Calinski–Harabasz is highest here (300)" in found.reasons[0]
    assert "repeated fits differ (ARI 0.85)" in found.reasons[0]
    assert "strewn over the specimen (0.02 of 1)" in found.reasons[0]
    assert "silhouette is highest here (0.60; 0.50 to 0.55 in repeated fits)" in found.reasons[1]
    assert "same partition in repeated fits (ARI 0.97)" in found.reasons[1]
    assert "contiguous on the specimen (0.85 of 1)" in found.reasons[1]
    assert found.structure
    assert found.verdict == "Clear structure: the best silhouette is 0.60."


def test_a_second_peak_is_named_with_its_height():
    found = advise(range(2, 9), [0.6, 0.3, 0.35, 0.5, 0.3, 0.2, 0.1], [9.0, 8, 7, 6, 5, 4, 3])
    assert found.k == (2, 5)
    assert "silhouette has a peak (0.50, 40 % of its range)" in found.reasons[1]


@pytest.mark.parametrize(("spread", "doubted"), [(0.05, False), (0.5, True)])
def test_a_peak_within_the_scatter_of_repeated_fits_is_doubted(spread, doubted):
    again = Repeated(5, 0.5 + spread * np.linspace(-0.5, 0.5, 21), np.full(21, 6.0), 0.9)
    found = advise(range(2, 9), [0.6, 0.3, 0.35, 0.5, 0.3, 0.2, 0.1], [9.0, 8, 7, 6, 5, 4, 3], repeated=[again])
    assert ("no higher than these scatter" in found.reasons[1]) == doubted


def test_a_rising_score_says_so():
    found = advise([2, 3, 4], [0.1, 0.2, 0.3], [1.0, 2.0, 3.0])
    assert found.k == (4,)
    assert "still rising" in found.reasons[0]


def test_blobs_are_structure_and_noise_is_none():
    assert advise(*swept(blobs(300, 5, apart=12))).structure
    noise = np.random.default_rng(0).normal(size=(300, 10))
    told = advise(*swept(noise))
    assert not told.structure
    assert told.verdict.startswith("Hardly any structure")
    strewn = advise(*swept(noise), contiguity={2: 0.01, 3: -0.02})
    assert strewn.verdict.startswith("No structure")
    bent = advise(*swept(noise), contiguity={2: 0.8})
    assert bent.structure
    assert "bent grains" in bent.verdict


def test_nothing_scored_is_said():
    assert advise([], [], []).k == ()
    assert not advise([], [], []).structure


@pytest.mark.parametrize("k", [3, 9])
def test_a_k_that_was_asked_for_is_described_too(k):
    found = advise([2, 3, 4], [0.6, 0.5, 0.4], [9.0, 8.0, 7.0], suggested=[k])
    assert found.reasons == (f"K = {k}: asked for; no score peaks here.",)
