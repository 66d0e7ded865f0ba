"""`pixels`: principal components of the reduced pattern itself, the baseline that an encoder has to beat.

A scatter matrix of the 16,384 pixels would take 2 GiB. The components are those of a sample of the scan instead,
exact: they follow from the Gram matrix of the sample's patterns, which is no larger than the sample is long. All
patterns are then projected on them, block by block.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save
from scipy.linalg import eigh

from laue_dask.errors import StoreError
from laue_dask.features.extractors import Sample
from laue_dask.io.output_paths import write_atomically
from laue_dask.runtime.threads import one_thread

PIXELS_VERSION = 2
"""Raised when the same patterns would get other features."""

MAX_FITTED_PATTERNS = 4000
"""Patterns that the components are fitted on at most; all are projected."""

PIXELS_PER_SLAB = 2048
"""Pixels of the sample that are held as float64 at a time."""

PATTERNS_PER_PROJECTION = 64
"""Patterns that are projected together."""

COMPONENT_ROUNDING_STEP = 2.0**-30
"""Of the components' numbers. With patterns of 8 bits every sum of a projection is then exact in float64, and the same
for any order, place in a batch, number of threads and library: those of float32 depend on all of them."""


@dataclass(frozen=True)
class Pixels:
    """Leading principal components of the 128 × 128 pixels (in [0, 1]) as features.

    Attributes
    ----------
    n_features
        Components kept; those beyond the number that the sample spans are 0.
    file, learnt
        Where the components are and the hash of that file, once fitted.
    """

    n_features: int = 256
    file: str = ""
    learnt: str = ""

    name = "pixels"
    on_gpu = False
    learns = True

    @property
    def digest(self) -> str:
        """Hash of the settings. What is learnt follows from them and the scan, whose own key stands beside this one."""
        return hashlib.sha256(f"pixels {PIXELS_VERSION} {self.n_features} {MAX_FITTED_PATTERNS}".encode()).hexdigest()[
            :16
        ]

    def fit(self, sample: Sample, file: Path) -> "Pixels":
        """Find the components of a sample of the scan and keep them in `file` (safetensors), 16 MiB of 256 features."""
        components, offset = principal_components(sample(MAX_FITTED_PATTERNS), self.n_features)
        content = save({"components": components, "offset": offset})
        write_atomically(file, content)
        return replace(self, file=str(file.absolute()), learnt=_hash(content))

    def extract(self, patterns: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """See `Extractor.extract`."""
        components, offset = _learnt(self.file, self.learnt)
        features = np.full((len(patterns), self.n_features), np.nan, dtype=np.float32)
        chosen = np.flatnonzero(valid)
        with one_thread():
            for start in range(0, len(chosen), PATTERNS_PER_PROJECTION):
                rows = chosen[start : start + PATTERNS_PER_PROJECTION]
                batch = patterns[rows].reshape(len(rows), -1).astype(np.float64)
                features[rows] = batch @ components.T / 255 - offset
        return features


def principal_components(patterns: NDArray[np.uint8], count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the exact principal components of a set of patterns, through their Gram matrix.

    Parameters
    ----------
    patterns : (n, 128, 128) uint8
        255 is 1.0.
    count
        Components wanted.

    Returns
    -------
    components : (count, 16384) float32
        Orthonormal, by descending variance, in multiples of `COMPONENT_ROUNDING_STEP`; zeros beyond the number of
        directions in which the patterns vary.
    offset : (count,) float32
        Components of the mean pattern, to be subtracted after a projection.

    Notes
    -----
    With the centred patterns X = U S Wᵀ, X Xᵀ = U S² Uᵀ gives U and S, and the components are W = Xᵀ U / S. The matrix
    of 8-bit numbers is exact in float64, and so the same for any number of threads.
    """
    flat = patterns.reshape(len(patterns), -1)
    n, width = flat.shape
    gram = np.zeros((n, n))
    for start in range(0, width, PIXELS_PER_SLAB):
        block = flat[:, start : start + PIXELS_PER_SLAB].astype(np.float64)
        gram += block @ block.T
    mean = gram.mean(axis=0)
    gram += mean.mean() - mean - mean[:, None]
    components = np.zeros((count, width), dtype=np.float32)
    wanted = min(count, n)
    with one_thread():
        square, u = eigh(gram, subset_by_index=(n - wanted, n - 1), overwrite_a=True)
        # What the arithmetic leaves in directions without variance.
        varied = square[::-1] > square[-1] * n * np.finfo(np.float64).eps
        u, scale = u[:, ::-1][:, varied], np.sqrt(square[::-1][varied])
        for start in range(0, width, PIXELS_PER_SLAB):
            block = flat[:, start : start + PIXELS_PER_SLAB].astype(np.float64)
            exact = u.T @ (block - block.mean(axis=0)) / scale[:, None]
            components[: len(scale), start : start + PIXELS_PER_SLAB] = (
                np.round(exact / COMPONENT_ROUNDING_STEP) * COMPONENT_ROUNDING_STEP
            )
        offset = components.astype(np.float64) @ (flat.mean(axis=0, dtype=np.float64) / 255)
    return components, offset.astype(np.float32)


@lru_cache(maxsize=2)
def _learnt(file: str, digest: str) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Components and offset, read once per process."""
    content = Path(file).read_bytes()
    if _hash(content) != digest:
        raise StoreError(f"{file}: changed while it was in use: is another run writing to the same folder?")
    found = load(content)
    return found["components"].astype(np.float64), found["offset"]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
