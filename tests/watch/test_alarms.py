import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.features.drift import Drift
from laue_dask.watch.alarms import MAX_KEPT_ALARMS, MIN_AGREEING_FRAMES, MIN_SATURATED_SHARE, Alarms, measure_signal


@pytest.fixture
def said():
    return []


def shown(alarms, signals, saturated=0.0):
    for i, signal in enumerate(signals):
        alarms.see(f"f_{i}.tif", signal, saturated)


def test_lost_beam_is_told_once_and_so_is_its_return(said):
    alarms = Alarms(said.append)
    shown(alarms, [100, 90, 120, 100, 100, 110, 100] + [2.0] * 8 + [1.0] + [95] * MIN_AGREEING_FRAMES)
    assert [line.split(",")[0].split(": 5 frames")[0] for line in said] == [
        "alarm: the beam or the sample is lost",
        "over: the beam is back since f_20.tif",
    ]
    assert alarms.on("beam") is None
    assert alarms.raised[0].message.endswith("9 frames since f_7.tif have 2 % of the usual signal")


def test_single_dark_frames_and_slow_changes_are_no_lost_beam(said):
    alarms = Alarms(said.append)
    shown(alarms, [100, 100, 100, 100, 100, 1, 1, 1, 1, 100, 1, 100, *np.geomspace(100, 5, 400)])
    assert said == []


def test_dark_from_the_first_frame_on_is_not_known_to_be_dark(said):
    shown(Alarms(said.append), [0.0] * 50)
    assert said == []


def test_saturation_is_told_from_some_frames_in_a_row_on(said):
    alarms = Alarms(said.append)
    shown(alarms, [10] * (MIN_AGREEING_FRAMES - 1), 2 * MIN_SATURATED_SHARE)
    shown(alarms, [10], 0.0)
    assert said == []
    shown(alarms, [10] * MIN_AGREEING_FRAMES, 2 * MIN_SATURATED_SHARE)
    assert said == [
        "alarm: the detector saturates: 0.02 % of the pixels of f_4.tif are saturated, in 5 or more frames in a row"
    ]
    shown(alarms, [10] * MIN_AGREEING_FRAMES, 0.0)
    assert said[1:] == ["over: the detector does not saturate any more (f_4.tif)"]


def test_patterns_unlike_the_training_are_told_when_there_are_enough(said):
    alarms = Alarms(said.append)
    reference = {"error_q50": 0.2, "error_q99": 0.4}
    strange, usual = np.full(60, 0.9, np.float32), np.full(600, 0.2, np.float32)
    alarms.compare(Drift.between(strange[:20], reference))
    assert said == []
    alarms.compare(Drift.between(strange, reference))
    alarms.compare(Drift.between(strange, reference))
    assert len(said) == 1
    assert "unlike the training" in said[0]
    alarms.compare(Drift.between(np.concatenate([strange, usual]), reference))
    assert said[1:] == ["over: 9 % of the patterns are unlike the encoder's training"]


@pytest.mark.parametrize(
    ("dtype", "limit", "full"),
    [(np.uint16, None, 65535), (np.int32, 5000.0, 5000), (np.uint32, None, 2**32 - 2), (np.float32, 1e4, 1e4)],
)
def test_saturated_pixels_are_counted_outside_the_mask(dtype, limit, full):
    frame = np.full((100, 100), 10, dtype)
    mask = np.zeros((100, 100), bool)
    mask[:50] = True
    frame[:60, :5] = full
    assert measure_signal(frame, mask, limit)[1] == pytest.approx(50 / 5000)


@given(pedestal=st.integers(0, 1000), level=st.integers(0, 200))
def test_signal_is_that_above_the_pedestal(pedestal, level):
    frame = np.full((80, 80), pedestal, np.int32)
    frame[:, 40:] += level
    assert measure_signal(frame, np.zeros((80, 80), bool))[0] == pytest.approx(level / 2)


def test_frame_without_a_usable_pixel_has_no_signal():
    assert measure_signal(np.ones((8, 8), np.int32), np.ones((8, 8), bool)) == (0.0, 0.0)


def test_a_beam_that_flickers_for_ever_is_told_each_time_and_fills_no_memory():
    said = []
    alarms = Alarms(said.append)
    alarms.begin("files", "too many")
    for i in range(2 * MAX_KEPT_ALARMS):
        alarms.begin("beam", f"lost {i}")
        alarms.begin("beam", f"lost {i}, still")
        alarms.end("beam", f"back {i}")
    assert len(said) == 4 * MAX_KEPT_ALARMS + 1
    assert [alarm.message for alarm in alarms.raised] == [
        "too many",
        *(f"lost {i}, still" for i in range(MAX_KEPT_ALARMS + 1, 2 * MAX_KEPT_ALARMS)),
    ]
