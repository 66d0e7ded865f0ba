import contextlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from laue_dask.config import Recipe
from laue_dask.errors import StoreError
from laue_dask.features import weights
from laue_dask.features.architecture import ARCHITECTURES, Architecture
from laue_dask.features.network import build
from laue_dask.features.weights import Card

TINY = Architecture(name="tiny", channels=(4, 8, 8, 8, 8), latent=16, batch_norm=True)
CARD = Card(
    architecture=TINY,
    recipe=Recipe(clip_sigma=3.5),
    training={"command": "laue-dask train … --out übung", "stores": [{"seed": 1}], "epochs": 3},
    metrics={"validation_bce": 0.1 + 0.2, "validation_mse": 1e-17},
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights.save(build(TINY, seed=4), path, CARD)
    return path


def refused(path, **options):
    """The one-line message with which a weights file is refused."""
    with pytest.raises(StoreError) as caught:
        weights.load(str(path), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def rewrite(path, target, *, change):
    """A copy of a weights file with another card (any text, ``None`` for none)."""
    state = load_file(path)
    card = change(json.loads(CARD.model_dump_json()))
    save_file(state, target, metadata=None if card is None else {"card": card})
    return target


def header_of(path):
    """Header of a safetensors file."""
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def test_tensors_and_card_are_the_same_bits_after_a_round_trip(saved):
    model, card = weights.load(str(saved))
    wanted = build(TINY, seed=4).state_dict()
    found = model.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert card == CARD
    assert weights.read_card(saved) == CARD
    assert not model.training


def test_saving_twice_gives_the_same_file(saved, tmp_path):
    weights.save(weights.load(str(saved))[0], tmp_path / "again.safetensors", CARD)
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_channels_last_weights_are_saved_as_any_others(saved, tmp_path):
    model = build(TINY, seed=4).to(memory_format=torch.channels_last)
    weights.save(model, tmp_path / "w.safetensors", CARD)
    assert (tmp_path / "w.safetensors").read_bytes() == saved.read_bytes()


def test_a_save_that_fails_leaves_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(saved.read_bytes())

    def half(target, content):
        with target.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="disk full"):
        weights.save(build(TINY, seed=5), path, CARD)
    assert path.read_bytes() == saved.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_missing_file_says_what_may_be_given(tmp_path):
    assert "there is no such weights file" in refused(tmp_path / "absent.safetensors")
    assert "`untrained`" in refused(tmp_path)


def test_missing_default_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "DEFAULT_WEIGHTS_FILE", tmp_path / "default.safetensors")
    with pytest.raises(StoreError, match=r"default\.safetensors: there is no such weights file"):
        weights.digest("default")


@settings(max_examples=30)
@given(data=st.data())
def test_a_truncated_file_is_refused(saved, tmp_path_factory, data):
    content = saved.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    kept = data.draw(st.integers(0, header + 64) | st.integers(0, len(content) - 1))
    path = tmp_path_factory.mktemp("truncated") / "w.safetensors"
    path.write_bytes(content[:kept])
    assert "not a safetensors file" in refused(path)


@settings(max_examples=20)
@given(garbage=st.binary(max_size=300))
def test_garbage_is_refused(tmp_path_factory, garbage):
    path = tmp_path_factory.mktemp("garbage") / "w.safetensors"
    path.write_bytes(garbage)
    assert "not a safetensors file" in refused(path)


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_header_is_refused_or_harmless(saved, tmp_path_factory, data):
    content = bytearray(saved.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "w.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(StoreError):
        assert weights.load(str(path))[0].architecture.latent == TINY.latent


def test_a_pickle_with_a_safetensors_name_is_refused_and_not_unpickled(tmp_path):
    made = tmp_path / "made-by-pickle"

    class Exploit:
        def __reduce__(self):
            return (type(made).mkdir, (made,))

    path = tmp_path / "w.safetensors"
    torch.save({"weights": Exploit()}, path)
    assert "not a safetensors file" in refused(path)
    assert not made.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda card: None,
        lambda card: "",
        lambda card: "no JSON",
        lambda card: "[]",
        lambda card: "[" * 100_000,
        lambda card: json.dumps({**card, "architecture": {**card["architecture"], "heads": 4}}),
        lambda card: json.dumps({**card, "architecture": {**card["architecture"], "channels": [4] * 8}}),
        lambda card: json.dumps({**card, "architecture": {**card["architecture"], "channels": []}}),
        lambda card: json.dumps({**card, "recipe": {**card["recipe"], "version": 3}}),
        lambda card: json.dumps({"recipe": card["recipe"]}),
    ],
    ids=["none", "empty", "text", "list", "deep", "unknown key", "poolings", "no layer", "other recipe", "incomplete"],
)
def test_a_file_without_a_card_that_can_be_read_is_refused(saved, tmp_path, change):
    path = rewrite(saved, tmp_path / "w.safetensors", change=change)
    assert "its card cannot be read by this laue-dask" in refused(path)


