"""Warnings of a run as data: what each is about, and its line."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Subject = Literal["frames", "recipe", "workers", "training", "clustering"]
"""What a warning is about: frames that are damaged; parts of a frame that are not seen; what a stage met while it
worked; patterns that are unlike those of the training; clusters, which `laue-dask segment` makes anew."""

_CLUSTERING_SUFFIXES = (
    "its labels are provisional",
    "distinct ones only",
    "points between two domains keep the estimator's labels",
    "their delegates show two domains",
)
"""How lines about clusters end in records of the first release, which do not name their subjects."""


@dataclass(frozen=True)
class Notice:
    """One warning.

    Attributes
    ----------
    subject
        What it is about.
    text
        Its line.
    """

    subject: Subject
    text: str

    def __str__(self) -> str:
        return self.text


def recorded(notices: Iterable[Notice]) -> dict[str, list[str]]:
    """Return the entries of a run's record."""
    listed = list(notices)
    return {"warnings": [one.text for one in listed], "warning_subjects": [one.subject for one in listed]}


def read(record: Mapping[str, Any]) -> list[Notice]:
    """Return the warnings of a run's record."""
    texts = [str(text) for text in record.get("warnings", ())]
    subjects = record.get("warning_subjects", ())
    if len(subjects) != len(texts) or not set(subjects) <= set(get_args(Subject)):
        subjects = ["clustering" if text.endswith(_CLUSTERING_SUFFIXES) else "workers" for text in texts]
    return [Notice(subject, text) for subject, text in zip(subjects, texts, strict=True)]
