"""Segment a finished run again: with other K, another estimator or fewer components."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import dask.array as da
import zarr
from dask import config as dask_config

from laue_dask import schema
from laue_dask.compute import cluster
from laue_dask.compute.cluster import Workers
from laue_dask.compute.local import local_scratch
from laue_dask.config import Config, LocalWorkersConfig, dump, merged, validate
from laue_dask.errors import ConfigError, InputError
from laue_dask.io import block_reader
from laue_dask.io import results as io_results
from laue_dask.io.lock import locked_folder
from laue_dask.io.output_paths import naming_full_disk, write_atomically
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline import keys, notices
from laue_dask.pipeline import record as records
from laue_dask.pipeline.analysis import advise, delegate_sources, warn_of_loss
from laue_dask.pipeline.finishing import report
from laue_dask.pipeline.folders import CONFIG_FILE, check_folder, reduced_of, scan_of
from laue_dask.pipeline.record import STAGES_OF_SEGMENTING, Record
from laue_dask.pipeline.reuse import recorded, update
from laue_dask.pipeline.run_log import logged
from laue_dask.pipeline.stages import frame_placement, grains, scoring, segmentation, specimen
from laue_dask.pipeline.stages.scoring import Scores
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.pipeline.stages.tables import Table, samples_of
from laue_dask.runtime.progress import NO_PROGRESS, Progress
from laue_dask.segmentation.pca import choose_components

MAX_LOCAL_BYTES = 2**30
"""Bytes of components that `segment` holds, and of patterns that it may look at, in this process rather than start
workers."""

CLUSTERING_DIMENSIONS = {"k", "cluster", "score_k"}
"""Dimensions of the results that depend on the clustering."""


def segment(
    folder: Path,
    changes: dict[str, Any],
    *,
    command: str = "",
    progress: Progress = NO_PROGRESS,
    sweep: bool | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Cluster the patterns of a finished run again; features and components are left untouched.

    What depends on the clustering is made anew: labels, centroids, delegates, colours, figures, report and record, and
    the scores where their parameters changed. Segmentations that are there already with the same parameters are kept,
    whatever K is asked for; a warning names those that are not before they are replaced.

    Parameters
    ----------
    folder
        Of the run.
    changes
        Nested mapping over the run's configuration, of the sections `pca`, `clustering` and `cluster`.
    command
        The command as typed, for the record.
    progress
        Told how far the work is.
    sweep
        Whether to score every K again; by default where parameters of the scores changed. False leaves scores of
        other parameters out.
    out
        Folder of a new run for the segmentations, beside `folder`, which stays as it is; both share the scan.

    Returns
    -------
    record
        As written to `run.json`.

    Raises
    ------
    InputError
        There is no finished run, its scan is gone, or a parameter does not fit it.
    """
    # refused before anything is written there
    record = records.read(folder, withdrawn=True)
    if members := record.get("series"):
        raise InputError(
            f"{folder}: is one of {len(members)} scans that share their clusters: "
            "give `laue-dask run` all of them again, with the wanted -k"
        )
    frame_placement.remind_of_record(record)
    folder = folder.absolute()
    with (
        locked_folder(folder, command, "wait for it"),
        nullcontext(folder) if out is None else _copied(folder, out.absolute(), command) as target,
    ):
        try:
            with (
                naming_full_disk(target, local_scratch(LocalWorkersConfig())),
                logged(command, progress, target) as progress,
            ):
                return _segment(
                    target, changes, command=command, progress=progress, sweep=sweep, beside=out is not None
                )
        finally:
            io_results.discard(target, io_results.SEGMENTING_STORE)


@contextmanager
def _copied(folder: Path, out: Path, command: str) -> Iterator[Path]:
    """A finished run in another folder, which goes again if nothing comes of it."""
    check_folder(out)
    if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise InputError(f"{out}: is not empty: choose a new folder for --out")
    records.check(folder)
    record = records.read(folder)
    scan = scan_of(folder, record)
    with locked_folder(out, command):
        try:
            io_results.copy(folder, out)
            records.copy(folder, out, {**record, "scan": str(scan.path)})
            yield out
        except BaseException:
            for left in out.iterdir():
                if not left.name.startswith("."):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            raise


