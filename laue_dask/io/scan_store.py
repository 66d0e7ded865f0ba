"""The scan store (`*.zarr`): a whole scan in one Zarr v3 group, visible only when it is complete.

`ScanStore.create` writes into `<path>.part` and `finish` renames it. Frames are written in one place, `write_frames`,
and by whole shards only, so that no two tasks ever write to the same object.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import dask.array as da
import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray

from laue_dask import schema
from laue_dask.errors import FrameError, StoreError
from laue_dask.io.block_files import checksum
from laue_dask.io.coordinates import UM, Coordinate, coordinates_of
from laue_dask.io.frame_array import FrameArray, frame_layout
from laue_dask.io.frames import FrameRef, load
from laue_dask.io.geometry import ScanGrid
from laue_dask.io.limits import Expected
from laue_dask.io.receipts import Receipts
from laue_dask.io.shards import read_shard
from laue_dask.io.source_identity import UNKNOWN_STAMP, Identity, Stamp, joined, stamps_of
from laue_dask.runtime.suggestions import did_you_mean

__all__ = ["ScanStore", "frame_layout", "ingest_shard"]

REDUCED_CHUNK_PATTERNS = 32
"""Reduced patterns of a chunk: half a megabyte, small enough to look at one pattern, large enough to stream them."""

REMAKE_HINT = "remove the store and ingest again"

MAX_READ_WHOLE_BYTES = 2**29
"""Frames of this size on the disk are read in about a second."""

MAX_PATTERNS, MAX_FRAME_SIDE_PX = 10**8, 2**16
"""Points of a scan, and pixels along a side of its frames, beyond which a store is damaged or none of ours."""

_PARTIAL_SUFFIX = ".part"
_SYNC_INTERVAL_S = 300.0
"""Seconds before a crash of the machine in which what was written may not have reached the disk."""

_GROWING_PROVENANCE = ("grid", "placement", "manifest", "asked", "store")
"""Provenance that more frames of a scan change. Each shard is held against the frames that it was made of."""

_IDENTITY_ARRAYS = ("source_size", "source_time", "source_checksum")

_TABLE_CHUNK_ROWS = 65_536
_SUBSTRATE_SPEC = schema.ArraySpec(("row", "column"), "float32", 0, "counts", "what the scan's patterns have in common")


class ScanStore:
    """A scan on disk. Opened again by its path wherever it is sent, so that it is cheap to pickle.

    Parameters
    ----------
    folder
        Where the Zarr group is now: the store, or its `.part` while it is written. It is not checked; see `open`.

    Attributes
    ----------
    path
        The store's own path, which does not exist before `finish`.
    root
        The Zarr group.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self.root = _open_group(self._folder)
        finished = self.root.attrs.get("complete", False) or self._folder.suffix != _PARTIAL_SUFFIX
        self.path = self._folder if finished else self._folder.with_suffix("")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self._folder),)

    @staticmethod
    def is_store(path: str | Path) -> bool:
        """Return whether `path` is meant to be a Zarr store, whole or not."""
        # os.path makes no error of a folder that nobody may look into, which is refused where its frames are listed.
        inside = os.path.isfile(f"{path}/zarr.json")  # noqa: PTH113
        return os.path.isdir(path) and (Path(path).suffix == ".zarr" or inside)  # noqa: PTH112

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        grid: ScanGrid,
        frame_shape: tuple[int, ...],
        dtype: DTypeLike,
        detector: str | None,
        pixel_size_um: float | None,
        provenance: Mapping[str, Any],
        store_frames: bool = True,
    ) -> Self:
        """Begin a store, or go on with the one that a killed ingest of the same frames left in `<path>.part`.

        Raises
        ------
        StoreError
            Something is at `path` already.
        """
        path = Path(path)
        if path.exists():
            raise StoreError(f"{path}: exists already: choose another path, or remove it")
        n = grid.shape[0] * grid.shape[1]
        rows, columns = frame_shape
        layout = frame_layout((rows, columns), dtype, n)
        header: dict[str, Any] = {
            "laue_dask_schema": schema.SCHEMA_VERSION,
            "complete": False,
            "scan_shape": list(grid.shape),
            "order": grid.order,
            "fast_axis": grid.fast_axis,
            "detector": detector,
            "pixel_size_um": pixel_size_um,
            "position_units": UM,
            "frame_shape": [rows, columns],
            "frame_dtype": np.dtype(dtype).str,
            "chunk_frames": layout.chunk_frames,
            "shard_frames": layout.shard_frames,
            "set_aside": [],
            "provenance": dict(provenance),
        }
        folder = path.with_name(path.name + _PARTIAL_SUFFIX)
        if folder.exists():
            if _begun_with(folder, header, store_frames):
                store = cls(folder)
                # "complete" is that of one that was killed just before it appeared
                store.root.attrs.update({"complete": False, "provenance": dict(provenance)})
                store._array("position")[:] = grid.position
                return store
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        root = zarr.open_group(str(folder), mode="w", zarr_format=3)
        if store_frames:
            chunks, shards = (layout.chunk_frames, rows, columns), (layout.shard_frames, rows, columns)
            spec = schema.SCAN["frames"]
            schema.create(root, "frames", spec, (n, rows, columns), chunks=chunks, shards=shards, dtype=dtype)
        table = min(n, _TABLE_CHUNK_ROWS)
        schema.create(root, "detector_mask", schema.SCAN["detector_mask"], (rows, columns))
        schema.create(root, "valid", schema.SCAN["valid"], (n,), chunks=(table,))
        schema.create(root, "source", schema.SCAN["source"], (n,), chunks=(table,))
        schema.create(root, "position", schema.SCAN["position"], (n, 2), chunks=(table, 2))[:] = grid.position
        root.attrs.update(header)  # last: a store that says what it is has its arrays
        return cls(folder)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a complete store.

        Raises
        ------
        StoreError
            It is missing, is not a scan store, was not finished, or was written by another version.
        """
        path = Path(path)
        if not path.exists():
            if path.with_name(path.name + _PARTIAL_SUFFIX).exists():
                raise StoreError(f"{path}: its ingest was not finished: run the same command again")
            raise StoreError(f"{path}: there is no such scan store{did_you_mean(path)}")
        store = cls(path)
        if (path / "features").exists() and not any((path / name).exists() for name in ("frames", "source")):
            raise StoreError(f"{path}: holds the results of a run and not its frames: give the run's scan.zarr")
        schema.check(store.root, schema.SCAN)
        if store._receipts is not None:
            store._receipts.check(["zarr.json"], remedy=REMAKE_HINT)
        if not store.root.attrs.get("complete"):
            raise StoreError(
                f"{path}: is incomplete, because its ingest was not finished: remove it and run the same command again"
            )
        store._check_shapes()
        return store

    def _check_shapes(self) -> None:
        """Refuse arrays of other shapes than the store's own, which might be more than any memory holds."""
        try:
            n, frame = self.n_patterns, self.frame_shape
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"{self.path}: is damaged, because its shape is missing or impossible: {REMAKE_HINT}"
            ) from error
        if not 0 < n <= MAX_PATTERNS or not all(0 < side <= MAX_FRAME_SIDE_PX for side in frame):
            raise StoreError(f"{self.path}: {n} patterns of {frame[0]} × {frame[1]} pixels are no scan: {REMAKE_HINT}")
        shapes = {"valid": (n,), "source": (n,), "position": (n, 2), "detector_mask": frame}
        shapes |= {name: (n,) for name in _IDENTITY_ARRAYS if self._has(name)}
        for name, shape in shapes.items():
            if (found := tuple(self._array(name).shape)) != shape:
                raise StoreError(f"{self.path}: array '{name}' has the shape {found}, not {shape}: {REMAKE_HINT}")

    @property
    def writing_path(self) -> str:
        """Where the store is while it is written: what `ingest_shard` is given."""
        return str(self._folder)

    @property
    def scan_shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        ny, nx = self._attribute("scan_shape")
        return int(ny), int(nx)

    @property
    def n_patterns(self) -> int:
        """All points of the grid, recorded or not."""
        ny, nx = self.scan_shape
        return ny * nx

    @property
    def order(self) -> str:
        """`raster` or `snake`: how the scan was acquired; patterns are always in row-major order."""
        return str(self._attribute("order"))

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        rows, columns = self._attribute("frame_shape")
        return int(rows), int(columns)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The detector's own dtype."""
        return np.dtype(str(self._attribute("frame_dtype")))

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the scan came from."""
        return dict(self._attribute("provenance"))

    @property
    def set_aside(self) -> list[dict[str, Any]]:
        """Frames that could not be used: `pattern` (None for one that has no place), `source`, `reason` of each."""
        return list(self._attribute("set_aside"))

    @cached_property
    def has_frames(self) -> bool:
        """Whether the frames themselves are in the store."""
        # Those of a finished store that lost what describes them would be looked for in the detector's files.
        return "seals" in self.root.attrs or "frames" in self.root

    @property
    def shard_frames(self) -> int:
        """Frames of a shard, the unit of writing."""
        return int(self._attribute("shard_frames"))

    @property
    def read_length(self) -> int:
        """Frames of a chunk, the unit of reading."""
        return int(self._attribute("chunk_frames"))

    @property
    def seals(self) -> dict[int, int]:
        """Seal of each shard of a finished store; see `block_files.BlockFiles.seal`."""
        return {block: int(seal) for block, seal in enumerate(self._attribute("seals"))}

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(pattern,) bool: recorded and usable."""
        return cast(NDArray[np.bool_], self._values("valid"))

    @property
    def source(self) -> list[str]:
        """File (and dataset, frame) of each pattern; empty where nothing was recorded."""
        return [str(name) for name in self._values("source")]

    @cached_property
    def identity(self) -> Identity | None:
        """Size, time and checksum of each pattern's source; None in a store of a version that did not keep them."""
        if not all(map(self._has, _IDENTITY_ARRAYS)):
            return None
        return Identity(*(self._values(name) for name in _IDENTITY_ARRAYS))

    @property
    def position(self) -> NDArray[np.float64]:
        """(pattern, 2) float64: stage coordinates (y, x), NaN where unknown."""
        return cast(NDArray[np.float64], self._values("position"))

    @property
    def coordinates(self) -> tuple[Coordinate, Coordinate]:
        """Coordinates y and x of the scan's map; points where the units of the positions are not known, as at first."""
        known = self.root.attrs.get("position_units") == UM
        return coordinates_of(self.scan_shape, self.position if known else None)

    @property
    def detector_mask(self) -> NDArray[np.bool_]:
        """(row, column) bool: True where the pixel is unusable."""
        return cast(NDArray[np.bool_], self._values("detector_mask"))

    def write_detector_mask(self, mask: NDArray[np.bool_]) -> None:
        """Set the unusable pixels (row, column)."""
        self._array("detector_mask")[:] = mask

    def writing_frames(self, start: int, count: int) -> AbstractContextManager[Callable[[NDArray[Any]], None]]:
        """Write one shard of frames chunk by chunk, the only way in which frames get into a store.

        The shard is there at the end of the context, whole, or not at all.

        Parameters
        ----------
        start
            First pattern, a multiple of `shard_frames`.
        count
            Exactly one shard (the last may be shorter).

        Returns
        -------
        context
            Of a function that takes the next `read_length` frames (pattern, row, column) in the store's dtype.

        Raises
        ------
        ValueError
            It is not exactly one shard, or the frames are others.
        ComputeError
            The disk is full or fails.
        """
        return self._frames.writing(start, count)

    def write_frames(self, start: int, stack: NDArray[Any]) -> None:
        """Write one shard of frames (pattern, row, column) at once; see `writing_frames`."""
        with self.writing_frames(start, len(stack)) as add:
            for first in range(0, len(stack), self.read_length):
                add(stack[first : first + self.read_length])

    def seal(self, block: int) -> int:
        """Return the seal of a shard on disk; see `block_files.BlockFiles.seal`."""
        return self._frames.files.seal(block)

    def damaged_shards(self) -> dict[int, str]:
        """Return the shards of frames that are not what was written, and why: all that cheap looks can tell.

        Seals are compared, and of a store of up to `MAX_READ_WHOLE_BYTES` everything is read.
        """
        files, count = self._frames.files, -(-self.n_patterns // self.shard_frames)
        size = sum(path.stat().st_size for i in range(count) if (path := files.path(i)).is_file())
        found = {i: files.fault(i, seal, whole=size <= MAX_READ_WHOLE_BYTES) for i, seal in self.seals.items()}
        return {i: fault for i, fault in found.items() if fault}

    def record(self, receipts: Sequence[Mapping[str, Any]], left_out: Sequence[Mapping[str, Any]] = ()) -> None:
        """Record what `ingest_shard` found: sources, positions, checksums and what was set aside.

        Parameters
        ----------
        left_out
            Frames that are no pattern of the scan, to be listed with what was set aside.

        Raises
        ------
        StoreError
            The receipts are not those of every shard, once.
        """
        blocks = [int(receipt["block"]) for receipt in receipts]
        count = -(-self.n_patterns // self.shard_frames)
        if sorted(blocks) != list(range(count)):
            raise StoreError(f"{self.path}: receipts of {len(set(blocks))} of {count} shards: run the ingest again")
        ordered = sorted(receipts, key=lambda receipt: int(receipt["block"]))
        source = [name for receipt in ordered for name in receipt["source"]]
        position = self.position
        set_aside: list[dict[str, Any]] = []
        for receipt in ordered:
            found = receipt["positions"] or []
            for pattern, pair in zip(range(receipt["start"], receipt["stop"]), found, strict=False):
                if pair is not None:
                    position[pattern] = pair
            set_aside += [{"pattern": i, "source": source[i], "reason": why} for i, why in receipt["set_aside"]]
        valid = np.array([name != "" for name in source])
        valid[[entry["pattern"] for entry in set_aside]] = False
        set_aside += map(dict, left_out)
        self._array("source")[:] = np.array(source, dtype=object)
        self._array("position")[:] = position
        self._array("valid")[:] = valid
        self._write_identity([one for receipt in ordered for one in _identities(receipt)])
        sums = {"crc32c": [int(receipt["crc32c"]) for receipt in ordered]}
        if self.has_frames:
            sums["seals"] = [int(receipt["seal"]) for receipt in ordered]
        self.root.attrs.update({"set_aside": set_aside, **sums})

    def _write_identity(self, rows: Sequence[Sequence[int]]) -> None:
        """Write size, time and checksum of each pattern's source."""
        for name, values in zip(_IDENTITY_ARRAYS, zip(*rows, strict=True), strict=True):
            spec, n = schema.SCAN[name], self.n_patterns
            array = self.root.get(name)
            if not isinstance(array, zarr.Array):
                array = schema.create(self.root, name, spec, (n,), chunks=(min(n, _TABLE_CHUNK_ROWS),))
            array[:] = np.array(values, dtype=spec.dtype)
        for name in ("identity", "_places"):
            self.__dict__.pop(name, None)

    def written(self, receipts: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Return whether the shard of each receipt is on disk as it was written; always, where the store has no frames.

        Of those that were written last all is read: a machine that crashed may have lost a part of them.
        """
        if not self.has_frames:
            return [True] * len(receipts)
        files = self._frames.files
        files.sweep()
        paths = [files.path(int(receipt["block"])) for receipt in receipts]
        times = [path.stat().st_mtime if path.is_file() else 0.0 for path in paths]
        recent = max(times, default=0.0) - _SYNC_INTERVAL_S
        return [
            files.fault(int(receipt["block"]), receipt.get("seal", -1), whole=time >= recent) is None
            for receipt, time in zip(receipts, times, strict=True)
        ]

    def finish(self) -> Self:
        """Make the store visible under its path.

        Raises
        ------
        StoreError
            A shard is missing, or something appeared at the path meanwhile.
        """
        if "crc32c" not in self.root.attrs:
            raise StoreError(f"{self.path}: nothing is recorded about its shards: run the ingest again")
        if self.has_frames:
            self._frames.check_whole()
            self._frames.files.sweep()  # of workers that were killed while others finished their blocks
        if self.path.exists():
            raise StoreError(f"{self.path}: exists already: choose another path, or remove it")
        self.root.attrs["complete"] = True
        names = [name for name in schema.SCAN if name != "frames"]
        Receipts.of(self._folder, ["zarr.json", "frames/zarr.json", *names]).write()
        os.rename(self._folder, self.path)  # noqa: PTH104  Path.rename would do the same
        return type(self)(self.path)

    def frames(self) -> da.Array:
        """Return the lazy frames (pattern, row, column); a Dask chunk is a shard, and nothing is read before it is
        computed.
        """
        unit, n = self.shard_frames, self.n_patterns
        lengths = (unit,) * (n // unit) + ((n % unit,) if n % unit else ())
        rows, columns = self.frame_shape
        lazy: da.Array = da.map_blocks(
            _frames_block,
            path=str(self._folder),
            dtype=self.dtype,
            chunks=(lengths, (rows,), (columns,)),
            meta=np.empty((0, 0, 0), dtype=self.dtype),
            name=f"frames-{self.key()}",
        )
        return lazy

    def read_frames(self, start: int, stop: int, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the frames (pattern, row, column) of patterns `start` to `stop`, read chunk by chunk.

        Where the store has no frames they are read from the detector's files, and each is held against its checksum;
        patterns that are not valid are zeros. This is the one way to read frames, wherever they are.

        Parameters
        ----------
        out
            Memory to read into, of that many frames or more: memory that was used before is several times as fast.

        Raises
        ------
        StoreError
            A frame is damaged or missing, or its file is gone or holds other pixels now.
        """
        if self.has_frames:
            return self._frames.read(start, stop, out=out)
        return self._read_sources(start, stop, out=out)

    def reduced(self, digest: str) -> zarr.Array[Any] | None:
        """Return the reduced patterns of a recipe, finished or not; ``None`` where nobody began them."""
        path = f"reduced/{digest}"
        if self._receipts is not None and any(fault for _, fault in self._receipts.faults([f"{path}/zarr.json"])):
            return None  # what describes them is damaged or gone, so they are made again
        if self._receipts is not None:
            self._receipts.check(["reduced/zarr.json"], remedy="`laue-dask run` makes it again")
        try:
            found = self.root.get(path)
        except Exception:
            return None  # whatever a Zarr library makes of metadata that are damaged
        return found if isinstance(found, zarr.Array) else None

    def recipes(self) -> dict[str, dict[str, Any]]:
        """Return the recipes whose reduced patterns are in the store, finished or not, by hash."""
        found = {}
        for folder in sorted(self._folder.glob("reduced/*/")):
            array = self.reduced(folder.name)
            if array is not None and isinstance(recipe := array.attrs.get("recipe"), dict):
                found[folder.name] = recipe
        return found

    def repair_groups(self) -> None:
        """Write the descriptions of a finished store's groups again where they are damaged; they hold nothing else."""
        for name in ("reduced", "substrate"):
            file = f"{name}/zarr.json"
            if self._receipts is not None and any(fault for _, fault in self._receipts.faults([file])):
                (self._folder / file).unlink(missing_ok=True)
                zarr.open_group(str(self._folder), path=name, mode="a", zarr_format=3)

    def has_receipts_of(self, digest: str) -> bool:
        """Return whether the store's receipts know the reduced patterns of a recipe."""
        return self._receipts is not None and f"reduced/{digest}/zarr.json" in self._receipts.files

    def add_receipts_of(self, digest: str) -> None:
        """Add the finished reduced patterns of a recipe to the store's receipts."""
        added = [f"reduced/{digest}", "reduced/zarr.json"]
        if f"substrate/{digest}" in self.root:
            added += [f"substrate/{digest}", "substrate/zarr.json"]
        known = self.__dict__["_receipts"] = Receipts.read(self._folder)
        found = Receipts.of(self._folder, added)
        self._keep_receipts(known.without(added).joined(found))

    def update_sources(
        self, refs: Sequence[FrameRef | None], stamps: Sequence[Stamp], provenance: Mapping[str, Any]
    ) -> None:
        """Record where the frames of a finished store are now, and the size and time of their files.

        Parameters
        ----------
        refs, stamps
            Of each pattern.
        provenance
            What of it is new.
        """
        if self.identity is None or self._receipts is None:
            raise ValueError(f"{self.path}: the store is unfinished, or does not know its files")
        names = ["zarr.json", "source", *_IDENTITY_ARRAYS]
        self._require_inside(*names)
        # A kill in between leaves what the receipts do not speak of, and no damage.
        self._keep_receipts(self._receipts.without(names))
        self._write_identity(
            [(*stamp, int(crc)) for stamp, crc in zip(stamps, self.identity.checksum.tolist(), strict=True)]
        )
        self._array("source")[:] = np.array(["" if ref is None else str(ref) for ref in refs], dtype=object)
        self.root.attrs["provenance"] = {**self.provenance, **provenance}
        self._keep_receipts(self._receipts.joined(Receipts.of(self._folder, names)))

    @property
    def has_receipts_of_sources(self) -> bool:
        """Whether the store's receipts know what it says of its sources: not after a kill in `renew_sources`."""
        return self._receipts is not None and "source/zarr.json" in self._receipts.files

    def create_reduced(self, digest: str, block: int, recipe: Mapping[str, Any]) -> zarr.Array[Any]:
        """Begin the reduced patterns (pattern, 128, 128) uint8 of a recipe, with shards of `block` patterns."""
        self._require_inside("reduced", f"reduced/{digest}")
        if self._receipts is not None:
            self._keep_receipts(self._receipts.without([f"reduced/{digest}", f"substrate/{digest}"]))
        side = schema.PATTERN_SIZE
        inner = next(size for size in range(min(block, REDUCED_CHUNK_PATTERNS), 0, -1) if block % size == 0)
        return schema.create(
            self.root.require_group("reduced"),
            digest,
            schema.REDUCED,
            (self.n_patterns, side, side),
            chunks=(inner, side, side),
            shards=(block, side, side),
            attributes={"recipe": dict(recipe)},
            overwrite=True,
        )

    def remove_reduced(self, digest: str) -> None:
        """Remove the reduced patterns of a recipe; the receipts stop speaking of them first."""
        gone = [f"reduced/{digest}", f"substrate/{digest}"]
        self._require_inside("reduced", "substrate", *gone)
        if self._receipts is not None:
            self._keep_receipts(self._receipts.without(gone))
        for name in gone:
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def _keep_receipts(self, receipts: Receipts) -> None:
        if receipts != self._receipts:
            self._require_inside("receipts")
            receipts.write()
            self.__dict__["_receipts"] = receipts

    def _require_inside(self, *names: str) -> None:
        """Refuse to write through links, by which a store from elsewhere would have others' files written."""
        for name in names:
            if (self._folder / name).is_symlink():
                raise StoreError(
                    f"{self.path}: {name} is a link to another place, where nothing must be written: remove the link"
                )

    def write_substrate(self, digest: str, median: NDArray[np.float32], spread: NDArray[np.float32]) -> None:
        """Keep the substrate (row, column) that a recipe subtracts, which every block of the scan shares."""
        self._require_inside("substrate", f"substrate/{digest}")
        group = self.root.require_group(f"substrate/{digest}")
        for name, values in (("median", median), ("spread", spread)):
            schema.create(group, name, _SUBSTRATE_SPEC, self.frame_shape, overwrite=True)[:] = values

    def read_substrate(self, digest: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what `write_substrate` kept: median and spread."""
        return self._values(f"substrate/{digest}/median"), self._values(f"substrate/{digest}/spread")

    def key(self) -> str:
        """Return the hash of the content (pixels, which of them count, their place in the scan), wherever the files
        are.
        """
        arrays = [
            zlib.crc32(np.ascontiguousarray(values).view(np.uint8).data) for values in (self.valid, self.detector_mask)
        ]
        parts = [
            schema.SCHEMA_VERSION,
            self.scan_shape,
            self.frame_shape,
            self.dtype.str,
            self._attribute("crc32c"),
            arrays,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def check_shard_content(self, block: int) -> None:
        """Read a whole shard and hold it against the checksum of what was ingested.

        Raises
        ------
        StoreError
            It is missing, damaged, or another shard's.
        """
        start = block * self.shard_frames
        self._check_content(block, self.read_frames(start, min(start + self.shard_frames, self.n_patterns)))

    def _check_content(self, block: int, stack: NDArray[Any]) -> None:
        found, expected = checksum(stack), self._attribute("crc32c")[block]
        if found != expected:
            start = block * self.shard_frames
            where = f"frames {start} to {start + len(stack) - 1}"
            raise StoreError(
                f"{self.path}: {where} have checksum {found:08x}, {expected:08x} was ingested: "
                + (
                    "the frames are damaged: ingest again"
                    if self.has_frames
                    else "the files have changed: ingest again"
                )
            )

    def _has(self, name: str) -> bool:
        """Whether the store has an optional array, or had it when it was written."""
        listed = self._receipts is not None and f"{name}/zarr.json" in self._receipts.files
        return listed or (self._folder / name).exists()

    def _array(self, name: str) -> Any:
        if self._receipts is not None:
            self._receipts.check([f"{name}/zarr.json" if name == "frames" else name], remedy=REMAKE_HINT)
        try:
            found = self.root.get(name)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise StoreError(f"{self.path}: array '{name}' is damaged ({reason}): ingest again") from error
        if not isinstance(found, zarr.Array):
            raise StoreError(f"{self.path}: array '{name}' is missing: ingest again")
        return found

    def _values(self, name: str) -> Any:
        array = self._array(name)
        try:
            return array[:]
        except MemoryError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise StoreError(f"{self.path}: array '{name}' is damaged ({reason}): {REMAKE_HINT}") from error

    def _attribute(self, name: str) -> Any:
        try:
            return self.root.attrs[name]
        except KeyError as error:
            raise StoreError(f"{self.path}: attribute '{name}' is missing: ingest again") from error

    @cached_property
    def _frames(self) -> FrameArray:
        return FrameArray(self._folder, self._array("frames"), None if self._receipts is None else self.seals)

    @cached_property
    def _receipts(self) -> Receipts | None:
        """What the store consists of; None while it is written."""
        return Receipts.read(self._folder) if self.root.attrs.get("complete") else None

    def located(self, name: str) -> FrameRef:
        """Return where a frame of the source is: where it was or, if store and source were moved together, where it is
        now.
        """
        ref = FrameRef.parse(name)
        before, here = self._moved
        if before is None or os.path.lexists(ref.path):
            return ref
        now = os.path.normpath(here / os.path.relpath(ref.path, before))
        return replace(ref, path=now) if os.path.lexists(now) else ref

    @cached_property
    def _moved(self) -> tuple[Path | None, Path]:
        """Folder in which the store was made, None where it is still there, and the one in which it is."""
        made, here = self.provenance.get("store"), self.path.absolute()
        return None if made in (None, str(here)) else Path(str(made)).parent, here.parent

    def _read_sources(self, start: int, stop: int, *, out: NDArray[Any] | None) -> NDArray[Any]:
        stack = np.empty((stop - start, *self.frame_shape), dtype=self.dtype) if out is None else out[: stop - start]
        names, valid = self._places
        for i, pattern in enumerate(range(start, stop)):
            if valid[pattern]:
                self._read_source(pattern, str(names[pattern]), stack[i])
            else:
                stack[i] = 0
        block, within = divmod(start, self.shard_frames)
        whole = within == 0 and stop == min(start + self.shard_frames, self.n_patterns)
        if whole and self.identity is None:
            self._check_content(block, stack)
        return stack

    @cached_property
    def _places(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(pattern,) name of each frame, and whether it is usable."""
        return self._values("source"), self.valid

    def _read_source(self, pattern: int, name: str, memory: NDArray[Any]) -> None:
        """Read a frame from the detector's file, and hold it against what was ingested."""
        try:
            ref = self.located(name)
            frame = load(ref, memory=memory, expected=Expected(memory.shape, memory.dtype))[0]
        except (FrameError, ValueError) as error:
            remedy = "put it back, or `laue-dask run FOLDER --out RUN` with the folder where the frames are now"
            raise StoreError(f"{self.path}: its frames are not in the store, and {name}: {error}: {remedy}") from error
        if frame is not memory:
            memory[...] = frame
        identity = self.identity
        if identity is None or not (before := identity.stamp(pattern)).known:
            return
        if checksum(frame) != identity.checksum[pattern]:
            [now] = stamps_of([ref])
            raise StoreError(
                f"{self.path}: its frames are not in the store, and {ref} changed since it was read ({before}, "
                f"now {now}, other pixels): put it back, or ingest again"
            )


def ingest_shard(
    store: ScanStore,
    shard_index: int,
    refs: Sequence[FrameRef | None],
    *,
    look: Callable[[NDArray[Any], NDArray[np.bool_]], None] | None = None,
) -> dict[str, Any]:
    """Read the frames of one shard, check each, and write them, a chunk of frames after the other.

    Parameters
    ----------
    store
        While it is written.
    refs
        Frames of the shard in the order of the patterns; ``None`` where nothing was recorded.
    look
        Gets every chunk (frame, row, column) while it is in memory, which is used again for the next one, and which of
        its frames are usable (frame,).

    Returns
    -------
    receipt
        `block`, `start`, `stop`, `crc32c` of the shard's raw bytes, `seal` of its file, `frames` (number read or set
        aside), `source`, `stamps` (size and time of each source before it was read; see `io.source_identity.Stamp`),
        `checksums` (of the pixels of each), `set_aside` (pattern and reason; zeros in the store), and `positions`
        ([y, x] or None per pattern; None if there is none at all).
    """
    start, mask, crc = shard_index * store.shard_frames, store.detector_mask, 0
    memory = np.empty((min(store.read_length, len(refs)), *mask.shape), dtype=store.dtype)
    positions: list[list[float] | None] = []
    set_aside: list[tuple[int, str]] = []
    stamps: list[list[int]] = []
    checksums: list[int] = []
    with store.writing_frames(start, len(refs)) if store.has_frames else nullcontext(_no_writing) as write:
        for first in range(0, len(refs), len(memory)):
            some = refs[first : first + len(memory)]
            # Before they are read: what is changed meanwhile is then seen to have changed.
            stamps += map(list, stamps_of(some))
            chunk = read_shard(some, mask, store.dtype, memory=memory)
            if not np.may_share_memory(chunk.stack, memory):
                memory = np.empty_like(memory)
            write(chunk.stack)
            for frame in chunk.stack:
                checksums.append(checksum(frame))
                crc = joined(crc, checksums[-1], frame.nbytes)
            positions += chunk.positions
            set_aside += [(start + first + i, reason) for i, reason in chunk.set_aside]
            if look is not None:
                usable = np.array([ref is not None for ref in some])
                usable[[i for i, _ in chunk.set_aside]] = False
                look(chunk.stack, usable)
    return {
        **({"seal": store.seal(shard_index)} if store.has_frames else {}),
        "block": shard_index,
        "start": start,
        "stop": start + len(refs),
        "crc32c": crc,
        "frames": sum(ref is not None for ref in refs),
        "source": ["" if ref is None else str(ref) for ref in refs],
        "stamps": stamps,
        "checksums": checksums,
        "set_aside": set_aside,
        "positions": positions if any(positions) else None,
    }


def _identities(receipt: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Size, time and checksum of each source of a shard; unknown in a receipt of a version that did not keep them."""
    count = int(receipt["stop"]) - int(receipt["start"])
    stamps = receipt.get("stamps", [UNKNOWN_STAMP] * count)
    checksums = receipt.get("checksums", [0] * count)
    return [(int(size), int(time), int(crc)) for (size, time), crc in zip(stamps, checksums, strict=True)]


def _no_writing(stack: NDArray[Any]) -> None:
    """The detector's own files are the only copy."""


def _frames_block(*, path: str, block_id: tuple[int, ...] | None = None) -> NDArray[Any]:
    if block_id is None:
        raise ValueError("block_id is needed to know which frames to read")
    store = ScanStore.open(path)
    start = block_id[0] * store.shard_frames
    return store.read_frames(start, min(start + store.shard_frames, store.n_patterns))


def _begun_with(folder: Path, header: Mapping[str, Any], store_frames: bool) -> bool:
    """Whether an unfinished store was begun for the same scan, maybe when it had fewer frames."""
    try:
        root = _open_group(folder)
        fixed = header.keys() - {"complete", "provenance"}
        before = root.attrs.get("provenance", {})
        same = {key: value for key, value in header["provenance"].items() if key not in _GROWING_PROVENANCE}
        return (
            all(root.attrs.get(key) == header[key] for key in fixed)
            and isinstance(before, dict)
            and all(before.get(key) == value for key, value in same.items())
            and ("frames" in root) == store_frames
        )
    except StoreError:
        return False


def _open_group(folder: Path) -> zarr.Group:
    try:
        return zarr.open_group(str(folder), mode="r+", zarr_format=3, use_consolidated=False)
    except Exception as error:
        reason = "there is no zarr.json in it" if not (folder / "zarr.json").is_file() else " ".join(str(error).split())
        raise StoreError(f"{folder}: this is not a scan store: {reason}") from error
