import os
import shutil
from pathlib import Path

import h5py
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from laue_dask.io.frames import discover
from laue_dask.io.source_identity import State
from laue_dask.watch import folder as module
from laue_dask.watch.folder import RECHECK_TIME_S, RETRY_WAITS_S, SETTLE_TIME_S, STACK_SETTLE_TIME_S, WatchedFolder


def write(path, number=0, size=20):
    Image.fromarray(np.full((size, size), 1 + number, np.int32)).save(path, format="tiff")


def names(found):
    return [Path(ref.path).name for ref, _ in found]


def test_file_is_given_once_it_has_settled_and_only_once(tmp_path, clock):
    files = WatchedFolder(str(tmp_path), clock=clock)
    assert files.look() == []
    assert "no frames in it" in files.problem
    write(tmp_path / "a_2.tif")
    write(tmp_path / "a_10.tif")
    assert files.look() == []
    clock.now += SETTLE_TIME_S / 2
    assert files.look() == []
    clock.now += SETTLE_TIME_S / 2
    found = files.look()
    assert names(found) == ["a_2.tif", "a_10.tif"]
    assert files.unread == 2
    for ref, state in found:
        files.mark_read(ref, state)
    clock.now += 10
    assert files.look() == []
    assert files.unread == 0


def test_file_that_grows_or_is_empty_is_not_given(tmp_path, clock):
    files, path = WatchedFolder(str(tmp_path), clock=clock), tmp_path / "a_1.tif"
    path.touch()
    for _ in range(4):
        clock.now += 2 * SETTLE_TIME_S
        assert files.look() == []
    for i in range(4):
        with path.open("ab") as file:
            file.write(b"II*\0" if not i else bytes(100))
        assert files.look() == []
        clock.now += 0.8 * SETTLE_TIME_S
    clock.now += SETTLE_TIME_S
    assert names(files.look()) == ["a_1.tif"]


def test_file_that_cannot_be_read_is_tried_again_and_again_but_ever_less_often(tmp_path, clock):
    files = WatchedFolder(str(tmp_path), clock=clock)
    write(tmp_path / "a_1.tif")
    files.look()
    tried, waits = clock.now, []
    for _ in range(2_000):
        clock.now += 0.5
        for ref, state in files.look():
            files.mark_unreadable(ref, "truncated", state)
            waits.append(clock.now - tried)
            tried = clock.now
    assert waits[1:6] == [2, 4, 8, 16, 32]
    assert set(waits[6:]) == {RETRY_WAITS_S[1]}
    assert files.unreadable == {str(tmp_path / "a_1.tif"): "truncated"}
    assert files.quiet(500)
    write(tmp_path / "a_1.tif", size=30)
    assert files.look() == []
    assert not files.quiet(1)
    clock.now += SETTLE_TIME_S
    assert names(files.look()) == ["a_1.tif"]


def test_file_that_is_filled_after_it_was_read_is_given_again(tmp_path, clock):
    files, path = WatchedFolder(str(tmp_path), clock=clock), tmp_path / "a_1.tif"
    write(path)
    files.look()
    clock.now += SETTLE_TIME_S
    ((ref, state),) = files.look()
    files.mark_read(ref, state)
    clock.now += RECHECK_TIME_S / 2
    os.utime(path, ns=(0, state.changed + 10**9))
    assert files.look() == []
    clock.now += SETTLE_TIME_S
    assert names(files.look()) == ["a_1.tif"]


def test_frames_of_an_earlier_watch_are_not_given_again_unless_they_changed(tmp_path, clock):
    for i in (1, 2):
        write(tmp_path / f"a_{i}.tif", i)
    known = {str(tmp_path / f"a_{i}.tif"): State.of(str(tmp_path / f"a_{i}.tif")) for i in (1, 2)}
    write(tmp_path / "a_2.tif", 2, size=25)
    files = WatchedFolder(str(tmp_path), known, clock=clock)
    files.look()
    clock.now += SETTLE_TIME_S
    assert names(files.look()) == ["a_2.tif"]


