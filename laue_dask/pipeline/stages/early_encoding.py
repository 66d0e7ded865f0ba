"""One pass: a block is encoded as soon as it is reduced, while the rest of the scan is still read.

Where there are GPU workers they encode at the same time as CPU workers read; where there are none, a worker encodes
what was just written before it reads on. The key of a scan is that of its content, which is not known before all of it
is read: so each block of features says which patterns it was made of, and is taken over when the key is known.
"""

import shutil
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np
import zarr
from dask.delayed import delayed
from numpy.typing import NDArray

from laue_dask.compute.cluster import Workers
from laue_dask.compute.run import ConcurrentWriter, write_block
from laue_dask.errors import StoreError
from laue_dask.features.extractors import Extractor
from laue_dask.io import block_reader, results
from laue_dask.io.block_files import checksum, location
from laue_dask.io.journal import Journal, Receipt
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline.reuse import stage_key

FEATURES_ARRAY = "features"

AHEAD_ATTRIBUTE = "ahead"
"""Attribute of features that nobody has taken over yet."""


class EarlyEncoder:
    """Encodes reduced blocks, one after the other as it is told of them, into the results of a run.

    A context: at its end what is still in flight is given up.

    Parameters
    ----------
    folder
        Of the run.
    """

    def __init__(self, folder: Path, extractor: Extractor, workers: Workers) -> None:
        self._folder, self._extractor, self._workers = folder, extractor, workers
        self._blocks: ConcurrentWriter | None = None
        self._target = ("", "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._blocks:
            self._blocks.stop()

    def unless(self, key: str | None = None) -> Self | None:
        """Return this object, or None where the run has features of this key, or any if the key is not known yet.

        None as well where features were begun in their own turn, be they of this key or not, for they would be lost;
        and where the extractor learns from the whole scan.
        """
        begun, finished = results.arrays(self._folder, FEATURES_ARRAY)
        of_others = begun is not None and not begun.attrs.get(AHEAD_ATTRIBUTE)
        there = finished is not None and key in (None, finished.attrs.get("key"))
        return None if of_others or there or self._extractor.learns else self

    def encode(self, reduced: zarr.Array[Any], receipt: Receipt, valid: NDArray[np.bool_]) -> None:
        """Have a block of reduced patterns encoded, unless that would have to wait.

        Parameters
        ----------
        reduced : (pattern, 128, 128) uint8
            On disk, where it stays until `finish`.
        receipt
            Of the block.
        valid : (n,) bool
            Which of the block's patterns there are.
        """
        if self._blocks is None:
            if self._extractor.on_gpu and self._workers.waits_for_gpu():
                return  # jobs in a queue: those who read are not held up
            self._blocks = self._begin(reduced)
        # Tasks that share their name, but for a number, Dask holds back as long as workers have others in hand.
        name = (f"encode-{uuid4().hex}", receipt["block"])
        task = delayed(_encode)(*location(reduced), *self._target, receipt, valid, self._extractor, dask_key_name=name)
        self._blocks.submit(task)

    def finish(self) -> None:
        """Wait for the blocks in flight: after this nothing reads the reduced patterns."""
        if self._blocks:
            self._blocks.finish()

    def _begin(self, reduced: zarr.Array[Any]) -> ConcurrentWriter:
        resources = self._workers.gpu if self._extractor.on_gpu else None
        shape, block = (reduced.shape[0], self._extractor.n_features), (reduced.shards or reduced.chunks)[0]
        target = ResultsWriter(self._folder, {}).blocks(FEATURES_ARRAY, shape, block=block, key=_key(self._extractor))
        target.attrs[AHEAD_ATTRIBUTE] = True
        self._target = location(target)
        return ConcurrentWriter(target, client=self._workers.client, resources=resources)


def adopt_early_features(
    writer: ResultsWriter, reduced: zarr.Array[Any], valid: NDArray[np.bool_], extractor: Extractor, key: str
) -> None:
    """Give features that were made ahead of these patterns the key of their stage, and forget those of others.

    Nothing is taken over where the run's last results have features of this key.

    Parameters
    ----------
    valid : (pattern,) bool
    """
    begun, finished = results.arrays(writer.path.parent, FEATURES_ARRAY)
    if begun is None or begun.attrs.get("key") != _key(extractor):
        return
    if finished is not None and finished.attrs.get("key") == key:
        return
    made_of = Journal.of(reduced).read()

    def same(receipt: Receipt) -> bool:
        block = made_of.get(receipt["block"])
        return block is not None and receipt.get("of") == _origin(block, valid[block["start"] : block["stop"]])

    Journal.of(begun).keep(same)
    zarr.open_array(str(writer.partial), path=FEATURES_ARRAY, mode="r+").attrs.update(
        {"key": key, AHEAD_ATTRIBUTE: False}
    )


def remove_early_features(folder: Path) -> None:
    """Remove the results that a run has begun where they are nothing but features that nobody has taken over."""
    begun, _ = results.arrays(folder, FEATURES_ARRAY)
    if begun is not None and begun.attrs.get(AHEAD_ATTRIBUTE):
        shutil.rmtree(folder / results.PARTIAL_STORE, ignore_errors=True)


def _key(extractor: Extractor) -> str:
    return stage_key("features", "ahead", extractor.digest)


def _origin(reduced: Receipt, valid: NDArray[np.bool_]) -> int:
    """CRC-32C of a block's patterns and of which of them there are."""
    return checksum(valid, reduced["crc32c"])


def _encode(
    root: str,
    member: str,
    target: str,
    name: str,
    receipt: Receipt,
    valid: NDArray[np.bool_],
    extractor: Extractor,
) -> Receipt:
    rows = slice(receipt["start"], receipt["stop"])
    patterns = block_reader.read_rows(zarr.open_array(root, path=member, mode="r"), rows)
    if checksum(patterns) != receipt["crc32c"]:
        raise StoreError(f"{root}/{member}: block {receipt['block']} is not what was written a moment ago")
    array = zarr.open_array(target, path=name, mode="r+")
    return {**write_block(extractor.extract(patterns, valid), array, receipt["block"]), "of": _origin(receipt, valid)}
