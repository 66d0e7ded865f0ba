"""The stages in order, and their keys: frames → scan store → reduced → features → components → segmentations → report.

A stage's output is valid exactly when the hash of its inputs' keys, its parameters and its code version matches. A run
that was killed goes on at the first missing block; a run with other parameters redoes the stages that depend on them.
"""

import logging
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask import config as dask_config

from laue_dask import schema
from laue_dask.compute import cluster
from laue_dask.compute.cluster import Workers
from laue_dask.compute.local import local_scratch
from laue_dask.compute.run import Begun
from laue_dask.config import ClusterConfig, ClusteringConfig, Config, Recipe, dump, merged, validate
from laue_dask.errors import ConfigError, InputError
from laue_dask.evaluation import mapscores
from laue_dask.features import weights
from laue_dask.features.extractors import Extractor
from laue_dask.io import deadline, stored
from laue_dask.io import results as io_results
from laue_dask.io.lock import locked
from laue_dask.io.places import replace_file, require_writable, writing_to
from laue_dask.io.receipts import release
from laue_dask.io.results import ResultsWriter
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import keys, room
from laue_dask.pipeline import record as records
from laue_dask.pipeline.record import Run
from laue_dask.pipeline.reuse import Reuse, Stage, differences, recorded, update
from laue_dask.pipeline.stages import changes, drawing, evaluation, extraction, grains, segmentation, source, specimen
from laue_dask.pipeline.stages.ahead import EncodingAhead
from laue_dask.pipeline.stages.delegates import SHOW_TWO
from laue_dask.pipeline.stages.drawing import Material
from laue_dask.pipeline.stages.ingest import Look
from laue_dask.pipeline.stages.reduction import reduce_scan
from laue_dask.pipeline.stages.specimen import Map
from laue_dask.pipeline.stages.straddling import UNSHARED, Patterns
from laue_dask.runtime.progress import NO_PROGRESS, Progress
from laue_dask.segmentation import selection
from laue_dask.segmentation.estimators import FINDS_K
from laue_dask.segmentation.pca import choose_components

IN_PROCESS = 2**30
"""Bytes of components that `segment` holds, and of patterns that it may look at, in this process rather than start
workers."""

AT_HAND = 2**26
"""Bytes of features up to which a run, too, works on them in this process: workers are asked for longer than that."""

CONFIG = "config.yaml"

OF_GRAINS = ("grain", "boundary_strength")
OF_QUALITY = ("reconstruction_error", "unexplained")

logger = logging.getLogger(__name__)

_OF_CLUSTERING = {"k", "cluster", "score_k"}
"""Dimensions of the results that depend on the clustering."""


def run(
    origin: str,
    folder: Path,
    config: Config,
    *,
    command: str = "",
    progress: Progress = NO_PROGRESS,
    again: bool = False,
    workers: Workers | None = None,
) -> Run:
    """Segment a scan: the whole way from frames or a scan store to maps and report.

    Parameters
    ----------
    origin
        Frames, as `io.frames.discover` takes them, or a scan store.
    folder
        The run's folder, made if need be. An earlier run there is kept where its keys still hold.
    command
        The command as typed, for the record.
    progress
        Told how far the work is.
    again
        Whether frames that changed since an earlier run in the folder are read again; by default they are refused.
    workers
        That are there already and go on; by default the configured ones are started for this run alone.

    Returns
    -------
    Run
        As written to `run.json`.

    Raises
    ------
    LaueDaskError
        See the stages.
    """
    # Refused before anything is started or made: no place, no patterns, weights that are missing or of another recipe.
    check_folder(folder)
    deadline.allow(config.cluster.read_deadline)
    specimen.require_enough(source.count(origin), config.clustering.k)
    source.require_same(origin, folder, config, again=again)
    # Workers may have another working directory.
    folder, config = folder.absolute(), with_absolute_weights(config)
    extractor = extraction.extractor_of(config.encoder, config.recipe)
    choose_components(np.full(extractor.n_features, 1 / extractor.n_features), config.pca.components)
    with locked(folder, command):
        return _run(origin, folder, config, extractor, command=command, progress=progress, again=again, given=workers)


