"""Reduced patterns → features (Definition 4), and how well the autoencoder knows the patterns it is shown."""

from typing import Any

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray

from laue_dask.compute.cluster import Workers
from laue_dask.compute.run import location, map_tasks, write_array
from laue_dask.config import Config, EncoderConfig
from laue_dask.encoder import weights
from laue_dask.encoder.encode import encode, reconstruction_error
from laue_dask.io.results import ResultsWriter
from laue_dask.progress import Progress
from laue_dask.stages.specimen import Map

QUALITY_SAMPLE = 1000
"""Patterns, at least, whose reconstruction error is computed with `quality: sample`; all of a smaller scan."""


def extract(
    reduced: zarr.Array[Any],
    valid: NDArray[np.bool_],
    latent: int,
    config: EncoderConfig,
    results: ResultsWriter,
    *,
    key: str,
    workers: Workers,
    progress: Progress,
) -> da.Array:
    """Encode all patterns into `results`, on GPU workers where there are any.

    Parameters
    ----------
    reduced : (pattern, 128, 128) uint8
        On disk; its shards are the blocks of work.
    valid : (pattern,) bool
        The features of the others are NaN.
    latent
        M_AE.
    key
        Of this stage: features that an earlier run left under it are kept.

    Returns
    -------
    features : (pattern, latent) float32
        On disk, lazy.
    """
    block = reduced.chunks[0] if reduced.shards is None else reduced.shards[0]
    array = results.blocks("features", (len(valid), latent), block=block, key=key)
    features = encode(
        da.from_zarr(reduced, chunks=(block, *reduced.shape[1:])),
        valid,
        name=config.weights,
        latent=latent,
        batch_size=config.batch_size,
        precision=config.precision,
    )
    write_array(features, array, stage="encode", client=workers.client, progress=progress, resources=workers.gpu)
    stored: da.Array = da.from_zarr(array, chunks=(block, latent))
    return stored


def reconstruction_errors(
    reduced: zarr.Array[Any], where: Map, config: Config, *, workers: Workers, progress: Progress
) -> NDArray[np.float32]:
    """Reconstruction error (ny, nx) of all patterns, of some spread over the scan, or of none; NaN elsewhere."""
    error = np.full(len(where.valid), np.nan, dtype=np.float32)
    chosen = where.patterns
    if config.quality == "none" or not len(chosen):
        return error.reshape(where.shape)
    if config.quality == "sample":
        chosen = chosen[:: max(1, len(chosen) // QUALITY_SAMPLE)]
    parts = [chosen[i : i + 128] for i in range(0, len(chosen), 128)]
    shared = (*location(reduced), config.encoder)
    with progress.stage("quality", total=len(chosen)) as advance:
        found = map_tasks(
            _errors,
            parts,
            shared,
            client=workers.client,
            resources=workers.gpu,
            on_done=lambda part: advance(len(part)),
        )
    error[chosen] = np.concatenate(found)
    return error.reshape(where.shape)


def _errors(patterns: NDArray[np.int64], root: str, name: str, config: EncoderConfig) -> NDArray[np.float32]:
    reduced = zarr.open_array(root, path=name, mode="r")
    return reconstruction_error(
        np.asarray(reduced.oindex[patterns]),
        name=config.weights,
        digest=weights.digest(config.weights),
        batch_size=config.batch_size,
        precision=config.precision,
    )
