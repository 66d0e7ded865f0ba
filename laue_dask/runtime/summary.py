"""What an object is, in a few facts: plain text for a terminal, a small table for a notebook, light or dark."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from laue_dask.runtime.safe_text import escape, printable

_TABLE_HTML = (
    '<div style="font: .92em/1.4 system-ui, sans-serif; color: inherit; max-width: 60em; overflow-wrap: anywhere">'
    '<div style="border-bottom: 1px solid rgba(128, 128, 128, .5); margin-bottom: .2em">'
    '<strong>{kind}</strong> <span style="opacity: .75">{name}</span></div>{body}</div>'
)
"""Colours are the notebook's own, so that it can be read in light and in dark."""

_ROW_HTML = (
    '<tr style="background: none"><th style="text-align: left; vertical-align: top; font-weight: normal; opacity: .75;'
    'white-space: nowrap; padding: 0 1em 0 0">{name}</th><td style="text-align: left; padding: 0">{value}</td></tr>'
)


@dataclass(frozen=True)
class Summary:
    """A kind of object, its name, and facts about it.

    Attributes
    ----------
    facts
        Text by its label; empty texts are left out.
    image
        A picture that stands beside the facts in a notebook, as a `data:` address; none by default.

    Examples
    --------
    >>> print(Summary("Scan", "a.zarr", {"points": "4 × 6"}))
    Scan a.zarr
      points  4 × 6
    """

    kind: str
    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    image: str = ""

    def __str__(self) -> str:
        shown = [(printable(label), printable(text)) for label, text in self.facts.items() if text]
        width = max((len(label) for label, _ in shown), default=0)
        lines = [f"  {label:{width}s}  {text}" for label, text in shown]
        return "\n".join([f"{self.kind} {printable(self.name)}", *lines])

    def html(self) -> str:
        """Return the same for a notebook; all text is escaped."""
        rows = [_ROW_HTML.format(name=escape(label), value=escape(text)) for label, text in self.facts.items() if text]
        table = f'<table style="border: none; margin: 0">{"".join(rows)}</table>'
        image = f'<img src="{escape(self.image)}" alt="" style="{_IMAGE_STYLE}">' if self.image else ""
        body = f'<div style="display: flex; gap: 1em; align-items: flex-start">{image}{table}</div>'
        return _TABLE_HTML.format(kind=escape(self.kind), name=escape(self.name), body=body)


_IMAGE_STYLE = "max-width: 10em; max-height: 10em; image-rendering: pixelated; margin: .2em 0"
