"""A command that has said nothing for a while says what it is at."""

import time

import pytest

from laue_dask.runtime import silence


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(silence, "FIRST_LINE_S", 0.2)
    monkeypatch.setattr(silence, "MAX_SILENCE_S", 0.4)
    silence.listen("run")
    yield
    silence.end()


def wait_for_line(capsys, seconds=20.0):
    said, begun = "", time.monotonic()
    while not said and time.monotonic() - begun < seconds:
        time.sleep(0.05)
        said = capsys.readouterr().err
    return said


def test_a_silence_is_broken_with_what_is_being_done(impatient, capsys):
    assert wait_for_line(capsys).startswith("run: loading libraries (")
    with silence.doing("scores"):
        assert "run: scores (" in wait_for_line(capsys)
    assert "run: loading libraries (" in wait_for_line(capsys)


def test_nothing_is_said_beside_a_moving_bar_or_after_the_end(impatient, capsys):
    with silence.animated():
        capsys.readouterr()
        assert wait_for_line(capsys, seconds=1.0) == ""
    silence.end()
    time.sleep(0.3)
    capsys.readouterr()
    assert wait_for_line(capsys, seconds=1.0) == ""
