"""The networks: from settings and the data's shape to a module over time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from fedloom.core.errors import ConfigError
from fedloom.workloads._spiking.layers import BatchNormThroughTime, Block, GroupNorm, Layer, Trace
from fedloom.workloads._spiking.neurons import Neurons
from fedloom.workloads._spiking.settings import ModelSettings, NeuronSettings

_GROUPS = 8
"""Groups of group normalisation: every number of channels is a multiple."""
_POOLINGS = {"conv": 2, "vgg9": 3}
"""The number of times a network halves the image; the ResNet works with any size."""


class Network(nn.Sequential):
    """Layers over time, in order, by name."""

    def forward(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        """Map an encoded batch to the output layer.

        Args:
            x: shape (T, b, c, h, w), or (1, b, c, h, w) for a current that does not change.
            trace: is filled with the layers' activity.

        Returns:
            The output's spikes, shape (T, b, classes); of a twin its logits, shape (1, b, classes).
        """
        trace = Trace() if trace is None else trace
        for layer in self:
            x = layer(x, trace)
        return x


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a network is made from."""

    model: ModelSettings
    neuron: NeuronSettings
    time_steps: int
    shape: tuple[int, int, int]
    """Channels, height, width of one step's input."""
    num_labels: int
    twin: bool = False
    """Whether ReLU replaces the neurons, and logits the output's spikes."""

    def hidden(self) -> nn.Module:
        """Return the neurons of a hidden layer."""
        return nn.ReLU() if self.twin else Neurons(self.neuron, self.time_steps)

    def output(self, width: int) -> Layer:
        """Return the last layer."""
        neurons = nn.Identity() if self.twin else Neurons(self.neuron, self.time_steps)
        return Layer("output", nn.Linear(width, self.num_labels), neurons)

    def norm(self, channels: int) -> nn.Module | None:
        """Return the normalisation of a convolution."""
        if self.model.norm == "none":
            return None
        if self.model.norm == "group":
            return GroupNorm(_GROUPS, channels)
        return BatchNormThroughTime(channels, 1 if self.twin else self.time_steps)

    def convolution(self, name: str, before: int, after: int, stride: int = 1, pool: nn.Module | None = None) -> Layer:
        """Return a 3 x 3 convolution; it has a bias only if no normalisation follows."""
        synapses = nn.Conv2d(before, after, 3, stride, 1, bias=self.model.norm == "none")
        return Layer(name, synapses, self.hidden(), self.norm(after), pool)


def build_network(plan: Plan) -> Network:
    """Return the network a plan describes, float32, initialised by torch's generator.

    Its state dictionary holds trained parameters, and with `batch_through_time` running statistics; nothing else.

    Raises:
        ConfigError: the images are too small for the network's poolings.
    """
    halvings = _POOLINGS.get(plan.model.name, 0)
    if min(plan.shape[1:]) < 2**halvings:
        raise ConfigError(
            f"workload.model.name: {plan.model.name!r} halves the image {halvings} times and needs sides of at least "
            f"{2**halvings} pixels, the data has {plan.shape[1]} x {plan.shape[2]}"
        )
    return Network(OrderedDict(_BUILDERS[plan.model.name](plan)))


def _mlp(plan: Plan) -> list[tuple[str, nn.Module]]:
    channels, height, width = plan.shape
    widths = [channels * height * width, *plan.model.hidden]
    hidden: list[tuple[str, nn.Module]] = []
    for index, (before, after) in enumerate(pairwise(widths), 1):
        hidden.append((f"hidden{index}", Layer(f"hidden{index}", nn.Linear(before, after), plan.hidden())))
    return [*hidden, ("output", plan.output(widths[-1]))]


def _plain_convolutions(plan: Plan, widths: tuple[int, ...], pooled: frozenset[int]) -> tuple[list[Layer], int]:
    """Return convolutions in a row, max-pooled after the numbers in `pooled`, and the size of the last one's output."""
    channels, height, width = plan.shape
    layers: list[Layer] = []
    for index, after in enumerate(widths, 1):
        pool = nn.MaxPool2d(2) if index in pooled else None
        layers.append(plan.convolution(f"conv{index}", channels, after, pool=pool))
        channels = after
        if pool is not None:
            height, width = height // 2, width // 2
    return layers, channels * height * width


def _conv(plan: Plan) -> list[tuple[str, nn.Module]]:
    layers, width = _plain_convolutions(plan, (64, 128, 128), frozenset({2, 3}))
    return [*((layer.name, layer) for layer in layers), ("output", plan.output(width))]


def _vgg9(plan: Plan) -> list[tuple[str, nn.Module]]:
    layers, width = _plain_convolutions(plan, (64, 64, 128, 128, 256, 256, 256), frozenset({2, 4, 7}))
    dense = Layer("dense", nn.Linear(width, 1024), plan.hidden())
    return [*((layer.name, layer) for layer in [*layers, dense]), ("output", plan.output(1024))]


def _resnet8(plan: Plan) -> list[tuple[str, nn.Module]]:
    """Return a convolution, and a block each with 16, 32 and 64 channels; then the mean over the image."""
    layers: list[tuple[str, nn.Module]] = [("conv1", plan.convolution("conv1", plan.shape[0], 16))]
    before = 16
    for index, after in enumerate((16, 32, 64), 1):
        stride = 1 if after == before else 2
        pool = nn.AdaptiveAvgPool2d(1) if after == 64 else None
        first = plan.convolution(f"block{index}a", before, after, stride)
        second = plan.convolution(f"block{index}b", after, after, pool=pool)
        layers.append((f"block{index}", Block(first, second, stride, after - before)))
        before = after
    return [*layers, ("output", plan.output(64))]


_BUILDERS: dict[str, Callable[[Plan], list[tuple[str, nn.Module]]]] = {
    "mlp": _mlp,
    "conv": _conv,
    "vgg9": _vgg9,
    "resnet8": _resnet8,
}
