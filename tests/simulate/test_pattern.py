import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.reduction.detector_mask import detector_mask
from laue_dask.simulate.crystal import (
    HC_KEV_ANGSTROM,
    random_orientations,
    reciprocal_basis,
    rotation_about,
    structure_factors,
    symmetry_rotations,
)
from laue_dask.simulate.detector import DETECTORS, blind_pixels
from laue_dask.simulate.materials import CRYSTALS
from laue_dask.simulate.pattern import Exposure, Grain, Spots, expose, render, spectrum, spots

PILATUS = DETECTORS["pilatus1m"]
CAMERA = DETECTORS["scmos"]


def one_spot(row, column, intensity=1.0):
    one = np.array([row], dtype=float), np.array([column], dtype=float), np.array([intensity]), np.array([10.0])
    return Spots(*one, np.array([[1, 1, 1]], dtype=np.int16), np.zeros((1, 2)))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_spots_are_where_braggs_law_puts_them(seed):
    tungsten = CRYSTALS["W"]
    u = random_orientations(1, np.random.default_rng(seed))[0]
    expected = {}
    limit = range(-12, 13)
    for hkl in (
        (h, k, m) for h in limit for k in limit for m in limit if (h + k + m) % 2 == 0 and (h, k, m) != (0, 0, 0)
    ):
        g = u @ reciprocal_basis(tungsten) @ hkl
        if g[0] >= 0:
            continue
        energy = HC_KEV_ANGSTROM * (g @ g) / (-2 * g[0])
        k_out = np.array([1, 0, 0]) + g * HC_KEV_ANGSTROM / energy
        row, column = PILATUS.project(k_out)
        if 5 <= energy <= 23 and 0 <= row <= 1042 and 0 <= column <= 980:
            expected.setdefault((round(float(row), 1), round(float(column), 1)), []).append((energy, hkl))
    found = spots(tungsten, u, PILATUS)
    weakest = found.intensity < 1e-4 * found.intensity.max()
    for row, column, energy, hkl in zip(found.row, found.column, found.energy_keV, found.hkl, strict=True):
        if not (0 <= row <= 1042 and 0 <= column <= 980):
            continue
        near = [
            candidate
            for (r, c), group in expected.items()
            if abs(r - row) < 0.2 and abs(c - column) < 0.2
            for candidate in group
        ]
        assert any(abs(e - energy) < 0.01 and tuple(hkl) == h for e, h in near)
    assert len(found.row) >= len(expected) - weakest.sum() - 3


def test_harmonics_are_one_spot_with_the_sum_of_their_intensities():
    silicon = CRYSTALS["Si"]
    # (111) into 2θ = 90°: its harmonics 333, 444, … lie in the band together
    up = np.array([-1, 0, 1]) / np.sqrt(2)
    normal = np.array([1, 1, 1]) / np.sqrt(3)
    axis = np.cross(normal, up)
    u = rotation_about(axis, np.degrees(np.arccos(normal @ up)))
    found = spots(silicon, u, PILATUS, energy_range_keV=(5, 23))
    narrow = [spots(silicon, u, PILATUS, energy_range_keV=band) for band in ((5, 9.5), (9.5, 12), (12, 23))]
    row, column = PILATUS.project(np.array([0.0, 0.0, 1.0]))

    def at_normal(some):
        return some.intensity[np.hypot(some.row - row, some.column - column) < 0.5]

    assert len(at_normal(found)) == 1
    assert at_normal(found)[0] == pytest.approx(sum(at_normal(part).sum() for part in narrow), rel=1e-6)


def test_symmetrically_equivalent_orientations_give_the_same_pattern():
    for name in ("Si", "BaTiO3", "Ti"):
        phase = CRYSTALS[name]
        u = random_orientations(1, np.random.default_rng(3))[0]
        reference = spots(phase, u, PILATUS)
        order = np.lexsort((reference.column, reference.row))
        for operation in symmetry_rotations(phase).as_matrix()[::3]:
            other = spots(phase, u @ operation, PILATUS)
            same = np.lexsort((other.column, other.row))
            np.testing.assert_allclose(other.row[same], reference.row[order], atol=0.01)
            # barium titanate is polar: only its centrosymmetric average has the full symmetry of the lattice
            np.testing.assert_allclose(other.intensity[same], reference.intensity[order], rtol=0.02, atol=1e-3)


def test_smear_is_the_path_of_a_spot_over_the_spread():
    phase, u = CRYSTALS["Cu"], random_orientations(1, np.random.default_rng(4))[0]
    spread = np.array([0.1, -0.3, 0.2])
    found = spots(phase, u, PILATUS, spread=spread)
    angle = np.linalg.norm(spread)
    ends = [spots(phase, rotation_about(spread, sign * angle / 2) @ u, PILATUS) for sign in (1, -1)]
    compared = 0
    for hkl, smear in zip(found.hkl, found.smear, strict=True):
        pair = [np.flatnonzero((end.hkl == hkl).all(axis=1)) for end in ends]
        if all(len(p) == 1 for p in pair):
            moved = [end.row[p[0]] for end, p in zip(ends, pair, strict=True)]
            assert smear[0] == pytest.approx(moved[0] - moved[1], abs=0.01)
            compared += 1
    assert compared > 10


