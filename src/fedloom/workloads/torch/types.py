"""Types of what a Python program passes to its run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fedloom.workloads.torch.config import Task

__all__ = ["Data", "LossFunction", "MakeOptimizer", "Metric", "Metrics", "Model", "Module", "Task", "Transform"]
Module: TypeAlias = nn.Module
Model: TypeAlias = nn.Module | Callable[[], nn.Module]
"""A model, whose weights are the initial ones; or a class or function without arguments that makes one."""
LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Mean loss of a minibatch, of outputs and targets: `torch.nn.functional.cross_entropy`, `nn.HuberLoss()`."""
Metric: TypeAlias = Callable[[Tensor, Tensor], Tensor | float]
"""A mean over a minibatch, of outputs and targets."""
Metrics: TypeAlias = Metric | Sequence[Metric] | Mapping[str, Metric]
"""One metric, several of them, or several by name; functions are named by their `__name__`."""
MakeOptimizer: TypeAlias = Callable[[list[Tensor]], torch.optim.Optimizer]
"""Makes an optimiser of a list of parameters: `torch.optim.Adam`, `lambda p: torch.optim.SGD(p, lr=0.1)`."""
Transform: TypeAlias = Callable[..., object]
"""Prepares one example's input, in training and evaluation."""
Data: TypeAlias = object
"""Examples, see `fedloom.run`: `(x, y)`, `(train, test)`, a data set, a frame, a list with one of them per client."""
