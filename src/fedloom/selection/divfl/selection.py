"""DivFL: a few clients that represent all, by submodular maximisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.protocols import Probe, Roster
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.candidates import check_population, draw_uniformly, number_of_candidates
from fedloom.selection._choosing.coverage import euclidean, facility_location
from fedloom.selection._choosing.reports import clients_at, vectors
from fedloom.selection.divfl.config import Config
from fedloom.selection.uniform.selection import Nothing


class DivFL:
    """Start with S empty; m times add the j that minimises sum_i min_{s in S + j} ||g_i - g_s||, i over candidates.

    Balakrishnan, Li, Zhou, Himayat, Smith, Bilmes 2022, "Diverse Client Selection for Federated Learning via Submodular
    Maximization" (greedy facility location, as read in the public code's `greedy`). g_k is the candidate's local change
    w_k - w_t, or a sketch of it that keeps distances.
    """

    State = Nothing

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Nothing:
        check_population(self._config, roster)
        return Nothing()

    def probe(self, state: Nothing, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        count = number_of_candidates(self._config, roster, size)
        return Probe(
            candidates=draw_uniformly(roster, count, rng),
            kind="train",
            measure="divfl",
            knobs={"sketch": self._config.sketch},
        )

    def choose(
        self,
        state: Nothing,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        moved = vectors(reports, "update", "divfl")
        told = np.flatnonzero(np.isfinite(moved).all(axis=1))
        picked = told[facility_location(euclidean(moved[told]), min(size, len(told)))]
        rest = np.setdiff1d(np.arange(len(reports)), told)[: size - len(picked)]
        return clients_at(reports, np.concatenate([picked, rest]))

    def observe(self, state: Nothing, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Nothing:
        return state


def build_selection(config: Config) -> DivFL:
    """The selection a `Config` describes."""
    return DivFL(config)
