import gzip
import logging
import struct
import threading
import warnings
from pathlib import Path

import fabio
import h5py
import hdf5plugin
import numpy as np
import pytest
import tifffile
from fabio.cbfimage import CbfImage
from fabio.edfimage import EdfImage
from fabio.tifimage import TifImage
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from laue_dask.errors import FrameError, InputError
from laue_dask.io import headers
from laue_dask.io.folder_contents import natural_key
from laue_dask.io.frames import FrameRef, discover, frame_info, read_frame, read_position

REAL = [
    ("frames/als_1232/SiHyperlaueFinal_1_00001.tif", (1043, 981), "int32", (6560.0, 6000.0), 172.0, 2.5),
    ("frames/als_1232/SiHyperlaueFinal_1_00002.tif", (1043, 981), "int32", (7600.0, 6000.0), 172.0, 2.5),
    ("frames/esrf_bm32/nw1_0000.tif", (2018, 2016), "uint16", (1752.1, 1074.7), None, 1.0),
    ("frames/esrf_bm32/nw1_0001.tif", (2018, 2016), "uint16", (1753.4, 1089.4), None, 1.0),
    ("frames/esrf_bm32/AH12_CMT_r14_0200.tif", (2018, 2016), "uint16", (-7891.0, -5102.0), None, 0.4),
    ("frames/esrf_bm32/Ge_blanc_0000.mccd", (2048, 2048), "uint16", (-51650.0, -30245.0), 79.18, 0.3),
    ("layouts/strain_0000.edf", (2048, 2048), "uint16", None, None, 5.0),
]


@pytest.fixture
def frame():
    rng = np.random.default_rng(1)
    frame = rng.poisson(3, (96, 80)).astype(np.int32)
    frame[3, 4], frame[50, 60] = -2, 1_000_000
    return frame


@pytest.fixture
def stack():
    return np.random.default_rng(2).integers(0, 60_000, (5, 64, 48), dtype=np.uint16)


def write_h5(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name.replace("__", "/")] = values
    return str(path)


# Real files


@pytest.mark.parametrize(("name", "shape", "dtype", "position", "pixel", "exposure"), REAL)
def test_real_frame_is_read_with_its_header(data_dir, name, shape, dtype, position, pixel, exposure):
    (ref,) = discover(data_dir / name)
    frame, info = read_frame(ref), frame_info(ref)
    assert (frame.shape, frame.dtype) == (shape, np.dtype(dtype))
    assert (info.shape, info.dtype) == (shape, np.dtype(dtype))
    assert (info.position, info.pixel_size_um, info.exposure_s) == (position, pixel, exposure)
    assert read_position(ref) == position


@pytest.mark.parametrize("name", [row[0] for row in REAL])
def test_real_frame_has_the_pixels_that_fabio_reads(data_dir, name):
    with fabio.open(str(data_dir / name)) as image:
        np.testing.assert_array_equal(read_frame(FrameRef(str(data_dir / name))), image.data)


@pytest.mark.parametrize("name", [row[0] for row in REAL])
@pytest.mark.parametrize("share", [0.9999, 0.5, 0.0005, 0.00001, 0.0])
def test_truncated_copy_of_a_real_frame_is_refused(data_dir, tmp_path, name, share, capfd):
    whole = (data_dir / name).read_bytes()
    copy = tmp_path / Path(name).name
    copy.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(FrameError, match=r"truncated|empty"):
        read_frame(FrameRef(str(copy)))
    assert read_position(FrameRef(str(copy))) is None
    assert capfd.readouterr() == ("", "")


def test_real_als_detector_is_named(data_dir):
    assert frame_info(FrameRef(str(data_dir / REAL[0][0]))).detector == "PILATUS 1M"


def test_real_bliss_layout_is_found_without_a_path(data_dir):
    path = data_dir / "layouts" / "strain.hdf5"
    refs = discover(path)
    assert [str(ref) for ref in refs] == [f"{path}::/1.1/instrument/my_detector/data[{i}]" for i in (0, 1)]
    with h5py.File(path) as file:
        expected = file["1.1/instrument/my_detector/data"][1]
    np.testing.assert_array_equal(read_frame(refs[1]), expected)
    assert frame_info(refs[1]).shape == (512, 512)
    assert read_position(refs[1]) is None


def test_real_folder_of_two_kinds_asks_for_a_glob(data_dir):
    with pytest.raises(InputError, match=r"3 \.tif, 1 \.mccd.*glob"):
        discover(data_dir / "frames" / "esrf_bm32")
    assert len(discover(data_dir / "frames" / "esrf_bm32" / "nw1_*.tif")) == 2


