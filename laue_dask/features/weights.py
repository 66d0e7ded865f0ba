"""Weights on disk: safetensors, with a card that says what they are and how they came about.

The card is JSON in the file's own metadata, so that the two cannot be separated. Nothing is unpickled.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import safetensors
from pydantic import Field, ValidationError
from safetensors import SafetensorError

from laue_dask.config import Model, Recipe
from laue_dask.errors import StoreError
from laue_dask.features.architecture import ARCHITECTURES, Architecture
from laue_dask.io.output_paths import write_atomically
from laue_dask.runtime.suggestions import did_you_mean, nearest

if TYPE_CHECKING:  # imported where tensors are touched: who hands out work reads cards alone
    from torch import Tensor

    from laue_dask.features.network import Autoencoder

DEFAULT_WEIGHTS_FILE = Path(str(files("laue_dask") / "weights" / "default.safetensors"))
"""The shipped weights."""

MAX_UNCHECKED_CHANNELS = 2048
"""Channels and features, in all, up to which an architecture is built without a second thought."""

MAX_WEIGHTS_BYTES = 2**30
"""Bytes of a weights file, beyond which it is none of ours and is not read."""

UNTRAINED_SEED = 0
"""Seed of the random weights that stand beside the trained ones wherever quality is reported."""


class Card(Model):
    """What a weights file says of itself."""

    architecture: Architecture
    recipe: Recipe
    """The reduction that the network was trained on; encoding with one that draws spots otherwise is refused."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Data, configuration, time and machine of the training; empty for random weights."""
    data: str = ""
    """Hash of what it was trained on: `TrainingSet.digest`, or the key of the scan that it was fine-tuned on."""
    seeds: dict[str, list[int]] = Field(default_factory=dict)
    """Seeds of the `weights`, and of the `training` and `validation` stores: they make all of it again."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Losses of the validation patterns, and what they mean: the all-black plateau and a perfect reconstruction."""
    reference: dict[str, float] = Field(default_factory=dict)
    """Quantiles of the validation patterns' reconstruction errors (`drift.reference`): how a scan is found strange."""
    benchmark: list[dict[str, str | int | float | None]] = Field(default_factory=list)
    """Rows of the benchmark's table; filled in by `annotate`."""
    crc32c: str = ""
    """Of the tensors and of all the rest of the card, as it is in the file; empty once it was checked."""


