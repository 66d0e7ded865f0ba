"""What a run takes on the disk, part by part, and what of it can be removed because nothing needs it."""

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from laue_dask.compute import cluster, credentials
from laue_dask.config import validate
from laue_dask.errors import InputError
from laue_dask.io import results as io_results
from laue_dask.io.lock import locked_folder, locked_store
from laue_dask.io.receipts import drop_receipts
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import record as records
from laue_dask.pipeline.disk_space import bytes_on_disk
from laue_dask.pipeline.stages import changed_frames

SCAN_STORE = "scan.zarr"

LEFT_OVER_NAME = re.compile(
    r"run\.json\.(part|withdrawn)|results\.zarr\.(part|segment\.part|copy|old)|scan\.zarr\.(part|old)"
    r"|[a-z]+\.safetensors\.part|\..+\.\d+-[0-9a-f]{8}\.partial"
)
"""Names of what a command that was killed leaves beside a finished run; whatever else lies there is its owner's."""


@dataclass(frozen=True)
class Removal:
    """Something that can be removed.

    Attributes
    ----------
    path
        File or folder.
    what
        What it is, and what makes it again.
    bytes
        What it takes on the disk.
    digest
        Recipe of reduced patterns, which are removed from a scan store; empty for what stands alone.
    """

    path: Path
    what: str
    bytes: int
    digest: str = ""


def disk_usage(path: Path) -> dict[str, int]:
    """Return the bytes that the parts of a run, or of a scan store, take on the disk.

    Parameters
    ----------
    path
        Folder of a run, or a scan store.

    Returns
    -------
    bytes
        By part, the parts that are there alone; files of the run that are none of these are `other`.
    """
    store = path if ScanStore.is_store(path) else path / SCAN_STORE
    found = {"frames": bytes_on_disk(store / "frames")}
    for folder in sorted(store.glob("reduced/*/")):
        found[f"reduced patterns ({folder.name})"] = bytes_on_disk(folder)
    found["rest of the scan store"] = bytes_on_disk(store) - sum(found.values())
    if store != path:
        features = bytes_on_disk(path / io_results.RESULTS_STORE / "features")
        found |= {"features": features, "other results": bytes_on_disk(path / io_results.RESULTS_STORE) - features}
        figures = ("plots", "report.html", cluster.DASK_REPORT_FILE)
        found["figures and report"] = sum(bytes_on_disk(path / name) for name in figures)
        found["left over"] = sum(one.bytes for one in _left_over(path))
        found["other"] = bytes_on_disk(path) - sum(found.values())
    return {name: count for name, count in found.items() if count > 0}


def removable(folder: Path, *, reduced: bool = False) -> list[Removal]:
    """Find what of a finished run can be removed; the last copy of anything never is.

    Parameters
    ----------
    folder
        Of the run.
    reduced
        Whether the reduced patterns that the run was made of count, too.

    Raises
    ------
    InputError
        There is no finished run, or its reduced patterns could not be made again.
    """
    config = validate(records.read(folder)["config"], str(folder / records.RECORD_FILE))
    found = [*_left_over(folder)]
    if (folder / SCAN_STORE).exists():
        store = ScanStore.open(folder / SCAN_STORE)
        used = config.recipe.for_frames(store.frame_shape).digest()
        for digest in store.recipes():
            path = store.path / "reduced" / digest
            if digest != used:
                what = "reduced patterns of a recipe that the run does not use"
                found.append(Removal(path, what, bytes_on_disk(path), digest))
            elif reduced:
                _require_frames(store)
                what = "reduced patterns of the run; the same `laue-dask run` command makes them again"
                found.append(Removal(path, what, bytes_on_disk(path), digest))
    return found


def clean(folder: Path, *, reduced: bool = False, dry_run: bool = False) -> list[Removal]:
    """Remove what of a finished run can be removed.

    Parameters
    ----------
    folder
        Of the run, or of a series, of which each scan is cleaned.
    reduced
        See `removable`.
    dry_run
        Whether nothing is removed.

    Returns
    -------
    removed
        What was removed, or would be.

    Raises
    ------
    InputError
        See `removable`; or another command uses the run.
    """
    if members := records.members_of(folder):
        return [one for member in members for one in clean(member, reduced=reduced, dry_run=dry_run)]
    if dry_run:
        return removable(folder, reduced=reduced)
    records.read(folder)  # what is no run is refused before anything is written there
    command = f"laue-dask clean {folder}"
    with ExitStack() as owned:
        owned.enter_context(locked_folder(folder, command, "wait for it"))
        if (folder / SCAN_STORE).exists():  # other runs may be made of it
            owned.enter_context(locked_store(folder / SCAN_STORE, command))
        found = removable(folder, reduced=reduced)
        for one in found:
            if one.digest:
                ScanStore.open(folder / SCAN_STORE).remove_reduced(one.digest)
            elif one.path == folder / cluster.CLUSTER_FOLDER:
                left = _of_jobs(one.path)
                drop_receipts(folder, [path.relative_to(folder).as_posix() for path in left])
                for path in left:
                    path.unlink(missing_ok=True)
                for place in (one.path / credentials.CREDENTIALS_FOLDER, one.path):
                    with suppress(OSError):  # somebody keeps something else there
                        place.rmdir()
            elif one.path.is_dir() and not one.path.is_symlink():
                shutil.rmtree(one.path)
            else:
                one.path.unlink(missing_ok=True)
    return found


def _left_over(folder: Path) -> Iterator[Removal]:
    for path in sorted(folder.iterdir()):
        # The old is the only one while the new is not there.
        if LEFT_OVER_NAME.fullmatch(path.name) and (path.suffix != ".old" or path.with_suffix("").exists()):
            yield Removal(path, "left by a command that was stopped; it would begin again", bytes_on_disk(path))
    place = folder / cluster.CLUSTER_FOLDER
    if left := _of_jobs(place):
        yield Removal(place, "what the jobs of a cluster left", sum(map(bytes_on_disk, left)))


def _of_jobs(place: Path) -> list[Path]:
    """Files that a cluster's jobs left, and the credentials of one that was killed; nothing that a link leads to."""
    found = [*place.glob("*"), *place.glob(f"{credentials.CREDENTIALS_FOLDER}/*")]
    return [path for path in found if path.is_file() and not place.is_symlink() and not path.parent.is_symlink()]


def _require_frames(store: ScanStore) -> None:
    """Refuse to remove what could not be made again: where no frames are stored, each source must be what it was."""
    if store.has_frames:
        return
    stay = f"{store.path} has no copy of the frames: its reduced patterns are the last copy and stay"
    frames = changed_frames.sources_of(store)
    if not frames:
        raise InputError(f"its sources are not known, and {stay}")
    found = changed_frames.suspects(frames)
    gone = [one for one in found if not one.now.known]
    # Copies have other times: their pixels decide.
    if changed := gone or changed_frames.read_again(found, store.detector_mask, store.dtype):
        raise InputError(f"{changed_frames.describe_changes(changed, len(frames))}, and {stay}")
