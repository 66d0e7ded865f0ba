"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

import atexit
import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from laue_dask import __version__
from laue_dask.compute import forks
from laue_dask.config import Config, dump, load, merged, read_yaml
from laue_dask.errors import ExitCode, LaueDaskError, SpaceError
from laue_dask.io import deadline
from laue_dask.io.places import disk_full, is_full
from laue_dask.runtime import imports, interruption, silence
from laue_dask.runtime.homes import prepare_homeless
from laue_dask.runtime.printable import echo, echo_lines

if TYPE_CHECKING:
    from laue_dask.pipeline.record import Record
    from laue_dask.runtime.progress import Progress

NAME = "laue-dask"

_DASK_CONFIGURATION = "A dask config file at "
"""How Dask begins to say that a configuration file of the user's own, in ~/.config/dask, cannot be read."""


class _Lines(logging.Handler):
    """What happens to a cluster, as lines on stderr, above a bar that is drawn there."""

    def emit(self, record: logging.LogRecord) -> None:
        label = "warning: " if record.levelno >= logging.WARNING else ""
        echo(label + record.getMessage(), err=True)
        silence.heard()


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run a command and exit with its code; every error is one line on stderr."""
    logger = logging.getLogger("laue_dask")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Lines())
    logger.propagate = False
    interruption.at_once()
    prepare_homeless()
    typed = [one for one in arguments or sys.argv[1:] if one in commands.commands]
    if typed:
        silence.listen(typed[0])
    try:
        code = _exit_code(arguments)
    finally:
        silence.end()
        interruption.over()
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End the process without taking apart, object by object, all that it imported: that takes a second or two."""
    atexit._run_exitfuncs()
    forks.abandon()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # nobody reads it, or it was closed from the start
            stream.flush()
    os._exit(code)


def _exit_code(arguments: list[str] | None) -> int:
    try:
        return int(commands(args=arguments, prog_name=NAME, standalone_mode=False) or ExitCode.DONE)
    except (Exception, KeyboardInterrupt) as error:
        if interruption.ends(error):
            interruption.over()
            return _fail(interruption.SAID, ExitCode.FAILED)
        return _failed(error)


def _failed(error: BaseException) -> int:
    """Say in a line why a command failed; its exit code."""
    if is_full(error) and not isinstance(error, SpaceError):
        error = disk_full(error, *_places())
    match error:
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.format_message(), err=True)
            return int(ExitCode.BAD_INPUT)
        case click.UsageError():
            help_for = error.ctx.command_path if error.ctx else NAME
            return _fail(f"{error.format_message()} See `{help_for} --help`.", ExitCode.BAD_INPUT)
        case LaueDaskError():
            return _fail(str(error), error.exit_code)
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return _fail(f"{where}{error.strerror or error}", ExitCode.FAILED)
    if isinstance(error, ValueError) and str(error).startswith(_DASK_CONFIGURATION):
        return _fail(f"{' '.join(str(error).split())}: mend or remove that file", ExitCode.BAD_INPUT)
    # A defect of ours: the user gets one line, and the file to send to us.
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    try:
        descriptor, log = tempfile.mkstemp(prefix="laue-dask-", suffix=".log", text=True)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
    except OSError as other:
        return _fail(f"{text} (a defect; its details cannot be kept: {other.strerror})", ExitCode.FAILED)
    return _fail(f"{text} (a defect; the details are in {log})", ExitCode.FAILED)


def _places() -> list[Path]:
    """Where this command may have written to: what it was given, where it was given, and what is temporary."""
    given = [Path(text) for text in sys.argv[1:] if text and not text.startswith("-")]
    found = [Path.cwd(), *(path for path in given if path.exists() or len(path.parts) > 1)]
    with suppress(OSError):  # none that can be written to
        found.append(Path(tempfile.gettempdir()))
    return found


def _fail(message: str, code: int) -> int:
    echo(f"{NAME}: {message}", err=True)
    return int(code)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which one uses them


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name=NAME)
def commands() -> None:
    """Segment scanning Laue microdiffraction data without indexing.

    Exit codes: 0 done, 1 failed, 2 bad usage, configuration or input, 3 finished with some patterns set aside.
    """


def _grid_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--insist/--no-insist", default=None, help="Take --shape and --order whatever the files say."),
        click.option(
            "--first-number", type=click.IntRange(min=0), help="Number of the first file, where some are gone."
        ),
        click.option(
            "--order", type=click.Choice(["raster", "snake"]), help="Order of acquisition [the headers', or raster]."
        ),
    ):
        command = option(command)
    return click.option(
        "--shape", type=click.IntRange(min=1), nargs=2, metavar="NY NX", help="Grid: slow and fast axis."
    )(command)


