"""Memory of a mode: activations of one step, weights, and the optimiser's state."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedloom.workloads.mlaan.auxiliary import Plan
from fedloom.workloads.mlaan.heads import Batch
from fedloom.workloads.mlaan.learner import Contest
from fedloom.workloads.mlaan.memory import ActivationMeter


@dataclass(frozen=True, slots=True)
class Costs:
    """Bytes of one mode's training; parameters are float32."""

    activation_bytes: int
    """Peak of the tensors saved for the backward pass in one step, each storage once, without parameters."""
    parameter_bytes: int
    """The backbone's trained weights, auxiliary networks and moving averages."""
    optimizer_bytes: int
    """Gradients and momentum of what is trained."""


def measure(plan: Plan, trained: tuple[int, int], batch_size: int) -> dict[str, Costs]:
    """Measure every mode in one step on blank images; nothing that is trained changes.

    Args:
        plan: network and settings.
        trained: the modules, (first, behind the last).
        batch_size: images of the step.
    """
    contest, found = Contest(plan, trained).train(), {}
    x = torch.zeros(batch_size, *plan.shape)
    batch = Batch(x, torch.zeros(batch_size, dtype=torch.int64), x)
    moments = 2 if plan.config.training.momentum or plan.config.training.optimizer == "adamw" else 1
    moments += plan.config.training.optimizer == "adamw"
    for mode, steps in contest.steps.items():
        owned = [*steps.backbone.parameters(), *steps.auxiliary.parameters()]
        averages = list(steps.averages.arrays().values())
        meter = ActivationMeter([*owned, *steps.backbone.buffers(), *averages, batch.x, batch.y])
        with meter.measuring():
            steps.gradients(batch)
        trainable = sum(each.nbytes for each in owned if each.requires_grad)
        found[mode] = Costs(meter.peak, trainable + sum(each.nbytes for each in averages), moments * trainable)
    return found