def _segment(
    folder: Path, changes: dict[str, Any], *, command: str, progress: Progress, sweep: bool | None, beside: bool
) -> dict[str, Any]:
    """`segment` of a run that is this process's own, or of a copy `beside` the one that was given."""
    io_results.recover(folder)
    records.check(folder)
    record = records.read(folder, withdrawn=True)
    before = validate(record["config"], str(folder / records.RECORD_FILE))
    config = _changed(before, changes)
    old = io_results.read(folder)
    store = scan_of(folder, record)
    reduced = reduced_of(store, config)
    valid = store.valid
    valid[[one["pattern"] for one in record["set_aside"] if one["pattern"] is not None]] = False
    where = SpecimenMap(valid, store.scan_shape)
    specimen.require_enough_patterns(len(where.patterns), config.clustering.k)
    m_pca = choose_components(old["explained_variance_ratio"].values, config.pca.components)
    key = record["keys"]["components"]
    same = m_pca == record["m_pca"] and keys.scores_hold(old.attrs, key, m_pca, before.clustering)
    results = ResultsWriter(folder, old.attrs, partial=io_results.SEGMENTING_STORE)
    for name in set(schema.RESULTS) & set(old.variables):
        if name != "components" and not CLUSTERING_DIMENSIONS & set(schema.RESULTS[name].dims):
            results.keep(name)
    array = results.keep("components")
    array.attrs["m_pca"] = m_pca
    components = block_reader.lazy_array(array)
    run = Record(command=command, source=record["source"], config=config, _course=STAGES_OF_SEGMENTING)
    with _workers_for(components, reduced, config, folder) as workers:
        table = Table(components if workers else components.persist(), where, results, reduced)
        with run.timed("scores"):
            scored = same and scoring.same_scores(before.clustering, config.clustering)
            samples = samples_of([table])[:, :m_pca]
            rescored = sweep or (sweep is None and not scored)
            if rescored:
                found = scoring.score(samples, config.clustering, workers=workers, progress=progress)
            else:
                found = scoring.read_scores(old, record["suggested_k"]) if scored else Scores()
            scoring.write_scores(found, results)
        wanted, left_out = scoring.possible({*found.suggested, *config.clustering.k}, samples)
        segments, found_grains = keys.segments(key, m_pca, config.clustering), keys.grains(key, m_pca)
        known = segmentation.read(old) if recorded(old.attrs, segments) else {}
        if not known and not beside:
            warn_of_loss(old["k"].values, wanted, config.clustering)
        with run.timed("segment"):
            [made] = segmentation.segment(
                [table],
                m_pca,
                sorted({*wanted, *known}),
                config.clustering,
                config.recipe,
                progress=progress,
                seeds=found.seeds,
                known=[known],
                client=workers.client if workers else None,
            )
        kept_grains = recorded(old.attrs, found_grains) and "grain" in old
        rows = None if kept_grains else grains.find(table.components, m_pca, where, reduced, results)
    run.warnings = [one for one in notices.read(record) if one.subject != "clustering"]
    run.warn("clustering", *left_out, *segmentation.warnings_of(made, config.clustering, config.recipe))
    record |= {
        "k": [one.k for one in made],
        "n_clusters": [one.n_clusters for one in made],
        "suggested_k": list(found.suggested),
        "advice": advise(found, made),
        "m_pca": m_pca,
        "delegate_sources": delegate_sources(made, store),
        **notices.recorded(run.warnings),
        "config": config.model_dump(mode="json"),
        "segmented_by": [*record.get("segmented_by", []), command],
    }
    for name in ("evaluation", "approximation"):  # of other segmentations
        record.pop(name, None)
    results.put_coordinates(store.coordinates)
    results.group.attrs["suggested_k"] = record["suggested_k"]
    stages = [segments, found_grains]
    stages += [keys.scores(key, m_pca, config.clustering)] if rescored else []
    update(results, stages, without=() if rescored or scored else ("scores",))
    results.finish(replacing=lambda: records.withdraw(folder))
    grains.write_tables(folder, io_results.read(folder), store, grains=rows, where=where)
    write_atomically(folder / CONFIG_FILE, dump(config).encode())
    with run.timed("report"):
        record["seconds"] |= run.seconds
        report(folder, record, reduced=reduced, unchanged=known, changed=() if scored and not rescored else ("scores",))
    record["seconds"] |= run.seconds
    records.write(folder, record)
    return record


def _changed(before: Config, changes: dict[str, Any]) -> Config:
    """The configuration of a run with changes that leave its features as they are."""
    base = before.model_dump(mode="json")
    if changes.get("workers", {}).get("kind", before.workers.kind) != before.workers.kind:
        base.pop("workers")  # another kind has other keys
    config = validate(merged(base, changes), "options")
    for section in ("scan", "recipe", "encoder", "quality"):
        if getattr(config, section) != getattr(before, section):
            raise ConfigError(f"{section}: differs from the run's, but `segment` cannot change features: use `run`")
    return config


@contextmanager
def _workers_for(
    components: da.Array, reduced: zarr.Array[Any], config: Config, folder: Path
) -> Iterator[Workers | None]:
    """Workers for large tables; for others None: this process's threads are done before workers have started."""
    looked_at = reduced.nbytes if config.clustering.mixed_points == "larger_share" else 0
    if max(components.nbytes, looked_at) <= MAX_LOCAL_BYTES:
        with dask_config.set(scheduler="threads"):
            yield None
    else:
        with cluster.start(config.workers, folder=folder) as workers:
            yield workers
