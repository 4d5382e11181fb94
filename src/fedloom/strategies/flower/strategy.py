"""Hosts a Flower `Strategy` object: its round is made with its own methods, our loop drives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fedloom.core.accumulators import UpdateList
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, FedloomError, RunFailed
from fedloom.core.protocols import Pending, Strategy
from fedloom.core.records import MODEL, Arrays, Exchange, Info, Record, RoundContext
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower import memory, records
from fedloom.strategies.flower.build import build_object
from fedloom.strategies.flower.config import Config
from fedloom.strategies.flower.grid import ClientsGrid
from fedloom.strategies.flower.memory import Memory
from fedloom.strategies.flower.messages import Batch, cast_like
from fedloom.strategies.flower.seeding import seeded

T = TypeVar("T")
TRAIN = "train"
EVALUATE = "evaluate"


@dataclass(frozen=True, slots=True)
class FlowerState:
    """The global model, and the attributes of the Flower object."""

    model: Arrays
    """In the workload's names, shapes and dtypes."""
    memory: Arrays = field(default_factory=dict)
    """Arrays among the object's attributes, by path."""
    tree: Info = field(default_factory=dict)
    """The rest of its attributes (`memory.Memory.tree`)."""
    phase: str = TRAIN
    """Index of the round's next exchange."""
    report: Info = field(default_factory=dict)
    """The last round's aggregated training metrics."""
    evaluation: Info | None = None
    """The last round's aggregated metrics of evaluation on clients; None without one."""


class _Hosted:
    """The object and the two ConfigRecords that live as long as it: strategies change them from round to round."""

    def __init__(self, strategy: flwr.Strategy, config: Config) -> None:
        self.strategy = strategy
        self.train_config = _record(config.train_config, "strategy.train_config")
        self.evaluate_config = _record(config.evaluate_config, "strategy.evaluate_config")


