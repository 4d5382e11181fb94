"""Settings of spiking networks, with no heavy import."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError

LIF_BETA = 0.95
"""Default leak of `lif`."""
SURROGATE_CONSTANTS = {"atan": 2.0, "fast_sigmoid": 25.0, "triangular": 0.3}
"""Default constant of each surrogate."""

LossName = Literal["count", "rate", "step", "mse_count"]


class ModelSettings(Settings):
    """The network. Its input follows the data and the encoder, its output layer has a neuron for each class."""

    name: Literal["mlp", "conv", "vgg9", "resnet8"] = "mlp"
    """`mlp`: dense layers; `conv`: a convolution of 64 channels and two of 128, each of these pooled; `vgg9`: seven
    convolutions and two dense layers; `resnet8`: He et al. 2016, section 4.2, with spikes on the shortcuts."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64,)
    """Widths of the hidden layers of `mlp`."""
    norm: Literal["none", "group", "batch_through_time"] = "group"
    """Normalisation of the convolutions. Batch statistics, one set for each time step, are sent and averaged."""


class NeuronSettings(Settings):
    """The neurons of every layer, the output's included.

    Membrane U, input current I, threshold θ, leak β: U[t] = β U[t-1] + I[t], and a spike where U[t] > θ (strictly).
    """

    kind: Literal["if", "lif"] = "if"
    """`if` integrates without leak (beta is 1); `lif` leaks."""
    beta: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Fraction of the membrane that remains after a step, for `lif`; dimensionless; None takes 0.95."""
    threshold: Annotated[float, Field(gt=0.0)] = 1.0
    """Membrane above which a neuron spikes; dimensionless."""
    reset: Literal["soft", "hard"] = "soft"
    """After a spike: `soft` subtracts the threshold, `hard` sets the membrane to zero."""
    reset_delay: bool = True
    """Whether the reset acts with the next step, after the leak (snntorch's default), or immediately. Spikes differ
    only for a leaky neuron with soft reset: then a delayed reset subtracts θ, an immediate one β θ."""
    surrogate: Literal["atan", "fast_sigmoid", "triangular", "straight_through"] = "atan"
    """Surrogate of the spike's derivative in the backward pass."""
    surrogate_constant: Annotated[float, Field(gt=0.0)] | None = None
    """alpha of `atan` (None: 2), slope of `fast_sigmoid` (25), height of `triangular` (0.3)."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "if" and self.beta is not None:
            raise ConfigError(
                f'workload.neuron.beta: {self.beta:g} given, but a neuron of kind "if" has no leak. '
                'Remove it, or set workload.neuron.kind = "lif"'
            )
        if self.surrogate == "straight_through" and self.surrogate_constant is not None:
            raise ConfigError(
                f'workload.neuron.surrogate_constant: {self.surrogate_constant:g} given, but "straight_through" has '
                "no constant. Remove it, or choose another surrogate"
            )
        return self


class Direct(Settings):
    """The image itself, as the same input current in every step."""

    name: Literal["direct"] = "direct"
    values: Literal["standardised", "unit"] = "standardised"
    """`standardised`: mean 0 and deviation 1 per channel; `unit`: the training set's range as 0 to 1."""
    gain: Annotated[float, Field(gt=0.0)] = 1.0
    """Factor on the values."""


class Poisson(Settings):
    """A spike in each step with probability gain times intensity (the training set's range as 0 to 1)."""

    name: Literal["poisson"] = "poisson"
    gain: Annotated[float, Field(gt=0.0)] = 1.0
    """Factor on the intensity; products above 1 spike in every step."""


class Latency(Settings):
    """One spike for each pixel, the earlier the brighter: intensity x spikes in step round((1 - x)(T - 1))."""

    name: Literal["latency"] = "latency"
    floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """Intensities up to this never spike."""


class Delta(Settings):
    """Event-like data: an image's channels are successive frames, and a change of intensity is a spike."""

    name: Literal["delta"] = "delta"
    threshold: Annotated[float, Field(gt=0.0)] = 0.1
    """Least change that spikes, as a share of the training set's range. The first frame is compared with darkness."""
    off_events: bool = True
    """Whether decreases spike too, in a separate channel."""


EncoderSettings = Annotated[Direct | Poisson | Latency | Delta, Field(discriminator="name")]


def check_encoder(encoder: Direct | Poisson | Latency | Delta, time_steps: int, *, twin: bool) -> None:
    """Reject settings that are invalid for any data.

    Raises:
        ConfigError: the encoder does not fit the number of steps, or the twin.
    """
    if twin and encoder.name != "direct":
        raise ConfigError(
            f'workload.encoder.name: {encoder.name!r} given, but a twin reads the image itself. Set "direct"'
        )
    if encoder.name in ("latency", "delta") and time_steps < 2:
        raise ConfigError(
            f"workload.time_steps: {encoder.name!r} puts the information into the time of spikes and needs at least 2 "
            f"steps, got {time_steps}"
        )
