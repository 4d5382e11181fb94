"""The log of choices: a run's selection's inputs and choices, and the replay of the choices from it.

Replaying needs no client, no data and no model: a selection is a pure function of its state, the seed and the reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedloom.core.config import Experiment
from fedloom.core.errors import UsageError
from fedloom.core.history import Choice, ReportLine, RosterLine
from fedloom.core.plugins import AnySelection, build_selection
from fedloom.core.protocols import Roster, WorkloadInfo
from fedloom.core.records import ClientReport, Mean, with_examples
from fedloom.core.seeds import generator
from fedloom.server.rounds.excluding import without_clients
from fedloom.server.rounds.rosters import online_in, roster_of, sites_in
from fedloom.server.store.disk_run_store import DiskRunStore

LONGEST = 4096
"""Length limit of a logged list; longer ones are omitted, and their choices cannot be replayed."""


def report_line(report: ClientReport) -> ReportLine:
    """Return a report as it is logged."""
    return ReportLine(
        client=report.client,
        num_examples=report.num_examples,
        seconds=report.seconds,
        num_trained=report.num_trained,
        metrics={name: (mean.sum, mean.weight) for name, mean in report.metrics.items()},
        info={key: value for key, value in report.info.items() if not isinstance(value, list) or len(value) <= LONGEST},
    )


def report_of(line: ReportLine) -> ClientReport:
    """Return the report of a logged line (inverse of `report_line`), as far as selections read it."""
    return ClientReport(
        client=line.client,
        num_examples=line.num_examples,
        seconds=line.seconds,
        num_trained=line.num_trained,
        metrics={name: Mean(*pair) for name, pair in line.metrics.items()},
        info=line.info,
    )


def observed(
    selection: AnySelection,
    state: object,
    trained: Sequence[ClientReport],
    probed: Sequence[ClientReport],
    missed: Sequence[int],
) -> object:
    """Return the selection's state after a round."""
    after = selection.observe(state, with_examples(trained), with_examples(probed))
    return selection.missed(after, missed) if missed else after


def replay_run(folder: Path, overrides: Sequence[str] = ()) -> list[Replayed]:
    """Make the choices of a run's folder again.

    Args:
        folder: the run's.
        overrides: `KEY=VALUE` settings to choose with instead of the run's own.

    Raises:
        UsageError: it is not a run's folder, or has no log of choices.
    """
    store = DiskRunStore.open(folder)
    choices, info = store.choices(), store.workload()
    if not choices or info is None:
        raise UsageError(f"{folder} has no choices to replay (choices.jsonl); was it written by an older version?")
    experiment = store.experiment()
    clients = experiment.clients if isinstance(experiment.clients, int) else 0
    return list(replay(experiment.override(overrides), Log(info, choices, store.rosters(), clients)))


@dataclass(frozen=True, slots=True)
class Replayed:
    """One round's choices, made again."""

    choice: Choice
    """The logged choice."""
    cohort: tuple[int, ...]
    """The selection's choice now."""

    @property
    def agrees(self) -> bool:
        """Return whether it equals the logged choice."""
        return list(self.cohort) == self.choice.cohort


@dataclass(frozen=True, slots=True)
class Log:
    """What a run has written down of its choices."""

    info: WorkloadInfo
    """The workload's description of the clients."""
    choices: Sequence[Choice]
    """From round 1."""
    rosters: Sequence[RosterLine] = ()
    """Where clients are sites."""
    clients: int = 0
    """If they are virtual, and the log does not have their number."""

    def first_roster(self) -> Roster:
        """Return the roster before round 1."""
        return self.roster(0, self.choices[0].population)

    def roster(self, round: int, population: int | None) -> Roster:
        """Return a round's roster; `population` is the number in its choice."""
        if self.rosters:
            return roster_of(sites_in(self.rosters, round), online_in(self.rosters, round))
        number = self.clients if population is None else population
        return Roster(number, self.info.client_sizes[:number], self.info.label_counts[:number])


def replay(experiment: Experiment, log: Log) -> Iterator[Replayed]:
    """Make every choice of a log again, round by round.

    Args:
        experiment: the run's, or one that differs from it in its selection: what would that have chosen?
        log: the run's.

    Raises:
        UsageError: rounds are missing from the log.
    """
    selection = without_clients(build_selection(experiment.selection), experiment.excluded_numbers)
    before = log.first_roster()
    state = selection.init(before)
    for number, choice in enumerate(log.choices, 1):
        if choice.round != number:
            raise UsageError(f"the log of choices has no round {number} (the next is {choice.round}), so none after it")
        probed, trained = ([report_of(line) for line in lines] for lines in (choice.probed, choice.trained))
        trained = trained or [report for report in probed if report.num_trained]
        roster = log.roster(number, choice.population)
        if roster.population > before.population:
            state = selection.grow(state, roster)
        before, rng = roster, generator(experiment.seed, "selection", number)
        size = experiment.drawn_of(roster.population)
        probe = selection.probe(state, roster, size, rng)
        reports = with_examples(probed) if probe is not None else []
        cohort = selection.choose(state, roster, size, rng, reports)
        yield Replayed(choice, cohort)
        state = observed(selection, state, trained, probed, choice.missed)