# Formats, written and read


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_keeps_every_dtype_in_native_byte_order(tmp_path, dtype, order):
    tifffile_like = np.arange(60 * 40).reshape(60, 40).astype(dtype)
    path = tmp_path / "a.tif"
    kind = {"u": 1, "i": 2, "f": 3}[np.dtype(dtype).kind]
    data = tifffile_like.astype(np.dtype(dtype).newbyteorder(order)).tobytes()
    tags = [(256, 40), (257, 60), (258, np.dtype(dtype).itemsize * 8), (259, 1), (273, 200), (277, 1), (278, 60)]
    tags += [(279, len(data)), (339, kind)]
    head = (b"II*\0" if order == "<" else b"MM\0*") + np.array(8, f"{order}u4").tobytes()
    body = np.array(len(tags), f"{order}u2").tobytes()
    for tag, value in tags:
        body += np.array([tag, 4], f"{order}u2").tobytes() + np.array([1, value], f"{order}u4").tobytes()
    path.write_bytes((head + body + b"\0\0\0\0").ljust(200, b"\0") + data)
    frame = read_frame(FrameRef(str(path)))
    np.testing.assert_array_equal(frame, tifffile_like)
    assert frame.dtype == np.dtype(dtype)
    assert frame.dtype.isnative


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_pillow_tiff_round_trip_with_and_without_compression(tmp_path, frame, compression):
    expected = np.abs(frame).astype(np.uint16)
    Image.fromarray(expected).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read_frame(FrameRef(str(tmp_path / "a.tif"))), expected)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", None])
@pytest.mark.parametrize("dtype", ["i2", "u4", "f4"])
def test_big_endian_tiff_has_the_pixels_of_the_file(tmp_path, frame, dtype, compression):
    predictor = compression in ("lzw", "zlib") and dtype != "f4"
    tifffile.imwrite(
        tmp_path / "a.tif", frame.astype(dtype), byteorder=">", compression=compression, predictor=predictor or None
    )
    np.testing.assert_array_equal(read_frame(FrameRef(str(tmp_path / "a.tif"))), frame.astype(dtype))


def test_white_is_zero_and_marccd_of_either_order_change_no_pixel(tmp_path, frame):
    tifffile.imwrite(tmp_path / "a.tif", frame.astype("u2"), photometric="miniswhite", compression="lzw")
    np.testing.assert_array_equal(read_frame(FrameRef(str(tmp_path / "a.tif"))), frame.astype("u2"))
    for order in "<>":
        head = bytearray(4096)
        head[1028:1031] = b"MMX"
        struct.pack_into(order + "I", head, 1052, 1234)
        struct.pack_into(order + "i", head, 1680, 300)
        struct.pack_into(order + "i", head, 1796, 79_180)
        found = headers.from_marccd(bytes(head))
        assert found is not None
        assert (found.exposure_s, found.pixel_size_um) == (0.3, 79.18)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff_cut_anywhere_is_refused(tmp_path, frame, compression):
    path = tmp_path / "a.tif"
    Image.fromarray(np.abs(frame).astype(np.uint16)).save(path, compression=compression)
    whole = path.read_bytes()
    # Nothing behind the last strip is needed, so the cuts end where the strips and the directory end.
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        end = max(offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True))
    for cut in [*range(64), *np.linspace(64, end - 1, 40).astype(int)]:
        path.write_bytes(whole[:cut])
        with pytest.raises(FrameError):
            read_frame(FrameRef(str(path)))


@pytest.mark.parametrize("suffix", [".tif", ".edf", ".cbf"])
def test_fabio_round_trip(tmp_path, frame, suffix):
    image = {".tif": TifImage, ".edf": EdfImage, ".cbf": CbfImage}[suffix]
    image(data=frame, header={}).write(str(tmp_path / f"a{suffix}"))
    (ref,) = discover(tmp_path)
    read = read_frame(ref)
    np.testing.assert_array_equal(read, frame)
    assert read.dtype == np.int32
    assert frame_info(ref).shape == frame.shape


