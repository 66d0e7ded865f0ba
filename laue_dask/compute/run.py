"""The only place that submits block work.

A block is written by the task that computed it, and only a small receipt comes back: a worker that dies loses the
block it was at, never a finished one. A bounded number of blocks is in flight, so the scheduler's memory and the queue
do not grow with the scan. Finished blocks are in a journal on disk, which the next run reads.
"""

import logging
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing, suppress
from time import monotonic
from typing import Any, overload

import dask.array as da
import numpy as np
import zarr
from dask.delayed import Delayed
from dask.task_spec import Alias
from distributed import Client, Future, KilledWorker, as_completed, wait
from numpy.typing import NDArray

from laue_dask.compute.local import GPU_RESOURCE, available_cores
from laue_dask.errors import ComputeError, LaueDaskError
from laue_dask.io.block_files import BlockFiles, checksum, location
from laue_dask.io.journal import Journal, Receipt
from laue_dask.io.output_paths import naming_full_disk
from laue_dask.runtime.progress import Progress
from laue_dask.runtime.threads import one_thread

logger = logging.getLogger(__name__)

MAX_MAP_ATTEMPTS = 3
"""How often in a row `map_tasks` is tried while workers die and nothing gets done."""

NO_BLOCK_TIMEOUT_S = 900.0
"""Seconds without a single finished block after which the run is taken for stuck, though there are workers for it.
Where there are none the supervisor knows better what is waited for."""

RECEIPT_TIMEOUT_S = 5.0
"""Seconds that receipts may take to come."""

IN_FLIGHT_TIMEOUT_S = 30.0
"""Seconds without a single finished block after which blocks that were only a beginning are given up."""

WORKER_COUNT_INTERVAL_S = 5.0
"""Seconds between two looks at how many workers there are: jobs come and go."""


class Blocks(Sequence[Delayed]):
    """Blocks of a lazy array, each cut out when it is asked for, with the part of the graph that it needs.

    Dask leaves a task behind the one that computes, which does nothing but give the result another name. It is left
    out: it would cost a way to the scheduler and back, and wait behind the blocks that its worker holds already, so
    that two more would be lost with that worker.
    """

    def __init__(self, array: da.Array) -> None:
        self._array = array

    def __len__(self) -> int:
        return int(self._array.numblocks[0])

    @overload
    def __getitem__(self, index: int) -> Delayed: ...
    @overload
    def __getitem__(self, index: slice) -> list[Delayed]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        named = self._array.blocks[index].to_delayed().ravel()[0]
        graph, key = dict(named.__dask_graph__()), named.key
        while isinstance(graph[key], Alias):
            key = graph.pop(key).target
        return Delayed(key, graph)


def run_blocks(
    tasks: Sequence[Delayed],
    *,
    client: Client,
    journal: Journal | None = None,
    resources: dict[str, float] | None = None,
    on_receipt: Callable[[Receipt], None] | None = None,
    window: int | None = None,
) -> list[Receipt]:
    """Compute every task that has no receipt yet.

    Parameters
    ----------
    tasks
        One per block, each returning its `Receipt`, or an array of that alone.
    journal
        Where receipts are kept; blocks already there are not computed again.
    resources
        Worker resources each task asks for.
    on_receipt
        Called with each new receipt, in order of completion.
    window
        Blocks in flight; by default three per worker.

    Returns
    -------
    receipts
        In order of the blocks, old and new.

    Raises
    ------
    LaueDaskError
        Whatever a task raised, if it is one of ours.
    ComputeError
        A task failed, as many workers died with it as the scheduler allows, or nothing moved for `NO_BLOCK_TIMEOUT_S`
        seconds.
    """
    receipts = journal.read() if journal else {}
    receipts = {block: receipt for block, receipt in receipts.items() if block < len(tasks)}
    waiting = iter([block for block in range(len(tasks)) if block not in receipts])
    # Closed by `with`: what ends a generator that is merely left is not seen to be an interruption's clean-up.
    with closing(_computed(tasks, waiting, client, resources, _Window(client, window))) as computed:
        for block, receipt in computed:
            receipts[block] = {**receipt, "block": block}
            if journal:
                journal.add(receipts[block])
            if on_receipt:
                on_receipt(receipts[block])
    return [receipts[block] for block in range(len(tasks))]


