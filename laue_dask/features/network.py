"""The CNN autoencoder of section 3.1 and Figure 3 of the paper, in PyTorch.

What the paper fixes: a mirrored encoder and decoder, max-pooling and transposed convolutions, dropout of 20 % after
the pooling layers, before the transposed convolutions and before the reconstruction layer, ReLU everywhere but in the
sigmoid of the reconstruction, and a bottleneck of shape 1 × 1 × M_AE. What Figure 3 leaves open, and is a field of
`architecture.Architecture`: the number of filters, where the pooling stops and one convolution over what is left makes
the bottleneck, normalisation, and the width to which spots are smoothed before anything else.

What a learned bottleneck of 256 numbers hardly holds is where thirty spots are. So `contrastive` splits its latent
vector: learned features, of unit length, which say what differs between patterns; sketches, random projections of a
power of the pattern and of an early feature map, which see the smallest shift of a spot, where what is learned takes
lattices half a degree apart for one; and the brightest peaks, a number each, scaled so far down that no distance feels
them, from which the decoder redraws the pattern.
"""

import math
from threading import Lock
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from laue_dask.features.architecture import N_SKETCHES, SKETCHED_MAP_LEVEL, Architecture
from laue_dask.schema import PATTERN_SIZE


class Smoothing(nn.Module):
    """Fixed Gaussian filter of integral `GAIN`, clipped at 1.

    A spot of one or two pixels has no gradient to learn from and no overlap with the same spot half a pixel away;
    widened by about a pixel it has both. The gain keeps the peak of a small spot near its old height.
    """

    GAIN = 3.0
    BLOCK = 16
    """Rows, and columns, that are smoothed at once on a CPU."""

    matrix: Tensor

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.radius = max(1, math.ceil(3 * sigma))
        offsets = torch.arange(PATTERN_SIZE)[:, None] - torch.arange(PATTERN_SIZE)[None, :]
        band = torch.exp(-0.5 * (offsets / sigma) ** 2) * (offsets.abs() <= self.radius)
        # Away from the border every row sums to the root of the gain; the two sides together make the gain.
        self.register_buffer("matrix", band * math.sqrt(self.GAIN) / band.sum(dim=1).max(), persistent=False)

    def forward(self, patterns: Tensor) -> Tensor:
        """Smooth (n, 1, 128, 128) patterns; the result is clipped to [0, 1]."""
        # Two products of small matrices: several times as fast as a convolution of a single channel. Block by block
        # they leave out the zeros far from the diagonal; on a GPU these cost less than that many steps.
        matrix = self.matrix.to(patterns.dtype)
        blocks = self._blocks(PATTERN_SIZE if patterns.is_cuda else self.BLOCK)
        down = torch.cat([matrix[block, near] @ patterns[..., near, :] for block, near in blocks], dim=-2)
        return torch.cat([down[..., near] @ matrix[near, block] for block, near in blocks], dim=-1).clamp(max=1.0)

    def _blocks(self, length: int) -> list[tuple[slice, slice]]:
        """Blocks of so many pixels, each with the pixels that reach it."""
        return [
            (slice(first, first + length), slice(max(0, first - self.radius), first + length + self.radius))
            for first in range(0, PATTERN_SIZE, length)
        ]