@pytest.mark.parametrize("suffix", [".edf", ".cbf"])
@pytest.mark.parametrize("share", [0.999, 0.5, 0.02, 0.008, 0.001])
def test_edf_and_cbf_cut_short_are_refused_and_never_waited_for(tmp_path, frame, suffix, share):
    path = tmp_path / f"a{suffix}"
    {".edf": EdfImage, ".cbf": CbfImage}[suffix](data=frame, header={}).write(str(path))
    whole = path.read_bytes()
    end = len(whole) if suffix == ".edf" else whole.rindex(b"\r\n--CIF-BINARY") - 4096
    path.write_bytes(whole[: int(end * share)])
    with pytest.raises(FrameError, match="truncated"):
        read_frame(FrameRef(str(path)))


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"-FORMAT-SECTION", b"-FOFORMAT-SECTION"), (b"###CBF", b"#!?CBF"), (b"_array_data.data\r\n", b" " * 2**20)],
)
def test_cbf_whose_binary_section_fabio_would_look_for_in_vain_is_refused(tmp_path, frame, old, new):
    path = tmp_path / "a.cbf"
    CbfImage(data=frame, header={}).write(str(path))
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1).replace(b"X-Binary-Size:", b"X-Binary-Sighs:", old == b"###CBF"))
    with pytest.raises(FrameError, match="CBF"):
        read_frame(FrameRef(str(path)))


def test_edf_of_absurdly_many_dimensions_is_refused_and_not_counted_through(tmp_path, frame):
    path = tmp_path / "a.edf"
    EdfImage(data=frame, header={}).write(str(path))
    path.write_bytes(path.read_bytes().replace(b"Dim_2 =", b"dIm_99999999999999999 =", 1))
    with pytest.raises(FrameError, match="EDF"):
        read_frame(FrameRef(str(path)))
    assert discover(path) == [FrameRef(str(path))]