def _part_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--every", type=click.IntRange(min=1), metavar="N", help="Every Nth row and column of these [1]."),
        click.option("--columns", metavar="A:B", help="Columns, likewise [all]."),
        click.option("--rows", metavar="A:B", help="A part of the scan: rows A to B - 1 of the grid, from 0 [all]."),
    ):
        command = option(command)
    return command


def _cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--workers", type=click.IntRange(min=1), help="Worker processes [all cores].")(command)
    return click.option(
        "--config", "config_file", type=click.Path(path_type=Path), help="Configuration (YAML); options win over it."
    )(command)


_extractor_option = click.option(
    "--extractor", type=click.Choice(["network", "pixels", "peaks"]), help="What makes features of a pattern [network]."
)
_store_option = click.option(
    "--store-frames/--no-store-frames", default=None, help="Copy the frames into the run's scan store [they are]."
)


@commands.command()
@click.argument("folder", type=click.Path(path_type=Path), default="demo")
@click.option("--shape", type=click.IntRange(min=8), nargs=2, metavar="NY NX", default=(24, 30), show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes [all cores].")
def demo(folder: Path, shape: tuple[int, int], seed: int, workers: int | None) -> int:
    """Simulate a small twinned BaTiO3 scan, segment it and compare it with the truth."""
    with imports.uncollected():
        from laue_dask.commands import demonstration

    config = load(None, _overrides(workers=workers, k=(demonstration.MAJOR_GRAINS,)))
    echo_lines(demonstration.demonstrate(folder, shape=shape, seed=seed, config=config, progress=_progress()))
    return ExitCode.DONE


@commands.command()
@click.argument("source")
@click.argument("store", type=click.Path(path_type=Path))
@_grid_options
@_part_options
@_cluster_options
def ingest(
    source: str,
    store: Path,
    shape: tuple[int, int] | None,
    order: str | None,
    first_number: int | None,
    insist: bool | None,
    rows: str | None,
    columns: str | None,
    every: int | None,
    config_file: Path | None,
    workers: int | None,
) -> int:
    """Write detector frames into a scan store.

    SOURCE is a folder, a glob, a text file of paths, or an HDF5 stack (file.h5::/path).
    """
    config = load(
        config_file,
        _overrides(
            shape=shape,
            order=order,
            first_number=first_number,
            insist=insist,
            rows=rows,
            columns=columns,
            every=every,
            workers=workers,
        ),
    )
    with imports.uncollected():
        from laue_dask.compute import cluster
        from laue_dask.pipeline import describe
        from laue_dask.pipeline.stages import ingest as ingesting

    progress = _progress()
    ingesting.check_out(store)
    # Local workers are still importing; jobs may wait for hours, in which frames arrive.
    look = ingesting.look_at(source, config.scan) if config.cluster.kind == "local" else None
    with cluster.start(config.cluster) as started:
        scan = ingesting.ingest(source, store, config.scan, look=look, workers=started, progress=progress)
    echo_lines(describe.describe(store))
    return _report_set_aside(scan.set_aside)


@commands.command()
@click.argument("source")
@click.option("--out", default=".", type=click.Path(path_type=Path), help="Folder that the run would have [here].")
@_extractor_option
@_store_option
@_grid_options
@_part_options
@_cluster_options
def plan(
    source: str,
    out: Path,
    extractor: str | None,
    store_frames: bool | None,
    shape: tuple[int, int] | None,
    order: str | None,
    first_number: int | None,
    insist: bool | None,
    rows: str | None,
    columns: str | None,
    every: int | None,
    config_file: Path | None,
    workers: int | None,
) -> int:
    """Say what a run would take: blocks, tasks, bytes, memory, and time from a probe of about ten seconds.

    SOURCE is as for `run`, which is refused here as well where the disk or a worker's memory is too small.
    """
    given = _overrides(
        rows=rows,
        columns=columns,
        every=every,
        shape=shape,
        order=order,
        first_number=first_number,
        insist=insist,
        workers=workers,
        extractor=extractor,
        store_frames=store_frames,
    )
    config = load(config_file, given)
    with imports.uncollected():
        from laue_dask.pipeline import planning

    _begin_work()
    echo_lines(planning.plan_run(source, out, config))
    return ExitCode.DONE


@commands.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("-k", "k", type=click.IntRange(min=2), multiple=True, help="A number of clusters; may be repeated.")
@click.option("--components", help="M_PCA: a number of components, or the share of variance to explain [0.99].")
@_extractor_option
@click.option("--weights", help="`default`, `untrained` or a .safetensors file.")
@click.option("--substrate", type=click.Choice(["keep", "remove"]), help="Subtract the scan's own median pattern.")
@_store_option
@click.option("--again", is_flag=True, help="Read frames again that changed since the run in --out, which is replaced.")
@_grid_options
@_part_options
@_cluster_options
def run(
    sources: tuple[str, ...],
    out: Path,
    k: tuple[int, ...],
    components: str | None,
    extractor: str | None,
    weights: str | None,
    substrate: str | None,
    store_frames: bool | None,
    again: bool,
    shape: tuple[int, int] | None,
    order: str | None,
    first_number: int | None,
    insist: bool | None,
    rows: str | None,
    columns: str | None,
    every: int | None,
    config_file: Path | None,
    workers: int | None,
) -> int:
    """Segment a scan: frames or a scan store → label maps, scores and a report.

    SOURCE is a scan store, or frames as `ingest` takes them. The same command goes on where a killed run stopped.
    A finished run whose frames were changed since is refused, unless --again is given.
    Several sources are a series: one PCA and one clustering of all, the run of each in a folder below --out, and
    series.html with all maps side by side.
    """
    overrides = _overrides(
        rows=rows,
        columns=columns,
        every=every,
        shape=shape,
        order=order,
        first_number=first_number,
        insist=insist,
        workers=workers,
        k=k,
        components=components,
        extractor=extractor,
        weights=weights,
        substrate=substrate,
        store_frames=store_frames,
    )
    config = load(config_file, overrides)
    _begin_imports(config)
    if len(sources) > 1:
        with imports.uncollected():
            from laue_dask.pipeline import series

        records = series.run(sources, out, config, command=_typed(), progress=_progress(), again=again)
        echo(f"series: {out / 'series.html'}")
        return max(_tell(one, out / name) for one, name in zip(records, records[0].series, strict=True))
    with imports.uncollected():
        from laue_dask.pipeline import pipeline

    return _tell(pipeline.run(sources[0], out, config, command=_typed(), progress=_progress(), again=again), out)


@commands.command()
@click.argument("folder")
@_grid_options
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run [FOLDER_run].")
@click.option("-k", "k", type=click.IntRange(min=2), multiple=True, help="A number of clusters; the first is mapped.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=1800,
    show_default=True,
    metavar="SECONDS",
    help="The scan is over when nothing new comes for so long.",
)
@_cluster_options
def watch(
    folder: str,
    shape: tuple[int, int] | None,
    order: str | None,
    first_number: int | None,
    insist: bool | None,
    out: Path | None,
    k: tuple[int, ...],
    timeout: float,
    config_file: Path | None,
    workers: int | None,
) -> int:
    """Map a scan while the detector writes its files into FOLDER, and segment it when it is over.

    A file holds one frame or several, which are taken when the file is complete; FOLDER may be a glob.

    RUN/watch.html shows the maps, suggestions and alarms. The scan is over when all frames are there, after --timeout,
    or on Ctrl-C or SIGTERM, with what there is; the result is that of `run`. After a kill, the same command goes on.
    """
    given = _overrides(shape=shape, order=order, first_number=first_number, insist=insist, workers=workers, k=k)
    config = load(config_file, given)
    with imports.uncollected():
        from laue_dask.io.patterns import is_pattern
        from laue_dask.watch import watcher

    path = Path(folder.partition("::")[0]).absolute()
    out = out or Path(f"{(path.parent if is_pattern(str(path)) else path).name}_run")
    progress = _progress()
    with _stopped_by_signal() as stop:
        record = watcher.watch(
            folder,
            out,
            config,
            command=_typed(),
            progress=progress,
            timeout=timeout,
            stop=stop,
            say=_say,
        )
    return _tell(record, out)


@commands.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("-k", "k", type=click.IntRange(min=2), multiple=True, help="A number of clusters; may be repeated.")
@click.option(
    "--estimator",
    type=click.Choice(["kmeans", "bgm", "gmm", "hdbscan", "mean_shift"]),
    help="Clustering method; the last two find K themselves.",
)
@click.option("--components", help="M_PCA: a number of components, or the share of variance to explain.")
@click.option("--sweep/--no-scores", default=None, help="Score every K again, or never [where parameters changed].")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Configuration; options win over it.")
@click.option("--out", type=click.Path(path_type=Path), help="New folder for these segmentations; RUN stays as it is.")
def segment(
    run_folder: Path,
    k: tuple[int, ...],
    estimator: str | None,
    components: str | None,
    sweep: bool | None,
    config_file: Path | None,
    out: Path | None,
) -> int:
    """Cluster the patterns of a finished run again, its features untouched.

    Segmentations that are there stay, but for those of other parameters, such as another estimator: with --out they
    stay as well.
    """
    given = _overrides(k=k, components=components, estimator=estimator)
    if estimator in ("hdbscan", "mean_shift") and not k:
        given["clustering"]["k"] = ()  # the run's own K are of no use to these
    changes = merged({} if config_file is None else read_yaml(config_file), given)
    with imports.uncollected():
        from laue_dask.pipeline import pipeline

    record = pipeline.segment(run_folder, changes, command=_typed(), sweep=sweep, progress=_progress(), out=out)
    run_folder = out or run_folder
    for number, found in zip(record["k"], record["n_clusters"], strict=True):
        echo(f"K = {number}" + (f": {found} clusters own patterns" if found < number else ""))
    echo(f"maps: {run_folder / 'plots'}   report: {run_folder / 'report.html'}")
    for warning in record["warnings"]:
        echo(f"warning: {warning}", err=True)
    return ExitCode.DONE


@commands.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Configuration of the nights (YAML).")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for runs, log and pages [`out` of --config].")
@click.option("--again", multiple=True, metavar="SCAN", help="Do a scan again; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
def nightly(root: Path, config_file: Path | None, out: Path | None, again: tuple[str, ...], dry_run: bool) -> int:
    """Run every scan below a beamtime's folder that is complete, and new or changed since it was last run.

    One bad scan stops nothing: it is tried again, then set aside. index.html, summary.json and nightly.log say what
    became of each. Killed or stopped by a limit, the next night goes on. configs/nightly.yaml holds every setting.

    Exit codes: 0 all done, 1 the night had to end early, 2 bad configuration, 3 some scans are set aside.
    """
    with imports.uncollected():
        from laue_dask.nightly import config as nightly_config
        from laue_dask.nightly import night

    config = nightly_config.load(config_file, {} if out is None else {"out": str(out.absolute())})
    where = str(config_file or "options")
    _begin_work()
    if dry_run:
        for line in night.plan_night(root, config, again=again, where=where):
            echo(line)
        return ExitCode.DONE
    return night.run_night(root, config, again=again, where=where, say=echo)


@commands.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--truth", required=True, type=click.Path(path_type=Path), help=".npz with `domain` and/or `angle`.")
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes [all cores].")
def evaluate(run_folder: Path, truth: Path, workers: int | None) -> int:
    """Compare a run with a true map, beside pixel PCA and an untrained encoder, all with the run's estimator.

    With an angle in the truth, plots/approximation.png shows how well K delegates stand for it over a wide range of K.
    """
    with imports.uncollected():
        from laue_dask.pipeline import pipeline
        from laue_dask.pipeline.stages import evaluation

    rows = pipeline.evaluate(run_folder, truth, workers=workers, progress=_progress())
    echo_lines(evaluation.table(rows))
    return ExitCode.DONE


@commands.command()
@click.argument("kind")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--shape", type=click.IntRange(min=1), nargs=2, metavar="NY NX", default=(30, 30), show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--order", type=click.Choice(["raster", "snake"]), default="raster", show_default=True)
@click.option(
    "--detector", default="pilatus1m", show_default=True, help="As pilatus1m, pilatus6m, marccd165, scmos, eiger500k."
)
@click.option("--experiments", type=click.IntRange(min=1), default=100, show_default=True, help="For `training`.")
@click.option("--binning", type=click.IntRange(1, 4), default=1, show_default=True, help="For `training`.")
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes [all cores].")
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
    config = load(None, _overrides(workers=workers))
    with imports.uncollected():
        from laue_dask.simulate import campaign

    if kind == "training":
        campaign.write_training_store(
            out, experiments=experiments, seed=seed, binning=binning, config=config, progress=_progress()
        )
        echo(f"{out}: {experiments} experiments")
    else:
        campaign.write_scan(
            kind, out, shape=shape, seed=seed, detector=detector, order=order, config=config, progress=_progress()
        )
        echo(f"{out}: {shape[0]} × {shape[1]} frames and truth.npz")
    return ExitCode.DONE


