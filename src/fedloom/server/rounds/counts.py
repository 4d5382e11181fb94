"""What is counted in an exchange, and summed over a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedloom.core.accumulators import Accumulator
from fedloom.core.records import ClientFailure, ClientReport


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundCounts:
    """Counters of one exchange, or of several together. The round's record has fields of the same names."""

    waiting_s: float = 0.0
    """Seconds the server had nothing to aggregate."""
    aggregation_s: float = 0.0
    """Seconds the server aggregated, the strategy's step included."""
    duplicates: int = 0
    """Results that had been accepted already."""
    reassigned: int = 0
    """Groups assigned again because their node vanished."""
    restored: int = 0
    """Groups whose results had come before the server was restarted, and were kept."""
    failures: tuple[ClientFailure, ...] = ()
    """Why clients' updates are missing."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Why nodes would not or could not take part, by node."""

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
    """What an exchange brought."""

    total: Accumulator
    """All updates, aggregated."""
    reports: tuple[ClientReport, ...]
    """In cohort order."""
    counts: RoundCounts
    sampled: tuple[int, ...]
    """Clients whose jobs were put out, in cohort order."""
    superseded: tuple[int, ...]
    """Clients of these whose updates were not waited for, because enough others had come."""
