import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass

import cloudpickle
import numpy as np
import pytest
from distributed import Event

from laue_dask.compute import run
from laue_dask.compute.cluster import Workers
from laue_dask.compute.local import GPU_RESOURCE
from laue_dask.config import Config, EncoderConfig, Recipe, ScanConfig
from laue_dask.errors import InputError, LaueDaskError
from laue_dask.features.encode import Network
from laue_dask.features.extractors import Extractor
from laue_dask.features.peaks import Peaks
from laue_dask.features.pixels import Pixels
from laue_dask.io import blocks
from laue_dask.io.journal import Journal
from laue_dask.io.receipts import Receipts
from laue_dask.io.results import ResultsWriter
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import folders, single_scan
from laue_dask.pipeline.reuse import Output
from laue_dask.pipeline.stages import extraction, ingest, reduction
from laue_dask.pipeline.stages.early_encoding import EarlyEncoder
from laue_dask.pipeline.stages.specimen import SpecimenMap
from laue_dask.runtime.progress import QuietProgress

# Workers cannot import a test module: what it defines travels with the tasks.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SHAPE = (7, 10)


class Stages(QuietProgress):
    """Names of the stages that had something to do."""

    def __init__(self):
        self.names = []

    @contextmanager
    def stage(self, name, **options):
        self.names.append(name)
        yield lambda count: None


@dataclass(frozen=True)
class Failing:
    """An extractor that cannot encode patterns of the second block."""

    of: Extractor
    name = "peaks"
    on_gpu = False
    learns = False

    @property
    def n_features(self):
        return self.of.n_features

    @property
    def digest(self):
        return self.of.digest

    def fit(self, sample, file):
        return self.of

    def extract(self, patterns, valid):
        if not valid.all():
            raise RuntimeError("this block cannot be encoded")
        return self.of.extract(patterns, valid)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """However busy the machine is, blocks that are in flight are waited for."""
    monkeypatch.setattr(run, "IN_FLIGHT_TIMEOUT_S", 600)
    monkeypatch.setattr(run, "RECEIPT_TIMEOUT_S", 600)


@pytest.fixture(params=["network", "peaks"])
def extractor(request):
    return extraction.extractor_of(EncoderConfig(extractor=request.param), Recipe())


def ingested(source, folder, workers, extractor, progress=None, recipe=None):
    """One pass over the frames, as a run makes it."""
    recipe, folder = recipe or Recipe(), folder.absolute()
    folder.mkdir(exist_ok=True)
    with EarlyEncoder(folder, extractor, workers) as ahead:
        return ingest.ingest(
            str(source),
            folder / "scan.zarr",
            ScanConfig(shape=SHAPE),
            recipe=recipe,
            ahead=ahead.unless(),
            workers=workers,
            progress=progress or QuietProgress(),
        )


def extracted(store, folder, workers, extractor, progress=None, recipe=None):
    """Features as a run ends up with them."""
    reduced = reduction.reduce_scan(store, recipe or Recipe(), workers=workers, progress=QuietProgress())
    writer = ResultsWriter(folder, {})
    where = SpecimenMap(store.valid, store.scan_shape)
    features = extraction.extract(
        reduced,
        where,
        extractor,
        writer,
        Output.of_key("k"),
        workers=workers,
        progress=progress or QuietProgress(),
    )
    return features.compute()


def receipts(folder):
    """Of the blocks of features that a run has begun with."""
    return Journal(folder / "results.zarr.part" / "features" / "journal.jsonl").read()


def in_turn(source, folder, workers, extractor):
    """Features that are made after all is ingested and reduced."""
    folder.mkdir()
    config = ScanConfig(shape=SHAPE)
    store = ingest.ingest(str(source), folder / "s.zarr", config, workers=workers, progress=QuietProgress())
    return extracted(store, folder, workers, extractor)


def test_one_pass_over_the_frames_leaves_the_same_features_and_no_block_to_encode(many, tmp_path, workers, extractor):
    passed, turn = Stages(), Stages()
    store = ingested(many, tmp_path / "run", workers, extractor, passed)
    assert sorted(receipts(tmp_path / "run")) == [0, 1, 2]
    ours = extracted(store, tmp_path / "run", workers, extractor, turn)
    assert (passed.names, turn.names) == (["ingest, reduce and encode"], [])
    theirs = in_turn(many, tmp_path / "turn", workers, extractor)
    assert ours.tobytes() == theirs.tobytes()
    assert np.isnan(ours[40]).all()
    assert np.isfinite(np.delete(ours, 40, axis=0)).all()


