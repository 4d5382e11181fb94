"""What is remembered of clients: forecasts, and who made up his."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedloom.core.records import ClientReport
from fedloom.selection._choosing.reports import examples, vectors
from fedloom.selection._choosing.sampling import Floats
from fedloom.selection.firing_credit.rules import Flags, sane

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecasts:
    """k forecasts of C outputs each, and how often clients reported what cannot be."""

    round: int = 0
    """Rounds observed so far."""
    clients: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    """Whose they are, int64 [k]."""
    gains: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """The forecasts e, float64 [k, C]."""
    num_examples: Floats = field(default_factory=lambda: np.zeros(0))
    """n, float64 [k]."""
    made: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    """`round` when each was reported, int64 [k]."""
    flagged: Mapping[str, int] = field(default_factory=dict)
    """Impossible reports by client; clients that never made one are not in it."""

    def at(self, places: npt.NDArray[np.intp]) -> Forecasts:
        """These forecasts, in this order."""
        return replace(
            self,
            clients=self.clients[places],
            gains=self.gains[places],
            num_examples=self.num_examples[places],
            made=self.made[places],
        )

    def after(self, others: Forecasts) -> Forecasts:
        """The others' forecasts, then these; either may have none."""
        if not len(others.clients):
            return self
        if not len(self.clients):
            return replace(others, round=self.round, flagged=self.flagged)
        return replace(
            self,
            clients=np.concatenate([others.clients, self.clients]),
            gains=np.concatenate([others.gains, self.gains]),
            num_examples=np.concatenate([others.num_examples, self.num_examples]),
            made=np.concatenate([others.made, self.made]),
        )


def told(reports: Sequence[ClientReport], round: int) -> tuple[Forecasts, Flags]:
    """The forecasts of some reports, 0 where they cannot be; and who claimed what cannot be, bool [r]."""
    if not reports:
        return Forecasts(round=round), np.zeros(0, bool)
    claimed = vectors(reports, "gain", "forecast_credit")
    _, flagged = sane(np.zeros(len(claimed)), claimed, "l1", claimed.shape[1])
    forecasts = Forecasts(
        round=round,
        clients=np.array([report.client for report in reports], np.int64),
        gains=np.where(flagged[:, None], 0.0, np.nan_to_num(claimed)),
        num_examples=examples(reports),
        made=np.full(len(reports), round, np.int64),
    )
    return forecasts, flagged
