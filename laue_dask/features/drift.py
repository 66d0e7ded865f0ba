"""Drift: whether a scan's patterns are like those that the autoencoder was trained on.

The binary cross entropy of a pattern says mostly how many bright pixels it has. What the reconstruction leaves
`losses.unexplained` is free of that, so patterns of different scans, detectors and exposures compare: the weights'
card keeps its quantiles over the validation set (`reference`), and a scan of which many patterns lie beyond them has
left the training distribution.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REFERENCE_QUANTILES = (0.5, 0.95, 0.99)
"""Quantiles of the validation set's errors that a card keeps, as `error_q50`, `error_q95` and `error_q99`."""

MAX_SHARE_BEYOND_Q99 = 0.10
"""Share of a scan's patterns beyond the 99 % quantile from which it is warned of. The patterns of a scan show a few
crystals only and are not independent: a share of 2 or 3 % is one grain."""


def reference(errors: NDArray[np.float32]) -> dict[str, float]:
    """Return what a card keeps of the errors of a validation set, for `Drift.between`.

    Parameters
    ----------
    errors : (n,)
        `unexplained` of the validation patterns; those that are not finite are left out.

    Returns
    -------
    dict
        `error_q50`, `error_q95` and `error_q99`; empty where no error is finite.
    """
    known = np.asarray(errors, dtype=np.float64).ravel()
    known = known[np.isfinite(known)]
    return {f"error_q{100 * q:.0f}": float(np.quantile(known, q)) for q in REFERENCE_QUANTILES} if len(known) else {}


@dataclass(frozen=True)
class Drift:
    """How a scan's reconstruction errors compare with those of the validation set.

    Attributes
    ----------
    patterns
        Number of patterns whose error is known.
    beyond
        Share of them above the validation set's 99 % quantile, where 0.01 is expected.
    median, reference_median, reference_q99
        Errors (`unexplained`) of the scan and of the validation set.
    """

    patterns: int
    beyond: float
    median: float
    reference_median: float
    reference_q99: float

    @classmethod
    def between(cls, errors: NDArray[np.float32], reference: Mapping[str, float]) -> "Drift | None":
        """Compare the errors of a scan, any shape, with a card's `reference`; ``None`` where either is not known."""
        known = errors[np.isfinite(errors)]
        if not len(known) or not {"error_q50", "error_q99"} <= set(reference):
            return None
        limit = reference["error_q99"]
        return cls(
            patterns=len(known),
            beyond=float((known > limit).mean()),
            median=float(np.median(known)),
            reference_median=reference["error_q50"],
            reference_q99=limit,
        )

    @property
    def warning(self) -> str | None:
        """One line for a person, where the scan has left the training distribution."""
        if self.beyond <= MAX_SHARE_BEYOND_Q99:
            return None
        return (
            f"{100 * self.beyond:.0f} % of {self.patterns:,} patterns are reconstructed worse than all but 1 % of the "
            f"patterns that the weights were checked on (error above {self.reference_q99:.3f}; median "
            f"{self.median:.3f} here, {self.reference_median:.3f} there): this scan is unlike the training, and its "
            "features may separate less than they could: compare with `laue-dask run … --extractor pixels`"
        )