@commands.command()
@click.argument("training", type=click.Path(path_type=Path), nargs=-1)
@click.option("--validation", type=click.Path(path_type=Path), help="Training store of other seeds.")
@click.option("--scan", type=click.Path(path_type=Path), help="Instead of stores: your own scan, without labels.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Weights, a .safetensors file.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Training configuration (YAML).")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Time allowed.")
@click.option("--from", "start", help="Weights to go on from.")
def train(
    training: tuple[Path, ...],
    validation: Path | None,
    scan: Path | None,
    out: Path,
    config_file: Path | None,
    minutes: float | None,
    start: str | None,
) -> int:
    """Train an encoder on training stores made by `simulate training`, or fine-tune one on a scan of your own (--from,
    --scan): of use where grains are bent; other scans are refused, since they have nothing to gain.

    The same command goes on where a killed training stopped: with the same result to the last bit if only epochs limit
    it, with the time that was left if --minutes does.
    """
    if scan is None and (not training or validation is None):
        raise click.UsageError("Give training stores and --validation, or --from and --scan.")
    if scan is not None and (training or validation is not None or start is None):
        raise click.UsageError("--scan needs --from and takes neither training stores nor --validation.")
    with imports.uncollected():
        from laue_dask.pipeline import learning

    options: dict[str, Any] = {"minutes": minutes, "progress": _progress()}
    if scan is not None and start is not None:
        card = learning.fine_tune(scan, start, out, config_file, **options)
    elif validation is not None:
        card = learning.train(training, validation, out, config_file, start=start, **options)
    for name, value in card.metrics.items():
        echo(f"{name:32s} {value:.5g}")
    echo(f"weights: {out}   history: {learning.history_path(out)}   losses: {learning.losses_path(out)}")
    return ExitCode.DONE


