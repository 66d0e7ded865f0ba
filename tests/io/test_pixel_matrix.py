"""A seeded part of `scripts/pixel_matrix.py`: a cell is equal, refused as what it is, or set aside with the reason."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import pixel_matrix

CELLS = 240


@pytest.fixture(scope="module")
def counts():
    return pixel_matrix.run(CELLS, seed=18, only=[])


def test_no_pixel_of_any_kind_of_file_is_wrong(counts):
    assert counts.wrong == []


def test_every_outcome_of_every_readable_format_is_among_the_cells(counts):
    assert sum(sum(found.values()) for found in counts.outcomes.values()) == CELLS
    for name in ("TIFF", "EDF", "CBF"):
        assert set(counts.outcomes[name]) == {"equal", "refused", "set aside"}


def test_the_matrix_can_tell_a_wrong_pixel(tmp_path):
    cell = pixel_matrix.tiff_cell(np.random.default_rng(1))
    cell.cut = cell.damaged = False
    cell.refused, cell.witness = "", None
    cell.frames = [frame + 1 for frame in cell.frames]
    assert pixel_matrix.judge(cell, tmp_path).outcome == "WRONG"
