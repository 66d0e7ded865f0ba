import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from laue_dask import config
from laue_dask.config import Config, LocalWorkersConfig, Recipe
from laue_dask.errors import ConfigError, ExitCode, InputError

CHANGES = {
    "background_block": st.integers(4, 512),
    "clip_sigma": st.floats(0, 100),
    "softening_sigma": st.floats(1e-3, 1e4),
    "saturation_quantile": st.floats(0.501, 1),
    "substrate": st.sampled_from(["keep", "remove"]),
}


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "run.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@st.composite
def configs(draw):
    recipe = {name: draw(values) for name, values in CHANGES.items()}
    first, last = sorted(draw(st.tuples(st.integers(2, 50), st.integers(2, 50))))
    return Config.model_validate(
        {
            "scan": {"shape": draw(st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)))},
            "recipe": recipe,
            "encoder": {"weights": draw(st.sampled_from(["default", "untrained", "ärger/w 1.safetensors", "no", "1"]))},
            "pca": {"components": draw(st.integers(1, 256) | st.floats(0.01, 0.99))},
            "clustering": {"k": draw(st.lists(st.integers(2, 65536), max_size=3)), "score_k": (first, last)},
            "workers": {
                "scratch": draw(st.none() | st.just("/scratch/a b")),
                "memory": draw(st.none() | st.just("4GiB")),
            },
            "quality": draw(st.sampled_from(["all", "sample", "none"])),
        }
    )


@given(configs())
def test_what_is_dumped_is_loaded_again(wanted):
    assert config.validate(yaml.safe_load(config.dump(wanted)), "dump") == wanted


def test_a_dumped_file_is_loaded_again(written):
    wanted = config.load(None, {"encoder": {"weights": "Größe.safetensors"}, "clustering": {"k": [6, 12]}})
    assert config.load(written(config.dump(wanted))) == wanted


def test_no_file_gives_the_defaults():
    assert config.load(None) == Config()


def test_an_empty_file_gives_the_defaults(written):
    assert config.load(written("")) == Config()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("clusters: {}", "clusters"),
        ("recipe: {clip: 3}", "recipe.clip"),
        ("clustering: {seed: 1, K: [3]}", "clustering.K"),
        ("encoder: {precision: float32, device: cpu}", "encoder.device"),
    ],
)
def test_an_unknown_key_is_named_at_any_depth(written, text, key):
    path = written(text)
    with pytest.raises(ConfigError, match=rf"run\.yaml: unknown key '{key}'") as caught:
        config.load(path)
    assert "laue-dask config" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.sampled_from(["", "scan", "recipe", "encoder", "pca", "clustering", "workers"]),
    st.text(st.characters(categories=["L", "N"]), min_size=1).map("x_".__add__),
)
def test_any_unknown_key_is_refused_and_named(section, key):
    with pytest.raises(ConfigError) as caught:
        config.validate({section: {key: 1}} if section else {key: 1}, "options")
    assert f"unknown key '{section + '.' if section else ''}{key}'" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "key", "shown"),
    [
        ({"scan": {"shape": [0, 5]}}, "scan.shape", "0"),
        ({"scan": {"shape": [5]}}, "scan.shape", ""),
        ({"scan": {"order": "spiral"}}, "scan.order", "'spiral'"),
        ({"recipe": {"version": 3}}, "recipe.version", "3"),
        ({"recipe": {"background_block": 3}}, "recipe.background_block", "3"),
        ({"recipe": {"clip_sigma": float("nan")}}, "recipe.clip_sigma", "nan"),
        ({"recipe": {"softening_sigma": 0}}, "recipe.softening_sigma", "0"),
        ({"recipe": {"saturation_quantile": 1.5}}, "recipe.saturation_quantile", "1.5"),
        ({"encoder": {"batch_size": 0}}, "encoder.batch_size", "0"),
        ({"encoder": {"batch_size": "large"}}, "encoder.batch_size", "'large'"),
        ({"encoder": {"precision": "float16"}}, "encoder.precision", "'float16'"),
        ({"pca": {"components": 0}}, "pca.components", "0"),
        ({"pca": {"components": 1.0}}, "pca.components", "1.0"),
        ({"pca": {"components": 1.5}}, "pca.components", "1.5"),
        ({"pca": {"components": True}}, "pca.components", "True"),
        ({"clustering": {"k": [6, 1]}}, "clustering.k.1", "1"),
        ({"clustering": {"score_k": [9, 3]}}, "clustering", "9 is larger than last K 3"),
        ({"workers": {"count": 0}}, "workers.count", "0"),
        ({"workers": {"kind": "abacus"}}, "workers.kind", "'abacus'"),
        ({"quality": "some"}, "quality", "'some'"),
        ({"clustering": [1]}, "clustering", "[1]"),
    ],
)
def test_an_impossible_value_is_named_with_its_key(values, key, shown):
    with pytest.raises(ConfigError) as caught:
        config.load(None, values)
    message = str(caught.value)
    assert message.startswith(f"options: {key}")
    assert shown in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["- recipe", "3", "only words", "[recipe, scan]", "[]", "0", "false", "''"])
