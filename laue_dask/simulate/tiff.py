"""Write one frame as the beamlines do: an uncompressed TIFF whose description holds the stage position.

PILATUS frames follow ALS 12.3.2 (CRLF lines of `# Key value`, the position in `# Comment`, data at byte 4096), camera
frames ESRF BM32 (`0 (Xech=… Yech=… … exposure=…)`).
"""

import struct
from dataclasses import dataclass
from pathlib import Path

from laue_dask.io.output_paths import write_atomically
from laue_dask.simulate.detector import Detector
from laue_dask.simulate.rendering import Frame


@dataclass(frozen=True)
class Stage:
    """State of the beamline while a frame was recorded: stage x, y in mm, monitor counts, seconds of exposure."""

    x: float
    y: float
    monitor: float
    seconds: float


def als_description(stage: Stage, detector: Detector) -> bytes:
    """Return the text of a PILATUS frame of ALS 12.3.2."""
    pixel = f"{detector.pixel_um[0]:.0f}e-6 m x {detector.pixel_um[1]:.0f}e-6 m"
    lines = (
        f"# Pixel_size {pixel}",
        "# Silicon sensor, thickness 0.000320 m",
        f"# Exposure_time {stage.seconds:.7f} s",
        f"# Exposure_period {stage.seconds:.7f} s",
        "# Tau = 383.8e-09 s",
        f"# Count_cutoff {detector.saturation} counts",
        "# Threshold_setting: 4000 eV",
        "# Gain_setting: high gain (vrf = -0.150)",
        f"# N_excluded_pixels = {detector.bad_pixels}",
        "# Excluded_pixels: badpix_mask.tif",
        "# Flat_field: (nil)",
        "# Trim_file: (nil)",
        "# Image_path: (simulated)",
        f"# Comment: {stage.x:.5f} {stage.y:.5f} 114.370 {stage.monitor:.4f}",
    )
    return "".join(line + "\r\n" for line in lines).encode() + b"\0"


def bm32_description(stage: Stage) -> bytes:
    """Return the text of a camera frame of ESRF BM32."""
    text = (
        f"0 (Xech={stage.x:.4f} Yech={stage.y:.4f} Zech=-0.8263 mon={stage.monitor:.0f} exposure={stage.seconds:.3f})"
    )
    return text.encode() + b"\0"


def write_tiff(path: Path, frame: Frame, detector: Detector, stage: Stage) -> None:
    """Write `frame` (rows, columns) to `path`, which appears only when it is complete."""
    counting = detector.dtype == "int32"
    texts = {
        270: als_description(stage, detector) if counting else bm32_description(stage),
        305: b"TVX TIFF v 1.3     \0" if counting else b"PSLViewer4.7.6\0",
    }
    if counting:
        texts[272] = f"PILATUS {'1M' if detector.shape[0] == 1043 else detector.name}, simulated".encode() + b"\0"
    data = frame.astype("<i4" if counting else "<u2", copy=False).tobytes()
    write_atomically(path, _header(frame.shape, 4 if counting else 2, len(data), texts) + data)


def _header(shape: tuple[int, ...], itemsize: int, n_bytes: int, texts: dict[int, bytes]) -> bytes:
    """First 4096 bytes: byte order, one directory, its texts, zeros."""
    # Readers know a PILATUS file by its directory at byte 130.
    start = 130 if itemsize == 4 else 8
    numbers = {256: shape[1], 257: shape[0], 258: 8 * itemsize, 259: 1, 262: 1, 273: 4096, 277: 1, 278: shape[0]}
    numbers |= {279: n_bytes, 339: 2 if itemsize == 4 else 1}
    short = {258, 259, 262, 277, 339}
    tags = sorted([*numbers, *texts])
    offset = start + 2 + 12 * len(tags) + 4
    entries, tail = b"", b""
    for tag in tags:
        if tag in texts:
            entries += struct.pack("<HHII", tag, 2, len(texts[tag]), offset + len(tail))
            tail += texts[tag] + b"\0" * (len(texts[tag]) % 2)
        elif tag in short:
            entries += struct.pack("<HHIHH", tag, 3, 1, numbers[tag], 0)
        else:
            entries += struct.pack("<HHII", tag, 4, 1, numbers[tag])
    header = (b"II*\0" + struct.pack("<I", start)).ljust(start, b"\0")
    return (header + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + tail).ljust(4096, b"\0")
