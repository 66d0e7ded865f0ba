"""Weigh a scan's shape and its frames' known places against the stage positions in headers. Pure.

Patterns count in row-major order, ``y * nx + x``, whatever the order of acquisition, and the first frame is pattern 0:
rows and columns follow the direction in which the stage moved, so that a map looks the same whether its grid was given
or recovered.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import InputError
from laue_dask.io import positions as stages
from laue_dask.io.positions import MIN_HEADERS, Axis, Order, Positions, Recovered, acquisition

MIN_RECORDED_SHARE = 0.5
"""A scan with a smaller share of its points than this was not aborted: its shape is wrong."""

MAX_CHECKED_HEADERS = 400
"""Frames up to which all headers are read; of more, so many check a grid that is known."""

N_FIRST_AND_LAST_HEADERS = 40
"""Of these, so many are those of the first frames, and of the last."""

INSIST_HINT = "give --insist to use it all the same"

Sampler = Callable[[Sequence[int]], Positions]
"""Reads the stage positions of frames, by their numbers."""


@dataclass(frozen=True)
class ScanGrid:
    """Where each frame belongs.

    Attributes
    ----------
    shape
        (ny, nx).
    order
        Whether every line runs the same way (`raster`) or every second one back (`snake`).
    pattern : (n_frames,) int64
        Pattern index ``y * nx + x`` of each frame in order of acquisition; −1 for one whose point was measured again.
    position : (ny * nx, 2) float64
        Stage coordinates (y, x) of each pattern, NaN where unknown.
    how
        One line for people: how the grid was found.
    fast_axis
        Axis along which consecutive frames lie.
    """

    shape: tuple[int, int]
    order: Order
    pattern: NDArray[np.int64]
    position: NDArray[np.float64]
    how: str
    fast_axis: Axis = "x"


@dataclass(frozen=True)
class Places:
    """Where frames belong by all but their headers.

    Attributes
    ----------
    acquired : (n_frames,) int64
        Place of each frame in the acquisition, from 0; None where that is not known.
    cells : (n_frames, 2) int64
        Row and column of each frame, where these are known by themselves; None where they are not.
    doubt
        Why neither is known, and what to do; it is said where the headers do not tell either.
    how
        What the shape or the places are known from, for people; empty where frames follow one another.
    choices : each (n_frames,) int64
        What `acquired` may be, where there is a doubt that headers may end.
    """

    acquired: NDArray[np.int64] | None = None
    cells: NDArray[np.int64] | None = None
    doubt: str = ""
    how: str = ""
    choices: Sequence[NDArray[np.int64]] = ()


class Headers:
    """Stage positions of a scan's frames, read as far as they are asked for."""

    def __init__(self, n_frames: int, positions: Positions | Sampler | None) -> None:
        self.count = n_frames
        self._sampler = positions if callable(positions) else None
        self._known = None if callable(positions) else stages.as_array(n_frames, positions)

    def all(self) -> NDArray[np.float64]:
        """Return the positions (n_frames, 2) of all frames."""
        if self._known is None:
            assert self._sampler is not None  # noqa: S101  one of the two is there
            self._known = stages.as_array(self.count, self._sampler(range(self.count)))
        return self._known

    def some(self, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the positions (n_frames, 2), NaN where nobody asked for them."""
        if self._known is not None:
            return self._known
        assert self._sampler is not None  # noqa: S101
        stage = np.full((self.count, 2), np.nan)
        stage[chosen] = stages.as_array(len(chosen), self._sampler(chosen.tolist()))
        return stage


def resolve_grid(
    n_frames: int,
    *,
    shape: tuple[int, int] | None = None,
    order: Order | None = None,
    positions: Positions | Sampler | None = None,
    places: Places | None = None,
    given: str = "--shape",
    proposals: str = "",
    aborted: bool = False,
    insist: bool = False,
) -> ScanGrid:
    """Find the place of every frame.

    Of frames at the same stage position the last one counts, if they are few and no point of the grid is missing: else
    the stage did not move as it was read, or there are two scans, and nobody knows where which of them belongs.

    Parameters
    ----------
    n_frames
        Number of frames, in order of acquisition.
    shape
        (ny, nx): slow and fast axis. Without it the positions must tell.
    order
        Of the lines; without it that of the positions, or raster where these do not tell.
    positions : (n_frames, 2)
        Stage coordinates (y, x) of each frame, None or NaN where unknown; or what reads those of some frames.
    places
        What else is known of the frames; by default they follow one another.
    given
        What the shape is known from.
    proposals
        What is known of the number of points where the shape is unknown, for the message.
    aborted
        Whether the frames may be fewer than `MIN_RECORDED_SHARE` of the shape's points.
    insist
        Whether shape and order are taken as they are, whatever the headers say.

    Raises
    ------
    InputError
        The shape does not fit, what is known of the frames disagrees, it is not known which of two frames belongs to a
        place, or the grid is unknown; the message proposes shapes.
    """
    if n_frames < 1:
        raise InputError("there are no frames")
    headers = Headers(n_frames, positions)
    places = places or Places(acquired=np.arange(n_frames, dtype=np.int64))
    if shape is None:
        return _without_shape(headers, order, places, proposals or f"{n_frames} frames: {shapes_of(n_frames)}", insist)
    ny, nx = shape
    if ny < 1 or nx < 1:
        raise InputError(f"--shape {ny} {nx}: both must be at least 1")
    fewest = 0.0 if aborted else MIN_RECORDED_SHARE
    if insist:
        check_count(n_frames, shape, None, fewest, given)
        return _placed(headers, shape, order or "raster", "x", places, f"{_as(given)}, with --insist")
    known = places.acquired is not None or places.cells is not None
    whole = n_frames <= MAX_CHECKED_HEADERS or not known or n_frames > ny * nx
    stage: NDArray[np.float64] | None = headers.all() if whole else headers.some(spread_over(n_frames, nx))
    assert stage is not None  # noqa: S101
    told = np.flatnonzero(np.isfinite(stage).all(axis=1))
    if not any(stages.moves(stage)) or len(told) < min(MIN_HEADERS, n_frames):
        check_count(n_frames, shape, None, fewest, given)
        return _placed(headers, shape, order or "raster", "x", places, _as(given), stage)
    if not known and n_frames <= ny * nx:
        places = _chosen(stage, shape, order, places)
        known = places.acquired is not None
    if known and n_frames <= ny * nx:
        found = _agreed(stage, shape, order, places, given)
        if found is None and given != "--shape" and places.cells is None:
            # Files of lines do not say that these are rows.
            turned = _agreed(stage, shape[::-1], order, places, given)
            if turned is not None and turned[1] == "y":
                shape, found = shape[::-1], turned
        if found is not None:
            check_count(n_frames, shape, None, fewest, given)
            same = f"{_as(given)} and as the stage positions of {len(told)} headers say"
            if len(told) < n_frames / 2:
                stage = None  # a few positions are of no use to anybody
            return _placed(headers, shape, *found, places, same, stage)
    return _disagreed(headers, shape, order, places, given, fewest)


def _chosen(stage: NDArray[np.float64], shape: tuple[int, int], order: Order | None, places: Places) -> Places:
    """The only places that the frames may have and that the headers agree with; the same doubt where there are more.

    Places that leave the same end of every line empty are none: then the lines are shorter than the shape says.
    """
    told = np.isfinite(stage).any(axis=1)
    fitting = []
    for one in places.choices:
        found = stages.agreement(stage[told], one[told], shape, order)
        if found is None:
            continue
        along = 1 if found.fast_axis == "x" else 0
        place = np.divmod(acquisition(shape, found.order, found.fast_axis)[one], shape[1])[along]
        if np.ptp(place) + 1 == shape[along]:
            fitting.append(one)
    return replace(places, acquired=fitting[0], doubt="") if len(fitting) == 1 else places


def _agreed(
    stage: NDArray[np.float64], shape: tuple[int, int], order: Order | None, places: Places, given: str
) -> tuple[Order, Axis] | None:
    """The order and the fast axis that headers tell of a grid that is known; None where they tell another grid."""
    told = np.isfinite(stage).any(axis=1)
    if places.cells is not None:
        pattern = places.cells[told, 0] * shape[1] + places.cells[told, 1]
        return (order or "raster", "x") if stages.distance(stage[told], pattern, shape) is not None else None
    assert places.acquired is not None  # noqa: S101  the caller looked
    found = stages.agreement(stage[told], places.acquired[told], shape, order)
    if found is None:
        return None
    _check_order(order, found.orders, found.order, int(told.sum()))
    return found.order, found.fast_axis


def _disagreed(
    headers: Headers,
    shape: tuple[int, int],
    order: Order | None,
    places: Places,
    given: str,
    fewest: float,
) -> ScanGrid:
    """The grid of the positions, where it is the given one all the same, as of frames that were measured again."""
    stage = headers.all()
    ny, nx = shape
    named = f"{given} {ny} {nx}" if given == "--shape" else f"{given} say {ny} × {nx}"
    told = int(np.isfinite(stage).any(axis=1).sum())
    try:
        found = stages.recover(stage, order or "raster")
    except InputError as error:
        check_count(headers.count, shape, None, fewest, given)
        raise InputError(f"{str(error).removesuffix(': give --shape NY NX')}; {named}: {INSIST_HINT}") from error
    again = found.again if found is not None and found.fits(shape) else 0
    check_count(headers.count - again, shape, found, fewest, given)
    if found is None:
        raise InputError(f"{named}, but the stage positions in {told} headers are no such grid: {INSIST_HINT}")
    if not found.fits(shape):
        a, b = found.shape
        leave = f"leave {given} out, or " if given == "--shape" else f"give --shape {a} {b} --insist, or "
        raise InputError(f"{named}, but the stage positions in {told} headers say {a} × {b}: {leave}{INSIST_HINT}")
    if places.doubt and found.shape != shape:
        raise InputError(places.doubt)
    if places.cells is not None:
        raise InputError(f"{named}, but the stage positions in {told} headers put frames elsewhere: {INSIST_HINT}")
    _check_order(order, found.orders, found.order, told)
    y, x = np.divmod(found.pattern, found.shape[1])
    found = _of_order(found, order)
    kind = found.order
    whole = found._replace(shape=shape, pattern=np.where(found.pattern < 0, found.pattern, y * nx + x))
    same = f"{_as(given)} and as the stage positions of {told} headers say"
    how = f"{ny} × {nx}, {kind}{_fast(found.fast_axis)}, {same}{_again(found)}"
    pattern = stages.fill(whole, places.acquired)
    if odd := _against_numbers(pattern, shape, kind, found.fast_axis, places.acquired) if not again else "":
        raise InputError(f"{named}, but the stage positions in {told} headers {odd}: {INSIST_HINT}")
    return make_grid(shape, kind or found.order, pattern, stage, how, found.fast_axis)


def _without_shape(headers: Headers, order: Order | None, places: Places, proposals: str, insist: bool) -> ScanGrid:
    stage = headers.all()
    try:
        found = stages.recover(stage, order or "raster")
    except InputError as error:
        one_by_one = "to take the frames one after another, give --shape NY NX --insist"
        raise InputError(f"{error}; {one_by_one}") from error
    if found is None:
        if headers.count == 1:
            return make_grid((1, 1), "raster", np.zeros(1, dtype=np.int64), stage, "1 × 1, one frame")
        moved = np.isfinite(stage).all(axis=1).any() and any(stages.moves(stage))
        why = "the stage positions in the headers are no grid" if moved else "the headers do not tell the scan's grid"
        raise InputError(f"{why}: give --shape NY NX ({proposals})")
    told = int(np.isfinite(stage).any(axis=1).sum())
    ny, nx = found.shape
    if insist and order is not None and order not in found.orders:
        how = f"from the stage positions of {told} headers, the order as given, with --insist"
        return _placed(headers, found.shape, order, found.fast_axis, places, how, stage)
    _check_order(order, found.orders, found.order, told)
    found = _of_order(found, order)
    kind = found.order
    why = found.why.replace("stage positions", f"stage positions of {told} headers")
    how = f"{ny} × {nx}, {kind}{_fast(found.fast_axis)}, {why}{_again(found)}"
    pattern = stages.fill(found, places.acquired)
    odd = _against_numbers(pattern, found.shape, kind, found.fast_axis, places.acquired)
    if odd and not found.again and not insist:
        raise InputError(
            f"the stage positions in {told} headers {odd}: give --shape NY NX, or --insist to believe them"
        )
    return make_grid(found.shape, kind, pattern, stage, how, found.fast_axis)


def _against_numbers(
    pattern: NDArray[np.int64], shape: tuple[int, int], order: Order, fast: Axis, counted: NDArray[np.int64] | None
) -> str:
    """How places by positions contradict numbers with gaps, which count points, not frames; empty where they agree."""
    if counted is None or not (np.diff(np.sort(counted)) > 1).any():
        return ""
    sequence = acquisition(shape, order, fast)
    rank = np.empty_like(sequence)
    rank[sequence] = np.arange(len(sequence))
    placed = np.flatnonzero(pattern >= 0)
    lag = rank[pattern[placed]] - counted[placed]
    elsewhere = np.flatnonzero(lag != lag[0])
    return f"put frame {int(placed[elsewhere[0]])} elsewhere than its number does" if len(elsewhere) else ""


def _of_order(found: Recovered, order: Order | None) -> Recovered:
    """A grid with the given order, if that is one of those that the positions allow; refused where it matters which."""
    if order in found.orders:
        return found._replace(order=order)
    lost = np.flatnonzero(found.pattern == -1)
    if len(found.orders) > 1 and len(lost):
        raise InputError(
            f"frame {lost[0]} has no stage position, and the others do not tell raster from snake: give --order"
        )
    return found


def _check_order(order: Order | None, orders: Sequence[Order], found: Order, told: int) -> None:
    if order is not None and order not in orders:
        raise InputError(
            f"--order {order}, but the stage positions in {told} headers say {found}: "
            f"leave --order out, or {INSIST_HINT}"
        )


def _placed(
    headers: Headers,
    shape: tuple[int, int],
    order: Order,
    fast_axis: Axis,
    places: Places,
    how: str,
    stage: NDArray[np.float64] | None = None,
) -> ScanGrid:
    """The grid whose places are known by all but the headers."""
    if places.cells is not None:
        pattern = places.cells[:, 0] * shape[1] + places.cells[:, 1]
        how = f"{shape[0]} × {shape[1]}, {how}"
    elif places.acquired is not None:
        pattern = acquisition(shape, order, fast_axis)[places.acquired]
        how = f"{shape[0]} × {shape[1]}, {order}{_fast(fast_axis)}, {how}"
    else:
        raise InputError(places.doubt)
    how += f"; {places.how}" if places.how else ""
    if stage is None:
        stage = np.full((headers.count, 2), np.nan)
    return make_grid(shape, order, pattern, stage, how, fast_axis)


def check_count(
    n_frames: int, shape: tuple[int, int], found: Recovered | None, fewest: float, given: str = "--shape"
) -> None:
    """Refuse frames that are too many or too few for a shape; the message proposes others."""
    ny, nx = shape
    points = ny * nx
    if points * fewest <= n_frames <= points:
        return
    near = _near(n_frames, shape)
    if found is not None:
        near = [found.shape, *(one for one in near if one != found.shape)]
    proposals = " or ".join(f"{a} × {b}" for a, b in near[:2])
    relation = "do not fit" if n_frames > points else "are fewer than half of"
    aborted = "" if n_frames > points else " For a scan that was ended so early, set scan.aborted in --config"
    named = f"--shape {ny} {nx}" if given == "--shape" else f"{ny} × {nx} of {given}"
    raise InputError(f"{n_frames} frames {relation} {named} = {points} points: did you mean {proposals}?{aborted}")


def spread_over(n_frames: int, nx: int) -> NDArray[np.int64]:
    """Return the frames whose headers check a grid: the first and the last ones, the ends of lines, and some in
    between.
    """
    ends = np.array([nx - 1, nx, 2 * nx - 1, 2 * nx, n_frames - nx, n_frames - nx - 1])
    edges = [np.arange(N_FIRST_AND_LAST_HEADERS), np.arange(n_frames - N_FIRST_AND_LAST_HEADERS, n_frames), ends]
    count = MAX_CHECKED_HEADERS - 2 * N_FIRST_AND_LAST_HEADERS - len(ends)
    # Not at even distances, which might be those of the lines.
    bounds = np.linspace(0, n_frames, count + 1)
    between = bounds[:-1] + np.random.default_rng(0).random(count) * np.diff(bounds)
    chosen = np.concatenate([*edges, between.astype(np.int64)])
    return np.unique(chosen[(chosen >= 0) & (chosen < n_frames)])


def make_grid(
    shape: tuple[int, int],
    order: Order,
    pattern: NDArray[np.int64],
    stage: NDArray[np.float64],
    how: str,
    fast_axis: Axis = "x",
) -> ScanGrid:
    """Put the positions (n_frames, 2) of frames with these patterns in order."""
    position = np.full((shape[0] * shape[1], 2), np.nan)
    placed = pattern >= 0
    position[pattern[placed]] = stage[placed]
    return ScanGrid(shape, order, np.maximum(pattern, -1), position, how, fast_axis)


def shapes_of(n: int) -> str:
    """Return the shapes of exactly `n` points, the squarest first."""
    pairs = _factors(n)[::-1]
    return ", ".join(f"{a} × {b}" for a, b in pairs[:4]) + (", …" if len(pairs) > 4 else "")


def _as(given: str) -> str:
    return "as given" if given == "--shape" else f"from {given}"


def _again(found: Recovered) -> str:
    return f"; {found.again} of {len(found.pattern)} frames measured again" if found.again else ""


def _fast(axis: Axis) -> str:
    return "" if axis == "x" else " with y as fast axis"


def _factors(n: int) -> list[tuple[int, int]]:
    small = [a for a in range(1, math.isqrt(n) + 1) if n % a == 0]
    return [(a, n // a) for a in small]


def _near(n: int, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Shapes of `n` points, or a few more, near to the one given."""
    ny, nx = shape
    exact = {pair for a, b in _factors(n) for pair in ((a, b), (b, a))}
    loose = {(-(-n // nx), nx), (ny, -(-n // ny))} - exact

    def distance(pair: tuple[int, int]) -> float:
        return abs(math.log(pair[0] / ny)) + abs(math.log(pair[1] / nx)) + 0.5 * (pair in loose)

    return sorted(exact | loose, key=distance)
