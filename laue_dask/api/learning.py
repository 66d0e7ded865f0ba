"""Weights of one's own: training, fine-tuning, and the encoder for other programs."""

import os
from collections.abc import Sequence
from pathlib import Path

from laue_dask.api.options import AnyPath, path_of, progress_of
from laue_dask.api.scan import Scan
from laue_dask.features.weights import Card
from laue_dask.pipeline import learning
from laue_dask.runtime.progress import Progress
from laue_dask.training import export

__all__ = ["beside", "export_encoder", "fine_tune", "train"]


def train(
    stores: AnyPath | Sequence[AnyPath],
    validation: AnyPath,
    out: AnyPath,
    config: AnyPath | None = None,
    *,
    start: str | None = None,
    minutes: float | None = None,
    progress: Progress | bool | None = None,
) -> Card:
    """Train an encoder on simulated patterns.

    The same call goes on where one that was killed stopped.

    Parameters
    ----------
    stores
        Training stores of one recipe, as `simulate_training` makes them.
    validation
        One of another seed.
    out
        Weights, a ``.safetensors`` file; history and figures go beside it.
    config
        Path of a training configuration (YAML).
    start
        Weights to go on from; random ones by default.
    minutes
        Time allowed, over all calls; the configured epochs by default.
    progress
        Where it is told how far the work is; False for nowhere.

    Returns
    -------
    Card
        What the weights are and how good, as it stands in the file.

    Raises
    ------
    InputError
        The stores, the configuration or the weights cannot be used.

    Examples
    --------
    >>> import laue_dask as ld
    >>> card = ld.train(["half.zarr", "full.zarr"], "val.zarr", "mine.safetensors", minutes=38)  # doctest: +SKIP
    """
    given = [stores] if isinstance(stores, str | os.PathLike) else stores
    return learning.train(
        [path_of(one) for one in given],
        path_of(validation),
        path_of(out),
        None if config is None else path_of(config),
        start=start,
        minutes=minutes,
        progress=progress_of(progress),
    )


def fine_tune(
    scan: Scan | AnyPath,
    start: str,
    out: AnyPath,
    config: AnyPath | None = None,
    *,
    minutes: float | None = None,
    workers: int | None = None,
    progress: Progress | bool | None = None,
) -> Card:
    """Train weights further on a scan of one's own, without labels: of use where grains are bent.

    Parameters
    ----------
    scan
        A scan store, or the path of one.
    start
        Weights to go on from, such as ``"default"``.
    out, config, minutes, progress
        As `train` takes them.
    workers
        Worker processes, where the scan is still to be reduced.

    Returns
    -------
    Card
        What the weights are and how good.

    Raises
    ------
    InputError
        The scan has nothing to gain, or something cannot be used.

    Examples
    --------
    >>> import laue_dask as ld
    >>> card = ld.fine_tune("runs/a/scan.zarr", "default", "mine.safetensors")  # doctest: +SKIP
    """
    return learning.fine_tune(
        scan.path if isinstance(scan, Scan) else path_of(scan),
        start,
        path_of(out),
        None if config is None else path_of(config),
        minutes=minutes,
        workers=workers,
        progress=progress_of(progress),
    )


def export_encoder(weights: str, out: AnyPath) -> float:
    """Write the encoder of weights for other programs, which read it with ``torch.export.load(out).module()``.

    It takes reduced patterns, (n, 1, 128, 128) float32 in [0, 1], and gives features, (n, 256) float32.

    Parameters
    ----------
    weights
        ``"default"``, ``"untrained"``, or the path of a ``.safetensors`` file.
    out
        File that is written, ``….pt2``.

    Returns
    -------
    float
        Largest difference of any feature from the network's own.

    Raises
    ------
    InputError
        Another format is asked for, or the weights cannot be used.

    Examples
    --------
    >>> import laue_dask as ld
    >>> ld.export_encoder("default", "encoder.pt2")  # doctest: +SKIP
    """
    return export.export(weights, path_of(out))


def beside(out: AnyPath) -> tuple[Path, Path]:
    """Return the files of the history and of the losses that `train` leaves beside the weights."""
    path = path_of(out)
    return learning.history_path(path), learning.losses_path(path)
