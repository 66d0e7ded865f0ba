"""Suggestions from the scan so far: numbers of clusters, and regions worth a finer scan (section 4.4, step 8)."""

from dataclasses import dataclass

import numpy as np

from laue_dask.config import ClusteringConfig
from laue_dask.grains.neighbourhood import NeighbourhoodGrains
from laue_dask.grains.regions import Region, propose, quarter
from laue_dask.io.coordinates import COUNTED, MapScale
from laue_dask.segmentation import scores
from laue_dask.segmentation.seeding import distinct_rows, sample_kmeans, sample_rows
from laue_dask.watch.preview import Maps

MAX_SCORED_PATTERNS = 1_000
"""Patterns whose segmentations are scored."""

N_STARTS = 3

MIN_PATTERNS = 50
"""Patterns from which on there are suggestions."""

MAX_REGIONS = 3

GROWTH_FACTOR = 1.25
"""The next suggestions are due when there are so many times as many patterns: their cost stays a share of the scan."""


@dataclass(frozen=True)
class Advice:
    """Suggestions.

    Attributes
    ----------
    patterns
        Number of patterns that they are made of.
    suggested_k
        K at the peaks of the scores, ascending; see `scores.suggest_k`.
    regions
        Worth a finer scan, the most interesting first.
    scale
        Of the map, whose units the regions are told in as well.
    """

    patterns: int
    suggested_k: tuple[int, ...]
    regions: tuple[Region, ...]
    scale: MapScale = COUNTED

    @property
    def lines(self) -> list[str]:
        """For people: what to do next."""
        said = []
        if self.suggested_k:
            said.append(f"K = {' or '.join(map(str, self.suggested_k))}: scores of {self.patterns:,} patterns")
        said += [
            f"a finer scan of y {one.y0}–{one.y1}, x {one.x0}–{one.x1}{self._stage(one)}: {one.reason}"
            for one in self.regions
        ]
        return said

    def _stage(self, region: Region) -> str:
        if not self.scale.units:
            return ""
        ends = [self.scale.at(*corner) for corner in ((region.y0, region.x0), (region.y1, region.x1))]
        (y0, y1), (x0, x1) = (sorted(pair) for pair in zip(*ends, strict=True))
        return f" (stage y {y0:.10g} to {y1:.10g} {self.scale.units}, x {x0:.10g} to {x1:.10g} {self.scale.units})"


def advise(maps: Maps, shape: tuple[int, int], config: ClusteringConfig, scale: MapScale = COUNTED) -> Advice:
    """Score K on a sample of what is there, and look for regions where neighbouring patterns differ.

    Parameters
    ----------
    maps
        See `preview`.
    shape
        (ny, nx) of the scan.
    scale
        Of its map.
    """
    sample = maps.components[sample_rows(len(maps.components), MAX_SCORED_PATTERNS, config.seed)]
    first, last = config.score_k
    values = list(range(first, min(last, len(distinct_rows(sample)) - 1) + 1))
    # A start or two less thorough than the run's own: that would take a core away from the frames for seconds.
    fits = [sample_kmeans(sample, k, n_init=N_STARTS, seed=config.seed).labels_ for k in values]
    found = [scores.score_labels(sample, labels, seed=config.seed) for labels in fits]
    suggested = scores.suggest_k(
        values, [one["silhouette"] for one in found], [one["calinski_harabasz"] for one in found]
    )
    where = maps.where(shape)
    grains = NeighbourhoodGrains().fit(maps.components, shape=shape, valid=where.valid)
    boundary = where.paint(grains.boundary_, fill=np.float32(np.nan))
    labels = where.paint(grains.labels_, fill=np.int32(-1))
    regions = propose(boundary, labels, size=quarter(shape), count=MAX_REGIONS)
    return Advice(len(maps.components), suggested, tuple(regions), scale)
