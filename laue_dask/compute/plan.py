"""The plan of a run: blocks, tasks, bytes and memory as functions of shapes and configuration, before it begins.

Pure: nothing is read, written or timed here. What depends on the data (how well frames compress) or on the machine
(seconds) comes in as `Packing` and `Costs`, which `stages.probe` measures.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, prod

import numpy as np

from laue_dask.errors import ConfigError
from laue_dask.io.blocks import block_size
from laue_dask.io.frame_array import frame_layout
from laue_dask.schema import PATTERN_SIZE

HEADERS_PER_TASK = 500
RECONSTRUCTIONS_PER_TASK = 128
SILHOUETTES_PER_TASK = 2000
"""Frames whose header, and patterns whose reconstruction or distances to all others, one task looks at."""

WORKER_BASE_BYTES = 384 * 2**20
"""Resident memory of a worker that has imported what ingest and reduction need, and compiled their loops."""

WORKER_BASE_BYTES_WITH_TORCH = 832 * 2**20
"""The same with PyTorch and scikit-learn, and what the C library keeps of earlier tasks
(`fork_server.MALLOC_ENVIRONMENT`)."""

SILHOUETTE_DISTANCE_BYTES = 2**25
SILHOUETTE_BYTES_PER_PATTERN = 2**11
"""Bytes that silhouettes hold at a time, of distances, and for each pattern of the sample."""

TERMINATE_MEMORY_SHARE = 0.95
"""Share of its memory limit at which Dask ends a worker."""

_REDUCED_PATTERN_BYTES = PATTERN_SIZE**2
_MAP_BYTES_PER_POINT = 64
"""Bytes of all maps per point: labels, colours and distances of about four K."""


@dataclass(frozen=True)
class Scan:
    """What there is to do.

    Attributes
    ----------
    n_patterns, n_frames
        Points of the grid, and frames that were recorded.
    frame_shape
        (rows, columns).
    source_bytes
        Of a frame as it lies on the disk, in the detector's file or in the store.
    header_bytes
        Read of each frame to know its place before it is ingested; None where nothing is.
    ingest
        Whether frames are ingested first.
    reduce
        Whether they are still to be reduced.
    in_store
        Whether the store holds, or will hold, the frames.
    """

    n_patterns: int
    n_frames: int
    frame_shape: tuple[int, int]
    dtype: np.dtype[np.generic]
    source_bytes: float
    header_bytes: float | None = None
    ingest: bool = True
    reduce: bool = True
    in_store: bool = True

    @property
    def frame_bytes(self) -> int:
        """Of a frame in memory."""
        return prod(self.frame_shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Work:
    """What the configuration asks for.

    Attributes
    ----------
    n_features
        M_AE, the number of features of a pattern.
    extractor_bytes
        Memory that the extractor needs beside the patterns of a block.
    table_rows
        Rows of the feature table that a task of PCA sees.
    fused
        Whether frames are reduced while they are ingested.
    ahead
        Whether workers that reduce encode in between.
    scored
        Numbers of clusters that are scored.
    sample
        Patterns that they are scored on, at most.
    reconstructed
        Patterns whose reconstruction is looked at.
    """

    n_features: int
    extractor_bytes: int
    table_rows: int
    fused: bool
    ahead: bool
    scored: int
    sample: int
    reconstructed: int


@dataclass(frozen=True)
class Packing:
    """Size on disk as a share of the size in memory."""

    frames: float = 1.0
    reduced: float = 1.0
    features: float = 1.0


Costs = Mapping[str, float]
"""Seconds on one core by stage (`headers`, `ingest`, `reduce`, `encode`, `quality` for a pattern; `scores` for one K);
a stage that is not in it takes no time worth mentioning."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes
    ----------
    tasks
        Units of work that are submitted; each sends back one receipt or one result.
    units
        Patterns, or K.
    read, written
        Bytes.
    peak
        Memory of a worker in bytes while it does the most demanding of these tasks.
    """

    name: str
    tasks: int
    units: int
    read: float
    written: float
    peak: int

    def seconds(self, costs: Costs, workers: int) -> float:
        """Return the expected time: the workers are equally fast, and the last tasks may leave some of them idle."""
        return ceil(self.tasks / workers) * self.units / self.tasks * costs.get(self.name, 0.0) if self.tasks else 0.0


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes
    ----------
    block
        Patterns of a block.
    shard
        Frames of a shard.
    """

    n_patterns: int
    block: int
    shard: int
    stages: tuple[Stage, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """Blocks of work of each of the large stages."""
        return ceil(self.n_patterns / self.block)

    @property
    def tasks(self) -> int:
        """Of all stages; k-means of a table too large for one process adds some in each of its steps."""
        return sum(stage.tasks for stage in self.stages)

    @property
    def read(self) -> float:
        """Bytes."""
        return sum(stage.read for stage in self.stages)

    @property
    def written(self) -> float:
        """Bytes."""
        return sum(stage.written for stage in self.stages)

    @property
    def hungriest(self) -> Stage:
        """The stage whose tasks need the most memory."""
        return max(self.stages, key=lambda stage: stage.peak)


def plan(scan: Scan, work: Work, packing: Packing) -> Plan:
    """Return the blocks, tasks, bytes and memory of a run from the start to its segmentations.

    Parameters
    ----------
    packing
        All ones for what is needed at most.
    """
    n, block = scan.n_patterns, block_size(scan.n_patterns)
    layout = frame_layout(scan.frame_shape, scan.dtype, n)
    shard = layout.shard_frames
    blocks = ceil(n / block)
    reduced, table = n * _REDUCED_PATTERN_BYTES * packing.reduced, n * work.n_features * 4 * packing.features
    rows = min(n, work.sample)
    stages = []
    reducing = WORKER_BASE_BYTES_WITH_TORCH if work.ahead else WORKER_BASE_BYTES
    ingesting = reducing if work.fused else WORKER_BASE_BYTES
    if scan.ingest:
        if scan.header_bytes is not None:
            tasks = ceil(scan.n_frames / HEADERS_PER_TASK)
            stages.append(
                Stage("headers", tasks, scan.n_frames, scan.n_frames * scan.header_bytes, 0, WORKER_BASE_BYTES)
            )
        stages.append(
            Stage(
                "ingest",
                blocks if work.fused else ceil(n / shard),
                scan.n_frames,
                scan.n_frames * scan.source_bytes,
                store_bytes(scan, packing, reduced=work.fused),
                ingesting + _ingest_bytes(scan, layout.chunk_frames, block if work.fused else 0),
            )
        )
    if scan.reduce and not (scan.ingest and work.fused):
        # A substrate is removed from frames that lie in the store.
        packed = scan.frame_bytes * packing.frames if scan.ingest and scan.in_store else scan.source_bytes
        stages.append(
            Stage("reduce", blocks, n, scan.n_frames * packed, reduced, reducing + _reduce_bytes(scan, shard, block))
        )
    patterns = 2 * block * _REDUCED_PATTERN_BYTES
    stages += [
        Stage("encode", blocks, n, reduced, table, WORKER_BASE_BYTES_WITH_TORCH + patterns + work.extractor_bytes),
        # Moments of all features, then their components.
        Stage(
            "components",
            ceil(n / work.table_rows) + blocks,
            n,
            2 * table,
            table + n * _MAP_BYTES_PER_POINT,
            WORKER_BASE_BYTES_WITH_TORCH + 24 * min(n, work.table_rows) * work.n_features,
        ),
        Stage(
            "scores",
            work.scored + ceil(rows / SILHOUETTES_PER_TASK),
            work.scored,
            table,
            0,
            WORKER_BASE_BYTES_WITH_TORCH
            + rows * (40 * work.n_features + SILHOUETTE_BYTES_PER_PATTERN)
            + SILHOUETTE_DISTANCE_BYTES,
        ),
    ]
    if work.reconstructed:
        tasks = ceil(work.reconstructed / RECONSTRUCTIONS_PER_TASK)
        share = work.reconstructed / n
        stages.append(
            Stage(
                "quality",
                tasks,
                work.reconstructed,
                reduced * share,
                0,
                WORKER_BASE_BYTES_WITH_TORCH + work.extractor_bytes,
            )
        )
    return Plan(n, block, shard, tuple(stages))


def store_bytes(scan: Scan, packing: Packing, *, reduced: bool) -> float:
    """Return the size of the scan store that an ingest writes."""
    frames = scan.n_frames * scan.frame_bytes * packing.frames if scan.in_store else 0.0
    return frames + (scan.n_patterns * _REDUCED_PATTERN_BYTES * packing.reduced if reduced else 0.0)


def require_memory(planned: Plan, limit: int) -> None:
    """Raise `ConfigError` where a task needs more memory than a worker of `limit` bytes may use."""
    stage, room = planned.hungriest, int(TERMINATE_MEMORY_SHARE * limit)
    if stage.peak > room:
        raise ConfigError(
            f"a worker needs {stage.peak / 2**30:.2f} GiB for a task of '{stage.name}', but with a limit of "
            f"{limit / 2**30:.2f} GiB it is stopped at {room / 2**30:.2f} GiB: raise workers.memory or lower "
            f"workers.count{' or encoder.batch_size' if stage.name in ('encode', 'quality') else ''}"
        )


def _ingest_bytes(scan: Scan, chunk: int, block: int) -> int:
    """Arrays of a task that ingests: a chunk of frames, as it is and packed, and one more that is read or reduced."""
    return 3 * chunk * scan.frame_bytes + _one(scan) + 2 * block * _REDUCED_PATTERN_BYTES


def _reduce_bytes(scan: Scan, shard: int, block: int) -> int:
    held = 1 if scan.in_store else shard
    return 2 * held * scan.frame_bytes + _one(scan) + 2 * block * _REDUCED_PATTERN_BYTES


def _one(scan: Scan) -> int:
    """A frame while it is read (its file and its pixels) or reduced (as a wider dtype)."""
    return 2 * scan.frame_bytes + 8 * prod(scan.frame_shape)
