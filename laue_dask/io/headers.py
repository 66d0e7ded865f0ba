"""What frame headers say: stage position, exposure, pixel size, detector. Pure text → values.

Written after real files of ALS 12.3.2 (PILATUS TIFF), ESRF BM32 (sCMOS TIFF, MarCCD) and ESRF EDF.
"""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

NUMBER_PATTERN = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"

_XECH = re.compile(rf"\bxech\s*=\s*{NUMBER_PATTERN}", re.IGNORECASE)
_YECH = re.compile(rf"\byech\s*=\s*{NUMBER_PATTERN}", re.IGNORECASE)
_COMMENT = re.compile(rf"#\s*Comment:?\s+{NUMBER_PATTERN}\s+{NUMBER_PATTERN}\s+{NUMBER_PATTERN}\s+{NUMBER_PATTERN}")
_EXPOSURE = re.compile(rf"(?:\bexposure\s*=|#\s*Exposure_time:?)\s*{NUMBER_PATTERN}", re.IGNORECASE)
_PIXEL_SIZE = re.compile(rf"#\s*Pixel_size:?\s+{NUMBER_PATTERN}\s*m\b")
_DETECTOR = re.compile(r"#\s*Detector:?\s+([^\r\n,]+)")
_COUNT_CUTOFF = re.compile(rf"#\s*Count_cutoff:?\s+{NUMBER_PATTERN}")
_PILATUS_MODEL = re.compile(r"\b((?:PILATUS|EIGER)\S*(?: [XR])? \d+K?M?)\b", re.IGNORECASE)

UM_PER_MM = 1000.0

STAGE_MOTORS = (("yech", "xech"), ("sampleY", "sampleX"))
"""Motors (slow/y, fast/x) that move the sample: ESRF BM32, APS 34-ID-E."""

UM_PER_UNIT_OF_MOTORS = {("yech", "xech"): UM_PER_MM, ("sampleY", "sampleX"): 1.0}
"""What these count in where a file does not say: millimetres at BM32, micrometres at 34-ID-E."""

UM_PER_UNIT = {
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre"), 1.0),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre"), UM_PER_MM),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre"), 1e-3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("m", "meter", "meters", "metre"), 1e6),
}
"""Micrometres in the units that files name."""

MARCCD_COMMENT_BYTES = slice(3072, 3584)
_MARCCD_NAME_BYTES = slice(1028, 1031)
_MARCCD_BYTE_ORDER_AT = 1052
_MARCCD_BYTE_ORDER_MARK = 1234
"""What is at `_MARCCD_BYTE_ORDER_AT` in the header's own order."""

_MARCCD_EXPOSURE_MS_AT = 1680
_MARCCD_PIXEL_NM_AT = 1796
MARCCD_HEADER_BYTES = 4096


@dataclass(frozen=True)
class Header:
    """What a header tells; ``None`` for what it does not.

    Attributes
    ----------
    position
        Stage coordinates (y, x) in micrometres. Headers of ALS 12.3.2 and ESRF BM32 have millimetres.
    pixel_size_um
        Side of a pixel in micrometres.
    exposure_s
        Exposure time in seconds.
    detector
        Name of the detector.
    saturation
        Counts from which a pixel is saturated.
    """

    position: tuple[float, float] | None = None
    pixel_size_um: float | None = None
    exposure_s: float | None = None
    detector: str | None = None
    saturation: float | None = None


def in_um(y: float, x: float, um_per_unit: float) -> tuple[float, float]:
    """Return the stage coordinates in micrometres, without the digits that the arithmetic adds behind a picometre."""
    return round(y * um_per_unit, 6), round(x * um_per_unit, 6)


def from_text(text: str, *, model: str = "") -> Header:
    """Read a TIFF `ImageDescription` or the header block of a CBF.

    Parameters
    ----------
    text
        `0 (Xech=1.0747 Yech=1.7521 …  exposure=1.000)` of ESRF BM32, or the `# Keyword value` lines of a PILATUS, where
        ALS 12.3.2 writes the stage into `# Comment: x y …`.
    model
        TIFF tag `Model`, from which the detector's name is taken when the text has none.
    """
    x, y, comment = _XECH.search(text), _YECH.search(text), _COMMENT.search(text)
    position = None
    if x and y:
        position = in_um(float(y[1]), float(x[1]), UM_PER_MM)
    elif comment:
        position = in_um(float(comment[2]), float(comment[1]), UM_PER_MM)
    exposure, pixel, cutoff = _EXPOSURE.search(text), _PIXEL_SIZE.search(text), _COUNT_CUTOFF.search(text)
    detector = _DETECTOR.search(text) or _PILATUS_MODEL.search(model)
    return Header(
        position=position,
        pixel_size_um=round(float(pixel[1]) * 1e6, 6) if pixel else None,
        exposure_s=float(exposure[1]) if exposure else None,
        detector=detector[1].strip() if detector else None,
        saturation=float(cutoff[1]) if cutoff else None,
    )


def from_marccd(head: bytes) -> Header | None:
    """Read the first 4096 bytes of a MarCCD file; ``None`` where they are not a MarCCD header.

    BM32 writes `x y z monitor exposure …` into the comment at byte 3072.
    """
    if len(head) < MARCCD_HEADER_BYTES or head[_MARCCD_NAME_BYTES] != b"MMX":
        return None
    words = head[MARCCD_COMMENT_BYTES].split(b"\0", 1)[0].decode("ascii", errors="replace").split()
    position = None
    if len(words) >= 3:
        try:
            x, y = float(words[0]), float(words[1])
            position = in_um(y, x, UM_PER_MM) if math.isfinite(x) and math.isfinite(y) else None
        except ValueError:
            position = None
    # Its order is not always that of the pixels.
    order = ">" if struct.unpack_from(">I", head, _MARCCD_BYTE_ORDER_AT)[0] == _MARCCD_BYTE_ORDER_MARK else "<"
    exposure = struct.unpack_from(order + "i", head, _MARCCD_EXPOSURE_MS_AT)[0]
    pixel = struct.unpack_from(order + "i", head, _MARCCD_PIXEL_NM_AT)[0]
    return Header(
        position=position,
        pixel_size_um=pixel / 1000 if pixel > 0 else None,
        exposure_s=exposure / 1000 if exposure > 0 else None,
        detector="MarCCD",
    )


def from_edf(header: Mapping[str, str]) -> Header:
    """Read the keys of an ESRF data format header, with its `motor_mne` and `motor_pos` lists."""
    motors = dict(zip(header.get("motor_mne", "").split(), header.get("motor_pos", "").split(), strict=False))
    position = None
    for y, x in STAGE_MOTORS:
        if y in motors and x in motors:
            position = in_um(_number(motors[y]), _number(motors[x]), UM_PER_UNIT_OF_MOTORS[y, x])
    if position is None or not all(map(math.isfinite, position)):
        position = from_text(header.get("title", "")).position
    exposure = _number(header.get("count_time", header.get("acq_expo_time", "nan")).split(" ")[0])
    return Header(position=position, exposure_s=exposure if math.isfinite(exposure) else None)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
