"""Detector frames → scan store: what the grid is, which pixels are usable, and every frame in its place."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray

from laue_dask import __version__, preprocess
from laue_dask.compute.cluster import Workers
from laue_dask.compute.run import Journal, map_tasks, run_blocks
from laue_dask.config import ScanConfig
from laue_dask.errors import FrameError, InputError, StoreError
from laue_dask.io import numbering
from laue_dask.io.frames import FrameInfo, FrameRef, discover, frame_info, read_frame, read_position
from laue_dask.io.geometry import ScanGrid, resolve_grid
from laue_dask.io.places import require_writable
from laue_dask.io.scan_store import ScanStore, ingest_shard
from laue_dask.progress import Progress
from laue_dask.schema import PATTERN_SIZE

SAMPLE_FRAMES = 48
SAMPLE_BYTES = 256 * 2**20
"""The detector mask is found from at most so many frames, and so many bytes of them."""

HEADERS_PER_TASK = 500


@dataclass(frozen=True)
class Sample:
    """Frames spread over the scan that were read before the scan itself.

    Attributes
    ----------
    frames : (s, row, column)
        Frames of the scan's shape and dtype.
    info
        Header of the first of them.
    """

    frames: NDArray[Any]
    info: FrameInfo


def ingest(source: str, out: Path, scan: ScanConfig, *, workers: Workers, progress: Progress) -> ScanStore:
    """Write the frames of `source` into a new scan store.

    Parameters
    ----------
    source
        Folder, glob, text file of paths, or HDF5 stack; see `io.frames.discover`.
    out
        Path of the store; it appears when it is complete. An ingest that was killed goes on at its first missing shard.
    scan
        Shape and order of the grid, where the headers do not tell them.

    Returns
    -------
    ScanStore
        Frames that cannot be used are listed in its `set_aside`; their patterns are not `valid`.

    Raises
    ------
    InputError
        No frame can be used, or the grid is unknown or does not fit; nothing is left at `out`.
    """
    require_writable(out)
    # Workers may have another working directory.
    out, source = out.absolute(), absolute(source)
    if out.exists():
        raise StoreError(f"{out}: exists already: choose another path or remove it")
    refs = discover(source)
    sample = read_sample(refs)
    rows, columns = sample.frames.shape[1:]
    if min(rows, columns) < PATTERN_SIZE:
        raise InputError(
            f"{source}: frames of {rows} × {columns} pixels are smaller than a pattern of "
            f"{PATTERN_SIZE} × {PATTERN_SIZE}: give unbinned frames"
        )
    positions = None if scan.shape else _positions(refs, workers, progress)
    grid = resolve_grid(
        len(refs), shape=scan.shape, order=scan.order, positions=positions, acquired=numbering.acquired(refs)
    )
    store = ScanStore.create(
        out,
        grid=grid,
        frame_shape=(rows, columns),
        dtype=sample.frames.dtype,
        detector=sample.info.detector,
        pixel_size_um=sample.info.pixel_size_um,
        provenance={
            "source": source,
            "laue_dask": __version__,
            "grid": grid.how,
            "asked": scan.model_dump(mode="json"),
            "manifest": manifest(refs),
        },
    )
    store.write_detector_mask(preprocess.detector_mask(sample.frames))
    tasks = [delayed(ingest_shard)(store.writing_path, i, part) for i, part in enumerate(_by_shard(refs, grid, store))]
    journal = Journal(Path(store.writing_path) / "journal.jsonl")
    journal.keep(lambda receipt: store.has_shard(int(receipt["block"])))
    done = sum(receipt["frames"] for receipt in journal.read().values())
    with progress.stage("ingest", total=len(refs), done=done) as advance:
        receipts = run_blocks(
            tasks,
            client=workers.client,
            journal=journal,
            on_receipt=lambda receipt: advance(receipt["frames"]),
        )
    store.record(receipts)
    if not store.valid.any():
        first = store.set_aside[0]
        shutil.rmtree(store.writing_path)
        raise InputError(f"none of {len(refs)} frames can be used; {first['source']}: {first['reason']}")
    journal.path.unlink()  # the store itself holds all of it now
    return store.finish()


def manifest(refs: Sequence[FrameRef]) -> str:
    """Hash of which frames a scan is made of, in order; 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(map(str, refs)).encode()).hexdigest()[:16]


def absolute(source: str) -> str:
    """The same source from whichever folder a command is run."""
    name, separator, dataset = source.partition("::")
    return f"{Path(name).absolute()}{separator}{dataset}"


def read_sample(refs: Sequence[FrameRef]) -> Sample:
    """Read frames spread over the scan.

    The most frequent shape and dtype are the scan's; frames of another are left to be set aside.

    Raises
    ------
    InputError
        None of them can be read.
    """
    places = np.unique(np.linspace(0, len(refs) - 1, min(SAMPLE_FRAMES, len(refs))).astype(int))
    frames: list[NDArray[Any]] = []
    chosen: list[FrameRef] = []
    reasons: list[str] = []
    for place in places:
        try:
            frame = read_frame(refs[place])
        except FrameError as error:
            reasons.append(f"{refs[place]}: {error}")
            continue
        frames.append(frame)
        chosen.append(refs[place])
        if sum(f.nbytes for f in frames) > SAMPLE_BYTES:
            break
    if not frames:
        raise InputError(f"none of {len(places)} frames tried can be read; {reasons[0]}")
    (shape, dtype), _ = Counter((f.shape, f.dtype) for f in frames).most_common(1)[0]
    alike = [i for i, f in enumerate(frames) if (f.shape, f.dtype) == (shape, dtype)]
    return Sample(np.stack([frames[i] for i in alike]), frame_info(chosen[alike[0]]))


def _positions(refs: Sequence[FrameRef], workers: Workers, progress: Progress) -> list[tuple[float, float] | None]:
    batches = [refs[i : i + HEADERS_PER_TASK] for i in range(0, len(refs), HEADERS_PER_TASK)]
    with progress.stage("headers", total=len(refs), unit="frames") as advance:
        read = map_tasks(_read_positions, batches, (), client=workers.client, on_done=lambda batch: advance(len(batch)))
    return [position for batch in read for position in batch]


def _read_positions(refs: Sequence[FrameRef]) -> list[tuple[float, float] | None]:
    positions: list[tuple[float, float] | None] = []
    for ref in refs:
        try:
            positions.append(read_position(ref))
        except FrameError:
            positions.append(None)
    return positions


def _by_shard(refs: Sequence[FrameRef], grid: ScanGrid, store: ScanStore) -> list[list[FrameRef | None]]:
    """Frames of each shard in the order of the patterns; ``None`` where nothing was recorded."""
    placed: list[FrameRef | None] = [None] * store.n_patterns
    for ref, pattern in zip(refs, grid.pattern, strict=True):
        placed[pattern] = ref
    unit = store.shard_frames
    return [placed[i : i + unit] for i in range(0, len(placed), unit)]
