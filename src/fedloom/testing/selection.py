"""Requirements on every selection, among twelve made-up clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedloom.core import registry
from fedloom.core.config import plugin_schema
from fedloom.core.errors import UsageError
from fedloom.core.kinds import Kind
from fedloom.core.plugins import AnySelection, build_selection
from fedloom.core.protocols import Probe, Roster
from fedloom.core.records import ClientReport, Info, Mean
from fedloom.core.seeds import generator
from fedloom.core.state import dump_state, load_state
from fedloom.testing.explained import assert_explained
from fedloom.testing.records import NOTHING, record_digest, through_frame

CLIENTS, CLASSES = 12, 4
SIZES = tuple(range(10, 10 + 10 * CLIENTS, 10))
LABELS = tuple(
    tuple(size // 2 * ((k % CLASSES == c) + ((k + 1) % CLASSES == c)) for c in range(CLASSES))
    for k, size in enumerate(SIZES)
)
"""Examples per class of each client: two classes each, in halves."""
ROSTER = Roster(population=CLIENTS, sizes=SIZES, label_counts=LABELS)
ROSTERS = {
    "all known": ROSTER,
    "sizes known": replace(ROSTER, label_counts=()),
    "nothing known": Roster(population=CLIENTS),
}
NONSENSE: tuple[object, ...] = (float("nan"), float("inf"), "many", None, [], [float("nan")] * CLASSES, 1e300)
"""Invalid values a client might report in place of a number."""


class SelectionConformance:
    """Tests of one selection; subclass it and set `name`, and `settings` if some have no default."""

    name: str
    """The selection: folder, module or file."""
    settings: Info = NOTHING
    """Its settings."""
    exact: bool = True
    """Whether the cohort always has the requested size; false if it is random."""

    least: int = 1
    """The fewest clients its settings allow."""

    def measured(self, measure: str, client: int) -> Info:
        """Make a client's report for a measure, the same at every call."""
        return {}

    def test_a_cohort_is_of_distinct_clients_of_the_federation(self) -> None:
        """Check that cohorts of 1, 5 and all 12 are tuples of distinct clients, as many as requested.

        A selection that needs more data about the clients says so in `init`, naming the field of `WorkloadInfo`.
        """
        for known, roster in ROSTERS.items():
            try:
                self.build().init(roster)
            except UsageError as error:
                assert known != "all known", f"rejected although everything is known: {error}"
                assert "WorkloadInfo." in str(error), f"the error names no field of WorkloadInfo: {error}"
                continue
            for size in (1, 5, CLIENTS):
                for cohort in self._choices(roster, size):
                    self._check_cohort(cohort, size, roster.population)

    def test_the_same_randomness_gives_the_same_cohorts_across_saving(self) -> None:
        """Check that a checkpoint between any two rounds changes no choice."""
        assert self._choices(ROSTER, 4, rounds=20) == self._choices(ROSTER, 4, rounds=20, saved=True)

    def test_a_federation_of_one(self) -> None:
        """Check that the only client is chosen, or none if the cohort is random."""
        if self.least > 1:
            return
        roster = Roster(population=1, sizes=(10,), label_counts=((4, 6, 0, 0),))
        for cohort in self._choices(roster, 1, rounds=3):
            assert cohort == (0,) or (not self.exact and cohort == ()), f"of one client it chose {cohort}"

    def test_a_probe_asks_distinct_clients_at_least_the_cohort(self) -> None:
        """Check that candidates are distinct clients, not fewer than the cohort, and that any measure can be found."""
        selection = self.build()
        for size in (1, 5, CLIENTS):
            probe = selection.probe(selection.init(ROSTER), ROSTER, size, generator(1, size))
            if probe is None:
                continue
            self._check_cohort(probe.candidates, len(probe.candidates), CLIENTS)
            assert len(probe.candidates) >= size, f"{len(probe.candidates)} candidates for a cohort of {size}"
            assert probe.kind in ("evaluate", "measure", "train"), f"unknown kind of probe {probe.kind!r}"
            assert (probe.measure is None) == (probe.kind == "evaluate"), f"{probe.kind!r} with {probe.measure!r}"
            if probe.measure is not None:
                assert registry.has_part(Kind.SELECTION, probe.measure, "measure"), f"no measure {probe.measure!r}"

    def test_only_candidates_that_answered_are_chosen(self) -> None:
        """Check that if candidates are missing the cohort consists of the others, even if it is smaller."""
        selection = self.build()
        state = selection.init(ROSTER)
        probed = self._answers(selection.probe(state, ROSTER, 5, generator(1, "probe")))
        for missing in (1, len(probed) - 5, len(probed) - 3) if probed else ():  # in the last case only three answered
            left = probed[missing:]
            chosen = selection.choose(state, ROSTER, 5, generator(1, "choose"), left)
            self._check_cohort(chosen, min(5, len(left)), CLIENTS)
            strangers = set(chosen) - {report.client for report in left}
            assert not strangers, f"chose {strangers}, which did not report"

    def test_no_number_a_candidate_makes_up_breaks_the_choice(self) -> None:
        """Check that invalid reports (not finite, not numbers, wrong shape) neither raise nor corrupt the state."""
        selection = self.build()
        state = selection.init(ROSTER)
        probed = self._answers(selection.probe(state, ROSTER, 5, generator(1, "probe")))
        for nonsense in NONSENSE if probed else ():
            metrics, info = {"loss": Mean(float("nan"), 1.0)}, dict.fromkeys(probed[0].info, nonsense)
            reports = [replace(probed[0], metrics=metrics, info=info), *probed[1:]]
            chosen = selection.choose(state, ROSTER, 5, generator(1, "choose"), reports)
            self._check_cohort(chosen, 5, CLIENTS)
            through_frame(dump_state(selection.observe(state, self._reports(chosen), reports)))

    def test_clients_that_did_not_answer_are_no_trouble(self) -> None:
        """Check that `missed` accepts clients of the cohort, and that the state remains usable."""
        selection = self.build()
        state = selection.init(ROSTER)
        cohort, _ = self._drawn_cohort(selection, state, ROSTER, 4, 1)
        after = selection.missed(selection.observe(state, self._reports(cohort[2:]), ()), cohort[:2])
        self._check_cohort(self._drawn_cohort(selection, after, ROSTER, 4, 2)[0], 4, CLIENTS)

    def test_a_federation_may_grow(self) -> None:
        """Check that after `grow` cohorts are of the larger federation, with earlier knowledge intact."""
        selection = self.build()
        n = max(8, self.least)
        small = Roster(population=n, sizes=SIZES[:n], label_counts=LABELS[:n])
        state: object = selection.init(small)
        for round in (1, 2, 3):
            cohort, probed = self._drawn_cohort(selection, state, small, 4, round)
            state = selection.observe(state, self._reports(cohort), probed)
        grown = selection.grow(state, ROSTER)
        for (_, name, old), (_, _, new) in zip(dump_state(state).items(), dump_state(grown).items(), strict=True):
            kept = new[tuple(slice(side) for side in old.shape)]
            assert np.array_equal(kept, old, equal_nan=old.dtype.kind == "f"), f"growing changes {name}"
        state = load_state(selection.State, through_frame(dump_state(grown)))
        self._check_cohort(self._drawn_cohort(selection, state, ROSTER, CLIENTS, 1)[0], CLIENTS, CLIENTS)

    def test_it_explains_itself(self) -> None:
        """Check that the docstring's first line is a sentence, and that every setting has a description."""
        assert_explained(Kind.SELECTION, self.name)

    def build(self) -> AnySelection:
        """Build the selection: the plug-in `name` by default."""
        schema = plugin_schema(Kind.SELECTION, self.name)
        return build_selection(schema.model_validate({**self.settings, "name": self.name}))

    def _check_cohort(self, cohort: Sequence[int], size: int, population: int) -> None:
        assert isinstance(cohort, tuple), f"a cohort is a tuple, got {type(cohort).__name__}"
        assert all(type(client) is int and 0 <= client < population for client in cohort), f"no clients: {cohort}"
        assert len(set(cohort)) == len(cohort), f"a client twice: {cohort}"
        assert not self.exact or len(cohort) == size, f"{len(cohort)} clients, expected {size}"

    def _reports(self, clients: Sequence[int], measure: str | None = None) -> list[ClientReport]:
        return [
            ClientReport(
                client=client,
                num_examples=10 + 10 * client,
                seconds=0.1 * client,
                metrics={"loss": Mean(2.0 + client, 1.0)},
                info=self.measured(measure, client) if measure else {},
            )
            for client in clients
        ]

    def _answers(self, probe: Probe | None) -> list[ClientReport]:
        return self._reports(probe.candidates, probe.measure) if probe is not None else []

    def _drawn_cohort(
        self, selection: AnySelection, state: object, roster: Roster, size: int, round: int
    ) -> tuple[tuple[int, ...], list[ClientReport]]:
        """Return a round's cohort, and the reports of the candidates it was chosen among."""
        probed = self._answers(selection.probe(state, roster, size, generator(1, "selection", round)))
        stream = "choice" if probed else "selection"
        return selection.choose(state, roster, size, generator(1, stream, round), probed), probed

    def _choices(self, roster: Roster, size: int, rounds: int = 5, saved: bool = False) -> list[tuple[int, ...]]:
        """Return the cohorts of some rounds; with `saved`, the state passes through a frame before each."""
        selection = self.build()
        state = selection.init(roster)
        chosen: list[tuple[int, ...]] = []
        for round in range(1, rounds + 1):
            if saved:
                state = load_state(selection.State, through_frame(dump_state(state)))
            before = record_digest(dump_state(state))
            cohort, probed = self._drawn_cohort(selection, state, roster, size, round)
            chosen.append(cohort)
            asked = selection.extra_report(state)
            after = selection.observe(
                state, self._reports(chosen[-1], asked.measure if asked is not None else None), probed
            )
            assert record_digest(dump_state(state)) == before, "the state was changed in place"
            state = after
        return chosen
