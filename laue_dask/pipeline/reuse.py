"""Which stages of an earlier run still hold, and in words why the others are made again.

A run keeps, with its results, the key of each stage and the values behind it. The next run in the same folder compares:
the key decides, and the values say which parameter it was.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from laue_dask.former_names import todays
from laue_dask.io import results as io_results
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline.versions import STAGE_VERSIONS

STAGES_ATTRIBUTE = "stages"
"""Attribute of a results store."""

RELEASE_ENTRY = "laue_dask"
"""Among the values that runs of the first release recorded: its name, which is none of a stage's own parameters."""

KEPT_STATE = "kept"
DAMAGED_REASON = "the earlier output is damaged or gone"

_MAX_NAMED_CHANGES = 4
"""Changed values that are told one by one."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """What a stage's output depends on.

    Attributes
    ----------
    name
        As its progress is called.
    key
        Hash of all that its output depends on.
    values
        Its own parameters, by their names in the configuration.
    after
        Stages whose output it takes.
    """

    name: str
    key: str
    values: Mapping[str, Any]
    after: tuple[str, ...] = ()


class Reuse:
    """The stages of a run, held against those of an earlier one in the same folder.

    Parameters
    ----------
    folder
        Of the run.
    before
        Stage → `key` and `of`, its values.
    finished
        Whether they are those of a finished run, whose results may be taken over.
    label
        What the lines of one of several scans begin with.

    Attributes
    ----------
    finished
        Whether there are results of a finished run.
    announced
        Stage → `kept`, `made` or why it was made again.
    """

    def __init__(self, folder: Path, before: Mapping[str, Any], *, finished: bool, label: str = "") -> None:
        self._folder, self._before, self._label = folder, before, label
        self.finished = finished
        self._now: dict[str, Stage] = {}
        self.announced: dict[str, str] = {}

    @classmethod
    def of(cls, folder: Path, *, label: str = "") -> Self:
        """Read what the last run in a folder was made with, be it finished or begun; nothing where there is none."""
        for name, finished in ((io_results.RESULTS_STORE, True), (io_results.PARTIAL_STORE, False)):
            stages = io_results.attributes(folder / name, whole=finished).get(STAGES_ATTRIBUTE)
            if isinstance(stages, dict) and all(_is_stage(one) for one in stages.values()):
                return cls(folder, stages, finished=finished, label=label)
        return cls(folder, {}, finished=False, label=label)

    def compare(self, stage: str, values: Mapping[str, Any]) -> None:
        """Take values that are known from elsewhere for those of a stage that the earlier run did not record."""
        if stage not in self._before:
            self._before = {**self._before, stage: {"key": "", "of": dict(values)}}

    def holds(self, stage: Stage, names: Collection[str]) -> bool:
        """Return whether the earlier run's results have whole arrays `names` of this very stage."""
        return (
            self.finished
            and recorded({STAGES_ATTRIBUTE: self._before}, stage)
            and io_results.whole(self._folder, names)
        )

    def same(self, stage: Stage) -> bool:
        """Return whether the earlier run, if it got so far, had this very stage."""
        return stage.name not in self._before or self._before[stage.name]["key"] == stage.key

    def announce(self, stage: Stage, *, kept: bool, remark: str = "") -> None:
        """Say in a line whether a stage is kept or made again, and why; nothing where there was no earlier run.

        `remark` is what is said instead of `kept`, or of nothing having changed.
        """
        self._now[stage.name] = stage
        earlier = self._before.get(stage.name)
        if kept:
            text = remark or KEPT_STATE
        elif earlier is None:
            text = "made"
        else:
            text = self._reasons(stage, earlier) or remark or f"again, {DAMAGED_REASON}"
        self.announced[stage.name] = text
        if earlier is not None:
            logger.info("%s%s: %s", self._label, stage.name, text)

    def output(self, stage: Stage, *, results: ResultsWriter | None = None, possible: bool = True) -> "Output":
        """Return what this stage makes, for what finds out whether it is kept.

        Parameters
        ----------
        results
            That are told of the stage when it is announced, for the next run, should this one be killed.
        possible
            False where what the stage is made of was made again, so that it is not said to be kept.
        """
        return Output(stage, self, results=results, possible=possible)

    def _reasons(self, stage: Stage, earlier: Mapping[str, Any]) -> str:
        if earlier["key"] == stage.key:
            return ""
        before = dict(todays(name, value) for name, value in earlier["of"].items() if name != RELEASE_ENTRY)
        reasons = differences(before, stage.values)
        changed = [
            name for name in stage.after if name in self._before and self._before[name]["key"] != self._now[name].key
        ]
        reasons += [f"after {', '.join(changed)}"] if changed else []
        return f"again, {'; '.join(reasons or ['its code changed'])}"

    def write(self, results: ResultsWriter) -> None:
        """Keep the keys and values of the stages so far with the results."""
        results.group.attrs[STAGES_ATTRIBUTE] = {name: _entry(stage) for name, stage in self._now.items()}