@commands.command()
@click.argument("weights_name", metavar="WEIGHTS")
@click.argument("out", type=click.Path(path_type=Path))
def export(weights_name: str, out: Path) -> int:
    """Write the encoder of WEIGHTS for other programs: OUT.pt2, read with torch.export.load(OUT).module().

    It takes reduced patterns, (n, 1, 128, 128) float32 in [0, 1], and gives features, (n, 256) float32.
    """
    from laue_dask.training import export as exporting

    _begin_work()
    difference = exporting.export(weights_name, out)
    echo(f"{out}: features as the network's, largest difference {difference:.1g}")
    return ExitCode.DONE


@commands.command()
@click.argument("path", type=click.Path(path_type=Path))
def info(path: Path) -> int:
    """Say what a scan store, a run, a weights file or a frame is."""
    from laue_dask.pipeline import describe

    echo_lines(describe.describe(path))
    return ExitCode.DONE


@commands.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--reduced", is_flag=True, help="Remove the reduced patterns, too: `run` makes them again, of the frames."
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
def clean(run_folder: Path, reduced: bool, dry_run: bool) -> int:
    """Remove what a finished run does not need: left-overs of killed commands, reduced patterns of other recipes.

    Maps, results, frames and figures stay. `laue-dask info RUN` says what each part takes on the disk.
    """
    with imports.uncollected():
        from dask.utils import format_bytes

        from laue_dask.pipeline import tidying

    _begin_work()
    found = tidying.clean(run_folder, reduced=reduced, dry_run=dry_run)
    for one in found:
        echo(f"{format_bytes(one.bytes):>12s}  {one.path}: {one.what}")
    total = format_bytes(sum(one.bytes for one in found))
    echo(f"{total} {'would be' if dry_run else 'were'} removed" if found else "nothing to remove")
    return ExitCode.DONE


