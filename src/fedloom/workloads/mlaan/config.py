"""Settings of learning module by module."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import PlainWord
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.partition_settings import Iid, PartitionSettings
from fedloom.workloads._data.settings import Digits, ImageSource
from fedloom.workloads._torch.settings import TrainingSettings
from fedloom.workloads._vision.augment_settings import AugmentSettings
from fedloom.workloads.mlaan import leap
from fedloom.workloads.mlaan.modes import Mode, mode

Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class NetSettings(Settings):
    """The residual network in CIFAR's form (He et al. 2016, section 4.2, with 1 x 1 convolutions as shortcuts)."""

    depth: Annotated[int, Field(ge=8)] = 32
    """Layers, 6n + 2, for three stages of n blocks: 32 is ResNet-32 (15 blocks), 110 is ResNet-110 (54 blocks)."""
    widths: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (16, 32, 64)
    """Channels of the three stages."""
    stem_stride: Literal[1, 2] = 1
    """Stride of the first convolution; 2 makes everything after it four times cheaper."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation. `batch`: its statistics are sent and averaged; `group` has none, for clients of unlike data."""

    @property
    def per_stage(self) -> int:
        """Return n, the blocks of a stage."""
        return (self.depth - 2) // 6

    @property
    def blocks(self) -> int:
        """Return the blocks of the network, 3n."""
        return 3 * self.per_stage

    @pydantic.model_validator(mode="after")
    def _has_stages(self) -> Self:
        if (self.depth - 2) % 6:
            raise ConfigError(f"workload.net.depth: expected 6n + 2 (8, 14, 20, 32, 110, …), got {self.depth}")
        return self


class MultilaminarSettings(Settings):
    """Multilaminar local modules: an independent loss for each module, and a cascade over the last k modules."""

    window: Annotated[int, Field(ge=1)] = 3
    """k, modules that a cascade's gradient passes through."""
    independent: Weight = 0.001
    """w_x, the weight of a module's independent loss; released: 0.001, in the ablation without leaps 0.01."""
    cascade: Weight = 0.999
    """w_y, the weight of the cascade's loss; released: 0.999, in the ablation without leaps 0.99."""
    early: Literal["truncated", "members"] = "truncated"
    """The first k - 1 modules. `truncated`: their cascades begin at the image; `members`: they have no loss, and learn
    from later cascades only, as in the released code."""
    statistics: Literal["once", "repeated"] = "once"
    """Running statistics of batch normalisation: updated once per batch as without cascades, or in every pass through a
    module, as in the released code."""

    @pydantic.model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if not self.independent + self.cascade > 0:
            raise ConfigError("workload.multilaminar: independent and cascade are both 0, so that no module learns")
        return self


class LeapSettings(Settings):
    """Leap augmented modules: auxiliary networks begin with copies of later blocks, tied to them by moving averages.

    The trainable copies A start from the backbone's blocks, as do the averages E: E <- m E + (1 - m) w after each
    batch, before the optimiser's step, with the weights w of the backbone's block.
    """

    depth: Annotated[int, Field(ge=1)] = 4
    """d, copied blocks of an early module; later modules have fewer."""
    rule: leap.Rule = "leap"
    """`leap`: the entries of later stages and blocks spread over the last stage; `next`: the blocks right after the
    module; `random`: entries, and others drawn by the seed."""
    blocks: tuple[tuple[tuple[int, int], ...], ...] | None = None
    """The copied blocks of every module but the last, as [stage, block] (from 1, and from 0), in place of a rule."""
    wiring: Literal["first", "whole"] = "first"
    """`first`: z <- A_1(z) + E_1(z), then A_2, A_3, …; `whole`: z <- A(z) + E(z) with both chains complete."""
    momentum: Annotated[float, Field(ge=0.0, le=1.0)] = 0.995
    """m of the moving average; half-life ln 2 / (1 - m) steps, 139 for 0.995."""
    average: Literal["updated", "frozen", "none"] = "updated"
    """`frozen`: E stays what it was at the start (what the released CIFAR code does for all modules but the last);
    `none`: there is no E."""
    at_round: Literal["keep", "reset"] = "keep"
    """What a client's E is at a round's start: its own of its last round, or the blocks of the global model."""


class InfoProSettings(Settings):
    """InfoPro's local loss (Wang et al. 2021): lambda_1 reconstruction + lambda_2 task."""

    reconstruction: tuple[Weight, Weight] = (5.0, 0.2)
    """lambda_1 at the first and at the last but one module, linear in between; for ResNet-32 with 16 modules."""
    task: tuple[Weight, Weight] = (0.05, 0.5)
    """lambda_2 likewise."""
    loss: Literal["softmax", "contrast"] = "softmax"
    """The task's loss: cross-entropy, or supervised contrastive."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.07
    """Temperature of `contrast`; dimensionless."""


class AugLocalSettings(Settings):
    """AugLocal's auxiliary networks (Ma et al. 2024)."""

    depth: Annotated[int, Field(ge=1)] = 3
    """d, blocks of the first module's."""
    decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """tau, how fast the depth falls from module to module."""


