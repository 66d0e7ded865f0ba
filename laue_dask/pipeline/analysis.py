"""From features to label maps: one path, for one scan or for several that share their components and clusters."""

import logging
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from laue_dask.compute.cluster import Workers
from laue_dask.compute.run import Begun
from laue_dask.config import ClusteringConfig
from laue_dask.evaluation import map_scores
from laue_dask.io import results as io_results
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import keys
from laue_dask.pipeline.encoding import MAX_LOCAL_BYTES, EncodedScan, computed_locally
from laue_dask.pipeline.stages import components, extraction, grains, scoring, segmentation
from laue_dask.pipeline.stages.scoring import Scores
from laue_dask.pipeline.stages.segmentation import Segmentation
from laue_dask.pipeline.stages.tables import Table, joined, samples_of, write_direct_colouring
from laue_dask.runtime.progress import Progress
from laue_dask.segmentation import selection
from laue_dask.segmentation.estimators import ESTIMATORS_FINDING_K
from laue_dask.segmentation.pca import IncrementalPCA

GRAIN_ARRAYS = ("grain", "boundary_strength")
QUALITY_ARRAYS = ("reconstruction_error", "unexplained")

logger = logging.getLogger(__name__)


def analyse(scans: Sequence[EncodedScan], *, workers: Workers, progress: Progress) -> list[list[grains.Row] | None]:
    """Analyse scans from their features to their label maps, and write the results of each.

    Several scans have their components, scores and clusters in common.

    Returns
    -------
    tables
        Of the grains of each scan; None where the one of its last run holds.
    """
    with computed_locally(_nbytes(scans)):
        begun = [_begin_quality(scan, workers) for scan in scans]
        tables, m_pca = _transform(scans, workers=workers, progress=progress)
        write_direct_colouring(tables)
        found = _segment(scans, tables, m_pca, workers=workers, progress=progress)
        for scan, made in zip(scans, found, strict=True):
            scan.record.delegate_sources = delegate_sources(made, scan.store)
        return [
            _find_grains_and_quality(scan, table, workers=workers, progress=progress, begun=one)
            for scan, table, one in zip(scans, tables, begun, strict=True)
        ]


def _nbytes(scans: Sequence[EncodedScan]) -> float:
    return float(sum(scan.features.nbytes for scan in scans))


def _transform(scans: Sequence[EncodedScan], *, workers: Workers, progress: Progress) -> tuple[list[Table], int]:
    """The components of each scan, and how many of them are used."""
    config = scans[0].record.config.pca
    stage = keys.components(*(scan.record.keys["features"] for scan in scans))

    @cache
    def fit() -> IncrementalPCA:
        return IncrementalPCA(n_components=config.components).fit(joined([scan.features for scan in scans]))

    tables, used = [], 0
    near_by = _nbytes(scans) <= MAX_LOCAL_BYTES
    for scan in scans:
        with scan.record.timed("components"):
            array, used = components.transform(
                scan.features,
                config,
                scan.results,
                scan.reuse.output(stage),
                workers=workers,
                progress=progress,
                fit=fit,
            )
        scan.record.keys["components"], scan.record.m_pca = stage.key, used
        tables.append(Table(array.persist() if near_by else array, scan.where, scan.results, scan.reduced))
    return tables, used


def _segment(
    scans: Sequence[EncodedScan], tables: Sequence[Table], m_pca: int, *, workers: Workers, progress: Progress
) -> list[list[Segmentation]]:
    """The segmentations of each scan; what is made for all scans is timed with the first."""
    first = scans[0].record
    config, recipe = first.config.clustering, first.config.recipe
    with first.timed("scores"):
        found = _scores(scans, tables, m_pca, workers=workers, progress=progress)
    wanted, left_out = scoring.possible({*found.suggested, *config.k}, samples_of(tables)[:, :m_pca])
    known = _known_segmentations(scans, m_pca, wanted)
    with first.timed("segment"):
        made = segmentation.segment(
            tables,
            m_pca,
            sorted({*wanted, *known[0]}),
            config,
            recipe,
            progress=progress,
            seeds=found.seeds,
            known=known,
            client=workers.client,
        )
    for scan, own in zip(scans, made, strict=True):
        record = scan.record
        record.k, record.suggested_k = [one.k for one in own], list(found.suggested)
        record.warn("clustering", *left_out, *segmentation.warnings_of(own, config, recipe))
        record.advice = advise(found, own)
    return made


def _begin_quality(scan: EncodedScan, workers: Workers) -> Begun:
    """What `_find_grains_and_quality` will ask of workers, begun while they have little to do."""
    config = scan.record.config
    kept = scan.reuse.holds(keys.quality(scan.record.keys["features"], config.quality), QUALITY_ARRAYS)
    if kept or workers.waits_for_gpu():
        return {}
    return extraction.begin_errors(scan.reduced, scan.where, scan.extractor, config.quality, workers=workers)


