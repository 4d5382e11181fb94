"""Energy-based models: p(x) = exp(-E(x)) / Z; gradient E_data[dE] - E_model[dE], negatives by Langevin dynamics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.workloads.generative.member import Batch, Form, Member
from fedloom.workloads.generative.nets import convolutions

_REGULAR = 0.1
"""Weight of E_+^2 + E_-^2, which holds the energies near 0."""


def langevin(
    energy: Callable[[Tensor], Tensor], x: Tensor, steps: int, step: float, noise: float, generator: torch.Generator
) -> Tensor:
    """Return x after Langevin dynamics x <- x - step/2 dE/dx + noise e, e standard normal.

    With noise = sqrt(step) and small steps the chain samples exp(-E). Image models commonly take a larger step than
    that (Du and Mordatch 2019): then it is a sampler of its own, trained as such.

    Args:
        energy: E of x, (b,).
        x: where the chains begin, (b, ...).
        steps: how many.
        step: size of a step.
        noise: standard deviation of the noise.
        generator: torch's.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone()
        for _ in range(steps):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(energy(x).sum(), x)
            drawn = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = x.detach() - 0.5 * step * slope + noise * drawn
    return x.detach()


class ReplayMember(Member):
    """A member whose negatives come from Markov chains that continue from step to step.

    The chains are a client's own: its state between rounds, never a part of the model. Chains start from random
    images, and a share of them starts anew at each step.

    Args:
        form: the images.
        chains: number of chains.
        restart: share of a minibatch's chains that start anew.
    """

    def __init__(self, form: Form, chains: int, restart: float) -> None:
        super().__init__(form)
        self._chains, self._restart = chains, restart
        self.replay: Tensor | None = None
        """State of the chains, (chains, 1, h, w), float32; None before a training."""

    def fresh(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the start of new chains: uniform from -1 to 1, (count, 1, h, w)."""
        shape = (count, 1, self.form.height, self.form.width)
        return 2.0 * torch.rand(shape, generator=generator, device=generator.device) - 1.0

    def begin(self, stored: Tensor | None, generator: torch.Generator) -> None:
        """Continue a client's chains, or start them.

        Args:
            stored: as `replay` was after the client's last training; None starts them.
            generator: torch's.
        """
        self.replay = self.fresh(self._chains, generator) if stored is None else stored.clone()

    @abstractmethod
    def advanced(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return chains after a training step's worth of transitions, in the shape of x."""

    def negatives(self, count: int, generator: torch.Generator) -> Tensor:
        """Return negatives for a minibatch, (count, 1, h, w), and store them as the chains' new states."""
        replay = self.fresh(self._chains, generator) if self.replay is None else self.replay
        self.replay = replay
        picked = torch.randperm(len(replay), generator=generator, device=replay.device)[:count]
        x, fresh = replay[picked], self.fresh(len(picked), generator)
        again = torch.rand(len(picked), generator=generator, device=replay.device) < self._restart
        x = self.advanced(torch.where(again[:, None, None, None], fresh, x), generator)
        replay[picked] = x
        return x


class LangevinEnergy(ReplayMember):
    """A network's energy, trained by persistent contrastive divergence (Du and Mordatch 2019).

    Loss: E(x+) - E(x-) + 0.1 (E(x+)^2 + E(x-)^2), means over the minibatch; the images have a little noise.

    Args:
        form: the images.
        chains: chains in the replay buffer.
        steps: Langevin steps for a training step.
        sampling_steps: Langevin steps of a sample, from noise.
        channels: channels of the network.
        outputs: outputs of the network.
    """

    clip = 1.0
    _STEP, _NOISE, _BLUR, _RESTART = 2.5, 0.01, 0.02, 0.05

    def __init__(
        self, form: Form, chains: int, steps: int, sampling_steps: int, channels: int, outputs: int = 1
    ) -> None:
        super().__init__(form, chains, self._RESTART)
        self._steps, self._sampling_steps = steps, sampling_steps
        self.net = convolutions(form.height, form.width, outputs, channels)

    def energy(self, x: Tensor) -> Tensor:
        """Return E of images from -1 to 1, (b,)."""
        out: Tensor = self.net(x)
        return out[:, 0]

    def loss(self, batch: Batch) -> Tensor:
        x = self.form.scaled(batch.x)
        x = x + self._BLUR * torch.randn(x.shape, generator=batch.generator, device=x.device)
        high, low = self.energy(self.negatives(len(x), batch.generator)), self.energy(x)
        return low.mean() - high.mean() + _REGULAR * (low.square().mean() + high.square().mean())

    def advanced(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self._chain(x, self._steps, generator)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        return self.form.nearest(self._chain(self.fresh(count, generator), self._sampling_steps, generator))

    def _chain(self, x: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        for _ in range(steps):
            x = langevin(self.energy, x, 1, self._STEP, self._NOISE, generator).clamp(-1.0, 1.0)
        return x


class Jem(LangevinEnergy):
    """JEM (Grathwohl et al. 2020): logits f of a classifier, E(x) = -ln sum_y e^{f(x)[y]}, plus cross-entropy.

    Args:
        form: the images; `classes` are the outputs.
        chains: chains in the replay buffer.
        steps: Langevin steps for a training step.
        sampling_steps: Langevin steps of a sample, from noise.
        channels: channels of the network.
    """

    def __init__(self, form: Form, chains: int, steps: int, sampling_steps: int, channels: int) -> None:
        super().__init__(form, chains, steps, sampling_steps, channels, outputs=form.classes)

    def energy(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(self.net(x), 1)

    def loss(self, batch: Batch) -> Tensor:
        return super().loss(batch) + F.cross_entropy(self.net(self.form.scaled(batch.x)), batch.y)
