"""One training step of all members: each has a loss and randomness of its own, each player an optimiser."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn

from fedloom.core.errors import BadUpdate
from fedloom.core.records import Array, Record
from fedloom.core.seeds import integer_seed
from fedloom.workloads._torch.arrays import as_array, as_tensor
from fedloom.workloads._torch.optimizers import Optimizer, clip_by_norm, make_optimizer
from fedloom.workloads._torch.settings import TrainingSettings
from fedloom.workloads.generative.energy import ReplayMember
from fedloom.workloads.generative.making import CLASSIFIER, Models
from fedloom.workloads.generative.member import Batch, Member
from fedloom.workloads.generative.noise import DrawnNoise

REPLAY = "replay"
"""Group of a client's state with its Markov chains, by member."""


class PlayersOptimizer:
    """An optimiser for each player: the classifier, every member, both players of a GAN.

    A player that has no turn rests: neither its weights nor its moments change, whatever a rule adds to its gradient.

    Args:
        parameters: all parameters, detached, in the order of `model.named_parameters()`.
        model: whose they are.
        settings: of the optimisers; members change step size and moments.
    """

    def __init__(self, parameters: list[Tensor], model: Models, settings: TrainingSettings) -> None:
        self.base_rate = self.rate = settings.learning_rate
        self._active = model.active
        places = {name: place for place, (name, _) in enumerate(model.named_parameters())}
        self._players: dict[str, tuple[list[int], Optimizer, float, float | None]] = {}
        for part, module in ((CLASSIFIER, model.classifier), *model.members.items()):
            member = module if isinstance(module, Member) else None
            for prefix, player in _players(part, module).items():
                own = [places[f"{prefix}.{name}"] for name, _ in player.named_parameters()]
                if own:
                    optimizer = make_optimizer([parameters[place] for place in own], _settings(settings, member))
                    factor, clip = (1.0, None) if member is None else (member.rate, member.clip)
                    self._players[prefix] = (own, optimizer, factor, clip)

    def reset(self) -> None:
        """Reset all state: a new client begins."""
        for _, optimizer, _, _ in self._players.values():
            optimizer.reset()

    def step(self, gradients: list[Tensor]) -> None:
        """Move the parameters of the players whose turn it is."""
        for prefix, (places, optimizer, factor, clip) in self._players.items():
            if prefix not in self._active:
                continue
            own = [gradients[place] for place in places]
            if clip is not None:
                clip_by_norm(own, clip)
            optimizer.rate = self.rate * factor
            optimizer.step(own)


def _players(part: str, module: nn.Module) -> dict[str, nn.Module]:
    """Return the players of a part of the model, by the prefix of their parameters' names."""
    players = module.players() if isinstance(module, Member) else {}
    return {f"{part}.{name}": player for name, player in players.items()} or {part: module}


def _settings(settings: TrainingSettings, member: Member | None) -> TrainingSettings:
    if member is None or member.betas is None or settings.optimizer != "adamw":
        return settings
    beta1, beta2 = member.betas
    return settings.model_copy(update={"beta1": beta1, "beta2": beta2})


class Lesson:
    """One client's training: each member's randomness, chains and seconds.

    Args:
        model: the members.
        seed: the job's own.
        state: what the client stored after its last training.
        device: device of the work.
    """

    def __init__(self, model: Models, seed: int, state: Record | None, device: torch.device) -> None:
        self._model, self._step = model, 0
        self._generators = {
            name: torch.Generator(device).manual_seed(integer_seed(seed, name)) for name in model.members
        }
        self.seconds: dict[str, float] = {}
        self.losses: dict[str, tuple[float, float]] = {}
        """Sum of a member's loss over examples, and their number."""
        stored = {} if state is None else state.groups.get(REPLAY, {})
        for name, member in model.members.items():
            if isinstance(member, ReplayMember):
                own = stored.get(name)
                member.begin(None if own is None else as_tensor(own).to(device), self._generators[name])

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """Accumulate every member's gradient of a minibatch; returns the classifier's loss.

        The result has a gradient of nothing but itself: those of the weights are there already.

        Raises:
            BadUpdate: a loss is not finite; the message names the member.
        """
        self._model.active.clear()
        loss = self._model.classifier.loss(x, y)
        self._accumulate(CLASSIFIER, self._model.classifier, loss)
        for name, member in self._model.members.items():
            begin = time.perf_counter()
            self._learn(name, member, x, y)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
        self._step += 1
        return loss.detach().requires_grad_()

    def _learn(self, name: str, member: Member, x: Tensor, y: Tensor) -> None:
        generator, turn = self._generators[name], member.turn(self._step)
        player, prefix = (member.get_submodule(turn), f"{name}.{turn}") if turn else (member, name)
        if next(player.parameters(), None) is None:
            return
        loss = member.loss(Batch(x, y, DrawnNoise(len(x), generator), generator))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise BadUpdate(
                f"member {name!r}: its loss is {value} in step {self._step + 1} of the round, expected a finite "
                "number; lower workload.training.learning_rate, or remove it from workload.members"
            )
        self._accumulate(prefix, player, loss)
        total, count = self.losses.get(prefix, (0.0, 0.0))
        self.losses[prefix] = (total + value * len(x), count + len(x))

    def _accumulate(self, prefix: str, player: nn.Module, loss: Tensor) -> None:
        parameters = list(player.parameters())
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient
        self._model.active.add(prefix)

    def state(self) -> Record | None:
        """Return the client's chains for its next training; None without any."""
        chains = {
            name: _array(member.replay)
            for name, member in self._model.members.items()
            if isinstance(member, ReplayMember) and member.replay is not None
        }
        return Record({REPLAY: chains}) if chains else None


def _array(tensor: Tensor) -> Array:
    return as_array(tensor.detach().cpu()).copy()
