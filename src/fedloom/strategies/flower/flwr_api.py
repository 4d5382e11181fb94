"""Every name this package uses from flwr, in one place: flwr moves its modules, which affects only this file.

No other module imports flwr. Telemetry and the update check are off before the first of its modules loads.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import inspect
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import getattr_static
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias, runtime_checkable

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of libraries below flwr, about each other
    import flwr
    import flwr.serverapp.strategy as strategies
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import Result, Strategy

__all__ = [
    "OTHER_RUNS",
    "Array",
    "ArrayRecord",
    "ClientApp",
    "ConfigRecord",
    "Context",
    "Error",
    "Grid",
    "Message",
    "MetricRecord",
    "RecordDict",
    "Result",
    "ServerApp",
    "Strategy",
    "client_of",
    "error",
    "instruction",
    "is_older_server",
    "make_context",
    "metric_names",
    "node_id",
    "older_server",
    "quiet",
    "reply",
    "secure_aggregation",
    "simulated_by",
    "strategies",
]

SERVER_NODE = 1
"""Node id of the server; clients' ids follow it."""
RUN = 1
"""Id of a run that names none."""
LEGACY_METRICS = ("res.metrics", "res.loss", "res.num_examples")
"""What the names of records with numbers end with in replies of the API before messages."""
NUMPY_STYPE = "numpy.ndarray"
"""Name of the array encoding every Flower framework helper uses."""
ERROR_CODE = 2
"""Code of an error reply: the client's app raised."""
NO_REPLY_CODE = 4
"""Code of an error reply in place of one that did not come."""


@runtime_checkable
class _Wraps(Protocol):
    """A strategy around a strategy."""

    strategy: object


@runtime_checkable
class _WeighsByExamples(Protocol):
    weighted_by_key: str


@runtime_checkable
class _WeighsByLoss(Protocol):
    train_loss_key: str


def node_id(client: int) -> int:
    """Return Flower's id of a client: never 0, never the server's."""
    return client + SERVER_NODE + 1


def client_of(node: int) -> int:
    """Return the client of a node id (inverse of `node_id`)."""
    return node - SERVER_NODE - 1


def instruction(
    content: RecordDict, client: int, message_type: str, group_id: str = "", message_id: str = ""
) -> Message:
    """Return a message from the server to a client."""
    message = Message(content, dst_node_id=node_id(client), message_type=message_type, group_id=group_id)
    message.metadata.__dict__["_message_id"] = message_id  # flwr's own links set it so: there is no public setter
    return message


def set_message_id(message: Message, message_id: str) -> None:
    """Name a message, as the link that takes it does."""
    message.metadata.__dict__["_message_id"] = message_id


def reply(content: RecordDict | Error, to: Message) -> Message:
    """Return a client's reply to a message; `content` is a RecordDict or an Error."""
    return Message(content, reply_to=to)


def error(code: int, reason: str) -> Error:
    """Return the content of an error reply."""
    return Error(code, reason)


def make_context(
    node: int,
    node_config: Mapping[str, object],
    run_config: Mapping[str, object],
    state: RecordDict,
    run_id: int = RUN,
) -> Context:
    """Return the context passed to an app besides the message."""
    return Context(run_id=run_id, node_id=node, node_config=dict(node_config), state=state, run_config=dict(run_config))


def metric_names(strategy: Strategy) -> tuple[str, str | None]:
    """Return the metrics of a reply that a strategy (the innermost of wrapped ones) weighs by.

    Returns:
        The name of the number of examples, and that of the training loss if the strategy reads one.
    """
    inner: object = strategy
    while isinstance(inner, _Wraps) and isinstance(inner.strategy, Strategy):
        inner = inner.strategy
    weighted_by = inner.weighted_by_key if isinstance(inner, _WeighsByExamples) else "num-examples"
    return weighted_by, inner.train_loss_key if isinstance(inner, _WeighsByLoss) else None


@dataclass(frozen=True, slots=True)
class OlderServer:
    """The server of the API before messages."""

    module: ModuleType
    """Where its loop and its functions that ask clients are."""
    server: type
    history: type
    manager: type
    ok: object
    """Status code of a client that did what it was to do."""
    to_arrays: Callable[[Any], ArrayRecord]
    """Returns a model's `Parameters` as a record."""


