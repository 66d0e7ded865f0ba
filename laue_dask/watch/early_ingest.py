"""Write blocks of the scan store while the scan goes on, so that `laue-dask run` finds them."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from laue_dask.config import Config
from laue_dask.errors import InputError
from laue_dask.io.frames import FrameRef
from laue_dask.io.placement import Placement
from laue_dask.io.scan_store import ScanStore
from laue_dask.io.source_identity import State
from laue_dask.pipeline.stages import ingest
from laue_dask.schema import PATTERN_SIZE
from laue_dask.watch.intake import FrameProperties

MIN_MASK_FRAMES = ingest.MAX_SAMPLE_FRAMES
"""Frames from which the unusable pixels are taken for known: as many as `run` looks at, spread over the scan. Should
these tell otherwise in the end, every block is written again."""


_FILES_ENTRY = "files"
"""In a block's receipt: the state of each of its files."""


class EarlyIngest:
    """Writes whole blocks, one at a time.

    Parameters
    ----------
    source
        Folder or glob, absolute.
    folder
        Of the run.
    config
        Of the run; `scan.aborted` must be set, for the scan is not complete yet.
    locate
        Finds out where frames belong.

    Attributes
    ----------
    patterns
        In blocks that are on disk.
    missing
        Bytes, about, that the rest of the store takes; 0 while that is not known.
    """

    def __init__(
        self, source: str, folder: Path, config: Config, locate: Callable[[Sequence[FrameRef]], Placement]
    ) -> None:
        self.patterns = self.missing = 0
        self._locate = locate
        self._source, self._path, self._scan = source, folder / "scan.zarr", config.scan
        self._recipe = config.recipe if config.recipe.substrate == "keep" else None
        self._store: ScanStore | None = None
        self._written: dict[int, _Written] = {}
        self._per_pattern = 0.0

    @property
    def begun(self) -> bool:
        """Whether there is a store to write to."""
        return self._store is not None

    def begin(self, refs: Sequence[FrameRef], read: Sequence[FrameRef]) -> FrameProperties | None:
        """Begin the store of the frames `refs`, of which `read` are complete, or go on with one that was begun.

        None where an earlier watch finished the scan with just these frames.

        Raises
        ------
        InputError
            The run's folder has a finished store with frames that are gone from the source.
        """
        if self._path.exists() and not self._reopen(refs):
            return None
        grid = self._locate(refs)
        scan = {str(refs[i]) for i in range(len(refs)) if i not in grid.left_out}
        some = [ref for ref in read if str(ref) in scan]
        look = ingest.inspect_frames(refs, packed=self._scan.store_frames, sample_of=some)
        self._recipe = self._recipe and self._recipe.for_frames(look.frame_shape)
        self._per_pattern = look.stored_bytes
        self._per_pattern += 0 if self._recipe is None else PATTERN_SIZE**2
        self.missing = int(self._per_pattern * grid.shape[0] * grid.shape[1])
        store = ingest.begin(self._source, self._path, self._scan, grid, look, self._recipe)
        blocks = ingest.blocks_of(store, refs, grid, self._recipe)
        kept = ingest.written(store, blocks)
        self._written = {
            block.index: _Written(block.sources, _states(kept[block.index].get(_FILES_ENTRY)))
            for block in blocks
            if block.index in kept
        }
        self._store = store
        self._count()
        return FrameProperties(store.detector_mask, store.dtype)

    def _reopen(self, refs: Sequence[FrameRef]) -> bool:
        """Make way for a scan that goes on after it was taken for aborted; whether it does. Its files are all there."""
        held = {name for name in ScanStore.open(self._path).source if name}
        gone = held - {str(ref) for ref in refs}
        if gone:
            raise InputError(
                f"{self._path}: holds {len(gone)} frames that are gone from {self._source}, as {min(gone)}: "
                "choose another --out, or remove this store"
            )
        if len(held) == len(refs):
            return False
        shutil.rmtree(self._path)
        return True

    def write(self, refs: Sequence[FrameRef], read: Mapping[str, State]) -> bool:
        """Write the next block whose frames were all read; whether there was one."""
        if self._store is None:
            raise ValueError("the store is begun first")
        grid = self._locate(refs)
        for block in ingest.blocks_of(self._store, refs, grid, self._recipe):
            members = [ref for shard in block.shards for ref in shard]
            if not all(ref and str(ref) in read for ref in members):
                continue
            states = {state.path: state for state in (read[str(ref)] for ref in members)}
            before = self._written.get(block.index)
            if before and before.sources == block.sources and before.files in ({}, states):
                continue
            files = {path: [state.size, state.changed] for path, state in states.items()}
            ingest.write_ahead(self._store, block, self._recipe, {_FILES_ENTRY: files})
            self._written[block.index] = _Written(block.sources, states)
            self._count()
            return True
        return False

    def finish(self) -> None:
        """Leave only blocks whose files are still what they were made of."""
        if self._store is not None:
            ingest.forget(self._store, [index for index, one in self._written.items() if one.stale])

    def _count(self) -> None:
        self.patterns = sum(len(shard) for one in self._written.values() for shard in one.sources)
        if self._store is not None:
            self.missing = int(self._per_pattern * max(0, self._store.n_patterns - self.patterns))


@dataclass(frozen=True)
class _Written:
    """What a block was made of: sources of its shards, and the state of each file before it was read."""

    sources: list[list[str]]
    files: dict[str, State]

    @property
    def stale(self) -> bool:
        """Whether a file was changed since."""
        return not all(state.lasts for state in self.files.values())


def _states(files: Mapping[str, Sequence[int]] | None) -> dict[str, State]:
    """Of a receipt; none of one that `laue-dask run` wrote, whose frames were complete."""
    return {path: State(path, *state) for path, state in (files or {}).items()}
