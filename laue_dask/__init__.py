"""Index-free segmentation of scanning Laue microdiffraction data, out of core and distributed.

The method is that of Song, Tamura, Zhang, Karami and Chen, *Data-driven approach for synchrotron X-ray Laue
microdiffraction scan analysis*; the names of this package (pattern, scan, feature map, estimator, labeler, label map,
centroid, delegate) are the paper's own.

What is listed here is all that a notebook or a script needs. It is imported when it is first used, so that
``import laue_dask`` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from laue_dask.api.build import encode, reduce
    from laue_dask.api.learning import export_encoder, fine_tune, train
    from laue_dask.api.run import Run, open_run
    from laue_dask.api.scan import Scan, open_scan
    from laue_dask.api.simulation import simulate_scan, simulate_training
    from laue_dask.api.tools import clean, info, verify
    from laue_dask.api.watching import run_nights, watch_scan
    from laue_dask.api.work import ingest, plan, run, run_series
    from laue_dask.config import Config
    from laue_dask.errors import LaueDaskError
    from laue_dask.grains.neighbourhood import NeighbourhoodGrains
    from laue_dask.segmentation.clustering import KMeans
    from laue_dask.segmentation.pca import IncrementalPCA

__all__ = [
    "Config",
    "IncrementalPCA",
    "KMeans",
    "LaueDaskError",
    "NeighbourhoodGrains",
    "Run",
    "Scan",
    "clean",
    "encode",
    "export_encoder",
    "fine_tune",
    "info",
    "ingest",
    "open_run",
    "open_scan",
    "plan",
    "reduce",
    "run",
    "run_nights",
    "run_series",
    "simulate_scan",
    "simulate_training",
    "train",
    "verify",
    "watch_scan",
]

_MODULE_OF_NAME = {
    "Config": "laue_dask.config",
    "IncrementalPCA": "laue_dask.segmentation.pca",
    "KMeans": "laue_dask.segmentation.clustering",
    "LaueDaskError": "laue_dask.errors",
    "NeighbourhoodGrains": "laue_dask.grains.neighbourhood",
    "Run": "laue_dask.api.run",
    "Scan": "laue_dask.api.scan",
    "clean": "laue_dask.api.tools",
    "encode": "laue_dask.api.build",
    "export_encoder": "laue_dask.api.learning",
    "fine_tune": "laue_dask.api.learning",
    "info": "laue_dask.api.tools",
    "ingest": "laue_dask.api.work",
    "open_run": "laue_dask.api.run",
    "open_scan": "laue_dask.api.scan",
    "plan": "laue_dask.api.work",
    "reduce": "laue_dask.api.build",
    "run": "laue_dask.api.work",
    "run_nights": "laue_dask.api.watching",
    "run_series": "laue_dask.api.work",
    "simulate_scan": "laue_dask.api.simulation",
    "simulate_training": "laue_dask.api.simulation",
    "train": "laue_dask.api.learning",
    "verify": "laue_dask.api.tools",
    "watch_scan": "laue_dask.api.watching",
}
"""Where each name is defined, whose module is imported when the name is first asked for."""


if not TYPE_CHECKING:  # or type checkers would take any name for one that is there

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF_NAME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULE_OF_NAME[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
