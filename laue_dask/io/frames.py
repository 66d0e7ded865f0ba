"""Detector frames on disk: where they are (`discover`), what is in them (`read_frame`) and beside them (`frame_info`).

TIFF (also PILATUS and MarCCD), EDF, CBF and HDF5 are read by modules of their own, everything else by fabio. A frame
that cannot be used raises `FrameError` with a short reason; nothing warns, prints or hangs.
"""

import errno
import functools
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import numpy as np
from numpy.typing import NDArray

from laue_dask.errors import ComputeError, FrameError, InputError
from laue_dask.io import cbf, edf, hdf5, hdf5_sources, other_formats, tiff, unpack
from laue_dask.io.deadline import DEADLINES_PER_LISTING, ReadTimeoutError, call_with_deadline, read_byte
from laue_dask.io.file_kinds import TIFF_SUFFIXES, irregular, is_frame, kind_of, kind_of_content, suffix_of
from laue_dask.io.folder_contents import is_folder
from laue_dask.io.headers import Header
from laue_dask.io.limits import MAX_UNPACKED_BYTES, Expected, require_frame, unpacked_limit
from laue_dask.io.line_folders import why_several_scans
from laue_dask.io.listing import Listing
from laue_dask.io.path_lists import read_paths, require_distinct
from laue_dask.io.path_patterns import is_pattern

_OF_THE_DISK = (errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT)
"""What a file system reports where the file may be whole."""

logger = logging.getLogger(__name__)

_FRAME_REFERENCE = re.compile(
    r"(?P<path>.*?)(?:::(?P<dataset>[^\[\]]*(?:\[[\d:,]*[:,][\d:,]*\])?))?(?:\[(?P<index>\d+)\])?", re.DOTALL
)
"""Of a dataset with what was chosen of its axes, `/d[:,0]`, and the number of a frame of that, `/d[:,0][12]`."""


@dataclass(frozen=True, slots=True)
class FrameRef:
    """Where one frame is.

    Attributes
    ----------
    path
        File.
    dataset
        HDF5 dataset; ``None`` in other files.
    index
        Number of the frame within a file or dataset of several, from 0; ``None`` for the only one.
    """

    path: str
    dataset: str | None = None
    index: int | None = None

    def __str__(self) -> str:
        dataset = "" if self.dataset is None else f"::{self.dataset}"
        return f"{self.path}{dataset}" + ("" if self.index is None else f"[{self.index}]")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the reference that `str` wrote: `file.tif`, `file.tif[3]` or `file.h5::/path[12]`."""
        if not text.endswith("]") and "::" not in text:
            return cls(text)  # as nearly all are, of which there may be 100,000
        found = _FRAME_REFERENCE.fullmatch(text)
        if found is None:
            raise ValueError(f"this is not a reference to a frame: {text!r}")
        index = found["index"]
        return cls(found["path"], found["dataset"], None if index is None else int(index))


@dataclass(frozen=True)
class FrameInfo:
    """A frame's `shape` (rows, columns), native `dtype`, and what its header tells; see `io.headers.Header`."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    position: tuple[float, float] | None = None
    pixel_size_um: float | None = None
    exposure_s: float | None = None
    detector: str | None = None
    saturation: float | None = None


def discover(src: str | Path) -> list[FrameRef]:
    """Find the frames of a scan, in the order of acquisition (natural order of the names: img_2 before img_10).

    Parameters
    ----------
    src
        Folder of frames, or of one sub-folder `…_01`, `…_02` per line of the scan; glob; template of numbered files
        (`img_%05d.tif`, `img_####.tif`); text file with one path per line (relative to the file, `#` comments); file of
        one or several frames; HDF5 file with or without `::/path`. What is there by that very name is a path, whatever
        brackets are in it.

    Returns
    -------
    refs
        One per frame. Files are not opened, except HDF5 files and the first and last file of a series: where these hold
        several frames, the others are counted too.

    Raises
    ------
    InputError
        Nothing there, no permission to look, several kinds of frames in one folder, or no (or more than one) dataset of
        frames.
    """
    try:
        refs = call_with_deadline(
            lambda: _discovered(src), str(src).partition("::")[0], deadlines=DEADLINES_PER_LISTING
        )
    except ReadTimeoutError as error:
        raise ComputeError(f"{src}: {error}: does its file system answer?") from error
    except OSError as error:
        raise InputError(f"{error.filename or src}: cannot be read: {error.strerror or error}") from error
    for ref in refs:
        try:
            ref.path.encode()
        except UnicodeEncodeError as error:
            # Names are kept in the store and in the report, which are UTF-8.
            raise InputError(f"{ref.path!a}: the file's name is not UTF-8: rename it") from error
    return refs


