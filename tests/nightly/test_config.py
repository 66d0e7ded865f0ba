from datetime import datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.errors import ConfigError
from laue_dask.nightly.config import LimitsConfig, NightlyConfig, dump, ends_at, load

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "nightly.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_file_with_every_key_holds_the_defaults():
    path = REPOSITORY / "configs" / "nightly.yaml"
    assert load(path) == NightlyConfig()
    assert set(yaml.safe_load(path.read_text())) == set(NightlyConfig.model_fields)


def test_what_is_dumped_is_loaded_again(written):
    text = (
        "out: nights\nfind: {patterns: ['*/scan*'], min_size: 1.5MB}\nlimits: {until: '7:05', min_free: 3 TB}\n"
        "special: [{pattern: 'a/*', run: {scan: {shape: [3, 4]}}}]\nnotify: {command: [mail, -s, x]}\n"
    )
    found = load(written(text))
    assert (found.find.min_size, found.limits.min_free, found.limits.until) == (1_500_000, 3 * 10**12, "07:05")
    assert load(written(dump(found))) == found


def test_paths_are_relative_to_the_file(written):
    text = "out: nights\nrun: {encoder: {weights: w.safetensors}}\n"
    path = written(
        f"{text}special: [{{pattern: a, run: {{encoder: {{weights: s.safetensors}}, scan: {{order: snake}}}}}}]"
    )
    found = load(path)
    special = {"encoder": {"weights": str(path.parent / "s.safetensors")}, "scan": {"order": "snake"}}
    assert found.special[0].run == special
    assert found.out == path.parent / "nights"
    assert found.run.encoder.weights == str(path.parent / "w.safetensors")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("find: {pattern: x}", "unknown key 'find.pattern'"),
        ("find: {patterns: [/abs]}", "below the beamtime's folder"),
        ("find: {patterns: [a/../b]}", "below the beamtime's folder"),
        ("limits: {min_free: lots}", "such as 20GB"),
        ("limits: {until: '25:00'}", "time of day"),
        ("limits: {hours: 0}", "more than 0 was expected"),
        ("notify: {webhook: 'file:///etc/passwd'}", "http or https"),
        (
            "special: [{pattern: a, run: {clusterin: {}}}]",
            "special.0 ('a').run: unknown key 'clusterin': did you mean 'clustering'?",
        ),
        ("retry: {attempts: 0}", "at least 1 was expected"),
    ],
)
def test_an_impossible_value_is_one_line_that_names_it(written, text, complaint):
    with pytest.raises(ConfigError) as error:
        load(written(text))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_time_of_day_that_yaml_takes_for_a_number_is_understood(written):
    assert load(written("limits: {until: 19:30}")).limits.until == "19:30"


@given(
    began=st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),
    hour=st.integers(0, 23),
    minute=st.integers(0, 59),
    hours=st.none() | st.floats(0.01, 100),
)
def test_a_night_ends_at_the_next_such_time_or_after_its_hours(began, hour, minute, hours):
    end = ends_at(LimitsConfig(until=f"{hour:02d}:{minute:02d}", hours=hours), began)
    assert end > began
    assert (end - began).total_seconds() <= min(86400, 3600 * (hours or 24)) + 1e-3
    if hours is None:
        assert (end.hour, end.minute) == (hour, minute)


def test_a_night_without_limits_has_no_end():
    assert ends_at(LimitsConfig(), datetime(2026, 1, 1)) is None
