"""Area detectors: where a diffracted ray hits, in the conventions of LaueTools and XMAS, and what a pixel records.

Laboratory frame: x along the beam, z up, y = z × x; millimetres. A detector is a plane with one reference point, known
both in the laboratory (`origin`) and on the frame (`centre`), and two unit vectors along its columns and rows. Rows and
columns count from 0 at the centre of the first pixel.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from laue_dask.errors import InputError

FloatArray = npt.NDArray[np.float64]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Detector:
    """One detector in one position.

    Attributes
    ----------
    name
        Key of `DETECTORS`, or a user's own.
    shape
        Rows and columns.
    pixel_um
        Height of a row and width of a column, µm.
    origin
        Reference point in the laboratory, mm.
    centre
        (row, column) of that point on the frame, pixels; it may lie outside.
    along_row, along_column
        Unit vectors in the laboratory along which the row index and the column index grow.
    dtype
        Of the frames, ``"int32"`` or ``"uint16"``.
    pedestal
        Counts of a pixel without light.
    read_noise
        Standard deviation of the electronics, counts; 0 for a photon counter.
    gain
        Counts per photon.
    saturation
        Largest value a pixel can have.
    module, gap
        Rows and columns of one module and of the blind stripes between modules; no gaps by default.
    circular
        True where only the disc that fits the frame sees anything.
    bad_pixels
        How many pixels are dead (int32, read -2) or stuck at saturation (uint16); always the same ones.
    hot_pixels
        How many pixels count by themselves, 10² to 10⁵ each frame; always the same ones.
    """

    name: str
    shape: tuple[int, int]
    pixel_um: tuple[float, float]
    origin: Vector
    centre: tuple[float, float]
    along_row: Vector
    along_column: Vector
    dtype: str = "int32"
    pedestal: float = 0.0
    read_noise: float = 0.0
    gain: float = 1.0
    saturation: int = 1_275_351
    module: tuple[int, int] | None = None
    gap: tuple[int, int] = (0, 0)
    circular: bool = False
    bad_pixels: int = 0
    hot_pixels: int = 0

    @property
    def frame_bytes(self) -> int:
        """Size of one frame without compression."""
        return self.shape[0] * self.shape[1] * np.dtype(self.dtype).itemsize

    def project(self, directions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the row and column where rays from the specimen meet the detector plane.

        Parameters
        ----------
        directions
            Unit vectors in the laboratory, shape (..., 3).

        Returns
        -------
        row, column
            Shape (...), pixels; NaN where the ray leaves away from the plane. They may lie outside the frame.
        """
        rows, columns = np.asarray(self.along_row), np.asarray(self.along_column)
        origin = np.asarray(self.origin)
        normal = np.cross(rows, columns)
        height = origin @ normal
        cosine = directions @ normal * np.sign(height)
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.where(cosine > 1e-6, abs(height) / cosine, np.nan)
        across = directions @ np.stack([rows, columns], axis=1) * reach[..., None] - origin @ np.stack(
            [rows, columns], axis=1
        )
        return (
            self.centre[0] + across[..., 0] * 1e3 / self.pixel_um[0],
            self.centre[1] + across[..., 1] * 1e3 / self.pixel_um[1],
        )

    def directions(self, row: npt.ArrayLike, column: npt.ArrayLike) -> FloatArray:
        """Return the unit vectors (..., 3) from the specimen to points of the frame: the inverse of `project`."""
        down = (np.asarray(row, dtype=np.float64) - self.centre[0]) * self.pixel_um[0] / 1e3
        across = (np.asarray(column, dtype=np.float64) - self.centre[1]) * self.pixel_um[1] / 1e3
        points = (
            np.asarray(self.origin)
            + down[..., None] * np.asarray(self.along_row)
            + across[..., None] * np.asarray(self.along_column)
        )
        return np.asarray(points / np.linalg.norm(points, axis=-1, keepdims=True))

    def binned(self, factor: int) -> Self:
        """Return the detector with pixels `factor` times as large; incomplete last rows and columns are dropped."""
        if factor == 1:
            return self
        return replace(
            self,
            name=f"{self.name}/{factor}",
            shape=(self.shape[0] // factor, self.shape[1] // factor),
            pixel_um=(self.pixel_um[0] * factor, self.pixel_um[1] * factor),
            centre=((self.centre[0] + 0.5) / factor - 0.5, (self.centre[1] + 0.5) / factor - 0.5),
            module=None if self.module is None else (self.module[0] // factor, self.module[1] // factor),
            gap=(self.gap[0] // factor, self.gap[1] // factor),
        )


@lru_cache(maxsize=8)
def _blind(
    shape: tuple[int, int],
    module: tuple[int, int] | None,
    gap: tuple[int, int],
    circular: bool,
) -> npt.NDArray[np.intp]:
    mask = np.zeros(shape, dtype=bool)
    if module is not None:
        mask |= (np.arange(shape[0]) % (module[0] + gap[0]) >= module[0])[:, None]
        mask |= (np.arange(shape[1]) % (module[1] + gap[1]) >= module[1])[None, :]
    if circular:
        down, across = (np.linspace(-1, 1, n) for n in shape)
        mask |= down[:, None] ** 2 + across[None, :] ** 2 > 1.001
    blind = np.flatnonzero(mask)
    blind.flags.writeable = False
    return blind


def blind_pixels(detector: Detector) -> npt.NDArray[np.intp]:
    """Return the flat indices of the pixels that see nothing: between modules, or outside a round screen."""
    return _blind(detector.shape, detector.module, detector.gap, detector.circular)


def lauetools_geometry(
    dd: float, xcen: float, ycen: float, xbet: float, xgam: float
) -> tuple[Vector, tuple[float, float], Vector, Vector]:
    """Return the origin, centre, along_row and along_column of a LaueTools calibration (detector on top,
    ``kf_direction`` Z>0).

    Parameters
    ----------
    dd, xcen, ycen, xbet, xgam
        The five numbers of a `.det` file: distance in mm, foot of the normal in pixels, two angles in degrees.
        LaueTools counts pixels from 1: column = X - 1, row = Y - 1 (seen on two real frames with their `.fit`).
    """
    beta, gamma = np.radians(xbet), np.radians(xgam)
    normal = np.array([np.sin(beta), 0, np.cos(beta)])
    forward = np.array([np.cos(beta), 0, -np.sin(beta)])
    sideways = np.array([0.0, -1.0, 0.0])
    along_column = np.cos(gamma) * sideways - np.sin(gamma) * forward
    along_row = np.sin(gamma) * sideways + np.cos(gamma) * forward
    return _vector(dd * normal), (ycen - 1, xcen - 1), _vector(along_row), _vector(along_column)


def xmas_geometry(
    distance: float, xcent: float, ycent: float, pitch: float, yaw: float, *, rows: int = 1043
) -> tuple[Vector, tuple[float, float], Vector, Vector]:
    """Return the origin, centre, along_row and along_column of an XMAS calibration at 2θ = 90°, roll 0.

    Parameters
    ----------
    distance, xcent, ycent, pitch, yaw
        Of the `.cal` file: mm, pixels, degrees. (xcent, ycent) is where the ray at 2θ = 90°, chi = 0 hits.
    rows
        Of the frame: XMAS reads it turned, row = rows - x and column = y - 1.
    """
    turn = Rotation.from_euler("yxz", [-pitch, 0.0, -yaw], degrees=True)
    along_column, along_row = turn.apply([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return (0.0, 0.0, distance), (rows - xcent, ycent - 1), _vector(along_row), _vector(along_column)


def _vector(values: FloatArray) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _pilatus1m() -> Detector:
    geometry = xmas_geometry(150.572, 540.603, 212.876, -0.22645, 0.61642)
    return Detector(
        "pilatus1m",
        (1043, 981),
        (171.62, 171.65),
        *geometry,
        module=(195, 487),
        gap=(17, 7),
        bad_pixels=54,
        hot_pixels=3,
    )


def _pilatus6m() -> Detector:
    geometry = xmas_geometry(350.0, 1263.5, 900.0, 0.0, 0.0, rows=2527)
    return Detector("pilatus6m", (2527, 2463), (172.0, 172.0), *geometry, module=(195, 487), gap=(17, 7), bad_pixels=54)


def _marccd165() -> Detector:
    geometry = lauetools_geometry(70.775, 941.74, 1082.56, 0.63, -0.682)
    pixel = (79.142, 79.142)
    return Detector(
        "marccd165", (2048, 2048), pixel, *geometry, "uint16", 10, 1.5, 0.12, saturation=65535, circular=True
    )


def _scmos() -> Detector:
    geometry = lauetools_geometry(79.612, 977.81, 932.17, 0.477, 0.447)
    pixel = (73.4, 73.4)
    return Detector("scmos", (2018, 2016), pixel, *geometry, "uint16", 1000, 1.8, 0.25, saturation=65535, bad_pixels=5)


def _wide(
    name: str, shape: tuple[int, int], pixel: float, distance: float, module: tuple[int, int], gap: tuple[int, int]
) -> Detector:
    """A detector far from square, long side along the beam, its middle above the specimen."""
    geometry = xmas_geometry(distance, shape[0] / 2, shape[1] / 2, 0.0, 0.0, rows=shape[0])
    return Detector(name, shape, (pixel, pixel), *geometry, module=module, gap=gap, bad_pixels=20)


_CALIBRATED_DETECTORS = (_pilatus1m(), _pilatus6m(), _marccd165(), _scmos())
_WIDE_DETECTORS = (
    _wide("eiger500k", (514, 1030), 75.0, 60.0, (514, 1030), (0, 0)),
    _wide("lambda750k", (516, 1556), 55.0, 60.0, (516, 1556), (0, 0)),
    _wide("pilatus300kw", (195, 1475), 172.0, 120.0, (195, 487), (17, 7)),
)

DETECTORS = {d.name: d for d in (*_CALIBRATED_DETECTORS, *_WIDE_DETECTORS)}
"""Detectors of the beamlines that publish frames, with a real calibration each (pilatus6m: a plausible one), and some
that are far from square, with plausible ones."""


def detector(name: str) -> Detector:
    """Return the detector of that name.

    Raises
    ------
    InputError
        No detector has that name; the message lists them.
    """
    if name not in DETECTORS:
        raise InputError(f"detector '{name}' is unknown: choose one of {', '.join(DETECTORS)}")
    return DETECTORS[name]
