import pytest
import torch

from laue_dask.config import Recipe
from laue_dask.errors import ComputeError, InputError
from laue_dask.features import weights
from laue_dask.features.architecture import Architecture
from laue_dask.features.network import build
from laue_dask.training import export as exporting
from laue_dask.training.export import Encoder, export, largest_difference

TINY = Architecture(
    name="tiny",
    channels=(4, 8, 8, 8),
    latent=16,
    unshuffle=2,
    batch_norm=True,
    smoothing=1.0,
    unit_latent=True,
    sketch=3,
    sketch_power=3,
    peaks=4,
    noise=0.3,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "tiny.safetensors"
    weights.save(build(TINY, seed=3), path, weights.Card(architecture=TINY, recipe=Recipe()))
    return path


def test_the_exported_encoder_gives_the_network_s_features_for_any_number_of_patterns(tiny, tmp_path):
    out = tmp_path / "new" / "tiny.pt2"
    assert export(str(tiny), out) <= 1e-4
    read = torch.export.load(out).module()
    model = weights.load(str(tiny))[0]
    for n in (1, 2, 7):
        patterns = torch.rand(n, 1, 128, 128)
        with torch.no_grad():
            assert (read(patterns) - model.encode(patterns)).abs().max() <= 1e-4


def test_an_export_that_differs_is_not_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "largest_difference", lambda *parts: 2e-4)
    with pytest.raises(ComputeError, match=r"its features differ by 0\.0002"):
        export(str(tiny), tmp_path / "tiny.pt2")
    monkeypatch.setattr(exporting, "largest_difference", lambda *parts: float("nan"))
    with pytest.raises(ComputeError, match="not written"):
        export(str(tiny), tmp_path / "tiny.pt2")
    assert not list(tmp_path.iterdir())


def test_the_comparison_sees_another_network():
    one, other = (Encoder(build(TINY, seed=seed)).eval() for seed in (0, 1))
    assert largest_difference(one, one, Recipe()) == 0
    assert largest_difference(one, other, Recipe()) > 1e-2


@pytest.mark.parametrize(("name", "message"), [("e.onnx", "onnxscript"), ("e.pt", "is a .pt2 file"), ("e", "pt2")])
def test_other_formats_are_refused_in_one_line(tiny, tmp_path, name, message):
    with pytest.raises(InputError, match=message) as caught:
        export(str(tiny), tmp_path / name)
    assert "\n" not in str(caught.value)
