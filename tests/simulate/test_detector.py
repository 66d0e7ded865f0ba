import re

import fabio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.simulate.crystal import reciprocal_basis
from laue_dask.simulate.detector import DETECTORS, Detector, blind_pixels, detector, lauetools_geometry, xmas_geometry
from laue_dask.simulate.materials import CRYSTALS
from laue_dask.simulate.pattern import spots


def read_ind(path):
    """Table of indexed reflections and the matrix hkl → G (1/nm; XMAS axes: beam along Z, up along Y) of an `.IND`."""
    lines = path.read_text().splitlines()
    n = int(lines[3].split(":")[1])
    table = np.array([[float(v) for v in line.split()] for line in lines[5 : 5 + n]])
    start = lines.index("matrix h  k  l -> X  Y  Z") + 1
    return table, np.array([[float(v) for v in line.split()] for line in lines[start : start + 3]])


def read_fit(path):
    """Table, UB·B0 matrix (1/Å, LaueTools axes), the five geometry numbers, pixel in mm, and shape of a `.fit`."""
    text = path.read_text()

    def numbers(line):
        return [float(v) for v in re.findall(r"-?\d+\.?\d*(?:e[-+]?\d+)?", line)]

    def after(title, count):
        start = text.index(title)
        return [numbers(line) for line in text[start:].splitlines()[1 : 1 + count]]

    table = np.array([[float(v) for v in line.split()[:15]] for line in text.splitlines() if line[:1].isdigit()])
    shape = tuple(int(v) for v in after("#Frame dimensions", 1)[0])
    matrix = np.array(after("#UBB0 matrix", 3))
    return table, matrix, after("#DetectorParameters", 1)[0], after("#pixelsize", 1)[0][0], shape


def diffracted(g):
    return np.array([1.0, 0, 0]) - 2 * g[:, :1] * g / (g**2).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("number", [1, 2, 20])
def test_xmas_indexation_of_a_silicon_frame_is_reproduced(data_dir, number):
    table, matrix = read_ind(data_dir / "results" / "xmas" / f"results_{number:05d}.IND")
    g = (table[:, 2:5] @ matrix.T)[:, [2, 0, 1]]
    row, column = DETECTORS["pilatus1m"].project(diffracted(g))
    # XMAS lists the measured position and its deviation from the calculated one (at most 2.1 pixels, its own misfit).
    np.testing.assert_allclose(1043 - row, table[:, 0] + table[:, 6], atol=0.05)
    np.testing.assert_allclose(column + 1, table[:, 1] + table[:, 7], atol=0.05)


def test_simulated_silicon_has_every_spot_that_xmas_indexed(data_dir):
    table, matrix = read_ind(data_dir / "results" / "xmas" / "results_00001.IND")
    orientation = (matrix @ np.linalg.inv(reciprocal_basis(CRYSTALS["Si"]) * 10))[[2, 0, 1]]
    found = spots(CRYSTALS["Si"], orientation, DETECTORS["pilatus1m"])
    for x, y, *hkl, _, dx, dy, energy in table[:, :9]:
        distance = np.hypot(1043 - found.row - x - dx, found.column + 1 - y - dy)
        nearest = distance.argmin()
        assert distance[nearest] < 0.1
        order = np.linalg.norm(found.hkl[nearest]) / np.linalg.norm(hkl)
        np.testing.assert_allclose(found.hkl[nearest], order * np.array(hkl), atol=1e-6)
        assert found.energy_keV[nearest] == pytest.approx(order * energy, abs=0.03)


def test_real_spots_lie_where_the_calibration_puts_them(data_dir):
    image = fabio.open(data_dir / "frames" / "als_1232" / "SiHyperlaueFinal_1_00001.tif").data
    table, _ = read_ind(data_dir / "results" / "xmas" / "results_00015.IND")
    background = np.median(image)
    seen = 0
    for x, y in table[:, :2]:
        row, column = round(1043 - x), round(y - 1)
        seen += image[row - 2 : row + 3, column - 2 : column + 3].max() > background + 200
    assert seen >= 31


