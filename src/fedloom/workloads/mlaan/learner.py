"""A client's learner: the backbones of all modes, their auxiliary networks, and one optimiser over both."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.protocols import Inputs
from fedloom.core.records import MODEL, Arrays, Record, Update
from fedloom.workloads._torch.arrays import as_array, as_tensor
from fedloom.workloads._torch.scope import exact
from fedloom.workloads._torch.shared_rule import SharedOnly
from fedloom.workloads._torch.trainer import LocalTraining, Trainer
from fedloom.workloads._torch.whole import ANCHOR, fitting
from fedloom.workloads.mlaan.auxiliary import Auxiliary, Averages, Plan
from fedloom.workloads.mlaan.heads import Batch
from fedloom.workloads.mlaan.net import Backbone
from fedloom.workloads.mlaan.steps import LocalSteps

AUXILIARY = "auxiliary"
"""Prefix of the names of auxiliary arrays, and the group of a client's state with those it keeps."""
AVERAGES = "averages"
"""Group of a client's state with its moving averages."""
VELOCITY = "velocity"
"""Group of a client's state with its momentum."""


class Nets(nn.Module):
    """A backbone for each mode, all with the same initial weights; the output is the last mode's."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        names = plan.config.modes
        first = Backbone(plan.config.net, plan.shape[0], plan.classes)
        self.nets: dict[str, Backbone] = {name: deepcopy(first) if place else first for place, name in enumerate(names)}
        for name, net in self.nets.items():
            self.add_module(name, net)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images (b, c, h, w) by the last mode, (b, classes)."""
        logits: Tensor = list(self.nets.values())[-1](x)
        return logits


class Contest(Nets):
    """The backbones with their auxiliary networks; weights of modules that are not trained need no gradient."""

    def __init__(self, plan: Plan, trained: tuple[int, int]) -> None:
        super().__init__(plan)
        self.auxiliary = nn.ModuleDict()
        self.steps: dict[str, LocalSteps] = {}
        self._prefix: list[nn.Module] = []
        for mode in plan.config.parsed_modes:
            net = self.nets[mode.name]
            auxiliary = Auxiliary(plan, mode, net, *trained)
            self.auxiliary[mode.name] = auxiliary
            self.steps[mode.name] = LocalSteps(
                mode,
                net,
                plan.modules,
                auxiliary,
                Averages(plan, mode, net, *trained),
                plan.config.multilaminar,
                trained,
            )
            self._freeze(plan, net, trained)

    def train(self, mode: bool = True) -> Contest:
        """Set the mode; modules before the trained ones stay in evaluation mode."""
        super().train(mode)
        for part in self._prefix:
            part.eval()
        return self

    def _freeze(self, plan: Plan, net: Backbone, trained: tuple[int, int]) -> None:
        first, stop = trained
        inside = {number for module in plan.modules[first:stop] for number in module}
        parts: list[tuple[nn.Module, bool, bool]] = [(net.stem, first == 0, first > 0)]
        start = plan.modules[first][0] if stop > first else 0
        parts += [(block, number in inside, number < start) for number, block in enumerate(net.blocks)]
        parts.append((net.classifier, stop == len(plan.modules), False))
        for part, is_trained, is_before in parts:
            part.requires_grad_(is_trained)
            if is_before:
                self._prefix.append(part)


