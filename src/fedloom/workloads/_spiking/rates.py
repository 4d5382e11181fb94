"""Firing rates of every neuron on a client's examples, exact enough to be compared before and after training.

Membranes are computed in double precision, so that the order of a float32 sum cannot decide whether a neuron spikes:
rates do not depend on how examples are batched or ordered. Noise depends on the example, not on its place in a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedloom.core.errors import BadUpdate
from fedloom.core.records import Array, Arrays
from fedloom.workloads._spiking.layers import Layer, Trace
from fedloom.workloads._spiking.networks import Network
from fedloom.workloads._spiking.neurons import Dynamics, Neurons
from fedloom.workloads._spiking.stacked import stacked_spikes
from fedloom.workloads._torch.arrays import as_tensor

Layers = Literal["output", "all"]
Encode = Callable[[Array, int], Tensor]
"""Maps rows (n,) and a seed to their encoded input (T or 1, n, c, h, w), float32."""


class RateMeter:
    """Measures firing rates of a network in evaluation mode.

    Args:
        network: its own instance, float32; it is made double here.
        time_steps: T.
        encode: see `Encode`.
        batch_size: examples in a forward pass; without influence on the result.
    """

    def __init__(self, network: Network, time_steps: int, encode: Encode, batch_size: int) -> None:
        self._network = network.double().eval()
        self._tensors = dict(self._network.state_dict())
        self._time_steps, self._encode, self._batch_size = time_steps, encode, batch_size

    @property
    def layers(self) -> list[str]:
        """Return the names of the spiking layers, in order."""
        found = [layer for layer in self._network.modules() if isinstance(layer, Layer)]
        return [layer.name for layer in found if isinstance(layer.neurons, Neurons)]

    def measure(
        self, arrays: Arrays, rows: Array, rng: np.random.Generator, layers: Layers, *, per_sample: bool
    ) -> dict[str, Array]:
        """Measure one model on one client's rows; see the workload's `firing_rates`."""
        self._load(arrays)
        seed = noise_seed(rng)
        counts: list[dict[str, Array]] = []
        with torch.inference_mode():
            for start in range(0, len(rows), self._batch_size):
                trace = Trace()
                self._network(self._encode(rows[start : start + self._batch_size], seed).double(), trace)
                counts.append({n: s.sum(0).flatten(1).cpu().numpy() for n, s in _chosen(trace.spikes, layers).items()})
        return {name: self._rates([part[name] for part in counts], per_sample) for name in counts[0]}

    def measure_group(
        self,
        models: Sequence[Arrays],
        rows: Sequence[Array],
        rngs: Sequence[np.random.Generator],
        layers: Layers,
        dynamics: Dynamics,
        *,
        per_sample: bool,
    ) -> list[dict[str, Array]]:
        """Measure many models, each on its own client's rows, as one program; for the MLP. Equal to `measure`."""
        weights = self._stacked(models)
        seeds = [noise_seed(rng) for rng in rngs]
        order = sorted(range(len(rows)), key=lambda client: -len(rows[client]))  # a full block's clients come first
        counts: list[dict[str, list[Array]]] = [{} for _ in rows]
        with torch.inference_mode():
            for start in range(0, len(rows[order[0]]), self._batch_size):
                active = [client for client in order if len(rows[client]) > start]
                parts = [rows[client][start : start + self._batch_size] for client in active]
                spikes = self._block(
                    [tensor[active] for tensor in weights], parts, [seeds[c] for c in active], dynamics
                )
                for place, (client, part) in enumerate(zip(active, parts, strict=True)):
                    for name, layer in _chosen(spikes, layers).items():
                        mine = layer[place, :, : len(part)].sum(0).cpu().numpy()
                        counts[client].setdefault(name, []).append(mine)
        return [{name: self._rates(found, per_sample) for name, found in mine.items()} for mine in counts]

    def outputs(self, arrays: Arrays, rows: Array, rng: np.random.Generator, dynamics: Dynamics | None) -> Tensor:
        """Return spikes of the output layer, (T, n, C), float64; by the MLP's program if its dynamics are given."""
        seed = noise_seed(rng)
        batches = [rows[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]
        with torch.inference_mode():
            if dynamics is not None:
                weights = self._stacked([arrays])
                return torch.cat([self._block(weights, [b], [seed], dynamics)["output"][0] for b in batches], 1)
            self._load(arrays)
            return torch.cat([self._network(self._encode(b, seed).double(), Trace()) for b in batches], 1)

    def _block(
        self, weights: list[Tensor], parts: list[Array], seeds: list[int], dynamics: Dynamics
    ) -> dict[str, Tensor]:
        """Return spikes (A, T, b, n) of each layer on a block of each client's rows, short ones padded with zeros."""
        longest = max(map(len, parts))
        encoded = [self._encode(part, seed).flatten(2).transpose(0, 1) for part, seed in zip(parts, seeds, strict=True)]
        x = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True)[:, :longest].transpose(1, 2)
        names = [name for name, _ in self._network.named_children()]
        return dict(zip(names, stacked_spikes(weights, x.double(), self._time_steps, dynamics), strict=True))

    def _rates(self, counts: list[Array], per_sample: bool) -> Array:
        """Return spike counts of the batches (b, neurons) as rates; sums of whole counts are exact."""
        joined = np.concatenate(counts)
        if per_sample:
            return np.asarray(joined / self._time_steps)
        return np.asarray(joined.sum(0) / (len(joined) * self._time_steps))

    def _load(self, arrays: Arrays) -> None:
        self._check(arrays)
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(as_tensor(arrays[name]))

    def _stacked(self, models: Sequence[Arrays]) -> list[Tensor]:
        for arrays in models:
            self._check(arrays)
        device = next(iter(self._tensors.values())).device
        return [
            torch.stack([as_tensor(arrays[name]).to(device, torch.float64) for arrays in models])
            for name in self._tensors
        ]

    def _check(self, arrays: Arrays) -> None:
        want = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        got = {name: array.shape for name, array in arrays.items()}
        if want != got:
            odd = sorted(name for name in want.keys() | got.keys() if want.get(name) != got.get(name))
            raise BadUpdate(
                f"firing rates: array {odd[0]!r} has shape {got.get(odd[0])}, this network has "
                f"{want.get(odd[0])} ({len(odd)} arrays differ). Do server and agent run the same experiment?"
            )


def noise_seed(rng: np.random.Generator) -> int:
    """Return a seed for the examples' noise. The generator is read, not advanced: the next call gives the same seed."""
    return int(copy.deepcopy(rng).integers(2**63))


def _chosen(spikes: Mapping[str, Tensor], layers: Layers) -> dict[str, Tensor]:
    return {name: s for name, s in spikes.items() if layers == "all" or name == "output"}
