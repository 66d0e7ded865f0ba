import os
import time

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.io.frames import discover
from laue_dask.nightly.config import FindConfig
from laue_dask.nightly.scans import find_scans, matches


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
    return [scan.name for scan in find_scans(root, FindConfig(**rules), leave_out=root / "out")]


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


def test_lines_are_one_scan_unless_a_pattern_matches_only_them(tree):
    root = tree(*frames("s/line_01"), *frames("s/line_02"))
    assert names(root, patterns=("*",)) == ["s"]
    assert names(root) == ["s"]
    assert names(root, patterns=("*/line*",)) == ["s/line_01", "s/line_02"]
    (scan,) = find_scans(root, FindConfig(), leave_out=root / "out")
    assert (scan.frames, scan.size) == (8, 800)


LAYOUTS = {
    "lines": [name for i in range(1, 62) for name in frames(f"lines/scan_{i:02d}", 5)],
    "numbers": [f"numbers/scan.{i:04d}" for i in range(9)],
    "single": frames("single/only_1"),
    "kinds": ["kinds/a_1.tif", "kinds/a_2.tiff", "kinds/a_3.tif", "kinds/a_4.TIF"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_night_finds_what_run_takes_as_one_scan(tree, layout):
    root = tree(*LAYOUTS[layout])
    for path in root.glob("numbers/*"):
        path.write_bytes(b"II*\0" + bytes(100))
    (scan,) = find_scans(root, FindConfig(), leave_out=root / "out")
    assert scan.frames == len(LAYOUTS[layout]) == len(discover(scan.path))


@pytest.mark.parametrize(
    "layout",
    [
        [*frames("a/scan2", 9), *frames("a/scan10", 9)],
        [*frames("a/x1", 300), *frames("a/x2", 300)],
        [*frames("a/x1", 40), *frames("a/y1", 40)],
    ],
)
def test_what_run_refuses_as_several_scans_are_several_at_night(tree, layout):
    root = tree(*layout)
    assert len(names(root)) == 2
    with pytest.raises(InputError, match="scans"):
        discover(root / "a")


def test_a_stack_is_a_scan_by_the_frames_that_it_holds(tree):
    root = tree("s/notes.txt", "t/notes.txt")
    for name in ("s/one.h5", "two.h5", "t/e_master.h5", "t/e_data_000001.h5"):
        with h5py.File(root / name, "w") as file:
            file["entry/data/data"] = np.zeros((6, 32, 32), np.uint16)
    found = {scan.name: scan.frames for scan in find_scans(root, FindConfig(), leave_out=root / "out")}
    assert found == {"s": 6, "t": 6, "two.h5": 6}
    (path,) = root.glob("*.h5")
    os.utime(path, (1, 1))
    (scan,) = [one for one in find_scans(root, FindConfig(), leave_out=root / "out") if one.name == "two.h5"]
    assert scan.waits(FindConfig(), time.time()) == ""


def test_a_named_pipe_is_no_frame_and_is_not_opened(tree):
    root = tree(*frames("a", 3))
    os.mkfifo(root / "a" / "img_7.tif")
    os.mkfifo(root / "a" / "log.1")
    (scan,) = find_scans(root, FindConfig(), leave_out=root / "out")
    assert scan.frames == 3


def test_a_scan_waits_until_it_is_complete_quiet_and_marked(tree):
    root = tree(*frames("s", 3))
    now = time.time()

    def why(**rules):
        (scan,) = find_scans(root, FindConfig(**rules), leave_out=root / "out")
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
    (scan,) = [scan for scan in find_scans(root, FindConfig(), leave_out=root / "out") if scan.name == "b"]
    assert scan.waits(FindConfig(), time.time()) == "no frames yet"


def test_a_marker_beside_a_file_carries_its_name(tree):
    rules = FindConfig(patterns=("*.h5",), done_marker=".done")
    root = tree("a.h5", "b.h5", "a.h5.done")
    found = {scan.name: scan.waits(rules, time.time()) for scan in find_scans(root, rules, leave_out=root / "out")}
    assert found == {"a.h5": "", "b.h5": "no .done yet"}


@pytest.mark.parametrize("change", ["grow", "touch", "rename", "fewer"])
def test_any_change_of_the_files_is_another_fingerprint(tree, change):
    root = tree(*frames("s", 5))
    (before,) = find_scans(root, FindConfig(), leave_out=root / "out")
    assert find_scans(root, FindConfig(), leave_out=root / "out") == [before]
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
    (after,) = find_scans(root, FindConfig(), leave_out=root / "out")
    assert after.fingerprint != before.fingerprint


def test_links_that_lead_back_or_nowhere_do_no_harm(tree):
    root = tree(*frames("a"))
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "img_9.tif").symlink_to(root / "nowhere.tif")
    (root / "a" / "img_8.tif").symlink_to(root / "a" / "img_8.tif")
    (scan,) = [scan for scan in find_scans(root, FindConfig(), leave_out=root / "out") if scan.name == "a"]
    assert scan.frames == 4


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="is it mounted"):
        find_scans(tmp_path / "no", FindConfig(), leave_out=tmp_path)


@given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=4))
def test_a_path_matches_itself_and_stars_in_its_places(parts):
    assert matches(parts, parts)
    assert matches(parts, ["*"] * len(parts))
    assert matches(parts, ["**"])
    assert matches(parts, ["**", parts[-1]])
    assert not matches(parts, ["*"] * (len(parts) + 1))
    assert not matches(parts, [*parts[:-1], parts[-1] + "c"])
