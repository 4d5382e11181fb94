"""Makes the parts of a run from the arguments of a Python program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, FedloomError, PluginInvalid
from fedloom.core.plugin_faults import plugin_fault
from fedloom.core.plugins import build_workload
from fedloom.workloads._base.checks import check_model, check_outputs
from fedloom.workloads._base.columns import as_column, converted
from fedloom.workloads._base.dataset_rows import DatasetRows
from fedloom.workloads._base.examples import Examples, Source
from fedloom.workloads._base.task import CPU
from fedloom.workloads._torch.scope import exact
from fedloom.workloads.torch.data import ReadData, Reading, read_data
from fedloom.workloads.torch.digests import code_digest, data_digest, weights_digest
from fedloom.workloads.torch.parts import Parts, call_fault, model_place
from fedloom.workloads.torch.tasks import LOSS, fitted, infer_task, named_metrics
from fedloom.workloads.torch.types import Data, LossFunction, MakeOptimizer, Metrics, Model, Task, Transform

_FEW = 2
"""Examples that are looked at where reading all would take long."""


class ReadingArguments(TypedDict):
    """How data is read."""

    labels: tuple[str, ...]
    columns: tuple[str, ...]
    transform: Transform | None
    test_fraction: float


class Functions(TypedDict):
    """Training and evaluation functions of a program; None takes the default."""

    task: Task | None
    loss: LossFunction | None
    metrics: Metrics | None
    optimizer: MakeOptimizer | None


def make_parts(
    model: Model, data: Data, *, test: Data | None, reading: ReadingArguments, functions: Functions
) -> tuple[Parts, Mapping[str, str]]:
    """Return a run's parts, and the digests of code, weights and data.

    Raises:
        PluginInvalid: model, data or a function is not what it should be; the message says which.
        ConfigError: an argument is out of range.
    """
    check_given(model, functions)
    read = read_data(data, test, Reading(title="own data", **reading))
    metrics = named_metrics(functions["metrics"])
    parts = replace(
        parts_of(model, read, task=functions["task"], loss=functions["loss"]),
        metrics=metrics,
        optimizer=functions["optimizer"],
        transform=reading["transform"],
    )
    objects = {
        "code": code_digest([model, parts.loss, dict(metrics), parts.optimizer, parts.transform, parts.task]),
        "weights": weights_digest(model),
        "data": data_digest([parts.examples.train, parts.examples.test]),
    }
    return parts, objects


def parts_of(model: Model, read: ReadData, *, task: Task | None, loss: LossFunction | None) -> Parts:
    """Return the parts of a model and of data that was read, with the task inferred if it is not given.

    Raises:
        PluginInvalid: the model is none, or does not fit the data.
        ConfigError: there is no such task.
    """
    with exact(CPU, seed=0), users_code("model or data"):
        made = new_model(model)
        targets, outputs = look(made, read.examples, model_place(model))
    found = task or (infer_task(targets, outputs) if targets is not None else "classification")
    if found not in LOSS:
        raise ConfigError(f"task: expected one of {', '.join(LOSS)}, got {found!r}")
    return Parts(
        model=model,
        examples=_fitted(read.examples, found) if loss is None else read.examples,
        task=found,
        loss=loss,
        columns=read.columns,
        moments=read.moments,
        facts=read.facts,
        title=title_of(model),
        notes=_notes(found, task is not None, targets, own_loss=loss is not None),
    )


def built(experiment: Experiment) -> None:
    """Build a workload and drop it again, in one thread, so that a mistake is found before anything is started.

    Raises:
        UsageError: there is one.
    """
    with exact(CPU, seed=0), users_code("model, data, or a function given with them"):
        build_workload(experiment.workload, experiment)


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Turn an exception of a user's code into an error with its file and line.

    PyTorch computes gradients in the block, whatever the caller's mode.

    Raises:
        PluginInvalid: the code raised.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    except FedloomError:
        raise
    except Exception as exc:
        raise plugin_fault(what, exc) from exc


def check_given(model: object, functions: Functions) -> None:
    """Refuse a model or a function of another type.

    Raises:
        PluginInvalid: the message says what was found.
    """
    if not isinstance(model, nn.Module) and not callable(model):
        raise PluginInvalid(
            f"model: found a {type(model).__name__}, expected a torch.nn.Module, its class, or a function that makes "
            "one"
        )
    loss: object = functions["loss"]
    optimizer: object = functions["optimizer"]
    if isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer).__name__
        raise PluginInvalid(
            f"optimizer: found an optimiser of a model's parameters, expected a function that makes one for each "
            f"client: lambda parameters: torch.optim.{kind}(parameters, lr=…)"
        )
    for name, function in (("loss", loss), ("optimizer", optimizer)):
        if function is not None and not callable(function):
            raise PluginInvalid(f"{name}: found a {type(function).__name__}, expected a function; see fedloom.run")
    if isinstance(loss, type):
        raise PluginInvalid(
            f"loss: found the class {loss.__name__}, expected a function or an object: {loss.__name__}()"
        )


def new_model(model: Model) -> nn.Module:
    """Return a new model from a program's argument."""
    made = Parts(model=model, examples=Examples(train=(torch.zeros(1), torch.zeros(1))), task="regression").new_model()
    check_model(made, "model")
    return made


