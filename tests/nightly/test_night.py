import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laue_dask.commands import main
from laue_dask.errors import BusyError, ConfigError, InputError
from laue_dask.io.lock import locked_folder
from laue_dask.nightly import night as nights
from laue_dask.nightly.config import NightlyConfig, load
from laue_dask.nightly.ledger import Ledger
from laue_dask.nightly.night import plan_night
from laue_dask.nightly.runs import NightRun
from laue_dask.nightly.scan_process import ProcessDiedError, ScanStoppedError

BAD = {"failed": "input", "reason": "none of 4 frames can be used"}
PASSING = {"failed": "compute", "reason": "no block finished"}


# What is run, in which order, and how often


def test_what_is_complete_is_run_once_in_the_order_of_recording(beamtime):
    beamtime.record("late", age=1000)
    beamtime.record("early", age=5000)
    beamtime.record("growing", age=1)
    assert beamtime.night() == 0
    assert beamtime.hand.jobs == ["early", "late"]
    assert beamtime.states == {"early": "done", "growing": "waiting", "late": "done"}
    assert beamtime.night() == 0
    assert beamtime.hand.jobs == ["early", "late"]


def test_more_frames_leave_no_finished_run_and_another_configuration_does(beamtime):
    beamtime.record("a")
    beamtime.night()
    beamtime.night(run={"clustering": {"k": [5]}})
    assert beamtime.times_run == {"a": 2}
    beamtime.record("a", count=6)
    beamtime.night(run={"clustering": {"k": [5]}})
    assert beamtime.times_run == {"a": 3}
    assert beamtime.hand.found == [False, True, False]
    assert beamtime.summary["scans"][0]["facts"]["n_patterns"] == 6


def test_other_workers_are_no_other_configuration(beamtime):
    beamtime.record("a")
    beamtime.night()
    beamtime.night(run={"workers": {"count": 1}})
    assert beamtime.times_run == {"a": 1}


def test_a_run_that_was_removed_by_hand_is_made_again(beamtime):
    beamtime.record("a")
    beamtime.night()
    shutil.rmtree(beamtime.out / "runs" / "a")
    beamtime.night()
    assert beamtime.times_run == {"a": 2}


def test_special_settings_apply_to_the_scans_they_are_for(beamtime):
    beamtime.record("a", "dark")
    beamtime.night(special=[{"pattern": "d*", "run": {"clustering": {"k": [7]}}}])
    found = {name: json.loads((beamtime.out / "runs" / name / "run.json").read_text()) for name in ("a", "dark")}
    assert found["a"]["config"]["clustering"]["k"] == []
    assert found["dark"]["config"]["clustering"]["k"] == [7]


def test_names_that_look_alike_as_one_part_of_a_path_have_runs_of_their_own(beamtime):
    beamtime.record("a/b", "a__b", "a/b__c", "a__b/c")
    assert beamtime.night() == 0
    assert len(list((beamtime.out / "runs").iterdir())) == 4


# Failures


def test_one_bad_scan_stops_nothing_and_comes_back_when_it_changes(beamtime):
    beamtime.record("a", "bad", "z")
    beamtime.hand.answers["bad"] = [BAD]
    assert beamtime.night() == 3
    assert beamtime.states == {"a": "done", "bad": "aside", "z": "done"}
    (row,) = [row for row in beamtime.summary["scans"] if row["status"] == "aside"]
    assert row["reason"] == BAD["reason"]
    assert "--again bad" in row["again"]
    assert beamtime.night() == 3
    assert beamtime.times_run["bad"] == 1
    beamtime.record("bad", count=5)
    assert beamtime.night() == 0
    assert beamtime.states["bad"] == "done"


def test_a_person_brings_a_scan_back_by_its_name(beamtime):
    beamtime.record("bad")
    beamtime.hand.answers["bad"] = [BAD]
    beamtime.night()
    assert beamtime.night(again=["bad"]) == 0
    with pytest.raises(InputError, match="no such scan"):
        beamtime.night(again=["nobody"])


@pytest.mark.parametrize("failure", [PASSING, ProcessDiedError("its process was killed")])
def test_a_passing_failure_is_tried_again_after_the_others_and_then_done(beamtime, failure):
    beamtime.record("a", age=5000)
    beamtime.record("z")
    beamtime.hand.answers["a"] = [failure, failure]
    assert beamtime.night() == 0
    assert beamtime.hand.jobs == ["a", "z", "a", "a"]


