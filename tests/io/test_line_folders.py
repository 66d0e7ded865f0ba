import numpy as np
import pytest
from PIL import Image

from laue_dask.errors import InputError
from laue_dask.io.frames import discover
from laue_dask.io.line_folders import why_several_scans


def folders(counts, *, through=False):
    """Folder → paths of its files, numbered in each, or through all."""
    made, number = {}, 0
    for name, count in counts.items():
        first = number if through else 0
        made[name] = [f"{name}/img_{i:05d}.tif" for i in range(first, first + count)]
        number += count
    return made


@pytest.mark.parametrize(
    "counts",
    [
        {f"scan_{i:02d}": 61 for i in range(1, 62)},
        {f"l{i}": 30 for i in (1, 2, 4, 5)},
        {"l1": 30, "l2": 30, "l3": 4},
        {"l1": 30, "l2": 3, "l3": 30, "l4": 30},
        {"l1": 100, "l2": 100},
    ],
)
def test_folders_that_may_be_lines_are(counts):
    assert why_several_scans(folders(counts)) == ""


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ({"s1": 3721, "s2": 3721}, "3721 frames each"),
        ({"s1": 400, "s2": 25, "s3": 9, "s4": 400}, "9 to 400 frames"),
        ({"s2": 9, "s10": 9}, "numbers from 2 to 10"),
    ],
)
def test_folders_that_cannot_be_lines_are_several_scans(counts, why):
    assert why in why_several_scans(folders(counts))
    if len(set(counts.values())) == 1:
        assert why_several_scans(folders(counts, through=True)) == ""


def write(folder, positions):
    folder.mkdir(parents=True)
    for i, (y, x) in enumerate(positions):
        text = f"{i} (Xech={x:.4f} Yech={y:.4f})"
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / f"img_{i:04d}.tif", tiffinfo={270: text})


def grid(ny, nx, first=0.0):
    rng = np.random.default_rng(0)
    return [(first + 0.02 * y, 0.01 * x + rng.normal(0, 3e-4)) for y in range(ny) for x in range(nx)]


def test_headers_tell_lines_from_whole_scans(tmp_path):
    for i in (1, 2, 3):
        write(tmp_path / f"lines/scan_{i}", grid(1, 12, first=0.02 * i))
        write(tmp_path / f"scans/scan_{i}", grid(3, 4))
    assert len(discover(tmp_path / "lines")) == 36
    with pytest.raises(InputError, match=r"each of its 3 folders is a whole scan .*give one of them.*'.*scans/\*/\*'"):
        discover(tmp_path / "scans")
    assert len(discover(f"{tmp_path}/scans/*/*")) == 36
    assert len(discover(tmp_path / "scans/scan_2")) == 12


def test_long_lines_are_lines_where_headers_say_so(tmp_path):
    for i in (1, 2):
        write(tmp_path / f"scan_{i}", grid(1, 110, first=0.02 * i))
    assert len(discover(tmp_path)) == 220
