import os
import re
import shutil
import socket
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.errors import FrameError, InputError
from laue_dask.io.file_kinds import is_frame, suffix_of
from laue_dask.io.folder_contents import EmptyError
from laue_dask.io.frames import discover, frame_info
from laue_dask.io.listing import Listing


@pytest.mark.parametrize(
    ("name", "suffix", "frame"),
    [
        ("a.tif", ".tif", True),
        ("b/a.1.TIFF", ".tiff", True),
        ("a.cbf.gz", ".cbf", True),
        ("a.gz", "", False),
        (".tif", "", False),
        ("a.tif/b", "", False),
        ("a.txt", ".txt", False),
    ],
)
def test_a_file_is_a_frame_by_its_suffix(name, suffix, frame):
    assert (suffix_of(name), is_frame(name)) == (suffix, frame)


def anew(source):
    """Frames of a folder or a glob, or why there are none."""
    try:
        return [ref.path for ref in discover(source)], None
    except InputError as error:
        return [], str(error)


NAMES = [f"{stem}{number}{suffix}" for stem in ("a_", "b_0") for number in (1, 2, 10) for suffix in (".tif", ".txt")]
LINES = [f"line_{number}/{name}" for number in (8, 9, 10) for name in NAMES[:3]]


@pytest.mark.parametrize("pattern", ["", "/*", "/*_*"])
@given(steps=st.lists(st.tuples(st.sampled_from([*NAMES, *LINES, ".a.tif", "c.edf", "a_1.tif.part"]), st.booleans())))
def test_a_listing_that_goes_on_is_what_a_new_one_would_be(tmp_path_factory, steps, pattern):
    folder = tmp_path_factory.mktemp("any")
    listing, known = Listing(f"{folder}{pattern}"), []
    for name, there in steps:
        path = folder / name
        if there:
            path.parent.mkdir(exist_ok=True)
            path.touch()
        else:
            path.unlink(missing_ok=True)
        expected, refused = anew(f"{folder}{pattern}")
        if refused is not None:
            with pytest.raises(InputError, match=re.escape(refused)):
                listing.look()
            continue
        changed = listing.look()
        assert listing.files == expected
        assert changed or expected == known
        if listing.added is not None:
            assert sorted([*known, *listing.added]) == sorted(expected)
        known = list(expected)
    shutil.rmtree(folder)


def test_a_name_that_is_not_utf_8_is_left_out_and_told(tmp_path):
    listing = Listing(tmp_path)
    with pytest.raises(EmptyError):
        listing.look()
    odd = tmp_path / os.fsdecode(b"a_\xff.tif")
    odd.touch()
    with pytest.raises(InputError, match="not UTF-8: rename it"):
        listing.look()
    (tmp_path / "a 1 µm.tif").touch()
    listing.look()
    assert listing.files == [str(tmp_path / "a 1 µm.tif")]
    assert "not UTF-8" in listing.odd
    with pytest.raises(InputError, match="not UTF-8"):
        discover(tmp_path)
    odd.unlink()
    assert listing.look()
    assert not listing.odd


def test_names_that_are_not_utf_8_of_what_is_no_frame_do_not_matter(tmp_path):
    for name in ("a_1.tif", "a_2.tif", os.fsdecode(b"notes\xe9_1")):
        (tmp_path / name).touch()
    (tmp_path / os.fsdecode(b"old\xe9_2")).mkdir()
    assert len(discover(tmp_path)) == 2
    assert len(discover(f"{tmp_path}/*")) == 2


