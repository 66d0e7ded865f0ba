"""Find the scans below a beamtime's folder, with their size, their age and what identifies their state."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from laue_dask.errors import InputError
from laue_dask.io import hdf5
from laue_dask.io.file_kinds import irregular, is_frame, numbered_stem, suffix_of
from laue_dask.io.folder_contents import MASTER_SUFFIX, by_content, natural_key
from laue_dask.io.frames import discover, several_scans
from laue_dask.io.line_folders import line_names
from laue_dask.nightly.config import FindConfig

_RUN_FILES = ("run.json", "results.zarr", "scan.zarr", "scan.zarr.part")
"""A folder with one of these is somebody's run, whose own files are no scan."""


@dataclass(frozen=True, slots=True)
class FoundScan:
    """A scan as it lies on the disk now.

    Attributes
    ----------
    root
        The beamtime's folder.
    name
        Path below it.
    frames, size
        Files of frames, or the frames in them where these are few; and their bytes.
    newest
        When the last of them changed, in seconds since 1970.
    fingerprint
        Hash of the names, sizes and times of all of them, 16 hexadecimal digits.
    marked
        Whether the done-marker is there; None where none is configured.
    problem
        Why it cannot be looked at; empty where it can.
    """

    root: Path
    name: str
    frames: int = 0
    size: int = 0
    newest: float = 0.0
    fingerprint: str = ""
    marked: bool | None = None
    problem: str = ""

    @property
    def path(self) -> Path:
        """Folder or file of the frames."""
        return self.root / self.name

    def waits(self, rules: FindConfig, now: float) -> str:
        """Return why it is not to be run yet; empty where it is complete."""
        least = rules.min_frames if self.path.is_dir() else 1
        quiet = 60 * rules.quiet_minutes
        if self.problem:
            return self.problem
        if self.marked is False:
            return f"no {rules.done_marker} yet"
        if self.frames < least:
            return f"{self.frames} of {least} frames" if self.frames else "no frames yet"
        if self.size < rules.min_size:
            return f"{self.size / 1e6:.1f} MB of {rules.min_size / 1e6:.1f} MB"
        # A file that is dated in the future has a wrong clock, not a writer.
        if abs(now - self.newest) < quiet:
            return f"changed {max(0.0, now - self.newest) / 60:.1f} min ago, {rules.quiet_minutes:g} min are asked for"
        return ""


_Stat = tuple[str, int, int]
"""Name, bytes, and nanoseconds since 1970 of a file."""


@dataclass
class _Folder:
    frames: list[_Stat]
    files: list[str]
    folders: list[str]
    problem: str = ""


def find_scans(root: Path, rules: FindConfig, *, leave_out: Path) -> list[FoundScan]:
    """Return all scans below `root`, in natural order of their names.

    A folder is a scan if a pattern matches it and it holds frames, or the lines of one scan (sub-folders of frames, as
    `laue-dask run` takes them, too), or nothing at all yet; a file if a pattern matches it and it is of a detector's
    format. Sub-folders that a pattern matches, but not the folder above them, are scans of their own. Hidden files,
    Zarr stores and runs are passed over.

    Parameters
    ----------
    leave_out
        Folder that is not looked into: where the runs are.

    Raises
    ------
    InputError
        `root` is no folder that can be read.
    """
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder: is it mounted?")
    first = _look(root)
    if first.problem:
        raise InputError(f"{root}: {first.problem}")
    found = list(_below(root, (), first, rules, leave_out.absolute(), set()))
    return sorted(found, key=lambda scan: (natural_key(scan.name), scan.name))


def _below(
    root: Path, parts: tuple[str, ...], content: _Folder, rules: FindConfig, leave_out: Path, above: set[str]
) -> Iterator[FoundScan]:
    """Scans in a folder and below it, itself included; what is in memory is one folder's content, and its lines'."""
    folder = root.joinpath(*parts)
    real = os.path.realpath(folder)
    if real in above:  # a link that leads back
        return
    inner = [name for name in content.folders if _wanted(folder / name, parts, rules, leave_out)]
    if parts and _matches(parts, rules.patterns):
        if content.problem:
            yield FoundScan(root, "/".join(parts), problem=content.problem)
            return
        looked = ((name, _look(folder / name)) for name in sorted(line_names(inner), key=natural_key))
        lines = {name: one.frames for name, one in looked if one.frames}
        if not content.frames and not _are_one_scan(folder, parts, lines, rules):
            lines = {}
        if content.frames or lines or not (content.files or content.folders):
            within = [(f"{line}/{name}", size, at) for line, frames in lines.items() for name, size, at in frames]
            marked = None if rules.done_marker is None else rules.done_marker in content.files
            yield _found(root, parts, content.frames or within, marked, rules)
            inner = [name for name in inner if name not in lines or content.frames]
    for stat in content.frames:
        if not _is_scan(stat[0], parts, content, rules):
            continue
        marked = None if rules.done_marker is None else stat[0] + rules.done_marker in content.files
        yield _found(root, (*parts, stat[0]), [stat], marked, rules)
    for name in inner:
        yield from _below(root, (*parts, name), _look(folder / name), rules, leave_out, {*above, real})


