"""TIFF frames, also of PILATUS and MarCCD. Either the pixels are those of the file, or a reason is given.

Plain strips are one read. What is compressed or in tiles is decoded part by part, by imagecodecs and the standard
library; kinds that are not read are named. Pixels are taken in the order in which the file has them.
"""

from typing import Any, BinaryIO

from numpy.typing import NDArray

from laue_dask.errors import FrameError
from laue_dask.io import headers
from laue_dask.io.headers import Header
from laue_dask.io.limits import Expected, require_frame
from laue_dask.io.tiff_directory import MAGIC, Container
from laue_dask.io.tiff_pages import DESCRIPTION, MODEL, Page, Places, page_of, points
from laue_dask.io.tiff_pixels import check_extent, read_pixels

MAX_CACHED_STACKS = 8
"""Files of several frames whose directories are remembered."""

_recent: dict[tuple[int, ...], Places] = {}

__all__ = ["MAGIC", "count", "read_frame", "read_header", "read_page"]


def count(file: BinaryIO) -> int:
    """Return the number of frames in an open TIFF.

    Raises
    ------
    FrameError
        The file is damaged, or holds several series of images.
    """
    return len(_places(Container(file)))


def read_frame(
    file: BinaryIO, index: int | None, *, memory: NDArray[Any] | None = None, expected: Expected | None = None
) -> tuple[NDArray[Any], Header]:
    """Return frame `index` of an open TIFF (the only one if ``None``) and its header; dtype in the native byte
    order.

    Parameters
    ----------
    memory : (row, column)
        May be used for the pixels, and is what is returned if it was.
    expected
        Nothing is allocated for a frame that is not like this.

    Raises
    ------
    FrameError
        As `read_page`; or the frame is not the expected one.
    """
    page = _page(file, index)
    require_frame(page.shape, page.dtype, expected)
    frame = read_pixels(page, memory)
    return frame.astype(page.dtype.newbyteorder("="), copy=False), read_header(page)


def read_page(file: BinaryIO, index: int | None) -> Page:
    """Return the directory of frame `index` of an open TIFF, held against the file's size.

    Raises
    ------
    FrameError
        The file is truncated or damaged, has no such frame or more than the one expected, or is of a kind that is not
        read.
    """
    page = _page(file, index)
    check_extent(page)
    return page


def read_header(page: Page) -> Header:
    """Return what the directory, and the MarCCD header behind it, tell."""
    marccd = headers.from_marccd(page.directory.container.head)
    return marccd or headers.from_text(page.directory.text(DESCRIPTION), model=page.directory.text(MODEL))


def _page(file: BinaryIO, index: int | None) -> Page:
    container = Container(file)
    places = _places(container)
    if index is None and len(places) != 1:
        raise FrameError(f"holds {len(places)} frames, one was expected")
    if (index or 0) >= len(places):
        raise FrameError(f"frame {index} is not in the file, which ends at {len(places) - 1}")
    offset, image = places[index or 0]
    return page_of(container.directory(offset), image)


def _places(container: Container) -> Places:
    """Where the frames of a file are; of a stack that is read frame by frame, they are looked for once."""
    if (identity := container.identity) is None:
        return points(container)
    found = _recent.get(identity)
    if found is None:
        found = points(container)
        if len(found) > 1:
            _recent[identity] = found
        for oldest in list(_recent)[:-MAX_CACHED_STACKS]:
            _recent.pop(oldest, None)
    return found
