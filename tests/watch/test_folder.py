import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from laue_dask.errors import InputError
from laue_dask.watch import folder as module
from laue_dask.watch.folder import AGAIN, RETRY, SETTLED, Folder, State


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def write(path, number=0, size=20):
    Image.fromarray(np.full((size, size), 1 + number, np.int32)).save(path, format="tiff")


def names(found):
    return [Path(ref.path).name for ref, _ in found]


def test_file_is_given_once_it_has_settled_and_only_once(tmp_path, clock):
    files = Folder(str(tmp_path), clock=clock)
    assert files.look() == []
    assert "no frames in it" in files.problem
    write(tmp_path / "a_2.tif")
    write(tmp_path / "a_10.tif")
    assert files.look() == []
    clock.now += SETTLED / 2
    assert files.look() == []
    clock.now += SETTLED / 2
    found = files.look()
    assert names(found) == ["a_2.tif", "a_10.tif"]
    assert files.unread == 2
    for ref, state in found:
        files.was_read(ref, state)
    clock.now += 10
    assert files.look() == []
    assert files.unread == 0


def test_file_that_grows_or_is_empty_is_not_given(tmp_path, clock):
    files, path = Folder(str(tmp_path), clock=clock), tmp_path / "a_1.tif"
    path.touch()
    for _ in range(4):
        clock.now += 2 * SETTLED
        assert files.look() == []
    for i in range(4):
        with path.open("ab") as file:
            file.write(b"II*\0" if not i else bytes(100))
        assert files.look() == []
        clock.now += 0.8 * SETTLED
    clock.now += SETTLED
    assert names(files.look()) == ["a_1.tif"]


def test_file_that_cannot_be_read_is_tried_again_and_again_but_ever_less_often(tmp_path, clock):
    files = Folder(str(tmp_path), clock=clock)
    write(tmp_path / "a_1.tif")
    files.look()
    tried, waits = clock.now, []
    for _ in range(2_000):
        clock.now += 0.5
        for ref, _ in files.look():
            files.cannot_be_read(ref, "truncated")
            waits.append(clock.now - tried)
            tried = clock.now
    assert waits[1:6] == [2, 4, 8, 16, 32]
    assert set(waits[6:]) == {RETRY[1]}
    assert files.unreadable == {str(tmp_path / "a_1.tif"): "truncated"}
    assert files.quiet(500)
    write(tmp_path / "a_1.tif", size=30)
    assert files.look() == []
    assert not files.quiet(1)
    clock.now += SETTLED
    assert names(files.look()) == ["a_1.tif"]


def test_file_that_is_filled_after_it_was_read_is_given_again(tmp_path, clock):
    files, path = Folder(str(tmp_path), clock=clock), tmp_path / "a_1.tif"
    write(path)
    files.look()
    clock.now += SETTLED
    ((ref, state),) = files.look()
    files.was_read(ref, state)
    clock.now += AGAIN / 2
    os.utime(path, ns=(0, state.changed + 10**9))
    assert files.look() == []
    clock.now += SETTLED
    assert names(files.look()) == ["a_1.tif"]


def test_frames_of_an_earlier_watch_are_not_given_again_unless_they_changed(tmp_path, clock):
    for i in (1, 2):
        write(tmp_path / f"a_{i}.tif", i)
    known = {str(tmp_path / f"a_{i}.tif"): State.of(str(tmp_path / f"a_{i}.tif")) for i in (1, 2)}
    write(tmp_path / "a_2.tif", 2, size=25)
    files = Folder(str(tmp_path), known, clock=clock)
    files.look()
    clock.now += SETTLED
    assert names(files.look()) == ["a_2.tif"]


def test_age_of_a_frame_is_counted_from_when_it_was_complete(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(module.time, "time", lambda: 1e6 + clock.now)
    files = Folder(str(tmp_path), clock=clock)
    for name, told in (("a_1.tif", 1e6 + 99), ("a_2.tif", 1e6 + 102), ("a_3.tif", 1e6 + 1e5), ("a_4.tif", 5.0)):
        write(tmp_path / name)
        os.utime(tmp_path / name, (told, told))
        files.look()
        clock.now += 1.0
    found = {Path(ref.path).name: files.since(ref, state) for ref, state in files.look()}
    assert found["a_1.tif"] is None  # it was there before
    assert found["a_2.tif"] == 1e6 + 101  # seen before its own time: another clock
    assert found["a_3.tif"] == 1e6 + 102
    assert found["a_4.tif"] == 1e6 + 103
    write(tmp_path / "a_5.tif")
    os.utime(tmp_path / "a_5.tif", (1e6 + 103.5, 1e6 + 103.5))
    files.look()
    clock.now += 1
    assert [files.since(*one) for one in files.look()][-1] == 1e6 + 103.5


def test_files_of_several_frames_are_refused(tmp_path, clock):
    pages = [Image.fromarray(np.full((20, 20), i, np.int32)) for i in (1, 2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=r"a\.tif: holds several frames: `watch` needs a file per frame"):
        Folder(str(tmp_path), clock=clock).look()


def test_frames_stay_known_while_the_folder_cannot_be_listed(tmp_path, clock):
    files = Folder(str(tmp_path), clock=clock)
    write(tmp_path / "a_1.tif")
    files.look()
    (tmp_path / "b.edf").write_bytes(b"{")
    assert files.look() == []
    assert "several kinds of frames" in files.problem
    assert len(files.refs) == 1
    (tmp_path / "b.edf").unlink()
    clock.now += SETTLED
    assert names(files.look()) == ["a_1.tif"]
    assert not files.problem


@given(st.lists(st.sampled_from(["grow", "look", "wait", "new"]), max_size=40))
def test_no_file_is_ever_given_in_a_state_that_it_was_not_seen_in_for_long_enough(tmp_path_factory, steps):
    folder, clock = tmp_path_factory.mktemp("any"), Clock()
    files, touched, count = Folder(str(folder), clock=clock), {}, 0
    for step in steps:
        if step == "new":
            write(folder / f"a_{count}.tif")
            touched[f"a_{count}.tif"] = clock.now
            count += 1
        elif step == "grow" and count:
            name = f"a_{count // 2}.tif"
            with (folder / name).open("ab") as file:
                file.write(b"more")
            touched[name] = clock.now
        elif step == "wait":
            clock.now += 0.3
        else:
            for ref, state in files.look():
                name = Path(ref.path).name
                assert state == State.of(ref.path)
                assert clock.now - touched[name] >= SETTLED
                files.was_read(ref, state)
