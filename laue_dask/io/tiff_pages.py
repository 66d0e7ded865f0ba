"""Pages of a TIFF, and which of them are frames: thumbnails, masks and variances are not."""

import re
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from laue_dask.errors import FrameError
from laue_dask.io.limits import require_frame
from laue_dask.io.tiff_directory import MAX_DIRECTORIES, Container, Directory, damaged

SUBFILE, OLD_SUBFILE, COLUMNS, ROWS, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
FILL_ORDER, DESCRIPTION, MODEL, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP = 266, 270, 272, 273, 274, 277, 278
STRIP_BYTES, PAGE_NAME, PREDICTOR, TILE_COLUMNS, TILE_ROWS, TILE_OFFSETS, TILE_BYTES = 279, 285, 317, 322, 323, 324, 325
SAMPLE_FORMAT, DEPTH, UIC2, IMAGEJ_SIZES, IMAGEJ = 339, 32997, 33629, 50838, 50839

UNCOMPRESSED, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD = 1, 5, 8, 32946, 32773, 34925, 50000
_READABLE_COMPRESSIONS = (UNCOMPRESSED, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD)
_COMPRESSION_NAMES = {
    2: "CCITT-RLE", 3: "CCITT-T.4", 4: "CCITT-T.6", 6: "JPEG", 7: "JPEG", 9: "JBIG", 10: "JBIG", 32766: "NeXT",
    32809: "ThunderScan", 32908: "PixarFilm", 32909: "PixarLog", 33003: "JPEG-2000", 33005: "JPEG-2000", 33007: "JPEG",
    34661: "JBIG", 34676: "SGILog", 34677: "SGILog24", 34712: "JPEG-2000", 34715: "JBIG2", 34887: "LERC",
    34892: "lossy JPEG", 34926: "Zstandard (old number)", 34927: "WebP (old number)", 34933: "PNG", 34934: "JPEG-XR",
    50001: "WebP", 50002: "JPEG-XL", 50013: "Jetraw", 52546: "JPEG-XL", 65000: "EER", 65001: "EER", 65002: "EER",
}  # fmt: skip
_PHOTOMETRIC_NAMES = {
    2: "RGB", 3: "palette-colour", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab",
    32803: "colour-filter", 32844: "LogL", 32845: "LogLuv", 34892: "linear-raw",
}  # fmt: skip
_DTYPE_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
_ORIENTATION_CORNERS = {
    2: "top right", 3: "bottom right", 4: "bottom left",
    5: "left top", 6: "right top", 7: "right bottom", 8: "left bottom",
}  # fmt: skip
_DTYPE_BITS = {"u": (8, 16, 32, 64), "i": (8, 16, 32, 64), "f": (32, 64)}

_REDUCED_OR_MASK_BITS = 1 | 4
_OLD_REDUCED = 2
MAX_NAME_WORDS = 4
_NOT_A_FRAME_NAME = re.compile(
    r"(?i)\b(masks?|bad[ _-]?pixels?|variances?|var|sigma|std(?:ev|dev)?|stddev|errors?|uncertaint(?:y|ies)|weights?"
    r"|thumb(?:nail)?s?|previews?|overviews?|macro|dark|flat|background)\b"
)
_IMAGEJ_COUNTS = re.compile(r"^(images|channels|slices|frames)=(\d{1,9})\s*$", re.MULTILINE)
_SHAPED_DESCRIPTION = re.compile(r'^\{"shape": \[([\d, ]+)\].*"truncated": true')
_OME_IMAGE = re.compile(r"<(?:\w+:)?Image[\s>]")


@dataclass(frozen=True, slots=True)
class Page:
    """One frame's directory.

    Attributes
    ----------
    shape
        Rows and columns.
    dtype
        In the file's byte order.
    image
        Number of the frame among those that lie behind one another at the directory's pixels.
    """

    directory: Directory
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    compression: int
    image: int = 0

    @property
    def plain(self) -> bool:
        """Whether the pixels lie in the file as they are, row by row."""
        return self.compression == UNCOMPRESSED and TILE_OFFSETS not in self.directory

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize


Places = tuple[tuple[int, int], ...]
"""Of each frame of a file the byte of its directory, and its number among the images at that directory's pixels."""