class Sketch(nn.Module):
    """Random projection, which keeps distances (Johnson and Lindenstrauss, 1984), as a vector of one length.

    Nothing is learned, so it works on patterns of any kind, and spots that move by half a pixel change it as much as
    those of another crystal. Its signs are the same for ever: NumPy promises so of `RandomState`.

    Parameters
    ----------
    shape
        Of what is projected, without the patterns' axis.
    outputs
        Number of features.
    length
        Of their vector.
    """

    SEED = 1
    """Of three, that with which k-means did best on the development scans (seeds 201 to 210 of the benchmark), when the
    sketch was of the pattern itself."""

    signs: Tensor

    def __init__(self, shape: tuple[int, int, int], outputs: int, length: float) -> None:
        super().__init__()
        self.length, self.window = length, shape
        random = np.random.RandomState(self.SEED).randint(0, 2, (math.prod(shape), outputs)).T
        signs = torch.from_numpy(2 * random - 1).float().reshape(outputs, *shape)
        # Channels last, and flat, so that moving the network to another order of memory does not touch them.
        self.register_buffer("signs", signs.permute(0, 2, 3, 1).reshape(outputs, -1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the projection (n, outputs) of features (n, *shape)."""
        channels, rows, columns = self.window
        kernel = self.signs.reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)
        # A convolution whose window is all there is: unlike those of a product of matrices, its sums do not depend on
        # the number of threads.
        found = nn.functional.conv2d(features, kernel.to(features.dtype)).flatten(1)
        return self.length * nn.functional.normalize(found.float(), dim=1, eps=1e-3)


class PatternSketch(Sketch):
    """`Sketch` of a pattern at half its resolution, (n, 1, 128, 128) → (n, outputs)."""

    HALF = PATTERN_SIZE // 2
    SIDE = 16
    """The flat pattern is taken for 64 channels of so many pixels a side, for which convolutions are fast."""

    def __init__(self, outputs: int, length: float) -> None:
        super().__init__((1, self.HALF, self.HALF), outputs, length)
        half = self.signs.reshape(outputs, self.HALF, self.HALF)
        self.signs = half.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).reshape(outputs, -1)
        self.window = (PATTERN_SIZE**2 // self.SIDE**2, self.SIDE, self.SIDE)

    def forward(self, features: Tensor) -> Tensor:
        """Return the projection (n, outputs) of patterns; the signs of four pixels are the same, as if these were
        averaged.
        """
        channels, rows, columns = self.window
        return super().forward(features.reshape(-1, rows, columns, channels).permute(0, 3, 1, 2))


class BrightestPeaks(nn.Module):
    """The brightest local maxima (of 5 × 5 pixels) of a smoothed pattern as numbers, and the picture that they make.

    Parameters
    ----------
    count
        Number of peaks.
    """

    LEAST = 0.03
    """Height of the lowest peak that counts."""
    HEIGHTS = 2**10
    """Steps of a height. Together with 2¹⁴ places these are the 24 bits that a float32 holds exactly."""
    SCALE = 2.0**-34
    """Of such a number in the latent vector, a power of two, so that it stays exact. Next to learned features of unit
    length, 96 peaks then make up less than 10⁻⁴ of a squared distance."""
    SIGMA = 1.25
    """Width in pixels with which a peak is drawn."""

    ramp: Tensor
    grid: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        pixels = torch.arange(PATTERN_SIZE**2, dtype=torch.float32).reshape(PATTERN_SIZE, PATTERN_SIZE)
        # Of a plateau (a saturated spot) the first pixel alone is a peak.
        self.register_buffer("ramp", 1e-7 * pixels, persistent=False)
        self.register_buffer("grid", torch.arange(PATTERN_SIZE, dtype=torch.float32), persistent=False)

    def forward(self, smoothed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the index of the pixel in the flat pattern, and height in [0, 1], of the brightest peaks, each (n,
        count).

        From the brightest peak on; both are 0 where there are fewer.
        """
        sloped = smoothed.float() - self.ramp
        highest = _highest(_highest(sloped, -1), -2)
        # Compared in place they are zeros and ones: several times as fast on a CPU as a choice by masks.
        peaks = nn.functional.threshold(highest.le_(sloped).mul_(sloped), self.LEAST, 0.0, inplace=True).flatten(1)
        height, place = peaks.topk(self.count, dim=1)
        return torch.where(height > 0, place, 0), height

    def pack(self, place: Tensor, height: Tensor) -> Tensor:
        """Return one number for each peak, (n, count) float32 of at most 2⁻¹⁰."""
        return self.SCALE * (place * self.HEIGHTS + (height * (self.HEIGHTS - 1)).round())

    def unpack(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the place and height, (n, count) each, of numbers that `pack` made; heights are rounded to a step."""
        whole = (numbers.float() / self.SCALE).round()
        place = torch.div(whole, self.HEIGHTS, rounding_mode="floor")
        return place, (whole - place * self.HEIGHTS) / (self.HEIGHTS - 1)

    def draw(self, place: Tensor, height: Tensor) -> Tensor:
        """Return the picture (n, 1, 128, 128) of Gaussian spots at peaks."""
        row = torch.div(place, PATTERN_SIZE, rounding_mode="floor")
        down, across = (
            torch.exp(-0.5 * ((self.grid - centre[:, :, None]) / self.SIGMA) ** 2)
            for centre in (row, place - PATTERN_SIZE * row)
        )
        return ((down * height[:, :, None]).transpose(1, 2) @ across)[:, None]


def strength(heights: Tensor, noise: float) -> Tensor:
    """Return how much of a pattern's features is to be believed, (n, 1) in [0, 1].

    A pattern without a spot must stay near the origin, for its direction in feature space is noise: where nothing
    diffracts, unit vectors of the few pixels that noise lets through lie as far apart as those of a grain's boundary.

    Parameters
    ----------
    heights : (n, peaks)
        Of the brightest peaks, in [0, 1]; 0 where there are fewer.
    noise
        Sum of squared heights at which it is one half; the step is steep, and features of any clear pattern keep unit
        length.
    """
    total = heights.square().sum(dim=1, keepdim=True) / noise
    return 1 - 1 / (1 + total**4)


def _highest(values: Tensor, axis: int) -> Tensor:
    """Highest of five neighbours along an axis: far faster than torch's own max-pooling with stride 1 on the CPU."""
    length = values.shape[axis]
    padding = (2, 2) if axis == -1 else (0, 0, 2, 2)
    padded = nn.functional.pad(values, padding, value=-1.0)
    two = torch.maximum(padded.narrow(axis, 0, length + 3), padded.narrow(axis, 1, length + 3))
    four = torch.maximum(two.narrow(axis, 0, length + 1), two.narrow(axis, 2, length + 1))
    return torch.maximum(four.narrow(axis, 0, length), padded.narrow(axis, 4, length))


class Autoencoder(nn.Module):
    """Mirrored pair of convolutional networks with a bottleneck of 1 × 1 × M_AE (section 3.1).

    Parameters
    ----------
    architecture
        Its hyper-parameters.

    Notes
    -----
    Patterns are (n, 1, 128, 128) in [0, 1], latent features (n, M_AE).
    """

    sketches: nn.ModuleList | None
    peaks: BrightestPeaks | None

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.smooth = Smoothing(architecture.smoothing) if architecture.smoothing else nn.Identity()
        self.encoder = _encoder(architecture)
        self.decoder = _decoder(architecture)
        self.sketches = _sketches(architecture) if architecture.sketch else None
        self.peaks = BrightestPeaks(architecture.peaks) if architecture.peaks else None
        self.overlay = _overlay(architecture) if architecture.peaks else None

    def shorten_sketches(self, length: float) -> None:
        """Make sketches that are longer than `length` as long; they count the less in distances."""
        if self.sketches is None or self.architecture.sketch_length <= length:
            return
        self.architecture = self.architecture.model_copy(update={"sketch_length": length})
        for sketch in self.sketches:
            cast(Sketch, sketch).length = length

    def encode(self, patterns: Tensor, smoothed: Tensor | None = None) -> Tensor:
        """Return the latent features (n, M_AE) of (n, 1, 128, 128) patterns, equation 13.

        `smoothed` is what `smooth` makes of them, where the caller has it.
        """
        if smoothed is None:
            smoothed = self.smooth(patterns)
        features, maps, sketched = smoothed, 0, smoothed
        for layer in self.encoder:
            features = layer(features)
            if isinstance(layer, nn.ReLU):
                maps += 1
                sketched = features if maps == SKETCHED_MAP_LEVEL else sketched
        latent = features.flatten(1)
        if self.architecture.unit_latent:
            latent = latent / latent.norm(dim=1, keepdim=True).clamp(min=1e-3)
        if self.sketches is not None:
            of_pattern, of_map = self.sketches
            power = self.architecture.sketch_power
            spots = self.smooth(patterns**power) if power > 1 else smoothed
            latent = torch.cat([latent.float(), of_pattern(spots.detach()), of_map(sketched.detach())], dim=1)
        if self.peaks is not None:
            place, height = self.peaks(smoothed)
            if self.architecture.noise:
                latent = latent * strength(height, self.architecture.noise)
            latent = torch.cat([latent.float(), self.peaks.pack(place, height)], dim=1)
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Return the logits (n, 1, 128, 128) of the reconstruction; their sigmoid is the pattern."""
        architecture = self.architecture
        learned, _, numbers = latent.split(
            [architecture.learned, N_SKETCHES * architecture.sketch, architecture.peaks], dim=1
        )
        if self.architecture.unit_latent:
            # What is faint has a direction, too: its length is for those who measure distances.
            learned = nn.functional.normalize(learned, dim=1) * math.sqrt(self.architecture.learned)
        logits = self.decoder(learned[:, :, None, None])
        if self.peaks is not None and self.overlay is not None:
            drawn = self.peaks.draw(*self.peaks.unpack(numbers))
            logits = self.overlay(torch.cat([logits, drawn], dim=1))
        return cast(Tensor, logits)

    def forward(self, patterns: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latent features and logits of the reconstruction."""
        latent = self.encode(patterns)
        return latent, self.decode(latent)


def _sketches(architecture: Architecture) -> nn.ModuleList:
    """Of the pattern, and of the feature map."""
    side = (PATTERN_SIZE // architecture.unshuffle) >> SKETCHED_MAP_LEVEL
    outputs, length = architecture.sketch, architecture.sketch_length
    of_map = Sketch((architecture.channels[SKETCHED_MAP_LEVEL - 1], side, side), outputs, length)
    return nn.ModuleList([PatternSketch(outputs, length), of_map])


def _encoder(architecture: Architecture) -> nn.Sequential:
    layers: list[nn.Module] = [nn.PixelUnshuffle(architecture.unshuffle)] if architecture.unshuffle > 1 else []
    filters = architecture.unshuffle**2
    for wider in architecture.channels:
        layers.append(nn.Conv2d(filters, wider, 3, padding=1, bias=not architecture.batch_norm))
        if architecture.batch_norm:
            layers.append(nn.BatchNorm2d(wider))
        # ReLU and max-pooling commute; pooled first, the activation touches a quarter of the pixels.
        layers += [nn.MaxPool2d(2), nn.ReLU(inplace=True)]
        if architecture.dropout:
            layers.append(nn.Dropout(architecture.dropout))
        filters = wider
    layers.append(nn.Conv2d(filters, architecture.learned, architecture.bottleneck_side))
    return nn.Sequential(*layers)


def _decoder(architecture: Architecture) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(architecture.learned, architecture.channels[-1], architecture.bottleneck_side),
        nn.ReLU(inplace=True),
    ]
    narrowing = [*architecture.channels[::-1][1:], architecture.channels[0]]
    for filters, narrower in zip(architecture.channels[::-1], narrowing, strict=True):
        if architecture.dropout:
            layers.append(nn.Dropout(architecture.dropout))
        # Windows that overlap: each output pixel sees its neighbours' part of the map, too.
        layers.append(nn.ConvTranspose2d(filters, narrower, 4, stride=2, padding=1, bias=not architecture.batch_norm))
        if architecture.batch_norm:
            layers.append(nn.BatchNorm2d(narrower))
        layers.append(nn.ReLU(inplace=True))
    if architecture.dropout:
        layers.append(nn.Dropout(architecture.dropout))
    layers.append(nn.Conv2d(architecture.channels[0], architecture.unshuffle**2, 3, padding=1))
    if architecture.unshuffle > 1:
        layers.append(nn.PixelShuffle(architecture.unshuffle))
    return nn.Sequential(*layers)


def _overlay(architecture: Architecture) -> nn.Sequential:
    """Joins what the learned features say of a pattern with the picture of its peaks, (n, 2, 128, 128) → logits."""
    width = 2 * architecture.channels[0]
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        nn.Conv2d(8, width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, 4, 3, padding=1),
        nn.PixelShuffle(2),
    )


_DRAWING = Lock()
"""Held while weights are drawn: threads share torch's generator, and a worker's first two tasks both load a network."""


def build(architecture: Architecture, *, seed: int) -> Autoencoder:
    """Make an untrained autoencoder whose random weights depend on the seed alone, whichever threads make others."""
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Autoencoder(architecture)
