"""`laue-dask ingest`, `plan` and `run`: from frames to maps."""

from pathlib import Path
from typing import Any

import click

from laue_dask.api.options import overrides
from laue_dask.commands import completion
from laue_dask.commands.answers import answer_run, answer_set_aside
from laue_dask.commands.options import (
    cluster_options,
    components_option,
    extractor_option,
    grid_options,
    k_option,
    part_options,
    store_option,
)
from laue_dask.commands.process import begin_imports, begin_progress, begin_work, typed
from laue_dask.config import load
from laue_dask.errors import ExitCode
from laue_dask.runtime import imports
from laue_dask.runtime.safe_text import echo, echo_lines


@click.command()
@click.argument("source", shell_complete=completion.paths)
@click.argument("store", type=click.Path(path_type=Path))
@grid_options
@part_options
@cluster_options
def ingest(source: str, store: Path, config_file: Path | None, **given: Any) -> int:
    """Write detector frames into a scan store.

    SOURCE is a folder, a glob, a text file of paths, or an HDF5 stack (file.h5::/path).
    """
    config = load(config_file, overrides(**given))
    with imports.without_garbage_collection():
        from laue_dask.api import tools, work

    scan = work.ingest(source, store, config, progress=begin_progress())
    echo_lines(tools.info(store))
    return answer_set_aside(scan.set_aside)


@click.command()
@click.argument("source", shell_complete=completion.paths)
@click.option(
    "--out",
    default=".",
    type=click.Path(path_type=Path),
    help="The folder in which the run would be [default: this folder].",
)
@extractor_option
@store_option
@grid_options
@part_options
@cluster_options
def plan(source: str, out: Path, config_file: Path | None, **given: Any) -> int:
    """Say what a run would take: blocks, tasks, bytes, memory and time, after a test of about ten seconds.

    SOURCE is what `run` takes. A run for which the disk or a worker's memory is too small is refused here as well.
    """
    config = load(config_file, overrides(**given))
    with imports.without_garbage_collection():
        from laue_dask.api import work

    begin_work()
    echo_lines(work.plan(source, out, config))
    return ExitCode.DONE


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, shell_complete=completion.paths)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder of the run.")
@k_option("Make K clusters; the option may be repeated.")
@components_option("Use this many components, or as many as explain this share of the variance [default: 0.99].")
@extractor_option
@click.option(
    "--weights",
    shell_complete=completion.weights,
    help="Use these weights: `default`, `untrained` or a .safetensors file.",
)
@click.option(
    "--substrate", type=click.Choice(["keep", "remove"]), help="Keep the scan's own median pattern, or subtract it."
)
@store_option
@click.option("--again", is_flag=True, help="Read changed frames again, and replace the run in --out.")
@grid_options
@part_options
@cluster_options
def run(sources: tuple[str, ...], out: Path, again: bool, config_file: Path | None, **given: Any) -> int:
    """Segment a scan: frames or a scan store → label maps, scores and a report.

    SOURCE is a scan store, or frames as `ingest` takes them. After a kill, the same command goes on where the run
    stopped. A finished run is refused if its frames were changed since, unless --again is given.
    Several sources make a series: they share one PCA and one clustering, each has its run in a folder below --out,
    and series.html shows all maps side by side.
    """
    config = load(config_file, overrides(**given))
    begin_imports(config)
    with imports.without_garbage_collection():
        from laue_dask.api import work

    options: dict[str, Any] = {"config": config, "again": again, "command": typed(), "progress": begin_progress()}
    if len(sources) == 1:
        return answer_run(work.run(sources[0], out, **options).record, out)
    runs = work.run_series(sources, out, **options)
    echo(f"series: {out / 'series.html'}")
    return max(answer_run(one.record, out / one.path.name) for one in runs)
