import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from laue_dask.errors import InputError
from laue_dask.io.frames import discover, read_position
from laue_dask.io.geometry import Places, acquisition, resolve_grid

orders = st.sampled_from(["raster", "snake"])
axes = st.sampled_from(["x", "y"])
sides = st.integers(1, 14)


def stage(sequence, nx, *, steps=(0.5, 0.2), origin=(3.0, -7.0), jitter=0.0, seed=0):
    """Positions (n, 2) of a stage that goes through the patterns of `sequence`."""
    y, x = np.divmod(sequence, nx)
    noise = np.random.default_rng(seed).uniform(-jitter, jitter, (len(sequence), 2)) * min(map(abs, steps))
    return np.stack([origin[0] + steps[0] * y, origin[1] + steps[1] * x], axis=1) + noise


@given(
    shape=st.tuples(sides, sides),
    order=orders,
    fast=axes,
    steps=st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)),
    signs=st.tuples(st.sampled_from([-1, 1]), st.sampled_from([-1, 1])),
    origin=st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)),
    jitter=st.sampled_from([0.0, 0.02, 0.15]),
    data=st.data(),
)
def test_any_scan_whole_or_aborted_is_recovered_from_its_positions(
    shape, order, fast, steps, signs, origin, jitter, data
):
    ny, nx = shape
    assume(ny * nx > 1)
    line = nx if fast == "x" else ny
    n = data.draw(st.integers(min(ny * nx, max(2, 2 * line)), ny * nx))
    sequence = acquisition(shape, order, fast)[:n]
    positions = stage(sequence, nx, steps=np.multiply(steps, signs), origin=origin, jitter=jitter, seed=n)
    grid = resolve_grid(n, positions=positions)
    lines = -(-n // line)
    seen = (lines, nx) if fast == "x" else (ny, lines)
    y, x = np.divmod(sequence, nx)
    assert grid.shape == seen
    np.testing.assert_array_equal(grid.pattern, y * seen[1] + x)
    np.testing.assert_array_equal(grid.position[grid.pattern], positions)
    assert np.isnan(grid.position).all(axis=1).sum() == seen[0] * seen[1] - n
    if min(seen) > 1 and (line, lines) != (2, 2):
        assert (grid.order, grid.fast_axis) == (order, fast)


@given(shape=st.tuples(st.integers(2, 12), st.integers(3, 12)), order=orders, data=st.data())
def test_points_and_lines_that_are_missing_stay_empty(shape, order, data):
    ny, nx = shape
    sequence = acquisition(shape, order)
    first, last = sequence[0], sequence[-1]
    lost = data.draw(st.sets(st.sampled_from(sequence.tolist()), max_size=ny * nx // 6))
    kept = np.array([p for p in sequence if p not in lost - {first, last, nx - 1, (ny - 1) * nx}])
    grid = resolve_grid(len(kept), positions=stage(kept, nx))
    assert grid.shape == shape
    np.testing.assert_array_equal(grid.pattern, kept)


@given(shape=st.tuples(st.integers(4, 12), st.integers(4, 12)), order=orders, fast=axes, data=st.data())
def test_frames_whose_header_is_unreadable_take_the_place_between_their_neighbours(shape, order, fast, data):
    ny, nx = shape
    sequence = acquisition(shape, order, fast)
    positions = stage(sequence, nx, jitter=0.05)
    lost = data.draw(st.sets(st.integers(1, ny * nx - 2), max_size=2))
    broken = [None if i in lost else tuple(pair) for i, pair in enumerate(positions)]
    grid = resolve_grid(ny * nx, positions=broken)
    np.testing.assert_array_equal(grid.pattern, sequence)


def test_unreadable_header_beside_a_gap_asks_for_the_shape():
    sequence = np.delete(acquisition((4, 5), "raster"), 7)
    positions = stage(sequence, 5)
    positions[7] = np.nan
    with pytest.raises(InputError, match=r"frame 7 has no stage position.*--shape"):
        resolve_grid(19, positions=positions)


@given(shape=st.tuples(sides, sides), order=orders)
def test_given_shape_places_every_pattern_once(shape, order):
    n = shape[0] * shape[1]
    grid = resolve_grid(n, shape=shape, order=order)
    assert sorted(grid.pattern) == list(range(n))
    assert (grid.shape, grid.order) == (shape, order)
    if order == "raster":
        np.testing.assert_array_equal(grid.pattern, np.arange(n))


def test_snake_runs_every_second_line_back():
    np.testing.assert_array_equal(resolve_grid(6, shape=(2, 3), order="snake").pattern, [0, 1, 2, 5, 4, 3])
    np.testing.assert_array_equal(acquisition((2, 3), "snake", "y"), [0, 3, 4, 1, 2, 5])


def test_last_points_of_an_aborted_scan_are_empty():
    grid = resolve_grid(812, shape=(30, 30))
    np.testing.assert_array_equal(grid.pattern, np.arange(812))
    assert grid.position.shape == (900, 2)


@pytest.mark.parametrize(
    ("n", "shape", "message"),
    [
        (3721, (60, 61), r"3721 frames do not fit --shape 60 61 = 3660 points: did you mean 61 × 61"),
        (624, (24, 24), r"did you mean 26 × 24 or 24 × 26"),
        (100, (30, 30), r"100 frames are fewer than half of --shape 30 30 = 900 points"),
        (10, (0, 10), r"both must be at least 1"),
    ],
)
def test_shape_that_does_not_fit_is_refused_with_a_proposal(n, shape, message):
    with pytest.raises(InputError, match=message) as caught:
        resolve_grid(n, shape=shape)
    assert "\n" not in str(caught.value)


def test_proposal_comes_from_the_positions_first():
    positions = stage(acquisition((26, 24), "raster"), 24)
    with pytest.raises(InputError, match="did you mean 26 × 24"):
        resolve_grid(624, shape=(25, 24), positions=positions)


def test_shape_and_positions_that_agree_keep_the_order_of_the_positions():
    sequence = acquisition((6, 7), "snake")[:38]
    grid = resolve_grid(38, shape=(6, 7), positions=stage(sequence, 7))
    np.testing.assert_array_equal(grid.pattern, sequence)
    assert grid.order == "snake"
    assert "as given and as the stage positions of 38 headers say" in grid.how


def test_given_shape_that_the_positions_contradict_is_refused_unless_somebody_insists():
    positions = stage(acquisition((6, 7), "raster"), 7)
    with pytest.raises(InputError, match=r"--shape 7 6, but the stage positions in 42 headers say 6 × 7: .*--insist"):
        resolve_grid(42, shape=(7, 6), positions=positions)
    grid = resolve_grid(42, shape=(7, 6), positions=positions, insist=True)
    np.testing.assert_array_equal(grid.pattern, np.arange(42))
    assert grid.shape == (7, 6)
    assert grid.how == "7 × 6, raster, as given, with --insist"


def test_given_shape_is_used_where_the_stage_did_not_move_as_read_if_somebody_insists():
    positions = stage(acquisition((3, 4), "raster"), 4)
    positions[5] = positions[2]
    with pytest.raises(InputError, match="frames 2 and 5 were taken at the same stage position"):
        resolve_grid(12, positions=positions)
    with pytest.raises(InputError, match=r"frames 2 and 5 .*; --shape 3 4: give --insist"):
        resolve_grid(12, shape=(3, 4), positions=positions)
    grid = resolve_grid(12, shape=(3, 4), positions=positions, insist=True)
    np.testing.assert_array_equal(grid.pattern, np.arange(12))


@given(
    shape=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    order=orders,
    fast=axes,
    given=st.booleans(),
    at_the_end=st.booleans(),
    leading=st.booleans(),
    data=st.data(),
)
def test_of_points_that_were_measured_again_the_last_frame_counts(shape, order, fast, given, at_the_end, leading, data):
    ny, nx = shape
    sequence = acquisition(shape, order, fast).tolist()
    some = st.lists(st.sampled_from(sequence), min_size=1, max_size=ny * nx // 8)
    # the beam came up late: the first points again
    again = sequence[: data.draw(st.integers(1, ny * nx // 8))] if leading else data.draw(some)
    frames = list(sequence)
    for point in again:
        place = len(frames) if at_the_end else frames.index(point) + 1
        frames.insert(place, point)
    grid = resolve_grid(len(frames), positions=stage(np.array(frames), nx, jitter=0.02), shape=shape if given else None)
    last = {point: i for i, point in enumerate(frames)}
    assert grid.shape == shape
    assert grid.pattern.tolist() == [point if last[point] == i else -1 for i, point in enumerate(frames)]
    assert grid.how.endswith(f"; {len(again)} of {len(frames)} frames measured again")
    assert np.isfinite(grid.position).all()
    if min(shape) > 1:
        assert (grid.order, grid.fast_axis) == (order, fast)


@pytest.mark.parametrize(
    "frames",
    [
        [*range(60), *[60] * 40],  # the stage stuck, or what tells its position
        [*range(65), *[65] * 35],
        [*range(100), *range(40)],  # a scan that was begun again
        [*range(50), *range(100)],
        [*range(100), *range(100)],
        [*range(30), *range(31, 100), 5, 6],
    ],
    ids=["stuck", "stuck in a line", "again", "begun twice", "twice", "a hole"],
)
def test_frames_at_one_place_that_may_be_anything_are_refused(frames):
    positions = stage(np.array(frames), 10)
    with pytest.raises(InputError, match="were taken at the same stage position"):
        resolve_grid(len(frames), positions=positions)
    if len(frames) > 100:
        with pytest.raises(InputError, match="frames do not fit --shape 10 10"):
            resolve_grid(len(frames), positions=positions, shape=(10, 10))


@pytest.mark.parametrize("positions", [None, [None] * 900, [(1.0, 2.0)] * 900])
def test_unknown_grid_asks_for_a_shape_and_proposes_some(positions):
    with pytest.raises(InputError, match=r"--shape NY NX \(900 frames: 30 × 30, 25 × 36"):
        resolve_grid(900, positions=positions)


def test_one_frame_is_a_scan_of_one_point():
    grid = resolve_grid(1)
    assert (grid.shape, grid.pattern.tolist()) == ((1, 1), [0])
    with pytest.raises(InputError, match="no frames"):
        resolve_grid(0)


@given(lines=st.integers(2, 9), points=st.integers(1, 9), axis=axes, slow=st.booleans(), step=st.floats(0.1, 5))
def test_lines_are_counted_where_only_one_coordinate_moves(lines, points, axis, slow, step):
    index = np.repeat(np.arange(lines), points) if slow else np.tile(np.arange(lines), points)
    positions = np.full((lines * points, 2), 6.0)
    positions[:, 0 if axis == "y" else 1] = 1.0 + step * index
    grid = resolve_grid(lines * points, positions=positions)
    assert grid.shape == ((lines, points) if axis == "y" else (points, lines))
    place = np.divmod(grid.pattern, grid.shape[1])[0 if axis == "y" else 1]
    np.testing.assert_array_equal(place, index)
    assert len(set(grid.pattern.tolist())) == lines * points


def test_real_scans_of_two_frames_lie_along_the_axis_that_moved(data_dir):
    als = [read_position(ref) for ref in discover(data_dir / "frames" / "als_1232")]
    bm32 = [read_position(ref) for ref in discover(data_dir / "frames" / "esrf_bm32" / "nw1_*.tif")]
    assert resolve_grid(2, positions=als).shape == (2, 1)
    assert resolve_grid(2, positions=bm32).shape == (1, 2)


def test_scan_of_a_night_is_resolved_from_noisy_encoders():
    sequence = acquisition((150, 210), "snake")[:-77]
    positions = stage(sequence, 210, steps=(0.01, 0.01), jitter=0.2)
    grid = resolve_grid(len(positions), positions=positions)
    assert (grid.shape, grid.order) == ((150, 210), "snake")
    np.testing.assert_array_equal(grid.pattern, sequence)
    assert grid.how == "150 × 210, snake, from the stage positions of 31423 headers"


def test_snake_of_two_points_per_line_is_told_from_a_raster_along_the_other_axis():
    y, x = np.divmod(acquisition((2, 3), "snake", "y")[:5], 3)
    grid = resolve_grid(5, positions=list(zip(y.astype(float), x.astype(float), strict=True)))
    assert (grid.shape, grid.order, grid.fast_axis) == ((2, 3), "snake", "y")


def test_scan_that_was_ended_early_has_its_shape_when_that_is_said():
    with pytest.raises(InputError, match=r"For a scan that was ended so early, set scan\.aborted in --config"):
        resolve_grid(5, shape=(4, 5))
    grid = resolve_grid(5, shape=(4, 5), aborted=True)
    assert grid.pattern.tolist() == [0, 1, 2, 3, 4]
    assert grid.shape == (4, 5)
    with pytest.raises(InputError, match="21 frames do not fit"):
        resolve_grid(21, shape=(4, 5), aborted=True)


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (4, 3), (5, 4), (7, 8)])
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("along", ["rows", "columns"])
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_few_points_of_a_hexagonal_grid_are_never_woven_into_a_rectangle(shape, told, along, missing):
    rows, columns = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    kept = np.delete(np.arange(len(rows)), [len(rows) // 2] if missing else [])
    kept = np.delete(kept, [-1] if missing > 1 else [])
    y, x = rows.astype(float), columns.astype(float)
    if along == "rows":
        x += 0.5 * (rows % 2)
    else:
        y += 0.5 * (columns % 2)
    positions = np.stack([y, 3 * x], axis=1)[kept]
    with pytest.raises(InputError):
        resolve_grid(len(kept), shape=shape if told else None, positions=positions, places=Places(acquired=kept))


def test_a_point_that_lies_between_the_places_of_others_is_none_of_a_grid():
    positions = [(0, 0), (0, 2), (1, 0), (1, 2), (2, 0), (2, 3.1), (3, 0), (3, 2)]
    with pytest.raises(InputError):
        resolve_grid(8, positions=[(float(y), float(x)) for y, x in positions])
