"""Architectures of autoencoders by name; PyTorch is not needed to know them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from laue_dask.config import Model
from laue_dask.schema import PATTERN_SIZE

SKETCHED_MAP_LEVEL = 2
"""Which feature map is sketched: after so many poolings."""

MAX_SKETCH_SIGNS = 2**27
"""Signs that a sketch may have, by a generous count: they are drawn before a card's numbers are held against its file.
"""

N_SKETCHES = 2
"""Of the pattern, and of that feature map."""


class Architecture(Model):
    """Hyper-parameters of an `Autoencoder`; stored in the card of its weights."""

    name: str = "paper"
    channels: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field((8, 16, 32, 64, 128, 256), min_length=1)
    """Filters of each 3 × 3 convolution; each is followed by a max-pooling by 2."""
    latent: int = Field(256, ge=1, le=65536)
    """M_AE, the number of latent features."""
    unshuffle: Literal[1, 2, 4, 8] = 1
    """Blocks of so many pixels a side become channels before the first convolution: the widest feature maps, on which
    most of the time goes, shrink by its square and no pixel is lost."""
    dropout: float = Field(0.2, ge=0, lt=1)
    batch_norm: bool = False
    smoothing: float = Field(0.0, ge=0, le=8)
    """Sigma in pixels (of the 128 × 128) of the fixed Gaussian that widens spots; the loss sees the widened pattern."""
    unit_latent: bool = False
    """Scale the learned features to the same length, so that distances measure directions (cosine) alone."""
    sketch: int = Field(0, ge=0, le=4096)
    """So many latent features, after the learned ones, are a random projection of a power of the pattern, and as many
    one of an early feature map, see `Sketch`."""
    sketch_length: float = Field(0.5, gt=0, le=10)
    """Length of each of the two, where that of the learned features is 1."""
    sketch_power: int = Field(1, ge=1, le=8)
    """Power of the pixels, before they are smoothed, of which the pattern's sketch is made. Patterns are compressed:
    above 1 the brighter of two grains under the beam decides where a point belongs, as in the intensities."""
    peaks: int = Field(0, ge=0, le=1024)
    """So many of the brightest peaks are the last latent features, see `BrightestPeaks`."""
    noise: float = Field(0.0, ge=0, le=1e3)
    """Sum of the peaks' squared heights up to which a pattern shows noise alone, see `strength`; 0 for never."""

    @property
    def learned(self) -> int:
        """How many of the latent features are learned; they come first."""
        return self.latent - N_SKETCHES * self.sketch - self.peaks

    @model_validator(mode="after")
    def _something_left(self) -> Self:
        if self.learned < 1:
            sketches = f"{N_SKETCHES} sketches of {self.sketch} and " if self.sketch else ""
            raise ValueError(f"latent: {sketches}{self.peaks} peaks leave nothing of {self.latent} latent features")
        if self.sketch and not self.unit_latent:
            raise ValueError("sketch: needs unit_latent, for its length is relative to that of the learned features")
        if self.sketch * max(self.channels) * (PATTERN_SIZE // self.unshuffle) ** 2 > MAX_SKETCH_SIGNS:
            raise ValueError(f"sketch: {self.sketch} features take more than {MAX_SKETCH_SIGNS} signs")
        if self.sketch and len(self.channels) < SKETCHED_MAP_LEVEL:
            raise ValueError(
                f"sketch: one is of feature map {SKETCHED_MAP_LEVEL}, there are {len(self.channels)} channels"
            )
        if self.sketch_power > 1 and not self.sketch:
            raise ValueError(f"sketch_power: {self.sketch_power}, but there is no sketch")
        if self.noise and not self.peaks:
            raise ValueError("noise: without peaks nothing tells noise from a signal")
        if self.bottleneck_side < 1:
            raise ValueError(f"channels: {len(self.channels)} poolings leave nothing of {PATTERN_SIZE} pixels")
        return self

    @property
    def bottleneck_side(self) -> int:
        """Side in pixels of the last feature map, which one convolution turns into the latent vector."""
        return (PATTERN_SIZE // self.unshuffle) >> len(self.channels)


ARCHITECTURES: dict[str, Architecture] = {
    "paper": Architecture(),
    "contrastive": Architecture(
        name="contrastive",
        channels=(24, 48, 96, 192),
        unshuffle=2,
        dropout=0.0,
        batch_norm=True,
        smoothing=1.0,
        unit_latent=True,
        sketch=48,
        sketch_power=3,
        peaks=96,
        noise=0.3,
    ),
}
"""Architectures by name."""
