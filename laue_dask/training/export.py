"""The encoder as a file for programs that know nothing of laue_dask: `torch.export`, checked before it is written."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from laue_dask.config import Recipe
from laue_dask.errors import ComputeError, InputError
from laue_dask.features import weights
from laue_dask.features.network import Autoencoder
from laue_dask.io.output_paths import require_writable, write_atomically
from laue_dask.reduction.reduce import reduce_frames
from laue_dask.schema import PATTERN_SIZE
from laue_dask.simulate.training import training_frame
from laue_dask.training.training import as_network_input

MAX_FEATURE_DIFFERENCE = 1e-4
"""Largest difference of any feature between the exported encoder and the network."""

_CHECKED_BATCH_SIZES, _N_SIMULATED_PATTERNS = (1, 3, 32), 6


class Encoder(nn.Module):
    """Reduced patterns → latent features, smoothing included.

    Patterns are (n, 1, 128, 128) float32 in [0, 1] (the store's uint8, divided by 255), n is free; the features are
    (n, M_AE) float32.
    """

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, patterns: Tensor) -> Tensor:
        """Return the features of patterns."""
        return self.model.encode(patterns)


def export(name: str, out: Path) -> float:
    """Write the encoder of weights as a `.pt2` file, for `torch.export.load(out).module()`.

    Returns
    -------
    float
        The largest difference of any feature from the network's own, at most `MAX_FEATURE_DIFFERENCE`.

    Raises
    ------
    InputError
        Another format is asked for.
    ComputeError
        The exported encoder computes something else; nothing is written.
    """
    if out.suffix == ".onnx":
        raise InputError(f"{out}: ONNX needs the packages onnx and onnxscript, which laue_dask does not: give OUT.pt2")
    if out.suffix != ".pt2":
        raise InputError(f"{out}: the exported encoder is a .pt2 file (torch.export)")
    require_writable(out)
    model, card = weights.load(name)
    encoder = Encoder(model).eval()
    example = torch.rand(2, 1, PATTERN_SIZE, PATTERN_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        program = torch.export.export(
            encoder, (example,), dynamic_shapes={"patterns": {0: torch.export.Dim("n", min=1, max=65536)}}
        )
    content = io.BytesIO()
    torch.export.save(program, content)
    content.seek(0)
    difference = largest_difference(encoder, torch.export.load(content).module(), card.recipe)
    if not difference <= MAX_FEATURE_DIFFERENCE:
        raise ComputeError(
            f"{out}: was not written: its features differ by {difference:.2g}, more than {MAX_FEATURE_DIFFERENCE}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content.getvalue())
    return difference


@torch.no_grad()
def largest_difference(one: nn.Module, other: nn.Module, recipe: Recipe) -> float:
    """Return the largest difference of features of noise, empty and simulated patterns, in batches of several sizes."""
    worst, simulated = 0.0, _simulated(recipe)
    for size in _CHECKED_BATCH_SIZES:
        noise = torch.rand(size, 1, PATTERN_SIZE, PATTERN_SIZE, generator=torch.Generator().manual_seed(size))
        for patterns in (noise, torch.zeros_like(noise), simulated[torch.arange(size) % len(simulated)]):
            worst = max(worst, float((one(patterns) - other(patterns)).abs().max()))
    return worst


def _simulated(recipe: Recipe) -> Tensor:
    """Patterns (n, 1, 128, 128) of a training set's first experiment."""
    frames = [training_frame(0, 0, configuration, 0, binning=2)[0] for configuration in range(_N_SIMULATED_PATTERNS)]
    reduced = [reduce_frames(frame, np.zeros(frame.shape, dtype=np.bool_), recipe)[0] for frame in frames]
    return as_network_input(torch.from_numpy(np.stack(reduced)))
