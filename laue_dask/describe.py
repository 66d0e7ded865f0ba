"""What a path is, in a few lines for people."""

from pathlib import Path

from laue_dask import pipeline
from laue_dask.encoder import weights
from laue_dask.io.frames import discover, frame_info
from laue_dask.io.scan_store import ScanStore


def describe(path: Path) -> str:
    """Describe a run, a scan store, a weights file, or frames.

    Raises
    ------
    LaueDaskError
        It is none of these, or damaged.
    """
    if (path / "run.json").is_file():
        return _run(path)
    if ScanStore.is_store(str(path)):
        return f"{path}: {ScanStore.open(path).describe()}"
    if path.suffix == ".safetensors":
        return _weights(path)
    refs = discover(str(path))
    info = frame_info(refs[0])
    position = "none" if info.position is None else f"y = {info.position[0]:g}, x = {info.position[1]:g}"
    lines = [f"{path}: {len(refs)} frame{'s' if len(refs) > 1 else ''}", f"first           {refs[0]}"]
    lines += [f"shape, dtype    {info.shape[0]} × {info.shape[1]}, {info.dtype}", f"stage position  {position}"]
    return "\n".join(lines)


def _run(path: Path) -> str:
    record = pipeline.read_json(path)
    ny, nx = record["scan_shape"]
    lines = [f"{path}: run of {record['source']}, {ny} × {nx}, {record['n_patterns']} patterns"]
    lines.append(f"set aside       {record['n_set_aside']}")
    lines.append(f"K               {', '.join(map(str, record['k']))} (suggested: {record['suggested_k']})")
    lines.append(f"components      {record['m_pca']} used")
    lines += [f"{stage:15s} {seconds:.1f} s" for stage, seconds in record["seconds"].items()]
    return "\n".join(lines)


def _weights(path: Path) -> str:
    card = weights.read_card(path)
    lines = [f"{path}: architecture {card.architecture.name}, {card.architecture.latent} latent features"]
    lines.append(f"recipe          {card.recipe.digest()}")
    lines += [f"{name:32s} {value}" for name, value in {**card.training, **card.metrics}.items()]
    return "\n".join(lines)