def test_yaml_that_is_not_a_mapping_is_refused(written, text):
    with pytest.raises(ConfigError, match=r"run\.yaml: a mapping of sections was expected"):
        config.load(written(text))


@pytest.mark.parametrize("text", ["recipe: {clip_sigma: 4", "a: b: c", "\t- x", "recipe: &a\n  x: *b"])
def test_what_is_not_yaml_is_refused_in_one_line(written, text):
    with pytest.raises(ConfigError, match=r"run\.yaml: not valid YAML") as caught:
        config.load(written(text))
    assert "\n" not in str(caught.value)


def test_brackets_nested_too_deeply_are_refused(written):
    with pytest.raises(ConfigError, match="nested too deeply"):
        config.load(written("[" * 3000))


def test_a_byte_order_mark_is_no_part_of_the_first_key(written):
    assert config.load(written("\ufeffquality: none")).quality == "none"


def test_what_is_not_utf8_is_refused(written):
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        config.load(written("encoder: {weights: Größe}".encode("latin-1")))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: configuration cannot be read: No such file"):
        config.load(tmp_path / "absent.yaml")


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory"):
        config.load(tmp_path)


def test_overrides_win_and_leave_the_rest_of_their_section(written):
    path = written("clustering: {seed: 7, n_init: 3}\nquality: none\n")
    found = config.load(path, {"clustering": {"seed": 8}, "workers": {"count": 2}})
    assert (found.clustering.seed, found.clustering.n_init) == (8, 3)
    assert (found.quality, found.workers.count) == ("none", 2)


def test_an_empty_section_takes_overrides(written):
    assert config.load(written("clustering: {}"), {"clustering": {"seed": 8}}).clustering.seed == 8


@pytest.mark.parametrize("tag", ["python/object/apply:os.mkdir", "python/object/new:os.mkdir", "python/name:os.mkdir"])
def test_python_tags_are_refused_and_nothing_is_executed(written, tmp_path, tag):
    made = tmp_path / "made-by-yaml"
    path = written(f"encoder: {{weights: !!{tag} ['{made}']}}")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(path)
    assert not made.exists()


@given(st.data())
def test_the_digest_differs_when_any_field_of_the_recipe_differs(data):
    base = {name: data.draw(values) for name, values in CHANGES.items()}
    name = data.draw(st.sampled_from(sorted(CHANGES)))
    other = {**base, name: data.draw(CHANGES[name].filter(lambda value: value != base[name]))}
    assert Recipe(**base).digest() != Recipe(**other).digest()
    assert Recipe(**base).digest() == Recipe(**dict(reversed(base.items()))).digest()


def test_every_field_of_the_recipe_can_be_changed_but_its_version():
    assert set(CHANGES) | {"version"} == set(Recipe.model_fields)


def test_a_model_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        LocalWorkersConfig().count = 3


def test_a_configuration_error_is_bad_input():
    assert issubclass(ConfigError, InputError)
    assert ConfigError.exit_code is ExitCode.BAD_INPUT


@pytest.mark.parametrize(
    ("written_as", "seconds"),
    [
        ("'08:00:00'", 28800),
        ("08:00:00", 28800),
        ("12:00:00", 43200),  # YAML itself takes this one for a number to the base of 60
        ("1-12:00:00", 129600),
        ("'100:00:00'", 360000),
        ("90min", 5400),
        ("8 h", 28800),
        ("1.5h", 5400),
        ("2d", 172800),
        ("3600", 3600),
    ],
)
def test_a_walltime_can_be_written_as_batch_systems_write_it(written, written_as, seconds):
    found = config.load(written(f"workers: {{kind: slurm, walltime: {written_as}}}"))
    assert found.workers.walltime == seconds
    assert config.validate(yaml.safe_load(config.dump(found)), "again") == found


@pytest.mark.parametrize("text", ["08:00", "soon", "8 hours", "-1h", "0", "08:00:00:00", "1.5", "8h30"])
def test_a_walltime_that_could_mean_something_else_is_refused(written, text):
    with pytest.raises(ConfigError, match=r"workers\.walltime = "):
        config.load(written(f"workers: {{kind: pbs, walltime: '{text}'}}"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "slurm", "walltme": "8h"}, "unknown key 'workers.walltme'"),
        ({"kind": "local", "walltime": "8h"}, "unknown key 'workers.walltime'"),
        ({"kind": "slurm", "workers": 0}, "count = 0 and no gpu_jobs"),
        ({"kind": "slurm", "gpu_jobs": {"gpus": 0}}, "leave gpu_jobs out"),
        ({"kind": "slurm", "gpu_jobs": {"memory": 4}}, "workers.gpu_jobs.memory = 4"),
        ({"kind": "scheduler"}, "give either address or file"),
        ({"kind": "scheduler", "address": "tls://a:1", "file": "s.json"}, "give either address or file"),
        ({"kind": "slurm", "security": "off"}, "workers.security = 'off'"),
        ({"kind": ["slurm"]}, "local, slurm, pbs, lsf, sge or scheduler was expected"),
        ({"kind": None}, "local, slurm, pbs, lsf, sge or scheduler was expected"),
    ],
)
def test_a_cluster_is_checked_by_its_kind(values, message):
    with pytest.raises(ConfigError) as caught:
        config.load(None, {"workers": values})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