def test_one_pass_over_a_store_leaves_the_same_features_and_no_block_to_encode(many, tmp_path, workers, extractor):
    theirs = in_turn(many, tmp_path / "turn", workers, extractor)
    store, folder = ScanStore.open(tmp_path / "turn" / "s.zarr"), tmp_path / "run"
    other, passed, turn = Recipe(clip_sigma=3), Stages(), Stages()
    with EarlyEncoder(folder, extractor, workers) as ahead:
        reduction.reduce_scan(store, other, ahead=ahead.unless("k"), workers=workers, progress=passed)
    ours = extracted(store, folder, workers, extractor, turn, recipe=other)
    assert (passed.names, turn.names) == (["reduce and encode"], [])
    again = extracted(store, tmp_path / "again", workers, extractor, recipe=other)
    assert ours.tobytes() == again.tobytes()
    assert ours.tobytes() != theirs.tobytes()


def test_blocks_are_encoded_before_those_that_wait_are_reduced(many, tmp_path, workers, monkeypatch):
    """Dask must not hold them back while the workers have something to do: most would be left for the end."""
    monkeypatch.setattr(blocks, "SMALLEST_BLOCK", 1)
    config = ScanConfig(shape=SHAPE)
    store = ingest.ingest(str(many), tmp_path / "s.zarr", config, workers=workers, progress=QuietProgress())
    reduced = reduction.reduce_scan(store, Recipe(), workers=workers, progress=QuietProgress())
    made = [receipt for _, receipt in sorted(Journal.of(reduced).read().items())][:6]
    assert len(made) == 6

    def states(dask_scheduler, name):
        return [task.state for task in dask_scheduler.tasks.values() if name in task.prefix.name]

    def seen(name, count):
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            found = workers.client.run_on_scheduler(states, name=name)
            if len(found) >= count:
                return found
        raise TimeoutError(f"{len(found)} tasks {name}")

    go_on = Event(client=workers.client)
    busy = [workers.client.submit(Event.wait, go_on, pure=False) for _ in range(8)]
    seen("wait", 8)
    with EarlyEncoder(tmp_path / "run", Peaks(), workers) as ahead:
        for receipt in made:
            ahead.encode(reduced, receipt, store.valid[receipt["start"] : receipt["stop"]])
        there = seen("encode", 6)
        go_on.set()
        ahead.finish()
    assert set(there) == {"processing"}  # they are with workers, which take what matters most first
    assert len(receipts(tmp_path / "run")) == 6
    workers.client.gather(busy)


def test_features_of_other_patterns_are_not_taken_over(many, tmp_path, workers):
    folder, turn = tmp_path / "run", Stages()
    store = ingested(many, folder, workers, Peaks())
    other = Recipe(clip_sigma=3)
    ours = extracted(store, folder, workers, Peaks(), turn, recipe=other)
    assert turn.names == ["encode"]
    assert ours.tobytes() == extracted(store, tmp_path / "again", workers, Peaks(), recipe=other).tobytes()


def test_features_of_patterns_that_are_no_more_valid_are_not_taken_over(many, tmp_path, workers):
    folder = tmp_path / "run"
    store = ingested(many, folder, workers, Peaks())
    reduced, valid = store.reduced(Recipe().for_frames(store.frame_shape).digest()), store.valid
    valid[3] = False
    writer = ResultsWriter(folder, {})
    features = extraction.extract(
        reduced,
        SpecimenMap(valid, SHAPE),
        Peaks(),
        writer,
        Output.of_key("k"),
        workers=workers,
        progress=QuietProgress(),
    )
    kept = [block for block, receipt in receipts(folder).items() if "of" in receipt]
    assert sorted(kept) == [1, 2]
    assert set(receipts(folder)) == {0, 1, 2}
    assert features.shape == (70, Peaks().n_features)


def test_a_block_that_cannot_be_encoded_ahead_is_left_to_its_own_turn(many, tmp_path, workers):
    folder, turn = tmp_path / "run", Stages()
    store = ingested(many, folder, workers, Failing(Peaks()))
    assert sorted(receipts(folder)) == [0, 2]
    ours = extracted(store, folder, workers, Failing(Peaks()), turn)
    assert turn.names == ["encode"]
    assert ours.tobytes() == in_turn(many, tmp_path / "turn", workers, Peaks()).tobytes()


