"""Fixtures of the stages."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Folder of 70 frames with a spot each, of which number 40 cannot be read: three blocks of patterns."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(70):
        image = np.random.default_rng(number).poisson(2, (140, 130)).astype(np.int32)
        image[0, 0] = 1000 + number
        image[30 + number, 50] = 500
        Image.fromarray(image).save(folder / f"scan_{number}.tif")
    (folder / "scan_40.tif").write_bytes(b"no image")
    return folder
