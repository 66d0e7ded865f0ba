"""Many scans together (a series in temperature or load): one PCA and one clustering, so that maps can be compared.

Each scan is read, reduced and encoded as in a run of its own, which its folder also is. The moments of all features are
merged exactly, and all patterns are clustered at once: label 3 is the same cluster, in the same colour, in every scan.
"""

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask.array as da

from laue_dask import __version__
from laue_dask.compute import cluster
from laue_dask.compute.cluster import Workers
from laue_dask.compute.local import local_scratch
from laue_dask.config import ClusterConfig, Config
from laue_dask.errors import ConfigError, InputError
from laue_dask.features.extractors import Extractor
from laue_dask.io import deadline
from laue_dask.io import results as io_results
from laue_dask.io.lock import locked
from laue_dask.io.places import replace_file, require_writable, writing_to
from laue_dask.io.receipts import IN_RUN, Receipts
from laue_dask.pipeline import keys, pipeline
from laue_dask.pipeline.pipeline import Encoded
from laue_dask.pipeline.record import SERIES, Run
from laue_dask.pipeline.stages import extraction, segmentation, source, specimen
from laue_dask.pipeline.stages import series as stages
from laue_dask.pipeline.stages.ingest import Look
from laue_dask.pipeline.stages.segmentation import Segmentation
from laue_dask.pipeline.stages.straddling import Patterns
from laue_dask.report.series import Member, write_series_page
from laue_dask.runtime.progress import NO_PROGRESS, Progress
from laue_dask.segmentation.pca import IncrementalPCA

PAGE = "series.html"


def run(
    sources: Sequence[str],
    folder: Path,
    config: Config,
    *,
    command: str = "",
    progress: Progress = NO_PROGRESS,
    again: bool = False,
) -> list[Run]:
    """Segment several scans with components and clusters in common.

    Parameters
    ----------
    sources
        As `pipeline.run` takes them.
    folder
        Of the series; the run of each scan is a folder in it, named after its source.
    config
        Of every scan.
    command
        The command as typed, for the records.
    again
        As `pipeline.run` takes it.

    Returns
    -------
    records
        One per scan, as written to its `run.json`.

    Raises
    ------
    LaueDaskError
        As `pipeline.run`, or the configuration does not make sense for several scans.
    """
    names = names_of(sources)
    _check(folder, config)
    folder, config = folder.absolute(), pipeline.with_absolute_weights(config)
    for name in names:
        pipeline.check_folder(folder / name)
    deadline.allow(config.cluster.read_deadline)
    counts = [source.count(origin) for origin in sources]
    specimen.require_enough(min(counts), ())
    specimen.require_enough(sum(counts), config.clustering.k)
    alone = config.model_copy(update={"clustering": config.clustering.model_copy(update={"k": ()})})
    for origin, name in zip(sources, names, strict=True):
        source.require_same(origin, folder / name, alone, again=again)
    extractor = extraction.extractor_of(config.encoder, config.recipe)
    looks: list[Look | None] = [None] * len(sources)
    if isinstance(config.cluster, ClusterConfig):  # jobs may wait for hours, in which frames arrive
        looks = [
            source.look(origin, folder / name, config.scan, label=f"{name}, ")
            for origin, name in zip(sources, names, strict=True)
        ]
    records = [Run(command=command, source=origin, config=config, series=list(names)) for origin in sources]
    with ExitStack() as owned:
        for place in (folder, *(folder / name for name in names)):
            owned.enter_context(locked(place, command))
        owned.enter_context(writing_to(folder, local_scratch(config.cluster)))
        owned.enter_context(pipeline.leaving_no_trace(*(folder / name for name in names)))
        with cluster.start(config.cluster, folder=folder, report=True) as workers:
            if not (folder / SERIES).exists():
                _write(folder, names, records, finished=False)
            scans = [
                pipeline.encode(
                    folder / name, record, extractor, look=look, again=again, workers=workers, progress=progress
                )
                for name, record, look in zip(names, records, looks, strict=True)
            ]
            tables = _analyse(scans, extractor, config, workers=workers, progress=progress)
        (folder / IN_RUN).unlink(missing_ok=True)
        _write(folder, names, records, finished=False)
        cluster.publish_report(folder)
        for scan, rows in zip(scans, tables, strict=True):
            pipeline.conclude(scan, pipeline.settle(scan, rows))
        datasets = [io_results.read(folder / name) for name in names]
        members = [Member(name, one.source, data) for name, one, data in zip(names, records, datasets, strict=True)]
        write_series_page(members, folder / PAGE, command=command)
        _write(folder, names, records, finished=True)
        Receipts.of(folder, [SERIES, PAGE, cluster.REPORT]).write(IN_RUN)
    return records


