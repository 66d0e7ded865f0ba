"""Alarms for the beamline: the beam is gone, the detector saturates, or the patterns are unlike the training."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laue_dask.features.drift import Drift

MIN_AGREEING_FRAMES = 5
"""Frames that must agree before there is an alarm."""

DARK_SIGNAL_SHARE = 0.2
"""Share of the usual signal below which a frame is dark."""

N_REFERENCE_FRAMES = 201
"""Frames, before the dark ones, whose median is the usual signal."""

MIN_SATURATED_SHARE = 1e-4
"""Share of saturated pixels from which a frame counts: a hundred of a million, some ten reflections."""

MAX_KEPT_ALARMS = 50
"""Alarms that are kept, those that last and the latest of the others: a beam may flicker all night."""

MIN_COMPARED_PATTERNS = 50
"""Patterns from which on their errors are compared with the training's."""

SAMPLED_PIXELS = (slice(None, None, 4), slice(None, None, 4))
"""Pixels whose signal is measured."""


@dataclass
class Alarm:
    """Something that is wrong, or was.

    Attributes
    ----------
    kind
        `beam`, `saturation`, `training`, `files` or `disk`.
    message
        One line for people.
    since, until
        Seconds since 1970; `until` is None while it lasts.
    """

    kind: str
    message: str
    since: float
    until: float | None = None


class Alarms:
    """Raises alarms and ends them; each is told once.

    Parameters
    ----------
    say
        Told of every alarm that begins or ends, one line each.
    """

    def __init__(self, say: Callable[[str], Any]) -> None:
        self.raised: list[Alarm] = []
        self._say = say
        self._usual: deque[float] = deque(maxlen=N_REFERENCE_FRAMES)
        self._dark: list[tuple[str, float]] = []
        self._light = self._saturated = self._clean = 0

    def on(self, kind: str) -> Alarm | None:
        """Return the alarm of a kind that lasts, if there is one."""
        return next((alarm for alarm in self.raised if alarm.kind == kind and alarm.until is None), None)

    def begin(self, kind: str, message: str) -> None:
        """Raise an alarm unless one of its kind lasts; its message is then brought up to date."""
        lasting = self.on(kind)
        if lasting is not None:
            lasting.message = message
            return
        self.raised.append(Alarm(kind, message, time.time()))
        if len(self.raised) > MAX_KEPT_ALARMS:
            self.raised.remove(next(alarm for alarm in self.raised if alarm.until is not None))
        self._say(f"alarm: {message}")

    def end(self, kind: str, message: str) -> None:
        """End the alarm of a kind, if there is one."""
        lasting = self.on(kind)
        if lasting is not None:
            lasting.until = time.time()
            self._say(f"over: {message}")

    def see(self, name: str, signal: float, saturated: float) -> None:
        """Look at one frame, in order of acquisition.

        Parameters
        ----------
        name
            Of its file.
        signal, saturated
            See `measure_signal`.
        """
        self._see_signal(name, signal)
        self._saturated, self._clean = (
            (self._saturated + 1, 0) if saturated >= MIN_SATURATED_SHARE else (0, self._clean + 1)
        )
        if self._saturated >= MIN_AGREEING_FRAMES:
            share = f"{100 * saturated:.2g} % of the pixels of {name} are saturated"
            self.begin(
                "saturation", f"the detector saturates: {share}, in {MIN_AGREEING_FRAMES} or more frames in a row"
            )
        elif self._clean >= MIN_AGREEING_FRAMES:
            self.end("saturation", f"the detector does not saturate any more ({name})")

    def _see_signal(self, name: str, signal: float) -> None:
        usual = float(np.median(self._usual)) if len(self._usual) >= MIN_AGREEING_FRAMES else None
        if usual is None or signal >= DARK_SIGNAL_SHARE * usual:
            self._usual.append(signal)
            self._light += 1
            if self._light >= MIN_AGREEING_FRAMES or len(self._dark) < MIN_AGREEING_FRAMES:
                self.end("beam", f"the beam is back since {name}")
                self._dark.clear()
            return
        self._light = 0
        self._dark.append((name, signal))
        if len(self._dark) >= MIN_AGREEING_FRAMES:
            level = 100 * float(np.median([value for _, value in self._dark])) / usual
            since = f"{len(self._dark)} frames since {self._dark[0][0]}"
            self.begin("beam", f"the beam or the sample is lost: {since} have {level:.0f} % of the usual signal")

    def compare(self, drift: Drift | None) -> None:
        """Look at how the patterns so far compare with those that the encoder was checked on."""
        if drift is None or drift.patterns < MIN_COMPARED_PATTERNS:
            return
        if drift.warning:
            self.begin("training", drift.warning)
        else:
            self.end("training", f"{100 * drift.beyond:.0f} % of the patterns are unlike the encoder's training")


def measure_signal(
    frame: NDArray[Any], mask: NDArray[np.bool_], saturation: float | None = None
) -> tuple[float, float]:
    """Return the signal of a frame and its share of saturated pixels.

    Parameters
    ----------
    frame, mask : (row, column)
        Counts, and True where the pixel is unusable.
    saturation
        Counts from which a pixel is saturated; by default the largest value of an integer dtype, and none of others.

    Returns
    -------
    signal
        Mean of the usable pixels above their first percentile: neither a camera's pedestal nor its noise counts.
    saturated
        Of the usable pixels.
    """
    live = frame[SAMPLED_PIXELS][~mask[SAMPLED_PIXELS]].astype(np.float64)
    live = live[np.isfinite(live)]
    if not live.size:
        return 0.0, 0.0
    low = float(np.partition(live, len(live) // 100)[len(live) // 100])
    limit = saturation
    if limit is None and frame.dtype.kind in "ui":
        limit = float(np.iinfo(frame.dtype).max)
    # A marker of 32 bit detectors lies at or just below the largest integer; where it is no gap, a pixel overflowed.
    full = 0 if limit is None else int(np.count_nonzero((frame >= limit - (frame.dtype.itemsize == 4)) & ~mask))
    return float(live.mean() - low), full / max(1, int(np.count_nonzero(~mask)))