def test_polarisation_and_structure_factor_order_the_intensities():
    silicon = CRYSTALS["Si"]
    u = random_orientations(1, np.random.default_rng(0))[0]
    found = spots(silicon, u, PILATUS)
    assert (found.intensity > 0).all()
    factors = np.abs(structure_factors(silicon, found.hkl))
    assert np.corrcoef(np.log(found.intensity), np.log(factors))[0, 1] > 0.6


def test_spectrum_is_one_at_most_and_ends_at_the_mirror():
    energy = np.linspace(3, 30, 200)
    flux = spectrum(energy)
    assert 0.3 < flux.max() <= 1
    assert flux[energy > 25].max() < 0.01
    assert flux[energy < 3.2].max() < 0.1


def test_pattern_without_spots_is_empty_and_renders():
    empty = spots(CRYSTALS["W"], np.eye(3), PILATUS, energy_range_keV=(5.0, 5.001))
    assert empty.row.shape == (0,)
    assert empty.smear.shape == (0, 2)
    frame = render([(empty, 1.0)], PILATUS, Exposure(), rng=np.random.default_rng(0))
    assert frame.shape == (1043, 981)


def test_rendered_spot_has_its_counts_and_its_place():
    exposure = Exposure(counts=50_000, background=(0.0, 0.0))
    frame = render([(one_spot(300.3, 700.6), 0.5)], PILATUS, exposure, rng=np.random.default_rng(0))
    window = frame[280:322, 680:722].astype(float)
    assert window.sum() == pytest.approx(25_000, rel=0.05)
    assert (window.sum(axis=1) @ np.arange(280, 322)) / window.sum() == pytest.approx(300.3, abs=0.1)
    assert (window.sum(axis=0) @ np.arange(680, 722)) / window.sum() == pytest.approx(700.6, abs=0.1)


def test_photon_counter_reads_zero_in_gaps_and_minus_two_in_dead_pixels_that_stay():
    frames = [
        render([(one_spot(205, 490), 1.0)], PILATUS, Exposure(background=(5.0, 9.0)), rng=np.random.default_rng(seed))
        for seed in (0, 1)
    ]
    dead = frames[0] == -2
    np.testing.assert_array_equal(dead, frames[1] == -2)
    assert 50 <= dead.sum() <= 54
    gaps = np.zeros(frames[0].shape, dtype=bool)
    gaps.flat[blind_pixels(PILATUS)] = True
    assert (frames[0][gaps & ~dead] == 0).all()
    assert frames[0].min() == -2


def test_camera_has_pedestal_saturation_and_its_dtype():
    exposure = Exposure(counts=5e7, background=(0.0, 20.0))
    frame = render([(one_spot(500.0, 500.0), 1.0)], CAMERA, exposure, rng=np.random.default_rng(0))
    assert frame.dtype == np.uint16
    assert frame[500, 500] == 65_535
    assert abs(np.median(frame[1500:, 1500:]) - 1000) < 15


def test_camera_spot_has_its_counts():
    exposure = Exposure(counts=20_000, background=(0.0, 0.0))
    frame = render([(one_spot(500.0, 500.0), 1.0)], CAMERA, exposure, rng=np.random.default_rng(0))
    assert (frame[470:531, 470:531].astype(float) - 1000).sum() == pytest.approx(20_000, rel=0.05)


def test_exposing_grains_is_rendering_their_spots():
    u = random_orientations(2, np.random.default_rng(9))
    grains = [Grain(CRYSTALS["Cu"], u[0], 0.7, np.zeros(3)), Grain(CRYSTALS["Si"], u[1], 0.3, np.array([0.1, 0, 0]))]
    exposure = replace(Exposure(), counts=1e4)
    together = expose(grains, PILATUS, exposure, rng=np.random.default_rng(2))
    patterns = [(spots(g.crystal, g.orientation, PILATUS, spread=g.spread), g.weight) for g in grains]
    np.testing.assert_array_equal(together, render(patterns, PILATUS, exposure, rng=np.random.default_rng(2)))


def test_hot_pixels_are_the_same_in_every_frame_and_found_from_the_scan():
    quiet = dataclasses.replace(DETECTORS["pilatus1m"], hot_pixels=0, bad_pixels=0)
    hot = dataclasses.replace(quiet, hot_pixels=20)
    exposure = Exposure(background=(1.0, 3.0))
    frames = [
        [render([], detector, exposure, rng=np.random.default_rng(i)) for i in range(6)] for detector in (quiet, hot)
    ]
    differs = np.array(frames[0]) != np.array(frames[1])
    assert (differs.all(axis=0) == differs.any(axis=0)).all()
    assert 15 <= differs[0].sum() <= 20
    found = detector_mask(np.stack(frames[1])) & ~detector_mask(np.stack(frames[0]))
    np.testing.assert_array_equal(found, differs[0])
