import pytest

from laue_dask.io.places import replace_file


def test_replace_file_keeps_the_old_content_and_leaves_nothing_behind_when_writing_fails(tmp_path):
    path = tmp_path / "report.html"
    replace_file(path, b"old")
    with pytest.raises(TypeError):
        replace_file(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_replace_file_gives_the_file_the_usual_permissions(tmp_path):
    replace_file(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
