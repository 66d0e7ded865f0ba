import numpy as np
import pytest

from laue_dask.config import Recipe
from laue_dask.errors import InputError
from laue_dask.simulate.reduced import ReducedPairs, ReducedScan, reduced_pairs, reduced_scan
from laue_dask.simulate.specimens import specimen


@pytest.fixture(scope="module")
def scan():
    return reduced_scan("twins", "pilatus1m", (5, 6), 7, Recipe())


def likeness(one, other):
    return np.corrcoef(one.astype(float).ravel(), other.astype(float).ravel())[0, 1]


def test_reduced_scan_has_the_truth_of_its_specimen(scan):
    made = specimen("twins", (5, 6), 7)
    assert scan.patterns.shape == (30, 128, 128)
    np.testing.assert_array_equal(scan.domain, made.domain)
    np.testing.assert_array_equal(scan.edge, made.edge)
    # Points of one domain look alike, those of two do not.
    inside = np.flatnonzero(~made.edge.ravel())
    domains = made.domain.ravel()[inside]
    same, other = inside[domains == domains[0]], inside[domains != domains[0]]
    alike = likeness(scan.patterns[same[0]], scan.patterns[same[1]])
    assert alike > likeness(scan.patterns[same[0]], scan.patterns[other[0]])


def test_repeats_are_the_same_points_with_other_noise(scan):
    assert scan.repeated.tolist() == list(range(0, 30, 4))
    for repeat, point in zip(scan.repeats, scan.repeated, strict=True):
        assert (repeat != scan.patterns[point]).any()
        assert likeness(repeat, scan.patterns[point]) > 0.85


def test_scan_and_pairs_come_back_as_they_were_kept(scan, tmp_path):
    pairs = reduced_pairs([2.0], 1, Recipe())
    for made, kind in ((scan, ReducedScan), (pairs, ReducedPairs)):
        made.save(tmp_path / "kept.npz")
        found = kind.load(tmp_path / "kept.npz")
        for name, value in vars(made).items():
            np.testing.assert_array_equal(getattr(found, name), value)
            assert getattr(found, name).dtype == value.dtype
    assert pairs.base.shape == pairs.turned[:, 0].shape
    assert pairs.turned.shape[1] == 1
    # Two degrees move every spot by several pixels of the reduced pattern; noise moves none.
    for base, turned in zip(pairs.base, pairs.turned[:, 0], strict=True):
        assert likeness(base[0], base[1]) > likeness(base[0], turned[0]) + 0.2


def test_unknown_specimen_or_detector_is_refused():
    with pytest.raises(InputError, match="sponge"):
        reduced_scan("sponge", "pilatus1m", (3, 3), 0, Recipe())
    with pytest.raises(InputError, match="polaroid"):
        reduced_scan("grains", "polaroid", (3, 3), 0, Recipe())