@functools.cache
def older_server() -> OlderServer:
    """Import the server of the API before messages."""
    import flwr.server.server as module
    from flwr.common import Code, parameters_to_ndarrays
    from flwr.server.client_manager import SimpleClientManager
    from flwr.server.history import History

    return OlderServer(
        module,
        module.Server,
        History,
        SimpleClientManager,
        Code.OK,
        lambda parameters: ArrayRecord(numpy_ndarrays=parameters_to_ndarrays(parameters)),
    )


def secure_aggregation() -> type:
    """Import the workflow of secure aggregation."""
    from flwr.server.workflow import SecAggPlusWorkflow

    found: type = SecAggPlusWorkflow
    return found


def is_older_server(app: object) -> bool:
    """Return whether a ServerApp has no `main(grid, context)` but the parts of the API before messages."""
    return getattr_static(app, "_main", None) is None


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Flower's own log lines below WARNING, and shorten its garbage collections, during the body.

    Its progress lines would mix with fedloom's; those an app logs itself through `flwr.common.log` are shown. Each of
    Flower's conversions runs a full collection, which takes half a second if torch is loaded; frozen, earlier objects
    are not traversed again.
    """
    logger = logging.getLogger("flwr")
    logger.addFilter(_apps_own)
    freezes = gc.get_freeze_count() == 0  # a program that froze its objects itself is left alone
    if freezes:
        gc.freeze()
    try:
        yield
    finally:
        if freezes:
            gc.unfreeze()
        logger.removeFilter(_apps_own)


OTHER_RUNS = ("start_simulation", "start_server", "start_client", "start_numpy_client")
"""Other functions of Flower's that run apps: of the API before ServerApp and ClientApp."""
_OF = {
    "run_simulation": ("flwr.simulation", "flwr.simulation.run_simulation"),
    "start_simulation": ("flwr.simulation",),
    "start_server": ("flwr.server", "flwr.server.app", "flwr.server.compat.app"),
    "start_client": ("flwr.client", "flwr.client.app", "flwr.compat.client.app"),
    "start_numpy_client": ("flwr.client", "flwr.client.app", "flwr.compat.client.app"),
}
"""Modules whose attribute each of these functions is, in some version."""
Simulate: TypeAlias = Callable[[str, dict[str, object]], None]
"""Takes the name of one of these functions, and the arguments it was called with."""


class _Simulating(threading.local):
    """Who takes calls of these functions in the present thread."""

    call: Simulate | None = None


_simulating = _Simulating()


@contextmanager
def simulated_by(call: Simulate) -> Iterator[None]:
    """Pass calls of Flower's functions that run apps, in this thread, to `call` during the body."""
    for name, modules in _OF.items():
        for module in modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        for module in modules:
            _intercept(name, sys.modules.get(module))
    _simulating.call = call
    try:
        yield
    finally:
        _simulating.call = None


def _intercept(name: str, module: ModuleType | None) -> None:
    """Replace a function of a module, once in a process, by one that asks `_simulating`."""
    original = vars(module).get(name) if module is not None else None
    if not inspect.isfunction(original) or module is None or "_fedloom_simulates" in vars(original):
        return

    @functools.wraps(original)
    def run(*args: object, **kwargs: object) -> object:
        call = _simulating.call
        if call is None:
            return original(*args, **kwargs)
        values = dict(zip(inspect.signature(original).parameters, args, strict=False)) | kwargs
        return call(name, values)

    vars(run)["_fedloom_simulates"] = True
    setattr(module, name, run)


_HOME = str(Path(flwr.__file__).parent) + os.sep
"""Where Flower's own modules lie."""


def _apps_own(record: logging.LogRecord) -> bool:
    """Return whether a log line is an app's, or a warning."""
    return record.levelno >= logging.WARNING or not record.pathname.startswith(_HOME)


def _identify() -> None:
    """Set the process identity that newer versions require before they make a message.

    It is global in flwr, so an existing one (fedloom's code inside a Flower app) is left unchanged.
    """
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ModuleNotFoundError:  # versions before 1.38 have none
        return
    for name, value in (("task_id", 1), ("run_id", RUN), ("node_id", SERVER_NODE)):
        if getattr(TaskIdentity, f"_{name}", None) is None:
            setattr(TaskIdentity, name, value)


_identify()
