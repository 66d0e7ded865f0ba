"""Generated scans: every frame at its own place, or a refusal in one line."""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import generate_scans

SEED = 20261201
BATCHES, BATCH = 8, 25


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_frame_of_a_generated_scan_is_silently_at_a_wrong_place(tmp_path, batch):
    found = Counter()
    for number in range(batch * BATCH, (batch + 1) * BATCH):
        folder = tmp_path / f"s{number}x"
        folder.mkdir()
        scan, verdict = generate_scans.check(number, SEED, folder)
        assert verdict.kind != "wrong", f"{number}: {verdict.text}: {scan.kinds} {scan.options}"
        found[verdict.kind, bool(scan.unknowable)] += 1
    assert found["right", False] + found["right", True] > BATCH / 3
    assert found["refused", False] <= 2


def test_a_verdict_can_be_wrong(tmp_path):
    for number in range(100):
        folder = tmp_path / str(number)
        folder.mkdir()
        scan, verdict = generate_scans.check(number, SEED, folder)
        if verdict.kind == "right" and len(scan.truth) > 8:
            break
    one, other = list(scan.truth)[2:4]
    scan.truth[one], scan.truth[other] = scan.truth[other], scan.truth[one]
    assert generate_scans.judge(scan, folder).kind == "wrong"
    del scan.truth[one]
    assert generate_scans.judge(scan, folder).kind == "wrong"
