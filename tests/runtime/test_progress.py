import io
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from laue_dask.runtime.bars import RichProgress
from laue_dask.runtime.progress import LINE_INTERVAL_S, Progress, QuietProgress, one_line


@pytest.fixture
def log():
    return io.StringIO()


@pytest.fixture
def plain(log, clock):
    return RichProgress(console=Console(file=log, force_terminal=False, width=40), clock=clock)


@pytest.fixture
def terminal(log, clock):
    return RichProgress(console=Console(file=log, force_terminal=True, width=100), clock=clock)


def test_plain_output_has_a_line_at_the_start_and_one_at_the_end_with_the_rate(plain, log, clock):
    with plain.stage("encode", total=6000) as advance:
        for _ in range(6):
            clock.now += 2
            advance(1000)
    assert log.getvalue().splitlines() == [
        "encode: 6,000 patterns",
        "encode: 6,000 patterns in 12.0 s, 500 patterns/s",
    ]


def test_plain_output_says_where_it_is_not_more_often_than_every_30_s(plain, log, clock):
    with plain.stage("reduce", total=1000, unit="frames") as advance:
        for _ in range(9):
            clock.now += LINE_INTERVAL_S / 3
            advance(100)
        middle = log.getvalue().splitlines()[1:]
    assert middle == [
        "reduce: 300 of 1,000 frames, 10 frames/s, 1 min 10 s left",
        "reduce: 600 of 1,000 frames, 10 frames/s, 40.0 s left",
        "reduce: 900 of 1,000 frames, 10 frames/s, 10.0 s left",
    ]


def test_units_of_an_earlier_run_do_not_count_in_the_rate(plain, log, clock):
    with plain.stage("encode", total=6000, done=5000) as advance:
        clock.now += 10
        advance(1000)
    assert log.getvalue().splitlines() == [
        "encode: 6,000 patterns, 5,000 of them already done",
        "encode: 6,000 patterns in 10.0 s, 100 patterns/s",
    ]


def test_a_stage_that_was_wholly_done_before_claims_no_rate(plain, log):
    with plain.stage("encode", total=10, done=10):
        pass
    assert log.getvalue().splitlines()[-1] == "encode: 10 patterns in 0.0 s"


def test_a_slow_stage_is_not_rounded_to_nothing_per_second(plain, log, clock):
    with plain.stage("score", total=20, unit="K") as advance:
        clock.now += 4000
        advance(20)
    assert log.getvalue().splitlines()[-1] == "score: 20 K in 1 h 06 min, 0.005 K/s"


@pytest.mark.parametrize("kind", ["plain", "terminal"])
def test_a_failing_stage_says_how_far_it_came_and_passes_the_error_on(request, log, kind):
    progress = request.getfixturevalue(kind)

    def fail_after(count):
        with progress.stage("encode", total=6000) as advance:
            advance(count)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_after(512)
    assert log.getvalue().rstrip().endswith("encode: stopped after 512 of 6,000 patterns")


def test_names_with_brackets_are_printed_as_they_are(plain, log):
    with plain.stage("read scan[3].h5", total=1) as advance:
        advance(1)
    assert log.getvalue().count("read scan[3].h5") == 2


def test_a_terminal_shows_a_bar_with_count_and_rate(terminal, log, clock):
    with terminal.stage("encode", total=6000) as advance:
        for _ in range(4):
            clock.now += 1
            advance(512)
        terminal._bars.refresh()
    shown = log.getvalue()
    assert "2,048 of 6,000 patterns" in shown
    assert "512 patterns/s" in shown
    assert "encode: 2,048 patterns in 4.0 s, 512 patterns/s" in shown


def test_stages_may_overlap_and_follow_each_other_on_a_terminal(terminal, log):
    with terminal.stage("read", total=2) as read, terminal.stage("encode", total=2) as encode:
        read(2)
        encode(2)
    with terminal.stage("score", total=1) as advance:
        advance(1)
    assert [name for name in ("read:", "encode:", "score:") if log.getvalue().count(name) == 1] == [
        "read:",
        "encode:",
        "score:",
    ]
    assert not terminal._bars.tasks


def test_counts_from_many_threads_are_all_counted(plain, log):
    with plain.stage("encode", total=8000) as advance, ThreadPoolExecutor(8) as pool:
        list(pool.map(advance, [1] * 8000))
    assert log.getvalue().splitlines()[-1].startswith("encode: 8,000 patterns in")


def test_the_default_writes_to_stderr_only(capsys):
    progress = RichProgress()
    with progress.stage("encode", total=1) as advance:
        advance(1)
        sys.stdout.write("answer\n")
    out, err = capsys.readouterr()
    assert out == "answer\n"
    assert err.startswith("encode: 1 patterns\n")


def test_stdout_is_left_alone_while_a_bar_is_shown(terminal):
    before = sys.stdout
    with terminal.stage("encode", total=1):
        assert sys.stdout is before


def test_quiet_progress_prints_nothing(capsys):
    progress: Progress = QuietProgress()
    with progress.stage("encode", total=6000, done=3) as advance:
        advance(512)
    assert capsys.readouterr() == ("", "")


def test_any_name_is_one_line_that_can_be_printed():
    assert one_line("größe 1 <µ>") == "größe 1 <µ>"
    assert one_line("a\nb\t\x1b[2J\udcff") == r"a\nb\t\x1b[2J\udcff"