class Learner:
    """Trains the modules of one range, client after client.

    Args:
        plan: network and settings.
        trained: the modules, (first, behind the last).
        device: device of the work.
        pixels: makes pixels from 0 to 1 of normalised images.
    """

    def __init__(
        self, plan: Plan, trained: tuple[int, int], device: torch.device, pixels: Callable[[Tensor], Tensor]
    ) -> None:
        self._plan, self._device, self._pixels = plan, device, pixels
        with exact(torch.device("cpu"), seed=0):  # what is drawn here is replaced by the global model
            self.contest = Contest(plan, trained)
        for steps in self.contest.steps.values():
            for block in steps.averages.blocks.values():
                block.to(device)
        self._trainer = Trainer(self.contest, plan.config.training, device)
        self._heads = {name: np.array(array) for name, array in self._trainer.arrays.items() if _is_auxiliary(name)}
        self._origins = {
            f"{AUXILIARY}.{mode}.{copy}": f"{mode}.{origin}"
            for mode, steps in self.contest.steps.items()
            for copy, origin in steps.auxiliary.origins().items()
        }
        self._sends = [name for name in self._trainer.arrays if self._is_sent(name, trained)]

    def train(self, inputs: Inputs, local: LocalTraining, state: Record | None, rng: np.random.Generator) -> Update:
        """Train one client from the global model; returns the shared arrays of the trained modules, and its state.

        Args:
            inputs: the global model.
            local: rows, loss (see `gradients`), step size and rule.
            state: as the last training of the client left it.
            rng: the job's own randomness.
        """
        kept = state or Record()
        self._begin(inputs[MODEL].groups[MODEL], kept)
        joined = {name: self._joined(inputs[name], kept) for name in (MODEL, ANCHOR) if name in inputs}
        rule = None if local.rule is None else SharedOnly(local.rule, {*self._sends})
        local = replace(local, rule=rule, velocity=kept.groups.get(VELOCITY))
        update = self._trainer.train(joined, local, rng)
        arrays = self._trainer.arrays
        return replace(update, groups={MODEL: {name: arrays[name] for name in self._sends}}, state=self._state())

    def gradients(self, x: Tensor, y: Tensor, seconds: dict[str, float]) -> Tensor:
        """Accumulate every mode's gradients of a minibatch; returns the mean of the modes' last losses.

        The result has a gradient of nothing but itself: those of the weights are there already.
        """
        needs = any(mode.base == "infopro" for mode in self._plan.config.parsed_modes)
        batch, losses = Batch(x, y, self._pixels(x) if needs else None), []
        try:
            for name, steps in self.contest.steps.items():
                begin = time.perf_counter()
                losses.append(steps.gradients(batch))
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin
        except ValueError:  # batch normalisation of one value: the trainer leaves the minibatch out
            self.contest.zero_grad(set_to_none=True)
            raise
        for steps in self.contest.steps.values():
            steps.end()
        return torch.stack(losses).mean().requires_grad_()

    def _begin(self, received: Arrays, kept: Record) -> None:
        """Set what no optimiser steps: weights of modules that are not trained here, and moving averages."""
        frozen: dict[str, Tensor] = {name: p for name, p in self.contest.named_parameters() if not p.requires_grad}
        averages = self._averages()
        with torch.no_grad():
            given = {name: received[name] for name in frozen if name in received}
            for tensor, value in zip(frozen.values(), fitting(given, frozen, self._device), strict=True):
                tensor.copy_(value)
            own = kept.groups.get(AVERAGES, {})
            for name, tensor in averages.items():
                tensor.copy_(as_tensor(own[name] if name in own else received[name]))

    def _joined(self, record: Record, kept: Record) -> Record:
        """Return the global arrays that are trained here, with the client's auxiliary ones, or their initial values."""
        received, own = record.groups[MODEL], kept.groups.get(AUXILIARY, {})
        arrays = {}
        for name in self._trainer.arrays:
            if name in received:
                arrays[name] = received[name]
            elif name in own:
                arrays[name] = own[name]
            elif name in self._heads:
                arrays[name] = received[self._origins[name]] if name in self._origins else self._heads[name]
        return Record({MODEL: arrays}, record.info)

    def _state(self) -> Record | None:
        """Return the client's state for its next training; None if there is none."""
        config, groups = self._plan.config, dict[str, Arrays]()
        if config.auxiliary == "personal" and self._heads:
            trained = self._trainer.arrays
            groups[AUXILIARY] = {name: np.array(trained[name]) for name in self._heads}
        averages = self._averages()
        if config.leap.at_round == "keep" and averages:
            groups[AVERAGES] = {name: np.array(as_array(tensor.cpu())) for name, tensor in averages.items()}
        if config.keep_momentum and config.training.momentum:
            groups[VELOCITY] = self._trainer.velocity
        return Record(groups) if groups else None

    def _averages(self) -> dict[str, Tensor]:
        """Return the moving averages by the names of the global model's arrays."""
        return {
            f"{mode}.{name}": tensor
            for mode, steps in self.contest.steps.items()
            for name, tensor in steps.averages.arrays().items()
        }

    def _is_sent(self, name: str, trained: tuple[int, int]) -> bool:
        if _is_auxiliary(name):
            return self._plan.config.auxiliary == "sent"
        part = name.split(".")[1:]
        modules = self._plan.modules
        match part[0]:
            case "stem":
                owner = 0
            case "blocks":
                owner = next(number for number, blocks in enumerate(modules) if int(part[1]) in blocks)
            case _:
                owner = len(modules) - 1
        return trained[0] <= owner < trained[1]


def _is_auxiliary(name: str) -> bool:
    return name.startswith(f"{AUXILIARY}.")