def test_folders_that_are_links_are_looked_into_once(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    for folder in (elsewhere, tmp_path / "root" / "a"):
        folder.mkdir(parents=True)
        for i in range(3):
            (folder / f"{folder.name}_{i}.tif").touch()
    (tmp_path / "root" / "linked").symlink_to(elsewhere)
    (tmp_path / "root" / "again").symlink_to(tmp_path / "root" / "a")
    (tmp_path / "root" / "a" / "round").symlink_to(tmp_path / "root")
    found = [Path(ref.path).name for ref in discover(f"{tmp_path}/root/**/*.tif")]
    assert sorted(found) == [f"{name}_{i}.tif" for name in ("a", "elsewhere") for i in range(3)]


def names_in(folder, source=""):
    return [os.path.relpath(ref.path, folder) for ref in discover(f"{folder}{source}")]


@pytest.mark.parametrize("source", ["", "/*"])
def test_two_ways_to_write_a_suffix_are_one_kind_where_they_form_one_series(tmp_path, source):
    names = ["img_1.tif", "img_2.tiff", "img_3.TIF", "img_4.tif.gz"]
    for name in names:
        (tmp_path / name).touch()
    assert names_in(tmp_path, source) == names
    if not source:
        (tmp_path / "img_1.tiff").touch()
        with pytest.raises(InputError, match=r"several kinds of frames \(3 \.tif, 2 \.tiff\)"):
            discover(tmp_path)


CONTENTS = {
    "tif": b"II*\0" + bytes(600),
    "edf": b"{\nHeaderID = EH:000001:000000:000000 ;\n" + b" " * 600,
    "cbf": b"###CBF: VERSION 1.5\r\n" + bytes(600),
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("line", ["", "line_1/"])
def test_files_whose_suffix_is_a_number_are_frames_by_their_content(tmp_path, kind, line):
    (tmp_path / "line_1").mkdir()
    for i in (0, 1, 2, 10):
        (tmp_path / f"{line}scan.{i:04d}").write_bytes(CONTENTS[kind] if i != 2 else b"")
        (tmp_path / f"{line}control.log.{i}").write_text("a line\n")
    expected = [f"{line}scan.{i:04d}" for i in (0, 1, 2, 10)]
    assert names_in(tmp_path) == expected
    assert names_in(tmp_path, f"/{line}scan.*") == expected
    assert names_in(tmp_path, f"/{line}scan.%04d") == expected
    assert names_in(tmp_path, f"/{line}scan.0001") == expected[1:2]
    (tmp_path / f"{line}img.tif").touch()
    assert names_in(tmp_path) == [f"{line}img.tif"]  # names tell, where there are any


def test_logs_whose_suffix_is_a_number_are_no_frames(tmp_path):
    for i in range(3):
        (tmp_path / f"control.log.{i}").write_text("a line\n")
    with pytest.raises(EmptyError, match="no frames in it"):
        discover(tmp_path)


@pytest.fixture
def special(tmp_path):
    """A folder of four frames, and what has the name of one but must not be opened."""
    for i in (1, 2, 4, 5):
        (tmp_path / f"img_{i}.tif").write_bytes(CONTENTS["tif"])
    os.mkfifo(tmp_path / "img_3.tif")
    (tmp_path / "img_6.tif").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        (tmp_path / "s").rename(tmp_path / "img_7.tif")
    (tmp_path / "img_8.tif").symlink_to("/dev/zero")
    (tmp_path / "img_9.tif").symlink_to(tmp_path / "gone.tif")
    return tmp_path


def test_what_is_no_regular_file_keeps_its_place_and_is_never_opened(special):
    refs = discover(special)
    reasons = {}
    for ref in refs:
        try:
            frame_info(ref)
        except FrameError as error:
            reasons[Path(ref.path).name] = str(error)
    assert [Path(ref.path).name for ref in refs] == [f"img_{i}.tif" for i in range(1, 10)]
    assert reasons["img_3.tif"] == "is a named pipe, not a file"
    assert reasons["img_6.tif"] == "is a folder, not a file"
    assert reasons["img_7.tif"] == "is a socket, not a file"
    assert reasons["img_8.tif"] == "is a device, not a file"
    assert reasons["img_9.tif"] == "file vanished"


@pytest.mark.parametrize("count", [0, 100])
def test_what_is_no_regular_file_does_not_make_a_kind_of_frames(special, count, caplog):
    for i in range(count):
        (special / f"img_{i + 10}.tif").symlink_to(special / "img_1.tif")
    os.mkfifo(special / "control.edf")
    (special / "old.h5").mkdir()
    assert len(discover(special)) == 9 + count
    assert "control.edf: is a named pipe" in caplog.text
    assert "old.h5: is a folder" in caplog.text


@pytest.mark.parametrize("name", ["only.tif", "only.h5", "only.edf", "only"])
def test_a_named_pipe_given_alone_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="is a named pipe"):
        discover(tmp_path / name)


def test_a_pattern_takes_a_master_and_not_what_it_links_to(tmp_path):
    for name in ("a_master.h5", "a_data_000001.h5", "a_data_000002.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file["entry/data/data"] = np.zeros((2, 32, 32), np.uint16)
    assert {Path(ref.path).name for ref in discover(f"{tmp_path}/*.h5")} == {"a_master.h5"}
