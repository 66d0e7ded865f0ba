from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.compute.plan import (
    WORKER_BASE_BYTES,
    WORKER_BASE_BYTES_WITH_TORCH,
    Packing,
    Plan,
    Scan,
    Stage,
    Work,
    plan,
    require_memory,
    store_bytes,
)
from laue_dask.errors import ConfigError
from laue_dask.io.blocks import block_size
from laue_dask.io.frame_array import TARGET_CHUNK_BYTES

WORK = Work(
    n_features=256,
    extractor_bytes=50 * 2**20,
    table_rows=16_384,
    fused=True,
    ahead=True,
    scored=19,
    sample=20_000,
    reconstructed=1000,
)
LARGE = ("ingest", "reduce", "encode")

shares = st.floats(0.01, 1)
packings = st.builds(Packing, shares, shares, shares)
dtypes = st.sampled_from(["uint16", "int32", "float64"]).map(np.dtype)


@st.composite
def scans(draw, least=4, most=2_000_000):
    n = draw(st.integers(least, most))
    side = st.integers(128, 4000)
    return Scan(
        n_patterns=n,
        n_frames=draw(st.integers(n // 2, n)),
        frame_shape=(draw(side), draw(side)),
        dtype=draw(dtypes),
        source_bytes=draw(st.floats(1, 1e8)),
        header_bytes=draw(st.none() | st.floats(0, 1e8)),
        in_store=draw(st.booleans()),
    )


def stage(planned: Plan, name: str) -> Stage:
    return next(one for one in planned.stages if one.name == name)


@given(scans(), packings, st.booleans())
def test_blocks_cover_every_pattern_once_and_each_reads_a_frame_once(scan, packing, fused):
    planned = plan(scan, replace(WORK, fused=fused), packing)
    assert planned.block == block_size(scan.n_patterns)
    assert (planned.blocks - 1) * planned.block < scan.n_patterns <= planned.blocks * planned.block
    assert planned.block % planned.shard == 0
    names = [one.name for one in planned.stages]
    assert len(set(names)) == len(names)
    assert ("reduce" in names) != fused
    assert ("headers" in names) == (scan.header_bytes is not None)
    assert stage(planned, "ingest").read == pytest.approx(scan.n_frames * scan.source_bytes)
    # A block of reduced patterns is what one task of the encoder takes.
    assert stage(planned, "encode").tasks == planned.blocks
    assert stage(planned, "encode").read == pytest.approx(scan.n_patterns * 128 * 128 * packing.reduced)


@given(scans(), packings)
def test_nothing_takes_more_than_without_packing(scan, packing):
    found, most = plan(scan, WORK, packing), plan(scan, WORK, Packing())
    assert found.tasks == most.tasks
    for one, limit in zip(found.stages, most.stages, strict=True):
        assert (one.read, one.written, one.peak) <= (limit.read + 1, limit.written + 1, limit.peak)
        assert one.written <= limit.written + 1
        assert one.peak <= limit.peak


@given(scans(least=20_000, most=100_000), packings, st.integers(2, 50))
def test_memory_is_the_same_and_bytes_grow_in_proportion_for_a_scan_of_any_length(scan, packing, times):
    short = plan(scan, WORK, packing)
    long = plan(replace(scan, n_patterns=times * scan.n_patterns, n_frames=times * scan.n_frames), WORK, packing)
    assert [one.peak for one in long.stages] == [one.peak for one in short.stages]
    assert stage(long, "ingest").written == pytest.approx(times * stage(short, "ingest").written)
    per_thousand = sum(one.tasks for one in long.stages if one.name in LARGE) / long.n_patterns * 1000
    assert per_thousand <= 5


@given(scans(), packings)
def test_a_worker_holds_one_chunk_and_a_frame_however_large_a_shard_is(scan, packing):
    arrays = stage(plan(scan, WORK, packing), "ingest").peak - (
        WORKER_BASE_BYTES_WITH_TORCH if WORK.fused else WORKER_BASE_BYTES
    )
    chunk = max(TARGET_CHUNK_BYTES, scan.frame_bytes)
    one = 2 * scan.frame_bytes + 8 * scan.frame_shape[0] * scan.frame_shape[1]
    assert scan.frame_bytes + one <= arrays <= 3 * chunk + one + 20 * 2**20


@given(scans(), st.booleans())
def test_frames_that_are_not_stored_take_no_room(scan, reduced):
    without = store_bytes(replace(scan, in_store=False), Packing(), reduced=reduced)
    assert without == (scan.n_patterns * 128 * 128 if reduced else 0)
    with_frames = store_bytes(replace(scan, in_store=True), Packing(), reduced=reduced)
    assert with_frames - without == scan.n_frames * scan.frame_bytes


@given(scans(), st.floats(1e-4, 1), st.integers(1, 64))
def test_more_workers_are_never_slower_and_never_faster_than_their_number(scan, cost, workers):
    ingest = stage(plan(scan, WORK, Packing()), "ingest")
    alone, together = (ingest.seconds({"ingest": cost}, count) for count in (1, workers))
    assert alone == pytest.approx(scan.n_frames * cost)
    assert alone / workers * (1 - 1e-9) <= together <= alone * (1 + 1e-9)
    assert ingest.seconds({}, workers) == 0


@given(scans(), packings, st.integers(2**28, 2**36))
def test_a_worker_with_too_little_memory_is_refused_with_both_numbers(scan, packing, limit):
    planned = plan(scan, WORK, packing)
    need = max(one.peak for one in planned.stages)
    if need <= 0.95 * limit - 1:
        require_memory(planned, limit)
    elif need > 0.95 * limit:
        with pytest.raises(ConfigError, match=r"raise workers\.memory") as caught:
            require_memory(planned, limit)
        text = str(caught.value)
        assert f"{need / 2**30:.2f} GiB" in text
        assert f"{limit / 2**30:.2f} GiB" in text
        assert "\n" not in text


def test_a_huge_batch_is_what_is_to_be_lowered():
    scan = Scan(6000, 6000, (1043, 981), np.dtype("int32"), 4e6)
    with pytest.raises(ConfigError, match=r"'encode'.*encoder\.batch_size"):
        require_memory(plan(scan, replace(WORK, extractor_bytes=2**35), Packing()), 2**33)
