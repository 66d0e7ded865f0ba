"""The probe: what a scan is made of, and what its frames cost on this machine, in about ten seconds on one core.

A sample of frames spread over the scan goes through what a worker will do with every frame: it is read, packed, reduced
and encoded, and one K is scored. Nothing is written but the extractor's own file in a temporary folder.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from laue_dask import schema
from laue_dask.compute.plan import Packing, Scan, Work
from laue_dask.compute.run import is_complete
from laue_dask.config import Config
from laue_dask.errors import FrameError, InputError
from laue_dask.features import weights
from laue_dask.features.batch_sizes import AUTO_BATCH_SIZES
from laue_dask.features.encode import Network
from laue_dask.features.extractors import Extractor
from laue_dask.features.pixels import PATTERNS_PER_PROJECTION, Pixels
from laue_dask.io.frame_groups import group_frames
from laue_dask.io.frames import FrameRef, discover, is_read_whole, read_frame, read_position
from laue_dask.io.limits import Expected
from laue_dask.io.packed_size import pack
from laue_dask.io.placement import recorded_placement
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.stages import specimen
from laue_dask.pipeline.stages.extraction import MIN_QUALITY_SAMPLE
from laue_dask.pipeline.stages.frame_placement import announce, announce_stored_grid, locate_locally, refuse_part
from laue_dask.pipeline.stages.ingest import MAX_SAMPLE_BYTES, MAX_SAMPLE_FRAMES
from laue_dask.reduction import reduce as preprocess
from laue_dask.runtime.threads import one_thread
from laue_dask.schema import PATTERN_SIZE
from laue_dask.segmentation import scores, selection
from laue_dask.segmentation.clustering import nearest
from laue_dask.segmentation.pca import IncrementalPCA, block_rows
from laue_dask.segmentation.seeding import search

PROBE_DURATION_S = 10.0
"""The time that a probe takes, about: no call of it is broken off."""

MAX_PACKED_BYTES = 64 * 2**20
"""Bytes of frames that are packed to see how well they do."""

N_SCORED_ROWS = 1000
"""Rows that one K is scored on; the time grows with their number."""

NETWORK_BYTES_IN_WIDEST_MAPS = 7
"""Memory of the network in sizes of its widest feature map: the decoder and the peaks that it draws need the most."""

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Survey:
    """What is known of a source before a frame of it is read.

    Attributes
    ----------
    what
        For people.
    refs
        The frames, where the source is no store.
    store, patterns
        The scan store, and which of its patterns are usable.
    """

    scan: Scan
    what: str
    refs: Sequence[FrameRef] = ()
    store: ScanStore | None = None
    patterns: Sequence[int] = ()

    def read(self, place: int) -> NDArray[Any]:
        """Return the pixels (row, column) of one frame; raises `FrameError` or `StoreError`."""
        if self.store is None:
            expected = Expected(self.scan.frame_shape, self.scan.dtype)
            return read_frame(self.refs[place], expected=expected)
        return self.store.read_frames(self.patterns[place], self.patterns[place] + 1)[0]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Probe:
    """What a probe found.

    Attributes
    ----------
    frames
        Number of frames that were read.
    elapsed
        Seconds that all of it took.
    costs
        See `compute.plan.Costs`.
    """

    frames: int
    elapsed: float
    packing: Packing
    costs: dict[str, float]


def survey(origin: str, config: Config) -> Survey:
    """Look at a source: how many frames there are, how large, where they lie and what is still to be done with them.

    The points of the grid are counted as frames where only the headers of all frames tell them.

    Raises
    ------
    InputError
        What `run` would refuse, too: no frames, too small ones, a shape that does not fit, no grid.
    """
    if ScanStore.is_store(origin) or Path(origin).suffix == ".zarr":
        refuse_part(origin, config.scan)
        return _of_store(origin, config)
    refs = discover(origin)
    specimen.require_enough_patterns(len(refs), config.clustering.k)
    chosen = spread(len(refs))
    groups, reasons = group_frames([refs[place] for place in chosen])
    if not groups:
        raise InputError(f"none of {len(chosen)} frames tried can be read; {reasons[0]}")
    info = groups[0].infos[0]
    rows, columns = info.shape
    if min(rows, columns) < PATTERN_SIZE:
        raise InputError(
            f"{origin}: frames of {rows} × {columns} pixels are smaller than a pattern of "
            f"{PATTERN_SIZE} × {PATTERN_SIZE}: give unbinned frames"
        )
    points, grid = len(refs), f"{len(refs)} points are assumed; the headers of all frames will tell"
    header: float | None = None
    found = locate_locally(origin, refs, config.scan)
    if found is not None:
        announce(found, refs)
        if found.outside:
            refs = [ref for i, ref in enumerate(refs) if i not in found.outside]
            chosen = spread(len(refs))
        points = found.shape[0] * found.shape[1]
        grid = f"{found.shape[0]} × {found.shape[1]} points\n{_aligned(found.line)}"
    stored = float(np.mean([_stored_bytes(refs[i]) for i in chosen]))
    if config.scan.shape is None:
        header = stored if is_read_whole(refs[chosen[0]]) else 0.0
    scan = Scan(points, len(refs), info.shape, info.dtype, stored, header, in_store=config.scan.store_frames)
    return Survey(scan, f"{len(refs)} frames of {rows} × {columns}, {info.dtype}; {grid}", refs)


def work_of(scan: Scan, config: Config, extractor: Extractor, *, gpus: int = 0) -> Work:
    """Return what the configuration asks for, in numbers.

    Parameters
    ----------
    gpus
        Workers with a GPU.

    Raises
    ------
    StoreError
        The weights are missing or damaged.
    """
    first, last = config.clustering.score_k
    values = {k for k in {*range(first, last + 1), *config.clustering.k} if k < min(scan.n_frames, scan.n_patterns)}
    reconstructed = 0
    if isinstance(extractor, Network) and config.quality != "none":
        step = 1 if config.quality == "all" else max(1, scan.n_frames // MIN_QUALITY_SAMPLE)
        reconstructed = -(-scan.n_frames // step)
    return Work(
        n_features=extractor.n_features,
        extractor_bytes=_extractor_bytes(extractor),
        table_rows=block_rows(extractor.n_features),
        fused=config.recipe.substrate == "keep",
        ahead=not extractor.learns and not (gpus and extractor.on_gpu),
        scored=len(values),
        sample=config.clustering.sample,
        reconstructed=reconstructed,
    )


def probe(found: Survey, config: Config, extractor: Extractor, *, seconds: float = PROBE_DURATION_S) -> Probe:
    """Time what a worker will do, on frames spread over the scan.

    Parameters
    ----------
    extractor
        As configured, not fitted.
    seconds
        Time for all of it; at least one frame goes through everything.

    Raises
    ------
    InputError
        None of the frames can be read.
    """
    begun, scan = time.perf_counter(), found.scan
    recipe = config.recipe.model_copy(update={"substrate": "keep"})
    with one_thread(), tempfile.TemporaryDirectory(prefix="laue-dask-") as folder:
        frames, costs = _read(found, 0.35 * seconds)
        if scan.header_bytes is not None:
            costs["headers"] = _paced(read_position, [found.refs[i] for i in spread(scan.n_frames)], 0.05 * seconds)[1]
        mask = preprocess.detector_mask(frames) if found.store is None else found.store.detector_mask
        preprocess.reduce_frames(frames[:1], mask, recipe)  # the loops are compiled, or read from their cache
        made, reducing = _paced(lambda one: preprocess.reduce_frames(one, mask, recipe), frames, 0.25 * seconds)
        patterns: NDArray[np.uint8] = np.concatenate(made)
        part = frames[: max(1, MAX_PACKED_BYTES // scan.frame_bytes)]
        frame_share, storing = pack(part, schema.SCAN["frames"])
        costs |= _of_frames(scan, config, costs.pop("read"), storing / len(part), reducing)
        features = _encode(extractor, patterns, Path(folder), config.quality != "none", costs)
    costs["scores"] = _scoring(features, scan, config)
    packing = Packing(frame_share, pack(patterns, schema.REDUCED)[0], pack(features, schema.RESULTS["features"])[0])
    return Probe(len(frames), time.perf_counter() - begun, packing, costs)


def spread(count: int) -> list[int]:
    """Return numbers of some of `count` frames, in an order of which any beginning is spread over the scan as well."""
    places = np.unique(np.linspace(0, count - 1, min(MAX_SAMPLE_FRAMES, count)).astype(int))
    return [int(i) for i in np.random.default_rng(0).permutation(places)]


def _of_store(origin: str, config: Config) -> Survey:
    store = ScanStore.open(origin)
    usable = np.flatnonzero(store.valid)
    specimen.require_enough_patterns(len(usable), config.clustering.k)
    shape = config.scan.shape
    if shape and tuple(shape) != store.scan_shape:
        raise InputError(
            f"{origin}: its scan is {store.scan_shape[0]} × {store.scan_shape[1]}, "
            f"--shape says {shape[0]} × {shape[1]}: leave --shape out, or ingest the frames again"
        )
    if store.has_frames:
        stored = sum(file.stat().st_size for file in (store.path / "frames").rglob("*") if file.is_file())
        stored_bytes = stored / len(usable)
    else:
        names = store.source
        stored_bytes = float(np.mean([_stored_bytes(FrameRef.parse(names[usable[i]])) for i in spread(len(usable))]))
    reduced = store.reduced(config.recipe.for_frames(store.frame_shape).digest())
    scan = Scan(
        store.n_patterns,
        len(usable),
        store.frame_shape,
        store.dtype,
        stored_bytes,
        ingest=False,
        reduce=reduced is None or not is_complete(reduced),
        in_store=store.has_frames,
    )
    (ny, nx), (rows, columns) = store.scan_shape, store.frame_shape
    what = f"{len(usable)} frames of {rows} × {columns}, {store.dtype}; {ny} × {nx} points"
    announce_stored_grid(store)
    what += f"\n{_aligned(recorded_placement(store)['line'])}"
    return Survey(scan, what, store=store, patterns=usable.tolist())


def _aligned(line: str) -> str:
    """The line about the grid, beneath the others of a plan."""
    return f"{'grid':15s} {line.removeprefix('grid: ')}"


def _stored_bytes(ref: FrameRef) -> float:
    """Bytes of a frame on the disk; 0 where its file is not there or does not say."""
    try:
        if ref.dataset is None:
            return Path(ref.path).stat().st_size
        with h5py.File(ref.path, "r", locking=False) as file:
            node = file[ref.dataset]
            frames = node.shape[0] if node.ndim == 3 else 1
            # A virtual dataset holds nothing itself.
            return float(node.id.get_storage_size() or node.nbytes) / frames
    except (OSError, KeyError):
        return 0.0


def _extractor_bytes(extractor: Extractor) -> int:
    match extractor:
        case Network():
            shape = weights.load(extractor.weights_name)[0].architecture
            side = PATTERN_SIZE // shape.unshuffle
            widest = max(channels * (side >> i) ** 2 for i, channels in enumerate(shape.channels))
            return 4 * NETWORK_BYTES_IN_WIDEST_MAPS * _unit(extractor) * max(widest, PATTERN_SIZE**2)
        case Pixels():
            # The file's content, and in float64 the components in it and a batch of patterns.
            return 4 * PATTERN_SIZE**2 * (3 * extractor.n_features + 2 * PATTERNS_PER_PROJECTION)
    return 16 * PATTERN_SIZE**2


def _unit(extractor: Extractor) -> int:
    """Patterns that are encoded together, at most; those on a GPU are not in a worker's own memory."""
    if not isinstance(extractor, Network):
        return PATTERNS_PER_PROJECTION
    return AUTO_BATCH_SIZES["cpu"][-1] if extractor.batch_size == "auto" else extractor.batch_size


