"""Settings of adversarial training."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.partition_settings import Iid, PartitionSettings
from fedloom.workloads._data.settings import Digits, ImageSource
from fedloom.workloads._torch.settings import TrainingSettings
from fedloom.workloads._vision.settings import ModelSettings

AttackName = Literal["fgsm", "pgd-10", "pgd-20", "pgd-100", "cw-20", "cw-100", "apgd", "autoattack"]
RELEASED_STEPS = 10
"""Iterations that the evaluation released with the paper gives APGD and FAB, and both its PGD columns."""


class AttackSettings(Settings):
    """The ball an adversary may move an image in, and how training looks for the worst point of it."""

    epsilon: Annotated[float, Field(ge=0.0, le=1.0)] = 0.031
    """Radius of the L-infinity ball; units of a pixel's range from 0 to 1. The released code's is 0.031, not 8/255."""
    step_size: Annotated[float, Field(ge=0.0, le=1.0)] = 0.007
    """Step of the training attack, alpha; same units."""
    steps: Annotated[int, Field(ge=0)] = 10
    """Steps of the training attack."""


class DefenseSettings(Settings):
    """The training loss, and whether weights are perturbed, too."""

    name: Literal["none", "at", "trades", "mart"] = "at"
    """`none`: clean images; `at`: Madry et al. 2018; `trades`: Zhang et al. 2019; `mart`: Wang et al. 2020."""
    weight: Annotated[float, Field(ge=0.0)] | None = None
    """Weight of the second term of `trades` (beta) and `mart` (lambda); None takes 6 and 5."""
    awp_gamma: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Size of the adversarial weight perturbation relative to each layer's norm (Wu et al. 2020); 0 disables it."""
    awp_warmup: Annotated[int, Field(ge=0)] = 0
    """Rounds before the weights are perturbed."""

    @property
    def second_weight(self) -> float:
        """Return the second term's weight."""
        return {"trades": 6.0, "mart": 5.0}.get(self.name, 0.0) if self.weight is None else self.weight


class MeasureSettings(Settings):
    """Attacks for comparing models."""

    examples: Annotated[int, Field(ge=1)] = 500
    """Number of test images, from the start, that every evaluated round attacks."""
    validation_examples: Annotated[int, Field(ge=1)] = 500
    """Limit of held-back training images that every evaluated round attacks, to choose the best round."""
    steps: Annotated[int, Field(ge=1)] = 10
    """Steps of the PGD of evaluated rounds; its step size is 2.5 epsilon / steps."""
    table: tuple[AttackName, ...] = ("fgsm", "pgd-20", "pgd-100", "cw-100", "autoattack")
    """Attacks of the last round's table. `apgd` is the first two stages of `autoattack`, in a tenth of its time. Both
    need the package of the extra `attacks`."""
    table_examples: Annotated[int, Field(ge=1)] = 200
    """Number of test images, from the start, for the table's attacks."""
    iterations: Annotated[int, Field(ge=1)] = 100
    """Iterations of APGD and FAB in `autoattack`. The released evaluation's 10 are a weaker attack than the published
    standard, which is 100."""


class Config(TorchConfig):
    """Adversarial training of an image classifier."""

    name: str = "meat"
    data: ImageSource = Digits()
    """Source of the images; its `source` selects the kind."""
    partition: PartitionSettings = Iid()
    """Partition of the training set; its `scheme` selects the kind."""
    train_examples: Annotated[int, Field(ge=1)] | None = None
    """Number of training images, drawn by the seed: few images show robust overfitting quickly. None uses all."""
    label_noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Fraction of the training images whose label is replaced by another class, drawn by the seed. Fitting wrong labels
    makes robust overfitting show in few epochs on easy data; validation and test labels stay correct."""
    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Fraction of the training images held back to choose the best round; the released code uses the test set."""
    augment: Literal["none", "crop", "crop_flip"] = "none"
    """`crop`: zero-pad by 4 and crop at random; `crop_flip`: also mirror half of the images."""
    model: ModelSettings = ModelSettings(name="strided")
    attack: AttackSettings = AttackSettings()
    defense: DefenseSettings = DefenseSettings()
    training: TrainingSettings = TrainingSettings(
        learning_rate=0.01, momentum=0.9, weight_decay=3.5e-3, batch_size=128, epochs=1
    )
    schedule: tuple[tuple[float, float], ...] = ((0.0, 1.0), (1 / 3, 1.0), (2 / 3, 0.1), (1.0, 0.01))
    """Factor on the learning rate, piecewise linear: (round / rounds, factor); rounds count from 1."""
    keep_momentum: bool = True
    """A client reuses its momentum in its next round, as in one long training; false starts it from zero."""
    seat: bool = False
    """Also compute, and send, the moving average of the weights over every step (SEAT, Wang and Wang 2022)."""
    faulty_clients: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Fraction of the clients (those of the lowest numbers) whose weights arrive with outliers: an instrument."""
    faulty_scale: Annotated[float, Field(gt=0.0)] = 3.0
    """Standard deviation of those outliers, in units of each array's mean absolute weight."""
    measure: MeasureSettings = MeasureSettings()

    def rounds_needed_by(self) -> str:
        return "workload.schedule" if len({factor for _, factor in self.schedule}) > 1 else ""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        shares = [share for share, _ in self.schedule]
        if not shares or shares[0] != 0.0 or any(a >= b for a, b in pairwise(shares)) or shares[-1] > 1.0:
            raise ConfigError(f"workload.schedule: expected rising shares of the run from 0 to at most 1, got {shares}")
        if any(factor <= 0 for _, factor in self.schedule):
            raise ConfigError(f"workload.schedule: factors must be above 0, got {[f for _, f in self.schedule]}")
        if self.keep_momentum and self.training.optimizer != "sgd":
            raise ConfigError(
                f"workload.keep_momentum: only sgd's momentum can be stored, but the optimizer is "
                f"{self.training.optimizer!r}; set keep_momentum = false"
            )
        if self.defense.awp_warmup and not self.defense.awp_gamma:
            raise ConfigError("workload.defense.awp_warmup: has no effect while awp_gamma is 0; set awp_gamma")
        if self.defense.weight is not None and self.defense.name in ("none", "at"):
            raise ConfigError(f"workload.defense.weight: {self.defense.name!r} has no second term; remove it")
        return self