def test_flipped_bit_in_a_cbf_is_noticed(tmp_path, frame):
    path = tmp_path / "a.cbf"
    CbfImage(data=frame, header={}).write(str(path))
    content = bytearray(path.read_bytes())
    content[content.index(b"\x0c\x1a\x04\xd5") + 1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(FrameError, match="checksum"):
        read_frame(FrameRef(str(path)))


def test_gzipped_edf_is_read(tmp_path, frame):
    EdfImage(data=frame, header={}).write(str(tmp_path / "a.edf"))
    (tmp_path / "b.edf.gz").write_bytes(gzip.compress((tmp_path / "a.edf").read_bytes()))
    np.testing.assert_array_equal(read_frame(FrameRef(str(tmp_path / "b.edf.gz"))), frame)


def test_every_frame_of_a_multi_frame_edf_and_tiff_counts(tmp_path, stack):
    edf = EdfImage(data=stack[0], header={})
    for one in stack[1:]:
        edf.append_frame(data=one)
    edf.write(str(tmp_path / "a.edf"))
    pages = [Image.fromarray(one) for one in stack]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    for name in ("a.edf", "a.tif"):
        refs = discover(tmp_path / name)
        assert [ref.index for ref in refs] == [0, 1, 2, 3, 4]
        for ref, expected in zip(refs, stack, strict=True):
            np.testing.assert_array_equal(read_frame(ref), expected)
        with pytest.raises(FrameError, match="holds 5 frames"):
            read_frame(FrameRef(str(tmp_path / name)))
        with pytest.raises(FrameError, match="frame 5 is not in the file"):
            read_frame(FrameRef(str(tmp_path / name), index=5))


def test_bm32_position_of_2024_and_pilatus_cbf_header_are_read(tmp_path, frame):
    TifImage(data=np.abs(frame).astype(np.uint16), header={}).write(str(tmp_path / "a.tif"))
    image = Image.fromarray(np.abs(frame).astype(np.uint16))
    image.save(tmp_path / "b.tif", tiffinfo={270: "xech=7.858 yech=-20.463 mon=1e3"})
    assert read_position(FrameRef(str(tmp_path / "a.tif"))) is None
    assert read_position(FrameRef(str(tmp_path / "b.tif"))) == (-20463.0, 7858.0)
    lines = "\r\n# Detector: PILATUS 6M, S/N 60-0101\r\n# Pixel_size 172e-6 m x 172e-6 m\r\n# Exposure_time 0.5 s\r\n"
    header = {"_array_data.header_convention": "PILATUS_1.2", "_array_data.header_contents": lines}
    CbfImage(data=frame, header=header).write(str(tmp_path / "c.cbf"))
    info = frame_info(FrameRef(str(tmp_path / "c.cbf")))
    assert (info.detector, info.pixel_size_um, info.exposure_s) == ("PILATUS 6M", 172.0, 0.5)


def test_colour_image_is_not_a_frame(tmp_path):
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.tif")
    with pytest.raises(FrameError, match="RGB TIFF of 3 samples per pixel is not supported"):
        read_frame(FrameRef(str(tmp_path / "a.tif")))


def test_tiff_whose_directory_links_to_itself_is_refused(tmp_path, frame):
    path = tmp_path / "a.tif"
    Image.fromarray(np.abs(frame).astype(np.uint16)).save(path)
    content = bytearray(path.read_bytes())
    start = int.from_bytes(content[4:8], "little")
    link = start + 2 + 12 * int.from_bytes(content[start : start + 2], "little")
    content[link : link + 4] = content[4:8]
    path.write_bytes(content)
    with pytest.raises(FrameError, match="damaged TIFF"):
        read_frame(FrameRef(str(path)))


@given(content=st.binary(max_size=400), suffix=st.sampled_from([".tif", ".mccd", ".edf", ".cbf", ".h5", ".img"]))
def test_any_bytes_are_read_or_refused_with_a_reason(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"garbage{suffix}"
    path.write_bytes({".tif": b"II*\0\x08\0\0\0", ".cbf": b"###CBF: VERSION"}.get(suffix, b"") + content)
    with pytest.raises(FrameError):
        read_frame(FrameRef(str(path), "/entry/data/data" if suffix == ".h5" else None))


def test_vanished_file_and_folder_in_its_place_are_refused(tmp_path):
    with pytest.raises(FrameError, match="file vanished"):
        read_frame(FrameRef(str(tmp_path / "gone.tif")))
    with pytest.raises(FrameError):
        read_frame(FrameRef(str(tmp_path)))


def test_reading_a_damaged_file_neither_logs_nor_warns(tmp_path, frame, caplog):
    EdfImage(data=frame, header={}).write(str(tmp_path / "a.edf"))
    (tmp_path / "a.edf").write_bytes((tmp_path / "a.edf").read_bytes()[:-10])
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(FrameError):
            read_frame(FrameRef(str(tmp_path / "a.edf")))
    assert [record for record in caplog.records if record.name.startswith("fabio")] == []
    assert caught == []


def test_threads_read_the_same_file_together(tmp_path, stack):
    path = write_h5(tmp_path / "a.h5", entry__data__data=stack)
    refs = discover(path) * 20
    wrong = []

    def read(part):
        wrong.extend(ref for ref in part if not np.array_equal(read_frame(ref), stack[ref.index]))

    threads = [threading.Thread(target=read, args=(refs[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# HDF5


@pytest.mark.parametrize(
    "dataset",
    ["entry/data/data", "entry_0000/measurement/data", "1.1/measurement/eiger", "2.1/instrument/frelon/data"],
)
def test_stack_is_found_where_beamlines_put_it(tmp_path, stack, dataset):
    path = write_h5(tmp_path / "a.h5", **{dataset: stack, "1.1/measurement/mca": np.zeros((5, 4096))})
    refs = discover(path)
    assert refs == [FrameRef(path, f"/{dataset}", i) for i in range(5)]
    np.testing.assert_array_equal(read_frame(refs[3]), stack[3])


def test_links_to_one_dataset_are_one_candidate(tmp_path, stack):
    path = write_h5(tmp_path / "a.h5", **{"1.1/instrument/eiger/data": stack})
    with h5py.File(path, "a") as file:
        file["1.1/measurement/eiger"] = h5py.SoftLink("/1.1/instrument/eiger/data")
    assert len(discover(path)) == 5


def test_two_stacks_are_listed_and_a_path_chooses(tmp_path, stack):
    path = write_h5(tmp_path / "a.h5", **{"1.1/measurement/eiger": stack, "2.1/measurement/eiger": stack[:2]})
    with pytest.raises(InputError, match=r"2 scans.*/1\.1 \(5 frames of 64 × 48\).*/2\.1"):
        discover(path)
    assert len(discover(f"{path}::/2.1/measurement/eiger")) == 2
    with pytest.raises(InputError, match=r"no dataset '3\.1'.*it holds /1\.1"):
        discover(f"{path}::/3.1")


def test_eiger_master_with_filtered_data_files_reads_what_was_written(tmp_path, stack):
    for i, part in enumerate((stack[:3], stack[3:]), start=1):
        with h5py.File(tmp_path / f"x_data_{i:06d}.h5", "w") as file:
            file.create_dataset("entry/data/data", data=part, chunks=(1, 64, 48), compression=hdf5plugin.Bitshuffle())
    with h5py.File(tmp_path / "x_master.h5", "w") as file:
        for i in (1, 2, 3):
            file[f"entry/data/data_{i:06d}"] = h5py.ExternalLink(f"x_data_{i:06d}.h5", "entry/data/data")
        file["entry/instrument/detector/x_pixel_size"] = 75e-6
        file["entry/instrument/detector/count_time"] = 0.2
    refs = discover(tmp_path)
    assert len(refs) == 5
    np.testing.assert_array_equal([read_frame(ref) for ref in refs], stack)
    info = frame_info(refs[4])
    assert (info.pixel_size_um, info.exposure_s) == (75.0, 0.2)
    (tmp_path / "x_data_000001.h5").unlink()
    with pytest.raises(InputError, match="data_000001 is missing"):
        discover(tmp_path)
    with pytest.raises(FrameError, match=r"its file x_data_000001\.h5 is missing"):
        read_frame(refs[0])


@pytest.mark.parametrize("cut", [0, 2, 4])
def test_a_damaged_stack_among_others_keeps_the_places_of_its_frames(tmp_path, stack, cut):
    paths = [Path(write_h5(tmp_path / f"line_{i}.h5", entry__data__data=stack + i)) for i in range(5)]
    whole = [str(ref) for ref in discover(tmp_path)]
    paths[cut].write_bytes(paths[cut].read_bytes()[:3000])
    refs = discover(tmp_path)
    assert [str(ref) for ref in refs] == whole
    lost = [ref for ref in refs if ref.path == str(paths[cut])]
    assert len(lost) == len(stack)
    for ref in lost:
        with pytest.raises(FrameError, match="HDF5"):
            read_frame(ref)
    np.testing.assert_array_equal(read_frame(refs[len(stack) + 1]) if cut != 1 else stack[1] + 1, stack[1] + 1)


def test_a_damaged_stack_among_others_of_other_lengths_is_refused(tmp_path, stack):
    paths = [Path(write_h5(tmp_path / f"line_{i}.h5", entry__data__data=stack[: 2 + (i == 1)])) for i in range(4)]
    paths[2].write_bytes(paths[2].read_bytes()[:3000])
    with pytest.raises(InputError, match=r"line_2\.h5: truncated or unreadable HDF5"):
        discover(tmp_path)


def test_the_last_stack_of_an_aborted_scan_may_be_shorter_beside_a_damaged_one(tmp_path, stack):
    lengths = (3, 3, 3, 2)
    for i, length in enumerate(lengths):
        write_h5(tmp_path / f"line_{i}.h5", entry__data__data=stack[:length])
    path = tmp_path / "line_1.h5"
    path.write_bytes(path.read_bytes()[:3000])
    assert len(discover(tmp_path)) == sum(lengths)


def test_one_hdf5_file_per_scan_point_with_its_position(tmp_path, stack):
    for i, one in enumerate(stack):
        write_h5(
            tmp_path / f"w_{i + 1}.h5",
            entry1__data__data=one,
            entry1__sample__sampleX=[float(i)],
            entry1__sample__sampleY=[-2.5],
        )
    (tmp_path / "w_5.h5").write_bytes((tmp_path / "w_5.h5").read_bytes()[:3000])
    refs = discover(tmp_path)
    assert [Path(ref.path).name for ref in refs] == [f"w_{i}.h5" for i in range(1, 6)]
    np.testing.assert_array_equal(read_frame(refs[2]), stack[2])
    assert read_position(refs[2]) == (-2.5, 2.0)
    with pytest.raises(FrameError, match="HDF5"):
        read_frame(refs[4])


def test_bliss_positioners_give_each_frame_its_position(tmp_path, stack):
    path = write_h5(
        tmp_path / "a.h5",
        **{
            "1.1/measurement/eiger": stack,
            "1.1/measurement/xech": np.arange(5.0),
            "1.1/instrument/positioners/xech": 0.0,
            "1.1/instrument/positioners/yech": 7.0,
            "1.1/measurement/yech": np.linspace(1, 2, 5),
        },
    )
    assert [read_position(ref) for ref in discover(path)][3] == (1750.0, 3000.0)
    with h5py.File(path, "a") as file:  # its own units win over what is usual at the beamline
        file["1.1/measurement/xech"].attrs["units"] = "um"
        file["1.1/measurement/yech"].attrs["units"] = "m"
    assert [read_position(ref) for ref in discover(path)][3] == (1_750_000.0, 3.0)


def test_single_frame_dataset_and_index_beyond_the_end(tmp_path, stack):
    path = write_h5(tmp_path / "a.h5", image=stack[0])
    assert discover(f"{path}::/image") == [FrameRef(path, "/image")]
    assert read_frame(FrameRef(path, "/image")).shape == (64, 48)
    path = write_h5(tmp_path / "b.h5", image=stack)
    with pytest.raises(FrameError, match="frame 5 is not in the dataset, which ends at 4"):
        read_frame(FrameRef(path, "/image", 5))


# Discovery


@given(numbers=st.lists(st.integers(0, 10**12), unique=True, min_size=2), prefix=st.sampled_from(["img_", "a1_b", ""]))
def test_natural_order_is_the_order_of_the_numbers(numbers, prefix):
    names = sorted((f"{prefix}{number}.tif" for number in numbers), key=natural_key)
    assert names == [f"{prefix}{number}.tif" for number in sorted(numbers)]


def test_folder_is_taken_in_natural_order_without_hidden_and_other_files(tmp_path):
    for name in ("img_10.tif", "img_2.tif", "img_1.TIF", ".img_0.tif", "log.txt", "scan.json"):
        (tmp_path / name).touch()
    (tmp_path / "dark").mkdir()
    assert [Path(ref.path).name for ref in discover(tmp_path)] == ["img_1.TIF", "img_2.tif", "img_10.tif"]


def test_line_folders_follow_one_another(tmp_path):
    for line in (10, 9, 1):
        for point in (2, 1):
            path = tmp_path / f"map_{line:02d}" / f"map_{line}_{point}.tif"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    (tmp_path / "dark").mkdir()
    (tmp_path / "dark" / "d.tif").touch()
    names = [Path(ref.path).stem for ref in discover(tmp_path)]
    assert names == ["map_1_1", "map_1_2", "map_9_1", "map_9_2", "map_10_1", "map_10_2"]


def test_line_folders_of_two_scans_are_refused(tmp_path):
    for name in ("a_01", "b_01"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.tif").touch()
    with pytest.raises(InputError, match="2 scans"):
        discover(tmp_path)


def test_list_of_paths_is_relative_to_the_file_and_keeps_its_order(tmp_path, stack):
    (tmp_path / "raw").mkdir()
    for i in (1, 2):
        Image.fromarray(stack[i]).save(tmp_path / "raw" / f"{i}.tif")
    listing = tmp_path / "frames.txt"
    listing.write_text("# my scan\nraw/2.tif\n\nraw/1.tif\nraw/gone.tif\n", encoding="utf-8")
    refs = discover(listing)
    assert [Path(ref.path).name for ref in refs] == ["2.tif", "1.tif", "gone.tif"]
    np.testing.assert_array_equal(read_frame(refs[0]), stack[2])
    listing.write_text("elsewhere/1.tif\n", encoding="utf-8")
    with pytest.raises(InputError, match="none of its 1 files is there"):
        discover(listing)


@pytest.mark.parametrize("name", ["a.tif", "a.tif[3]", "/x/a b.h5::/entry/data/data[12]", "a.h5::/image"])
def test_reference_survives_its_text(name):
    assert str(FrameRef.parse(name)) == name


def test_reference_to_a_stack_is_parsed_into_its_parts():
    assert FrameRef.parse("a.h5::/1.1/data[12]") == FrameRef("a.h5", "/1.1/data", 12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "gone", "there is no such file or folder"),
        (lambda p: p, "no frames in it"),
        (lambda p: p / "*.tif", "no file matches"),
        (lambda p: f"{p}/gone.h5::/data", "no such file"),
    ],
)
def test_nothing_there_is_one_line(tmp_path, make, message):
    with pytest.raises(InputError, match=message) as caught:
        discover(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_binary_file_of_unknown_kind_is_not_a_list(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="neither a frame"):
        discover(tmp_path / "a.bin")


def test_files_of_a_long_series_are_not_opened(tmp_path, monkeypatch):
    for i in range(300):
        (tmp_path / f"{i}.tif").touch()
    opened = []
    monkeypatch.setattr("laue_dask.io.frames.tiff.count", lambda file: opened.append(file.name) or 1)
    assert len(discover(tmp_path)) == 300
    assert len(opened) == 2


def test_counts_from_which_a_pixel_is_saturated_are_in_the_header_of_a_pilatus():
    assert headers.from_text("# Count_cutoff 1275351 counts\r\n# Gain_setting: high").saturation == 1275351
    assert headers.from_text("# Gain_setting: high").saturation is None