class _Window:
    """How many blocks may be in flight."""

    def __init__(self, client: Client, fixed: int | None) -> None:
        self._client, self._fixed, self._width, self._looked = client, fixed, 0, -WORKER_COUNT_INTERVAL_S

    @property
    def width(self) -> int:
        """Three for each worker that there is, so that none waits and none has many to lose."""
        if self._fixed is None and monotonic() - self._looked >= WORKER_COUNT_INTERVAL_S:
            self._looked = monotonic()
            self._width = 3 * max(1, len(_workers(self._client)))
        return self._fixed or self._width


def _workers(client: Client) -> list[dict[str, Any]]:
    return list(client.scheduler_info(n_workers=-1)["workers"].values())


def _computed(
    tasks: Sequence[Delayed],
    waiting: Iterator[int],
    client: Client,
    resources: dict[str, float] | None,
    window: _Window,
) -> Generator[tuple[int, Receipt]]:
    flying: dict[Future[Any], int] = {}
    try:
        for block in waiting:
            flying[client.compute(tasks[block], resources=resources, retries=1)] = block
            while len(flying) >= window.width:
                yield from _finished_blocks(flying, client, resources)
        while flying:
            yield from _finished_blocks(flying, client, resources)
    finally:
        client.cancel(list(flying))


def _finished_blocks(
    flying: dict[Future[Any], int], client: Client, resources: dict[str, float] | None
) -> Iterator[tuple[int, Receipt]]:
    try:
        landed = wait(list(flying), timeout=NO_BLOCK_TIMEOUT_S, return_when="FIRST_COMPLETED").done
    except TimeoutError as error:
        workers = _workers(client)
        if not workers or (resources == GPU_RESOURCE and not any(worker["resources"].get("GPU") for worker in workers)):
            return
        raise ComputeError(
            f"no block finished for {NO_BLOCK_TIMEOUT_S:.0f} s ({len(flying)} in flight, first: block "
            f"{min(flying.values())}; {len(workers)} workers): is the disk reachable from the workers?"
        ) from error
    except CancelledError as error:
        raise ComputeError("the scheduler has gone: the same command goes on where it stopped") from error
    # Finished ones first: the receipts of blocks that are on disk are kept when another one fails.
    for future in sorted(landed, key=lambda future: future.status != "finished"):
        if future.status not in ("finished", "error"):
            # Its worker died before the receipt was fetched: the scheduler has the block computed again.
            continue
        block = flying.pop(future)
        try:
            # A task of `map_blocks` returns an array, of one receipt.
            receipt = np.asarray(future.result(), dtype=object).item()
        except Exception as cause:
            # The scheduler would answer the next run of the same block with this failure.
            future.release()
            if isinstance(cause, LaueDaskError):
                raise
            if isinstance(cause, KilledWorker):
                raise ComputeError(
                    f"block {block}: {cause.allowed_failures + 1} workers died with it, probably because they "
                    "had too little memory: "
                    "raise workers.memory or lower workers.count"
                ) from cause
            raise ComputeError(f"block {block}: {type(cause).__name__}: {cause}") from cause
        yield block, receipt


def write_array(
    blocks: da.Array,
    target: zarr.Array[Any],
    *,
    stage: str,
    client: Client,
    progress: Progress,
    resources: dict[str, float] | None = None,
    on_receipt: Callable[[Receipt], None] | None = None,
) -> None:
    """Compute a lazy array into `target`, going on where an earlier run was killed; see `write_tasks`.

    Nothing is done for an array that is `finished`. `on_receipt` is called with the receipt of each block that was
    written now.
    """
    if is_complete(target):
        return
    journal, files = Journal.of(target), BlockFiles(target)
    files.sweep()
    journal.keep(lambda receipt: _is_whole(files, receipt))
    done = sum(receipt["stop"] - receipt["start"] for receipt in journal.read().values())
    if done == target.shape[0]:
        target.attrs["finished"] = True
        return
    with progress.stage(stage, total=target.shape[0], done=done) as advance:

        def written(receipt: Receipt) -> None:
            if on_receipt:
                on_receipt(receipt)
            advance(receipt["stop"] - receipt["start"])

        run_blocks(write_tasks(blocks, target), client=client, journal=journal, resources=resources, on_receipt=written)
    files.sweep()
    target.attrs["finished"] = True


