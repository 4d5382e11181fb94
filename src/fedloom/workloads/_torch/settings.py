"""Settings of local training, with no heavy import."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self, TypeAlias

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError


class ScheduleSettings(Settings):
    """Schedule of the step size: a factor on it at each position."""

    shape: Literal["constant", "cosine", "linear", "drops"] = "constant"
    """After the warm-up: `cosine` and `linear` fall from 1 to `final`; `drops` multiplies by `drop` at each share of
    `drop_at`."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Places, the first ones, over which the factor rises in equal steps: 1/(w + 1), 2/(w + 1), …; then it is 1."""
    final: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Factor that `cosine` and `linear` end at."""
    drop_at: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = ()
    """Shares of all places, rising, after which `drops` drops."""
    drop: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """What `drops` multiplies the factor by."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.drop_at) != (self.shape == "drops") or list(self.drop_at) != sorted(self.drop_at):
            raise ConfigError(
                f'schedule.drop_at: expected rising shares with shape = "drops" and none with another, got '
                f"{list(self.drop_at)} with {self.shape!r}"
            )
        if self.final and self.shape not in ("cosine", "linear"):
            raise ConfigError(f"schedule.final: without effect for shape {self.shape!r}; remove it")
        return self

    @property
    def varies(self) -> bool:
        """Return whether any factor is not 1."""
        return self.shape != "constant" or self.warmup > 0

    @property
    def needs_total(self) -> bool:
        """Return whether a factor depends on the schedule's length."""
        return self.shape != "constant"

    def factor(self, place: int, places: int) -> float:
        """Return the factor at a position (from 0) in a schedule of this length."""
        if place < self.warmup:
            return (place + 1) / (self.warmup + 1)
        over = min(1.0, (place - self.warmup) / max(1, places - self.warmup))
        match self.shape:
            case "cosine":
                return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * over))
            case "linear":
                return 1.0 - (1.0 - self.final) * over
            case "drops":
                return float(self.drop ** sum(place >= share * places for share in self.drop_at))
            case _:
                return 1.0


class EarlyStopping(Settings):
    """A client stops training when its held-back examples no longer improve, and returns its best weights."""

    patience: Annotated[int, Field(ge=1)] = 1
    """Epochs without a gain after which it stops."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the client's examples held back for it, at least one, the same in every round. A client with one
    example stops on its training loss."""
    min_gain: Annotated[float, Field(ge=0.0)] = 0.0
    """How much the mean loss must fall to count as a gain."""


class TrainingSettings(Settings):
    """Local training: minibatches of the shard, in a new random order each epoch."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Local optimiser; its moments start from zero in each round."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.05
    """Step size."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Examples in a minibatch; the last of an epoch may be smaller. A last one of a single example is left
    out where the model's batch normalisation cannot compute with it."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over the shard in one round."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many minibatches, whatever `epochs` says."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Exact number of minibatches on every client, in as many passes as that takes; None takes `epochs`."""
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
    """Scale the gradient of each step down to this Euclidean norm over all arrays; None disables it."""
    round_schedule: ScheduleSettings = ScheduleSettings()
    """Factor on the step size by round; its places are the run's rounds."""
    step_schedule: ScheduleSettings = ScheduleSettings()
    """Factor on the step size by step within a client's training; its places are that training's steps."""
    early_stopping: EarlyStopping | None = None
    """None trains for as long as `epochs` and `steps` say."""
    class_weights: Literal["balanced"] | tuple[Annotated[float, Field(ge=0.0)], ...] = ()
    """Weight of each class in cross-entropy, or `balanced`: on each client n / (K n_c), with n its examples, n_c of
    them of class c, and K classes that it holds. None given weighs all alike; so does evaluation in any case."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of each label that cross-entropy spreads over all classes in training."""
    precision: Literal["float32", "bf16"] = "float32"
    """`bf16` computes the model in bfloat16 where PyTorch's autocast deems it safe; weights and sums stay float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` uses a GPU if there is one. Changes the result bit for bit."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ConfigError("workload.training.nesterov: needs workload.training.momentum above 0, got 0")
        if self.momentum and self.optimizer != "sgd":
            raise ConfigError(
                f"workload.training.momentum: has no effect for optimizer {self.optimizer!r}; remove it, or set beta1"
            )
        if self.steps is not None and (self.epochs > 1 or self.max_steps is not None):
            other = "epochs" if self.epochs > 1 else "max_steps"
            raise ConfigError(f"workload.training.steps: leaves {other} without effect; remove one of the two")
        return self

    def steps_of(self, num_examples: int) -> int:
        """Return the steps of a client's training."""
        if self.steps is not None:
            return self.steps
        steps = -(-num_examples // self.batch_size) * self.epochs
        return min(steps, self.max_steps or steps)

    @property
    def rounds_needed_by(self) -> str:
        """Return the setting that depends on the number of rounds, with its value; empty if none does."""
        schedule = self.round_schedule
        return f"workload.training.round_schedule.shape = {schedule.shape!r}" if schedule.needs_total else ""

    @property
    def is_plain(self) -> bool:
        """Return whether a client's training consists of equal steps only, as group programs require."""
        varies = self.round_schedule.varies or self.step_schedule.varies or self.steps is not None
        return not (varies or self.early_stopping or self.changes_loss or self.precision != "float32")

    @property
    def changes_loss(self) -> bool:
        """Return whether the settings change the loss, which must then be cross-entropy."""
        return bool(self.class_weights) or self.label_smoothing > 0


DTypeName: TypeAlias = Literal["float32", "bf16"]
"""Name of a floating-point type."""


class StoredWeights(Settings):
    """How a pretrained model's weights are stored."""

    dtype: DTypeName = "float32"
    """Weights beneath adapters: `bf16` stores them with 16 bits on disk, in memory and on the wire, and needs
    `training.precision = "bf16"` and a strategy that trains adapters alone. What is trained has 32 bits."""

    def check_precision(self, training: TrainingSettings) -> None:
        """Refuse weights of 16 bits with another precision of the computation.

        Raises:
            ConfigError: says what to set.
        """
        if self.dtype == "bf16" and training.precision != "bf16":
            raise ConfigError(
                'workload.model.dtype: "bf16" needs a computation in bfloat16; set workload.training.precision = '
                '"bf16", too'
            )
