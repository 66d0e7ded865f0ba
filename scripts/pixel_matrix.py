#!/usr/bin/env python
"""Frames of every kind in every format, read by laue_dask and by another reader: are the pixels those of the file?

    scripts/pixel_matrix.py [--cells 2000] [--seed 0] [--only FORMAT ...]

A cell is one small file: TIFF by dtype, byte order, compression, predictor, strips or tiles, orientation tag, pages and
damage; EDF, CBF, MarCCD and d*TREK by the like. It is *equal* if every pixel of every frame is the one that was written
and that tifffile or fabio reads; *refused* if it is of a kind that is not read, which is named; *set aside* if it was
damaged, and "truncated" only where it was cut. Anything else is WRONG. Exit code 1 if a cell is.
"""

import argparse
import base64
import bz2
import gzip
import hashlib
import io
import logging
import re
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import fabio
import numpy as np
import tifffile

from laue_dask.errors import FrameError
from laue_dask.io.frames import discover, frame_info, load

Rng = np.random.Generator
SHAPES = ((37, 53), (16, 16), (64, 48), (1, 300), (200, 33))
OUTCOMES = ("equal", "refused", "set aside", "WRONG")


@dataclass
class Cell:
    """One file: its name and content, the frames that it holds, and what may be said of it.

    Attributes
    ----------
    what
        How it was made, for people.
    refused
        What the reason must say if it is of a kind that is not read; empty if it is one that is.
    cut
        Whether bytes are missing at its end.
    damaged
        Whether other bytes than at its end were changed.
    witness
        Reads all frames by another reader; None where there is none.
    """

    what: str
    name: str
    content: bytes
    frames: list[np.ndarray]
    refused: str = ""
    cut: bool = False
    damaged: bool = False
    witness: Callable[[Path], list[np.ndarray]] | None = None


class Verdict(NamedTuple):
    """One of `OUTCOMES`, and what was found."""

    outcome: str
    told: str


def judge(cell: Cell, folder: Path) -> Verdict:
    """Read a cell's file and hold what comes of it against what should."""
    path = folder / cell.name
    path.write_bytes(cell.content)
    try:
        return _judged(cell, path)
    finally:
        path.unlink()


def _judged(cell: Cell, path: Path) -> Verdict:
    whole = not (cell.cut or cell.damaged)
    refs = discover(str(path))
    reasons: list[str] = []
    read: list[np.ndarray | None] = []
    for ref in refs:
        try:
            frame, info = load(ref)
            told = frame_info(ref)
            if (told.shape, told.dtype) != (frame.shape, frame.dtype) or told != info:
                return Verdict("WRONG", f"frame_info tells {told}, load {info}")
            read.append(frame)
        except FrameError as error:
            reasons.append(str(error))
            read.append(None)
    for reason in reasons:
        if "\n" in reason or not reason.isprintable():
            return Verdict("WRONG", f"more than a line: {reason!r}")
    if cell.refused and whole:
        right = bool(reasons) and all(re.search(cell.refused, reason) for reason in reasons)
        return Verdict("refused" if right else "WRONG", reasons[0] if reasons else "was read")
    for reason in reasons:
        if whole:
            return Verdict("WRONG", f"is whole and readable, but: {reason}")
        if "truncated" in reason and not cell.cut and not cell.damaged:
            return Verdict("WRONG", f"was not cut, but: {reason}")
        if (
            cell.cut
            and not cell.damaged
            and not re.search(f"truncated|is empty|holds|{cell.refused or '(?!)'}", reason)
        ):
            return Verdict("WRONG", f"was cut, but: {reason}")
    if whole or not cell.damaged:
        if len(read) != len(cell.frames) and (whole or (not reasons and len(read) > len(cell.frames))):
            return Verdict("WRONG", f"{len(read)} frames, {len(cell.frames)} were written")
        if any(_differ(frame, true) for frame, true in zip(read, cell.frames, strict=False) if frame is not None):
            return Verdict("WRONG", "pixels are not those that were written")
    if cell.witness is not None and any(frame is not None for frame in read):
        try:
            seen = cell.witness(path)
        except Exception as error:
            seen = []
            if whole:
                return Verdict("WRONG", f"the other reader fails: {error!r}"[:200])
        if any(_differ(frame, other) for frame, other in zip(read, seen, strict=False) if frame is not None):
            return Verdict("WRONG", "pixels are not those that the other reader sees")
    return Verdict("set aside", reasons[0]) if reasons else Verdict("equal", "")