def test_nothing_waits_for_gpu_workers_that_are_not_there(many, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(run, "IN_FLIGHT_TIMEOUT_S", 0.01)
    folder = tmp_path / "run"
    network = Network.load(EncoderConfig(), Recipe())
    queued, gone = (
        Workers(client=workers.client, count=2, gpu=gpu, described="no GPU yet", waits_for_gpu=waits)
        for gpu, waits in ((lambda: pytest.fail("the ingest was held up"), lambda: True), (GPU_RESOURCE, lambda: False))
    )
    ingested(many, folder, queued, network).path.rename(tmp_path / "elsewhere")
    assert not (folder / "results.zarr.part").exists()
    store = ingested(many, folder, gone, network)
    assert not receipts(folder)
    extracted(store, folder, workers, network)
    assert sorted(receipts(folder)) == [0, 1, 2]


def test_a_killed_ingest_goes_on_and_keeps_what_was_encoded(many, tmp_path, workers, monkeypatch):
    def kill(self, *_):
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(ScanStore, "record", kill)
        with pytest.raises(KeyboardInterrupt):
            ingested(many, folder, workers, Peaks())
    before = receipts(folder)
    files = {path: path.stat().st_mtime_ns for path in (folder / "results.zarr.part").glob("features/c/*/0")}
    assert len(before) == len(files) == 3
    turn = Stages()
    extracted(ingested(many, folder, workers, Peaks()), folder, workers, Peaks(), turn)
    assert turn.names == []
    assert receipts(folder) == before
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_what_is_there_already_is_not_encoded_ahead(many, tmp_path, workers):
    folder = tmp_path / "run"

    def goes_ahead(key=None, extractor=None):
        return EarlyEncoder(folder, extractor or Peaks(), workers).unless(key) is not None

    assert goes_ahead()
    assert goes_ahead("k")
    assert not goes_ahead("k", Pixels())  # it learns from the whole scan
    store = ingested(many, folder, workers, Peaks())
    assert goes_ahead()  # begun, but nobody's yet
    assert goes_ahead("k", Network.load(EncoderConfig(), Recipe()))
    extracted(store, folder, workers, Peaks())
    assert not goes_ahead()
    assert not goes_ahead("another")  # it would be lost, and that stage may never come
    (folder / "results.zarr.part").rename(folder / "results.zarr")
    assert not goes_ahead()
    assert not goes_ahead("k")
    assert goes_ahead("another")


def test_what_was_begun_ahead_does_not_hide_what_is_finished(many, tmp_path, workers):
    folder, turn, other = tmp_path / "run", Stages(), Recipe(clip_sigma=3)
    store = ingested(many, folder, workers, Peaks())
    ours = extracted(store, folder, workers, Peaks())
    Receipts.of((folder / "results.zarr.part").rename(folder / "results.zarr"), ["zarr.json", "features"]).write()
    with EarlyEncoder(folder, Peaks(), workers) as ahead:
        reduction.reduce_scan(store, other, ahead=ahead.unless("b"), workers=workers, progress=QuietProgress())
    assert len(receipts(folder)) == 3
    assert extracted(store, folder, workers, Peaks(), turn).tobytes() == ours.tobytes()
    assert turn.names == []


def test_a_run_that_never_started_leaves_nothing_behind(many, tmp_path, workers):
    for path in many.iterdir():
        path.write_bytes(b"no image")
    good = many / "scan_7.tif"
    np.save(good, np.zeros(3))
    config = Config(scan=ScanConfig(shape=SHAPE), encoder=EncoderConfig(extractor="peaks"))
    with pytest.raises(InputError):
        single_scan.run(str(many), tmp_path / "run", config, command="t", progress=QuietProgress(), workers=workers)
    assert not list((tmp_path / "run").glob("*.zarr*"))


def test_a_folder_with_nothing_but_what_was_encoded_is_still_that_of_a_run(many, tmp_path, workers):
    ingested(many, tmp_path / "run", workers, Peaks()).path.rename(tmp_path / "elsewhere")
    folders.check_folder(tmp_path / "run")


def test_the_features_of_a_scan_too_small_are_removed_with_it(many, tmp_path, workers):
    for path in many.iterdir():
        if path.name not in ("scan_0.tif", "scan_1.tif", "scan_2.tif"):
            path.write_bytes(b"no image")
    config = Config(scan=ScanConfig(shape=SHAPE), encoder=EncoderConfig(extractor="peaks"))
    with pytest.raises(LaueDaskError, match="3 usable patterns"):
        single_scan.run(str(many), tmp_path / "run", config, command="t", progress=QuietProgress(), workers=workers)
    assert not list((tmp_path / "run").glob("*.zarr*"))
