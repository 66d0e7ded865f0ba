"""Feature extractors (Definition 4), and how one is mapped over a scan.

`encode.Network`, `pixels.Pixels` and `peaks.Peaks` are the three there are. An extractor is a small value: it travels
with every block of work, so what it learnt or loads lies in a file, which each worker reads once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import dask.array as da
import numpy as np
from numpy.typing import NDArray

Sample = Callable[[int], NDArray[np.uint8]]
"""Reads at most so many patterns (n, 128, 128) uint8, evenly spread over the valid ones of the scan."""


class Extractor(Protocol):
    """V of Definition 4: a pattern → a vector of features, the same for any block that it comes in."""

    @property
    def name(self) -> str:
        """As in the configuration, `encoder.extractor`."""

    @property
    def n_features(self) -> int:
        """M_AE, the number of features."""

    @property
    def digest(self) -> str:
        """Hash of all that the features depend on beside the patterns themselves: part of their cache key."""

    @property
    def on_gpu(self) -> bool:
        """Whether its work goes to GPU workers where there are any."""

    @property
    def learns(self) -> bool:
        """Whether `fit` learns from the scan: then nothing is extracted before all of it is reduced."""

    def fit(self, sample: Sample, file: Path) -> "Extractor":
        """Learn what is to be learnt from the scan itself.

        Parameters
        ----------
        sample
            Reads patterns of the scan.
        file
            Where what was learnt is kept; seen by the workers too.

        Returns
        -------
        Extractor
            The one that extracts; itself where there is nothing to learn.
        """

    def extract(self, patterns: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the features (n, n_features) of patterns (n, 128, 128); NaN where not `valid` (n,)."""


def features(extractor: Extractor, reduced: da.Array, valid: NDArray[np.bool_]) -> da.Array:
    """Return the lazy feature map of a scan (equation 14).

    Parameters
    ----------
    extractor
        Fitted, where it has something to fit.
    reduced : (pattern, 128, 128) uint8
        Reduced patterns, chunked along `pattern` alone.
    valid : (pattern,) bool
        Patterns that exist; the features of the others are NaN.

    Returns
    -------
    features : (pattern, n_features) float32
        With the chunks of `reduced` along `pattern`; the same bits for any chunks.
    """
    lazy: da.Array = da.map_blocks(
        _extract_block,
        reduced,
        da.from_array(valid, chunks=reduced.chunks[0])[:, None, None],
        extractor=extractor,
        dtype=np.float32,
        drop_axis=(1, 2),
        new_axis=1,
        chunks=(reduced.chunks[0], (extractor.n_features,)),
        meta=np.empty((0, 0), dtype=np.float32),
    )
    return lazy


def _extract_block(
    reduced: NDArray[np.uint8], valid: NDArray[np.bool_], *, extractor: Extractor
) -> NDArray[np.float32]:
    return extractor.extract(reduced, valid.reshape(len(reduced)))
