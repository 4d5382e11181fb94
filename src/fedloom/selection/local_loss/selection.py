"""Top-m by local loss: what SFedCA's credit is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.protocols import Probe, Roster
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.candidates import check_population, draw_uniformly, number_of_candidates
from fedloom.selection._choosing.reports import clients_at, largest, losses
from fedloom.selection.local_loss.config import Config
from fedloom.selection.uniform.selection import Nothing


class LocalLoss:
    """d candidates uniformly, in the draw `firing_credit` makes from the same seed; the m with the largest F_k(w_t).

    A control, not a published method: it keeps everything of `firing_credit`'s `topm` but the signal. F_k(w_t) is the
    metric `loss` of the global model on the client's training data, before any local training.
    """

    State = Nothing

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Nothing:
        check_population(self._config, roster)
        return Nothing()

    def probe(self, state: Nothing, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        count = number_of_candidates(self._config, roster, size)
        return Probe(candidates=draw_uniformly(roster, count, rng), kind="evaluate")

    def choose(
        self,
        state: Nothing,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        return clients_at(reports, largest(losses(reports, "local_loss"), size))

    def observe(self, state: Nothing, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Nothing:
        return state


def build_selection(config: Config) -> LocalLoss:
    """The selection a `Config` describes."""
    return LocalLoss(config)