def _discovered(src: str | Path) -> list[FrameRef]:
    text = os.path.expanduser(src)  # noqa: PTH111  a glob keeps its form
    name, separator, dataset = text.partition("::")
    if separator and Path(text).exists():
        name, separator, dataset = text, "", ""
    path = Path(name)
    if separator:
        return _expand([name] if path.exists() else _listed(name), dataset)
    if path.is_file():
        return _expand([name], None) if is_frame(name) or kind_of_content(name) else _in_list(path)
    return _expand(_listed(name), None)


def _listed(source: str) -> list[str]:
    listing = Listing(source)
    listing.look()
    if listing.odd:
        raise InputError(listing.odd)
    if why := several_scans(listing.lines):
        raise InputError(
            f"{source}: {why}, as those of several scans: give one of them; if they are the lines of one scan, say so "
            f"with a glob, as '{source}/*/*'"
        )
    for path, reason in listing.left_out.items():
        _tell_once(f"a file is left out: {path}: {reason}")
    return listing.files


def several_scans(lines: Mapping[str, Sequence[str]]) -> str:
    """Return why sub-folders are no lines of one scan, by names, numbers and a few headers; see
    `lines.why_several_scans`.
    """
    return why_several_scans(lines, _position_in)


def _position_in(path: str) -> tuple[float, float] | None:
    """Stage position in a file of one frame whose header can be read without its pixels."""
    return read_position(FrameRef(path)) if kind_of(path) in TIFF_SUFFIXES else None


@functools.cache
def _tell_once(line: str) -> None:
    # A command lists its source more than once.
    logger.warning(line)


def is_listed(src: str | Path) -> bool:
    """Return whether a source is a text file that lists the frames one by one."""
    name = os.path.expanduser(src).partition("::")[0]  # noqa: PTH111
    return Path(name).is_file() and not is_frame(name) and not kind_of_content(name)


def grid_hint(refs: Sequence[FrameRef], scan_shape: tuple[int, int] | None = None) -> tuple[int, int] | None:
    """Return (ny, nx) that the one file of all these frames says of itself; None where it says nothing.

    Raises
    ------
    InputError
        An axis of the dataset may count images of each point; see `hdf5.grid_of`.
    """
    first, last = refs[0], refs[-1]
    if first.dataset is None or (first.path, first.dataset) != (last.path, last.dataset):
        return None
    return hdf5.grid_of(first.path, first.dataset, scan_shape)


def pixel_mask(ref: FrameRef) -> hdf5.PixelMask | None:
    """Return the unusable pixels by what the file of a frame says; None where it says nothing. HDF5 files alone do."""
    return None if ref.dataset is None else hdf5.pixel_mask(ref.path, ref.dataset)


def read_frame(ref: FrameRef, *, expected: Expected | None = None) -> NDArray[Any]:
    """Read one frame; see `load`.

    Returns
    -------
    frame : (row, column)
        In the detector's own dtype and the native byte order; never padded.

    Raises
    ------
    FrameError
        Why it cannot be used, without its name.
    """
    return load(ref, expected=expected)[0]


def read_position(ref: FrameRef) -> tuple[float, float] | None:
    """Return the stage coordinates (y, x) from the header, or ``None`` where there are none or the frame cannot be
    read.
    """
    try:
        return frame_info(ref).position
    except FrameError:
        return None


def frame_info(ref: FrameRef) -> FrameInfo:
    """Return the shape, dtype and header of one frame; of TIFF, EDF, CBF and HDF5 without reading its pixels.

    Raises
    ------
    FrameError
        As `read_frame`.
    """
    if is_read_whole(ref):
        return load(ref)[1]
    return cast(FrameInfo, _guarded(_scan_header, ref))


def is_read_whole(ref: FrameRef) -> bool:
    """Return whether the header of a frame is read with all of its pixels."""
    return ref.dataset is None and _format(ref.path) == ""


def load(
    ref: FrameRef, *, memory: NDArray[Any] | None = None, expected: Expected | None = None
) -> tuple[NDArray[Any], FrameInfo]:
    """Return the pixels and header of one frame at once; raises as `read_frame`.

    Parameters
    ----------
    memory : (row, column)
        May be used for the pixels, and is what is returned if it was.
    expected
        Shape and dtype of the scan's frames: one that is not like these is refused before anything is allocated for it.
    """
    frame, header = _guarded(_read, ref, memory, expected)
    if frame.ndim != 2:
        raise FrameError(f"is not 2-D: shape {frame.shape}")
    if frame.dtype.kind not in "iufb":
        raise FrameError(f"dtype {frame.dtype} is not a number")
    frame = np.ascontiguousarray(frame, dtype=frame.dtype.newbyteorder("="))
    require_frame(frame.shape, frame.dtype, expected)
    return frame, _info(frame.shape, frame.dtype, header)


