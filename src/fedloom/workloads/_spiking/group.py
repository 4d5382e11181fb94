"""Training a whole group of clients as one program; the arithmetic of the plain loop, client by client, but batched.

G clients, A of them still at work, T time steps, b examples in a padded minibatch. What is not a client's
has weight 0: rows that pad its minibatch, and steps after its last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedloom.core.records import MODEL, Array, Arrays, Mean, Update
from fedloom.workloads._spiking.encoders import Encoder
from fedloom.workloads._spiking.losses import Loss, masked_means
from fedloom.workloads._spiking.neurons import Dynamics
from fedloom.workloads._spiking.stacked import stacked_spikes
from fedloom.workloads._spiking.traces import RateTrace
from fedloom.workloads._torch.arrays import as_array, as_tensor
from fedloom.workloads._torch.optimizers import clip_by_norm, make_optimizer
from fedloom.workloads._torch.scope import exact
from fedloom.workloads._torch.settings import TrainingSettings


@dataclass(frozen=True, slots=True)
class _Client:
    """One client's work, drawn from its own generator as the plain loop draws it."""

    place: int
    """Original position in the group."""
    batches: list[Array]
    """Row numbers of each step."""
    noise: torch.Generator
    num_examples: int

    @classmethod
    def draw(
        cls, place: int, rows: Array, settings: TrainingSettings, rng: np.random.Generator, device: str
    ) -> _Client:
        noise = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
        batches: list[Array] = []
        for _ in range(settings.epochs):
            order = rows[rng.permutation(len(rows))]
            batches += np.split(order, range(settings.batch_size, len(order), settings.batch_size))
        return cls(place, batches[: settings.max_steps], noise, len(rows))


@dataclass(slots=True)
class _Tally:
    """Sums over one client's steps."""

    losses: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    spikes: list[float] = field(default_factory=list)
    """Spikes of each layer, divided by steps and neurons."""
    trace: RateTrace | None = None