def _run(
    origin: str,
    folder: Path,
    config: Config,
    extractor: Extractor,
    *,
    command: str,
    progress: Progress,
    again: bool,
    given: Workers | None,
) -> Run:
    """`run` of a folder that is this process's own, with everything checked that can be before."""
    record = Run(command=command, source=origin, config=config)
    local = isinstance(config.cluster, ClusterConfig)
    with record.timed("look"):
        # Local workers are still importing; jobs may wait for hours, in which frames arrive.
        look = source.look(origin, folder, config.scan) if local else None
    store = source.store_of(origin, folder)
    frames = 0.0 if look is None else len(look.refs) * look.stored_bytes
    n = len(look.refs) if look else ScanStore(store).n_patterns if store.exists() else 0
    room.require_room(folder, n, extractor.n_features, frames_bytes=frames)

    def needed() -> int:
        return room.still_needed(folder, store, n, extractor.n_features, frames_bytes=frames)

    with leaving_no_trace(folder), writing_to(folder, store, local_scratch(config.cluster), needed=needed):
        with nullcontext(given) if given else cluster.start(config.cluster, folder=folder, report=True) as workers:
            scan = encode(folder, record, extractor, look=look, again=again, workers=workers, progress=progress)
            del look  # it may list a million frames
            with _near(scan.features):
                rows = _analyse(scan, workers=workers, progress=progress)
            settled = settle(scan, rows, workers) if local else None
        settled = settled or settle(scan, rows)  # jobs are not held while this process works alone
        if not given:
            cluster.publish_report(folder)
        conclude(scan, settled)
    return record


@contextmanager
def leaving_no_trace(*folders: Path) -> Iterator[None]:
    """Have a refusal leave finished runs as they were: results that were begun beside theirs in here are removed.

    What a run that was killed has begun is kept, and so is that of a run that is the first one in its folder: the right
    command goes on with it.
    """
    fresh = [one for one in folders if (one / records.NAME).exists() and not (one / io_results.PARTIAL).exists()]
    try:
        yield
    except InputError:
        for folder in fresh:
            io_results.discard(folder)
            extraction.forget_learnt(folder)
        raise


@dataclass(frozen=True)
class Encoded:
    """A scan on its way, from its features on.

    Attributes
    ----------
    folder
        Of its run.
    features : (pattern, latent) float32
        On disk, lazy.
    reuse
        What of an earlier run holds.
    table_of_grains
        Whether that one's `grains.csv` is there as it was written.
    where
        Its patterns lie.
    """

    folder: Path
    record: Run
    store: ScanStore
    reduced: zarr.Array[Any]
    extractor: Extractor
    results: ResultsWriter
    features: da.Array
    reuse: Reuse
    table_of_grains: bool
    where: Map


def encode(
    folder: Path,
    record: Run,
    extractor: Extractor,
    *,
    look: Look | None = None,
    again: bool = False,
    workers: Workers,
    progress: Progress,
) -> Encoded:
    """From the source of a run, at which somebody may have looked, to its features.

    A run that is finished in the same folder stays as it is until `settle` puts others in the place of its results.
    """
    config, progress = record.config, record.counted(progress)
    record.workers = workers.described
    label = f"{folder.name}, " if record.series else ""
    reuse = Reuse.of(folder, label=label)
    with (
        record.warned_by("laue_dask.features"),
        record.warned_by("laue_dask.pipeline.stages"),
        EncodingAhead(folder, extractor, workers) as ahead,
    ):
        with record.timed("ingest"):
            there = source.is_ingested(record.source, folder)
            store = source.open_scan(
                record.source,
                folder,
                config,
                k=() if record.series else config.clustering.k,
                ahead=ahead.unless(),
                look=look,
                again=again,
                label=label,
                workers=workers,
                progress=progress,
            )
        record.describe_scan(store)
        ingested = keys.ingested(record.keys["scan"])
        there &= reuse.same(ingested)
        reuse.tell(ingested, kept=there)
        folder.mkdir(parents=True, exist_ok=True)
        table_of_grains = records.vouches_for(folder, grains.GRAINS)
        recipe = config.recipe.for_frames(store.frame_shape)
        record.warnings += left_out(config.recipe, store.frame_shape)
        stage = keys.reduced(record.keys["scan"], recipe)
        made = keys.features(record.keys["scan"], recipe, config.encoder, extractor)
        record.keys["features"] = made.key
        store.mend_groups()
        _compare_recipes(reuse, stage, store, recipe)
        used: list[bool] = []

        def tell_reduced(kept: bool) -> None:
            used.append(not kept)
            reuse.tell(stage, kept=kept and there)

        with record.timed("reduce"):
            reduced = reduce_scan(
                store,
                recipe,
                ahead=ahead.unless(made.key),
                workers=workers,
                progress=progress,
                tell=tell_reduced,
            )
            if there and not any(used):
                record.warn_of_frames(store)
        pixels = list(config.recipe.window(store.frame_shape))
        described = {"scan": str(store.path), "scan_shape": list(store.scan_shape), "pattern_pixels": pixels}
        results = ResultsWriter(folder, described)
        where = Map(store.valid, store.scan_shape)

        def tell(kept: bool) -> None:
            reuse.tell(made, kept=kept)
            reuse.write(results)  # for the next run, should this one be killed

        with record.timed("encode"):
            features = extraction.extract(
                reduced, where, extractor, results, key=made.key, workers=workers, progress=progress, tell=tell
            )
    with _near(features):
        where = Map(where.valid & extraction.finite(features), where.shape)
    record.set_more_aside(store, where.valid, "its features are not finite numbers")
    specimen.require_enough(record.n_patterns, ())
    return Encoded(folder, record, store, reduced, extractor, results, features, reuse, table_of_grains, where)


