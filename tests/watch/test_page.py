import os
import re

import pytest

from laue_dask.watch.page import write_page

STATE = {
    "state": "scanning",
    "reason": "",
    "source": "/data/a <scan> µ",
    "scan_shape": [2, 3],
    "points": 6,
    "frames": 3,
    "backlog": 1,
    "skipped": 0,
    "unreadable": [{"file": "/data/" + os.fsdecode(b"scan_\xff.tif"), "reason": "truncated <TIFF>"}],
    "frames_per_s": 1.0,
    "latency_s": {"frames": 2, "p50": 1.0, "p95": 2.0, "max": 2.0},
    "quiet_s": 0.5,
    "k": 3,
    "suggestions": ["K = 3: scores of 60 patterns"],
    "alarms": [
        {"kind": "beam", "message": "dark & cold", "since": "2026-11-23T01:00:00", "until": "2026-11-23T01:01:00"},
        {"kind": "files", "message": "lasting", "since": "2026-11-23T01:00:30", "until": None},
        {"kind": "beam", "message": "dark again", "since": "2026-11-23T02:00:00", "until": "2026-11-23T02:01:00"},
    ],
    "store": {"patterns": 0},
    "updated": "2026-11-23T03:00:00",
}


@pytest.mark.parametrize("state", ["waiting", "scanning", "finishing", "finished", "failed"])
def test_page_says_what_lasts_first_and_loads_itself_again_until_it_is_over(tmp_path, state):
    (tmp_path / "a.png").write_bytes(b"png")
    maps = {"Labels": tmp_path / "a.png", "None": tmp_path / "b.png"}
    write_page({**STATE, "state": state}, maps, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert ('http-equiv="refresh"' in text) == (state not in ("finished", "failed"))
    assert re.findall("lasting|dark again|dark &amp; cold", text) == ["lasting", "dark again", "dark &amp; cold"]
    assert text.count("<img") == 1
    assert "truncated &lt;TIFF&gt;" in text
    assert "width: 50.0%" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
