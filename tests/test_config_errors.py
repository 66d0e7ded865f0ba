"""Wrong configurations end in one plain sentence that names the key, the value and what was expected."""

import pytest
import yaml

from laue_dask.config import Config, load, validate
from laue_dask.config_errors import shown
from laue_dask.errors import ConfigError

WRONG = [
    ("clusterin: {k: [4]}", "unknown key 'clusterin': did you mean 'clustering'?"),
    ("clustering: {kk: [4]}", "unknown key 'clustering.kk': did you mean 'clustering.k'?"),
    ("k: [4]", "unknown key 'k': did you mean 'clustering.k'?"),
    ("workers: {kind: slurm, gpu_jobs: {memori: 3}}", "did you mean 'workers.gpu_jobs.memory'?"),
    ("zzzzzz: 1", "unknown key 'zzzzzz': `laue-dask config` prints every key with its default"),
    ("clustering: {k: 6 12}", "clustering.k = '6 12': numbers of clusters such as [6, 12] were expected"),
    ("clustering: {k: [1]}", "clustering.k.0 = 1: at least 2 was expected"),
    ("scan: {shape: 4 by 6}", "scan.shape = '4 by 6': two numbers of points such as [4, 6] were expected"),
    ("scan: {shape: [4]}", "scan.shape = [4]: two numbers of points such as [4, 6] were expected"),
    ("scan: foo", "scan = 'foo': a section of keys was expected"),
    ("scan: {store_frames: maybe}", "scan.store_frames = 'maybe': true or false was expected"),
    ("pca: {components: foo}", "pca.components = 'foo': a number of components such as 32, or a share"),
    ("pca: {components: 1.5}", "pca.components = 1.5: a number of components such as 32, or a share"),
    ("clustering: {estimator: kmean}", "kmeans, bgm, gmm, hdbscan or mean_shift was expected: did you mean kmeans?"),
    ("workers: {kind: slurmm}", "scheduler was expected: did you mean slurm?"),
    ("encoder: {batch_size: huge}", "encoder.batch_size = 'huge': a whole number or auto was expected"),
    ("recipe: {clip_sigma: .nan}", "recipe.clip_sigma = nan: a finite number was expected"),
    ("clustering: {sample: 1000.5}", "clustering.sample = 1000.5: a whole number was expected"),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_a_wrong_configuration_is_said_in_plain_words(text, said):
    with pytest.raises(ConfigError) as caught:
        load(None, yaml.safe_load(text))
    message = str(caught.value)
    assert said in message
    assert "Input should" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("scan:", "{}"),
        ("scan:\nclustering:\npca:\nworkers:\n", "{}"),
        ("clustering: {k: 12}", "clustering: {k: [12]}"),
        ("scan: {shape: 4 x 6}", "scan: {shape: [4, 6]}"),
        ("scan: {shape: 4×6}", "scan: {shape: [4, 6]}"),
        ("scan: {shape: '4, 6'}", "scan: {shape: [4, 6]}"),
    ],
)
def test_what_people_write_is_understood(text, same):
    assert load(None, yaml.safe_load(text)) == load(None, yaml.safe_load(same))


def test_a_configuration_is_read_back_as_it_is_written():
    config = validate({"scan": {"shape": "4 x 6"}, "clustering": {"k": 12}}, "test")
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_a_long_value_is_shortened_to_one_line():
    assert len(shown("x\n" * 5000)) < 250
    assert "\n" not in shown("x\n" * 5000)
