import itertools
import os
import pickle
import signal
import sys
import time
import uuid
from pathlib import Path

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from dask.delayed import delayed
from distributed import Client, get_worker, wait
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laue_dask.compute import run
from laue_dask.compute.local import GPU_RESOURCE, start_cluster
from laue_dask.compute.run import ConcurrentWriter, begin_tasks, map_tasks, run_blocks, write_array, write_tasks
from laue_dask.config import LocalWorkersConfig
from laue_dask.errors import ComputeError, ConfigError, FrameError, StoreError
from laue_dask.io.block_files import checksum
from laue_dask.io.journal import Journal
from laue_dask.runtime.progress import QuietProgress

# Workers cannot import a test module: what it defines travels with the tasks.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SHAPE = (4, 3)
"""Shape of a pattern here."""


@pytest.fixture
def client(workers):
    return workers.client


def values_of(n):
    return np.arange(n * 12, dtype=np.int32).reshape(n, *SHAPE) % 251


def empty(path, n, *, unit, inner=None):
    """An array on disk whose shards (chunks, where there are no inner ones) hold `unit` patterns."""
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    return group.create_array(
        "values", shape=(n, *SHAPE), dtype="int32", fill_value=-1,
        chunks=(inner or unit, *SHAPE), shards=(unit, *SHAPE) if inner else None,
    )  # fmt: skip


def store(blocks, target, client):
    write_array(blocks, target, stage="test", client=client, progress=QuietProgress())


def mark(folder, block):
    """Leave a file that says that `block` was computed once more."""
    (Path(folder) / f"{block}-{uuid.uuid4()}").touch(exist_ok=False)


def marks(folder):
    """How often each block was computed."""
    blocks = sorted(int(path.name.split("-")[0]) for path in Path(folder).iterdir())
    return {block: len(list(group)) for block, group in itertools.groupby(blocks)}


