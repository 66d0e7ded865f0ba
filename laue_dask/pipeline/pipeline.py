"""What the commands call."""

from laue_dask.pipeline.evaluating import evaluate as evaluate
from laue_dask.pipeline.segmenting import segment as segment
from laue_dask.pipeline.single_scan import run as run
