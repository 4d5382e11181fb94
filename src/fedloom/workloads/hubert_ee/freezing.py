"""Parts of a network that one of two stages does not train, within a model all of whose arrays are sent."""

from __future__ import annotations

import torch
from torch import Tensor

from fedloom.workloads.hubert_ee.net import EarlyExit


class Frozen:
    """The branches, or all but the branches, held at the weights they have before the first step.

    An optimiser may decay weights that have no gradient, so they are restored after each step.

    Args:
        net: the network; its parameters' `requires_grad` is set.
        branches: whether the branches are frozen; otherwise all else.
    """

    def __init__(self, net: EarlyExit, *, branches: bool) -> None:
        self._parameters: list[Tensor] = []
        self._weights: list[Tensor] = []
        for name, parameter in net.named_parameters():
            is_frozen = name.startswith("branches.") == branches
            parameter.requires_grad_(not is_frozen and name != "hubert.masked_spec_embed")
            if is_frozen:
                self._parameters.append(parameter)

    def remember(self) -> None:
        """Take the weights as they are, at the first call."""
        if not self._weights:
            self._weights = [parameter.detach().clone() for parameter in self._parameters]

    def restore(self) -> None:
        """Set the weights to what they were."""
        with torch.no_grad():
            torch._foreach_copy_([parameter.detach() for parameter in self._parameters], self._weights)