def _are_one_scan(folder: Path, parts: tuple[str, ...], lines: dict[str, list[_Stat]], rules: FindConfig) -> bool:
    """Whether sub-folders of frames are the lines of one scan, rather than scans of their own."""
    if not any(_matches((*parts, name), rules.patterns) for name in lines):
        return True  # what else
    if len(lines) < 2 or len({name.rstrip("0123456789") for name in lines}) > 1:
        return False
    files = {
        name: [f"{folder / name}/{one}" for one in sorted((stat[0] for stat in stats), key=natural_key)]
        for name, stats in lines.items()
    }
    return not several_scans(files)


def _is_scan(name: str, parts: tuple[str, ...], content: _Folder, rules: FindConfig) -> bool:
    """Whether a file is a scan of its own.

    `*/*` means folders: only a pattern such as `*.h5` makes a scan of a file, but of one of several frames that lies in
    no folder below the beamtime's.
    """
    if _matches((*parts, name), rules.exclude):
        return False
    if _matches((*parts, name), [pattern for pattern in rules.patterns if "." in pattern.rpartition("/")[2]]):
        return True
    linked = any(
        name.startswith(f"{one.removesuffix(MASTER_SUFFIX)}_data_")
        for one in content.files
        if one.endswith(MASTER_SUFFIX)
    )
    return not parts and not linked and suffix_of(name) in hdf5.SUFFIXES and _matches((name,), rules.patterns)


def _found(
    root: Path, parts: Sequence[str], stats: Sequence[_Stat], marked: bool | None, rules: FindConfig
) -> FoundScan:
    digest = hashlib.sha256(repr(sorted(stats)).encode(errors="surrogateescape")).hexdigest()[:16]
    newest = max((at for _, _, at in stats), default=0) / 1e9
    frames = len(stats)
    if 0 < frames < rules.min_frames:
        # Few files may hold many frames.
        with suppress(InputError):
            refs = discover(root.joinpath(*parts))
            frames = max(frames, sum(not irregular(ref.path) for ref in refs))
    return FoundScan(root, "/".join(parts), frames, sum(size for _, size, _ in stats), newest, digest, marked)


def _look(folder: Path) -> _Folder:
    content = _Folder([], [], [])
    numbered: list[_Stat] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):  # it went, or is a link to itself
                    if entry.is_dir():
                        content.folders.append(entry.name)
                        continue
                content.files.append(entry.name)
                if entry.name.startswith(".") or not (is_frame(entry.name) or numbered_stem(entry.name)):
                    continue
                with suppress(OSError):
                    if entry.is_file():  # neither a link to nothing nor a named pipe
                        stat = entry.stat()
                        (content.frames if is_frame(entry.name) else numbered).append(
                            (entry.name, stat.st_size, stat.st_mtime_ns)
                        )
    except OSError as error:
        content.problem = f"cannot be read: {error.strerror}"
    if numbered and not content.frames:
        frames = by_content(f"{folder}/{stat[0]}" for stat in numbered)
        content.frames += [stat for stat in numbered if f"{folder}/{stat[0]}" in frames]
    return content


def _wanted(folder: Path, parts: tuple[str, ...], rules: FindConfig, leave_out: Path) -> bool:
    name = folder.name
    if name.startswith(".") or name.endswith((".zarr", ".zarr.part")) or folder.absolute() == leave_out:
        return False
    return not _matches((*parts, name), rules.exclude) and not any((folder / one).exists() for one in _RUN_FILES)


def _matches(parts: Sequence[str], patterns: Iterable[str]) -> bool:
    return any(matches(parts, pattern.split("/")) for pattern in patterns)


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the parts of a path fit those of a pattern; `**` stands for any number of parts.

    Examples
    --------
    >>> matches(["sample", "scan1"], ["*", "scan*"]), matches(["a", "b", "c.h5"], ["**", "*.h5"])
    (True, True)
    """
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return matches(parts, pattern[1:]) or (bool(parts) and matches(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])
