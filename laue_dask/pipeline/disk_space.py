"""Disk space of a run: what it takes, and what is still to be written, both from the files that exist."""

from collections.abc import Iterator
from pathlib import Path

import zarr

from laue_dask.io import results as io_results
from laue_dask.io.block_files import BlockFiles
from laue_dask.io.output_paths import require_space

PARTIAL_SUFFIX = ".part"

MIN_PACKED_SHARE = 0.5
"""Share of a table of floating-point numbers that is certainly left of it on a disk."""


MAP_BYTES_PER_POINT = 64
"""Bytes that labels, colours and other maps take for each point, about, before they are packed."""

FIGURES_BYTES = 2 * 2**20
"""Bytes that figures and report take, about, whatever the size of the scan."""


def bytes_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; of those that several runs share, as if they were its
    own.
    """
    if not path.is_dir():
        return path.stat().st_size if path.is_file() else 0
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def bytes_still_needed(folder: Path, scan: Path, n_patterns: int, n_features: int, *, frames_bytes: float = 0.0) -> int:
    """Return the bytes, about, that a run is still to write.

    Of an array that was begun, blocks are taken to be as large as those that are there; of one that was not, as they
    are in memory.

    Parameters
    ----------
    folder
        Of the run.
    scan
        Its scan store, finished or not.
    n_patterns, n_features
        Patterns of the scan, and features of each.
    frames_bytes
        Of all frames as they pack, 0 where that is not known.
    """
    store = next((path for path in (scan, scan.with_name(scan.name + PARTIAL_SUFFIX)) if path.exists()), scan)
    arrays = {array.path: array for array in _arrays(store)}
    frames = arrays.pop("frames", None)
    needed = int(frames_bytes) if frames is None else _left(frames, frames_bytes)
    needed += sum(_left(array) for array in arrays.values())
    for name in ("features", "components"):
        array = next((one for one in io_results.arrays(folder, name) if one is not None), None)
        needed += 4 * n_patterns * n_features if array is None else _left(array)
    if not (folder / io_results.RESULTS_STORE).is_dir():
        needed += MAP_BYTES_PER_POINT * n_patterns
    if not (folder / "report.html").is_file():
        needed += max(0, FIGURES_BYTES - bytes_on_disk(folder / "plots"))
    return needed


def require_disk_space(folder: Path, n_patterns: int, n_features: int, *, frames_bytes: float) -> None:
    """Refuse a run that cannot fit on the disk of its folder, by what is known before it begins.

    Raises
    ------
    SpaceError
        The frames as they pack, and half of what features and components are in memory, do not fit beside what is
        there of them.
    """
    tables = MIN_PACKED_SHARE * 2 * 4 * n_patterns * n_features
    begun = (
        folder / ("scan.zarr" + PARTIAL_SUFFIX),
        folder / io_results.PARTIAL_STORE,
        folder / io_results.RESULTS_STORE,
    )
    require_space(folder, int(frames_bytes + tables) - sum(map(bytes_on_disk, begun)))


def _arrays(store: Path) -> Iterator[zarr.Array]:  # type: ignore[type-arg]
    for path in (store / "frames", *sorted(store.glob("reduced/*/"))):
        if (path / "zarr.json").is_file():
            array = zarr.open_array(str(store), path=path.relative_to(store).as_posix(), mode="r")
            yield array


def _left(array: zarr.Array, whole: float = 0.0) -> int:  # type: ignore[type-arg]
    """Bytes of the blocks that are not there; `whole` are those of the array, where that is known."""
    files = BlockFiles(array)
    sizes = [path.stat().st_size for i in range(files.count) if (path := files.path(i)).is_file()]
    left = files.count - len(sizes)
    block = sum(sizes) / len(sizes) if sizes else (whole or array.nbytes) / files.count
    return int(left * block)
