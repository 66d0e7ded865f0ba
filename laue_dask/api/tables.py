"""Tables of a run as data frames, and what else is handed between a notebook and the files of a run."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr

from laue_dask.api.options import AnyConfig, path_of
from laue_dask.config import Config, merged, read_yaml, renamed
from laue_dask.errors import InputError, StoreError
from laue_dask.pipeline import record as records
from laue_dask.pipeline.stages import evaluation
from laue_dask.pipeline.stages import grains as stage
from laue_dask.pipeline.stages.specimen import SpecimenMap

if TYPE_CHECKING:
    from pathlib import Path

    from laue_dask.api.run import Run

CLUSTER_COLUMNS = [
    *("k", "cluster", "size", "rank", "pattern", "y", "x", "stage_y_um", "stage_x_um", "distance", "domains", "file")
]


def delegates(run: "Run", k: int) -> pd.DataFrame:
    """See `laue_dask.api.run.Run.delegates`."""
    dataset = run.unmasked.sel(k=[k])
    components = dataset["components"]
    where = SpecimenMap(run.valid.values.ravel(), run.shape)
    rows = stage.ranked(da.asarray(components.data), int(components.attrs["m_pca"]), where, dataset)
    table = pd.DataFrame(rows, columns=CLUSTER_COLUMNS[:-1])
    table["domains"] = pd.to_numeric(table["domains"]).astype("Int64")
    return table.assign(file=_files(run, table["pattern"]))


def grains(run: "Run") -> pd.DataFrame:
    """See `laue_dask.api.run.Run.grains`."""
    path = run.path / stage.GRAINS_FILE
    if not records.has_receipt(run.path, stage.GRAINS_FILE):
        raise StoreError(f"{path}: is missing, or was changed after it was written: {records.RUN_AGAIN_HINT}")
    try:
        table = pd.read_csv(path, dtype={"file": str}, keep_default_na=False, na_values={"inside": "nan"})
    except pd.errors.EmptyDataError:  # a scan without a grain
        return pd.DataFrame(columns=["grain", "size", "y", "x", "delegate", "file"])
    for name in ("inside", "boundary"):
        table[name] = pd.to_numeric(table[name], errors="coerce")
    return table.assign(file=_files(run, table["delegate"]))


def regions(run: "Run") -> pd.DataFrame:
    """See `laue_dask.api.run.Run.regions`."""
    return pd.DataFrame(stage.proposed(run.unmasked))


def evaluation_text(rows: list[dict[str, Any]]) -> str:
    """Return what `Run.evaluate` found, as `Record.evaluation` has it, as a table of plain text."""
    return evaluation.table(rows)


def scan_path(folder: "Path", record: records.Record) -> "Path":
    """Return where the scan of a run is."""
    return records.scan_of(folder, record.scan, record.keys["scan"]).path


def merged_changes(config: AnyConfig | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `segment` is to change: what was `given` in keywords, over sections of a configuration."""
    if isinstance(config, str | os.PathLike):
        base = renamed(read_yaml(path_of(config)), str(config))
    elif isinstance(config, Config):
        base = config.model_dump(mode="json")
    else:
        base = renamed(dict(config or {}), "config")
    return merged(base, dict(given))


def truth_of(truth: Any) -> "Path | dict[str, Any]":
    """Return a true map as `evaluating.evaluate` takes it: the path of a file, or arrays by name."""
    if isinstance(truth, str | os.PathLike):
        return path_of(truth)
    if isinstance(truth, Mapping | xr.Dataset):
        unknown = set(truth) - set(evaluation.TRUTH_ARRAYS)
        if unknown:
            raise InputError(
                f"truth: has {', '.join(map(repr, sorted(map(str, unknown))))}: "
                f"{', '.join(evaluation.TRUTH_ARRAYS)} are known"
            )
        return {str(name): np.asarray(values) for name, values in truth.items()}
    values = np.asarray(truth)
    return {"domain" if values.dtype.kind in "biu" else "angle": values}


def _files(run: "Run", patterns: "pd.Series[int]") -> list[str]:
    """File of each pattern; of a scan that is gone, as far as the record knows it."""
    try:
        source = run.scan.store.source
    except InputError:
        return [run.record.delegate_sources.get(str(pattern), "") for pattern in patterns]
    return [source[pattern] for pattern in patterns]