def _differ(frame: np.ndarray, true: np.ndarray) -> bool:
    return (
        frame.shape != true.shape
        or frame.dtype != true.dtype
        or not np.array_equal(frame, true, equal_nan=_floats(true))
    )


def _floats(values: np.ndarray) -> bool:
    return values.dtype.kind == "f"


def pixels(rng: Rng, dtype: str, shape: tuple[int, int]) -> np.ndarray:
    """Counts, and some values at the ends of the dtype; of floats some that are none."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        values = rng.poisson(20, shape).astype(kind) + rng.normal(0, 1, shape).astype(kind)
        special = [np.nan, np.inf, -np.inf, 0, np.finfo(kind).max, np.finfo(kind).tiny]
        values.flat[rng.integers(0, values.size, len(special))] = special
        return values
    if kind.kind == "b":
        return rng.random(shape) < 0.3
    if kind.kind == "c":
        return (rng.normal(0, 1, shape) + 1j * rng.normal(0, 1, shape)).astype(kind)
    limit = np.iinfo(kind)
    values = rng.poisson(20, shape).astype(kind)
    some = rng.integers(0, values.size, 8)
    values.flat[some] = rng.integers(limit.min, limit.max, 8, dtype=kind, endpoint=True)
    values.flat[some[:2]] = limit.min, limit.max
    return values


def _choice(rng: Rng, options: Any) -> Any:
    return options[rng.integers(len(options))]


def _damage(rng: Rng, cell: Cell, share: float = 0.25, *, first: int = 0) -> Cell:
    """Cut some of the cells, and change bytes of others."""
    drawn = rng.random()
    if drawn < share / 2:
        cut = int(rng.integers(0, len(cell.content)))
        cell.what += f" cut at {cut} of {len(cell.content)}"
        cell.content, cell.cut = cell.content[:cut], True
    elif drawn < share:
        content = bytearray(cell.content)
        at = int(rng.integers(min(first, len(content) - 1), len(content)))
        content[at] ^= 1 << int(rng.integers(8))
        cell.what += f" bit flipped at {at} of {len(content)}"
        cell.content, cell.damaged = bytes(content), True
    return cell


def _packed(rng: Rng, cell: Cell, share: float = 0.12) -> Cell:
    drawn = rng.random()
    if drawn < share:
        suffix, pack = (".gz", gzip.compress) if drawn < share / 2 else (".bz2", bz2.compress)
        cell.name, cell.content, cell.witness = cell.name + suffix, pack(cell.content), None
        cell.what += suffix
    return cell


# TIFF

READ_DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
READ_COMPRESSIONS = (None, "lzw", "zlib", "adobe_deflate", "packbits", "zstd", "lzma")
NAMED = {
    "JPEG": (6, 7), "JPEG-2000": (33003, 33005, 34712), "WebP": (50001,), "LERC": (34887,), "PNG": (34933,),
    "JPEG-XL": (50002, 52546), "CCITT-T.4": (3,), "CCITT-T.6": (4,), "JPEG-XR": (34934,), "PixarLog": (32909,),
}  # fmt: skip
SPARE_TAG = 65100
"""Written in place of a tag that tifffile does not write, and renamed."""


def _tifffile_frames(path: Path) -> list[np.ndarray]:
    with tifffile.TiffFile(path) as file:
        return [np.asarray(page.asarray()).astype(page.dtype.newbyteorder("=")) for page in file.pages]


def tiff_cell(rng: Rng) -> Cell:
    """A page or several of one kind, of all kinds that tifffile writes."""
    dtype, order = _choice(rng, READ_DTYPES), _choice(rng, "<>")
    compression = _choice(rng, READ_COMPRESSIONS)
    predictors = [1, 1, 2] if dtype[0] != "f" else [1, 3]
    predictor = _choice(rng, predictors) if compression in ("lzw", "zlib", "adobe_deflate", "zstd", "lzma") else 1
    shape, count = _choice(rng, SHAPES), int(_choice(rng, (1, 1, 1, 2, 5)))
    frames = [pixels(rng, dtype, shape) for _ in range(count)]
    given: dict[str, Any] = {"compression": compression, "metadata": None, "photometric": "minisblack"}
    if predictor != 1:
        given["predictor"] = predictor
    layout = _choice(rng, ("one strip", "strips", "strips", "tiles"))
    if layout == "strips":
        given["rowsperstrip"] = int(_choice(rng, (1, 3, 8, 16, 1000)))
    elif layout == "tiles":
        given["tile"] = _choice(rng, ((16, 16), (32, 16), (64, 64), (16, 128)))
    if rng.random() < 0.15:
        given["photometric"] = "miniswhite"
    orientation = int(_choice(rng, (0, 0, 0, 0, 1, 1, *range(2, 9)))) if rng.random() < 0.5 else 0
    if orientation:
        given["extratags"] = [(274, 3, 1, orientation, True)]
    big = bool(rng.random() < 0.2)
    held = io.BytesIO()
    with tifffile.TiffWriter(held, byteorder=order, bigtiff=big) as writer:
        for frame in frames:
            writer.write(frame, contiguous=False, **given)
    what = f"{order}{dtype} {shape} × {count} {compression} predictor {predictor} {layout} {given.get('tile', '')}"
    what += f" orientation {orientation} {'BigTIFF' if big else ''} {given['photometric']}"
    refused = f"orientation {orientation}" if orientation > 1 else ""
    cell = Cell(what, f"a_1{_choice(rng, ('.tif', '.tiff', '.TIF'))}", held.getvalue(), frames, refused)
    cell.witness = _tifffile_frames
    return _damage(rng, _packed(rng, cell))


def unreadable_tiff_cell(rng: Rng) -> Cell:
    """Kinds that are not read: to be named."""
    shape = _choice(rng, SHAPES[:3])
    given: dict[str, Any] = {"metadata": None, "photometric": "minisblack"}
    kind = _choice(
        rng, (*NAMED, "f2", "bool", "12-bit", "rgb", "planar", "palette", "complex", "alpha", "fill", "depth")
    )
    frame, refused = pixels(rng, "u1", shape), f"^{kind}-compressed TIFF is not supported"
    match kind:
        case "f2":
            frame, refused = pixels(rng, "f2", shape), "16-bit floating-point TIFF is not supported"
        case "bool":
            frame, refused = pixels(rng, "?", shape), "1-bit TIFF is not supported"
        case "12-bit":
            frame, refused = pixels(rng, "u2", shape) & 4095, "12-bit TIFF is not supported"
            given["bitspersample"] = 12
        case "complex":
            frame, refused = pixels(rng, "c8", shape), "complex numbers is not supported"
        case "rgb" | "planar" | "alpha":
            colours = 2 if kind == "alpha" else 3
            refused = f"of {colours} samples per pixel is not supported"
            frame = np.stack([frame] * colours, axis=0 if kind == "planar" else -1)
            given |= {"photometric": "minisblack" if kind == "alpha" else "rgb"}
            given |= {"planarconfig": "separate" if kind == "planar" else "contig"}
        case "palette":
            given |= {"photometric": "palette", "colormap": np.zeros((3, 256), "u2")}
            refused = "palette-colour TIFF"
        case "fill" | "depth":
            given["extratags"] = [(SPARE_TAG, 3, 1, 2, True)]
            refused = "fill order 2" if kind == "fill" else "volume in one page"
    held = io.BytesIO()
    order = _choice(rng, "<>")
    tifffile.imwrite(held, frame, byteorder=order, **given)
    content = bytearray(held.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as file:
        tags = file.pages[0].tags
        if kind in NAMED:
            struct.pack_into(order + "H", content, tags[259].valueoffset, _choice(rng, NAMED[kind]))
        elif kind in ("fill", "depth"):
            struct.pack_into(order + "H", content, tags[SPARE_TAG].offset, 266 if kind == "fill" else 32997)
    return Cell(f"{kind} {shape}", "a_1.tif", bytes(content), [frame], refused)


def pages_cell(rng: Rng) -> Cell:
    """Pages that are no frames beside those that are, and stacks behind one directory."""
    dtype, order, shape = _choice(rng, ("u2", "i4", "f4", "u1")), _choice(rng, "<>"), _choice(rng, ((64, 48), (40, 40)))
    kind = _choice(rng, ("thumbnail", "small", "mask", "variance", "imagej", "hyperstack", "labels", "shaped", "ome",
                         "series", "subifd", "interleaved", "odd"))  # fmt: skip
    count = int(_choice(rng, (1, 2, 5)))
    frames = [pixels(rng, dtype, shape) for _ in range(count)]
    held, refused = io.BytesIO(), ""
    given: dict[str, Any] = {"metadata": None, "photometric": "minisblack", "contiguous": False}
    if kind in ("imagej", "hyperstack", "labels"):
        dtype = "u2" if dtype == "i4" else dtype
        count = max(count, 2) * 2
        frames = [pixels(rng, dtype, shape) for _ in range(count)]
        stack, metadata = np.stack(frames), {"axes": "TYX"}
        if kind == "hyperstack":
            stack, metadata = stack.reshape(count // 2, 2, *shape), {"axes": "TZYX"}
        if kind == "labels":
            metadata["Labels"] = [f"point {i}" for i in range(count - 1)] + ["variance"]
            frames = frames[:-1]
        tifffile.imwrite(held, stack, imagej=True, byteorder=order, metadata=metadata)
        return Cell(f"{kind} {order}{dtype} × {count}", "a_1.tif", held.getvalue(), frames)
    if kind == "shaped":
        tifffile.imwrite(
            held, np.stack([*frames, frames[0]]), byteorder=order, photometric="minisblack", metadata={"truncate": True}
        )
        return Cell(f"shaped {order}{dtype}", "a_1.tif", held.getvalue(), [*frames, frames[0]])
    with tifffile.TiffWriter(held, byteorder=order, ome=kind in ("ome", "series")) as writer:
        if kind in ("ome", "series"):
            if kind == "ome":
                writer.write(np.stack(frames * 2), photometric="minisblack", metadata={"axes": "TYX"})
                frames = frames * 2
            else:
                refused = "OME-TIFF of 2 series"
                for _ in range(2):
                    writer.write(np.stack(frames * 2), photometric="minisblack", metadata={"axes": "TYX"})
        for i, frame in enumerate(frames if kind not in ("ome", "series") else []):
            writer.write(frame, **given, subifds=1 if kind == "subifd" else None)
            if kind == "subifd":
                writer.write(frame[::2, ::2], **given, subfiletype=1)
            if kind == "thumbnail":
                writer.write(frame[::4, ::4], **given, subfiletype=1)
            if kind == "interleaved":
                writer.write((frame > 3).astype("u1" if dtype != "u1" else "u2"), **given)
            if kind == "odd" and i == 0:
                # In the middle of a stack: counted, and set aside by its shape.
                writer.write(frame[:, :-9], **given)
        if kind == "small":
            writer.write(frames[0][:8, :8], **given)
        if kind == "mask":
            writer.write(np.zeros(shape, "u1"), **given, description="detector mask")
        if kind == "variance":
            writer.write(
                frames[0] * 0, **given, extratags=[(285, 2, 0, _choice(rng, ("variance", "Sigma", "mask")), True)]
            )
    if kind == "odd":
        frames = [frames[0], np.ascontiguousarray(frames[0][:, :-9]), *frames[1:]] if count > 1 else frames
    return Cell(f"{kind} {order}{dtype} {shape} × {count}", "a_1.tif", held.getvalue(), frames, refused)


def detector_tiff_cell(rng: Rng) -> Cell:
    """TIFF as detectors' software writes it: wrong byte counts, strips that were never written, MarCCD headers."""
    order, dtype, shape = _choice(rng, "<>"), _choice(rng, ("u2", "i4")), _choice(rng, SHAPES[:3])
    frame = pixels(rng, dtype, shape)
    content = frame.astype(order + dtype).tobytes()
    kind = _choice(rng, ("right", "wrong counts", "no counts", "unwritten", "marccd", "marccd"))
    lengths = {"wrong counts": int(_choice(rng, (0, 1, 7, 2**31)))}.get(kind, len(content))
    offset = 0 if kind == "unwritten" else 4096
    rows, columns = shape
    tags = [(256, 4, columns), (257, 4, rows), (258, 3, 8 * frame.itemsize), (259, 3, 1), (262, 3, 1), (273, 4, offset)]
    tags += [(277, 3, 1), (278, 4, rows), (339, 3, 2 if dtype[0] == "i" else 1)]
    tags += [] if kind == "no counts" else [(279, 4, lengths)]
    head = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8) + struct.pack(order + "H", len(tags))
    for tag, form, value in sorted(tags):
        packed = struct.pack(order + ("I" if form == 4 else "H"), value).ljust(4, b"\0")
        head += struct.pack(order + "HHI", tag, form, 1) + packed
    head = (head + bytes(4)).ljust(4096, b"\0")
    name, witness = "a_1.tif", _tifffile_frames
    if kind == "marccd":
        own = _choice(rng, "<>")
        marccd = bytearray(head)
        struct.pack_into(own + "I4s", marccd, 1024, 2, b"MMX\0")
        struct.pack_into(own + "II", marccd, 1052, 1234 if own == "<" else 4321, 1234 if order == "<" else 4321)
        struct.pack_into(own + "i", marccd, 1680, 300)
        struct.pack_into(own + "i", marccd, 1796, 79180)
        head, name = bytes(marccd), "a_1.mccd"
        kind += f" header {own}"
    refused = "strip 1 of 1 was not written" if kind == "unwritten" else ""
    cell = Cell(f"detector {kind} {order}{dtype} {shape}", name, head + content, [frame], refused)
    cell.witness = witness if kind == "right" else None
    return _damage(rng, _packed(rng, cell), 0.3, first=4096)


