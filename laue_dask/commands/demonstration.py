"""The demonstration: a small twinned BaTiO3-like scan as detector files, segmented and compared with its truth."""

import time
from pathlib import Path

from laue_dask.api import simulation, tables, work
from laue_dask.config import Config
from laue_dask.errors import InputError
from laue_dask.runtime.progress import Progress

N_MAJOR_GRAINS = 6
"""Grains of the paper's BaTiO3 specimen, and of the simulated one."""


def demonstrate(folder: Path, *, shape: tuple[int, int], seed: int, config: Config, progress: Progress) -> str:
    """Simulate, run and evaluate; frames that an earlier demonstration left in the folder are used again.

    Parameters
    ----------
    folder
        Gets `frames/` (TIFF files and truth.npz) and `run/`.
    shape
        (ny, nx) of the scan.

    Returns
    -------
    str
        What to look at, for people.
    """
    begun = time.monotonic()
    frames, run = folder / "frames", folder / "run"
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
    if others := found - {frames.name, run.name}:
        raise InputError(f"{folder}: holds {min(others)}, which is not a demonstration's: choose another folder")
    simulation.simulate_scan("twins", frames, shape=shape, seed=seed, config=config, progress=progress)
    finished = work.run(frames, run, config=config, command="laue-dask demo", progress=progress)
    finished.evaluate(frames / "truth.npz", workers=config.workers.count, progress=progress)
    record = finished.record
    return "\n".join(
        [
            "",
            (
                f"{record.n_patterns} simulated patterns, segmented and compared with the truth in "
                f"{time.monotonic() - begun:.0f} s ({record.workers})."
            ),
            "",
            tables.evaluation_text(record.evaluation),
            "",
            "ari: adjusted Rand index with the true domains; interior: points where the beam lies in one domain.",
            "untrained: the same network with random weights; pixels: PCA of the reduced patterns themselves.",
            "",
            f"label maps  {run / 'plots'}",
            f"report      {run / 'report.html'}",
            f"results     {run / 'results.zarr'} (xarray.open_zarr)",
        ]
    )
