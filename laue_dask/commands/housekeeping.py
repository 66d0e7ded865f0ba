"""`laue-dask info`, `clean`, `verify`, `doctor` and `config`: what is there, and whether it is whole."""

from contextlib import closing
from pathlib import Path

import click

from laue_dask.api.options import overrides
from laue_dask.commands.options import cluster_options
from laue_dask.commands.process import begin_progress, begin_work
from laue_dask.config import Config, dump, load
from laue_dask.errors import ExitCode
from laue_dask.runtime import imports
from laue_dask.runtime.safe_text import echo, echo_lines


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
def info(path: Path) -> int:
    """Say what a scan store, a run, a weights file or a frame is."""
    from laue_dask.api import tools

    echo_lines(tools.info(path))
    return ExitCode.DONE


@click.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--reduced", is_flag=True, help="Remove the reduced patterns, too; `run` makes them again from the frames."
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, but remove nothing.")
def clean(run_folder: Path, reduced: bool, dry_run: bool) -> int:
    """Remove what a finished run does not need: files that killed commands left, and patterns of other recipes.

    Maps, results, frames and figures stay. `laue-dask info RUN` says what each part takes on the disk.
    """
    with imports.without_garbage_collection():
        from laue_dask.api import tools

    begin_work()
    for line in tools.in_words(tools.clean(run_folder, reduced=reduced, dry_run=dry_run), dry_run=dry_run):
        echo(line)
    return ExitCode.DONE


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--sources", is_flag=True, help="Read all frames of the source as well, and compare them.")
def verify(path: Path, sources: bool) -> int:
    """Check every object of a scan store, a run or a weights file against its receipts.

    With --sources, the detector's files are checked as well: which of them are gone, and which hold other frames than
    those that were read. The command says what is damaged and what to do, and exits with 1 if anything is damaged.
    It changes nothing.
    """
    from laue_dask.api import tools

    found = tools.verify(path, sources=sources, progress=begin_progress())
    for line in found.lines():
        echo(line)
    return ExitCode.FAILED if found.findings else ExitCode.DONE


@click.command()
@click.option(
    "--out",
    default=".",
    type=click.Path(path_type=Path),
    help="The folder in which runs will be [default: this folder].",
)
@cluster_options
def doctor(out: Path, config_file: Path | None, workers: int | None) -> int:
    """Check versions, machine, storage, locks and workers, with a job of some seconds.

    Each line says `pass`, or what to do.
    """
    config = load(config_file, overrides(workers=workers))
    from laue_dask.commands import doctor as examination

    begin_work()
    passed = True
    with closing(examination.run_checks(config, out)) as findings:
        for finding in findings:
            echo(str(finding))
            passed &= finding.passed
    return ExitCode.DONE if passed else ExitCode.FAILED


@click.command("config")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--nightly", "of_nights", is_flag=True, help="Print the configuration of `laue-dask nightly`.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of the configuration.")
def show_config(file: Path | None, of_nights: bool, schema: bool) -> int:
    """Print the configuration with every default, or what FILE means."""
    if of_nights:
        from laue_dask.nightly import config as nightly_config

        click.echo(nightly_config.dump(nightly_config.load(file)), nl=False)
    elif schema:
        import json

        click.echo(json.dumps(Config.model_json_schema(), indent=1))
    else:
        click.echo(dump(load(file)), nl=False)
    return ExitCode.DONE
