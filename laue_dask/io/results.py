"""The results store `RUN/results.zarr`: made under a temporary name, visible only when it is complete."""

import os
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from laue_dask import schema
from laue_dask.errors import StoreError
from laue_dask.io import block_reader
from laue_dask.io.block_files import BlockFiles
from laue_dask.io.coordinates import Coordinate
from laue_dask.io.journal import JOURNAL_FILE as JOURNAL
from laue_dask.io.journal import Journal
from laue_dask.io.receipts import STORE_RECEIPTS_FILE, Receipts

RESULTS_STORE = "results.zarr"

PARTIAL_STORE = RESULTS_STORE + ".part"
"""Results that were begun; another run goes on with them."""

SEGMENTING_STORE = RESULTS_STORE + ".segment.part"
"""Results that `laue-dask segment` begins of those that are finished; it begins anew each time."""

COPY_STORE = RESULTS_STORE + ".copy"
"""An array on its way from the last results to those that were begun."""

REMAKE_HINT = "the same `laue-dask run` command makes it again"


class ResultsWriter:
    """Builds a results store beside the one that may be there, and puts it in its place at the end.

    Parameters
    ----------
    folder
        The run's folder.
    attributes
        Root attributes: scan shape, keys of the stages, seeds.
    partial
        Name of the store until it is finished. Of `SEGMENTING_STORE`, what a killed command began is left.
    """

    def __init__(self, folder: Path, attributes: Mapping[str, Any], *, partial: str = PARTIAL_STORE) -> None:
        self.path = folder / RESULTS_STORE
        self.partial = folder / partial
        if partial == SEGMENTING_STORE:
            shutil.rmtree(self.partial, ignore_errors=True)
        self.group = zarr.open_group(str(self.partial), mode="a", zarr_format=3, use_consolidated=False)
        self.group.attrs.update({"laue_dask_schema": schema.SCHEMA_VERSION, **attributes})

    def blocks(self, name: str, shape: tuple[int, ...], *, block: int, key: str) -> zarr.Array[Any]:
        """Return array `name`, whose chunks are the blocks of work, kept where it was made with the same `key`.

        An array of the same key may be unfinished from a killed run, in this store, or finished in the run's last one.
        """
        for store in (self.partial, self.path):
            found = _read_array(store, name)
            if found is None or found.attrs.get("key") != key or found.shape != shape:
                continue
            if store == self.path:
                if not found.attrs.get("finished") or _is_damaged(store, f"{name}/zarr.json"):
                    continue
                self.keep(name)
            return zarr.open_array(str(self.partial), path=name, mode="r+")
        chunks = (block, *shape[1:])
        return schema.create(
            self.group, name, schema.RESULTS[name], shape, chunks=chunks, attributes={"key": key}, overwrite=True
        )

    def keep(self, name: str) -> zarr.Array[Any]:
        """Take over array `name` of the run's last results as it is."""
        # Half a copy that calls itself finished would be read as an array with gaps.
        aside = self.partial.with_name(COPY_STORE)
        for stale in (aside, self.partial / name):
            shutil.rmtree(stale, ignore_errors=True)
        # A results store is never written to again, so the two may share their files.
        shutil.copytree(self.path / name, aside, copy_function=_link)
        aside.rename(self.partial / name)
        return zarr.open_array(str(self.partial), path=name, mode="r+")

    def put(self, name: str, values: NDArray[Any], *, attributes: Mapping[str, Any] | None = None) -> None:
        """Write a whole array at once."""
        spec = schema.RESULTS[name]
        array = schema.create(self.group, name, spec, values.shape, attributes=attributes, overwrite=True)
        if values.size:
            array[...] = values.astype(np.dtype(spec.dtype or values.dtype))

    def put_coordinates(self, coordinates: Sequence[Coordinate]) -> None:
        """Write the coordinates y and x of the maps."""
        for name, one in zip(("y", "x"), coordinates, strict=True):
            self.put(name, one.values, attributes=one.attributes)

    def finish(self, *, replacing: Callable[[], None] = lambda: None) -> Path:
        """Check the store against the schema and make it the run's results.

        `replacing` is called just before it takes the place of others: until then they are what they were.
        """
        schema.check(self.group, schema.RESULTS)
        unknown = set(self.group.array_keys()) - set(schema.RESULTS)
        for name in unknown:
            del self.group[name]
        with warnings.catch_warnings():
            # Consolidated metadata are no part of Zarr's specification yet, but xarray warns where there are none.
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(str(self.partial), zarr_format=3)
        for left in self.partial.rglob("*.partial"):  # of writers that were killed
            left.unlink()
        Receipts.of(self.partial, ["zarr.json", *sorted(schema.RESULTS)]).write()
        old = self.path.with_name(RESULTS_STORE + ".old")
        shutil.rmtree(old, ignore_errors=True)
        replacing()
        if self.path.exists():
            self.path.rename(old)
        self.partial.rename(self.path)
        shutil.rmtree(old, ignore_errors=True)
        return self.path


