"""Power-of-Choice: the candidates on which the global model does worst."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.protocols import Probe, Roster, Selection
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.candidates import (
    check_population,
    draw_by_examples,
    draw_uniformly,
    known_sizes,
    number_of_candidates,
)
from fedloom.selection._choosing.reports import clients_at, largest, losses
from fedloom.selection._choosing.stateless import Nothing
from fedloom.selection.power_of_choice.config import Config


class PowerOfChoice(Selection[Nothing]):
    """d candidates with probability p_k = n_k / n without replacement; of them the m with the largest F_k(w_t).

    Cho, Wang, Joshi 2020, "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice Selection
    Strategies" (pow-d); the rule as read in the public code of FedCor (`federated_main.py`). F_k(w_t) is the metric
    `loss` of the global model on the client's training data.
    """

    State = Nothing

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Nothing:
        check_population(self._config, roster)
        if self._config.candidate_draw == "examples":
            known_sizes(roster, "power_of_choice")
        return Nothing()

    def probe(self, state: Nothing, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        count = number_of_candidates(self._config, roster, size)
        if self._config.candidate_draw == "uniform":
            return Probe(candidates=draw_uniformly(roster, count, rng), kind="evaluate")
        return Probe(candidates=draw_by_examples(roster, count, rng, "power_of_choice"), kind="evaluate")

    def choose(
        self,
        state: Nothing,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        return clients_at(reports, largest(losses(reports, "power_of_choice"), size))


def build_selection(config: Config) -> PowerOfChoice:
    """Return the selection a `Config` describes."""
    return PowerOfChoice(config)
