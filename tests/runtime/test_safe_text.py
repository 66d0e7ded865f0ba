import csv
import io
import logging
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from laue_dask.commands import main
from laue_dask.pipeline.stages.grains import _write
from laue_dask.report import html
from laue_dask.runtime.safe_text import echo, echo_lines, escape, printable, printable_lines, spreadsheet_cells

HOSTILE = "a\x1b[31m\x1b]0;title\x07\r\nlaue-dask: all fine\u202e\u2066gnp\x9b2J\u200b.tif"


@given(st.text())
def test_what_is_printed_is_one_line_of_visible_characters(text):
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert all(unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp") for letter in shown)
    assert not set(shown) & set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c")
    assert printable(shown) == shown
    assert "\n".join(map(printable, text.split("\n"))).replace("\\t", "\t") == printable_lines(text).replace(
        "\\t", "\t"
    )


@pytest.mark.parametrize("name", ["img_0001.tif", "µ-Laue 2 × 3/été.tif", "漢字.tif", "a\\b"])
def test_names_that_are_visible_stay_as_they_are(name):
    assert printable(name) == name


def test_an_echo_is_one_line(capsys):
    echo(f"set aside: {HOSTILE}", err=True)
    echo_lines(f"one\ntwo {HOSTILE}")
    out, err = capsys.readouterr()
    assert err == (
        "set aside: a\\x1b[31m\\x1b]0;title\\x07\\r\\nlaue-dask: all fine\\u202e\\u2066gnp\\x9b2J\\u200b.tif\n"
    )
    assert "\x1b" not in out


def test_what_is_logged_is_one_line(capsys):
    handler = main.LinesOnTerminal()
    handler.emit(logging.makeLogRecord({"levelno": logging.WARNING, "msg": "left out %s", "args": (HOSTILE,)}))
    err = capsys.readouterr().err
    assert err.startswith("warning: left out a\\x1b[31m")
    assert err.count("\n") == 1


@given(st.text("=+-@\t\r \uff1dab1", max_size=5), st.floats(allow_nan=False))
def test_no_cell_is_a_formula_and_numbers_stay(text, number):
    cells = spreadsheet_cells({"file": text, "x": number})
    assert not cells["file"].lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d"))
    assert cells["x"] == number


def test_tables_of_a_run_hold_no_formulas(tmp_path):
    _write(
        tmp_path / "a.csv", [{"x": -1.5, "n": -2, "file": "=cmd|' /C calc'!A0"}, {"x": 0.0, "n": 0, "file": "-a\nb"}]
    )
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [row["file"] for row in rows] == ["'=cmd|' /C calc'!A0", "'-a\\nb"]
    assert [(row["x"], row["n"]) for row in rows] == [("-1.5", "-2"), ("0", "0")]


def test_pages_hold_neither_markup_nor_unseen_characters():
    assert escape("<b>\u202e\x1b&\n") == "&lt;b&gt;\\u202e\\x1b&amp;\n"
    assert "\u202e" not in html.facts_list({"source": HOSTILE})


@pytest.mark.parametrize("command", ["info", "plan", "run", "verify", "segment"])
def test_commands_show_hostile_names_and_never_send_them_raw(tmp_path, capfd, command, monkeypatch):
    folder = tmp_path / "b\x1b[2J\nlaue-dask: all fine"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / f"img\u202e\x1b_{i}.tif")
    monkeypatch.chdir(tmp_path)
    arguments = [command, str(folder)] + (["--out", str(tmp_path / "out\x1b")] if command == "run" else [])
    main.exit_code(arguments)
    out, err = capfd.readouterr()
    shown = out + err
    assert "\\x1b" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert not any(line.startswith("laue-dask: all fine") for line in shown.splitlines())