class ConcurrentWriter:
    """Writes blocks of an array while those of another stage are made, as soon as what they are made of is there.

    Only a beginning: what fails, or would have to wait, is left to the array's own turn.

    Parameters
    ----------
    target
        On disk. A task writes one of its blocks and returns the receipt.
    resources
        Worker resources each task asks for.
    """

    def __init__(self, target: zarr.Array[Any], *, client: Client, resources: dict[str, float] | None) -> None:
        self._client, self._resources = client, resources
        self._journal = Journal.of(target)
        self._window = _Window(client, None)
        self._flying: list[Future[Any]] = []

    def submit(self, task: Delayed) -> None:
        """Have a block written, before the blocks that wait for a worker; not if too many are in flight already."""
        self._take()
        if len(self._flying) < self._window.width:
            self._flying.append(self._client.compute(task, resources=self._resources, priority=1))

    def finish(self) -> None:
        """Wait for what is in flight as long as some of it lands now and then, and give up the rest."""
        try:
            while self._flying:
                wait(self._flying, timeout=IN_FLIGHT_TIMEOUT_S, return_when="FIRST_COMPLETED")
                self._take()
        except (TimeoutError, CancelledError):
            pass
        self.stop()

    def stop(self) -> None:
        """Give up what has not landed by now."""
        self._take()
        self._client.cancel(self._flying)
        self._flying = []

    def _take(self) -> None:
        limit = monotonic() + RECEIPT_TIMEOUT_S
        for future in [one for one in self._flying if one.done()]:
            if future.status == "finished":
                # Its worker may have died meanwhile, with the receipt.
                with suppress(Exception):
                    self._journal.add(future.result(timeout=max(0.1, limit - monotonic())))
            self._flying.remove(future)
            future.release()


def is_complete(array: zarr.Array[Any]) -> bool:
    """Return whether an array was finished and all its blocks are still what was written.

    A damaged one would fail in the middle of the next stage; one that is gone or another's would be read as it is.
    """
    files, receipts = BlockFiles(array), Journal.of(array).read()
    return bool(array.attrs.get("finished")) and all(
        block in receipts and _is_whole(files, receipts[block]) for block in range(files.count)
    )


def _is_whole(files: BlockFiles, receipt: Receipt) -> bool:
    block, seal = int(receipt["block"]), receipt.get("seal")
    return 0 <= block < files.count and seal is not None and files.fault(block, seal, whole=True) is None


def write_tasks(blocks: da.Array, target: zarr.Array[Any]) -> Blocks:
    """Return one task per block of a lazy array, which computes the block and writes it to `target`.

    Parameters
    ----------
    blocks
        Chunked along its first axis alone.
    target
        Array on disk of the same shape, whose shards (chunks where it has none) are the blocks, so that no two tasks
        ever write to the same object.

    Raises
    ------
    ValueError
        The blocks are not the target's shards: writing would lose data silently.
    """
    unit = (target.shards or target.chunks)[0]
    whole = all(len(sizes) == 1 for sizes in blocks.chunks[1:])
    aligned = all(size == unit for size in blocks.chunks[0][:-1]) and blocks.chunks[0][-1] <= unit
    if blocks.shape != target.shape or not whole or not aligned:
        raise ValueError(
            f"blocks {blocks.chunks} of {blocks.shape} are not the shards {target.shards or target.chunks} "
            f"of {target.shape} on disk"
        )
    root, member = location(target)
    receipts = da.map_blocks(
        _write,
        blocks,
        root=root,
        member=member,
        dtype=object,
        drop_axis=tuple(range(1, blocks.ndim)),
        chunks=((1,) * blocks.numblocks[0],),
        meta=np.empty(0, dtype=object),
    )
    # Nothing is added to take the receipt out of its array, for the same reason as in `Blocks`.
    return Blocks(receipts)


def _write(block: NDArray[Any], *, root: str, member: str, block_id: tuple[int, ...] | None = None) -> NDArray[Any]:
    if block_id is None:
        raise ValueError("block_id is needed to know where the block belongs")
    return np.array([write_block(block, zarr.open_array(root, path=member, mode="r+"), block_id[0])], dtype=object)


