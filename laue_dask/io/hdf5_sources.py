"""Files that an HDF5 file only links to, waited for before HDF5 opens them.

HDF5 holds Python's lock while it reads: a file on a file system that does not answer would stop the whole process. So
whoever reads a frame has a byte of each file read first where it stops nothing else; see `io.deadline`.
"""

import functools
import os
from contextlib import suppress
from pathlib import Path

import h5py

from laue_dask.io.deadline import read_byte

_ALL_FRAMES = 2**63


def wait_for(path: str, dataset: str, index: int) -> None:
    """Read a byte of an HDF5 file, and of the files that hold a frame of its dataset.

    Raises
    ------
    OSError
        The file itself cannot be read; of others the reader says so.
    """
    read_byte(path)
    state = os.stat(path)  # noqa: PTH116  for each frame that is read
    for first, last, name in _sources(path, dataset, state.st_mtime_ns, state.st_size):
        if first <= index <= last:
            with suppress(OSError):
                read_byte(name)


@functools.lru_cache(maxsize=64)
def _sources(path: str, dataset: str, changed: int, size: int) -> tuple[tuple[int, int, str], ...]:
    """First and last frame, and path, of each file that a dataset links to; none of them is opened."""
    with suppress(Exception), h5py.File(path, "r", locking=False) as file:  # it is damaged, which the reader says
        node = file
        for name in dataset.strip("/").split("/"):
            link = node.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                return ((0, _ALL_FRAMES, _beside(path, link.filename)),)
            node = node[name]
        if node.is_virtual:
            found = []
            for source in node.virtual_sources():
                start, stop = source.vspace.get_select_bounds()
                first, last = (int(start[0]), int(stop[0])) if node.ndim == 3 else (0, _ALL_FRAMES)
                if source.file_name != ".":
                    found.append((first, last, _beside(path, source.file_name)))
            return tuple(found)
    return ()


def _beside(path: str, name: str) -> str:
    return str(Path(path).parent / name)
