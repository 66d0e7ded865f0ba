"""The intake makes reduced patterns and features of complete frames, and finds what is worth an alarm."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laue_dask.config import Recipe
from laue_dask.errors import FrameError, InputError
from laue_dask.features.encode import Network
from laue_dask.features.extractors import Extractor
from laue_dask.features.pixels import Pixels
from laue_dask.io.frames import FrameRef, load
from laue_dask.io.limits import Expected
from laue_dask.io.shards import check_frame
from laue_dask.io.source_identity import State
from laue_dask.pipeline.stages import ingest
from laue_dask.reduction import reduce as preprocess
from laue_dask.watch.alarms import Alarms, measure_signal
from laue_dask.watch.folder import WatchedFolder
from laue_dask.watch.log import Entry, Log

ENCODING_BATCH_SIZE = 8
"""Patterns that are encoded together: a larger batch would be filled up with nothing at a few frames per second."""

N_FIRST_SAMPLE_FRAMES = 3
"""Frames that tell the unusable pixels at first."""

N_FITTED_PATTERNS = 32
"""First patterns that an extractor that learns from the scan is fitted to, for the preview."""


@dataclass(frozen=True)
class FrameProperties:
    """What is known of the frames.

    Attributes
    ----------
    mask : (row, column) bool
        True where the pixel is unusable.
    dtype
        The scan's.
    """

    mask: NDArray[np.bool_]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, sample: ingest.Sample) -> "FrameProperties":
        """Find them from a sample of the scan."""
        return cls(preprocess.detector_mask(sample.frames), sample.frames.dtype)


@dataclass(frozen=True)
class _ReadFrame:
    """A frame that was read; since when it was complete, None where that is not known."""

    entry: Entry
    pattern: NDArray[np.uint8]
    since: float | None


class Intake:
    """Reads frames, a few at a time.

    Parameters
    ----------
    files
        Told of what was read and what could not be.
    log
        Gets an entry and the features of each frame.
    recipe
        Of the reduction. A substrate, which only the whole scan tells, is left in.
    extractor
        As configured.
    folder
        For what an extractor learns from the first frames.
    quality
        Whether to compute how well the patterns are reconstructed.

    Attributes
    ----------
    detector
        None before the first frame; replaced when more is known.
    since
        Row of the log → when that frame was complete, in seconds since 1970; for the caller to empty.
    """

    def __init__(
        self,
        files: WatchedFolder,
        log: Log,
        recipe: Recipe,
        extractor: Extractor,
        folder: Path,
        alarms: Alarms,
        *,
        quality: bool,
    ) -> None:
        self.detector: FrameProperties | None = None
        self.since: dict[int, float] = {}
        self._files, self._log, self._alarms = files, log, alarms
        self._recipe = recipe.model_copy(update={"substrate": "keep"})
        # Only for what is seen meanwhile: how many patterns come together decides the last bits of the features.
        self._extractor = (
            replace(extractor, batch_size=ENCODING_BATCH_SIZE) if isinstance(extractor, Network) else extractor
        )
        self._quality = quality
        self._folder = folder
        self._held: list[_ReadFrame] = []
        self._unfitted = isinstance(extractor, Pixels)
        self._faulty: set[str] = set()
        sample = folder / "sample.npy"
        if self._unfitted and log.entries and sample.is_file():
            self._fit(np.load(sample, allow_pickle=False))

    def take(self, ready: Sequence[tuple[FrameRef, State]]) -> int:
        """Read frames that look complete; how many of them are in the log now.

        Raises
        ------
        InputError
            The frames are none that can be reduced.
        OSError
            What is known of them cannot be written, as on a full disk: the next call tries that again, before it reads.
        """
        before = len(self._log.entries)
        self._write_log()
        if not ready:
            return len(self._log.entries) - before
        if self.detector is None and not self._detect(ready[:N_FIRST_SAMPLE_FRAMES]):
            return 0
        shots = [shot for ref, state in ready if (shot := self._read(ref, state)) is not None]
        self._held += shots
        self._write_log()
        return len(self._log.entries) - before

    def _detect(self, ready: Sequence[tuple[FrameRef, State]]) -> bool:
        try:
            self.detector = FrameProperties.of(ingest.read_sample([ref for ref, _ in ready]))
        except InputError as error:
            for ref, state in ready:
                self._files.mark_unreadable(ref, str(error), state)
            return False
        return True

    def _read(self, ref: FrameRef, state: State) -> _ReadFrame | None:
        if self.detector is None:
            raise ValueError("the detector is found first")
        mask, name = self.detector.mask, Path(ref.path).name + ("" if ref.index is None else f"[{ref.index}]")
        try:
            frame, info = load(ref, expected=Expected(mask.shape, self.detector.dtype))
            if not state.lasts:
                return None  # it is still written to
            signal, saturated = measure_signal(frame, mask, info.saturation)
            if str(ref) not in self._faulty:
                self._alarms.see(name, signal, saturated)
            check_frame(frame, mask, self.detector.dtype)
        except FrameError as error:
            self._faulty.add(str(ref))
            self._files.mark_unreadable(ref, str(error), state)
            return None
        since = self._files.since(state)
        pattern = preprocess.reduce_frames(frame, mask, self._recipe)[0]
        self._files.mark_read(ref, state)
        entry = Entry(str(ref), state.path, state.size, state.changed, round(signal, 4), saturated, None, info.position)
        return _ReadFrame(entry, pattern, since)

    def _fit(self, patterns: NDArray[np.uint8]) -> None:
        file = self._folder / f"{self._extractor.name}.safetensors"
        self._extractor = self._extractor.fit(lambda size: patterns[:size], file)
        self._unfitted = False

    def _write_log(self) -> None:
        """Have what was read in the log, as soon as it can be encoded."""
        if self._unfitted and len(self._held) >= N_FITTED_PATTERNS:
            patterns = np.stack([shot.pattern for shot in self._held])
            np.save(self._folder / "sample.npy", patterns)
            self._fit(patterns)
        if self._held and not self._unfitted:
            self._encode(self._held)
            self._held = []

    def _encode(self, shots: Sequence[_ReadFrame]) -> None:
        patterns = np.stack([shot.pattern for shot in shots])
        features = self._extractor.extract(patterns, np.ones(len(patterns), dtype=bool))
        entries = [shot.entry for shot in shots]
        if self._quality and isinstance(self._extractor, Network):
            shares = self._extractor.errors(patterns)[:, 1].tolist()
            known = [round(share, 6) if np.isfinite(share) else None for share in shares]
            entries = [replace(entry, unexplained=share) for entry, share in zip(entries, known, strict=True)]
        first = len(self._log.entries)
        self._log.add(entries, features)
        self.since |= {first + i: shot.since for i, shot in enumerate(shots) if shot.since is not None}