def page_of(directory: Directory, image: int = 0) -> Page:
    """Return what a directory says of its pixels.

    Raises
    ------
    FrameError
        They are of a kind that is not read, which is named, or more than a frame may have.
    """
    if ROWS not in directory or COLUMNS not in directory:
        raise damaged("its directory has no size")
    rows, columns = directory.number(ROWS, 0), directory.number(COLUMNS, 0)
    samples, photometric = directory.number(SAMPLES, 1), directory.number(PHOTOMETRIC, 1)
    compression, orientation = directory.number(COMPRESSION, UNCOMPRESSED), directory.number(ORIENTATION, 1)
    if samples != 1 or photometric not in (0, 1):
        kind = _PHOTOMETRIC_NAMES.get(photometric, "" if photometric in (0, 1) else f"photometric {photometric}")
        raise FrameError(f"{kind or 'multi-channel'} TIFF of {_counted(samples, 'sample')} per pixel is not supported")
    if compression not in _READABLE_COMPRESSIONS:
        name = _COMPRESSION_NAMES.get(compression, f"by method {compression}")
        raise FrameError(f"{name}-compressed TIFF is not supported" if name[:2] != "by" else f"TIFF compressed {name}")
    bits, sample_format = directory.number(BITS, 1), directory.number(SAMPLE_FORMAT, 1)
    kind = _DTYPE_KINDS.get(sample_format, "")
    if not kind:
        raise FrameError(f"TIFF of {'complex numbers' if sample_format in (5, 6) else 'an unknown number format'} "
                         "is not supported")  # fmt: skip
    if bits not in _DTYPE_BITS[kind]:
        raise FrameError(f"{bits}-bit {'floating-point ' if kind == 'f' else ''}TIFF is not supported")
    if orientation in _ORIENTATION_CORNERS:
        raise FrameError(
            f"TIFF of orientation {orientation} (first pixel {_ORIENTATION_CORNERS[orientation]}) is not supported: "
            "programs differ on whether to turn it; write it with orientation 1"
        )
    if directory.number(FILL_ORDER, 1) != 1:
        raise FrameError("TIFF of reversed bits (fill order 2) is not supported")
    if directory.number(DEPTH, 1) != 1 or directory.length(UIC2) > 1:
        raise FrameError("TIFF of a volume in one page (MetaMorph STK, SGI) is not supported")
    dtype = np.dtype(f"{directory.container.order}{kind}{bits // 8}")
    require_frame((rows, columns), dtype)
    return Page(directory, (rows, columns), dtype, compression, image)


def points(container: Container) -> Places:
    """Return which pages of a file are frames.

    Raises
    ------
    FrameError
        The file is damaged, or holds several series of images.
    """
    first = container.directory(container.first)
    text = first.text(DESCRIPTION) if DESCRIPTION in first else ""
    if "<OME" in text and (series := len(_OME_IMAGE.findall(text))) > 1:
        raise FrameError(f"OME-TIFF of {series} series of images: write each into a file of its own")
    behind = 1 if first.link else _images_behind(container, first, text)
    if not first.link and behind == 1:
        return ((first.start, 0),)
    labels = _labels(first) if text.startswith("ImageJ=") else []
    if behind > 1:
        images = [Note((0, 0), no_point=False)] * behind
        return tuple((first.start, i) for i in chosen_pages(images, labels))
    pages = [(one.start, _note(one)) for one in container.directories()]
    return tuple((pages[i][0], 0) for i in chosen_pages([note for _, note in pages], labels))


class Note(NamedTuple):
    """What tells whether a page is a frame: its kind (rows and columns first), and whether it says that it is none."""

    kind: tuple[int, ...]
    no_point: bool


