"""Reduced patterns → features (Definition 4), and how well the autoencoder knows the patterns it is shown."""

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray

from laue_dask.compute.cluster import Workers
from laue_dask.compute.plan import RECONSTRUCTIONS_PER_TASK
from laue_dask.compute.run import Begun, begin_tasks, is_complete, map_tasks, write_array
from laue_dask.config import EncoderConfig, Recipe
from laue_dask.features import weights
from laue_dask.features.drift import Drift
from laue_dask.features.encode import Network
from laue_dask.features.extractors import Extractor, Sample
from laue_dask.features.peaks import Peaks
from laue_dask.features.pixels import Pixels
from laue_dask.io import block_reader
from laue_dask.io import results as io_results
from laue_dask.io.block_files import location
from laue_dask.io.results import ResultsWriter
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.reuse import Output
from laue_dask.pipeline.stages.early_encoding import adopt_early_features
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.runtime.progress import Progress

MIN_QUALITY_SAMPLE = 500
"""Patterns, at least, whose reconstruction error is computed with `quality: sample`; all of a smaller scan."""


def extractor_of(config: EncoderConfig, recipe: Recipe) -> Extractor:
    """Return the configured feature extractor, not fitted yet.

    Raises
    ------
    StoreError
        Its weights are missing, damaged, or of another recipe.
    """
    match config.extractor:
        case "network":
            return Network.load(config, recipe)
        case "pixels":
            return Pixels()
        case "peaks":
            return Peaks()


def lazy_patterns(reduced: zarr.Array[Any]) -> da.Array:
    """Return the reduced patterns on disk as an array whose chunks are the blocks of work."""
    return block_reader.lazy_array(reduced)


