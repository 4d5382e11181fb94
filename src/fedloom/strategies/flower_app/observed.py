"""Records what an app's own objects compute: a strategy with its own `start`, and the API before messages.

Flower's classes are wrapped once in a process. A wrapper does nothing but call what it wraps, unless it runs in the
thread of an app's `main` under fedloom.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

from fedloom.core.errors import UnsupportedFeature
from fedloom.core.records import Arrays
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower import records
from fedloom.strategies.flower.messages import EVALUATE, TRAIN
from fedloom.strategies.flower_app.measured import Measured

Method: TypeAlias = Callable[..., Any]
"""A method of one of Flower's classes."""
_WATCHED = "_fedloom_watches"
"""Attribute of a wrapper."""
_active = threading.local()


class Session(Protocol):
    """What is recorded of an app's `main`: see `flower_app.session.Session`."""

    model: Arrays
    measured: Measured
    in_start: bool
    server: object

    @property
    def num_clients(self) -> int:
        """Return the number of clients."""

    @property
    def more(self) -> str:
        """Return how a run gets more clients."""


@contextmanager
def watching(session: Session) -> Iterator[None]:
    """Record in a session what the app's strategies compute in this thread during the body."""
    for kind in _subclasses(flwr.Strategy):
        _wrap(kind, "start", _start)
        _wrap(kind, "aggregate_train", _aggregate_train)
        _wrap(kind, "aggregate_evaluate", _aggregate_evaluate)
    _active.session = session
    try:
        yield
    finally:
        _active.session = None


def active() -> Session | None:
    """Return the session whose app runs in this thread."""
    found: Session | None = getattr(_active, "session", None)
    return found


def wrap(kind: type, name: str, made: Callable[[Method], Method]) -> None:
    """Replace a method that a class defines itself by the wrapper `made` returns for it, once in a process."""
    original = vars(kind).get(name)
    if inspect.isfunction(original) and _WATCHED not in vars(original):
        wrapped = functools.wraps(original)(made(original))
        vars(wrapped)[_WATCHED] = True
        setattr(kind, name, wrapped)


def _wrap(kind: type, name: str, made: Callable[[Method], Method]) -> None:
    if kind is not flwr.Strategy:  # its own `start` is another's: see `start.host_start`
        wrap(kind, name, made)


def _subclasses(kind: type) -> Iterator[type]:
    found: list[type] = type.__subclasses__(kind)
    for each in found:
        yield each
        yield from _subclasses(each)


def refuse_secure_aggregation() -> None:
    """Make the workflows SecAgg and SecAgg+ refuse to be made, or to run, in an app's `main`."""
    workflow = flwr.secure_aggregation()
    for name in ("__init__", "__call__"):
        wrap(workflow, name, _refused)


def _refused(original: Method) -> Method:
    def refused(self: object, *args: object, **kwargs: object) -> object:
        if active() is not None:
            raise UnsupportedFeature(
                f"the app uses {type(self).__name__}, Flower's secure aggregation, which fedloom does not run. Leave "
                "out the workflow and its mod, or run the app under Flower"
            )
        return original(self, *args, **kwargs)

    return refused


def _outside_start() -> Session | None:
    """Return the session of an app with a loop of its own; None while `Strategy.start` does the rounds."""
    session = active()
    return None if session is None or session.in_start else session


def _aggregate_train(original: Method) -> Method:
    def aggregate_train(self: flwr.Strategy, *args: object, **kwargs: object) -> object:
        made = original(self, *args, **kwargs)
        session = _outside_start()
        if session is not None and isinstance(made, tuple) and len(made) == 2:
            arrays, metrics = made
            if isinstance(arrays, flwr.ArrayRecord):
                session.model = records.from_array_record(arrays) or session.model
            if isinstance(metrics, flwr.MetricRecord):
                session.measured.aggregated[TRAIN] = records.scalars(metrics)
        return made

    return aggregate_train


def _aggregate_evaluate(original: Method) -> Method:
    def aggregate_evaluate(self: flwr.Strategy, *args: object, **kwargs: object) -> object:
        made = original(self, *args, **kwargs)
        session = _outside_start()
        if session is not None and isinstance(made, flwr.MetricRecord):
            session.measured.aggregated[EVALUATE] = records.scalars(made)
        return made

    return aggregate_evaluate


def _start(original: Method) -> Method:
    signature = inspect.signature(original)

    def start(self: flwr.Strategy, *args: object, **kwargs: object) -> object:
        session = active()
        if session is None:
            return original(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs)
        evaluate = given.arguments.get("evaluate_fn")
        if callable(evaluate):
            given.arguments["evaluate_fn"] = _evaluating(evaluate)
        made = original(*given.args, **given.kwargs)
        arrays = made.arrays if isinstance(made, flwr.Result) else None
        if isinstance(arrays, flwr.ArrayRecord):
            session.model = records.from_array_record(arrays) or session.model
        return made

    return start


def _evaluating(evaluate: Method) -> Method:
    """Return an app's evaluation that records what it returns; that of the initial model (round 0) is no round's."""

    @functools.wraps(evaluate)
    def evaluate_fn(server_round: int, arrays: flwr.ArrayRecord) -> object:
        metrics = evaluate(server_round, arrays)
        session = _outside_start()
        if session is not None and server_round and isinstance(metrics, flwr.MetricRecord):
            session.measured.here = records.scalars(metrics)
        return metrics

    return evaluate_fn
