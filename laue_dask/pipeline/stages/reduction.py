"""Scan store → reduced patterns, kept in the store under the recipe's hash.

The frames are the large part of a scan and are read here, once, chunk by chunk inside each task: neither the graph nor
a worker ever holds more than a shard of them.
"""

from typing import Any

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray

from laue_dask.compute.cluster import Workers
from laue_dask.compute.run import is_complete, write_array
from laue_dask.config import Recipe
from laue_dask.errors import InputError
from laue_dask.io.blocks import block_size
from laue_dask.io.journal import Receipt
from laue_dask.io.lock import locked_store
from laue_dask.io.output_paths import require_writable
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.reuse import Output
from laue_dask.pipeline.stages.early_encoding import EarlyEncoder
from laue_dask.pipeline.stages.ingest import MAX_SAMPLE_BYTES, MAX_SAMPLE_FRAMES
from laue_dask.reduction import reduce as preprocess
from laue_dask.reduction.reduce import MIN_SAMPLE_FRAMES, Substrate
from laue_dask.runtime.progress import Progress
from laue_dask.schema import PATTERN_SIZE


def reduced_patterns(store: ScanStore, recipe: Recipe) -> da.Array:
    """Return the lazy reduced patterns (pattern, 128, 128) uint8 of a scan; nothing is read before it is computed."""
    block = block_size(store.n_patterns)
    n = store.n_patterns
    rows = (block,) * (n // block) + ((n % block,) if n % block else ())
    reduced: da.Array = da.map_blocks(
        _reduce_block,
        path=str(store.path),
        block=block,
        recipe=recipe,
        dtype=np.uint8,
        chunks=(rows, (PATTERN_SIZE,), (PATTERN_SIZE,)),
        meta=np.empty((0, 0, 0), dtype=np.uint8),
    )
    return reduced


def reduce_scan(
    store: ScanStore,
    recipe: Recipe,
    *,
    workers: Workers,
    progress: Progress,
    ahead: EarlyEncoder | None = None,
    output: Output | None = None,
) -> zarr.Array[Any]:
    """Reduce a whole scan into `reduced/<recipe hash>` of its store, or find it there.

    The hash is that of `Recipe.for_frames`.

    Parameters
    ----------
    ahead
        Encodes what was reduced.
    output
        Of this stage, which announces whether it was there.

    Returns
    -------
    reduced : (pattern, 128, 128) uint8
        Array on disk; its chunks are the blocks of the stages that follow.

    Raises
    ------
    StoreError
        Frames are damaged; or they are not in the store and the detector's files are gone or were changed.
    """
    recipe = recipe.for_frames(store.frame_shape)
    digest = recipe.digest()
    found = store.reduced(digest)
    kept = found is not None and is_complete(found)
    if output is not None:
        output.announce(kept=kept)
    if found is not None and kept:
        if not store.has_receipts_of(digest):
            with locked_store(store.path, f"list recipe {digest}"):
                store.add_receipts_of(digest)
        return found
    require_writable(store.path)
    with locked_store(store.path, f"reduce by recipe {digest}"):
        # What the store's receipts say may have changed before it was ours.
        return _reduce(ScanStore.open(store.path), recipe, ahead, workers=workers, progress=progress)


def _reduce(
    store: ScanStore, recipe: Recipe, ahead: EarlyEncoder | None, *, workers: Workers, progress: Progress
) -> zarr.Array[Any]:
    """`reduce_scan` into a store that is this process's own."""
    digest = recipe.digest()
    found = store.reduced(digest)
    if recipe.substrate == "remove":
        _save_substrate(store, recipe)
    if found is None:
        found = store.create_reduced(digest, block_size(store.n_patterns), recipe.model_dump(mode="json"))
    array, valid = found, store.valid

    def follow(receipt: Receipt) -> None:
        if ahead is not None:
            ahead.encode(array, receipt, valid[receipt["start"] : receipt["stop"]])

    write_array(
        reduced_patterns(store, recipe),
        found,
        stage="reduce" if ahead is None else "reduce and encode",
        client=workers.client,
        progress=progress,
        on_receipt=follow,
    )
    if ahead is not None:
        ahead.finish()
    store.add_receipts_of(digest)
    return found


def read_sample(store: ScanStore) -> NDArray[Any]:
    """Return the usable frames (s, row, column) spread over a scan."""
    usable = np.flatnonzero(store.valid)
    if not len(usable):
        raise InputError(f"{store.path}: none of its {store.n_patterns} patterns is usable")
    size = int(np.prod(store.frame_shape)) * np.dtype(store.dtype).itemsize
    count = min(len(usable), int(np.clip(MAX_SAMPLE_BYTES // size, MIN_SAMPLE_FRAMES, MAX_SAMPLE_FRAMES)))
    places = usable[np.unique(np.linspace(0, len(usable) - 1, count).astype(int))]
    return np.concatenate([store.read_frames(int(i), int(i) + 1) for i in places])


def _save_substrate(store: ScanStore, recipe: Recipe) -> None:
    substrate = preprocess.estimate_substrate(read_sample(store), store.detector_mask, recipe)
    store.write_substrate(recipe.digest(), substrate.median, substrate.spread)


def _reduce_block(
    *, path: str, block: int, recipe: Recipe, block_id: tuple[int, ...] | None = None
) -> NDArray[np.uint8]:
    if block_id is None:
        raise ValueError("block_id is needed to know which patterns to read")
    store = ScanStore.open(path)
    mask, valid = store.detector_mask, store.valid
    substrate = None
    if recipe.substrate == "remove":
        substrate = Substrate(*store.read_substrate(recipe.digest()))
    start = block_id[0] * block
    stop = min(start + block, store.n_patterns)
    reduced = np.zeros((stop - start, PATTERN_SIZE, PATTERN_SIZE), dtype=np.uint8)
    # One chunk at a time into the same memory, which stays in the processor's cache from decoding to the last loop.
    # Of the detector's own files it is a shard, whose checksum tells whether they are what was ingested.
    step = store.read_length if store.has_frames else store.shard_frames
    memory = np.empty((step, *store.frame_shape), dtype=store.dtype)
    for i in range(start, stop, step):
        end = min(i + step, stop)
        if valid[i:end].any():
            frames = store.read_frames(i, end, out=memory)
            reduced[i - start : end - start] = preprocess.reduce_usable(
                frames, valid[i:end], mask, recipe, substrate=substrate
            )
    return reduced