def lazy_features(reduced: zarr.Array[Any], extractor: Extractor) -> da.Array:
    """Return the features (pattern, latent) of a scan store's reduced patterns; NaN where its `valid` says so.

    As `extractors.features` of an array makes them, but a single task reads a block and encodes it.
    """
    root, member = location(reduced)
    n, block = reduced.shape[0], (reduced.shards or reduced.chunks)[0]
    lazy: da.Array = da.map_blocks(
        _encode_block,
        root=root,
        member=member,
        block=block,
        extractor=extractor,
        dtype=np.float32,
        chunks=((block,) * (n // block) + ((n % block,) if n % block else ()), (extractor.n_features,)),
        meta=np.empty((0, 0), dtype=np.float32),
    )
    return lazy


def _encode_block(
    *, root: str, member: str, block: int, extractor: Extractor, block_id: tuple[int, ...] | None = None
) -> NDArray[np.float32]:
    if block_id is None:
        raise ValueError("block_id is needed to know which patterns to read")
    rows = slice(block_id[0] * block, (block_id[0] + 1) * block)
    patterns = block_reader.read_rows(zarr.open_array(root, path=member, mode="r"), rows)
    return extractor.extract(patterns, ScanStore(root).valid[rows])


def sample_of(patterns: da.Array, where: SpecimenMap) -> Sample:
    """Return the reader of patterns that are evenly spread over the scan, for `Extractor.fit`."""

    def sample(size: int) -> NDArray[np.uint8]:
        chosen = where.patterns
        spread = np.linspace(0, len(chosen) - 1, min(size, len(chosen))).round().astype(np.int64)
        return np.asarray(patterns[chosen[spread]].compute())

    return sample


def extract(
    reduced: zarr.Array[Any],
    where: SpecimenMap,
    extractor: Extractor,
    results: ResultsWriter,
    output: Output,
    *,
    workers: Workers,
    progress: Progress,
) -> da.Array:
    """Write the features of all patterns into `results`, on GPU workers where there are any and the extractor gains by
    it.

    Parameters
    ----------
    reduced : (pattern, 128, 128) uint8
        On disk; its shards are the blocks of work.
    where
        The features of patterns that are not valid are NaN.
    extractor
        As configured; it is fitted here, and what it learnt is kept beside the results.
    output
        Of this stage: features that an earlier run left under its key are kept.

    Returns
    -------
    features : (pattern, latent) float32
        On disk, lazy.
    """
    patterns = lazy_patterns(reduced)
    block = int(patterns.chunksize[0])
    adopt_early_features(results, reduced, where.valid, extractor, output.key)
    array = results.blocks("features", (len(where.valid), extractor.n_features), block=block, key=output.key)
    kept = is_complete(array)
    output.announce(kept=kept)
    _, finished = io_results.arrays(results.path.parent, "features")
    if finished is not None and finished.attrs.get("key") == output.key:
        forget_learnt(results.path.parent)  # what was begun is of another run
    if not kept:
        fitted = extractor.fit(sample_of(patterns, where), _begun_learnt(results.path.parent, extractor))
        write_array(
            lazy_features(reduced, fitted),
            array,
            stage="encode",
            client=workers.client,
            progress=progress,
            resources=workers.gpu if extractor.on_gpu else None,
        )
    return block_reader.lazy_array(array)


def finite(features: da.Array) -> NDArray[np.bool_]:
    """Return (pattern,) whether all features of each are finite numbers."""
    return np.asarray(da.isfinite(features).all(axis=1).compute(), dtype=bool)


def learnt_file(folder: Path, extractor: Extractor) -> Path:
    """Return where a run keeps what its extractor learnt from the scan."""
    return folder / f"{extractor.name}.safetensors"


def _begun_learnt(folder: Path, extractor: Extractor) -> Path:
    """Where it is as long as the results in their place are those of another run."""
    file = learnt_file(folder, extractor)
    return file.with_name(f"{file.name}.part")


def keep_learnt(folder: Path, extractor: Extractor) -> None:
    """Put what an extractor learnt of a scan in its place, as the features that were made with it are."""
    begun = _begun_learnt(folder, extractor)
    if begun.exists():
        begun.replace(learnt_file(folder, extractor))


def forget_learnt(folder: Path) -> None:
    """Remove what an extractor of a run that was begun has learnt."""
    for left in folder.glob("*.safetensors.part"):
        left.unlink(missing_ok=True)


def begin_errors(
    reduced: zarr.Array[Any], where: SpecimenMap, extractor: Extractor, quality: str, *, workers: Workers
) -> Begun:
    """Have the errors of a sample computed while this process does something else, for `reconstruction_errors`.

    Those of all patterns are many times the work, and wait for their own turn.
    """
    if not isinstance(extractor, Network) or quality != "sample":
        return {}
    parts = _parts(where, quality)
    return begin_tasks(_errors, parts, (*location(reduced), extractor), client=workers.client, resources=workers.gpu)


def reconstruction_errors(
    reduced: zarr.Array[Any],
    where: SpecimenMap,
    extractor: Extractor,
    quality: str,
    *,
    workers: Workers,
    progress: Progress,
    begun: Begun | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return how far the autoencoder's reconstructions are from the patterns: of all, of some spread over the scan, or
    none.

    Parameters
    ----------
    extractor
        One that is no network reconstructs nothing.
    quality
        `all`, `sample` or `none`.
    begun
        What `begin_errors` returned.

    Returns
    -------
    error, unexplained : (ny, nx) float32
        Binary cross entropy in nat, mean per pixel, and the share `losses.unexplained`; NaN where not computed.
    """
    error = np.full((2, len(where.valid)), np.nan, dtype=np.float32)
    parts = _parts(where, quality) if isinstance(extractor, Network) else []
    if parts:
        chosen = np.concatenate(parts)
        with progress.stage("quality", total=len(chosen)) as advance:
            found = map_tasks(
                _errors,
                parts,
                (*location(reduced), extractor),
                client=workers.client,
                resources=workers.gpu,
                on_done=lambda part: advance(len(part)),
                begun=begun,
            )
        error[:, chosen] = np.concatenate(found).T
    entropy, unexplained = error.reshape(2, *where.shape)
    return entropy, unexplained


def _parts(where: SpecimenMap, quality: str) -> list[NDArray[np.int64]]:
    """Patterns whose errors are computed, by task."""
    if quality == "none":
        return []
    chosen = where.patterns
    if quality == "sample":
        chosen = chosen[:: max(1, len(chosen) // MIN_QUALITY_SAMPLE)]
    return [chosen[i : i + RECONSTRUCTIONS_PER_TASK] for i in range(0, len(chosen), RECONSTRUCTIONS_PER_TASK)]


def drift_of(extractor: Extractor, unexplained: NDArray[np.float32]) -> Drift | str:
    """Return how a scan's patterns compare with those that the weights were checked on, or why that is not known.

    Parameters
    ----------
    unexplained : (ny, nx) float32
        See `reconstruction_errors`.
    """
    if not isinstance(extractor, Network):
        return f"the extractor `{extractor.name}` does not reconstruct patterns"
    if not np.isfinite(unexplained).any():
        return "no reconstruction error was computed"
    path = weights.locate(extractor.weights_name)
    reference = {} if path is None else weights.read_card(path).reference
    return Drift.between(unexplained, reference) or "these weights have no reference of their training"


def _errors(patterns: NDArray[np.int64], root: str, name: str, network: Network) -> NDArray[np.float32]:
    reduced = zarr.open_array(root, path=name, mode="r")
    return network.errors(block_reader.read_rows(reduced, patterns))