@pytest.mark.parametrize(
    "values",
    [{"latent": 8}, {"channels": [4, 8, 8, 8]}, {"channels": [4, 8, 8, 8, 16]}, {"batch_norm": False}],
    ids=str,
)
def test_tensors_of_another_architecture_are_refused(saved, tmp_path, values):
    path = tmp_path / "w.safetensors"
    other = CARD.model_copy(
        update={
            "architecture": TINY.model_copy(
                update={k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            )
        }
    )
    path.write_bytes(weights._packed(load_file(saved), other))
    assert "tensors do not fit the architecture of the card" in refused(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("background_block", 48), ("clip_sigma", 4.0), ("softening_sigma", 9.0), ("saturation_quantile", 0.99)],
)
def test_a_recipe_that_differs_is_refused_with_the_field_and_both_values(saved, field, value):
    ours = CARD.recipe.model_copy(update={field: value})
    message = refused(saved, recipe=ours)
    theirs = getattr(CARD.recipe, field)
    assert re.search(rf"recipe\.{field} = {theirs}, but this run has {value}:", message)


def test_the_substrate_may_be_removed_where_the_weights_kept_it(saved):
    ours = CARD.recipe.model_copy(update={"substrate": "remove"})
    assert weights.load(str(saved), recipe=ours)[1] == CARD
    assert weights.load(str(saved), recipe=CARD.recipe)[1] == CARD


def test_more_of_a_frame_may_be_looked_at_than_the_weights_were_trained_on(saved):
    for version in (1, 2):
        ours = CARD.recipe.model_copy(update={"version": version})
        assert weights.load(str(saved), recipe=ours)[1] == CARD


def test_untrained_weights_are_random_of_a_fixed_seed_and_take_any_recipe():
    recipe = Recipe(clip_sigma=7)
    one, card = weights.load("untrained", recipe=recipe)
    other, _ = weights.load("untrained")
    assert card.recipe == recipe
    assert card.architecture == ARCHITECTURES["contrastive"]
    assert not card.training
    assert not one.training
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert np.std([float(p.detach().std()) for p in one.parameters() if p.ndim == 4]) > 0


@settings(max_examples=20)
@given(data=st.data())
def test_the_digest_changes_with_any_byte_of_the_file(saved, tmp_path_factory, data):
    content = bytearray(saved.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("digest") / "w.safetensors"
    path.write_bytes(content)
    assert weights.digest(str(path)) != weights.digest(str(saved)) != weights.digest("untrained")
    assert len(weights.digest(str(path))) == 16


ROWS = [{"scan": "bent", "features": "encoder", "ari": 0.1 + 0.2, "k": 7, "note": None}]


def test_annotating_changes_the_card_alone(saved, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(saved.read_bytes())
    card = weights.annotate(path, benchmark=ROWS, reference={"error_q50": 0.25})
    assert card.benchmark == ROWS
    assert (
        weights.read_card(path) == card == CARD.model_copy(update={"benchmark": ROWS, "reference": {"error_q50": 0.25}})
    )
    assert weights.annotate(path, benchmark=[]).reference == {"error_q50": 0.25}

    def data(path):
        content = path.read_bytes()
        return content[8 + int.from_bytes(content[:8], "little") :]

    assert data(path) == data(saved)
    assert all(torch.equal(tensor, load_file(saved)[name]) for name, tensor in load_file(path).items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1], {"a": 1}])
def test_a_benchmark_of_no_plain_values_is_refused_and_the_file_stays(saved, tmp_path, value):
    path = tmp_path / "w.safetensors"
    path.write_bytes(saved.read_bytes())
    with pytest.raises(StoreError, match=r"card not changed: benchmark\.0") as caught:
        weights.annotate(path, benchmark=[{"ari": value}])
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == saved.read_bytes()


def test_the_card_of_older_weights_is_read(saved, tmp_path):
    new = ("data", "seeds", "reference", "benchmark")

    def change(card):
        known = {name: value for name, value in card.items() if name not in new}
        for name in ("sketch_length", "sketch_power"):
            known["architecture"].pop(name)
        return json.dumps(known | {"crc32c": weights._checksum(known, saved.read_bytes())})

    assert weights.load(str(rewrite(saved, tmp_path / "w.safetensors", change=change)))[1] == CARD
