import errno
import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.io.source_identity import State
from laue_dask.watch import log as module
from laue_dask.watch.log import ENTRIES_FILE, FEATURES_FILE, Entry, Log

WIDTH = 4


def entry(number, changed=1):
    return Entry(f"f_{number}.tif", f"f_{number}.tif", 100 + number, changed, 1.5, 0.0, None if number % 2 else 0.25)


def filled(folder, count, key="key"):
    log = Log(folder, width=WIDTH, key=key)
    for i in range(count):
        log.add([entry(i)], np.full((1, WIDTH), i, np.float32))
    return log


def test_log_is_what_was_added(tmp_path):
    filled(tmp_path, 3)
    log = Log(tmp_path, width=WIDTH, key="key")
    assert log.entries == [entry(i) for i in range(3)]
    np.testing.assert_array_equal(log.features(), np.repeat(np.arange(3.0), WIDTH).reshape(3, WIDTH))
    assert log.rows(["f_2.tif", "other.tif", "f_0.tif"]).tolist() == [2, -1, 0]
    assert log.states["f_1.tif"] == State("f_1.tif", 101, 1)


def test_frame_that_was_read_again_counts_as_it_was_read_last(tmp_path):
    log = filled(tmp_path, 2)
    log.add([entry(0, changed=2)], np.full((1, WIDTH), 9, np.float32))
    for one in (log, Log(tmp_path, width=WIDTH, key="key")):
        assert one.rows(["f_0.tif", "f_1.tif"]).tolist() == [2, 1]
        assert one.states["f_0.tif"] == State("f_0.tif", 100, 2)
        assert len(one.features()) == 3


def test_other_features_make_an_earlier_log_worthless(tmp_path):
    filled(tmp_path, 3)
    log = Log(tmp_path, width=WIDTH, key="other")
    assert log.entries == []
    assert log.features().shape == (0, WIDTH)
    assert (tmp_path / FEATURES_FILE).stat().st_size == 0


@given(lines=st.integers(0, 600), features=st.integers(0, 70))
def test_log_that_was_cut_off_anywhere_keeps_what_is_whole(tmp_path_factory, lines, features):
    folder = tmp_path_factory.mktemp("cut")
    filled(folder, 4)
    for name, left in ((ENTRIES_FILE, lines), (FEATURES_FILE, features)):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:left])
    whole = (folder / ENTRIES_FILE).read_text().count("\n") - 1
    expected = max(0, min(whole, features // (4 * WIDTH), 4))
    log = Log(folder, width=WIDTH, key="key")
    assert log.entries == [entry(i) for i in range(expected)]
    assert log.features()[:, 0].tolist() == list(range(expected))
    log.add([entry(7)], np.full((1, WIDTH), 7, np.float32))
    again = Log(folder, width=WIDTH, key="key")
    assert again.entries == [*(entry(i) for i in range(expected)), entry(7)]
    assert again.features()[:, 0].tolist() == [*range(expected), 7]
    for line in (folder / ENTRIES_FILE).read_text().splitlines():
        json.loads(line)
    shutil.rmtree(folder)


def test_what_a_full_disk_does_not_take_leaves_nothing_behind(tmp_path, monkeypatch):
    log = filled(tmp_path, 2)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "asdict", full)
        with pytest.raises(OSError, match="No space left"):
            log.add([entry(2)], np.full((1, WIDTH), 2, np.float32))
    log.add([entry(3)], np.full((1, WIDTH), 3, np.float32))
    for found in (log, Log(tmp_path, width=WIDTH, key="key")):
        assert found.entries == [entry(0), entry(1), entry(3)]
        assert found.features()[:, 0].tolist() == [0, 1, 3]


def test_a_log_whose_positions_have_no_units_is_made_again(tmp_path):
    log = Log(tmp_path, width=2, key="k")
    log.add([Entry("a", "a", 1, 2, 0.5, 0.0, None, (6000.0, 1234.5))], np.zeros((1, 2), np.float32))
    assert Log(tmp_path, width=2, key="k").positions(["a"]) == [(6000.0, 1234.5)]
    lines = (tmp_path / ENTRIES_FILE).read_text().splitlines(keepends=True)
    header = {name: value for name, value in json.loads(lines[0]).items() if name != "position_units"}
    (tmp_path / ENTRIES_FILE).write_text("".join([json.dumps(header) + "\n", *lines[1:]]))
    assert not Log(tmp_path, width=2, key="k").entries
