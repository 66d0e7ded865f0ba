import pytest

from laue_dask.errors import InputError
from laue_dask.io.places import replace_file, require_space


def test_replace_file_keeps_the_old_content_and_leaves_nothing_behind_when_writing_fails(tmp_path):
    path = tmp_path / "report.html"
    replace_file(path, b"old")

    def pieces():
        yield "new"
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        replace_file(path, pieces())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_replace_file_writes_pieces_and_names_that_are_not_utf_8_as_json_does(tmp_path):
    replace_file(tmp_path / "a.json", iter(['{"é": ', '"scan\udcff\n"}\n']))
    assert (tmp_path / "a.json").read_bytes() == '{"é": "scan\\udcff\n"}\n'.encode()


def test_replace_file_gives_the_file_the_usual_permissions(tmp_path):
    replace_file(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_disk_that_is_too_small_is_named_with_both_sizes(tmp_path):
    require_space(tmp_path / "not" / "there", 1)
    with pytest.raises(InputError, match=r"needs 1000000000\.00 GB, the disk at /[^ ]* has [0-9.]+ [GM]B free"):
        require_space(tmp_path / "not" / "there", 10**18)
