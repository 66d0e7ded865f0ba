import glob
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.io.frames import discover
from laue_dask.io.path_patterns import glob_to_path, is_pattern, understood


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder, source):
    return [os.path.relpath(ref.path, folder) for ref in discover(f"{folder}/{source}")]


NUMBERED = [f"img_{i:05d}.tif" for i in (0, 1, 10, 99999, 100000)]


@pytest.mark.parametrize(
    "template",
    ["img_%05d.tif", "img_%05i.tif", "img_#####.tif", "img_{:05d}.tif", "img_{n:05}.tif", "img_#.tif", "img_%d.tif"],
)
def test_a_template_means_every_numbered_file_and_no_other(tmp_path, template):
    touch(tmp_path, *NUMBERED, "img_dark.tif", "img_0002.tif.bak", "img_00001_raw.tif", "dark_00001.tif")
    assert found(tmp_path, template) == NUMBERED


def test_the_width_of_a_field_is_that_of_the_numbers(tmp_path):
    touch(tmp_path, "img_0001.tif", "img_001.tif", "img_00001.tif", "img_  12.tif")
    assert found(tmp_path, "img_%04d.tif") == ["img_0001.tif"]
    assert found(tmp_path, "img_###.tif") == ["img_001.tif"]
    assert found(tmp_path, "img_%4d.tif") == ["img_  12.tif"]


def test_templates_with_directories_and_globs_beside_them(tmp_path):
    names = [f"scan_{y:02d}/img_{x:03d}.tif" for y in (1, 2) for x in range(3)]
    touch(tmp_path, *names, "scan_dark/img_000.tif", "scan_01/img_000.edf")
    assert found(tmp_path, "scan_%02d/img_%03d.tif") == names
    assert found(tmp_path, "scan_##/img_###.tif") == names
    assert found(tmp_path, "s*_##/img_%03d.tif") == names
    assert found(tmp_path, "**/scan_[0-9]?/img_%03d.tif") == names


def test_a_template_that_nothing_fits_says_so(tmp_path):
    touch(tmp_path, "img_1.tif")
    with pytest.raises(InputError, match=r"img_%05d\.tif: no file matches"):
        discover(f"{tmp_path}/img_%05d.tif")


@pytest.mark.parametrize("name", ["a[1]", "a[b", "a*b", "a?b", "#1", "50%d", "run_##", "{x}", "[!a]", "a]["])
def test_what_is_there_by_its_very_name_is_a_path(tmp_path, name):
    touch(tmp_path, *(f"{name}/img_{i}.tif" for i in (1, 2, 10)), "a1/img_7.tif", "x/img_8.tif")
    expected = [f"{name}/img_{i}.tif" for i in (1, 2, 10)]
    assert found(tmp_path, name) == expected
    assert found(tmp_path, f"{name}/") == expected
    assert found(tmp_path, f"{name}/*.tif") == expected
    assert found(tmp_path, f"{name}/img_#.tif") == expected
    assert found(tmp_path, f"{name}/img_[12].tif") == expected[:2]
    assert found(tmp_path, f"{glob.escape(name)}/*.tif") == expected
    assert found(tmp_path, f"{name}/img_10.tif") == expected[2:]
    (tmp_path / "list.txt").write_text(f'"{name}/img_2.tif"\n"{name}/img_1.tif"\n')
    assert found(tmp_path, "list.txt") == [expected[1], expected[0]]


def test_a_file_with_brackets_in_its_name_is_that_file(tmp_path):
    touch(tmp_path, "a[1].tif", "a1.tif", "b#.tif", "b1.tif")
    assert found(tmp_path, "a[1].tif") == ["a[1].tif"]
    assert found(tmp_path, "b#.tif") == ["b#.tif"]
    assert found(tmp_path, "b##.tif".replace("##", "[#]")) == ["b#.tif"]


def test_brackets_with_backslashes_are_taken_literally(tmp_path):
    touch(tmp_path, "a[1]_x/img_1.tif", "a1_x/img_2.tif")
    assert found(tmp_path, r"a\[1\]_?/*.tif") == ["a[1]_x/img_1.tif"]


def test_as_it_was_typed_wins_over_what_a_template_means(tmp_path):
    touch(tmp_path, "s#1_1.tif", "s#1_2.tif", "s11_1.tif")
    assert found(tmp_path, "s#1_*.tif") == ["s#1_1.tif", "s#1_2.tif"]
    assert found(tmp_path, "s##_*.tif") == ["s11_1.tif"]


def test_a_glob_that_matches_folders_alone_says_what_to_add(tmp_path):
    touch(tmp_path, "scan_1/img_1.tif", "scan_2/img_1.tif")
    with pytest.raises(InputError, match=r"scan_\*: matches folders and no files: .*add /\*"):
        discover(f"{tmp_path}/scan_*")


@given(st.text("ab[]*?!#%d{}:5/\\^-", max_size=12))
def test_any_text_is_a_path_or_a_pattern(text):
    pattern = understood(f"/nowhere/{text}")
    if pattern is not None:
        pattern.matches(lambda name: iter([f"/nowhere/{text}", name]))
    assert is_pattern(f"/nowhere/{text}") == (pattern is not None)


@given(st.text("ab[]*?!/", max_size=12))
def test_an_escaped_path_is_understood_again(text):
    assert glob_to_path(glob.escape(text)) == text


@given(st.integers(0, 10**7), st.integers(1, 6))
def test_a_field_takes_the_numbers_that_printf_writes(number, width):
    for template, name in ((f"%0{width}d", f"{number:0{width}d}"), (f"%{width}d", f"{number:{width}d}")):
        accepts = understood(f"/nowhere/a_{template}.tif").accepts
        assert accepts.fullmatch(f"/nowhere/a_{name}.tif")
        assert not accepts.fullmatch(f"/nowhere/a_{name}x.tif")
        assert not accepts.fullmatch(f"/nowhere/a_0{name}.tif") or len(name) < width
