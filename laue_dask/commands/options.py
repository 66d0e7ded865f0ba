"""Options that several commands share."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from laue_dask.runtime import terminal

Command = Callable[..., Any]


def grid_options(command: Command) -> Command:
    """Add the options that say which frame is which point of the scan."""
    for option in (
        click.option("--insist/--no-insist", default=None, help="Trust --shape and --order, whatever the files say."),
        click.option(
            "--first-number",
            type=click.IntRange(min=0),
            help="The number of the first file; needed where files are missing.",
        ),
        click.option(
            "--order",
            type=click.Choice(["raster", "snake"]),
            help="The order of acquisition [default: that of the headers, or raster].",
        ),
    ):
        command = option(command)
    return click.option(
        "--shape",
        type=click.IntRange(min=1),
        nargs=2,
        metavar="NY NX",
        help="The numbers of points along the slow and the fast axis.",
    )(command)


def part_options(command: Command) -> Command:
    """Add the options that choose a part of a scan."""
    for option in (
        click.option(
            "--every",
            type=click.IntRange(min=1),
            metavar="N",
            help="Take every Nth of these rows and columns [default: 1].",
        ),
        click.option("--columns", metavar="A:B", help="Take columns A to B - 1 [default: all]."),
        click.option("--rows", metavar="A:B", help="Take rows A to B - 1 of the grid, counted from 0 [default: all]."),
    ):
        command = option(command)
    return command


def cluster_options(command: Command) -> Command:
    """Add the configuration file and the number of workers."""
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        help="Read the configuration from this YAML file; options win over it.",
    )(workers_option(command))


workers_option = click.option(
    "--workers", type=click.IntRange(min=1), help="The number of worker processes [default: one for each core]."
)

extractor_option = click.option(
    "--extractor",
    type=click.Choice(["network", "pixels", "peaks"]),
    help="Choose what makes features of a pattern [default: network].",
)

store_option = click.option(
    "--store-frames/--no-store-frames",
    default=None,
    help="Copy the frames into the run's scan store [default: copy them].",
)


def k_option(help_text: str) -> Callable[[Command], Command]:
    """Return the option for one K or several."""
    return click.option("-k", "k", type=click.IntRange(min=2), multiple=True, help=help_text)


def components_option(help_text: str) -> Callable[[Command], Command]:
    """Return the option for the number of components, or for the share of the variance that they explain."""
    return click.option("--components", callback=lambda _context, _option, text: _as_number(text), help=help_text)


def _as_number(text: str | None) -> int | float | str | None:
    """Text as the number that it spells; other text is refused by the configuration, with what is expected."""
    for kind in (int, float):
        try:
            return None if text is None else kind(text)
        except ValueError:
            continue
    return text


def with_output_options(command: click.Command) -> click.Command:
    """Add the options for what is said on stderr, which every command has."""
    for option in (
        click.Option(["-q", "--quiet"], is_flag=True, help="Print warnings and errors alone, beside the answer."),
        click.Option(["-v", "--verbose"], is_flag=True, help="Print also which stage begins and how long each took."),
        click.Option(
            ["--log-format"],
            type=click.Choice(["text", "json"]),
            help="Lines on stderr: text, or a JSON object each with time, level, stage and message [text].",
        ),
    ):
        option.expose_value, option.callback, option.is_eager = False, _configure_output, True
        command.params.append(option)
    return command


def is_json_asked_for(arguments: Sequence[str]) -> bool:
    """Whether --log-format json is among arguments that are not parsed yet."""
    given = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    return "--log-format=json" in given or ("--log-format", "json") in pairwise(given)


def _configure_output(context: click.Context, option: click.Parameter, value: Any) -> None:
    given = context.meta.setdefault("laue_dask.output", {})
    given[option.name] = value
    if given.get("quiet") and given.get("verbose"):
        raise click.UsageError("--quiet and --verbose exclude each other: give one of them.", context)
    minimum: terminal.Level = "warning" if given.get("quiet") else "debug" if given.get("verbose") else "info"
    terminal.configure(minimum=minimum, as_json=terminal.is_json() or given.get("log_format") == "json")