@pytest.fixture
def marked(tmp_path):
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_written_is_exactly_the_lazy_array(client, tmp_path_factory, data):
    inner = data.draw(st.integers(1, 4), label="inner")
    unit = inner * data.draw(st.integers(1, 4), label="chunks per shard")
    n = data.draw(st.integers(1, 40), label="n")
    target = empty(tmp_path_factory.mktemp("write"), n, unit=unit, inner=data.draw(st.sampled_from([inner, None])))
    store(da.from_array(values_of(n), chunks=(unit, -1, -1)) + 1, target, client)
    np.testing.assert_array_equal(target[...], values_of(n) + 1)
    assert target.attrs["finished"] is True
    receipts = Journal.of(target).read()
    assert sorted(receipts) == list(range(-(-n // unit)))
    for receipt in receipts.values():
        assert receipt["crc32c"] == checksum(target[receipt["start"] : receipt["stop"]])


@settings(max_examples=100)
@given(data=st.data())
def test_blocks_are_the_shards_or_are_refused(tmp_path_factory, data):
    inner = data.draw(st.integers(1, 3))
    unit = inner * data.draw(st.integers(1, 3))
    n = data.draw(st.integers(1, 14))
    cuts = data.draw(st.sets(st.integers(1, n - 1)) if n > 1 else st.just(set()))
    sizes = tuple(b - a for a, b in itertools.pairwise([0, *sorted(cuts), n]))
    split = data.draw(st.sampled_from([((4,), (3,)), ((2, 2), (3,)), ((4,), (1, 2))]))
    target = empty(
        tmp_path_factory.getbasetemp() / "layouts", n, unit=unit, inner=data.draw(st.sampled_from([inner, None]))
    )
    blocks = da.from_array(values_of(n), chunks=(sizes, *split))
    bounds = list(itertools.accumulate(sizes))
    aligned = all(bound % unit == 0 for bound in bounds[:-1]) and max(sizes) <= unit and split == ((4,), (3,))
    if aligned:
        for task in write_tasks(blocks, target):
            task.compute(scheduler="synchronous")
        np.testing.assert_array_equal(target[...], values_of(n))
    else:
        with pytest.raises(ValueError, match="are not the shards"):
            write_tasks(blocks, target)
        assert (target[...] == -1).all()


@pytest.mark.parametrize("n", [7, 9])
def test_an_array_of_another_length_is_refused(tmp_path, n):
    with pytest.raises(ValueError, match="are not the shards"):
        write_tasks(da.from_array(values_of(n), chunks=(4, -1, -1)), empty(tmp_path, 8, unit=4))


def failing(folder, *, at=None):
    """Blocks of values that leave marks; block `at` fails."""

    def compute(block, block_info=None):
        number = block_info[0]["chunk-location"][0]
        if number == at:
            raise OSError(28, "No space left on device")
        mark(folder, number)
        return block * 3

    return da.from_array(values_of(23), chunks=(4, -1, -1)).map_blocks(
        compute, dtype=np.int32, meta=np.empty((0, 0, 0), np.int32)
    )


def test_a_second_run_computes_only_what_the_first_left_and_ends_identical(client, tmp_path, marked):
    target = empty(tmp_path / "resumed", 23, unit=4, inner=2)
    with pytest.raises(ComputeError, match=r"block 4: OSError: .*No space left"):
        store(failing(marked, at=4), target, client)
    done = set(Journal.of(target).read())
    assert 4 not in done
    assert "finished" not in target.attrs
    before = marks(marked)
    store(failing(marked), target, client)
    after = marks(marked)
    assert set(after) == set(range(6))
    assert all(after[block] == before[block] for block in done)
    whole = empty(tmp_path / "whole", 23, unit=4, inner=2)
    store(da.from_array(values_of(23) * 3, chunks=(4, -1, -1)), whole, client)
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "values" / "c").rglob("*"))
    assert len(files) > 6
    for name in files:
        if (tmp_path / "whole" / name).is_file():
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()
    assert Journal.of(whole).read() == Journal.of(target).read()


def test_a_finished_array_is_not_computed_again(client, tmp_path, marked):
    target = empty(tmp_path / "t", 23, unit=4)
    store(failing(marked), target, client)
    store(failing(marked, at=2), target, client)
    assert marks(marked) == dict.fromkeys(range(6), 1)


def test_progress_starts_where_the_earlier_run_was_killed(client, tmp_path, marked):
    stages, counts = [], []

    class Recorder:
        def stage(self, name, *, total, unit="patterns", done=0):
            stages.append((name, total, done))
            return self

        def __enter__(self):
            return counts.append

        def __exit__(self, *_):
            return None

    target = empty(tmp_path / "t", 23, unit=4)
    with pytest.raises(ComputeError):
        store(failing(marked, at=5), target, client)
    done = sum(receipt["stop"] - receipt["start"] for receipt in Journal.of(target).read().values())
    write_array(failing(marked), target, stage="again", client=client, progress=Recorder())
    assert stages == [("again", 23, done)]
    assert sum(counts) == 23 - done


RECEIPTS = [{"block": block, "start": 4 * block, "stop": 4 * block + 4, "crc32c": 7} for block in range(5)]


@settings(max_examples=40)
@given(kept=st.integers(0, 240))
def test_a_journal_cut_off_anywhere_keeps_its_whole_lines_and_takes_more(tmp_path_factory, kept):
    journal = Journal(tmp_path_factory.mktemp("journal") / "deep" / "journal.jsonl")
    for receipt in RECEIPTS:
        journal.add(receipt)
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[:kept])
    ends = list(itertools.accumulate(len(line) + 1 for line in content.split(b"\n")[1:]))
    whole = {number: RECEIPTS[number] for number, end in enumerate(ends) if end <= kept}
    assert journal.read() == whole
    journal.add(RECEIPTS[4])
    assert journal.read() == {**whole, 4: RECEIPTS[4]}


