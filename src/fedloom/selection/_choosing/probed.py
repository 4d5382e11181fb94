"""Selections without memory that measure uniform candidates and choose among them: all but the choice itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedloom.core.protocols import Probe, Roster, Selection
from fedloom.core.records import ClientReport, Info
from fedloom.selection._choosing.candidates import (
    CandidateSettings,
    check_population,
    draw_uniformly,
    number_of_candidates,
)
from fedloom.selection._choosing.reports import clients_at
from fedloom.selection._choosing.sampling import Floats, Indices
from fedloom.selection._choosing.stateless import Nothing

Pick = Callable[[Sequence[ClientReport], int, np.random.Generator], Indices]
"""Maps the candidates' reports, the number of places and a generator to the places chosen, in any order."""


@dataclass(frozen=True, kw_only=True)
class ProbedSelection(Selection[Nothing]):
    """d candidates, drawn as `firing_credit` draws them from the same seed, are measured; `pick` chooses m of them."""

    settings: CandidateSettings
    pick: Pick
    kind: str
    """Kind of the probe: `evaluate`, `measure` or `train`."""
    measure: str | None = None
    knobs: Info = field(default_factory=dict)

    State = Nothing

    def init(self, roster: Roster) -> Nothing:
        check_population(self.settings, roster)
        return Nothing()

    def probe(self, state: Nothing, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        candidates = draw_uniformly(roster, number_of_candidates(self.settings, roster, size), rng)
        return Probe(candidates=candidates, kind=self.kind, measure=self.measure, knobs=self.knobs)

    def choose(
        self,
        state: Nothing,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        return clients_at(reports, self.pick(reports, size, rng))


def among_reporting(vectors: Floats, size: int, pick: Callable[[Indices, int], Indices]) -> Indices:
    """Pick places among the candidates that reported a vector, then the first drawn of the others if those are too few.

    Args:
        vectors: as `reports.vectors` gives them, [d, C]; a row with NaN is missing.
        size: places.
        pick: maps the reported rows and the number of places among them to indices into those rows.
    """
    reported = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    picked = reported[pick(reported, min(size, len(reported)))]
    rest = np.setdiff1d(np.arange(len(vectors)), reported)[: size - len(picked)]
    return np.concatenate([picked, rest])
