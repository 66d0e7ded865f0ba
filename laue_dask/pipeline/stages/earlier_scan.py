"""The scan store of an earlier run is compared with its source now: it is kept, or refused with the choice.

What differs in options, names, sizes, times or the pixels of a few frames is known before any worker is started. Where
times alone differ, as in a copy, workers read all of those frames and compare them.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from laue_dask.compute.cluster import Workers
from laue_dask.compute.run import map_tasks
from laue_dask.config import ScanConfig
from laue_dask.errors import ChangedError, InputError
from laue_dask.io.frames import FrameRef, discover
from laue_dask.io.lock import locked_store
from laue_dask.io.scan_part import Range, ScanPart
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.stages import changed_frames
from laue_dask.pipeline.stages.frame_placement import part_of
from laue_dask.pipeline.stages.ingest import absolute, manifest
from laue_dask.runtime.progress import Progress

FRAMES_PER_COMPARISON = 16
"""Frames that a task reads again, to be compared."""

CHOICE_HINT = "choose another --out, or read the frames again with `laue-dask run … --again`"

_OPTIONS_WITHOUT_EFFECT = ("store_frames", "aborted", "insist")
"""Options of the scan that leave a finished store as good as it was, unless it is to be made again anyway."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CurrentSources:
    """What the frames of a run's own store are now.

    Attributes
    ----------
    frames
        As they were read.
    suspects
        Those whose files are others, and whose pixels are yet to be compared.
    moved
        New values of the store's provenance, where all of them were moved together.
    """

    frames: Sequence[changed_frames.ReadFrame]
    suspects: Sequence[changed_frames.ChangedFrame]
    moved: Mapping[str, Any] | None


def require_same(store: ScanStore, source: str, scan: ScanConfig, *, again: bool = False) -> CurrentSources:
    """Refuse the scan store of an earlier run of the same folder where it is not what is asked for now.

    What costs little is held against it: options, names, sizes and times, and the pixels of a few frames whose files
    are others.

    Parameters
    ----------
    again
        Whether a difference is no reason to refuse, so that every one counts.

    Raises
    ------
    ChangedError
        It can be made again of what there is now.
    InputError
        It is of another source.
    """
    held = store.provenance
    asked = held.get("asked", {})
    where = absolute(source)
    refs = discover(where)
    moved = None if held.get("source") == where else _moved(store, refs)
    if held.get("source") != where and moved is None:
        raise InputError(
            f"{store.path}: holds {held.get('source')}, not {source}: choose another --out, or remove this store"
        )
    part = held.get("placement", {}).get("part") or {}
    whole = tuple(part.get("of", store.scan_shape))
    was = ScanPart(_range(part.get("rows")), _range(part.get("columns")), part.get("every", 1))
    now = part_of(scan)
    if scan.shape and whole != tuple(scan.shape):
        differs = f"holds {whole[0]} × {whole[1]}, --shape says {scan.shape[0]} × {scan.shape[1]}"
    elif was != now:
        differs = f"holds {was} of the scan, now it is {now}"
    elif _is_other_order(scan.order, asked.get("order"), store.order):
        differs = f"was ingested as {store.order}, now --order is {scan.order or 'raster'}"
    elif scan.first_number not in (None, asked.get("first_number")):
        differs = f"was ingested with --first-number {asked.get('first_number')}, now it is {scan.first_number}"
    elif again and (name := next((one for one in _OPTIONS_WITHOUT_EFFECT if asked.get(one) != getattr(scan, one)), "")):
        differs = f"was ingested with scan.{name} {asked.get(name)}, now it is {getattr(scan, name)}"
    elif moved is None and held.get("manifest") != manifest(refs):
        differs = _other_frames(store, source, [str(ref) for ref in refs])
    else:
        frames = changed_frames.sources_of(store, moved)
        found = changed_frames.suspects(frames)
        changed, exact = changed_frames.probe(found, store.detector_mask, store.dtype)
        if not (changed and exact):
            return CurrentSources(
                frames, found, None if moved is None else {"source": where, "manifest": manifest(refs)}
            )
        differs = changed_frames.describe_changes(changed, len(frames))
    raise ChangedError(f"{store.path}: {differs}: {CHOICE_HINT}")


