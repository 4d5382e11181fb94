"""Settings of spiking classification."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.errors import ConfigError
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.partition_settings import Dirichlet, PartitionSettings
from fedloom.workloads._data.settings import Digits, ImageSource
from fedloom.workloads._spiking.settings import (
    Direct,
    EncoderSettings,
    LossName,
    ModelSettings,
    NeuronSettings,
    check_encoder,
)
from fedloom.workloads._vision.augment_settings import AugmentSettings

Rate = Annotated[float, Field(ge=0.0, le=1.0)]


class Config(TorchConfig):
    """Image classification with a spiking network."""

    name: str = "spiking_classification"
    data: ImageSource = Digits()
    """Source of the images; its `source` selects the kind."""
    partition: PartitionSettings = Dirichlet()
    """Partition of the training set; its `scheme` selects the kind."""
    model: ModelSettings = ModelSettings()
    neuron: NeuronSettings = NeuronSettings()
    encoder: EncoderSettings = Direct()
    """Encoding of an image over time; its `name` selects the kind."""
    time_steps: Annotated[int, Field(ge=1)] = 8
    """Steps T each example is shown for."""
    augment: AugmentSettings = AugmentSettings()
    loss: LossName = "rate"
    """`rate`: cross-entropy of the output's spike counts / T; `count`: of the counts, whose gradients are about T times
    as large; `step`: of each step's spikes, averaged; `mse_count`: squared distance of the counts to T times a target
    rate."""
    correct_rate: Rate = 1.0
    """Target rate of the correct class, for `mse_count`."""
    incorrect_rate: Rate = 0.0
    """Target rate of the other classes, for `mse_count`."""
    twin: bool = False
    """Train the non-spiking network of the same shape instead: with ReLU for neurons, logits for spikes, one step."""
    dead_rate_floor: Rate = 0.01
    """A layer whose mean firing rate is below this counts as dead."""
    program: Literal["auto", "group", "loop"] = "auto"
    """`group` trains a group's clients as one batched program (spiking MLP only), `loop` one after the other; `auto`
    uses `group` if possible. Changes the last bits of the result."""

    @property
    def batched(self) -> bool:
        """Return whether groups of clients are trained as one program."""
        return self.program != "loop" and self.model.name == "mlp" and not self.twin and self._is_plain

    @property
    def _is_plain(self) -> bool:
        """Return whether all clients train in equal steps on the same images, as the batched program requires."""
        return self.training.is_plain and not self.augment.changes

    @property
    def advice_when_dead(self) -> str:
        """Return the advice for a metric `dead` above 0."""
        return (
            "that fraction of the spiking layers fires less than workload.dead_rate_floor = "
            f"{self.dead_rate_floor:g} on held-out data. Dead layers rarely recover: lower "
            "workload.training.learning_rate, or the threshold"
        )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        check_encoder(self.encoder, self.time_steps, twin=self.twin)
        if self.program == "group" and not self.batched:
            network = "a twin" if self.twin else repr(self.model.name)
            training = "" if self._is_plain else ", with settings of training that are for single clients"
            raise ConfigError(
                f'workload.program: "group" trains spiking networks of workload.model.name "mlp" in equal steps only, '
                f"got {network}{training}. "
                'Set "auto" or "loop"'
            )
        return self

    def clients_have_state(self) -> bool:
        return False