# EDF

EDF_TYPES = {
    "u1": "UnsignedByte", "i1": "SignedByte", "u2": "UnsignedShort", "i2": "SignedShort", "u4": "UnsignedInteger",
    "i4": "SignedInteger", "u8": "Unsigned64", "i8": "Signed64", "f4": "FloatValue", "f8": "DoubleValue",
}  # fmt: skip


def _fabio_frames(path: Path) -> list[np.ndarray]:
    with fabio.open(str(path)) as image:
        # Of a file of one frame, fabio takes the next file for the next frame.
        return [np.array((image.getframe(i) if image.nframes > 1 else image).data) for i in range(image.nframes)]


def edf_cell(rng: Rng) -> Cell:
    """An EDF of one frame or several, with a header of any size."""
    dtype, order, shape = _choice(rng, tuple(EDF_TYPES)), _choice(rng, "<>"), _choice(rng, SHAPES)
    count = int(_choice(rng, (1, 1, 1, 2, 4)))
    frames = [pixels(rng, dtype, shape) for _ in range(count)]
    packing = _choice(rng, ("", "", "", "gzip", "zlib", "bzip2"))
    odd = _choice(rng, ("", "", "", "", "no DataType", "no ByteOrder", "Dim_3", "type", "OFFSET", "raster", "no size"))
    size = int(_choice(rng, (512, 1024, 4096, 20_000)))
    content, refused = b"", ""
    for i, frame in enumerate(frames):
        blob = frame.astype(order + dtype).tobytes()
        packed = {"gzip": gzip.compress, "zlib": zlib.compress, "bzip2": bz2.compress}.get(packing, bytes)(blob)
        keys = {
            "HeaderID": f"EH:{i + 1:06d}:000000:000000", "Image": str(i + 1),
            "ByteOrder": "LowByteFirst" if order == "<" else "HighByteFirst",
            "DataType": EDF_TYPES[dtype], "Dim_1": str(shape[1]), "Dim_2": str(shape[0]), "Size": str(len(packed)),
            "title": "a = b", "count_time": "0.5",
        }  # fmt: skip
        if packing:
            keys["COMPRESSION"] = {"gzip": "GzipCompression", "zlib": "ZCompression", "bzip2": "BzipCompression"}[
                packing
            ]
        match odd:
            case "no DataType":
                del keys["DataType"]
                refused = "it has no DataType"
            case "no ByteOrder":
                del keys["ByteOrder"]
                refused = "" if dtype[1] == "1" else "its ByteOrder is ''"
            case "Dim_3":
                keys["Dim_3"] = str(_choice(rng, ("1", "2")))
                refused = refused or ("not 2-D" if keys["Dim_3"] == "2" else "")
            case "type":
                keys["DataType"] = "QuadrupleValue"
                refused = "DataType 'QuadrupleValue' is not supported"
            case "OFFSET":
                keys["COMPRESSION"] = "ByteOffset"
                refused = "ByteOffset-compressed EDF is not supported"
            case "raster":
                keys["RasterConfiguration"] = "3"
                refused = "RasterConfiguration 3"
            case "no size" if not packing:
                del keys["Size"]
        head = "{\n" + "".join(f"{key} = {value} ;\n" for key, value in keys.items())
        content += (head.ljust(-(-len(head) // 512) * 512 + size - 514) + "}\n").encode() + packed
    if odd == "Dim_3" and count > 1:
        return edf_cell(rng)
    cell = Cell(f"{order}{dtype} {shape} × {count} {packing} {odd} header {size}", "a_1.edf", content, frames, refused)
    # fabio reads nothing where a key is missing, and takes what it does not know for something else.
    cell.witness = _fabio_frames if not odd and not packing else None
    cell = _packed(rng, cell)
    drawn = rng.random()
    if drawn < 0.15:
        cut = int(rng.integers(0, len(cell.content)))
        cell.what += f" cut at {cut} of {len(cell.content)}"
        cell.content, cell.cut = cell.content[:cut], True
    return cell


# CBF


def _byte_offset(values: np.ndarray) -> bytes:
    content = bytearray()
    before = 0
    for value in values.astype(object).ravel():
        step = int(value) - before
        before = int(value)
        if abs(step) < 128:
            content += struct.pack("<b", step)
        elif abs(step) < 2**15:
            content += b"\x80" + struct.pack("<h", step)
        elif abs(step) < 2**31:
            content += b"\x80\x00\x80" + struct.pack("<i", step)
        else:
            content += b"\x80\x00\x80\x00\x00\x00\x80" + struct.pack("<q", step)
    return bytes(content)


def cbf_cell(rng: Rng) -> Cell:
    """A CBF with or without checksum, of all types, damaged or of kinds that are not read."""
    dtype, shape = _choice(rng, ("i1", "u1", "i2", "u2", "i4", "i4", "u4", "i8")), _choice(rng, SHAPES)
    frame = pixels(rng, dtype, shape)
    if dtype == "i8":
        frame = np.clip(frame, -(2**60), 2**60)
    binary = _byte_offset(frame)
    odd = _choice(
        rng, ("", "", "", "", "short", "long", "no md5", "packed", "big", "base64", "type", "elements", "claim")
    )
    keys = {
        "Content-Type": "application/octet-stream;", "     conversions": '"x-CBF_BYTE_OFFSET"',
        "Content-Transfer-Encoding": "BINARY", "X-Binary-Size": str(len(binary)), "X-Binary-ID": "1",
        "X-Binary-Element-Type": f'"{"un" if dtype[0] == "u" else ""}signed {8 * frame.itemsize}-bit integer"',
        "X-Binary-Element-Byte-Order": "LITTLE_ENDIAN", "X-Binary-Number-of-Elements": str(frame.size),
        "X-Binary-Size-Fastest-Dimension": str(shape[1]), "X-Binary-Size-Second-Dimension": str(shape[0]),
        "X-Binary-Size-Padding": "4095",
    }  # fmt: skip
    refused = ""
    match odd:
        case "short":
            binary = binary[:-20]
            keys["X-Binary-Size"], refused = str(len(binary)), "hold fewer than|pixels in .* bytes"
        case "long":
            binary += b"\1\2\3"
            keys["X-Binary-Size"], refused = str(len(binary)), "hold more than"
        case "packed":
            keys["     conversions"], refused = '"x-CBF_PACKED"', "conversions 'x-CBF_PACKED' is not supported"
        case "big":
            keys["X-Binary-Element-Byte-Order"], refused = "BIG_ENDIAN", "BIG_ENDIAN' is not supported"
        case "base64":
            keys["Content-Transfer-Encoding"], refused = "BASE64", "BASE64' is not supported"
        case "type":
            keys["X-Binary-Element-Type"], refused = '"signed 32-bit real IEEE"', "real IEEE' pixels is not supported"
        case "elements":
            keys["X-Binary-Number-of-Elements"], refused = str(frame.size + 1), "its header claims"
        case "claim":
            keys |= {"X-Binary-Size-Fastest-Dimension": "60000", "X-Binary-Size-Second-Dimension": "60000"}
            keys["X-Binary-Number-of-Elements"], refused = str(60000**2), "its header claims 60000 × 60000"
    if odd != "no md5":
        keys["Content-MD5"] = base64.b64encode(hashlib.md5(binary, usedforsecurity=False).digest()).decode()
    text = "###CBF: VERSION 1.5, CBFlib v0.7.8 - PILATUS detectors\r\n\r\ndata_a\r\n\r\n"
    text += "_array_data.header_contents\r\n;\r\n"
    text += "# Exposure_time 0.5 s\r\n;\r\n\r\n_array_data.data\r\n;\r\n--CIF-BINARY-FORMAT-SECTION--\r\n"
    text += "".join(f"{key}{'=' if 'conversions' in key else ': '}{value}\r\n" for key, value in keys.items())
    head = text.encode() + b"\r\n\x0c\x1a\x04\xd5"
    content = head + binary + bytes(4095) + b"\r\n--CIF-BINARY-FORMAT-SECTION----\r\n;\r\n"
    cell = Cell(f"{dtype} {shape} {odd}", "a_1.cbf", content, [frame], refused)
    # fabio takes all that is not int32 for int64, and is wrong about differences of 8 bytes.
    cell.witness = _fabio_frames if dtype == "i2" and not odd else None
    if odd in ("", "no md5"):
        drawn = rng.random()
        if drawn < 0.3:
            cut = int(rng.integers(0, len(head) + len(binary)))
            cell.what += f" cut at {cut}"
            cell.content, cell.cut = content[:cut], True
        elif drawn < 0.5 and odd == "":
            at = int(rng.integers(len(head), len(head) + len(binary)))
            changed = bytearray(content)
            changed[at] ^= 1 << int(rng.integers(8))
            cell.what, cell.content, cell.refused = cell.what + f" bit flipped at {at}", bytes(changed), "checksum"
        return cell
    return _packed(rng, cell)


# d*TREK, by fabio


def dtrek_cell(rng: Rng) -> Cell:
    """A d*TREK image of Rigaku's software, which fabio reads."""
    dtype, order, shape = _choice(rng, ("u2", "i2", "i4", "u1")), _choice(rng, "<>"), _choice(rng, SHAPES[:3])
    frame = pixels(rng, dtype, shape)
    name = {"u2": "unsigned short int", "i2": "short int", "i4": "long int", "u1": "unsigned char"}[dtype]
    head = "{\nHEADER_BYTES=  512;\nDIM=2;\n"
    head += f"BYTE_ORDER={'little' if order == '<' else 'big'}_endian;\nData_type={name};\n"
    claim = bool(rng.random() < 0.15)
    head += f"SIZE1={60000 if claim else shape[1]};\nSIZE2={60000 if claim else shape[0]};\n"
    content = head.encode().ljust(510) + b"}\n" + frame.astype(order + dtype).tobytes()
    cell = Cell(
        f"{order}{dtype} {shape} claim {claim}", "a_1.img", content, [frame], "claims 60000 × 60000" if claim else ""
    )
    cell.witness = None if claim else _fabio_frames
    return _packed(rng, cell)


FORMATS: dict[str, Callable[[Rng], Cell]] = {
    "TIFF": tiff_cell,
    "TIFF, not read": unreadable_tiff_cell,
    "TIFF pages": pages_cell,
    "TIFF, MarCCD of detectors": detector_tiff_cell,
    "EDF": edf_cell,
    "CBF": cbf_cell,
    "d*TREK": dtrek_cell,
}
SHARES = {
    "TIFF": 8,
    "EDF": 3,
    "CBF": 3,
    "TIFF pages": 2,
    "TIFF, MarCCD of detectors": 2,
    "TIFF, not read": 1,
    "d*TREK": 1,
}


@dataclass
class Counts:
    """What was found: outcomes by format, and each cell that is wrong."""

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    wrong: list[str] = field(default_factory=list)


def cells(count: int, seed: int, only: list[str]) -> Iterator[tuple[str, Cell]]:
    """`count` cells, in shares of the formats."""
    names = [name for name in FORMATS if not only or name in only]
    order = [name for name in names for _ in range(SHARES[name])]
    for number in range(count):
        name = order[number % len(order)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield name, FORMATS[name](np.random.default_rng((seed, number)))


def run(count: int, seed: int, only: list[str]) -> Counts:
    """Judge `count` cells."""
    found = Counts()
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, cell) in enumerate(cells(count, seed, only)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                verdict = judge(cell, Path(folder))
            found.outcomes[name][verdict.outcome] += 1
            if verdict.outcome == "WRONG":
                found.wrong.append(f"{name} {number}: {cell.what}: {verdict.told}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], choices=list(FORMATS))
    given = parser.parse_args()
    begun = time.monotonic()
    found = run(given.cells, given.seed, given.only)
    print(f"{'':28s}" + "".join(f"{outcome:>11s}" for outcome in OUTCOMES))
    for name, counts in found.outcomes.items():
        print(f"{name:28s}" + "".join(f"{counts[outcome]:11d}" for outcome in OUTCOMES))
    total = sum(sum(counts.values()) for counts in found.outcomes.values())
    print(f"{total} cells, {len(found.wrong)} wrong, {time.monotonic() - begun:.0f} s")
    for line in found.wrong[:40]:
        print(line)
    sys.exit(bool(found.wrong))


if __name__ == "__main__":
    main()
