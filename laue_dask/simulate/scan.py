"""A whole scan: one TIFF per point of a specimen, and what is true about it.

Frame i follows from (seed, i) alone, so frames can be made in any order, by any number of processes.
"""

import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from laue_dask.errors import InputError
from laue_dask.io.output_paths import write_atomically
from laue_dask.simulate.conditions import Conditions
from laue_dask.simulate.detector import Detector
from laue_dask.simulate.pattern import Exposure, Grain, expose
from laue_dask.simulate.rendering import Frame
from laue_dask.simulate.specimens import Specimen
from laue_dask.simulate.tiff import Stage, write_tiff

Order = Literal["raster", "snake"]

STEP_MM = 0.005
"""Distance of neighbouring points (the paper's 5 µm)."""

_ORIGIN_MM = (6.0, 6.0)
_EXPOSURE_S = 2.5
_BEAM_NOISE = 0.03


class ScannedSpecimen(Protocol):
    """What a scan needs to know of its specimen: a `Specimen`, or the grains that someone indexed."""

    @property
    def kind(self) -> str:
        """Name, for messages."""

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""

    @property
    def conditions(self) -> Conditions:
        """How it is scanned."""

    def place(self, point: int) -> tuple[float, float]:
        """Return where a point is, (y, x) as shares of the scan's height and width."""

    def at(self, point: int) -> list[Grain]:
        """Return what the beam meets at point ``y * nx + x``."""


def default_exposure(detector: Detector) -> Exposure:
    """Return the counts and background that resemble the published frames of the detector's kind."""
    if detector.dtype == "int32":
        return Exposure(counts=1e5, background=(2.0, 20.0))
    return Exposure(counts=2e4, spot_sigma_px=1.2, background=(5.0, 60.0), background_centre=(0.45, 0.5))


def frame(
    specimen: ScannedSpecimen,
    detector: Detector,
    point: int,
    *,
    seed: int,
    exposure: Exposure | None = None,
    repeat: int = 0,
) -> Frame:
    """Return the frame (rows, columns) of one point.

    Parameters
    ----------
    specimen, detector
        What is scanned, and with what.
    point
        Row-major, ``y * nx + x``.
    seed
        Of the noise and the beam's drift; the specimen has its own.
    exposure
        `default_exposure` where not given.
    repeat
        0 is the scan's own frame; others are the same point once more: with noise of its own, and a beam that is up to
        1 % brighter or darker.

    Raises
    ------
    InputError
        The specimen has no such point.
    """
    _check(specimen, point)
    rng = np.random.default_rng([seed, point, 2, repeat] if repeat else [seed, point])
    given, conditions, place = exposure or default_exposure(detector), specimen.conditions, specimen.place(point)
    beam = conditions.time * conditions.beam.at(place) * _monitor(seed, point)
    stray = conditions.time * conditions.background.at(place)
    low, high = given.background
    drifted = replace(
        given,
        counts=given.counts * beam * (rng.uniform(0.99, 1.01) if repeat else 1.0),
        background=(low * stray, high * stray),
    )
    return expose(specimen.at(point), detector, drifted, rng=rng, energy_range_keV=conditions.energy_range_keV)


def write_frame(
    specimen: Specimen, detector: Detector, point: int, path: Path, *, seed: int, exposure: Exposure | None = None
) -> None:
    """Write `frame` to `path` as TIFF with the beamline's header; the file appears only when complete.

    The stage starts at (6, 6) mm and moves by 5 µm per point, x along the fast axis.
    """
    made = frame(specimen, detector, point, seed=seed, exposure=exposure)
    y, x = divmod(point, specimen.shape[1])
    monitor = 2750 * _monitor(seed, point)
    stage = Stage(_ORIGIN_MM[0] + x * STEP_MM, _ORIGIN_MM[1] + y * STEP_MM, monitor, _EXPOSURE_S)
    write_tiff(path, made, detector, stage)


def frame_name(prefix: str, detector: Detector, number: int) -> str:
    """Return the name of the frame acquired as `number` (from 0): PILATUS files count from 1, camera files from 0."""
    return f"{prefix}_{number + (1 if detector.dtype == 'int32' else 0):05d}.tif"


def acquired_point(specimen: Specimen, number: int, *, order: Order = "raster") -> int:
    """Return the point (row-major) that is acquired as `number`, from 0: in `snake` order every second row runs
    backwards.
    """
    _check(specimen, number)
    y, x = divmod(number, specimen.shape[1])
    return y * specimen.shape[1] + (specimen.shape[1] - 1 - x if order == "snake" and y % 2 else x)


def write_scan(
    specimen: Specimen,
    detector: Detector,
    folder: Path,
    *,
    seed: int,
    prefix: str = "scan",
    order: Order = "raster",
    numbers: Iterable[int] | None = None,
    exposure: Exposure | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write frames and `truth.npz` into `folder`, which is made where it is missing.

    Parameters
    ----------
    order
        In which the points are visited, hence numbered.
    numbers
        Acquisition numbers to write, all by default.
    progress
        Called after each file with the number of files written so far.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_truth(specimen, folder / "truth.npz")
    chosen = range(specimen.shape[0] * specimen.shape[1]) if numbers is None else numbers
    for done, number in enumerate(chosen, start=1):
        path = folder / frame_name(prefix, detector, number)
        write_frame(
            specimen, detector, acquired_point(specimen, number, order=order), path, seed=seed, exposure=exposure
        )
        if progress is not None:
            progress(done)


def write_truth(specimen: Specimen, path: Path) -> None:
    """Write what is true: arrays without pickles, and the file appears only when complete.

    ``domain`` int32, ``angle`` float64 in degrees and ``edge`` bool are (ny, nx); ``orientation`` (n_domains, 3, 3) is
    U in the laboratory frame (x along the beam, z up), ``crystal`` (n_domains,) the name and ``cell`` (n_domains, 6)
    the lattice parameters of each domain.
    """
    file = io.BytesIO()
    np.savez(
        file,
        domain=specimen.domain,
        angle=specimen.angle,
        edge=specimen.edge,
        orientation=specimen.orientations,
        crystal=np.array([c.name for c in specimen.crystals]),
        cell=np.array([c.cell for c in specimen.crystals]),
    )
    write_atomically(path, file.getvalue())


def _monitor(seed: int, point: int) -> float:
    """Intensity of the beam at one point, about 1."""
    return float(np.exp(_BEAM_NOISE * np.random.default_rng([seed, point, 1]).standard_normal()))


def _check(specimen: ScannedSpecimen, point: int) -> None:
    n = specimen.shape[0] * specimen.shape[1]
    if not 0 <= point < n:
        raise InputError(f"point {point}: specimen '{specimen.kind}' of shape {specimen.shape} has points 0 to {n - 1}")