def write_block(block: NDArray[Any], array: zarr.Array[Any], index: int) -> Receipt:
    """Write one block, a shard (a chunk where there are none) of an array on disk.

    Raises
    ------
    ValueError
        It is not exactly one block: writing would lose data silently.
    """
    unit = (array.shards or array.chunks)[0]
    start = index * unit
    if not 0 <= start < array.shape[0] or len(block) != min(unit, array.shape[0] - start):
        raise ValueError(f"{len(block)} rows are not block {index} of {unit} rows among {array.shape[0]}")
    files = BlockFiles(array)
    # Written even if empty: a block that is not there is one that was lost.
    writable = array.with_config({"write_empty_chunks": True})
    with naming_full_disk(files.folder):
        try:
            writable[start : start + len(block)] = block
        except ValueError:
            # Zarr looks into a shard that it replaces, and stumbles over a damaged one.
            files.path(index).unlink(missing_ok=True)
            writable[start : start + len(block)] = block
    found = {"crc32c": checksum(block), "seal": files.seal(index)}
    return {"block": index, "start": start, "stop": start + len(block), **found}


Begun = dict[int, Future[Any]]
"""Calls that are under way, by place among the items."""


def begin_tasks(
    function: Callable[..., Any],
    items: Iterable[Any],
    shared: Collection[Any],
    *,
    client: Client,
    resources: dict[str, float] | None = None,
) -> Begun:
    """Have a few calls made while this process does something else; `map_tasks` takes what came of them."""
    return {
        place: client.submit(function, item, *shared, pure=False, resources=resources, priority=-1)
        for place, item in enumerate(items)
    }


def map_tasks(
    function: Callable[..., Any],
    items: Iterable[Any],
    shared: Collection[Any],
    *,
    client: Client | None,
    resources: dict[str, float] | None = None,
    on_done: Callable[[Any], None] | None = None,
    begun: Begun | None = None,
) -> list[Any]:
    """Call ``function(item, *shared)`` for every item on the workers; `shared` is sent once per worker.

    For small work whose results are small: nothing is kept of a call that fails. `on_done` gets each item when its
    call has returned. Without a client, threads of this process do the work. Calls that were `begun` and failed, or
    were lost with their worker, are made again.

    Returns
    -------
    results
        In the order of the items.

    Raises
    ------
    LaueDaskError
        Whatever a call raised, if it is one of ours.
    ComputeError
        A call failed otherwise, or workers died `MAX_MAP_ATTEMPTS` times and nothing got done.
    """
    items = list(items)
    if client is None:
        return _map_here(function, items, shared, on_done)
    results: dict[int, Any] = {}
    for place, future in (begun or {}).items():
        try:
            results[place] = future.result()
        except LaueDaskError:
            raise
        except KilledWorker as error:
            raise _killed(error) from error
        except Exception as error:
            logger.debug("a call that was begun: %s", error)
            continue
        if on_done:
            on_done(items[place])
    left = MAX_MAP_ATTEMPTS
    while len(results) < len(items):
        done = len(results)
        try:
            client.submit(int, pure=False).result()  # there may be no worker at the moment
            # What was sent is lost with the worker that holds it, and everything that waits for it is cancelled.
            held = [client.scatter(value, hash=False) for value in shared]
            futures = {
                client.submit(function, item, *held, pure=False, resources=resources): place
                for place, item in enumerate(items)
                if place not in results
            }
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                if on_done:
                    on_done(items[futures[future]])
        except LaueDaskError:
            raise
        except KilledWorker as error:
            raise _killed(error) from error
        except CancelledError as error:
            left = MAX_MAP_ATTEMPTS if len(results) > done else left - 1
            if not left:
                raise ComputeError(
                    "workers that held shared data ended again and again: are the workers stable?"
                ) from error
        except Exception as error:
            raise ComputeError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    return [results[place] for place in range(len(items))]


def _killed(error: KilledWorker) -> ComputeError:
    return ComputeError(
        f"{error.allowed_failures + 1} workers died with the same task, probably because they had too little memory: "
        "raise workers.memory or lower workers.count"
    )


def _map_here(
    function: Callable[..., Any], items: list[Any], shared: Collection[Any], on_done: Callable[[Any], None] | None
) -> list[Any]:
    results = []
    with one_thread(), ThreadPoolExecutor(available_cores()) as threads:
        for item, result in zip(items, threads.map(lambda item: function(item, *shared), items), strict=True):
            results.append(result)
            if on_done:
                on_done(item)
    return results
