import sys
import threading
from types import SimpleNamespace

import pytest

from laue_dask.runtime import notebook
from laue_dask.runtime.bars import RichProgress
from laue_dask.runtime.notebook import NotebookProgress, in_notebook, usual_progress


class Page:
    """What stands below a cell."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def show(self, handle: object, text: str) -> object:
        if handle is None:
            self.lines.append(text)
            return len(self.lines) - 1
        self.lines[handle] = text
        return handle


@pytest.fixture
def page():
    return Page()


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(notebook, "REDRAW_INTERVAL_S", 0.0)


def test_one_line_says_how_far_it_is_and_goes(page, at_once):
    progress = NotebookProgress(page.show)
    with progress.stage("reduce", total=6000, done=500) as advance:
        assert page.lines == ["reduce: 500 of 6,000 patterns"]
        advance(100)
        assert page.lines == ["reduce: 600 of 6,000 patterns"]
        with progress.stage("encode", total=10):
            assert page.lines == ["reduce: 600 of 6,000 patterns · encode: 0 of 10 patterns"]
    with progress.stage("scores", total=3, unit="K"):
        assert page.lines == ["scores: 0 of 3 K"]
    assert page.lines == [""]


def test_the_line_goes_when_the_work_fails(page):
    with pytest.raises(ValueError, match="no"), NotebookProgress(page.show).stage("reduce", total=1):
        raise ValueError("no")
    assert page.lines == [""]


def test_many_threads_report_to_it(page, at_once):
    progress = NotebookProgress(page.show)
    with progress.stage("encode", total=800) as advance:
        threads = [threading.Thread(target=lambda: [advance(1) for _ in range(100)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert page.lines[0].startswith("encode: 800 of 800")


def test_a_notebook_that_is_gone_stops_nothing():
    def gone(handle: object, text: str) -> object:
        raise OSError

    with NotebookProgress(gone).stage("reduce", total=1) as advance:
        advance(1)


def test_a_kernel_is_a_notebook_and_a_terminal_is_not(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    assert isinstance(usual_progress(), RichProgress)
    for shell, expected in ((None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=object()), True)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert in_notebook() is expected
    assert isinstance(usual_progress(), NotebookProgress)
