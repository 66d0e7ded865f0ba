"""The direct reader of shards equals Zarr, and notices what Zarr notices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from laue_dask import schema
from laue_dask.io.frame_array import FrameArray
from laue_dask.io.shard_file import ShardFiles


def an_array(
    folder: Path, n: int, chunk: int, shard: int, dtype: str, row: tuple[int, int] = (5, 7)
) -> zarr.Array[Any]:
    root = zarr.open_group(str(folder), mode="w")
    array = schema.create(
        root,
        "frames",
        schema.SCAN["frames"],
        (n, *row),
        chunks=(chunk, *row),
        shards=(shard, *row),
        dtype=dtype,
    ).with_config({"write_empty_chunks": True})
    values = np.random.default_rng(n).integers(0, 200, (n, *row)).astype(dtype)
    values[:: max(1, n // 3)] = 0
    array[:] = values
    return array


@given(
    n=st.integers(1, 40),
    chunk=st.sampled_from([1, 2, 4]),
    per_shard=st.sampled_from([1, 2, 8]),
    dtype=st.sampled_from(["uint8", "uint16", "int32", "float32", "float64"]),
    cut=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    whole=st.booleans(),
)
def test_frames_are_those_that_zarr_reads(
    tmp_path_factory: pytest.TempPathFactory,
    n: int,
    chunk: int,
    per_shard: int,
    dtype: str,
    cut: tuple[int, int],
    whole: bool,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    array = an_array(folder, n, chunk, chunk * per_shard, dtype)
    frames = FrameArray(folder, array)
    start, stop = (0, n) if whole else sorted(min(c, n) for c in cut)
    memory = np.full((stop - start + 3, 5, 7), 9, dtype=dtype)
    expected = array[start:stop]
    np.testing.assert_array_equal(frames.read(start, stop), expected)
    np.testing.assert_array_equal(frames.read(start, stop, out=memory), expected)
    np.testing.assert_array_equal(memory[: stop - start], expected)
    assert (memory[stop - start :] == 9).all()


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    array = an_array(tmp_path, 4, 1, 4, "uint16")
    files = ShardFiles.of(array)
    assert files is not None
    shard = tmp_path / "frames" / "c" / "0" / "0" / "0"
    good, out = shard.read_bytes(), np.zeros((4, 5, 7), np.uint16)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(good), 200):
        shard.write_bytes(good[:place] + bytes([good[place] ^ (1 << int(rng.integers(8)))]) + good[place + 1 :])
        with pytest.raises(ValueError, match=r"checksum|cut|missing"):
            files.read("c/0/0/0", 0, out)
    for length in (0, 3, 20, len(good) // 2, len(good) - 1):
        shard.write_bytes(good[:length])
        with pytest.raises(ValueError, match=r"checksum|cut|missing"):
            files.read("c/0/0/0", 0, out)
    shard.write_bytes(good)
    files.read("c/0/0/0", 0, out)
    np.testing.assert_array_equal(out, array[:])


def test_a_chunk_that_was_never_written_is_missing(tmp_path: Path) -> None:
    array = an_array(tmp_path, 4, 1, 4, "uint16").with_config({"write_empty_chunks": False})
    array[:] = np.repeat(np.array([1, 0, 1, 1], np.uint16), 35).reshape(4, 5, 7)
    files = ShardFiles.of(array)
    assert files is not None
    with pytest.raises(ValueError, match="chunk 1 is missing"):
        files.read("c/0/0/0", 0, np.zeros((4, 5, 7), np.uint16))


def test_other_layouts_are_left_to_zarr(tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path), mode="w")
    plain = {"shape": (4, 6), "dtype": "uint16"}
    blosc = BloscCodec()
    assert ShardFiles.of(root.create_array("a", **plain, chunks=(1, 6), compressors=[blosc, Crc32cCodec()])) is None
    sharded = {**plain, "chunks": (1, 6), "shards": (2, 6)}
    assert ShardFiles.of(root.create_array("b", **sharded, compressors=[blosc])) is None
    assert ShardFiles.of(root.create_array("c", **sharded, compressors=[ZstdCodec(), Crc32cCodec()])) is None
    halves = {**plain, "chunks": (1, 3), "shards": (2, 6)}
    assert ShardFiles.of(root.create_array("d", **halves, compressors=[blosc, Crc32cCodec()])) is None
    assert ShardFiles.of(root.create_array("e", **sharded, compressors=[blosc, Crc32cCodec()])) is not None
    elsewhere = zarr.create_array(MemoryStore(), **sharded, compressors=[blosc, Crc32cCodec()])
    assert ShardFiles.of(elsewhere) is None


@given(
    n=st.integers(1, 40),
    chunk=st.sampled_from([1, 2, 4]),
    per_shard=st.sampled_from([1, 2, 8]),
    dtype=st.sampled_from(["uint8", "uint16", "int32", "float32", "float64"]),
)
def test_shards_are_byte_by_byte_those_that_zarr_writes(
    tmp_path_factory: pytest.TempPathFactory, n: int, chunk: int, per_shard: int, dtype: str
) -> None:
    theirs, ours = (tmp_path_factory.mktemp(name) for name in ("theirs", "ours"))
    expected = an_array(theirs, n, chunk, chunk * per_shard, dtype)
    array = an_array(ours, n, chunk, chunk * per_shard, dtype)
    values, frames = np.asarray(expected[:]), FrameArray(ours, array)
    for file in (ours / "frames" / "c").rglob("*"):
        if file.is_file():
            file.unlink()
    for start in range(0, n, frames.shard_frames):
        shard = values[start : start + frames.shard_frames]
        with frames.writing(start, len(shard)) as add:
            for first in range(0, len(shard), chunk):
                add(shard[first : first + chunk])
    written = {file.relative_to(ours): file.read_bytes() for file in ours.rglob("*") if file.is_file()}
    assert written == {file.relative_to(theirs): file.read_bytes() for file in theirs.rglob("*") if file.is_file()}


def test_a_shard_that_is_not_written_to_its_end_is_not_there(tmp_path: Path) -> None:
    array = an_array(tmp_path, 8, 2, 4, "int32")
    frames, values = FrameArray(tmp_path, array), np.asarray(array[:])
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def cut(add: Any) -> None:
        add(values[:2] + 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), frames.writing(0, 4) as add:
        cut(add)
    with pytest.raises(ValueError, match="2 of the 4 frames"), frames.writing(0, 4) as add:
        add(values[:2] + 1)
    with pytest.raises(ValueError, match="not a chunk"), frames.writing(0, 4) as add:
        add(values[:1])
    with pytest.raises(ValueError, match="in a store of"), frames.writing(0, 4) as add:
        add(values[:2].astype("int64"))
    for start, count in ((1, 4), (0, 3), (8, 4)):
        with pytest.raises(ValueError, match="not one shard"), frames.writing(start, count):
            pass
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
