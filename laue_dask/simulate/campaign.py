"""Simulated scans and training stores, made in parallel."""

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray

from laue_dask import schema
from laue_dask.compute import cluster
from laue_dask.compute.run import write_array
from laue_dask.config import Config, Recipe
from laue_dask.detector import detector_mask
from laue_dask.errors import InputError
from laue_dask.preprocess import reduce_frames
from laue_dask.progress import Progress
from laue_dask.schema import PATTERN_SIZE
from laue_dask.simulate.training import N_CONFIGURATIONS, N_VIEWS, training_frame

MASK_FRAMES = 12
"""Frames of an experiment that its detector mask is found from."""


def write_training_store(
    path: Path, *, experiments: int, seed: int, binning: int, config: Config, progress: Progress
) -> None:
    """Simulate experiments and write their reduced patterns (`schema.TRAINING`).

    Parameters
    ----------
    path
        The store; a store of the same seed that was left unfinished there is gone on with.
    experiments
        Number of experiments, of `N_CONFIGURATIONS` × `N_VIEWS` patterns each.
    binning
        Detector pixels per side that are joined in one: 2 is about three times as fast, and the reduced patterns differ
        little.

    Raises
    ------
    InputError
        The path exists and is finished, or is something else.
    """
    if path.exists():
        raise InputError(f"{path}: exists already: choose another path or remove it")
    partial = path.with_name(path.name + ".part")
    each = N_CONFIGURATIONS * N_VIEWS
    n = experiments * each
    header: dict[str, Any] = {
        "laue_dask_schema": schema.VERSION,
        "seed": seed,
        "experiments": experiments,
        "binning": binning,
        "patterns": n,
        "recipe": config.recipe.model_dump(mode="json"),
    }
    group = zarr.open_group(str(partial), mode="a", zarr_format=3)
    if {**group.attrs} != header:
        group = zarr.open_group(str(partial), mode="w", zarr_format=3)
        group.attrs.update(header)
        create = schema.create
        create(group, "patterns", schema.TRAINING["patterns"], (n, PATTERN_SIZE, PATTERN_SIZE), chunks=(each, 128, 128))
        numbers = np.arange(n, dtype=np.int32)
        create(group, "experiment", schema.TRAINING["experiment"], (n,))[:] = numbers // each
        create(group, "configuration", schema.TRAINING["configuration"], (n,))[:] = (
            numbers // N_VIEWS % N_CONFIGURATIONS
        )
    patterns: Any = group["patterns"]
    blocks: da.Array = da.map_blocks(
        _experiment,
        seed=seed,
        binning=binning,
        recipe=config.recipe,
        dtype=np.uint8,
        chunks=((each,) * experiments, (PATTERN_SIZE,), (PATTERN_SIZE,)),
        meta=np.empty((0, 0, 0), dtype=np.uint8),
    )
    with cluster.start(config.cluster) as workers:
        write_array(blocks, patterns, stage="simulate", client=workers.client, progress=progress)
    partial.rename(path)


def _experiment(
    *, seed: int, binning: int, recipe: Recipe, block_id: tuple[int, ...] | None = None
) -> NDArray[np.uint8]:
    if block_id is None:
        raise ValueError("block_id is needed to know which experiment to simulate")
    number = block_id[0]
    places = np.linspace(0, N_CONFIGURATIONS - 1, MASK_FRAMES).astype(int)
    mask = detector_mask(np.stack([training_frame(seed, number, int(c), 0, binning=binning)[0] for c in places]))
    reduced = np.empty((N_CONFIGURATIONS * N_VIEWS, PATTERN_SIZE, PATTERN_SIZE), dtype=np.uint8)
    for i in range(len(reduced)):
        frame, _ = training_frame(seed, number, i // N_VIEWS, i % N_VIEWS, binning=binning)
        reduced[i] = reduce_frames(frame, mask, recipe)[0]
    return reduced
