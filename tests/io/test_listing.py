import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.io.frames import discover
from laue_dask.io.listing import EmptyError, Listing, is_frame, suffix_of


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
LINES = [f"line_{number}/{name}" for number in (1, 2, 10) for name in NAMES[:3]]


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
