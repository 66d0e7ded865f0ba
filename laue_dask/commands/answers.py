"""Print what a command that ends in a run has to say."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from laue_dask.errors import ExitCode
from laue_dask.runtime.safe_text import echo
from laue_dask.runtime.terminal import announce

if TYPE_CHECKING:
    from laue_dask.pipeline.record import Record

MAX_LISTED = 10
"""Patterns that were set aside and are printed one by one."""


def answer_run(record: "Record", out: Path) -> int:
    """Print what a finished run found and where its maps are; its exit code."""
    suggested = ", ".join(map(str, record.suggested_k)) or "none"
    echo(f"{record.n_patterns} patterns, {record.m_pca} components, suggested K: {suggested}")
    answer_places(record, out)
    return answer_set_aside(record.set_aside)


def answer_places(record: "Record", out: Path) -> None:
    """Print where the maps of a run are, and what it warns of."""
    echo(f"maps: {out / 'plots'}   report: {out / 'report.html'}")
    for warning in record.warnings:
        announce(warning, level="warning")


def answer_set_aside(set_aside: list[dict[str, Any]]) -> int:
    """List patterns that could not be used; the exit code."""
    if not set_aside:
        return ExitCode.DONE
    for entry in set_aside[:MAX_LISTED]:
        pattern = "" if entry["pattern"] is None else f"pattern {entry['pattern']}, "
        announce(f"set aside: {pattern}{entry['source']}: {entry['reason']}", level="warning", label="")
    if len(set_aside) > MAX_LISTED:
        more = len(set_aside) - MAX_LISTED
        announce(f"set aside: {more} more; all are listed in the store and in run.json", level="warning", label="")
    return ExitCode.SET_ASIDE
