"""Compare a finished run with a true map."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laue_dask.compute import cluster
from laue_dask.compute.local import local_scratch
from laue_dask.config import LocalWorkersConfig, validate
from laue_dask.io import results as io_results
from laue_dask.io.lock import locked_folder
from laue_dask.io.output_paths import naming_full_disk
from laue_dask.io.receipts import drop_receipts
from laue_dask.pipeline import record as records
from laue_dask.pipeline.finishing import report
from laue_dask.pipeline.folders import reduced_of, scan_of
from laue_dask.pipeline.run_log import logged
from laue_dask.pipeline.stages import evaluation, frame_placement
from laue_dask.runtime.progress import NO_PROGRESS, Progress


def evaluate(
    folder: Path,
    truth: Path | Mapping[str, Any],
    *,
    workers: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> list[dict[str, float | int | str]]:
    """Compare a finished run with a true map; the figures are printed, kept in `run.json` and shown in the report.

    Where the truth has an angle, the report also shows how well K delegates stand for it over a wide range of K
    (Figure 19, `plots/approximation.png`).

    Returns
    -------
    rows
        See `stages.evaluation.evaluate`.

    Raises
    ------
    InputError
        There is no finished run, its scan is gone, or the truth does not fit.
    """
    frame_placement.remind_of_record(records.read(folder))  # refused before anything is written there
    command = f"evaluate {folder}"
    with (
        locked_folder(folder, command, "wait for it"),
        naming_full_disk(folder, local_scratch(LocalWorkersConfig())),
        logged(command, progress, folder) as progress,
    ):
        return _evaluate(folder, truth, workers=workers, progress=progress)


def _evaluate(
    folder: Path, truth: Path | Mapping[str, Any], *, workers: int | None, progress: Progress
) -> list[dict[str, float | int | str]]:
    """`evaluate` of a run that is this process's own."""
    records.check(folder)
    record = records.read(folder)
    dataset = io_results.read(folder)
    config = validate(record["config"], str(folder / records.RECORD_FILE))
    known = evaluation.read_truth(truth, tuple(record["scan_shape"]))
    reduced = reduced_of(scan_of(folder, record), config)
    with cluster.start(LocalWorkersConfig(count=workers)) as started:
        rows = evaluation.evaluate(dataset, reduced, config, known, client=started.client, progress=progress)
        errors = evaluation.approximate(dataset, config, known, workers=started, progress=progress)
    record |= {"evaluation": rows, "approximation": errors}
    drop_receipts(folder, ("report.html", "plots/approximation.png"))
    report(folder, record, reduced=reduced, unchanged=record["k"], changed=("approximation",))
    records.write(folder, record)
    return rows
