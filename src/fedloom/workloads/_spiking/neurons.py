"""A layer of IF or LIF neurons through snntorch, with nothing of it shared, remembered or sent.

snntorch keeps a list of all neurons of the process, saves constants beside weights, and remembers the last membrane.
Here each neuron leaves that list at once, its constants are buffers that no state dictionary shows, and the membrane
is made anew for every batch and forgotten after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import snntorch
import torch
from torch import Tensor, nn

from fedloom.workloads._spiking.settings import LIF_BETA, NeuronSettings
from fedloom.workloads._spiking.surrogates import Derivative, make_derivative, spike_function


@dataclass(frozen=True, slots=True)
class Dynamics:
    """What a neuron does, in numbers; they are float32's, whatever precision computes with them."""

    beta: float
    threshold: float
    hard: bool
    delayed: bool
    derivative: Derivative

    @classmethod
    def of(cls, settings: NeuronSettings) -> Dynamics:
        """The dynamics settings describe."""
        beta = 1.0 if settings.kind == "if" else LIF_BETA if settings.beta is None else settings.beta
        return cls(
            beta=float(np.float32(beta)),
            threshold=float(np.float32(settings.threshold)),
            hard=settings.reset == "hard",
            delayed=settings.reset_delay,
            derivative=make_derivative(settings),
        )


class Neurons(nn.Module):
    """A layer of neurons over all time steps; no parameters, and an empty state dictionary."""

    def __init__(self, settings: NeuronSettings, time_steps: int) -> None:
        super().__init__()
        self._time_steps = time_steps
        self._dynamics = Dynamics.of(settings)
        self.cell = _private_cell(self._dynamics)

    def forward(self, current: Tensor) -> Tensor:
        """Spikes of a batch, from a membrane of zero.

        Args:
            current: input currents, shape (T, b, ...), or (1, b, ...) where they are the same in every step.

        Returns:
            Spikes, zeros and ones, shape (T, b, ...), dtype of `current`.
        """
        membrane = torch.zeros_like(current[0])
        drives = current.unbind(0) if len(current) > 1 else (current[0],) * self._time_steps
        spikes: list[Tensor] = []
        for drive in drives:
            fired, membrane = self.cell(drive, membrane)
            spikes.append(fired)
            if not self._dynamics.delayed:
                membrane = self._reset(membrane, fired.detach())
        self.cell.mem = self.cell.reset = membrane.new_zeros(0)  # else the last batch's graph stays alive
        return torch.stack(spikes)

    def _reset(self, membrane: Tensor, fired: Tensor) -> Tensor:
        """The reset at once. snntorch's own loses spikes: a membrane left above the threshold never fires again."""
        if self._dynamics.hard:
            return membrane * (1 - fired)
        return membrane - fired * self._dynamics.threshold


def _private_cell(dynamics: Dynamics) -> nn.Module:
    """One step of snntorch's leaky neuron, out of its registry, constants out of the state dictionary."""
    mechanism = ("zero" if dynamics.hard else "subtract") if dynamics.delayed else "none"
    cell: nn.Module = snntorch.Leaky(
        beta=dynamics.beta,
        threshold=dynamics.threshold,
        spike_grad=spike_function(dynamics.derivative),
        init_hidden=False,
        reset_mechanism=mechanism,
    )
    registered = snntorch.SpikingNeuron.instances
    registered[:] = [neuron for neuron in registered if neuron is not cell]
    for name, constant in dict(cell.named_buffers(recurse=False)).items():
        delattr(cell, name)
        cell.register_buffer(name, constant, persistent=False)
    return cell
