"""Runs of a Python program's own model and data: the arguments, and the experiment that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Required, TypedDict

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, FedloomError, UsageError
from fedloom.core.experiment_arguments import Plugin, Table
from fedloom.core.extras import needed_by
from fedloom.core.plugin_faults import users_line
from fedloom.core.protocols import Sink
from fedloom.core.python_objects import held
from fedloom.core.registry import forget_changed
from fedloom.core.text import nearest, shown
from fedloom.workloads._torch.settings import TrainingSettings

if TYPE_CHECKING:
    from fedloom.workloads.torch.parts import Parts
    from fedloom.workloads.torch.types import Data, LossFunction, MakeOptimizer, Metrics, Model, Task, Transform


class Given(TypedDict, total=False):
    """What a program gives besides `model` and `data`."""

    test: Data
    """Examples for evaluating the global model, in the form of `data`. Without it, and without a pair (train, test), a
    part of `data` is held out."""
    test_fraction: float
    """Fraction of the examples (of each client's, in a list) held out where there is no test set; 0.2 by default."""
    label: str | Sequence[str]
    """Column of the targets in a frame or a data set of Hugging Face, or a list of several; `label` by default."""
    columns: Sequence[str]
    """Columns of the inputs; by default all others."""
    task: Task
    """What the model learns; by default inferred from targets and outputs, and printed."""
    loss: LossFunction
    """Mean loss of a minibatch, of outputs and targets; by default the task's."""
    metrics: Metrics
    """Means over a minibatch, of outputs and targets, shown besides the loss; by default the task's."""
    optimizer: MakeOptimizer | Literal["sgd", "adamw"]
    """Makes a client's optimiser of a list of parameters; or the name of one of `training`."""
    transform: Transform
    """Prepares the input of one example whenever it is read, in training and evaluation."""


class RunArguments(Given, total=False):
    """Arguments of `fedloom.run` for a model and data; those that an experiment has too mean the same there."""

    model: Required[Model]
    """A module, whose weights are the initial ones, or a class or function without arguments that makes one."""
    data: Required[Data]
    """The examples."""
    clients: int
    """Number of clients the examples are split among; for a list of data sets its length."""
    cohort: int
    """Clients sampled in each round; by default all."""
    rounds: int
    """Number of rounds; 10 by default."""
    seed: int
    """Seed of all randomness; 1 by default."""
    name: str
    """Name of the run; by default that of the model's class."""
    strategy: Plugin
    """The strategy; `fedavg` by default."""
    selection: Plugin
    """Client selection; uniform sampling by default."""
    monitor: Plugin
    """Label-free monitoring; none by default."""
    best: Table | str
    """Metric by which the final model is the best round's, such as `accuracy`; or a table with `patience`, too, after
    which the run ends early. By default the final model is the last round's."""
    partition: Table | str
    """How the examples are split among clients: a table, or the name of a scheme; `iid` by default."""
    augment: Table
    """Images changed at random in training: `{"flip": True, "crop": 4, "erase": 0.25}`; by default none."""
    training: Table
    """Settings of local training, such as `{"learning_rate": 0.1, "epochs": 2}`."""
    settings: Table
    """Any other sections of the experiment: `round`, `evaluation`, `checkpoint`, `runtime`."""
    runtime: Literal["process", "ray", "inline"]
    """Where the clients run; `process` by default."""
    workers: int
    """Number of workers; by default one per core."""
    out: str | Path
    """The run's folder; `runs/<id>` by default."""
    sinks: Sequence[Sink]
    """Take every event; by default the terminal or notebook shows them. `()` shows nothing."""
    keep: bool
    """Write the run's folder; true by default."""


_EXPERIMENT = ("clients", "cohort", "seed", "name", "selection", "monitor", "best")
"""Arguments that are settings of an experiment, too."""


@dataclass(frozen=True)
class PythonRun:
    """A run of Python objects: its experiment, and the objects."""

    experiment: Experiment
    parts: Parts

    @property
    def key(self) -> str:
        """Return the key of the objects."""
        return self.experiment.workload.objects_key()


def check_names(arguments: Mapping[str, object], known: type, function: str) -> None:
    """Refuse an argument that a function does not know.

    Raises:
        ConfigError: the message names the nearest one.
    """
    names = _keys(known)
    for name, value in arguments.items():
        if name not in names:
            meant = nearest(name, names)
            hint = f"did you mean {meant!r}? " if meant else ""
            if "training" in names and name in TrainingSettings.model_fields:
                hint = f"it is a setting of training: training={{{name!r}: {value!r}}}; "
            raise ConfigError(f"{function}: unknown argument {name!r}; {hint}known: {', '.join(names)}")
    _check_sinks(arguments.get("sinks", ()))


def _check_sinks(sinks: object) -> None:
    """Refuse sinks that are no list of objects with `write` and `close`.

    Raises:
        ConfigError: says what was found.
    """
    listed = sinks if isinstance(sinks, Sequence) and not isinstance(sinks, str) else None
    odd = sinks if listed is None else next((each for each in listed if not isinstance(each, Sink)), None)
    if odd is not None:
        raise ConfigError(
            f"sinks: expected a list of objects with write(event) and close(), found {shown(odd)}; () shows nothing"
        )


def _keys(known: type) -> list[str]:
    return [name for kind in reversed(known.__mro__) for name in vars(kind).get("__annotations__", {})]


def make_run(arguments: RunArguments) -> PythonRun:
    """Return the run of a model on data, checked: the workload is built once.

    Raises:
        UsageError: an argument, the model, the data or a function is not what it should be.
    """
    from fedloom.workloads.torch.making import built

    forget_changed()
    for name in ("model", "data"):
        if name not in arguments:
            raise ConfigError(f"{name}: required, but missing; expected an experiment, or model and data")
    data = arguments["data"]
    parts, objects = objects_of_arguments(arguments["model"], data, arguments)
    clients = len(data) if isinstance(data, list) else arguments.get("clients")
    if clients is None or arguments.get("clients", clients) != clients:
        raise ConfigError(
            f"clients: the data is a list with one for each of {clients} clients, got {arguments.get('clients')}"
            if clients is not None
            else "clients: required, but missing: the number of clients that the examples are split among"
        )
    experiment = Experiment.parse(_values(parts, objects, clients, arguments))
    run = PythonRun(experiment, parts)
    with held(run.key, parts):
        built(experiment)
    return run


def objects_of_arguments(model: Model, data: Data, given: Given) -> tuple[Parts, Mapping[str, str]]:
    """Return the objects of a run, and their digests.

    Raises:
        PackageMissing: PyTorch is not installed.
        UsageError: one is not what it should be.
    """
    with needed_by("a run of a model and data"):
        from fedloom.workloads.torch.making import make_parts
    optimizer, label = given.get("optimizer"), given.get("label", ())
    return make_parts(
        model,
        data,
        test=given.get("test"),
        reading={
            "labels": (label,) if isinstance(label, str) else tuple(label),
            "columns": tuple(given.get("columns", ())),
            "transform": given.get("transform"),
            "test_fraction": given.get("test_fraction", 0.2),
        },
        functions={
            "task": given.get("task"),
            "loss": given.get("loss"),
            "metrics": given.get("metrics"),
            "optimizer": None if isinstance(optimizer, str) else optimizer,
        },
    )


def _values(parts: Parts, objects: Mapping[str, str], clients: int, given: RunArguments) -> dict[str, object]:
    """Return the experiment as its TOML has it."""
    training, optimizer = _given_table(given, "training"), given.get("optimizer")
    if isinstance(optimizer, str):
        training["optimizer"] = optimizer
    elif optimizer is not None and "learning_rate" in training:
        raise ConfigError("training.learning_rate: without effect beside optimizer=…, whose rate counts; remove one")
    partition = given.get("partition")
    further = _given_table(given, "settings")
    runtime = {"name": given.get("runtime", "process"), "workers": given.get("workers")}
    named = {key: value for key, value in given.items() if key in _EXPERIMENT and value not in (None, "")}
    return {
        "name": parts.title,
        "rounds": given.get("rounds", 10),
        "strategy": given.get("strategy", "fedavg"),
        **named,
        "clients": clients,
        **further,
        "runtime": {**{k: v for k, v in runtime.items() if v is not None}, **_table(further.get("runtime"))},
        "workload": {
            "name": "torch",
            "objects": dict(objects),
            **({"partition": {"scheme": partition} if isinstance(partition, str) else partition} if partition else {}),
            **({"training": training} if training else {}),
            **({"augment": _given_table(given, "augment")} if "augment" in given else {}),
        },
    }


def _given_table(given: Mapping[str, object], name: str) -> dict[str, object]:
    """Return a table of settings that a program gives; empty if it gives none.

    Raises:
        ConfigError: it is no table.
    """
    value = given.get(name, {})
    if not isinstance(value, Mapping):
        raise ConfigError(f'{name}: expected a dict of settings, such as {{"…": …}}, found {shown(value)}')
    return {str(key): each for key, each in value.items()}


def _table(value: object) -> dict[str, object]:
    return {str(key): each for key, each in value.items()} if isinstance(value, Mapping) else {}


def check_objects(experiment: Experiment, objects: Mapping[str, str], *, weights: bool) -> None:
    """Refuse objects that are not those a run began with.

    Args:
        experiment: the run's.
        objects: digests of what is given now.
        weights: whether the run has no checkpoint, so that the initial weights matter.

    Raises:
        ConfigError: they differ, or the run has none.
    """
    stored = experiment.workload.model_dump().get("objects")
    if not isinstance(stored, Mapping):
        raise ConfigError("model, data: this run's model and data come from its settings; omit the arguments")
    for name in ("code", "data", *(("weights",) if weights else ())):
        if stored[name] != objects[name]:
            what = {"code": "the source of the model or of a function", "weights": "the initial weights"}
            raise ConfigError(
                f"{what.get(name, 'the data')} is not what the run began with: SHA-256 {stored[name]} then, "
                f"{objects[name]} now. Give what it began with, or start a new run; "
                "as_continuation=True resumes with what is given"
            )


def at_users_line(error: UsageError) -> UsageError:
    """Return an error whose message begins with file and line of the program's call, unless it names another."""
    text = str(error)
    if ", line " in text.partition(": ")[0]:
        return error
    placed: FedloomError = type(error)(f"{users_line()}{text}")
    return placed if isinstance(placed, UsageError) else error
