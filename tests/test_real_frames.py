"""Published frames of real detectors through ingest, reduction and encoder, and as scans too small to segment."""

import numpy as np
import pytest

from laue_dask.config import Recipe, ScanConfig
from laue_dask.features.inference import encode_block
from laue_dask.features.weights import digest
from laue_dask.io.frames import FrameRef, read_frame
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.stages.ingest import ingest
from laue_dask.pipeline.stages.reduction import reduce_scan
from laue_dask.runtime.progress import QuietProgress

LAUE = (
    "frames/als_1232/SiHyperlaueFinal_1_00001.tif",
    "frames/als_1232/SiHyperlaueFinal_1_00002.tif",
    "frames/esrf_bm32/nw1_0000.tif",
    "frames/esrf_bm32/nw1_0001.tif",
    "frames/esrf_bm32/Ge_blanc_0000.mccd",
    "frames/esrf_bm32/AH12_CMT_r14_0200.tif",
)
OTHERS = ("layouts/strain_0000.edf", "layouts/strain.hdf5")
"""Not Laue patterns, but layouts of files as beamlines write them."""

DETECTORS = {"als_1232": ((1043, 981), "int32"), "nw1": ((2018, 2016), "uint16"), "hdf5": ((512, 512), "uint16")}


@pytest.fixture(scope="module")
def stores(data_dir, tmp_path_factory, workers):
    """Scan store of each file, with its patterns reduced; made when it is asked for."""
    made = {}

    def store(name):
        if name not in made:
            out = tmp_path_factory.mktemp("real") / "scan.zarr"
            progress = QuietProgress()
            scan = ScanConfig(shape=(1, 2) if name.endswith("hdf5") else None)
            made[name] = ingest(str(data_dir / name), out, scan, workers=workers, progress=progress)
            reduce_scan(made[name], Recipe(), workers=workers, progress=progress)
        return made[name]

    return store


def reduced(store):
    return np.asarray(store.reduced(Recipe().for_frames(store.frame_shape).digest()))


@pytest.mark.parametrize("name", LAUE + OTHERS)
def test_every_real_frame_goes_through_ingest_without_loss(stores, data_dir, name):
    store = stores(name)
    assert store.valid.all()
    assert store.set_aside == []
    for part, (shape, dtype) in DETECTORS.items():
        if part in name:
            assert (store.frame_shape, store.dtype) == (shape, np.dtype(dtype))
    for pattern, source in enumerate(store.source):
        np.testing.assert_array_equal(store.read_frames(pattern, pattern + 1)[0], read_frame(FrameRef.parse(source)))
    assert store.n_patterns == (2 if name.endswith("hdf5") else 1)


@pytest.mark.parametrize("name", LAUE + OTHERS)
def test_every_real_frame_goes_through_the_encoder(stores, name):
    patterns = reduced(stores(name))
    assert patterns.shape[1:] == (128, 128)
    features = encode_block(
        patterns,
        np.ones(len(patterns), bool),
        weights_name="untrained",
        digest=digest("untrained"),
        batch_size=4,
        precision="float32",
    )
    assert features.shape == (len(patterns), 256)
    assert np.isfinite(features).all()
    assert features.std() > 0


@pytest.mark.parametrize("name", LAUE)
def test_reflections_are_bright_and_the_rest_is_dark(stores, name):
    share = (reduced(stores(name)) > 0.05 * 255).mean()
    assert 0.003 <= share <= 0.25
    assert reduced(stores(name)).max() == 255


@pytest.mark.parametrize("name", LAUE[:2])
def test_gaps_and_dead_pixels_of_a_pilatus_are_masked(stores, name):
    store = stores(name)
    frame, mask = store.read_frames(0, 1)[0], store.detector_mask
    assert mask[frame < 0].all()
    row, column = np.indices(mask.shape)
    gaps = (row % 212 >= 195) | (column % 494 >= 487)
    assert mask[gaps].all()
    assert 0.06 < mask.mean() < 0.09


@pytest.mark.parametrize("name", LAUE[2:])
def test_hardly_any_pixel_of_a_camera_is_masked(stores, name):
    assert stores(name).detector_mask.mean() < 0.3  # a round screen leaves its corners dark
    if "mccd" not in name:
        assert stores(name).detector_mask.mean() < 0.001


def test_stage_positions_are_kept(stores):
    positions = [stores(name).position[0] for name in LAUE if "nw1" in name]
    assert np.isfinite(positions).all()
    assert (positions[0] != positions[1]).any()


@pytest.mark.parametrize("pattern", ["frames/als_1232/*.tif", "frames/esrf_bm32/nw1_*.tif"])
def test_pair_of_frames_is_too_small_a_scan_to_segment(command, data_dir, tmp_path, pattern):
    outcome = command("run", data_dir / pattern, "--out", tmp_path / "run", "--weights", "untrained")
    assert outcome.code == 2
    [line] = outcome.err.splitlines()
    assert "2 usable patterns: a segmentation needs at least 4" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("pattern", "shape"), [("frames/als_1232/*.tif", (2, 1)), ("frames/esrf_bm32/nw1_*.tif", (1, 2))]
)
def test_pair_of_frames_is_ingested_as_a_scan(command, data_dir, tmp_path, pattern, shape):
    outcome = command("ingest", data_dir / pattern, tmp_path / "s.zarr", "--shape", *shape)
    assert outcome.code == 0, outcome.err
    store = ScanStore.open(tmp_path / "s.zarr")
    assert store.scan_shape == shape
    assert store.valid.all()