def left_out(recipe: Recipe, shape: tuple[int, ...]) -> list[str]:
    """A line where a recipe does not take in the whole of frames of (rows, columns)."""
    rows, columns = recipe.window(shape)
    if (rows, columns) == tuple(shape):
        return []
    share = 1 - rows * columns / (shape[0] * shape[1])
    seen = f"the middle {rows} × {columns} of {shape[0]} × {shape[1]} pixels"
    line = f"recipe.version = {recipe.version} looks at {seen}, {share:.0%} of each frame are not seen"
    return [f"{line}: leave recipe.version out to take in all of it"]


def _compare_recipes(reuse: Reuse, stage: Stage, store: ScanStore, recipe: Recipe) -> None:
    """Have it said how a new recipe differs from the nearest by which the scan was reduced before."""
    others = store.recipes()
    if others and recipe.digest() not in others:
        wanted = recipe.model_dump(mode="json")
        nearest = min(others.values(), key=lambda other: len(differences(other, wanted)))
        reuse.compare(stage.name, keys.of_recipe(nearest))


def _analyse(scan: Encoded, *, workers: Workers, progress: Progress) -> list[grains.Row] | None:
    """Everything from the features to the label maps; the table of the grains, None where the last one holds."""
    record, where, results, reuse = scan.record, scan.where, scan.results, scan.reuse
    config = record.config
    begun = _begin_quality(scan, workers)
    with record.timed("components"):
        stage = keys.components(record.keys["features"])
        record.keys["components"] = stage.key
        components, record.m_pca = segmentation.transform(
            scan.features,
            config.pca,
            results,
            key=stage.key,
            workers=workers,
            progress=progress,
            known=reuse.holds(stage, segmentation.SPECTRUM),
            tell=reuse.telling(stage),
        )
    if components.nbytes <= AT_HAND:
        components = components.persist()
    segmentation.write_direct_colouring(components, where, results)
    with record.timed("scores"):
        found = _scores(scan, components, workers=workers, progress=progress)
    record.suggested_k = list(found.suggested)
    wanted, left_out = segmentation.possible(
        {*found.suggested, *config.clustering.k}, specimen.usable(components, where)[:, : record.m_pca]
    )
    record.warnings += left_out
    known = _known_segmentations(scan, wanted)
    record.k = sorted({*wanted, *known})
    with record.timed("segment"):
        made = segmentation.segment(
            components,
            record.m_pca,
            where,
            record.k,
            config.clustering,
            results,
            progress=progress,
            seeds=found.seeds,
            known=known,
            patterns=Patterns(config.recipe, [(scan.reduced, where)]),
            client=workers.client,
        )
    record.k = [one.k for one in made]
    record.warnings += segmentation.warnings_of(made, config.clustering, config.recipe)
    record.advice = advise(found, made)
    return examine(scan, components, workers=workers, progress=progress, begun=begun)