@commands.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--sources", is_flag=True, help="Read all frames of the source, too, and compare them.")
def verify(path: Path, sources: bool) -> int:
    """Check every object of a scan store, a run or a weights file against its receipts.

    With --sources, the detector's files as well: which are gone, and which hold other frames than those that were read.
    Says what is damaged and what to do; exits with 1 if anything is. Nothing is changed.
    """
    from laue_dask.pipeline.verify import verify as verify_path

    found = verify_path(path, sources=sources, progress=_progress())
    for line in found.lines():
        echo(line)
    return ExitCode.FAILED if found.findings else ExitCode.DONE


@commands.command()
@click.option("--out", default=".", type=click.Path(path_type=Path), help="Folder in which runs will be [here].")
@_cluster_options
def doctor(out: Path, config_file: Path | None, workers: int | None) -> int:
    """Check versions, machine, storage, locks and workers, with a job of some seconds.

    Each line passes or says what to do.
    """
    config = load(config_file, _overrides(workers=workers))
    from laue_dask.commands import doctor as examination

    _begin_work()
    passed = True
    with closing(examination.examine(config, out)) as findings:
        for finding in findings:
            echo(str(finding))
            passed &= finding.passed
    return ExitCode.DONE if passed else ExitCode.FAILED


@commands.command("config")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--nightly", "of_nights", is_flag=True, help="The configuration of `laue-dask nightly`.")
@click.option("--schema", is_flag=True, help="The JSON schema of the configuration.")
def show_config(file: Path | None, of_nights: bool, schema: bool) -> int:
    """Print the configuration with every default, or FILE as it is understood."""
    if of_nights:
        from laue_dask.nightly import config as nightly_config

        click.echo(nightly_config.dump(nightly_config.load(file)), nl=False)
    elif schema:
        import json

        click.echo(json.dumps(Config.model_json_schema(), indent=1))
    else:
        click.echo(dump(load(file)), nl=False)
    return ExitCode.DONE


