import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.nightly.config import FindConfig
from laue_dask.nightly.scans import find, matches


@pytest.fixture
def tree(tmp_path):
    """Makes files below a beamtime's folder, an hour old."""

    def make(*names, age=3600.0):
        for name in names:
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 100)
            os.utime(path, (time.time() - age,) * 2)
        return tmp_path / "root"

    return make


def names(root, **rules):
    return [scan.name for scan in find(root, FindConfig(**rules), leave_out=root / "out")]


def frames(folder, count=4):
    return [f"{folder}/img_{i}.tif" for i in range(count)]


def test_by_default_every_folder_of_frames_is_a_scan_and_no_other(tree):
    root = tree(*frames("a/scan10"), *frames("a/scan2"), *frames("b"), "logs/x.log", "a/notes.txt")
    assert names(root) == ["a/scan2", "a/scan10", "b"]


def test_runs_stores_hidden_and_excluded_folders_are_passed_over(tree):
    root = tree(
        *frames("a"), *frames("out/runs/x"), *frames("c.zarr"), *frames(".trash/x"), *frames("bad/s"),
        *frames("mine/frames"), "mine/run.json",
    )  # fmt: skip
    assert names(root, exclude=("bad",)) == ["a"]


def test_patterns_choose_folders_and_files(tree):
    root = tree(*frames("a/scan1"), *frames("a/dark"), "b/e1.h5", "b/e2.h5")
    assert names(root, patterns=("*/scan*",)) == ["a/scan1"]
    assert names(root, patterns=("**/*.h5",)) == ["b/e1.h5", "b/e2.h5"]
    assert names(root, patterns=("**/*.h5", "a/*"), exclude=("b/e1*",)) == ["a/dark", "a/scan1", "b/e2.h5"]


def test_lines_are_one_scan_unless_they_match_themselves(tree):
    root = tree(*frames("s/line_01"), *frames("s/line_02"))
    assert names(root, patterns=("*",)) == ["s"]
    assert names(root) == ["s/line_01", "s/line_02"]
    (scan,) = find(root, FindConfig(patterns=("*",)), leave_out=root / "out")
    assert (scan.frames, scan.size) == (8, 800)


def test_a_scan_waits_until_it_is_complete_quiet_and_marked(tree):
    root = tree(*frames("s", 3))
    now = time.time()

    def why(**rules):
        (scan,) = find(root, FindConfig(**rules), leave_out=root / "out")
        return scan.waits(FindConfig(**rules), now)

    assert why() == "3 of 4 frames"
    tree("s/img_3.tif", age=120)
    assert "min ago" in why()
    assert why(quiet_minutes=1) == ""
    assert why(quiet_minutes=1, min_size="1kB") == "0.0 MB of 0.0 MB"
    assert why(quiet_minutes=1, done_marker="DONE") == "no DONE yet"
    tree("s/DONE")
    assert why(quiet_minutes=1, done_marker="DONE") == ""


def test_an_empty_folder_waits(tree):
    root = tree(*frames("a"))
    (root / "b").mkdir()
    (scan,) = [scan for scan in find(root, FindConfig(), leave_out=root / "out") if scan.name == "b"]
    assert scan.waits(FindConfig(), time.time()) == "no frames yet"


def test_a_marker_beside_a_file_carries_its_name(tree):
    rules = FindConfig(patterns=("*.h5",), done_marker=".done")
    root = tree("a.h5", "b.h5", "a.h5.done")
    found = {scan.name: scan.waits(rules, time.time()) for scan in find(root, rules, leave_out=root / "out")}
    assert found == {"a.h5": "", "b.h5": "no .done yet"}


@pytest.mark.parametrize("change", ["grow", "touch", "rename", "fewer"])
def test_any_change_of_the_files_is_another_fingerprint(tree, change):
    root = tree(*frames("s", 5))
    (before,) = find(root, FindConfig(), leave_out=root / "out")
    assert find(root, FindConfig(), leave_out=root / "out") == [before]
    path = root / "s" / "img_4.tif"
    match change:
        case "grow":
            path.write_bytes(b"x" * 101)
            os.utime(path, (before.newest,) * 2)
        case "touch":
            os.utime(path)
        case "rename":
            path.rename(path.with_name("img_9.tif"))
        case "fewer":
            path.unlink()
    (after,) = find(root, FindConfig(), leave_out=root / "out")
    assert after.fingerprint != before.fingerprint


def test_links_that_lead_back_or_nowhere_do_no_harm(tree):
    root = tree(*frames("a"))
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "img_9.tif").symlink_to(root / "nowhere.tif")
    (scan,) = [scan for scan in find(root, FindConfig(), leave_out=root / "out") if scan.name == "a"]
    assert scan.frames == 4


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="is it mounted"):
        find(tmp_path / "no", FindConfig(), leave_out=tmp_path)


@given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=4))
def test_a_path_matches_itself_and_stars_in_its_places(parts):
    assert matches(parts, parts)
    assert matches(parts, ["*"] * len(parts))
    assert matches(parts, ["**"])
    assert matches(parts, ["**", parts[-1]])
    assert not matches(parts, ["*"] * (len(parts) + 1))
    assert not matches(parts, [*parts[:-1], parts[-1] + "c"])