def _begin_quality(scan: Encoded, workers: Workers) -> Begun:
    """What `examine` will ask of workers, begun while they have little to do."""
    config = scan.record.config
    kept = scan.reuse.holds(keys.quality(scan.record.keys["features"], config.quality), OF_QUALITY)
    if kept or workers.waits_for_gpu():
        return {}
    return extraction.begin_errors(scan.reduced, scan.where, scan.extractor, config.quality, workers=workers)


def _near(table: da.Array) -> AbstractContextManager[Any]:
    """What is computed of a small table is computed by threads of this process."""
    return dask_config.set(scheduler="threads") if table.nbytes <= AT_HAND else nullcontext()


def _scores(scan: Encoded, components: da.Array, *, workers: Workers, progress: Progress) -> segmentation.Scores:
    """The scores of the last run where they hold, or new ones."""
    record, results, config = scan.record, scan.results, scan.record.config.clustering
    stage = keys.scores(record.keys["components"], record.m_pca, config)
    kept = scan.reuse.holds(stage, ("score_k", "silhouette", "calinski_harabasz"))
    scan.reuse.tell(stage, kept=kept)
    if kept:
        suggested = io_results.attributes(results.path, whole=True).get("suggested_k", [])
        known = segmentation.read_scores(io_results.variables(scan.folder, segmentation.SCORES), suggested)
        return segmentation.put_scores(known, results)
    samples = specimen.usable(components, scan.where)[:, : record.m_pca]
    return segmentation.score(samples, config, results, workers=workers, progress=progress)


def _known_segmentations(scan: Encoded, wanted: Collection[int]) -> dict[int, segmentation.Segmentation]:
    """Segmentations of the last run that hold, by K, wanted ones and others."""
    record = scan.record
    config = record.config.clustering
    stage = keys.segments(record.keys["components"], record.m_pca, config)
    if not scan.reuse.holds(stage, segmentation.MAPS):
        scan.reuse.tell(stage, kept=False)
        if scan.reuse.finished:
            _tell_loss(io_results.variables(scan.folder, ("k",)).get("k", ()), wanted, config)
        return {}
    chosen = segmentation.CHOSEN if io_results.whole(scan.folder, segmentation.CHOSEN) else ()
    known = segmentation.read(io_results.variables(scan.folder, (*segmentation.MAPS, *chosen)))
    made = [] if config.estimator in FINDS_K else sorted(set(wanted) - set(known))
    parts = {"kept": known, "made": made}
    told = [f"K = {', '.join(map(str, ks))} {what}" for what, ks in parts.items() if ks]
    scan.reuse.tell(stage, kept=True, remark="; ".join(told) if made else "")
    return known


def _tell_loss(lost: Iterable[Any], wanted: Collection[int], config: ClusteringConfig) -> None:
    """Say, before anything is written, which segmentations others are put in the place of, and how to keep them."""
    gone = ", ".join(str(int(k)) for k in lost)
    made = "those" if config.estimator in FINDS_K else f"K = {', '.join(map(str, wanted))}"
    if gone:
        logger.warning(
            "the segmentations that are there, K = %s, do not hold any more: %s of %s are about to take their place. "
            "To keep them, stop now and give another --out",
            gone,
            made,
            config.estimator,
        )


def examine(
    scan: Encoded, components: da.Array, *, workers: Workers, progress: Progress, begun: Begun | None = None
) -> list[grains.Row] | None:
    """What does not depend on the clustering: grains and their table, and how well the encoder does."""
    record, where, results, reuse = scan.record, scan.where, scan.results, scan.reuse
    rows = None
    with record.timed("grains"):
        stage = keys.grains(record.keys["components"], record.m_pca)
        kept = scan.table_of_grains and reuse.holds(stage, OF_GRAINS)
        reuse.tell(stage, kept=kept)
        if kept:
            for name in OF_GRAINS:
                results.keep(name)
        else:
            rows = grains.find(components, record.m_pca, where, scan.reduced, results)
    with record.timed("quality"):
        stage = keys.quality(record.keys["features"], record.config.quality)
        kept = reuse.holds(stage, OF_QUALITY)
        reuse.tell(stage, kept=kept)
        if kept:
            unexplained = np.asarray([results.keep(name) for name in OF_QUALITY][-1][...])
        else:
            error, unexplained = extraction.reconstruction_errors(
                scan.reduced,
                where,
                scan.extractor,
                record.config.quality,
                workers=workers,
                progress=progress,
                begun=begun,
            )
            results.put("reconstruction_error", error)
            results.put("unexplained", unexplained)
        record.compare_with_training(extraction.drift_of(scan.extractor, unexplained))
    record.delegate_sources = _delegate_sources(results, scan.store)
    return rows


