from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import label

from laue_dask.errors import InputError
from laue_dask.evaluation.map_scores import approximation_errors, contiguity, domain_statistics, domains, shuffled


@st.composite
def label_maps(draw):
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(draw(st.sampled_from([-1, 0])), draw(st.integers(1, 4)), shape)


@given(label_maps())
def test_contiguity_counts_the_pairs_of_equal_neighbours(labels):
    found = contiguity(labels)
    pairs = [
        (labels[y, x], labels[v, u])
        for y, x in np.ndindex(labels.shape)
        for v, u in ((y + 1, x), (y, x + 1))
        if v < labels.shape[0] and u < labels.shape[1] and labels[y, x] >= 0 and labels[v, u] >= 0
    ]
    if not pairs:
        assert np.isnan(found.share)
        return
    assert found.share == pytest.approx(np.mean([one == two for one, two in pairs]))
    assert found.score <= 1 + 1e-12 or np.isnan(found.score)
    if found.share == 1 and found.expected < 1:
        assert found.score == pytest.approx(1)


def test_shuffled_labels_are_as_contiguous_as_expected():
    labels = np.random.default_rng(0).integers(0, 3, (30, 30))
    labels[:, 20:] = 1
    labels[:5, :5] = -1
    null = shuffled(labels, draws=200)
    found = contiguity(labels)
    assert null.mean() == pytest.approx(found.expected, abs=4 * null.std() / np.sqrt(200))
    assert found.share > null.max()
    assert np.array_equal(null, shuffled(labels, draws=200))


@given(label_maps())
def test_domains_are_the_connected_regions_of_equal_labels(labels):
    found = domains(labels)
    assert np.array_equal(found < 0, labels < 0)
    expected = sum(label(labels == kind)[1] for kind in np.unique(labels[labels >= 0]))
    assert len(np.unique(found[found >= 0])) == expected
    for region in range(expected):
        mask = found == region
        assert label(mask)[1] == 1
        assert len(np.unique(labels[mask])) == 1
    sizes = np.bincount(found[found >= 0])
    assert (np.diff(sizes) <= 0).all()
    told = domain_statistics(labels, small=3)
    assert told["domains"] == expected
    if expected:
        assert told["largest_size"] == sizes[0]
        assert told["in_small"] == pytest.approx(sizes[sizes < 3].sum() / sizes.sum())


def test_the_more_delegates_the_better_they_stand_for_the_map():
    truth = np.add.outer(np.arange(8.0), 10 * np.arange(12.0))
    index = np.arange(96).reshape(8, 12)
    segmentations = []
    for step in (12, 4, 2, 1):
        labels = np.broadcast_to(np.arange(12) // step, (8, 12))
        segmentations.append((labels, np.array([index[4, step * i] for i in range(12 // step)])))
    rows = approximation_errors(truth, segmentations)
    assert [row["k"] for row in rows] == [1, 3, 6, 12]
    assert all(one["mse"] > two["mse"] for one, two in pairwise(rows))
    assert rows[-1]["mse"] == pytest.approx(np.mean((np.arange(8) - 4.0) ** 2))
    exact = approximation_errors(truth, [(index, index.ravel())])[0]
    assert (exact["mse"], exact["ks"]) == (0, 0)
    with pytest.raises(InputError, match="3 dimensions"):
        approximation_errors(truth[..., None], segmentations)
