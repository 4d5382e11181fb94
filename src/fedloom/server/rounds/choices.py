"""The log of choices: a run's selection's inputs and choices, and the replay of the choices from it.

Replaying needs no client, no data and no model: a selection is a pure function of its state, the seed and the reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedloom.core.config import Experiment
from fedloom.core.errors import UsageError
from fedloom.core.history import Choice, ReportLine
from fedloom.core.plugins import AnySelection, build_selection
from fedloom.core.protocols import Roster, WorkloadInfo
from fedloom.core.records import ClientReport, Mean, with_examples
from fedloom.core.seeds import generator
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
    return list(replay(store.experiment().override(overrides), info, choices))


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


def replay(experiment: Experiment, info: WorkloadInfo, choices: Sequence[Choice]) -> Iterator[Replayed]:
    """Make every choice of a log again, round by round.

    Args:
        experiment: the run's, or one that differs from it in its selection: what would that have chosen?
        info: the workload's description of the clients.
        choices: the log, from round 1.

    Raises:
        UsageError: rounds are missing from the log.
    """
    selection = build_selection(experiment.selection)
    roster = Roster(experiment.clients, info.client_sizes, info.label_counts)
    state = selection.init(roster)
    for number, choice in enumerate(choices, 1):
        if choice.round != number:
            raise UsageError(f"the log of choices has no round {number} (the next is {choice.round}), so none after it")
        probed, trained = ([report_of(line) for line in lines] for lines in (choice.probed, choice.trained))
        trained = trained or [report for report in probed if report.num_trained]
        rng = generator(experiment.seed, "selection", number)
        probe = selection.probe(state, roster, experiment.num_drawn, rng)
        reports = with_examples(probed) if probe is not None else []
        cohort = selection.choose(state, roster, experiment.num_drawn, rng, reports)
        yield Replayed(choice, cohort)
        state = observed(selection, state, trained, probed, choice.missed)
