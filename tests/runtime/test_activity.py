"""A command that has said nothing for a while says what it is at."""

import time

import pytest

from laue_dask.runtime import activity


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(activity, "FIRST_LINE_S", 0.2)
    monkeypatch.setattr(activity, "MAX_SILENCE_S", 0.4)
    activity.start("run")
    yield
    activity.stop()


def wait_for_line(capsys, seconds=20.0):
    said, begun = "", time.monotonic()
    while not said and time.monotonic() - begun < seconds:
        time.sleep(0.05)
        said = capsys.readouterr().err
    return said


def test_a_silence_is_broken_with_what_is_being_done(impatient, capsys):
    assert wait_for_line(capsys).startswith("run: loading libraries (")
    with activity.note_activity("scores"):
        assert "run: scores (" in wait_for_line(capsys)
    assert "run: loading libraries (" in wait_for_line(capsys)


def test_nothing_is_said_beside_a_moving_bar_or_after_the_end(impatient, capsys):
    with activity.while_animated():
        capsys.readouterr()
        assert wait_for_line(capsys, seconds=1.0) == ""
    activity.stop()
    time.sleep(0.3)
    capsys.readouterr()
    assert wait_for_line(capsys, seconds=1.0) == ""
