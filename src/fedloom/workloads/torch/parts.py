"""A user's model and data, ready for a workload."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FunctionType

from torch import nn

from fedloom.core.errors import PluginInvalid
from fedloom.core.plugin_faults import plugin_fault, raised_in
from fedloom.core.records import Info
from fedloom.workloads._base.checks import check_model, place_of
from fedloom.workloads._base.examples import Examples
from fedloom.workloads.torch.digests import is_users
from fedloom.workloads.torch.standard import Moments
from fedloom.workloads.torch.types import LossFunction, MakeOptimizer, Metric, Model, Task, Transform


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A user's model, data and functions, in the form that the workload uses."""

    model: Model
    examples: Examples
    task: Task
    loss: LossFunction | None = None
    """None takes the task's."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """Besides the loss; none given takes the task's."""
    optimizer: MakeOptimizer | None = None
    """None takes the settings'."""
    transform: Transform | None = None
    """Applied already to the examples; here for what is predicted later."""
    columns: tuple[str, ...] = ()
    """Columns of the inputs, if the examples are a table's."""
    moments: Moments | None = None
    """What the examples' inputs are standardised with already; here for what is predicted later."""
    facts: Info = field(default_factory=dict)
    """Facts about the data for its description."""
    data_place: str = "data"
    """Where the examples come from, for errors."""
    title: str = "model"
    """Name of the model, for reports."""
    notes: tuple[str, ...] = ()
    """What was inferred, in words."""

    def new_model(self) -> nn.Module:
        """Return a new model: a copy of the one given, or one more of the factory's.

        Raises:
            PluginInvalid: the factory raised, or returned no model.
        """
        if isinstance(self.model, nn.Module):
            return copy.deepcopy(self.model)
        where = model_place(self.model)
        try:
            made = self.model()
        except Exception as exc:
            what = plugin_fault("model", exc) if raised_in(exc) else f"{where}: {type(exc).__name__}: {exc}"
            raise PluginInvalid(
                f"{what}; expected a module, a class that needs no arguments, or a function without arguments that "
                "returns one"
            ) from exc
        check_model(made, where)
        return made

    @property
    def loss_place(self) -> str:
        """Return where the loss is defined, for errors."""
        own = isinstance(self.loss, FunctionType) and is_users(self.loss)
        return place_of(self.loss) if own and self.loss is not None else "loss"

    @property
    def place(self) -> str:
        """Return where the model is defined, for errors."""
        return model_place(self.model)


def model_place(model: object) -> str:
    """Return file, line and name of a model's class, or of the function that makes one; for errors."""
    code = type(model) if isinstance(model, nn.Module) else model
    if isinstance(code, type | FunctionType) and is_users(code):
        return place_of(code)
    return f"model ({code.__name__})" if isinstance(code, type) else "model"


def call_fault(exc: Exception, model: nn.Module, place: str, shapes: str) -> PluginInvalid:
    """Return the error for an exception of a model's call: with the line of the user's code that raised it, if any did.

    Args:
        exc: the exception.
        model: what was called.
        place: where it is defined.
        shapes: what it was called with, in words.
    """
    called, what = f"model ({type(model).__name__}) called with {shapes}", f"{type(exc).__name__}: {exc}"
    if raised_in(exc):
        found = str(plugin_fault(called, exc))
    else:
        found = f"{place} called with {shapes}: {what}" if ", line " in place else f"{called}: {what}"
    return PluginInvalid(f"{found}; expected a model for these inputs, or inputs for this model")
