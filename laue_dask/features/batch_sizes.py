"""How many patterns go through a network at once."""

from laue_dask.io.blocks import LARGEST_BLOCK

AUTO_BATCH_SIZES = {"cpu": (16, 32, 64), "cuda": (32, 64, 128, 256, LARGEST_BLOCK)}
"""That are tried where the configuration says `auto`, by kind of device. On a CPU the maps of a larger batch do not
stay in its cache; on a GPU no task would fill it."""
