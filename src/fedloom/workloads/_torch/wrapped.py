"""An optimiser of `torch.optim` in place of one of the settings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedloom.core.errors import PluginInvalid


class WrappedOptimizer:
    """An optimiser that a user's function makes; it starts afresh with each client.

    Args:
        parameters: what it moves.
        make: called once with them.

    Raises:
        PluginInvalid: the function returned no optimiser.
    """

    def __init__(self, parameters: list[Tensor], make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> None:
        found: object = make(parameters)
        if not isinstance(found, torch.optim.Optimizer):
            raise PluginInvalid(
                f"optimizer: found a {type(found).__name__}, expected a function of the parameters that returns a "
                "torch.optim.Optimizer: lambda parameters: torch.optim.SGD(parameters, lr=0.1)"
            )
        self._parameters, self._made = parameters, found
        self._settings = [
            {name: value for name, value in group.items() if name != "params"} for group in found.param_groups
        ]
        self.base_rate = float(self._settings[0]["lr"])
        self.rate = self.base_rate

    def reset(self) -> None:
        self._made.state.clear()
        for group, settings in zip(self._made.param_groups, self._settings, strict=True):
            group.update(settings)
        self.rate = self.base_rate

    def step(self, gradients: list[Tensor]) -> None:
        factor = self.rate / self.base_rate if self.base_rate else 1.0
        for group, settings in zip(self._made.param_groups, self._settings, strict=True):
            group["lr"] = settings["lr"] * factor
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._made.step()
        for parameter in self._parameters:
            parameter.grad = None
