"""A round in progress, and what its phases share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fedloom.core.config import Experiment
from fedloom.core.events import Event
from fedloom.core.plugins import AnySelection, AnyStrategy
from fedloom.core.protocols import MonitorReading, Roster, WorkloadInfo
from fedloom.core.records import ClientReport, Exchange, Info, RoundContext
from fedloom.server.rounds.clients import Clients
from fedloom.server.rounds.closing import ClosingTerms
from fedloom.server.rounds.counts import Collected, RoundCounts
from fedloom.server.rounds.request import ExchangeRequest, Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class RunParts:
    """The parts all rounds of a run share."""

    run_id: str
    experiment: Experiment
    strategy: AnyStrategy
    selection: AnySelection
    collect: Callable[[ExchangeRequest], Collected]
    """Runs an exchange."""
    emit: Callable[[Event], None]
    monotonic: Callable[[], float]
    """Seconds, for durations."""
    clients: Clients

    def terms(self, exchange: Exchange) -> ClosingTerms:
        """Return the closing terms of an exchange with as many clients as it has jobs, by the run's settings."""
        settings = self.experiment.round
        return ClosingTerms(
            quota=len(exchange.jobs),
            quorum_fraction=self.experiment.quorum_of(len(exchange.jobs)),
            deadline_s=settings.deadline_s,
        )

    def evaluates_after(self, round: int) -> bool:
        """Return whether the global model is evaluated after this round."""
        every = self.experiment.evaluation.every
        return bool(every) and (round % every == 0 or round == self.experiment.max_rounds)


@dataclass(kw_only=True)
class OpenRound:
    """One round: its inputs, and the results of its phases so far."""

    number: int
    """Counts from 1."""
    info: WorkloadInfo
    roster: Roster
    selection_state: object
    """The state before the round."""
    state: object
    """The strategy's state; each exchange advances it."""
    context: RoundContext
    """The round's facts, with the cohort once it is chosen."""
    exchange: Exchange | None = None
    """The cohort's first exchange; None if no client was selected."""
    first_index: int = int(Phase.TRAIN)
    """Index of that exchange."""
    wanted: bool = True
    """False if the strategy plans no further round: then this one does not take place."""
    aggregated: list[ClientReport] = field(default_factory=list)
    """Reports of the clients whose updates were aggregated."""
    probed: list[ClientReport] = field(default_factory=list)
    """Reports of candidates, whose updates (if they trained) stayed parked."""
    monitored: list[ClientReport] = field(default_factory=list)
    """Reports to the monitor: they count as traffic, not as training."""
    retrained: list[int] = field(default_factory=list)
    """Clients that trained again because their parked update was lost."""
    sampled: list[int] = field(default_factory=list)
    """Clients actually sampled, if the cohort included spares."""
    superseded: list[int] = field(default_factory=list)
    """Those of them whose updates were not needed."""
    counts: RoundCounts = field(default_factory=RoundCounts)
    evaluation: dict[str, float] | None = None
    """The evaluation's and the monitor's metrics; None if nothing was measured."""
    evaluation_s: float = 0.0
    left_out: dict[str, list[int]] = field(default_factory=dict)
    """Parts of the held-out data whose numbers are no part of a metric of the evaluation, by metric."""
    reading: MonitorReading | None = None
    sections: dict[str, Info] = field(default_factory=dict)

    def count(self, collected: Collected, *, probe: bool = False) -> None:
        """Add an exchange of the round's training."""
        (self.probed if probe else self.aggregated).extend(collected.reports)
        self.retrained += [report.client for report in collected.reports if report.num_retrained]
        self.counts += collected.counts

    def add_section(self, feature: str, values: Info) -> None:
        """Add a feature's section to the round's record, JSON.

        Raises:
            ValueError: another one has this name already.
        """
        if feature in self.sections:
            raise ValueError(f"round {self.number}: two features write the record's section {feature!r}; rename one")
        self.sections[feature] = values

    def updates(self) -> Sequence[ClientReport]:
        """Return one report for each aggregated update, without those of a strategy's other exchanges."""
        return [report for report in self.aggregated if report.num_trained] or self.aggregated

    def trained(self) -> Sequence[ClientReport]:
        """Return one report for each client that trained: the candidates' if they did, otherwise the cohort's."""
        return [report for report in self.probed if report.num_trained] or self.updates()

    def missed(self) -> list[int]:
        """Return the clients whose updates are missing, sorted."""
        return sorted({failure.client for failure in self.counts.failures})


class RoundPhase(ABC):
    """A part of every round."""

    @abstractmethod
    def run(self, round: OpenRound) -> None:
        """Run the phase, and store its results in the round."""

    def recorded(self, round: OpenRound) -> None:  # noqa: B027  # optional: most phases have nothing to add
        """Emit events that follow the round's record."""
