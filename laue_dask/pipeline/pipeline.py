"""What the commands call."""

from laue_dask.pipeline.batch import run as run
from laue_dask.pipeline.evaluating import evaluate as evaluate
from laue_dask.pipeline.segmenting import segment as segment