def save(model: "Autoencoder", path: Path, card: Card) -> None:
    """Write weights and card; the file appears only when complete."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, _packed(state, card))


def annotate(
    path: Path,
    *,
    benchmark: Sequence[Mapping[str, str | int | float | None]] | None = None,
    reference: Mapping[str, float] | None = None,
) -> Card:
    """Rewrite the card of a weights file; its tensors stay the same bytes.

    Parameters
    ----------
    benchmark, reference
        New values of these fields; a field that is not given stays.

    Returns
    -------
    Card
        As it is now in the file, whose `digest` is another.

    Raises
    ------
    StoreError
        The file has no card that can be read, or a value is not finite or no plain one.
    """
    import safetensors.torch

    given = {"benchmark": benchmark, "reference": reference}
    try:
        card, content = _card_of(path)
        values = {
            **card.model_dump(exclude={"crc32c"}),
            **{name: value for name, value in given.items() if value is not None},
        }
        card = Card.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path}: card not changed: {where} = {first['input']!r}: {first['msg']}") from error
    write_atomically(path, _packed(safetensors.torch.load(content), card))
    return card


def locate(name: str) -> Path | None:
    """Return the file behind a configured name: ``None`` for `untrained`.

    Raises
    ------
    StoreError
        There is no such file.
    """
    if name == "untrained":
        return None
    path = DEFAULT_WEIGHTS_FILE if name == "default" else Path(name)
    if not path.is_file():
        near = nearest(name, ("default", "untrained"))
        meant = f" (did you mean {near}?)" if near else did_you_mean(path)
        raise StoreError(
            f"{path}: there is no such weights file{meant}: give a .safetensors file, `default` or `untrained`"
        )
    return path


def digest(name: str) -> str:
    """Return the hash of the weights, 16 hexadecimal digits; part of the cache key of everything encoded with them."""
    path = locate(name)
    if path is None:
        return ARCHITECTURES["contrastive"].digest()
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_card(path: Path) -> Card:
    """Read the card of a weights file.

    Raises
    ------
    StoreError
        The file is not safetensors, or has no card, or a card of another version.
    """
    return _checked(path)[0]


def _checked(path: Path) -> tuple[Card, bytes]:
    """Card and content of a weights file that is as it was written."""
    card, content = _card_of(path)
    if card.crc32c != _checksum(_written(content), content):
        raise StoreError(f"{path}: the file is damaged or was written by another version: its checksum differs")
    return card.model_copy(update={"crc32c": ""}), content


def _card_of(path: Path) -> tuple[Card, bytes]:
    try:
        if path.stat().st_size > MAX_WEIGHTS_BYTES:
            raise StoreError(f"{path}: {path.stat().st_size} bytes cannot be weights of laue-dask")
        content = path.read_bytes()
        safetensors.deserialize(content)  # type: ignore[no-untyped-call]  # looks at the header and what lies where
        return Card.model_validate(_written(content)), content
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{path}: not a safetensors file: {error}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{path}: its card cannot be read by this laue-dask: train it again with `laue-dask train`"
        ) from error


def _packed(state: "dict[str, Tensor]", card: Card) -> bytes:
    """Content of a weights file, whose card has the checksum of its tensors and of itself."""
    import safetensors.torch

    plain = safetensors.torch.save(state, metadata={"card": ""})
    complete = card.model_copy(update={"crc32c": _checksum(card.model_dump(mode="json"), plain)})
    return safetensors.torch.save(state, metadata={"card": complete.model_dump_json()})


def _written(content: bytes) -> dict[str, Any]:
    """The card as it stands in the file; another version may have known fewer fields."""
    card: dict[str, Any] = json.loads(_header(content)["__metadata__"]["card"])
    return card


def _checksum(card: dict[str, Any], content: bytes) -> str:
    tensors = {name: about for name, about in _header(content).items() if name != "__metadata__"}
    text = json.dumps([{name: value for name, value in card.items() if name != "crc32c"}, tensors], sort_keys=True)
    data = content[8 + int.from_bytes(content[:8], "little") :]
    return f"{google_crc32c.extend(google_crc32c.value(text.encode()), data):08x}"


def _check_sizes(path: Path, card: Card, content: bytes) -> None:
    """Refuse a large architecture that its file does not hold, before any memory is taken for it."""
    # What PyTorch imports to tell shapes alone takes half a second and 90 MB: not for what is small anyway.
    if sum(_numbers(card.architecture.model_dump())) <= MAX_UNCHECKED_CHANNELS:
        return
    import torch

    from laue_dask.features.network import Autoencoder

    with torch.device("meta"):
        declared = {name: tuple(tensor.shape) for name, tensor in Autoencoder(card.architecture).state_dict().items()}
    header = _header(content)
    found = {name: tuple(about["shape"]) for name, about in header.items() if name != "__metadata__"}
    differing = [name for name in sorted({*declared, *found}) if declared.get(name) != found.get(name)]
    if differing:
        name = differing[0]
        raise StoreError(
            f"{path}: tensors do not fit the architecture of the card ({name}: {found.get(name, 'missing')}, declared "
            f"{declared.get(name, 'not')}): train it again"
        )


def _numbers(values: Any) -> list[float]:
    """All numbers in a card's part, however deep."""
    if isinstance(values, dict | list | tuple):
        inner = values.values() if isinstance(values, dict) else values
        return [0.0, *(number for one in inner for number in _numbers(one))]
    return [float(values)] if isinstance(values, int | float) else [0.0]


def _header(content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return found


def card_of(name: str, recipe: Recipe | None = None) -> Card:
    """Return the card of weights by name, whose recipe is held against that of the patterns to be encoded, if given.

    Raises
    ------
    StoreError
        No such file, or it is damaged, or the recipes differ.
    """
    return _fitting(name, recipe)[0]


def _fitting(name: str, recipe: Recipe | None) -> tuple[Card, bytes]:
    """Card, and content of the file, if there is one."""
    path = locate(name)
    if path is None:
        return Card(architecture=ARCHITECTURES["contrastive"], recipe=recipe or Recipe()), b""
    card, content = _checked(path)
    # Without the substrate, or with more of the frame, patterns look like any others; all other fields change how a
    # spot looks.
    for field in sorted(set(Recipe.model_fields) - {"substrate", "version"}) if recipe is not None else ():
        theirs, ours = getattr(card.recipe, field), getattr(recipe, field)
        if theirs != ours:
            raise StoreError(
                f"{path}: trained with recipe.{field} = {theirs}, but this run has {ours}: "
                "use the weights' recipe or train others"
            )
    return card, content


def load(name: str, *, recipe: Recipe | None = None) -> "tuple[Autoencoder, Card]":
    """Load an autoencoder in evaluation mode.

    Parameters
    ----------
    name
        `default`, `untrained`, or a path.
    recipe
        The recipe of the patterns to be encoded, compared with the card's.

    Raises
    ------
    StoreError
        No such file, or its card and tensors do not fit, or the recipes differ.
    """
    import safetensors.torch

    from laue_dask.features.network import build

    card, content = _fitting(name, recipe)
    path = locate(name)
    if path is None:
        return build(card.architecture, seed=UNTRAINED_SEED).eval(), card
    _check_sizes(path, card, content)
    model = build(card.architecture, seed=0)
    try:
        model.load_state_dict(safetensors.torch.load(content))
    except (RuntimeError, SafetensorError) as error:
        raise StoreError(f"{path}: tensors do not fit the architecture of the card: train it again") from error
    return model.eval(), card
