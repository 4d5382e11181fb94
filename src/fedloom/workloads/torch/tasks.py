"""Infers a model's task from its targets and outputs; the loss and the metrics of each task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.core.errors import PluginInvalid
from fedloom.workloads.torch.types import Metric, Task

LOSS: Mapping[Task, str] = {
    "classification": "cross-entropy",
    "binary": "binary cross-entropy",
    "multilabel": "binary cross-entropy of each label",
    "regression": "mean squared error",
}
"""Name of each task's loss."""


def infer_task(targets: Tensor, outputs: Tensor) -> Task:
    """Return a model's task.

    Whole numbers are classes, if the model has an output for each; with one output, 0 and 1 are yes and no, and others
    are numbers. Tables of 0 and 1 are labels, several at once. Anything else is numbers.

    Args:
        targets: of all examples, or of some, (n, …).
        outputs: of a few examples, (b, …).
    """
    several = outputs.dim() == 2 and outputs.shape[1] > 1
    if targets.dim() > 1 and targets[0].numel() > 1:
        return "multilabel" if _is_zero_one(targets) and outputs.shape[1:] == targets.shape[1:] else "regression"
    whole = not targets.is_floating_point() or _is_whole(targets)
    if several and whole and outputs.dim() == 2 and len(targets) and int(targets.max()) < outputs.shape[1]:
        return "classification"
    if several and not targets.is_floating_point():
        return "classification"  # with too few outputs, which its check says
    if not several and not targets.is_floating_point() and outputs[0].numel() == 1 and _is_zero_one(targets):
        return "binary"
    return "regression"


def fitted(targets: Tensor, task: Task) -> Tensor:
    """Return targets in the form that a task's loss takes: classes as int64, (n,); all others as float32."""
    if task != "classification":
        return targets.float()
    flat = targets.reshape(len(targets)) if targets.numel() == len(targets) else targets
    return flat.long()


def _is_whole(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all()) and bool((values == values.floor()).all()) and bool((values >= 0).all())


def _is_zero_one(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def task_loss(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a task's mean loss over a minibatch.

    Raises:
        PluginInvalid: there are not as many outputs as targets.
    """
    if task == "classification":
        return F.cross_entropy(outputs, targets)
    aligned = aligned_with(outputs, targets)
    return (
        F.mse_loss(outputs, aligned) if task == "regression" else F.binary_cross_entropy_with_logits(outputs, aligned)
    )


def aligned_with(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return targets as floats in the shape of the outputs: (n,) and (n, 1) would be compared each with each otherwise.

    Raises:
        PluginInvalid: they hold other numbers of values.
    """
    if outputs.numel() != targets.numel():
        raise PluginInvalid(
            f"model: its output has shape {tuple(outputs.shape)} for targets of shape {tuple(targets.shape)}; expected "
            "as many numbers as targets"
        )
    return targets.reshape(outputs.shape).to(outputs.dtype)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the fraction of examples whose largest output is their class."""
    return (outputs.argmax(1) == targets).float().mean()


def binary_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the fraction of labels on whose side of 0 the outputs are."""
    return ((outputs > 0) == (aligned_with(outputs, targets) > 0.5)).float().mean()


def mean_absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean distance of outputs and targets."""
    return (outputs - aligned_with(outputs, targets)).abs().mean()


TASK_METRICS: Mapping[Task, Mapping[str, Metric]] = {
    "classification": {"accuracy": accuracy},
    "binary": {"accuracy": binary_accuracy},
    "multilabel": {"accuracy": binary_accuracy},
    "regression": {"mae": mean_absolute_error},
}
"""Metrics besides the loss."""


def named_metrics(given: object) -> Mapping[str, Metric]:
    """Return metrics by name.

    Raises:
        PluginInvalid: one is no function, or several have one name.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        pairs = [(_name_of(each), each) for each in (given if isinstance(given, list | tuple) else [given])]
    found: dict[str, Metric] = {}
    for name, metric in pairs:
        if not isinstance(name, str) or not callable(metric):
            raise PluginInvalid(
                f"metrics: {name!r} is a {type(metric).__name__}, expected a function of outputs and targets that "
                "returns a mean over them, or a dict of such by name"
            )
        if name in found:
            raise PluginInvalid(f"metrics: two are named {name!r}; name them: metrics={{'first': …, 'second': …}}")
        found[name] = metric
    return found


def _name_of(metric: object) -> str:
    name = getattr(metric, "__name__", type(metric).__name__)
    return "metric" if name == "<lambda>" else str(name)


def predictions(task: Task, outputs: Tensor) -> Tensor:
    """Return predictions from outputs: the class of each example, the labels that hold, or the numbers."""
    if task == "classification":
        return outputs.argmax(1)
    if task in ("binary", "multilabel"):
        return (outputs > 0).long()
    return outputs