def discard(folder: Path, partial: str = PARTIAL_STORE) -> None:
    """Remove the results that were begun in a run's folder; those that are finished stay."""
    for name in (partial, COPY_STORE):
        shutil.rmtree(folder / name, ignore_errors=True)


def attributes(path: Path, *, whole: bool) -> dict[str, Any]:
    """Return the root attributes of a results store, finished or not; none where it cannot be told what they were.

    `whole` asks for those that the store's receipts vouch for.
    """
    if not path.is_dir() or (whole and _is_damaged(path, "zarr.json")):
        return {}
    try:
        return dict(zarr.open_group(str(path), mode="r", use_consolidated=False).attrs)
    except Exception:
        return {}  # whatever a Zarr library makes of metadata that are damaged


def whole(folder: Path, names: Collection[str]) -> bool:
    """Return whether the results of a finished run have all these arrays, as they were written.

    Of those that are made of blocks, the blocks themselves are left to their journal.
    """
    try:
        receipts = Receipts.read(folder / RESULTS_STORE)
    except StoreError:
        return False
    there = all(f"{name}/zarr.json" in receipts.files for name in names)
    return there and not any(fault for _, fault in receipts.faults(names))


def variables(folder: Path, names: Collection[str]) -> xr.Dataset:
    """Return some results of a run, in memory, without a look at the others, which may be damaged; see `whole`."""
    found = {name: array for name in names if (array := _read_array(folder / RESULTS_STORE, name)) is not None}
    arrays = {name: (array.metadata.dimension_names, np.asarray(array[...])) for name, array in found.items()}  # type: ignore[union-attr]
    return xr.Dataset(arrays, attrs=attributes(folder / RESULTS_STORE, whole=True))


def copy(folder: Path, to: Path) -> None:
    """Copy the finished results of a run to another folder; their data, which are never written again, are shared."""
    shutil.copytree(folder / RESULTS_STORE, to / RESULTS_STORE, copy_function=_link)


def recover(folder: Path) -> None:
    """Put back the results that a command was killed over just before it put others into their place."""
    old, path = folder / (RESULTS_STORE + ".old"), folder / RESULTS_STORE
    if old.is_dir() and not path.exists():
        old.rename(path)


def read(folder: Path) -> xr.Dataset:
    """Open the results of a run, lazily.

    Raises
    ------
    StoreError
        There is no finished run in the folder, or its results are not what the schema says.
    """
    path = folder / RESULTS_STORE
    if not path.is_dir():
        raise StoreError(
            f"{folder}: there is no finished run ({RESULTS_STORE} is missing): start one with `laue-dask run`"
        )
    try:
        Receipts.read(path).check(remedy=REMAKE_HINT)
        _check_blocks(path)
        group = zarr.open_group(str(path), mode="r", use_consolidated=False)
        schema.check(group, schema.RESULTS)
        dataset: xr.Dataset = xr.open_zarr(path, consolidated=False, mask_and_scale=False)
    except StoreError:
        raise
    except Exception as error:
        # Whatever the libraries make of metadata that are damaged.
        raise StoreError(f"{path}: damaged ({type(error).__name__}): {REMAKE_HINT}") from error
    return dataset


def open_results(folder: Path, *, masked: bool = True) -> xr.Dataset:
    """Open the results of a finished run such that they stay as they are, whatever is done with the run afterwards.

    Maps, tables and scores are taken into memory: they are small. Features and components are lazy Dask arrays, which
    `segment` never changes; where another run took this one's place, they refuse to be read.

    Parameters
    ----------
    masked
        Whether labels and grains are NaN where there is no pattern, instead of −1.

    Raises
    ------
    StoreError
        As `read`.
    """
    for left in reversed(range(MAX_OPEN_ATTEMPTS)):
        before = _state(folder)
        try:
            found = read(folder)
            lazy = {
                name: found[name].copy(data=_lazy(folder / RESULTS_STORE, name))
                for name in BLOCK_ARRAYS
                if name in found
            }
            dataset = found.drop_vars(list(lazy)).load().assign(lazy)
        except Exception:
            if left == 0 or _state(folder) == before:
                raise
        else:
            if _state(folder) == before or left == 0:
                break
        time.sleep(REPLACEMENT_WAIT_S)  # others were put into their place just now
    return _masked(dataset) if masked else dataset


