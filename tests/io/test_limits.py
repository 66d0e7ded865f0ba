"""A header is a claim: what it says is held against limits, the scan and the file before anything is allocated."""

import bz2
import gzip
import os
import struct
import time
import tracemalloc

import numpy as np
import pytest
import tifffile

from laue_dask.errors import FrameError
from laue_dask.io import limits
from laue_dask.io.frames import FrameRef, discover, frame_info, load
from laue_dask.io.limits import Expected, require_frame

MEMORY = 24 * 2**20
"""Bytes that refusing a file may take."""

EXPECTED = Expected((160, 160), np.dtype(np.uint16))


def sparse_tiff(path, side, bits=16):
    """A TIFF of `side`² pixels of which next to nothing is on the disk."""
    tags = [(256, side), (257, side), (258, bits), (259, 1), (262, 1), (273, 4096), (277, 1), (278, side)]
    tags += [(279, min(side * side * bits // 8, 2**32 - 1))]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in tags)
    with path.open("wb") as file:
        file.write(head + bytes(4))
        file.truncate(4096 + side * side * bits // 8)


def refused(read):
    """The reason for which a file is refused, quickly and in little memory."""
    begun = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(FrameError) as caught:
            read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY
    assert time.perf_counter() - begun < 20
    return str(caught.value)


def test_sparse_tiff_of_50000_squared_pixels_is_refused_before_it_is_allocated(tmp_path):
    sparse_tiff(tmp_path / "a.tif", 50_000)
    ref = FrameRef(str(tmp_path / "a.tif"))
    assert refused(lambda: frame_info(ref)).startswith("its header claims 50000 × 50000 pixels")
    assert refused(lambda: load(ref)).startswith("its header claims 50000 × 50000 pixels")
    assert refused(lambda: load(ref, expected=EXPECTED)).startswith("its header claims 50000 × 50000 pixels")


def test_frame_of_another_shape_than_the_scan_s_is_refused_before_it_is_allocated(tmp_path):
    sparse_tiff(tmp_path / "a.tif", 8_000)
    reason = refused(lambda: load(FrameRef(str(tmp_path / "a.tif")), expected=EXPECTED))
    assert reason == "shape (8000, 8000), the scan's is (160, 160)"


def test_file_that_takes_nothing_on_the_disk_is_no_frame(tmp_path):
    sparse_tiff(tmp_path / "a.tif", 8_000)
    if os.stat(tmp_path / "a.tif").st_blocks * 512 > 2**20:  # noqa: PTH116
        pytest.skip("no sparse files here")
    assert "on the disk" in refused(lambda: load(FrameRef(str(tmp_path / "a.tif"))))


def test_thousands_of_overlapping_directories_are_refused_at_once(tmp_path):
    count, entries = 2_000, 4_000
    content = bytearray(b"II*\0" + struct.pack("<I", 8)) + bytes(12 * entries + 14 * count)
    for i in range(count):
        place = 8 + 14 * i
        struct.pack_into("<H", content, place, entries)
        after = place + 2 + 12 * entries
        if after + 4 <= len(content):
            struct.pack_into("<I", content, after, 8 + 14 * (i + 1))
    (tmp_path / "a.tif").write_bytes(content)
    assert "TIFF" in refused(lambda: load(FrameRef(str(tmp_path / "a.tif"))))
    begun = time.perf_counter()
    assert len(discover(tmp_path / "a.tif")) == 1
    assert time.perf_counter() - begun < 5


def test_tags_of_absurd_length_are_not_read(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((32, 32), np.uint16), metadata=None, description="x" * 40)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        place = file.pages[0].tags["StripOffsets"].offset
    struct.pack_into("<I", content, place + 4, 2**30)
    (tmp_path / "a.tif").write_bytes(content)
    assert refused(lambda: load(FrameRef(str(tmp_path / "a.tif")))) == (
        "damaged TIFF: tag 273 has 1073741824 values, 1 are needed"
    )


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_packed_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch, suffix, pack):
    monkeypatch.setattr(limits, "UNPACKED_MARGIN_BYTES", 2**20)
    tifffile.imwrite(tmp_path / "a.tif", np.ones((160, 160), np.uint16))
    content = (tmp_path / "a.tif").read_bytes()
    path = tmp_path / f"a.tif{suffix}"
    path.write_bytes(pack(content + bytes(64 * 2**20)))
    assert refused(lambda: load(FrameRef(str(path)), expected=EXPECTED)).startswith("unpacks to more than 1 MiB")
    path.write_bytes(pack(content))
    np.testing.assert_array_equal(load(FrameRef(str(path)), expected=EXPECTED)[0], 1)
    assert frame_info(FrameRef(str(path))).shape == (160, 160)


@pytest.mark.parametrize("compression", ["zlib", "lzma", "zstd", "lzw", "packbits"])
def test_strip_that_unpacks_to_more_than_its_pixels_takes_no_more_memory(tmp_path, compression):
    tifffile.imwrite(
        tmp_path / "big.tif", np.zeros((3000, 8000), np.uint16), compression=compression, rowsperstrip=3000
    )
    content = bytearray((tmp_path / "big.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "big.tif") as file:
        tags = file.pages[0].tags
        for name, value in (("ImageLength", 100), ("RowsPerStrip", 100), ("ImageWidth", 100)):
            struct.pack_into("<H" if tags[name].dtype == 3 else "<I", content, tags[name].valueoffset, value)
    (tmp_path / "big.tif").write_bytes(content)
    tracemalloc.start()
    try:
        load(FrameRef(str(tmp_path / "big.tif")))
    except FrameError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.edf", b"{\nByteOrder = LowByteFirst ;\nDataType = FloatValue ;\nDim_1 = 60000 ;\nDim_2 = 60000 ;\n}\n"),
        ("a.img", b"{\nHEADER_BYTES=  512;\nDIM=2;\nData_type=long int;\nSIZE1=60000;\nSIZE2=60000;\n}\n".ljust(600)),
        ("a.mar3450", struct.pack("<ii", 1234, 60000) + bytes(4096)),
        ("a.sfrm", (b"FORMAT :        86" + b"NROWS  :60000 NCOLS  :60000").ljust(8192)),
        (
            "a.esperanto",
            b"ESPERANTO FORMAT   1 CONSISTING OF   25 LINES\r\nIMAGE 60000 60000 1 1 AGI_BITFIELD\r\n".ljust(9000),
        ),
    ],
)
def test_size_that_a_header_claims_is_looked_at_before_it_is_allocated(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert "claims 60000 × 60000 pixels" in refused(lambda: load(FrameRef(str(tmp_path / name))))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((160,), "u2", "not 2-D"),
        ((0, 160), "u2", "claims 0 × 160"),
        ((160, 161), "u2", r"shape \(160, 161\), the scan's is \(160, 160\)"),
        ((160, 160), "i2", "dtype int16, the scan's is uint16"),
    ],
)
def test_frame_that_is_not_the_expected_one_is_refused_with_both_values(shape, dtype, message):
    with pytest.raises(FrameError, match=message):
        require_frame(shape, dtype, EXPECTED)
    require_frame((160, 160), ">u2", EXPECTED)
