"""What the numbers in file names say: which frames of a scan were never written."""

import re
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from laue_dask.io.frames import FrameRef

_NUMBERED = re.compile(r"(?P<prefix>.*?)(?P<number>\d{1,12})$")


def acquired(refs: Sequence[FrameRef]) -> NDArray[np.int64]:
    """Place of each frame in the acquisition, from 0, by the last number of its file name.

    A file that is missing between two others leaves its place free. Where the files do not share one prefix, hold more
    than one frame, or are not numbered upwards, the frames simply follow one another.

    Returns
    -------
    (n_frames,) int64

    Examples
    --------
    >>> acquired([FrameRef("a/img_0007.tif"), FrameRef("a/img_0008.tif"), FrameRef("a/img_0010.tif")])
    array([0, 1, 3])
    """
    following = np.arange(len(refs), dtype=np.int64)
    found = [_NUMBERED.fullmatch(PurePath(ref.path).with_suffix("").as_posix()) for ref in refs]
    matches = [match for match in found if match is not None]
    if len(matches) < len(refs) or len({match["prefix"] for match in matches}) != 1:
        return following
    number = np.array([int(match["number"]) for match in matches], dtype=np.int64)
    if (np.diff(number) < 1).any():
        return following
    return np.asarray(number - number[0])
