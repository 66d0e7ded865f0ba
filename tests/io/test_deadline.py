"""Reads that end."""

import multiprocessing
import threading
import time

import pytest

from laue_dask.errors import ComputeError
from laue_dask.io import deadline
from laue_dask.io.deadline import ReadTimeoutError, call_with_deadline


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    """A short deadline, and nothing that hung before."""
    for name, value in (("_deadline_s", 0.2), ("_in_a_row", 0), ("_hung", []), ("POLL_INTERVAL_S", 0.05)):
        monkeypatch.setattr(deadline, name, value)


@pytest.fixture
def hanging():
    """A call that ends at the end of the test."""
    over = threading.Event()
    yield over.wait
    over.set()


def test_what_is_called_gives_its_result_or_raises_its_error():
    assert call_with_deadline(lambda: 7, "x") == 7
    with pytest.raises(KeyError, match="a"):
        call_with_deadline(lambda: {}["a"], "x")


def test_calls_take_turns_in_one_reader():
    before = threading.active_count()
    assert len({call_with_deadline(threading.get_ident, "x") for _ in range(50)}) == 1
    assert threading.active_count() <= before + 1


def test_a_call_within_a_call_has_a_reader_of_its_own():
    assert call_with_deadline(lambda: call_with_deadline(lambda: 7, "y"), "x") == 7


def test_a_call_that_hangs_is_left_behind_in_time(hanging):
    begun = time.monotonic()
    with pytest.raises(ReadTimeoutError, match=r"^was not read within 0\.2 s \(workers\.read_deadline\)$"):
        call_with_deadline(hanging, "x")
    assert time.monotonic() - begun < 5
    assert call_with_deadline(lambda: 7, "x") == 7


def test_an_answer_that_comes_late_is_nobody_s(hanging):
    with pytest.raises(ReadTimeoutError):
        call_with_deadline(lambda: time.sleep(0.5) or "late", "x")
    for i in range(20):
        assert call_with_deadline(lambda i=i: i, "x") == i
        time.sleep(0.05)


def test_several_that_hang_in_a_row_end_the_work(hanging):
    for _ in range(deadline.MAX_HUNG_IN_A_ROW - 1):
        with pytest.raises(ReadTimeoutError):
            call_with_deadline(hanging, "/proc/x")
    with pytest.raises(ComputeError, match=r"^/proc/x: was not .*: /proc \(proc\) does not answer: ") as caught:
        call_with_deadline(hanging, "/proc/x")
    assert "\n" not in str(caught.value)


def test_ones_that_hang_between_others_are_bounded_in_number(hanging, monkeypatch):
    monkeypatch.setattr(deadline, "MAX_HUNG_READERS", 6)
    monkeypatch.setattr(deadline, "_deadline_s", 0.05)
    raised = []
    for _ in range(6):
        assert call_with_deadline(lambda: 7, "x") == 7
        with pytest.raises((ReadTimeoutError, ComputeError)) as caught:
            call_with_deadline(hanging, "x")
        raised.append(caught.type)
    assert raised == [ReadTimeoutError] * 5 + [ComputeError]


def test_who_is_told_to_end_waits_no_longer(hanging, monkeypatch):
    monkeypatch.setattr(deadline, "_deadline_s", 100.0)
    monkeypatch.setattr(deadline, "LAST_WAIT_S", 0.1)
    monkeypatch.setattr(deadline, "LAST_READ_S", 0.2)
    monkeypatch.setattr(deadline.interruption, "expect_exit", lambda _: None)
    threading.Timer(0.2, deadline.shorten_reads).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call_with_deadline(hanging, "x")
        assert call_with_deadline(lambda: 7, "x") == 7
    finally:
        deadline.restore_reads()


def test_a_watch_that_was_told_to_end_long_ago_still_reads_what_takes_a_moment(monkeypatch):
    monkeypatch.setattr(deadline, "LAST_WAIT_S", 0.0)
    deadline.shorten_reads()
    try:
        assert call_with_deadline(lambda: time.sleep(2 * deadline.POLL_INTERVAL_S) or 7, "x") == 7
    finally:
        deadline.restore_reads()


@pytest.mark.parametrize(("given", "seconds"), [("7", 7.0), ("", 120.0), ("-1", 120.0), ("nan", 120.0), ("x", 120.0)])
def test_a_worker_finds_its_deadline_in_its_environment(given, seconds, monkeypatch):
    monkeypatch.setattr(deadline, "_deadline_s", None)
    monkeypatch.setenv(deadline.READ_DEADLINE_VARIABLE, given)
    assert deadline.deadline_s() == seconds


def in_child(answers):
    answers.put(call_with_deadline(lambda: 7, "x"))


def test_a_process_that_was_forked_has_readers_of_its_own():
    call_with_deadline(lambda: 7, "x")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=in_child, args=(answers,))
    child.start()
    assert answers.get(timeout=60) == 7
    child.join(60)