BLOCK_ARRAYS = ("features", "components")
"""Arrays with a row for each pattern, made of blocks under a key that tells of what they were made."""

MASKED_ARRAYS = ("labels", "grain")

MAX_OPEN_ATTEMPTS, REPLACEMENT_WAIT_S = 5, 0.05
"""How often results are opened that are replaced meanwhile, and the time that this takes at most."""


def _masked(dataset: xr.Dataset) -> xr.Dataset:
    there = {name: dataset[name].where(dataset[name] >= 0) for name in MASKED_ARRAYS if name in dataset}
    return dataset.assign(there)


def _state(folder: Path) -> tuple[int, int] | None:
    """What tells the results of a run from those that take their place."""
    try:
        found = (folder / RESULTS_STORE / STORE_RECEIPTS_FILE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _lazy(path: Path, name: str) -> da.Array:
    """An array of blocks that is read only as long as it is the one that was opened."""
    array = zarr.open_array(str(path), path=name, mode="r")
    unit, n = array.chunks[0], array.shape[0]
    rows = (unit,) * (n // unit) + ((n % unit,) if n % unit else ())
    lazy: da.Array = da.map_blocks(
        _read_block,
        path=str(path),
        name_=name,
        key=array.attrs.get("key"),
        unit=unit,
        dtype=array.dtype,
        chunks=(rows, *((size,) for size in array.shape[1:])),
        meta=np.empty((0,) * array.ndim, dtype=array.dtype),
    )
    return lazy


def _read_block(
    *, path: str, name_: str, key: object, unit: int, block_id: tuple[int, ...] | None = None
) -> NDArray[Any]:
    if block_id is None:
        raise ValueError("block_id is needed to know which rows to read")
    start = block_id[0] * unit
    for left in reversed(range(MAX_OPEN_ATTEMPTS)):
        try:
            array = zarr.open_array(path, path=name_, mode="r")
            rows = block_reader.read_rows(array, slice(start, start + unit))
            if zarr.open_array(path, path=name_, mode="r").attrs.get("key") == key == array.attrs.get("key"):
                return rows
            raise StoreError(f"{path}: holds other {name_} now than when it was opened: open the run again")
        except FileNotFoundError as error:
            if left == 0:
                raise StoreError(f"{path}: its {name_} are gone") from error
        time.sleep(REPLACEMENT_WAIT_S)  # others are put into their place just now
    raise AssertionError("the last try returns or raises")


def _check_blocks(path: Path) -> None:
    """Raise `StoreError` for the first block that is not the one that was written; what is in it, its codecs check."""
    for journal in path.glob(f"*/{JOURNAL}"):
        files = BlockFiles(zarr.open_array(str(path), path=journal.parent.name, mode="r"))
        for block, receipt in Journal(journal).read().items():
            fault = files.fault(block, receipt["seal"])
            if fault:
                raise StoreError(f"{files.path(block)}: {fault}: {REMAKE_HINT}")


def arrays(folder: Path, name: str) -> tuple[zarr.Array[Any] | None, zarr.Array[Any] | None]:
    """Return array `name` of the results that were begun, and of those that are finished; None where there is none."""
    return _read_array(folder / PARTIAL_STORE, name), _read_array(folder / RESULTS_STORE, name)


def _read_array(store: Path, name: str) -> zarr.Array[Any] | None:
    try:
        return zarr.open_array(str(store), path=name, mode="r")
    except Exception:
        return None  # whatever a Zarr library makes of metadata that are damaged


def _is_damaged(store: Path, name: str) -> bool:
    try:
        return any(fault for _, fault in Receipts.read(store).faults([name]))
    except StoreError:
        return True


def _link(source: str, target: str) -> str:
    if source.endswith("zarr.json"):
        # Attributes are rewritten; data are not.
        return str(shutil.copy2(source, target))
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
