"""The federated loop: rounds of phases, recorded and saved. There is one, whatever runs the clients."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import replace

from threadpoolctl import threadpool_limits

from fedloom.core.config import Experiment
from fedloom.core.errors import ClientFailed, QuorumNotReached, RunFailed, UsageError
from fedloom.core.events import RoundFinished
from fedloom.core.history import RoundRecord, Timing
from fedloom.core.plugins import build_monitor, build_selection, build_strategy
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import Arrays, RoundContext
from fedloom.core.state import pinned_in
from fedloom.server.fleet.planned import RunFacts
from fedloom.server.rounds.best import BestPhase
from fedloom.server.rounds.checked_parts import checked_monitor, checked_selection, checked_strategy
from fedloom.server.rounds.checkpoint_writer import Saver
from fedloom.server.rounds.choices import observed
from fedloom.server.rounds.clients import Clients, VirtualClients
from fedloom.server.rounds.cohort import roster_section
from fedloom.server.rounds.collector import Collector
from fedloom.server.rounds.counts import Collected
from fedloom.server.rounds.diverged import Diverged
from fedloom.server.rounds.excluding import monitor_without_clients, without_clients
from fedloom.server.rounds.initial import begun_with, initial_model, initial_request
from fedloom.server.rounds.open_round import OpenRound, RoundPhase, RunParts
from fedloom.server.rounds.phases.client_metrics import ClientMetricsPhase
from fedloom.server.rounds.phases.evaluate import EvaluatePhase
from fedloom.server.rounds.phases.monitor import MonitorPhase
from fedloom.server.rounds.phases.probe import ProbePhase
from fedloom.server.rounds.phases.site_models import SiteModelsPhase
from fedloom.server.rounds.phases.train import TrainPhase
from fedloom.server.rounds.pinned_inputs import PinLedger
from fedloom.server.rounds.progress import Progress
from fedloom.server.rounds.record import counts_of, round_choice, round_record, shares
from fedloom.server.rounds.run_services import FleetAccess, RunOutputs
from fedloom.server.rounds.sites import Sites, SiteServices


class Loop:
    """One run, from its first or next round to its last.

    Args:
        experiment: what to run.
        fleet: the way to the agents.
        outputs: destinations of results; a run that has checkpoints there resumes from the newest.
        stop: when set, the run ends with `Interrupted` as soon as it can.
    """

    def __init__(
        self, experiment: Experiment, fleet: FleetAccess, outputs: RunOutputs, stop: threading.Event | None = None
    ) -> None:
        self._experiment, self._fleet, self._outputs = experiment, fleet, outputs
        self._store, self._clock = outputs.store, fleet.clock
        self.run = RunFacts.of(outputs.store.run_id, experiment, fleet.submitter, code_names=fleet.code_names)
        self._collector = Collector(self.run, fleet, outputs, stop or threading.Event())
        self._clients = self._make_clients()
        self._collector.pin, self._collector.counts_alike = self._clients.pin, self._clients.counts_alike
        self._collector.keeps_updates = experiment.checkpoint.client_updates
        self._parts = RunParts(
            run_id=self.run.run_id,
            experiment=experiment,
            strategy=checked_strategy(build_strategy(experiment.strategy, experiment), experiment.strategy.name),
            selection=without_clients(
                checked_selection(build_selection(experiment.selection), experiment.selection.name),
                experiment.excluded_numbers,
            ),
            collect=self._collector.collect,
            emit=outputs.emit,
            monotonic=fleet.clock.monotonic,
            clients=self._clients,
        )
        self._monitor = (
            monitor_without_clients(
                checked_monitor(build_monitor(experiment.monitor), experiment.monitor.name),
                experiment.excluded_numbers,
            )
            if experiment.monitor is not None
            else None
        )
        self._saver = Saver(outputs.store, experiment.checkpoint.keep, outputs.journal, self._clock)
        self._train = TrainPhase(self._parts)
        self._probe = ProbePhase(self._parts, self._train.plan)
        self._diverged = Diverged(self.run.run_id, outputs.emit)
        self._phases: Sequence[RoundPhase] = ()
        """Those after the probe, in order."""
        self.best: BestPhase | None = None
        """Holds the best round, if the final model is that one's."""
        self._progress: Progress | None = None
        self._saved = 0
        """The round of the newest checkpoint."""
        self._began, self._earlier_s = self._clock.monotonic(), 0.0
        self.info = WorkloadInfo(data={})

    @property
    def rounds_done(self) -> int:
        """Return the number of finished rounds."""
        return self._progress.round if self._progress else 0

    @property
    def population(self) -> int:
        """Return the number of clients so far."""
        return self._progress.population if self._progress else 0

    @property
    def seconds(self) -> float:
        """Return the run's wall-clock seconds: this session's and, up to their checkpoints, those of earlier ones."""
        return self._earlier_s + self._clock.monotonic() - self._began

    def arrays(self) -> Arrays:
        """Return the current global model; empty before there is an initial one."""
        return {} if self._progress is None else self._parts.strategy.arrays(self._progress.strategy)

    def final_arrays(self) -> Arrays:
        """Return the best round's model where the experiment wants that, else the current one."""
        best = None if self.best is None else self.best.arrays()
        return self.arrays() if best is None else best

    def prepare(self) -> int:
        """Get the initial model, or the newest checkpoint; returns the first round to do."""
        self._fleet.coordinator.announce(self.run)
        checkpoint, info = self._store.latest_checkpoint(), self._store.workload()
        self._clients.begin(1 if checkpoint is None or info is None else checkpoint.round + 1)
        if checkpoint is not None and info is not None:
            self.info, self._earlier_s = self._clients.describe(info), checkpoint.seconds
            self._saved = checkpoint.round
            self._collector.groups.pinned = PinLedger(checkpoint.holders)
            self._progress = Progress.read(checkpoint, self._parts.strategy, self._parts.selection)
        else:
            model, info = initial_model(self._collect_initial())
            model = begun_with(model, self._store.start())
            self.info = self._clients.describe(info)
            self._store.save_workload(self.info)
            strategy, selection, roster = self._parts.strategy, self._parts.selection, self._clients.roster()
            self._progress = Progress(0, strategy.init(model), selection.init(roster), roster.population)
        self._agree_on_data()
        self._store.choices(upto=self._progress.round)
        earlier = self._store.rounds(upto=self._progress.round)
        if self._experiment.best is not None:
            self.best = BestPhase(self._parts, self._experiment.best, earlier, checkpoint)
        self._phases = self._make_phases(earlier)
        return self._progress.round + 1

    def _make_clients(self) -> Clients:
        """Return who the run's clients are."""
        if not self._experiment.of_sites:
            return VirtualClients(self._experiment, self._fleet.roster)
        services = SiteServices(
            experiment=self._experiment,
            coordinator=self._fleet.coordinator,
            store=self._store,
            collect=self._collector.collect,
            wait=self._collector.wait,
            agree=self._work_with,
            emit=self._outputs.emit,
            now=self._clock.monotonic,
        )
        return Sites(services)

    def _work_with(self, experiment: Experiment) -> None:
        """Set the experiment that the sites have agreed on for every node."""
        self.run = self.run.agreed(experiment)
        self._collector.describe(self.run)
        self._fleet.coordinator.announce(self.run)

    def _collect_initial(self) -> Collected:
        """Return the initial model; if nodes are tried one by one, that of the first that can make it."""
        request = initial_request(self._experiment.round.deadline_s)
        *others, last = self._clients.initial(request.exchange)
        for exchange in others:
            with contextlib.suppress(ClientFailed, QuorumNotReached, UsageError):
                return self._collector.collect(replace(request, exchange=exchange))
        return self._collector.collect(replace(request, exchange=last))

    def _agree_on_data(self) -> None:
        """Make every node compare its classes, shapes and normalisation with those of the initial model."""
        schema = self.info.data.get("schema")
        if isinstance(schema, dict) and schema:
            self.run = described = self.run.with_data(schema)
            self._collector.describe(described)
            self._fleet.coordinator.announce(described)

    def work(self) -> None:
        """Do every round that is left."""
        progress, last = self._progress, self._experiment.max_rounds
        if progress is None:
            raise RuntimeError("Loop.work needs Loop.prepare first")
        try:
            # A strategy's bits must not depend on this machine's cores, nor its time on other users of them.
            with threadpool_limits(1, "blas"):
                while (last is None or progress.round < last) and not self._exhausted and self._round(progress):
                    pass
                if self._saved != progress.round:  # the strategy has ended the run between two checkpoints
                    self._saver.wait()
                    self._save(progress)
        finally:
            self._saver.wait()

    def require_finished(self) -> None:
        """Refuse to call a run done whose strategy, a program of its own, was cut off by the number of rounds.

        Raises:
            RunFailed: says so; everything is saved.
        """
        if self._progress is None or self._exhausted:
            return
        if reason := self._parts.strategy.unfinished(self._progress.strategy):
            raise RunFailed(reason)

    @property
    def _exhausted(self) -> bool:
        return self.best is not None and self.best.exhausted

    def close(self) -> None:
        """Release the shared memory of the run's exchanges and a hosted strategy's resources (its thread)."""
        self._fleet.coordinator.retain(self.run, ())
        if self._outputs.journal is not None:
            self._outputs.journal.close()
        self._parts.strategy.close()

    def _make_phases(self, earlier: Sequence[RoundRecord]) -> Sequence[RoundPhase]:
        """Return the phases after the probe, in order."""
        phases: list[RoundPhase] = [self._train, EvaluatePhase(self._parts), SiteModelsPhase(self._parts)]
        if self._parts.experiment.evaluation.on_clients:
            phases.append(ClientMetricsPhase(self._parts))
        if self._monitor is not None:
            readings = [record.monitor for record in earlier if record.monitor]
            phases.append(MonitorPhase(self._parts, self._monitor, readings))
        if self.best is not None:
            phases.append(self.best)
        return phases

    def _round(self, progress: Progress) -> bool:
        """Run one round; returns False if the strategy plans no further one."""
        begin, before = self._clock.monotonic(), counts_of(self._fleet.coordinator.nodes(), self.run.run_id)
        round = self._open(progress)
        self._probe.run(round)
        if not round.wanted:
            return False
        for phase in self._phases:
            phase.run(round)
        choice, selection = round_choice(round), self._parts.selection
        state = observed(selection, round.selection_state, round.trained(), round.probed, choice.missed)
        waited_s = self._saver.wait()
        progress.round, progress.strategy, progress.selection = round.number, round.state, state
        self._retain(progress)
        record = round_record(
            round,
            shares(self._fleet.coordinator.nodes(), self.run.run_id, before),
            Timing(total_s=self._clock.monotonic() - begin, checkpoint_s=waited_s),
            self._fleet.coordinator.take_stale(self.run.run_id),
            {**self._parts.strategy.report(round.state), **selection.report(state)},
        )
        self._store.append_choice(choice)
        self._store.append_round(record)
        if round.number == self._experiment.max_rounds or round.number % self._experiment.checkpoint.every == 0:
            self._save(progress)
        self._outputs.emit(RoundFinished(run_id=self.run.run_id, record=record))
        self._diverged.look(record, self.info.exponentials)
        for phase in self._phases:
            phase.recorded(round)
        return True

    def _open(self, progress: Progress) -> OpenRound:
        number = progress.round + 1
        roster = self._clients.open(number)
        joined = progress.grow(self._parts.selection, roster)
        if joined and roster.names:
            self.info = self._clients.describe(self.info)
            self._store.save_workload(self.info)
        context = RoundContext(
            round=number,
            cohort=(),
            population=roster.population,
            rounds=self._experiment.max_rounds,
            seed=self._experiment.seed,
        )
        round = OpenRound(
            number=number,
            info=self.info,
            roster=roster,
            selection_state=progress.selection,
            state=progress.strategy,
            context=context,
        )
        if joined or roster.offline:
            round.add_section("roster", roster_section(roster, joined))
        return round

    def _retain(self, progress: Progress) -> None:
        """Retain only the pinned records that the state refers to: no others will be sent again."""
        named = pinned_in(progress.strategy).keys()
        self._fleet.coordinator.retain(self.run, named)
        self._collector.groups.pinned.retain(named)

    def _save(self, progress: Progress) -> None:
        """Start writing a checkpoint while the next round runs."""
        self._saver.save(progress.checkpoint(self.seconds, self._collector.groups.pinned.arrays(), self.best))
        self._saved = progress.round
