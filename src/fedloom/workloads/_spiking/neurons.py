"""A layer of IF or LIF neurons through snntorch, without global or persistent state.

snntorch registers all neurons of the process, saves constants with weights, and stores the last membrane.
Here each neuron is removed from the registry, its constants are buffers that no state dictionary shows, and the
membrane is created for every batch and dropped after it.
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
    """Constants of a neuron; float32 values, in any precision of the computation."""

    beta: float
    threshold: float
    hard: bool
    delayed: bool
    derivative: Derivative

    @classmethod
    def of(cls, settings: NeuronSettings) -> Dynamics:
        """Return the dynamics of the settings."""
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
        """Return the spikes of a batch, from a membrane of zero.

        Args:
            current: input currents, shape (T, b, ...), or (1, b, ...) if they are the same in every step.

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
        self.cell.mem = self.cell.reset = membrane.new_zeros(0)  # otherwise the last batch's graph stays alive
        return torch.stack(spikes)

    def _reset(self, membrane: Tensor, fired: Tensor) -> Tensor:
        """Reset immediately. snntorch's reset misses spikes: a membrane left above the threshold never fires again."""
        if self._dynamics.hard:
            return membrane * (1 - fired)
        return membrane - fired * self._dynamics.threshold


def _private_cell(dynamics: Dynamics) -> nn.Module:
    """Return one step of snntorch's leaky neuron, without its registry and without constants in the state."""
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
