"""The federated loop: rounds of exchanges, folded, saved, told. There is one, whatever runs the clients."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.core.errors import FedloomError, RunFailed
from fedloom.core.events import Event, RoundFinished, RoundStarted
from fedloom.core.history import Failure, NodeShare, RoundRecord, Timing, Traffic
from fedloom.core.messages import RunSpec
from fedloom.core.protocols import Pending, Roster, Selection, Strategy, WorkloadInfo
from fedloom.core.records import (
    MODEL,
    Arrays,
    ClientReport,
    Exchange,
    Job,
    Metrics,
    Record,
    RoundContext,
    add_metrics,
    metric_values,
)
from fedloom.core.seeds import generator
from fedloom.core.state import dump_state, load_state
from fedloom.server.coordinator import Coordinator
from fedloom.server.exchange import Collected, Collector, as_line
from fedloom.server.nodes import Node
from fedloom.server.run_store import Checkpoint, RunStore


@dataclass
class _Progress:
    """Where the run is: what a checkpoint holds, live."""

    round: int
    strategy: Any
    selection: Any


@dataclass
class _Tally:
    """What the exchanges of one round add up to."""

    reports: list[ClientReport] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    waiting_s: float = 0.0
    aggregation_s: float = 0.0
    duplicates: int = 0
    reassigned: int = 0

    def add(self, collected: Collected) -> None:
        self.reports += collected.reports
        self.failures += [as_line(failure) for failure in collected.failures]
        self.waiting_s += collected.waiting_s
        self.aggregation_s += collected.aggregation_s
        self.duplicates += collected.duplicates
        self.reassigned += collected.reassigned


class Loop:
    """One run, from its first or next round to its last.

    Args:
        experiment: what to run.
        store: where results and checkpoints go; a run that has checkpoints there goes on from the newest.
        coordinator: the way to the agents.
        emit: takes every event.
        stop: when set, the run ends with `Interrupted` as soon as it can.
        pump: does an agent's work in this thread while the loop waits; None where agents are elsewhere.
        patience_s: seconds to wait for a first agent before giving up; None waits for ever.
    """

    def __init__(
        self,
        experiment: Experiment,
        store: RunStore,
        coordinator: Coordinator,
        emit: Callable[[Event], None],
        *,
        stop: threading.Event | None = None,
        pump: Callable[[], None] | None = None,
        patience_s: float | None = None,
    ) -> None:
        self._experiment, self._store, self._coordinator, self._emit = experiment, store, coordinator, emit
        self.run = RunSpec(run_id=store.run_id, experiment=experiment.to_dict())
        self._strategy: Strategy[Any] = registry.part(
            "strategies", experiment.strategy.name, "strategy"
        ).build_strategy(experiment.strategy, experiment)
        self._selection: Selection[Any] = registry.part(
            "selection", experiment.selection.name, "selection"
        ).build_selection(experiment.selection)
        self._collector = Collector(
            experiment, self.run, coordinator, store, emit, stop or threading.Event(), pump, patience_s
        )
        self._saver = _Saver(store, experiment.checkpoint.keep)
        self._progress: _Progress | None = None
        self._began, self._earlier_s = time.perf_counter(), 0.0
        self.info = WorkloadInfo(data={})

    @property
    def rounds_done(self) -> int:
        """Rounds finished so far."""
        return self._progress.round if self._progress else 0

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run so far: this session and, up to their checkpoints, those before."""
        return self._earlier_s + time.perf_counter() - self._began

    def arrays(self) -> Arrays:
        """The global model as it stands."""
        assert self._progress is not None
        return self._strategy.arrays(self._progress.strategy)

    def prepare(self) -> int:
        """Get the initial model, or the newest checkpoint; returns the first round to do."""
        self._coordinator.announce(self.run)
        checkpoint, info = self._store.latest_checkpoint(), self._store.workload()
        if checkpoint is not None and info is not None:
            self.info = info
            self._progress = _Progress(
                checkpoint.round,
                load_state(self._strategy.State, checkpoint.strategy),
                load_state(self._selection.State, checkpoint.selection),
            )
            self._earlier_s = checkpoint.seconds
        else:
            initial = self._initial()
            roster = self._roster()
            self._progress = _Progress(0, self._strategy.init(initial), self._selection.init(roster))
        self._store.rounds(upto=self._progress.round)
        return self._progress.round + 1

    def work(self) -> None:
        """Do every round that is left."""
        assert self._progress is not None
        try:
            while self._progress.round < self._experiment.rounds:
                if not self._round(self._progress, self._progress.round + 1):
                    break
        finally:
            self._saver.close()

    def close(self) -> None:
        """Let go of what a hosted strategy may hold (a Flower app's thread)."""
        close = getattr(self._strategy, "close", None)
        if close is not None:
            close()

    def _roster(self) -> Roster:
        return Roster(self._experiment.clients, self.info.client_sizes)

    def _initial(self) -> Record:
        """Round 0: one agent makes the initial model and says what the data is."""
        exchange = Exchange(jobs=(Job(round=0, client=0, kind="init", inputs=()),), accumulator="separate")
        collected = self._collector.collect(exchange, 0, 0, quorum=1.0, deadline_s=None)
        update = collected.total.updates[0][1]
        described = update.info["workload"]
        self.info = WorkloadInfo(**described)
        self._store.save_workload(self.info)
        return Record(update.groups, update.info["model"])

    def _round(self, progress: _Progress, number: int) -> bool:
        """One round; False when the strategy wants no further one."""
        begin = time.perf_counter()
        experiment, roster = self._experiment, self._roster()
        before = {name: _share(node) for name, node in self._coordinator.nodes().items()}
        rng = generator(experiment.seed, "selection", number)
        cohort = self._selection.choose(progress.selection, roster, experiment.cohort_size, rng)
        context = RoundContext(
            round=number,
            cohort=cohort,
            population=experiment.clients,
            rounds=experiment.rounds,
            seed=experiment.seed,
        )
        exchange = self._strategy.plan(progress.strategy, context)
        if exchange is None:
            return False
        self._emit(RoundStarted(run_id=self.run.run_id, round=number, cohort=len(cohort)))
        tally = _Tally()
        state = self._exchanges(progress.strategy, exchange, context, tally)
        selection = self._selection.observe(progress.selection, tally.reports)
        evaluation, evaluation_s = self._evaluate(state, number, tally)
        waited = self._saver.wait()
        progress.round, progress.strategy, progress.selection = number, state, selection
        record = self._record(context, tally, before, evaluation)
        timing = Timing(
            total_s=time.perf_counter() - begin,
            training_s=sum(report.seconds for report in tally.reports),
            waiting_s=tally.waiting_s,
            aggregation_s=tally.aggregation_s,
            evaluation_s=evaluation_s,
            checkpoint_s=waited,
        )
        record = record.model_copy(update={"timing": timing})
        self._save(progress, record)
        self._emit(RoundFinished(run_id=self.run.run_id, record=record))
        return True

    def _exchanges(self, state: Any, exchange: Exchange, context: RoundContext, tally: _Tally) -> Any:
        """The round's exchanges, until the strategy has its next state."""
        for index in range(1000):
            collected = self._collector.collect(
                exchange,
                context.round,
                index,
                quorum=exchange.quorum_fraction or self._experiment.round.quorum_fraction,
                deadline_s=exchange.deadline_s or self._experiment.round.deadline_s,
                telling=True,
            )
            tally.add(collected)
            begin = time.perf_counter()
            try:
                step = self._strategy.finish(state, collected.total, context)
            except FedloomError:
                raise
            except Exception as exc:
                raise RunFailed(
                    f"strategy {self._experiment.strategy.name!r} failed to aggregate round {context.round}: "
                    f"{type(exc).__name__}: {exc}. The run can be resumed from round {self.rounds_done}"
                ) from exc
            tally.aggregation_s += time.perf_counter() - begin
            if not isinstance(step, Pending):
                return step
            state, exchange = step.state, step.exchange
        raise RunFailed(
            f"strategy {self._experiment.strategy.name!r} asked for 1000 exchanges in round {context.round}"
        )

    def _evaluate(self, state: Any, number: int, tally: _Tally) -> tuple[dict[str, float] | None, float]:
        """The global model on held-out data, in parts, by the agents."""
        own = getattr(self._strategy, "evaluation", None)
        if own is not None:
            measured: Mapping[str, float] | None = own(state)
            return (dict(measured) if measured is not None else None), 0.0
        every, parts = self._experiment.evaluation.every, self._experiment.evaluation.parts
        if not every or (number % every and number != self._experiment.rounds):
            return None, 0.0
        begin = time.perf_counter()
        model = Record({MODEL: self._strategy.arrays(state)})
        jobs = tuple(Job(round=number, client=part, kind="held_out", knobs={"parts": parts}) for part in range(parts))
        exchange = Exchange(jobs=jobs, inputs={MODEL: model}, accumulator="metrics")
        collected = self._collector.collect(exchange, number, _EVALUATION, quorum=1.0, deadline_s=None, group_size=1)
        tally.waiting_s += collected.waiting_s
        metrics = _sum_metrics(collected.reports)
        return (metric_values(metrics) if metrics else None), time.perf_counter() - begin

    def _record(
        self,
        context: RoundContext,
        tally: _Tally,
        before: Mapping[str, NodeShare],
        evaluation: dict[str, float] | None,
    ) -> RoundRecord:
        shares = {}
        for name, node in self._coordinator.nodes().items():
            share = _difference(_share(node), before.get(name, NodeShare()))
            if share != NodeShare():
                shares[name] = share
        reports = tally.reports
        traffic = Traffic(
            bytes_down=sum(report.bytes_down for report in reports),
            bytes_up=sum(report.bytes_up for report in reports),
            params_down=sum(report.params_down for report in reports),
            params_up=sum(report.params_up for report in reports),
            wire_bytes_down=sum(share.wire_bytes_down for share in shares.values()),
            wire_bytes_up=sum(share.wire_bytes_up for share in shares.values()),
        )
        tell = getattr(self._strategy, "report", None)
        seconds: dict[str, float] = {}
        for report in reports:
            seconds[str(report.client)] = seconds.get(str(report.client), 0.0) + report.seconds
        return RoundRecord(
            round=context.round,
            cohort=list(context.cohort),
            num_examples=sum(report.num_examples for report in reports),
            metrics=metric_values(_sum_metrics(reports)),
            evaluation=evaluation,
            traffic=traffic,
            timing=Timing(),
            client_seconds=seconds,
            failures=tally.failures,
            stale=self._coordinator.take_stale(self.run.run_id),
            duplicates=tally.duplicates,
            reassigned=tally.reassigned,
            nodes=shares,
            info=dict(tell(self._progress.strategy)) if tell is not None and self._progress is not None else {},
        )

    def _save(self, progress: _Progress, record: RoundRecord) -> None:
        """Write the round down at once and its checkpoint behind the next round's work."""
        self._store.append_round(record)
        last = progress.round == self._experiment.rounds
        if last or progress.round % self._experiment.checkpoint.every == 0:
            checkpoint = Checkpoint(
                progress.round, dump_state(progress.strategy), dump_state(progress.selection), self.seconds
            )
            self._saver.save(checkpoint)


