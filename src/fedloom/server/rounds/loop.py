"""The federated loop: rounds of exchanges, folded, saved, told. There is one, whatever runs the clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from threadpoolctl import threadpool_limits

from fedloom.core import run_files
from fedloom.core.config import Experiment
from fedloom.core.errors import BadUpdate, FedloomError, RunFailed, UnsupportedFeature
from fedloom.core.events import Event, Notice, RoundFinished, RoundStarted
from fedloom.core.history import RoundRecord, Timing
from fedloom.core.messages import RunSpec
from fedloom.core.plugins import AnySelection, build_monitor, build_selection, build_strategy
from fedloom.core.protocols import MonitorReading, Pending, Roster, WorkloadInfo
from fedloom.core.records import (
    Arrays,
    ClientReport,
    Exchange,
    Job,
    Record,
    RoundContext,
)
from fedloom.core.seeds import generator
from fedloom.core.state import dump_state, load_state, pinned_in
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.rounds.checkpoint_writer import Saver
from fedloom.server.rounds.choices import observed
from fedloom.server.rounds.exchange import Collector, Spare
from fedloom.server.rounds.initial import INITIAL, no_initial_model
from fedloom.server.rounds.pinned_inputs import Holders
from fedloom.server.rounds.tally import Tally, evaluated, shares, sum_metrics
from fedloom.server.store.answer_journal import AnswerJournal
from fedloom.server.store.run_store import Checkpoint, RunStore


@dataclass
class _Progress:
    """Where the run is: what a checkpoint holds, live."""

    round: int
    strategy: object
    selection: object


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
        journal: keeps accepted answers until a checkpoint has them; None where a killed run asks for them again.
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
        journal: AnswerJournal | None = None,
    ) -> None:
        self._experiment, self._store, self._coordinator, self._emit = experiment, store, coordinator, emit
        self.run = RunSpec(run_id=store.run_id, experiment=experiment.for_nodes())
        self._strategy = build_strategy(experiment.strategy, experiment)
        self._selection = build_selection(experiment.selection)
        self._monitor = build_monitor(experiment.monitor) if experiment.monitor is not None else None
        self._collector = Collector(
            experiment, self.run, coordinator, store, emit, stop or threading.Event(), pump, patience_s, journal
        )
        self._saver = Saver(store, experiment.checkpoint.keep, journal)
        self._journal = journal
        self._progress: _Progress | None = None
        self._began, self._earlier_s = time.perf_counter(), 0.0
        self._alarms: set[str] = set()
        self._warned: set[str] = set()
        self._monitored: list[Mapping[str, Any]] = []
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
                load_state(self._strategy.State, checkpoint.strategy, checkpoint.pinned),
                load_state(self._selection.State, checkpoint.selection, checkpoint.pinned),
            )
            self._collector.holders = Holders(checkpoint.holders)
            self._earlier_s = checkpoint.seconds
        else:
            initial = self._initial()
            roster = self._roster()
            self._progress = _Progress(0, self._strategy.init(initial), self._selection.init(roster))
        self._monitored = [r.monitor for r in self._store.rounds(upto=self._progress.round) if r.monitor]
        self._store.choices(upto=self._progress.round)
        return self._progress.round + 1

    def work(self) -> None:
        """Do every round that is left."""
        assert self._progress is not None
        try:
            # A strategy's bits must not depend on this machine's cores, nor its time on who else uses them.
            with threadpool_limits(1, "blas"):
                while self._experiment.max_rounds is None or self._progress.round < self._experiment.max_rounds:
                    if not self._round(self._progress, self._progress.round + 1):
                        break
        finally:
            self._saver.wait()

    def close(self) -> None:
        """Let go of what the run's exchanges shared, and of what a hosted strategy may hold (a Flower app's thread)."""
        self._coordinator.retain(self.run, ())
        if self._journal is not None:
            self._journal.close()
        self._strategy.close()

    def _roster(self) -> Roster:
        return Roster(self._experiment.clients, self.info.client_sizes, self.info.label_counts)

    def _initial(self) -> Record:
        """Round 0: one agent makes the initial model and says what the data is; each that is there may be asked."""
        collected = self._collector.collect(INITIAL, 0, 0, quorum=1.0, deadline_s=None, no_answer=no_initial_model)
        update = collected.total.updates[0][1]
        try:
            self.info = run_files.workload_of(update.info["workload"])
        except ValueError as exc:
            raise BadUpdate(f"the agent that made the initial model sent {exc}") from exc
        self._store.save_workload(self.info)
        return Record(update.groups, update.info["model"])

    def _round(self, progress: _Progress, number: int) -> bool:
        """One round; False when the strategy wants no further one."""
        begin = time.perf_counter()
        before = shares(self._coordinator.nodes(), self.run.run_id)
        tally = Tally()
        planned = self._plan(progress, number, tally)
        if planned is None:
            return False
        context, exchange, first = planned
        state = self._exchanges(progress.strategy, exchange, context, tally, first)
        choice = tally.choice(context)
        selection = observed(self._selection, progress.selection, tally.trained(), tally.probed, choice.missed)
        evaluation, evaluation_s = self._evaluate(state, number, tally)
        watched = self._watched(state, number, tally)
        if watched is not None:
            evaluation = {**(evaluation or {}), **watched.metrics}
        waited = self._saver.wait()
        progress.round, progress.strategy, progress.selection = number, state, selection
        self._retain(progress)
        record = tally.record(
            context,
            shares(self._coordinator.nodes(), self.run.run_id, before),
            evaluation,
            Timing(
                total_s=time.perf_counter() - begin,
                waiting_s=tally.waiting_s,
                aggregation_s=tally.aggregation_s,
                evaluation_s=evaluation_s,
                checkpoint_s=waited,
            ),
            self._coordinator.take_stale(self.run.run_id),
            {**self._strategy.report(state), **self._selection.report(selection)},
            watched.info if watched is not None else {},
        )
        self._store.append_choice(choice)
        self._save(progress, record)
        self._emit(RoundFinished(run_id=self.run.run_id, record=record))
        self._watch(number, evaluation)
        self._warn(number, watched)
        return True

    def _watch(self, number: int, evaluation: Mapping[str, float] | None) -> None:
        """Tell when a metric the workload wants watched leaves 0, and when it is 0 again."""
        for name, advice in self.info.watch.items():
            if evaluation is None:
                return
            value = evaluation.get(name, 0.0)
            if (value > 0) == (name in self._alarms):
                continue
            self._alarms ^= {name}
            message = f"{name} is {value:.3g}: {advice}" if value > 0 else f"{name} is 0 again"
            self._emit(Notice(run_id=self.run.run_id, message=f"round {number}: {message}"))

    def _plan(self, progress: _Progress, number: int, tally: Tally) -> tuple[RoundContext, Exchange, int] | None:
        """The cohort, and what it is asked first: its context, the exchange, and that exchange's index."""
        experiment, roster = self._experiment, self._roster()
        size = experiment.num_drawn
        rng = generator(experiment.seed, "selection", number)
        probe = self._selection.probe(progress.selection, roster, size, rng)
        if probe is not None and size > experiment.cohort_size:
            raise UnsupportedFeature(
                f"selection {experiment.selection.name!r} measures candidates, which leaves no spare clients: remove "
                "round.oversample_fraction and round.reserve_fraction, or choose another selection"
            )

        def choose(reports: Sequence[ClientReport] = ()) -> tuple[int, ...]:
            return self._selection.choose(progress.selection, roster, size, rng, reports)

        cohort = probe.candidates if probe is not None else choose()
        context = RoundContext(
            round=number,
            cohort=cohort,
            population=experiment.clients,
            rounds=experiment.max_rounds,
            seed=experiment.seed,
        )
        if probe is not None and probe.kind != "train":
            inputs = self._strategy.model_inputs(progress.strategy)
            question = Exchange(
                jobs=context.jobs(probe.kind, inputs=tuple(inputs)),
                inputs=inputs,
                knobs=probe.knobs,
                accumulator="metrics",
                measure=probe.measure,
            )
            context = replace(context, cohort=choose(self._probe(question, _PROBE, tally)))
        exchange = self._strategy.plan(progress.strategy, context)
        if exchange is None:
            return None
        exchange = _with_extra_report(exchange, self._selection, progress.selection)
        self._emit(RoundStarted(run_id=self.run.run_id, round=number, cohort=len(exchange.jobs)))
        if probe is None or probe.kind != "train":
            return context, exchange, 0
        knobs = {**exchange.knobs, **probe.knobs}
        held = replace(exchange, accumulator="metrics", park=True, measure=probe.measure, knobs=knobs)
        context = replace(context, cohort=choose(self._probe(held, 0, tally)))
        return context, _collection(exchange, context), 1

    def _probe(self, exchange: Exchange, index: int, tally: Tally) -> list[ClientReport]:
        collected = self._collector.collect(
            exchange,
            exchange.jobs[0].round,
            index,
            quorum=self._experiment.round.quorum_fraction,
            deadline_s=self._experiment.round.deadline_s,
            telling=True,
        )
        tally.add(collected, exchange, probe=True)
        return collected.reports

    def _exchanges(self, state: object, exchange: Exchange, context: RoundContext, tally: Tally, first: int) -> object:
        """The round's exchanges from index `first` on, until the strategy has its next state."""
        for index in range(first, first + 1000):
            collected = self._collector.collect(
                exchange,
                context.round,
                index,
                quorum=exchange.quorum_fraction or self._experiment.round.quorum_fraction,
                deadline_s=exchange.deadline_s or self._experiment.round.deadline_s,
                telling=True,
                spare=(spare := self._spare(exchange, context) if index == 0 else None),
            )
            tally.add(collected, exchange)
            if spare is not None:
                tally.asked, tally.unneeded = collected.asked, collected.unneeded
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

    def _spare(self, exchange: Exchange, context: RoundContext) -> Spare | None:
        """Which of the exchange's jobs are beyond what the round needs."""
        size = self._experiment.cohort_size
        extra = len(context.cohort) - size
        if extra <= 0:
            return None
        if [job.client for job in exchange.jobs] != list(context.cohort):
            raise UnsupportedFeature(
                "spare clients need a strategy that plans one job for each client of the cohort, in order; remove "
                "round.oversample_fraction and round.reserve_fraction, or use another strategy"
            )
        return Spare(enough=size, reserve=max(0, extra - self._experiment.num_oversampled))

    def _evaluate(self, state: object, number: int, tally: Tally) -> tuple[dict[str, float] | None, float]:
        """The global model on held-out data, in parts, by the agents."""
        if self._strategy.evaluates:
            measured = self._strategy.evaluation(state)
            return (dict(measured) if measured is not None else None), 0.0
        parts = self._experiment.evaluation.parts
        if not self._due(number):
            return None, 0.0
        begin = time.perf_counter()
        inputs = self._strategy.model_inputs(state)
        jobs = tuple(
            Job(round=number, client=part, kind="held_out", inputs=tuple(inputs), knobs={"parts": parts})
            for part in range(parts)
        )
        exchange = Exchange(jobs=jobs, inputs=inputs, accumulator="metrics")
        collected = self._collector.collect(exchange, number, _EVALUATION, quorum=1.0, deadline_s=None, group_size=1)
        tally.waiting_s += collected.waiting_s
        metrics = sum_metrics(collected.reports)
        return evaluated(metrics, self.info.exponentials), time.perf_counter() - begin

    def _due(self, number: int) -> bool:
        """Whether the global model is evaluated after this round."""
        every = self._experiment.evaluation.every
        return bool(every) and (number % every == 0 or number == self._experiment.max_rounds)

    def _watched(self, state: object, number: int, tally: Tally) -> MonitorReading | None:
        """What the monitor tells of the global model on clients' data, in evaluated rounds."""
        if self._monitor is None or not self._due(number):
            return None
        rng = generator(self._experiment.seed, "monitor", number)
        request = self._monitor.request(self._experiment.clients, rng)
        inputs = self._strategy.model_inputs(state)
        knobs = {} if request.parts is None else {"parts": request.parts}
        jobs = tuple(
            Job(round=number, client=client, kind="monitor", inputs=tuple(inputs), knobs=knobs)
            for client in request.clients
        )
        collected = self._collector.collect(
            Exchange(jobs=jobs, inputs=inputs, accumulator="metrics"),
            number,
            _MONITOR,
            quorum=self._experiment.round.quorum_fraction,
            deadline_s=self._experiment.round.deadline_s,
            telling=True,
        )
        tally.watch(collected)
        watched = self._monitor.read(collected.reports, self._monitored)
        self._monitored.append(watched.info)
        return watched

    def _warn(self, number: int, watched: MonitorReading | None) -> None:
        """Tell when a warning of the monitor comes, and when it is gone."""
        if watched is None:
            return
        for name in sorted(self._warned - watched.warnings.keys()):
            self._emit(Notice(run_id=self.run.run_id, message=f"round {number}: {name}: over"))
        for name in sorted(watched.warnings.keys() - self._warned):
            self._emit(Notice(run_id=self.run.run_id, message=f"round {number}: {name}: {watched.warnings[name]}"))
        self._warned = set(watched.warnings)

    def _retain(self, progress: _Progress) -> None:
        """Only pinned records that the state names will be sent again."""
        named = pinned_in(progress.strategy).keys()
        self._coordinator.retain(self.run, named)
        self._collector.holders.retain(named)

    def _save(self, progress: _Progress, record: RoundRecord) -> None:
        """Write the round down at once and its checkpoint behind the next round's work."""
        self._store.append_round(record)
        last = progress.round == self._experiment.max_rounds
        if last or progress.round % self._experiment.checkpoint.every == 0:
            checkpoint = Checkpoint(
                progress.round,
                dump_state(progress.strategy),
                dump_state(progress.selection),
                self.seconds,
                self._collector.holders.arrays(),
                pinned_in(progress.strategy) | pinned_in(progress.selection),
            )
            self._saver.save(checkpoint)


