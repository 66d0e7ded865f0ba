"""Simulated scans and training stores, made in parallel."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.delayed import delayed
from numpy.typing import NDArray

from laue_dask import schema
from laue_dask.compute import cluster
from laue_dask.compute.run import run_blocks, write_array
from laue_dask.config import Config, Recipe
from laue_dask.errors import InputError
from laue_dask.io.output_paths import require_space, require_writable
from laue_dask.reduction.detector_mask import detector_mask
from laue_dask.reduction.reduce import reduce_frames
from laue_dask.runtime.progress import Progress
from laue_dask.schema import PATTERN_SIZE
from laue_dask.simulate import specimens
from laue_dask.simulate.detector import detector as named_detector
from laue_dask.simulate.scan import Order, acquired_point, frame_name, write_frame, write_truth
from laue_dask.simulate.specimens import Specimen
from laue_dask.simulate.training import N_CONFIGURATIONS, N_VIEWS, experiment, training_frame

SIMULATION_FILE = "simulation.json"

FRAMES_PER_TASK = 32

N_MASK_FRAMES = 12
"""Frames of an experiment that its detector mask is found from."""


def write_scan(
    kind: str,
    folder: Path,
    *,
    shape: tuple[int, int],
    seed: int,
    detector: str,
    order: Order = "raster",
    config: Config,
    progress: Progress,
) -> None:
    """Simulate a scan: a TIFF file per point, `truth.npz`, and `simulation.json` that says how it was made.

    Frames that an earlier call with the same parameters left there are kept.

    Raises
    ------
    InputError
        There is no such specimen or detector, the folder holds something else, or the disk is too small.
    """
    made_by = {"kind": kind, "shape": list(shape), "seed": seed, "detector": detector, "order": order}
    screen = named_detector(detector)  # refused before anything is made
    specimen = _specimen(kind, shape, seed)
    _check_folder(folder, made_by)
    present = sum(1 for _ in folder.glob("*.tif")) if folder.is_dir() else 0
    require_space(folder, (shape[0] * shape[1] - present) * screen.frame_bytes)
    folder = folder.absolute()  # workers may have another working directory
    folder.mkdir(parents=True, exist_ok=True)
    # First of all: a folder without it is not gone on with.
    (folder / SIMULATION_FILE).write_text(json.dumps(made_by), encoding="utf-8")
    write_truth(specimen, folder / "truth.npz")
    n = shape[0] * shape[1]
    starts = range(0, n, FRAMES_PER_TASK)
    write = delayed(_write_frames, pure=False)
    tasks = [write(made_by, str(folder), start, min(start + FRAMES_PER_TASK, n)) for start in starts]
    with cluster.start(config.workers) as workers, progress.stage("simulate", total=n) as advance:
        run_blocks(tasks, client=workers.client, on_receipt=lambda receipt: advance(receipt["stop"] - receipt["start"]))


def _check_folder(folder: Path, made_by: dict[str, Any]) -> None:
    require_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, a folder was expected")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        found = json.loads((folder / SIMULATION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = "other files"
    if found != made_by:
        raise InputError(f"{folder}: holds {found}, not {made_by}: choose another folder")


def _write_frames(made_by: dict[str, Any], folder: str, start: int, stop: int) -> dict[str, int]:
    specimen = _specimen(made_by["kind"], tuple(made_by["shape"]), made_by["seed"])
    screen = named_detector(made_by["detector"])
    for number in range(start, stop):
        path = Path(folder) / frame_name(made_by["kind"], screen, number)
        if not path.exists():
            point = acquired_point(specimen, number, order=made_by["order"])
            write_frame(specimen, screen, point, path, seed=made_by["seed"])
    return {"start": start, "stop": stop}


@lru_cache(maxsize=4)
def _specimen(kind: str, shape: tuple[int, int], seed: int) -> Specimen:
    return specimens.specimen(kind, shape, seed)


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
    require_writable(path)
    if path.exists():
        raise InputError(f"{path}: exists already: choose another path, or remove it")
    path = path.absolute()
    partial = path.with_name(path.name + ".part")
    each = N_CONFIGURATIONS * N_VIEWS
    n = experiments * each
    header: dict[str, Any] = {
        "laue_dask_schema": schema.SCHEMA_VERSION,
        "seed": seed,
        "experiments": experiments,
        "binning": binning,
        "patterns": n,
        "recipe": config.recipe.model_dump(mode="json"),
    }
    group = zarr.open_group(str(partial), mode="a", zarr_format=3)
    if {**group.attrs} != header:
        group = zarr.open_group(str(partial), mode="w", zarr_format=3)
        create = schema.create
        create(group, "patterns", schema.TRAINING["patterns"], (n, PATTERN_SIZE, PATTERN_SIZE), chunks=(each, 128, 128))
        numbers = np.arange(n, dtype=np.int32)
        create(group, "experiment", schema.TRAINING["experiment"], (n,))[:] = numbers // each
        domains = [experiment(seed, number, binning=binning).domains() for number in range(experiments)]
        create(group, "configuration", schema.TRAINING["configuration"], (n,))[:] = np.repeat(domains, N_VIEWS)
        group.attrs.update(header)  # last: says that the arrays are there
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
    with cluster.start(config.workers) as workers:
        write_array(blocks, patterns, stage="simulate", client=workers.client, progress=progress)
    partial.rename(path)


def _experiment(
    *, seed: int, binning: int, recipe: Recipe, block_id: tuple[int, ...] | None = None
) -> NDArray[np.uint8]:
    if block_id is None:
        raise ValueError("block_id is needed to know which experiment to simulate")
    number = block_id[0]
    places = np.linspace(0, N_CONFIGURATIONS - 1, N_MASK_FRAMES).astype(int)
    mask = detector_mask(np.stack([training_frame(seed, number, int(c), 0, binning=binning)[0] for c in places]))
    reduced = np.empty((N_CONFIGURATIONS * N_VIEWS, PATTERN_SIZE, PATTERN_SIZE), dtype=np.uint8)
    for i in range(len(reduced)):
        frame, _ = training_frame(seed, number, i // N_VIEWS, i % N_VIEWS, binning=binning)
        reduced[i] = reduce_frames(frame, mask, recipe)[0]
    return reduced
