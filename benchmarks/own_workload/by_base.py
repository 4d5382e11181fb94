"""The task as a subclass of `TorchWorkload`."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.own_workload.task import CLIENTS, SIZE, Network, examples, network
from fedloom.torch import Examples, TorchConfig, TorchWorkload


class Config(TorchConfig):
    """Which network."""

    network: Network = "mlp"


class ByBase(TorchWorkload[Config]):
    """Softmax classification; all that is written is model and data."""

    def model(self) -> nn.Module:
        return network(self.config.network)

    def dataset(self) -> Examples:
        x, y = examples()
        clients: list[tuple[Tensor, ...]] = [
            (x[k * SIZE : (k + 1) * SIZE], y[k * SIZE : (k + 1) * SIZE]) for k in range(CLIENTS)
        ]
        return Examples(train=clients, test_fraction=0.0)  # type: ignore[arg-type]  # tuples of tensors are sources


build_workload = ByBase
