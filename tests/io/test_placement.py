"""Every input is a scan of which it is known where each frame belongs: there it is put, or a word is said."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.io.frames import FrameRef
from laue_dask.io.geometry import MAX_CHECKED_HEADERS
from laue_dask.io.listing import natural_key
from laue_dask.io.placement import frames_of_scan, place_frames
from laue_dask.io.positions import acquisition

NY, NX = SHAPE = (4, 6)

COUNTED = {
    "plain": lambda i: f"img_{i:04d}.tif",
    "from 1": lambda i: f"img_{i + 1:04d}.tif",
    "unpadded": lambda i: f"img_{i}.tif",
    "packed": lambda i: f"img_{i:04d}.tif.gz",
    "words behind": lambda i: f"img_{i:04d}_raw.tif",
    "extension": lambda i: f"scan.{i:04d}",
    "steps": lambda i: f"img_{10 * i:05d}.tif",
    "time behind": lambda i: f"img_{i:04d}_20240611_12{i // 7:02d}{11 * i % 60:02d}.tif",
    "hash behind": lambda i: f"img_{i:04d}_{(i + 3) * 2654435761 % 2**32:08x}.tif",
    "constants": lambda i: f"s2_0.5s_{i:03d}_18keV.tif",
}
IN_LINES = {
    "rows and columns": lambda i: f"map_r{i // NX:02d}_c{i % NX:03d}.tif",
    "columns and rows": lambda i: f"x{i % NX}_y{i // NX}.tif",
    "line folders": lambda i: f"line_{i // NX:02d}/img_{i % NX:04d}.tif",
    "line folders from 1": lambda i: f"line_{i // NX + 1}/img_{i % NX + 1}.tif",
    "line folders, numbered through": lambda i: f"line_{i // NX + 1:02d}/img_{i:05d}.tif",
    "line and number": lambda i: f"img_line{i // NX:02d}_{i:04d}.tif",
}


def refs_of(names, folder="/data/scan 1"):
    return [FrameRef(f"{folder}/{name}") for name in sorted(names, key=natural_key)]


def placed(refs, **known):
    """Name → pattern of every frame that was placed."""
    found = place_frames(refs, **known)
    assert found.pattern.max() < found.shape[0] * found.shape[1]
    at = [p for p in found.pattern.tolist() if p >= 0]
    assert len(set(at)) == len(at)
    return {ref.path.removeprefix("/data/scan 1/"): p for ref, p in zip(refs, found.pattern.tolist(), strict=True)}


def scan(naming, points=range(NY * NX)):
    return {naming(i): i for i in points}


@pytest.mark.parametrize("lost", [0, 5, 6, 13, 23])
@pytest.mark.parametrize("naming", [*COUNTED, *IN_LINES])
def test_a_missing_file_leaves_its_own_place_or_is_asked_for(naming, lost):
    truth = scan({**COUNTED, **IN_LINES}[naming], set(range(NY * NX)) - {lost})
    try:
        found = placed(refs_of(truth), shape=SHAPE)
    except InputError as error:
        # nobody can know: of numbers from 1 the last may be missing, of numbers from 0 the first
        unknown = naming in COUNTED and lost in (0, 23)
        assert unknown
        assert "are the first or the last missing? Give --first-number" in str(error)  # noqa: PT017
        first = 1 if naming == "from 1" else 0
        assert placed(refs_of(truth), shape=SHAPE, first_number=first) == truth
    else:
        assert found == truth


@pytest.mark.parametrize("naming", IN_LINES)
def test_rows_columns_and_folders_of_lines_are_a_grid_without_a_shape(naming):
    for lost in (5, 13):
        truth = scan(IN_LINES[naming], set(range(NY * NX)) - {lost})
        assert placed(refs_of(truth)) == truth
        assert place_frames(refs_of(truth)).shape == SHAPE
    with pytest.raises(InputError, match=r"--shape 6 4, but .* 4 × 6: .*--insist"):
        place_frames(refs_of(scan(IN_LINES[naming])), shape=(6, 4))


def test_a_missing_folder_of_a_line_leaves_an_empty_line():
    for naming in ("line folders", "line folders, numbered through"):
        truth = scan(IN_LINES[naming], [i for i in range(24) if i // NX != 2])
        assert placed(refs_of(truth)) == truth


@pytest.mark.parametrize("naming", COUNTED)
def test_a_count_alone_asks_for_the_shape_and_proposes_those_of_all_points(naming):
    truth = scan(COUNTED[naming], set(range(24)) - {5})
    with pytest.raises(InputError, match=r"give --shape NY NX \(23 files, numbered .*, 24 points .*: 4 × 6"):
        place_frames(refs_of(truth))


ODD = {
    "dark": ["dark_0001.tif"],
    "darks": [f"dark_{i:04d}.tif" for i in range(9)],
    "a copy": ["img_0007 (1).tif"],
    "another copy": ["img_0007_copy.tif"],
    "one more copy": ["Copy of img_0007.tif"],
    "unpadded": ["img_7.tif"],
    "an average": ["average.tif"],
    "a test": ["test.tif", "img_test.tif"],
    "packed beside itself": ["img_0007.tif.gz"],
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("lost", [(), (7,), (23,), (5,)])
def test_files_that_are_none_of_the_scan_are_named_and_no_points(odd, lost):
    if odd == "packed beside itself" and 7 in lost:
        return  # then it is the frame
    truth = scan(COUNTED["plain"], set(range(24)) - set(lost))
    refs = refs_of([*truth, *ODD[odd]])
    found = place_frames(refs, shape=SHAPE)
    assert placed(refs, shape=SHAPE) == truth | dict.fromkeys(ODD[odd], -1)
    assert {refs[i].path.rpartition("/")[2] for i in found.left_out} == set(ODD[odd])
    assert ODD[odd][0] in found.warning(refs) or len(ODD[odd]) > 1
    assert found.missing == len(lost)
    assert len(frames_of_scan(refs)) == len(truth)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([f"a_{i:03d}.tif" for i in range(24)] + [f"b_{i:03d}.tif" for i in range(24)], ["a_*.tif", "b_*.tif"]),
        ([f"a_{i:03d}.tif" for i in range(12)] + [f"b_{i:03d}.tif" for i in range(12, 24)], ["a_*.tif", "b_*.tif"]),
        (
            [f"scan1_{i:03d}.tif" for i in range(24)] + [f"scan2_{i:03d}.tif" for i in range(24)],
            ["scan1_*.tif", "scan2_*.tif"],
        ),
        ([f"img_{i}.tif" for i in range(24)] + [f"img_{i:04d}.tif" for i in range(24)], ["same number"]),
        ([f"img_{i:04d}_{i * 7919 % 1000:03d}.tif" for i in range(23)] + ["img_0007_999.tif"], ["same number"]),
        ([f"img_{i:04d}.tif" for i in range(23)] + ["img_9999.tif"], ["9999", "--insist"]),
        ([f"img_{i:04d}.tif" for i in range(25) if i != 12], ["numbered 0 to 24", "--insist"]),
    ],
    ids=["two", "half and half", "two scans", "both ways", "twice", "far away", "one too many and one missing"],
)
def test_files_of_which_nobody_knows_which_are_the_scan_are_refused_by_name(names, words):
    with pytest.raises(InputError) as caught:
        place_frames(refs_of(names), shape=SHAPE)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("short", [None, 0, 2, 3])
@pytest.mark.parametrize("order", ["raster", "snake"])
def test_a_stack_for_each_row_may_be_short_at_its_end(short, order):
    truth = []
    refs = []
    for i, pattern in enumerate(acquisition(SHAPE, order).tolist()):
        if short is None or i // NX != short or i % NX < 4:
            refs.append(FrameRef(f"/d/row_{i // NX:02d}.h5", "/data", i % NX))
            truth.append(pattern)
    assert place_frames(refs, shape=SHAPE, order=order).pattern.tolist() == truth
    without = [ref for ref in refs if "row_01" not in ref.path]
    left = [pattern for ref, pattern in zip(refs, truth, strict=True) if "row_01" not in ref.path]
    assert place_frames(without, shape=SHAPE, order=order).pattern.tolist() == left


def test_stacks_of_other_lengths_are_only_placed_where_no_frame_is_missing():
    lengths = [5, 9, 10]
    refs = [FrameRef(f"/d/a_{f}.h5", "/d", i) for f, length in enumerate(lengths) for i in range(length)]
    assert place_frames(refs, shape=SHAPE).pattern.tolist() == list(range(24))
    with pytest.raises(InputError, match=r"3 files hold 4 to 10 frames each, 23 of 24: which are missing is not known"):
        place_frames(refs[1:5] + refs[5:], shape=SHAPE)


def test_a_file_that_tells_its_own_grid_is_believed():
    refs = [FrameRef("/d/grid.h5", "/entry/data", i) for i in range(24)]
    assert place_frames(refs, grid_hint=SHAPE).shape == SHAPE
    with pytest.raises(InputError, match=r"--shape 6 4, but the file says 4 × 6"):
        place_frames(refs, grid_hint=SHAPE, shape=(6, 4))
    assert place_frames(refs, grid_hint=SHAPE, shape=(6, 4), insist=True).shape == (6, 4)


def test_a_list_is_in_the_order_of_the_acquisition_and_may_not_contradict_the_numbers():
    names = [COUNTED["plain"](i) for i in range(24)]
    swapped = [FrameRef(f"/d/{name}") for name in [*names[:4], names[5], names[4], *names[6:]]]
    with pytest.raises(InputError, match=r"the list has img_0005.tif before img_0004.tif"):
        place_frames(swapped, shape=SHAPE, listed=True)
    assert place_frames(swapped, shape=SHAPE, listed=True, insist=True).pattern.tolist() == list(range(24))
    kept = [i for i in range(24) if i != 9]
    assert place_frames([FrameRef(f"/d/{names[i]}") for i in kept], shape=SHAPE, listed=True).pattern.tolist() == kept
    anyhow = [FrameRef(f"/d/{name}.tif") for name in "qwertyuiopasdfghjklzxcvb"]
    assert place_frames(anyhow, shape=SHAPE, listed=True).pattern.tolist() == list(range(24))


def positions_of(pattern, shape=SHAPE, jitter=0.0):
    y, x = np.divmod(pattern, shape[1])
    noise = np.random.default_rng(0).uniform(-jitter, jitter, (len(pattern), 2))
    return np.stack([2 + 0.5 * y, 1 - 0.2 * x], axis=1) + noise * [0.5, 0.2]


class TestHeaders:
    snake = acquisition(SHAPE, "snake")
    refs = refs_of(scan(COUNTED["plain"]))

    @pytest.mark.parametrize("shape", [None, SHAPE])
    @pytest.mark.parametrize("order", [None, "snake"])
    def test_say_the_order(self, shape, order):
        found = place_frames(self.refs, shape=shape, order=order, positions=positions_of(self.snake, jitter=0.2))
        assert found.pattern.tolist() == self.snake.tolist()
        assert (found.shape, found.order) == (SHAPE, "snake")
        assert "frame 1 of row 2 is img_0006.tif" in found.line

    @pytest.mark.parametrize(
        ("known", "words"),
        [
            ({"shape": (6, 4)}, r"--shape 6 4, but the stage positions in 24 headers say 4 × 6: .*--insist"),
            ({"shape": (3, 8)}, r"--shape 3 8, but the stage positions in 24 headers say 4 × 6: .*--insist"),
            ({"order": "raster"}, r"--order raster, but the stage positions in 24 headers say snake: .*--insist"),
            ({"shape": SHAPE, "order": "raster"}, r"--order raster, but .* say snake: .*--insist"),
        ],
    )
    def test_that_contradict_an_option_are_both_named(self, known, words):
        with pytest.raises(InputError, match=words) as caught:
            place_frames(self.refs, **known, positions=positions_of(self.snake))
        assert "\n" not in str(caught.value)
        found = place_frames(self.refs, **known, positions=positions_of(self.snake), insist=True)
        wanted = acquisition(known.get("shape", SHAPE), known.get("order", "raster"))
        assert found.pattern.tolist() == wanted.tolist()

    @pytest.mark.parametrize("lost", [0, 5, 6, 11, 23])
    @pytest.mark.parametrize("shape", [None, SHAPE])
    def test_tell_which_frame_is_missing(self, lost, shape):
        kept = np.delete(np.arange(24), lost)
        refs = [self.refs[i] for i in kept]
        found = place_frames(refs, shape=shape, positions=positions_of(self.snake[kept]))
        assert found.pattern.tolist() == self.snake[kept].tolist()
        assert found.missing == 1

    @pytest.mark.parametrize("first", [0, 1])
    def test_tell_which_number_is_the_first_points_of_an_aborted_scan(self, first):
        refs = refs_of([f"img_{i + first:04d}.tif" for i in range(14)])
        assert place_frames(refs, shape=SHAPE, positions=positions_of(self.snake[:14])).pattern.tolist() == (
            self.snake[:14].tolist()
        )

    def test_contradict_rows_and_columns_in_the_names(self):
        refs = refs_of(scan(IN_LINES["rows and columns"]))
        mirrored = positions_of(np.arange(24).reshape(6, 4).T.ravel())
        with pytest.raises(InputError, match=r"row and column numbers in the names say 4 × 6, but .*--insist"):
            place_frames(refs, positions=mirrored)
        assert place_frames(refs, positions=mirrored, insist=True).pattern.tolist() == list(range(24))
        assert place_frames(refs, positions=positions_of(np.arange(24))).pattern.tolist() == list(range(24))

    def test_of_a_large_scan_with_a_known_shape_are_read_here_and_there(self):
        shape = (60, 70)
        sequence = acquisition(shape, "snake")
        stage = positions_of(sequence, shape, jitter=0.15)
        refs = [FrameRef(f"/d/img_{i:05d}.tif") for i in range(4200)]
        asked = []

        def read(chosen):
            asked.append(len(chosen))
            return stage[list(chosen)]

        found = place_frames(refs, shape=shape, positions=read)
        assert found.pattern.tolist() == sequence.tolist()
        assert max(asked) <= MAX_CHECKED_HEADERS
        with pytest.raises(InputError, match=r"--shape 70 60, but the stage positions in 4200 headers say 60 × 70"):
            place_frames(refs, shape=(70, 60), positions=read)
        assert place_frames(refs, positions=read).pattern.tolist() == sequence.tolist()
        assert asked[-1] == 4200


def hexagonal(ny, nx):
    y, x = np.divmod(np.arange(ny * nx), nx)
    return np.stack([0.87 * y, x + 0.5 * (y % 2)], axis=1)


def lines_of(counts):
    return np.array([(y, x) for y, n in enumerate(counts) for x in np.linspace(0, 5, n)])


def turned(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    y, x = np.divmod(np.arange(24), 6)
    return np.stack([c * y + s * x, c * x - s * y], axis=1).astype(float)


def spiral(n):
    angle = np.sqrt(np.arange(n)) * 2.4
    return np.stack([angle * np.sin(angle), angle * np.cos(angle)], axis=1)


@pytest.mark.parametrize(
    ("stage", "shape"),
    [
        (hexagonal(4, 6), SHAPE),
        (hexagonal(4, 6)[:, ::-1], SHAPE),
        (hexagonal(7, 9), (7, 9)),
        (hexagonal(12, 3), (12, 3)),
        (lines_of([6, 5, 6, 5, 6]), (4, 7)),
        (lines_of([4, 5, 6, 7]), (2, 11)),
        (spiral(24), SHAPE),
        (turned(45), (6, 4)),
    ],
    ids=["hexagonal", "columns", "larger", "narrow", "5 or 6", "4 to 7", "spiral", "turned"],
)
def test_stage_positions_that_are_no_rectangle_are_never_woven_together(stage, shape):
    refs = refs_of(scan(COUNTED["plain"], range(len(stage))))
    for known in ({}, {"shape": shape}):
        with pytest.raises(InputError) as caught:
            place_frames(refs, positions=stage, **known)
        assert "\n" not in str(caught.value)
    assert place_frames(refs, positions=stage, shape=shape, insist=True).shape == shape


def test_a_hexagonal_grid_is_called_so():
    with pytest.raises(InputError, match="hexagonal"):
        place_frames(refs_of(scan(COUNTED["plain"], range(63))), positions=hexagonal(7, 9), shape=(7, 9))
    with pytest.raises(InputError, match="hexagonal"):
        place_frames(refs_of(scan(COUNTED["plain"], range(63))), positions=hexagonal(7, 9))


@pytest.mark.parametrize("degrees", [0, 2, 10])
def test_a_grid_that_is_turned_a_little_is_placed_truly_where_its_shape_is_given(degrees):
    refs = refs_of(scan(COUNTED["plain"]))
    assert place_frames(refs, positions=turned(degrees), shape=SHAPE).pattern.tolist() == list(range(24))


def test_while_a_scan_is_measured_its_first_file_is_the_first_point():
    for there in (range(3, 4), range(3, 9), [3, 4, 6, 7, 12]):
        refs = refs_of(scan(COUNTED["plain"], there))
        found = place_frames(refs, shape=SHAPE, from_first=True, aborted=True)
        assert found.pattern.tolist() == [i - 3 for i in there]
        assert found.assumed == 3
    with pytest.raises(InputError, match="--first-number"):
        place_frames(refs_of(scan(COUNTED["plain"], range(3, 20))), shape=SHAPE)
    again = place_frames(refs_of(scan(COUNTED["plain"], range(3, 20))), shape=SHAPE, first_number=3)
    assert again.pattern.tolist() == list(range(17))


@given(st.data())
def test_no_frame_of_a_generated_scan_is_silently_at_the_wrong_place(data):
    ny, nx = shape = data.draw(st.tuples(st.integers(3, 7), st.integers(3, 7)))
    first, width = data.draw(st.sampled_from([0, 1, 7, 1000])), data.draw(st.sampled_from([0, 5]))
    kind = data.draw(st.sampled_from(["count", "cells", "folders", "through", "time"]))
    order = data.draw(st.sampled_from(["raster", "snake"]))
    sequence = acquisition(shape, order).tolist()

    def name(i):
        y, x = divmod(sequence[i], nx)
        match kind:
            case "count":
                return f"a1_{i + first:0{width}d}.tif"
            case "cells":
                return f"s_y{y + first:0{width}d}_x{x + first:0{width}d}.tif"
            case "folders":
                return f"l_{i // nx + first:0{width}d}/f{i % nx:0{width}d}.tif"
            case "through":
                return f"l_{i // nx + first:0{width}d}/f{i:0{width}d}.tif"
        return f"a_{i + first:0{width}d}_{120000 + 7 * i}.tif"

    lost = data.draw(st.sets(st.integers(0, ny * nx - 1), max_size=ny * nx // 3))
    truth = {name(i): sequence[i] for i in range(ny * nx) if i not in lost}
    odd = data.draw(st.sampled_from([[], ["dark_1.tif"], ["x/flat.tif"]])) if kind in ("count", "time", "cells") else []
    refs = refs_of([*truth, *odd])
    known = {"order": order} if kind != "cells" else {}
    if data.draw(st.booleans()):
        told = np.array([truth.get(ref.path.removeprefix("/data/scan 1/"), -1) for ref in refs])
        known = {
            "positions": [tuple(p) if t >= 0 else None for p, t in zip(positions_of(told, shape), told, strict=True)]
        }
    if data.draw(st.booleans()):
        known["shape"] = shape
    try:
        found = place_frames(refs, **known)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert lost or odd or "shape" not in known
        return
    got = {ref.path.removeprefix("/data/scan 1/"): p for ref, p in zip(refs, found.pattern.tolist(), strict=True)}
    if found.shape == shape:
        assert got == truth | dict.fromkeys(odd, -1)
    else:
        # Whole lines that are missing at an edge cannot be known, nor that the first one went the other way.
        assert "shape" not in known
        y, x = np.divmod([p for p in got.values() if p >= 0], found.shape[1])
        v, u = np.divmod([truth[n] for n, p in got.items() if p >= 0], nx)
        assert len(set((v - y).tolist())) == 1
        assert 1 in (len(set((u - x).tolist())), len(set((u + x).tolist())))


def test_a_shape_whose_lines_would_all_end_empty_is_held_against_the_stage_positions():
    refs = [FrameRef(f"/scan/img_{i:04d}.tif") for i in range(1, 15)]
    columns = [*range(7), *range(6, -1, -1)]
    positions = [(i // 7 * 0.01, column * 0.01) for i, column in enumerate(columns)]
    with pytest.raises(InputError, match="--shape 2 8, but the stage positions in 14 headers say 2 × 7"):
        place_frames(refs, shape=(2, 8), positions=positions)
    assert place_frames(refs, shape=(2, 7), positions=positions).shape == (2, 7)
