import codecs
from pathlib import Path

import pytest

from laue_dask.errors import InputError
from laue_dask.io.frames import discover

NAMES = ["img_0001.tif", "b µ/img 2.tif", "img_0003.tif"]


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def listed(folder, content):
    path = folder / "list.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [str(Path(ref.path).relative_to(folder)) for ref in discover(path)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", " \t\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_list_is_read_as_any_editor_writes_it(folder, end, encoding):
    assert listed(folder, end.join([*NAMES, ""]).encode(encoding)) == NAMES
    assert listed(folder, end.join(NAMES).encode(encoding)) == NAMES


def test_big_endian_utf_16_is_told_by_its_mark(folder):
    assert listed(folder, codecs.BOM_UTF16_BE + "\r\n".join(NAMES).encode("utf-16-be")) == NAMES


@pytest.mark.parametrize("quotes", ['""', "''", "“”", "``"])
def test_quotes_around_a_path_are_none_of_it(folder, quotes):
    lines = [f"  {quotes[0]}{name}{quotes[1]}  " for name in NAMES]
    assert listed(folder, "\n".join(lines)) == NAMES
    assert listed(folder, "\n".join(f"{line} # a comment" for line in lines)) == NAMES
    assert listed(folder, ",\n".join(lines)) == NAMES


def test_comments_are_left_out_and_names_with_a_hash_are_not(folder):
    (folder / "img #4.tif").touch()
    text = "# first\n\n  # second\nimg_0001.tif  # dark?\nimg #4.tif\nimg_0003.tif\t#\n"
    assert listed(folder, text) == ["img_0001.tif", "img #4.tif", "img_0003.tif"]


def test_home_and_file_addresses_are_paths(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert listed(folder, "~/img_0001.tif\n~/b µ/img 2.tif\n") == NAMES[:2]
    assert listed(folder, f"file://{folder}/b%20%C2%B5/img%202.tif\n{folder}/img_0003.tif\n") == NAMES[1:]


def test_the_order_is_the_lists_own_and_a_missing_file_keeps_its_place(folder):
    assert listed(folder, "img_0003.tif\ngone.tif\nimg_0001.tif\n") == ["img_0003.tif", "gone.tif", "img_0001.tif"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("img_0001.tif\nimg_0003.tif\n./img_0001.tif\n", "line 3: .*is in line 1 already"),
        ("img_0001.tif\nimg_*.tif\n", r"line 2: .*img_\*\.tif is a pattern"),
        ("img_0001.tif\nimg_%04d.tif\n", "line 2: .*is a pattern"),
        ("img_0001.tif\nb µ\n", "line 2: .*is a folder"),
        ("nothing.tif\n", "none of its 1 files is there, the first is .*nothing.tif"),
        ("# nothing\n\n", "the list names no frames"),
        ("b \xb5/img 2.tif\n".encode("latin-1"), "as line 1 shows: save a list as UTF-8"),
        ("img_0001.tif\n".encode("utf-16-le"), "this is neither a frame of a known kind nor a text file of paths"),
        (b"\x7fELF\0\0\0", "this is neither a frame of a known kind nor a text file of paths"),
    ],
)
def test_a_list_that_cannot_be_one_says_where_and_why(folder, content, says):
    with pytest.raises(InputError, match=says):
        listed(folder, content)
