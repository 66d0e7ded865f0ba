"""`run.log`: what was announced, kept in the folder of a run."""

import logging
import re

import pytest

from laue_dask.pipeline import run_log
from laue_dask.pipeline.record import LOG_FILE, STAGE_LOGGER
from laue_dask.runtime.progress import QuietProgress

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z  (debug  |info   |warning|error  )  \S.*")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.yaml").touch()
    return tmp_path


def lines(folder):
    text = (folder / LOG_FILE).read_text(encoding="utf-8")
    assert all(LINE.fullmatch(line) for line in text.splitlines())
    return [line.partition("Z  ")[2].split(maxsplit=1) for line in text.splitlines()]


def test_command_stages_warnings_and_the_end_are_written(folder):
    with run_log.logged("laue-dask run a", QuietProgress(), folder) as progress:
        logging.getLogger("laue_dask.features").warning("strange %s", "weights")
        logging.getLogger(STAGE_LOGGER).debug("stage 3 of 9: encode")
        with progress.stage("encode", total=10) as advance:
            advance(10)
    logging.getLogger("laue_dask.features").warning("not of this run")
    first, *middle, last = lines(folder)
    assert first[0] == "info"
    assert first[1].startswith("laue-dask run a (laue_dask ")
    assert [one[:2] for one in middle[:3]] == [
        ["warning", "strange weights"],
        ["debug", "stage 3 of 9: encode"],
        ["info", "encode: 10 patterns"],
    ]
    assert middle[3][1].startswith("encode: 10 patterns in 0.")
    assert last == ["info", "done"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("a\nb\x1b[2J"), r"a\nb\x1b[2J"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (KeyboardInterrupt(), "interrupted: the same command goes on where it stopped"),
    ],
)
def test_what_ended_the_work_is_the_last_line_and_the_next_command_goes_on_below(folder, error, told):
    with (
        pytest.raises(type(error)),
        run_log.logged("one", QuietProgress(), folder) as progress,
        progress.stage("scores", total=3, unit="K"),
    ):
        raise error
    assert lines(folder)[-2:] == [["info", "scores: stopped after 0 of 3 K"], ["error", told]]
    with run_log.logged("two", QuietProgress(), folder):
        pass
    assert len(lines(folder)) == 6


def test_nothing_is_left_where_there_is_no_run_and_nothing_lost_where_there_comes_one(tmp_path):
    (tmp_path / ".lock").touch()
    with pytest.raises(ValueError, match="refused"), run_log.logged("run", QuietProgress(), tmp_path):
        raise ValueError("refused")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with run_log.logged("run", QuietProgress(), tmp_path) as progress:
        progress.note("before")
        assert not (tmp_path / LOG_FILE).exists()
        (tmp_path / "scan.zarr").mkdir()
    assert [text for _, text in lines(tmp_path)][1:] == ["before", "done"]


def test_a_log_stays_small_and_keeps_what_came_last(folder, monkeypatch):
    monkeypatch.setattr(run_log, "MAX_FILE_BYTES", 2_000)
    for number in range(50):
        with run_log.logged(f"command {number}", QuietProgress(), folder) as progress:
            progress.note("x" * 50)
    assert (folder / LOG_FILE).stat().st_size < 4_000
    assert any("command 49 " in text for _, text in lines(folder))
    with run_log.logged("loud", QuietProgress(), folder) as progress:
        for _ in range(1_000):
            progress.note("y" * 50)
    assert (folder / LOG_FILE).stat().st_size < 5_000
    assert sum("the rest is left out" in text for _, text in lines(folder)) == 1


def test_a_very_long_message_is_cut_off(folder):
    with run_log.logged("run", QuietProgress(), folder) as progress:
        progress.note("z" * 10**6)
    assert max(len(text) for _, text in lines(folder)) < run_log.MAX_LINE_CHARACTERS + 10


def test_a_log_that_cannot_be_written_stops_nothing(folder):
    (folder / LOG_FILE).mkdir()
    with run_log.logged("run", QuietProgress(), folder) as progress, progress.stage("encode", total=1) as advance:
        advance(1)