def test_a_failure_that_does_not_pass_is_set_aside_with_its_reason(beamtime):
    beamtime.record("a")
    beamtime.hand.answers["a"] = PASSING
    assert beamtime.night(retry={"attempts": 2}) == 3
    assert beamtime.times_run == {"a": 2}
    assert beamtime.reasons["a"] == "failed 2 times, at last: no block finished"
    beamtime.night(retry={"attempts": 2})
    assert beamtime.times_run == {"a": 2}


def test_weights_that_cannot_be_used_are_no_fault_of_the_scans(beamtime):
    beamtime.record("a")
    beamtime.hand.answers["a"] = [{"failed": "configuration", "reason": "w: there is no such weights file"}]
    with pytest.raises(ConfigError, match="no such weights"):
        beamtime.night()
    assert beamtime.summary["exit_code"] == 1
    assert beamtime.states == {"a": "left"}
    assert beamtime.night() == 0


def test_a_run_that_somebody_uses_waits(beamtime):
    beamtime.record("a", "b")
    beamtime.hand.answers["a"] = [{"failed": "busy", "reason": "in use"}]
    assert beamtime.night() == 0
    assert beamtime.states == {"a": "left", "b": "done"}
    beamtime.night()
    assert beamtime.states == {"a": "done", "b": "done"}


@pytest.mark.parametrize("sign", ["segmented_by", "evaluation"])
def test_what_was_worked_on_by_hand_is_never_removed(beamtime, sign):
    beamtime.record("a")
    beamtime.night()
    path = beamtime.out / "runs" / "a" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), sign: ["by hand"]}))
    beamtime.record("a", count=5)
    assert beamtime.night(keep={"runs_days": 0}) == 3
    assert "was changed by somebody else" in beamtime.reasons["a"]
    assert path.exists()


def test_a_folder_that_is_not_a_nights_is_left_alone(beamtime):
    beamtime.record("a")
    path = beamtime.out / "runs" / "a" / "mine.txt"
    path.parent.mkdir(parents=True)
    path.touch()
    assert beamtime.night() == 3
    assert path.exists()


# Limits


def test_no_scan_is_begun_that_would_fill_the_disk(beamtime, monkeypatch):
    beamtime.record("a")
    free = shutil.disk_usage(beamtime.path).free
    monkeypatch.setattr(nights, "REDUCED_BYTES_PER_PATTERN", 10 * free)
    assert beamtime.night() == 1
    assert beamtime.hand.jobs == []
    assert "a needs" in beamtime.summary["stopped"]
    assert "make room" in beamtime.summary["stopped"]
    monkeypatch.undo()
    assert beamtime.night() == 0


def test_a_disk_that_fills_up_ends_the_night_and_the_scan_goes_on_in_the_next(beamtime):
    beamtime.record("a", "b")
    beamtime.hand.answers["a"] = [{"failed": "space", "reason": "needs 3 GB"}]
    assert beamtime.night() == 1
    assert beamtime.states == {"a": "left", "b": "left"}
    assert beamtime.night() == 0
    assert beamtime.hand.jobs == ["a", "a", "b"]


def test_when_time_is_up_what_is_under_way_goes_on_next_night_before_the_others(beamtime):
    beamtime.record("a", "b", "c")
    beamtime.hand.answers["b"] = [ScanStoppedError("the time is up")]
    assert beamtime.night() == 0
    assert beamtime.summary["stopped"] == "the time is up"
    assert beamtime.states == {"a": "done", "b": "left", "c": "left"}
    beamtime.record("earlier", age=10**6)
    assert beamtime.night() == 0
    assert beamtime.hand.jobs == ["a", "b", "b", "earlier", "c"]


def test_a_night_that_is_interrupted_says_so_and_the_next_goes_on(beamtime):
    beamtime.record("a", "b")
    beamtime.hand.answers["a"] = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        beamtime.night()
    assert beamtime.summary["exit_code"] == 1
    assert beamtime.summary["stopped"] == "interrupted (KeyboardInterrupt)"
    assert beamtime.states == {"a": "left", "b": "left"}
    assert beamtime.night() == 0
    assert beamtime.hand.jobs == ["a", "a", "b"]


def test_after_its_end_a_night_begins_nothing(beamtime):
    beamtime.record("a")
    assert beamtime.night(limits={"hours": 1e-9}) == 0
    assert beamtime.hand.jobs == []
    assert beamtime.states == {"a": "left"}


