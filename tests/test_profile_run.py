"""`scripts/profile_run.py`: the table of the stages, now and before."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import profile_run


def test_the_table_has_medians_and_ratios_and_stages_that_one_version_lacks(capsys):
    before = [{"encode": seconds, "all": 10.0} for seconds in (4.0, 6.0, 5.0)]
    profile_run.show({"old": before, "now": [{"look": 1.0, "encode": 2.0, "all": 8.0}]})
    assert capsys.readouterr().out.splitlines() == [
        "| s | old | now | ratio |",
        "|---|---|---|---|",
        "| look | 0.00 | 1.00 |  |",
        "| encode | 5.00 | 2.00 | 2.50 × |",
        "| all | 10.00 | 8.00 | 1.25 × |",
    ]


def test_one_version_alone_has_no_ratio(capsys):
    profile_run.show({"now": [{"all": 8.0}]})
    assert capsys.readouterr().out.splitlines() == ["| s | now |", "|---|---|", "| all | 8.00 |"]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--frames", "0", "--frames 0: a multiple of 32 was expected"),
        ("--frames", "100", "--frames 100: a multiple of 32 was expected"),
        ("--turns", "0", "--turns 0: one or more was expected"),
        ("--before", "no-such-commit", "--before no-such-commit: fatal: not a valid object name: no-such-commit"),
    ],
)
def test_what_cannot_be_measured_is_refused(option, value, expected, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["profile_run.py", option, value])
    with pytest.raises(SystemExit, match="2"):
        profile_run.main()
    assert expected in capsys.readouterr().err