@dataclass(frozen=True)
class Settled:
    """What is left to be drawn of results that are in their place, and the names of the figures that are there."""

    material: Material
    drawn: Sequence[str]


def settle(scan: Encoded, rows: list[grains.Row] | None, workers: Workers | None = None) -> Settled:
    """Put the results in their place and write the tables, while workers of this machine, if there are any, draw."""
    folder, record, results = scan.folder, scan.record, scan.results
    results.group.attrs.update({"suggested_k": record.suggested_k, "keys": record.keys})
    scan.reuse.write(results)
    record.stages = scan.reuse.told

    def replacing() -> None:
        records.remove(folder)
        extraction.keep_learnt(folder, scan.extractor)

    results.finish(replacing=replacing)
    replace_file(folder / CONFIG, dump(record.config).encode())
    with dask_config.set(scheduler="threads"):  # workers that go on are not asked for what is small
        material = Material.of(folder, scan.reduced)
        begun = drawing.begin(folder, scan.reduced, material, workers=workers) if workers else {}
        grains.write_tables(folder, material.results, scan.store, grains=rows, where=scan.where)
        if workers:
            workers.write_report()
        with record.timed("report"):
            return Settled(material, drawing.drawn(begun))


def conclude(scan: Encoded, settled: Settled) -> None:
    """Draw and write what is missing, and the record last."""
    record = scan.record
    with dask_config.set(scheduler="threads"), record.timed("report"):
        drawing.draw(scan.folder, record.as_json(), settled.material, drawn=settled.drawn)
    records.write(scan.folder, record.as_json())


def advise(found: segmentation.Scores, made: Sequence[segmentation.Segmentation]) -> list[str]:
    """What speaks for the suggested K, in words."""
    contiguity = {one.k: mapscores.contiguity(one.labels).score for one in made}
    advice = selection.advise(
        found.k,
        found.silhouette,
        found.calinski_harabasz,
        repeated=found.repeated,
        contiguity=contiguity,
        suggested=found.suggested,
    )
    return [*advice.reasons, advice.verdict]


def _delegate_sources(results: ResultsWriter, store: ScanStore) -> dict[str, str]:
    """File of each delegate, by pattern."""
    delegates = np.unique(np.asarray(results.group["delegate"]))
    sources = store.source
    return {str(i): sources[i] for i in delegates[delegates >= 0].tolist()}


def report(
    folder: Path,
    record: dict[str, Any],
    *,
    reduced: zarr.Array[Any],
    unchanged: Collection[int] = (),
    changed: Collection[str] = ("scores",),
) -> None:
    """Draw the plots and the page of a run that was there before; see `drawing.draw`."""
    drawing.draw(folder, record, Material.of(folder, reduced), unchanged=unchanged, changed=changed)


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
    if members := records.read(folder, withdrawn=True).get("series"):
        raise InputError(
            f"{folder}: is one of {len(members)} scans that share their clusters: "
            "give `laue-dask run` all of them again, with the wanted -k"
        )
    folder = folder.absolute()
    with (
        locked(folder, command, "wait for it"),
        nullcontext(folder) if out is None else _copied(folder, out.absolute(), command) as target,
    ):
        try:
            with writing_to(target, local_scratch(ClusterConfig())):
                return _segment(
                    target, changes, command=command, progress=progress, sweep=sweep, beside=out is not None
                )
        finally:
            io_results.discard(target, io_results.SEGMENTING)