def _format(path: str) -> str:
    """Reader of a file by its name; empty for those that fabio reads."""
    kind = kind_of(path)
    return "tiff" if kind in TIFF_SUFFIXES else kind[1:] if kind in (".edf", ".cbf") else ""


def _format_within(head: bytes, path: str) -> str:
    """Reader of a file by its content, or else by its name."""
    if head[:4] in tiff.MAGIC:
        return "tiff"
    if head.lstrip().startswith(b"{"):
        return "" if b"HEADER_BYTES" in head else "edf"  # those are d*TREK's
    return "cbf" if head.startswith(cbf.MAGIC) else _format(path)


def _read(ref: FrameRef, memory: NDArray[Any] | None, expected: Expected | None) -> tuple[NDArray[Any], Header]:
    if ref.dataset is not None:
        hdf5_sources.wait_for(ref.path, ref.dataset, ref.index or 0)
        return hdf5.read_frame(ref.path, ref.dataset, ref.index)
    packed = unpack.is_packed(ref.path)
    # A file of several frames unpacks to as many.
    limit = unpacked_limit(expected if ref.index is None else None)
    with unpack.unpacked(ref.path, limit) if packed else _opened(ref.path) as file:
        match _format_within(_head(file), ref.path):
            case "tiff":
                return tiff.read_frame(file, ref.index, memory=memory, expected=expected)
            case "edf":
                return edf.read_frame(file, ref.index, memory=memory, expected=expected)
            case "cbf":
                return cbf.read_frame(file, ref.index, expected=expected)
            case _:
                return other_formats.read_frame(file, ref.path, ref.index, packed=packed, expected=expected)


def _scan_header(ref: FrameRef) -> FrameInfo:
    if ref.dataset is not None:
        hdf5_sources.wait_for(ref.path, ref.dataset, ref.index or 0)
        return _info(*hdf5.read_header(ref.path, ref.dataset, ref.index))
    with _opened(ref.path) as file:
        match _format_within(_head(file), ref.path):
            case "edf":
                return _info(*edf.read_info(file, ref.index))
            case "cbf":
                return _info(*cbf.read_info(file))
            case _:
                page = tiff.read_page(file, ref.index)
                return _info(page.shape, page.dtype.newbyteorder("="), tiff.read_header(page))


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(64)


def _info(shape: tuple[int, ...], dtype: np.dtype[Any], header: Header) -> FrameInfo:
    rows, columns = shape
    told = (header.position, header.pixel_size_um, header.exposure_s, header.detector, header.saturation)
    return FrameInfo((rows, columns), dtype, *told)


def _guarded(read: Any, ref: FrameRef, *more: Any) -> Any:
    """Call `read`, which ends within the deadline, and turn what the libraries raise on damaged files into a reason."""
    return call_with_deadline(lambda: _reasoned(read, ref, *more), ref.path)


