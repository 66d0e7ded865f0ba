import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from laue_dask.simulate.crystal import misorientation
from laue_dask.simulate.training import MAX_HARD_ANGLE_DEG, MAX_OVERLAPPING_GRAINS, experiment, training_frame


def test_training_frame_follows_from_its_five_numbers():
    first, detector = training_frame(0, 3, 7, 1, binning=2)
    experiment.cache_clear()
    training_frame(0, 4, 0, 0, binning=2)
    again, _ = training_frame(0, 3, 7, 1, binning=2)
    np.testing.assert_array_equal(first, again)
    assert first.shape == detector.shape
    assert first.dtype == np.dtype(detector.dtype)


def test_views_and_configurations_differ():
    a, _ = training_frame(1, 0, 5, 0, binning=2)
    assert not np.array_equal(a, training_frame(1, 0, 5, 1, binning=2)[0])
    assert not np.array_equal(a, training_frame(1, 0, 6, 0, binning=2)[0])


def test_configurations_hold_independent_twinned_and_slightly_turned_orientations():
    close, overlapping = 0, 0
    for number in range(3):
        made = experiment(2, number)
        assert len(made.configurations) == 32
        first = [c[0] for c in made.configurations]
        angles = [
            misorientation(first[i].crystal, first[i].orientation, first[j].orientation)
            for i in range(32)
            for j in range(i)
        ]
        close += sum(2.49 * made.jitter_deg < angle < MAX_HARD_ANGLE_DEG + 0.01 for angle in angles)
        overlapping += sum(len(c) > 1 for c in made.configurations)
        for configuration in made.configurations:
            assert sum(g.weight for g in configuration) == pytest.approx(1)
            assert 1 <= len(configuration) <= MAX_OVERLAPPING_GRAINS
    assert close >= 3 * 5
    assert overlapping >= 5


def test_views_of_a_configuration_are_more_alike_than_configurations():
    made = experiment(11, 0, binning=2, detector="pilatus1m")

    def blurred(configuration, view):
        frame = made.frame(configuration, view)
        smooth = gaussian_filter((frame > np.quantile(frame, 0.998)).astype(float), 2)
        return (smooth - smooth.mean()).ravel() / smooth.std()

    independent = (0, 4, 8)
    views = {(c, v): blurred(c, v) for c in independent for v in (0, 1)}
    same = [np.mean(views[c, 0] * views[c, 1]) for c in independent]
    different = [np.mean(views[a, 0] * views[b, 1]) for a in independent for b in independent if a != b]
    assert np.mean(same) > np.mean(different) + 0.1


def test_half_size_frames_are_an_option_and_real_sizes_the_default():
    assert experiment(0, 0, detector="pilatus1m").detector.shape == (1043, 981)
    assert experiment(0, 0, detector="pilatus1m", binning=2).detector.shape == (521, 490)


def test_experiments_vary_in_detector_phase_and_brightness():
    made = [experiment(3, number, n_configurations=4) for number in range(40)]
    assert {m.detector.name for m in made} == {"pilatus1m", "pilatus6m", "scmos", "marccd165"}
    assert len({m.configurations[0][0].crystal for m in made}) > 20
    assert len({m.detector.origin for m in made}) == 40
    assert min(m.jitter_deg for m in made) < 0.2 < 0.7 < max(m.jitter_deg for m in made)
