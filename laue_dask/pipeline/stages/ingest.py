"""Detector frames → scan store: what the grid is, which pixels are usable, and every frame in its place."""

import hashlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray

from laue_dask import __version__, schema
from laue_dask.compute.cluster import Workers
from laue_dask.compute.plan import HEADERS_PER_TASK
from laue_dask.compute.run import map_tasks, run_blocks, write_block
from laue_dask.config import Recipe, ScanConfig
from laue_dask.errors import FrameError, InputError, StoreError
from laue_dask.io.block_files import checksum
from laue_dask.io.blocks import block_size
from laue_dask.io.frame_groups import group_frames
from laue_dask.io.frames import FrameInfo, FrameRef, discover, is_listed, load, pixel_mask
from laue_dask.io.journal import Journal, Receipt
from laue_dask.io.lock import locked_store
from laue_dask.io.output_paths import require_space, require_writable
from laue_dask.io.packed_size import pack
from laue_dask.io.placement import MEASURED_AGAIN_REASON, Placement, frames_of_scan
from laue_dask.io.scan_store import ScanStore, ingest_shard
from laue_dask.io.source_identity import Stamp
from laue_dask.pipeline.stages import frame_placement
from laue_dask.pipeline.stages.changed_frames import ChangedFrame, ReadFrame, changed_while_read, suspects
from laue_dask.pipeline.stages.early_encoding import EarlyEncoder
from laue_dask.reduction import reduce as preprocess
from laue_dask.runtime.progress import Advance, Progress
from laue_dask.schema import PATTERN_SIZE

MAX_SAMPLE_FRAMES = 48
MAX_SAMPLE_BYTES = 256 * 2**20
"""The detector mask is found from at most so many frames, and so many bytes of them."""

N_PACKED_FRAMES = 8
"""Frames of the sample that tell how large the store will be."""

