"""Evaluates a low-rank run from its rounds: budgets, savings, errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedloom.core.history import RoundRecord
from fedloom.core.records import Info

_FLOAT_BYTES = 4
"""Bytes of a parameter in the full-model FedAvg a run is compared with."""


@dataclass(frozen=True, slots=True)
class Saving:
    """Something sent against what full-model FedAvg would have sent for the same updates."""

    sent: float
    whole: float

    @property
    def share(self) -> float:
        """Return 1 - sent / whole; NaN if nothing would have been sent."""
        return 1.0 - self.sent / self.whole if self.whole else math.nan

    def __add__(self, other: Saving) -> Saving:
        return Saving(self.sent + other.sent, self.whole + other.whole)


@dataclass(frozen=True, slots=True)
class Budget:
    """One round of a low-rank strategy."""

    round: int
    whole: bool
    """Whether clients sent whole models."""
    ranks: Mapping[str, int]
    """Rank of each layer; empty in a round with whole models."""
    error: float
    """Relative Frobenius error of the aggregation; NaN if the round does not record it."""
    base: int
    """Elements a client reads in addition at its first job; 0 if the round does not record it."""
    drift: float
    """Distance between the clients' models at the end of a round with whole models; NaN if not recorded."""
    up: Saving
    """Parameters."""
    down: Saving
    up_bytes: Saving
    down_bytes: Saving

    @property
    def rank(self) -> float:
        """Return the mean rank over the layers, r_t; 0 in a round with whole models."""
        return sum(self.ranks.values()) / len(self.ranks) if self.ranks else 0.0


@dataclass(frozen=True, slots=True)
class Budgets:
    """A run's rounds, and their totals."""

    rounds: tuple[Budget, ...]
    full: int
    """Parameters of the whole model, P."""

    @property
    def adapted(self) -> tuple[Budget, ...]:
        """Return the rounds with adapters."""
        return tuple(each for each in self.rounds if not each.whole)

    @property
    def bound(self) -> float:
        """Return the upper limit of the saving: 1 - T_i/T, rounds counted by their updates."""
        whole = sum(each.up.whole for each in self.rounds if each.whole)
        return 1.0 - whole / (sum(each.up.whole for each in self.rounds) or math.nan)

    @property
    def uniform(self) -> bool:
        """Return whether all layers had the same rank in each round."""
        return all(len(set(each.ranks.values())) <= 1 for each in self.adapted)

    @property
    def constant(self) -> bool:
        """Return whether the rank was the same in all rounds with adapters."""
        return len({each.rank for each in self.adapted}) <= 1

    @property
    def rank_max(self) -> float:
        """Return the largest mean rank of a round."""
        return max((each.rank for each in self.adapted), default=math.nan)

    @property
    def rank_rounds(self) -> float:
        """Σ r_t over the rounds with adapters."""
        return sum(each.rank for each in self.adapted)

    def savings(self) -> dict[str, Saving]:
        """Return every definition of "saving", by its name among a study's numbers; `saving` is the primary one."""
        rounds, adapted, none = self.rounds, self.adapted, Saving(0, 0)
        return {
            "saving": sum((each.up for each in rounds), none),
            "saving_annealing": sum((each.up for each in adapted), none),
            "saving_both_ways": sum((each.up + each.down for each in rounds), none),
            "saving_bytes": sum((each.up_bytes for each in rounds), none),
            "saving_bytes_both_ways": sum((each.up_bytes + each.down_bytes for each in rounds), none),
            "saving_rank_rounds": Saving(self.rank_rounds, self.rank_max * len(adapted) if adapted else 0.0),
        }

    def numbers(self) -> dict[str, float]:
        """Return the numbers a study compares."""
        errors = [each.error for each in self.adapted if math.isfinite(each.error)]
        drifts = [each.drift for each in self.rounds if math.isfinite(each.drift)]
        return {
            **{name: saving.share for name, saving in self.savings().items()},
            "saving_bound": self.bound,
            "rank_rounds": self.rank_rounds,
            "mean_rank": self.rank_rounds / len(self.adapted) if self.adapted else math.nan,
            "aggregation_error": sum(errors) / len(errors) if errors else math.nan,
            "drift": sum(drifts) / len(drifts) if drifts else math.nan,
            "drift_first": drifts[0] if drifts else math.nan,
            "params_base": float(max((each.base for each in self.rounds), default=0)),
        }


def read(rounds: Sequence[RoundRecord], full: int) -> Budgets:
    """Return the rounds of a low-rank strategy.

    Args:
        rounds: a run's records; those without a stage (of another strategy) are omitted.
        full: parameters of the whole model.
    """
    return Budgets(tuple(_budget(record, full) for record in rounds if "stage" in record.info), full)


def _budget(record: RoundRecord, full: int) -> Budget:
    reported: Info = record.info
    traffic, sampled = record.traffic, len(record.cohort)
    answered = sampled - len({failure.client for failure in record.failures} & set(record.cohort))
    error = reported.get("aggregation_error")
    return Budget(
        round=record.round,
        whole="rank" not in reported,
        ranks=reported.get("ranks", {}),
        error=math.nan if error is None else float(error),
        base=int(reported.get("params_base", 0)),
        drift=drift(record),
        up=Saving(traffic.params_up, answered * full),
        down=Saving(traffic.params_down, sampled * full),
        up_bytes=Saving(traffic.bytes_up, _FLOAT_BYTES * answered * full),
        down_bytes=Saving(traffic.bytes_down, _FLOAT_BYTES * sampled * full),
    )


def drift(record: RoundRecord) -> float:
    """Return the RMS distance of the clients' models from their mean; NaN if the round does not record it.

    Σ p_k ‖w_k - w‖² = Σ p_k ‖w_k - a‖² - ‖w - a‖² for any a, here the round's anchor: clients report the first term,
    the server the second. p_k is by examples.
    """
    apart = record.metrics.get("distance_squared", math.nan) - record.info.get("step_squared", math.nan)
    return math.sqrt(max(apart, 0.0)) if math.isfinite(apart) else math.nan