@pytest.mark.parametrize("name", ["Ge_blanc_0000_LT_5", "AH12_CMT_r14_0200_LT_0"])
def test_lauetools_fit_is_reproduced(data_dir, name):
    table, matrix, calibration, pixel_mm, shape = read_fit(data_dir / "results" / "lauetools" / f"{name}.fit")
    screen = Detector(name, shape, (pixel_mm * 1e3,) * 2, *lauetools_geometry(*calibration))
    row, column = screen.project(diffracted(table[:, 2:5] @ matrix.T))
    np.testing.assert_allclose(column + 1, table[:, 5], atol=0.02)
    np.testing.assert_allclose(row + 1, table[:, 6], atol=0.02)
    assert np.abs(column + 1 - table[:, 7]).max() < 2
    assert np.abs(row + 1 - table[:, 8]).max() < 2


def test_lauetools_spot_list_of_the_silicon_substrate_is_reproduced(data_dir):
    listed = np.load(data_dir / "maps" / "GaN_Si_nw1_61x61_spots.npz")
    indexed = np.load(data_dir / "maps" / "GaN_Si_nw1_61x61.npz")
    chosen = (listed["point"] == 0) & (listed["slot"] == 0)
    found = spots(CRYSTALS["Si"], indexed["UB_orientation"][0, 0, 0].astype(float), DETECTORS["scmos"])
    positions = np.stack([found.column + 1, found.row + 1], axis=1)
    wanted = np.stack([listed["x"], listed["y"]], axis=1)[chosen]
    nearest = np.linalg.norm(positions[None] - wanted[:, None], axis=2).min(axis=1)
    # (3 -15 7) at 21.6 keV is too weak for our tables; the list does not look at intensities.
    assert np.sort(nearest)[-2] < 0.05
    assert len(found.row) in (len(wanted) - 1, len(wanted))


@pytest.mark.parametrize("name", list(DETECTORS))
@settings(max_examples=20, deadline=None)
@given(u=st.floats(0, 1), v=st.floats(0, 1), tilt=st.floats(-5, 5))
def test_project_inverts_directions(name, u, v, tilt):
    base = DETECTORS[name]
    geometry = xmas_geometry(120.0, 500.0, 300.0, tilt, -2 * tilt)
    for screen in (base, Detector("tilted", base.shape, base.pixel_um, *geometry)):
        wanted = u * screen.shape[0], v * screen.shape[1]
        direction = screen.directions(*wanted)
        assert np.linalg.norm(direction) == pytest.approx(1)
        np.testing.assert_allclose(screen.project(direction), wanted, atol=1e-6)


def test_rays_away_from_the_detector_hit_nothing():
    row, column = DETECTORS["scmos"].project(np.array([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]]))
    assert np.isnan([row[0], column[0]]).all()
    assert np.isfinite([row[1], column[1]]).all()


def test_blind_pixels_are_the_module_gaps_of_a_real_frame(data_dir):
    image = fabio.open(data_dir / "frames" / "als_1232" / "SiHyperlaueFinal_1_00001.tif").data
    expected = np.zeros(image.shape, dtype=bool)
    expected[(image <= 0).all(axis=1)] = True
    expected[:, (image <= 0).all(axis=0)] = True
    mask = np.zeros(image.shape, dtype=bool)
    mask.flat[blind_pixels(DETECTORS["pilatus1m"])] = True
    np.testing.assert_array_equal(mask, expected)


def test_round_screen_sees_nothing_in_its_corners():
    mask = np.zeros((2048, 2048), dtype=bool)
    mask.flat[blind_pixels(DETECTORS["marccd165"])] = True
    assert mask[0, 0]
    assert not mask[1024, 0]
    assert mask.mean() == pytest.approx(1 - np.pi / 4, abs=1e-3)


def test_binned_detector_sees_the_same_rays_in_larger_pixels():
    base = DETECTORS["pilatus1m"]
    half = base.binned(2)
    assert half.shape == (521, 490)
    direction = base.directions([100.5, 700.5], [200.5, 801.5])
    row, column = half.project(direction)
    np.testing.assert_allclose(row, [50, 350])
    np.testing.assert_allclose(column, [100, 400.5])


def test_unknown_detector_is_refused():
    with pytest.raises(InputError, match="'polaroid' is unknown: choose one of pilatus1m"):
        detector("polaroid")