MAX_READ_ATTEMPTS = 3
"""How often frames are read that change while they are read, before they are taken for unfinished."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """Frames spread over the scan that were read before the scan itself.

    Attributes
    ----------
    frames : (s, row, column)
        Frames of the scan's shape and dtype.
    info, ref
        Header of the first of them, and where it is.
    """

    frames: NDArray[Any]
    info: FrameInfo
    ref: FrameRef


@dataclass(frozen=True)
class Inspection:
    """What a scan's frames are like, by a sample of them.

    Attributes
    ----------
    refs
        All frames.
    frame_shape, dtype
        Of a frame.
    info
        Header of the first of the sample.
    mask : (row, column) bool
        True where the pixel is unusable.
    stored_bytes
        Of a frame in a store, as small as the sample packs; 0 where none is to be stored.
    pixel_mask
        What the file says of unusable pixels, for people; empty where it says nothing.
    grid
        Where the frames belong; None where workers have to read the headers first.
    """

    refs: Sequence[FrameRef]
    frame_shape: tuple[int, int]
    dtype: np.dtype[Any]
    info: FrameInfo
    mask: NDArray[np.bool_]
    stored_bytes: float
    pixel_mask: str = ""
    grid: Placement | None = None


@dataclass(frozen=True)
class Block:
    """Work of one task: whole shards of the frames and of the reduced patterns.

    Attributes
    ----------
    index
        Its number.
    first
        Number of its first shard.
    shards
        Frames of each shard in the order of the patterns; ``None`` where nothing was recorded.
    """

    index: int
    first: int
    shards: Sequence[Sequence[FrameRef | None]]

    @property
    def sources(self) -> list[list[str]]:
        """Of each shard, as a receipt has them."""
        return [["" if ref is None else str(ref) for ref in shard] for shard in self.shards]


def ingest(
    source: str,
    out: Path,
    scan: ScanConfig,
    *,
    recipe: Recipe | None = None,
    ahead: EarlyEncoder | None = None,
    inspection: Inspection | None = None,
    remove_earlier: Callable[[], None] | None = None,
    label: str = "",
    workers: Workers,
    progress: Progress,
) -> ScanStore:
    """Write the frames of `source` into a new scan store.

    Parameters
    ----------
    source
        Folder, glob, text file of paths, or HDF5 stack; see `io.frames.discover`.
    out
        Path of the store; it appears when it is complete. An ingest that was killed goes on at its first missing shard.
    scan
        Shape and order of the grid, where the headers do not tell them.
    recipe
        By which the frames are reduced, too, while they are in memory. A substrate can be removed only from a store.
    ahead
        Encodes what was reduced.
    inspection
        What `inspect_source` found of the same source a moment ago.
    remove_earlier
        Takes away the store that is at `out`, when nothing is left for which these frames might be refused before they
        are read; by default a store that is there is not replaced.
    label
        What the line about the grid begins with.

    Returns
    -------
    ScanStore
        Frames that cannot be used are listed in its `set_aside`; their patterns are not `valid`.

    Raises
    ------
    InputError
        No frame can be used, or the grid is unknown or does not fit; nothing is left at `out`.
    """
    if remove_earlier is None:
        check_out(out)
    require_writable(out)
    # Workers may have another working directory.
    out, source = out.absolute(), absolute(source)
    inspection = inspection or inspect_source(source, scan, label=label)
    refs, grid = inspection.refs, inspection.grid
    recipe = recipe.for_frames(inspection.frame_shape) if recipe else None
    if grid is None:
        grid = frame_placement.locate(source, refs, scan, _reader(refs, workers, progress))
        frame_placement.announce(grid, refs, label)
    if scan.store_frames:
        _require_space(out, inspection, int(np.count_nonzero(grid.pattern >= 0)))
    with locked_store(out, f"ingest {source}"):
        if remove_earlier is not None:
            remove_earlier()
        store = begin(source, out, scan, grid, inspection, recipe)
        return _finish(store, refs, grid, recipe, ahead, workers=workers, progress=progress)


def check_out(out: Path) -> None:
    """Raise `InputError` where no store can be made at `out`."""
    require_writable(out)
    if out.exists():
        raise StoreError(f"{out.absolute()}: exists already: choose another path, or remove it")


def inspect_source(source: str, scan: ScanConfig, *, label: str = "") -> Inspection:
    """Return what the frames of a source are like, and where they belong; this asks nothing of any worker.

    Raises
    ------
    InputError
        There are none, none can be read, they are smaller than a pattern, or nobody knows where they belong.
    """
    source = absolute(source)
    refs = discover(source)
    named = refs if scan.insist else frames_of_scan(refs, listed=is_listed(source))
    look = inspect_frames(refs, packed=scan.store_frames, sample_of=named)
    rows, columns = look.frame_shape
    if min(rows, columns) < PATTERN_SIZE:
        raise InputError(
            f"{source}: frames of {rows} × {columns} pixels are smaller than a pattern of "
            f"{PATTERN_SIZE} × {PATTERN_SIZE}: give unbinned frames"
        )
    grid = frame_placement.locate_locally(source, refs, scan)
    if grid is not None:
        frame_placement.announce(grid, refs, label)
    return replace(look, grid=grid)


def inspect_frames(
    refs: Sequence[FrameRef], *, packed: bool, sample_of: Sequence[FrameRef] | None = None
) -> Inspection:
    """Return what frames are like, by some of them all or of those that are complete; whether one packs well, if
    wanted.

    Raises
    ------
    InputError
        See `read_sample`.
    """
    sample = read_sample(refs if sample_of is None else sample_of)
    rows, columns = sample.frames.shape[1:]
    mask, told = preprocess.detector_mask(sample.frames), ""
    if (found := pixel_mask(sample.ref)) is not None:
        mask, told = mask if found.mask is None else mask | found.mask, found.text
        logger.info("pixel mask: %s", told)
    stored = _packed(sample) if packed else 0.0
    return Inspection(refs, (rows, columns), sample.frames.dtype, sample.info, mask, stored, pixel_mask=told)


def _finish(
    store: ScanStore,
    refs: Sequence[FrameRef],
    grid: Placement,
    recipe: Recipe | None,
    ahead: EarlyEncoder | None,
    *,
    workers: Workers,
    progress: Progress,
) -> ScanStore:
    """Write all that is missing of a store that is this process's own, and put it in its place."""
    receipts = _ingest_blocks(store, refs, grid, recipe, ahead, workers=workers, progress=progress)
    aside = [i for i in np.flatnonzero(grid.pattern < 0).tolist() if i not in grid.outside]
    again = [str(refs[i]) for i in aside if i not in grid.left_out]
    store.record(receipts, [{"pattern": None, "source": source, "reason": MEASURED_AGAIN_REASON} for source in again])
    if not store.valid.any():
        first = store.set_aside[0]
        shutil.rmtree(store.writing_path)
        raise InputError(f"none of {len(refs)} frames can be used; {first['source']}: {first['reason']}")
    journal = _journal(store).path.relative_to(store.writing_path)
    finished = store.finish()
    (finished.path / journal).unlink()  # the store itself holds all of it now
    return finished


