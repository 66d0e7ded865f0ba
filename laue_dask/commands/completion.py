"""`laue-dask completion`, and what the shell offers for arguments: paths, names of weights, kinds of specimens."""

from collections.abc import Callable, Sequence

import click
from click.shell_completion import CompletionItem, get_completion_class

from laue_dask.commands.process import PROGRAM_NAME
from laue_dask.errors import ExitCode

Offered = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

VARIABLE = "_LAUE_DASK_COMPLETE"
"""Variable of the environment by which the shell asks for completions."""

WEIGHTS = ("default", "untrained")


def paths(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Have the shell offer files and folders."""
    return [CompletionItem(incomplete, type="file")]


def names(known: Sequence[str]) -> Offered:
    """Have the shell offer some names."""

    def offered(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in known if name.startswith(incomplete)]

    return offered


def weights(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Have the shell offer the names of weights, or files where none of them begins so."""
    return names(WEIGHTS)(context, parameter, incomplete) or paths(context, parameter, incomplete)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the script by which a shell completes commands, options, paths and names.

    \b
    bash, in ~/.bashrc:  eval "$(laue-dask completion bash)"     (bash 4.4 or newer)
    zsh, in ~/.zshrc:    eval "$(laue-dask completion zsh)"      (behind compinit)
    fish:                laue-dask completion fish > ~/.config/fish/completions/laue-dask.fish
    """  # noqa: D301  click's mark of lines that are not filled
    group = click.get_current_context().find_root().command

    found = get_completion_class(shell)
    assert found is not None  # noqa: S101  for the type checker: click knows the three
    # The script alone is made here: what click asks of the shell, its version, is the shell's own to check.
    script = found(group, {}, PROGRAM_NAME, VARIABLE)
    click.echo(script.source_template % script.source_vars())
    return ExitCode.DONE
