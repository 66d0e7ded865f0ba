"""Say what a path is, in a few lines for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dask.utils import format_bytes

from laue_dask.config import ScanConfig
from laue_dask.errors import FrameError, InputError
from laue_dask.features import weights
from laue_dask.io import placement
from laue_dask.io import results as io_results
from laue_dask.io.file_names import describe_left_out
from laue_dask.io.frames import FrameRef, discover, frame_info, pixel_mask
from laue_dask.io.scan_store import ScanStore, frame_layout
from laue_dask.pipeline import cleanup, record
from laue_dask.pipeline.stages import frame_placement
from laue_dask.runtime.safe_text import printable

WEIGHTS_WITHOUT_FILE = ("default", "untrained")
"""Names of weights that are no files."""


def describe(path: Path) -> str:
    """Describe a run, a series, a scan store, a weights file, or frames.

    Raises
    ------
    LaueDaskError
        It is none of these, or damaged.
    """
    if (path / "run.json").is_file():
        try:
            return _run(path)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path / 'run.json'}: is not the record of a run of this laue-dask: run it again"
            ) from error
    if members := record.members_of(path):
        return "\n".join([printable(f"{path}: series of {len(members)} scans"), *map(describe, members)])
    if path.name == io_results.RESULTS_STORE and path.is_dir():
        return _results(path)
    if ScanStore.is_store(str(path)):
        return _scan(path)
    if path.suffix == ".safetensors" or (str(path) in WEIGHTS_WITHOUT_FILE and not path.exists()):
        return _weights(path)
    refs = discover(str(path))
    try:
        info = frame_info(refs[0])
    except FrameError as error:
        raise InputError(f"{refs[0]}: {error}") from error
    position = "none" if info.position is None else f"y = {info.position[0]:.10g} µm, x = {info.position[1]:.10g} µm"
    lines = [f"{path}: {len(refs)} frame{'s' if len(refs) > 1 else ''}", f"first           {refs[0]}"]
    lines += [f"shape, dtype    {info.shape[0]} × {info.shape[1]}, {info.dtype}", f"stage position  {position}"]
    lines += _found_grid(path, refs)
    if (mask := pixel_mask(refs[0])) is not None:
        lines.append(f"pixel mask      {mask.text}")
    return "\n".join(map(printable, lines))


def _found_grid(path: Path, refs: Sequence[FrameRef]) -> list[str]:
    """Where frames belong, as far as their names and headers tell."""
    try:
        grid = frame_placement.locate_locally(str(path), refs, ScanConfig())
    except InputError as error:
        return [f"grid            is not known: {error}"]
    if grid is None:
        return ["grid            is not known without a shape; the headers of all frames tell it"]
    warning = grid.warning(refs)
    return [f"grid            {grid.line.removeprefix('grid: ')}", *([warning] if warning else [])]


def _grid(told: Mapping[str, Any]) -> list[str]:
    """What a store or a run says of its grid."""
    if not told:
        return []
    lines = [f"grid            {told['line'].removeprefix('grid: ')}"]
    if left_out := [str(one["source"]) for one in told["left_out"]]:
        lines.append(f"left out        {describe_left_out(left_out)}")
    return lines


def _run(path: Path) -> str:
    values = record.read(path)
    ny, nx = values["scan_shape"]
    lines = [f"{path}: run of {values['source']}, {ny} × {nx}, {values['n_patterns']} patterns"]
    lines += _grid(values.get("grid", {}))
    lines.append(f"set aside       {values['n_set_aside']}")
    lines.append(f"K               {', '.join(map(str, values['k']))} (suggested: {values['suggested_k']})")
    lines.append(f"components      {values['m_pca']} used")
    lines.append(_disk(path))
    lines += [f"{stage:15s} {seconds:.1f} s" for stage, seconds in values["seconds"].items()]
    return "\n".join(map(printable, lines))


def _scan(path: Path) -> str:
    store = ScanStore.open(path)
    (ny, nx), (rows, columns) = store.scan_shape, store.frame_shape
    layout = frame_layout(store.frame_shape, store.dtype, store.n_patterns)
    lines = [f"{path}: scan of {ny} × {nx}, {int(store.valid.sum())} usable patterns"]
    lines.append(f"source          {store.provenance.get('source')}")
    lines += _grid(placement.recorded_placement(store))
    lines.append(f"set aside       {len(store.set_aside)}")
    lines.append(
        f"frames          {rows} × {columns}, {store.dtype}{'' if store.has_frames else ' (not in the store)'}"
    )
    lines.append(f"masked          {100 * store.detector_mask.mean():.2f} % of the pixels")
    lines.append(f"layout          {layout.why}")
    lines.append(_disk(path))
    return "\n".join(map(printable, lines))


def _disk(path: Path) -> str:
    """What a run or a scan store takes on the disk, part by part."""
    found = cleanup.disk_usage(path)
    told = ", ".join(f"{name} {format_bytes(count)}" for name, count in found.items())
    return f"on the disk     {format_bytes(sum(found.values()))}: {told}"


def _results(path: Path) -> str:
    found = io_results.read(path.absolute().parent)
    sizes = ", ".join(f"{name} = {size}" for name, size in found.sizes.items())
    lines = [f"{path}: results of the run {path.absolute().parent}", f"sizes           {sizes}"]
    lines += [f"{name:28s} ({', '.join(map(str, array.dims))}) {array.dtype}" for name, array in found.items()]
    return "\n".join([*lines, f"open them with xarray.open_zarr({str(path)!r})"])


def _weights(path: Path) -> str:
    if str(path) == "untrained" and not path.exists():
        return "untrained: random weights of the shipped architecture, for comparison"
    path = weights.DEFAULT_WEIGHTS_FILE if str(path) == "default" and not path.exists() else path
    card = weights.read_card(path)
    lines = [f"{path}: architecture {card.architecture.name}, {card.architecture.latent} latent features"]
    lines.append(f"recipe          {card.recipe.digest()}")
    lines += [f"{name:32s} {value}" for name, value in {**card.training, **card.metrics}.items()]
    return "\n".join(map(printable, lines))