def _scores(
    scans: Sequence[EncodedScan], tables: Sequence[Table], m_pca: int, *, workers: Workers, progress: Progress
) -> Scores:
    """The scores of the last run where they hold, or new ones, in the results of each scan."""
    config = scans[0].record.config.clustering
    stage = keys.scores(scans[0].record.keys["components"], m_pca, config)
    kept = all(scan.reuse.holds(stage, ("score_k", "silhouette", "calinski_harabasz")) for scan in scans)
    for scan in scans:
        scan.reuse.announce(stage, kept=kept)
    if kept:
        suggested = io_results.attributes(scans[0].results.path, whole=True).get("suggested_k", [])
        found = scoring.read_scores(io_results.variables(scans[0].folder, scoring.SCORE_ARRAYS), suggested)
    else:
        found = scoring.score(samples_of(tables)[:, :m_pca], config, workers=workers, progress=progress)
    for scan in scans:
        scoring.write_scores(found, scan.results)
    return found


def _known_segmentations(
    scans: Sequence[EncodedScan], m_pca: int, wanted: Collection[int]
) -> list[dict[int, Segmentation]]:
    """Segmentations of the last run that hold, of each scan, by K, wanted ones and others."""
    config = scans[0].record.config.clustering
    stage = keys.segments(scans[0].record.keys["components"], m_pca, config)
    if not all(scan.reuse.holds(stage, segmentation.SEGMENTATION_ARRAYS) for scan in scans):
        for scan in scans:
            scan.reuse.announce(stage, kept=False)
        if scans[0].reuse.finished:
            warn_of_loss(io_results.variables(scans[0].folder, ("k",)).get("k", ()), wanted, config)
        return [{} for _ in scans]
    known = []
    for scan in scans:
        chosen = segmentation.DELEGATE_ARRAYS if io_results.whole(scan.folder, segmentation.DELEGATE_ARRAYS) else ()
        known.append(segmentation.read(io_results.variables(scan.folder, (*segmentation.SEGMENTATION_ARRAYS, *chosen))))
    common = set(known[0]).intersection(*known)
    missing = [] if config.estimator in ESTIMATORS_FINDING_K else sorted(set(wanted) - common)
    parts = {"kept": sorted(common), "made": missing}
    remark = "; ".join(f"K = {', '.join(map(str, ks))} {what}" for what, ks in parts.items() if ks)
    for scan in scans:
        scan.reuse.announce(stage, kept=True, remark=remark if missing else "")
    return [{k: own[k] for k in sorted(common)} for own in known]


def warn_of_loss(lost: Iterable[Any], wanted: Collection[int], config: ClusteringConfig) -> None:
    """Say, before anything is written, which segmentations others are put in the place of, and how to keep them."""
    gone = ", ".join(str(int(k)) for k in lost)
    made = "those" if config.estimator in ESTIMATORS_FINDING_K else f"K = {', '.join(map(str, wanted))}"
    if gone:
        logger.warning(
            "the earlier segmentations, K = %s, are out of date: %s of %s are about to take their place. "
            "To keep them, stop now and give another --out",
            gone,
            made,
            config.estimator,
        )


def _find_grains_and_quality(
    scan: EncodedScan, table: Table, *, workers: Workers, progress: Progress, begun: Begun
) -> list[grains.Row] | None:
    """What does not depend on the clustering: grains and their table, and how well the encoder does."""
    record, where, results, reuse = scan.record, scan.where, scan.results, scan.reuse
    rows = None
    with record.timed("grains"):
        stage = keys.grains(record.keys["components"], record.m_pca)
        kept = scan.table_of_grains and reuse.holds(stage, GRAIN_ARRAYS)
        reuse.announce(stage, kept=kept)
        if kept:
            for name in GRAIN_ARRAYS:
                results.keep(name)
        else:
            rows = grains.find(table.components, record.m_pca, where, scan.reduced, results)
    with record.timed("quality"):
        stage = keys.quality(record.keys["features"], record.config.quality)
        kept = reuse.holds(stage, QUALITY_ARRAYS)
        reuse.announce(stage, kept=kept)
        if kept:
            unexplained = np.asarray([results.keep(name) for name in QUALITY_ARRAYS][-1][...])
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
    return rows


def advise(found: Scores, made: Sequence[Segmentation]) -> list[str]:
    """Return what speaks for the suggested K, in words."""
    contiguity = {one.k: map_scores.contiguity(one.labels).score for one in made}
    advice = selection.advise(
        found.k,
        found.silhouette,
        found.calinski_harabasz,
        repeated=found.repeated,
        contiguity=contiguity,
        suggested=found.suggested,
    )
    return [*advice.reasons, advice.verdict]


def delegate_sources(made: Sequence[Segmentation], store: ScanStore) -> dict[str, str]:
    """Return the file of each delegate, by pattern."""
    delegates = np.unique(np.concatenate([one.delegate for one in made]))
    sources = store.source
    return {str(i): sources[i] for i in delegates[delegates >= 0].tolist()}