def _analyse(
    scans: Sequence[Encoded], extractor: Extractor, config: Config, *, workers: Workers, progress: Progress
) -> list[list[dict[str, Any]] | None]:
    """From the features of all scans to the label maps of each; the tables of their grains."""
    wheres = [scan.where for scan in scans]
    stage = keys.components(*(scan.record.keys["features"] for scan in scans))
    pca = IncrementalPCA(n_components=config.pca.components).fit(da.concatenate([scan.features for scan in scans]))
    m_pca = int(pca.n_components_)
    components = []
    for scan in scans:
        with scan.record.timed("components"):
            table, _ = segmentation.transform(
                scan.features,
                config.pca,
                scan.results,
                key=stage.key,
                workers=workers,
                progress=progress,
                pca=pca,
                tell=scan.reuse.telling(stage),
            )
        scan.record.keys["components"], scan.record.m_pca = stage.key, m_pca
        components.append(table)
    for scan, colours in zip(scans, stages.direct_colours(components, wheres), strict=True):
        scan.results.put("direct_rgb", colours)
    first = scans[0]
    samples, where = stages.samples_of(components, wheres), stages.together(wheres)
    with first.record.timed("scores"):
        scores = segmentation.score(
            samples[:, :m_pca], config.clustering, first.results, workers=workers, progress=progress
        )
    k_values, left_out = segmentation.possible({*scores.suggested, *config.clustering.k}, samples[:, :m_pca])
    patterns = Patterns(config.recipe, [(scan.reduced, scan.where) for scan in scans])
    with first.record.timed("segment"):
        found = segmentation.clusters(
            samples,
            m_pca,
            where,
            k_values,
            config.clustering,
            progress=progress,
            seeds=scores.seeds,
            patterns=patterns,
            client=workers.client,
        )
        choosers = stages.choosers(components, m_pca, patterns, client=workers.client)
        divided = [stages.divide(one, m_pca, wheres, choosers) for one in found]
    tables: list[list[dict[str, Any]] | None] = []
    for i, (scan, table) in enumerate(zip(scans, components, strict=True)):
        made: list[Segmentation] = [shares[i] for shares in divided]
        segmentation.put_scores(scores, scan.results)
        segmentation.put(made, table.shape[1], scan.results)
        record = scan.record
        record.k, record.suggested_k = [one.k for one in made], list(scores.suggested)
        record.warnings += left_out
        record.warnings += segmentation.warnings_of(made, config.clustering, config.recipe)
        record.advice = pipeline.advise(scores, made)
        tables.append(pipeline.examine(scan, table, workers=workers, progress=progress))
    return tables


def names_of(sources: Sequence[str]) -> list[str]:
    """Short names of sources that tell them apart, fit for folders.

    Examples
    --------
    >>> names_of(["/data/cold/scan1", "/data/warm/scan1", "runs/hot/scan.zarr"])
    ['cold-scan1', 'warm-scan1', 'runs-hot']

    Raises
    ------
    InputError
        One is given twice.
    """
    parts = [_parts(text) for text in sources]
    for i, one in enumerate(parts):
        if one in parts[:i]:
            raise InputError(f"{sources[i]}: is given twice: a series is of different scans")
    for count in range(1, 1 + max(map(len, parts))):
        names = ["-".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"{', '.join(sources)}: their names do not tell them apart: rename one")


def _parts(text: str) -> tuple[str, ...]:
    name, _, dataset = text.partition("::")
    path = Path(name).absolute()
    parts = [*path.parts[1:-1], path.stem if path.suffix else path.name, *dataset.split("/")]
    if path.name == "scan.zarr" and len(parts) > 1:  # a run's own, which is named after the run
        parts = [*path.parts[1:-1]]
    return tuple(clean for part in parts if (clean := re.sub(r"[^\w.]+", "_", part).strip("_.")))


def _check(folder: Path, config: Config) -> None:
    """Refuse what makes no sense for several scans, before anything is made."""
    require_writable(folder)
    if config.encoder.extractor == "pixels":
        raise ConfigError(
            "encoder.extractor = pixels learns from each scan alone, so that features of several cannot be compared: "
            "use network or peaks"
        )
    if config.clustering.smoothing:
        raise ConfigError("clustering.smoothing: is for one scan: leave it out for several")
    if folder.is_file():
        raise InputError(f"{folder}: is a file; --out names the folder of the series")
    if (
        folder.is_dir()
        and not (folder / SERIES).exists()
        and any(not path.name.startswith(".") for path in folder.iterdir())
    ):
        raise InputError(f"{folder}: holds other files and no series: choose an empty or a new folder for --out")


def _write(folder: Path, names: Sequence[str], records: Sequence[Run], *, finished: bool) -> None:
    """Write what the series is; first of all, and again when it is finished."""
    one = records[0]
    values = {
        "laue_dask": __version__,
        "command": one.command,
        "finished": finished,
        "scans": [{"name": name, "source": record.source} for name, record in zip(names, records, strict=True)],
        "k": one.k,
        "suggested_k": one.suggested_k,
        "m_pca": one.m_pca,
    }
    replace_file(folder / SERIES, json.dumps(values, indent=1, ensure_ascii=False).encode())
