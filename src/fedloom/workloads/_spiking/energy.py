"""Activity of a pass as sums over its examples: spikes by layer, and an estimate of energy.

The estimate follows a common convention: 0.9 pJ for an accumulate and 4.6 pJ for a multiply-accumulate of 32-bit
floats in 45 nm (Horowitz 2014, "Computing's energy problem"). A spike costs one accumulate for each synapse it
reaches; a layer that reads currents costs a multiply-accumulate for each synapse, once per example since a constant
current is computed once. Memory, membranes, normalisation and biases are ignored, so it is not an estimate for a real
chip.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedloom.workloads._spiking.layers import Trace

ACCUMULATE_PJ = 0.9
MULTIPLY_ACCUMULATE_PJ = 4.6


def rate_sums(trace: Trace, count: int | None = None) -> dict[str, Tensor]:
    """Return the mean firing rate over neurons and steps, summed over the batch's first `count` examples (None: all).

    A float64 scalar for each spiking layer.
    """
    spikes = {name: s.detach()[:, :count] for name, s in trace.spikes.items()}
    return {name: s.sum(dtype=torch.float64) / s[:, 0].numel() for name, s in spikes.items()}


def spike_sum(trace: Trace) -> Tensor:
    """Return the spikes of all layers, summed over neurons, steps and the batch's examples; float64."""
    return torch.stack([s.detach().sum(dtype=torch.float64) for s in trace.spikes.values()]).sum()


def energy_sum(trace: Trace, *, spiking_input: bool) -> Tensor:
    """Return the estimated energy, summed over the batch's examples; pJ, float64.

    A layer's fan-out is its products over its inputs: its mean number of synapses for each input.

    Args:
        trace: of a pass.
        spiking_input: whether the first layer reads spikes.
    """
    first = next(iter(trace.inputs))
    energies: list[Tensor] = []
    for name, x in trace.inputs.items():
        products, batch = trace.products[name], x.shape[1]
        if trace.spikes and (name != first or spiking_input):
            fan_out = products / x[0, 0].numel()
            energies.append(torch.count_nonzero(x).double() * (fan_out * ACCUMULATE_PJ))
        else:
            energies.append(torch.tensor(products * batch * MULTIPLY_ACCUMULATE_PJ, dtype=torch.float64))
    return torch.stack([energy.cpu() for energy in energies]).sum()
