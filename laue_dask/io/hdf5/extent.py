"""Whether the bytes of a frame are there: allocated, within their file, and of a filter that can be undone.

Everything that a file declares is held against what it holds before anything of that size is read or made.
"""

import itertools
import math
import os
from collections.abc import Sequence

import h5py
import numpy as np

from laue_dask.errors import FrameError
from laue_dask.io.hdf5.axes import Axes, AxesError, interpret
from laue_dask.io.hdf5.files import locate, open_file, resolve
from laue_dask.io.hdf5.virtual import Piece, Table, table
from laue_dask.io.limits import require_frame

MAX_CHUNK_BYTES = 2**30
"""Of one chunk, unpacked, which may hold many frames: HDF5 unpacks all of it for one of them."""

MAX_CHUNKS_PER_FRAME = 2**16

MAX_VIRTUAL_LEVELS = 4
"""Virtual datasets whose sources are virtual datasets, and so on."""

MAX_COUNTED_SOURCES = 64
"""Sources of a virtual dataset that are opened to count what they hold."""

MIN_WRITTEN_SHARE = 0.01
"""Share of the declared frames below which nothing was measured: the shape is damaged or made up."""

MAX_UNWRITTEN_FRAMES = 1_000
"""So many frames may be declared without any being written: they are set aside one by one."""

_FILTER_NAMES = {
    4: "szip",
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32018: "FCIDECOMP",
    32024: "SZ3",
    32026: "Blosc2",
    32028: "SPERR",
}


def check_kind(node: h5py.Dataset) -> None:
    """Raise `FrameError` unless the values are numbers of a kind that is read by value."""
    fault = kind_fault(node)
    if fault:
        raise FrameError(fault)


def kind_fault(node: h5py.Dataset) -> str:
    """Return why the values of a dataset are no counts, by the name of their kind; empty where they are."""
    try:
        dtype = node.dtype
    except (TypeError, ValueError) as error:
        return f"values of a kind that is not known ({' '.join(str(error).split())})"
    if dtype.kind == "c":
        return f"complex values ({dtype.name})"
    if dtype.kind == "V":
        return f"compound values ({', '.join(dtype.names)})" if dtype.names else "opaque values"
    if dtype.kind in "SUO":
        return "texts or references"
    if dtype.kind not in "biuf":
        return f"values of dtype {dtype}"
    if dtype.itemsize > 8:
        return f"values of dtype {dtype}: convert them to float64"
    return ""


def check_size(node: h5py.Dataset, axes: Axes) -> None:
    """Raise `FrameError` where a frame, or the chunk in which it lies, is declared larger than any detector's."""
    require_frame(axes.frame_shape, node.dtype)
    chunk = math.prod(node.chunks) * node.dtype.itemsize if node.chunks else 0
    if chunk > MAX_CHUNK_BYTES:
        raise FrameError(
            f"its chunks of {tuple(node.chunks)} are declared with {chunk / 1e9:.3g} GB each: "
            f"{MAX_CHUNK_BYTES / 1e9:.3g} GB are the most that can be read"
        )


def check_filters(node: h5py.Dataset) -> None:
    """Raise `FrameError` where the values were packed by a filter that is not installed here."""
    plist = node.id.get_create_plist()
    for place in range(plist.get_nfilters()):
        code, _, _, name = plist.get_filter(place)
        if not h5py.h5z.filter_avail(code):
            told = name.decode("utf-8", errors="replace").split(";")[0].strip()
            known = _FILTER_NAMES.get(code) or told or "unknown"
            raise FrameError(f"was packed by the HDF5 filter '{known}' ({code}), which is not installed here")
        if code == h5py.h5z.FILTER_SZIP and not h5py.h5z.get_filter_info(code) & h5py.h5z.FILTER_CONFIG_DECODE_ENABLED:
            raise FrameError(f"was packed by the HDF5 filter 'szip' ({code}), which is not installed here")


