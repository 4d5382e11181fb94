"""`Strategy.start` for apps under fedloom: the same loop, able to resume where it had stopped."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TypeAlias

from fedloom.core.errors import UnsupportedFeature
from fedloom.core.records import Array
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower import memory, records
from fedloom.strategies.flower.memory import Memory
from fedloom.strategies.flower.messages import EVALUATE, TRAIN
from fedloom.strategies.flower.seeding import Streams
from fedloom.strategies.flower_app.journal import START, Entry
from fedloom.strategies.flower_app.measured import Measured
from fedloom.strategies.flower_app.session import AppGrid, Session

EvaluateFn: TypeAlias = Callable[[int, flwr.ArrayRecord], flwr.MetricRecord | None]
"""An app's own evaluation on the server."""


def host_start() -> None:
    """Replace `Strategy.start` when called with fedloom's grid; with any other grid it is Flower's, unchanged."""
    original = flwr.Strategy.start
    if inspect.unwrap(original) is not original:
        return
    signature = inspect.signature(original)

    @functools.wraps(original)
    def start(self: flwr.Strategy, grid: flwr.Grid, *args: object, **kwargs: object) -> flwr.Result:
        if not isinstance(grid, AppGrid):
            return original(self, grid, *args, **kwargs)
        given = signature.bind(self, grid, *args, **kwargs)
        given.apply_defaults()
        values = dict(given.arguments)
        del values["self"], values["grid"]
        return _Run(self, grid, **values).to_the_end()

    flwr.Strategy.start = start


class _Run:
    """One call of `start`: its arguments, and everything that changes from round to round."""

    def __init__(
        self,
        strategy: flwr.Strategy,
        grid: AppGrid,
        *,
        initial_arrays: flwr.ArrayRecord,
        num_rounds: int,
        timeout: float,
        train_config: flwr.ConfigRecord | None,
        evaluate_config: flwr.ConfigRecord | None,
        evaluate_fn: EvaluateFn | None,
        **unknown: object,
    ) -> None:
        if unknown:
            raise UnsupportedFeature(f"Strategy.start has arguments {sorted(unknown)} in this flwr, not supported")
        self.strategy, self.grid, self.session = strategy, grid, grid.session
        self.num_rounds, self.timeout, self.evaluate_fn = num_rounds, timeout, evaluate_fn
        self.train_config = flwr.ConfigRecord() if train_config is None else train_config
        self.evaluate_config = flwr.ConfigRecord() if evaluate_config is None else evaluate_config
        self.arrays = initial_arrays
        self.result = flwr.Result()
        self.done = 0
        self.place: int | None = None

    def to_the_end(self) -> flwr.Result:
        """Run the remaining rounds, and return the result of all."""
        session = self.session
        session.in_start = True
        try:
            entry = session.recorded_start()
            if entry is not None:
                self.place = session.position
                self._restore(entry)
            elif self.evaluate_fn:
                self._evaluate_here(self.evaluate_fn, 0)
                session.measured = Measured()  # of the initial model: no round's
            self._publish_model()
            while self.done < self.num_rounds:
                self._snapshot()
                self._round(self.done + 1)
                self.done += 1
            self._snapshot()
        finally:
            session.in_start = False
        return self.result

    def _round(self, number: int) -> None:
        session, result = self.session, self.result
        messages = self.strategy.configure_train(number, self.arrays, self.train_config, self.grid)
        replies = self.grid.send_and_receive(messages, timeout=self.timeout)
        arrays, metrics = self.strategy.aggregate_train(number, replies)
        if arrays is not None:
            result.arrays = self.arrays = arrays
            self._publish_model()
        if metrics is not None:
            result.train_metrics_clientapp[number] = metrics
            session.measured.aggregated[TRAIN] = records.scalars(metrics)
        messages = self.strategy.configure_evaluate(number, self.arrays, self.evaluate_config, self.grid)
        replies = self.grid.send_and_receive(messages, timeout=self.timeout)
        metrics = self.strategy.aggregate_evaluate(number, replies)
        if metrics is not None:
            result.evaluate_metrics_clientapp[number] = metrics
            session.measured.aggregated[EVALUATE] = records.scalars(metrics)
        if self.evaluate_fn:
            self._evaluate_here(self.evaluate_fn, number)

    def _evaluate_here(self, evaluate: EvaluateFn, number: int) -> None:
        """Run the app's own evaluation on the server."""
        metrics = evaluate(number, self.arrays)
        if metrics is not None:
            self.result.evaluate_metrics_serverapp[number] = metrics
            self.session.measured.here = records.scalars(metrics)

    def _publish_model(self) -> None:
        self.session.model = records.from_array_record(self.arrays)

    def _snapshot(self) -> None:
        session = self.session
        if not (session.recording.journal and session.recording.snapshots):
            return
        arrays: dict[str, Array] = {}
        try:
            captured = memory.capture(self.strategy, f"Flower strategy {type(self.strategy).__name__}")
            values = self._values(session)
            tree = memory.encode(values, arrays, "start", "Strategy.start")
        except UnsupportedFeature:  # something in it cannot be saved: this app is resumed from its replies
            session.stop_snapshots()
            return
        arrays |= {f"strategy/{name}": array for name, array in captured.arrays.items()}
        self.place = session.snapshot(
            Entry({"kind": START, "values": tree, "strategy": captured.tree}, arrays), self.place
        )

    def _values(self, session: Session) -> dict[str, object]:
        streams, result = Streams.current(), self.result
        return {
            "done": self.done,
            "arrays": self.arrays,
            "train_config": self.train_config,
            "evaluate_config": self.evaluate_config,
            "result": [
                result.arrays,
                result.train_metrics_clientapp,
                result.evaluate_metrics_clientapp,
                result.evaluate_metrics_serverapp,
            ],
            "context": session.context.state,
            "streams": [streams.python, streams.numpy, streams.torch],
        }

    def _restore(self, entry: Entry) -> None:
        values = memory.decode(entry.tree["values"], entry.arrays)
        inside = {
            name.removeprefix("strategy/"): array
            for name, array in entry.arrays.items()
            if name.startswith("strategy/")
        }
        memory.restore(self.strategy, Memory(inside, dict(entry.tree["strategy"])))
        self.done, self.arrays = values["done"], values["arrays"]
        self.train_config, self.evaluate_config = values["train_config"], values["evaluate_config"]
        result = self.result
        result.arrays, result.train_metrics_clientapp = values["result"][:2]
        result.evaluate_metrics_clientapp, result.evaluate_metrics_serverapp = values["result"][2:]
        self.session.context.state.clear()
        self.session.context.state.update(values["context"])
        Streams(*values["streams"]).install()