def chosen_pages(notes: Sequence[Note], labels: Sequence[str] = ()) -> list[int]:
    """Return the numbers of the pages that are frames.

    A page is none if it says so, as a reduced image or a mask, or in its name; or if it is no larger than the frames,
    of another shape or dtype, and such pages are a block at one end or come at regular intervals. Any other odd page is
    counted, to be set aside at its own place: without it, all later frames would move.
    """
    marked = [one.no_point or (i < len(labels) and is_no_point(labels[i])) for i, one in enumerate(notes)]
    if all(marked):
        marked = [False] * len(notes)
    counts = Counter(one.kind for one, odd in zip(notes, marked, strict=True) if not odd)
    area = {kind: kind[0] * kind[1] for kind in counts}
    usual = max(counts, key=lambda kind: (counts[kind], area[kind]))
    rest = [i for i, odd in enumerate(marked) if not odd]
    frames = [n for n, i in enumerate(rest) if notes[i].kind == usual]
    odd_kinds = [kind for kind in counts if kind != usual]
    if odd_kinds and all(area[kind] <= area[usual] for kind in odd_kinds) and _regular(frames, len(rest)):
        return [rest[n] for n in frames]
    return rest


def _regular(frames: Sequence[int], count: int) -> bool:
    """Whether places among `count` are a block at the beginning or end, or come at regular intervals."""
    if frames[-1] - frames[0] == len(frames) - 1:
        return frames[0] == 0 or frames[-1] == count - 1
    period, rest = divmod(count, len(frames))
    return rest == 0 and list(frames) == list(range(frames[0], count, period)) and frames[0] < period


def is_no_point(name: str) -> bool:
    """Return whether the name of a page is one of a mask, a variance, a thumbnail and the like."""
    return len(name.split()) <= MAX_NAME_WORDS and bool(_NOT_A_FRAME_NAME.search(name.replace("_", " ")))


def _note(directory: Directory) -> Note:
    flagged = directory.number(SUBFILE, 0) & _REDUCED_OR_MASK_BITS or directory.number(OLD_SUBFILE, 1) == _OLD_REDUCED
    kind = tuple(
        directory.number(tag, default)
        for tag, default in ((ROWS, 0), (COLUMNS, 0), (BITS, 1), (SAMPLE_FORMAT, 1), (SAMPLES, 1))
    )
    named = any(
        is_no_point(directory.text(tag))
        for tag in (PAGE_NAME, DESCRIPTION)
        if 0 < directory.length(tag) <= _MAX_NAME_BYTES
    )
    return Note(kind, bool(flagged) or named)


_MAX_NAME_BYTES = 64
"""Bytes of a name; what is longer is a header."""


def _images_behind(container: Container, directory: Directory, text: str) -> int:
    """Frames at the pixels of a file's only directory, as ImageJ and others write long stacks."""
    count = 1
    if text.startswith("ImageJ="):
        counts = {name: int(number) for name, number in _IMAGEJ_COUNTS.findall(text)}
        product = counts.get("channels", 1) * counts.get("slices", 1) * counts.get("frames", 1)
        count = counts.get("images", product)
    elif found := _SHAPED_DESCRIPTION.match(text):
        sides = [int(side) for side in found[1].replace(" ", "").split(",") if side]
        count = int(np.prod(sides[:-2], dtype=object)) if len(sides) > 2 else 1
    if count <= 1:
        return 1
    page = page_of(directory)
    if not page.plain or STRIP_OFFSETS not in directory:
        return 1
    begin = directory.number(STRIP_OFFSETS, 0)
    # Who copies one image of a stack often copies its description, too.
    if container.size < begin + 2 * page.nbytes:
        return 1
    if count > MAX_DIRECTORIES:
        raise damaged(f"its description claims {count} images")
    return count


def _labels(directory: Directory) -> list[str]:
    """The names that ImageJ gives to the images of a stack."""
    length = directory.length(IMAGEJ_SIZES)
    if IMAGEJ not in directory or not 1 < length <= MAX_DIRECTORIES:
        return []
    order = directory.container.order
    sizes = directory.numbers(IMAGEJ_SIZES, length)
    content = directory.content(IMAGEJ)
    kinds = [
        (
            content[i : i + 4] if order == ">" else content[i : i + 4][::-1],
            struct.unpack_from(order + "I", content, i + 4),
        )
        for i in range(4, min(sizes[0], len(content)) - 7, 8)
    ]
    labels: list[str] = []
    place, number = sizes[0], 1
    for kind, (count,) in kinds:
        for size in sizes[number : number + count]:
            if kind == b"labl":
                labels.append(
                    content[place : place + size].decode("utf-16" + ("le" if order == "<" else "be"), "replace")
                )
            place += size
        number += count
    return labels


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