@dataclass(frozen=True, slots=True)
class GroupTrainer:
    """Trains groups of clients of a spiking MLP. Stateless: has settings and data only."""

    settings: TrainingSettings
    dynamics: Dynamics
    encoder: Encoder
    loss: Loss
    time_steps: int
    images: Tensor
    """Training set, (n, c, h, w), float32, on the device of the work."""
    labels: Tensor
    """Its classes, (n,), int64."""
    padded_size: int
    """Examples in a padded minibatch: no client of the federation exceeds it, so results do not depend on the group."""

    def train(
        self, arrays: Arrays, rows: Sequence[Array], rngs: Sequence[np.random.Generator], *, trace: bool = False
    ) -> list[Update]:
        """Train every client from the same global model.

        Args:
            arrays: weights (out, in) and biases (out,) of each layer in turn, float32.
            rows: each client's row numbers, shape (n_k,), int64, n_k >= 1.
            rngs: each client's own randomness, used as the plain loop uses it.
            trace: whether updates contain traces of the rates, see `RateTrace`.

        Returns:
            An update for each client, in order: trained arrays, mean training loss, mean firing rates.
        """
        device = self.images.device
        drawn = [
            _Client.draw(place, mine, self.settings, rng, device.type)
            for place, (mine, rng) in enumerate(zip(rows, rngs, strict=True))
        ]
        clients = sorted(drawn, key=lambda client: -len(client.batches))  # those still at work are always the first
        names = [name.removesuffix(".synapses.weight") for name in arrays if name.endswith(".weight")]
        tallies = [_Tally(trace=self._new_trace(client) if trace else None) for client in clients]
        updates: list[Update | None] = [None] * len(clients)
        with exact(device):
            stack = [
                as_tensor(array).to(device).expand(len(clients), *array.shape).clone() for array in arrays.values()
            ]
            optimizer = make_optimizer(stack, self.settings)
            optimizer.reset()
            active = len(clients)
            for step in range(len(clients[0].batches)):
                optimizer.step(self._gradients(stack, clients[:active], tallies, step, names))
                while active and len(clients[active - 1].batches) == step + 1:
                    active -= 1
                    client = clients[active]
                    updates[client.place] = self._update(arrays, stack, active, client, tallies[active])
        return [update for update in updates if update is not None]

    def _new_trace(self, client: _Client) -> RateTrace:
        return RateTrace.of(client.num_examples, self.settings, self.time_steps)

    def _gradients(
        self, stack: list[Tensor], clients: list[_Client], tallies: list[_Tally], step: int, names: list[str]
    ) -> list[Tensor]:
        """Compute the gradients of one step, zero for clients that are done, and add the step to the tallies."""
        active = len(clients)
        size = self.padded_size
        batches = [client.batches[step] for client in clients]
        counts = np.array([len(batch) for batch in batches])
        rows = np.stack([np.pad(batch, (0, size - len(batch)), mode="edge") for batch in batches])
        mask = torch.from_numpy(np.arange(size) < counts[:, None]).to(stack[0])  # (A, b)
        index = torch.from_numpy(rows).to(self.images.device).view(-1)
        leaves = [tensor[:active].detach().requires_grad_() for tensor in stack]
        spikes = stacked_spikes(leaves, self._inputs(index, clients, counts, size), self.time_steps, self.dynamics)
        outputs = spikes[-1].transpose(0, 1).flatten(1, 2)  # (T, A b, C)
        losses = self.loss(outputs, self.labels.index_select(0, index)).view(active, size)
        means = masked_means(losses, mask)
        gradients = [gradient.contiguous() for gradient in torch.autograd.grad(means.sum(), leaves)]
        with torch.no_grad():
            rates = [(s.sum((1, 3)) * mask).sum(1).double() / (s.shape[1] * s.shape[3]) for s in spikes]
        if tallies[0].trace is not None:
            _trace(dict(zip(names, spikes, strict=True)), mask, tallies, counts, step)
        reported = torch.stack([means.detach().double(), *rates], 1).cpu().tolist()
        for tally, count, (loss, *rate) in zip(tallies, counts.tolist(), reported, strict=False):
            tally.losses.append(loss)
            tally.counts.append(count)
            tally.spikes = [before + now for before, now in zip(tally.spikes or [0.0] * len(rate), rate, strict=True)]
        if self.settings.clip_norm is not None:
            for client in range(active):
                clip_by_norm([gradient[client] for gradient in gradients], self.settings.clip_norm)
        idle = len(stack[0]) - active
        return [torch.cat([g, g.new_zeros(idle, *g.shape[1:])]) for g in gradients] if idle else gradients

    def _inputs(self, index: Tensor, clients: list[_Client], counts: Array, size: int) -> Tensor:
        """Return the encoded minibatches, (A, T or 1, b, pixels)."""
        noise: Tensor | None = None
        if self.encoder.noisy:
            shape = self.encoder.noise_shape
            noise = self.images.new_zeros(len(clients), size, *shape)
            for mine, client, count in zip(noise, clients, counts.tolist(), strict=True):
                mine[:count] = torch.rand(count, *shape, generator=client.noise, device=noise.device)
            noise = noise.flatten(0, 1)
        encoded = self.encoder(self.images.index_select(0, index), noise)
        return encoded.reshape(len(encoded), len(clients), size, -1).transpose(0, 1)

    def _update(self, arrays: Arrays, stack: list[Tensor], at: int, client: _Client, tally: _Tally) -> Update:
        """Return the update of the client at this place of the stack; its arrays are its own."""
        total = float(sum(tally.counts))
        loss = float(np.array(tally.losses) @ np.array(tally.counts, np.float64))
        names = [name.removesuffix(".synapses.weight") for name in arrays if name.endswith(".weight")]
        rates = {f"rate/{name}": Mean(spikes, total) for name, spikes in zip(names, tally.spikes, strict=True)}
        trained = {name: as_array(tensor[at].cpu().clone()) for name, tensor in zip(arrays, stack, strict=True)}
        return Update(
            num_examples=client.num_examples,
            groups={MODEL: trained},
            metrics={"loss": Mean(loss, total), **rates},
            traces=tally.trace.rates() if tally.trace is not None else {},
        )


def _trace(spikes: Mapping[str, Tensor], mask: Tensor, tallies: list[_Tally], counts: Array, step: int) -> None:
    """Add this step's spikes (A, T, b, n) to each client's trace, without padding."""
    with torch.no_grad():
        sums = {name: (s.sum(1) * mask.unsqueeze(2)).sum(1).cpu().numpy() for name, s in spikes.items()}
    for place, count in enumerate(counts.tolist()):
        trace = tallies[place].trace
        assert trace is not None
        trace.add(step, [(name, sums[name][place]) for name in spikes], count)