def title_of(model: object) -> str:
    """Return the name of a model's class, or of the function that makes one."""
    named = type(model) if isinstance(model, nn.Module) else model
    name = str(getattr(named, "__name__", type(named).__name__))
    return "model" if name == "<lambda>" else name


def look(model: nn.Module, examples: Examples, place: str) -> tuple[Tensor | None, Tensor]:
    """Return the targets of the examples, and the model's outputs for two; None if each client loads its own.

    Args:
        model: a new one.
        examples: that it is to learn.
        place: where the model is defined, for errors.
    """
    train = examples.train
    if not isinstance(train, list | tuple) and not isinstance(train, torch.utils.data.Dataset) and callable(train):
        train = train(0)
    first = train[0] if isinstance(train, list) else train
    inputs, targets = _first(first)
    if not len(targets):
        raise PluginInvalid("data: found no examples, expected at least one")
    model.eval()
    shapes = ", ".join(f"{str(each.dtype).removeprefix('torch.')} {tuple(each.shape)}" for each in inputs)
    with torch.inference_mode():
        try:
            outputs: object = model(*(each[:_FEW] for each in inputs))
        except Exception as exc:
            raise call_fault(exc, model, place, shapes) from exc
    return targets, check_outputs(outputs, len(targets[:_FEW]), place)


def _first(source: Source) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return inputs and targets: all of a table, two of a data set."""
    if isinstance(source, tuple):
        last = len(source) - 1
        columns = [as_column(each, f"entry {n}", "data", targets=n == last) for n, each in enumerate(source)]
        return tuple(each[:_FEW] for each in columns[:-1]), columns[-1]
    if not isinstance(source, torch.utils.data.Dataset):
        raise PluginInvalid(f"data: found a {type(source).__name__}, expected examples")
    rows = DatasetRows(source, CPU, "data: the examples")
    if not len(rows):
        raise PluginInvalid(f"data: found a {type(source).__name__} of length 0, expected at least one example")
    return rows.batch(torch.arange(min(_FEW, len(rows))))


def _fitted(examples: Examples, task: Task) -> Examples:
    """Return examples with the targets of tables as the task's loss takes them."""
    convert = _converter(task)
    train: object = examples.train
    made = [convert(each) for each in train] if isinstance(train, list) else convert(train)
    test = None if examples.test is None else convert(examples.test)
    return replace(examples, train=made, test=test)  # type: ignore[arg-type]  # sources stay sources


def _converter(task: Task) -> Callable[[object], object]:
    def convert(source: object) -> object:
        if not isinstance(source, tuple):
            return source
        *inputs, targets = source
        column = converted(as_column(targets, "the targets", "data", targets=True), targets=True)
        return (*inputs, fitted(column, task))

    return convert


def _notes(task: Task, given: bool, targets: Tensor | None, *, own_loss: bool) -> tuple[str, ...]:
    """Return the inferred facts, in words."""
    if given or targets is None:
        return ()
    kind = (
        f"{'whole numbers' if not targets.is_floating_point() else 'numbers'}, {tuple(targets.shape)[1:] or 'one each'}"
    )
    loss = f", trained by {LOSS[task]}" if not own_loss else ""
    return (f"inferred {task}{loss} (targets: {kind}); set task=… for another one",)
