"""Counts of an exchange, summed over a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedloom.core.accumulators import Accumulator
from fedloom.core.records import ClientFailure, ClientReport


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundCounts:
    """Counters of one exchange, or of several together. The round's record has fields of the same names."""

    waiting_s: float = 0.0
    """Seconds the server waited for results."""
    aggregation_s: float = 0.0
    """Seconds the server spent aggregating, the strategy's step included."""
    duplicates: int = 0
    """Duplicate results."""
    reassigned: int = 0
    """Groups reassigned because their node disconnected."""
    restored: int = 0
    """Groups whose results had been stored before the server restarted."""
    failures: tuple[ClientFailure, ...] = ()
    """Why clients' updates are missing."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Why nodes refused or failed, by node."""

    def __add__(self, other: RoundCounts) -> RoundCounts:
        return RoundCounts(
            waiting_s=self.waiting_s + other.waiting_s,
            aggregation_s=self.aggregation_s + other.aggregation_s,
            duplicates=self.duplicates + other.duplicates,
            reassigned=self.reassigned + other.reassigned,
            restored=self.restored + other.restored,
            failures=self.failures + other.failures,
            refusals={**self.refusals, **other.refusals},
        )

    def beside_training(self) -> RoundCounts:
        """Return what counts for the round of an exchange that aggregates no updates, such as an evaluation."""
        return replace(self, aggregation_s=0.0, failures=(), refusals={})


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """The outcome of an exchange."""

    total: Accumulator
    """All updates, aggregated."""
    reports: tuple[ClientReport, ...]
    """In cohort order."""
    counts: RoundCounts
    sampled: tuple[int, ...]
    """Clients whose jobs were sent, in cohort order."""
    superseded: tuple[int, ...]
    """Those of them whose updates were not needed, because enough others had arrived."""
