"""Selection proportional to the number of examples, without replacement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.protocols import Roster, Selection
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.candidates import draw_by_examples, known_sizes
from fedloom.selection._choosing.stateless import Nothing
from fedloom.selection.data_size.config import Config


class DataSize(Selection[Nothing]):
    """Draw m clients one after the other, each time with probability n_k / sum of n over those left.

    The sampling of many federated papers (Li et al. 2020, FedProx, Algorithm 1: p_k = n_k / n), here without
    replacement. With weights n_k in the mean as well, large clients count twice; `round.weighting = "uniform"` goes
    with this selection. Costs O(N): its definition reads all sizes.
    """

    State = Nothing

    def init(self, roster: Roster) -> Nothing:
        known_sizes(roster, "data_size")
        return Nothing()

    def choose(
        self,
        state: Nothing,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        return draw_by_examples(roster, size, rng, "data_size")


def build_selection(config: Config) -> DataSize:
    """Return the selection a `Config` describes."""
    return DataSize()
