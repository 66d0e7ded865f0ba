"""The configuration of a training, read from YAML."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from laue_dask.config import Model
from laue_dask.features.architecture import ARCHITECTURES, Architecture

FIELDS_WITHOUT_EFFECT = frozenset({"device", "checkpoint_minutes"})
"""Fields that say where and how often, not what is learnt: a checkpoint may be gone on with under other values."""


class FittingConfig(Model):
    """What every training needs to know; see `fitting.fit`."""

    epochs: int = Field(20, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    contrastive_weight: float = Field(1.0, ge=0)
    """Weight of the contrastive term; 0 is the paper's training."""
    reconstruction_weight: float = Field(2.0, ge=0)
    temperature: float = Field(0.1, gt=0)
    patience: int | None = Field(None, ge=1)
    """Epochs without a lower validation loss after which the training ends; by default it goes on to its end."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is the GPU where there is one."""
    mixed_precision: bool = True
    """bfloat16 in the convolutions, on the GPU and on the CPU; weights and losses stay float32."""
    checkpoint_minutes: float = Field(5.0, ge=0)
    """Minutes between two checkpoints inside an epoch; there is one at the end of every epoch."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _something_learnt(self) -> Self:
        if not any(self.weights.values()):
            raise ValueError("contrastive_weight and reconstruction_weight are both 0: nothing would be learnt")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term of the loss, by the term's name."""
        return {"contrastive": self.contrastive_weight, "bce": self.reconstruction_weight}


class TrainingConfig(FittingConfig):
    """A training on simulated experiments."""

    architecture: Architecture = ARCHITECTURES["contrastive"]
    """Its hyper-parameters, or a name."""
    experiments_per_batch: int = Field(4, ge=1)
    max_shift: Annotated[int, Field(ge=0, le=64)] = 12
    """Largest shift, in pixels of the 128 × 128, that a whole experiment is moved by."""

    @field_validator("architecture", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ARCHITECTURES:
            raise ValueError(f"architecture '{value}' is not one of {', '.join(ARCHITECTURES)}")
        return ARCHITECTURES[value] if isinstance(value, str) else value


class FineTuningConfig(FittingConfig):
    """A training of given weights on a scan without labels; see `finetuning`."""

    epochs: int = Field(8, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    reconstruction_weight: float = Field(1.0, ge=0)
    anchor_weight: float = Field(1.0, ge=0)
    """Weight of keeping the similarity of patterns of which the scan does not say whether they belong together."""
    patterns_per_batch: int = Field(128, ge=8)
    """Each in two views."""

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term of the loss, by the term's name."""
        return {**super().weights, "anchor": self.anchor_weight if self.contrastive_weight else 0.0}
