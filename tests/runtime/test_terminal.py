"""Lines on stderr, for people and for programs."""

import json
import re
from contextlib import suppress
from datetime import datetime

import pytest

from laue_dask.runtime import activity, terminal
from laue_dask.runtime.line_progress import AnnouncedProgress

LINES = (("debug", "a detail"), ("info", "a line"), ("warning", "a doubt"), ("error", "an end"))


@pytest.fixture(autouse=True)
def _as_before():
    yield
    terminal.configure()


def printed(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


@pytest.mark.parametrize(
    ("minimum", "lines"),
    [
        ("debug", ["a detail", "a line", "warning: a doubt", "laue-dask: an end"]),
        ("info", ["a line", "warning: a doubt", "laue-dask: an end"]),
        ("warning", ["warning: a doubt", "laue-dask: an end"]),
    ],
)
def test_only_lines_that_are_important_enough_are_printed(capsys, minimum, lines):
    terminal.configure(minimum=minimum)
    for level, message in LINES:
        terminal.announce(message, level=level)
    assert printed(capsys) == lines


def test_json_lines_tell_time_level_stage_and_message_whatever_that_holds(capsys):
    terminal.configure(as_json=True)
    with activity.note_activity("scores", activity.Stage("scores", 5, 9)):
        terminal.announce('a\n"b"\x1b[2J\udcff', level="warning", total=3)
    terminal.announce("over")
    first, last = map(json.loads, printed(capsys))
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {
        "level": "warning",
        "stage": "scores",
        "stage_number": 5,
        "stages": 9,
        "total": 3,
        "message": r'a\n"b"\x1b[2J\udcff',
    }
    assert set(last) == {"time", "level", "message"}


def test_progress_as_json_has_its_numbers(capsys):
    terminal.configure(as_json=True)
    with AnnouncedProgress().stage("encode", total=8, done=2) as advance:
        advance(6)
    with suppress(ValueError), AnnouncedProgress().stage("scores", total=4, unit="K") as advance:
        advance(1)
        raise ValueError("broken")
    lines = [json.loads(line) for line in printed(capsys)]
    assert [(one["activity"], one["done"], one["total"], one["unit"]) for one in lines] == [
        ("encode", 2, 8, "patterns"),
        ("encode", 8, 8, "patterns"),
        ("scores", 0, 4, "K"),
        ("scores", 1, 4, "K"),
    ]
    assert re.match("scores: stopped after 1 of 4 K", lines[-1]["message"])


def test_a_silence_is_broken_in_json_where_that_is_asked_for(capsys, monkeypatch):
    monkeypatch.setattr(activity, "FIRST_LINE_S", 0.05)
    terminal.configure(as_json=True)
    activity.start("run", terminal.announce)
    try:
        said = first_said(capsys)
    finally:
        activity.stop()
    assert json.loads(said.splitlines()[0])["message"].startswith("run: loading libraries (0 s")


def first_said(capsys):
    for _ in range(400):
        if said := capsys.readouterr().err:
            return said
        activity._now.ended.wait(0.05)
    raise AssertionError("nothing was said")
