"""Top-m by update norm: what SFedCA's credit is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.protocols import Probe, Roster
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.candidates import check_population, draw_uniformly, number_of_candidates
from fedloom.selection._choosing.reports import clients_at, largest, numbers
from fedloom.selection.uniform.selection import Nothing
from fedloom.selection.update_norm.config import Config


class UpdateNorm:
    """d candidates uniformly, in the draw `firing_credit` makes from the same seed; the m largest ||w_k - w_t||_2.

    A control, not a published method (`optimal_sampling` is the published one with this signal): it keeps everything
    of `firing_credit`'s `topm`, the local training of all d included, but the signal.
    """

    State = Nothing

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Nothing:
        check_population(self._config, roster)
        return Nothing()

    def probe(self, state: Nothing, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        count = number_of_candidates(self._config, roster, size)
        return Probe(candidates=draw_uniformly(roster, count, rng), kind="train", measure="update_norm")

    def choose(
        self,
        state: Nothing,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        return clients_at(reports, largest(numbers(reports, "norm", "update_norm"), size))

    def observe(self, state: Nothing, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Nothing:
        return state


def build_selection(config: Config) -> UpdateNorm:
    """The selection a `Config` describes."""
    return UpdateNorm(config)