def test_age_of_a_frame_is_counted_from_when_it_was_complete(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(module.time, "time", lambda: 1e6 + clock.now)
    files = WatchedFolder(str(tmp_path), clock=clock)
    for name, told in (("a_1.tif", 1e6 + 99), ("a_2.tif", 1e6 + 102), ("a_3.tif", 1e6 + 1e5), ("a_4.tif", 5.0)):
        write(tmp_path / name)
        os.utime(tmp_path / name, (told, told))
        files.look()
        clock.now += 1.0
    found = {Path(ref.path).name: files.since(state) for ref, state in files.look()}
    assert found["a_1.tif"] is None  # it was there before
    assert found["a_2.tif"] == 1e6 + 101  # seen before its own time: another clock
    assert found["a_3.tif"] == 1e6 + 102
    assert found["a_4.tif"] == 1e6 + 103
    write(tmp_path / "a_5.tif")
    os.utime(tmp_path / "a_5.tif", (1e6 + 103.5, 1e6 + 103.5))
    files.look()
    clock.now += 1
    assert [files.since(state) for _, state in files.look()][-1] == 1e6 + 103.5


def test_every_frame_of_a_file_of_several_is_given(tmp_path, clock):
    pages = [Image.fromarray(np.full((20, 20), i, np.int32)) for i in (1, 2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    files = WatchedFolder(str(tmp_path), clock=clock)
    files.look()
    clock.now += SETTLE_TIME_S
    assert [str(ref) for ref, _ in files.look()] == [f"{tmp_path}/a.tif[0]", f"{tmp_path}/a.tif[1]"]


def stack(path, count):
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = np.arange(1, count + 1, dtype=np.int32)[:, None, None] * np.ones(
            (1, 20, 20), np.int32
        )


def places(found):
    return [(Path(ref.path).name, ref.index) for ref, _ in found]


def settle(files, clock):
    """What is given when files that are there now have not changed for long enough."""
    files.look()
    clock.now += STACK_SETTLE_TIME_S
    return files.look()


def read(files, found):
    for ref, state in found:
        files.mark_read(ref, state)


def test_stacks_are_given_frame_by_frame_when_they_have_settled(tmp_path, clock):
    files = WatchedFolder(str(tmp_path), clock=clock)
    stack(tmp_path / "a_2.h5", 3)
    stack(tmp_path / "a_1.h5", 2)
    files.look()
    clock.now += STACK_SETTLE_TIME_S / 2
    assert files.look() == []
    assert files.unread == 2
    clock.now += STACK_SETTLE_TIME_S
    found = files.look()
    assert places(found) == [("a_1.h5", 0), ("a_1.h5", 1), ("a_2.h5", 0), ("a_2.h5", 1), ("a_2.h5", 2)]
    assert [ref for ref, _ in found] == files.refs == discover(tmp_path)
    read(files, found[:3])
    assert (files.unread, files.look()) == (2, found[3:])
    read(files, found[3:])
    assert (files.unread, files.look()) == (0, [])
    again = WatchedFolder(str(tmp_path), {str(ref): state for ref, state in found}, clock=clock)
    assert settle(again, clock) == []
    assert (again.refs, again.unread) == (files.refs, 0)


def test_stack_that_grows_after_all_is_given_again_and_waited_for_longer(tmp_path, clock):
    files, path = WatchedFolder(str(tmp_path), clock=clock), tmp_path / "a_1.h5"
    stack(path, 2)
    read(files, settle(files, clock))
    for count, wait in ((3, 2), (5, 4)):
        stack(path, count)
        files.look()
        clock.now += wait * STACK_SETTLE_TIME_S - 0.1
        assert files.look() == []
        clock.now += 0.1
        found = files.look()
        assert places(found) == [("a_1.h5", i) for i in range(count)]
        assert len(files.refs) == count
        read(files, found)


def test_stack_that_is_open_for_writing_waits_and_says_so(tmp_path, clock):
    files, path = WatchedFolder(str(tmp_path), clock=clock), tmp_path / "a_1.h5"
    stack(tmp_path / "a_0.h5", 2)
    stack(tmp_path / "a_2.h5", 2)
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset(
            "entry/data/data", (1, 20, 20), np.int32, maxshape=(None, 20, 20), chunks=(1, 20, 20)
        )
        file.swmr_mode = True
        data.flush()
        # A process reads it otherwise than the one that writes it, where HDF5 keeps one state of it.
        shutil.copyfile(path, tmp_path / "copy")
        (tmp_path / "copy").rename(path)
        found = settle(files, clock)
        assert {name for name, _ in places(found)} == {"a_0.h5", "a_2.h5"}
        assert files.unreadable[str(path)].startswith("is still open for writing: its frames can be read when it is")
        # Later frames have their places meanwhile: files hold the same number of frames as a rule.
        assert [(Path(ref.path).name, ref.index) for ref in files.refs[2:4]] == [("a_1.h5", 0), ("a_1.h5", 1)]
    read(files, found)
    stack(path, 3)
    assert places(settle(files, clock)) == [("a_1.h5", i) for i in range(3)]
    assert (files.unreadable, files.refs) == ({}, discover(tmp_path))


def test_data_files_that_a_master_links_to_are_given_as_they_come(tmp_path, clock):
    with h5py.File(tmp_path / "a_master.h5", "w") as master:
        for i in (1, 2, 3):
            master[f"entry/data/data_00000{i}"] = h5py.ExternalLink(f"a_data_00000{i}.h5", "/entry/data/data")
    files, given = WatchedFolder(str(tmp_path), clock=clock), []
    assert settle(files, clock) == []
    for i in (1, 2):
        stack(tmp_path / f"a_data_00000{i}.h5", 2)
        files.look()
        found = settle(files, clock)
        assert [(ref.dataset[-1], ref.index) for ref, _ in found] == [(str(i), 0), (str(i), 1)]
        assert {state.path for _, state in found} == {str(tmp_path / f"a_data_00000{i}.h5")}
        read(files, found)
        given += [ref for ref, _ in found]
        assert files.refs == given
    assert given == discover(tmp_path)
    # The last one is there and cannot be read for a while, and no other file comes after it.
    (tmp_path / "a_data_000003.h5").write_bytes(b"not yet")
    assert settle(files, clock) == []
    assert settle(files, clock) == []
    stack(tmp_path / "a_data_000003.h5", 1)
    settle(files, clock)
    assert [(ref.dataset[-1], ref.index) for ref, _ in settle(files, clock)] == [("3", 0)]
    assert files.refs == discover(tmp_path)
    read(files, files.look())
    stack(tmp_path / "a_data_000002.h5", 3)
    files.look()
    clock.now += 10 * STACK_SETTLE_TIME_S
    assert [ref.index for ref, _ in files.look()] == [0, 1, 2]


def test_a_name_that_is_not_utf_8_is_told_and_left_out(tmp_path, clock):
    files = WatchedFolder(str(tmp_path), clock=clock)
    write(tmp_path / "a 1 µm.tif")
    write(tmp_path / os.fsdecode(b"a 2 \xff.tif"))
    assert names(settle(files, clock)) == ["a 1 µm.tif"]
    assert files.problem.endswith("the file's name is not UTF-8: rename it")
    files.problem.encode()


def test_frames_stay_known_while_the_folder_cannot_be_listed(tmp_path, clock):
    files = WatchedFolder(str(tmp_path), clock=clock)
    write(tmp_path / "a_1.tif")
    files.look()
    (tmp_path / "b.edf").write_bytes(b"{")
    assert files.look() == []
    assert "several kinds of frames" in files.problem
    assert len(files.refs) == 1
    (tmp_path / "b.edf").unlink()
    clock.now += SETTLE_TIME_S
    assert names(files.look()) == ["a_1.tif"]
    assert not files.problem


@given(st.lists(st.sampled_from(["grow", "look", "wait", "new"]), max_size=40))
def test_no_file_is_ever_given_in_a_state_that_it_was_not_seen_in_for_long_enough(tmp_path_factory, make_clock, steps):
    folder, clock = tmp_path_factory.mktemp("any"), make_clock()
    files, touched, count = WatchedFolder(str(folder), clock=clock), {}, 0
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
                assert clock.now - touched[name] >= SETTLE_TIME_S
                files.mark_read(ref, state)
