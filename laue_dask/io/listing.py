"""Files of frames of a scan, in the order of acquisition; listed again and again, which costs what is new."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from laue_dask.errors import InputError
from laue_dask.io.file_kinds import FRAME_SUFFIXES, PACKED_SUFFIXES, TIFF_SUFFIXES, family_of, is_frame, suffix_of
from laue_dask.io.folder_contents import MASTER_SUFFIX, EmptyError, Folder, Matches, in_order, is_folder, natural_key
from laue_dask.io.line_folders import line_names, require_one_scan

__all__ = [
    "FRAME_SUFFIXES",
    "PACKED_SUFFIXES",
    "TIFF_SUFFIXES",
    "EmptyError",
    "Listing",
    "is_frame",
    "natural_key",
    "suffix_of",
]

_LINKED_FILE = re.compile(r"_data_\d+\.h5$")
"""End of the names of files that a master links to."""


class Listing:
    """Files of frames, listed again and again.

    Parameters
    ----------
    source
        Folder of frames, or of one sub-folder `…_01`, `…_02` per line of the scan; glob; or template of numbered files.

    Attributes
    ----------
    files
        In natural order of their names (img_2 before img_10); of EIGER files the masters alone. One whose name is a
        frame's, but which is no regular file, is among them: whoever reads it says so.
    odd
        What is wrong with the name of a file, which is left out; empty where nothing is.
    added
        What came to `files` in the last look, in no order; None where that is not known, or others are gone.
    left_out
        Path → why it is no frame of the scan though its name is one's.
    lines
        Name of each folder of a line → paths of its frames, where the scan has such.
    """

    def __init__(self, source: str | Path) -> None:
        self.files: list[str] = []
        self.odd = ""
        self.added: list[str] | None = None
        self.left_out: dict[str, str] = {}
        self.lines: dict[str, list[str]] = {}
        self._source = str(source)
        self._content: Folder | Matches | None = None
        self._count = 0
        """Files after the last look: their list may be that of a folder, which changes."""
        self._whole = False
        """Whether the last look came to its end."""
        self._folders: dict[str, Folder] = {}
        """Those of the lines."""

    def look(self) -> bool:
        """List what is there now, and return whether anything came or went.

        Raises
        ------
        EmptyError
            There is nothing.
        InputError
            There are several kinds of frames, or scans, or a folder cannot be read.
        """
        whole, self._whole = self._whole, False
        kind = Folder if is_folder(self._source) else Matches
        if not isinstance(self._content, kind):
            self._content, self._folders = kind(self._source), {}
        self.left_out, self.lines = {}, {}
        changed = self._content.look()
        if isinstance(self._content, Matches):
            files = self._without_linked(self._content.files, self._content.masters)
        elif self._content.kinds:
            files = self._chosen([self._content])
        else:
            folders = self._look_at_lines(self._content.folders)
            changed |= any(folder.changed for folder in folders)
            files = self._chosen(folders) if folders else self._chosen_by_content()
        self.odd = self._find_odd()
        lines = isinstance(self._content, Folder) and not self._content.kinds
        exact = whole and files is self.files and not lines and not self._content.gone
        self.added = self._content.added if exact else None
        changed |= not whole or len(files) != self._count
        self.files, self._count, self._whole = files, len(files), True
        return changed

    def _find_odd(self) -> str:
        parts = [part for part in (self._content, *self._folders.values()) if part is not None]
        odd = next((name for part in parts for name in part.odd), "")
        return f"{odd!a}: the file's name is not UTF-8: rename it" if odd else ""

    def _look_at_lines(self, folders: Iterable[str]) -> "list[Folder]":
        """Folders of the lines of a scan that hold frames, in order."""
        names = in_order(line_names(folders))
        self._folders = {name: self._folders.get(name) or Folder(f"{Path(self._source) / name}") for name in names}
        for line in self._folders.values():
            line.look()
        lines = {name: line for name, line in self._folders.items() if line.kinds}
        require_one_scan(self._source, lines)
        self.lines = {name: line.names for name, line in lines.items()}
        return list(lines.values())

    def _chosen(self, folders: "Sequence[Folder]") -> list[str]:
        kinds = sum((folder.kinds for folder in folders), Counter[str]())
        families = {family_of(suffix) for suffix in kinds}
        if len(families) > 1:
            raise self._several(kinds)
        files = folders[0].names if len(folders) == 1 else [name for folder in folders for name in folder.names]
        strange = {path: what for folder in folders for path, what in folder.irregular.items()}
        if others := {path: what for path, what in strange.items() if family_of(suffix_of(path)) not in families}:
            self.left_out |= {path: f"is {what}" for path, what in others.items()}
            files = [name for name in files if name not in others]
        if len(kinds) > 1:
            stems = [{_unsuffixed(name) for name in files if suffix_of(name) == suffix} for suffix in kinds]
            if len(set.union(*stems)) < sum(map(len, stems)):
                raise self._several(kinds)
        if ".h5" in families and (masters := [name for name in files if name.endswith(MASTER_SUFFIX)]):
            self.left_out |= {
                name: f"is no {MASTER_SUFFIX[1:]} file, as others beside it are"
                for name in files
                if not name.endswith(MASTER_SUFFIX) and not _LINKED_FILE.search(name)
            }
            return masters
        return files

    def _chosen_by_content(self) -> list[str]:
        """Files whose suffix is a number, as `scan.0001`, where their content says what they are."""
        if not isinstance(self._content, Folder):
            raise TypeError("only a folder has files by content")
        folders = [self._content] if self._content.find_numbered() else list(self._folders.values())
        lines = {folder.path: folder.find_numbered() for folder in folders}
        kinds = sum((Counter(one.values()) for one in lines.values()), Counter[str]())
        if not kinds and (odd := self._find_odd()):
            raise InputError(odd)
        if not kinds:
            if Path(self._source, "scan.zarr").exists():
                raise InputError(f"{self._source}: is the folder of a run: give its scan, {self._source}/scan.zarr")
            raise EmptyError(f"{self._source}: there are no frames in it ({', '.join(sorted(FRAME_SUFFIXES))})")
        if len(kinds) > 1:
            raise self._several(kinds)
        found = {os.path.basename(folder): in_order(files) for folder, files in lines.items() if files}  # noqa: PTH119
        if folders[0] is not self._content:
            require_one_scan(self._source, found)
            self.lines = found
        return [name for one in found.values() for name in one]

    def _several(self, kinds: Counter[str]) -> InputError:
        ordered = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
        found = ", ".join(f"{number} {suffix}" for suffix, number in ordered)
        return InputError(
            f"{self._source}: several kinds of frames ({found}): choose one with a glob, "
            f"as {self._source}/*{max(kinds)}"
        )

    def _without_linked(self, files: list[str], masters: Iterable[str]) -> list[str]:
        """Files that a pattern matches, without those that a master among them links to."""
        stems = tuple(f"{name.removesuffix(MASTER_SUFFIX)}_data_" for name in masters)
        return (
            [name for name in files if not (name.startswith(stems) and _LINKED_FILE.search(name))] if stems else files
        )


def _unsuffixed(path: str) -> str:
    """A path without its suffix and that of its packing."""
    stem, suffix = os.path.splitext(path)  # noqa: PTH122  of 100,000 names
    return os.path.splitext(stem)[0] if suffix.lower() in PACKED_SUFFIXES else stem  # noqa: PTH122
