from dataclasses import replace

import fabio
import numpy as np
import pytest

from laue_dask.errors import InputError
from laue_dask.simulate.conditions import Conditions, smooth_variation
from laue_dask.simulate.detector import DETECTORS
from laue_dask.simulate.pattern import Exposure, spots
from laue_dask.simulate.scan import acquired_point, default_exposure, frame, frame_name, write_frame, write_scan
from laue_dask.simulate.specimens import specimen

PILATUS = DETECTORS["pilatus1m"]
CAMERA = DETECTORS["scmos"]


@pytest.fixture(scope="module")
def grains():
    return specimen("grains", (3, 4), 0)


@pytest.mark.parametrize("name", ["pilatus1m", "scmos", "marccd165"])
def test_written_frame_reads_back_as_it_was(grains, tmp_path, name):
    path = tmp_path / "one.tif"
    write_frame(grains, DETECTORS[name], 5, path, seed=7)
    read = fabio.open(path).data
    expected = frame(grains, DETECTORS[name], 5, seed=7)
    assert read.dtype == expected.dtype
    np.testing.assert_array_equal(read, expected)
    assert [p.name for p in tmp_path.iterdir()] == ["one.tif"]


def test_pilatus_header_is_that_of_a_real_frame(grains, tmp_path, data_dir):
    path = tmp_path / "one.tif"
    write_frame(grains, PILATUS, 6, path, seed=0)
    ours, real = fabio.open(path), fabio.open(data_dir / "frames" / "als_1232" / "SiHyperlaueFinal_1_00001.tif")
    assert type(ours) is type(real)
    assert set(ours.header) == set(real.header)
    for key in ("Pixel_size", "Exposure_time", "Tau", "Count_cutoff", "Flat_field"):
        assert ours.header[key] == real.header[key]
    x, y, *others = (float(v) for v in ours.header["Comment"].split())
    assert (x, y) == (6.01, 6.005)
    assert len(others) == len(real.header["Comment"].split()) - 2


def test_camera_header_holds_the_stage_position(grains, tmp_path):
    path = tmp_path / "one.tif"
    write_frame(grains, CAMERA, 6, path, seed=0)
    description = fabio.open(path).header["imageDescription"]
    assert description.startswith("0 (Xech=6.0100 Yech=6.0050 Zech=")
    assert description.endswith("exposure=2.500)")


def test_frames_are_the_same_in_any_order(grains):
    forward = [frame(grains, PILATUS, i, seed=3) for i in (0, 1)]
    backward = [frame(grains, PILATUS, i, seed=3) for i in (1, 0)][::-1]
    np.testing.assert_array_equal(forward, backward)
    assert not np.array_equal(forward[0], frame(grains, PILATUS, 0, seed=4))


def test_scan_in_snake_order_numbers_the_frames_as_they_were_recorded(grains, tmp_path):
    calls = []
    write_scan(grains, PILATUS, tmp_path, seed=1, prefix="s", order="snake", numbers=[0, 4, 5], progress=calls.append)
    assert calls == [1, 2, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s_00001.tif", "s_00005.tif", "s_00006.tif", "truth.npz"]
    np.testing.assert_array_equal(fabio.open(tmp_path / "s_00005.tif").data, frame(grains, PILATUS, 7, seed=1))
    assert [acquired_point(grains, n, order="snake") for n in range(12)] == [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11]
    assert [acquired_point(grains, n) for n in range(12)] == list(range(12))
    assert frame_name("nw", CAMERA, 0) == "nw_00000.tif"


def test_truth_is_complete_and_without_pickles(grains, tmp_path):
    write_scan(grains, PILATUS, tmp_path, seed=0, numbers=[])
    with np.load(tmp_path / "truth.npz", allow_pickle=False) as truth:
        np.testing.assert_array_equal(truth["domain"], grains.domain)
        np.testing.assert_array_equal(truth["angle"], grains.angle)
        np.testing.assert_array_equal(truth["edge"], grains.edge)
        np.testing.assert_array_equal(truth["orientation"], grains.orientations)
        assert truth["crystal"].tolist() == ["Cu"] * len(grains.crystals)
        assert truth["cell"].shape == (len(grains.crystals), 6)


def test_simulated_frame_resembles_a_real_one(data_dir):
    real = fabio.open(data_dir / "frames" / "als_1232" / "SiHyperlaueFinal_1_00001.tif").data
    made = frame(specimen("twins", (10, 10), 0), PILATUS, 44, seed=0, exposure=Exposure())
    assert made.shape == real.shape
    assert made.dtype == real.dtype
    assert made.min() == real.min()
    assert 0.5 < np.median(made) / np.median(real) < 2
    assert (made == 0).mean() == pytest.approx((real == 0).mean(), abs=0.01)
    assert 1e4 < made.max() < 1e6


def test_repeated_frame_shows_the_same_with_other_noise(grains):
    own, first, second = (frame(grains, PILATUS, 5, seed=3, repeat=repeat) for repeat in (0, 1, 2))
    np.testing.assert_array_equal(own, frame(grains, PILATUS, 5, seed=3))
    for one, other in ((own, first), (own, second), (first, second)):
        assert (one != other).mean() > 0.5
        bright = np.minimum(one, other) > 200
        assert bright.sum() > 50
        ratio = one[bright].sum() / other[bright].sum()
        assert ratio == pytest.approx(1, abs=0.025)
        assert ratio != 1


def test_counting_time_scales_signal_and_background(grains):
    short = replace(grains, conditions=Conditions(time=0.1))
    usual, dim = (frame(made, PILATUS, 5, seed=3).astype(float) for made in (grains, short))
    live = (usual >= 0) & (usual < 1e6)
    # Hot pixels count by themselves.
    hot = np.argsort(usual[live])[::-1][:3]
    kept = np.delete(np.arange(live.sum()), hot)
    assert dim[live][kept].mean() == pytest.approx(0.1 * usual[live][kept].mean(), rel=0.05)


def test_beam_and_background_drift_from_row_to_row(grains):
    rng = np.random.default_rng(1)
    drift = Conditions(background=smooth_variation(0.2, 5.0, rng, along_x=False))
    made = replace(grains, conditions=drift)
    medians = np.array([np.median(frame(made, PILATUS, point, seed=3)) for point in (0, 4, 8)])
    levels = np.array([drift.background.at(made.place(point)) for point in (0, 4, 8)])
    steady = np.median(frame(grains, PILATUS, 0, seed=3))
    np.testing.assert_allclose(medians, levels * steady, rtol=0.15, atol=1.5)


def test_narrow_band_leaves_few_spots():
    made = specimen("few_spots", (3, 4), 0)
    for grain in made.at(0):
        assert 3 <= len(spots(grain.crystal, grain.orientation, PILATUS, energy_range_keV=(8.0, 14.0)).row) <= 9
    wide = replace(made, conditions=Conditions())
    assert (frame(made, PILATUS, 0, seed=0) > 300).sum() < (frame(wide, PILATUS, 0, seed=0) > 300).sum()


def test_default_exposure_suits_the_detector():
    assert default_exposure(PILATUS).background[1] < default_exposure(CAMERA).background[1]


def test_point_outside_the_specimen_is_refused(grains):
    with pytest.raises(InputError, match="point 12: specimen 'grains' of shape \\(3, 4\\) has points 0 to 11"):
        frame(grains, PILATUS, 12, seed=0)