def check_frame(node: h5py.Dataset, axes: Axes, place: Sequence[int | None], *, level: int = 0) -> None:
    """Raise `FrameError` unless all bytes of the frame at `place` were written and are there.

    Parameters
    ----------
    place
        Index along each axis; None for rows and columns.
    """
    check_size(node, axes)
    check_filters(node)
    if node.is_virtual:
        _check_virtual(node, axes, place, level)
    elif node.chunks is not None:
        _check_chunks(node, place)
    elif node.external is not None:
        _check_external(node, place)
    elif node.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS:
        start = node.id.get_offset()
        if start is None:
            raise FrameError("was never written: the file has nothing in its place")
        if start + _end_of(node, place) > _file_size(node):
            raise FrameError("truncated or unreadable HDF5: the file ends before the frame does")


def frames_written(node: h5py.Dataset, axes: Axes, *, level: int = 0) -> int:
    """Return how many frames there can be by the storage that is there; those that are declared at most."""
    declared, size = axes.frames, math.prod(axes.frame_shape) * int(node.dtype.itemsize)
    if node.is_virtual:
        return min(declared, _count_virtual(node, axes, level))
    if node.chunks is not None:
        # A chunk may hold several frames, a frame may lie in several chunks.
        in_chunk: int = math.prod(min(node.chunks[axis], node.shape[axis]) for axis in axes.points)
        of_frame: int = math.prod(-(-node.shape[axis] // node.chunks[axis]) for axis in axes.image)
        return min(declared, -(-int(node.id.get_num_chunks()) * in_chunk // of_frame))
    if node.external is not None:
        there = sum(_external_bytes(node, name, offset, length) for name, offset, length in node.external)
        return min(declared, there // size)
    if node.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS:
        start: int | None = node.id.get_offset()
        return 0 if start is None else min(declared, max(0, _file_size(node) - start) // size)
    return declared


def check_written(node: h5py.Dataset, axes: Axes) -> None:
    """Raise `FrameError` where hardly any of many declared frames can be there."""
    if axes.frames <= MAX_UNWRITTEN_FRAMES:
        return
    there = frames_written(node, axes)
    if there < MIN_WRITTEN_SHARE * axes.frames:
        raise FrameError(
            f"{axes.frames} frames are declared, and there is room for {there or 'none'} of them in what was written: "
            "the file is damaged, or nothing was measured"
        )


def unmapped(node: h5py.Dataset, axes: Axes) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None:
    """Return (row, column) pixels of a virtual dataset without a source in any frame: gaps between modules; None for
    none.
    """
    if not node.is_virtual:
        return None
    gaps: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = ~table(node, axes).mapped()
    return gaps if gaps.any() and not gaps.all() else None


def _check_chunks(node: h5py.Dataset, place: Sequence[int | None]) -> None:
    counts = [
        range(where // chunk, where // chunk + 1) if where is not None else range(-(-length // chunk))
        for where, chunk, length in zip(place, node.chunks, node.shape, strict=True)
    ]
    if math.prod(map(len, counts)) > MAX_CHUNKS_PER_FRAME:
        raise FrameError(f"is cut into more than {MAX_CHUNKS_PER_FRAME} chunks of {tuple(node.chunks)}")
    size, missing, total = _file_size(node), 0, 0
    for number in itertools.product(*counts):
        corner = tuple(one * chunk for one, chunk in zip(number, node.chunks, strict=True))
        found = node.id.get_chunk_info_by_coord(corner)
        total += 1
        if found.byte_offset is None:
            missing += 1
        elif found.byte_offset + found.size > size:
            raise FrameError("truncated or unreadable HDF5: the file ends before the frame does")
    if missing:
        part = "" if missing == total else f": {missing} of its {total} chunks are missing"
        raise FrameError(f"was never written{part or ': the file has nothing in its place'}")


def _check_external(node: h5py.Dataset, place: Sequence[int | None]) -> None:
    """Raw data beside the file, which HDF5 takes for zeros where it is too short."""
    end = _end_of(node, place)
    begun = 0
    for name, offset, length in node.external:
        if begun >= end:
            return
        found = locate(name, node.file.filename)
        if found is None:
            raise FrameError(f"its file {name} is missing")
        needed = min(length, end - begun)
        if _external_bytes(node, name, offset, length) < needed:
            raise FrameError(f"truncated: its file {name} ends before the frame does")
        begun += length


def _external_bytes(node: h5py.Dataset, name: str, offset: int, length: int) -> int:
    found = locate(name, node.file.filename)
    return 0 if found is None else max(0, min(length, os.stat(found).st_size - offset))  # noqa: PTH116


def _check_virtual(node: h5py.Dataset, axes: Axes, place: Sequence[int | None], level: int) -> None:
    if level >= MAX_VIRTUAL_LEVELS:
        raise FrameError(f"is made of more than {MAX_VIRTUAL_LEVELS} virtual datasets of one another")
    sources = table(node, axes)
    pieces = sources.pieces(place)
    if not pieces:
        raise FrameError("was never written: the virtual dataset has no source for it")
    for piece in pieces:
        _check_piece(node, piece, level)
    _check_whole(sources, pieces)


def _check_whole(sources: Table, pieces: Sequence[Piece]) -> None:
    rows, columns = sources.axes.frame_shape
    boxes = [(piece.rows, piece.columns) for piece in pieces]
    if ((0, rows - 1), (0, columns - 1)) in boxes:
        return
    lost = sources.mapped() & ~sources.covered(boxes)
    if lost.any():
        raise FrameError(f"{int(lost.sum())} of its pixels were never written: the virtual dataset has no source there")


def _check_piece(node: h5py.Dataset, piece: Piece, level: int) -> None:
    if piece.file == ".":
        _check_source(node.file, piece, level)
        return
    found = locate(piece.file, node.file.filename)
    if found is None:
        raise FrameError(f"its file {piece.file} is missing")
    try:
        with open_file(found) as file:
            _check_source(file, piece, level)
    except FrameError as error:
        raise FrameError(f"in {piece.file}: {error}") from error
    except (OSError, RuntimeError) as error:
        raise FrameError(f"its file {piece.file} cannot be read: {' '.join(str(error).split())}") from error


def _check_source(file: h5py.File, piece: Piece, level: int) -> None:
    source = resolve(file, piece.dataset)
    if not isinstance(source, h5py.Dataset) or source.shape is None:
        raise FrameError(f"'{piece.dataset}' is not a dataset")
    if piece.place is None:
        if any(has < needs for has, needs in zip(source.shape, piece.extent, strict=False)):
            raise FrameError(f"'{piece.dataset}' ends before the frame does")
        return
    place = piece.place
    while len(place) > max(source.ndim, 2) and place[0] == 0:
        place = place[1:]  # a file of one frame, which counts none
    beyond = any(where is not None and where >= has for where, has in zip(place[:-2], source.shape, strict=False))
    if source.ndim != len(place) or beyond:
        raise FrameError(f"'{piece.dataset}' ends before the frame does")
    if any(has < needs for has, needs in zip(source.shape[-2:], piece.extent[-2:], strict=True)):
        raise FrameError(f"'{piece.dataset}' is smaller than the part of the frame that is taken from it")
    n = source.ndim
    axes = Axes(tuple(source.shape), tuple(range(n - 2)), (n - 2, n - 1))
    check_frame(source, axes, place, level=level + 1)


def _count_virtual(node: h5py.Dataset, axes: Axes, level: int) -> int:
    sources = table(node, axes)
    counts = sources.files()
    if len(counts) > MAX_COUNTED_SOURCES or level >= MAX_VIRTUAL_LEVELS:
        return sources.written
    there = 0
    for (name, dataset), count in counts.items():
        found = node.file.filename if name == "." else locate(name, node.file.filename)
        if found is None:
            continue
        try:
            with open_file(found) as file:
                source = resolve(file, dataset)
                held = frames_written(source, interpret(tuple(source.shape)), level=level + 1)
        except (FrameError, AxesError, OSError, RuntimeError, AttributeError):
            continue
        there += min(count, held)
    return there


def _end_of(node: h5py.Dataset, place: Sequence[int | None]) -> int:
    """Bytes from the beginning of a dataset that is not cut into chunks to the end of a frame."""
    last = [length - 1 if where is None else where for where, length in zip(place, node.shape, strict=True)]
    return (int(np.ravel_multi_index(last, node.shape)) + 1) * int(node.dtype.itemsize)


def _file_size(node: h5py.Dataset) -> int:
    return int(os.stat(node.file.filename).st_size)  # noqa: PTH116