def _reasoned(read: Any, ref: FrameRef, *more: Any) -> Any:
    if what := irregular(ref.path):
        raise FrameError(f"is {what}, not a file")
    try:
        return read(ref, *more)
    except (FrameError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise FrameError("file vanished") from error
    except PermissionError as error:
        raise FrameError("you have no permission to read the file") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise FrameError(f"cannot be read: {os.strerror(error.errno)}") from error
        suffix = suffix_of(ref.path)
        kind = {".h5": "HDF5", ".hdf5": "HDF5", ".hdf": "HDF5", ".nxs": "HDF5"}.get(suffix, suffix[1:].upper())
        kind = "TIFF" if suffix in TIFF_SUFFIXES else kind or "file"
        raise FrameError(f"truncated or unreadable {kind}") from error


def _opened(path: str) -> BinaryIO:
    """A file for what is at its beginning."""
    if unpack.is_packed(path):
        return cast(BinaryIO, unpack.Beginning(path, MAX_UNPACKED_BYTES))
    # A frame is one read, into its place; a buffer would be in its way.
    return cast(BinaryIO, open(path, "rb", buffering=0))  # noqa: PTH123  often


def _in_list(path: Path) -> list[FrameRef]:
    lines = read_paths(path)
    if not lines:
        raise InputError(f"{path}: the list names no frames")
    refs = [FrameRef.parse(line.path) for line in lines]
    if any(ref.index is not None for ref in refs):  # but for a file that has such a name
        refs = [FrameRef(line.path) if _exists(line.path) else ref for line, ref in zip(lines, refs, strict=True)]
    # One that is missing keeps its place in the grid and is set aside; all of them missing is a wrong folder.
    if not any(_exists(ref.path) for ref in refs):
        if not any(is_frame(ref.path) or ref.dataset for ref in refs):
            raise InputError(f"{path}: is neither a frame nor a list of frames: no line of it names a frame")
        raise InputError(
            f"{path}: as a list of frames none of its {len(refs)} files is there, the first is {refs[0].path}"
        )
    require_distinct(path, zip((line.number for line in lines), map(str, refs), strict=True))
    for line, ref in zip(lines, refs, strict=True):
        if any(letter in ref.path for letter in "*?%#") and is_pattern(ref.path):
            raise InputError(f"{path}, line {line.number}: {ref.path} is a pattern: list each frame, or give it alone")
        if not is_frame(ref.path) and is_folder(ref.path):
            raise InputError(f"{path}, line {line.number}: {ref.path} is a folder: list its frames, or give it alone")
    if all(ref.dataset is None and ref.index is None for ref in refs):
        return _expand([ref.path for ref in refs], None)
    return [one for ref in refs for one in ([ref] if ref.index is not None else frames_of(ref.path, ref.dataset))]


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110  of 100,000 paths


def _expand(files: Sequence[str], dataset: str | None) -> list[FrameRef]:
    """Frames of files in order; a series whose first and last file hold one frame each is not opened further."""
    if len(files) > 2:
        first, last = _first_readable(files, dataset), _first_readable(files[::-1], dataset)
        if len(first) == len(last) == 1 and first[0].dataset == last[0].dataset:
            return [FrameRef(file, first[0].dataset) for file in files]
    return _in_stacks(files, dataset)


def _in_stacks(files: Sequence[str], dataset: str | None) -> list[FrameRef]:
    """Frames of files of several; one that is damaged is taken to hold what all others hold, to be set aside later."""
    found: dict[str, list[FrameRef]] = {}
    damaged: dict[str, hdf5.UnreadableError] = {}
    for file in files:
        try:
            found[file] = frames_of(file, dataset)
        except hdf5.UnreadableError as error:
            damaged[file] = error
    held = {file: [(ref.dataset, ref.index) for ref in refs] for file, refs in found.items()}
    # The last one of an aborted scan holds fewer.
    usual = [names for file, names in held.items() if file != files[-1]]
    if damaged and (not usual or any(names != usual[0] for names in usual)):
        raise next(iter(damaged.values()))
    return [FrameRef(file, *names) for file in files for names in (held[file] if file in held else usual[0])]


def _first_readable(files: Sequence[str], dataset: str | None) -> list[FrameRef]:
    """Frames of the first file that can be read: the others of an aborted scan are set aside later."""
    errors: list[InputError] = []
    for file in files:
        try:
            return frames_of(file, dataset)
        except InputError as error:
            errors.append(error)
    raise errors[0]


def frames_of(file: str, dataset: str | None, *, closed: bool = False) -> list[FrameRef]:
    """Return the frames of one file, which is opened for that; `closed` refuses HDF5 that is still written.

    Raises
    ------
    InputError
        It is HDF5 and cannot be read, or holds no dataset of frames, or several.
    """
    try:
        return call_with_deadline(lambda: _frames_of(file, dataset, closed), file)
    except ReadTimeoutError as error:
        if dataset is not None or suffix_of(file) in hdf5.SUFFIXES:
            raise hdf5.UnreadableError(f"{file}: {error}") from error
        return [FrameRef(file)]  # it is set aside when it is read


def _frames_of(file: str, dataset: str | None, closed: bool) -> list[FrameRef]:
    suffix = kind_of(file)
    if suffix in hdf5.SUFFIXES or dataset is not None:
        if what := irregular(file):
            raise hdf5.UnreadableError(f"{file}: is {what}, not a file")
        with suppress(OSError):  # which the library has better words for
            read_byte(file)
        found = hdf5.find_frames(file, dataset, closed=closed)
        if len(found) == 1 and found[0].frames in (None, 1):
            return [FrameRef(file, found[0].dataset)]
        return [FrameRef(file, one.dataset, i) for one in found for i in range(one.frames or 1)]
    kind, count = _format(file), 1
    if irregular(file):
        return [FrameRef(file)]
    try:
        if kind in ("tiff", "edf"):
            with _opened(file) as stream:
                count = tiff.count(stream) if kind == "tiff" else edf.count(stream)
    except Exception:
        # A file that cannot be opened is one frame, which is set aside when it is read.
        count = 1
    return [FrameRef(file)] if count == 1 else [FrameRef(file, index=i) for i in range(count)]
