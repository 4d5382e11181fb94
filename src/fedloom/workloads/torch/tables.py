"""The models for tables of numbers that come with fedloom: an MLP, and a linear one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from fedloom.core.errors import ConfigError
from fedloom.workloads._base.columns import as_column
from fedloom.workloads._base.examples import Examples
from fedloom.workloads.torch.types import Task


def own_model(name: str, hidden: Sequence[int], examples: Examples, task: Task | None) -> Callable[[], nn.Module]:
    """Return a factory of models for a table.

    Args:
        name: `mlp` or `logistic`.
        hidden: neurons of the hidden layers of an `mlp`.
        examples: whose columns and classes count.
        task: what it learns; None takes classes for whole numbers, else a regression.

    Raises:
        ConfigError: the examples are no table with one row of numbers each.
    """
    table = examples.train
    if not isinstance(table, tuple) or len(table) != 2:
        raise ConfigError(f"workload.model: {name!r} needs a table of numbers; name a model of your own: ./net.py:Net")
    inputs, targets = (as_column(each, "the table", "data", targets=n == 1) for n, each in enumerate(table))
    if inputs.dim() != 2:
        raise ConfigError(
            f"workload.model: {name!r} needs inputs of shape (n, columns), found {tuple(inputs.shape)}; name a model "
            "of your own: ./net.py:Net"
        )
    sizes = (inputs.shape[1], *(hidden if name == "mlp" else ()), outputs_of(targets, examples, task))
    return partial(_layers, sizes)


def outputs_of(targets: Tensor, examples: Examples, task: Task | None) -> int:
    """Return how many outputs a model needs.

    Args:
        targets: of all examples, (n,) or (n, several).
        examples: whose classes may have names.
        task: what it learns; None takes classes for whole numbers, else a regression.
    """
    if targets.dim() > 1 and targets.shape[1] > 1:
        return int(targets.shape[1])
    if task == "classification" or (task is None and not targets.is_floating_point()):
        if int(targets.min()) < 0:
            raise ConfigError(
                f"workload.data: labels from {int(targets.min())} to {int(targets.max())}, expected classes from 0. "
                'Number them from 0, write them as text, or set workload.task = "regression"'
            )
        return max(int(targets.max()) + 1, len(examples.label_names), 2)
    return 1


def _layers(sizes: Sequence[int]) -> nn.Module:
    layers: list[nn.Module] = []
    for size, following in pairwise(sizes):
        layers += [nn.Linear(size, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
