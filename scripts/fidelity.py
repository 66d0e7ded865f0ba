"""How true a reconstruction is to its pattern: which peaks survive, and which ones are made up.

Both are images (128, 128) in [0, 1]: the smoothed pattern that the autoencoder was given as its target, and what the
decoder draws. A person judges a reconstruction by its reflections, and the mean error of pixels that are mostly black
says little of them.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

Image = npt.NDArray[np.floating]

MAX_PEAKS = 30
"""Peaks of a pattern that are looked for in its reconstruction."""

WINDOW_SIDE_PX = 5
"""Side in pixels of the window in which a peak is the highest."""

MAX_PEAK_DISTANCE_PX = 2.0
"""Pixels between a peak and its counterpart, at most."""

MIN_KEPT_HEIGHT_SHARE = 0.3
"""Of its height that a peak must keep to survive."""

MIN_PEAK_HEIGHT = 0.05
"""Anything lower is no peak."""


class Peaks(NamedTuple):
    """Peaks of one image, the highest first.

    Attributes
    ----------
    position
        (n, 2) float64, row and column in pixels; the middle of a peak with a flat top.
    height
        (n,) float64.
    """

    position: npt.NDArray[np.float64]
    height: npt.NDArray[np.float64]


class Fidelity(NamedTuple):
    """What became of a pattern's peaks.

    Attributes
    ----------
    peaks
        Peaks that were looked for: the brightest, `MAX_PEAKS` at most.
    survived
        How many of them the reconstruction has.
    drawn
        Peaks of the reconstruction that are as high as a survivor of the faintest of those could be.
    false
        How many of the drawn ones have no counterpart among all peaks of the pattern.
    """

    peaks: int
    survived: int
    drawn: int
    false: int


def find_peaks(image: Image, *, window: int = WINDOW_SIDE_PX, faintest: float = MIN_PEAK_HEIGHT) -> Peaks:
    """Return the local maxima of an image, each the highest within a square window about it.

    Parameters
    ----------
    image
        (rows, columns).
    window
        Side of the square in pixels, odd.
    faintest
        Least height.
    """
    values = np.asarray(image, dtype=np.float64)
    top = (values >= faintest) & (values == ndimage.maximum_filter(values, window, mode="constant"))
    # Pixels of a flat top are one peak.
    labels, n = ndimage.label(top, np.ones((3, 3)))
    if n == 0:
        return Peaks(np.empty((0, 2)), np.empty(0))
    numbers = np.arange(1, n + 1)
    position = np.asarray(ndimage.center_of_mass(top, labels, numbers), dtype=np.float64).reshape(n, 2)
    height = np.asarray(ndimage.maximum(values, labels, numbers), dtype=np.float64)
    order = np.argsort(-height, kind="stable")
    return Peaks(position[order], height[order])


def fidelity(target: Image, reconstruction: Image, *, brightest: int = MAX_PEAKS) -> Fidelity:
    """Compare a reconstruction with its target.

    A peak of the target survives if the reconstruction has a local maximum (the highest of 3 × 3 pixels) within
    `MAX_PEAK_DISTANCE_PX` pixels that keeps at least `MIN_KEPT_HEIGHT_SHARE` of its height. A peak of the
    reconstruction is false if the target has no peak of any height within `MAX_PEAK_DISTANCE_PX` pixels; those that are
    lower than `MIN_KEPT_HEIGHT_SHARE` of the faintest peak looked for do not count.

    Parameters
    ----------
    target, reconstruction
        (rows, columns) in [0, 1].
    brightest
        Peaks to look for.
    """
    wanted = find_peaks(target)
    position, height = wanted.position[:brightest], wanted.height[:brightest]
    if not len(height):
        made_up = len(find_peaks(reconstruction).height)
        return Fidelity(0, 0, made_up, made_up)
    maxima = find_peaks(reconstruction, window=3, faintest=MIN_KEPT_HEIGHT_SHARE * float(height[-1]))
    if not len(maxima.height):
        return Fidelity(len(height), 0, 0, 0)
    near = cKDTree(maxima.position).query_ball_point(position, MAX_PEAK_DISTANCE_PX)
    survived = sum(
        bool((maxima.height[at] >= MIN_KEPT_HEIGHT_SHARE * h).any()) for at, h in zip(near, height, strict=True)
    )
    drawn = find_peaks(reconstruction, faintest=MIN_KEPT_HEIGHT_SHARE * float(height[-1]))
    distance, _ = cKDTree(find_peaks(target, window=3).position).query(drawn.position)
    return Fidelity(len(height), survived, len(drawn.height), int(np.count_nonzero(distance > MAX_PEAK_DISTANCE_PX)))