@contextmanager
def _copied(folder: Path, out: Path, command: str) -> Iterator[Path]:
    """A finished run in another folder, which goes again if nothing comes of it."""
    check_folder(out)
    if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise InputError(f"{out}: is not empty: choose a new folder for --out")
    records.check(folder)
    record = records.read(folder)
    scan = _scan_of(folder, record)
    with locked(out, command):
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
    before = validate(record["config"], str(folder / records.NAME))
    config = _changed(before, changes)
    old = io_results.read(folder)
    store = _scan_of(folder, record)
    reduced = _reduced_of(store, config)
    valid = store.valid
    valid[[one["pattern"] for one in record["set_aside"] if one["pattern"] is not None]] = False
    where = Map(valid, store.scan_shape)
    specimen.require_enough(len(where.patterns), config.clustering.k)
    m_pca = choose_components(old["explained_variance_ratio"].values, config.pca.components)
    key = record["keys"]["components"]
    same = m_pca == record["m_pca"] and keys.scores_hold(old.attrs, key, m_pca, before.clustering)
    results = ResultsWriter(folder, old.attrs, partial=io_results.SEGMENTING)
    for name in set(schema.RESULTS) & set(old.variables):
        if name != "components" and not _OF_CLUSTERING & set(schema.RESULTS[name].dims):
            results.keep(name)
    array = results.keep("components")
    array.attrs["m_pca"] = m_pca
    components = stored.lazy(array)
    run = Run(command=command, source=record["source"], config=config)
    with _workers_for(components, reduced, config, folder) as workers:
        if workers is None:
            components = components.persist()
        with run.timed("scores"):
            scored = same and segmentation.same_scores(before.clustering, config.clustering)
            samples = specimen.usable(components, where)[:, :m_pca]
            rescored = sweep or (sweep is None and not scored)
            if rescored:
                found = segmentation.score(samples, config.clustering, results, workers=workers, progress=progress)
            else:
                kept = segmentation.read_scores(old, record["suggested_k"]) if scored else segmentation.Scores()
                found = segmentation.put_scores(kept, results)
        wanted, left_out = segmentation.possible({*found.suggested, *config.clustering.k}, samples)
        segments, found_grains = keys.segments(key, m_pca, config.clustering), keys.grains(key, m_pca)
        known = segmentation.read(old) if recorded(old.attrs, segments) else {}
        if not known and not beside:
            _tell_loss(old["k"].values, wanted, config.clustering)
        with run.timed("segment"):
            made = segmentation.segment(
                components,
                m_pca,
                where,
                sorted({*wanted, *known}),
                config.clustering,
                results,
                progress=progress,
                seeds=found.seeds,
                known=known,
                patterns=Patterns(config.recipe, [(reduced, where)]),
                client=workers.client if workers else None,
            )
        kept_grains = recorded(old.attrs, found_grains) and "grain" in old
        rows = None if kept_grains else grains.find(components, m_pca, where, reduced, results)
    record |= {
        "k": [one.k for one in made],
        "n_clusters": [one.n_clusters for one in made],
        "suggested_k": list(found.suggested),
        "advice": advise(found, made),
        "m_pca": m_pca,
        "delegate_sources": _delegate_sources(results, store),
        "warnings": [
            *(
                text
                for text in record.get("warnings", [])
                if not text.endswith((segmentation.PROVISIONAL, segmentation.TOO_FEW, UNSHARED, SHOW_TWO))
            ),
            *left_out,
            *segmentation.warnings_of(made, config.clustering, config.recipe),
        ],
        "config": config.model_dump(mode="json"),
        "segmented_by": [*record.get("segmented_by", []), command],
    }
    for name in ("evaluation", "approximation"):  # of other segmentations
        record.pop(name, None)
    results.group.attrs["suggested_k"] = record["suggested_k"]
    stages = [segments, found_grains]
    stages += [keys.scores(key, m_pca, config.clustering)] if rescored else []
    update(results, stages, without=() if rescored or scored else ("scores",))
    results.finish(replacing=lambda: records.withdraw(folder))
    grains.write_tables(folder, io_results.read(folder), store, grains=rows, where=where)
    replace_file(folder / CONFIG, dump(config).encode())
    with run.timed("report"):
        record["seconds"] |= run.seconds
        report(folder, record, reduced=reduced, unchanged=known, changed=() if scored and not rescored else ("scores",))
    record["seconds"] |= run.seconds
    records.write(folder, record)
    return record