def _overrides(
    *,
    shape: tuple[int, int] | None = None,
    order: str | None = None,
    first_number: int | None = None,
    insist: bool | None = None,
    rows: str | None = None,
    columns: str | None = None,
    every: int | None = None,
    workers: int | None = None,
    k: tuple[int, ...] = (),
    components: str | None = None,
    estimator: str | None = None,
    extractor: str | None = None,
    weights: str | None = None,
    substrate: str | None = None,
    store_frames: bool | None = None,
) -> dict[str, Any]:
    """Options as the nested dictionary of the configuration, without those that were not given."""
    nested: dict[str, dict[str, Any]] = {
        "scan": {
            "shape": shape or None,
            "order": order,
            "first_number": first_number,
            "insist": insist,
            "rows": rows,
            "columns": columns,
            "every": every,
            "store_frames": store_frames,
        },
        "cluster": {"workers": workers},
        "clustering": {"k": k or None, "estimator": estimator},
        "pca": {"components": None if components is None else _number(components)},
        "encoder": {"extractor": extractor, "weights": weights},
        "recipe": {"substrate": substrate},
    }
    given = {s: {k: v for k, v in values.items() if v is not None} for s, values in nested.items()}
    return {section: values for section, values in given.items() if values}


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _typed() -> str:
    return shlex.join([NAME, *sys.argv[1:]])


def _begin_imports(config: Config) -> None:
    """What workers need is imported beside this process, while it imports what it needs itself."""
    if config.cluster.kind == "local":
        forks.prepare()


def _say(line: str) -> None:
    echo(line, err=True)
    silence.heard()


def _begin_work() -> None:
    """What had to be imported is there: from now on an interruption is one that cleans up."""
    interruption.in_order()
    silence.loaded()


def _progress() -> "Progress":
    """How far a command is, whose work begins now."""
    from laue_dask.runtime.progress import default_progress

    _begin_work()
    return default_progress()


@contextmanager
def _stopped_by_signal() -> Iterator[threading.Event]:
    """Set by Ctrl-C or SIGTERM; a second Ctrl-C ends the process as usual, a second SIGTERM says nothing new."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(*_: object) -> None:
        interruption.heard()
        deadline.hurry()
        stop.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, end)
    try:
        yield stop
    finally:
        deadline.calm()
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(record: "Record", out: Path) -> int:
    suggested = ", ".join(map(str, record.suggested_k)) or "none"
    echo(f"{record.n_patterns} patterns, {record.m_pca} components, suggested K: {suggested}")
    echo(f"maps: {out / 'plots'}   report: {out / 'report.html'}")
    for warning in record.warnings:
        echo(f"warning: {warning}", err=True)
    return _report_set_aside(record.set_aside)


def _report_set_aside(set_aside: list[dict[str, Any]]) -> int:
    if not set_aside:
        return ExitCode.DONE
    for entry in set_aside[:10]:
        pattern = "" if entry["pattern"] is None else f"pattern {entry['pattern']}, "
        echo(f"set aside: {pattern}{entry['source']}: {entry['reason']}", err=True)
    if len(set_aside) > 10:
        echo(f"set aside: {len(set_aside) - 10} more; all are listed in the store and in run.json", err=True)
    return ExitCode.SET_ASIDE
