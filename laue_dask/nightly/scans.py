"""Finds the scans below a beamtime's folder: which there are, how large, how quiet, and what identifies their state."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from laue_dask.errors import InputError
from laue_dask.io.listing import is_frame, natural_key
from laue_dask.nightly.config import FindConfig

_RUN_FILES = ("run.json", "results.zarr", "scan.zarr", "scan.zarr.part")
"""A folder with one of these is somebody's run, whose own files are no scan."""


@dataclass(frozen=True, slots=True)
class Found:
    """A scan as it lies on the disk now.

    Attributes
    ----------
    root
        The beamtime's folder.
    name
        Path below it.
    frames, size
        Files of frames, and their bytes.
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
        """Why it is not to be run yet; empty where it is complete."""
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


def find(root: Path, rules: FindConfig, *, leave_out: Path) -> list[Found]:
    """All scans below `root`, in natural order of their names.

    A folder is a scan if a pattern matches it and it holds frames, or lines (sub-folders of frames that no pattern
    matches), or nothing at all yet; a file if a pattern matches it and it is of a detector's format. Hidden files,
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
        raise InputError(f"{root}: no such folder: is it mounted?")
    first = _look(root)
    if first.problem:
        raise InputError(f"{root}: {first.problem}")
    found = list(_below(root, (), first, rules, leave_out.absolute(), set()))
    return sorted(found, key=lambda scan: (natural_key(scan.name), scan.name))


def _below(
    root: Path, parts: tuple[str, ...], content: _Folder, rules: FindConfig, leave_out: Path, above: set[str]
) -> Iterator[Found]:
    """Scans in a folder and below it, itself included; what is in memory is one folder's content, and its lines'."""
    folder = root.joinpath(*parts)
    real = os.path.realpath(folder)
    if real in above:  # a link that leads back
        return
    inner = [name for name in content.folders if _wanted(folder / name, parts, rules, leave_out)]
    if parts and _matches(parts, rules.patterns):
        if content.problem:
            yield Found(root, "/".join(parts), problem=content.problem)
            return
        looked = (
            (name, _look(folder / name))
            for name in inner
            if name[-1].isdigit() and not _matches((*parts, name), rules.patterns)
        )
        lines = {name: one.frames for name, one in looked if one.frames}
        if content.frames or lines or not (content.files or content.folders):
            within = [(f"{line}/{name}", size, at) for line, frames in lines.items() for name, size, at in frames]
            marked = None if rules.done_marker is None else rules.done_marker in content.files
            yield _found(root, parts, content.frames or within, marked)
            inner = [name for name in inner if name not in lines or content.frames]
    # `*/*` means folders: only a pattern such as `*.h5` makes a scan of a file.
    of_files = [pattern for pattern in rules.patterns if "." in pattern.rpartition("/")[2]]
    for stat in content.frames:
        if not _matches((*parts, stat[0]), of_files) or _matches((*parts, stat[0]), rules.exclude):
            continue
        marked = None if rules.done_marker is None else stat[0] + rules.done_marker in content.files
        yield _found(root, (*parts, stat[0]), [stat], marked)
    for name in inner:
        yield from _below(root, (*parts, name), _look(folder / name), rules, leave_out, {*above, real})


def _found(root: Path, parts: Sequence[str], stats: Sequence[_Stat], marked: bool | None) -> Found:
    digest = hashlib.sha256(repr(sorted(stats)).encode(errors="surrogateescape")).hexdigest()[:16]
    newest = max((at for _, _, at in stats), default=0) / 1e9
    return Found(root, "/".join(parts), len(stats), sum(size for _, size, _ in stats), newest, digest, marked)


def _look(folder: Path) -> _Folder:
    content = _Folder([], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    content.folders.append(entry.name)
                    continue
                content.files.append(entry.name)
                if is_frame(entry.name) and not entry.name.startswith("."):
                    with suppress(FileNotFoundError):  # it went, or is a link to nothing
                        stat = entry.stat()
                        content.frames.append((entry.name, stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        content.problem = f"cannot be read: {error.strerror}"
    return content


def _wanted(folder: Path, parts: tuple[str, ...], rules: FindConfig, leave_out: Path) -> bool:
    name = folder.name
    if name.startswith(".") or name.endswith((".zarr", ".zarr.part")) or folder.absolute() == leave_out:
        return False
    return not _matches((*parts, name), rules.exclude) and not any((folder / one).exists() for one in _RUN_FILES)


def _matches(parts: Sequence[str], patterns: Iterable[str]) -> bool:
    return any(matches(parts, pattern.split("/")) for pattern in patterns)


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path fit those of a pattern; `**` stands for any number of parts.

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
