"""``python -m laue_dask`` is ``laue-dask``."""

from laue_dask.cli import main

main()
