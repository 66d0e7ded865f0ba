"""`laue-dask demo` and `simulate`: scans whose true maps are known."""

from pathlib import Path
from typing import Any, Literal

import click

from laue_dask.api.options import overrides
from laue_dask.commands import completion
from laue_dask.commands.options import workers_option
from laue_dask.commands.process import begin_progress
from laue_dask.config import load
from laue_dask.errors import ExitCode
from laue_dask.runtime import imports
from laue_dask.runtime.safe_text import echo, echo_lines

KINDS = (
    *("grains", "twins", "two_phases", "bent", "fine_twins", "three_phases", "subgrains", "substrate_film"),
    *("gan_on_si", "low_counts", "few_spots", "messy", "messy_twins"),
)
DETECTORS = ("pilatus1m", "pilatus6m", "marccd165", "scmos", "eiger500k", "lambda750k", "pilatus300kw")
"""What a shell offers, which must not wait for the simulation to be imported."""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default="demo")
@click.option("--shape", type=click.IntRange(min=8), nargs=2, metavar="NY NX", default=(24, 30), show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True)
@workers_option
def demo(folder: Path, shape: tuple[int, int], seed: int, workers: int | None) -> int:
    """Simulate a small twinned BaTiO3 scan, segment it and compare it with the truth."""
    with imports.without_garbage_collection():
        from laue_dask.commands import demonstration

    config = load(None, overrides(workers=workers, k=(demonstration.N_MAJOR_GRAINS,)))
    echo_lines(demonstration.demonstrate(folder, shape=shape, seed=seed, config=config, progress=begin_progress()))
    return ExitCode.DONE


@click.command()
@click.argument("kind", shell_complete=completion.names((*KINDS, "training")))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--shape", type=click.IntRange(min=1), nargs=2, metavar="NY NX", default=(30, 30), show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--order", type=click.Choice(["raster", "snake"]), default="raster", show_default=True)
@click.option(
    "--detector",
    default="pilatus1m",
    show_default=True,
    shell_complete=completion.names(DETECTORS),
    help="The detector: pilatus1m, pilatus6m, marccd165, scmos, eiger500k or another.",
)
@click.option(
    "--experiments",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="The number of experiments of `training`.",
)
@click.option(
    "--binning",
    type=click.IntRange(1, 4),
    default=1,
    show_default=True,
    help="The binning of the frames of `training`.",
)
@workers_option
def simulate(
    kind: str,
    out: Path,
    shape: tuple[int, int],
    seed: int,
    order: Literal["raster", "snake"],
    detector: str,
    experiments: int,
    binning: int,
    workers: int | None,
) -> int:
    """Simulate a scan as TIFF frames with truth.npz, or a training store.

    KIND is a specimen (grains, twins, two_phases, bent, fine_twins, three_phases, subgrains, substrate_film,
    gan_on_si, low_counts, few_spots, messy, messy_twins), or `training` for patterns to train an encoder on.
    """
    with imports.without_garbage_collection():
        from laue_dask.api import simulation

    shared: dict[str, Any] = {"seed": seed, "workers": workers, "progress": begin_progress()}
    if kind == "training":
        simulation.simulate_training(out, experiments=experiments, binning=binning, **shared)
        echo(f"{out}: {experiments} experiments")
    else:
        simulation.simulate_scan(kind, out, shape=shape, detector=detector, order=order, **shared)
        echo(f"{out}: {shape[0]} × {shape[1]} frames and truth.npz")
    return ExitCode.DONE
