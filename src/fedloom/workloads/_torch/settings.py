"""Settings of local training, with no heavy import."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError


class TrainingSettings(Settings):
    """How a client trains: minibatches of its shard, in a new random order each epoch."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Local optimiser; its moments start from zero in each round."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.05
    """Step size."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Examples in a minibatch; the last of an epoch may be smaller."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over the shard in one round."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many minibatches, whatever `epochs` says."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Momentum of `sgd`; dimensionless."""
    nesterov: bool = False
    """Nesterov's form of the momentum of `sgd`."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """L2 penalty's coefficient for `sgd`, decoupled decay per unit of step size for `adamw`."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay of `adamw`'s first moment."""
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay of `adamw`'s second moment."""
    epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    """Added to the root of `adamw`'s second moment."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    """Scale the gradient of each step down to this Euclidean norm over all arrays; None leaves it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one. Part of the result's bits."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ConfigError("workload.training.nesterov: needs workload.training.momentum above 0, got 0")
        if self.momentum and self.optimizer != "sgd":
            raise ConfigError(
                f"workload.training.momentum: without effect for optimizer {self.optimizer!r}; remove it, or set beta1"
            )
        return self
