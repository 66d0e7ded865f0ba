import logging

import numpy as np
import pytest

from laue_dask.api.options import as_typed, configured, k_values, keeping_log_levels, overrides, progress_of
from laue_dask.config import Config, dump
from laue_dask.errors import ConfigError
from laue_dask.runtime.progress import QuietProgress


@pytest.mark.parametrize("k", [6, (6,), [6], np.array([6]), np.int64(6), iter([6])])
def test_numbers_of_clusters_are_taken_as_people_give_them(k):
    assert k_values(k) == (6,)


@pytest.mark.parametrize("k", ["6", 6.0, [6, 12.5], None, object()])
def test_what_is_no_number_of_clusters_is_refused_in_one_line(k):
    with pytest.raises(ConfigError, match=r"k = .*was expected"):
        k_values(k)


def test_keywords_win_over_a_file_a_dictionary_and_a_configuration(tmp_path):
    base = Config(clustering={"k": (5,), "seed": 3})
    file = tmp_path / "config.yaml"
    file.write_text(dump(base))
    given = overrides(k=(6,), order=None, workers=2)
    for config in (base, file, str(file), {"clustering": {"k": [5], "seed": 3}}):
        found = configured(config, given)
        assert (found.clustering.k, found.clustering.seed, found.workers.count) == ((6,), 3, 2)
    assert configured(base, {}) is base


def test_no_keyword_leaves_a_key_of_the_configuration_as_it_is():
    assert overrides(k=(), shape=None, insist=None, store_frames=None) == {}
    assert overrides(insist=False, store_frames=False) == {"scan": {"insist": False, "store_frames": False}}


@pytest.mark.parametrize("rows", ["2:10", (2, 10), slice(2, 10)])
def test_a_part_of_the_scan_is_given_in_three_ways(rows):
    assert configured(None, overrides(rows=rows)).scan.rows == (2, 10)


def test_a_part_with_a_step_is_refused():
    with pytest.raises(ConfigError, match=r"rows = slice\(0, 10, 2\): a step is given by `every`"):
        overrides(rows=slice(0, 10, 2))


@pytest.mark.parametrize(
    ("config", "words"),
    [({"clustring": {}}, "clustering"), ({"pca": {"components": "x"}}, "pca.components"), (3, "Config, the path")],
)
def test_a_wrong_configuration_is_refused_by_its_key(config, words):
    with pytest.raises(ConfigError, match=words):
        configured(config, {})


def test_the_record_says_the_call_without_what_was_not_given(tmp_path):
    said = as_typed("run", "frames", tmp_path, k=(6,), shape=None, again=False, config={"quality": "none"})
    assert said == f"laue_dask.run('frames', '{tmp_path}', k=(6,), config={{'quality': 'none'}})"


def test_loggers_are_left_as_the_caller_has_them():
    logger = logging.getLogger("distributed")
    before = logger.level
    with keeping_log_levels():
        logger.setLevel(logging.CRITICAL)
    assert logger.level == before


def test_progress_can_be_left_out():
    assert isinstance(progress_of(False), QuietProgress)
    own = QuietProgress()
    assert progress_of(own) is own
    assert progress_of(None) is not None
