"""One optimiser for several networks, each with a step size of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedloom.core.errors import ConfigError
from fedloom.workloads._torch.optimizers import Optimizer, make_optimizer
from fedloom.workloads._torch.settings import TrainingSettings
from fedloom.workloads.geco.config import RegimeRates
from fedloom.workloads.geco.models import Nets


@dataclass(frozen=True, slots=True)
class _Part:
    """A network's tensors, by place among all, and what moves them."""

    places: tuple[int, ...]
    optimizer: Optimizer
    factor: float


class PerRegime:
    """Moves each network's parameters by `rate` times its own step size.

    Args:
        parameters: all parameters.
        nets: the networks they belong to.
        rates: step sizes.
        settings: the optimiser.

    Raises:
        ConfigError: a parameter belongs to no network, and there are several (adapters of a low-rank strategy).
    """

    def __init__(
        self, parameters: Sequence[Tensor], nets: Nets, rates: RegimeRates, settings: TrainingSettings
    ) -> None:
        owner = {p.data_ptr(): regime for regime in nets.regimes for p in nets.net(regime).parameters() if p.numel()}
        if len(nets.regimes) > 1 and any(p.data_ptr() not in owner for p in parameters):
            raise ConfigError(
                f"workload.regimes: a strategy with adapters of its own needs one regime, got {list(nets.regimes)}; "
                'set regimes = ["CEfAf"]'
            )
        owners = [owner.get(p.data_ptr(), nets.regimes[-1]) for p in parameters]
        self._parts = []
        for regime in nets.regimes:
            places = tuple(place for place, each in enumerate(owners) if each == regime)
            optimizer = make_optimizer([parameters[place] for place in places], settings)
            self._parts.append(_Part(places, optimizer, rates.of(regime)))
        self.base_rate = self.rate = settings.learning_rate

    def reset(self) -> None:
        """Reset all state: a new client begins."""
        for part in self._parts:
            part.optimizer.reset()

    def step(self, gradients: list[Tensor]) -> None:
        """Move the parameters; the gradients may be changed."""
        for part in self._parts:
            part.optimizer.rate = self.rate * part.factor
            part.optimizer.step([gradients[place] for place in part.places])
