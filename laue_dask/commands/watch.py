"""`laue-dask watch` and `nightly`: work that begins when the detector has written its files."""

from pathlib import Path
from typing import Any

import click

from laue_dask.api.options import overrides
from laue_dask.commands import completion
from laue_dask.commands.answers import answer_run
from laue_dask.commands.options import cluster_options, grid_options, k_option
from laue_dask.commands.process import begin_progress, begin_work, stopped_by_signal, typed
from laue_dask.config import load
from laue_dask.runtime import imports
from laue_dask.runtime.safe_text import echo
from laue_dask.runtime.terminal import announce


@click.command()
@click.argument("folder", shell_complete=completion.paths)
@grid_options
@click.option("--out", type=click.Path(path_type=Path), help="The folder of the run [default: FOLDER_run].")
@k_option("Make K clusters; the map shows the first K that is given.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=1800,
    show_default=True,
    metavar="SECONDS",
    help="The scan is over when no new frame has come for so long.",
)
@cluster_options
def watch(folder: str, out: Path | None, timeout: float, config_file: Path | None, **given: Any) -> int:
    """Map a scan while the detector writes its files into FOLDER, and segment it when it is over.

    A file may hold one frame or several; it is read when it is complete. FOLDER may be a glob.

    RUN/watch.html shows the maps, suggestions and alarms. The scan is over when all frames are there, after --timeout,
    or on Ctrl-C or SIGTERM; then the frames that are there are segmented, as `run` would do it. After a kill, the same
    command goes on.
    """
    config = load(config_file, overrides(**given))
    with imports.without_garbage_collection():
        from laue_dask.api import watching

    out = out or watching.run_folder_of(folder)
    options: dict[str, Any] = {"config": config, "command": typed(), "timeout": timeout, "progress": begin_progress()}
    with stopped_by_signal() as stop:
        run = watching.watch_scan(folder, out, stop=stop, say=announce, **options)
    return answer_run(run.record, out)


@click.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="Read the configuration of the nights from this YAML file.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder for runs, log and pages [default: `out` of --config]."
)
@click.option("--again", multiple=True, metavar="SCAN", help="Run this scan again; the option may be repeated.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, but write nothing.")
def nightly(root: Path, config_file: Path | None, out: Path | None, again: tuple[str, ...], dry_run: bool) -> int:
    """Run every complete scan below a beamtime's folder that is new, or that has changed since it was last run.

    A bad scan does not stop the others: it is tried again, then set aside. index.html, summary.json and nightly.log say
    what became of each scan. After a kill or a limit, the next night goes on. configs/nightly.yaml has every setting.

    Exit codes: 0 all done, 1 the night had to end early, 2 bad configuration, 3 some scans are set aside.
    """
    with imports.without_garbage_collection():
        from laue_dask.api import watching

    begin_work()
    return watching.run_nights(root, config_file, out=out, again=again, dry_run=dry_run, say=echo)
