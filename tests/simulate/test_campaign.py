import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import zarr

from laue_dask import schema
from laue_dask.config import Config
from laue_dask.errors import InputError
from laue_dask.io.frames import FrameRef, frame_info, read_frame
from laue_dask.runtime.progress import QuietProgress
from laue_dask.simulate import campaign
from laue_dask.simulate.detector import DETECTORS
from laue_dask.simulate.scan import acquired_point, frame
from laue_dask.simulate.specimens import specimen
from laue_dask.simulate.training import N_CONFIGURATIONS, N_VIEWS

SHAPE = (2, 3)
EACH = N_CONFIGURATIONS * N_VIEWS

pytestmark = pytest.mark.usefixtures("on_workers")


def scanned(folder, kind="twins", **changed):
    asked = {"shape": SHAPE, "seed": 4, "detector": "pilatus1m", "order": "raster", **changed}
    campaign.write_scan(kind, folder, config=Config(), progress=QuietProgress(), **asked)
    return sorted(folder.glob("*.tif"))


def stored(path, *, experiments=2, seed=3):
    campaign.write_training_store(
        path, experiments=experiments, seed=seed, binning=4, config=Config(), progress=QuietProgress()
    )
    return zarr.open_group(str(path), mode="r")


@pytest.fixture(scope="module")
def training_store(tmp_path_factory, workers):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign.cluster, "start", lambda config: nullcontext(workers))
        path = tmp_path_factory.mktemp("training") / "t.zarr"
        stored(path)
    return path


@pytest.mark.parametrize("order", ["raster", "snake"])
def test_every_frame_is_that_of_its_point_in_the_order_of_acquisition(tmp_path, order):
    files = scanned(tmp_path / "scan", order=order)
    made = specimen("twins", SHAPE, 4)
    assert [path.name for path in files] == [f"twins_{number:05d}.tif" for number in range(1, 7)]
    for number, path in enumerate(files):
        point = acquired_point(made, number, order=order)
        expected = frame(made, DETECTORS["pilatus1m"], point, seed=4)
        np.testing.assert_array_equal(read_frame(FrameRef(str(path))), expected)
        y, x = frame_info(FrameRef(str(path))).position
        assert (y, x) == pytest.approx((6000 + 5 * (point // 3), 6000 + 5 * (point % 3)))
    with np.load(tmp_path / "scan" / "truth.npz") as truth:
        np.testing.assert_array_equal(truth["domain"], made.domain)
    assert json.loads((tmp_path / "scan" / "simulation.json").read_text())["order"] == order


def test_frames_that_are_there_are_kept_and_missing_ones_added(tmp_path):
    files = scanned(tmp_path / "scan")
    content = files[2].read_bytes()
    files[2].unlink()
    kept = {path: path.stat().st_mtime_ns for path in files if path.exists()}
    assert scanned(tmp_path / "scan") == files
    assert files[2].read_bytes() == content
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize("changed", [{"seed": 5}, {"shape": (3, 2)}, {"order": "snake"}, {"kind": "grains"}])
def test_folder_of_another_simulation_is_refused_and_left_alone(tmp_path, changed):
    files = scanned(tmp_path / "scan")
    with pytest.raises(InputError, match="choose another folder"):
        scanned(tmp_path / "scan", **changed)
    assert sorted((tmp_path / "scan").glob("*.tif")) == files


@pytest.mark.parametrize("content", ["", "[", "{}", None])
def test_folder_with_a_damaged_record_is_refused(tmp_path, content):
    (tmp_path / "notes.txt").write_text("mine")
    if content is not None:
        (tmp_path / "simulation.json").write_text(content)
    with pytest.raises(InputError, match="choose another folder"):
        scanned(tmp_path)
    assert not list(tmp_path.glob("*.tif"))


def test_nothing_is_made_for_an_unknown_specimen_or_detector(tmp_path):
    with pytest.raises(InputError, match="sponge"):
        scanned(tmp_path / "scan", kind="sponge")
    with pytest.raises(InputError, match="polaroid"):
        scanned(tmp_path / "scan", detector="polaroid")
    assert not (tmp_path / "scan").exists()


def test_training_store_is_what_the_schema_says(training_store):
    group = zarr.open_group(str(training_store), mode="r")
    schema.check(group, schema.TRAINING)
    patterns = group["patterns"][:]
    assert patterns.shape == (2 * EACH, 128, 128)
    assert patterns.any(axis=(1, 2)).all()
    assert group["experiment"][:].tolist() == [0] * EACH + [1] * EACH
    # The views of a configuration are consecutive.
    configuration = group["configuration"][:].reshape(2, N_CONFIGURATIONS, N_VIEWS)
    assert (configuration == configuration[:, :, :1]).all()
    assert dict(group.attrs)["recipe"] == Config().recipe.model_dump(mode="json")
    assert not training_store.with_name("t.zarr.part").exists()


def test_killed_training_store_is_gone_on_with_to_the_same_bits(training_store, tmp_path):
    path = tmp_path / "t.zarr"
    partial = shutil.copytree(training_store, tmp_path / "t.zarr.part")
    group = zarr.open_group(str(partial), mode="r+")
    expected = group["patterns"][:]
    del group["patterns"].attrs["finished"]
    journal = partial / "patterns" / "journal.jsonl"
    journal.write_text("\n".join(line for line in journal.read_text().splitlines() if '"block":0' in line))
    group["patterns"][EACH:] = 0
    stored(path)
    assert (zarr.open_group(str(path), mode="r")["patterns"][:] == expected).all()
    assert not partial.exists()


def test_store_that_another_seed_left_unfinished_is_begun_anew(training_store, tmp_path):
    shutil.copytree(training_store, tmp_path / "t.zarr.part")
    group = stored(tmp_path / "t.zarr", experiments=1, seed=8)
    assert group.attrs["seed"] == 8
    assert group["patterns"].shape == (EACH, 128, 128)


def test_finished_training_store_is_not_overwritten(training_store):
    with pytest.raises(InputError, match="exists already"):
        stored(training_store)
