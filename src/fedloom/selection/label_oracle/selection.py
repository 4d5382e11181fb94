"""The label oracle: greedy class balance with everything known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.protocols import Roster, Selection
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.balance import divergence, imbalance
from fedloom.selection._choosing.candidates import (
    check_population,
    draw_uniformly,
    known_labels,
    number_of_candidates,
)
from fedloom.selection._choosing.stateless import Nothing
from fedloom.selection.label_oracle.config import Config


class LabelOracle(Selection[Nothing]):
    """d candidates uniformly; start with S empty, m times add the k that minimises KL(pool of S + k || uniform).

    The greedy rule of Astraea's mediators (Duan et al. 2019) as a selection, with true label counts, unavailable
    in practice: the balance others are measured against. The candidates are those `firing_credit` draws from the same
    seed. Ties take the first drawn. Costs O(d m C), and sends no message.
    """

    State = Nothing

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Nothing:
        check_population(self._config, roster)
        known_labels(roster, "label_oracle")
        return Nothing()

    def choose(
        self,
        state: Nothing,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        candidates = draw_uniformly(roster, number_of_candidates(self._config, roster, size), rng)
        counts = np.array([roster.label_counts[client] for client in candidates], np.float64)
        distance = divergence if self._config.objective == "kl" else imbalance
        pool, left = np.zeros(counts.shape[1]), list(range(len(candidates)))
        for _ in range(size):
            pool = pool + counts[left.pop(int(distance(pool + counts[left]).argmin()))]
        return tuple(client for index, client in enumerate(candidates) if index not in set(left))


def build_selection(config: Config) -> LabelOracle:
    """Return the selection a `Config` describes."""
    return LabelOracle(config)