@settings(max_examples=100)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_journal_costs_a_receipt_and_changes_none(tmp_path_factory, place, bit):
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.jsonl")
    for receipt in RECEIPTS:
        journal.add(receipt)
    content = bytearray(journal.path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    journal.path.write_bytes(content)
    found = journal.read()
    assert len(found) >= len(RECEIPTS) - 2  # two, where the line break between them is hit
    assert all(found[block] == RECEIPTS[block] for block in found)


@settings(max_examples=40)
@given(garbage=st.binary(max_size=60))
def test_a_journal_with_garbage_behind_it_is_still_read(tmp_path_factory, garbage):
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.jsonl")
    journal.add(RECEIPTS[0])
    with journal.path.open("ab") as file:
        file.write(b"\n" + garbage)
    assert journal.read()[0] == RECEIPTS[0]


def test_a_journal_that_does_not_exist_is_empty(tmp_path):
    assert Journal(tmp_path / "absent").read() == {}


def tasks_of(function, n, *arguments):
    lazy = delayed(function, pure=False)
    return [lazy(block, *arguments) for block in range(n)]


def test_receipts_come_in_the_order_of_the_blocks_whatever_finishes_first(client, tmp_path):
    def late(block):
        time.sleep(0.02 * (6 - block))
        return {"value": block * block}

    seen = []
    journal = Journal(tmp_path / "j")
    receipts = run_blocks(tasks_of(late, 6), client=client, journal=journal, on_receipt=seen.append)
    assert receipts == [{"value": block * block, "block": block} for block in range(6)]
    assert sorted(seen, key=lambda receipt: receipt["block"]) == receipts
    assert run_blocks(tasks_of(late, 6), client=client, journal=journal, on_receipt=seen.append) == receipts
    assert len(seen) == 6


def test_no_blocks_are_no_work(client):
    assert run_blocks([], client=client) == []


def test_receipts_of_blocks_that_are_no_more_are_left_out(client, tmp_path):
    journal = Journal(tmp_path / "j")
    for receipt in RECEIPTS:
        journal.add(receipt)
    assert run_blocks(tasks_of(None, 3), client=client, journal=journal) == RECEIPTS[:3]


@pytest.mark.parametrize(
    "error", [FrameError("truncated"), StoreError("/a/b.zarr: array 'x' is missing"), ConfigError("workers.memory")]
)
def test_an_error_of_ours_arrives_as_itself(client, error):
    def fail(block):
        if block == 2:
            raise error
        return {}

    with pytest.raises(type(error)) as caught:
        run_blocks(tasks_of(fail, 5), client=client)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)


@pytest.mark.parametrize("error", [ValueError("axes don't match"), OSError(5, "Input/output error"), MemoryError("no")])
def test_any_other_error_names_the_block_and_its_cause(client, error):
    def fail(block):
        if block == 2:
            raise error
        return {}

    with pytest.raises(ComputeError) as caught:
        run_blocks(tasks_of(fail, 5), client=client)
    assert str(caught.value) == f"block 2: {type(error).__name__}: {error}"


def test_a_failed_run_stops_and_the_next_one_is_free_to_run(client, marked):
    def fail(block):
        mark(marked, block)
        if block == 0:
            raise ValueError("first")
        time.sleep(0.2)
        return {}

    with pytest.raises(ComputeError, match="block 0"):
        run_blocks(tasks_of(fail, 30), client=client, window=6)
    assert run_blocks(tasks_of(lambda block: {}, 3), client=client) == [{"block": block} for block in range(3)]
    assert max(marks(marked)) < 12