class Output:
    """What a stage makes: under which key, and what an earlier run in the same folder left of it.

    Parameters
    ----------
    reuse
        Of the run; None where there is no earlier one to compare with.
    results, possible
        See `Reuse.output`.

    Attributes
    ----------
    found
        Whether all of it was there, once that has been announced.
    """

    def __init__(
        self, stage: Stage, reuse: Reuse | None = None, *, results: ResultsWriter | None = None, possible: bool = True
    ) -> None:
        self.stage = stage
        self.found = False
        self._reuse, self._results, self._possible = reuse, results, possible

    @classmethod
    def of_key(cls, key: str) -> Self:
        """Return an output that is known by its key alone."""
        return cls(Stage("", key, {}))

    @property
    def key(self) -> str:
        """Hash of all that it depends on."""
        return self.stage.key

    def holds(self, names: Collection[str]) -> bool:
        """Return whether the earlier run's results have whole arrays `names` of this very stage."""
        return self._reuse is not None and self._reuse.holds(self.stage, names)

    def announce(self, *, kept: bool, remark: str = "") -> None:
        """Say in a line whether it is kept or made again, and why, before any of it is made."""
        self.found = kept
        if self._reuse is not None:
            self._reuse.announce(self.stage, kept=kept and self._possible, remark=remark)
            if self._results is not None:
                self._reuse.write(self._results)


def recorded(attributes: Mapping[Any, Any], stage: Stage) -> bool:
    """Return whether results with these attributes were made by this very stage."""
    stages = attributes.get(STAGES_ATTRIBUTE, {})
    earlier = stages.get(stage.name) if isinstance(stages, dict) else None
    return isinstance(earlier, dict) and earlier.get("key") == stage.key


def update(results: ResultsWriter, stages: Sequence[Stage], *, without: Collection[str] = ()) -> None:
    """Replace the keys and values of some stages of results that are made from others, and drop those of some."""
    before = results.group.attrs.get(STAGES_ATTRIBUTE, {})
    kept = (before if isinstance(before, dict) else {}) | {stage.name: _entry(stage) for stage in stages}
    results.group.attrs[STAGES_ATTRIBUTE] = {name: entry for name, entry in kept.items() if name not in without}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what changed, one by one in words, as `recipe.substrate is remove, was keep`.

    Examples
    --------
    >>> differences({"recipe.clip_sigma": 4.0, "scan": "a"}, {"recipe.clip_sigma": 5.0, "scan": "a"})
    ['recipe.clip_sigma is 5.0, was 4.0']
    """
    names = sorted({*before, *now})
    found = [
        f"{name} is {_text(now.get(name))}, was {_text(before.get(name))}"
        for name in names
        if _text(before.get(name)) != _text(now.get(name))
    ]
    return (
        found
        if len(found) <= _MAX_NAMED_CHANGES
        else [*found[:_MAX_NAMED_CHANGES], f"{len(found) - _MAX_NAMED_CHANGES} more values changed"]
    )


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _entry(stage: Stage) -> dict[str, Any]:
    return {"key": stage.key, "of": dict(stage.values)}


def _is_stage(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("key"), str) and isinstance(entry.get("of"), dict)


def stage_key(stage: str, *parts: object) -> str:
    """Return the hash of what a stage's output depends on, 16 hexadecimal digits."""
    text = json.dumps([stage, STAGE_VERSIONS[stage], *map(str, parts)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
