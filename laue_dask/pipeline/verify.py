"""Compare every object of a scan store, a run or a weights file with its receipt.

Nothing is changed here. What a run makes again by itself when it is asked for again, and what has to be removed first,
is said of each finding.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import zarr

from laue_dask import schema
from laue_dask.errors import InputError, LaueDaskError, StoreError
from laue_dask.features import weights
from laue_dask.io import journal, lock
from laue_dask.io import results as io_results
from laue_dask.io.block_files import BlockFiles
from laue_dask.io.journal import Journal
from laue_dask.io.receipts import RUN_RECEIPTS_FILE, STORE_RECEIPTS_FILE, Receipts
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import record as records
from laue_dask.runtime.progress import Progress

RUN_AGAIN_HINT = "the same `laue-dask run` command makes it again"
MAX_LISTED_FINDINGS = 50
"""Findings and other files that are told one by one."""

_SCAN_STORE, _REDUCED_GROUP = "scan.zarr", "reduced"
_PARTIAL_SUFFIX, _TEMPORARY_SUFFIXES = ".partial", (".part", ".old", ".copy")


class Finding(NamedTuple):
    """One object that is not what was written, why, and what to do."""

    path: Path
    fault: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.fault}: {self.remedy}"


@dataclass
class Verification:
    """What was checked and found.

    Attributes
    ----------
    what
        What the path is.
    objects
        How many were held against their receipts.
    foreign
        Files that no receipt knows of.
    notes
        What else is worth saying.
    """

    what: str
    objects: int = 0
    findings: list[Finding] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        found = len(self.findings)
        lines = [str(finding) for finding in self.findings[:MAX_LISTED_FINDINGS]]
        lines += [f"{found - MAX_LISTED_FINDINGS} more objects are damaged"] if found > MAX_LISTED_FINDINGS else []
        lines += self.notes
        lines += [f"{path}: was not written by laue-dask" for path in self.foreign[:MAX_LISTED_FINDINGS]]
        lines += (
            [f"{len(self.foreign) - MAX_LISTED_FINDINGS} more files were not written by laue-dask"]
            if len(self.foreign) > MAX_LISTED_FINDINGS
            else []
        )
        verdict = "all of them are as they were written" if not found else f"{found} damaged"
        return [*lines, f"{self.what}: {self.objects} objects, {verdict}"]


def verify(path: Path, *, sources: bool = False, progress: Progress, label: str = "") -> Verification:
    """Check a scan store, the results of a run, a whole run with its own scan store, a series, or a weights file.

    Parameters
    ----------
    sources
        Whether to read all frames of the source, too, and compare them with those that were ingested.
    label
        Which of several runs it is, before the line that says what its grid is.

    Raises
    ------
    InputError
        It is none of these, or is not there.
    """
    if path.is_file():
        return _weights(path)
    if not path.is_dir():
        raise InputError(f"{path}: there is no such file or folder")
    if _is_store(path):
        checks, found = (
            _store(path) if path.name != io_results.RESULTS_STORE else _results(path),
            Verification(str(path)),
        )
    elif _is_run(path):
        _remind(path, label)
        checks, found = _run(path), Verification(f"run {path}")
    elif members := records.members_of(path):
        return _series(path, members, sources=sources, progress=progress)
    else:
        raise InputError(f"{path}: this is neither a run nor a scan store nor weights of laue-dask")
    with progress.stage("verify", total=sum(1 for _ in checks.names()), unit="objects") as advance:
        for finding in checks.findings():
            found.objects += 1
            advance(1)
            if finding:
                found.findings.append(finding)
    found.foreign, found.notes = checks.foreign(), checks.notes
    if sources:
        _sources(path, found, progress=progress)
    return found


def _remind(path: Path, label: str) -> None:
    """Say what the grid of a run is; of a run whose record is gone or damaged, the findings say so."""
    from laue_dask.pipeline.stages import frame_placement

    with suppress(LaueDaskError, KeyError):
        frame_placement.remind_of_record(records.read(path), label)


def _sources(path: Path, found: Verification, *, progress: Progress) -> None:
    """Read all frames of a source and compare them with those that were ingested."""
    from laue_dask.compute.run import map_tasks
    from laue_dask.pipeline.stages import changed_frames, earlier_scan

    try:
        place = path if _is_store(path) else path / _SCAN_STORE
        store = ScanStore.open(place if place.exists() else Path(records.read(path)["scan"]))
        frames = changed_frames.frames_to_compare(store)
    except (LaueDaskError, KeyError) as error:
        found.notes.append(f"{path}: its sources cannot be compared: {error}")
        return
    if not frames:
        found.notes.append(f"{store.path}: does not say what its sources were: they cannot be compared")
        return
    batches = [
        frames[i : i + earlier_scan.FRAMES_PER_COMPARISON]
        for i in range(0, len(frames), earlier_scan.FRAMES_PER_COMPARISON)
    ]
    with progress.stage("compare", total=len(frames), unit="frames") as advance:
        shared = (store.detector_mask, store.dtype)
        answers = map_tasks(
            changed_frames.read_again, batches, shared, client=None, on_done=lambda one: advance(len(one))
        )
    found.objects += len(frames)
    kept = "the store has its pixels" if store.has_frames else "there is no other copy of it"
    for one in (one for answer in answers for one in answer):
        why = "is gone" if not one.now.known else f"changed since it was read ({one.values})"
        found.findings.append(Finding(Path(str(one.read.ref)), why, f"put it back; {kept}"))


@dataclass
class _Checks:
    """Objects that a folder should hold.

    Attributes
    ----------
    broken
        Findings before any object was looked at.
    known
        Receipts of single files, and what to do where one is damaged.
    arrays
        Arrays of blocks, their seals, and what to do.
    parts
        Of stores within the folder.
    """

    folder: Path
    broken: list[Finding] = field(default_factory=list)
    known: list[tuple[Receipts, str]] = field(default_factory=list)
    arrays: list[tuple[BlockFiles, dict[int, int], str]] = field(default_factory=list)
    own: set[Path] = field(default_factory=set)
    parts: list["_Checks"] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def names(self) -> Iterator[Path]:
        """Every object."""
        yield from (finding.path for finding in self.broken)
        for receipts, _ in self.known:
            yield from (receipts.folder / name for name in receipts.files)
        for files, seals, _ in self.arrays:
            yield from (files.path(block) for block in seals)
        for part in self.parts:
            yield from part.names()

    def findings(self) -> Iterator[Finding | None]:
        """Check every object; None for one that is as it was written."""
        yield from self.broken
        for receipts, remedy in self.known:
            for name, fault in receipts.faults():
                yield Finding(receipts.folder / name, fault, remedy) if fault else None
        for files, seals, remedy in self.arrays:
            for block, seal in seals.items():
                fault = files.fault(block, seal, whole=True)
                yield Finding(files.path(block), fault, remedy) if fault else None
        for part in self.parts:
            yield from part.findings()

    def foreign(self) -> list[Path]:
        """Files that no receipt knows of, but for what our own commands leave while they work."""
        known = set(self.names()) | self.own | {path for part in self.parts for path in part.own}
        found = []
        for path in sorted(self.folder.rglob("*")):
            within = path.relative_to(self.folder).parts
            ours = (
                path in known
                or within[0].startswith(lock.LOCK_FILE)
                or any(p.endswith(_TEMPORARY_SUFFIXES) for p in within)
            )
            if path.is_file() and not ours:
                found.append(path)
        return found


def _is_store(path: Path) -> bool:
    inside = ("frames", "detector_mask", "features", "patterns", STORE_RECEIPTS_FILE)
    return path.suffix == ".zarr" or any((path / name).exists() for name in inside)


def _is_run(path: Path) -> bool:
    ours = (
        records.RECORD_FILE,
        records.WITHDRAWN_RECORD_FILE,
        io_results.RESULTS_STORE,
        io_results.PARTIAL_STORE,
        _SCAN_STORE,
        _SCAN_STORE + ".part",
    )
    return any((path / name).exists() for name in ours)


def _series(path: Path, members: Sequence[Path], *, sources: bool, progress: Progress) -> Verification:
    """All runs of a series; one that is gone is a finding."""
    found = Verification(f"series {path}")
    own = _Checks(
        path,
        own={
            path / name
            for name in (records.SERIES_FILE, "series.html", "dask-report.html", records.LOG_FILE, RUN_RECEIPTS_FILE)
        },
    )
    own.own |= set(path.glob("cluster/*"))
    if (path / RUN_RECEIPTS_FILE).exists():
        try:
            own.known.append((Receipts.read(path, RUN_RECEIPTS_FILE), "run the series again"))
        except StoreError as error:
            own.broken.append(
                Finding(
                    path / RUN_RECEIPTS_FILE,
                    str(error).removeprefix(f"{path / RUN_RECEIPTS_FILE}: "),
                    "run the series again",
                )
            )
    for finding in own.findings():
        found.objects += 1
        found.findings += [finding] if finding else []
    found.foreign = [file for file in own.foreign() if not any(member in file.parents for member in members)]
    for member in members:
        if not _is_run(member):
            found.findings.append(Finding(member, "is missing", "run the series again"))
            continue
        one = verify(member, sources=sources, progress=progress, label=f"{member.name}: ")
        found.objects += one.objects
        found.findings += one.findings
        found.foreign += one.foreign
        found.notes += one.notes
    return found


def _weights(path: Path) -> Verification:
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: this is neither a run nor a scan store nor weights of laue-dask")
    found = Verification(str(path), objects=1)
    try:
        weights.load(str(path))
    except LaueDaskError as error:
        text = str(error).removeprefix(f"{path}: ")
        found.findings.append(Finding(path, text, "copy it again from where it came from, or train it again"))
    return found


def _store(path: Path, *, remedy: str = "remove the store and ingest again") -> _Checks:
    """A scan store, or a training store, which has no receipts but the checksums in its chunks."""
    checks = _Checks(path, own={path / STORE_RECEIPTS_FILE})
    if (path / "patterns").exists() and not (path / "frames").exists():
        return _training(checks)
    try:
        receipts = Receipts.read(path)
    except StoreError as error:
        checks.broken.append(
            Finding(path / STORE_RECEIPTS_FILE, str(error).removeprefix(f"{path / STORE_RECEIPTS_FILE}: "), remedy)
        )
        return checks
    reduced = f"{_REDUCED_GROUP}/"
    checks.known.append(
        (Receipts(path, {n: f for n, f in receipts.files.items() if not n.startswith(reduced)}), remedy)
    )
    of_reduced = Receipts(path, {n: f for n, f in receipts.files.items() if n.startswith(reduced)})
    checks.known.append((of_reduced, RUN_AGAIN_HINT))
    try:
        store = ScanStore(path)
        if store.has_frames:
            array = store.root["frames"]
            assert isinstance(array, zarr.Array)  # noqa: S101  for the type checker: `has_frames`
            checks.arrays.append((BlockFiles(array), store.seals, remedy))
        else:
            checks.notes.append(
                f"{path}: holds no frames itself; the detector's files are compared with it when they are read, "
                f"or all at once with --sources"
            )
    except Exception as error:
        reason = " ".join(str(error).split())
        checks.broken.append(Finding(path / "frames", f"cannot be opened: {reason}", remedy))
    for folder in sorted(path.glob(f"{_REDUCED_GROUP}/*/")):
        listed = f"{_REDUCED_GROUP}/{folder.name}/zarr.json" in receipts.files
        checks.arrays += _journaled(checks, path, f"{_REDUCED_GROUP}/{folder.name}", finished=listed)
    return checks


def _training(checks: _Checks) -> _Checks:
    for name in schema.TRAINING:
        try:
            array = zarr.open_array(str(checks.folder), path=name, mode="r")
            files = BlockFiles(array)
            seals = {block: _seal(files, block) for block in range(files.count)}
            checks.arrays.append((files, seals, "simulate it again"))
        except Exception as error:
            reason = f"cannot be opened: {' '.join(str(error).split())}"
            checks.broken.append(Finding(checks.folder / name, reason, "simulate it again"))
    checks.notes.append(f"{checks.folder}: a training store has no receipts; its chunks are checked by themselves")
    return checks


def _seal(files: BlockFiles, block: int) -> int:
    try:
        return files.seal(block)
    except (OSError, ValueError):
        return -1


def _results(path: Path) -> _Checks:
    checks = _Checks(path, own={path / STORE_RECEIPTS_FILE})
    try:
        receipts = Receipts.read(path)
    except StoreError as error:
        checks.broken.append(
            Finding(
                path / STORE_RECEIPTS_FILE, str(error).removeprefix(f"{path / STORE_RECEIPTS_FILE}: "), RUN_AGAIN_HINT
            )
        )
        return checks
    checks.known.append((receipts, RUN_AGAIN_HINT))
    for file in sorted(path.glob(f"*/{journal.JOURNAL_FILE}")):
        checks.arrays += _journaled(checks, path, file.parent.name, finished=True)
    return checks


def _journaled(
    checks: _Checks, store: Path, name: str, *, finished: bool
) -> list[tuple[BlockFiles, dict[int, int], str]]:
    """An array whose journal vouches for its blocks."""
    try:
        files = BlockFiles(zarr.open_array(str(store), path=name, mode="r"))
    except Exception as error:
        reason = f"cannot be opened: {' '.join(str(error).split())}"
        checks.broken.append(Finding(store / name, reason, RUN_AGAIN_HINT))
        return []
    receipts = Journal(store / name / journal.JOURNAL_FILE).read()
    seals = {block: int(receipt.get("seal", -1)) for block, receipt in receipts.items() if 0 <= block < files.count}
    if not finished:
        checks.own |= {path for path in (store / name).rglob("*") if path.suffix != _PARTIAL_SUFFIX}
        checks.notes.append(f"{store / name}: not finished, {len(seals)} of {files.count} blocks are there")
    return [(files, seals, RUN_AGAIN_HINT)]


def _run(path: Path) -> _Checks:
    own = {path / name for name in (RUN_RECEIPTS_FILE, records.RECORD_FILE, records.WITHDRAWN_RECORD_FILE)}
    checks = _Checks(path, own=own | {file for name in records.FILES_WITHOUT_RECEIPT for file in path.glob(name)})
    if (path / _SCAN_STORE).exists():
        checks.parts.append(_store(path / _SCAN_STORE, remedy=f"remove {path / _SCAN_STORE}, then {RUN_AGAIN_HINT}"))
    on_its_way = any((path / name).exists() for name in (records.WITHDRAWN_RECORD_FILE, records.PARTIAL_RECORD_FILE))
    if not (path / records.RECORD_FILE).exists() and (path / RUN_RECEIPTS_FILE).exists() and not on_its_way:
        checks.broken.append(Finding(path / records.RECORD_FILE, "is missing", RUN_AGAIN_HINT))
    elif not (path / records.RECORD_FILE).exists():
        checks.notes.append(f"{path}: the run is not finished: the same `laue-dask run` command goes on")
        checks.own |= {file for name in records.RUN_FILES for file in path.glob(name)}
        return _begun(checks, path)
    try:
        record = {} if checks.broken else records.read(path)
        if record and not (path / _SCAN_STORE).exists():
            checks.notes.append(f"{path}: its scan store is {record['scan']}: verify it as well")
    except InputError as error:
        checks.broken.append(
            Finding(
                path / records.RECORD_FILE, str(error).removeprefix(f"{path / records.RECORD_FILE}: "), RUN_AGAIN_HINT
            )
        )
    try:
        checks.known.append((Receipts.read(path, RUN_RECEIPTS_FILE), RUN_AGAIN_HINT))
    except StoreError as error:
        checks.broken.append(
            Finding(path / RUN_RECEIPTS_FILE, str(error).removeprefix(f"{path / RUN_RECEIPTS_FILE}: "), RUN_AGAIN_HINT)
        )
    if (path / io_results.PARTIAL_STORE).exists():
        checks.notes.append(f"{path}: another run was begun there and is not finished: its own command goes on with it")
    if (path / io_results.RESULTS_STORE).exists():
        checks.parts.append(_results(path / io_results.RESULTS_STORE))
    else:
        checks.broken.append(Finding(path / io_results.RESULTS_STORE, "is missing", RUN_AGAIN_HINT))
    return checks


def _begun(checks: _Checks, path: Path) -> _Checks:
    """What a run that is not finished has left, as far as there are receipts."""
    for name in (io_results.RESULTS_STORE, io_results.PARTIAL_STORE):
        for file in sorted((path / name).glob(f"*/{journal.JOURNAL_FILE}")):
            checks.arrays += _journaled(checks, path / name, file.parent.name, finished=True)
        checks.own |= set((path / name).rglob("*"))
    return checks
