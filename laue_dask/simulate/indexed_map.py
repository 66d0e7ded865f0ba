"""A map that someone else measured and indexed, as a specimen to scan: its published orientations under our beam.

No raw frames of such maps are published, so the spots' intensities are kinematic and the weights of a point's crystals
assumed; where the spots lie, and how grains hang together, is real.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from laue_dask.errors import InputError
from laue_dask.simulate.conditions import Conditions
from laue_dask.simulate.crystal import Crystal, FloatArray, direct_basis, symmetry_rotations
from laue_dask.simulate.materials import crystal as named_crystal
from laue_dask.simulate.pattern import Grain
from laue_dask.simulate.specimens import surface_normal

_BEAM_SPREAD_DEG = np.array([0.06, 0.0, 0.0])
"""Orientation spread within the beam."""


@dataclass(frozen=True, eq=False)
class IndexedMap:
    """Crystals found at each point of a map; it can be scanned as a `Specimen` can.

    Attributes
    ----------
    kind, shape
        Name and (ny, nx).
    crystals
        Phases.
    phase
        (slot, ny, nx) int64, index in `crystals` of what was found first, second, …; −1 where nothing was.
    orientation
        (slot, ny, nx, 3, 3) U, laboratory frame.
    weights
        Intensity of each slot's crystal.
    shown
        The slot that `domain` and `angle` are of.
    """

    kind: str
    shape: tuple[int, int]
    crystals: tuple[Crystal, ...]
    phase: npt.NDArray[np.int64]
    orientation: FloatArray
    weights: tuple[float, ...]
    shown: int = 0
    conditions: Conditions = field(default_factory=Conditions)

    @classmethod
    def load(cls, path: Path, *, weights: tuple[float, ...], shown: int = 0) -> Self:
        """Read a map as lauetoolsnn publishes it (`UB_orientation`, `material_index`, `materials`).

        Raises
        ------
        InputError
            The file is none, has another number of slots than `weights`, or names a crystal that is not known.
        """
        try:
            with np.load(path, allow_pickle=False) as found:
                orientation = found["UB_orientation"].astype(np.float64)
                material = found["material_index"].astype(np.int64)
                names = [str(name) for name in found["materials"]]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: no indexed map: {error}") from error
        if len(weights) != len(orientation) or not 0 <= shown < len(weights):
            raise InputError(f"{path}: {len(orientation)} crystals per point, {len(weights)} weights, slot {shown}")
        indexed = (material > 0) & np.isfinite(orientation).all(axis=(-2, -1))
        indexed &= np.abs(np.linalg.det(np.nan_to_num(orientation)) - 1) < 0.1
        crystals = tuple(named_crystal(name) for name in names)
        ny, nx = material.shape[1:]
        return cls(path.stem, (ny, nx), crystals, np.where(indexed, material - 1, -1), orientation, weights, shown)

    def place(self, point: int) -> tuple[float, float]:
        """Return where a point is, (y, x) as shares of the map's height and width."""
        y, x = divmod(point, self.shape[1])
        return y / self.shape[0], x / self.shape[1]

    def at(self, point: int) -> list[Grain]:
        """Return the crystals at point ``y * nx + x``."""
        y, x = divmod(point, self.shape[1])
        return [
            Grain(self.crystals[phase], self.orientation[slot, y, x], self.weights[slot], _BEAM_SPREAD_DEG)
            for slot, phase in enumerate(self.phase[:, y, x])
            if phase >= 0
        ]

    @cached_property
    def angle(self) -> FloatArray:
        """(ny, nx) degrees between the surface normal and the nearest a axis (Figure 1) of what is shown; or NaN."""
        result = np.full(self.shape, np.nan)
        for number, crystal in enumerate(self.crystals):
            there = self.phase[self.shown] == number
            a = direct_basis(crystal)[:, 0]
            axes = symmetry_rotations(crystal).apply(a / np.linalg.norm(a))
            cosine = np.abs(surface_normal() @ self.orientation[self.shown][there] @ axes.T).max(axis=-1)
            result[there] = np.degrees(np.arccos(np.minimum(cosine, 1)))
        return result

    def turned(self, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], slots: tuple[int, int]) -> FloatArray:
        """Return the misorientation in degrees of crystals at pairs of points.

        Parameters
        ----------
        first, second
            (n,) points.
        slots
            Of the crystal at either.

        Returns
        -------
        ndarray
            (n,), NaN where a crystal is missing or the phases differ.
        """
        phases = [self.phase[slot].ravel()[at] for slot, at in zip(slots, (first, second), strict=True)]
        one, two = (
            self.orientation[slot].reshape(-1, 3, 3)[at] for slot, at in zip(slots, (first, second), strict=True)
        )
        between = np.einsum("nji,njk->nik", one, two)
        result = np.full(len(first), np.nan)
        for number, crystal in enumerate(self.crystals):
            there = (phases[0] == number) & (phases[1] == number)
            trace = np.einsum("nij,sji->ns", between[there], symmetry_rotations(crystal).as_matrix()).max(axis=1)
            result[there] = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
        return result

    def neighbours(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the points (n,) and (n,) of all pairs of neighbours, 4 of a point."""
        index = np.arange(self.shape[0] * self.shape[1]).reshape(self.shape)
        return (
            np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()]),
            np.concatenate([index[:, 1:].ravel(), index[1:].ravel()]),
        )

    def domain(self, threshold: float) -> npt.NDArray[np.int32]:
        """Return the grains of what is shown: neighbours less than `threshold` degrees apart are joined.

        Returns
        -------
        ndarray
            (ny, nx) int32 from 0; −1 where nothing was found.
        """
        first, second = self.neighbours()
        joined = self.turned(first, second, (self.shown, self.shown)) < threshold
        n = self.shape[0] * self.shape[1]
        graph = csr_array((np.ones(joined.sum(), bool), (first[joined], second[joined])), shape=(n, n))
        region = connected_components(graph, directed=False)[1]
        result = np.full(n, -1, np.int32)
        there = self.phase[self.shown].ravel() >= 0
        result[there] = np.unique(region[there], return_inverse=True)[1]
        return result.reshape(self.shape)
