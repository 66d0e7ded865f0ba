"""Imports without pauses, and the list of what workers must have imported."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module

WORKER_MODULES = (
    "distributed",
    "laue_dask.pipeline.stages.ingest",
    "laue_dask.pipeline.stages.extraction",
    "laue_dask.pipeline.stages.segmentation",
    "laue_dask.features.inference",
    "laue_dask.report.plots",
)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Import without garbage collections; all later ones leave these objects out.

    Nearly a million objects come to stay: going through them again and again takes a quarter of the time that PyTorch,
    scikit-learn and the others need.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collected:
            gc.enable()


def import_worker_modules() -> None:
    """Import what workers need; a missing module is reported where it is used."""
    with without_garbage_collection():
        for name in WORKER_MODULES:
            with suppress(ImportError):
                import_module(name)
