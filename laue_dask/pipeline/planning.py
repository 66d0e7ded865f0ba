"""`laue-dask plan`: what a run will take, from a look at the source and a probe; nothing is run."""

from pathlib import Path

import psutil
from dask.utils import format_bytes

from laue_dask.compute import cluster
from laue_dask.compute.local import available_cores
from laue_dask.compute.plan import Packing, Plan, plan, require_memory
from laue_dask.config import Config
from laue_dask.io import deadline
from laue_dask.io.output_paths import require_space, require_writable
from laue_dask.pipeline.stages import extraction
from laue_dask.pipeline.stages.probe import PROBE_DURATION_S, probe, survey, work_of
from laue_dask.runtime.safe_text import printable

BUSY_LOAD_PER_CORE = 0.5
"""Load for each core from which the probe, which is a single process, is too optimistic for several."""


def plan_run(origin: str, folder: Path, config: Config, *, seconds: float = PROBE_DURATION_S) -> str:
    """Plan a run and say what it will take.

    Parameters
    ----------
    origin
        As `single_scan.run` takes it.
    folder
        Of the run, on whose disk there must be room; it is not made.
    seconds
        Time of the probe.

    Returns
    -------
    str
        A table for people.

    Raises
    ------
    InputError
        The source or the configuration is one that `run` refuses, the disk has too little room, or a worker too little
        memory.
    """
    require_writable(folder)
    deadline.set_deadline(config.workers.read_deadline)
    count, gpus, memory = cluster.extent(config.workers)
    extractor = extraction.extractor_of(config.encoder, config.recipe)
    found = survey(origin, config)
    work = work_of(found.scan, config, extractor, gpus=gpus)
    # What cannot fit at all is refused before the probe tries it in this process.
    require_memory(plan(found.scan, work, Packing(0, 0, 0)), memory)
    measured = probe(found, config, extractor, seconds=seconds)
    planned = plan(found.scan, work, measured.packing)
    require_memory(planned, memory)
    require_space(folder, int(planned.written))
    times = {
        stage.name: stage.seconds(
            measured.costs, gpus if gpus and extractor.on_gpu and stage.name in ("encode", "quality") else count
        )
        for stage in planned.stages
    }
    packed = f"patterns to {100 * measured.packing.reduced:.0f} %"
    if found.scan.ingest and found.scan.in_store:
        packed = f"frames to {100 * measured.packing.frames:.0f} %, {packed}"
    lines = [
        printable(f"{origin}: {found.what}"),
        f"probe           {measured.frames} frames in {measured.elapsed:.1f} s; packs {packed}",
        f"workers         {count} of {format_bytes(memory)}" + (f", {gpus} more with a GPU" if gpus else ""),
        f"blocks          {planned.blocks} of {planned.block} patterns, shards of {planned.shard} frames",
        "",
        table(planned, times),
        "",
        "The time does not include the start of the workers, k-means, mixed points, grains, figures and the report.",
    ]
    cores, load = available_cores(), psutil.getloadavg()[0]
    if load > BUSY_LOAD_PER_CORE * cores:
        lines.append(f"The machine is busy (load {load:.1f} on {cores} cores): a run takes longer until it is free.")
    return "\n".join(lines)


def table(planned: Plan, seconds: dict[str, float]) -> str:
    """Return one line for each stage and one for all of them, columns aligned."""
    rows: list[tuple[str, ...]] = [("", "tasks", "read", "written", "memory of a worker", "time")]
    for stage in planned.stages:
        sizes = (format_bytes(int(size)) for size in (stage.read, stage.written, stage.peak))
        rows.append((stage.name, str(stage.tasks), *sizes, _duration(seconds[stage.name])))
    sizes = (format_bytes(int(size)) for size in (planned.read, planned.written, planned.hungriest.peak))
    rows.append(("all", str(planned.tasks), *sizes, _duration(sum(seconds.values()))))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(14), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
