from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from laue_dask import schema
from laue_dask.config import Recipe
from laue_dask.schema import TRAINING
from laue_dask.training.training import TrainingSet

PATTERNS, VIEWS = 16, 4
"""Patterns of an experiment, and of a configuration."""


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Torch waits actively for its threads: on a machine that is busy with other work, two are slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def write_store() -> Callable[..., Path]:
    """Write a training store of random spots: every configuration has its own, its views differ by noise."""

    def write(path, *, seed, experiments=4, recipe=None):
        """A training store of random spots: every configuration has its own, its views differ by noise."""
        rng = np.random.default_rng(seed)
        root = zarr.open_group(str(path), mode="w", zarr_format=3)
        recipe = (recipe or Recipe()).model_dump(mode="json")
        root.attrs.update(
            {"laue_dask_schema": schema.SCHEMA_VERSION, "recipe": recipe, "seed": seed, "experiments": experiments}
        )
        n = experiments * PATTERNS
        patterns = np.zeros((n, 128, 128), dtype=np.uint8)
        for first in range(0, n, VIEWS):
            rows, columns, heights = rng.integers(0, 128, 15), rng.integers(0, 128, 15), rng.integers(90, 256, 15)
            for view in patterns[first : first + VIEWS]:
                seen = rng.random(15) < 0.85
                view[rows[seen], columns[seen]] = heights[seen]
        values = {
            "patterns": patterns,
            "experiment": np.arange(n) // PATTERNS,
            "configuration": np.arange(n) // VIEWS,
        }
        for name, spec in TRAINING.items():
            chunks = (PATTERNS, *values[name].shape[1:])
            schema.create(root, name, spec, values[name].shape, chunks=chunks)[...] = values[name]
        return path

    return write


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory, write_store: Callable[..., Path]) -> list[Path]:
    """Three training stores of different seeds; not to be changed."""
    folder = tmp_path_factory.mktemp("training")
    return [write_store(folder / f"{seed}.zarr", seed=seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="session")
def sets(stores: list[Path]) -> tuple[TrainingSet, TrainingSet]:
    """A training and a validation set."""
    return TrainingSet(stores[0]), TrainingSet(stores[1])
