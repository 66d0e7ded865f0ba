"""`laue-dask segment` and `evaluate`: what is done with a finished run."""

from pathlib import Path
from typing import Any

import click

from laue_dask.commands.answers import answer_places
from laue_dask.commands.options import components_option, k_option, workers_option
from laue_dask.commands.process import begin_progress, typed
from laue_dask.errors import ExitCode
from laue_dask.runtime import imports
from laue_dask.runtime.safe_text import echo, echo_lines


@click.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@k_option("Make K clusters; the option may be repeated.")
@click.option(
    "--estimator",
    type=click.Choice(["kmeans", "bgm", "gmm", "hdbscan", "mean_shift"]),
    help="Choose the clustering method; the last two find K themselves.",
)
@components_option("Use this many components, or as many as explain this share of the variance.")
@click.option(
    "--sweep/--no-scores", default=None, help="Score every K again, or never [default: where parameters changed]."
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="Read the configuration from this file; options win over it.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write these segmentations to a new folder; RUN stays as it is."
)
def segment(run_folder: Path, config_file: Path | None, **given: Any) -> int:
    """Cluster the patterns of a finished run again; its features stay as they are.

    Segmentations that were made with the same parameters stay. Those of other parameters, such as another
    estimator, are replaced, unless --out names a new folder.
    """
    with imports.without_garbage_collection():
        from laue_dask.api.run import Run

    progress = begin_progress()
    made = Run(run_folder).segment(config=config_file, command=typed(), progress=progress, **given)
    record, folder = made.record, given["out"] or run_folder
    for number, found in zip(record.k, record.n_clusters, strict=True):
        echo(f"K = {number}" + (f": {found} clusters own patterns" if found < number else ""))
    answer_places(record, folder)
    return ExitCode.DONE


@click.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--truth",
    required=True,
    type=click.Path(path_type=Path),
    help="The true map: an .npz file with `domain`, `angle` or both.",
)
@workers_option
def evaluate(run_folder: Path, truth: Path, workers: int | None) -> int:
    """Compare a run with a true map, beside pixel PCA and an untrained encoder, all with the run's estimator.

    If the true map has an angle, plots/approximation.png shows how well K delegates stand for it, for many K.
    """
    with imports.without_garbage_collection():
        from laue_dask.api import tables
        from laue_dask.api.run import Run

    compared = Run(run_folder)
    compared.evaluate(truth, workers=workers, progress=begin_progress())
    echo_lines(tables.evaluation_text(compared.record.evaluation))
    return ExitCode.DONE
