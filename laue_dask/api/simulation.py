"""Simulated scans with known truth, and simulated patterns to train an encoder on."""

from pathlib import Path

from laue_dask.api.options import AnyConfig, AnyPath, configured, overrides, path_of, progress_of
from laue_dask.config import Order
from laue_dask.runtime.progress import Progress
from laue_dask.simulate import campaign


def simulate_scan(
    kind: str,
    out: AnyPath,
    *,
    shape: tuple[int, int] = (30, 30),
    seed: int = 0,
    order: Order = "raster",
    detector: str = "pilatus1m",
    config: AnyConfig | None = None,
    workers: int | None = None,
    progress: Progress | bool | None = None,
) -> Path:
    """Simulate a scan: a TIFF file for each point, and the truth.

    The same call goes on where one that was killed stopped.

    Parameters
    ----------
    kind
        Specimen: grains, twins, two_phases, bent, fine_twins, three_phases, subgrains, substrate_film, gan_on_si,
        low_counts, few_spots, messy or messy_twins.
    out
        Folder, made if need be.
    shape
        (ny, nx) of the grid.
    seed
        Of everything that is random.
    order
        Order in which the files are numbered.
    detector
        As pilatus1m, pilatus6m, marccd165, scmos, eiger500k.
    config, workers, progress
        As `laue_dask.run` takes them.

    Returns
    -------
    Path
        Of `truth.npz`, with `domain` and `angle` (ny, nx), as `Run.evaluate` takes it.

    Raises
    ------
    InputError
        There is no such specimen or detector, the folder holds something else, or the disk is too small.

    Examples
    --------
    >>> import laue_dask as ld
    >>> truth = ld.simulate_scan("twins", "frames", shape=(24, 30))  # doctest: +SKIP
    """
    folder = path_of(out)
    campaign.write_scan(
        kind,
        folder,
        shape=shape,
        seed=seed,
        detector=detector,
        order=order,
        config=configured(config, overrides(workers=workers)),
        progress=progress_of(progress),
    )
    return folder / "truth.npz"


def simulate_training(
    out: AnyPath,
    *,
    experiments: int = 100,
    seed: int = 0,
    binning: int = 1,
    config: AnyConfig | None = None,
    workers: int | None = None,
    progress: Progress | bool | None = None,
) -> Path:
    """Simulate patterns to train an encoder on.

    Parameters
    ----------
    out
        Training store; one of the same seed that was left unfinished there is gone on with.
    experiments
        Number of simulated experiments: one crystal on one detector each.
    seed
        Of everything that is random; another one for validation.
    binning
        Detector pixels along a side that are joined in one: 2 is about three times as fast.
    config, workers, progress
        As `laue_dask.run` takes them.

    Returns
    -------
    Path
        Of the store.

    Raises
    ------
    InputError
        The path exists and is finished, or is something else.

    Examples
    --------
    >>> import laue_dask as ld
    >>> ld.simulate_training("half.zarr", experiments=365, seed=1, binning=2)  # doctest: +SKIP
    """
    path = path_of(out)
    campaign.write_training_store(
        path,
        experiments=experiments,
        seed=seed,
        binning=binning,
        config=configured(config, overrides(workers=workers)),
        progress=progress_of(progress),
    )
    return path