def test_two_nights_do_not_share_a_folder(beamtime):
    beamtime.record("a")
    with locked_folder(beamtime.out, "another"), pytest.raises(BusyError, match="another"):
        beamtime.night()


def test_a_folder_holds_the_runs_of_one_beamtime(beamtime, tmp_path):
    beamtime.record("a")
    beamtime.night()
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="choose another"):
        nights.run_night(tmp_path / "other", beamtime.config(), scan_process=beamtime.hand)


# Retention, dry run, pages


def test_old_stores_and_runs_are_removed_by_rule_and_not_made_again(beamtime):
    beamtime.record("a")
    beamtime.night()
    run = beamtime.out / "runs" / "a"
    beamtime.night(keep={"stores_days": 0})
    assert not (run / "scan.zarr").exists()
    assert (run / "run.json").exists()
    beamtime.night(keep={"stores_days": 1, "runs_days": 1})
    assert run.exists()
    beamtime.night(keep={"runs_days": 0})
    assert not run.exists()
    assert beamtime.night() == 0
    assert beamtime.times_run == {"a": 1}
    assert "removed after" in beamtime.reasons["a"]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(beamtime):
    beamtime.record("a", "b")
    beamtime.record("c", count=2)
    text = "\n".join(plan_night(beamtime.root, beamtime.config()))
    assert not beamtime.out.exists()
    assert "run      a: 4 files" in text
    assert "waiting  c: 2 files, 0.0 MB, 2 of 4 frames" in text
    assert "2 to run" in text
    beamtime.night()
    text = "\n".join(plan_night(beamtime.root, beamtime.config(keep={"runs_days": 0})))
    assert "done     a" in text
    assert "0 to run" in text
    assert "remove " in text
    text = "\n".join(plan_night(beamtime.root, beamtime.config(), again=["a"]))
    assert "run      a: 4 files" in text
    assert "asked for again" in text
    assert "done     b" in text
    with pytest.raises(InputError, match="--again nope: there is no such scan"):
        list(plan_night(beamtime.root, beamtime.config(), again=["nope"]))
    assert beamtime.night() == 0
    assert beamtime.times_run == {"a": 1, "b": 1}


def test_page_summary_and_log_say_what_became_of_every_scan(beamtime):
    beamtime.record("good", "bad <b>")
    beamtime.record("short", count=1)
    beamtime.hand.answers["bad <b>"] = BAD
    beamtime.night()
    page = (beamtime.out / "index.html").read_text(encoding="utf-8")
    assert page.index("Set aside") < page.index("Done") < page.index("Waiting")
    assert "bad &lt;b&gt;" in page
    assert "<b>" not in page
    assert "1 of 4 frames" in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert beamtime.summary["counts"] == {"done": 1, "aside": 1, "waiting": 1, "left": 0, "gone": 0}
    log = (beamtime.out / "nightly.log").read_text().splitlines()
    assert len(log) == 3
    assert log == [f"{line[:24]}{said}" for line, said in zip(log, beamtime.said, strict=True)]


def test_names_of_scans_may_be_anything_that_a_disk_allows(beamtime, capfd):
    odd = [os.fsdecode(b"scan\xff"), "a b", "größe µ", "new\nline", 'quo\'te "x" <b>', os.fsdecode(b"\xe9/scan 1")]
    beamtime.record(*odd)
    beamtime.hand.answers[odd[2]] = [{"failed": "compute", "reason": f"{odd[0]} is gone"}]
    beamtime.hand.answers[odd[0]] = BAD
    planned = list(plan_night(beamtime.root, beamtime.config()))
    assert len(planned) == len(odd) + 1
    assert beamtime.night() == 3
    assert beamtime.states == {**dict.fromkeys(odd, "done"), odd[0]: "aside"}
    (beamtime.out / "runs" / odd[2] / "report.html").touch()
    NightRun(beamtime.out, odd[0]).log.touch()
    assert beamtime.night(again=[odd[0]]) == 3
    # A terminal and a log take every line, and a line is a line.
    for line in (*planned, *beamtime.said):
        assert line.encode().isascii() or "größe" in line
        assert "\n" not in line
    assert len((beamtime.out / "nightly.log").read_text(encoding="utf-8").splitlines()) == len(beamtime.said)
    assert "Traceback" not in capfd.readouterr().err
    page = (beamtime.out / "index.html").read_text(encoding="utf-8")
    assert "quo&#x27;te &quot;x&quot; &lt;b&gt;" in page
    assert 'href="runs/gr%C3%B6%C3%9Fe%20%C2%B5/report.html"' in page
    assert 'href="logs/scan%FF.log"' in page