class Config(TorchConfig):
    """Local learning of an image classifier, and end-to-end learning for comparison.

    Several modes learn in one run, from the same initial weights and the same minibatches; none influences another.
    """

    name: str = "mlaan"
    modes: Annotated[tuple[PlainWord, ...], Field(min_length=1)] = ("dgl_mlaan",)
    """`end_to_end`; `greedy`, `dgl`, `infopro`, `auglocal`, each alone or with `_mlm` (multilaminar local modules),
    `_lam` (leap augmented modules) or `_mlaan` (both). The last one is the run's `accuracy`."""
    data: ImageSource = Digits()
    """Source of the images; its `source` selects the kind."""
    train_examples: Annotated[int, Field(ge=1)] | None = None
    """Number of training images, drawn by the seed; None uses all."""
    partition: PartitionSettings = Iid()
    """Partition of the training set; its `scheme` selects the kind."""
    augment: AugmentSettings = AugmentSettings()
    net: NetSettings = NetSettings()
    modules: Annotated[int, Field(ge=1)] | None = None
    """K, modules of the network; None makes every block one. The stem is part of the first, the classifier is the last
    one's."""
    multilaminar: MultilaminarSettings = MultilaminarSettings()
    leap: LeapSettings = LeapSettings()
    head: Literal["auto", "linear", "conv"] = "auto"
    """Auxiliary heads of `dgl` and `infopro`. `conv`: a 3 x 3 convolution and two linear layers; `linear`: pooling
    and one; `auto`: `linear` with leap augmented modules, as in the released code, otherwise `conv`."""
    infopro: InfoProSettings = InfoProSettings()
    auglocal: AugLocalSettings = AugLocalSettings()
    auxiliary: Literal["personal", "sent"] = "personal"
    """`personal`: auxiliary networks stay with the client; `sent`: they are part of the global model."""
    fleet: tuple[tuple[int, int], ...] = ()
    """Modules [a, b] (from 1 to K) that a client trains, in turn: client c has entry c modulo their number. [0, 0]
    trains nothing. Ranges smaller than [1, K] need the strategy `partial`. Empty: every client trains all."""
    training: TrainingSettings = TrainingSettings(
        learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, batch_size=128, epochs=1
    )
    keep_momentum: bool = True
    """A client reuses its momentum in its next round, as in one long training; false starts it from zero."""

    @property
    def num_modules(self) -> int:
        """Return K."""
        return self.net.blocks if self.modules is None else self.modules

    @property
    def parsed_modes(self) -> tuple[Mode, ...]:
        """Return the modes."""
        return tuple(mode(name) for name in self.modes)

    def range_of(self, client: int) -> tuple[int, int]:
        """Return the modules a client trains, as (first, behind the last), from 0."""
        first, last = self.fleet[client % len(self.fleet)] if self.fleet else (1, self.num_modules)
        return first - 1, last

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        modes = self.parsed_modes
        if len({*self.modes}) < len(modes):
            raise ConfigError(f"workload.modes: expected different modes, got {list(self.modes)}")
        cut = leap.partition(self.net.blocks, self.num_modules)
        if self.leap.blocks is not None:
            leap.check_lists(self.leap.blocks, cut, len(self.net.widths))
        if any(each.multilaminar for each in modes) and self.multilaminar.window > len(cut):
            raise ConfigError(
                f"workload.multilaminar.window: expected at most {len(cut)}, the modules of the network, got "
                f"{self.multilaminar.window}"
            )
        self._check_fleet(modes, len(cut))
        self._check_training(len(modes))
        return self

    def _check_fleet(self, modes: tuple[Mode, ...], modules: int) -> None:
        for first, last in self.fleet:
            if (first, last) != (0, 0) and not 1 <= first <= last <= modules:
                raise ConfigError(
                    f"workload.fleet: expected [a, b] with 1 <= a <= b <= {modules}, the modules, or [0, 0], got "
                    f"[{first}, {last}]"
                )
            if (first, last) not in ((0, 0), (1, modules)) and not all(each.is_local for each in modes):
                raise ConfigError(
                    f"workload.fleet: a client with modules [{first}, {last}] of {modules} cannot learn end to end; "
                    "remove 'end_to_end' from workload.modes"
                )

    def _check_training(self, modes: int) -> None:
        training = self.training
        if self.keep_momentum and training.optimizer != "sgd":
            raise ConfigError(
                f"workload.keep_momentum: only sgd's momentum can be stored, but the optimizer is "
                f"{training.optimizer!r}; set keep_momentum = false"
            )
        if training.precision != "float32":
            raise ConfigError(
                f"workload.training.precision: expected 'float32' for this workload, got {training.precision!r}"
            )
        for key, value in (("clip_norm", training.clip_norm), ("early_stopping", training.early_stopping)):
            if modes > 1 and value is not None:
                raise ConfigError(f"workload.training.{key}: would couple the {modes} modes of one run; set one mode")

    def rounds_needed_by(self) -> str:
        return self.training.rounds_needed_by