def test_an_interruption_keeps_what_was_finished(client, tmp_path, marked):
    def work(block):
        mark(marked, block)
        return {}

    journal = Journal(tmp_path / "j")
    finished = []

    def interrupt(receipt):
        finished.append(receipt["block"])
        if len(finished) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_blocks(tasks_of(work, 20), client=client, journal=journal, on_receipt=interrupt)
    assert set(journal.read()) == set(finished)
    run_blocks(tasks_of(work, 20), client=client, journal=journal)
    assert all(marks(marked)[block] == 1 for block in finished)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_the_window_bounds_the_blocks_in_flight(client, monkeypatch, window):
    flying, most = set(), []

    class Counting:
        def __init__(self, inner):
            self._inner = inner

        def compute(self, task, **options):
            future = self._inner.compute(task, **options)
            flying.add(future.key)
            most.append(len(flying))
            return future

        def __getattr__(self, name):
            return getattr(self._inner, name)

    def landed(futures, **options):
        done = real(futures, **options)
        flying.difference_update(future.key for future in done.done)
        return done

    real = run.wait
    monkeypatch.setattr(run, "wait", landed)
    assert len(run_blocks(tasks_of(lambda block: {}, 17), client=Counting(client), window=window)) == 17
    assert len(most) == 17
    assert max(most) == window


def test_a_run_in_which_nothing_moves_ends_with_its_cause(client, monkeypatch):
    monkeypatch.setattr(run, "NO_BLOCK_TIMEOUT_S", 0.3)
    with pytest.raises(ComputeError, match=r"no block finished for 0 s \(2 in flight, first: block 0; 2 workers\)"):
        run_blocks(tasks_of(lambda block: {}, 2), client=client, resources={"unobtainable": 1})


def test_a_block_whose_worker_is_killed_more_often_than_dask_allows_by_default_is_redone(client, tmp_path, marked):
    times = dask.config.get("distributed.scheduler.allowed-failures") + 1

    def compute(block, block_info=None):
        number = block_info[0]["chunk-location"][0]
        mark(marked, number)
        if number == 3 and marks(marked)[3] <= times:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        return block + 5

    target = empty(tmp_path / "t", 23, unit=4)
    blocks = da.from_array(values_of(23), chunks=(4, -1, -1))
    store(blocks.map_blocks(compute, dtype=np.int32, meta=np.empty((0, 0, 0), np.int32)), target, client)
    np.testing.assert_array_equal(target[...], values_of(23) + 5)
    assert marks(marked)[3] == times + 1


def test_a_receipt_that_dies_with_its_worker_is_computed_again(workers, monkeypatch, marked):
    client = workers.client
    seen_lost = marked.parent / "seen-lost"
    killed = []

    def landed(futures, **options):
        found = wait(futures, **options)
        if not killed:
            [future, *_] = found.done
            [holder] = client.who_has([future])[future.key]
            [pid] = client.run(os.getpid, workers=[holder]).values()
            os.kill(pid, signal.SIGKILL)
            killed.append(holder)
            while future.status == "finished":
                time.sleep(0.01)
            seen_lost.touch()
        return found

    def work(block):
        mark(marked, block)
        while marks(marked)[block] > 1 and not seen_lost.exists():
            time.sleep(0.01)
        return {"value": block}

    monkeypatch.setattr(run, "wait", landed)
    receipts = run_blocks(tasks_of(work, 8), client=client, window=2)
    assert receipts == [{"value": block, "block": block} for block in range(8)]
    assert killed
    assert max(marks(marked).values()) >= 2
    client.wait_for_workers(workers.count, timeout=60)


def test_a_block_that_always_kills_its_worker_ends_with_its_number(workers, monkeypatch, marked):
    monkeypatch.setattr(workers.client.cluster.scheduler, "allowed_failures", 2)

    def kill(block):
        mark(marked, block)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ComputeError, match=r"block 0: 3 workers died with it, .* raise workers\.memory"):
        run_blocks(tasks_of(kill, 1), client=workers.client)
    assert marks(marked) == {0: 3}
    workers.client.wait_for_workers(workers.count, timeout=60)