def test_the_log_is_rotated(beamtime):
    for i in range(8):
        beamtime.record(f"s{i}")
        beamtime.night(log={"max_size": 150, "files": 2})
    assert len(list(beamtime.out.glob("nightly.log*"))) == 3


# The command


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{root}"], "the folder to write to is missing"),
        (["{root}/no", "--out", "{root}/out"], "is it mounted?"),
        (["{root}", "--out", "{root}/out", "--config", "{root}/no.yaml"], "cannot be read"),
        (["{root}", "--out", "{root}/out", "--again", "nobody"], "no such scan"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(beamtime, capsys, arguments, complaint):
    code = main.exit_code(["nightly", *(one.format(root=beamtime.root) for one in arguments)])
    told = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(told) == 1
    assert complaint in told[0]


def test_a_dry_run_and_the_configuration_are_printed(beamtime, capsys, tmp_path):
    beamtime.record("a")
    assert main.exit_code(["nightly", str(beamtime.root), "--out", str(beamtime.out), "--dry-run"]) == 0
    assert "run      a: 4 files" in capsys.readouterr().out
    assert main.exit_code(["config", "--nightly"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert load(tmp_path / "printed.yaml") == NightlyConfig()


# Kills


class Kill(BaseException):
    """The process ends here."""


@settings(max_examples=40)
@given(kills=st.lists(st.tuples(st.integers(0, 14), st.booleans()), max_size=8), data=st.data())
def test_killed_at_any_line_of_the_journal_nothing_is_lost_or_done_twice(make_beamtime, kills, data):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        beamtime = make_beamtime(Path(folder))
        beamtime.record("a", "b", "c", "bad")
        beamtime.hand.answers["bad"] = BAD
        beamtime.hand.answers["b"] = [PASSING]
        whole = Ledger.add
        for place, after in kills:
            count = 0

            def add(self, *args, **kwargs):
                nonlocal count
                count += 1
                if count - 1 == place and not after:  # noqa: B023
                    raise Kill
                state = whole(self, *args, **kwargs)
                if count - 1 == place:  # noqa: B023
                    raise Kill
                return state

            patch.setattr(Ledger, "add", add)
            try:
                beamtime.night()
            except Kill:
                journal = beamtime.out / "journal.jsonl"
                cut = data.draw(st.integers(0, 30))
                if not after and cut:  # the line that was being written
                    with journal.open("ab") as file:
                        file.write(b'\n{"scan":"a","event":"done","key":'[:cut])
        patch.setattr(Ledger, "add", whole)
        assert beamtime.night() == 3
        assert beamtime.states == {"a": "done", "b": "done", "bad": "aside", "c": "done"}
        # Once more at most for each kill, namely what was under way.
        assert beamtime.times_run.total() <= 5 + len(kills)
        assert beamtime.night() == 3
        assert beamtime.times_run.total() <= 5 + len(kills)


def test_a_run_that_ended_just_before_the_kill_is_not_made_again(beamtime, monkeypatch):
    beamtime.record("a")
    whole = Ledger.add

    def add(self, scan, event, **rest):
        if event == "done":
            raise Kill
        return whole(self, scan, event, **rest)

    monkeypatch.setattr(Ledger, "add", add)
    with pytest.raises(Kill):
        beamtime.night()
    monkeypatch.undo()
    assert beamtime.night() == 0
    assert beamtime.times_run == {"a": 1}
    assert beamtime.summary["scans"][0]["facts"]["n_patterns"] == 4


def test_a_scan_that_takes_the_night_down_lets_the_others_go_first(beamtime):
    beamtime.record("poison", age=9000)
    beamtime.record("a", "b")
    Ledger(beamtime.out, beamtime.root).add("poison", "begun", key=_key_of(beamtime, "poison"))
    beamtime.night()
    assert beamtime.hand.jobs == ["a", "b", "poison"]


def _key_of(beamtime, name):
    night = nights._Night(
        beamtime.root, beamtime.out, beamtime.config(), Ledger(beamtime.out, beamtime.root), print, None
    )
    return str(next(one.key for one in night.look() if one.scan.name == name))
