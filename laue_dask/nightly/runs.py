"""The runs that nights made: where they are, whose they are, whether they are finished, and how one is removed."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laue_dask.config import Config
from laue_dask.errors import ConfigError
from laue_dask.former_names import former, modern
from laue_dask.io.lock import locked_folder
from laue_dask.io.receipts import RUN_RECEIPTS_FILE
from laue_dask.nightly.scans import FoundScan
from laue_dask.pipeline.versions import FIRST_RELEASE, version_of_code

NIGHTLY_COMMAND = "laue-dask nightly"
"""How the command in the record of a night's run begins."""

_KEPT_FACTS = ("n_patterns", "n_set_aside", "scan_shape", "k", "suggested_k", "m_pca", "warnings")
_LATER_SCAN_DEFAULTS = {"first_number": None, "insist": False, "rows": None, "columns": None, "every": 1}
"""Keys of `scan` that came later, and their defaults, which change no run of before."""

_MARKER_FILE = ".nightly"
_RECORD_FILE, _WITHDRAWN_RECORD_FILE = "run.json", "run.json.withdrawn"
_TRASH_PREFIX = ".removing-"


@dataclass(frozen=True, slots=True)
class NightRun:
    """Where the run of a scan is, in the folder of the nights.

    Attributes
    ----------
    out
        Folder of the nights.
    scan
        Name of the scan.
    """

    out: Path
    scan: str

    @property
    def _flat(self) -> str:
        """The name as one part of a path, so that no run lies in another's folder."""
        flat = self.scan.replace("/", "__")
        if "__" in self.scan:
            flat += "-" + hashlib.sha256(self.scan.encode(errors="surrogateescape")).hexdigest()[:8]
        return flat

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.out / "runs" / self._flat

    @property
    def log(self) -> Path:
        """What the last try had to say."""
        return self.out / "logs" / f"{self._flat}.log"

    @property
    def thumbnails(self) -> Path:
        """Stem of their names."""
        return self.out / "thumbnails" / self._flat

    def mark(self, token: str) -> None:
        """Make the folder, if need be, as one of the nights' own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _MARKER_FILE).write_text(token, encoding="utf-8")
        self.log.parent.mkdir(parents=True, exist_ok=True)

    def free(self, token: str) -> bool:
        """Return whether nothing is there, or only what a night made and nobody has worked on since."""
        try:
            if not any(self.folder.iterdir()):
                return True
            mine = (self.folder / _MARKER_FILE).read_text(encoding="utf-8") == token
        except FileNotFoundError:
            return not self.folder.exists()
        except OSError:
            return False
        record = self.record()
        by_hand = {"segmented_by", "evaluation"} & set(record)
        ours = not record or str(record.get("command", "")).startswith(NIGHTLY_COMMAND)
        return mine and ours and not by_hand and not (self.folder / _WITHDRAWN_RECORD_FILE).exists()

    @property
    def there(self) -> bool:
        """Whether a finished run is there: its record is written last."""
        return (self.folder / _RECORD_FILE).is_file()

    def record(self) -> dict[str, Any]:
        """Return `run.json` of a finished run; empty where there is none."""
        try:
            record = json.loads((self.folder / _RECORD_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def finished(self, config: Config) -> dict[str, Any]:
        """Return the record of a run that this code finished with this configuration; empty where there is none."""
        record = self.record()
        wanted = _comparable(config.model_dump(mode="json"))
        found = _comparable(_modern(record.get("config", {})))
        return record if found == wanted and record.get("code", FIRST_RELEASE) == version_of_code() else {}

    def withdraw(self) -> None:
        """Withdraw the finished run: its frames have changed, or must be compared with those that it has.

        Raises
        ------
        BusyError
            Someone is using it.
        """
        if not self.there:
            return
        with locked_folder(self.folder, "withdraw"):
            for name in (_RECORD_FILE, RUN_RECEIPTS_FILE):
                (self.folder / name).unlink(missing_ok=True)

    def remove(self, part: str = "") -> None:
        """Remove the run, or a part of it; a kill leaves a rest that `remove_trash` removes.

        Raises
        ------
        BusyError
            Someone is using it.
        """
        with locked_folder(self.folder, "remove"):
            aside = self.out / f"{_TRASH_PREFIX}{uuid.uuid4().hex}"
            target = self.folder / part if part else self.folder
            with suppress(FileNotFoundError):
                target.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        if not part:
            for kind in ("direct", "labels"):
                self.thumbnails.with_name(f"{self.thumbnails.name}.{kind}.png").unlink(missing_ok=True)


def _modern(values: Any) -> dict[str, Any]:
    """A recorded configuration under today's names; empty where it is none."""
    try:
        return modern(values)[0]
    except (TypeError, ValueError):
        return {}


def _comparable(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration decides on a run's results."""
    kept = {name: value for name, value in values.items() if name != "workers"}
    return kept | {"scan": _of_scan(kept["scan"])} if isinstance(kept.get("scan"), dict) else kept


def _of_scan(values: Mapping[str, Any]) -> dict[str, Any]:
    """How frames are placed, as it was written before there was `_LATER_SCAN_DEFAULTS`, when the order of the lines had
    a default.
    """
    kept = {
        name: value
        for name, value in values.items()
        if not (name in _LATER_SCAN_DEFAULTS and value == _LATER_SCAN_DEFAULTS[name])
    }
    return kept | {"order": kept.get("order") or "raster"}


def remove_trash(out: Path) -> None:
    """Remove what a removal that was killed left."""
    for rest in out.glob(f"{_TRASH_PREFIX}*"):
        shutil.rmtree(rest, ignore_errors=True)


def facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the nights keep of a finished run."""
    grid = record.get("grid", {}).get("line", "")
    seconds = round(sum(record["seconds"].values()), 1)
    return {name: record[name] for name in _KEPT_FACTS} | {"grid": grid, "seconds": seconds}


@dataclass(frozen=True, slots=True)
class Key:
    """What a run depends on.

    Attributes
    ----------
    frames
        Hash of the scan's files and of how they are read: a run of others begins anew.
    rest
        Hash of all else: what still holds of the run is kept.
    """

    frames: str
    rest: str

    @classmethod
    def of(cls, scan: FoundScan, config: Config, rest: str) -> "Key":
        """Return the key of a scan as it lies on the disk, to be run with a configuration whose `settings_key`
        is `rest`.
        """
        return cls(_hash([scan.fingerprint, _of_scan(config.scan.model_dump(mode="json"))]), rest)

    @classmethod
    def parse(cls, text: str) -> "Key":
        """Return the key that `str` wrote."""
        frames, _, rest = text.partition("-")
        return cls(frames, rest)

    def __str__(self) -> str:
        return f"{self.frames}-{self.rest}"


def settings_key(config: Config) -> str:
    """Return `Key.rest` of runs with a configuration by this code.

    Raises
    ------
    ConfigError
        The weights are missing.
    """
    values = config.model_dump(mode="json", exclude={"workers", "scan"})
    hashed = {name: former(name, one) if isinstance(one, dict) else one for name, one in values.items()}
    return _hash([hashed, _weights(config.encoder.weights), version_of_code()])


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _weights(name: str) -> str:
    """What identifies the weights: those that are shipped belong to the version."""
    if not name.endswith(".safetensors"):
        return name
    try:
        with Path(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"encoder.weights = {name!r}: cannot be read: {error.strerror}") from error