def require_source(store: ScanStore, source: str, scan: ScanConfig) -> None:
    """Refuse the scan store of an earlier run of the same folder where it is of another source, shape or order.

    Raises
    ------
    InputError
        It is.
    """
    held, where = store.provenance, absolute(source)
    if held.get("source") != where:
        differs = f"holds {held.get('source')}, not {source}"
    elif scan.shape and store.scan_shape != tuple(scan.shape):
        differs = f"holds {store.scan_shape[0]} × {store.scan_shape[1]}, --shape says {scan.shape[0]} × {scan.shape[1]}"
    elif _is_other_order(scan.order, held.get("asked", {}).get("order"), store.order):
        differs = f"was ingested as {store.order}, now --order is {scan.order or 'raster'}"
    else:
        return
    raise InputError(f"{store.path}: {differs}: choose another --out, or remove this store")


def _range(found: Sequence[int | None] | None) -> Range | None:
    return None if found is None else (found[0] or 0, found[1])


def _is_other_order(now: str | None, asked: str | None, held: str) -> bool:
    """Whether another order of the lines is asked for than the one by which a store was ingested.

    Stores of before have `raster` where nobody asked for any.
    """
    if now is None:
        return asked == "snake"
    return now != (asked or held)


def _moved(store: ScanStore, refs: Sequence[FrameRef]) -> dict[str, FrameRef] | None:
    """Where each frame of a store is if its folder was moved or copied, by its name in the store; None if it was not.

    The names below the folder are the same, in the same order; their content is yet to be compared.
    """
    if store.identity is None:
        return None
    names = [name for name in store.source if name] + [
        str(one["source"]) for one in store.set_aside if one["pattern"] is None
    ]
    before = os.path.commonpath({FrameRef.parse(name).path for name in names})
    after = os.path.commonpath({ref.path for ref in refs})
    now = {str(replace(ref, path=before + ref.path[len(after) :])): ref for ref in refs}
    same = store.provenance.get("manifest") == manifest([FrameRef.parse(name) for name in now])
    return now if same and now.keys() >= set(names) else None


def _other_frames(store: ScanStore, source: str, now: Sequence[str]) -> str:
    """How the names of frames differ from those that are in a store."""
    held = [name for name in store.source if name]
    before = {*held, *(one["source"] for one in store.set_aside)}
    new = [name for name in now if name not in before]
    gone = [name for name in held if name not in set(now)]
    parts = [f"{len(new)} are new, first {new[0]}"] if new else []
    parts += [f"{len(gone)} are gone, first {gone[0]}"] if gone else []
    order = "the same in another order" if set(now) == before else "not the same"
    what = ", ".join(parts) or order
    return f"holds {len(held)} frames, {source} has {len(now)} now, not the same: {what}"


def compare(store: ScanStore, found: CurrentSources, *, workers: Workers, progress: Progress) -> None:
    """Read the frames whose files are others, and take down the files of those that are the same.

    Raises
    ------
    ChangedError
        Some are not.
    """
    if found.suspects:
        batches = [
            found.suspects[i : i + FRAMES_PER_COMPARISON] for i in range(0, len(found.suspects), FRAMES_PER_COMPARISON)
        ]
        with progress.stage("compare", total=len(found.suspects), unit="frames") as advance:
            shared = (store.detector_mask, store.dtype)
            answers = map_tasks(
                changed_frames.read_again, batches, shared, client=workers.client, on_done=lambda one: advance(len(one))
            )
        if bad := [one for answer in answers for one in answer]:
            raise ChangedError(
                f"{store.path}: {changed_frames.describe_changes(bad, len(found.frames))}: {CHOICE_HINT}"
            )
        logger.info("ingest: %d files have other times, but their frames are the same", len(found.suspects))
    if store.identity is None or not (found.suspects or found.moved or not store.has_receipts_of_sources):
        return
    with locked_store(store.path, "take down where its frames are"):
        refs: list[FrameRef | None] = [FrameRef.parse(name) if name else None for name in store.source]
        stamps = [store.identity.stamp(pattern) for pattern in range(store.n_patterns)]
        for one in found.frames:
            refs[one.place] = one.ref
        for suspect in found.suspects:
            stamps[suspect.read.place] = suspect.now
        store.update_sources(refs, stamps, found.moved or {})