def _read(found: Survey, seconds: float) -> tuple[NDArray[Any], dict[str, float]]:
    """Frames (s, row, column) of the scan's shape and dtype, and the time that one takes as `read`."""

    def read(place: int) -> NDArray[Any] | str:
        try:
            return found.read(place)
        except FrameError as error:
            return f"{found.refs[place]}: {error}"

    scan = found.scan
    places = spread(scan.n_frames)[: max(1, MAX_SAMPLE_BYTES // scan.frame_bytes)]
    made, each = _paced(read, places, seconds)
    frames = [
        one for one in made if not isinstance(one, str) and (one.shape, one.dtype) == (scan.frame_shape, scan.dtype)
    ]
    if not frames:
        reasons = [one for one in made if isinstance(one, str)] or ["another shape or dtype than the first"]
        raise InputError(f"none of {len(made)} frames tried can be used; {reasons[0]}")
    return np.stack(frames), {"read": each}


def _of_frames(scan: Scan, config: Config, reading: float, storing: float, reducing: float) -> dict[str, float]:
    """Seconds for each frame in the stages that see frames."""
    if not scan.ingest:
        return {"reduce": reading + reducing}
    first = reading + (storing if scan.in_store else 0)
    if config.recipe.substrate == "keep":
        return {"ingest": first + reducing}
    # Unpacking takes no longer than packing.
    return {"ingest": first, "reduce": reducing + (storing if scan.in_store else reading)}


def _encode(
    extractor: Extractor, patterns: NDArray[np.uint8], folder: Path, quality: bool, costs: dict[str, float]
) -> NDArray[np.float32]:
    """Features (n, M_AE) of the patterns, and what one costs into `costs`."""
    unit = _unit(extractor)
    batches = np.resize(patterns, (-(-len(patterns) // unit) * unit, *patterns.shape[1:]))
    valid = np.ones(len(batches), dtype=bool)
    fitted = extractor.fit(lambda size: patterns[:size], folder / "learnt.safetensors")
    fitted.extract(batches[:unit], valid[:unit])  # loads and compiles
    features, seconds = _timed(lambda: fitted.extract(batches, valid))
    costs["encode"] = seconds / len(batches)
    if isinstance(fitted, Network) and quality:
        network = fitted
        costs["quality"] = _timed(lambda: network.errors(batches[:unit]))[1] / unit
    return features[: len(patterns)]


def _scoring(features: NDArray[np.float32], scan: Scan, config: Config) -> float:
    """Seconds to score one K, the middle one, on rows like these."""
    clustering = config.clustering
    rows = min(scan.n_frames, clustering.sample)
    some, k = min(rows, N_SCORED_ROWS), sum(clustering.score_k) // 2
    if len(features) < 2 or k >= some:
        return 0.0
    with one_thread():
        pca = IncrementalPCA(n_components=config.pca.components).fit(features)
        table = np.resize(pca.transform(features)[:, : pca.n_components_], (some, pca.n_components_))
        table += np.random.default_rng(0).normal(0, 0.05 * table.std() + 1e-6, table.shape)

        search(table[: 2 * k], k, n_init=1, seed=0)  # the loops are compiled, or read from their cache

        def score() -> None:
            centers = search(table, k, n_init=clustering.n_init, seed=clustering.seed)
            scores.calinski_harabasz(table, nearest(table, centers))
            selection.repeat(table, k, draws=clustering.repeats)

        # Distances are of all rows to all others, and serve every K.
        labelings = [np.arange(some) % one for one in range(clustering.score_k[0], clustering.score_k[1] + 1)]
        apart = _timed(lambda: scores.silhouette_samples(table, labelings))[1] / len(labelings)
        return _timed(score)[1] * rows / some + apart * (rows / some) ** 2


def _timed(call: Callable[[], _R]) -> tuple[_R, float]:
    """Result and seconds on one core, of which a library may have used several."""
    wall, busy = time.perf_counter(), time.process_time()
    result = call()
    return result, max(time.perf_counter() - wall, time.process_time() - busy)


def _paced(function: Callable[[_T], _R], items: Iterable[_T], seconds: float) -> tuple[list[_R], float]:
    """Results of as many calls as fit into so many seconds, one at least, and the seconds that one takes."""
    results: list[_R] = []
    spent = 0.0
    for item in items:
        result, elapsed = _timed(partial(function, item))
        results.append(result)
        spent += elapsed
        if spent >= seconds:
            break
    return results, spent / len(results)
