"""The folder of a run: what may be one, what its run was made of, and what a refusal leaves of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr

from laue_dask.compute import cluster
from laue_dask.config import Config
from laue_dask.errors import InputError
from laue_dask.features import weights
from laue_dask.io import results as io_results
from laue_dask.io.output_paths import require_writable
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import record as records
from laue_dask.pipeline.stages import changed_frames, extraction

CONFIG_FILE = "config.yaml"
"""The resolved configuration of a run."""


@contextmanager
def removing_partial_results(*folders: Path) -> Iterator[None]:
    """Have a refusal leave finished runs as they were: results that were begun beside theirs in here are removed.

    What a run that was killed has begun is kept, and so is that of a run that is the first one in its folder: the right
    command goes on with it.
    """
    fresh = [
        one for one in folders if (one / records.RECORD_FILE).exists() and not (one / io_results.PARTIAL_STORE).exists()
    ]
    try:
        yield
    except InputError:
        for folder in fresh:
            io_results.discard(folder)
            extraction.forget_learnt(folder)
        raise


def scan_of(folder: Path, record: dict[str, Any]) -> ScanStore:
    """Return the scan that a run was made of, where it was or, if the run was moved, inside the run's folder."""
    store = records.scan_of(folder, record["scan"], record["keys"]["scan"])
    changed_frames.warn_of_changes(store)
    return store


def reduced_of(scan: ScanStore, config: Config) -> zarr.Array[Any]:
    """Return the reduced patterns of a finished run, (pattern, 128, 128) uint8.

    Raises
    ------
    InputError
        They are gone.
    """
    reduced = scan.reduced(config.recipe.for_frames(scan.frame_shape).digest())
    if reduced is None:
        raise InputError(f"{scan.path}: its reduced patterns have gone: run `laue-dask run` again")
    return reduced


def with_absolute_weights(config: Config) -> Config:
    """Return the configuration with the path of its weights for any working directory."""
    path = weights.locate(config.encoder.weights) if config.encoder.extractor == "network" else None
    if path is None or config.encoder.weights == "default":
        return config
    return config.model_copy(update={"encoder": config.encoder.model_copy(update={"weights": str(path.absolute())})})


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be a run's, or holds something else."""
    require_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, but --out names the folder of the run")
    if (folder / records.SERIES_FILE).exists():
        raise InputError(f"{folder}: holds a series of scans: choose an empty or a new folder for --out")
    ours = [CONFIG_FILE, records.RECORD_FILE, "watch.json", cluster.CLUSTER_FOLDER, cluster.DASK_REPORT_FILE]
    ours += [name + end for name in ("scan.zarr", io_results.RESULTS_STORE) for end in ("", ".part")]
    if (
        folder.is_dir()
        and any(not path.name.startswith(".") for path in folder.iterdir())
        and not any((folder / name).exists() for name in ours)
    ):
        raise InputError(f"{folder}: holds files that are not a run's: choose an empty or a new folder for --out")
