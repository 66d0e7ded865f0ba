"""The entry point runs the command that was typed, and ends with its exit code and at most one line of complaint.

Nothing heavy is imported before a command runs.
"""

import atexit
import logging
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click

from laue_dask import __version__
from laue_dask.commands.completion import completion
from laue_dask.commands.housekeeping import clean, doctor, info, show_config, verify
from laue_dask.commands.options import is_json_asked_for, with_output_options
from laue_dask.commands.process import PROGRAM_NAME
from laue_dask.commands.run import ingest, plan, run
from laue_dask.commands.segment import evaluate, segment
from laue_dask.commands.simulate import demo, simulate
from laue_dask.commands.training import export, train
from laue_dask.commands.watch import nightly, watch
from laue_dask.compute import fork_server
from laue_dask.errors import ExitCode, LaueDaskError, SpaceError
from laue_dask.io.output_paths import disk_full_error, is_disk_full
from laue_dask.runtime import activity, interruption
from laue_dask.runtime.home_folder import ensure_matplotlib_folder
from laue_dask.runtime.terminal import Level, announce, configure

_DASK_CONFIG_ERROR_PREFIX = "A dask config file at "
"""How Dask begins to say that a configuration file of the user's own, in ~/.config/dask, cannot be read."""


class LinesOnTerminal(logging.Handler):
    """What happens to a cluster, as lines on stderr, above a bar that is drawn there."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record."""
        names: dict[int, Level] = {logging.DEBUG: "debug", logging.INFO: "info"}
        announce(record.getMessage(), level=names.get(record.levelno, "warning"))


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; every error is one line on stderr."""
    lines, logger = LinesOnTerminal(), logging.getLogger("laue_dask")
    logger.setLevel(logging.INFO)
    logger.addHandler(lines)
    logger.propagate = False
    for name in ("distributed", "asyncio"):  # to the end: what matters to a person of what they log is raised instead
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("laue_dask.stages").addHandler(lines)
    interruption.exit_at_once()
    ensure_matplotlib_folder()
    typed = [one for one in arguments or sys.argv[1:] if one in commands.commands]
    if typed:
        activity.start(typed[0], announce)
    try:
        code = exit_code(arguments)
    finally:
        activity.stop()
        interruption.command_over()
    _exit_now(code)


def _exit_now(code: int) -> NoReturn:
    """End the process without taking apart, object by object, all that it imported: that takes a second or two."""
    atexit._run_exitfuncs()
    fork_server.stop()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # nobody reads it, or it was closed from the start
            stream.flush()
    os._exit(code)


def exit_code(arguments: list[str] | None) -> int:
    """Run a command, print at most a line about what went wrong, and give its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    configure(as_json=is_json_asked_for(given))  # what is wrong with the options is said in that way, too
    try:
        return int(commands(args=arguments, prog_name=PROGRAM_NAME, standalone_mode=False) or ExitCode.DONE)
    except (Exception, KeyboardInterrupt) as error:
        if interruption.is_interruption(error):
            interruption.command_over()
            return _fail(interruption.INTERRUPTED_MESSAGE, ExitCode.FAILED)
        return _report_failure(error)


def _report_failure(error: BaseException) -> int:
    """Say in a line why a command failed; its exit code."""
    if is_disk_full(error) and not isinstance(error, SpaceError):
        error = disk_full_error(error, *_written_places())
    match error:
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.format_message(), err=True)
            return int(ExitCode.BAD_INPUT)
        case click.UsageError():
            help_for = error.ctx.command_path if error.ctx else PROGRAM_NAME
            return _fail(f"{error.format_message()} See `{help_for} --help`.", ExitCode.BAD_INPUT)
        case LaueDaskError():
            return _fail(str(error), error.exit_code)
        case ModuleNotFoundError(name=str(name)) if name.partition(".")[0] != "laue_dask":
            package = name.partition(".")[0]
            remedy = "install laue_dask again, with its dependencies; `laue-dask doctor` checks them"
            return _fail(f"the Python package {package} is missing: {remedy}", ExitCode.FAILED)
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return _fail(f"{where}{error.strerror or error}", ExitCode.FAILED)
    if isinstance(error, ValueError) and str(error).startswith(_DASK_CONFIG_ERROR_PREFIX):
        return _fail(f"{' '.join(str(error).split())}: repair or remove that file", ExitCode.BAD_INPUT)
    # A defect of ours: the user gets one line, and the file to send to us.
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    try:
        descriptor, log = tempfile.mkstemp(prefix="laue-dask-", suffix=".log", text=True)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
    except OSError as other:
        return _fail(f"{text} (a defect; its details cannot be kept: {other.strerror})", ExitCode.FAILED)
    return _fail(f"{text} (a defect; the details are in {log})", ExitCode.FAILED)


def _written_places() -> list[Path]:
    """Where this command may have written to: what it was given, where it was given, and what is temporary."""
    given = [Path(text) for text in sys.argv[1:] if text and not text.startswith("-")]
    found = [Path.cwd(), *(path for path in given if path.exists() or len(path.parts) > 1)]
    with suppress(OSError):  # none that can be written to
        found.append(Path(tempfile.gettempdir()))
    return found


def _fail(message: str, code: int) -> int:
    announce(message, level="error")
    return int(code)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which one uses them


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name=PROGRAM_NAME)
def commands() -> None:
    """Segment scanning Laue microdiffraction data without indexing.

    Exit codes: 0 done, 1 failed, 2 bad usage, configuration or input, 3 finished with some patterns set aside.
    """


for _command in (
    *(demo, ingest, plan, run, watch, segment, nightly, evaluate, simulate, train, export),
    *(info, clean, verify, doctor, show_config, completion),
):
    commands.add_command(with_output_options(_command))
