"""Give `io.placement` all that it weighs, and say where the frames of a source belong."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from laue_dask.config import ScanConfig
from laue_dask.errors import FrameError, InputError
from laue_dask.io.frames import FrameRef, grid_hint, is_listed, read_position
from laue_dask.io.placement import Placement, place_frames, recorded_placement
from laue_dask.io.positions import Positions
from laue_dask.io.scan_part import ScanPart, take_part
from laue_dask.io.scan_store import ScanStore

MAX_LOCAL_HEADERS = 1000
"""Headers that are read in this process; more of them are read by workers."""

logger = logging.getLogger(__name__)


class _TooManyError(Exception):
    """More headers are asked for than are read here."""


def locate(
    source: str,
    refs: Sequence[FrameRef],
    scan: ScanConfig,
    positions: Positions | Callable[[Sequence[int]], Positions] | None = None,
    *,
    from_first: bool = False,
) -> Placement:
    """Return where each frame of a source belongs, in the part that is taken; see `io.placement.place_frames`."""
    whole = place_frames(
        refs,
        shape=scan.shape,
        order=scan.order,
        first_number=scan.first_number,
        insist=scan.insist,
        aborted=scan.aborted,
        positions=positions,
        grid_hint=grid_hint(refs, scan.shape),
        listed=is_listed(source),
        from_first=from_first,
    )
    return take_part(whole, part_of(scan))


def part_of(scan: ScanConfig) -> ScanPart:
    """Return the part of a scan that is asked for."""
    return ScanPart(scan.rows, scan.columns, scan.every)


def refuse_part(source: str, scan: ScanConfig) -> None:
    """Refuse to take a part of a scan store.

    Raises
    ------
    InputError
        Names the part that is asked for.
    """
    part = part_of(scan)
    if not part.is_whole:
        raise InputError(
            f"{source}: is a scan store, which is used as a whole, not in part ({part}): give the frames that it "
            f"was made of, or "
            "leave --rows, --columns and --every out"
        )


def locate_locally(source: str, refs: Sequence[FrameRef], scan: ScanConfig) -> Placement | None:
    """Return the same from headers that this process reads; None where those of too many frames are needed."""

    def read(chosen: Sequence[int]) -> Positions:
        if len(chosen) > MAX_LOCAL_HEADERS:
            raise _TooManyError
        return read_positions([refs[i] for i in chosen])

    try:
        return locate(source, refs, scan, read)
    except _TooManyError:
        return None


def read_positions(refs: Sequence[FrameRef]) -> list[tuple[float, float] | None]:
    """Return the stage positions (y, x) from the headers of frames; None where there is none, or the frame cannot be
    read.
    """
    positions: list[tuple[float, float] | None] = []
    for ref in refs:
        try:
            positions.append(read_position(ref))
        except FrameError:
            positions.append(None)
    return positions


def announce(placement: Placement, refs: Sequence[FrameRef], label: str = "") -> None:
    """Say what the grid is, and which files are none of the scan; `label` tells one of several scans."""
    logger.info("%s%s", label, placement.line)
    if warning := placement.warning(refs):
        logger.warning("%s%s", label, warning)


def announce_stored_grid(store: ScanStore, label: str = "") -> None:
    """Say what the grid of a scan store is."""
    logger.info("%s%s", label, recorded_placement(store)["line"])


def remind_of_record(record: Mapping[str, Any], label: str = "") -> None:
    """Say what the grid of a finished run is, where its record tells."""
    grid = record.get("grid")
    if isinstance(grid, dict) and isinstance(line := grid.get("line"), str):
        logger.info("%s%s", label, line)