def _changed(before: Config, changes: dict[str, Any]) -> Config:
    """The configuration of a run with changes that leave its features as they are."""
    base = before.model_dump(mode="json")
    if changes.get("cluster", {}).get("kind", before.cluster.kind) != before.cluster.kind:
        base.pop("cluster")  # another kind has other keys
    config = validate(merged(base, changes), "options")
    for section in ("scan", "recipe", "encoder", "quality"):
        if getattr(config, section) != getattr(before, section):
            raise ConfigError(
                f"{section}: differs from the run's, whose features `segment` leaves as they are: use `run`"
            )
    return config


@contextmanager
def _workers_for(
    components: da.Array, reduced: zarr.Array[Any], config: Config, folder: Path
) -> Iterator[Workers | None]:
    """Workers for large tables; for others None: this process's threads are done before workers have started."""
    looked_at = reduced.nbytes if config.clustering.straddling == "share" else 0
    if max(components.nbytes, looked_at) <= IN_PROCESS:
        with dask_config.set(scheduler="threads"):
            yield None
    else:
        with cluster.start(config.cluster, folder=folder) as workers:
            yield workers


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
    records.read(folder)  # refused before anything is written there
    with locked(folder, f"evaluate {folder}", "wait for it"), writing_to(folder, local_scratch(ClusterConfig())):
        return _evaluate(folder, truth, workers=workers, progress=progress)


def _evaluate(
    folder: Path, truth: Path | Mapping[str, Any], *, workers: int | None, progress: Progress
) -> list[dict[str, float | int | str]]:
    """`evaluate` of a run that is this process's own."""
    records.check(folder)
    record = records.read(folder)
    dataset = io_results.read(folder)
    config = validate(record["config"], str(folder / records.NAME))
    known = evaluation.read_truth(truth, tuple(record["scan_shape"]))
    reduced = _reduced_of(_scan_of(folder, record), config)
    with cluster.start(ClusterConfig(workers=workers)) as started:
        rows = evaluation.evaluate(dataset, reduced, config, known, client=started.client, progress=progress)
        errors = evaluation.approximate(dataset, config, known, workers=started, progress=progress)
    record |= {"evaluation": rows, "approximation": errors}
    release(folder, ("report.html", "plots/approximation.png"))
    report(folder, record, reduced=reduced, unchanged=record["k"], changed=("approximation",))
    records.write(folder, record)
    return rows


def _scan_of(folder: Path, record: dict[str, Any]) -> ScanStore:
    """The scan that a run was made of, where it was or, if the run was moved, inside the run's folder."""
    store = records.scan_of(folder, record["scan"], record["keys"]["scan"])
    changes.warn_of_changes(store)
    return store


def _reduced_of(scan: ScanStore, config: Config) -> zarr.Array[Any]:
    reduced = scan.reduced(config.recipe.for_frames(scan.frame_shape).digest())
    if reduced is None:
        raise InputError(f"{scan.path}: its reduced patterns are gone: run `laue-dask run` again")
    return reduced


def with_absolute_weights(config: Config) -> Config:
    """The configuration with the path of its weights for any working directory."""
    path = weights.locate(config.encoder.weights) if config.encoder.extractor == "network" else None
    if path is None or config.encoder.weights == "default":
        return config
    return config.model_copy(update={"encoder": config.encoder.model_copy(update={"weights": str(path.absolute())})})


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be a run's, or holds something else."""
    require_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; --out names the folder of the run")
    if (folder / records.SERIES).exists():
        raise InputError(f"{folder}: holds a series of scans: choose an empty or a new folder for --out")
    ours = [CONFIG, records.NAME, "watch.json", cluster.FOLDER, cluster.REPORT]
    ours += [name + end for name in ("scan.zarr", io_results.NAME) for end in ("", ".part")]
    if (
        folder.is_dir()
        and any(not path.name.startswith(".") for path in folder.iterdir())
        and not any((folder / name).exists() for name in ours)
    ):
        raise InputError(f"{folder}: holds other files and no run: choose an empty or a new folder for --out")