_EVALUATION = 1 << 16
"""Exchange index of a round's evaluation, beyond any exchange of a strategy."""
_PROBE = _EVALUATION + 1
"""Exchange index of an evaluation of candidates."""
_MONITOR = _EVALUATION + 2
"""Exchange index of a monitor's question."""


def _with_extra_report(exchange: Exchange, selection: AnySelection, state: object) -> Exchange:
    """Return the exchange with what the selection wants its clients to report."""
    extra = selection.extra_report(state)
    if extra is None:
        return exchange
    if exchange.measure is not None:
        raise UnsupportedFeature(
            f"the selection wants clients to report {extra.measure!r} beside their updates, but this strategy "
            f"already has them report {exchange.measure!r}; use another selection with it"
        )
    return replace(exchange, measure=extra.measure, knobs={**exchange.knobs, **extra.knobs})


def _collection(exchange: Exchange, context: RoundContext) -> Exchange:
    """The exchange that hands over what the chosen candidates hold."""
    by_client = {job.client: job for job in exchange.jobs}
    if len(by_client) != len(exchange.jobs) or not set(context.cohort) <= by_client.keys():
        raise UnsupportedFeature(
            "the selection lets candidates train before it chooses, which needs a strategy that plans one job for each "
            "client of the cohort; use another selection with this strategy"
        )
    jobs = tuple(replace(by_client[client], kind="collect") for client in context.cohort)
    return replace(exchange, jobs=jobs, collects=0)
