"""`laue-dask train` and `export`: weights, and the encoder for other programs."""

from pathlib import Path
from typing import Any

import click

from laue_dask.commands import completion
from laue_dask.commands.process import begin_progress, begin_work
from laue_dask.errors import ExitCode
from laue_dask.runtime import imports
from laue_dask.runtime.safe_text import echo


@click.command()
@click.argument("training", type=click.Path(path_type=Path), nargs=-1)
@click.option("--validation", type=click.Path(path_type=Path), help="A training store that was made with another seed.")
@click.option(
    "--scan", type=click.Path(path_type=Path), help="Train on your own scan, without labels, instead of stores."
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The .safetensors file to which the weights are written.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="Read the training's configuration from this YAML file.",
)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after so many minutes.")
@click.option("--from", "start", shell_complete=completion.weights, help="Begin with these weights.")
def train(
    training: tuple[Path, ...],
    validation: Path | None,
    scan: Path | None,
    out: Path,
    config_file: Path | None,
    minutes: float | None,
    start: str | None,
) -> int:
    """Train an encoder on training stores, or fine-tune one on your own scan.

    `laue-dask simulate training` makes training stores. Fine-tuning (--from and --scan) is of use where grains are
    bent; other scans are refused, since they would gain nothing.

    After a kill, the same command goes on where the training stopped. If only epochs limit it, the result is the same
    to the last bit; with --minutes it has the time that was left.
    """
    if scan is None and (not training or validation is None):
        raise click.UsageError("Give training stores and --validation, or --from and --scan.")
    if scan is not None and (training or validation is not None or start is None):
        raise click.UsageError("--scan needs --from and takes neither training stores nor --validation.")
    with imports.without_garbage_collection():
        from laue_dask.api import learning

    options: dict[str, Any] = {"minutes": minutes, "progress": begin_progress()}
    if scan is not None and start is not None:
        card = learning.fine_tune(scan, start, out, config_file, **options)
    elif validation is not None:
        card = learning.train(training, validation, out, config_file, start=start, **options)
    for name, value in card.metrics.items():
        echo(f"{name:32s} {value:.5g}")
    history, losses = learning.beside(out)
    echo(f"weights: {out}   history: {history}   losses: {losses}")
    return ExitCode.DONE


@click.command()
@click.argument("weights_name", metavar="WEIGHTS", shell_complete=completion.weights)
@click.argument("out", type=click.Path(path_type=Path))
def export(weights_name: str, out: Path) -> int:
    """Write the encoder of WEIGHTS for other programs, which read OUT.pt2 with torch.export.load(OUT).module().

    It takes reduced patterns, (n, 1, 128, 128) float32 in [0, 1], and gives features, (n, 256) float32.
    """
    from laue_dask.api import learning

    begin_work()
    difference = learning.export_encoder(weights_name, out)
    echo(f"{out}: its features are the network's; the largest difference is {difference:.1g}")
    return ExitCode.DONE
