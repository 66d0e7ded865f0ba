import numpy as np
import pytest

from laue_dask import schema
from laue_dask.io.geometry import resolve_grid
from laue_dask.io.packed_size import pack
from laue_dask.io.scan_store import ScanStore


@pytest.mark.parametrize("values", ["zeros", "counts", "noise"])
def test_a_part_of_the_frames_packs_as_a_store_of_them_does(tmp_path, values):
    rng = np.random.default_rng(1)
    frames = {
        "zeros": np.zeros((64, 300, 280), np.uint16),
        "counts": rng.poisson(3, (64, 300, 280)).astype(np.uint16),
        "noise": rng.integers(0, 2**16, (64, 300, 280), dtype=np.uint16),
    }[values]
    store = ScanStore.create(
        tmp_path / "s.zarr",
        grid=resolve_grid(64, shape=(8, 8)),
        frame_shape=frames.shape[1:],
        dtype=frames.dtype,
        detector=None,
        pixel_size_um=None,
        provenance={},
    )
    for start in range(0, 64, store.shard_frames):
        store.write_frames(start, frames[start : start + store.shard_frames])
    written = sum(
        file.stat().st_size for file in (tmp_path / "s.zarr.part" / "frames" / "c").rglob("*") if file.is_file()
    )
    share, seconds = pack(frames[::8], schema.SCAN["frames"])
    assert share * frames.nbytes == pytest.approx(written, rel=0.02)
    assert seconds > 0
