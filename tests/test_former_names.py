"""Keys of the configuration that had other names: files of before are read, and what is hashed keeps its names."""

import logging

import pytest
import yaml

from laue_dask import config
from laue_dask.config import ClusteringConfig, Config, Recipe
from laue_dask.errors import ConfigError
from laue_dask.former_names import former, modern, todays
from laue_dask.nightly import config as nightly
from laue_dask.pipeline import keys

BEFORE = {
    "cluster": {"kind": "slurm", "workers": 3, "gpu_jobs": {"workers": 2}},
    "clustering": {"straddling": "share", "seed": 4},
    "recipe": {"white_quantile": 0.99},
}


def test_a_file_of_before_is_read_and_each_former_key_gets_a_line_with_its_new_name(tmp_path, caplog):
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(BEFORE))
    with caplog.at_level(logging.WARNING, "laue_dask"):
        found = config.load(path, {"workers": {"count": 5}})
    assert (found.workers.kind, found.workers.count, found.workers.gpu_jobs.count) == ("slurm", 5, 2)
    assert (found.clustering.mixed_points, found.recipe.saturation_quantile) == ("larger_share", 0.99)
    assert len(caplog.messages) == 5
    assert f"{path}: the key 'cluster' is called 'workers' now: write that instead" in caplog.messages
    assert (
        f"{path}: the key 'recipe.white_quantile' is called 'recipe.saturation_quantile' now: write that instead"
        in (caplog.messages)
    )


def test_what_a_run_recorded_is_read_without_a_word(caplog):
    with caplog.at_level(logging.WARNING, "laue_dask"):
        assert config.validate(BEFORE, "run.json").workers.count == 3
    assert not caplog.messages


@pytest.mark.parametrize(
    "both", [{"cluster": {}, "workers": {}}, {"recipe": {"white_quantile": 1, "saturation_quantile": 1}}]
)
def test_a_key_under_both_names_is_refused(both, tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump(both))
    with pytest.raises(ConfigError, match="under this name and under its former one"):
        config.load(path)


def test_an_unwritten_value_is_checked_under_its_new_name():
    with pytest.raises(ConfigError, match=r"workers\.count"):
        config.validate({"cluster": {"workers": 0}}, "options")


def test_nights_are_configured_as_before(tmp_path, caplog):
    path = tmp_path / "nightly.yaml"
    path.write_text(
        yaml.safe_dump(
            {"run": {"cluster": {"workers": 2}}, "special": [{"pattern": "*", "run": {"cluster": {"workers": 1}}}]}
        )
    )
    with caplog.at_level(logging.WARNING, "laue_dask"):
        found = nightly.load(path)
    assert found.run.workers.count == 2
    assert found.special[0].run == {"workers": {"count": 1}}
    assert any("special.0.run: the key 'cluster' is called 'workers' now" in text for text in caplog.messages)


def test_hashes_are_those_of_the_first_release():
    assert Recipe(version=1).digest() == "48a2da59d5af53d1"
    assert Recipe.model_validate({"white_quantile": 0.99}) == Recipe(saturation_quantile=0.99)
    stage = keys.segments("components", 3, ClusteringConfig())
    assert stage.key == "fd04ec8543f08e0b"
    assert stage.values["clustering.mixed_points"] == "larger_share"


def test_names_go_there_and_back():
    values = Config(clustering={"mixed_points": "estimator"}).model_dump(mode="json")
    assert modern(values) == (values, {})
    assert former("clustering", {"mixed_points": "larger_share", "seed": 0}) == {"straddling": "share", "seed": 0}
    assert todays("clustering.straddling", "share") == ("clustering.mixed_points", "larger_share")
    assert todays("clustering.seed", 3) == ("clustering.seed", 3)
