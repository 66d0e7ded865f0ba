"""`network`: the encoder as a feature extractor (Definition 4), reduced patterns → latent features.

What travels with a task is the name of the weights, never the weights: each worker loads them once and keeps them.
Workers alone import PyTorch (`features.inference`), unless the weights are a user's own, which are looked at before.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from laue_dask.config import EncoderConfig, Recipe
from laue_dask.features import weights
from laue_dask.features.extractors import Sample


@dataclass(frozen=True)
class Network:
    """The encoder half of an autoencoder as a feature extractor (section 3.1).

    Attributes
    ----------
    weights_name
        `default`, `untrained` or a path.
    weights_digest
        Of that file when the run began.
    n_features
        M_AE of its architecture.
    """

    weights_name: str
    weights_digest: str
    n_features: int
    batch_size: int | Literal["auto"] = 32
    precision: str = "float32"

    name = "network"
    on_gpu = True
    learns = False

    @classmethod
    def load(cls, config: EncoderConfig, recipe: Recipe | None = None) -> "Network":
        """Look at the configured weights.

        Raises
        ------
        StoreError
            See `weights.load`.
        """
        if config.weights in ("default", "untrained"):
            card = weights.card_of(config.weights, recipe)
        else:
            card = weights.load(config.weights, recipe=recipe)[1]
        latent = card.architecture.latent
        return cls(config.weights, weights.digest(config.weights), latent, config.batch_size, config.precision)

    @property
    def digest(self) -> str:
        """Hash of the weights and of what else decides the rounding."""
        text = f"network {self.weights_digest} {self.precision} {self.batch_size}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fit(self, sample: Sample, file: Path) -> "Network":
        """Return itself: the network was trained before."""
        return self

    def extract(self, patterns: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """See `Extractor.extract`."""
        from laue_dask.features import inference

        return inference.encode_block(
            patterns,
            valid,
            weights_name=self.weights_name,
            digest=self.weights_digest,
            batch_size=self.batch_size,
            precision=self.precision,
        )

    def errors(self, patterns: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `inference.reconstruction_errors`."""
        from laue_dask.features import inference

        return inference.reconstruction_errors(
            patterns,
            name=self.weights_name,
            digest=self.weights_digest,
            batch_size=self.batch_size,
            precision=self.precision,
        )