def test_gpu_blocks_run_on_the_gpu_s_worker_alone(tmp_path):
    with (
        start_cluster(LocalWorkersConfig(), 1, 1, 2**30, str(tmp_path)) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=60)

        def where(block):
            return {"name": get_worker().name, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}

        placed = run_blocks(tasks_of(where, 40), client=client, resources=GPU_RESOURCE)
        assert {(receipt["name"], receipt["visible"]) for receipt in placed} == {("gpu-0", "0")}
        target = empty(tmp_path / "t", 40, unit=2)

        def named(block):
            return np.full_like(block, get_worker().name == "gpu-0")

        blocks = da.zeros((40, *SHAPE), chunks=(2, -1, -1), dtype=np.int32)
        blocks = blocks.map_blocks(named, dtype=np.int32, meta=np.empty((0, 0, 0), np.int32))
        write_array(blocks, target, stage="t", client=client, progress=QuietProgress(), resources=GPU_RESOURCE)
        assert (target[...] == 1).all()


class Dropped:
    """A client whose tasks never end."""

    def __init__(self, client):
        self.client, self.asked = client, 0

    def __getattr__(self, name):
        return getattr(self.client, name)

    def compute(self, task, **options):
        self.asked += 1
        return self.client.compute(task, **{**options, "resources": {"GPU": 1}})


def test_blocks_alongside_are_written_and_those_that_fail_are_left(client, tmp_path):
    def work(block):
        if block == 2:
            raise ValueError("not this one")
        return {"block": block}

    target = empty(tmp_path / "t", 10, unit=2)
    alongside = ConcurrentWriter(target, client=client, resources=None)
    for task in tasks_of(work, 5):
        alongside.submit(task)
    alongside.finish()
    assert sorted(Journal.of(target).read()) == [0, 1, 3, 4]


def test_what_has_landed_is_kept_by_whoever_stops(client, tmp_path):
    target, done = empty(tmp_path / "t", 4, unit=2), tmp_path / "done"

    def work(block):
        done.touch()
        return {"block": block}

    alongside = ConcurrentWriter(target, client=client, resources=None)
    alongside.submit(tasks_of(work, 1)[0])
    while not (done.exists() and all(future.status == "finished" for future in client.futures.values())):
        time.sleep(0.01)
    alongside.stop()
    assert sorted(Journal.of(target).read()) == [0]


def test_no_more_blocks_than_fit_are_alongside_and_nothing_waits_for_them(client, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "IN_FLIGHT_TIMEOUT_S", 0.01)
    dropped, before = Dropped(client), set(client.futures)
    alongside = ConcurrentWriter(empty(tmp_path / "t", 100, unit=1), client=dropped, resources=None)
    for task in tasks_of(lambda block: {}, 100):
        alongside.submit(task)
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    assert dropped.asked == 3 * workers
    alongside.finish()
    assert set(client.futures) <= before


def test_items_are_mapped_in_order_with_what_they_share(client):
    shared = np.arange(5)
    found = map_tasks(
        lambda item, values, factor: int(values[item]) * factor, [4, 0, 4, 2], (shared, 10), client=client
    )
    assert found == [40, 0, 40, 20]
    done = []
    map_tasks(lambda item: time.sleep(item / 10), [2, 0, 1], (), client=client, on_done=done.append)
    assert sorted(done) == [0, 1, 2]
    assert map_tasks(len, [], (), client=client) == []


def test_what_was_begun_is_not_done_again_unless_it_failed(client, marked):
    def work(item, failing):
        mark(marked, item)
        if item == 2 and marks(marked)[item] == failing:
            raise ValueError("once")
        return 10 * item

    begun = begin_tasks(work, range(4), (1,), client=client)
    wait(list(begun.values()))
    done = []
    found = map_tasks(work, range(4), (1,), client=client, on_done=done.append, begun=begun)
    assert found == [0, 10, 20, 30]
    assert sorted(done) == [0, 1, 2, 3]
    assert marks(marked) == {0: 1, 1: 1, 2: 2, 3: 1}