_EVALUATION = 1 << 16
"""Exchange index of a round's evaluation, beyond any exchange of a strategy."""


class _Saver:
    """Writes checkpoints in a thread of its own, one at a time.

    A crash before the write is done costs one more round on resume and no bit of the result: rounds are functions of
    the state before them.
    """

    def __init__(self, store: RunStore, keep: int) -> None:
        self._store, self._keep = store, keep
        self._rounds: deque[int] = deque(maxlen=keep)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to write; `wait` must have been called since the last one."""
        self._thread = threading.Thread(target=self._write, args=(checkpoint,), name="fedloom-saver")
        self._thread.start()

    def wait(self) -> float:
        """Wait for the write in progress; returns the seconds that took, and raises what went wrong in it."""
        begin = time.perf_counter()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return time.perf_counter() - begin

    def close(self) -> None:
        """Wait for the last write."""
        self.wait()

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self._store.save_checkpoint(checkpoint, self._keep)
            self._rounds.append(checkpoint.round)
            if len(self._rounds) == self._keep:  # the oldest checkpoint kept may be the one to go on from
                self._store.prune_clients(self._rounds[0])
        except BaseException as exc:
            self._error = exc


def _sum_metrics(reports: Sequence[ClientReport]) -> Metrics:
    total: Metrics = {}
    for report in reports:
        total = add_metrics(total, report.metrics)
    return total


def _share(node: Node) -> NodeShare:
    return NodeShare(
        jobs=node.groups_done, busy_s=node.busy_s, wire_bytes_down=node.bytes_down, wire_bytes_up=node.bytes_up
    )


def _difference(now: NodeShare, before: NodeShare) -> NodeShare:
    return NodeShare(**{name: value - getattr(before, name) for name, value in now.model_dump().items()})
