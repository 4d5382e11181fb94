"""Restricted Boltzmann machine: binary hidden units, a softmax unit for each pixel, its partition function enumerated.

E(v, h) = -sum_i b_i[v_i] - sum_j c_j h_j - sum_ij W_ij[v_i] h_j, v_i a level from 0 to M - 1. With M = 2 it is the
Bernoulli machine, b[1] - b[0] and W[1] - W[0] its parameters.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads.generative.energy import ReplayMember
from fedloom.workloads.generative.member import Batch, Form
from fedloom.workloads.generative.noise import Noise

_BLOCK = 2**24
"""Entries of the largest array in one piece of the enumeration."""


class Rbm(ReplayMember):
    """An RBM trained by (persistent) contrastive divergence (Hinton 2002, Tieleman 2008).

    The loss F(v+) - F(v-), F(v) = -ln sum_h e^{-E(v, h)} the free energy, has the gradient E_data[dF] - E_chains[dF].
    Z = sum_h e^{c'h} prod_i sum_l e^{b_i[l] + W_i[l] h} is enumerated, so the likelihood is exact.

    Args:
        form: the images.
        hidden: hidden units, at most 20.
        chains: persistent chains.
        steps: Gibbs steps k for a training step.
        sampling_steps: Gibbs steps of a sample, from random images.
        persistent: whether the negatives continue (PCD-k), or start at the minibatch (CD-k).
    """

    rate = 3.0

    def __init__(
        self, form: Form, hidden: int, chains: int, steps: int, sampling_steps: int, persistent: bool = True
    ) -> None:
        super().__init__(form, chains, restart=0.02)
        self._steps, self._sampling_steps, self._persistent = steps, sampling_steps, persistent
        self.weight = nn.Parameter(0.05 * torch.randn(form.dims, form.levels, hidden))
        self.visible = nn.Parameter(torch.zeros(form.dims, form.levels))
        self.hidden = nn.Parameter(torch.zeros(hidden))

    def hidden_logits(self, v: Tensor) -> Tensor:
        """Return the logits of p(h_j = 1 | v), (b, hidden), for levels v (b, 1, h, w)."""
        chosen = F.one_hot(v.flatten(1), self.form.levels).to(self.weight.dtype).flatten(1)
        return chosen @ self.weight.flatten(0, 1) + self.hidden

    def visible_logits(self, h: Tensor) -> Tensor:
        """Return the logits of p(v_i = l | h), (b, D, M)."""
        return self.visible + (h @ self.weight.flatten(0, 1).T).reshape(len(h), self.form.dims, self.form.levels)

    def free_energy(self, v: Tensor) -> Tensor:
        """Return F(v), (b,)."""
        levels = v.flatten(1)
        biases = self.visible.expand(len(v), -1, -1).gather(2, levels[..., None]).sum((1, 2))
        return -biases - F.softplus(self.hidden_logits(v)).sum(1)

    def log_partition(self) -> Tensor:
        """Return ln Z by enumerating all states of the hidden units, a tensor without dimensions."""
        units, pieces = len(self.hidden), list[Tensor]()
        size = max(1, _BLOCK // self.visible.numel())
        for start in range(0, 2**units, size):
            numbers = torch.arange(start, min(start + size, 2**units), device=self.hidden.device)
            h = ((numbers[:, None] >> torch.arange(units, device=numbers.device)) & 1).to(self.hidden.dtype)
            pieces.append(h @ self.hidden + self.visible_logits(h).logsumexp(2).sum(1))
        return torch.cat(pieces).logsumexp(0)

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """Return -F(x) - ln Z, exact, (b,)."""
        return -self.free_energy(x) - self.log_partition()

    def loss(self, batch: Batch) -> Tensor:
        v, generator = batch.x, batch.generator
        if self._persistent:
            chains = self.form.nearest(self.negatives(len(v), generator))
        else:
            chains = self.gibbs(v, self._steps, generator)
        # fewer chains than images: means on both sides
        return (self.free_energy(v).mean() - self.free_energy(chains).mean()) / self.form.dims

    def gibbs(self, v: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        """Return levels after Gibbs steps h ~ p(h | v), v ~ p(v | h), in the shape of v."""
        with torch.no_grad():
            for _ in range(steps):
                shares = self.hidden_logits(v).sigmoid()
                h = (torch.rand(shares.shape, generator=generator, device=v.device) < shares).to(shares.dtype)
                given = self.visible_logits(h).flatten(0, 1).softmax(1)
                v = torch.multinomial(given, 1, generator=generator).reshape(v.shape)
        return v

    def advanced(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.form.scaled(self.gibbs(self.form.nearest(x), self._steps, generator))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        return self.gibbs(self.form.nearest(self.fresh(count, generator)), self._sampling_steps, generator)


def annealed_log_partition(rbm: Rbm, chains: int, temperatures: int, generator: torch.Generator) -> float:
    """Return AIS's estimate of ln Z (Salakhutdinov and Murray 2008), from weights 0 to the machine's.

    Args:
        rbm: the machine.
        chains: independent chains.
        temperatures: intermediate distributions, weights times beta from 0 to 1.
        generator: torch's.
    """
    form = rbm.form
    betas = torch.linspace(0.0, 1.0, temperatures)
    with torch.no_grad():
        weight = rbm.weight.clone()
        logs, v = torch.zeros(chains), None
        start = float(rbm.visible.logsumexp(1).sum() + F.softplus(rbm.hidden).sum())
        for low, high in pairwise(betas.tolist()):
            rbm.weight.copy_(weight * low)
            if v is None:
                shares = rbm.visible.softmax(1)
                v = torch.multinomial(shares, chains, replacement=True, generator=generator).T
                v = v.reshape(chains, 1, form.height, form.width)
            else:
                v = rbm.gibbs(v, 1, generator)
            before = rbm.free_energy(v)
            rbm.weight.copy_(weight * high)
            logs += before - rbm.free_energy(v)
        rbm.weight.copy_(weight)
    return start + float(logs.logsumexp(0)) - math.log(chains)