def test_what_was_begun_and_failed_for_a_reason_of_ours_is_not_tried_again(client, marked):
    def work(item):
        mark(marked, item)
        raise StoreError("it is damaged")

    begun = begin_tasks(work, [0], (), client=client)
    with pytest.raises(StoreError, match="damaged"):
        map_tasks(work, [0], (), client=client, begun=begun)
    assert marks(marked) == {0: 1}


def test_what_was_begun_and_cancelled_is_done_in_its_turn(client):
    begun = begin_tasks(lambda item: time.sleep(60), [5], (), client=client)
    client.cancel(list(begun.values()), force=True)
    assert map_tasks(lambda item: item, [5], (), client=client, begun=begun) == [5]


def test_an_error_of_a_mapped_item_arrives_as_itself(client):
    def fail(item):
        raise StoreError(f"{item}.zarr: array 'x' is missing")

    with pytest.raises(StoreError, match="7"):
        map_tasks(fail, [7], (), client=client)


def test_a_mapped_item_that_always_kills_its_worker_ends(workers, monkeypatch):
    monkeypatch.setattr(workers.client.cluster.scheduler, "allowed_failures", 1)

    def kill(item):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ComputeError, match=r"2 workers died with the same task, .* raise workers\.memory"):
        map_tasks(kill, [1], (), client=workers.client)
    workers.client.wait_for_workers(workers.count, timeout=60)


def test_a_block_is_one_task_with_its_own_part_of_the_graph_alone(tmp_path):
    blocks = da.from_array(np.zeros((4000, 2)), chunks=(4, 2)).map_blocks(np.cos)
    target = zarr.create_array(str(tmp_path / "t"), shape=(4000, 2), chunks=(4, 2), dtype="f8")
    tasks = write_tasks(blocks, target)
    assert len(tasks) == 1000
    assert [len(dask.optimize(task)[0].__dask_graph__()) for task in (tasks[0], tasks[999])] == [1, 1]


def test_a_task_does_not_grow_with_the_scan(tmp_path):
    sizes = []
    for n in (100, 10_000):
        blocks = da.zeros((n, 2), chunks=(4, 2))
        target = zarr.create_array(str(tmp_path / f"t{n:06d}"), shape=(n, 2), chunks=(4, 2), dtype="f8")
        sizes.append(len(cloudpickle.dumps(write_tasks(blocks, target)[20].__dask_graph__())))
    assert sizes[0] == pytest.approx(sizes[1], abs=16)


def test_receipts_are_small(client, tmp_path):
    target = empty(tmp_path, 23, unit=4)
    [receipt, *_] = [
        task.compute(scheduler="synchronous")
        for task in write_tasks(da.from_array(values_of(23), chunks=(4, -1, -1)), target)
    ]
    assert len(pickle.dumps(receipt)) < 1024


def test_block_that_was_lost_after_the_end_is_computed_again_alone(client, tmp_path):
    target, values = empty(tmp_path / "t", 23, unit=4), values_of(23)
    values[4:8] = 0  # a block of fill values is on disk as well
    blocks = da.from_array(values, chunks=(4, -1, -1))
    write_array(blocks, target, stage="t", client=client, progress=QuietProgress())
    assert run.is_complete(target)
    root, member = run.location(target)
    files = {block: Path(root) / member / target.metadata.encode_chunk_key((block, 0, 0)) for block in range(6)}
    files[1].unlink()
    files[4].unlink()
    assert not run.is_complete(target)
    kept = {block: files[block].stat().st_mtime_ns for block in (0, 2, 3, 5)}
    write_array(blocks, target, stage="t", client=client, progress=QuietProgress())
    assert run.is_complete(target)
    np.testing.assert_array_equal(target[...], values)
    assert {block: files[block].stat().st_mtime_ns for block in kept} == kept