class FlowerStrategy(Strategy[FlowerState, UpdateList]):
    """Any `flwr.serverapp.strategy.Strategy` as a fedloom strategy.

    A round is `configure_train`, the clients' work, `aggregate_train`, and if clients evaluate `configure_evaluate`
    and `aggregate_evaluate`, as Flower's own `Strategy.start` calls them. The object is set to the state's memory
    before each call and its memory is captured after, so equal states give equal results, in this process or another.
    """

    State = FlowerState

    def __init__(self, strategy: flwr.Strategy, config: Config, *, hosts_app: bool) -> None:
        """Wrap a strategy object.

        Args:
            strategy: the object; it must not be used elsewhere from here on.
            config: the settings it was made from.
            hosts_app: whether the clients run a Flower app, so that they get whole messages.
        """
        evaluates = config.evaluate_on_clients
        if evaluates and not hosts_app:
            raise ConfigError(
                'strategy.evaluate_on_clients = true needs workload.name = "flower", whose app has its own '
                "evaluate(). Other workloads are evaluated on their held-out data (`evaluation.every`)"
            )
        self._hosted = _Hosted(strategy, config)
        self._name = type(strategy).__name__
        self._hosts_app = hosts_app
        self.evaluates = hosts_app if evaluates is None else evaluates
        self._constants = memory.constants(self._hosted)
        self._fresh = self._capture()
        self._planned: tuple[FlowerState, int, Batch] | None = None

    def init(self, model: Record) -> FlowerState:
        arrays = model.groups.get(MODEL, {})
        if not arrays:
            raise ConfigError(
                "the workload has no initial model, which a Flower strategy needs; a Flower app's is named by "
                "workload.initial_arrays"
            )
        return FlowerState(arrays, self._fresh.arrays, self._fresh.tree)

    def plan(self, state: FlowerState, context: RoundContext) -> Exchange | None:
        return self._exchange(state, context, self._batch(state, context))

    def finish(
        self, state: FlowerState, total: UpdateList, context: RoundContext
    ) -> FlowerState | Pending[FlowerState]:
        batch, self._planned = self._sent(state, context), None
        if state.phase == EVALUATE:
            return self._evaluated(state, batch, total, context)
        after = self._trained(state, batch, total, context)
        if self.evaluates:
            asking = replace(after, phase=EVALUATE)
            exchange = self._exchange(asking, context, self._batch(asking, context))
            if exchange is not None:
                return Pending(asking, exchange)
        return after

    def arrays(self, state: FlowerState) -> Arrays:
        return state.model

    def evaluation(self, state: FlowerState) -> Mapping[str, float] | None:
        """Return the last round's evaluation on clients, as Flower aggregated it."""
        return None if state.evaluation is None else dict(state.evaluation)

    def report(self, state: FlowerState) -> Mapping[str, float]:
        """Return the last round's training metrics, by Flower; `skipped` is 1 if it returned the old model."""
        return dict(state.report)

    def _sent(self, state: FlowerState, context: RoundContext) -> Batch:
        """Return the messages the replies are to. If another process sent them, the object is brought to that state."""
        if self._planned is not None and self._planned[0] is state and self._planned[1] == context.round:
            return self._planned[2]
        return self._batch(state, context)

    def _batch(self, state: FlowerState, context: RoundContext) -> Batch:
        """Restore the object and let it write the phase's messages."""
        memory.restore(self._hosted, Memory(dict(state.memory), dict(state.tree)))
        hosted, arrays = self._hosted, records.to_array_record(state.model)
        if state.phase == TRAIN:
            configure, config = hosted.strategy.configure_train, hosted.train_config
        else:
            configure, config = hosted.strategy.configure_evaluate, hosted.evaluate_config
        grid = ClientsGrid(context.cohort)
        batch = self._call(
            f"configure_{state.phase}",
            context,
            lambda: Batch(configure(context.round, arrays, config, grid), context.cohort),
        )
        self._planned = (state, context.round, batch)
        return batch

    def _exchange(self, state: FlowerState, context: RoundContext, batch: Batch) -> Exchange | None:
        if not batch.messages:
            return None
        return batch.exchange(context.round) if self._hosts_app else batch.plain_exchange(context.round, state.model)

    def _trained(self, state: FlowerState, batch: Batch, total: UpdateList, context: RoundContext) -> FlowerState:
        strategy = self._hosted.strategy
        replies = self._replies(batch, total)
        arrays, metrics = self._call(
            "aggregate_train", context, lambda: strategy.aggregate_train(context.round, replies)
        )
        report = records.scalars(metrics) if metrics is not None else {}
        model = state.model
        if arrays is None:
            report |= {"skipped": 1.0}
        else:
            model = cast_like(records.from_array_record(arrays), state.model)
        return self._state(model, report, None)

    def _evaluated(self, state: FlowerState, batch: Batch, total: UpdateList, context: RoundContext) -> FlowerState:
        strategy = self._hosted.strategy
        replies = self._replies(batch, total)
        metrics = self._call("aggregate_evaluate", context, lambda: strategy.aggregate_evaluate(context.round, replies))
        return self._state(state.model, state.report, records.scalars(metrics) if metrics is not None else None)

    def _replies(self, batch: Batch, total: UpdateList) -> list[flwr.Message]:
        if self._hosts_app:
            return batch.replies(total.updates)
        weighted_by, loss_name = flwr.metric_names(self._hosted.strategy)
        return batch.plain_replies(total.updates, weighted_by, loss_name)

    def _state(self, model: Arrays, report: Info, evaluation: Info | None) -> FlowerState:
        captured = self._capture()
        return FlowerState(model, captured.arrays, captured.tree, TRAIN, report, evaluation)

    def _capture(self) -> Memory:
        return memory.capture(self._hosted, f"Flower strategy {self._name}", self._constants)

    def _call(self, method: str, context: RoundContext, call: Callable[[], T]) -> T:
        """Run one of the object's methods: seeded, quiet, its exceptions named.

        Raises:
            RunFailed: the method raised; the message names it and the round.
        """
        try:
            with seeded(context.rng(method)), flwr.quiet():
                return call()
        except FedloomError:
            raise
        except Exception as exc:
            raise RunFailed(
                f"Flower strategy {self._name}, {method}, round {context.round}: {type(exc).__name__}: {exc}"
            ) from exc


def build_strategy(config: Config, experiment: Experiment) -> FlowerStrategy:
    """Return the strategy a `Config` describes."""
    hosts_app = experiment.workload.name == "flower"
    made = build_object(config, cohort_size=experiment.cohort_size, hosts_app=hosts_app)
    malicious = config.options.get("num_malicious_nodes", 0)
    if config.class_ == "Bulyan" and isinstance(malicious, int) and experiment.cohort_size < 4 * malicious + 3:
        raise ConfigError(
            f"strategy.options.num_malicious_nodes = {malicious}: Bulyan needs at least 4 * {malicious} + 3 clients "
            f"per round, this run samples {experiment.cohort_size}; raise `cohort`"
        )
    return FlowerStrategy(made, config, hosts_app=hosts_app)


def _record(values: Mapping[str, object], key: str) -> flwr.ConfigRecord:
    """Return settings as Flower's record of them.

    Raises:
        ConfigError: a value is of a kind that a record cannot have.
    """
    try:
        return flwr.ConfigRecord(dict(values))
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"{key}: {exc}") from exc
