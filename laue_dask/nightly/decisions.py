"""Decisions about scans: what is to be done with each, and in which order. Pure: from files and the journal alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from laue_dask.nightly.config import FindConfig
from laue_dask.nightly.ledger import State
from laue_dask.nightly.runs import Key
from laue_dask.nightly.scans import FoundScan

Status = Literal["done", "aside", "waiting", "left"]
"""`left` is to be done, or was and is left for the next night."""

_RANK_OF_EVENT = {"stopped": 0, "begun": 2, "failed": 3}
"""What was stopped is nearly done; what took a night down, or failed, lets the others go first."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done with a scan.

    Attributes
    ----------
    scan
        As it was found.
    key
        Of the run that there is or is to be.
    reason
        Why, for people.
    rank
        Place in the order of work among those that are left.
    """

    scan: FoundScan
    key: Key
    status: Status
    reason: str = ""
    rank: int = 1


def decide(
    scan: FoundScan, state: State | None, key: Key, *, there: bool, attempts: int, rules: FindConfig, now: float
) -> Decision:
    """Decide about one scan.

    Parameters
    ----------
    there
        Whether a finished run of it is there.
    attempts
        Failures of one key after which a scan is set aside.
    """
    if reason := scan.waits(rules, now):
        return Decision(scan, key, "waiting", reason)
    if state is None:
        return Decision(scan, key, "left", "new")
    known = Key.parse(state.key)
    if key != known and state.key:
        return Decision(scan, key, "left", "its files changed" if key.frames != known.frames else "other configuration")
    match state.event:
        case "removed":
            return Decision(scan, key, "done", state.reason)
        case "done" if there:
            return Decision(scan, key, "done")
        case "done":
            return Decision(scan, key, "left", "its run is gone")
        case "aside":
            return Decision(scan, key, "aside", state.reason)
        case "failed" if state.failures >= attempts:
            return Decision(scan, key, "aside", state.reason)
        case "begun":
            return Decision(scan, key, "left", "was interrupted", _RANK_OF_EVENT["begun"])
        case "again":
            return Decision(scan, key, "left", "asked for again")
    return Decision(scan, key, "left", state.reason, _RANK_OF_EVENT[state.event])


def pending_in_order(decisions: Iterable[Decision]) -> list[Decision]:
    """Return what is left to be done, in the order in which the scans were recorded."""
    left = [one for one in decisions if one.status == "left"]
    return sorted(left, key=lambda one: (one.rank, one.scan.newest, one.scan.name))