def begin(
    source: str,
    out: Path,
    scan: ScanConfig,
    grid: Placement,
    inspection: Inspection,
    recipe: Recipe | None,
) -> ScanStore:
    """Begin a store, or go on with one that was begun with fewer frames of the scan.

    Parameters
    ----------
    source
        Absolute.
    inspection
        At the frames.
    recipe
        See `ingest`.
    """
    store = ScanStore.create(
        out,
        grid=grid,
        frame_shape=inspection.frame_shape,
        dtype=inspection.dtype,
        detector=inspection.info.detector,
        pixel_size_um=inspection.info.pixel_size_um,
        provenance={
            "source": source,
            "store": str(out),
            "laue_dask": __version__,
            "grid": grid.how,
            "placement": grid.as_json(inspection.refs),
            "asked": scan.model_dump(mode="json"),
            **({"pixel_mask": inspection.pixel_mask} if inspection.pixel_mask else {}),
            "manifest": manifest(inspection.refs),
        },
        store_frames=scan.store_frames,
    )
    store.write_detector_mask(inspection.mask)
    if recipe is not None and store.reduced(recipe.digest()) is None:
        store.create_reduced(recipe.digest(), block_size(store.n_patterns), recipe.model_dump(mode="json"))
    return store


def _packed(sample: Sample) -> float:
    """Bytes of a frame in a store, as small as the sample packs."""
    some = sample.frames[:: -(-len(sample.frames) // N_PACKED_FRAMES)]
    share, _ = pack(some, schema.SCAN["frames"])
    return share * float(some[0].nbytes)


def _require_space(out: Path, inspection: Inspection, n_frames: int) -> None:
    """Refuse frames whose store cannot fit on the disk beside what is there of it."""
    # A store that is there makes way.
    places = (out.with_name(out.name + ".part"), out)
    there = sum(file.stat().st_size for place in places for file in place.rglob("*") if file.is_file())
    require_space(out, int(n_frames * inspection.stored_bytes) - there)


def _ingest_blocks(
    store: ScanStore,
    refs: Sequence[FrameRef],
    grid: Placement,
    recipe: Recipe | None,
    ahead: EarlyEncoder | None,
    *,
    workers: Workers,
    progress: Progress,
) -> list[Receipt]:
    """Read every frame once, write it, and reduce it while it is in memory; the receipt of each shard."""
    blocks = blocks_of(store, refs, grid, recipe)
    tasks = [delayed(_ingest_block)(store.writing_path, block, recipe) for block in blocks]
    journal = _journal(store)
    written(store, blocks)
    reduced = store.reduced(recipe.digest()) if recipe is not None else None
    for turn in range(MAX_READ_ATTEMPTS):
        done = sum(one["frames"] for receipt in journal.read().values() for one in receipt["shards"])
        # What was encoded ahead of frames that are read again is not that of the new ones.
        encoding = None if turn else ahead
        with progress.stage(_named(reduced, encoding), total=int((grid.pattern >= 0).sum()), done=done) as advance:

            def finished(
                receipt: Receipt, encoding: EarlyEncoder | None = encoding, advance: Advance = advance
            ) -> None:
                if reduced is not None:
                    Journal.of(reduced).add(receipt["reduced"])
                    if encoding is not None:
                        encoding.encode(reduced, receipt["reduced"], _usable(receipt))
                advance(sum(one["frames"] for one in receipt["shards"]))

            receipts = run_blocks(tasks, client=workers.client, journal=journal, on_receipt=finished)
            if encoding is not None:
                encoding.finish()  # the store is about to get another name
        changed = changed_while_read(_frames_read(journal.read(), blocks), store.detector_mask, store.dtype)
        if not changed:
            return [one for receipt in receipts for one in receipt["shards"]]
        _forget_changed(journal, changed, "changed while the scan was read")
    raise InputError(
        f"{changed[0]}: is still being written: run the same command again when the scan is complete, or follow "
        "the scan with `laue-dask watch`"
    )


def _frames_read(receipts: Mapping[int, Receipt], blocks: Sequence[Block]) -> list[ReadFrame]:
    """What the receipts of blocks know of the sources of each frame; nothing, in those of earlier versions."""
    found = []
    for block in blocks:
        shards = receipts[block.index]["shards"] if block.index in receipts else []
        for refs, shard in zip(block.shards, shards, strict=False):
            aside = {pattern - shard["start"] for pattern, _ in shard["set_aside"]}
            known = zip(refs, shard.get("stamps", ()), shard.get("checksums", ()), strict=False)
            found += [
                ReadFrame(block.index, ref, Stamp(*stamp), crc, place not in aside)
                for place, (ref, stamp, crc) in enumerate(known)
                if ref is not None
            ]
    return found


def _forget_changed(journal: Journal, changed: Sequence[ChangedFrame], when: str) -> None:
    """Have the blocks of frames that changed written again, and say so."""
    if not changed:
        return
    blocks = {one.read.place for one in changed}
    logger.info(
        "ingest: %d frame%s %s, first %s: read again, with the rest of %s",
        len(changed),
        "" if len(changed) == 1 else "s",
        when,
        changed[0],
        "its block" if len(blocks) == 1 else f"their {len(blocks)} blocks",
    )
    journal.keep(lambda receipt: int(receipt["block"]) not in blocks)


def _named(reduced: Any, ahead: EarlyEncoder | None) -> str:
    if reduced is None:
        return "ingest"
    return "ingest and reduce" if ahead is None else "ingest, reduce and encode"


def _usable(receipt: Receipt) -> NDArray[np.bool_]:
    """(pattern,) whether each pattern of a block was recorded and is usable, as `ScanStore.record` will have it."""
    usable = np.array([name != "" for one in receipt["shards"] for name in one["source"]])
    usable[[pattern - receipt["start"] for one in receipt["shards"] for pattern, _ in one["set_aside"]]] = False
    return usable


def blocks_of(store: ScanStore, refs: Sequence[FrameRef], grid: Placement, recipe: Recipe | None) -> list[Block]:
    """Return the work of an ingest, in order of the patterns."""
    shards = _in_shards(refs, grid, store)
    # A task fills whole shards of both arrays.
    step = 1 if recipe is None else max(1, block_size(store.n_patterns) // store.shard_frames)
    return [Block(i, first, shards[first : first + step]) for i, first in enumerate(range(0, len(shards), step))]


def written(store: ScanStore, blocks: Sequence[Block]) -> dict[int, Receipt]:
    """Return the receipts of the blocks that are on disk and need not be written again; those of others are forgotten.

    A block is kept if it was made of the same frames, whose files have not changed since, with the same usable pixels,
    and its shards are whole.
    """
    journal, mask = _journal(store), checksum(store.detector_mask)
    sources = {block.index: block.sources for block in blocks}
    journal.keep(
        lambda receipt: (
            receipt.get("mask") == mask
            and [one["source"] for one in receipt["shards"]] == sources.get(int(receipt["block"]))
        )
    )
    changed = [one for one in suspects(_frames_read(journal.read(), blocks)) if one.now.known]
    _forget_changed(journal, changed, "changed since the ingest was stopped")
    known = [one for receipt in journal.read().values() for one in receipt["shards"]]
    lost = {one["block"] for one, whole in zip(known, store.written(known), strict=True) if not whole}
    journal.keep(lambda receipt: not lost & {one["block"] for one in receipt["shards"]})
    return journal.read()


def write_ahead(store: ScanStore, block: Block, recipe: Recipe | None, note: Mapping[str, Any]) -> Receipt:
    """Write one block before the ingest, which then finds it; in this process, and by one of them at a time.

    `note` is added to its receipt.
    """
    receipt = {**note, **_ingest_block(store.writing_path, block, recipe)}
    _journal(store).add(receipt)
    if recipe is not None and (reduced := store.reduced(recipe.digest())) is not None:
        Journal.of(reduced).add(receipt["reduced"])
    return receipt


def forget(store: ScanStore, blocks: Collection[int]) -> None:
    """Have blocks written again, by number: their frames were changed."""
    _journal(store).keep(lambda receipt: int(receipt["block"]) not in blocks)


def _ingest_block(store_path: str, block: Block, recipe: Recipe | None) -> Receipt:
    """Read the frames of a block shard by shard, write them and reduce them."""
    store = ScanStore(store_path)
    mask = store.detector_mask
    patterns: list[NDArray[np.uint8]] = []

    def reduce(frames: NDArray[Any], usable: NDArray[np.bool_]) -> None:
        if recipe is not None:
            patterns.append(preprocess.reduce_usable(frames, usable, mask, recipe))

    found = [
        ingest_shard(store, place, refs, look=reduce) for place, refs in enumerate(block.shards, start=block.first)
    ]
    whole = {"block": block.index, "start": found[0]["start"], "stop": found[-1]["stop"], "shards": found}
    whole["mask"] = checksum(mask)
    if recipe is None:
        return whole
    array = store.reduced(recipe.digest())
    if array is None:
        raise StoreError(
            f"{store_path}: the reduced patterns of recipe {recipe.digest()} have gone: run the same command again"
        )
    return {**whole, "reduced": write_block(np.concatenate(patterns), array, block.index)}


def _journal(store: ScanStore) -> Journal:
    return Journal(Path(store.writing_path) / "journal.jsonl")


def manifest(refs: Sequence[FrameRef]) -> str:
    """Return the hash of which frames a scan is made of, in order; 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(map(str, refs)).encode()).hexdigest()[:16]


def absolute(source: str) -> str:
    """Return the same source from whichever folder a command is run."""
    name, separator, dataset = source.partition("::")
    return f"{Path(os.path.expanduser(name)).absolute()}{separator}{dataset}"  # noqa: PTH111  a pattern, too


def read_sample(refs: Sequence[FrameRef]) -> Sample:
    """Read frames spread over the scan.

    The most frequent shape and dtype are the scan's, by the headers; frames of another are not read, and left to be set
    aside.

    Raises
    ------
    InputError
        None of them can be read.
    """
    places = np.unique(np.linspace(0, len(refs) - 1, min(MAX_SAMPLE_FRAMES, len(refs))).astype(int))
    groups, reasons = group_frames([refs[place] for place in places])
    for kind, alike, infos in groups:
        room = min(len(alike), MAX_SAMPLE_BYTES // (math.prod(kind.shape) * kind.dtype.itemsize) + 1)
        stack = np.empty((room, *kind.shape), kind.dtype)
        read: list[FrameInfo] = []
        first = alike[0]
        for ref, info in zip(alike, infos, strict=True):
            if len(read) == room:
                break
            try:
                frame = load(ref, memory=stack[len(read)], expected=kind)[0]
            except FrameError as error:
                reasons.append(f"{ref}: {error}")
                continue
            if not np.may_share_memory(frame, stack):
                stack[len(read)] = frame
            first = first if read else ref
            read.append(info)
        if read:
            return Sample(stack[: len(read)], read[0], first)
    raise InputError(f"none of {len(places)} frames tried can be read; {reasons[0]}")


def _reader(
    refs: Sequence[FrameRef], workers: Workers, progress: Progress
) -> Callable[[Sequence[int]], list[tuple[float, float] | None]]:
    """Has workers read the stage positions of frames."""

    def read(chosen: Sequence[int]) -> list[tuple[float, float] | None]:
        wanted = [refs[i] for i in chosen]
        batches = [wanted[i : i + HEADERS_PER_TASK] for i in range(0, len(wanted), HEADERS_PER_TASK)]
        with progress.stage("headers", total=len(wanted), unit="frames") as advance:
            done = map_tasks(
                frame_placement.read_positions,
                batches,
                (),
                client=workers.client,
                on_done=lambda batch: advance(len(batch)),
            )
        return [position for batch in done for position in batch]

    return read


def _in_shards(refs: Sequence[FrameRef], grid: Placement, store: ScanStore) -> list[list[FrameRef | None]]:
    """Frames of each shard in the order of the patterns; ``None`` where nothing was recorded."""
    placed: list[FrameRef | None] = [None] * store.n_patterns
    for ref, pattern in zip(refs, grid.pattern, strict=True):
        if pattern >= 0:
            placed[pattern] = ref
    unit = store.shard_frames
    return [placed[i : i + unit] for i in range(0, len(placed), unit)]
