"""The compiled loop that unpacks a CBF: a pixel is a difference from the one before, in 1, 2, 4 or 8 bytes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from laue_dask.runtime.compiled_loops import compiled


@compiled
def unpack(stream: NDArray[np.uint8], values: NDArray[Any]) -> int:
    """Unpack `stream` into `values` (n), whole numbers; bytes that were used, or -1 where there are too few."""
    place, end, value = 0, stream.size, np.int64(0)
    for i in range(values.size):
        if place >= end:
            return -1
        step = np.int64(np.int8(stream[place]))
        place += 1
        if step == -128:
            if place + 2 > end:
                return -1
            step = np.int64(np.int16(np.uint16(stream[place]) | np.uint16(stream[place + 1]) << np.uint16(8)))
            place += 2
            if step == -32768:
                if place + 4 > end:
                    return -1
                step = _whole(stream, place, 4)
                place += 4
                if step == -2147483648:
                    if place + 8 > end:
                        return -1
                    step = _whole(stream, place, 8)
                    place += 8
        value += step
        values[i] = value
    return place


@compiled
def _whole(stream: NDArray[np.uint8], place: int, width: int) -> np.int64:
    """A number of 4 or 8 bytes, the least significant first."""
    number = np.uint64(0)
    for i in range(width):
        number |= np.uint64(stream[place + i]) << np.uint64(8 * i)
    return np.int64(np.int32(np.uint32(number))) if width == 4 else np.int64(number)
